//! The program `ilot-keeper`: parent of one container.
//!
//! One binary with a few small jobs, so that none of them needs the weight of the `ilot` program:
//! `create` builds a container and then becomes `watch`; `exec` puts a command into a running
//! one; `mount` makes the mount of a stopped one's tree; `init` is process 1 inside.
//! Started with standard streams on 0 to 2 and its socket on 3.

mod create;
pub(crate) mod log;
mod mount;
mod watch;

pub(crate) use create::{Answer, CLAIM};
pub(crate) use mount::MountRequest;

use crate::{Error, Result, wire};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Asks a job to go on from behind a read-only mount: its container has no user namespace, whose walls would keep
/// the program safe at no cost.
const PROTECTED: &str = "protected";

/// The arguments of a job.
pub(crate) fn arguments(job: &'static str, protected: bool) -> Vec<&'static str> {
    let mut list = vec![job, wire::VERSION];
    list.extend(protected.then_some(PROTECTED));
    list
}

/// The descriptor on which every job finds its socket.
const SOCKET: i32 = 3;

/// Entry point of the program; the result is its exit status.
pub fn main() -> i32 {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_default();
    if name == "ilot-init" {
        return crate::init::main(args.next().as_deref());
    }
    let job = args.next();
    if job.as_deref() == Some("watch") {
        return watch::main(args);
    }
    if let (Some("create" | "exec" | "mount"), Err(error)) = (job.as_deref(), prepare(args)) {
        wire::send_error(&take_socket(), &error);
        return 1;
    }
    match job.as_deref() {
        Some("create") => create::main(&take_socket()),
        Some("exec") => crate::exec::helper(&take_socket()),
        Some("mount") => mount::main(&take_socket()),
        _ => {
            eprintln!("ilot-keeper: started by `ilot`, not by hand");
            2
        }
    }
}

/// Whoever starts us must speak as we do, and may want that nothing inside can write to this program.
fn prepare(mut args: std::env::Args) -> Result<()> {
    let theirs = args.next();
    if theirs.as_deref() != Some(wire::VERSION) {
        return Err(Error::Unsupported {
            what: format!("`ilot-keeper` of version {}", wire::VERSION),
            why: format!("it was started by an ilot of version {}", theirs.as_deref().unwrap_or("unknown")),
            cure: "install ilot and its helper programs from one build (`cargo xtask install`)",
        });
    }
    match args.next().as_deref() {
        Some(PROTECTED) => crate::spawn::protect_program(),
        _ => Ok(()),
    }
}

/// The socket; everything above it that leaked in from whoever started us is closed.
fn take_socket() -> UnixStream {
    crate::sys::set_undumpable();
    let _ = crate::sys::close_from(SOCKET + 1, false);
    // SAFETY: whoever starts these jobs puts the socket there; nothing else of ours has it.
    let socket = unsafe { OwnedFd::from_raw_fd(SOCKET) };
    let _ = rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC);
    UnixStream::from(socket)
}
