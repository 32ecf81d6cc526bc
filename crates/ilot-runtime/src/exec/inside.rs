//! Making a process in a running container.

use crate::cgroup::Cgroup;
use crate::container::{cgroup_error, flag_and_name, open_terminal};
use crate::notify::{self, Agent};
use crate::process::{self, Launch, attributes};
use crate::record::{self, Record, Request};
use crate::spec::{ExecCpuAffinity, Linux, NamespaceKind, Process};
use crate::wire::{self, Tag};
use crate::{Error, Result, paths, seccomp, sys};
use rustix::fs::{Gid, OFlags, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What is to run where.
pub struct Inside<'a> {
    /// The container.
    pub record: &'a Record,
    /// How it was made.
    pub config: &'a Request,
    /// The process.
    pub process: &'a Process,
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// Rows and columns of that, 0 for the default.
    pub size: (u16, u16),
    /// Whether it becomes nobody's child, else the child of whoever called this program.
    pub detach: bool,
    /// How many descriptors from 3 on it keeps.
    pub preserve_fds: u32,
    /// A group below the container's: `[CONTROLLER,…:]PATH`.
    pub cgroup: Option<&'a str>,
}

/// A process in the container.
pub struct Entered {
    /// Its number here.
    pub pid: i32,
    /// A handle on it.
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub master: Option<OwnedFd>,
}

impl Inside<'_> {
    /// Joins the container and makes the process; this program is of no use for anything else
    /// afterwards, and must have one thread.
    pub fn enter(&self) -> Result<Entered> {
        let (record, config) = (self.record, self.config);
        let none = Linux::default();
        let linux = config.spec.linux.as_ref().unwrap_or(&none);
        let filter = read_filter(&config.run_dir)?;
        if config.filtered != filter.is_some() {
            return Err(Error::invalid("seccomp", "the container's compiled filter is missing"));
        }
        process::set_limits(self.process, 0)?;
        if let Some(list) = affinity(self.process).and_then(|a| a.initial.as_deref()) {
            attributes::set_affinity(list)?;
        }
        let cgroup = self.open_cgroup()?;
        let agent = self.connect_agent(linux)?;
        cgroup.as_ref().map_or(Ok(()), join_v1)?;
        record.rdt.as_ref().map_or(Ok(()), crate::rdt::join)?;
        let (pidfd, kinds) = namespaces(record, linux)?;
        // The cgroup namespace comes last: from inside it, the way into the group is closed.
        join_namespaces(&pidfd, kinds & !libc::CLONE_NEWCGROUP, record)?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| Error::system("make", "a socket", e))?;
        let flags = if self.detach { 0 } else { libc::CLONE_PARENT as u64 };
        let Some(cloned) = make_process(cgroup.as_ref(), flags)? else {
            drop(ours);
            let error = match join_namespaces(&pidfd, kinds & libc::CLONE_NEWCGROUP, record) {
                Ok(()) => command(&theirs, filter.as_ref(), self, linux),
                Err(error) => error,
            };
            wire::send_error(&theirs, &error);
            // SAFETY: ends this copy of the program.
            unsafe { libc::_exit(127) };
        };
        drop(theirs);
        let mut master = None;
        if self.terminal {
            let early = "the command's process ended early";
            master = wire::expect(&ours, Tag::Done, &record.id, early)?.fds.pop();
        }
        // The socket closes by itself when the program is executed.
        while let Ok(Some(message)) = wire::receive(&ours) {
            match (&agent, &config.listener) {
                (Some(socket), Some(listener)) if message.tag == Tag::Request => {
                    let agent = Agent { pid: cloned.pid, ..Agent::new(socket, listener, record, "running") };
                    notify::hand_over(&message, &ours, cloned.pidfd.as_fd(), &agent)
                        .inspect_err(|_| drop(sys::pidfd_signal(cloned.pidfd.as_fd(), libc::SIGKILL)))?;
                }
                _ => return Err(wire::decode_error(&record.id, &message.body)),
            }
        }
        Ok(Entered { pid: cloned.pid, pidfd: cloned.pidfd, master })
    }
}

impl Inside<'_> {
    /// The connection to whoever gets the listener of the filter, made where paths are the host's.
    fn connect_agent(&self, linux: &Linux) -> Result<Option<UnixStream>> {
        let Some(listener) = &self.config.listener else { return Ok(None) };
        // From inside, this program could not take it from the new process.
        if linux.has_namespace(NamespaceKind::User) {
            return Err(Error::Unsupported {
                what: "executing a command with seccomp notification".to_owned(),
                why: "the container has a user namespace".to_owned(),
                cure: "use a profile without SCMP_ACT_NOTIFY",
            });
        }
        listener.connect().map(Some)
    }

    /// The group of the new process.
    fn open_cgroup(&self) -> Result<Option<Cgroup>> {
        let below = self.cgroup.filter(|path| !path.trim_matches('/').is_empty());
        if self.record.cgroup.is_empty() {
            return match below {
                None => Ok(None),
                Some(path) => Err(Error::invalid(format!("cgroup `{path}`"), "the container has none of its own")),
            };
        }
        let cgroup = Cgroup::open(&self.record.cgroup).map_err(cgroup_error)?;
        below.map_or(Ok(None), |path| cgroup.below(path).map(Some)).map_err(cgroup_error).map(|b| b.or(Some(cgroup)))
    }
}

/// The filter as the keeper compiled it.
fn read_filter(run_dir: &Path) -> Result<Option<seccomp::Program>> {
    let path = run_dir.join(record::SECCOMP);
    match std::fs::read(&path) {
        Ok(bytes) => seccomp::Program::from_bytes(&bytes)
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("file `{}`", path.display()), "it is no filter")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::path("read", &path, e)),
    }
}

