//! Reads a tar archive entry by entry: ustar, GNU (long names, sparse, base-256 numbers) and PAX.
//!
//! Blocks and number fields are parsed by the `tar` crate; what strings entries together is here, because sizes, names
//! and sparse maps come from three places that can disagree (PAX wins, as GNU tar reads it), and because every length
//! that the archive claims is bounded before it is believed.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::{Extended, Records};
use super::{Fault, Limits};

const BLOCK: usize = 512;
/// Pieces of one sparse file.
const SPARSE_PIECES: usize = 1 << 16;
/// Records of the archive's global headers: each entry is looked up in them.
const GLOBAL_RECORDS: usize = 256;
/// The largest file of an archive: ext4's limit. Others (tmpfs, XFS) take what nobody who reads the file to its end survives.
const LARGEST_FILE: u64 = 16 << 40;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// One entry, all extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, set-id and sticky bits included.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Device numbers.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of each piece that the archive holds, when the file has holes.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

/// Reads entries from a stream.
pub(crate) struct Reader<R> {
    inner: R,
    limits: Limits,
    /// Bytes of the current entry's data that were not read yet.
    left: u64,
    /// Bytes from there to the next header.
    padding: u64,
    global: Records,
    entries: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R, limits: Limits) -> Self {
        Self { inner, limits, left: 0, padding: 0, global: Records::default(), entries: 0 }
    }

    /// The next entry; what was not read of the current one is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let mut own = Records::default();
        let mut long_name = None;
        let mut long_link = None;
        let mut extensions = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            // Global headers count as entries too, or an archive of them alone would go on for ever.
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(Fault::bad(format!("more than {} entries", self.limits.entries)));
            }
            match header.entry_type() {
                EntryType::XHeader => own.append(Records::parse(&self.extension(&header)?)?),
                EntryType::XGlobalHeader => {
                    let records = Records::parse(&self.extension(&header)?)?;
                    let bytes = usize::try_from(self.limits.header).unwrap_or(usize::MAX);
                    self.global.merge(records, GLOBAL_RECORDS, bytes)?;
                    continue;
                }
                EntryType::GNULongName => long_name = Some(until_nul(self.extension(&header)?)),
                EntryType::GNULongLink => long_link = Some(until_nul(self.extension(&header)?)),
                _ => {
                    // Taken for the time of this call: the entry is read with it.
                    let global = std::mem::take(&mut self.global);
                    let entry = self.entry(&header, Extended { own: &own, global: &global }, long_name, long_link);
                    self.global = global;
                    return entry.map(Some);
                }
            }
            extensions += 1;
            if extensions > 64 {
                return Err(Fault::bad("more than 64 extended headers before one entry"));
            }
        }
    }

    /// The current entry's data as the archive holds it (a sparse file's pieces, one after the other).
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    /// Reads to the end of the stream, behind the archive's own end: its checksums and hashes cover that too.
    pub(crate) fn drain(mut self) -> Result<(), Fault> {
        io::copy(&mut self.inner, &mut io::sink())?;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), Fault> {
        let wanted = self.left + self.padding;
        if wanted > 0 {
            let skipped = io::copy(&mut self.inner.by_ref().take(wanted), &mut io::sink())?;
            if skipped < wanted {
                return Err(Fault::Read(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block; `None` at the end mark or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Fault::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if block.iter().all(|&b| b == 0) {
            return Ok(None);
        }
        if !checksum_fits(block) {
            return Err(Fault::bad("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The whole data of an extension.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, Fault> {
        let size = header.entry_size().map_err(|_| Fault::bad("an extended header has no readable size"))?;
        if size > self.limits.header {
            return Err(Fault::bad(format!("an extended header of {size} bytes (at most {})", self.limits.header)));
        }
        self.set_size(size);
        let mut bytes = Vec::new();
        self.data().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn set_size(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Extended<'_>,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Fault> {
        let path = pax
            .get("GNU.sparse.name")
            .or_else(|| pax.get("path"))
            .map(<[u8]>::to_vec)
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let name = path.escape_ascii().to_string();
        let bad = |what: &str| Fault::bad(format!("`{name}`: {what}"));
        if path.len() > self.limits.path {
            return Err(Fault::bad(format!("a path of {} bytes (at most {})", path.len(), self.limits.path)));
        }
        let link = pax
            .get("linkpath")
            .map(<[u8]>::to_vec)
            .or(long_link)
            .unwrap_or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default());
        if link.len() > self.limits.path {
            return Err(bad("a link target longer than a path can be"));
        }
        let kind = kind_of(header, &path).ok_or_else(|| bad("an entry of an unknown kind"))?;
        let stored = match (kind, pax.number("size")?) {
            // Only files have data, whatever else a size field says (GNU tar and Go's `archive/tar`, `isHeaderOnly`).
            (Kind::Hardlink | Kind::Symlink | Kind::Dir | Kind::Char | Kind::Block | Kind::Fifo, _) => 0,
            (_, Some(size)) => size,
            (_, None) => header.entry_size().map_err(|_| bad("no readable size"))?,
        };
        if stored > LARGEST_FILE {
            return Err(bad("larger than a file can be"));
        }
        self.set_size(stored);
        let (size, sparse) = self.sparse(header, pax, stored, &name)?;
        Ok(Entry {
            kind,
            mode: header.mode().map_err(|_| bad("no readable mode"))? & 0o7777,
            uid: pax.number("uid")?.map_or_else(|| header.uid(), Ok).map_err(|_| bad("no readable owner"))?,
            gid: pax.number("gid")?.map_or_else(|| header.gid(), Ok).map_err(|_| bad("no readable group"))?,
            mtime: pax.time("mtime").unwrap_or_else(|| (i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0)),
            link,
            size,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: xattrs(pax),
            sparse,
            path,
        })
    }

    /// Real size and pieces, in each of the four ways that GNU tar has written them.
    fn sparse(&mut self, header: &Header, pax: Extended<'_>, stored: u64, name: &str) -> Result<Sparse, Fault> {
        let bad = |what: &str| Fault::bad(format!("`{name}`: sparse file: {what}"));
        let (size, pieces) = if header.entry_type() == EntryType::GNUSparse {
            self.sparse_old(header, name)?
        } else if pax.get("GNU.sparse.major") == Some(b"1") {
            let size = pax.number("GNU.sparse.realsize")?.ok_or_else(|| bad("no real size"))?;
            (size, self.sparse_in_data(name)?)
        } else if let Some(size) = pax.number("GNU.sparse.size")? {
            (size, sparse_in_records(pax).ok_or_else(|| bad("broken map"))?)
        } else {
            return Ok((stored, None));
        };
        let mut end = 0;
        let mut held = 0u64;
        for &(offset, length) in &pieces {
            if offset < end {
                return Err(bad("pieces out of order"));
            }
            end = offset.checked_add(length).filter(|&e| e <= size).ok_or_else(|| bad("a piece beyond its end"))?;
            held += length;
        }
        if size > LARGEST_FILE {
            return Err(bad("larger than a file can be"));
        }
        if held > self.left {
            return Err(bad("its map promises more than the archive holds"));
        }
        Ok((size, Some(pieces)))
    }

    /// The old GNU format: four pieces in the header, more in blocks behind it.
    fn sparse_old(&mut self, header: &Header, name: &str) -> Result<(u64, Vec<(u64, u64)>), Fault> {
        let bad = |_| Fault::bad(format!("`{name}`: sparse file: broken map"));
        let gnu = header.as_gnu().ok_or_else(|| Fault::bad(format!("`{name}`: sparse, but no GNU header")))?;
        let size = gnu.real_size().map_err(bad)?;
        let mut pieces = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> Result<(), Fault> {
            if !piece.is_empty() {
                pieces.push((piece.offset().map_err(bad)?, piece.length().map_err(bad)?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        let mut blocks = 0;
        while more {
            blocks += 1;
            if blocks > SPARSE_PIECES / 21 {
                return Err(Fault::bad(format!("`{name}`: sparse file: too many pieces")));
            }
            let mut block = GnuExtSparseHeader::new();
            self.inner.read_exact(block.as_mut_bytes())?;
            block.sparse.iter().try_for_each(&mut add)?;
            more = block.is_extended();
        }
        Ok((size, pieces))
    }

    /// PAX sparse format 1.0: the map is decimal lines at the start of the data, padded to a block.
    fn sparse_in_data(&mut self, name: &str) -> Result<Vec<(u64, u64)>, Fault> {
        let bad = || Fault::bad(format!("`{name}`: sparse file: broken map"));
        let mut read = 0u64;
        let mut line = |reader: &mut Self| -> Result<u64, Fault> {
            let mut number = 0u64;
            for digit in 0..=20 {
                let mut byte = [0];
                reader.data().read_exact(&mut byte)?;
                read += 1;
                match byte[0] {
                    b'\n' if digit > 0 => return Ok(number),
                    b @ b'0'..=b'9' => {
                        number =
                            number.checked_mul(10).and_then(|n| n.checked_add(u64::from(b - b'0'))).ok_or_else(bad)?;
                    }
                    _ => return Err(bad()),
                }
            }
            Err(bad())
        };
        let count = line(self)?;
        if count > SPARSE_PIECES as u64 {
            return Err(Fault::bad(format!("`{name}`: sparse file: too many pieces")));
        }
        let pieces = (0..count).map(|_| Ok((line(self)?, line(self)?))).collect::<Result<Vec<_>, Fault>>()?;
        let fill = read.wrapping_neg() % BLOCK as u64;
        io::copy(&mut self.data().take(fill), &mut io::sink())?;
        Ok(pieces)
    }
}

type Sparse = (u64, Option<Vec<(u64, u64)>>);

/// PAX sparse formats 0.1 (one list) and 0.0 (a pair of records for each piece).
fn sparse_in_records(pax: Extended<'_>) -> Option<Vec<(u64, u64)>> {
    let number = |v: &[u8]| std::str::from_utf8(v).ok()?.parse::<u64>().ok();
    let numbers: Vec<u64> = match pax.get("GNU.sparse.map") {
        Some(map) => map.split(|&b| b == b',').map(number).collect::<Option<_>>()?,
        None => pax
            .iter()
            .filter(|(k, _)| matches!(*k, b"GNU.sparse.offset" | b"GNU.sparse.numbytes"))
            .map(|(_, v)| number(v))
            .collect::<Option<_>>()?,
    };
    if !numbers.len().is_multiple_of(2) || numbers.len() > 2 * SPARSE_PIECES {
        return None;
    }
    Some(numbers.chunks_exact(2).map(|c| (c[0], c[1])).collect())
}

/// The current entry's data.
pub(crate) struct Data<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len().min(usize::try_from(self.0.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let n = self.0.inner.read(&mut buf[..wanted])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.left -= n as u64;
        Ok(n)
    }
}

fn kind_of(header: &Header, path: &[u8]) -> Option<Kind> {
    Some(match header.entry_type() {
        // Before ustar a folder was a file whose name ends in `/`; GNU tar reads it so in every format.
        EntryType::Regular if path.ends_with(b"/") => Kind::Dir,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::Char,
        EntryType::Block => Kind::Block,
        EntryType::Fifo => Kind::Fifo,
        _ => return None,
    })
}

/// The last value of each attribute, in the order of their names.
fn xattrs(pax: Extended<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let named = pax.iter().filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?, value)));
    let all: BTreeMap<&[u8], &[u8]> = named.collect();
    all.into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&b| b == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Whether a block's checksum is right, its field counted as spaces; old writers summed signed bytes.
pub(crate) fn checksum_fits(block: &[u8]) -> bool {
    let Ok(wanted) = Header::from_byte_slice(block).cksum() else {
        return false;
    };
    let (mut unsigned, mut signed) = (0u32, 0i32);
    for (i, &b) in block.iter().enumerate() {
        let b = if (148..156).contains(&i) { b' ' } else { b };
        unsigned += u32::from(b);
        signed += i32::from(i8::from_ne_bytes([b]));
    }
    wanted == unsigned || i64::from(wanted) == i64::from(signed)
}
