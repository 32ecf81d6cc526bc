//! Making the directories of a group: one in each hierarchy that matters, with the controllers it needs.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::dir::{Dir, io_error};
use super::error::{CgroupError, Result};
use super::layout::{Hierarchy, Layout, Mode};
use super::settings::v2_name;

/// How often a parent that another command removes at the same moment is made again.
const RACES: usize = 32;
/// The child that takes the caller out of its own delegated v2 group.
const SELF_LEAF: &str = "ilot-self";

/// One directory of a control group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) controllers: Vec<String>,
    pub(super) v2: bool,
    pub(super) mount: PathBuf,
    /// Relative to the mount.
    pub(super) rel: PathBuf,
    pub(super) dir: Dir,
}

impl Group {
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }
}

/// A group's path as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// From the top of the hierarchy, not from the caller's own group.
    pub(super) absolute: bool,
    pub(super) parts: Vec<String>,
}

impl Wanted {
    pub(super) fn parse(path: &str) -> Result<Self> {
        let bad = |why| CgroupError::BadPath { path: path.into(), why };
        let parts: Vec<String> = path.split('/').filter(|p| !p.is_empty() && *p != ".").map(Into::into).collect();
        if parts.is_empty() {
            return Err(bad("it names no group"));
        }
        if path.contains('\0') || path.contains('\n') {
            return Err(bad("a name holds a newline or a zero byte"));
        }
        if parts.iter().any(|p| p == "..") {
            return Err(bad("`..` could leave the place where groups of ours belong"));
        }
        if parts.iter().any(|p| p.len() > 255) {
            return Err(bad("a name is longer than 255 bytes"));
        }
        // The kernel keeps these names for control files.
        if parts.iter().any(|p| p.starts_with("cgroup.")) {
            return Err(bad("a name starts with `cgroup.`"));
        }
        Ok(Self { absolute: path.starts_with('/'), parts })
    }

    fn below(&self, hierarchy: &Hierarchy) -> PathBuf {
        let base = if self.absolute { Path::new("") } else { &hierarchy.own };
        base.join(self.parts.join("/"))
    }

    fn depth(&self) -> usize {
        self.parts.len()
    }
}

/// The v1 hierarchies a group is made in: those with a limit, and those that account and bound every machine.
///
/// Beside a v2 hierarchy freezing, killing and CPU time come from there, which saves two groups.
pub(super) fn v1_choice<'a>(layout: &'a Layout, needed: &[&str]) -> Vec<&'a Hierarchy> {
    let mut base = vec!["memory", "cpu", "pids"];
    if layout.v2.is_none() {
        base.extend(["cpuacct", "freezer"]);
    }
    // systemd ends what it finds in the session it closes, and finds it by its own hierarchy.
    if Path::new("/run/systemd/system").is_dir() {
        base.push("name=systemd");
    }
    let wanted = |c: &String| base.contains(&c.as_str()) || needed.contains(&c.as_str());
    layout.v1.iter().filter(|h| h.controllers.iter().any(wanted)).collect()
}

/// Makes one group and its parents. `needed`: the controllers that a v2 group must have.
pub(super) fn make(hierarchy: &Hierarchy, wanted: &Wanted, needed: &[&str]) -> Result<Group> {
    let mount = Dir::mount(&hierarchy.mount, hierarchy.v2)?;
    let rel = wanted.below(hierarchy);
    let (parent_rel, leaf) = (rel.parent().unwrap_or(Path::new("")), &wanted.parts[wanted.depth() - 1]);
    for _ in 0..RACES {
        let parent = match mount.child(parent_rel)? {
            Some(dir) => dir,
            None => match make_parents(&mount, hierarchy, wanted)? {
                Some(dir) => dir,
                None => continue,
            },
        };
        match make_leaf(&parent, leaf) {
            Ok(()) => {}
            // A parent was removed between the two steps.
            Err(CgroupError::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) =>
            {
                continue;
            }
            Err(e) => {
                super::delete::remove_parents(&mount, &rel);
                return Err(e);
            }
        }
        let Some(dir) = parent.child(Path::new(leaf))? else { continue };
        let group = Group {
            controllers: hierarchy.controllers.clone(),
            v2: hierarchy.v2,
            mount: hierarchy.mount.clone(),
            rel,
            dir,
        };
        let ready = if hierarchy.v2 {
            enable(&mount, hierarchy, wanted, &group, needed)
        } else {
            inherit_cpuset(&parent, &group)
        };
        if let Err(e) = ready {
            let _ = parent.remove(Path::new(leaf));
            super::delete::remove_parents(&mount, &group.rel);
            return Err(e);
        }
        return Ok(group);
    }
    Err(io_error("create cgroup", &mount.path().join(rel), Errno::AGAIN))
}

