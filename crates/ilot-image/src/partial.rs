//! Blobs that came in part: kept where a pull broke off, so that the next one goes on from there.
//!
//! ```text
//! images/.partial/<hex>   what came of a blob; whole ones too, until the image that wants them is in the store
//! ```
//!
//! Whoever brings one holds its lock, which dies with him. What nobody asked for in a day goes.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::types::Digest;

/// How long a part is kept that nobody goes on with.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A blob that is being brought, by nobody else.
#[derive(Debug)]
pub(crate) struct Partial {
    pub(crate) path: PathBuf,
    _lock: Lock,
}

fn folder(store: &Path) -> PathBuf {
    store.join("images/.partial")
}

fn lock_of(store: &Path, hex: &str) -> PathBuf {
    store.join("images/.locks").join(format!("partial-{hex}.lock"))
}

impl Partial {
    /// The place for a blob's bytes, with what came of them before; none where another pull is at it.
    pub(crate) fn take(store: &Path, digest: &Digest) -> Result<Option<Self>> {
        let folder = folder(store);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .or_else(|e| if folder.is_dir() { Ok(()) } else { Err(e) })
            .map_err(|e| Error::io("make folder", &folder, e))?;
        let lock = Lock::try_acquire(&lock_of(store, digest.hex()))?;
        Ok(lock.map(|lock| Self { path: folder.join(digest.hex()), _lock: lock }))
    }

    /// Takes it away: it is no use to anybody.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes away what came of blobs that have their place now. One that somebody else brings just then is his.
pub(crate) fn done<'a>(store: &Path, blobs: impl Iterator<Item = &'a Digest>) {
    for digest in blobs {
        let path = folder(store).join(digest.hex());
        if path.exists()
            && let Ok(Some(partial)) = Partial::take(store, digest)
        {
            partial.discard();
        }
    }
}

/// Takes away what nobody went on with for a day.
pub(crate) fn sweep(store: &Path) {
    for entry in fs::read_dir(folder(store)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry.metadata().and_then(|m| m.modified()).map(|t| SystemTime::now().duration_since(t));
        if let Ok(Ok(age)) = age
            && age >= KEPT
            && let Ok(Some(_lock)) = Lock::try_acquire(&lock_of(store, &name))
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
