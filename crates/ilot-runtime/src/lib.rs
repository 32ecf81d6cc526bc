//! One Linux container: namespaces, mounts, cgroups, seccomp, exec.
//!
//! A container is described by an OCI runtime-spec ([`spec::Spec`]) and lives in a run directory.
//! [`create`] starts a *keeper* (the static program `ilot-keeper`), which builds the container and
//! stays its parent: it holds the output and the exit status, so nothing needs a daemon.
//! All functions are synchronous and may be called from several threads for different containers.
//!
//! ```text
//! run_dir/state.json    written once, before `create` returns: pids, start times, cgroups
//! run_dir/config.json   the request, for the keeper and for `exec`
//! run_dir/started       exists once the container was started (its time is the start time)
//! run_dir/exit.json     how the container ended
//! ```

mod caps;
pub mod cgroup;
mod container;
mod control;
mod criu;
mod error;
mod exec;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
mod init;
pub mod keeper;
mod mounts;
mod netdev;
mod notice;
mod notify;
pub mod oci;
mod paths;
mod process;
mod rdt;
mod record;
pub mod seccomp;
mod spawn;
pub mod spec;
mod sys;
mod systemd;
mod users;
mod wire;

pub use cgroup::Stats;
pub use error::{Error, Result};
pub use spawn::find_helper;

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What [`create`] needs.
#[derive(Debug, Clone)]
pub struct CreateRequest<'a> {
    /// Name of the container; in messages, and in its state.
    pub id: &'a str,
    /// Where the runtime keeps the container's live files, e.g. `/run/ilot/machines/<id>`.
    /// Made if missing; the container is there as long as its `state.json` is.
    pub run_dir: &'a Path,
    /// Process, mounts, namespaces, limits, filter. `spec.root` is ignored: see `rootfs`.
    pub spec: &'a spec::Spec,
    /// The root file system.
    pub rootfs: Rootfs,
    /// Who is process 1.
    pub init: Init,
    /// Where standard input, output and error go.
    pub stdio: Stdio,
    /// Files written inside before the process starts.
    pub files: Vec<InsideFile>,
    /// Run by the keeper on the host after the end of the container.
    pub exit_command: Option<ExitCommand>,
}

/// A program, and when it is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCommand {
    /// The program with its arguments.
    pub args: Vec<OsString>,
    /// Only if the process that created the container has ended before the container did: while it lives, it does
    /// by itself what is to be done.
    pub only_if_abandoned: bool,
}

/// A root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rootfs {
    /// Read-only layers with a writable one on top.
    Overlay {
        /// Layers owned by unshifted ids (root is 0), top first; each is idmapped, never written.
        lowers: Vec<PathBuf>,
        /// The writable layer, owned by the container's shifted ids; made (with the owner and
        /// mode of the topmost layer's root) if missing, in a directory that exists and that nobody else may enter: what is
        /// in there belongs to the container's users, set-user-id programs too.
        upper: PathBuf,
        /// Overlay's work directory, on the same file system as `upper`; made if missing.
        work: PathBuf,
        /// Skip every sync: faster, and the upper layer is lost in a crash of the host.
        volatile: bool,
    },
    /// A directory as it is.
    Dir {
        /// The directory on the host.
        path: PathBuf,
        /// Whether the container sees it read-only.
        readonly: bool,
        /// Whether it is owned by unshifted ids and has to be idmapped.
        idmap: bool,
    },
}

/// Who is process 1 of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// ilot's own: it runs `spec.process` as its child (none if `args` is empty), reaps what is
    /// orphaned, hands signals on and ends with its child's status.
    Builtin,
    /// `spec.process` itself.
    Image,
}

/// Where a container's standard input, output and error go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// The keeper writes lines with their time: `<RFC 3339, ns, UTC> stdout|stderr F|P <line>`
    /// (the CRI log format). Input is empty.
    Log {
        /// The file; the one before is `<path>.1`.
        path: PathBuf,
        /// Bytes after which a new file is begun; 0 means never.
        max_bytes: u64,
    },
    /// Those of the process that calls [`create`].
    Inherit,
    /// A terminal of the container's own; see [`Created::terminal`] and [`attach`].
    Terminal {
        /// Log of the output as for [`Stdio::Log`], a new file each 10 MiB.
        log: Option<PathBuf>,
    },
}

/// A file written inside a container before its process starts. Never through a link: what
/// stands there and is not a directory is replaced; missing parents are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideFile {
    /// Absolute path inside.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
    /// When to write.
    pub when: When,
}

/// When an [`InsideFile`] is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// At each start.
    Always,
    /// Only if nothing stands there.
    IfMissing,
}

/// A container that stands and waits for [`start`].
#[derive(Debug)]
pub struct Created {
    /// Process 1 of the container, as the host sees it.
    pub pid: i32,
    /// Its keeper.
    pub keeper_pid: i32,
    /// [`Stdio::Terminal`]: the master side, for input and for the size. Do not read from it.
    pub terminal: Option<OwnedFd>,
    /// [`Stdio::Terminal`]: the output, handed on by the keeper until this is closed.
    pub output: Option<OwnedFd>,
}

