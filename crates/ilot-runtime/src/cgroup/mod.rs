//! Control groups: the limits, the accounting and the end of a container, on v1, hybrid and v2 hosts.
//!
//! A [`Cgroup`] is one group in every hierarchy that matters for a container. Which these are is decided by
//! [`Layout`]: the v2 hierarchy if one is mounted (it freezes, kills and counts CPU time even when its controllers are
//! bound to v1), and the v1 hierarchies of `memory`, `cpu`, `pids` and of every limit that is set.
//!
//! # Joining, cheaply
//! A write of a process id to `cgroup.procs` waits for an RCU grace period when the host was idle (7 to 12 ms
//! measured, once per burst). Two ways do not wait:
//!
//! * v2: `clone3` with `CLONE_INTO_CGROUP` and [`Cgroup::v2_fd`];
//! * v1: the process itself, while it has one thread, writes `0` to `tasks` ([`Cgroup::joiner`], 50 to 75 µs for five
//!   hierarchies). A thread that moves itself needs no lock against other threads (`cgroup_procs_write_start` of the
//!   kernel since 5.6).
//!
//! On a hybrid host both are needed: `CLONE_INTO_CGROUP` joins the v2 group only, the v1 groups with the limits are
//! joined by the [`Joiner`] (or by [`Cgroup::join`] from outside, which skips what the process is in already).
//!
//! # Safety
//! Every file is opened below a descriptor of the hierarchy's mount, whose file system magic was checked, by
//! `openat2` without links, mounts or `..`.

mod apply;
mod create;
mod delete;
mod details;
mod devices;
mod dir;
mod error;
mod layout;
mod limits;
mod memory;
mod settings;
mod stats;
mod values;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use create::{Group, Wanted};
pub use details::{Details, Watch};
use dir::{Dir, io_error};
pub use error::{CgroupError, Result};
pub use layout::{Hierarchy, Layout, Mode};
pub use limits::{Allowance, CPU_PERIOD_US, CpuLimit, Limits};
pub use stats::Stats;
pub use values::{io_weight_from_blkio, weight_from_shares};

use crate::spec::Resources;
use apply::needed;

/// The most groups that a container may make below a delegated one, at any depth, and how deep.
const DELEGATED_GROUPS: &str = "2048";
/// As [`DELEGATED_GROUPS`].
const DELEGATED_DEPTH: &str = "32";

/// Any path as that of a group: it names something below the hierarchy, or is refused.
#[cfg(fuzzing)]
pub(crate) fn fuzz_path(path: &str) {
    if let Ok(wanted) = Wanted::parse(path) {
        assert!(
            !wanted.parts.is_empty() && wanted.parts.iter().all(|p| !p.is_empty() && p != ".." && !p.contains('/'))
        );
    }
}

/// Any resources as values of control files: each is a name without a folder.
#[cfg(fuzzing)]
pub(crate) fn fuzz_settings(resources: &Resources) {
    struct At(bool);
    impl settings::Place for At {
        fn on_v1(&self, _: &str) -> bool {
            self.0
        }
        fn v2_now(&self, _: &str) -> Option<String> {
            None
        }
    }
    for v1 in [true, false] {
        for setting in settings::settings(resources, &At(v1), "g").into_iter().flatten() {
            assert!(!setting.file.contains('/') && setting.file.contains('.'), "{}", setting.file);
        }
    }
}

/// The control groups of one container.
#[derive(Debug)]
pub struct Cgroup {
    /// v2 first.
    groups: Vec<Group>,
}

