//! Name service processes, as seen from outside.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// When a process started, in clock ticks since boot: together with its number it names one process for ever (proc(5)).
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let fields = &stat[stat.rfind(')')? + 2..];
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The living process that the file `pid` names.
pub fn alive(directory: &Path) -> Option<i32> {
    let text = fs::read_to_string(directory.join("pid")).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == start.parse::<u64>().ok()?).then_some(pid)
}

/// A handle on the living process of a directory, which no other process can come to mean.
struct Handle(rustix::fd::OwnedFd);

fn handle(directory: &Path) -> Option<Handle> {
    let pid = alive(directory)?;
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Still the same one, now that it is held.
    (alive(directory) == Some(pid)).then_some(Handle(fd))
}

/// Sends a signal. False if the process is gone.
pub fn signal(directory: &Path, signal: Signal) -> bool {
    handle(directory).is_some_and(|Handle(fd)| pidfd_send_signal(fd, signal).is_ok())
}

/// Ends the process: politely, after a second not so. False if it was gone.
pub fn end(directory: &Path) -> io::Result<bool> {
    match handle(directory) {
        Some(handle) => end_held(&handle),
        None => Ok(false),
    }
}

/// Ends services of this network namespace that were started for this directory and whose file is gone: somebody removed the
/// run directory under them. True if there were any.
pub fn end_strays(directory: &Path, program: &str) -> io::Result<bool> {
    let own = fs::read_link("/proc/thread-self/ns/net")?;
    let mut any = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let is_stray = || {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.split(|&byte| byte == 0);
            let started_as = Path::new(std::ffi::OsStr::from_bytes(words.next()?));
            let for_directory = words.next()? == directory.as_os_str().as_bytes();
            let here = fs::read_link(entry.path().join("ns/net")).ok()? == own;
            Some(started_as.file_name()? == program && for_directory && here)
        };
        if is_stray() != Some(true) {
            continue;
        }
        let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        // Still the same one, now that it is held.
        if is_stray() == Some(true) {
            any |= end_held(&Handle(fd))?;
        }
    }
    Ok(any)
}

fn end_held(Handle(fd): &Handle) -> io::Result<bool> {
    for (signal, patience) in [(Signal::TERM, 1), (Signal::KILL, 5)] {
        match pidfd_send_signal(fd, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let deadline = Instant::now() + Duration::from_secs(patience);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => break,
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "it does not die"))
}
