//! What can go wrong, with the object's name and the operation.

use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// A network operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a netlink request.
    #[error("{operation} `{name}`: {source}")]
    Kernel {
        /// What was attempted, e.g. `create bridge`.
        operation: &'static str,
        /// The interface, table or namespace.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An interface that we need has somebody else's mark, or none.
    #[error("{operation} `{name}`: an interface of this name exists and is not ours ({detail})")]
    Foreign {
        /// What was attempted.
        operation: &'static str,
        /// The interface.
        name: String,
        /// Whose it seems to be.
        detail: String,
    },
    /// An interface that must exist does not.
    #[error("{operation} `{name}`: no such interface")]
    Missing {
        /// What was attempted.
        operation: &'static str,
        /// The interface.
        name: String,
    },
    /// A file or setting of the kernel could not be read or written.
    #[error("{operation} `{}`: {source}", path.display())]
    File {
        /// What was attempted.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program could not be run.
    #[error("run `{program}`: {source}")]
    Program {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// `nft` refused what it was given.
    #[error("{operation} the packet filter: nft: {message}")]
    Nft {
        /// What was attempted.
        operation: &'static str,
        /// What nft wrote, first lines only.
        message: String,
    },
    /// The name service of a domain did not start.
    #[error("start the name service of domain `{domain}`: {message}")]
    Names {
        /// The domain.
        domain: String,
        /// What the program wrote.
        message: String,
    },
    /// A message of the kernel's that does not parse.
    #[error("{operation} `{name}`: the kernel's answer does not parse")]
    Malformed {
        /// What was attempted.
        operation: &'static str,
        /// The object.
        name: String,
    },
}

impl Error {
    /// The cure, where there is one.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Kernel { source, .. } if source.raw_os_error() == Some(libc::EPERM) => {
                Some("run as root: bridges and rules need CAP_NET_ADMIN".into())
            }
            Self::Kernel { source, operation, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Some(format!("the kernel cannot {operation}: load the modules `bridge`, `veth` and `nf_tables`"))
            }
            Self::Foreign { name, .. } => {
                Some(format!("rename the domain or machine, or remove the interface yourself: `ip link delete {name}`"))
            }
            Self::Program { program, source } if source.kind() == io::ErrorKind::NotFound => match program.as_str() {
                "nft" => Some("install the package `nftables`".into()),
                _ => Some(
                    "build the helper programs (`cargo xtask build`) or set ILOT_LIBEXEC to their directory".into(),
                ),
            },
            Self::Names { message, .. } if message.contains("in use") => {
                Some("another name server listens on that address: bind it to its own addresses only".into())
            }
            _ => None,
        }
    }
}