impl Cgroup {
    /// Makes the groups of a container and sets its limits. Nothing is left behind on failure.
    ///
    /// `path` names the group, as `ilot/pro/web`: below the caller's own group of each hierarchy, or with a leading `/`
    /// from the hierarchy's top (see [`Layout::suggest_path`]). Missing parents are made, marked, and go away with
    /// their last child. A group of that name that holds no process is replaced.
    ///
    /// # Errors
    /// What the host cannot limit, what the kernel refuses, a path with `..`, a group in use.
    pub fn create(layout: &Layout, path: &str, resources: &Resources) -> Result<Self> {
        let wanted = Wanted::parse(path)?;
        let needed = needed(resources);
        create::check_available(layout, &needed, path)?;
        let mut cgroup = Self { groups: Vec::with_capacity(5) };
        let on_v2: Vec<&str> = needed.iter().copied().filter(|c| layout.v1_of(c).is_none()).collect();
        let made = layout
            .v2
            .iter()
            .chain(create::v1_choice(layout, &needed))
            .try_for_each(|h| create::make(h, &wanted, &on_v2).map(|g| cgroup.groups.push(g)))
            .and_then(|()| cgroup.apply(resources));
        match made {
            Ok(()) => Ok(cgroup),
            Err(e) => {
                let _ = cgroup.delete();
                Err(e)
            }
        }
    }

