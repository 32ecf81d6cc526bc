//! `create`, `start`, `run`: a container from a bundle.

use super::args::{Flag, Parsed, switch, value};
use super::{Global, check};
use crate::cgroup::Layout;
use crate::container::{self, Built, Plan};
use crate::exec::relay::{self, Ends};
use crate::exec::signals::Forwarded;
use crate::notice;
use crate::notify::{self, Listener};
use crate::record::{self, Request};
use crate::seccomp;
use crate::spec::{DeviceRule, Spec};
use crate::wire::{self, Tag};
use crate::{Error, Init, Result, Rootfs, Status, Stdio, hooks, sys};
use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where a created container waits for the word to start.
pub const START_SOCKET: &str = "start.sock";

/// Compiled filters by the hash of their profiles, beside the containers' folders.
const FILTERS: &str = ".filters";

const FLAGS: [Flag; 10] = [
    value("bundle", Some('b')),
    value("config", Some('f')),
    value("console-socket", None),
    value("pid-file", None),
    value("preserve-fds", None),
    switch("no-pivot", None),
    switch("no-new-keyring", None),
    switch("no-subreaper", None),
    switch("detach", Some('d')),
    switch("keep", None),
];

/// What the command line asks for.
pub struct Wanted {
    pub id: String,
    pub bundle: PathBuf,
    config: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    preserve_fds: u32,
    no_pivot: bool,
    keep_keyring: bool,
    pub detach: bool,
    pub keep: bool,
}

impl Wanted {
    fn parse(args: &mut VecDeque<String>) -> Result<Self> {
        let mut parsed = Parsed::new(args, &FLAGS, false)?;
        let id = parsed.id()?;
        Self::of(&parsed, id)
    }

    /// What the options say that a command has in common with `create` and `run`.
    pub fn of(parsed: &Parsed, id: String) -> Result<Self> {
        let absolute = |path: &str| std::path::absolute(path).map_err(|e| Error::path("find", Path::new(path), e));
        let optional = |name: &str| parsed.get(name).map(absolute).transpose();
        Ok(Self {
            id,
            bundle: absolute(parsed.get("bundle").unwrap_or("."))?,
            config: parsed.get("config").unwrap_or("config.json").into(),
            console_socket: optional("console-socket")?,
            pid_file: optional("pid-file")?,
            preserve_fds: parsed.number("preserve-fds")?.unwrap_or(0),
            no_pivot: parsed.has("no-pivot"),
            keep_keyring: parsed.has("no-new-keyring"),
            detach: parsed.has("detach"),
            keep: parsed.has("keep"),
        })
    }
}

/// `create`
pub fn create(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    crate::spawn::protect_program()?;
    let wanted = Wanted { detach: true, ..Wanted::parse(args)? };
    make(global, &wanted, true)?;
    Ok(0)
}

/// `run`
pub fn run(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    crate::spawn::protect_program()?;
    let wanted = Wanted::parse(args)?;
    let forwarded = if wanted.detach { None } else { Forwarded::begin() };
    let (request, built) = make(global, &wanted, false)?;
    let dir = &request.run_dir;
    wire::send(&built.socket, Tag::Go, &[], &[])
        .map_err(|e| Error::system("start", format!("container `{}`", wanted.id), e))?;
    let started = finish_start(&built.socket, dir, &request, &wanted.bundle, built.pid);
    if let Err(error) = started {
        let _ = sys::waitpid(built.pid, 0);
        super::change::remove(dir, &wanted.id)?;
        return Err(error);
    }
    if wanted.detach {
        return Ok(0);
    }
    let status = attend(&wanted.id, built.pid, built.pidfd.as_fd(), built.terminal.as_ref(), forwarded.as_ref())?;
    if !wanted.keep {
        super::change::remove_ended(&request, &built.groups(), &wanted.bundle)?;
    }
    Ok(sys::decode_status(status).0)
}

/// Stays with a container in the foreground until it ends; gives its raw status.
pub fn attend(
    id: &str,
    pid: i32,
    pidfd: BorrowedFd<'_>,
    terminal: Option<&OwnedFd>,
    forwarded: Option<&Forwarded>,
) -> Result<i32> {
    let master = terminal.map(AsFd::as_fd);
    if let Some(master) = master {
        relay::copy_size(master);
    }
    relay::run(&Ends { process: pidfd, input: master, output: master, stdin: true }, forwarded);
    let waited = sys::waitpid(pid, 0).map_err(|e| Error::system("wait for", format!("container `{id}`"), e))?;
    Ok(waited.unwrap_or_default().1)
}

