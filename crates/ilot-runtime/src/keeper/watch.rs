//! `ilot-keeper watch`: holds the output, waits for the end, cleans up. Lives as long as the
//! container, so every page that it touches counts.

use super::log::Log;
use crate::cgroup::Cgroup;
use crate::container::cgroup_error;
use crate::record::{self, ProcessRef, Request};
use crate::{Exit, Result, sys};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Standard output of the container, or the master of its terminal.
pub const FIRST: i32 = 3;
/// Standard error of the container, or the way to whoever is attached to its terminal.
pub const SECOND: i32 = 4;

/// Milliseconds that an attached reader has at the end to take what is left.
const LAST_OUTPUT: i32 = 2000;

/// Runs the job: `watch RUN_DIR PID pipe|tty|none MAX_BYTES LOG CREATOR`.
pub fn main(mut args: std::env::Args) -> i32 {
    sys::set_name(c"ilot-keeper");
    let mut next = || args.next().unwrap_or_default();
    let run_dir = PathBuf::from(next());
    let Ok(pid) = next().parse::<i32>() else { return 2 };
    let mode = next();
    let max = next().parse().unwrap_or(0);
    let path = next();
    let creator = ProcessRef::parse(&next());
    let mut log = (!path.is_empty()).then(|| Log::open(PathBuf::from(path), max));
    let Some(pidfd) = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok()) else {
        return finish(&run_dir, pid, creator);
    };
    match mode.as_str() {
        "pipe" => pipes(&pidfd, log.as_mut()),
        "tty" => terminal(&pidfd, log.as_mut()),
        _ => {
            let _ = sys::poll_readable(pidfd.as_fd(), -1);
        }
    }
    drop(log);
    finish(&run_dir, pid, creator)
}

fn own(number: i32) -> std::fs::File {
    // SAFETY: `create` has put the descriptor there for us; each is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
    let _ = rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::NONBLOCK);
    std::fs::File::from(fd)
}

fn entry(fd: i32, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Waits for any of the entries; negative descriptors are skipped.
fn poll(entries: &mut [libc::pollfd], milliseconds: i32) -> bool {
    // SAFETY: a valid list with its length.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds) > 0 }
}

/// Writes both pipes to the log until the container ends and they are empty.
fn pipes(pidfd: &OwnedFd, mut log: Option<&mut Log>) {
    let mut streams = [(own(FIRST), "stdout", true), (own(SECOND), "stderr", true)];
    let mut ended = false;
    while !ended {
        let watched = |s: &(std::fs::File, &str, bool)| if s.2 { s.0.as_raw_fd() } else { -1 };
        let mut entries = [
            entry(pidfd.as_raw_fd(), libc::POLLIN),
            entry(watched(&streams[0]), libc::POLLIN),
            entry(watched(&streams[1]), libc::POLLIN),
        ];
        if !poll(&mut entries, -1) {
            continue;
        }
        ended = entries[0].revents != 0;
        for (stream, entry) in streams.iter_mut().zip(&entries[1..]) {
            if stream.2 && (ended || entry.revents != 0) {
                stream.2 = copy_to_log(&mut stream.0, stream.1, log.as_deref_mut(), ended);
            }
        }
    }
}

/// One read, or with `all` everything that is there; `false` at the end of the stream.
fn copy_to_log(file: &mut std::fs::File, name: &str, mut log: Option<&mut Log>, all: bool) -> bool {
    let mut buffer = [0u8; 4096];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return false,
            Ok(n) => {
                if let Some(log) = log.as_deref_mut() {
                    log.write(name, &buffer[..n], sys::now());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
        }
        if !all {
            return true;
        }
    }
}

/// Output of a terminal on its way to an attached reader.
struct Relay {
    master: std::fs::File,
    reader: Option<std::fs::File>,
    buffer: [u8; 4096],
    /// What of the buffer is still to be sent.
    pending: std::ops::Range<usize>,
}

/// Hands the terminal's output to the log and to whoever is attached, until the container ends.
fn terminal(pidfd: &OwnedFd, mut log: Option<&mut Log>) {
    let mut relay = Relay { master: own(FIRST), reader: Some(own(SECOND)), buffer: [0; 4096], pending: 0..0 };
    // While we hold the other side, the master never reports "nobody there" in a busy loop.
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC;
    let _slave = rustix::pty::ioctl_tiocgptpeer(&relay.master, flags);
    let mut ended = false;
    while !ended {
        let reader = relay.reader.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let waiting = !relay.pending.is_empty();
        let mut entries = [
            entry(pidfd.as_raw_fd(), libc::POLLIN),
            entry(if waiting { -1 } else { relay.master.as_raw_fd() }, libc::POLLIN),
            // Without anything to send, only its end is of interest.
            entry(reader, if waiting { libc::POLLOUT } else { 0 }),
        ];
        if !poll(&mut entries, -1) {
            continue;
        }
        ended = entries[0].revents != 0;
        if entries[2].revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            relay.forget_reader();
        }
        relay.send();
        relay.receive(log.as_deref_mut());
    }
    // What was printed last must not be lost, as long as somebody takes it.
    while relay.flush() && relay.receive(log.as_deref_mut()) {}
    relay.flush();
}

