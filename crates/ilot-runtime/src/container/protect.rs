//! What a container must not read or write: kernel parameters, masked and read-only paths.

use super::devices::check_node;
use super::filesystem::{Tree, open_outside};
use crate::mounts::options::Options;
use crate::mounts::{self, new_filesystem};
use crate::spec::{Linux, NamespaceKind};
use crate::sys;
use crate::{Error, Result, paths};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where a path of the configuration is, or `None` if nothing stands there. Paths in `/proc` and
/// `/sys` are looked up in the file systems that we mounted ourselves, without any link.
fn find(tree: &Tree, path: &str) -> Result<Option<OwnedFd>> {
    let own = [("/proc/", &tree.proc), ("/sys/", &tree.sys)];
    let found = own.iter().find_map(|(prefix, fd)| Some((fd.as_ref()?, path.strip_prefix(prefix)?)));
    let result = match found {
        Some((fd, rest)) => paths::open_beneath(fd.as_fd(), rest, OFlags::PATH),
        None => paths::open_in_root(tree.root.as_fd(), path, OFlags::PATH),
    };
    match result {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        // Another mount of the configuration covers it (`/sys/fs/cgroup/…`): look there.
        Err(Errno::XDEV) => match paths::open_in_root(tree.root.as_fd(), path, OFlags::PATH) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(Error::system("open", format!("`{path}` in the container"), e)),
        },
        Err(e) => Err(Error::system("open", format!("`{path}` in the container"), e)),
    }
}

/// Hides files behind the null device and directories behind an empty, read-only tmpfs.
pub fn mask(tree: &Tree, list: &[String]) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in list {
        let Some(target) = find(tree, path)? else {
            continue;
        };
        let fail = |e: Errno| Error::system("mask", format!("`{path}` in the container"), e);
        let stat = rustix::fs::fstat(&target).map_err(fail)?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            &*match &mut empty {
                Some(fd) => fd,
                none => none.insert(empty_dir()?),
            }
        } else {
            &*match &mut null {
                Some(fd) => fd,
                none => none.insert(null_device()?),
            }
        };
        let clone = mounts::clone_fd(cover.as_fd(), false).map_err(fail)?;
        mounts::attach(clone.as_fd(), target.as_fd()).map_err(fail)?;
    }
    // Hooks that come after this still see the host's tree.
    match empty {
        Some(_) => {
            unmount(HIDEOUT, UnmountFlags::DETACH).map_err(|e| Error::system("detach", "the empty directory", e))
        }
        None => Ok(()),
    }
}

/// Where in the host's tree the empty directory is attached; this namespace loses that tree with `pivot_root`.
const HIDEOUT: &str = "/proc";

/// The host's null device, verified to be it.
fn null_device() -> Result<OwnedFd> {
    let fd = open_outside("/dev/null").map_err(|e| Error::system("open", "`/dev/null`", e))?;
    check_node(fd.as_fd(), "/dev/null", FileType::CharacterDevice, (1, 3))?;
    Ok(fd)
}

/// One empty directory for all masks, attached out of sight so that it can be cloned.
fn empty_dir() -> Result<OwnedFd> {
    let options = Options {
        set: sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC,
        data: vec!["size=0".to_owned(), "nr_inodes=1".to_owned(), "mode=555".to_owned()],
        ..Default::default()
    };
    let mount = new_filesystem("tmpfs", Some("tmpfs"), &options)?;
    let place = open_outside(HIDEOUT).map_err(|e| Error::system("open", format!("`{HIDEOUT}`"), e))?;
    mounts::attach(mount.as_fd(), place.as_fd()).map_err(|e| Error::system("attach", "the empty directory", e))?;
    Ok(mount)
}

