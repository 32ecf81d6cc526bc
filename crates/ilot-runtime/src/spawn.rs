//! Starting ilot's own helper programs: found beside us, spawned without copying our memory.

use crate::{Error, Result};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Finds a helper program: in `$ILOT_LIBEXEC`, beside the running program, or in
/// `../libexec/ilot` from there.
///
/// # Errors
/// If it is in none of these places.
pub fn find_helper(name: &str) -> Result<PathBuf> {
    let mut places = Vec::new();
    if let Some(dir) = std::env::var_os("ILOT_LIBEXEC") {
        places.push(PathBuf::from(dir));
    }
    if let Some(dir) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(dir.to_owned());
        places.push(dir.join("../libexec/ilot"));
    }
    places.iter().map(|dir| dir.join(name)).find(|path| path.is_file()).ok_or_else(|| Error::Unsupported {
        what: format!("helper program `{name}`"),
        why: format!(
            "not found in {}",
            places.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
        ),
        cure: "build and install it (`cargo xtask install`), or set ILOT_LIBEXEC to its folder",
    })
}

/// Spawns `program` with `fds` as its descriptors 0, 1, 2, …; its signal mask is empty, all
/// signals are at their default, the environment is kept. Works like `vfork`: the cost does not
/// grow with our memory, and it is safe in a program with threads.
pub fn spawn(program: &Path, args: &[&str], fds: &[BorrowedFd<'_>]) -> Result<i32> {
    let fail = |code: i32| Error::path("start program", program, std::io::Error::from_raw_os_error(code));
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| fail(libc::EINVAL));
    let path = text(program.as_os_str().as_bytes())?;
    let name = program.file_name().unwrap_or(program.as_os_str());
    let mut argv = vec![text(name.as_bytes())?];
    for arg in args {
        argv.push(text(arg.as_bytes())?);
    }
    let argv = crate::sys::pointers(&argv);
    let mut actions = Actions::new().map_err(fail)?;
    // A descriptor could stand on a number that another one is to take: lift all of them first,
    // above the highest one.
    let base = 1 + fds.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0).max(fds.len() as i32);
    for (i, fd) in fds.iter().enumerate() {
        actions.dup2(fd.as_raw_fd(), base + i as i32).map_err(fail)?;
    }
    for i in 0..fds.len() as i32 {
        actions.dup2(base + i, i).map_err(fail)?;
    }
    let attributes = Attributes::new().map_err(fail)?;
    let mut pid = 0;
    // SAFETY: every pointer is to a valid object of its type and lives until the call returns.
    let code = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr().cast(),
            environ(),
        )
    };
    if code == 0 { Ok(pid) } else { Err(fail(code)) }
}

/// A container's process could reach the program that builds it by `/proc/self/exe` and write to
/// it (CVE-2019-5736): go on from behind a read-only mount, where nobody can.
pub fn protect_program() -> Result<()> {
    let path = Path::new("/proc/self/exe");
    let fail = |e: rustix::io::Errno| Error::path("protect", path, e);
    let program = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    let flags = rustix::fs::fstatvfs(&program).map_err(fail)?.f_flag;
    // SAFETY: no arguments, no failure.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let clone = crate::mounts::clone_fd(program.as_fd(), false).map_err(fail)?;
    crate::mounts::rootfs::set_readonly(clone.as_fd())?;
    let text = |s: std::ffi::OsString| CString::new(s.as_bytes()).unwrap_or_default();
    let args: Vec<CString> = std::env::args_os().map(text).collect();
    let env: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(name)
        })
        .collect();
    let error = crate::sys::execveat(clone.as_fd(), &args, &env);
    Err(Error::path("protect", path, error))
}

/// The process's environment as C sees it.
fn environ() -> *const *mut libc::c_char {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    // SAFETY: libc's own variable, valid for the life of the process.
    unsafe { environ }
}

/// `posix_spawn_file_actions_t`
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> Result<Self, i32> {
        // SAFETY: initialised by the call that follows.
        let mut actions = Self(unsafe { std::mem::zeroed() });
        // SAFETY: a valid object.
        match unsafe { libc::posix_spawn_file_actions_init(&raw mut actions.0) } {
            0 => Ok(actions),
            code => Err(code),
        }
    }

    fn dup2(&mut self, from: i32, to: i32) -> Result<(), i32> {
        // SAFETY: an initialised object and numbers.
        match unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) } {
            0 => Ok(()),
            code => Err(code),
        }
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

/// `posix_spawnattr_t`
struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> Result<Self, i32> {
        // SAFETY: initialised by the call that follows.
        let mut attributes = Self(unsafe { std::mem::zeroed() });
        // SAFETY: a valid object.
        match unsafe { libc::posix_spawnattr_init(&raw mut attributes.0) } {
            0 => {}
            code => return Err(code),
        }
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        // SAFETY: all-zero sets are filled by the two calls that follow.
        let (mut none, mut all) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: valid objects throughout.
        unsafe {
            libc::sigemptyset(&raw mut none);
            libc::sigfillset(&raw mut all);
            libc::posix_spawnattr_setsigmask(&raw mut attributes.0, &raw const none);
            libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, &raw const all);
            libc::posix_spawnattr_setflags(&raw mut attributes.0, flags as libc::c_short);
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}
