//! The container's tree, seen from inside its mount namespace before `pivot_root`.

use super::copy::copy_up;
use super::groups::Groups;
use super::{devices, protect};
use crate::mounts::options::{Options, propagation};
use crate::mounts::{self, new_filesystem, rootfs};
use crate::spec::{Linux, Mount, Spec};
use crate::sys::{self, MountAttr};
use crate::{Error, InsideFile, Result, When, paths};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The container's tree under construction.
pub struct Tree {
    /// Root of the new tree.
    pub(super) root: OwnedFd,
    /// The `/proc` that we mounted ourselves: certainly a procfs.
    pub(super) proc: Option<OwnedFd>,
    /// The `/sys` that we mounted ourselves.
    pub(super) sys: Option<OwnedFd>,
    /// The `/dev` that we mounted ourselves.
    pub(super) dev: Option<OwnedFd>,
    /// The `/dev/pts` that we mounted ourselves.
    pub(super) pts: Option<OwnedFd>,
}

impl Tree {
    /// Attaches the root mount, over `/` of this mount namespace, seen by nobody else.
    pub fn attach(root: OwnedFd) -> Result<Self> {
        let host = crate::process::open_root()?;
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
        sys::mount_setattr(host.as_fd(), true, &private).map_err(|e| Error::system("make private", "the mounts", e))?;
        mounts::attach(root.as_fd(), host.as_fd()).map_err(|e| Error::system("attach", "the root file system", e))?;
        Ok(Self { root, proc: None, sys: None, dev: None, pts: None })
    }

    /// Makes the mounts of the configuration: those of control groups, or all others.
    pub fn mount_all(
        &mut self,
        spec: &Spec,
        binds: &mut dyn Iterator<Item = OwnedFd>,
        cgroups: Option<&Groups<'_>>,
    ) -> Result<()> {
        for mount in &spec.mounts {
            let kind = mount.kind.as_deref().unwrap_or("");
            if mount.is_cgroup() != cgroups.is_some() {
                continue;
            }
            let mut options = Options::parse(&mount.options);
            // As runc: the kernel labels its own file systems itself, and files of a queue one by one.
            if let Some(label) = super::parent::mount_label(spec.linux.as_ref())
                && !mount.is_cgroup()
                && !matches!(kind, "proc" | "sysfs" | "mqueue")
            {
                options.data.push(format!("context={label}"));
            }
            let bind = super::parent::bind_kind(mount, &options).is_some();
            let done = match cgroups {
                Some(groups) => groups.mount(self.root.as_fd(), &rooted(mount), kind, &options),
                None => self.mount_one(mount, kind, &options, if bind { binds.next() } else { None }),
            };
            done.map_err(|error| match error {
                Error::System { what, on, source } => {
                    Error::System { what, on: format!("{on} for `{}`", mount.destination), source }
                }
                other => other,
            })?;
        }
        Ok(())
    }

    fn mount_one(&mut self, mount: &Mount, kind: &str, options: &Options, bind: Option<OwnedFd>) -> Result<()> {
        let rooted = rooted(mount);
        let target = rooted.as_str();
        if options.remount {
            return self.remount(target, options);
        }
        if let Some(source) = bind {
            let place = if is_directory(source.as_fd())? {
                paths::mkdir_in_root(self.root.as_fd(), target, 0o755)?
            } else {
                paths::touch_in_root(self.root.as_fd(), target)?
            };
            self.refuse_over_proc(place.as_fd(), target)?;
            return mounts::attach(source.as_fd(), place.as_fd()).map_err(|e| Error::system("bind", "mount", e));
        }
        let place = if matches!(kind, "proc" | "sysfs") {
            paths::mkdir_without_links(self.root.as_fd(), target, 0o755)?
        } else {
            let place = paths::mkdir_in_root(self.root.as_fd(), target, 0o755)?;
            self.refuse_over_proc(place.as_fd(), target)?;
            place
        };
        let made = new_filesystem(kind, mount.source.as_deref().or(Some(kind)), options)?;
        if options.copy_up {
            copy_up(place.as_fd(), made.as_fd())?;
        }
        mounts::attach(made.as_fd(), place.as_fd()).map_err(|e| Error::system("mount", format!("`{kind}`"), e))?;
        set_propagation(made.as_fd(), options)?;
        match (target.trim_end_matches('/'), kind) {
            ("/proc", "proc") => self.proc = Some(made),
            ("/sys", "sysfs") => self.sys = Some(made),
            ("/dev", "tmpfs") => self.dev = Some(made),
            ("/dev/pts", "devpts") => self.pts = Some(made),
            _ => {}
        }
        Ok(())
    }