/// `start`
pub fn start(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let id = Parsed::new(args, &[], false)?.id()?;
    let (dir, record, state) = global.find(&id)?;
    if state.status != Status::Created {
        return Err(Error::Status { what: "start", id, status: state.status, wanted: "created" });
    }
    let request = global.config(&id)?;
    if request.spec.process.is_none() {
        return Err(Error::invalid("process", "the configuration has none to start"));
    }
    let socket = connect(&dir.join(START_SOCKET))?;
    wire::send(&socket, Tag::Go, &[], &[]).map_err(|e| Error::system("start", format!("container `{id}`"), e))?;
    let bundle = record.bundle.clone().unwrap_or_default();
    finish_start(&socket, &dir, &request, &bundle, record.init.pid)?;
    let _ = fs::remove_file(dir.join(START_SOCKET));
    Ok(0)
}

/// Waits until the program runs, marks the container as started, runs the hooks of that moment.
fn finish_start(socket: &UnixStream, dir: &Path, request: &Request, bundle: &Path, pid: i32) -> Result<()> {
    notify::wait_for_program(socket, dir, request)?;
    notice::debug(|| format!("container `{}` runs its program", request.id));
    record::write_file(&dir.join(record::STARTED), &[])?;
    let spec = &request.spec;
    let state = hooks::state_json(&request.id, "running", Some(pid), bundle, &spec.annotations);
    // Past the point of no return: a hook that fails is told, and that is all (`runtime.md`).
    if let Err(error) = hooks::run("poststart", &spec.hooks.poststart, &state) {
        notice::warn(error);
    }
    Ok(())
}

/// A socket's path can be longer than the kernel takes: then it is named by its folder's descriptor.
fn short_path(path: &Path) -> Result<(PathBuf, Option<OwnedFd>)> {
    const LONGEST: usize = 107;
    if path.as_os_str().len() <= LONGEST {
        return Ok((path.to_owned(), None));
    }
    let dir = crate::paths::open_host_dir(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((short, Some(dir)))
}

/// Connects to a socket of the host.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let (short, _dir) = short_path(path)?;
    UnixStream::connect(short).map_err(|e| Error::path("connect to", path, e))
}

fn listen(path: &Path) -> Result<UnixListener> {
    let (short, _dir) = short_path(path)?;
    UnixListener::bind(short).map_err(|e| Error::path("make socket", path, e))
}

/// What is to be built, and the compiled filter; relative paths of the configuration are meant from its folder, where
/// this process goes on.
pub fn configure(global: &Global, wanted: &Wanted) -> Result<(Request, Option<seccomp::Program>)> {
    std::env::set_current_dir(&wanted.bundle).map_err(|e| Error::path("open bundle", &wanted.bundle, e))?;
    let mut spec: Spec = record::read_json(&wanted.config)?.ok_or_else(|| no_configuration(wanted))?;
    check::check(&spec)?;
    check::settle(&mut spec);
    let linux = spec.linux.get_or_insert_default();
    if linux.cgroups_path.is_none() && !global.systemd {
        linux.cgroups_path = own_place(&wanted.id);
    }
    if let Some(resources) = linux.resources.as_mut().filter(|r| !r.devices.is_empty()) {
        resources.devices.extend(default_device_rules());
    }
    let profile = linux.seccomp.take();
    let filter = profile
        .as_ref()
        .map(|p| seccomp::cached(&global.root.join(FILTERS), p))
        .transpose()
        .map_err(|e| Error::invalid("linux.seccomp", e.to_string()))?;
    if let Some(filter) = &filter {
        notice::debug(|| format!("system call filter: {} instructions", filter.instructions().len()));
    }
    let mut request = request(global, wanted, spec, filter.is_some())?;
    if wanted.detach && matches!(request.stdio, Stdio::Terminal { .. }) && wanted.console_socket.is_none() {
        return Err(Error::invalid(
            "process.terminal",
            "a detached container needs `--console-socket` for its terminal",
        ));
    }
    request.listener = profile.as_ref().map(Listener::of).transpose()?.flatten();
    Ok((request, filter))
}

fn no_configuration(wanted: &Wanted) -> Error {
    let why = format!("there is none in bundle `{}`; `ilot-oci spec` writes one", wanted.bundle.display());
    Error::invalid(format!("configuration `{}`", wanted.config.display()), why)
}

