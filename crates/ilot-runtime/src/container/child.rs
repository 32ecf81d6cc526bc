//! The container's first process, from its first breath in the new namespaces to `execve`.

use super::groups::Groups;
use super::{Plan, filesystem};
use crate::cgroup::{Cgroup, Joiner};
use crate::hooks;
use crate::process::{self, Launch, attributes};
use crate::spec::{Hook, Linux, NamespaceKind, Process};
use crate::wire::{self, Tag};
use crate::{Error, Init, Result, caps, notice, sys};
use rustix::fs::{Gid, Mode, Uid};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Runs the child; every failure is told to the parent.
pub fn main(plan: &Plan<'_>, cgroup: Option<&Cgroup>, joiner: Option<&Joiner>, socket: UnixStream) -> ! {
    // An ordinary user's parent could not write our id maps then; nothing of the container runs yet.
    if !plan.rootless {
        sys::set_undumpable();
    }
    let error = match prepare(plan, cgroup, joiner, &socket) {
        Ok(ready) => {
            // Told to whoever said "start", which need not be who built the container.
            let socket = wait_for_start(plan, socket);
            let error = launch(plan, &socket, ready);
            wire::send_error(&socket, &error);
            exit(127)
        }
        Err(error) => error,
    };
    wire::send_error(&socket, &error);
    exit(127)
}

fn exit(code: i32) -> ! {
    // SAFETY: ends this copy of the parent without running what belongs to the parent.
    unsafe { libc::_exit(code) }
}

/// Waits for the parent; if it is gone, so are we.
fn wait_for(socket: &UnixStream, tag: Tag) -> Vec<OwnedFd> {
    match wire::receive(socket) {
        Ok(Some(message)) if message.tag == tag => message.fds,
        _ => exit(0),
    }
}

/// Waits for the word to start; gives the socket to answer on.
fn wait_for_start(plan: &Plan<'_>, socket: UnixStream) -> UnixStream {
    let Some(listener) = &plan.listener else {
        wait_for(&socket, Tag::Go);
        return socket;
    };
    loop {
        let Ok((other, _)) = listener.accept() else { exit(1) };
        if matches!(wire::receive(&other), Ok(Some(message)) if message.tag == Tag::Go) {
            return other;
        }
    }
}

/// What is kept for the launch.
struct Ready {
    stdio: [OwnedFd; 3],
    proc: Option<OwnedFd>,
}

/// Everything up to "ready".
fn prepare(plan: &Plan<'_>, cgroup: Option<&Cgroup>, joiner: Option<&Joiner>, socket: &UnixStream) -> Result<Ready> {
    let spec = &plan.request.spec;
    let linux = spec.linux.as_ref().ok_or_else(|| Error::invalid("linux", "missing"))?;
    let mut fds = wait_for(socket, Tag::Request);
    sys::set_undumpable();
    if linux.makes(NamespaceKind::Time) {
        super::namespaces::new_time(linux)?;
    }
    if linux.has_namespace(NamespaceKind::User) {
        become_root()?;
    }
    if plan.rootless {
        fds = super::parent::open_sources(plan, linux, None)?;
    }
    let mut fds = fds.into_iter();
    let root = fds.next().ok_or_else(|| Error::invalid("rootfs", "no descriptor came"))?;
    // Modes are meant exactly, whatever the caller's umask is.
    let umask = rustix::process::umask(Mode::empty());
    let mut tree = filesystem::Tree::attach(root)?;
    tree.mount_all(spec, &mut fds, None)?;
    notice::debug(|| format!("{} mounts are made", spec.mounts.len()));
    tree.furnish_dev(spec, plan.has_user_namespace())?;
    names(plan, linux)?;
    if linux.makes(NamespaceKind::Network) {
        sys::loopback_up().map_err(|e| Error::system("bring up", "the loopback interface", e))?;
    }
    // As late as possible: what the kernel needs for all these mounts must not count against a
    // small memory limit.
    if let Some(joiner) = joiner {
        joiner.join().map_err(super::cgroup_error)?;
    }
    if linux.makes(NamespaceKind::Cgroup) {
        // SAFETY: one thread; nothing of ours depends on the cgroup namespace.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }
            .map_err(|e| Error::system("make", "the cgroup namespace", e))?;
    }
    let groups = Groups { cgroup, scope: plan.systemd, namespace: linux.has_namespace(NamespaceKind::Cgroup) };
    tree.mount_all(spec, &mut std::iter::empty(), Some(&groups))?;
    let (master, stdio) = standard_streams(plan, &tree, spec.process.as_ref())?;
    tree.protect(linux)?;
    tree.write_files(&plan.request.files)?;
    rustix::process::umask(umask);
    let hooks = &spec.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        wire::send(socket, Tag::Done, &[], &[]).map_err(|e| Error::system("talk to", "the runtime", e))?;
        wait_for(socket, Tag::Go);
    }
    run_hooks(plan, "createContainer", "creating", &hooks.create_container)?;
    let proc = tree.enter(linux, super::parent::is_readonly(&plan.request.rootfs), plan.no_pivot)?;
    if let Some(process) = spec.process.as_ref().filter(|_| plan.look_up_program) {
        process::look_up_program(process)?;
    }
    notice::debug(|| "the tree is entered; the container stands and waits".to_owned());
    let master = master.as_ref().map(AsFd::as_fd);
    wire::send(socket, Tag::Done, &[], master.as_slice()).map_err(|e| Error::system("talk to", "the keeper", e))?;
    Ok(Ready { stdio, proc })
}

