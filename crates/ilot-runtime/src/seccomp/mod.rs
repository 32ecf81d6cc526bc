//! System call filters: an OCI profile (runtime-spec, `config-linux.md`, "Seccomp") as classic BPF.
//!
//! The kernel runs the filter at every system call, so its shape matters. Ours is a balanced binary tree over ranges
//! of system call numbers with equal outcome: a call takes about eight comparisons where a list takes hundreds, and the
//! program is a third of the size, which is most of the time that loading costs.
//!
//! # What a profile means
//! As libseccomp and runc read it, where they define it:
//!
//! * names that an architecture does not have are passed over there;
//! * an unconditional rule for a call beats every conditional one, the first unconditional one beats the others, and
//!   unconditional rules that only repeat the default action are passed over;
//! * otherwise the first rule whose conditions all hold decides (libseccomp leaves overlaps undefined); conditions of one
//!   rule that name the same argument twice are alternatives;
//! * numbers above the highest one that the profile knows fail with `ENOSYS`, unless the default action lets calls
//!   through: a call that is newer than the profile must look unimplemented, or programs do not fall back;
//! * a call in an architecture that the profile does not list kills the process;
//! * 32-bit architectures have 32-bit arguments: the upper half of a value is ignored there.
//!
//! [`interpret()`] is that meaning written down a second time, without any BPF, and tests hold the two against each other.

mod arch;
mod cache;
mod compile;
mod default;
mod filter;
mod interpret;
mod program;
mod rules;

pub use arch::Arch;
pub use cache::cached;
pub use default::{DefaultKind, default_profile, portable_profile};
pub use filter::{Action, Call, SockFilter};
pub use interpret::{interpret, simulate};
pub(crate) use program::FLAGS;
pub use program::Program;

use std::io;
use std::path::PathBuf;

/// A filter that cannot be made or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// A profile that says something impossible.
    #[error("read seccomp profile: {what}: {why}")]
    Profile {
        /// The place in the profile.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A profile whose program is longer than the kernel takes.
    #[error("compile seccomp profile: {length} instructions, the kernel takes {max}")]
    TooLong {
        /// Instructions needed.
        length: usize,
        /// `BPF_MAXINSNS`
        max: usize,
    },
    /// The kernel refused the program.
    #[error("load seccomp filter: {source}")]
    Load {
        /// The kernel's answer.
        source: io::Error,
    },
    /// A kept program that is not one, or that somebody else could have written.
    #[error("use kept seccomp filter {}: {why}", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file operation that failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl SeccompError {
    /// The cure, where there is one.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let cure = match self {
            Self::Load { source } => match source.raw_os_error()? {
                libc::EACCES => "set no_new_privs before loading a filter, or load it with CAP_SYS_ADMIN",
                libc::EINVAL => {
                    "a flag or an action that this kernel does not have, or it is built without CONFIG_SECCOMP_FILTER"
                }
                libc::EBUSY => "another filter with a listener is loaded already: a process can have one",
                libc::ENOMEM => "the filters loaded one inside the other are longer than the kernel allows in sum",
                _ => return None,
            },
            Self::TooLong { .. } => "use fewer conditions, or name ranges of calls with the same action",
            Self::Kept { .. } => "remove the file: it is made again",
            _ => return None,
        };
        Some(cure.into())
    }
}

/// The result of an operation on a filter.
pub type Result<T, E = SeccompError> = std::result::Result<T, E>;