/// Joins the v1 groups, which takes no time; the v2 group is for the clone.
fn join_v1(cgroup: &Cgroup) -> Result<()> {
    cgroup.joiner(cgroup.v2_fd().is_some()).and_then(|joiner| joiner.join()).map_err(cgroup_error)
}

/// Makes the command's process, in the container's v2 group from its first moment.
fn make_process(cgroup: Option<&Cgroup>, flags: u64) -> Result<Option<sys::Cloned>> {
    let fail = |e| Error::system("make", "the command's process", e);
    let into = cgroup.and_then(Cgroup::v2_fd);
    // SAFETY: this program has one thread.
    let cloned = match unsafe { sys::clone_process(flags, into) } {
        // An init inside shares out controllers: its group takes no processes itself.
        Err(e) if into.is_some() && matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP)) => {
            let (go, wait) = UnixStream::pair().map_err(fail)?;
            // SAFETY: as above.
            let cloned = unsafe { sys::clone_process(flags, None) }.map_err(fail)?;
            let Some(child) = &cloned else {
                drop(go);
                // It does nothing before the limits hold for it. Without a word it must not go on.
                if std::io::Read::read_exact(&mut (&wait), &mut [0]).is_err() {
                    // SAFETY: ends this copy of the program.
                    unsafe { libc::_exit(127) };
                }
                return Ok(None);
            };
            if let Some(cgroup) = cgroup {
                cgroup.join(child.pid).map_err(cgroup_error)?;
            }
            std::io::Write::write_all(&mut (&go), &[0]).map_err(fail)?;
            return Ok(cloned);
        }
        other => other.map_err(fail)?,
    };
    Ok(cloned)
}

/// Process 1 and the namespaces that it has for itself.
fn namespaces(record: &Record, linux: &Linux) -> Result<(OwnedFd, libc::c_int)> {
    let pidfd = record.init.open().ok_or_else(|| Error::Status {
        what: "execute a command",
        id: record.id.clone(),
        status: crate::Status::Stopped,
        wanted: "running",
    })?;
    let kinds = linux.namespaces.iter().fold(0, |flags, n| flags | flag_and_name(n.kind).0);
    Ok((pidfd, kinds))
}

fn join_namespaces(pidfd: &OwnedFd, kinds: libc::c_int, record: &Record) -> Result<()> {
    if kinds != 0 {
        sys::setns(pidfd.as_fd(), kinds)
            .map_err(|e| Error::system("join the namespaces of", format!("container `{}`", record.id), e))?;
    }
    sys::set_undumpable();
    Ok(())
}

/// The new process, inside; returns only on failure.
fn command(socket: &UnixStream, filter: Option<&seccomp::Program>, wanted: &Inside<'_>, linux: &Linux) -> Error {
    let process = wanted.process;
    let prepare = || -> Result<[OwnedFd; 3]> {
        if linux.has_namespace(NamespaceKind::User) {
            let fail = |e: rustix::io::Errno| Error::system("become", "root of the container", e);
            let (uid, gid) = (Uid::ROOT, Gid::ROOT);
            process::drop_groups()?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fail)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fail)?;
            sys::set_undumpable();
        }
        if let Some(personality) = &linux.personality {
            attributes::set_personality(&personality.domain)?;
        }
        if let Some(policy) = &linux.memory_policy {
            attributes::set_memory_policy(policy)?;
        }
        if let Some(list) = affinity(process).and_then(|a| a.last.as_deref()) {
            attributes::set_affinity(list)?;
        }
        if wanted.terminal {
            return terminal(socket, process, wanted);
        }
        let copy = |n: i32| {
            // SAFETY: standard streams are open here.
            rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(n) }, 3)
                .map_err(|e| Error::system("copy", "standard stream", e))
        };
        Ok([copy(0)?, copy(1)?, copy(2)?])
    };
    match prepare() {
        Ok(stdio) => Launch {
            process,
            filter,
            stdio,
            terminal: wanted.terminal,
            proc: own_proc().ok(),
            preserve_fds: wanted.preserve_fds,
            keep_keyring: false,
            // A wrong name is to be told, not made true.
            make_cwd: false,
            socket,
        }
        .run(),
        Err(error) => error,
    }
}

fn affinity(process: &Process) -> Option<&ExecCpuAffinity> {
    process.exec_cpu_affinity.as_ref()
}

/// The container's `/proc`; who needs it checks that it is one.
fn own_proc() -> Result<OwnedFd> {
    let root = process::open_root()?;
    paths::open_in_root(root.as_fd(), "/proc", OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|e| Error::system("open", "`/proc` in the container", e))
}

/// A terminal of the container's own; its master goes to the caller.
fn terminal(socket: &UnixStream, process: &Process, wanted: &Inside<'_>) -> Result<[OwnedFd; 3]> {
    let root = process::open_root()?;
    let uid = match &process.user.username {
        Some(name) => crate::users::look_up(root.as_fd(), name)?.uid,
        None => process.user.uid,
    };
    let pts = paths::open_in_root(root.as_fd(), "/dev/pts", OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|e| Error::system("open", "`/dev/pts` in the container", e))?;
    let (master, slave) = open_terminal(pts.as_fd(), uid)?;
    if wanted.size.0 > 0 {
        let size =
            rustix::termios::Winsize { ws_row: wanted.size.0, ws_col: wanted.size.1, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(&master, size);
    }
    wire::send(socket, Tag::Done, &[], &[master.as_fd()]).map_err(|e| Error::system("talk to", "the helper", e))?;
    let copy = || slave.try_clone().map_err(|e| Error::system("copy", "standard stream", e));
    let (second, third) = (copy()?, copy()?);
    Ok([slave, second, third])
}
