//! Existing namespaces that a container joins, and the birth of its first process in them.

use crate::spec::{Linux, NamespaceKind};
use crate::sys::{self, Cloned};
use crate::wire::{self, Tag};
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// `NS_GET_NSTYPE`, `ioctl_ns(2)`
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Flag of `clone` and name in `/proc/PID/ns` of a kind.
pub fn flag_and_name(kind: NamespaceKind) -> (libc::c_int, &'static str) {
    match kind {
        NamespaceKind::User => (libc::CLONE_NEWUSER, "user"),
        NamespaceKind::Mount => (libc::CLONE_NEWNS, "mnt"),
        NamespaceKind::Pid => (libc::CLONE_NEWPID, "pid"),
        NamespaceKind::Network => (libc::CLONE_NEWNET, "net"),
        NamespaceKind::Uts => (libc::CLONE_NEWUTS, "uts"),
        NamespaceKind::Ipc => (libc::CLONE_NEWIPC, "ipc"),
        NamespaceKind::Cgroup => (libc::CLONE_NEWCGROUP, "cgroup"),
        NamespaceKind::Time => (libc::CLONE_NEWTIME, "time"),
    }
}

/// Namespaces of a configuration that are there already.
#[derive(Default)]
pub struct Joined {
    /// The user namespace.
    pub user: Option<OwnedFd>,
    others: Vec<(NamespaceKind, OwnedFd)>,
}

impl Joined {
    /// Opens every namespace that the configuration names by path, each verified to be of its kind.
    pub fn open(linux: &Linux) -> Result<Self> {
        let mut joined = Self::default();
        for namespace in &linux.namespaces {
            let Some(path) = &namespace.path else { continue };
            if namespace.kind == NamespaceKind::Mount {
                return Err(Error::Unsupported {
                    what: "joining a mount namespace".to_owned(),
                    why: "the container's own tree needs one of its own".to_owned(),
                    cure: "leave the path of the mount namespace out",
                });
            }
            let fd = open(path)?;
            // SAFETY: the ioctl takes no argument and gives a number.
            let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
            if kind != flag_and_name(namespace.kind).0 {
                return Err(Error::invalid(
                    format!("namespace `{}`", path.display()),
                    format!("it is not a {} namespace", flag_and_name(namespace.kind).1),
                ));
            }
            match namespace.kind {
                NamespaceKind::User => joined.user = Some(fd),
                kind => joined.others.push((kind, fd)),
            }
        }
        Ok(joined)
    }

    fn enter(&self) -> Result<()> {
        self.others.iter().try_for_each(|(kind, fd)| enter(fd.as_fd(), *kind))
    }

    /// Makes the first process, in the joined namespaces and in new ones by `flags`; `None` in it.
    ///
    /// # Safety
    /// As for [`sys::clone_process`].
    pub unsafe fn clone_process(
        &self,
        flags: u64,
        into: Option<BorrowedFd<'_>>,
        explain: impl Fn(std::io::Error) -> Error,
    ) -> Result<Option<Cloned>> {
        if self.user.is_some() {
            // SAFETY: as promised by our caller.
            return unsafe { self.clone_below(flags, explain) };
        }
        // This process goes there, has its child, and comes back.
        let own = self
            .others
            .iter()
            .map(|(kind, _)| Ok((*kind, open(Path::new(&format!("/proc/self/ns/{}", flag_and_name(*kind).1)))?)))
            .collect::<Result<Vec<_>>>()?;
        self.enter()?;
        // SAFETY: as promised by our caller.
        let cloned = unsafe { sys::clone_process(flags, into) };
        if matches!(cloned, Ok(None)) {
            return Ok(None);
        }
        for (kind, fd) in &own {
            enter(fd.as_fd(), *kind)?;
        }
        cloned.map_err(explain)
    }

    /// There is no way back out of a user namespace: a process in between goes in, has the child
    /// as ours, and ends.
    unsafe fn clone_below(&self, flags: u64, explain: impl Fn(std::io::Error) -> Error) -> Result<Option<Cloned>> {
        let fail = |e| Error::system("make", "a process to join namespaces", e);
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        // SAFETY: as promised by our caller.
        let Some(between) = (unsafe { sys::clone_process(0, None) }).map_err(fail)? else {
            drop(ours);
            let join = || {
                if let Some(user) = &self.user {
                    enter(user.as_fd(), NamespaceKind::User)?;
                }
                self.enter()?;
                // SAFETY: this process has one thread, too.
                unsafe { sys::clone_process(flags | libc::CLONE_PARENT as u64, None) }.map_err(explain)
            };
            match join() {
                Ok(None) => return Ok(None),
                Ok(Some(child)) => {
                    let _ = wire::send(&theirs, Tag::Done, &[], &[child.pidfd.as_fd()]);
                }
                Err(error) => wire::send_error(&theirs, &error),
            }
            // SAFETY: ends this copy at once.
            unsafe { libc::_exit(0) };
        };
        drop(theirs);
        let answer = wire::expect(&ours, Tag::Done, "namespaces", "the process in between ended early");
        let _ = sys::waitpid(between.pid, 0);
        let lost = || fail(std::io::Error::from_raw_os_error(libc::ESRCH));
        let pidfd = answer?.fds.pop().ok_or_else(lost)?;
        let pid = sys::pid_of(pidfd.as_fd()).ok_or_else(lost)?;
        Ok(Some(Cloned { pid, pidfd }))
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::path("open namespace", path, e))
}

fn enter(fd: BorrowedFd<'_>, kind: NamespaceKind) -> Result<()> {
    let (flag, name) = flag_and_name(kind);
    sys::setns(fd, flag).map_err(|e| Error::system("join", format!("the {name} namespace"), e))
}

/// Makes a new time namespace with the offsets of the configuration, and enters it.
pub fn new_time(linux: &Linux) -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::system("make", "the time namespace", e);
    // SAFETY: one thread; nothing of ours depends on the clocks' offsets.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWTIME) }.map_err(fail)?;
    let text: String = linux
        .time_offsets
        .iter()
        .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
        .collect();
    if !text.is_empty() {
        let path = Path::new("/proc/self/timens_offsets");
        std::fs::write(path, text).map_err(|e| Error::path("write", path, e))?;
    }
    let next = open(Path::new("/proc/self/ns/time_for_children"))?;
    enter(next.as_fd(), NamespaceKind::Time)
}
