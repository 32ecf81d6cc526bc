//! Layers as folders, one copy per trust level.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Store;
use crate::archive::unpack::{Unpacked, unpack};
use crate::archive::{Fault, codec};
use crate::blob;
use crate::error::{Error, Result};
use crate::lock::{Lock, TempDir, rename, sweep};
use crate::native::{self, NativeLayer};
use crate::oci::Descriptor;
use crate::progress::Progress;
use crate::types::{Digest, Image};

impl Store {
    pub(super) fn unpacked(&self, image: &Image, trust: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
        self.each_layer(image, trust, |layer, id, progress| self.layer(image, layer, id, trust, progress), progress)
    }

    /// The image's layers as EROFS images for one trust level, top first: what the kernel mounts as it is. Made where they
    /// are not there; no other trust level has the same files.
    ///
    /// # Errors
    /// As [`Store::materialize`].
    pub fn native(&self, image: &Image, trust: &str, progress: &dyn Progress) -> Result<Vec<NativeLayer>> {
        let make = |layer: &_, id: &_, progress: &dyn Progress| self.native_layer(image, layer, id, trust, progress);
        self.each_layer(image, trust, make, progress)
    }

    pub(super) fn each_layer<T>(
        &self,
        image: &Image,
        trust: &str,
        make: impl Fn(&Descriptor, &Digest, &dyn Progress) -> Result<T> + Sync,
        progress: &dyn Progress,
    ) -> Result<Vec<T>>
    where
        T: Send,
    {
        let is_name = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if trust.is_empty() || trust.len() > 64 || !trust.bytes().all(is_name) {
            return Err(Error::BadTrust { text: trust.to_owned() });
        }
        let manifest = self.manifest(&image.digest)?;
        let configuration = self.configuration(&manifest)?;
        let diff_ids = configuration.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("{} layers, but {} of them in its configuration", manifest.layers.len(), diff_ids.len());
            return Err(Error::Damaged { path: self.blob_path(&image.digest), reason });
        }
        let all: Vec<(&Descriptor, &Digest)> = manifest.layers.iter().zip(&diff_ids).collect();
        let told = OneAtATime(Mutex::new(progress));
        let (next, slots) = (AtomicUsize::new(0), all.iter().map(|_| Mutex::new(None)).collect::<Vec<_>>());
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some((layer, diff_id)) = all.get(i) else { break };
                let made = make(layer, diff_id, &told);
                // What is not begun is not wanted any more; the first failure in order is the reason.
                if made.is_err() {
                    next.store(all.len(), Ordering::Relaxed);
                }
                *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
            }
        };
        // Already there, as for each start but the first: no thread is worth that.
        let here = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(PARALLEL);
        match all.len().min(here) {
            0 | 1 => work(),
            _ if all.iter().all(|(_, id)| self.has_layer(trust, id)) => work(),
            workers => std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work)))),
        }
        let mut lowers = Vec::with_capacity(all.len());
        for slot in slots {
            lowers.extend(slot.into_inner().unwrap_or_else(PoisonError::into_inner).transpose()?);
        }
        lowers.reverse();
        Ok(lowers)
    }

    fn has_layer(&self, trust: &str, diff_id: &Digest) -> bool {
        let level = self.root.join("layers").join(trust);
        level.join(diff_id.hex()).exists() || level.join(format!("{}.erofs", diff_id.hex())).exists()
    }

    pub(crate) fn layer(
        &self,
        image: &Image,
        layer: &Descriptor,
        diff_id: &Digest,
        trust: &str,
        progress: &dyn Progress,
    ) -> Result<PathBuf> {
        let level = self.root.join("layers").join(trust);
        let target = level.join(diff_id.hex());
        if self.is_whole(&target, trust, diff_id)? {
            return Ok(target);
        }
        let told = |_| progress.note(&format!("{}: being unpacked; waiting for it", image.reference));
        let lock = self.lock_path("layer", &format!("{trust}/{diff_id}"));
        let Some(_lock) = Lock::acquire(&lock, told, || progress.cancelled())? else {
            return Err(Error::Cancelled { reference: image.reference.clone() });
        };
        if self.is_whole(&target, trust, diff_id)? {
            return Ok(target);
        }
        progress.stage(&format!("{}: unpack for trust level {trust}", image.reference));
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        let tree = aside.path().join("tree");
        fs::DirBuilder::new().mode(0o755).create(&tree).map_err(|e| Error::io("make folder", &tree, e))?;
        let done = self.unpack_blob(image, layer, diff_id, &tree, progress)?;
        report(image, done, progress);
        let _ = fs::DirBuilder::new().mode(0o700).create(&level);
        // Not flushed, which would take as long as all the rest: the mark says so, and for how long that is safe.
        let mark = self.boot_mark(trust, diff_id);
        let boot = native::boot().unwrap_or_default();
        fs::write(&mark, boot).map_err(|e| Error::io("write", &mark, e))?;
        if target.exists() {
            let gone = aside.path().join("gone");
            fs::rename(&target, &gone).map_err(|e| Error::io("rename", &target, e))?;
        }
        rename(&tree, &target)?;
        Ok(target)
    }

    /// Whether a tree is complete, which it is as soon as it has its name, and was on the disk when the host last stopped.
    pub(super) fn is_whole(&self, target: &Path, trust: &str, diff_id: &Digest) -> Result<bool> {
        if !target.is_dir() {
            return Ok(false);
        }
        let mark = self.boot_mark(trust, diff_id);
        let written = match fs::read_to_string(&mark) {
            Ok(written) => written,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(Error::io("read", mark, e)),
        };
        if written.is_empty() || native::boot().as_ref() != Some(&written) {
            tracing::warn!(tree = %target.display(), "the host stopped before it was on the disk: unpacked again");
            return Ok(false);
        }
        if native::is_written_back(&mark) {
            let root = File::open(target).map_err(|e| Error::io("open", target, e))?;
            rustix::fs::syncfs(&root).map_err(|e| Error::io("sync", target, e))?;
            let _ = fs::remove_file(&mark);
        }
        Ok(true)
    }

    /// In which life of the host a tree was written that may not be on the disk yet.
    fn boot_mark(&self, trust: &str, diff_id: &Digest) -> PathBuf {
        self.root.join("images/.locks").join(format!("{trust}-{}.boot", diff_id.hex()))
    }

    pub(super) fn native_layer(
        &self,
        image: &Image,
        layer: &Descriptor,
        diff_id: &Digest,
        trust: &str,
        progress: &dyn Progress,
    ) -> Result<NativeLayer> {
        let level = self.root.join("layers").join(trust);
        let target = level.join(format!("{}.erofs", diff_id.hex()));
        if let Some(ready) = native::ready(&target, diff_id)? {
            return Ok(ready);
        }
        let told = |_| progress.note(&format!("{}: being converted; waiting for it", image.reference));
        let lock = self.lock_path("native", &format!("{trust}/{diff_id}"));
        let Some(_lock) = Lock::acquire(&lock, told, || progress.cancelled())? else {
            return Err(Error::Cancelled { reference: image.reference.clone() });
        };
        if let Some(ready) = native::ready(&target, diff_id)? {
            return Ok(ready);
        }
        let _ = fs::DirBuilder::new().mode(0o700).create(&level);
        // Made while the layer came: it moves to the first level that wants it, and no other one has it then.
        if fs::rename(self.prepared(diff_id), &target).is_ok()
            && let Some(ready) = native::ready(&target, diff_id)?
        {
            return Ok(ready);
        }
        progress.stage(&format!("{}: native layer for trust level {trust}", image.reference));
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        let path = aside.path().join("erofs");
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        let done = self.read_blob(image, layer, diff_id, &path, progress, |plain, each| {
            native::build(plain, file, diff_id, self.limits, |_, bytes| each(bytes)).map(|(_, done)| done)
        })?;
        report(image, done, progress);
        rename(&path, &target)?;
        let gone = || Error::Damaged { path: target.clone(), reason: "not what was written".to_owned() };
        native::ready(&target, diff_id)?.ok_or_else(gone)
    }

    /// Where a native layer waits for its level: the name is no level's.
    fn prepared(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(PREPARED).join(format!("{}.erofs", diff_id.hex()))
    }

    fn unpack_blob(
        &self,
        image: &Image,
        layer: &Descriptor,
        diff_id: &Digest,
        tree: &Path,
        progress: &dyn Progress,
    ) -> Result<Unpacked> {
        self.read_blob(image, layer, diff_id, tree, progress, |plain, each| {
            unpack(plain, tree, None, self.limits, each)
        })
    }

    /// Reads a layer's blob once: decompressed for `read`, and checked against its digest.
    fn read_blob(
        &self,
        image: &Image,
        layer: &Descriptor,
        diff_id: &Digest,
        tree: &Path,
        progress: &dyn Progress,
        read: impl FnOnce(Box<dyn Read + '_>, &mut dyn FnMut(u64) -> Result<(), Fault>) -> Result<Unpacked, Fault>,
    ) -> Result<Unpacked> {
        let mut file = blob::open(&self.blob_path(&layer.digest), &layer.digest)?;
        let what = format!("{} (layer {})", image.reference, diff_id.short());
        let mut told = 0;
        let mut each = |bytes: u64| {
            if bytes - told >= 1 << 20 {
                told = bytes;
                progress.bytes(bytes, Some(image.unpacked_size));
                if progress.cancelled() {
                    return Err(Fault::bad("cancelled"));
                }
            }
            Ok(())
        };
        let plain = codec::open(&mut file, self.limits.bytes).map_err(|f| f.of(&what, tree))?;
        let unpacked = read(plain, &mut each);
        if progress.cancelled() {
            return Err(Error::Cancelled { reference: image.reference.clone() });
        }
        // The digest first: of a damaged blob, what the archive code says is misleading.
        std::io::copy(&mut Read::by_ref(&mut file), &mut std::io::sink())
            .map_err(|e| Error::io("read", self.blob_path(&layer.digest), e))?;
        let (actual, ..) = file.digest();
        if actual != layer.digest {
            let reason = format!("its content is {actual}");
            return Err(Error::Damaged { path: self.blob_path(&layer.digest), reason });
        }
        unpacked.map_err(|f| f.of(&what, tree))
    }
}

/// Below `layers/`: native layers of no trust level yet.
pub(super) const PREPARED: &str = ".ready";
/// Layers made at the same time.
const PARALLEL: usize = 4;

/// Progress told by several threads, one at a time.
struct OneAtATime<'a>(Mutex<&'a dyn Progress>);

impl OneAtATime<'_> {
    fn tell(&self, tell: impl FnOnce(&dyn Progress)) {
        tell(*self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for OneAtATime<'_> {
    fn stage(&self, text: &str) {
        self.tell(|p| p.stage(text));
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.tell(|p| p.bytes(done, total));
    }

    fn note(&self, text: &str) {
        self.tell(|p| p.note(text));
    }

    fn finished(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).finished();
    }

    fn cancelled(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cancelled()
    }
}

fn report(image: &Image, done: Unpacked, progress: &dyn Progress) {
    tracing::debug!(image = image.reference, ?done, "unpacked");
    if done.foreign_owners > 0 {
        progress.note(&format!(
            "{}: {} files belong to ids beyond 65535 and were given to nobody (65534)",
            image.reference, done.foreign_owners
        ));
    }
}
