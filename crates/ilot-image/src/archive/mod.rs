//! Tar archives as layers: read with limits, written the same each time, unpacked without ever leaving a folder.

pub(crate) mod codec;
pub(crate) mod pax;
pub(crate) mod reader;
pub(crate) mod remove;
pub(crate) mod unpack;
pub(crate) mod writer;

use std::io;

/// What a damaged, hostile or unreadable archive gives; the caller adds the archive's name.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes could not be read or decompressed.
    Read(io::Error),
    /// The bytes say something that cannot be.
    Bad(String),
    /// The tree could not be written.
    Write {
        /// What was tried.
        operation: &'static str,
        /// The entry.
        entry: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Fault {
    pub(crate) fn bad(reason: impl Into<String>) -> Self {
        Self::Bad(reason.into())
    }

    /// The same with the archive's name and the folder it was unpacked to.
    pub(crate) fn of(self, what: &str, place: &std::path::Path) -> crate::Error {
        match self {
            // A limit or a full disk that a reader in the middle hit arrives as a read error that wraps ours.
            Self::Read(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                crate::Error::NoSpace { what: what.to_owned(), path: place.to_owned() }
            }
            Self::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                crate::Error::Archive { what: what.to_owned(), reason: "ends in the middle".to_owned() }
            }
            Self::Read(e) => crate::Error::Archive { what: what.to_owned(), reason: e.to_string() },
            Self::Bad(reason) => crate::Error::Archive { what: what.to_owned(), reason },
            Self::Write { source, .. } if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                crate::Error::NoSpace { what: format!("unpack {what}"), path: place.to_owned() }
            }
            Self::Write { operation, entry, source } => crate::Error::Archive {
                what: what.to_owned(),
                reason: match source.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => {
                        format!("`{entry}`: {operation}: {source} (unpacking keeps owners, which needs root)")
                    }
                    _ => format!("`{entry}`: {operation}: {source}"),
                },
            },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// How much an archive may be. What goes beyond is refused before it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries of one archive.
    pub entries: u64,
    /// Bytes of one archive after decompression.
    pub bytes: u64,
    /// Bytes of a path or link target (Linux' `PATH_MAX` less its NUL).
    pub path: usize,
    /// Bytes of one extended header (attributes, long names).
    pub header: u64,
    /// Bytes of names that are remembered while one archive is read: folders, whose times are set last.
    pub names: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 128 << 30, path: 4095, header: 1 << 20, names: 512 << 20 }
    }
}

/// Counts names that are kept in memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Names(u64);

impl Names {
    /// One more name.
    pub(crate) fn add(&mut self, name: &[u8], limits: Limits) -> Result<(), Fault> {
        self.add_bytes(name.len() as u64 + 64, limits)
    }

    /// Room for something else that is kept.
    pub(crate) fn add_bytes(&mut self, bytes: u64, limits: Limits) -> Result<(), Fault> {
        self.0 = self.0.saturating_add(bytes);
        if self.0 <= limits.names {
            return Ok(());
        }
        Err(Fault::bad(format!("names of more than {} bytes to remember", limits.names)))
    }
}

