//! What can go wrong in the engine, with the cure where there is one.

use std::io;
use std::path::PathBuf;

/// A failure of the native engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the store or the run directory.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    File {
        /// What was being done ("read", "write", …).
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A native layer that the kernel does not mount.
    #[error("cannot mount `{}`: {source}", path.display())]
    Mount {
        /// The EROFS image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A record that does not parse.
    #[error("`{}` is damaged: {source}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No machine of that name.
    #[error("no machine `{0}`")]
    NoMachine(String),
    /// Neither a machine nor a domain.
    #[error("no machine or domain `{0}`")]
    NoSuchName(String),
    /// No domain of that name in the store.
    #[error("no domain `{0}` on this host")]
    NoDomain(String),
    /// The machine does not run.
    #[error("machine `{0}` is not running")]
    NotRunning(String),
    /// The name is in use.
    #[error("`{name}` already exists (it belongs to {owner})")]
    Exists {
        /// The machine or domain.
        name: String,
        /// `project x` or `ilot run`.
        owner: String,
    },
    /// Something the file asks for that this engine cannot do.
    #[error("{what}: {why}")]
    Unsupported {
        /// Machine and key.
        what: String,
        /// Why it cannot.
        why: String,
    },
    /// A protected machine stands in the way.
    #[error("protected (`ephemeral: false`): {}", .0.join(", "))]
    Protected(Vec<String>),
    /// Every id range or address is taken.
    #[error("{0}")]
    Exhausted(String),
    /// A path of `cp`, a name, an option that makes no sense.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
        /// What to do.
        help: Option<String>,
    },
    /// The container runtime.
    #[error(transparent)]
    Runtime(#[from] ilot_runtime::Error),
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] ilot_runtime::cgroup::CgroupError),
    /// Images.
    #[error(transparent)]
    Image(#[from] ilot_image::Error),
    /// Network.
    #[error(transparent)]
    Net(#[from] ilot_net::Error),
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::File { source, path, .. } => match source.kind() {
                io::ErrorKind::StorageFull => {
                    Some(format!("free space on the file system of `{}`, then run the command again", path.display()))
                }
                io::ErrorKind::PermissionDenied => Some("run as root".to_owned()),
                io::ErrorKind::ReadOnlyFilesystem => Some("choose another store with `--root`".to_owned()),
                _ => None,
            },
            Self::Mount { .. } => Some("`ILOT_LAYERS=unpacked` has layers unpacked instead".to_owned()),
            Self::Damaged { path, .. } => Some(format!("move `{}` away and run `ilot apply` again", path.display())),
            Self::NoMachine(_) | Self::NoSuchName(_) => Some("`ilot ps -a` lists the machines".to_owned()),
            Self::NoDomain(_) => Some("`ilot apply` makes the domains of a file; `--net none` needs none".to_owned()),
            Self::NotRunning(name) => Some(format!("start it with `ilot start {name}`")),
            Self::Exists { name, .. } => Some(format!("choose another name, or remove it with `ilot rm {name}`")),
            Self::Protected(_) => Some("use `--force` to remove them all the same".to_owned()),
            Self::Invalid { help, .. } => help.clone(),
            Self::Unsupported { .. } | Self::Exhausted(_) => None,
            Self::Runtime(e) => e.help().map(str::to_owned),
            Self::Cgroup(e) => e.help(),
            Self::Image(e) => e.help(),
            Self::Net(e) => e.help(),
        }
    }
}
