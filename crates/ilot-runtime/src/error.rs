//! What can go wrong, said as `what on what: why`, with the cure where there is one.

use std::io;
use std::path::Path;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the container runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error("{what} {on}: {source}")]
    System {
        /// The operation.
        what: &'static str,
        /// The object: a path, a container, a process.
        on: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The container's keeper (or its first process) could not go on.
    #[error("container `{id}`: {message}")]
    Container {
        /// The container.
        id: String,
        /// What the keeper reported, already in the form `what on what: why`.
        message: String,
        /// The error number behind it, 0 without.
        errno: i32,
    },
    /// There is no such container.
    #[error("container in {0}: there is none")]
    Missing(String),
    /// The container is not in the state that the operation needs.
    #[error("{what} of container `{id}`: it is {status}, not {wanted}")]
    Status {
        /// The operation.
        what: &'static str,
        /// The container.
        id: String,
        /// Its state.
        status: crate::Status,
        /// The state(s) in which the operation is possible.
        wanted: &'static str,
    },
    /// The configuration asks for something impossible.
    #[error("{what}: {why}")]
    Invalid {
        /// The field or file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// This host lacks something.
    #[error("{what}: {why}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// How it shows.
        why: String,
        /// What to do about it.
        cure: &'static str,
    },
}

impl Error {
    /// A failed system call.
    pub fn system(what: &'static str, on: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what, on: on.into(), source: source.into() }
    }

    /// A failed operation on a file.
    pub fn path(what: &'static str, on: &Path, source: impl Into<io::Error>) -> Self {
        Self::system(what, format!("`{}`", on.display()), source)
    }

    /// A bad field.
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }

    /// The error number of the kernel, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::System { source, .. } => source.raw_os_error(),
            Self::Container { errno, .. } if *errno != 0 => Some(*errno),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Unsupported { cure, .. } => Some(cure),
            Self::Status { wanted: "running", status: crate::Status::Paused, .. } => {
                Some("let it go on first: `ilot resume`")
            }
            Self::Status { wanted, .. } if *wanted == "running" => {
                Some("start it first, `ilot status` shows what runs")
            }
            _ => match self.errno()? {
                libc::EPERM | libc::EACCES => Some("run as root"),
                libc::ENOSPC => Some("free disk space, or raise the limit that is reached"),
                libc::EMFILE | libc::ENFILE => Some("raise the limit of open files (`ulimit -n`)"),
                libc::EDQUOT => Some("free quota of the user, or raise it"),
                libc::ENOSYS => Some("this kernel is too old; 5.15 or newer is needed"),
                _ => None,
            },
        }
    }
}
