//! Seccomp notification (`config-linux.md`, "The Container Process State"): the listener of a filter goes to the socket
//! that the profile names.
//!
//! Once its filter is loaded, a process could be asking the listener about its very next system call, so it can send
//! nothing itself. It tells beforehand which number the listener will have, says by a word in shared memory that it is
//! there, and waits, without a system call, until somebody outside has taken a copy of it.

use crate::record::{self, Record, Request};
use crate::seccomp::Program;
use crate::wire::{self, Message, Tag};
use crate::{Error, Result, hooks, sys};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The words in shared memory.
const LOADED: u32 = 1;
const TAKEN: u32 = 2;
const FAILED: u32 = 3;
/// How long one side waits for the other.
const LIMIT: Duration = Duration::from_secs(10);

/// Where a filter's listener goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// A listening socket of the host.
    pub path: PathBuf,
    /// What goes along, for whoever listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
}

impl Listener {
    /// What a profile wants; `None` if it notifies nobody.
    pub fn of(profile: &crate::spec::Seccomp) -> Result<Option<Self>> {
        if profile.listener_metadata.is_some() && profile.listener_path.is_none() {
            return Err(Error::invalid("linux.seccomp.listenerMetadata", "it needs a `listenerPath`"));
        }
        let notify = crate::spec::SeccompAction::Notify;
        if profile.syscalls.iter().all(|rule| rule.action != notify) {
            return Ok(None);
        }
        let path = profile.listener_path.clone().ok_or_else(|| {
            Error::invalid("linux.seccomp", "SCMP_ACT_NOTIFY needs a `listenerPath`, or its calls would wait forever")
        })?;
        Ok(Some(Self { path: path.into(), metadata: profile.listener_metadata.clone() }))
    }

    /// Connects to whoever listens, by a path of the host.
    pub fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.path).map_err(|e| Error::path("connect to seccomp listener", &self.path, e))
    }
}

/// One word that two processes share.
struct Word(*mut AtomicU32);

impl Word {
    fn map(memory: &OwnedFd) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses; never unmapped, the process ends or executes soon.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(at.cast()))
    }

    fn get(&self) -> &AtomicU32 {
        // SAFETY: the mapping is aligned, long enough and stays.
        unsafe { &*self.0 }
    }

    /// Waits, by reading alone, until the word is none of these.
    fn wait_past(&self, last: u32) -> u32 {
        let end = Instant::now() + LIMIT;
        loop {
            let word = self.get().load(Ordering::Acquire);
            if word > last || Instant::now() > end {
                return word;
            }
            std::hint::spin_loop();
        }
    }
}

/// In the process itself: loads the filter and waits until its listener was taken.
pub fn load(filter: &Program, socket: &UnixStream) -> Result<()> {
    let fail = |e: io::Error| Error::system("hand over", "the seccomp listener", e);
    let make = || -> io::Result<(OwnedFd, Word)> {
        let memory = rustix::fs::memfd_create("ilot", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, 4096)?;
        let word = Word::map(&memory)?;
        Ok((memory, word))
    };
    let (memory, word) = make().map_err(fail)?;
    wire::send(socket, Tag::Request, &[], &[memory.as_fd()]).map_err(fail)?;
    drop(memory);
    // The lowest free number, which the next new descriptor gets.
    let number = rustix::io::dup(socket).map_err(|e| fail(e.into()))?.as_raw_fd();
    wire::send(socket, Tag::Request, &number.to_le_bytes(), &[]).map_err(fail)?;
    let listener = filter.load(0).map_err(|e| Error::invalid("seccomp", e.to_string()))?;
    word.get().store(LOADED, Ordering::Release);
    if word.wait_past(LOADED) != TAKEN {
        return Err(fail(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
    }
    // Closing it would be a system call: `execve` does that.
    std::mem::forget(listener);
    Ok(())
}

/// Outside: takes the listener of a process that began [`load`], and sends it with the state to whoever listens.
pub fn hand_over(first: &Message, socket: &UnixStream, process: BorrowedFd<'_>, agent: &Agent<'_>) -> Result<()> {
    let fail = |e: io::Error| Error::system("hand over", "the seccomp listener", e);
    let broken = || fail(io::Error::from_raw_os_error(libc::EPROTO));
    let memory = first.fds.first().ok_or_else(broken)?;
    let word = Word::map(memory).map_err(fail)?;
    let number = wire::receive(socket).map_err(fail)?.filter(|m| m.tag == Tag::Request).ok_or_else(broken)?;
    let number = i32::from_le_bytes(number.body.as_slice().try_into().map_err(|_| broken())?);
    let end = Instant::now() + LIMIT;
    while word.get().load(Ordering::Acquire) != LOADED {
        // If it cannot load the filter, it says why and ends.
        if sys::has_ended(process) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(fail(io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        }
        std::thread::yield_now();
    }
    let sent = copy_fd(process, number).and_then(|listener| agent.send(&listener));
    word.get().store(if sent.is_ok() { TAKEN } else { FAILED }, Ordering::Release);
    sent.map_err(fail)
}

/// `pidfd_getfd(2)`
fn copy_fd(process: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whoever gets the listener, and what is said along.
pub struct Agent<'a> {
    /// The connection, made where paths were still those of the host.
    pub socket: &'a UnixStream,
    /// What the profile says.
    pub listener: &'a Listener,
    /// The process with the filter.
    pub pid: i32,
    /// The container's state.
    pub state: Value,
}

impl<'a> Agent<'a> {
    /// For the first process of a container.
    pub fn new(socket: &'a UnixStream, listener: &'a Listener, record: &Record, status: &str) -> Self {
        let bundle = record.bundle.as_deref().unwrap_or(Path::new(""));
        let state = hooks::state_json(&record.id, status, Some(record.init.pid), bundle, &record.annotations);
        Self { socket, listener, pid: record.init.pid, state }
    }

    fn send(&self, listener: &OwnedFd) -> io::Result<()> {
        let text = json!({
            "ociVersion": crate::spec::SPEC_VERSION,
            "fds": ["seccompFd"],
            "pid": self.pid,
            "metadata": self.listener.metadata.as_deref().unwrap_or_default(),
            "state": self.state,
        })
        .to_string();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(self.socket, &[io::IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        io::Write::write_all(&mut { self.socket }, &text.as_bytes()[sent..])
    }
}

/// Waits until the first process of a container has executed its program; the socket closes by itself then. On the way
/// its listener, if there is one, goes where the profile says.
pub fn wait_for_program(socket: &UnixStream, run_dir: &Path, request: &Request) -> Result<()> {
    let fail = |e: io::Error| Error::system("start", format!("container `{}`", request.id), e);
    while let Some(message) = wire::receive(socket).map_err(fail)? {
        let (Tag::Request, Some(listener)) = (message.tag, &request.listener) else {
            return Err(wire::decode_error(&request.id, &message.body));
        };
        let record = record::need_record(run_dir)?;
        let gone = || fail(io::Error::from_raw_os_error(libc::ESRCH));
        let process = record.init.open().ok_or_else(gone)?;
        let handed = listener.connect().and_then(|connected| {
            hand_over(&message, socket, process.as_fd(), &Agent::new(&connected, listener, &record, "created"))
        });
        // It would wait for somebody to answer its system calls.
        handed.inspect_err(|_| drop(sys::pidfd_signal(process.as_fd(), libc::SIGKILL)))?;
    }
    Ok(())
}
