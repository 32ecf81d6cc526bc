//! `ilot-keeper exec`: joins the container and makes the command there.

use super::inside::Inside;
use super::{HelperAnswer, HelperRequest};
use crate::record::{self, Request};
use crate::spec::Process;
use crate::wire::{self, Tag};
use crate::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Runs the job.
pub fn main(socket: &UnixStream) -> i32 {
    match run(socket) {
        Ok(()) => 0,
        Err(error) => {
            wire::send_error(socket, &error);
            1
        }
    }
}

fn run(socket: &UnixStream) -> Result<()> {
    let message = wire::expect(socket, Tag::Request, "exec", "the caller ended")?;
    let request: HelperRequest =
        serde_json::from_slice(&message.body).map_err(|e| Error::invalid("request", e.to_string()))?;
    let record = record::need_record(&request.run_dir)?;
    let config: Request = record::read_json(&request.run_dir.join(record::CONFIG))?
        .ok_or_else(|| Error::Missing(format!("`{}`", request.run_dir.display())))?;
    let process = merge(config.spec.process.clone().unwrap_or_default(), &request);
    let entered = Inside {
        record: &record,
        config: &config,
        process: &process,
        terminal: request.terminal,
        size: (request.rows, request.columns),
        detach: request.detach,
        preserve_fds: 0,
        cgroup: None,
    }
    .enter()?;
    let mut fds = vec![entered.pidfd];
    fds.extend(entered.master);
    let body =
        serde_json::to_vec(&HelperAnswer { pid: entered.pid }).map_err(|e| Error::invalid("answer", e.to_string()))?;
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    wire::send(socket, Tag::Done, &body, &borrowed).map_err(|e| Error::system("talk to", "the caller", e))
}

/// The command's process: that of the container, with what is asked for changed.
fn merge(base: Process, request: &HelperRequest) -> Process {
    let mut process = base;
    process.args.clone_from(&request.args);
    for new in &request.env {
        let name = new.split_once('=').map_or(new.as_str(), |(name, _)| name);
        process.env.retain(|old| old.split_once('=').is_none_or(|(n, _)| n != name));
        process.env.push(new.clone());
    }
    if let Some(cwd) = &request.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &request.user {
        let umask = process.user.umask;
        process.user = crate::spec::User { username: Some(user.clone()), umask, ..Default::default() };
        // Another user is at home elsewhere.
        if !request.env.iter().any(|e| e.starts_with("HOME=")) {
            process.env.retain(|e| !e.starts_with("HOME="));
        }
    }
    process
}
