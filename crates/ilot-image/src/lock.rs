//! Locks that die with their holder (flock), and folders that the next caller cleans up when theirs did.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::archive::remove::remove;
use crate::error::{Error, Result};

/// How often a waiting caller looks whether the lock is free, or the user gave up.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// An exclusive lock on a file, held until dropped or until the process ends in whichever way.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Open only for the lock that it carries.
    _file: File,
}

impl Lock {
    /// The lock, or `None` when somebody else holds it.
    pub(crate) fn try_acquire(path: &Path) -> Result<Option<Self>> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(|e| Error::io("open lock", path, e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(e) if e == rustix::io::Errno::WOULDBLOCK => return Ok(None),
                Err(e) => return Err(Error::io("lock", path, e)),
            }
            // Lock files are removed by `gc` while it holds them: the name must still mean this file.
            if same_file(&file, path) {
                let _ = file.set_len(0);
                let _ = file.rewind();
                let _ = write!(file, "{}", std::process::id());
                return Ok(Some(Self { _file: file }));
            }
        }
    }

    /// The lock, waiting for it; `waiting` is told once who holds it, `cancelled` ends the wait with `None`.
    pub(crate) fn acquire(
        path: &Path,
        waiting: impl FnOnce(Option<u32>),
        cancelled: impl Fn() -> bool,
    ) -> Result<Option<Self>> {
        if let Some(lock) = Self::try_acquire(path)? {
            return Ok(Some(lock));
        }
        waiting(holder(path));
        loop {
            if cancelled() {
                return Ok(None);
            }
            std::thread::sleep(LOOK_AGAIN);
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(Some(lock));
            }
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

/// The process that says it holds the lock.
fn holder(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// A folder of work in progress. Its holder has it locked; one that nobody has locked is garbage.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
    _lock: File,
}

impl TempDir {
    /// A new one in `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!(".tmp-{}-{count}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("make folder", path, e)),
            }
            // A sweep can take the folder between these two lines: then it is gone, and the next name is tried.
            let Ok(lock) = File::open(&path) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && same_file(&lock, &path) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "temporary folder stays until the next call");
        }
    }
}

/// Removes the temporary folders of `parent` whose makers are dead.
pub(crate) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(b".tmp-") {
            continue;
        }
        let path = entry.path();
        let Ok(dir) = File::open(&path) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::info!(path = %path.display(), "removing what an interrupted call left");
            let _ = remove(&path);
        }
    }
}

/// Writes a whole file aside, brings it to the disk, and puts it in place; readers see the old or the new one.
pub(crate) fn write_atomically(path: &Path, aside: &TempDir, content: &[u8]) -> Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let temporary = aside.path().join(format!("write-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(|e| Error::io("create", &temporary, e))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &temporary, e))?;
    rename(&temporary, path)
}

/// Renames, and brings the new name to the disk.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", to, e))?;
    if let Some(parent) = to.parent() {
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", parent, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_and_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let first = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        assert_eq!(holder(&path), Some(std::process::id()));
        let mut told = None;
        let nobody = Lock::acquire(&path, |pid| told = pid, || true).unwrap();
        assert!(nobody.is_none());
        assert_eq!(told, Some(std::process::id()));
        drop(first);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let old = Lock::try_acquire(&path).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_some());
        drop(old);
    }

    #[test]
    fn sweep_takes_only_what_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let alive = TempDir::new(dir.path()).unwrap();
        fs::create_dir(dir.path().join(".tmp-1-99")).unwrap();
        fs::write(dir.path().join(".tmp-1-99/blob"), "x").unwrap();
        fs::create_dir(dir.path().join("kept")).unwrap();
        sweep(dir.path());
        assert!(alive.path().exists());
        assert!(!dir.path().join(".tmp-1-99").exists());
        assert!(dir.path().join("kept").exists());
        let path = alive.path().to_owned();
        drop(alive);
        assert!(!path.exists());
    }
}
