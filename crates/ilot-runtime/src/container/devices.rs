//! `/dev`: the few devices that every program expects, the host's own nodes bound in.

use super::filesystem::{Tree, open_outside};
use crate::mounts;
use crate::spec::{Device, Spec};
use crate::{Error, Result, paths, sys};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Devices of every container (`config-linux.md`, "Default Devices"): name, major, minor.
const DEFAULT: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev` (`runtime-linux.md`, "Dev symbolic links").
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills `/dev`, if the container has one of its own.
pub fn furnish(tree: &Tree, spec: &Spec, userns: bool) -> Result<()> {
    let listed = spec.linux.as_ref().map_or(&[][..], |l| &l.devices);
    if let Some(dev) = &tree.dev {
        for (name, major, minor) in DEFAULT {
            if listed.iter().any(|d| d.path == format!("/dev/{name}")) {
                continue;
            }
            make_default(dev.as_fd(), name, (major, minor), userns)?;
        }
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(target, dev, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(Error::system("link", format!("`/dev/{name}`"), e)),
            }
        }
    }
    // `/dev/ptmx` is a link to that of our own devpts, whoever lists the host's.
    let own_pts = |d: &&Device| !(tree.dev.is_some() && tree.pts.is_some() && d.path == "/dev/ptmx");
    listed.iter().filter(own_pts).try_for_each(|device| make_listed(tree, device, userns))
}

fn make_default(dev: BorrowedFd<'_>, name: &str, id: (u32, u32), userns: bool) -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::system("make device", format!("`/dev/{name}`"), e);
    if !userns {
        let mode = Mode::from_raw_mode(0o666);
        // The mode is exact: this process has no umask while it builds.
        match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, rustix::fs::makedev(id.0, id.1)) {
            // Root of a user namespace that somebody else made.
            Err(rustix::io::Errno::PERM) => {}
            result => return result.map_err(fail),
        }
    }
    // In a user namespace no node can be made: the host's is bound over an empty file.
    let node = open_node(&format!("/dev/{name}"), FileType::CharacterDevice, id)?;
    let place = rustix::fs::openat(
        dev,
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o644),
    )
    .map_err(fail)?;
    bind(node.as_fd(), place.as_fd(), name)
}

/// Opens a node of the host that is exactly the wanted device.
fn open_node(path: &str, kind: FileType, id: (u32, u32)) -> Result<OwnedFd> {
    let fd = open_outside(path).map_err(|e| Error::system("open device", format!("`{path}`"), e))?;
    check_node(fd.as_fd(), path, kind, id)?;
    Ok(fd)
}

/// Refuses anything but the wanted device (CVE-2025-31133: a `/dev/null` that is none).
pub fn check_node(fd: BorrowedFd<'_>, path: &str, kind: FileType, id: (u32, u32)) -> Result<()> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::system("look at", format!("`{path}`"), e))?;
    let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let numbered = kind != FileType::Fifo;
    if FileType::from_raw_mode(stat.st_mode) != kind || (numbered && found != id) {
        return Err(Error::invalid(format!("`{path}`"), format!("what is there is not device {}:{}", id.0, id.1)));
    }
    Ok(())
}

fn bind(node: BorrowedFd<'_>, place: BorrowedFd<'_>, name: &str) -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::system("bind device", format!("`{name}`"), e);
    let clone = mounts::clone_fd(node, false).map_err(fail)?;
    mounts::attach(clone.as_fd(), place).map_err(fail)
}

fn make_listed(tree: &Tree, device: &Device, userns: bool) -> Result<()> {
    let path = device.path.as_str();
    let fail = |e: rustix::io::Errno| Error::system("make device", format!("`{path}`"), e);
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => {
            return Err(Error::invalid(format!("device `{path}`"), format!("type `{other}` is none of c, b, u, p")));
        }
    };
    let id = (device.major as u32, device.minor as u32);
    let root = tree.root.as_fd();
    let bind_hosts = || {
        let node = open_node(path, kind, id)?;
        let place = paths::touch_in_root(root, path)?;
        bind(node.as_fd(), place.as_fd(), path)
    };
    if userns && kind != FileType::Fifo {
        return bind_hosts();
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = paths::mkdir_in_root(root, if parent.is_empty() { "/" } else { parent }, 0o755)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(&parent, name, kind, mode, rustix::fs::makedev(id.0, id.1)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(rustix::io::Errno::PERM) if kind != FileType::Fifo => return bind_hosts(),
        Err(e) => return Err(fail(e)),
    }
    // Who shares this directory may have put something else there meanwhile: from here on, by descriptor.
    let node = rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail)?;
    check_node(node.as_fd(), path, kind, id)?;
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    rustix::fs::chownat(&node, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
        .map_err(fail)?;
    let found = rustix::fs::fstat(&node).map_err(fail)?.st_mode & 0o7777;
    if found == mode.as_raw_mode() {
        return Ok(());
    }
    sys::chmod_path(node.as_fd(), mode.as_raw_mode()).map_err(|e| Error::system("make device", format!("`{path}`"), e))
}

/// Opens a terminal in the container's own devpts, by the descriptor of its mount: nothing that
/// the image put at `/dev/ptmx` or `/dev/console` is looked at.
pub fn terminal(tree: &Tree, uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    let pts =
        tree.pts.as_ref().ok_or_else(|| Error::invalid("process.terminal", "it needs a devpts mounted at /dev/pts"))?;
    let (master, slave) = open_terminal(pts.as_fd(), uid)?;
    if let Some(dev) = &tree.dev {
        let fail = |e: rustix::io::Errno| Error::system("make device", "`/dev/console`", e);
        let place = rustix::fs::openat(
            dev,
            "console",
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o620),
        )
        .map_err(fail)?;
        bind(slave.as_fd(), place.as_fd(), "console")?;
    }
    Ok((master, slave))
}

/// A new terminal of a devpts: (master, slave), the slave owned by `uid`.
pub fn open_terminal(pts: BorrowedFd<'_>, uid: u32) -> Result<(OwnedFd, OwnedFd)> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let fail = |e: rustix::io::Errno| Error::system("open", "a terminal in the container", e);
    let info = rustix::fs::fstatfs(pts).map_err(fail)?;
    if info.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Error::invalid("`/dev/pts` in the container", "it is not a devpts"));
    }
    let master = paths::open_beneath(pts, "ptmx", OFlags::RDWR | OFlags::NOCTTY).map_err(fail)?;
    rustix::pty::unlockpt(&master).map_err(fail)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .map_err(fail)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None).map_err(fail)?;
    Ok((master, slave))
}
