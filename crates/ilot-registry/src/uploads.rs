//! Uploads in progress: a file that grows, hashed on the way.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as Hash, Sha256, Sha512};
use tokio::sync::Mutex as AsyncMutex;

use crate::error::{Error, Result};
use crate::names::Digest;

/// An upload that is not finished. Whoever has it locked is the one request that writes to it.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) path: PathBuf,
    file: File,
    hash: Sha256,
    pub(crate) size: u64,
}

impl Upload {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// The digest of what came, of the same kind as `expected`: SHA-256 was taken on the way, any other is taken now.
    pub(crate) fn digest_like(&self, expected: &Digest) -> Result<Digest> {
        if expected.is_sha512() {
            return hash_of::<Sha512>(&self.path).map(|(hash, _)| Digest::from_hash(&hash.finalize()));
        }
        Ok(Digest::from_hash(&self.hash.clone().finalize()))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Whether a file has so many bytes, and those that a digest is of.
pub(crate) fn is_content_of(path: &Path, digest: &Digest, size: u64) -> Result<bool, String> {
    let found = if digest.is_sha512() {
        hash_of::<Sha512>(path).map(|(hash, size)| (Digest::from_hash(&hash.finalize()), size))
    } else {
        hash_of::<Sha256>(path).map(|(hash, size)| (Digest::from_hash(&hash.finalize()), size))
    };
    found.map(|(actual, has)| actual == *digest && has == size).map_err(|e| e.to_string())
}

/// One upload, shared by the requests that name it.
pub(crate) type Shared = Arc<AsyncMutex<Upload>>;

/// All uploads, by repository and number.
#[derive(Debug)]
pub(crate) struct Uploads {
    folder: PathBuf,
    open: Mutex<HashMap<String, Shared>>,
}

impl Uploads {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, open: Mutex::default() }
    }

    /// Begins one; its number cannot be guessed.
    pub(crate) fn begin(&self, repository: &str) -> Result<(String, Shared)> {
        use std::fmt::Write as _;
        let mut seed = [0u8; 16];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("get random bytes for", &self.folder, e))?;
        let id = seed.iter().fold(String::new(), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        });
        let path = self.folder.join(file_name(repository, &id));
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.map_err(|e| Error::io("create", &path, e))?;
        let upload = Arc::new(AsyncMutex::new(Upload { path, file, hash: Sha256::new(), size: 0 }));
        self.table().insert(file_name(repository, &id), upload.clone());
        Ok((id, upload))
    }

    /// One that was begun, also by the server before this one.
    pub(crate) fn find(&self, repository: &str, id: &str) -> Result<Option<Shared>> {
        if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let name = file_name(repository, id);
        let mut table = self.table();
        if let Some(upload) = table.get(&name) {
            return Ok(Some(upload.clone()));
        }
        let path = self.folder.join(&name);
        let file = match OpenOptions::new().append(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", path, e)),
        };
        let (hash, size) = hash_of::<Sha256>(&path)?;
        let upload = Arc::new(AsyncMutex::new(Upload { path, file, hash, size }));
        table.insert(name, upload.clone());
        Ok(Some(upload))
    }

    /// Forgets one that became a blob or was given up; its file is the caller's.
    pub(crate) fn forget(&self, repository: &str, id: &str) {
        self.table().remove(&file_name(repository, id));
    }

    /// Removes those that nobody wrote to for so long: how many, and their bytes.
    pub(crate) fn expire(&self, age: Duration) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        let mut table = self.table();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let rests = meta.modified().ok().and_then(|m| m.elapsed().ok()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            // One that a request has in its hands is in use, however slowly it comes.
            let in_use = table.get(&name).is_some_and(|upload| upload.try_lock().is_err());
            if rests >= age && !in_use {
                table.remove(&name);
                if fs::remove_file(entry.path()).is_ok() {
                    count += 1;
                    bytes += meta.len();
                }
            }
        }
        (count, bytes)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Shared>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn file_name(repository: &str, id: &str) -> String {
    format!("{}@{id}", repository.replace('/', "+"))
}

fn hash_of<H: Hash>(path: &Path) -> Result<(H, u64)> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let (mut hash, mut size) = (H::new(), 0);
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
            0 => return Ok((hash, size)),
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}
