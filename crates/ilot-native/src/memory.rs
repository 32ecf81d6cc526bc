//! Amnesic machines: every byte that they write lives in memory and is gone when they stop.
//!
//! The writable layer is on a tmpfs that is attached nowhere: no path leads to it, and the kernel frees it with the
//! machine's last process. The log is kept only where the run directory is in memory.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::error::{Error, Result};
use crate::record::MachineRecord;

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A place in memory for what one machine writes.
#[derive(Debug)]
pub(crate) struct Memory {
    mount: OwnedFd,
}

impl Memory {
    /// Half of the machine's memory limit, which it counts towards, else half of the host's memory. It is not swapped out where the kernel can see to
    /// that (6.4).
    pub(crate) fn new(record: &MachineRecord) -> Result<Self> {
        let size = record.limits.memory.map_or_else(|| "50%".to_owned(), |bytes| (bytes / 2).to_string());
        let fail = |e: rustix::io::Errno| Error::Invalid {
            message: format!("machine `{}`: no place in memory: {e}", record.name),
            help: None,
        };
        let make = |unswapped: bool| {
            let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&context, "source", "ilot-amnesic")?;
            fsconfig_set_string(&context, "size", size.as_str())?;
            fsconfig_set_string(&context, "mode", "0700")?;
            if unswapped {
                fsconfig_set_flag(&context, "noswap")?;
            }
            fsconfig_create(&context)?;
            fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
        };
        Ok(Self { mount: make(true).or_else(|_| make(false)).map_err(fail)? })
    }

    /// Where other processes find it as long as this one has it open.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd()))
    }
}

/// Whether what is written below a directory stays in memory.
pub(crate) fn is_memory(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|info| IN_MEMORY.contains(&info.f_type))
}
