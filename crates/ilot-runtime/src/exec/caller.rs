//! The caller's side: spawns the helper, then stays in the foreground with the command.

use super::relay::{self, Ends};
use super::signals::Forwarded;
use super::{HelperAnswer, HelperRequest};
use crate::control::{self, running};
use crate::wire::{self, Tag};
use crate::{Created, Error, ExecRequest, Exit, Result, spawn, sys};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// See [`crate::exec()`].
pub fn exec(run_dir: &Path, request: &ExecRequest) -> Result<Exit> {
    if request.args.is_empty() {
        return Err(Error::invalid("command", "there is none to execute"));
    }
    let (record, _) = running("execute a command", run_dir)?;
    let run_dir = std::path::absolute(run_dir).map_err(|e| Error::path("find", run_dir, e))?;
    let fail = |e: std::io::Error| Error::system("start", "the helper", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system("open", "`/dev/null`", e))?;
    let own = |n: i32, used: bool| {
        if used && !request.terminal && !request.detach {
            // SAFETY: standard streams stay open while this call lasts.
            unsafe { BorrowedFd::borrow_raw(n) }
        } else {
            null.as_fd()
        }
    };
    // Asked for before the spawn: signals that come from here on are for the command.
    let forwarded = (!request.detach).then(Forwarded::begin).flatten();
    let helper = spawn::spawn(
        &spawn::find_helper("ilot-keeper")?,
        &crate::keeper::arguments("exec", record.uid_mappings.is_empty()),
        &[own(0, request.stdin), own(1, true), own(2, true), theirs.as_fd()],
    )?;
    drop(theirs);
    let size = if request.terminal { relay::own_size() } else { (0, 0) };
    let body = serde_json::to_vec(&HelperRequest::new(run_dir, request, size))
        .map_err(|e| Error::invalid("request", e.to_string()))?;
    let answer = wire::send(&ours, Tag::Request, &body, &[])
        .map_err(fail)
        .and_then(|()| wire::expect(&ours, Tag::Done, &record.id, "the helper ended early"));
    let _ = sys::waitpid(helper, 0);
    let mut message = answer?;
    if request.detach {
        return Ok(Exit::default());
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&message.body).map_err(|e| Error::invalid("answer of the helper", e.to_string()))?;
    let missing = || Error::invalid("answer of the helper", "a descriptor is missing");
    let master = if request.terminal { Some(message.fds.pop().ok_or_else(missing)?) } else { None };
    let pidfd = message.fds.pop().ok_or_else(missing)?;
    foreground(&pidfd, master.as_ref(), request.stdin, forwarded.as_ref());
    let (_, status) =
        sys::waitpid(answer.pid, 0).map_err(|e| Error::system("wait for", "the command", e))?.unwrap_or_default();
    let (code, signal) = sys::decode_status(status);
    Ok(Exit { code, signal, oom_killed: false, at: sys::now() })
}

fn foreground(pidfd: &OwnedFd, master: Option<&OwnedFd>, stdin: bool, forwarded: Option<&Forwarded>) {
    let ends = Ends { process: pidfd.as_fd(), input: master.map(AsFd::as_fd), output: master.map(AsFd::as_fd), stdin };
    relay::run(&ends, forwarded);
}

/// See [`crate::attach`].
pub fn attach(run_dir: &Path, created: &Created) -> Result<Exit> {
    let forwarded = Forwarded::begin();
    let record = crate::record::need_record(run_dir)?;
    if let Some(process) = record.init.open() {
        if let Some(master) = &created.terminal {
            relay::copy_size(master.as_fd());
        }
        let ends = Ends {
            process: process.as_fd(),
            input: created.terminal.as_ref().map(AsFd::as_fd),
            output: created.output.as_ref().map(AsFd::as_fd),
            stdin: true,
        };
        relay::run(&ends, forwarded.as_ref());
    }
    drop(forwarded);
    control::wait(run_dir, None)?.ok_or_else(|| Error::Missing(format!("`{}`", run_dir.display())))
}
