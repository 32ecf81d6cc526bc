//! The root file system as one mount that is attached nowhere, so that it never shows in the
//! host's mount table and goes away with the last descriptor.

use super::{apply_changes, clone_tree, explain, idmap, options::Options};
use crate::spec::IdMapping;
use crate::{Error, Result, Rootfs, paths, sys, wire};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Whose ids the tree is seen with.
pub struct Owner<'a> {
    /// The container's user namespace; `None` without one.
    pub userns: Option<BorrowedFd<'a>>,
    /// Its user id map.
    pub uids: &'a [IdMapping],
    /// Its group id map.
    pub gids: &'a [IdMapping],
}

/// Makes the mount of a root file system.
pub fn make(rootfs: &Rootfs, owner: &Owner<'_>) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Dir { path, readonly: _, idmap: wanted } => {
            let mount = clone_tree(path, !wanted)?;
            let private = sys::MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
            sys::mount_setattr(mount.as_fd(), true, &private).map_err(|e| Error::path("make private", path, e))?;
            if let (true, Some(userns)) = (*wanted, owner.userns) {
                idmap_layer(mount.as_fd(), userns, path)?;
            }
            Ok(mount)
        }
        Rootfs::Overlay { lowers, upper, work, volatile } => {
            let mut layers = Vec::with_capacity(lowers.len());
            for path in lowers {
                let layer = clone_tree(path, false)?;
                if let Some(userns) = owner.userns {
                    idmap_layer(layer.as_fd(), userns, path)?;
                }
                layers.push(layer);
            }
            let Some(top) = lowers.first() else {
                return Err(Error::invalid("rootfs", "an overlay needs at least one layer"));
            };
            forget_volatile(work)?;
            let top = Writable::make(upper, work, top, owner)?;
            overlay(&layers, &top, *volatile, owner.userns.is_some())
        }
    }
}

fn idmap_layer(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, path: &Path) -> Result<()> {
    idmap(mount, userns, false).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS) => Error::Unsupported {
            what: format!("layer `{}`", path.display()),
            why: "its file system cannot be idmapped".to_owned(),
            cure: "keep the store on ext4, btrfs, xfs or tmpfs, on Linux 5.19 or newer",
        },
        _ => Error::path("idmap layer", path, error),
    })
}

/// The writable directories of an overlay.
pub(crate) struct Writable {
    /// As they are on the host.
    upper: OwnedFd,
    work: OwnedFd,
    /// Where they are on the host.
    paths: (PathBuf, PathBuf),
    /// The same two in a mount of their own: so that the container's mount table does not tell
    /// where they are on the host.
    detached: Option<Detached>,
}

impl Writable {
    /// Makes and opens the directories; the upper's root looks like the top layer's.
    pub(crate) fn make(upper: &Path, work: &Path, top: &Path, owner: &Owner<'_>) -> Result<Self> {
        let is_new = make_dir(upper)?;
        make_dir(work)?;
        let fds = (paths::open_host_dir(upper)?, paths::open_host_dir(work)?);
        if is_new {
            dress(upper, &fds.0, top, owner)?;
        }
        Ok(Self {
            detached: detach(upper, work),
            paths: (upper.to_owned(), work.to_owned()),
            upper: fds.0,
            work: fds.1,
        })
    }
}

/// The kernel refuses an upper layer that was used without syncs before. Within one life of the
/// host nothing can have been lost: then the mark is taken away.
fn forget_volatile(work: &Path) -> Result<()> {
    let mark = work.join("work/incompat/volatile");
    let Ok(meta) = std::fs::symlink_metadata(&mark) else {
        return Ok(());
    };
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    if meta.mtime() < now - up {
        return Err(Error::Unsupported {
            what: format!("writable layer beside `{}`", work.display()),
            why: "it was used without syncs, and the host was restarted since".to_owned(),
            cure: "its content may be damaged: delete the machine and make it anew",
        });
    }
    let incompat = work.join("work/incompat");
    std::fs::remove_dir_all(&incompat).map_err(|e| Error::path("remove", &incompat, e))
}

/// Never with its parents: whoever removes a machine moves its directory away, and a keeper that is still at work for a
/// creator that was killed must not make a new one in its place.
fn make_dir(path: &Path) -> Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::path("make directory", path, e)),
    }
}

