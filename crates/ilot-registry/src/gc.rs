//! Removing what no repository needs, while pushes go on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::names::Digest;
use crate::store::Store;

/// What a collection freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: usize,
    /// Uploads that nobody went on with.
    pub uploads: usize,
    /// Bytes freed.
    pub bytes: u64,
}

impl Store {
    /// Removes blobs that no manifest of any repository refers to, unless they were uploaded, mounted or asked for
    /// within `grace`, and uploads that rest for longer. Pushes wait for renames only.
    pub(crate) fn collect(&self, grace: Duration) -> Result<Collected> {
        let aside = self.root.join("collected");
        fs::create_dir_all(&aside).map_err(|e| Error::io("make folder", &aside, e))?;
        let mut done = Collected::default();
        {
            let _nothing_comes = self.collecting.write().unwrap_or_else(PoisonError::into_inner);
            let needed = self.needed(grace);
            let mut entries = Vec::new();
            for folder in ["sha256", "sha512"].map(|kind| self.blobs().join(kind)) {
                entries.extend(fs::read_dir(&folder).map_err(|e| Error::io("read folder", &folder, e))?.flatten());
            }
            for entry in entries {
                let is_needed =
                    entry.file_name().to_str().and_then(Digest::from_hex).is_none_or(|digest| needed.contains(&digest));
                if is_needed {
                    continue;
                }
                let size = entry.metadata().map_or(0, |m| m.len());
                let to = aside.join(entry.file_name());
                fs::rename(entry.path(), &to).map_err(|e| Error::io("rename", entry.path(), e))?;
                self.refund(size);
                done.blobs += 1;
                done.bytes += size;
            }
        }
        let _ = fs::remove_dir_all(&aside);
        let (uploads, bytes) = self.uploads.expire(grace);
        self.refund(bytes);
        done.uploads = uploads;
        done.bytes += bytes;
        Ok(done)
    }

    fn needed(&self, grace: Duration) -> BTreeSet<Digest> {
        let leased = self.leased(grace);
        let mut needed: BTreeSet<Digest> = BTreeSet::new();
        for repository in self.repositories().values() {
            let mut content = repository.content();
            for (digest, entry) in &content.manifests {
                needed.insert(digest.clone());
                needed.extend(entry.blobs.iter().cloned());
            }
            let marked: Vec<Digest> = content.uploaded.iter().cloned().collect();
            for digest in marked {
                let mark = repository.folder.join("uploaded").join(digest.hex());
                let age = fs::metadata(&mark).and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
                let is_young = age.is_none_or(|age| age < grace) || leased.contains(&digest);
                if is_young {
                    needed.insert(digest);
                } else {
                    repository.forget_uploaded(&mut content, &digest);
                }
            }
        }
        needed
    }
}

/// Removes what a killed server was about to.
pub(crate) fn sweep(root: &Path) {
    let _ = fs::remove_dir_all(root.join("collected"));
}