/// Makes every parent of the group that is missing and marks it, so that it goes away with its last child.
fn make_parents(mount: &Dir, hierarchy: &Hierarchy, wanted: &Wanted) -> Result<Option<Dir>> {
    let base = if wanted.absolute { Path::new("") } else { &hierarchy.own };
    let Some(mut dir) = mount.child(base)? else {
        return Err(io_error("open cgroup", &mount.path().join(base), Errno::NOENT));
    };
    for part in &wanted.parts[..wanted.depth() - 1] {
        let made = match dir.make(part) {
            Err(CgroupError::Io { source, .. })
                if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) =>
            {
                return Ok(None);
            }
            other => other?,
        };
        let Some(next) = dir.child(Path::new(part))? else { return Ok(None) };
        if made {
            next.mark();
            if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                copy_cpuset(&dir, &next)?;
            }
        }
        dir = next;
    }
    Ok(Some(dir))
}

/// A group of that name that is left from before is made anew, so that no old limit stays; one in use is an error.
fn make_leaf(parent: &Dir, leaf: &str) -> Result<()> {
    if parent.make(leaf)? {
        return Ok(());
    }
    if let Some(old) = parent.child(Path::new(leaf))? {
        let mut pids = Vec::new();
        old.pids(true, &mut pids)?;
        if !pids.is_empty() {
            return Err(CgroupError::Taken { path: old.path().into(), pids });
        }
        super::delete::remove_tree(parent, Path::new(leaf))?;
    }
    parent.make(leaf)?;
    Ok(())
}

/// A new v1 cpuset has no CPU and no memory node: nothing can join it until it has its parent's.
fn inherit_cpuset(parent: &Dir, group: &Group) -> Result<()> {
    if group.has("cpuset") { copy_cpuset(parent, &group.dir) } else { Ok(()) }
}

fn copy_cpuset(parent: &Dir, child: &Dir) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if child.read(file)?.is_some_and(|t| t.trim().is_empty()) {
            let value = parent.read(file)?.unwrap_or_default();
            child.write(file, value.trim())?;
        }
    }
    Ok(())
}

/// v2: sees to it that the group has the controllers, by `cgroup.subtree_control` of every parent from the base down.
fn enable(mount: &Dir, hierarchy: &Hierarchy, wanted: &Wanted, group: &Group, needed: &[&str]) -> Result<()> {
    let base = if wanted.absolute { Path::new("") } else { &hierarchy.own };
    let may_leave = |dir: &Dir| !wanted.absolute && owns_dir(dir, hierarchy);
    share_out(mount, base, group, &v2_wanted(&group.dir, needed)?, may_leave)
}

/// As [`enable`] for a group that is there: from the top of the hierarchy down, where a parent lacks a controller.
pub(super) fn enable_later(group: &Group, needed: &[&str]) -> Result<()> {
    let mount = Dir::mount(&group.mount, true)?;
    let mut want = v2_wanted(&group.dir, needed)?;
    want.retain(|(_, must)| *must);
    share_out(&mount, Path::new(""), group, &want, |_| false)
}

