//! Kernel features that containers are made of.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    open_tree,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::child::in_child;
use super::{Findings, Level, existing_ancestor};

/// Overlay on idmapped layers needs it, everything else is older.
const OLDEST: (u32, u32) = (5, 19);

pub(super) fn examine(findings: &mut Findings, root: &Path) {
    version(findings);
    if findings.is_root {
        findings.ok("root", "running as root");
    } else {
        findings.missing("root", "not running as root, so much below cannot be tried", "run it with `sudo`");
    }
    namespaces(findings);
    let store = existing_ancestor(root);
    findings.tried(
        "idmapped mounts",
        in_child(|| idmapped_mount(store)).map(|()| format!("work on the file system of {}", store.display())),
        Level::Missing,
        "keep the store on ext4, XFS, btrfs or tmpfs: `--root DIR`",
    );
    findings.tried(
        "openat2",
        openat2().map(|()| "paths can be confined to a directory".to_owned()),
        Level::Missing,
        "use Linux 5.19 or later; in a container, allow openat2 in its system-call filter",
    );
    findings.tried(
        "clone3",
        clone3().map(|()| "available".to_owned()),
        Level::Missing,
        "use Linux 5.19 or later; in a container, allow clone3 in its system-call filter",
    );
    findings.tried(
        "pidfd",
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
            .map(|_| "processes can be held by descriptor".to_owned()),
        Level::Missing,
        "use Linux 5.19 or later",
    );
    findings.tried(
        "seccomp",
        in_child(load_filter).map(|()| "system-call filters load".to_owned()),
        Level::Missing,
        "use a kernel with CONFIG_SECCOMP_FILTER",
    );
    match landlock_abi() {
        Ok(abi) => findings.ok("landlock", format!("ABI {abi}")),
        Err(error) => findings.warn(
            "landlock",
            format!("{error}"),
            "boot with `lsm=landlock,…`; machines run without this second line of defence",
        ),
    }
    findings.tried(
        "erofs",
        fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map(|_| "available".to_owned()),
        Level::Warn,
        "`modprobe erofs` where the kernel has it as a module; layers are unpacked into directories without it",
    );
}

fn version(findings: &mut Findings) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let text = format!("Linux {release} ({})", uname.machine().to_string_lossy());
    if version >= OLDEST {
        findings.ok("kernel", text);
    } else {
        findings.missing("kernel", text, "use Linux 5.19 or later (Debian 12 and Ubuntu 24.04 have it)");
    }
}

fn namespaces(findings: &mut Findings) {
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").ok();
    let limit: Option<u64> = limit.and_then(|text| text.trim().parse().ok());
    if limit == Some(0) {
        findings.missing(
            "user namespaces",
            "forbidden: user.max_user_namespaces is 0",
            "`sysctl -w user.max_user_namespaces=15000`, and keep it in /etc/sysctl.d",
        );
        return;
    }
    let made = in_child(|| {
        let all = UnshareFlags::NEWUSER
            | UnshareFlags::NEWPID
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWCGROUP;
        // SAFETY: no other thread of this child relies on what is unshared; it has none.
        unsafe { unshare_unsafe(all) }.map_err(Into::into)
    });
    let detail = format!("made, up to {} of them", limit.map_or("many".to_owned(), |limit| limit.to_string()));
    findings.tried(
        "user namespaces",
        made.map(|()| detail),
        Level::Missing,
        "use a kernel with CONFIG_USER_NS, and no chroot; in a container, allow clone and unshare",
    );
}

/// An idmapped mount of a directory of the store's file system, seen by this process only.
fn idmapped_mount(dir: &Path) -> io::Result<()> {
    let userns = mapped_user_namespace()?;
    let tree = open_tree(rustix::fs::CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(userns.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path is an empty NUL-terminated string, the attributes live across the call and their size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result)
}

/// A user namespace whose ids 0 to 65535 are those from 0x7000_0000.
fn mapped_user_namespace() -> io::Result<OwnedFd> {
    let (ready_in, ready_out) = rustix::pipe::pipe()?;
    let (hold_in, hold_out) = rustix::pipe::pipe()?;
    // SAFETY: single-threaded, as `in_child` says; the child leaves through `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == -1 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        drop(hold_out);
        // SAFETY: this process has one thread.
        let made = unsafe { unshare_unsafe(UnshareFlags::NEWUSER) };
        // The parent sees failure as an end of file without a byte; the read ends when the parent closes its side.
        if made.is_ok() {
            let _ = rustix::io::write(&ready_out, b"x");
            let _ = rustix::io::read(&hold_in, &mut [0_u8; 1]);
        }
        // SAFETY: ends the child and nothing else.
        unsafe { libc::_exit(0) }
    }
    drop(ready_out);
    drop(hold_in);
    let result = (|| {
        if rustix::io::read(&ready_in, &mut [0_u8; 1])? == 0 {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), "0 1879048192 65536")?;
        }
        Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
    })();
    drop(hold_out);
    let child = rustix::process::Pid::from_raw(pid);
    // It has ended or ends now; its status says nothing.
    let _ = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
    result
}

fn openat2() -> io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root.as_fd(), "../..", flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    Ok(())
}

/// Asks with a size that no version accepts: `EINVAL` from a kernel that knows the call.
fn clone3() -> io::Result<()> {
    // SAFETY: a null pointer of size 0 is refused before it is read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0_usize) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

fn load_filter() -> io::Result<()> {
    let allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let mut code = [allow];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the program and its one instruction live across the call; the filter ends with this child.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_usize, &raw const program) };
    check(result)
}

fn landlock_abi() -> io::Result<i64> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no attributes (landlock_create_ruleset(2)).
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    if abi < 0 { Err(io::Error::last_os_error()) } else { Ok(abi) }
}

/// An overlay whose writable layer is on the file system of `dir`, mounted as those of machines are: by descriptor. It is
/// never attached to a path, so nobody sees it and it ends with this child.
pub(super) fn overlay(dir: &Path) -> io::Result<()> {
    for part in ["lower", "upper", "work"] {
        fs::create_dir(dir.join(part))?;
    }
    fs::write(dir.join("lower/file"), "lower")?;
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, part: &str| fsconfig_set_string(overlay.as_fd(), key, dir.join(part));
    set("lowerdir", "lower")?;
    set("upperdir", "upper")?;
    set("workdir", "work")?;
    fsconfig_create(overlay.as_fd())?;
    let mounted = fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(mounted.as_fd(), "file", flags, Mode::empty())?;
    rustix::io::write(&file, b"UPPER")?;
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
