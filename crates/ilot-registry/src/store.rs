//! The store below one folder: blobs, repositories, what is reserved.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Refusal, Result};
use crate::names::Digest;
use crate::repository::Repository;
use crate::uploads::Uploads;

/// What a registry keeps.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) root: PathBuf,
    repositories: RwLock<BTreeMap<String, Arc<Repository>>>,
    pub(crate) uploads: Uploads,
    /// Held to read by what puts blobs and manifests in place, to write by a collection while it looks and renames.
    pub(crate) collecting: RwLock<()>,
    /// When a client was told that a blob is there: it may be about to push a manifest that needs it.
    leases: Mutex<HashMap<Digest, Instant>>,
    used: AtomicU64,
    quota: Option<u64>,
    _lock: File,
}

impl Store {
    pub(crate) fn open(root: &Path, quota: Option<u64>) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|e| Error::io("find", root, e))?;
        for folder in ["", "blobs/sha256", "blobs/sha512", "repositories", "uploads"] {
            let path = root.join(folder);
            let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&path);
            made.map_err(|e| Error::io("make folder", path, e))?;
        }
        let path = root.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|e| Error::io("open", &path, e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy { path: root }),
            Err(e) => return Err(Error::io("lock", path, e)),
        }
        crate::gc::sweep(&root);
        let store = Self {
            uploads: Uploads::new(root.join("uploads")),
            root,
            repositories: RwLock::default(),
            collecting: RwLock::default(),
            leases: Mutex::default(),
            used: AtomicU64::new(0),
            quota,
            _lock: lock,
        };
        store.load()?;
        Ok(store)
    }

    fn load(&self) -> Result<()> {
        let folder = self.root.join("repositories");
        let mut all = self.repositories.write().unwrap_or_else(PoisonError::into_inner);
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("read folder", &folder, e))?.flatten() {
            let name = entry.file_name().to_string_lossy().replace('+', "/");
            if crate::names::is_repository(&name) {
                all.insert(name, Arc::new(Repository::open(entry.path(), &self.blobs())?));
            }
        }
        let used =
            ["blobs/sha256", "blobs/sha512", "uploads"].map(|folder| size_of(&self.root.join(folder))).iter().sum();
        self.used.store(used, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.algorithm()).join(digest.hex())
    }

    /// A repository that something was pushed to.
    pub(crate) fn repository(&self, name: &str) -> Option<Arc<Repository>> {
        self.repositories.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The same, made when it is not there.
    pub(crate) fn repository_or_new(&self, name: &str) -> Result<Arc<Repository>> {
        if let Some(found) = self.repository(name) {
            return Ok(found);
        }
        let mut all = self.repositories.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all.get(name) {
            return Ok(found.clone());
        }
        // `+` is in no repository's name.
        let folder = self.root.join("repositories").join(name.replace('/', "+"));
        let made = Arc::new(Repository::open(folder, &self.blobs())?);
        all.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// All of them, by name.
    pub(crate) fn repositories(&self) -> BTreeMap<String, Arc<Repository>> {
        self.repositories.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps a blob from the next collections: a client was told that it is there.
    pub(crate) fn lease(&self, digest: &Digest) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone(), Instant::now());
    }

    /// Whether a client was told lately that a blob is there.
    pub(crate) fn is_leased(&self, digest: &Digest) -> bool {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest)
    }

    /// The blobs leased since `grace`; older leases are forgotten.
    pub(crate) fn leased(&self, grace: Duration) -> Vec<Digest> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.retain(|_, since| since.elapsed() < grace);
        leases.keys().cloned().collect()
    }

    /// Reserves room, or says that there is none.
    pub(crate) fn charge(&self, bytes: u64) -> Result<(), Refusal> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        match self.quota {
            Some(quota) if before.saturating_add(bytes) > quota => {
                self.refund(bytes);
                Err(Refusal::quota(quota))
            }
            _ => Ok(()),
        }
    }

    /// Whether so many bytes more are allowed.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.quota.is_none_or(|quota| self.used.load(Ordering::Relaxed).saturating_add(bytes) <= quota)
    }

    /// Whether an empty registry would not have room for so many.
    pub(crate) fn can_never_fit(&self, bytes: u64) -> bool {
        self.quota.is_some_and(|quota| bytes > quota)
    }

    pub(crate) fn refund(&self, bytes: u64) {
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(bytes)));
    }

    /// Puts a finished file in place as a blob of a repository.
    pub(crate) fn commit(&self, file: &Path, digest: &Digest, repository: &Repository, size: u64) -> Result<()> {
        let _no_collection = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let target = self.blob(digest);
        // Over one of the same digest as well: if that was damaged, it no longer is.
        if target.exists() {
            self.refund(size);
        }
        rename(file, &target)?;
        repository.note_uploaded(digest)?;
        self.lease(digest);
        Ok(())
    }
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum()
}

/// Writes a whole file aside, brings it to the disk, and puts it in place; readers see the old or the new one.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let aside = path.with_extension(format!("new-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let written = (|| -> io::Result<()> {
        let mut file = File::create(&aside)?;
        file.write_all(content)?;
        file.sync_all()
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&aside);
        return Err(Error::io("write", path, error));
    }
    rename(&aside, path)
}

/// Renames, and brings the new name to the disk.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", to, e))?;
    let Some(parent) = to.parent() else { return Ok(()) };
    File::open(parent).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", parent, e))
}
