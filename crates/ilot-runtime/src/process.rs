//! The last steps before `execve`: limits, user, capabilities, filter, program.

pub mod attributes;

use crate::spec::{Process, User};
use crate::{Error, Result, caps, notify, paths, seccomp, sys, users};
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Everything that is made ready before the point of no return.
pub struct Launch<'a> {
    /// What to run.
    pub process: &'a Process,
    /// Its filter.
    pub filter: Option<&'a seccomp::Program>,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Whether `stdio` is a terminal that it is to control.
    pub terminal: bool,
    /// A procfs, for the labels of security modules.
    pub proc: Option<OwnedFd>,
    /// How many descriptors from 3 on it keeps.
    pub preserve_fds: u32,
    /// Whether it keeps the session keyring.
    pub keep_keyring: bool,
    /// Whether a working directory that is not there is made, as for the container's own process.
    pub make_cwd: bool,
    /// The way to whoever takes the listener of a filter that has one.
    pub socket: &'a UnixStream,
}

/// Searched if the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Launch<'_> {
    /// Becomes the process; returns only if that fails.
    pub fn run(self) -> Error {
        match self.prepare() {
            Ok((argv, envp, path)) => search_and_exec(&argv, &envp, &path),
            Err(error) => error,
        }
    }

    fn prepare(self) -> Result<(Vec<CString>, Vec<CString>, String)> {
        let process = self.process;
        let root = open_root()?;
        let user = match &process.user.username {
            Some(name) => users::look_up(root.as_fd(), name)?,
            None => process.user.clone(),
        };
        let sets = process.capabilities.as_ref().map(caps::parse).transpose()?.unwrap_or_default();
        let envp = environment(process, root.as_fd(), &user)?;
        let path = process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH).to_owned();
        let argv = strings("process.args", process.args.iter().map(String::as_str))?;
        if argv.is_empty() {
            return Err(Error::invalid("process.args", "there is no program to run"));
        }
        default_signals();
        become_leader(&self.stdio, self.terminal)?;
        set_umask(&user);
        // A kernel without keyrings, or a filter around us, is no reason to fail.
        if !self.keep_keyring {
            let _ = sys::new_session_keyring();
        }
        attributes::set(process)?;
        attributes::set_labels(process, self.proc.as_ref().map(AsFd::as_fd))?;
        change_dir(root.as_fd(), &process.cwd, self.make_cwd)?;
        drop(root);
        let [input, output, errors] = self.stdio;
        set_stdio(&input, &output, &errors, self.preserve_fds)?;
        drop((input, output, errors));
        // Without no_new_privs, loading a filter needs a capability that is dropped below.
        if let (false, Some(filter)) = (process.no_new_privileges, self.filter) {
            load(filter, self.socket)?;
        }
        change_user(&user, &sets)?;
        if process.no_new_privileges {
            sys::set_no_new_privs().map_err(|e| Error::system("set no_new_privs", "the process", e))?;
            if let Some(filter) = self.filter {
                load(filter, self.socket)?;
            }
        }
        Ok((argv, envp, path))
    }
}

fn load(filter: &seccomp::Program, socket: &UnixStream) -> Result<()> {
    if filter.listens() {
        return notify::load(filter, socket);
    }
    filter.load(0).map(|_| ()).map_err(|e| Error::invalid("seccomp", e.to_string()))
}

/// The root directory of this process.
pub fn open_root() -> Result<OwnedFd> {
    rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system("open", "the root directory", e))
}

/// Every signal as a new program expects it: none blocked, none ignored (as ours is, `SIGPIPE`).
pub fn default_signals() {
    // SAFETY: numbers, and a set that is filled before use.
    unsafe {
        // By number: libc keeps two signals to itself, which a spawn from a program with threads
        // leaves ignored. All zero is the kernel's structure for the default action.
        let default = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8);
        }
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// A new session, so that no terminal of the host is reachable (`TIOCSTI`), with the container's
/// own terminal if it has one.
fn become_leader(stdio: &[OwnedFd; 3], terminal: bool) -> Result<()> {
    // Fails only for a process that leads a group already, which is as good.
    let _ = rustix::process::setsid();
    if terminal {
        rustix::process::ioctl_tiocsctty(&stdio[0]).map_err(|e| Error::system("take", "the terminal", e))?;
    }
    Ok(())
}

