//! `ilot-keeper mount`: makes the mount of a tree for somebody else. Making a user namespace to
//! idmap with needs a process with one thread.

use crate::container::user_namespace;
use crate::mounts::rootfs;
use crate::spec::IdMapping;
use crate::wire::{self, Tag};
use crate::{Error, Result, Rootfs};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct MountRequest {
    /// The tree.
    pub rootfs: Rootfs,
    /// Id map, for users and groups.
    pub mappings: Vec<IdMapping>,
}

/// Runs the job.
pub fn main(socket: &UnixStream) -> i32 {
    match run(socket) {
        Ok(fd) => i32::from(wire::send(socket, Tag::Done, &[], &[fd.as_fd()]).is_err()),
        Err(error) => {
            wire::send_error(socket, &error);
            1
        }
    }
}

fn run(socket: &UnixStream) -> Result<OwnedFd> {
    let message = wire::expect(socket, Tag::Request, "mount", "the caller ended")?;
    let request: MountRequest =
        serde_json::from_slice(&message.body).map_err(|e| Error::invalid("request", e.to_string()))?;
    let userns =
        if request.mappings.is_empty() { None } else { Some(user_namespace(&request.mappings, &request.mappings)?) };
    let owner =
        rootfs::Owner { userns: userns.as_ref().map(AsFd::as_fd), uids: &request.mappings, gids: &request.mappings };
    rootfs::make(&request.rootfs, &owner)
}
