//! What can go wrong, on what, why, and what to do about it.

use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One source that was tried for an image, and why it did not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The source: `https://images.linuxcontainers.org`, `mmdebstrap`.
    pub source: String,
    /// Why it failed.
    pub reason: String,
    /// What would make it work, where that is known.
    pub help: Option<String>,
}

/// Errors of images and of their store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no image reference.
    #[error("image `{text}`: {reason}")]
    BadReference {
        /// The name as given.
        text: String,
        /// What is wrong with it.
        reason: String,
        /// The nearest form that is known.
        help: Option<String>,
    },
    /// Text that is no digest.
    #[error("digest `{text}`: not `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits")]
    BadDigest {
        /// The text as given.
        text: String,
    },
    /// A trust level that cannot be a folder's name.
    #[error("trust level `{text}`: not 1 to 64 of a-z, 0-9, `-` and `_`")]
    BadTrust {
        /// The text as given.
        text: String,
    },
    /// The store has no such image, and it was not to be obtained.
    #[error("image `{reference}`: not in the store {}", store.display())]
    NotFound {
        /// The name asked for.
        reference: String,
        /// The store's folder.
        store: PathBuf,
    },
    /// A digest prefix that fits several images.
    #[error("image `{prefix}`: fits {count} images of the store")]
    Ambiguous {
        /// The prefix as given.
        prefix: String,
        /// How many images start with it.
        count: usize,
    },
    /// No source could give the image.
    #[error("image `{reference}`: no source has it: {}", attempts.iter().map(|a| format!("{}: {}", a.source, a.reason)).collect::<Vec<_>>().join("; "))]
    NoSource {
        /// The name asked for.
        reference: String,
        /// Each source tried, in order.
        attempts: Vec<Attempt>,
    },
    /// A machine still runs from the image.
    #[error("image `{reference}`: in use, not removed")]
    InUse {
        /// The name asked for.
        reference: String,
    },
    /// What came is not what was promised.
    #[error("{what}: digest is {actual}, expected {expected}")]
    Mismatch {
        /// The blob or download.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// An archive that is damaged, or that tries to leave its folder.
    #[error("archive {what}: {reason}")]
    Archive {
        /// The archive, and the entry where known.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the store that does not say what it must.
    #[error("store file {}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system of the store is full.
    #[error("{what}: no space left on the file system of {}", path.display())]
    NoSpace {
        /// What was being written.
        what: String,
        /// A folder of the full file system.
        path: PathBuf,
    },
    /// A download failed.
    #[error("{url}: {reason}")]
    Http {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
        /// True when the server could not be reached at all.
        unreachable: bool,
    },
    /// A program or file of the host that a source needs is missing or failed.
    #[error("{what}: {reason}")]
    Host {
        /// The program or file.
        what: String,
        /// What happened.
        reason: String,
        /// The cure, where known.
        help: Option<String>,
    },
    /// The policy of signatures does not let it in.
    #[error("image `{reference}`: {reason}")]
    Refused {
        /// The name asked for.
        reference: String,
        /// Why.
        reason: String,
    },
    /// The caller gave up.
    #[error("image `{reference}`: cancelled")]
    Cancelled {
        /// The name asked for.
        reference: String,
    },
    /// A system call failed.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried: `open`, `rename`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

use crate::types::Digest;

impl Error {
    /// An I/O error with its object; a full file system becomes [`Error::NoSpace`].
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { what: operation.to_owned(), path },
            _ => Self::Io { operation, path, source },
        }
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::BadReference { help, .. } | Self::Host { help, .. } => help.clone(),
            Self::NotFound { reference, .. } => {
                Some(format!("`ilot image pull {reference}` obtains it, `ilot image ls` says what is there"))
            }
            Self::Refused { .. } => {
                Some("docs/images.md, \"Signatures\", says what is asked for where, and how to sign".to_owned())
            }
            Self::Ambiguous { .. } => Some("give more digits of the digest".to_owned()),
            Self::NoSource { attempts, .. } => attempts.iter().rev().find_map(|a| a.help.clone()),
            Self::InUse { .. } => Some(
                "destroy the machines that run from it (`ilot ps` lists them), or unmount it (`ilot image mount` does)"
                    .to_owned(),
            ),
            Self::NoSpace { .. } => Some("free some space, or move the store with `--root` or ILOT_ROOT".to_owned()),
            Self::Damaged { .. } => Some("obtain the image again: what comes takes its place".to_owned()),
            Self::Http { unreachable: true, .. } => {
                Some("check the network, or name a server that answers in `remotes.json` of the store".to_owned())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the store belongs to root: run as root, or choose another one with `--root`".to_owned())
            }
            _ => None,
        }
    }
}