/// State of a container's life (runtime-spec, `runtime.md`, "State").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It stands and waits.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It has ended (or the host was restarted).
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What is known of a container, checked against the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Name.
    pub id: String,
    /// State of its life.
    pub status: Status,
    /// Process 1 as the host sees it; `None` once it has ended.
    pub pid: Option<i32>,
    /// Its keeper; `None` if it has ended (while the container runs: it was killed, the output
    /// and the exit status are lost, [`delete`] still works).
    pub keeper_pid: Option<i32>,
    /// When it was created, nanoseconds since 1970.
    pub created_at: u64,
    /// When it was started, nanoseconds since 1970.
    pub started_at: Option<u64>,
    /// How it ended, when that is known.
    pub exit: Option<Exit>,
    /// The cgroups, one path per hierarchy (one on v2).
    pub cgroup: Vec<PathBuf>,
    /// First host id of the container's root user; `None` without a user namespace.
    pub root_uid: Option<u32>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, `128 + signal` if a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// When, nanoseconds since 1970.
    #[serde(default)]
    pub at: u64,
}

/// What [`exec()`] needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// Added to the container's environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; that of the container's process without.
    pub cwd: Option<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`, by the container's `/etc/passwd` and `/etc/group`;
    /// the container's process's without.
    pub user: Option<String>,
    /// Whether to give it a terminal, joined to the caller's.
    pub terminal: bool,
    /// Whether the caller's standard input is handed on (it is `/dev/null` otherwise).
    pub stdin: bool,
    /// Do not wait: the process stays when the caller ends, its output is dropped.
    pub detach: bool,
}

/// Builds a container: namespaces, cgroups and root file system stand, its first process waits
/// for [`start`]. If the calling process ends before [`start`], the keeper removes everything.
///
/// # Errors
/// Whatever the kernel refuses; nothing is left behind then.
pub fn create(request: &CreateRequest<'_>) -> Result<Created> {
    control::create(request)
}

/// As [`create`] with [`Stdio::Inherit`], but with these as standard input, output and error instead of the caller's own.
///
/// # Errors
/// As [`create`].
pub fn create_with(request: &CreateRequest<'_>, streams: [std::os::fd::BorrowedFd<'_>; 3]) -> Result<Created> {
    control::create_on(request, Some(streams))
}

/// Lets a created container go. Must be called by the process that called [`create`].
///
/// # Errors
/// If the program cannot be executed, or this process did not create the container.
pub fn start(run_dir: &Path) -> Result<()> {
    control::start(run_dir)
}

/// What is known of a container; `None` if there is none in `run_dir`.
///
/// # Errors
/// If its state file exists and cannot be read.
pub fn state(run_dir: &Path) -> Result<Option<State>> {
    control::state(run_dir)
}

/// The container's network namespace.
///
/// # Errors
/// If it has ended.
pub fn netns(run_dir: &Path) -> Result<OwnedFd> {
    control::netns(run_dir)
}

/// The root directory of a running container. Resolve paths in it with
/// `openat2(RESOLVE_IN_ROOT)` only: the container controls every link below it.
///
/// # Errors
/// If it has ended.
pub fn open_root(run_dir: &Path) -> Result<OwnedFd> {
    control::open_root(run_dir)
}

/// Mounts the tree of a container that does not run, idmapped so that the ids seen are those on
/// the host; the mount goes away with the descriptor.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn mount_rootfs(rootfs: &Rootfs, mappings: &[spec::IdMapping]) -> Result<OwnedFd> {
    control::mount_rootfs(rootfs, mappings)
}

/// Whether the process that created the container lives and does by itself what is to be done after the end
/// ([`ExitCommand::only_if_abandoned`]): who else finds it ended leaves it alone.
#[must_use]
pub fn is_attended(run_dir: &Path) -> bool {
    control::is_attended(run_dir)
}

/// Sends a signal to the container's process 1.
///
/// # Errors
/// If it has ended.
pub fn signal(run_dir: &Path, signal: i32) -> Result<()> {
    control::signal(run_dir, signal)
}

/// Kills every process of the container.
///
/// # Errors
/// If there is no such container.
pub fn kill_all(run_dir: &Path) -> Result<()> {
    control::kill_all(run_dir)
}

/// Waits for the end of a container; `None` if `timeout` passed first.
///
/// # Errors
/// If there is no such container.
pub fn wait(run_dir: &Path, timeout: Option<Duration>) -> Result<Option<Exit>> {
    control::wait(run_dir, timeout)
}

/// Freezes all processes of a container.
///
/// # Errors
/// If it does not run.
pub fn pause(run_dir: &Path) -> Result<()> {
    control::pause(run_dir)
}

/// Thaws a paused container.
///
/// # Errors
/// If it is not paused.
pub fn resume(run_dir: &Path) -> Result<()> {
    control::resume(run_dir)
}

/// Changes the limits of a running container.
///
/// # Errors
/// Whatever the kernel refuses.
pub fn update(run_dir: &Path, resources: &spec::Resources) -> Result<()> {
    control::update(run_dir, resources)
}

/// Live usage.
///
/// # Errors
/// If it has ended.
pub fn stats(run_dir: &Path) -> Result<Stats> {
    control::stats(run_dir)
}

/// Runs a command in a container, in the foreground of the caller: signals are handed on, a
/// terminal follows the size of the caller's.
///
/// # Errors
/// If the container does not run, or the command cannot be executed there.
pub fn exec(run_dir: &Path, request: &ExecRequest) -> Result<Exit> {
    exec::exec(run_dir, request)
}

/// Joins the caller's terminal to that of a container made with [`Stdio::Terminal`], until the
/// container ends. Call it after [`start`].
///
/// # Errors
/// If the container has no terminal.
pub fn attach(run_dir: &Path, created: &Created) -> Result<Exit> {
    exec::attach(run_dir, created)
}

/// Removes what is left of an ended container: cgroups and live files. With `force`, a running
/// one is killed first. Nothing to do is no error.
///
/// # Errors
/// If it runs and `force` is not set.
pub fn delete(run_dir: &Path, force: bool) -> Result<()> {
    control::delete(run_dir, force)
}