fn set_stdio(input: &OwnedFd, output: &OwnedFd, errors: &OwnedFd, preserve: u32) -> Result<()> {
    let set = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(input)?;
        rustix::stdio::dup2_stdout(output)?;
        rustix::stdio::dup2_stderr(errors)
    };
    set().map_err(|e| Error::system("set", "standard input and output", e))?;
    // All else of ours ends at `execve`, whoever opened it.
    sys::close_from(3 + preserve as i32, true).map_err(|e| Error::system("close", "descriptors", e))
}

/// Sets the resource limits and the OOM score of a process of ours (0: this one), from outside:
/// inside a user namespace nothing can be raised.
pub fn set_limits(process: &Process, pid: i32) -> Result<()> {
    for (i, limit) in process.rlimits.iter().enumerate() {
        if process.rlimits[..i].iter().any(|other| other.kind == limit.kind) {
            return Err(Error::invalid("process.rlimits", format!("`{}` is there twice", limit.kind)));
        }
        let resource = rlimit(&limit.kind)
            .ok_or_else(|| Error::invalid("process.rlimits", format!("`{}` is not a limit", limit.kind)))?;
        let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: a valid structure for the call, and no wish for the old value.
        if unsafe { libc::prlimit64(pid, resource, &raw const value, std::ptr::null_mut()) } != 0 {
            return Err(Error::system("set limit", format!("`{}`", limit.kind), io::Error::last_os_error()));
        }
    }
    if let Some(score) = process.oom_score_adj {
        let path = match pid {
            0 => "/proc/self/oom_score_adj".to_owned(),
            pid => format!("/proc/{pid}/oom_score_adj"),
        };
        std::fs::write(&path, score.to_string()).map_err(|e| Error::path("write", std::path::Path::new(&path), e))?;
    }
    Ok(())
}

fn set_umask(user: &User) {
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022)));
}

fn rlimit(name: &str) -> Option<libc::__rlimit_resource_t> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => libc::RLIMIT_AS,
        "CORE" => libc::RLIMIT_CORE,
        "CPU" => libc::RLIMIT_CPU,
        "DATA" => libc::RLIMIT_DATA,
        "FSIZE" => libc::RLIMIT_FSIZE,
        "LOCKS" => libc::RLIMIT_LOCKS,
        "MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "NICE" => libc::RLIMIT_NICE,
        "NOFILE" => libc::RLIMIT_NOFILE,
        "NPROC" => libc::RLIMIT_NPROC,
        "RSS" => libc::RLIMIT_RSS,
        "RTPRIO" => libc::RLIMIT_RTPRIO,
        "RTTIME" => libc::RLIMIT_RTTIME,
        "SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "STACK" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

/// Goes to the working directory, making it if it is missing and `make` says so, and checks that it is inside: a
/// descriptor that leaked from the host must not become one (CVE-2024-21626).
fn change_dir(root: BorrowedFd<'_>, cwd: &str, make: bool) -> Result<()> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    if !cwd.starts_with('/') {
        return Err(Error::invalid("process.cwd", format!("`{cwd}` is not absolute")));
    }
    let fail = |e: io::Error| Error::system("change directory", format!("`{cwd}` in the container"), e);
    let dir = if make {
        paths::mkdir_in_root(root, cwd, 0o755)?
    } else {
        paths::open_in_root(root, cwd, OFlags::PATH | OFlags::DIRECTORY).map_err(|e| fail(e.into()))?
    };
    rustix::process::fchdir(&dir).map_err(|e| fail(e.into()))?;
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most the given length. Not libc's `getcwd`: that one would
    // look for another answer when the kernel says `(unreachable)`.
    let n = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    if n <= 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    if buffer[0] != b'/' {
        return Err(fail(io::Error::from_raw_os_error(libc::EXDEV)));
    }
    Ok(())
}

/// Drops all supplementary groups.
pub fn drop_groups() -> Result<()> {
    match rustix::thread::set_thread_groups(&[]) {
        // An ordinary user's namespace with that user's own group alone: the kernel allows no change (`setgroups` is
        // `deny`), and those groups mean nothing inside. Root's call does not fail so.
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) if groups_mean_nothing() => Ok(()),
        Err(e) => Err(Error::system("drop", "supplementary groups", e)),
    }
}

/// Whether the supplementary groups are the own group and such as have no number here.
fn groups_mean_nothing() -> bool {
    const OVERFLOW: u32 = 65534;
    let own = rustix::process::getegid();
    rustix::process::getgroups().is_ok_and(|list| list.iter().all(|g| *g == own || g.as_raw() == OVERFLOW))
}

