//! Removing what no image needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Store;
use crate::error::{Error, Result};
use crate::lock::{Lock, TempDir, sweep};
use crate::partial;
use crate::types::Digest;

/// What [`Store::gc`] freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Unpacked layers removed, all trust levels together.
    pub layers: usize,
    /// Bytes freed in blobs (unpacked trees are not measured).
    pub bytes: u64,
}

impl Store {
    /// Removes blobs and layers of no image that has a name or is in `in_use`. Holds up no other call: what goes is
    /// renamed aside under the index' lock, and removed after it.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn gc(&self, in_use: &BTreeSet<Digest>) -> Result<Collected> {
        sweep(&self.temporary());
        partial::sweep(&self.root);
        let aside = TempDir::new(&self.temporary())?;
        let mut done = Collected::default();
        {
            let _lock = self.lock_index()?;
            let (blobs, layers) = self.needed(in_use)?;
            let kinds = entries(&self.root.join("blobs"))?;
            for path in kinds.iter().map(|kind| entries(kind)).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
                if !is_one_of(&path, &blobs) {
                    done.bytes += fs::metadata(&path).map_or(0, |m| m.len());
                    done.blobs += 1;
                    set_aside(&path, &aside, done.blobs)?;
                }
            }
            for level in entries(&self.root.join("layers"))? {
                for path in entries(&level)? {
                    // A folder, or an EROFS image of the same name.
                    if !is_one_of(&path.with_extension(""), &layers) {
                        done.layers += 1;
                        set_aside(&path, &aside, done.blobs + done.layers)?;
                    }
                }
            }
            for path in entries(&self.root.join("build/scans"))? {
                if path.file_stem().and_then(|n| n.to_str()).is_none_or(|n| !layers.contains(n)) {
                    let _ = fs::remove_file(&path);
                }
            }
            for path in entries(&self.root.join("images"))? {
                let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
                if path.extension().is_some_and(|e| e == "json") && !blobs.contains(name) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        self.forget_locks()?;
        drop(aside);
        Ok(done)
    }

    /// The hexadecimal names of all blobs and layers that are needed.
    fn needed(&self, in_use: &BTreeSet<Digest>) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        let index = self.read_index()?;
        let mut left: Vec<Digest> =
            index.manifests.into_iter().map(|d| d.digest).chain(in_use.iter().cloned()).collect();
        while let Some(digest) = left.pop() {
            if !blobs.insert(digest.hex().to_owned()) || !self.blob_path(&digest).exists() {
                continue;
            }
            // What another program put in may be an index of several images.
            if let Ok(nested) = self.nested_index(&digest) {
                left.extend(nested.manifests.into_iter().map(|d| d.digest));
                continue;
            }
            let manifest = self.manifest(&digest)?;
            blobs.insert(manifest.config.digest.hex().to_owned());
            blobs.extend(manifest.layers.iter().map(|l| l.digest.hex().to_owned()));
            layers.extend(self.configuration(&manifest)?.rootfs.diff_ids.iter().map(|d| d.hex().to_owned()));
        }
        for layer in self.cached_layers()? {
            blobs.insert(layer.digest.hex().to_owned());
            layers.insert(layer.diff_id.hex().to_owned());
        }
        Ok((blobs, layers))
    }

    /// Removes the marks of trees that are gone, and lock files that nobody holds; [`Lock`] looks whether its file still has its name.
    fn forget_locks(&self) -> Result<()> {
        for path in entries(&self.root.join("images/.locks"))? {
            if path.extension().is_some_and(|e| e == "boot") {
                // Of a tree that is gone: `<trust>-<layer>.boot`.
                let name = path.file_stem().and_then(|n| n.to_str()).and_then(|n| n.rsplit_once('-'));
                if !name.is_some_and(|(trust, layer)| self.root.join("layers").join(trust).join(layer).exists()) {
                    let _ = fs::remove_file(&path);
                }
            } else if let Ok(Some(_held)) = Lock::try_acquire(&path) {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io("read folder", folder, e))).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io("read folder", folder, e)),
    }
}

fn is_one_of(path: &Path, names: &BTreeSet<String>) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| names.contains(n))
}

fn set_aside(path: &Path, aside: &TempDir, number: usize) -> Result<()> {
    let to = aside.path().join(format!("gone-{number}"));
    fs::rename(path, &to).map_err(|e| Error::io("rename", path, e))
}