/// An entry's path as components below the root: `./a//b/` and `/a/b` are `a`, `b`; the root itself is empty.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Fault::bad(format!("`{}`: `..` in a path", path.escape_ascii()))),
            part if part.contains(&0) => {
                return Err(Fault::bad(format!("`{}`: NUL in a path", path.escape_ascii())));
            }
            part => parts.push(part),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tar::EntryType;

    use super::pax::Records;
    use super::reader::Reader;
    use super::writer::{Meta, finish, header, pad};
    use super::*;

    /// Path, kind, link, content and extra records.
    type Sample<'a> = (&'a [u8], EntryType, &'a [u8], &'a [u8], Records);

    /// An archive with one of everything.
    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut sparse = Records::default();
        for (key, value) in [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9000")] {
            sparse.push(key, value.as_bytes());
        }
        sparse.push("SCHILY.xattr.user.a", b"b");
        let long = "long folder/".repeat(12);
        let mut map = b"2\n0\n5\n8000\n3\n".to_vec();
        map.resize(512, 0);
        map.extend_from_slice(b"helloend");
        let entries: [Sample<'_>; 7] = [
            (b"./", EntryType::Directory, b"", b"", Records::default()),
            (b"a", EntryType::Regular, b"", b"content", Records::default()),
            (long.as_bytes(), EntryType::Directory, b"", b"", Records::default()),
            (b"l", EntryType::Symlink, b"../../long folder", b"", Records::default()),
            (b"h", EntryType::Link, b"a", b"", Records::default()),
            (b"l/x", EntryType::Regular, b"", b"through", Records::default()),
            (b"s", EntryType::Regular, b"", &map, sparse),
        ];
        for (path, kind, link, content, extra) in entries {
            let mut meta = Meta::new(path, kind, 0o755);
            (meta.link, meta.size, meta.extra) = (link, content.len() as u64, extra);
            header(&mut out, &meta).unwrap();
            out.extend_from_slice(content);
            pad(&mut out, content.len() as u64).unwrap();
        }
        finish(&mut out).unwrap();
        out
    }

    /// Damages bytes, half of the time with the header's checksum made right again.
    fn damage(bytes: &mut [u8], mut seed: u64) {
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        for _ in 0..=random(6) {
            let block = random(bytes.len() / 512) * 512;
            let interesting = [0, 100, 124, 130, 156, 157, 257, 345, 386, 482, 483];
            let at = block + (interesting[random(interesting.len())] + random(8)) % 512;
            bytes[at] = match random(4) {
                0 => b'0' + u8::try_from(random(10)).unwrap(),
                1 => b"xgLKS125./\0\xff\x80"[random(13)],
                _ => u8::try_from(random(256)).unwrap(),
            };
            if random(2) == 0 {
                let head = &mut bytes[block..block + 512];
                head[148..156].copy_from_slice(b"        ");
                let sum: u32 = head.iter().map(|&b| u32::from(b)).sum();
                head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }

    #[test]
    fn whatever_is_damaged_reading_ends_without_a_panic() {
        let sample = sample();
        let limits = Limits { entries: 1000, bytes: 1 << 20, ..Limits::default() };
        let mut read = 0;
        for seed in 1..4000u64 {
            let mut bytes = sample.clone();
            damage(&mut bytes, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut reader = Reader::new(bytes.as_slice(), limits);
            let mut entries = 0;
            while let Ok(Some(entry)) = reader.next() {
                entries += 1;
                assert!(entries <= 1000 && entry.path.len() <= limits.path);
                if reader.data().take(1 << 20).read_to_end(&mut Vec::new()).is_err() {
                    break;
                }
            }
            read += usize::from(entries > 3);
        }
        assert!(read > 1000, "the damage was too much to test anything: {read}");
    }

    #[test]
    fn whatever_is_damaged_unpacking_stays_inside() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: unpacking needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let sample = sample();
        let limits = Limits { entries: 1000, bytes: 1 << 20, ..Limits::default() };
        let (mut done, count) = (0, 400);
        for seed in 1..=count {
            let mut bytes = sample.clone();
            damage(&mut bytes, (seed as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
            let root = dir.path().join("tree");
            std::fs::create_dir(&root).unwrap();
            let unpacked = unpack::unpack(bytes.as_slice(), &root, None, limits, |_| Ok(()));
            std::fs::remove_dir_all(&root).unwrap();
            // The other form takes and refuses the same, for the same reason.
            let (file, layer) = (tempfile::tempfile().unwrap(), crate::blob::digest_of(b""));
            let native = crate::native::build(bytes.as_slice(), file, &layer, limits, |_, _| Ok(()));
            match (&unpacked, native.map(|(_, done)| done)) {
                (Ok(one), Ok(two)) => {
                    assert_eq!((one.entries, one.bytes, one.devices), (two.entries, two.bytes, two.devices));
                }
                (Err(one), Err(two)) => assert_eq!(format!("{one:?}"), format!("{two:?}"), "seed {seed}"),
                (one, two) => panic!("seed {seed}: {one:?}, {two:?}"),
            }
            done += usize::from(unpacked.is_ok());
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "seed {seed}");
        }
        assert!(done > 5 && done < count, "{done}");
    }
}
