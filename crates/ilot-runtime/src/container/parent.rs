//! The host's side of building a container.

use super::namespaces::{Joined, flag_and_name};
use super::{Plan, child, idmap};
use crate::cgroup::{Cgroup, Layout};
use crate::mounts::options::Options;
use crate::mounts::{self, rootfs};
use crate::record::Groups;
use crate::spec::{IdMapping, Linux, Mount, Namespace, NamespaceKind, Resources};
use crate::sys::MountAttr;
use crate::systemd::{self, Unit};
use crate::wire::{self, Tag};
use crate::{Error, Init, Result, Rootfs, hooks, netdev, notice, process, rdt, sys};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A container that stands and waits.
pub struct Built {
    /// Its process 1.
    pub pid: i32,
    /// A handle on it.
    pub pidfd: OwnedFd,
    /// The way to tell it to go on; closes by itself at `execve`.
    pub socket: UnixStream,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    /// Its cgroups.
    pub cgroup: Option<Cgroup>,
    /// The unit of systemd that has made them.
    pub unit: Option<Unit>,
    /// Its class of cache and memory bandwidth.
    pub rdt: Option<rdt::Placed>,
}

impl Built {
    /// Where its processes are held.
    pub fn groups(&self) -> Groups<'_> {
        Groups { cgroup: self.cgroup.as_ref(), unit: self.unit.as_ref(), rdt: self.rdt.as_ref() }
    }

    /// Ends what was built, and removes its cgroups.
    pub fn undo(&self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::waitpid(self.pid, 0);
        if let Some(placed) = &self.rdt {
            rdt::release(placed);
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill_all();
            let _ = systemd::release(self.unit.as_ref());
            let _ = cgroup.delete();
        }
    }
}

/// Builds the container. On failure the process and the cgroups are gone again.
/// `meanwhile` is done while the first process is busy with its mounts.
pub fn build(plan: &Plan<'_>, meanwhile: &dyn Fn() -> Result<()>) -> Result<Built> {
    let linux =
        plan.request.spec.linux.as_ref().ok_or_else(|| Error::invalid("linux", "missing from the configuration"))?;
    refuse_unsupported(plan)?;
    let cgroup = if plan.systemd { systemd::check().map(|()| None) } else { make_cgroup(plan, linux) }?;
    match build_in(plan, linux, cgroup.as_ref(), meanwhile) {
        Ok(mut built) => {
            built.cgroup = built.cgroup.or(cgroup);
            Ok(built)
        }
        Err(error) => {
            if let Some(cgroup) = cgroup {
                let _ = cgroup.kill_all();
                let _ = cgroup.delete();
            }
            Err(error)
        }
    }
}

/// Nothing that a configuration asks for is passed over in silence.
fn refuse_unsupported(plan: &Plan<'_>) -> Result<()> {
    let spec = &plan.request.spec;
    let linux = spec.linux.as_ref();
    if linux.is_some_and(|l| !l.net_devices.is_empty() && !l.has_namespace(NamespaceKind::Network)) {
        return Err(Error::invalid("linux.netDevices", "they need a network namespace of the container's own"));
    }
    if mount_label(linux).is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(Error::Unsupported {
            what: "linux.mountLabel".to_owned(),
            why: "SELinux is not enabled on this host".to_owned(),
            cure: "leave it out of the configuration",
        });
    }
    if let Some(rdt) = linux.and_then(|l| l.intel_rdt.as_ref()) {
        rdt::check(rdt)?;
    }
    let checks: [(&str, bool); 2] = [
        (
            "seccomp notification with ilot's own init",
            plan.request.listener.is_some() && plan.request.init == Init::Builtin,
        ),
        ("a container without a mount namespace", linux.is_some_and(|l| !l.has_namespace(NamespaceKind::Mount))),
    ];
    match checks.iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((what, _)) => Err(Error::Unsupported {
            what: (*what).to_owned(),
            why: "this version of ilot cannot do that".to_owned(),
            cure: "leave it out of the configuration",
        }),
    }
}

