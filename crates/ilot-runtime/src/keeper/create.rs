//! `ilot-keeper create`: builds the container, waits for the start, then only watches.

use super::watch;
use crate::container::{self, Built, Plan};
use crate::record::{self, ProcessRef, Request};
use crate::wire::{self, Tag};
use crate::{Error, Init, Result, Stdio, seccomp, sys};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;

/// What `create` tells its caller.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// Process 1.
    pub pid: i32,
    /// This keeper.
    pub keeper_pid: i32,
}

/// How long the keeper of a dead creator may take to remove what it made.
pub const CLAIM: std::time::Duration = std::time::Duration::from_secs(15);

/// Runs the job.
pub fn main(socket: &UnixStream) -> i32 {
    let _ = rustix::process::setsid();
    match receive_request(socket).and_then(|(request, text, filter)| run(socket, &request, &text, filter)) {
        Ok(()) => 0,
        Err(error) => {
            wire::send_error(socket, &error);
            1
        }
    }
}

/// The request, its text, and the compiled filter if there is to be one.
fn receive_request(socket: &UnixStream) -> Result<(Request, Vec<u8>, Option<seccomp::Program>)> {
    let ended = "the creator ended";
    let text = wire::expect(socket, Tag::Request, "create", ended)?.body;
    let request: Request = serde_json::from_slice(&text).map_err(|e| Error::invalid("request", e.to_string()))?;
    if !request.filtered {
        return Ok((request, text, None));
    }
    let bytes = wire::expect(socket, Tag::Request, "create", ended)?.body;
    let filter = seccomp::Program::from_bytes(&bytes)
        .ok_or_else(|| Error::invalid("linux.seccomp", "what came is no filter"))?;
    Ok((request, text, Some(filter)))
}

/// The keeper's own ends of the container's streams.
#[derive(Default)]
struct Ends {
    first: Option<OwnedFd>,
    second: Option<OwnedFd>,
}

fn run(socket: &UnixStream, request: &Request, text: &[u8], filter: Option<seccomp::Program>) -> Result<()> {
    // Held until the container runs (closed by the next exec) or everything of it is removed.
    let _claim = claim(&request.run_dir, socket)?;
    let (stdio, mut ends) = streams(&request.stdio)?;
    let plan = Plan { filter, stdio, init_program: init_program(request.init)?, ..Plan::new(request) };
    let built = container::build(&plan, &|| record::write_config(request, text, plan.filter.as_ref()))?;
    let cleanup = |built: &Built| {
        let _ = sys::pidfd_signal(built.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::waitpid(built.pid, 0);
        if let Some(cgroup) = &built.cgroup {
            let _ = cgroup.kill_all();
            let _ = cgroup.delete();
        }
        let _ = record::remove_files(&request.run_dir);
    };
    let hold = || -> Result<Option<OwnedFd>> {
        let keeper = ProcessRef::of(std::process::id() as i32)?;
        record::write_state(request, built.pid, &built.groups(), Some(keeper), None)?;
        let output = announce(socket, &built)?;
        wait_for_start(socket, request, &built)?;
        Ok(output)
    };
    let output = match hold() {
        Ok(output) => output,
        Err(error) => {
            cleanup(&built);
            return Err(error);
        }
    };
    drop(plan);
    let Built { pid, terminal, .. } = built;
    if let Some(master) = terminal {
        ends = Ends { first: Some(master), second: output };
    }
    let error = become_watcher(request, pid, &ends);
    // Not possible to shrink: watch from here, with more memory than needed.
    eprintln!("ilot-keeper: {error}");
    Err(error)
}

/// Makes the run directory and takes it for this keeper alone.
///
/// The keeper of a creator that was killed may still be removing what it made, under the same names: it holds this lock
/// until it is done. A directory that was removed meanwhile is another one than that of the same name now.
fn claim(run_dir: &std::path::Path, socket: &UnixStream) -> Result<OwnedFd> {
    let fail = |what: &'static str| move |e: rustix::io::Errno| Error::path(what, run_dir, e);
    let end = std::time::Instant::now() + CLAIM;
    loop {
        std::fs::create_dir_all(run_dir).map_err(|e| Error::path("make", run_dir, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(run_dir, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => continue,
            other => other.map_err(fail("open"))?,
        };
        let locked = match rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => false,
            Err(e) => return Err(fail("lock")(e)),
        };
        if creator_ended(socket, if locked { 0 } else { 2 }) {
            return Err(Error::invalid("create", "the creator ended"));
        }
        if locked {
            let held = rustix::fs::fstat(&dir).map_err(fail("look at"))?;
            if rustix::fs::stat(run_dir).is_ok_and(|now| (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)) {
                return Ok(dir);
            }
        } else if std::time::Instant::now() >= end {
            return Err(Error::invalid("create", "another keeper is still busy with this container; try again"));
        }
    }
}

/// Whether the creator's end of the socket is closed, looked at for so many milliseconds.
fn creator_ended(socket: &UnixStream, wait: i32) -> bool {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut entry, 1, wait) > 0 && entry.revents & (libc::POLLHUP | libc::POLLRDHUP) != 0 }
}

/// Makes the container's standard streams.
fn streams(stdio: &Stdio) -> Result<(Option<[OwnedFd; 3]>, Ends)> {
    let fail = |e: rustix::io::Errno| Error::system("make", "standard streams", e);
    match stdio {
        Stdio::Terminal { .. } => Ok((None, Ends::default())),
        Stdio::Inherit => {
            // SAFETY: standard streams are open for as long as the keeper uses them here.
            let own = |n: i32| unsafe { BorrowedFd::borrow_raw(n) };
            let copy = |n: i32| rustix::io::fcntl_dupfd_cloexec(own(n), 3).map_err(fail);
            Ok((Some([copy(0)?, copy(1)?, copy(2)?]), Ends::default()))
        }
        Stdio::Log { .. } => {
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
            let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
            let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC).map_err(fail)?;
            let ends = Ends { first: Some(out_read), second: Some(err_read) };
            Ok((Some([null, out_write, err_write]), ends))
        }
    }
}