/// Writes `cgroup.subtree_control` of the group at `base` and of those between it and `group`. `may_leave`: whether the
/// caller may step aside into a child of the base if it is that which holds processes.
fn share_out(
    mount: &Dir,
    base: &Path,
    group: &Group,
    want: &[(String, bool)],
    may_leave: impl Fn(&Dir) -> bool,
) -> Result<()> {
    if want.is_empty() {
        return Ok(());
    }
    let mut parents: Vec<&Path> = group.rel.ancestors().skip(1).take_while(|p| p.starts_with(base)).collect();
    parents.reverse();
    for rel in parents {
        let Some(dir) = mount.child(rel)? else {
            return Err(io_error("open cgroup", &mount.path().join(rel), Errno::NOENT));
        };
        let on = words(&dir, "cgroup.subtree_control")?;
        let can = words(&dir, "cgroup.controllers")?;
        let missing: Vec<&(String, bool)> = want.iter().filter(|(c, _)| !on.contains(c)).collect();
        let add: Vec<&str> = missing.iter().map(|(c, _)| c.as_str()).filter(|c| can.iter().any(|x| x == c)).collect();
        let lacks = missing.iter().find(|(c, must)| *must && !can.contains(c));
        // A parent that is somebody else's gives no more than it does.
        let mine = add.is_empty() || dir.writable("cgroup.subtree_control");
        let lacks = lacks.or_else(|| missing.iter().find(|(_, must)| *must && !mine));
        if let Some((c, _)) = lacks {
            return Err(CgroupError::NoController {
                what: "a limit".into(),
                controller: c.clone(),
                group: group.dir.path().display().to_string(),
            });
        }
        if mine && !add.is_empty() {
            let done = subtree_control(&dir, &add, rel == base && may_leave(&dir));
            // For no more than accounting the group is as good without.
            if missing.iter().any(|(_, must)| *must) {
                done?;
            }
        }
    }
    Ok(())
}

/// The controllers to enable, each with whether it must be there. Empty: the group has them all already.
fn v2_wanted(leaf: &Dir, needed: &[&str]) -> Result<Vec<(String, bool)>> {
    let has = words(leaf, "cgroup.controllers")?;
    let mut want: Vec<(String, bool)> = Vec::new();
    // Device rules are a program on v2 and need no controller; nor do the network's, which v2 has not.
    for c in needed.iter().filter(|c| !matches!(**c, "devices" | "net_cls" | "net_prio" | "cgroup")) {
        want.push((v2_name(c).into(), true));
    }
    for c in ["cpu", "memory", "pids"] {
        if !want.iter().any(|(w, _)| w == c) {
            want.push((c.into(), false));
        }
    }
    want.retain(|(c, _)| !has.contains(c));
    Ok(want)
}

fn subtree_control(dir: &Dir, add: &[&str], own: bool) -> Result<()> {
    let file = "cgroup.subtree_control";
    let line = add.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ");
    match dir.try_write(file, &line) {
        Ok(()) => return Ok(()),
        Err(Errno::BUSY) => {}
        Err(e) => return Err(dir.write_error(file, &line, e)),
    }
    // The group holds processes. If it is ours and we are one of them, step aside into a leaf.
    if own {
        dir.make(SELF_LEAF)?;
        if let Some(leaf) = dir.child(Path::new(SELF_LEAF))? {
            leaf.mark();
            leaf.write("cgroup.procs", "0")?;
            if dir.try_write(file, &line).is_ok() {
                return Ok(());
            }
        }
    }
    let mut pids = Vec::new();
    dir.pids(false, &mut pids)?;
    pids.truncate(10);
    Err(CgroupError::InternalProcesses { group: dir.path().into(), pids })
}

/// Whether the caller's own v2 group was delegated to it: systemd's mark, or a cgroup namespace's top, or its owner.
pub(super) fn owns(hierarchy: &Hierarchy) -> bool {
    let Ok(mount) = Dir::mount(&hierarchy.mount, true) else { return false };
    mount.child(&hierarchy.own).ok().flatten().is_some_and(|d| owns_dir(&d, hierarchy))
}

fn owns_dir(dir: &Dir, hierarchy: &Hierarchy) -> bool {
    if dir.has_attribute("user.delegate") || dir.has_attribute("trusted.delegate") {
        return true;
    }
    // The real top of the hierarchy has no cgroup.type; a namespace's top has.
    if hierarchy.own.as_os_str().is_empty() && dir.has("cgroup.type") {
        return true;
    }
    let euid = rustix::process::geteuid();
    let owner = rustix::fs::fstat(dir.fd()).map(|s| s.st_uid);
    !euid.is_root() && owner.is_ok_and(|o| o == euid.as_raw())
}

fn words(dir: &Dir, file: &str) -> Result<Vec<String>> {
    Ok(dir.read(file)?.unwrap_or_default().split_whitespace().map(Into::into).collect())
}