    /// `remount`: changes what is mounted at a place; with `bind` the mount alone, else its file system too.
    fn remount(&self, target: &str, options: &Options) -> Result<()> {
        let place = paths::open_in_root(self.root.as_fd(), target, OFlags::PATH)
            .map_err(|e| Error::system("open", format!("`{target}` in the container"), e))?;
        if options.bind.is_none() && !(options.flags.is_empty() && options.data.is_empty()) {
            mounts::reconfigure(place.as_fd(), target, options)?;
        }
        mounts::apply_changes(place.as_fd(), options, &format!("mount `{target}`"))?;
        set_propagation(place.as_fd(), options)
    }

    /// Nothing may be mounted inside procfs: it would answer for the kernel (CVE-2019-19921,
    /// CVE-2025-52881). The specification's own exception, files of lxcfs, is kept.
    fn refuse_over_proc(&self, place: BorrowedFd<'_>, target: &str) -> Result<()> {
        const PROC_SUPER_MAGIC: i64 = 0x9fa0;
        const LXCFS: [&str; 9] = [
            "/proc/cpuinfo",
            "/proc/diskstats",
            "/proc/meminfo",
            "/proc/stat",
            "/proc/swaps",
            "/proc/uptime",
            "/proc/loadavg",
            "/proc/slabinfo",
            "/proc/sys/kernel/ns_last_pid",
        ];
        let info = rustix::fs::fstatfs(place).map_err(|e| Error::system("look at", "mount place", e))?;
        if info.f_type == PROC_SUPER_MAGIC && !LXCFS.contains(&target) {
            return Err(Error::invalid(format!("mount `{target}`"), "it lies inside procfs"));
        }
        Ok(())
    }

    /// Device nodes and links in `/dev`, if it is ours.
    pub fn furnish_dev(&self, spec: &Spec, userns: bool) -> Result<()> {
        devices::furnish(self, spec, userns)
    }

    /// A terminal from the container's own devpts: (master, slave).
    pub fn terminal(&self, uid: u32) -> Result<(OwnedFd, OwnedFd)> {
        devices::terminal(self, uid)
    }

    /// Kernel parameters, masked and read-only paths.
    pub fn protect(&self, linux: &Linux) -> Result<()> {
        protect::sysctl(self, linux)?;
        protect::read_only(self, &linux.readonly_paths)?;
        protect::mask(self, &linux.masked_paths)
    }

    /// The files that the caller wants inside.
    pub fn write_files(&self, files: &[InsideFile]) -> Result<()> {
        for file in files {
            let root = self.root.as_fd();
            if file.when == When::IfMissing && paths::exists_in_root(root, &file.path)? {
                continue;
            }
            paths::replace_in_root(root, &file.path, file.mode, &file.content)?;
        }
        Ok(())
    }

    /// Makes the tree the root directory and lets go of the host's; gives our `/proc`.
    pub fn enter(self, linux: &Linux, readonly: bool, no_pivot: bool) -> Result<Option<OwnedFd>> {
        if readonly {
            rootfs::set_readonly(self.root.as_fd())?;
        }
        let fail = |e: rustix::io::Errno| Error::system("change to", "the new root directory", e);
        rustix::process::fchdir(&self.root).map_err(fail)?;
        if no_pivot {
            rustix::process::chroot(".").map_err(fail)?;
        } else {
            rustix::process::pivot_root(".", ".").map_err(fail)?;
            // The old root is now mounted over the new one; the working directory is the new one.
            unmount(".", UnmountFlags::DETACH).map_err(fail)?;
        }
        rustix::process::chdir("/").map_err(fail)?;
        if let Some(name) = &linux.rootfs_propagation {
            let (flag, recursive) = propagation(name)
                .ok_or_else(|| Error::invalid("linux.rootfsPropagation", format!("`{name}` is unknown")))?;
            let attr = MountAttr { propagation: flag, ..Default::default() };
            sys::mount_setattr(self.root.as_fd(), recursive, &attr)
                .map_err(|e| Error::system("set propagation of", "the root", e))?;
        }
        Ok(self.proc)
    }
}

/// Where a mount goes. Relative places are deprecated, and mean the root (`config.md`, "Mounts").
fn rooted(mount: &Mount) -> String {
    format!("/{}", mount.destination.trim_start_matches('/'))
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::system("look at", "mount source", e))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn set_propagation(mount: BorrowedFd<'_>, options: &Options) -> Result<()> {
    for (flag, recursive) in &options.propagation {
        let attr = MountAttr { propagation: *flag, ..Default::default() };
        sys::mount_setattr(mount, *recursive, &attr).map_err(|e| Error::system("set propagation of", "mount", e))?;
    }
    Ok(())
}

/// Opens a path of the host's own tree, still visible below ours.
pub(super) fn open_outside(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}
