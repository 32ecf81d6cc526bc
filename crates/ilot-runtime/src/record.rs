//! The files of a run directory, each written aside and renamed: always the old or the new.

use crate::cgroup::Cgroup;
use crate::notify::Listener;
use crate::rdt::Placed;
use crate::seccomp::Program;
use crate::spec::{IdMapping, Spec};
use crate::systemd::Unit;
use crate::{CreateRequest, Error, Exit, ExitCommand, Init, InsideFile, Result, Rootfs, Stdio, sys};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a container is, fixed before `create` returns.
pub const STATE: &str = "state.json";
/// What was asked for.
pub const CONFIG: &str = "config.json";
/// The compiled filter, for `exec`.
pub const SECCOMP: &str = "seccomp.bpf";
/// Exists once the container was started.
pub const STARTED: &str = "started";
/// How it ended.
pub const EXIT: &str = "exit.json";
/// Every file that the runtime keeps in a run directory.
pub const ALL: [&str; 5] = [STATE, CONFIG, SECCOMP, STARTED, EXIT];

/// A process that is recognised even after its number was used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Number.
    pub pid: i32,
    /// Clock ticks after boot when it began (`proc_pid_stat(5)`, field 22).
    pub start: u64,
}

impl ProcessRef {
    /// Reads the start time of a living process.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, start) = stat(pid).ok_or_else(|| Error::system("look at process", pid.to_string(), not_there()))?;
        Ok(Self { pid, start })
    }

    /// Reads what [`ProcessRef`]'s `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.split_once(':')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }

    /// A handle, if exactly this process still lives.
    pub fn open(self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after the handle was taken: the number cannot change its owner in between
        // without the handle showing an end.
        let (state, start) = stat(self.pid)?;
        let alive = start == self.start && !matches!(state, b'Z' | b'X');
        (alive && !sys::has_ended(handle.as_fd())).then_some(handle)
    }
}

impl std::fmt::Display for ProcessRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(u8, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything: fields begin after the last one.
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

fn not_there() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::ESRCH)
}

/// Whether a command runs after the end, which may remove what tells of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LastCommand {
    /// None.
    None,
    /// Only if the creator has ended before the container.
    IfAbandoned,
    /// In any case; or a record of an older version, which does not say.
    #[default]
    Always,
}

/// `state.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Version of this file's form.
    pub version: u32,
    /// Name of the container.
    pub id: String,
    /// Which boot of the host.
    pub boot: String,
    /// Process 1.
    pub init: ProcessRef,
    /// Its keeper; `None` where the caller waits itself.
    pub keeper: Option<ProcessRef>,
    /// Nanoseconds since 1970.
    pub created_at: u64,
    /// cgroup directories.
    pub cgroup: Vec<PathBuf>,
    /// User id map.
    #[serde(default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Group id map.
    #[serde(default)]
    pub gid_mappings: Vec<IdMapping>,
    /// The unit of systemd that has made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Its class of cache and memory bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<Placed>,
    /// The folder of the configuration, for containers made from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// Labels of the configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What its keeper does after the end.
    #[serde(default)]
    pub last_command: LastCommand,
}

/// What the keeper is asked for; also kept as `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Name.
    pub id: String,
    /// Run directory, absolute.
    pub run_dir: PathBuf,
    /// The container.
    pub spec: Spec,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its process 1.
    pub init: Init,
    /// Whether a compiled filter follows; the profile itself stays with the caller.
    #[serde(default)]
    pub filtered: bool,
    /// Where the filter's listener goes, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<Listener>,
    /// Its input and output.
    pub stdio: Stdio,
    /// Files to write inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<InsideFile>,
    /// Command after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_command: Option<ExitCommand>,
    /// Who created it, where that decides about the command after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<ProcessRef>,
}

impl Request {
    /// The keeper's copy of a caller's request.
    pub fn new(request: &CreateRequest<'_>) -> Result<Self> {
        let mut spec = request.spec.clone();
        let profile = spec.linux.as_mut().and_then(|l| l.seccomp.take());
        Ok(Self {
            listener: profile.as_ref().map(Listener::of).transpose()?.flatten(),
            id: request.id.to_owned(),
            run_dir: request.run_dir.to_owned(),
            filtered: profile.is_some(),
            spec,
            rootfs: request.rootfs.clone(),
            init: request.init,
            stdio: request.stdio.clone(),
            files: request.files.clone(),
            creator: request
                .exit_command
                .as_ref()
                .filter(|command| command.only_if_abandoned)
                .map(|_| ProcessRef::of(std::process::id() as i32))
                .transpose()?,
            exit_command: request.exit_command.clone(),
        })
    }

