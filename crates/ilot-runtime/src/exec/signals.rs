//! Signals that come to us while a command runs in the foreground, as bytes of a pipe.

use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Signals that are handed on. Terminal signals (Ctrl-C) come this way too: the command is in a
/// session of its own and does not get them from our terminal.
const LIST: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// Where the handler writes; -1 while nothing is forwarded.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Signals are forwarded for as long as this lives.
pub struct Forwarded {
    read: OwnedFd,
    old: Vec<(i32, libc::sigaction)>,
}

extern "C" fn handler(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: `write` is async-signal-safe; the pipe does not block. errno is put back.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

impl Forwarded {
    /// Begins; `None` if another command of this process has the foreground already.
    pub fn begin() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let number = write.into_raw_fd();
        if PIPE.compare_exchange(-1, number, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            // SAFETY: ours, and nobody else has seen it.
            unsafe { libc::close(number) };
            return None;
        }
        let mut old = Vec::new();
        for signal in LIST {
            // SAFETY: structures are initialised; the handler only does what a handler may.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
                action.sa_flags = libc::SA_RESTART;
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(signal, std::ptr::null(), &raw mut before) != 0 {
                    continue;
                }
                // What our caller made us ignore (`nohup`) stays ignored.
                if before.sa_sigaction == libc::SIG_IGN {
                    continue;
                }
                if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) == 0 {
                    old.push((signal, before));
                }
            }
        }
        Some(Self { read, old })
    }

    /// Readable when signals are there.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The signals that came since the last call.
    pub fn take(&self) -> Vec<i32> {
        let mut bytes = [0u8; 64];
        let n = rustix::io::read(&self.read, &mut bytes).unwrap_or(0);
        bytes[..n].iter().map(|b| i32::from(*b)).collect()
    }
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        for (signal, before) in &self.old {
            // SAFETY: what the kernel gave us before.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
        let number = PIPE.swap(-1, Ordering::SeqCst);
        // SAFETY: made by `begin`, closed once.
        unsafe { libc::close(number) };
    }
}