/// Changes to the user with exactly the capabilities that are asked for.
fn change_user(user: &User, sets: &caps::Sets) -> Result<()> {
    caps::drop_bounding(sets.bounding)?;
    sys::keep_capabilities().map_err(|e| Error::system("keep capabilities", "the process", e))?;
    let check = |what: &'static str, id: u32, result: i32| {
        if result == 0 { Ok(()) } else { Err(Error::system(what, id.to_string(), io::Error::last_os_error())) }
    };
    let groups = &user.additional_gids;
    if groups.is_empty() {
        drop_groups()?;
    } else {
        // SAFETY: a list and its length; this process has one thread, as have the calls below.
        check("set groups", groups.len() as u32, unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: numbers only.
    check("set group", user.gid, unsafe { libc::setresgid(user.gid, user.gid, user.gid) })?;
    // SAFETY: numbers only.
    check("set user", user.uid, unsafe { libc::setresuid(user.uid, user.uid, user.uid) })?;
    // A change of user makes a process traceable again only at `execve`; be sure.
    sys::set_undumpable();
    caps::apply(sets)
}

fn strings<'a>(what: &str, list: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    list.map(|s| CString::new(s).map_err(|_| Error::invalid(what, format!("`{s}` has a null byte")))).collect()
}

fn environment(process: &Process, root: BorrowedFd<'_>, user: &User) -> Result<Vec<CString>> {
    let mut list = strings("process.env", process.env.iter().map(String::as_str))?;
    if !process.env.iter().any(|e| e.starts_with("HOME=")) {
        let home = format!("HOME={}", users::home(root, user.uid)?);
        list.extend(strings("HOME", [home.as_str()].into_iter())?);
    }
    Ok(list)
}

/// Whether the program of a process is there, by the rules of [`search_and_exec`].
pub fn look_up_program(process: &Process) -> Result<()> {
    let Some(program) = process.args.first() else { return Ok(()) };
    let fail = |e: rustix::io::Errno| {
        // Podman and others know by these words that it is not their fault.
        let words = if e == rustix::io::Errno::NOENT { " (executable file not found in $PATH)" } else { "" };
        Error::system("look for program", format!("`{program}` in the container{words}"), e)
    };
    let root = open_root()?;
    let there = |path: &str| -> rustix::io::Result<()> {
        let file = paths::open_in_root(root.as_fd(), path, OFlags::PATH)?;
        let mode = rustix::fs::fstat(&file)?.st_mode;
        match rustix::fs::FileType::from_raw_mode(mode) {
            rustix::fs::FileType::Directory => Err(rustix::io::Errno::ACCESS),
            _ if mode & 0o111 == 0 => Err(rustix::io::Errno::ACCESS),
            _ => Ok(()),
        }
    };
    if program.contains('/') {
        // What a link of procfs leads to is for `execve` to say.
        let path = if program.starts_with('/') { program.clone() } else { format!("{}/{program}", process.cwd) };
        return match there(&path) {
            Err(rustix::io::Errno::LOOP) | Ok(()) => Ok(()),
            Err(e) => Err(fail(e)),
        };
    }
    let path = process.env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut answer = rustix::io::Errno::NOENT;
    for dir in path.split(':') {
        let dir = if dir.starts_with('/') { dir } else { &process.cwd };
        match there(&format!("{dir}/{program}")) {
            Ok(()) => return Ok(()),
            Err(e) if e == rustix::io::Errno::ACCESS => answer = e,
            Err(_) => {}
        }
    }
    Err(fail(answer))
}

/// `execvpe` by the container's own `PATH`.
fn search_and_exec(argv: &[CString], envp: &[CString], path: &str) -> Error {
    let (args, env) = (sys::pointers(argv), sys::pointers(envp));
    let program = argv[0].to_string_lossy().into_owned();
    let said = format!("`{program}` in the container");
    if program.contains('/') {
        return Error::system("execute", said, sys::execve(&argv[0], &args, &env));
    }
    let mut refused = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let Ok(candidate) = CString::new(format!("{dir}/{program}")) else {
            continue;
        };
        let error = sys::execve(&candidate, &args, &env);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => refused = Some(error),
            _ => return Error::system("execute", said, error),
        }
    }
    let error = refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOENT));
    Error::system("execute", format!("{said} (searched in {path})"), error)
}