/// The label of mounts, if there is one to set.
pub(super) fn mount_label(linux: Option<&Linux>) -> Option<&str> {
    linux.and_then(|l| l.mount_label.as_deref()).filter(|label| !label.is_empty())
}

pub(crate) fn make_cgroup(plan: &Plan<'_>, linux: &Linux) -> Result<Option<Cgroup>> {
    let Some(path) = &linux.cgroups_path else {
        return Ok(None);
    };
    let layout = Layout::detect().map_err(cgroup_error)?;
    let none = Resources::default();
    let resources = linux.resources.as_ref().unwrap_or(&none);
    // Devices are out of an ordinary user's reach anyway.
    let own = plan.rootless.then(|| Resources { devices: Vec::new(), ..resources.clone() });
    let resources = own.as_ref().unwrap_or(resources);
    let cgroup = match Cgroup::create(&layout, path, resources) {
        // Where an ordinary user may make none, a container that asks for no limit goes without.
        Err(_) if plan.rootless && *resources == none => return Ok(None),
        other => other.map_err(cgroup_error)?,
    };
    notice::debug(|| format!("control groups: {:?}", cgroup.paths()));
    if let Err(error) = delegate(plan, linux, &cgroup) {
        let _ = cgroup.delete();
        return Err(error);
    }
    Ok(Some(cgroup))
}

/// Gives the group to the container's user where that is to divide it (`config-linux.md`, "Cgroup ownership"): there is a
/// new cgroup namespace, and the file system is mounted to be written.
fn delegate(plan: &Plan<'_>, linux: &Linux, cgroup: &Cgroup) -> Result<()> {
    let writable = |m: &Mount| m.is_cgroup() && !m.options.iter().any(|o| o == "ro" || o == "rro");
    let divides = plan.request.init == Init::Image
        && linux.makes(NamespaceKind::Cgroup)
        && plan.request.spec.mounts.iter().any(writable);
    let user = plan.request.spec.process.as_ref().map_or((0, 0), |p| (p.user.uid, p.user.gid));
    match IdMapping::to_host(&linux.uid_mappings, user.0).filter(|_| divides) {
        None => Ok(()),
        Some(uid) => {
            let gid = IdMapping::to_host(&linux.gid_mappings, user.1).unwrap_or(uid);
            cgroup.delegate(uid, gid).map_err(cgroup_error)
        }
    }
}

/// An error of the cgroup module with its own words.
pub(crate) fn cgroup_error(error: impl std::fmt::Display) -> Error {
    Error::invalid("cgroup", error.to_string())
}