impl Relay {
    fn forget_reader(&mut self) {
        self.reader = None;
        self.pending = 0..0;
    }

    /// Sends what is pending, as far as it goes.
    fn send(&mut self) {
        let Some(reader) = &mut self.reader else {
            self.pending = 0..0;
            return;
        };
        while !self.pending.is_empty() {
            match reader.write(&self.buffer[self.pending.clone()]) {
                Ok(n) => self.pending.start += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => return self.forget_reader(),
            }
        }
    }

    /// Takes one piece of output if there is room for it; `false` if there was none.
    fn receive(&mut self, log: Option<&mut Log>) -> bool {
        if !self.pending.is_empty() {
            return false;
        }
        match self.master.read(&mut self.buffer) {
            Ok(n) if n > 0 => {
                if let Some(log) = log {
                    log.write("stdout", &self.buffer[..n], sys::now());
                }
                self.pending = 0..n;
                self.send();
                true
            }
            _ => false,
        }
    }

    /// Sends all that is pending, waiting for the reader within a bound; `false` if it did not.
    fn flush(&mut self) -> bool {
        self.send();
        while let (Some(reader), false) = (&self.reader, self.pending.is_empty()) {
            let mut entries = [entry(reader.as_raw_fd(), libc::POLLOUT)];
            if !poll(&mut entries, LAST_OUTPUT) {
                return false;
            }
            self.send();
        }
        true
    }
}

/// Collects the container, removes its cgroups, records its end, runs the last command.
fn finish(run_dir: &Path, pid: i32, creator: Option<ProcessRef>) -> i32 {
    let status = sys::waitpid(pid, 0).ok().flatten().map_or(0, |(_, status)| status);
    let at = sys::now();
    let (code, signal) = sys::decode_status(status);
    let oom_killed = remove_cgroup(run_dir).unwrap_or(false);
    let exit = Exit { code, signal, oom_killed, at };
    // Asked before the end is told: whoever is told may clean up and go before we look.
    let attended = creator.is_some_and(|creator| creator.open().is_some());
    let written = record::write_json(&run_dir.join(record::EXIT), &exit);
    let request: Option<Request> = record::read_json(&run_dir.join(record::CONFIG)).ok().flatten();
    if let Some(command) = request.and_then(|r| r.exit_command).filter(|_| !attended)
        && let Some((program, args)) = command.args.split_first()
    {
        use std::os::unix::process::CommandExt;
        let error = std::process::Command::new(program).args(args).exec();
        eprintln!("ilot-keeper: exit command: {error}");
        return 1;
    }
    i32::from(written.is_err())
}

/// Removes the cgroups; tells whether the kernel killed for want of memory.
fn remove_cgroup(run_dir: &Path) -> Result<bool> {
    let Some(record) = record::read_record(run_dir)? else {
        return Ok(false);
    };
    if let Some(placed) = &record.rdt {
        crate::rdt::release(placed);
    }
    if record.cgroup.is_empty() {
        return Ok(false);
    }
    let cgroup = Cgroup::open(&record.cgroup).map_err(cgroup_error)?;
    let oom = cgroup.oom_killed().unwrap_or(false);
    let _ = cgroup.kill_all();
    cgroup.delete().map_err(cgroup_error)?;
    Ok(oom)
}
