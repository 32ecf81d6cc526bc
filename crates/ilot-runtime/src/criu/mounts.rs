//! The mounts of a container that come from outside: CRIU writes down their names only, and gets them back by these
//! names from wherever they are on the host then.

use crate::container::UNIFIED;
use crate::mounts::options::Options;
use crate::spec::{Mount, NamespaceKind, Spec};
use crate::{Error, Result, paths};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The name of what masked files are hidden behind, as runc and crun have it.
const NULL: &str = "/dev/null";
/// Devices that every container has; bound from the host where there is a user namespace.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// One line of `proc_pid_mountinfo(5)`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    id: u64,
    parent: u64,
    point: String,
}

/// A mount table.
#[derive(Debug, Default)]
pub struct Mounts(Vec<Line>);

/// A mount from outside: where it is, and by which name it is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct External {
    /// When a container is written down, where it is inside; when it comes back, its name.
    pub key: String,
    /// When a container is written down, its name; when it comes back, where it is on the host.
    pub value: String,
}

impl Mounts {
    /// The table that a process sees.
    pub fn of(process: &str) -> Result<Self> {
        let path = format!("/proc/{process}/mountinfo");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::path("read", Path::new(&path), e))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut fields = line.split(' ');
            let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Line { id, parent, point: unescape(fields.nth(2)?) })
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Whether there is a mount of this number.
    pub fn has(&self, id: u64) -> bool {
        self.0.iter().any(|l| l.id == id)
    }

    fn find(&self, id: u64) -> Option<&Line> {
        self.0.iter().find(|l| l.id == id)
    }

    /// The mounts below one, but not those in `but` and what is below these.
    fn below(&self, top: u64, but: &BTreeSet<u64>) -> Vec<&Line> {
        let mut known = BTreeSet::from([top]);
        let mut list = Vec::new();
        // A table need not have parents first.
        while let Some(line) = self
            .0
            .iter()
            .find(|l| known.contains(&l.parent) && !known.contains(&l.id) && !but.contains(&l.id) && l.id != l.parent)
        {
            known.insert(line.id);
            list.push(line);
        }
        list
    }
}

/// Octal escapes of spaces and the like.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *byte == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        out.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The mounts of control groups that are the host's: without a cgroup namespace the container has none of its own.
fn host_groups(spec: &Spec) -> impl Iterator<Item = &Mount> {
    let shared = !spec.linux.as_ref().is_some_and(|l| l.has_namespace(NamespaceKind::Cgroup));
    spec.mounts.iter().filter(move |m| shared && m.is_cgroup())
}

fn bind(mount: &Mount) -> Option<bool> {
    crate::container::bind_kind(mount, &Options::parse(&mount.options))
}

/// The devices that can be mounts of their own, by their paths inside and on the host.
fn devices(spec: &Spec) -> Vec<&str> {
    let listed = spec.linux.as_ref().map_or(&[][..], |l| &l.devices);
    DEVICES.into_iter().chain(listed.iter().map(|d| d.path.as_str())).collect()
}

/// The mount that a path of the container's leads to.
fn mount_at(root: BorrowedFd<'_>, path: &str) -> Option<(OwnedFd, u64)> {
    let fd = paths::open_in_root(root, path, OFlags::PATH).ok()?;
    let info = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (info.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some((fd, info.stx_mnt_id))
}

/// What has to be named before a container is written down. `init` is its process 1.
pub fn of_container(init: i32, spec: &Spec, table: &Mounts) -> Result<BTreeSet<External>> {
    if let Some(mount) = spec.mounts.iter().find(|m| Options::parse(&m.options).idmap.is_some()) {
        return Err(Error::Unsupported {
            what: format!("checkpoint with mount `{}`", mount.destination),
            why: "it has an id map of its own, which CRIU cannot bring back".to_owned(),
            cure: "mount it without `idmap`",
        });
    }
    let path = format!("/proc/{init}/root");
    let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::path("open", Path::new(&path), e))?;
    let root = root.as_fd();
    let places: Vec<_> = spec.mounts.iter().map(|m| (m, mount_at(root, &m.destination).map(|(_, id)| id))).collect();
    let own: BTreeSet<u64> = places.iter().filter_map(|(_, id)| *id).collect();
    let mut list = BTreeSet::new();
    let mut add = |line: &Line, name: String| list.insert(External { key: line.point.clone(), value: name });
    for (mount, id) in &places {
        let (Some(recursive), Some(line)) = (bind(mount), id.and_then(|id| table.find(id))) else { continue };
        add(line, mount.destination.clone());
        for below in table.below(line.id, &own).into_iter().filter(|_| recursive) {
            let rest = below.point.strip_prefix(&line.point).unwrap_or(&below.point);
            add(below, format!("{}{rest}", mount.destination));
        }
    }
    for mount in host_groups(spec) {
        let Some((_, id)) = mount_at(root, &mount.destination) else { continue };
        let Some(line) = table.find(id) else { continue };
        let below = table.below(line.id, &own);
        // Either one hierarchy, or a directory of them.
        for line in if below.is_empty() { vec![line] } else { below } {
            add(line, line.point.clone());
        }
    }
    let masked = spec.linux.as_ref().map_or(&[][..], |l| &l.masked_paths);
    let hidden = masked.iter().map(|path| (path.as_str(), NULL)).chain(devices(spec).into_iter().map(|d| (d, d)));
    for (path, name) in hidden {
        let Some((fd, id)) = mount_at(root, path) else { continue };
        let kind = rustix::fs::fstat(&fd).map(|s| FileType::from_raw_mode(s.st_mode));
        let device = matches!(kind, Ok(FileType::CharacterDevice | FileType::BlockDevice));
        // Nodes in the container's own `/dev` are no mounts.
        if let Some(line) = table.find(id).filter(|l| device && is_at(fd.as_fd(), &l.point)) {
            add(line, name.to_owned());
        }
    }
    Ok(list)
}