/// Runs hooks in the container's namespaces.
fn run_hooks(plan: &Plan<'_>, kind: &'static str, status: &str, list: &[Hook]) -> Result<()> {
    let spec = &plan.request.spec;
    let own = std::process::id() as i32;
    hooks::run(kind, list, &hooks::state_json(&plan.request.id, status, Some(own), plan.bundle, &spec.annotations))
}

/// Becomes the root user of the new user namespace.
fn become_root() -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::system("become", "root of the user namespace", e);
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    process::drop_groups()?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(fail)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(fail)?;
    // The change has made us traceable for others of this user namespace.
    sys::set_undumpable();
    Ok(())
}

fn names(plan: &Plan<'_>, linux: &Linux) -> Result<()> {
    let spec = &plan.request.spec;
    if spec.hostname.is_none() && spec.domainname.is_none() {
        return Ok(());
    }
    if !linux.has_namespace(NamespaceKind::Uts) {
        return Err(Error::invalid("hostname", "it needs a UTS namespace of its own"));
    }
    if let Some(name) = &spec.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| Error::system("set host name", format!("`{name}`"), e))?;
    }
    if let Some(name) = &spec.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|e| Error::system("set domain name", format!("`{name}`"), e))?;
    }
    Ok(())
}

/// The process's standard streams: what the keeper gave, or a new terminal and its master.
fn standard_streams(
    plan: &Plan<'_>,
    tree: &filesystem::Tree,
    process: Option<&Process>,
) -> Result<(Option<OwnedFd>, [OwnedFd; 3])> {
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| Error::system("copy", "standard stream", e));
    if let Some([input, output, errors]) = &plan.stdio {
        return Ok((None, [copy(input)?, copy(output)?, copy(errors)?]));
    }
    let uid = process.map_or(0, |p| p.user.uid);
    let (master, slave) = tree.terminal(uid)?;
    if let Some(size) = process.and_then(|p| p.console_size) {
        let size = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).map_err(|e| Error::system("set size of", "the terminal", e))?;
    }
    let (second, third) = (copy(&slave)?, copy(&slave)?);
    Ok((Some(master), [slave, second, third]))
}

/// Becomes the container's process 1; returns only if that fails.
fn launch(plan: &Plan<'_>, socket: &UnixStream, ready: Ready) -> Error {
    let process = plan.request.spec.process.clone().unwrap_or_default();
    let launch = Launch {
        process: &process,
        filter: plan.filter.as_ref(),
        stdio: ready.stdio,
        terminal: plan.stdio.is_none(),
        proc: ready.proc,
        preserve_fds: plan.preserve_fds,
        keep_keyring: plan.keep_keyring,
        make_cwd: true,
        socket,
    };
    if let Err(error) = run_hooks(plan, "startContainer", "created", &plan.request.spec.hooks.start_container) {
        return error;
    }
    if let Some(policy) = plan.request.spec.linux.as_ref().and_then(|l| l.memory_policy.as_ref())
        && let Err(error) = attributes::set_memory_policy(policy)
    {
        return error;
    }
    if let Some(personality) = plan.request.spec.linux.as_ref().and_then(|l| l.personality.as_ref())
        && let Err(error) = attributes::set_personality(&personality.domain)
    {
        return error;
    }
    match (plan.request.init, &plan.init_program) {
        (Init::Builtin, Some(program)) => start_init(plan, program, socket, launch),
        (Init::Builtin, None) => Error::invalid("init", "the built-in one is missing"),
        (Init::Image, _) => launch.run(),
    }
}

/// Splits in two: the process itself as a child, ilot's init as process 1.
fn start_init(plan: &Plan<'_>, program: &OwnedFd, socket: &UnixStream, launch: Launch<'_>) -> Error {
    let mut child = 0;
    block_signals();
    if !launch.process.args.is_empty() {
        // SAFETY: one thread.
        match unsafe { sys::clone_process(0, None) } {
            Ok(Some(cloned)) => child = cloned.pid,
            Ok(None) => {
                let error = launch.run();
                wire::send_error(socket, &error);
                exit(127);
            }
            Err(e) => return Error::system("make", "the container's process", e),
        }
    }
    drop(launch);
    let become_init = || -> Result<(CString, CString)> {
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| Error::system("open", "`/dev/null` in the container", e))?;
        let set = || -> rustix::io::Result<()> {
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)
        };
        set().map_err(|e| Error::system("set", "standard streams of init", e))?;
        drop(null);
        sys::close_from(3, true).map_err(|e| Error::system("close", "descriptors", e))?;
        // All that init does is to hand signals on.
        caps::drop_bounding(caps::KILL)?;
        caps::apply(&caps::Sets { effective: caps::KILL, permitted: caps::KILL, ..Default::default() })?;
        sys::set_no_new_privs().map_err(|e| Error::system("set no_new_privs", "init", e))?;
        if let Some(filter) = &plan.filter {
            filter.load(0).map_err(|e| Error::invalid("seccomp", e.to_string()))?;
        }
        let text = |s: &str| CString::new(s).map_err(|_| Error::invalid("init", "null byte"));
        Ok((text("ilot-init")?, text(&child.to_string())?))
    };
    match become_init() {
        Ok((name, child)) => {
            let error = sys::execveat(program.as_fd(), &[name, child], &[]);
            Error::system("execute", "the built-in init", error)
        }
        Err(error) => error,
    }
}

/// Blocks every signal: init must not lose one before it listens.
fn block_signals() {
    // SAFETY: a set that is filled before it is used.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}
