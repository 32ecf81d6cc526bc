//! The file systems of control groups inside, each with the container's own group as its top.

use crate::cgroup::{Cgroup, Hierarchy, Layout};
use crate::container::cgroup_error;
use crate::mounts::options::Options;
use crate::mounts::{self, new_filesystem, rootfs};
use crate::{Error, Result, paths, sys};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What is known of the container's groups when their file systems are mounted.
pub struct Groups<'a> {
    /// Those that were made for it.
    pub cgroup: Option<&'a Cgroup>,
    /// Whether systemd has made its v2 group.
    pub scope: bool,
    /// Whether it has a cgroup namespace other than the host's.
    pub namespace: bool,
}

impl Groups<'_> {
    /// Mounts them at a place. `cgroup2` is the v2 hierarchy alone wherever there is one (an init inside works with it even if
    /// its controllers are bound to v1); `cgroup` is what the host has: v2, or all side by side.
    pub fn mount(&self, root: BorrowedFd<'_>, target: &str, kind: &str, options: &Options) -> Result<()> {
        let place = paths::mkdir_in_root(root, target, 0o755)?;
        let hierarchies = own_hierarchies()?;
        // Where they are on the host: without a namespace there is no other way to a group of one's own.
        let layout = (!self.namespace).then(Layout::detect).transpose().map_err(cgroup_error)?;
        if hierarchies.iter().any(String::is_empty) && (kind == "cgroup2" || hierarchies.len() == 1) {
            return match self.open("", layout.as_ref(), options)? {
                Some(mount) => attach(&mount, place.as_fd()),
                None => {
                    Err(Error::invalid(format!("mount `{target}`"), "the host does not show this container's group"))
                }
            };
        }
        let read_only = options.set & sys::ATTR_RDONLY;
        let base =
            Options { set: options.set & !sys::ATTR_RDONLY, data: vec!["mode=755".to_owned()], ..Default::default() };
        let dir = new_filesystem("tmpfs", Some("tmpfs"), &base)?;
        attach(&dir, place.as_fd())?;
        for names in &hierarchies {
            // A hierarchy that the host has but does not mount cannot be mounted here either.
            let Ok(Some(mount)) = self.open(names, layout.as_ref(), options) else { continue };
            place_in(&dir, names, &mount, target)?;
        }
        if read_only != 0 {
            rootfs::set_readonly(dir.as_fd())?;
        }
        Ok(())
    }

    /// One hierarchy, attached nowhere: mounted anew in a cgroup namespace, which makes the own group its top. In the host's
    /// namespace that would show (and on v2, change the options of) the host's whole hierarchy: there it is the own group,
    /// bound. One in which the container has no group shows its caller's, and is not for writing.
    fn open(&self, names: &str, layout: Option<&Layout>, options: &Options) -> Result<Option<OwnedFd>> {
        let mut options = Options { data: Vec::new(), ..options.clone() };
        if !self.own(names) {
            options.set |= sys::ATTR_RDONLY;
        }
        if let Some(layout) = layout {
            let Some(hierarchy) = hierarchy(layout, names).filter(|h| h.visible) else { return Ok(None) };
            let dir = hierarchy.open_own().map_err(cgroup_error)?;
            let mount = mounts::clone_fd(dir.as_fd(), false).map_err(|e| Error::system("bind", "control group", e))?;
            mounts::apply_changes(mount.as_fd(), &options, "control group")?;
            return Ok(Some(mount));
        }
        let kind = if names.is_empty() { "cgroup2" } else { "cgroup" };
        options.data = match names.strip_prefix("name=") {
            Some(_) => vec!["none".to_owned(), names.to_owned()],
            None => names.split(',').filter(|n| !n.is_empty()).map(ToOwned::to_owned).collect(),
        };
        new_filesystem(kind, Some(kind), &options).map(Some)
    }

    /// Whether the container has a group of its own in a hierarchy.
    fn own(&self, names: &str) -> bool {
        self.cgroup.map_or(self.scope && names.is_empty(), |cgroup| cgroup.is_in(names))
    }
}

fn attach(mount: &OwnedFd, place: BorrowedFd<'_>) -> Result<()> {
    mounts::attach(mount.as_fd(), place).map_err(|e| Error::system("mount", "cgroup file system", e))
}

/// The folder of the v2 hierarchy beside v1.
pub const UNIFIED: &str = "unified";

/// The folder of a hierarchy beside others.
fn folder(names: &str) -> &str {
    if names.is_empty() { UNIFIED } else { names.strip_prefix("name=").unwrap_or(names) }
}

/// What a container without a cgroup namespace is shown: the folder of each hierarchy, v2 last, and on the host its own group
/// there, or the caller's where it has none.
pub fn shown_on_host(cgroup: Option<&Cgroup>) -> Result<Vec<(String, PathBuf)>> {
    let layout = Layout::detect().map_err(cgroup_error)?;
    let own = cgroup.map(Cgroup::paths).unwrap_or_default();
    let shown = |h: &Hierarchy| {
        let group = own.iter().find(|path| path.starts_with(&h.mount)).cloned();
        (folder(&h.controllers.join(",")).to_owned(), group.unwrap_or_else(|| h.mount.join(&h.own)))
    };
    Ok(layout.v1.iter().chain(&layout.v2).map(shown).collect())
}

/// A hierarchy beside the others: a folder of its name, and links of its controllers' names.
fn place_in(dir: &OwnedFd, names: &str, mount: &OwnedFd, target: &str) -> Result<()> {
    let folder = folder(names);
    rustix::fs::mkdirat(dir, folder, Mode::from_raw_mode(0o755))
        .map_err(|e| Error::system("make directory", format!("`{target}/{folder}`"), e))?;
    let place = paths::open_beneath(dir.as_fd(), folder, OFlags::PATH)
        .map_err(|e| Error::system("open", format!("`{target}/{folder}`"), e))?;
    attach(mount, place.as_fd())?;
    for alias in names.split(',').filter(|n| names.contains(',') && !n.is_empty()) {
        let _ = rustix::fs::symlinkat(folder, dir, alias);
    }
    Ok(())
}

fn hierarchy<'a>(layout: &'a Layout, names: &str) -> Option<&'a Hierarchy> {
    if names.is_empty() {
        return layout.v2.as_ref();
    }
    layout.v1.iter().find(|h| names.split(',').all(|n| h.controllers.iter().any(|c| c == n)))
}

/// The hierarchies that this process is in: controllers joined by commas, `name=…`, empty for v2.
fn own_hierarchies() -> Result<Vec<String>> {
    let path = Path::new("/proc/self/cgroup");
    let text = std::fs::read_to_string(path).map_err(|e| Error::path("read", path, e))?;
    Ok(text.lines().filter_map(|line| Some(line.split_once(':')?.1.split_once(':')?.0.to_owned())).collect())
}
