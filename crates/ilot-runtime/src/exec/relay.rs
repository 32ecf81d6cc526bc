//! Between the caller's terminal and the command's, until the command ends.

use super::signals::Forwarded;
use crate::sys;
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// What is joined.
pub struct Ends<'a> {
    /// The command (or the container's process 1).
    pub process: BorrowedFd<'a>,
    /// Master of its terminal, for input and size; `None` if it has ours.
    pub input: Option<BorrowedFd<'a>>,
    /// Where its output comes from.
    pub output: Option<BorrowedFd<'a>>,
    /// Whether our standard input is handed on.
    pub stdin: bool,
}

/// Our terminal without any processing of its own; as before once dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        // Only what leaves the container is shown; what it prints passes as it is.
        match tcsetattr(stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, before);
        }
    }
}

fn window() -> Option<Winsize> {
    tcgetwinsize(rustix::stdio::stdin()).or_else(|_| tcgetwinsize(rustix::stdio::stdout())).ok()
}

/// Rows and columns of our own terminal, 0 without one.
pub fn own_size() -> (u16, u16) {
    window().map_or((0, 0), |w| (w.ws_row, w.ws_col))
}

/// Gives a terminal the size of ours.
pub fn copy_size(master: BorrowedFd<'_>) {
    if let Some(size) = window() {
        let _ = tcsetwinsize(master, size);
    }
}

fn entry(fd: Option<i32>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.unwrap_or(-1), events, revents: 0 }
}

/// One relay at work.
struct Relay<'a> {
    ends: &'a Ends<'a>,
    /// Input read from us and not yet taken by the command.
    pending: Vec<u8>,
    stdin_open: bool,
    output_open: bool,
}

/// Relays until the command has ended and its output is empty.
pub fn run(ends: &Ends<'_>, forwarded: Option<&Forwarded>) {
    let raw = (ends.input.is_some() && ends.stdin).then(Raw::enter);
    for fd in [ends.input, ends.output].into_iter().flatten() {
        let _ = rustix::fs::fcntl_getfl(fd).and_then(|f| rustix::fs::fcntl_setfl(fd, f | rustix::fs::OFlags::NONBLOCK));
    }
    let mut relay = Relay {
        ends,
        pending: Vec::new(),
        stdin_open: ends.stdin && ends.input.is_some(),
        output_open: ends.output.is_some(),
    };
    while relay.turn(forwarded) {}
    if relay.output_open {
        relay.drain();
    }
    drop(raw);
}

impl Relay<'_> {
    /// One round; `false` once the command has ended.
    fn turn(&mut self, forwarded: Option<&Forwarded>) -> bool {
        let ends = self.ends;
        let reads = self.stdin_open && self.pending.is_empty();
        let mut list = [
            entry(Some(ends.process.as_raw_fd()), libc::POLLIN),
            entry(forwarded.map(|f| f.fd().as_raw_fd()), libc::POLLIN),
            entry(reads.then_some(0), libc::POLLIN),
            entry(ends.output.filter(|_| self.output_open).map(|f| f.as_raw_fd()), libc::POLLIN),
            entry(ends.input.filter(|_| !self.pending.is_empty()).map(|f| f.as_raw_fd()), libc::POLLOUT),
        ];
        // SAFETY: a valid list with its length.
        if unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, -1) } < 0 {
            return true;
        }
        if list[1].revents != 0 {
            self.forward(forwarded);
        }
        if list[2].revents != 0 {
            self.read_stdin();
        }
        if list[4].revents != 0 {
            self.write_input();
        }
        if list[3].revents != 0 && !self.copy_output() {
            self.output_open = false;
        }
        list[0].revents == 0
    }

    fn forward(&self, forwarded: Option<&Forwarded>) {
        for signal in forwarded.map(Forwarded::take).unwrap_or_default() {
            match (signal, self.ends.input) {
                (libc::SIGWINCH, Some(master)) => copy_size(master),
                _ => {
                    let _ = sys::pidfd_signal(self.ends.process, signal);
                }
            }
        }
    }

    fn read_stdin(&mut self) {
        let mut buffer = [0u8; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => {
                self.stdin_open = false;
                // A terminal has no end of file; this is how one is typed.
                self.pending.push(4);
                self.write_input();
            }
            Ok(n) => {
                self.pending.extend_from_slice(&buffer[..n]);
                self.write_input();
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(_) => self.stdin_open = false,
        }
    }

    fn write_input(&mut self) {
        let Some(master) = self.ends.input else { return };
        while !self.pending.is_empty() {
            match rustix::io::write(master, &self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.pending.clear();
                    self.stdin_open = false;
                }
            }
        }
    }

    /// Copies one piece of output; `false` at its end.
    fn copy_output(&self) -> bool {
        let Some(output) = self.ends.output else { return false };
        let mut buffer = [0u8; 8192];
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => false,
            Ok(n) => write_all(&buffer[..n]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// Takes what is left after the end: from a terminal until it is empty, from the keeper
    /// until it closes (it does so when it has handed on everything).
    fn drain(&self) {
        let Some(output) = self.ends.output else { return };
        let from_keeper = self.ends.input.is_none_or(|i| i.as_raw_fd() != output.as_raw_fd());
        let wait = if from_keeper { 2000 } else { 0 };
        while sys::poll_readable(output.as_fd(), wait).unwrap_or(false) && self.copy_output() {}
    }
}

fn write_all(mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                // Our own output may share a terminal that somebody made non-blocking.
                let mut list = [entry(Some(1), libc::POLLOUT)];
                // SAFETY: one valid entry.
                unsafe { libc::poll(list.as_mut_ptr(), 1, -1) };
            }
            Err(_) => return false,
        }
    }
    true
}