    /// Opens the groups that [`Cgroup::paths`] named. Those that are gone are left out.
    ///
    /// # Errors
    /// A path that is not below a mounted hierarchy of this host.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        Self::open_in(&Layout::detect()?, paths)
    }

    /// As [`Cgroup::open`] with a layout at hand.
    ///
    /// # Errors
    /// As [`Cgroup::open`].
    pub fn open_in(layout: &Layout, paths: &[PathBuf]) -> Result<Self> {
        let mut groups = Vec::with_capacity(paths.len());
        for path in paths {
            let of = |h: &&Hierarchy| path.starts_with(&h.mount);
            let Some(h) = layout.v2.iter().chain(&layout.v1).filter(of).max_by_key(|h| h.mount.as_os_str().len())
            else {
                return Err(CgroupError::NotCgroup { path: path.clone() });
            };
            let rel = path.strip_prefix(&h.mount).unwrap_or(path).to_path_buf();
            // The top of a hierarchy is nobody's container.
            Wanted::parse(&rel.to_string_lossy())?;
            if let Some(dir) = Dir::mount(&h.mount, h.v2)?.child(&rel)? {
                groups.push(Group { controllers: h.controllers.clone(), v2: h.v2, mount: h.mount.clone(), rel, dir });
            }
        }
        groups.sort_by_key(|g| !g.v2);
        Ok(Self { groups })
    }

    /// Groups that an inhabitant has made below these, for one more process: `path` in every hierarchy where it is, or
    /// `controller,…:path` in those of these controllers (empty: v2). Elsewhere the groups stay the same.
    ///
    /// # Errors
    /// If there is no such group, or the path could lead out of these.
    pub fn below(&self, path: &str) -> Result<Self> {
        let (controllers, rel) = match path.split_once(':') {
            Some((list, rel)) => (Some(list.split(',').collect::<Vec<_>>()), rel),
            None => (None, path),
        };
        let rel = PathBuf::from(Wanted::parse(rel)?.parts.join("/"));
        let missing = || CgroupError::BadPath { path: path.into(), why: "the container has no such group" };
        let mut found = false;
        let mut groups = Vec::with_capacity(self.groups.len());
        for g in &self.groups {
            let named = controllers.as_ref().map(|l| l.iter().any(|c| if c.is_empty() { g.v2 } else { g.has(c) }));
            let child = if named == Some(false) { None } else { g.dir.child(&rel)? };
            if named == Some(true) && child.is_none() {
                return Err(missing());
            }
            found |= child.is_some();
            let (rel, child) = match child {
                Some(dir) => (g.rel.join(&rel), dir),
                None => (g.rel.clone(), g.dir.child(Path::new(""))?.ok_or_else(missing)?),
            };
            groups.push(Group {
                controllers: g.controllers.clone(),
                v2: g.v2,
                mount: g.mount.clone(),
                rel,
                dir: child,
            });
        }
        if found { Ok(Self { groups }) } else { Err(missing()) }
    }

    /// The directories of the groups, to be recorded for [`Cgroup::open`]; the v2 group first.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.groups.iter().map(|g| g.dir.path().to_path_buf()).collect()
    }

    /// Whether any of the groups is (still) there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.groups.iter().any(|g| g.dir.has("cgroup.procs"))
    }

    /// The v2 group, for `CLONE_INTO_CGROUP`. The v1 groups, if any, have to be joined still.
    #[must_use]
    pub fn v2_fd(&self) -> Option<BorrowedFd<'_>> {
        self.v2().map(|g| g.dir.fd())
    }

    /// The directory of the v2 group.
    #[must_use]
    pub fn v2_path(&self) -> Option<&Path> {
        self.v2().map(|g| g.dir.path())
    }

    /// Whether there is a group in a hierarchy, named as `/proc/self/cgroup` names it: `cpu,cpuacct`, `name=systemd`, nothing
    /// for v2.
    #[must_use]
    pub fn is_in(&self, names: &str) -> bool {
        self.groups.iter().any(|g| if names.is_empty() { g.v2 } else { !g.v2 && names.split(',').all(|n| g.has(n)) })
    }

    /// Whether there are groups that `CLONE_INTO_CGROUP` does not join.
    #[must_use]
    pub fn has_v1(&self) -> bool {
        self.groups.iter().any(|g| !g.v2)
    }

    /// What a new process needs to join by itself, opened now. `in_v2`: it is cloned into [`Cgroup::v2_fd`].
    ///
    /// # Errors
    /// If the groups are gone or may not be written.
    pub fn joiner(&self, in_v2: bool) -> Result<Joiner> {
        let mut files = Vec::with_capacity(self.groups.len());
        for g in self.groups.iter().filter(|g| !(g.v2 && in_v2)) {
            let file = if g.v2 { "cgroup.procs" } else { "tasks" };
            let fd = g.dir.open(file, OFlags::WRONLY);
            let path = || g.dir.path().join(file);
            files.push((fd.map_err(|e| io_error("open", &path(), e))?, path()));
        }
        Ok(Joiner { files })
    }

    /// Moves a process into all groups. Prefer [`Cgroup::joiner`]: this can wait for milliseconds.
    ///
    /// A v2 group whose inhabitant shares out controllers itself (a container that runs systemd) takes no process; then
    /// its child `init.scope`, or one made for the purpose, does.
    ///
    /// # Errors
    /// If the process is gone, or the kernel refuses.
    pub fn join(&self, pid: i32) -> Result<()> {
        let value = pid.to_string();
        for g in &self.groups {
            if g.v2 {
                if !in_v2_group(pid, &g.rel) {
                    join_v2(&g.dir, &value)?;
                }
            } else {
                g.dir.write("cgroup.procs", &value)?;
            }
        }
        Ok(())
    }

    /// Changes limits while the container runs: what is `None` stays as it is.
    ///
    /// A limit that needs a v1 hierarchy the container is not in yet gets a group there, and every process moves; one that
    /// needs a v2 controller that its parents do not share out yet makes them do it.
    ///
    /// # Errors
    /// What the host cannot limit or the kernel refuses (limits set before the refused one stay set).
    pub fn update(&mut self, resources: &Resources) -> Result<()> {
        let needed = needed(resources);
        if needed.iter().any(|c| self.lacks(c)) {
            let layout = Layout::detect()?;
            let path = self.common_path();
            create::check_available(&layout, &needed, &path)?;
            let wanted = Wanted::parse(&path)?;
            for h in create::v1_choice(&layout, &needed) {
                if self.groups.iter().all(|g| g.mount != h.mount) {
                    let group = create::make(h, &wanted, &[])?;
                    self.groups.push(group);
                    self.settle()?;
                }
            }
            if let Some(g) = self.v2() {
                let on_v2: Vec<&str> = needed.iter().copied().filter(|c| layout.v1_of(c).is_none()).collect();
                create::enable_later(g, &on_v2)?;
            }
        }
        self.apply(resources)
    }

    /// Gives the v2 group (and systemd's own v1 hierarchy) to the container's root, so that an init inside can divide
    /// it: the directory and the files that the kernel names for that (`/sys/kernel/cgroup/delegate`). The limits of
    /// the group itself stay the host's, and so does the number of groups that can be made below (each costs the kernel
    /// some 100 kB that no memory limit counts on a hybrid host).
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = (Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)));
        for g in self.groups.iter().filter(|g| g.v2 || g.has("name=systemd")) {
            for (file, bound) in [("cgroup.max.descendants", DELEGATED_GROUPS), ("cgroup.max.depth", DELEGATED_DEPTH)] {
                if g.v2 && g.dir.has(file) {
                    g.dir.write(file, bound)?;
                }
            }
            let dir = g.dir.readable().map_err(|e| io_error("open", g.dir.path(), e))?;
            rustix::fs::fchown(dir, uid, gid).map_err(|e| io_error("give away", g.dir.path(), e))?;
            let files: &[&str] = if g.v2 {
                &["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group"]
            } else {
                &["cgroup.procs", "tasks", "cgroup.clone_children"]
            };
            for file in files {
                let path = g.dir.path().join(file);
                match g.dir.open(file, OFlags::RDONLY) {
                    Ok(fd) => rustix::fs::fchown(fd, uid, gid).map_err(|e| io_error("give away", &path, e))?,
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(io_error("open", &path, e)),
                }
            }
        }
        Ok(())
    }

    /// The processes of the container, of child groups too, as the caller's pid namespace numbers them.
    ///
    /// # Errors
    /// If the groups cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut out = Vec::new();
        if let Some(g) = self.tracking() {
            g.dir.pids(true, &mut out)?;
        }
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    /// What the container uses now.
    ///
    /// # Errors
    /// If the groups cannot be read.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// Whether the kernel killed a process of the container for want of memory.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn oom_killed(&self) -> Result<bool> {
        let Some(g) = self.group_of("memory") else { return Ok(false) };
        let file = if g.v2 { "memory.events" } else { "memory.oom_control" };
        Ok(g.dir.read_key(file, "oom_kill")?.unwrap_or(0) > 0)
    }

    /// Removes the groups with their children and, if nothing else is in them, the parents that ilot made.
    ///
    /// Waits (at most 5 s) for processes that are about to end; does not kill: see [`Cgroup::kill_all`].
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if processes stay.
    pub fn delete(&self) -> Result<()> {
        delete::delete(self)
    }

    fn v2(&self) -> Option<&Group> {
        self.groups.iter().find(|g| g.v2)
    }

    /// The group that carries a controller (by its v1 or v2 name): its v1 hierarchy, else v2.
    fn group_of(&self, controller: &str) -> Option<&Group> {
        let v1 = self.groups.iter().find(|g| g.has(controller));
        v1.or_else(|| {
            let v1_only = ["cpuacct", "freezer", "net_cls", "net_prio"].contains(&controller);
            // On a hybrid host a controller that is bound to v1 is not on v2: its files are not there.
            self.v2().filter(|g| {
                !v1_only
                    && (controller == "devices"
                        || controller == "cgroup"
                        || !self.has_v1()
                        || create::v2_controllers(&g.dir)
                            .is_ok_and(|c| c.iter().any(|c| c == settings::v2_name(controller))))
            })
        })
    }

    /// Whether a controller has to be brought to the groups before a limit of it can be set.
    fn lacks(&self, controller: &str) -> bool {
        if matches!(controller, "cgroup" | "devices") {
            return controller == "devices" && self.group_of(controller).is_none();
        }
        let name = settings::v2_name(controller);
        let on = |g: &Group| create::v2_controllers(&g.dir).is_ok_and(|on| on.iter().any(|c| c == name));
        self.group_of(controller).is_none_or(|g| g.v2 && !on(g))
    }

    /// The group whose list of processes is the container's.
    fn tracking(&self) -> Option<&Group> {
        self.v2().or_else(|| self.groups.iter().find(|g| g.has("freezer"))).or_else(|| self.groups.first())
    }

    /// Moves every process into the groups that were made last, until none is outside.
    fn settle(&self) -> Result<()> {
        for _ in 0..20 {
            let all = self.pids()?;
            let mut moved = false;
            for g in self.groups.iter().filter(|g| !g.v2) {
                let mut inside = Vec::new();
                g.dir.pids(true, &mut inside)?;
                for pid in all.iter().filter(|p| !inside.contains(p)) {
                    match g.dir.try_write("cgroup.procs", &pid.to_string()) {
                        Ok(()) => moved = true,
                        // It has ended meanwhile.
                        Err(Errno::SRCH) => {}
                        Err(e) => return Err(g.dir.write_error("cgroup.procs", &pid.to_string(), e)),
                    }
                }
            }
            if !moved {
                break;
            }
        }
        Ok(())
    }

    /// The part of the path that all groups have in common, from the end, as an absolute path.
    fn common_path(&self) -> String {
        let mut common: Option<Vec<String>> = None;
        for g in &self.groups {
            let parts: Vec<String> =
                g.rel.components().rev().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
            common = Some(match common {
                None => parts,
                Some(c) => c.into_iter().zip(parts).take_while(|(a, b)| a == b).map(|(a, _)| a).collect(),
            });
        }
        let mut parts = common.unwrap_or_default();
        parts.reverse();
        format!("/{}", parts.join("/"))
    }

    /// Stops every process of the container where it is, and waits until all are (at most 10 s).
    ///
    /// # Errors
    /// [`CgroupError::NotFrozen`] if some cannot be stopped; they are let go again.
    pub fn freeze(&self) -> Result<()> {
        delete::freeze(self, Duration::from_secs(10))
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// If the group is gone.
    pub fn thaw(&self) -> Result<()> {
        delete::thaw(self)
    }

    /// Whether the container is frozen.
    ///
    /// # Errors
    /// If the group cannot be read.
    pub fn frozen(&self) -> Result<bool> {
        delete::frozen(self)
    }

    /// Kills every process of the container and of its child groups, those too that are born meanwhile.
    ///
    /// # Errors
    /// If the group cannot be read or written. A group that is gone is no error.
    pub fn kill_all(&self) -> Result<()> {
        delete::kill_all(self)
    }
}

