//! Images from a tar archive or from a folder of the host.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{Found, Order, look};
use crate::archive::unpack::unpack;
use crate::archive::writer::{self, Skipped};
use crate::archive::{Fault, codec};
use crate::blob::{self, Codec, Import, Layer};
use crate::error::{Error, Result};
use crate::types::Digest;

pub(super) fn file_stamp(path: &Path) -> Option<String> {
    look(path)
}

/// The look of every entry of a folder: tens of thousands in a fraction of a second, no content read.
pub(super) fn tree_stamp(root: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut left = vec![root.to_owned()];
    let device = fs::metadata(root).map_err(|e| Error::io("read", root, e))?.dev();
    while let Some(folder) = left.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| Error::io("read folder", &folder, e))?;
        let mut paths: Vec<_> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        paths.sort_unstable();
        for path in paths {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            hash.update(path.strip_prefix(root).unwrap_or(&path).as_os_str().as_bytes());
            let numbers = [meta.ino(), meta.size(), meta.mode().into(), meta.uid().into(), meta.gid().into()];
            numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
            let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
            // A folder's own times change with what is mounted or made in it: its entries say that better.
            if meta.is_dir() {
                if meta.dev() == device {
                    left.push(path);
                }
            } else {
                times.iter().for_each(|n| hash.update(n.to_le_bytes()));
            }
        }
    }
    Ok(Digest::from_bytes(&hash.finalize()).short().to_owned())
}

pub(super) fn import_file(order: &Order<'_>, path: &Path) -> Result<Found> {
    order.stage(&format!("import {}", path.display()));
    let stamp = file_stamp(path);
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::BadReference {
            text: order.name.to_owned(),
            reason: "no such file or folder".to_owned(),
            help: Some("a path is seen from the folder of the file that names it".to_owned()),
        },
        _ => Error::io("open", path, e),
    })?;
    let meta = file.metadata().map_err(|e| Error::io("read", path, e))?;
    if !meta.is_file() {
        return Err(Error::Archive { what: path.display().to_string(), reason: "no regular file".to_owned() });
    }
    let layer = import_stream(order, &path.display().to_string(), file, Some(meta.len()))?;
    let created = super::at(layer.scan.newest);
    let mut found = Found::new(layer, path.display().to_string(), "tar archive");
    // What is in the archive says it, not the file: a copy of it is the same image.
    found.created = created;
    found.stamp = stamp;
    Ok(found)
}

/// A stream as a layer, its progress told in bytes read of `total`.
pub(super) fn import_stream(order: &Order<'_>, what: &str, source: impl Read, total: Option<u64>) -> Result<Layer> {
    let read = std::cell::Cell::new(0);
    let each = |_| order.bytes(read.get(), total);
    let import = Import { what, aside: order.aside, codec: Codec::Zstd, limits: order.limits, each: &each };
    blob::import(Counted { inner: source, read: &read }, &import)
}

struct Counted<'a, R> {
    inner: R,
    read: &'a std::cell::Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

pub(super) fn import_folder(order: &Order<'_>, path: &Path) -> Result<Found> {
    order.stage(&format!("import {}", path.display()));
    let stamp = tree_stamp(path)?;
    let (layer, skipped) = pack(order, path)?;
    if skipped.mounts > 0 {
        let count = skipped.mounts;
        order.progress.note(&format!("{}: {count} mounts below it were left out", order.name));
    }
    let created = super::at(layer.scan.newest);
    let mut found = Found::new(layer, path.display().to_string(), "folder");
    found.created = created;
    found.stamp = Some(stamp);
    Ok(found)
}

/// A folder as a layer.
fn pack(order: &Order<'_>, path: &Path) -> Result<(Layer, Skipped)> {
    let each = |bytes| order.bytes(bytes, None);
    let what = path.display().to_string();
    let import = Import { what: &what, aside: order.aside, codec: Codec::Zstd, limits: order.limits, each: &each };
    as_layer(path, &import, |out| writer::pack(path, out))
}

/// What `write` packs of a folder as a layer: packed by one thread, hashed and compressed by this one.
pub(crate) fn as_layer<T: Send>(
    path: &Path,
    import: &Import<'_>,
    write: impl FnOnce(&mut std::io::BufWriter<File>) -> Result<T> + Send,
) -> Result<(Layer, T)> {
    let (ours, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Error::io("pipe", path, e))?;
    let (ours, theirs) = (File::from(ours), File::from(theirs));
    std::thread::scope(|scope| {
        let packer = scope.spawn(move || {
            let mut out = std::io::BufWriter::with_capacity(blob::BUFFER, theirs);
            let done = write(&mut out)?;
            std::io::Write::flush(&mut out).map_err(|e| Error::io("pack", path, e))?;
            Ok(done)
        });
        // The pipe's end goes with this call, so that a packer whose bytes nobody wants does not wait for ever.
        let layer = blob::import(ours, import);
        let packed = packer.join().unwrap_or_else(|_| {
            Err(Error::Archive { what: path.display().to_string(), reason: "the packing thread failed".to_owned() })
        });
        match (layer, packed) {
            (Ok(layer), Ok(done)) => Ok((layer, done)),
            // Whoever failed first made the other fail: a broken pipe is the reader's doing.
            (_, Err(error)) if !is_broken_pipe(&error) => Err(error),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    })
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A part of an archive as a layer: unpacked and packed again.
pub(super) fn import_part(order: &Order<'_>, what: &str, source: impl Read, part: &[u8]) -> Result<Layer> {
    let tree = order.aside.path().join("part");
    fs::create_dir(&tree).map_err(|e| Error::io("make folder", &tree, e))?;
    let plain = codec::open(source, order.limits.bytes).map_err(|f| f.of(what, &tree))?;
    let each = |bytes| order.bytes(bytes, None).map_err(|_| Fault::bad("cancelled"));
    let unpacked = unpack(plain, &tree, Some(part), order.limits, each);
    order.wanted()?;
    unpacked.map_err(|f| f.of(what, &tree))?;
    let (layer, _) = pack(order, &tree)?;
    fs::remove_dir_all(&tree).map_err(|e| Error::io("remove", &tree, e))?;
    Ok(layer)
}
