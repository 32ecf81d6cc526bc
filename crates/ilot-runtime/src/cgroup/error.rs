//! What can go wrong with a control group, said with the file, the value and the cure.

use std::io;
use std::path::PathBuf;

/// An operation on a control group that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// No control group file system is mounted, or none is visible from here.
    #[error("find control groups: no cgroup file system is mounted here")]
    NoHierarchy,
    /// `/proc/self/mountinfo` or `/proc/self/cgroup` says something that cannot be read.
    #[error("read {file}: line {line:?} is not understood")]
    Proc {
        /// The file of procfs.
        file: &'static str,
        /// The line as it stands there.
        line: String,
    },
    /// A limit needs a controller that this host does not offer (where the group would be).
    #[error("set {what} on cgroup {group}: the {controller} controller is not available")]
    NoController {
        /// The limit that was asked for.
        what: String,
        /// The controller it needs.
        controller: String,
        /// The group's path.
        group: String,
    },
    /// A limit that this version of control groups cannot express.
    #[error("set {what} on cgroup {group}: {why}")]
    Unsupported {
        /// The limit that was asked for.
        what: String,
        /// The group's path.
        group: String,
        /// Why it is impossible.
        why: String,
    },
    /// A value that contradicts another or that no kernel accepts.
    #[error("set {what} to {value}: {why}")]
    BadValue {
        /// The limit that was asked for.
        what: String,
        /// The value that was asked for.
        value: String,
        /// Why it is refused.
        why: String,
    },
    /// A group's path that could leave the place where groups of ours belong.
    #[error("use cgroup path {path:?}: {why}")]
    BadPath {
        /// The path that was asked for.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// A directory that should be a control group is on another file system.
    #[error("open {}: this is not a control group file system", path.display())]
    NotCgroup {
        /// The directory.
        path: PathBuf,
    },
    /// A write that the kernel refused.
    #[error("write {value:?} to {}: {source}", file.display())]
    Write {
        /// The control file.
        file: PathBuf,
        /// The value.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A new value that lies below what the group already uses.
    #[error("write {value:?} to {}: the group uses {usage} now", file.display())]
    InUse {
        /// The control file.
        file: PathBuf,
        /// The value.
        value: String,
        /// What is used now, in the file's own unit.
        usage: u64,
    },
    /// Another operation on a file or directory of a group.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A v2 group that holds processes cannot share out controllers to children.
    #[error(
        "create a group with limits below {}: it holds processes itself (v2 forbids both)",
        group.display()
    )]
    InternalProcesses {
        /// The parent.
        group: PathBuf,
        /// Some of the processes in it.
        pids: Vec<i32>,
    },
    /// A group whose processes did not go away.
    #[error("remove cgroup {}: processes {pids:?} are still in it", path.display())]
    Busy {
        /// The group.
        path: PathBuf,
        /// The processes that are left (none: the kernel holds the group itself).
        pids: Vec<i32>,
    },
    /// A group that another container uses.
    #[error("create cgroup {}: it holds the processes {pids:?}", path.display())]
    Taken {
        /// The group.
        path: PathBuf,
        /// The processes in it.
        pids: Vec<i32>,
    },
    /// A group that did not freeze in time.
    #[error("freeze cgroup {}: still not frozen after {seconds} s", path.display())]
    NotFrozen {
        /// The group.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The kernel refused a device program.
    #[error("{op} the device program of cgroup {}: {source}", path.display())]
    Bpf {
        /// What was tried.
        op: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl CgroupError {
    /// The cure, where there is one.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoHierarchy => Some("mount -t cgroup2 none /sys/fs/cgroup, or run where it is visible".into()),
            Self::NoController { controller, .. } => Some(format!(
                "boot with the {controller} controller (see `cgroup_disable=` in /proc/cmdline), or, on v2, \
                 have it delegated: `systemctl set-property <unit> Delegate={controller}`, or write \
                 \"+{controller}\" to cgroup.subtree_control of every parent; or drop the limit"
            )),
            Self::InternalProcesses { pids, .. } => Some(format!(
                "move the processes {pids:?} into a child group, or run under a group of its own: \
                 `systemd-run --scope -p Delegate=yes …`, or name an absolute group path"
            )),
            Self::InUse { .. } => Some("free some first, stop the machine, or choose a larger value".into()),
            Self::Write { file, source, value } => write_cure(file, source, value),
            Self::Busy { .. } => {
                Some("a process in uninterruptible sleep cannot be killed; look at its /proc/<pid>/stack".into())
            }
            Self::Taken { .. } => Some("a group belongs to one container: stop that one, or name another group".into()),
            Self::NotFrozen { .. } => {
                Some("a process in uninterruptible sleep cannot be frozen; try again later".into())
            }
            Self::NotCgroup { .. } => Some("something else is mounted there; unmount it or name another group".into()),
            Self::BadPath { .. } => Some("use plain names joined by `/`, without `..`".into()),
            Self::Bpf { .. } => Some(
                "device rules on v2 need CONFIG_CGROUP_BPF and CAP_BPF or CAP_SYS_ADMIN in the first \
                 user namespace; or drop the device rules"
                    .into(),
            ),
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => Some(
                    "control groups cannot be written here: run as root, or have a group delegated \
                     (`systemd-run --user --scope -p Delegate=yes …`)"
                        .into(),
                ),
                Some(libc::ENOSPC) => Some("raise cgroup.max.descendants or cgroup.max.depth of the parents".into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The errno of the kernel's answer, where it was the kernel that refused.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Write { source, .. } | Self::Io { source, .. } | Self::Bpf { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn write_cure(file: &std::path::Path, source: &io::Error, value: &str) -> Option<String> {
    let name = file.file_name()?.to_string_lossy().into_owned();
    let cure = match source.raw_os_error()? {
        libc::ENOENT => {
            format!("this kernel has no {name}: the controller or the option is not built in; drop the limit")
        }
        libc::EINVAL if name.starts_with("cpu.cfs") || name == "cpu.max" => {
            "the period must be 1000 to 1000000 µs, the quota at least 1000 µs and within the parent's".into()
        }
        libc::EINVAL if name.starts_with("cpuset") => {
            format!("{value} must be a list as 0-3,5 within what the parent group has")
        }
        libc::EINVAL => format!("{value:?} is not a value that {name} takes"),
        libc::ERANGE => format!("{value:?} is out of the range of {name}"),
        libc::EBUSY if name.starts_with("memory") => {
            "the machine uses more than that; free some first or choose a larger value".into()
        }
        libc::ENODEV | libc::ENXIO => "the device of this rule does not exist on this host".into(),
        libc::EACCES | libc::EPERM => {
            "run as root, or have the group delegated; a parent's device or CPU rule may forbid it too".into()
        }
        _ => return None,
    };
    Some(cure)
}

/// The result of an operation on a control group.
pub type Result<T, E = CgroupError> = std::result::Result<T, E>;