fn build_in(
    plan: &Plan<'_>,
    linux: &Linux,
    cgroup: Option<&Cgroup>,
    meanwhile: &dyn Fn() -> Result<()>,
) -> Result<Built> {
    let fail = |e: std::io::Error| Error::system("make", "the container's first process", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    // Into the v2 group by `clone3`; into v1 groups by the child itself: neither has to wait. A tight limit is worth
    // waiting: what the kernel needs for namespaces and mounts is counted where they are made.
    let into = cgroup.filter(|c| c.has_v1() || !tight(linux)).and_then(Cgroup::v2_fd);
    let joined = Joined::open(linux)?;
    let in_v2 = into.is_some() && joined.user.is_none();
    let joiner = cgroup.map(|c| c.joiner(in_v2)).transpose().map_err(cgroup_error)?;
    let flags = clone_flags(linux);
    // SAFETY: callers (keeper, ilot-oci) have one thread.
    let cloned = unsafe { joined.clone_process(flags, into, |e| clone_error(e, linux)) }?;
    let Some(cloned) = cloned else {
        drop(ours);
        child::main(plan, cgroup, joiner.as_ref(), theirs);
    };
    notice::debug(|| format!("first process {} is in its namespaces", cloned.pid));
    drop(theirs);
    let mut built = Built {
        pid: cloned.pid,
        pidfd: cloned.pidfd,
        socket: ours,
        terminal: None,
        cgroup: None,
        unit: None,
        rdt: None,
    };
    match enter_groups(plan, linux, &mut built).and_then(|()| furnish(plan, linux, &built, meanwhile)) {
        Ok(terminal) => Ok(Built { terminal, ..built }),
        Err(error) => {
            // The child may have said why before it ended; that is the better answer.
            let error = match error.errno() {
                Some(libc::EPIPE | libc::ECONNRESET | libc::ESRCH) => {
                    wire::expect(&built.socket, Tag::Done, &plan.request.id, "first process ended early")
                        .err()
                        .unwrap_or(error)
                }
                _ => error,
            };
            built.undo();
            Err(error)
        }
    }
}

/// Puts the first process, which waits, where only others can put it.
fn enter_groups(plan: &Plan<'_>, linux: &Linux, built: &mut Built) -> Result<()> {
    if plan.systemd {
        enter_scope(plan, linux, built)?;
    }
    if let Some(wanted) = &linux.intel_rdt {
        built.rdt = Some(rdt::enter(wanted, &plan.request.id, built.pid)?);
    }
    Ok(())
}

/// Has systemd move the first process, which waits, into a scope of its own.
fn enter_scope(plan: &Plan<'_>, linux: &Linux, built: &mut Built) -> Result<()> {
    let (unit, cgroup) = systemd::start(&plan.request.spec, &plan.request.id, built.pid, plan.rootless)?;
    (built.unit, built.cgroup) = (Some(unit), Some(cgroup));
    match &built.cgroup {
        Some(cgroup) => delegate(plan, linux, cgroup),
        None => Ok(()),
    }
}

/// Whether the making of a container, some hundred kilobytes, could be too much for its memory limit.
fn tight(linux: &Linux) -> bool {
    const AMPLE: i64 = 4 << 20;
    let limit = linux.resources.as_ref().and_then(|r| r.memory.as_ref()?.limit);
    limit.is_some_and(|l| (1..AMPLE).contains(&l))
}

/// Namespaces made by `clone3`; cgroup and time namespaces are made by the child itself.
fn clone_flags(linux: &Linux) -> u64 {
    let made = |n: &&Namespace| n.path.is_none() && !matches!(n.kind, NamespaceKind::Cgroup | NamespaceKind::Time);
    linux.namespaces.iter().filter(made).fold(0, |flags, n| flags | flag_and_name(n.kind).0 as u64)
}

fn clone_error(error: std::io::Error, linux: &Linux) -> Error {
    let user = linux.has_namespace(NamespaceKind::User);
    match error.raw_os_error() {
        Some(libc::ENOSPC) if user => Error::Unsupported {
            what: "user namespaces".to_owned(),
            why: "none can be made on this host (any more)".to_owned(),
            cure: "raise `sysctl user.max_user_namespaces`",
        },
        Some(libc::EPERM) if user => Error::Unsupported {
            what: "namespaces".to_owned(),
            why: "the kernel does not allow to make them".to_owned(),
            cure: "run as root and not in a chroot; in a container or under a security module, allow user namespaces",
        },
        _ => Error::system("make", "the container's namespaces", error),
    }
}

/// Maps, root file system, bind mounts; ends when the child is ready.
fn furnish(
    plan: &Plan<'_>,
    linux: &Linux,
    built: &Built,
    meanwhile: &dyn Fn() -> Result<()>,
) -> Result<Option<OwnedFd>> {
    let pid = built.pid;
    let id = &plan.request.id;
    let mut userns = None;
    if plan.has_user_namespace() {
        if linux.makes(NamespaceKind::User) {
            idmap::write(pid, &linux.uid_mappings, &linux.gid_mappings)?;
        }
        let path = format!("/proc/{pid}/ns/user");
        userns = Some(open_path(Path::new(&path))?);
    }
    if let Some(process) = &plan.request.spec.process {
        process::set_limits(process, pid)?;
    }
    give_stdio(plan, linux)?;
    let userns = userns.as_ref().map(AsFd::as_fd);
    let fds = if plan.rootless { Vec::new() } else { open_sources(plan, linux, userns)? };
    if fds.len() > wire::MAX_FDS {
        return Err(Error::invalid("mounts", format!("more than {} bind mounts", wire::MAX_FDS - 1)));
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let said = |e: std::io::Error| Error::system("talk to", "the first process", e);
    wire::send(&built.socket, Tag::Request, &[], &borrowed).map_err(said)?;
    drop(fds);
    if !linux.net_devices.is_empty() {
        let netns = open_path(Path::new(&format!("/proc/{pid}/ns/net")))?;
        netdev::move_all(&linux.net_devices, netns.as_fd())?;
    }
    meanwhile()?;
    let hooks = &plan.request.spec.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        wire::expect(&built.socket, Tag::Done, id, "first process ended early")?;
        let state = hooks::state_json(id, "creating", Some(pid), plan.bundle, &plan.request.spec.annotations);
        hooks::run("prestart", &hooks.prestart, &state)?;
        hooks::run("createRuntime", &hooks.create_runtime, &state)?;
        wire::send(&built.socket, Tag::Go, &[], &[]).map_err(said)?;
    }
    let mut ready = wire::expect(&built.socket, Tag::Done, id, "first process ended early")?;
    Ok(ready.fds.pop())
}

pub(crate) fn open_path(path: &Path) -> Result<OwnedFd> {
    fs::File::open(path).map(OwnedFd::from).map_err(|e| Error::path("open", path, e))
}

/// The mounts of the root file system and of every bind mount, attached nowhere. Without root's rights only the first
/// process can make them, in its own mount namespace.
pub(super) fn open_sources(plan: &Plan<'_>, linux: &Linux, userns: Option<BorrowedFd<'_>>) -> Result<Vec<OwnedFd>> {
    let owner = rootfs::Owner { userns, uids: &linux.uid_mappings, gids: &linux.gid_mappings };
    let mut fds = vec![rootfs::make(&plan.request.rootfs, &owner)?];
    for mount in &plan.request.spec.mounts {
        fds.extend(open_bind(mount, linux, userns)?);
    }
    Ok(fds)
}

/// Pipes belong to the container's user, so that `/dev/stdout` can be opened there.
fn give_stdio(plan: &Plan<'_>, linux: &Linux) -> Result<()> {
    let (Some(stdio), Some(process)) = (&plan.stdio, &plan.request.spec.process) else {
        return Ok(());
    };
    if !matches!(plan.request.stdio, crate::Stdio::Log { .. }) {
        return Ok(());
    }
    let host = |map: &[IdMapping], id: u32| if map.is_empty() { Some(id) } else { IdMapping::to_host(map, id) };
    let uid = host(&linux.uid_mappings, process.user.uid);
    let gid = host(&linux.gid_mappings, process.user.gid);
    for fd in &stdio[1..] {
        std::os::unix::fs::fchown(fd, uid, gid)
            .map_err(|e| Error::system("give", "output pipe to the container", e))?;
    }
    Ok(())
}

/// Opens the source of a bind mount on the host, as a detached mount with its attributes.
fn open_bind(mount: &Mount, linux: &Linux, userns: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>> {
    let options = Options::parse(&mount.options);
    let Some(recursive) = bind_kind(mount, &options) else {
        return Ok(None);
    };
    let source = mount
        .source
        .as_deref()
        .ok_or_else(|| Error::invalid(format!("mount `{}`", mount.destination), "a bind mount needs a source"))?;
    let fd = mounts::clone_tree(Path::new(source), recursive)?;
    // Maps count without the option too: it tells older runtimes, and whether what lies below is meant.
    if let Some(below) = options.idmap.or((!mount.uid_mappings.is_empty()).then_some(false)) {
        let own = mapped_namespace(mount, &options, linux)?;
        let namespace = own.as_ref().map(AsFd::as_fd).or(userns).ok_or_else(|| {
            Error::invalid(format!("mount `{}`", mount.destination), "`idmap` needs a user namespace")
        })?;
        mounts::idmap(fd.as_fd(), namespace, below).map_err(|e| Error::path("idmap", Path::new(source), e))?;
    }
    // The host's mounts are mostly shared: without a wish for it, nothing that is mounted inside
    // may show outside, or the other way round.
    for (flag, recursive) in bind_propagation(&options, recursive) {
        let attr = MountAttr { propagation: flag, ..Default::default() };
        sys::mount_setattr(fd.as_fd(), recursive, &attr)
            .map_err(|e| Error::path("set propagation of", Path::new(source), e))?;
    }
    mounts::apply_changes(fd.as_fd(), &options, &format!("mount `{}`", mount.destination))?;
    Ok(Some(fd))
}

/// The changes of propagation for a bind mount: private without a wish. What comes along below must not stay shared
/// with the host where less than that is asked for the top.
fn bind_propagation(options: &Options, recursive: bool) -> Vec<(u64, bool)> {
    if options.propagation.is_empty() {
        return vec![(libc::MS_PRIVATE, true)];
    }
    let below = |flag: u64| match flag {
        libc::MS_UNBINDABLE => Some((libc::MS_PRIVATE, true)),
        libc::MS_PRIVATE | libc::MS_SLAVE => Some((flag, true)),
        _ => None,
    };
    let first = options.propagation.iter().find(|_| recursive).and_then(|(flag, _)| below(*flag));
    first.into_iter().chain(options.propagation.iter().copied()).collect()
}

/// Whether a mount is a bind mount, and if so, a recursive one.
pub(crate) fn bind_kind(mount: &Mount, options: &Options) -> Option<bool> {
    if options.remount {
        return None;
    }
    options.bind.or_else(|| (mount.kind.as_deref() == Some("bind")).then_some(false))
}

/// A user namespace with a mount's own id maps, if it has some: those of the specification, else of crun's `idmap=…`.
fn mapped_namespace(mount: &Mount, options: &Options, linux: &Linux) -> Result<Option<OwnedFd>> {
    if !mount.uid_mappings.is_empty() {
        return user_namespace(&mount.uid_mappings, &mount.gid_mappings).map(Some);
    }
    let Some(text) = &options.id_maps else { return Ok(None) };
    let bad = |why: String| Error::invalid(format!("mount `{}`", mount.destination), why);
    let maps = idmap::of_option(text, &linux.uid_mappings, &linux.gid_mappings).map_err(bad)?;
    user_namespace(&maps.0, &maps.1).map(Some)
}

/// A user namespace with the given maps that holds no process.
pub(crate) fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let fail = |e: std::io::Error| Error::system("make", "a user namespace", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    // SAFETY: callers have one thread; the child only waits.
    let child = unsafe { sys::clone_process(libc::CLONE_NEWUSER as u64, None) }.map_err(fail)?;
    let Some(child) = child else {
        drop(ours);
        let mut byte = [0u8];
        let _ = std::io::Read::read(&mut (&theirs), &mut byte);
        // SAFETY: ends the copy at once.
        unsafe { libc::_exit(0) };
    };
    let result = idmap::write(child.pid, uids, gids)
        .and_then(|()| open_path(Path::new(&format!("/proc/{}/ns/user", child.pid))));
    drop((ours, theirs));
    let _ = sys::waitpid(child.pid, 0);
    result
}

/// Whether the tree is to be read-only in the end.
pub(super) fn is_readonly(rootfs: &Rootfs) -> bool {
    matches!(rootfs, Rootfs::Dir { readonly: true, .. })
}
