//! Trying something in a process of its own, within a bound.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

/// Longer than any probe takes on a host under load.
const BOUND: Duration = Duration::from_secs(10);

/// Runs `probe` in a forked child and says how it went.
///
/// The child may change its namespaces, mounts and identity as it likes: they end with it.
pub(super) fn in_child(probe: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: `ilot doctor` has one thread, so the child is as usable as the parent; it leaves through `_exit`, which
    // runs no handlers of the parent's.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = match probe() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().filter(|code| (1..255).contains(code)).unwrap_or(255),
            };
            // SAFETY: ends the child and nothing else.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork returned no process"))?;
            match wait(pid)? {
                0 => Ok(()),
                255 => Err(io::Error::other("the probe was cut short")),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Waits for a child within the bound; its exit code.
fn wait(pid: Pid) -> io::Result<i32> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    if !ends_within(pidfd.as_fd(), BOUND)? {
        pidfd_send_signal(&pidfd, Signal::KILL)?;
    }
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
    Ok(status.and_then(|status| status.exit_status()).unwrap_or(255))
}

fn ends_within(pidfd: std::os::fd::BorrowedFd<'_>, bound: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + bound;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs a program with some input and gives it up when it takes longer than `bound`.
pub(super) fn run(command: &mut Command, input: &[u8], bound: Duration) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says so itself by how it ends.
        let _ = stdin.write_all(input);
    }
    let read = |mut pipe: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What could be read until it broke is enough for a message.
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = child.stdout.take().map(|pipe| read(Box::new(pipe)));
    let stderr = child.stderr.take().map(|pipe| read(Box::new(pipe)));
    let ended = ends_within(pidfd.as_fd(), bound)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let join = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (join(stdout), join(stderr));
    if ended { Ok(Output { status, stdout, stderr }) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// The first line that a failed program wrote about it.
pub(super) fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| output.status.to_string(), str::to_owned)
}
