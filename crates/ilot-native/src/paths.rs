//! Where the engine keeps things, and how it changes them: aside, synced, renamed, under a lock.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The store and the run directory.
#[derive(Debug, Clone)]
pub struct Paths {
    /// What survives a reboot (`/var/lib/ilot`).
    pub root: PathBuf,
    /// What does not (`/run/ilot`).
    pub run: PathBuf,
    /// Eight hexadecimal digits of the store's path: marks what this store owns in the kernel.
    pub store_id: String,
}

impl Paths {
    /// Makes the two directories (mode 0700: setuid files of images lie below) and their parts.
    ///
    /// # Errors
    /// When a directory cannot be made, or the store's path cannot be resolved.
    pub fn open(root: &Path, run: &Path) -> Result<Self> {
        for dir in [root, run] {
            make_dir(dir, 0o700)?;
        }
        let root = fs::canonicalize(root).map_err(Error::file("resolve", root))?;
        let run = fs::canonicalize(run).map_err(Error::file("resolve", run))?;
        for dir in ["machines", "domains", "projects", "ids"] {
            make_dir(&root.join(dir), 0o700)?;
        }
        for dir in ["machines", "locks"] {
            make_dir(&run.join(dir), 0o700)?;
        }
        let store_id = crate::short_hash(root.as_os_str().as_encoded_bytes(), 8);
        Ok(Self { root, run, store_id })
    }

    /// `machines/<name>` in the store.
    #[must_use]
    pub fn machine(&self, name: &str) -> PathBuf {
        self.root.join("machines").join(name)
    }

    /// `machines/<name>/machine.json`.
    #[must_use]
    pub fn machine_record(&self, name: &str) -> PathBuf {
        self.machine(name).join("machine.json")
    }

    /// The live state of a machine.
    #[must_use]
    pub fn machine_run(&self, name: &str) -> PathBuf {
        self.run.join("machines").join(name)
    }

    /// The machine's log.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.machine(name).join("console.log")
    }

    /// `volumes/<machine>`: the machine's storage volumes.
    #[must_use]
    pub fn volumes(&self, machine: &str) -> PathBuf {
        self.root.join("volumes").join(machine)
    }

    /// `domains/<name>.json`.
    #[must_use]
    pub fn domain_record(&self, name: &str) -> PathBuf {
        self.root.join("domains").join(format!("{name}.json"))
    }

    /// `projects/<name>.json`.
    #[must_use]
    pub fn project_record(&self, name: &str) -> PathBuf {
        self.root.join("projects").join(format!("{name}.json"))
    }

    /// The parent cgroup of this store's machines.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        if self.root == Path::new("/var/lib/ilot") { "ilot".to_owned() } else { format!("ilot-{}", self.store_id) }
    }
}

/// Makes a directory and its parents; an existing one is fine.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::file("make", path))
}

/// Reads a JSON record; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("read", path)(e)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Damaged { path: path.to_owned(), source })
}

/// Writes a JSON record so that a crash leaves the old one or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_json_as(path, value, true)
}

/// The same without waiting for the disk: for what does not outlive a crash of the host anyway.
pub(crate) fn write_json_unsynced<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_json_as(path, value, false)
}

fn write_json_as<T: Serialize>(path: &Path, value: &T, sync: bool) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|source| Error::Damaged { path: path.to_owned(), source })?;
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&bytes)?;
        if sync {
            file.sync_data()?;
        }
        fs::rename(&aside, path)
    })();
    if result.is_err() {
        // The error below says what went wrong; a file that is not there is no second one.
        let _ = fs::remove_file(&aside);
    }
    result.map_err(Error::file("write", path))
}

/// Removes a file; none is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Removes a tree; none is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let end = std::time::Instant::now() + LAST_WRITES;
    loop {
        match crate::remove::remove_tree(path) {
            // What a command that was killed had begun to start makes a folder yet, and finds itself alone.
            Err(Errno::NOTEMPTY) if std::time::Instant::now() < end => std::thread::sleep(LOOK_AGAIN),
            done => return done.map_err(|e| Error::file("remove", path)(e.into())),
        }
    }
}

/// How long a tree that is being removed may still be written to.
const LAST_WRITES: std::time::Duration = std::time::Duration::from_secs(1);
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(5);

/// A lock held until dropped. The kernel gives it back when the process dies, however it dies.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes `locks/<name>`, waiting for whoever holds it; `waiting` is told who that is, once.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn take(paths: &Paths, name: &str, waiting: &dyn Fn(&str)) -> Result<Self> {
        let mut told = false;
        loop {
            let (mut file, path) = open_lock(paths, name)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    if !std::mem::replace(&mut told, true) {
                        waiting(&holder(&mut file));
                    }
                    wait_for(&file).map_err(|e| Error::file("lock", &path)(e.into()))?;
                }
                Err(e) => return Err(Error::file("lock", &path)(e.into())),
            }
            if is_at(&file, &path) {
                let holder = format!("process {} (`{}`)\n", std::process::id(), command_line());
                // A courtesy to whoever waits.
                let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(holder.as_bytes()));
                return Ok(Self { file, path });
            }
        }
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_take(paths: &Paths, name: &str) -> Result<Option<Self>> {
        loop {
            let (file, path) = open_lock(paths, name)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, &path) => return Ok(Some(Self { file, path })),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(Error::file("lock", &path)(e.into())),
            }
        }
    }

    /// Gives the lock back and removes its file: what it stood for is gone for good. Who waits for it makes a new one.
    pub fn forget(self) {
        // While it is held still. A file that stays is only untidy.
        let _ = fs::remove_file(&self.path);
        drop(self.file);
    }
}

/// Waits for whoever holds a lock.
fn wait_for(file: &File) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| flock(file, FlockOperation::LockExclusive))
}

/// Whether the file that is locked is the one that others find there.
fn is_at(file: &File, path: &Path) -> bool {
    let held = rustix::fs::fstat(file).map(|s| (s.st_dev, s.st_ino));
    held.is_ok_and(|held| rustix::fs::stat(path).is_ok_and(|now| (now.st_dev, now.st_ino) == held))
}

/// Who holds a lock: a courtesy, so that a torn read only makes a poorer message.
fn holder(file: &mut File) -> String {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    if holder.trim().is_empty() { "another ilot command".to_owned() } else { holder.trim().to_owned() }
}

fn open_lock(paths: &Paths, name: &str) -> Result<(File, PathBuf)> {
    let path = paths.run.join("locks").join(format!("{name}.lock"));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    Ok((file, path))
}

fn command_line() -> String {
    let mut args = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let program = args.next().unwrap_or_default();
    let program = Path::new(&program).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or(program);
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_forgotten_is_not_held_twice() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(&dir.path().join("root"), &dir.path().join("run")).unwrap();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..200 {
                        let lock = Lock::take(&paths, "machine-a", &|_| {}).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "held twice");
                        assert!(Lock::try_take(&paths, "machine-a").unwrap().is_none(), "taken while it is held");
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        if round % 3 == 0 { lock.forget() } else { drop(lock) }
                    }
                });
            }
        });
        Lock::try_take(&paths, "machine-a").unwrap().unwrap().forget();
        assert!(!dir.path().join("run/locks/machine-a.lock").exists());
    }
}
