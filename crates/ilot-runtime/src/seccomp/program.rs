//! A compiled filter: loading it, and its form as bytes.

use std::os::fd::{FromRawFd, OwnedFd};
use std::{io, mem};

use crate::spec::{Seccomp, SeccompAction};

use super::arch::Arch;
use super::filter::{JA, JEQ, JGE, JGT, LD, RET, SockFilter};
use super::rules::Rules;
use super::{Result, SeccompError, compile};

const SET_MODE_FILTER: libc::c_long = 1;
const FLAG_NEW_LISTENER: u32 = 1 << 3;

/// The flags of the runtime-spec and their bits in linux/seccomp.h.
pub(crate) const FLAGS: [(&str, u32); 5] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 1 << 1),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 1 << 2),
    ("SECCOMP_FILTER_FLAG_TSYNC_ESRCH", 1 << 4),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 1 << 5),
];

/// A filter ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub(super) filter: Vec<SockFilter>,
    /// Bits for seccomp(2).
    pub(super) flags: u32,
}

impl Program {
    /// Compiles a profile for the architecture this program is built for.
    ///
    /// # Errors
    /// A profile that says something impossible, or one too long for the kernel.
    pub fn compile(profile: &Seccomp) -> Result<Self> {
        Self::compile_for(profile, Arch::native())
    }

    /// Compiles a profile for a kernel of some architecture.
    ///
    /// # Errors
    /// As [`Program::compile`].
    pub fn compile_for(profile: &Seccomp, native: Arch) -> Result<Self> {
        let flags = flags(profile)?;
        let filter = compile::compile(&Rules::resolve(profile, native)?)?;
        Ok(Self { filter, flags })
    }

    /// The instructions.
    #[must_use]
    pub fn instructions(&self) -> &[SockFilter] {
        &self.filter
    }

    /// Whether loading it makes a listener.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.flags & FLAG_NEW_LISTENER != 0
    }

    /// Loads the filter for the calling thread, with flags beside those of the profile. Cannot be undone.
    ///
    /// Needs `no_new_privs` or `CAP_SYS_ADMIN`. Allocates nothing. With a `NOTIFY` action it gives the listener, which
    /// is close-on-exec.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn load(&self, flags: u32) -> Result<Option<OwnedFd>> {
        let prog = libc::sock_fprog {
            len: u16::try_from(self.filter.len())
                .map_err(|_| SeccompError::TooLong { length: self.filter.len(), max: compile::MAX })?,
            filter: self.filter.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        let flags = libc::c_ulong::from(self.flags | flags);
        // SAFETY: the program points to `len` instructions of the kernel's layout, borrowed for the call, only read.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const prog) };
        if fd < 0 {
            return Err(SeccompError::Load { source: io::Error::last_os_error() });
        }
        if flags & libc::c_ulong::from(FLAG_NEW_LISTENER) == 0 {
            return Ok(None);
        }
        let fd = i32::try_from(fd).unwrap_or(-1);
        // SAFETY: with NEW_LISTENER a success is a new descriptor, owned here alone.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The filter as bytes: flags, number of instructions, instructions, little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.filter.len() * 8);
        out.extend(self.flags.to_le_bytes());
        out.extend(u32::try_from(self.filter.len()).unwrap_or(u32::MAX).to_le_bytes());
        for i in &self.filter {
            out.extend(i.code.to_le_bytes());
            out.extend([i.jt, i.jf]);
            out.extend(i.k.to_le_bytes());
        }
        out
    }

    /// The filter that [`Program::to_bytes`] wrote. `None` unless it is whole and ends on every path.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |b: &[u8]| b.try_into().ok().map(u32::from_le_bytes);
        let (flags, count) = (word(bytes.get(..4)?)?, word(bytes.get(4..8)?)? as usize);
        let body = bytes.get(8..)?;
        if count == 0 || count > compile::MAX || body.len() != count * mem::size_of::<SockFilter>() {
            return None;
        }
        let known = FLAGS.iter().fold(FLAG_NEW_LISTENER, |all, (_, bit)| all | bit);
        if flags & !known != 0 {
            return None;
        }
        let filter: Vec<SockFilter> = body
            .chunks_exact(8)
            .map(|c| SockFilter {
                code: u16::from_le_bytes([c[0], c[1]]),
                jt: c[2],
                jf: c[3],
                k: u32::from_le_bytes([c[4], c[5], c[6], c[7]]),
            })
            .collect();
        valid(&filter).then_some(Self { filter, flags })
    }
}

/// Whether every jump stays inside and the last instruction returns, as the kernel asks too.
fn valid(filter: &[SockFilter]) -> bool {
    let inside = |i: usize, distance: u32| i + 1 + (distance as usize) < filter.len();
    let ok = |(i, f): (usize, &SockFilter)| match f.code {
        JEQ | JGT | JGE => inside(i, f.jt.into()) && inside(i, f.jf.into()),
        JA => inside(i, f.k),
        LD => f.k < 64 && f.k % 4 == 0,
        _ => true,
    };
    filter.last().is_some_and(|f| f.code == RET) && filter.iter().enumerate().all(ok)
}

fn flags(profile: &Seccomp) -> Result<u32> {
    let mut bits = 0;
    for name in &profile.flags {
        let known = FLAGS.iter().find(|(n, _)| n == name);
        bits |= known.map(|(_, bit)| *bit).ok_or_else(|| SeccompError::Profile {
            what: format!("flag {name:?}"),
            why: "the runtime-spec knows no such flag".into(),
        })?;
    }
    let notify = SeccompAction::Notify;
    if profile.default_action == notify {
        return Err(SeccompError::Profile {
            what: "defaultAction".into(),
            why: "SCMP_ACT_NOTIFY for every call would ask about the answer itself".into(),
        });
    }
    if profile.syscalls.iter().any(|r| r.action == notify) {
        // A listener and TSYNC can be had together only with ESRCH as the answer to a failure.
        if bits & 1 != 0 {
            bits |= 1 << 4;
        }
        bits |= FLAG_NEW_LISTENER;
    }
    Ok(bits)
}
