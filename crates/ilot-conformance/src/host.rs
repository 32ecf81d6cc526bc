//! The test's own part of the host.

use crate::Kind;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::Path;

/// Leaves the host's mount and network namespaces, this thread and its children only.
pub fn leave(kind: Kind) {
    // SAFETY: neither flag touches memory or descriptors that other threads share; the mount namespace implies a file
    // system context (cwd, root, umask) of this thread's own.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }
        .expect("leave the host's namespaces");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("make mounts private");
    let _ = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    // crun before 1.9 takes a hybrid host for an unknown layout.
    if kind == Kind::Crun && is_hybrid() {
        unmount("/sys/fs/cgroup/unified", UnmountFlags::DETACH).expect("hide the unified hierarchy");
    }
}

/// Whether cgroup v1 hierarchies stand beside a unified one.
#[must_use]
pub fn is_hybrid() -> bool {
    Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists()
}

/// Whether the host has only the unified hierarchy.
#[must_use]
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether a v1 controller is mounted at its usual place.
#[must_use]
pub fn has_v1(controller: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(controller).join("tasks").exists()
}

/// Reads a file of the host; empty if it is not there.
#[must_use]
pub fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