/// Builds the container; nothing is left behind on failure.
fn make(global: &Global, wanted: &Wanted, waits: bool) -> Result<(Request, Built)> {
    let (request, filter) = configure(global, wanted)?;
    make_dir(&global.root, &request.run_dir, &wanted.id)?;
    let build = || -> Result<Built> {
        let listener = waits.then(|| listen(&request.run_dir.join(START_SOCKET))).transpose()?;
        let stdio = match request.stdio {
            Stdio::Inherit => Some(own_streams()?),
            _ => None,
        };
        let plan = Plan {
            filter,
            stdio,
            listener,
            bundle: &wanted.bundle,
            preserve_fds: wanted.preserve_fds,
            no_pivot: wanted.no_pivot,
            keep_keyring: wanted.keep_keyring,
            systemd: global.systemd,
            look_up_program: true,
            ..Plan::new(&request)
        };
        let text = serde_json::to_vec(&request).map_err(|e| Error::invalid("configuration", e.to_string()))?;
        let mut built = container::build(&plan, &|| record::write_config(&request, &text, plan.filter.as_ref()))?;
        match publish(&plan, &mut built, wanted) {
            Ok(()) => Ok(built),
            Err(error) => {
                built.undo();
                Err(error)
            }
        }
    };
    match build() {
        Ok(built) => Ok((request, built)),
        Err(error) => {
            let _ = fs::remove_dir_all(&request.run_dir);
            Err(error)
        }
    }
}

/// What every container may use, whatever list of devices it comes with (`config-linux.md`,
/// "Default Devices", and making nodes, which is not using them).
pub fn default_device_rules() -> impl Iterator<Item = DeviceRule> {
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    let nodes =
        [(1, Some(3)), (1, Some(5)), (1, Some(7)), (1, Some(8)), (1, Some(9)), (5, Some(0)), (5, Some(2)), (136, None)];
    let make = [rule("c", None, None, "m"), rule("b", None, None, "m")];
    make.into_iter().chain(nodes.into_iter().map(move |(major, minor)| rule("c", Some(major), minor, "rwm")))
}

/// Where the group of a container goes that names no place: at the top, or below a group of v2 that was delegated to the
/// caller. Other ordinary users and roots of their namespaces can make none.
fn own_place(id: &str) -> Option<String> {
    let layout = Layout::detect().ok()?;
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    if layout.v1.iter().chain(&layout.v2).all(|h| writable(&h.mount)) {
        return Some(format!("/ilot-oci-{id}"));
    }
    layout.is_delegated().then(|| format!("ilot-oci-{id}"))
}

fn request(global: &Global, wanted: &Wanted, spec: Spec, filtered: bool) -> Result<Request> {
    let root = spec.root.clone().unwrap_or_default();
    let terminal = spec.process.as_ref().is_some_and(|p| p.terminal);
    if wanted.console_socket.is_some() && !terminal {
        return Err(Error::invalid("option `--console-socket`", "the process has no terminal (`process.terminal`)"));
    }
    Ok(Request {
        id: wanted.id.clone(),
        run_dir: global.dir(&wanted.id),
        rootfs: Rootfs::Dir { path: wanted.bundle.join(root.path), readonly: root.readonly, idmap: false },
        init: Init::Image,
        filtered,
        listener: None,
        stdio: if terminal { Stdio::Terminal { log: None } } else { Stdio::Inherit },
        files: Vec::new(),
        exit_command: None,
        creator: None,
        spec,
    })
}

pub fn make_dir(root: &Path, dir: &Path, id: &str) -> Result<()> {
    let fail = |e| Error::path("make directory", dir, e);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(fail)?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::invalid(format!("container `{id}`"), "it already exists"))
        }
        other => other.map_err(fail),
    }
}

pub fn own_streams() -> Result<[OwnedFd; 3]> {
    let copy = |n: i32| {
        // SAFETY: standard streams stay open while this call lasts.
        rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(n) }, 3)
            .map_err(|e| Error::system("copy", "standard stream", e))
    };
    Ok([copy(0)?, copy(1)?, copy(2)?])
}

/// Makes the container known: its records, its number for the caller, its terminal.
fn publish(plan: &Plan<'_>, built: &mut Built, wanted: &Wanted) -> Result<()> {
    record::write_state(plan.request, built.pid, &built.groups(), None, Some(wanted.bundle.clone()))?;
    if let Some(path) = &wanted.console_socket
        && let Some(master) = built.terminal.take()
    {
        send_console(&connect(path)?, &master)?;
    }
    if let Some(path) = &wanted.pid_file {
        record::write_file(path, built.pid.to_string().as_bytes())?;
    }
    Ok(())
}

/// Hands a terminal's master to whoever waits at the other end.
pub fn send_console(socket: &UnixStream, master: &OwnedFd) -> Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = std::io::IoSlice::new(b"/dev/ptmx");
    sendmsg(socket, &[name], &mut control, SendFlags::NOSIGNAL)
        .map(|_| ())
        .map_err(|e| Error::system("send terminal to", "the console socket", e))
}