/// Our own program behind a read-only mount: inside, `/proc/1/exe` leads to it (CVE-2019-5736).
fn init_program(init: Init) -> Result<Option<OwnedFd>> {
    if init != Init::Builtin {
        return Ok(None);
    }
    let path = std::path::Path::new("/proc/self/exe");
    let program = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::path("open", path, e))?;
    // Behind such a mount already: `spawn::protect_program`.
    let flags = rustix::fs::fstatvfs(&program).map_err(|e| Error::path("look at", path, e))?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(Some(program));
    }
    let clone = crate::mounts::clone_fd(program.as_fd(), false).map_err(|e| Error::path("bind", path, e))?;
    crate::mounts::rootfs::set_readonly(clone.as_fd())?;
    Ok(Some(clone))
}

/// Tells the caller that the container stands; gives back our end of the output, if there is one.
fn announce(socket: &UnixStream, built: &Built) -> Result<Option<OwnedFd>> {
    let answer = Answer { pid: built.pid, keeper_pid: std::process::id() as i32 };
    let body = serde_json::to_vec(&answer).map_err(|e| Error::invalid("answer", e.to_string()))?;
    let gone = |e: std::io::Error| Error::system("talk to", "the creator", e);
    let Some(master) = &built.terminal else {
        wire::send(socket, Tag::Done, &body, &[]).map_err(gone)?;
        return Ok(None);
    };
    let (ours, theirs) = UnixStream::pair().map_err(gone)?;
    wire::send(socket, Tag::Done, &body, &[master.as_fd(), theirs.as_fd()]).map_err(gone)?;
    Ok(Some(ours.into()))
}

/// Waits until the creator says "start", and lets the container go. The creator's end, or the
/// container's, is an error.
fn wait_for_start(socket: &UnixStream, request: &Request, built: &Built) -> Result<()> {
    let lost = |why: &str| Error::Container { id: request.id.clone(), message: why.to_owned(), errno: 0 };
    loop {
        let mut entries = [
            libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: built.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: two valid entries.
        if unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) } < 0 {
            continue;
        }
        if entries[0].revents != 0 {
            match wire::receive(socket) {
                Ok(Some(message)) if message.tag == Tag::Go => break,
                Ok(Some(message)) => {
                    return Err(lost(&format!("its creator sent {:?} instead of the word to start", message.tag)));
                }
                _ => return Err(lost("its creator ended before the start")),
            }
        }
        if entries[1].revents != 0 {
            return Err(lost("it ended before the start"));
        }
    }
    wire::send(&built.socket, Tag::Go, &[], &[]).map_err(|e| Error::system("start", "the first process", e))?;
    crate::notify::wait_for_program(&built.socket, &request.run_dir, request)?;
    record::write_file(&request.run_dir.join(record::STARTED), &[])?;
    let _ = wire::send(socket, Tag::Done, &[], &[]);
    Ok(())
}

/// Executes this program anew as the watcher: all memory of the building is gone.
fn become_watcher(request: &Request, pid: i32, ends: &Ends) -> Error {
    let (mode, log, max) = match &request.stdio {
        Stdio::Log { path, max_bytes } => ("pipe", Some(path), *max_bytes),
        Stdio::Terminal { log } => ("tty", log.as_ref(), 10 << 20),
        Stdio::Inherit => ("none", None, 0),
    };
    let null = match rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(null) => null,
        Err(e) => return Error::system("open", "`/dev/null`", e),
    };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
    let _ = rustix::process::chdir("/");
    if let Err(error) = place(ends) {
        return error;
    }
    let text = |s: &[u8]| CString::new(s).unwrap_or_default();
    let args = [
        text(b"ilot-keeper"),
        text(b"watch"),
        text(request.run_dir.as_os_str().as_bytes()),
        text(pid.to_string().as_bytes()),
        text(mode.as_bytes()),
        text(max.to_string().as_bytes()),
        text(log.map_or(&[][..], |p| p.as_os_str().as_bytes())),
        text(request.creator.map_or_else(String::new, |creator| creator.to_string()).as_bytes()),
    ];
    let env: Vec<CString> = std::env::vars_os()
        .map(|(k, v)| {
            let mut line = k.as_bytes().to_vec();
            line.push(b'=');
            line.extend_from_slice(v.as_bytes());
            text(&line)
        })
        .collect();
    let error = sys::execve(c"/proc/self/exe", &sys::pointers(&args), &sys::pointers(&env));
    Error::system("execute", "the watcher", error)
}

/// Puts the ends of the streams where the watcher looks for them; all else ends at `execve`.
fn place(ends: &Ends) -> Result<()> {
    let fail = |e: std::io::Error| Error::system("place", "streams", e);
    // Out of the way of the two numbers first.
    let lift = |fd: &Option<OwnedFd>| -> std::io::Result<Option<OwnedFd>> {
        fd.as_ref().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 16).map_err(std::io::Error::from)).transpose()
    };
    let (first, second) = (lift(&ends.first).map_err(fail)?, lift(&ends.second).map_err(fail)?);
    sys::close_from(3, true).map_err(fail)?;
    for (fd, number) in [(first, watch::FIRST), (second, watch::SECOND)] {
        let Some(fd) = fd else { continue };
        // SAFETY: whatever had these numbers is of no use any more: `execve` is next.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return Err(fail(std::io::Error::last_os_error()));
        }
    }
    Ok(())
}
