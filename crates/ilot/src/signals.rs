//! Ctrl-C and its kin.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupted(_signal: libc::c_int) {
    const TEXT: &[u8] = b"\nfinishing what has begun; once more to stop at once\n";
    INTERRUPTED.store(true, Ordering::Relaxed);
    // SAFETY: write(2) is async-signal-safe and the text is static; a lost message is no matter.
    let _ = unsafe { libc::write(2, TEXT.as_ptr().cast(), TEXT.len()) };
}

/// From now on the first Ctrl-C or SIGTERM only raises the returned flag; the second one ends the program.
pub(crate) fn raise_flag_on_interrupt() -> &'static AtomicBool {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler does nothing but an atomic store and a write(2); the structure is zero but for what is set.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = interrupted as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    &INTERRUPTED
}

/// Whether Ctrl-C was pressed since [`raise_flag_on_interrupt`].
pub(crate) fn was_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Signals that are handed on to a container instead of ending this program.
pub(crate) struct Forwarded {
    fd: OwnedFd,
}

impl Forwarded {
    /// Catches the signals for this thread and those that it starts.
    ///
    /// # Errors
    /// When the kernel gives no signalfd.
    pub fn catch() -> io::Result<Self> {
        const SIGNALS: [i32; 6] =
            [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
        // SAFETY: the set is filled in by sigemptyset before it is read; the descriptor is new and owned by nobody else.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in SIGNALS {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd == -1 { Err(io::Error::last_os_error()) } else { Ok(Self { fd: OwnedFd::from_raw_fd(fd) }) }
        }
    }

    /// Hands every signal to `sink` until `end` is readable or closed.
    pub fn forward(&self, end: impl AsFd, sink: impl Fn(i32)) {
        loop {
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(&end, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            }
            let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
            if rustix::io::read(&self.fd, &mut info).is_ok_and(|read| read == info.len()) {
                // The signal's number is the first field, of 32 bits (signalfd(2)).
                sink(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
            }
        }
    }
}