/// Makes paths read-only, with all that is mounted below them.
pub fn read_only(tree: &Tree, list: &[String]) -> Result<()> {
    for path in list {
        let Some(target) = find(tree, path)? else {
            continue;
        };
        let fail = |e: Errno| Error::system("make read-only", format!("`{path}` in the container"), e);
        let clone = mounts::clone_fd(target.as_fd(), true).map_err(fail)?;
        let options = Options { set_recursive: sys::ATTR_RDONLY, ..Default::default() };
        mounts::apply_changes(clone.as_fd(), &options, path)?;
        mounts::attach(clone.as_fd(), target.as_fd()).map_err(fail)?;
    }
    Ok(())
}

/// Sets kernel parameters of the container's own namespaces, in a procfs that is certainly one.
pub fn sysctl(tree: &Tree, linux: &Linux) -> Result<()> {
    for (name, value) in &linux.sysctl {
        let path = sysctl_path(name);
        check_namespaced(name, &path, linux)?;
        let proc = tree
            .proc
            .as_ref()
            .ok_or_else(|| Error::invalid(format!("sysctl `{name}`"), "it needs a procfs mounted at /proc"))?;
        write_in(proc.as_fd(), &format!("sys/{path}"), value)
            .map_err(|e| Error::system("set sysctl", format!("`{name}`"), e))?;
    }
    Ok(())
}

fn write_in(dir: BorrowedFd<'_>, path: &str, value: &str) -> rustix::io::Result<()> {
    let fd = paths::open_beneath(dir, path, OFlags::WRONLY)?;
    rustix::io::write(&fd, value.as_bytes())?;
    Ok(())
}

/// `net.ipv4.conf.eth0/1.forwarding` → path; with dots as separators, a slash stands for a dot.
fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(i) if name.as_bytes()[i] == b'/' => name.to_owned(),
        _ => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    }
}

/// Refuses parameters that are the host's (`config-linux.md`, "Sysctl").
fn check_namespaced(name: &str, path: &str, linux: &Linux) -> Result<()> {
    const IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    // The kernel would follow `net/../kernel/…` to a parameter of the host.
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::invalid(format!("sysctl `{name}`"), "it has an empty part, `.` or `..` in it"));
    }
    let kind = if path.starts_with("net/") {
        NamespaceKind::Network
    } else if IPC.contains(&path) || path.starts_with("fs/mqueue/") {
        NamespaceKind::Ipc
    } else if matches!(path, "kernel/domainname" | "kernel/hostname") {
        NamespaceKind::Uts
    } else if path.starts_with("user/") {
        NamespaceKind::User
    } else {
        return Err(Error::invalid(format!("sysctl `{name}`"), "it belongs to the whole host, no namespace has it"));
    };
    if linux.has_namespace(kind) {
        Ok(())
    } else {
        Err(Error::invalid(format!("sysctl `{name}`"), "the container has no namespace of its own for it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes() {
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn host_parameters_are_refused() {
        let linux = Linux::default();
        for name in ["kernel.panic", "vm.swappiness", "net.ipv4.ip_forward"] {
            assert!(check_namespaced(name, &sysctl_path(name), &linux).is_err(), "{name}");
        }
    }

    #[test]
    fn no_way_out_of_a_namespaces_parameters() {
        let own = |kind| crate::spec::Namespace { kind, path: None };
        let linux = Linux {
            namespaces: vec![own(NamespaceKind::Network), own(NamespaceKind::Ipc), own(NamespaceKind::User)],
            ..Default::default()
        };
        let check = |name: &str| check_namespaced(name, &sysctl_path(name), &linux);
        for name in [
            "net/../kernel/core_pattern",
            "net.//.kernel.core_pattern",
            "net/./ipv4/ip_forward",
            "net//ipv4/ip_forward",
            "user/../kernel/core_pattern",
            "fs/mqueue/../../kernel/core_pattern",
            "net/ipv4/..",
            "/kernel/core_pattern",
        ] {
            assert!(check(name).is_err(), "{name}");
        }
        assert!(check("net.ipv4.ip_forward").is_ok() && check("net/ipv4/conf/eth0.1/forwarding").is_ok());
    }
}