/// Gives a new upper directory the owner and mode of the top layer's root.
fn dress(upper: &Path, fd: &OwnedFd, top: &Path, owner: &Owner<'_>) -> Result<()> {
    let meta = std::fs::metadata(top).map_err(|e| Error::path("look at layer", top, e))?;
    let host = |map: &[IdMapping], id: u32| {
        if owner.userns.is_none() {
            Some(id)
        } else {
            IdMapping::to_host(map, id).or_else(|| IdMapping::to_host(map, 0))
        }
    };
    let (uid, gid) = (host(owner.uids, meta.uid()), host(owner.gids, meta.gid()));
    let set = || -> rustix::io::Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        // Not by descriptor: `fchmod` refuses one that was opened with O_PATH.
        rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), Mode::from_raw_mode(meta.mode() & 0o7777))
    };
    set().map_err(|e| Error::path("set owner and mode", upper, e))
}

/// Two directories in a detached mount, which ends with its descriptor.
struct Detached {
    upper: OwnedFd,
    work: OwnedFd,
    _mount: OwnedFd,
}

/// Both directories in one detached mount of their common parent, if they have one.
fn detach(upper: &Path, work: &Path) -> Option<Detached> {
    let parent = upper.parent().filter(|p| work.parent() == Some(*p))?;
    let mount = clone_tree(parent, false).ok()?;
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&mount, path.file_name()?, flags, Mode::empty()).ok()
    };
    Some(Detached { upper: open(upper)?, work: open(work)?, _mount: mount })
}

/// The overlay of detached layers; kernels that cannot take those do it the old way.
fn overlay(layers: &[OwnedFd], top: &Writable, volatile: bool, userns: bool) -> Result<OwnedFd> {
    match overlay_detached(layers, top, volatile, userns) {
        // Before 6.15 a layer must be attached in our own mount namespace; before 6.13 it
        // cannot be given by descriptor (before 6.5: `EOPNOTSUPP`). None has an error number of its own.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EBADF | libc::EPERM | libc::EOPNOTSUPP)) => {
            overlay_attached(layers, top, volatile, userns)
                .map_err(|second| if second.errno() == error.errno() { error } else { second })
        }
        other => other,
    }
}

fn overlay_detached(layers: &[OwnedFd], top: &Writable, volatile: bool, userns: bool) -> Result<OwnedFd> {
    let (upper, work) = match &top.detached {
        Some(detached) => (&detached.upper, &detached.work),
        None => (&top.upper, &top.work),
    };
    let direct = |fd: BorrowedFd<'_>| -> rustix::io::Result<()> {
        for layer in layers {
            fsconfig_set_fd(fd, "lowerdir+", layer)?;
        }
        fsconfig_set_fd(fd, "upperdir", upper)?;
        fsconfig_set_fd(fd, "workdir", work)
    };
    mount_overlay(direct, volatile, userns)
}

/// One overlay whose layers `configure` names.
fn mount_overlay(
    configure: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<()>,
    volatile: bool,
    userns: bool,
) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Error::system("mount file system", "`overlay`", e))?;
    let fd = context.as_fd();
    let done = || -> rustix::io::Result<OwnedFd> {
        fsconfig_set_string(fd, "source", "ilot")?;
        configure(fd)?;
        if volatile {
            fsconfig_set_flag(fd, "volatile")?;
        }
        fsconfig_create(fd)?;
        // Device nodes of an image must not open in a user namespace's container.
        let attr = if userns { MountAttrFlags::MOUNT_ATTR_NODEV } else { MountAttrFlags::empty() };
        fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, attr)
    };
    done().map_err(|e| explain("mount file system", "`overlay`", fd, e))
}

