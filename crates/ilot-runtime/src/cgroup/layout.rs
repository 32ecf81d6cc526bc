//! Which control group hierarchies this host has, where they are mounted, and where in them the caller is.
//!
//! Read from `/proc/self/mountinfo` (proc_pid_mountinfo(5)) and `/proc/self/cgroup` (cgroups(7)); a mount is proved by
//! its file system's magic number whenever it is opened. Parsing takes text, so that every layout can be tested.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::dir::Dir;
use super::error::{CgroupError, Result};

/// Which of the two generations of control groups carries the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Every controller has its v1 hierarchy; no v2 hierarchy is mounted.
    V1,
    /// Controllers on v1, and a v2 hierarchy beside them that tracks processes (and may have a few controllers).
    Hybrid,
    /// One v2 hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1: the controllers bound to it (`cpu`, or a name as `name=systemd`). v2: empty.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The caller's own group, relative to the mount (empty: the mount's top).
    pub own: PathBuf,
    /// Whether the caller's own group can be seen below the mount at all.
    pub visible: bool,
    /// Whether this is the v2 hierarchy.
    pub v2: bool,
}

/// The control groups of this host as the caller sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The v1 hierarchies with controllers or a name.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Hierarchy>,
}

impl Hierarchy {
    /// The caller's own group, as a descriptor.
    ///
    /// # Errors
    /// If it is not there (any more), or the mount is none of control groups.
    pub fn open_own(&self) -> Result<OwnedFd> {
        let gone = || CgroupError::NotCgroup { path: self.mount.join(&self.own) };
        Ok(Dir::mount(&self.mount, self.v2)?.child(&self.own)?.ok_or_else(gone)?.into_fd())
    }
}

impl Layout {
    /// Reads the layout of the calling process.
    ///
    /// # Errors
    /// [`CgroupError::NoHierarchy`] if none is mounted; [`CgroupError::Proc`] or [`CgroupError::Io`] if procfs
    /// cannot be read.
    pub fn detect() -> Result<Self> {
        let read = |file: &'static str| {
            std::fs::read_to_string(file).map_err(|source| CgroupError::Io { op: "read", path: file.into(), source })
        };
        let layout = Self::parse_with(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, |mount, v2| {
            Dir::mount(mount, v2).is_ok()
        })?;
        if layout.v1.is_empty() && layout.v2.is_none() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(layout)
    }

    /// The layout that the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` describe.
    ///
    /// # Errors
    /// [`CgroupError::Proc`] for a line that is not understood.
    pub fn parse(mountinfo: &str, self_cgroup: &str) -> Result<Self> {
        Self::parse_with(mountinfo, self_cgroup, |_, _| true)
    }

    fn parse_with(mountinfo: &str, self_cgroup: &str, usable: impl Fn(&Path, bool) -> bool) -> Result<Self> {
        let mounts = parse_mounts(mountinfo)?;
        let mut layout = Self { v1: Vec::new(), v2: None };
        for line in self_cgroup.lines() {
            let bad = || CgroupError::Proc { file: "/proc/self/cgroup", line: line.into() };
            let mut parts = line.splitn(3, ':');
            let (id, names, own) =
                (parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?, parts.next().ok_or_else(bad)?);
            let v2 = id == "0" && names.is_empty();
            let controllers: Vec<String> = names.split(',').filter(|n| !n.is_empty()).map(Into::into).collect();
            let mut found: Vec<&Mount> =
                mounts.iter().filter(|m| m.v2 == v2 && controllers.iter().all(|c| m.has(c))).collect();
            // Several mounts of one hierarchy: some may be covered. (The one that is used is proved again when it is.)
            if found.len() > 1 {
                found.retain(|m| usable(&m.point, v2));
            }
            // A mount that shows the own group wins over one that does not (a bind mount of some subtree).
            let found = found.into_iter().max_by_key(|m| below(own, &m.root).is_some());
            let Some(mount) = found else { continue };
            let rel = below(own, &mount.root);
            let hierarchy = Hierarchy {
                controllers,
                mount: mount.point.clone(),
                visible: rel.is_some(),
                own: rel.unwrap_or_default(),
                v2,
            };
            if v2 {
                layout.v2 = Some(hierarchy);
            } else {
                layout.v1.push(hierarchy);
            }
        }
        Ok(layout)
    }

    /// Which generation carries the controllers.
    #[must_use]
    pub fn mode(&self) -> Mode {
        let controllers = self.v1.iter().any(|h| h.controllers.iter().any(|c| !c.contains('=')));
        match (&self.v2, controllers) {
            (Some(_), true) => Mode::Hybrid,
            (Some(_), false) => Mode::V2,
            (None, _) => Mode::V1,
        }
    }

    /// The v1 hierarchy of a controller.
    #[must_use]
    pub fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// Whether the only hierarchy is v2 and the caller's own group there was given to it to divide.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        self.mode() == Mode::V2 && self.v2.as_ref().is_some_and(|h| h.visible && super::create::owns(h))
    }

    /// Where a group `name` (as `ilot/pro/web`) of a machine that outlives its caller is best put: the path to hand
    /// to [`super::Cgroup::create`].
    ///
    /// Below the caller's own group where that works and stays. Under systemd the caller's own group is a session or
    /// service which systemd ends (and which, on v2, holds processes and so cannot share out controllers), therefore
    /// from the top of the hierarchy there, as Docker's and Podman's cgroupfs drivers do.
    #[must_use]
    pub fn suggest_path(&self, name: &str) -> String {
        let systemd = Path::new("/run/systemd/system").is_dir();
        let in_root = |h: &Hierarchy| h.own.as_os_str().is_empty();
        let below_own = match self.mode() {
            Mode::V2 => self
                .v2
                .as_ref()
                .is_some_and(|h| in_root(h) || super::create::owns(h) || !rustix::process::geteuid().is_root()),
            Mode::V1 | Mode::Hybrid => !systemd,
        };
        if below_own { name.trim_matches('/').into() } else { format!("/{}", name.trim_matches('/')) }
    }
}

