//! What goes into a filter (a call), what comes out (an action), and the instructions between.

use crate::spec::SeccompAction;

use super::{Result, SeccompError};

/// The outcome of a filter for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// End the process.
    KillProcess,
    /// End the thread.
    KillThread,
    /// `SIGSYS`
    Trap,
    /// Fail with this error number.
    Errno(u16),
    /// Ask the listener.
    Notify,
    /// Tell the tracer, with this message.
    Trace(u16),
    /// Let it through and log it.
    Log,
    /// Let it through.
    Allow,
}

impl Action {
    /// The action of a rule. `errno` belongs to `ERRNO` and `TRACE` alone (runtime-spec, `errnoRet`).
    pub(super) fn from_spec(action: SeccompAction, errno: Option<u32>, what: &str) -> Result<Self> {
        let bad = |why: &str| SeccompError::Profile { what: what.into(), why: why.into() };
        let value = || match errno {
            None => Ok(libc::EPERM as u16),
            Some(n) => u16::try_from(n).map_err(|_| bad("errnoRet has 16 bits at most")),
        };
        if errno.is_some() && !matches!(action, SeccompAction::Errno | SeccompAction::Trace) {
            return Err(bad("errnoRet belongs to SCMP_ACT_ERRNO and SCMP_ACT_TRACE only"));
        }
        Ok(match action {
            SeccompAction::KillProcess => Self::KillProcess,
            SeccompAction::KillThread => Self::KillThread,
            SeccompAction::Trap => Self::Trap,
            SeccompAction::Errno => Self::Errno(value()?),
            SeccompAction::Notify => Self::Notify,
            SeccompAction::Trace => Self::Trace(value()?),
            SeccompAction::Log => Self::Log,
            SeccompAction::Allow => Self::Allow,
        })
    }

    /// `SECCOMP_RET_…` of linux/seccomp.h.
    pub(super) fn ret(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(n) => 0x0005_0000 | u32::from(n),
            Self::Notify => 0x7fc0_0000,
            Self::Trace(n) => 0x7ff0_0000 | u32::from(n),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }

    /// The action of a return value; the kernel takes the least permissive for one it does not know.
    pub(super) fn from_ret(ret: u32) -> Self {
        let data = (ret & 0xffff) as u16;
        match ret & 0xffff_0000 {
            0 => Self::KillThread,
            0x0003_0000 => Self::Trap,
            0x0005_0000 => Self::Errno(data),
            0x7fc0_0000 => Self::Notify,
            0x7ff0_0000 => Self::Trace(data),
            0x7ffc_0000 => Self::Log,
            0x7fff_0000 => Self::Allow,
            _ => Self::KillProcess,
        }
    }

    /// Whether the call may go through: then a call that is not known yet needs no `ENOSYS`.
    pub(super) fn permissive(self) -> bool {
        matches!(self, Self::Allow | Self::Log | Self::Trace(_))
    }
}

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The number.
    pub nr: u32,
    /// `AUDIT_ARCH_…`
    pub arch: u32,
    /// Where it was made.
    pub ip: u64,
    /// The arguments; 32-bit architectures have zeros in the upper halves.
    pub args: [u64; 6],
}

/// One instruction of classic BPF (`struct sock_filter` of linux/filter.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions skipped if true.
    pub jt: u8,
    /// Instructions skipped if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Load the word at offset k.
pub(super) const LD: u16 = 0x20;
/// And with k.
pub(super) const AND: u16 = 0x54;
/// Jump by k.
pub(super) const JA: u16 = 0x05;
/// Jump if equal to k.
pub(super) const JEQ: u16 = 0x15;
/// Jump if greater than k, unsigned.
pub(super) const JGT: u16 = 0x25;
/// Jump if at least k, unsigned.
pub(super) const JGE: u16 = 0x35;
/// Return k.
pub(super) const RET: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(super) const AT_NR: u32 = 0;
/// As [`AT_NR`].
pub(super) const AT_ARCH: u32 = 4;

/// The offset of the low half of an argument, and of the high one (little-endian).
pub(super) fn at_arg(index: u8) -> (u32, u32) {
    let low = 16 + 8 * u32::from(index);
    (low, low + 4)
}

#[cfg(not(target_endian = "little"))]
compile_error!("offsets of arguments are laid out for little-endian architectures");