/// The way of older kernels: a short-lived process attaches the layers in a mount namespace of
/// its own, mounts the overlay there and hands its descriptor out.
pub(crate) fn overlay_attached(layers: &[OwnedFd], top: &Writable, volatile: bool, userns: bool) -> Result<OwnedFd> {
    let fail = |e: std::io::Error| Error::system("mount file system", "`overlay`", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    // SAFETY: the keeper, which alone calls this, has one thread.
    let child = unsafe { sys::clone_process(libc::CLONE_NEWNS as u64, None) }.map_err(fail)?;
    let Some(child) = child else {
        drop(ours);
        match attach_and_mount(layers, top, volatile, userns) {
            Ok(mount) => {
                let _ = wire::send(&theirs, wire::Tag::Done, &[], &[mount.as_fd()]);
            }
            Err(error) => wire::send_error(&theirs, &error),
        }
        // SAFETY: ends this process without running what the parent's copy would run.
        unsafe { libc::_exit(0) };
    };
    drop(theirs);
    let answer = wire::expect(&ours, wire::Tag::Done, "overlay", "helper process ended early");
    sys::waitpid(child.pid, 0).map_err(fail)?;
    answer?.fds.pop().ok_or_else(|| fail(std::io::Error::from_raw_os_error(libc::EBADF)))
}

fn attach_and_mount(layers: &[OwnedFd], top: &Writable, volatile: bool, userns: bool) -> Result<OwnedFd> {
    let step = |e: Errno| Error::system("mount layers", "`overlay`", e);
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .map_err(step)?;
    // A descriptor from outside still means the host's mount: look for them anew in here.
    let upper = paths::open_host_dir(&top.paths.0)?;
    let work = paths::open_host_dir(&top.paths.1)?;
    // Seen by this process alone: what the place is on the host does not matter.
    let place = super::new_filesystem("tmpfs", Some("ilot"), &Options::default())?;
    let target = paths::open_host_dir(Path::new("/tmp")).or_else(|_| paths::open_host_dir(Path::new("/run")))?;
    super::attach(place.as_fd(), target.as_fd()).map_err(step)?;
    for (i, layer) in layers.iter().enumerate() {
        let name = i.to_string();
        rustix::fs::mkdirat(&place, &name, Mode::RWXU).map_err(step)?;
        let dir = paths::open_in_root(place.as_fd(), &name, OFlags::PATH).map_err(step)?;
        super::attach(layer.as_fd(), dir.as_fd()).map_err(step)?;
    }
    rustix::process::fchdir(&place).map_err(step)?;
    let names: Vec<String> = (0..layers.len()).map(|i| i.to_string()).collect();
    let link = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    mount_overlay(
        |fd| {
            fsconfig_set_string(fd, "lowerdir", names.join(":"))?;
            fsconfig_set_string(fd, "upperdir", link(upper.as_fd()))?;
            fsconfig_set_string(fd, "workdir", link(work.as_fd()))
        },
        volatile,
        userns,
    )
}

/// Makes the whole tree read-only.
pub fn set_readonly(mount: BorrowedFd<'_>) -> Result<()> {
    let options = Options { set: sys::ATTR_RDONLY, ..Default::default() };
    apply_changes(mount, &options, "the root file system")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// The way of kernels before 6.15 gives the same tree. (The test process has threads; the
    /// child of `overlay_attached` only makes system calls and small allocations.)
    #[test]
    fn attached_layers() {
        // SAFETY: no arguments, no failure.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            std::fs::create_dir(path(name)).unwrap();
            std::fs::write(path(name).join(name), name).unwrap();
            std::fs::write(path(name).join("both"), name).unwrap();
        }
        let owner = Owner { userns: None, uids: &[], gids: &[] };
        let top = Writable::make(&path("upper"), &path("work"), &path("a"), &owner).unwrap();
        let layers = [clone_tree(&path("a"), false).unwrap(), clone_tree(&path("b"), false).unwrap()];
        // The way of this kernel, if it is new enough: the host's paths do not show.
        if let Ok(mount) = overlay_detached(&layers, &top, true, false) {
            drop(mount);
            forget_volatile(&path("work")).unwrap();
        } else {
            eprintln!("SKIPPED in part: this kernel takes no detached layers");
        }
        let mount = overlay_attached(&layers, &top, true, false).unwrap();
        let read = |name: &str| {
            let fd = rustix::fs::openat(&mount, name, OFlags::RDONLY, Mode::empty()).unwrap();
            let mut text = String::new();
            std::fs::File::from(fd).read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!((read("a"), read("b"), read("both")), ("a".into(), "b".into(), "a".into()));
        let flags = OFlags::CREATE | OFlags::WRONLY;
        rustix::fs::openat(&mount, "new", flags, Mode::RWXU).unwrap();
        assert!(path("upper").join("new").exists());
    }
}