struct Mount {
    root: String,
    point: PathBuf,
    options: String,
    v2: bool,
}

impl Mount {
    /// v1 writes the controllers of a hierarchy among its super options.
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|o| o == controller)
    }
}

fn parse_mounts(text: &str) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            return Err(CgroupError::Proc { file: "/proc/self/mountinfo", line: line.into() });
        };
        let (Some(kind), Some(options)) = (right.split(' ').next(), right.split(' ').nth(2)) else {
            return Err(CgroupError::Proc { file: "/proc/self/mountinfo", line: line.into() });
        };
        let v2 = match kind {
            "cgroup" => false,
            "cgroup2" => true,
            _ => continue,
        };
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            return Err(CgroupError::Proc { file: "/proc/self/mountinfo", line: line.into() });
        };
        mounts.push(Mount { root: unescape(root), point: unescape(point).into(), options: options.into(), v2 });
    }
    Ok(mounts)
}

/// The own group relative to the mount's root; `None` if it lies elsewhere (another cgroup namespace, a bind mount).
fn below(own: &str, root: &str) -> Option<PathBuf> {
    let rest = if root == "/" { own } else { own.strip_prefix(root)? };
    if !(rest.is_empty() || rest.starts_with('/')) || rest.split('/').any(|p| p == "..") {
        return None;
    }
    Some(rest.trim_matches('/').into())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.into();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal =
            (bytes[i] == b'\\').then(|| text.get(i + 1..i + 4).and_then(|d| u8::from_str_radix(d, 8).ok())).flatten();
        match octal {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn hybrid() {
        let own = "4:memory:/a/b\n9:name=systemd:/x\n1:cpu,cpuacct:/\n0::/u\n";
        let l = Layout::parse(HYBRID, own).unwrap();
        assert_eq!(l.mode(), Mode::Hybrid);
        assert_eq!(l.v1_of("memory").unwrap().own, Path::new("a/b"));
        assert_eq!(l.v1_of("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(l.v1_of("name=systemd").unwrap().own, Path::new("x"));
        assert_eq!(l.v2.as_ref().unwrap().own, Path::new("u"));
        assert!(l.v1_of("pids").is_none());
    }

    #[test]
    fn only_v2() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let l = Layout::parse(mounts, "0::/user.slice/user-0.slice/session-1.scope\n").unwrap();
        assert_eq!(l.mode(), Mode::V2);
        assert_eq!(l.v2.unwrap().own, Path::new("user.slice/user-0.slice/session-1.scope"));
    }

    #[test]
    fn container_without_cgroup_namespace() {
        let mounts = "9 8 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let l = Layout::parse(mounts, "4:memory:/docker/abc/in\n").unwrap();
        assert_eq!(l.mode(), Mode::V1);
        assert_eq!(l.v1[0].own, Path::new("in"));
        let l = Layout::parse(mounts, "4:memory:/docker/abcdef\n").unwrap();
        assert!(!l.v1[0].visible);
        let l = Layout::parse(mounts, "4:memory:/../other\n").unwrap();
        assert!(!l.v1[0].visible);
    }

    #[test]
    fn a_mount_that_shows_the_own_group_wins() {
        let mounts = "\
30 24 0:26 /other /mnt/b rw - cgroup2 cgroup2 rw
31 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
";
        let l = Layout::parse(mounts, "0::/me\n").unwrap();
        assert_eq!(l.v2.unwrap().mount, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn escapes_and_bad_lines() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
        assert!(Layout::parse("nonsense\n", "").is_err());
        assert!(Layout::parse("", "nonsense\n").is_err());
    }

    #[test]
    fn here() {
        let l = Layout::detect().unwrap();
        assert!(!l.v1.is_empty() || l.v2.is_some());
    }
}