/// Waits until a parent's new controllers have their files in this v2 group.
///
/// Another command that makes a group beside this one may be enabling them in the parent: `cgroup.controllers` tells of them
/// as soon as the kernel has begun (`cgroup_apply_control` in `kernel/cgroup/cgroup.c`), and the files come a moment later,
/// before it lets go of the lock that any write to a group's settings takes. So one is written as it stands.
pub(super) fn wait_for_files(dir: &Dir) {
    let file = "cgroup.max.depth";
    if let Ok(Some(value)) = dir.read(file) {
        // Not allowed, or gone: then there is nothing to wait for.
        let _ = dir.try_write(file, value.trim());
    }
}

/// The controllers that a v2 group has right now.
pub(super) fn v2_controllers(dir: &Dir) -> Result<Vec<String>> {
    words(dir, "cgroup.controllers")
}

/// Refuses what no hierarchy of this host can do, before anything is made.
pub(super) fn check_available(layout: &Layout, needed: &[&str], group: &str) -> Result<()> {
    for c in needed {
        if layout.v1_of(c).is_some() || *c == "cgroup" {
            continue;
        }
        let v2 = match *c {
            // A program on v2.
            "devices" => layout.v2.is_some(),
            "net_cls" | "net_prio" => false,
            // Looked at again where the group is; on a hybrid host only what v1 has left over is there.
            _ => layout.v2.is_some() && (layout.mode() == Mode::V2 || hybrid_has(layout, v2_name(c))),
        };
        if !v2 {
            return Err(CgroupError::NoController {
                what: "a limit".into(),
                controller: (*c).into(),
                group: group.into(),
            });
        }
    }
    Ok(())
}

fn hybrid_has(layout: &Layout, controller: &str) -> bool {
    let Some(h) = &layout.v2 else { return false };
    let Ok(mount) = Dir::mount(&h.mount, true) else { return false };
    words(&mount, "cgroup.controllers").is_ok_and(|w| w.iter().any(|c| c == controller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let ok = |p: &str| Wanted::parse(p).unwrap();
        assert_eq!(
            ok("/ilot/pro//web/"),
            Wanted { absolute: true, parts: vec!["ilot".into(), "pro".into(), "web".into()] }
        );
        assert!(!ok("./ilot/a").absolute);
        let long = "x".repeat(256);
        for bad in ["", "/", "..", "a/../b", "/a/..", "a\nb", "a\0b", "a/cgroup.procs", long.as_str()] {
            assert!(Wanted::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_group_is_the_base() {
        let h = Hierarchy { controllers: vec![], mount: "/c".into(), own: "a/b".into(), visible: true, v2: true };
        assert_eq!(Wanted::parse("x/y").unwrap().below(&h), Path::new("a/b/x/y"));
        assert_eq!(Wanted::parse("/x/y").unwrap().below(&h), Path::new("x/y"));
    }

    #[test]
    fn subtree_control_lines() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |p: &str| tmp.path().join(p);
        for dir in ["", "ilot", "ilot/web"] {
            std::fs::create_dir_all(at(dir)).unwrap();
            std::fs::write(at(dir).join("cgroup.controllers"), "cpu io memory pids hugetlb\n").unwrap();
            std::fs::write(at(dir).join("cgroup.subtree_control"), "memory\n").unwrap();
        }
        std::fs::write(at("ilot/web/cgroup.controllers"), "memory\n").unwrap();
        let h = Hierarchy { controllers: vec![], mount: tmp.path().into(), own: "".into(), visible: true, v2: true };
        let mount = Dir::plain(tmp.path());
        let group = Group {
            controllers: vec![],
            v2: true,
            mount: tmp.path().into(),
            rel: "ilot/web".into(),
            dir: Dir::plain(&at("ilot/web")),
        };
        let wanted = Wanted::parse("/ilot/web").unwrap();
        enable(&mount, &h, &wanted, &group, &["blkio", "memory", "devices"]).unwrap();
        for dir in ["", "ilot"] {
            let line = std::fs::read_to_string(at(dir).join("cgroup.subtree_control")).unwrap();
            assert_eq!(line, "+io +cpu +pids");
        }
        assert_eq!(std::fs::read_to_string(at("ilot/web/cgroup.subtree_control")).unwrap(), "memory\n");
        let err = enable(&mount, &h, &wanted, &group, &["rdma"]).unwrap_err();
        assert!(matches!(&err, CgroupError::NoController { controller, .. } if controller == "rdma"));
        assert!(err.help().is_some());
    }
}
