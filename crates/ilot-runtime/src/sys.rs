//! The system calls that no safe wrapper crate offers, one thin function each.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Turns the -1 of a system call into its error.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `CLONE_INTO_CGROUP`
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What `clone3` gives to the parent.
pub struct Cloned {
    /// The child's process id.
    pub pid: i32,
    /// A handle on it.
    pub pidfd: OwnedFd,
}

/// `clone3(2)`: a child in new namespaces. `None` in the child.
///
/// # Safety
/// The calling process must have one thread: the child goes on in a copy of it.
pub unsafe fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Cloned>> {
    // SAFETY: an all-zero `clone_args` is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut pidfd: libc::c_int = -1;
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    if flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: no new stack is asked for, so this behaves like `fork`; `args` outlives the call.
    let pid =
        check(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&args), size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Cloned { pid: pid as i32, pidfd }))
}

/// Attributes for [`mount_setattr`], `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttr {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, …
    pub propagation: u64,
    /// Descriptor of a user namespace for `MOUNT_ATTR_IDMAP`.
    pub userns: u64,
}

/// `MOUNT_ATTR_RDONLY`
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`
pub const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`: the mask of the three following
pub const ATTR_ATIME: u64 = 0x70;
/// `MOUNT_ATTR_NOATIME`
pub const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`
pub const ATTR_STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`
pub const ATTR_NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_NOSYMFOLLOW`
pub const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;
/// `MOUNT_ATTR_IDMAP`
pub const ATTR_IDMAP: u64 = 0x0010_0000;

/// `mount_setattr(2)` on the mount of a descriptor.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a valid empty string and `attr` has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// `close_range(2)` from `first` on, closing at once or at `execve`.
pub fn close_from(first: i32, on_exec: bool) -> io::Result<()> {
    let flags = if on_exec { libc::CLOSE_RANGE_CLOEXEC as libc::c_long } else { 0 };
    // SAFETY: descriptors are numbers here; owners of higher ones must not be used afterwards,
    // which callers see to (they are at a start or before an `execve`).
    check(unsafe {
        libc::syscall(libc::SYS_close_range, libc::c_long::from(first), libc::c_long::from(u32::MAX), flags)
    })?;
    Ok(())
}

/// A null-terminated array of pointers for `execve`.
pub fn pointers(list: &[std::ffi::CString]) -> Vec<*const libc::c_char> {
    list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// `execveat(2)`; returns only on failure.
pub fn execveat(fd: BorrowedFd<'_>, args: &[std::ffi::CString], env: &[std::ffi::CString]) -> io::Error {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with null and point to strings that live until the call ends.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// `execve(2)`; returns only on failure.
pub fn execve(path: &CStr, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> io::Error {
    // SAFETY: callers build the arrays with `pointers`, from strings that they keep.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Sets the mode of what an `O_PATH` descriptor means: `fchmodat2(2)`, before Linux 6.6 by its name in procfs.
pub fn chmod_path(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    const FCHMODAT2: libc::c_long = 452;
    // SAFETY: an empty string and numbers.
    let done =
        unsafe { libc::syscall(FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode as libc::mode_t, libc::AT_EMPTY_PATH) };
    match check(done) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
        other => return other.map(|_| ()),
    }
    let proc = rustix::fs::open("/proc/self/fd", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    if rustix::fs::fstatfs(&proc)?.f_type != PROC_SUPER_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::EXDEV));
    }
    let name = fd.as_raw_fd().to_string();
    Ok(rustix::fs::chmodat(&proc, name, rustix::fs::Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())?)
}

/// `PR_SET_DUMPABLE` 0: nobody of another user namespace may trace this process.
pub fn set_undumpable() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// `PR_SET_NAME`
pub fn set_name(name: &CStr) {
    // SAFETY: a valid string, of which the kernel copies 16 bytes at most.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// `PR_SET_NO_NEW_PRIVS`
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::c_long::from(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) })?;
    Ok(())
}

/// `PR_SET_KEEPCAPS` 1: the permitted set survives the change of user.
pub fn keep_capabilities() -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::c_long::from(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)) })?;
    Ok(())
}

/// `PR_SET_CHILD_SUBREAPER` is not wanted: the kernel's default is; this is `PR_CAPBSET_DROP`.
pub fn drop_bounding(capability: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::c_long::from(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0)) })?;
    Ok(())
}

/// `PR_CAP_AMBIENT_CLEAR_ALL`, then `PR_CAP_AMBIENT_RAISE` for each.
pub fn set_ambient(mask: u64) -> io::Result<()> {
    let call = |operation: libc::c_int, capability: u64| {
        // SAFETY: takes numbers only.
        check(unsafe { libc::c_long::from(libc::prctl(libc::PR_CAP_AMBIENT, operation, capability, 0, 0)) })
    };
    call(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|c| mask & (1 << c) != 0) {
        call(libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
}

/// `cap_user_header_t`
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `cap_user_data_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The permitted set of this thread, `capget(2)`.
pub fn permitted_capabilities() -> io::Result<u64> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: the structures are those of version 3 of the call.
    check(unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_mut(&mut header), data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// `capset(2)` of this thread.
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let part = |shift: u32| CapabilityData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: the structures are those of version 3 of the call.
    check(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), data.as_ptr()) })?;
    Ok(())
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`: a new, anonymous session keyring.
pub fn new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 1 as libc::c_long, std::ptr::null::<libc::c_char>()) })?;
    Ok(())
}

/// `setns(2)` by process handle, several namespaces at once.
pub fn setns(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), kinds) }))?;
    Ok(())
}

/// `pidfd_send_signal(2)`, with any signal number (real-time ones too).
pub fn pidfd_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: a null siginfo asks for the default.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}

/// The process of a handle, by this process's numbers.
pub fn pid_of(fd: BorrowedFd<'_>) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pid:"))?;
    line.trim().parse().ok().filter(|pid| *pid > 0)
}

/// `waitpid(2)`: the raw status, `None` if nothing has ended (only with `WNOHANG`).
pub fn waitpid(pid: i32, flags: i32) -> io::Result<Option<(i32, i32)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        let result = unsafe { libc::waitpid(pid, &raw mut status, flags) };
        if result > 0 {
            return Ok(Some((result, status)));
        }
        if result == 0 {
            return Ok(None);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Exit code and signal of a raw wait status.
pub fn decode_status(status: i32) -> (i32, Option<i32>) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

/// Whether a process handle's process has ended.
pub fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    poll_readable(pidfd, 0).unwrap_or(true)
}

/// Waits until a descriptor can be read (a process handle: until the process has ended);
/// `false` after `milliseconds`, -1 meaning no limit.
pub fn poll_readable(fd: BorrowedFd<'_>, milliseconds: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid entry.
        let n = unsafe { libc::poll(&raw mut entry, 1, milliseconds) };
        if n >= 0 {
            return Ok(n > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The time now, nanoseconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Brings the loopback interface of this network namespace up, `netdevice(7)`.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: numbers only.
    let fd =
        check(libc::c_long::from(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }))?;
    // SAFETY: just made, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // SAFETY: an all-zero `ifreq` is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
    }))?;
    Ok(())
}
