//! A layer as one EROFS image: what the kernel mounts as it is, with nothing unpacked.
//!
//! Written in one pass over the archive: a file's data goes to the image as it comes, what describes the tree (which is
//! kept in memory) goes behind it, the superblock last. Nothing but this module writes what is mounted later: the kernel
//! never sees a file system that somebody else made.
//!
//! The rules are those of [`crate::archive::unpack`], entry by entry; a test compares both.

mod erofs;
mod tree;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::archive::reader::{Entry, Reader};
use crate::archive::unpack::Unpacked;
use crate::archive::{Fault, Limits};
use crate::error::{Error, Result};
use crate::types::Digest;
use tree::Tree;

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// The kernel writes what is dirty for 30 s (`vm.dirty_expire_centisecs`): then a sync costs nothing.
const WRITTEN_BACK: Duration = Duration::from_secs(90);
/// How the kernel is told to read the file past its page cache (Linux 6.15): what machines read is in memory once, as pages
/// of the mount.
pub const DIRECT: &str = "directio";
/// Bytes that are written before the kernel is told that nobody reads them from here.
const WINDOW: u64 = 16 << 20;
/// Version of the record: another one is made anew.
const VERSION: u32 = 1;

/// A layer of one trust level as an EROFS image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeLayer {
    /// Where it is; no other trust level has the same file.
    pub file: PathBuf,
    /// The layer, uncompressed.
    pub layer: Digest,
    /// Of its content, as recorded when it was made.
    pub digest: Digest,
}

/// What stands in the last block of the file, behind the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// SHA-256 of the file system: its bytes from the second block on, then those of the first, which is written last.
    pub(crate) digest: Digest,
    /// The layer that it was made of.
    pub(crate) layer: Digest,
    /// Bytes of the file system.
    pub(crate) size: u64,
    /// In which life of the host it was written, until it is known to be on the disk.
    boot: Option<String>,
}

impl Record {
    fn encode(&self) -> io::Result<Vec<u8>> {
        let mut block = serde_json::to_vec(self)?;
        block.resize(4096, 0);
        Ok(block)
    }
}

/// The life of the host, where the kernel tells it.
pub(crate) fn boot() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Where blocks go, one after the other; hashed on the way.
struct Sink {
    out: BufWriter<File>,
    hash: Sha256,
    /// The next block.
    block: u64,
    /// Bytes of it that are written.
    filled: u64,
    /// The block up to which the kernel was told so.
    left: u64,
}

impl Sink {
    fn new(mut file: File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(BLOCK))?;
        Ok(Self { out: BufWriter::with_capacity(256 << 10, file), hash: Sha256::new(), block: 1, filled: 0, left: 0 })
    }

    /// Begins to bring to the disk what was written, and takes from memory what is there already: nobody waits for either.
    fn let_go(&mut self) {
        let (from, to) = (self.left * BLOCK, self.block * BLOCK);
        if let Some(length) = std::num::NonZeroU64::new(to - from) {
            // Only advice; what it cannot do now is done when the layer is mounted.
            let _ = rustix::fs::fadvise(self.out.get_ref(), from, Some(length), rustix::fs::Advice::DontNeed);
        }
        // The last window again: it was being written just now.
        self.left = (to.saturating_sub(WINDOW) / BLOCK).max(self.left);
    }

    /// The number of the next whole block.
    fn next_block(&self) -> Result<u32, Fault> {
        // The last number means a hole.
        let block = u32::try_from(self.block + u64::from(self.filled > 0)).ok().filter(|&b| b < u32::MAX);
        block.ok_or_else(|| Fault::bad("more than 16 TiB, too much for the native format"))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        let at = self.filled + bytes.len() as u64;
        self.block += at / BLOCK;
        self.filled = at % BLOCK;
        if (self.block - self.left) * BLOCK >= 2 * WINDOW {
            self.let_go();
        }
        Ok(())
    }

    /// Zeroes up to the end of the block.
    fn pad(&mut self) -> io::Result<()> {
        let left = self.filled.wrapping_neg() % BLOCK;
        self.zeroes(left)
    }

    fn zeroes(&mut self, mut count: u64) -> io::Result<()> {
        const ZEROES: [u8; 4096] = [0; 4096];
        while count > 0 {
            let now = count.min(BLOCK);
            self.write(&ZEROES[..usize::try_from(now).unwrap_or(0)])?;
            count -= now;
        }
        Ok(())
    }
}