/// Open control files by which one new process joins; see [`Cgroup::joiner`].
#[derive(Debug)]
pub struct Joiner {
    files: Vec<(OwnedFd, PathBuf)>,
}

impl Joiner {
    /// Moves the calling process, which must have one thread (else only this thread moves).
    ///
    /// Allocates nothing unless it fails, takes no lock, and may be called between `clone` and `execve`. Permission was
    /// checked when the files were opened, so it works after a change of user, namespaces or root.
    ///
    /// # Errors
    /// What the kernel refuses, with the file.
    pub fn join(&self) -> Result<()> {
        for (fd, path) in &self.files {
            dir::write_whole(fd, "0").map_err(|e| CgroupError::Write {
                file: path.clone(),
                value: "0".into(),
                source: e.into(),
            })?;
        }
        Ok(())
    }
}

/// Whether a process is in the v2 group already (cloned into it).
fn in_v2_group(pid: i32, rel: &Path) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    let own = text.lines().find_map(|l| l.strip_prefix("0::/"));
    // The mount may show a part of the hierarchy only, so the end is what can be compared.
    own.is_some_and(|own| Path::new(own).ends_with(rel))
}

fn join_v2(dir: &Dir, value: &str) -> Result<()> {
    let file = "cgroup.procs";
    match dir.try_write(file, value) {
        Err(Errno::BUSY | Errno::OPNOTSUPP) => {}
        other => return other.map_err(|e| dir.write_error(file, value, e)),
    }
    for leaf in ["init.scope", "ilot-exec"] {
        if leaf == "ilot-exec" {
            dir.make(leaf)?;
        }
        if let Some(child) = dir.child(Path::new(leaf))?
            && child.try_write(file, value).is_ok()
        {
            return Ok(());
        }
    }
    Err(dir.write_error(file, value, Errno::BUSY))
}