    /// Whether somebody stays with the container who does what is to be done after its end.
    pub fn is_attended(&self) -> bool {
        self.creator.is_some_and(|creator| creator.open().is_some())
    }
}

/// Writes what a container was asked to be, and its compiled filter.
pub fn write_config(request: &Request, text: &[u8], filter: Option<&Program>) -> Result<()> {
    if let Some(filter) = filter {
        write_file(&request.run_dir.join(SECCOMP), &filter.to_bytes())?;
    }
    write_file(&request.run_dir.join(CONFIG), text)
}

/// Where a container's processes are held.
#[derive(Debug, Default)]
pub struct Groups<'a> {
    /// Its cgroups.
    pub cgroup: Option<&'a Cgroup>,
    /// The unit of systemd that has made them.
    pub unit: Option<&'a Unit>,
    /// Its class of cache and memory bandwidth.
    pub rdt: Option<&'a Placed>,
}

/// Writes the state of a container that stands; from here on it is there for everybody.
pub fn write_state(
    request: &Request,
    init: i32,
    groups: &Groups<'_>,
    keeper: Option<ProcessRef>,
    bundle: Option<PathBuf>,
) -> Result<()> {
    let linux = request.spec.linux.as_ref();
    let record = Record {
        version: 1,
        id: request.id.clone(),
        boot: boot_id(),
        init: ProcessRef::of(init)?,
        keeper,
        created_at: sys::now(),
        cgroup: groups.cgroup.map(Cgroup::paths).unwrap_or_default(),
        unit: groups.unit.cloned(),
        rdt: groups.rdt.cloned(),
        uid_mappings: linux.map(|l| l.uid_mappings.clone()).unwrap_or_default(),
        gid_mappings: linux.map(|l| l.gid_mappings.clone()).unwrap_or_default(),
        bundle,
        annotations: request.spec.annotations.clone(),
        last_command: match &request.exit_command {
            None => LastCommand::None,
            Some(command) if command.only_if_abandoned => LastCommand::IfAbandoned,
            Some(_) => LastCommand::Always,
        },
    };
    write_json(&request.run_dir.join(STATE), &record)
}

/// This boot of the host.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// Reads `state.json`; `None` if there is no container.
pub fn read_record(run_dir: &Path) -> Result<Option<Record>> {
    read_json(&run_dir.join(STATE))
}

/// Reads `state.json` of a container that must be there.
pub fn need_record(run_dir: &Path) -> Result<Record> {
    read_record(run_dir)?.ok_or_else(|| Error::Missing(format!("`{}`", run_dir.display())))
}

/// Reads `exit.json`.
pub fn read_exit(run_dir: &Path) -> Result<Option<Exit>> {
    read_json(&run_dir.join(EXIT))
}

/// Reads a JSON file; `None` if it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::path("read", path, error)),
    };
    crate::spec::from_json(&text)
        .map(Some)
        .map_err(|error| Error::invalid(format!("file `{}`", path.display()), error.to_string()))
}

/// Writes a JSON file.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::invalid(format!("file `{}`", path.display()), error.to_string()))?;
    write_file(path, &text)
}

/// Writes a file aside and renames it into place. The run directory is lost at a reboot of the
/// host, as is everything that it describes: nothing needs to be synced.
pub fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let aside = PathBuf::from(name);
    let fail = |error| Error::path("write", path, error);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside).map_err(fail)?;
    file.write_all(content)
        .and_then(|()| fs::rename(&aside, path))
        .inspect_err(|_| {
            let _ = fs::remove_file(&aside);
        })
        .map_err(fail)
}

/// Removes the runtime's files, and the directory if nothing else is in it.
pub fn remove_files(run_dir: &Path) -> Result<()> {
    let fail = |e| Error::path("remove", run_dir, e);
    let entries = match fs::read_dir(run_dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(fail)?,
    };
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if ALL.contains(&name.strip_suffix(".new").unwrap_or(&name)) {
            match fs::remove_file(entry.path()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
                _ => {}
            }
        }
    }
    let _ = fs::remove_dir(run_dir);
    Ok(())
}