/// Makes the EROFS image of a decompressed archive in an empty file.
pub(crate) fn build(
    source: impl Read,
    file: File,
    layer: &Digest,
    limits: Limits,
    mut each: impl FnMut(&Entry, u64) -> Result<(), Fault>,
) -> Result<(Record, Unpacked), Fault> {
    let mut tree = Tree::new(limits);
    let failed = |e: io::Error| Fault::Write { operation: "write", entry: "native layer".to_owned(), source: e };
    let mut sink = Sink::new(file).map_err(failed)?;
    let mut reader = Reader::new(io::BufReader::with_capacity(crate::blob::BUFFER, source), limits);
    while let Some(entry) = reader.next()? {
        tree.entry(&entry, &mut reader, &mut sink)?;
        each(&entry, tree.done.bytes)?;
    }
    reader.drain()?;
    if tree.done.entries == 0 {
        return Err(Fault::bad("no entries"));
    }
    let superblock = erofs::write(&tree, &mut sink)?;
    sink.hash.update(superblock);
    let size = sink.block * BLOCK;
    let digest = Digest::from_bytes(&sink.hash.finalize());
    let record = Record { version: VERSION, digest, layer: layer.clone(), size, boot: boot() };
    let last = record.encode().map_err(failed)?;
    sink.out.write_all(&last).map_err(failed)?;
    let file = sink.out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.write_all_at(&superblock, 0).map_err(failed)?;
    Ok((record, tree.done))
}

/// What the file says of itself; an error where it is cut, of another version or of another layer.
pub(crate) fn record(path: &Path, layer: &Digest) -> Result<Record> {
    let damaged = |reason: &str| Error::Damaged { path: path.to_owned(), reason: reason.to_owned() };
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
    let start = length.checked_sub(BLOCK).ok_or_else(|| damaged("no native layer"))?;
    let mut last = vec![0; 4096];
    file.read_exact_at(&mut last, start).map_err(|e| Error::io("read", path, e))?;
    let end = last.iter().position(|&b| b == 0).unwrap_or(last.len());
    let record: Record = serde_json::from_slice(&last[..end]).map_err(|_| damaged("its record is damaged"))?;
    if record.version != VERSION || record.layer != *layer || record.size != start {
        return Err(damaged("its record is of another layer or version"));
    }
    Ok(record)
}

/// Takes from memory what a file has in the page cache and on the disk: those who mounted it have pages of their own.
pub fn let_go(file: &Path) {
    if let Ok(file) = File::open(file) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

/// Whether a file is so old that the kernel has brought it to the disk, or nearly.
pub(crate) fn is_written_back(path: &Path) -> bool {
    let age = std::fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age >= WRITTEN_BACK)
}

/// Whether the file can be mounted: there, of this layer, and whole.
///
/// It is not synced when it is written, which would hold a pull up by the disk: within one life of the host nothing is lost.
/// A later use finds it written back and notes so; one after a crash in between reads it whole first.
pub(crate) fn ready(path: &Path, layer: &Digest) -> Result<Option<NativeLayer>> {
    let whole = |record: &Record| {
        let (file, layer, digest) = (path.to_owned(), layer.clone(), record.digest.clone());
        Ok(Some(NativeLayer { file, layer, digest }))
    };
    let mut record = match record(path, layer) {
        Ok(record) => record,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error @ Error::Damaged { .. }) => {
            tracing::warn!(%error, "made anew");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let Some(written) = &record.boot else { return whole(&record) };
    if boot().as_ref() == Some(written) {
        if !is_written_back(path) {
            return whole(&record);
        }
    } else if let Err(error) = verify(path, layer) {
        tracing::warn!(%error, "the host stopped before it was on the disk: made anew");
        return Ok(None);
    }
    let size = record.size;
    record.boot = None;
    let failed = |e: io::Error| Error::io("sync", path, e);
    let file = File::options().write(true).open(path).map_err(failed)?;
    file.sync_data().and_then(|()| file.write_all_at(&record.encode()?, size)).map_err(failed)?;
    file.sync_data().map_err(failed)?;
    let_go(path);
    whole(&record)
}

/// Reads the whole file and compares it with its record.
pub(crate) fn verify(path: &Path, layer: &Digest) -> Result<()> {
    let record = record(path, layer)?;
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let failed = |e: io::Error| Error::io("read", path, e);
    let mut first = [0; 4096];
    file.read_exact(&mut first).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut rest = file.take(record.size - BLOCK);
    let mut buffer = vec![0; crate::blob::BUFFER];
    loop {
        let n = rest.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
    }
    hash.update(first);
    let actual = Digest::from_bytes(&hash.finalize());
    if actual == record.digest {
        return Ok(());
    }
    Err(Error::Damaged { path: path.to_owned(), reason: format!("its content is {actual}, not {}", record.digest) })
}
