//! The built-in process 1: reaps what is orphaned, hands signals on to its one child, ends with
//! that child's status. Without a child it waits until it is told to end.

use crate::sys;

/// What systemd takes as "halt": images' stop signals are sent to this init too.
const HALT: i32 = 3;
/// Seconds that everything has to end after the word to stop.
const GRACE: i64 = 10;

/// Runs init; `child` is the process number of the child, `0` for none.
pub fn main(child: Option<&str>) -> i32 {
    sys::set_name(c"ilot-init");
    let child: i32 = child.and_then(|c| c.parse().ok()).unwrap_or(0);
    let all = all_signals();
    let mut stopping = false;
    loop {
        if let Some(code) = reap(child, stopping) {
            return code;
        }
        let Some(signal) = next_signal(&all, stopping) else {
            return 0;
        };
        let halt = signal == libc::SIGPWR || signal == libc::SIGRTMIN() + HALT;
        match signal {
            libc::SIGCHLD => {}
            // Meant for ourselves by the terminal or a debugger; a child gets its own.
            libc::SIGTTIN | libc::SIGTTOU | libc::SIGTSTP | libc::SIGCONT if child == 0 => {}
            _ if child > 0 => kill(child, if halt { libc::SIGTERM } else { signal }),
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT if !stopping => {
                stopping = true;
                kill(-1, libc::SIGTERM);
            }
            _ if halt && !stopping => {
                stopping = true;
                kill(-1, libc::SIGTERM);
            }
            _ => {}
        }
    }
}

fn all_signals() -> libc::sigset_t {
    // SAFETY: filled before use; blocked so that `sigtimedwait` alone takes them.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        all
    }
}

/// Collects all that has ended; the exit status if it is time to end.
fn reap(child: i32, stopping: bool) -> Option<i32> {
    loop {
        match sys::waitpid(-1, libc::WNOHANG) {
            Ok(Some((pid, status))) if pid == child => return Some(sys::decode_status(status).0),
            Ok(Some(_)) => {}
            Ok(None) => return None,
            // No child at all: with a child of ours this cannot be.
            Err(_) if child > 0 => return Some(1),
            Err(_) => return stopping.then_some(0),
        }
    }
}

/// The next signal; `None` once the grace time has passed.
fn next_signal(all: &libc::sigset_t, stopping: bool) -> Option<i32> {
    let limit = libc::timespec { tv_sec: GRACE, tv_nsec: 0 };
    let limit = if stopping { &raw const limit } else { std::ptr::null() };
    loop {
        // SAFETY: a valid set, no wish for details, a valid or no time.
        let signal = unsafe { libc::sigtimedwait(all, std::ptr::null_mut(), limit) };
        if signal > 0 {
            return Some(signal);
        }
        let error = std::io::Error::last_os_error().raw_os_error();
        if error == Some(libc::EAGAIN) {
            return None;
        }
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: numbers only. A child that has just ended is reaped at the next turn.
    unsafe { libc::kill(pid, signal) };
}