/// Whether what is open is where a mount is mounted, by its name in the container.
fn is_at(fd: BorrowedFd<'_>, point: &str) -> bool {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|path| path == Path::new(point))
}

/// Where all that a container may ask for by name is on the host. `rootfs` is its tree without any mount, `groups` what it is
/// shown of control groups: the folder, and the directory on the host.
pub fn on_host(spec: &Spec, rootfs: BorrowedFd<'_>, groups: &[(String, PathBuf)]) -> Result<BTreeSet<External>> {
    let table = Mounts::of("self")?;
    let mut list = BTreeSet::new();
    let mut add = |key: &str, value: &str| list.insert(External { key: key.to_owned(), value: value.to_owned() });
    for mount in &spec.mounts {
        let Some(recursive) = bind(mount) else { continue };
        let wanted = Path::new(mount.source.as_deref().unwrap_or_default());
        let source = wanted.canonicalize().map_err(|e| Error::path("find", wanted, e))?;
        let source = source.to_string_lossy();
        add(&mount.destination, &source);
        // By another runtime, its name is where links led to.
        if let Ok(fd) = paths::open_in_root(rootfs, &mount.destination, OFlags::PATH)
            && let Some(inside) = path_below(fd.as_fd(), rootfs)
        {
            add(&inside, &source);
        }
        let prefix = format!("{}/", source.trim_end_matches('/'));
        for line in table.0.iter().filter(|l| recursive && l.point.starts_with(&prefix)) {
            add(&format!("{}/{}", mount.destination, &line.point[prefix.len()..]), &line.point);
        }
    }
    for mount in host_groups(spec) {
        let place = mount.destination.trim_end_matches('/');
        for (folder, path) in groups {
            add(&format!("{place}/{folder}"), &path.to_string_lossy());
        }
        // v2 may be the mount itself.
        if let [.., (folder, path)] = groups
            && folder == UNIFIED
        {
            add(place, &path.to_string_lossy());
        }
    }
    for device in devices(spec) {
        add(device, device);
    }
    Ok(list)
}

/// The path of an open file below an open directory.
fn path_below(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Option<String> {
    use std::os::fd::AsRawFd;
    let of = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
    let (path, top) = (of(fd)?, of(dir)?);
    Some(format!("/{}", path.strip_prefix(top).ok()?.to_str()?))
}

/// Makes the places where mounts go, as they were made when the container was: `root` must be a copy of its tree where
/// nobody minds the mounts that are needed for places inside of mounts.
pub fn make_places(spec: &Spec, root: BorrowedFd<'_>) -> Result<()> {
    for mount in &spec.mounts {
        let covered = |m: &Mount| {
            let inside = mount.destination.strip_prefix(m.destination.trim_end_matches('/'));
            m.kind.as_deref() == Some("tmpfs") && inside.is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
        };
        // What CRIU brings back with its content has these places.
        if mount.is_cgroup() || spec.mounts.iter().any(covered) {
            continue;
        }
        if bind(mount).is_none() {
            paths::mkdir_in_root(root, &mount.destination, 0o755)?;
            continue;
        }
        let source = crate::mounts::clone_tree(Path::new(mount.source.as_deref().unwrap_or_default()), true)?;
        let stat = rustix::fs::fstat(&source).map_err(|e| Error::system("look at", "mount source", e))?;
        let place = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => paths::mkdir_in_root(root, &mount.destination, 0o755)?,
            _ => paths::touch_in_root(root, &mount.destination)?,
        };
        crate::mounts::attach(source.as_fd(), place.as_fd())
            .map_err(|e| Error::system("bind", format!("`{}`", mount.destination), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "10 1 8:1 /x / rw - ext4 /dev/a rw\n\
                         12 10 0:2 / /data\\040one rw master:1 - tmpfs t rw\n\
                         14 13 0:4 / /data\\040one/a/b rw - tmpfs t rw\n\
                         13 12 0:3 / /data\\040one/a rw - tmpfs t rw\n\
                         15 10 0:5 / /proc rw - proc proc rw\n";

    #[test]
    fn a_table_is_a_tree() {
        let table = Mounts::parse(TABLE);
        assert!(table.has(14) && !table.has(99));
        assert_eq!(table.find(12).unwrap().point, "/data one");
        let below = |but: &[u64]| {
            let but = but.iter().copied().collect();
            table.below(12, &but).iter().map(|l| l.point.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(below(&[]), ["/data one/a", "/data one/a/b"]);
        assert_eq!(below(&[13]), Vec::<&str>::new());
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("a\\04"), "a\\04");
        assert_eq!(unescape("\\x"), "\\x");
    }
}
