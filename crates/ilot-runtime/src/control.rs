//! The library's functions on a container by its run directory.

use crate::cgroup::Cgroup;
use crate::container::cgroup_error;
use crate::record::{self, LastCommand, ProcessRef, Record, Request};
use crate::seccomp::Program;
use crate::spec::{IdMapping, Resources, Seccomp};
use crate::wire::{self, Tag};
use crate::{CreateRequest, Created, Error, Exit, Result, Rootfs, State, Stats, Status, Stdio};
use crate::{keeper, spawn, sys};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Sockets to the keepers of containers that this process has created and not yet started. Their
/// closing, by the end of this process at the latest, removes the container.
static LEASES: Mutex<Option<HashMap<PathBuf, UnixStream>>> = Mutex::new(None);

/// How long a killed container's processes may take to go.
const KILL_TIME: Duration = Duration::from_secs(10);
/// How long to try at groups that a keeper is removing at the same time.
const GROUPS_TIME: Duration = Duration::from_secs(1);

fn leases<T>(work: impl FnOnce(&mut HashMap<PathBuf, UnixStream>) -> T) -> T {
    let mut lock = LEASES.lock().unwrap_or_else(PoisonError::into_inner);
    work(lock.get_or_insert_default())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::path("find", path, e))
}

/// See [`crate::create`].
pub fn create(request: &CreateRequest<'_>) -> Result<Created> {
    create_on(request, None)
}

/// See [`crate::create_with`].
pub fn create_on(request: &CreateRequest<'_>, streams: Option<[BorrowedFd<'_>; 3]>) -> Result<Created> {
    let mut wanted = Request::new(request)?;
    wanted.run_dir = absolute(request.run_dir)?;
    match &mut wanted.stdio {
        Stdio::Log { path, .. } | Stdio::Terminal { log: Some(path) } => *path = absolute(path)?,
        Stdio::Terminal { log: None } | Stdio::Inherit => {}
    }
    let filter = request.spec.linux.as_ref().and_then(|l| l.seccomp.as_ref()).map(compiled).transpose()?;
    clear_run_dir(&wanted)?;
    let fail = |e: std::io::Error| Error::system("start", "the keeper", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system("open", "`/dev/null`", e))?;
    let stream = |n: i32| match (&wanted.stdio, &streams) {
        (Stdio::Inherit, Some(streams)) => streams[n as usize],
        // SAFETY: standard streams stay open while this call lasts.
        (Stdio::Inherit, None) => unsafe { BorrowedFd::borrow_raw(n) },
        _ => null.as_fd(),
    };
    let program = spawn::find_helper("ilot-keeper")?;
    let walls = wanted.spec.linux.as_ref().is_some_and(|l| l.has_namespace(crate::spec::NamespaceKind::User));
    let job = keeper::arguments("create", !walls);
    let child = spawn::spawn(&program, &job, &[stream(0), stream(1), stream(2), theirs.as_fd()])?;
    drop(theirs);
    let body = serde_json::to_vec(&wanted).map_err(|e| Error::invalid("request", e.to_string()))?;
    let answer = wire::send(&ours, Tag::Request, &body, &[])
        .and_then(|()| filter.map_or(Ok(()), |f| wire::send(&ours, Tag::Request, &f, &[])))
        .map_err(fail)
        .and_then(|()| wire::expect(&ours, Tag::Done, request.id, "the keeper ended early"));
    let message = match answer {
        Ok(message) => message,
        Err(error) => {
            drop(ours);
            let _ = sys::waitpid(child, 0);
            let _ = fs::remove_dir(&wanted.run_dir);
            return Err(error);
        }
    };
    let answer: keeper::Answer =
        serde_json::from_slice(&message.body).map_err(|e| Error::invalid("answer of the keeper", e.to_string()))?;
    let mut fds = message.fds.into_iter();
    leases(|map| map.insert(wanted.run_dir, ours));
    Ok(Created { pid: answer.pid, keeper_pid: answer.keeper_pid, terminal: fds.next(), output: fds.next() })
}

/// A profile's filter as bytes. A program that starts many containers with one profile, as the
/// engine does, compiles it once.
fn compiled(profile: &Seccomp) -> Result<Vec<u8>> {
    static LAST: Mutex<Option<(Seccomp, Vec<u8>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, bytes)) = last.as_ref()
        && known == profile
    {
        return Ok(bytes.clone());
    }
    let program = Program::compile(profile).map_err(|e| Error::invalid("linux.seccomp", e.to_string()))?;
    let bytes = program.to_bytes();
    *last = Some((profile.clone(), bytes.clone()));
    Ok(bytes)
}

/// Makes the run directory, without anything of an earlier container in it.
fn clear_run_dir(request: &Request) -> Result<()> {
    let dir = &request.run_dir;
    if let Some(state) = state(dir)? {
        if state.status != Status::Stopped {
            return Err(Error::Status {
                what: "create",
                id: request.id.clone(),
                status: state.status,
                wanted: "stopped",
            });
        }
        delete(dir, false)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| Error::path("make directory", dir, e))?;
    for name in record::ALL {
        let _ = fs::remove_file(dir.join(name));
    }
    Ok(())
}

/// See [`crate::start`].
pub fn start(run_dir: &Path) -> Result<()> {
    let run_dir = absolute(run_dir)?;
    let id = record::need_record(&run_dir)?.id;
    let Some(socket) = leases(|map| map.remove(&run_dir)) else {
        let status = state(&run_dir)?.map_or(Status::Stopped, |s| s.status);
        return Err(Error::Status { what: "start", id, status, wanted: "created by this process" });
    };
    wire::send(&socket, Tag::Go, &[], &[]).map_err(|e| Error::system("start", format!("container `{id}`"), e))?;
    wire::expect(&socket, Tag::Done, &id, "the keeper ended early").map(|_| ())
}

/// See [`crate::state`].
pub fn state(run_dir: &Path) -> Result<Option<State>> {
    let Some(record) = record::read_record(run_dir)? else {
        return Ok(None);
    };
    let exit = record::read_exit(run_dir)?;
    let same_boot = record.boot == record::boot_id();
    let alive = same_boot && exit.is_none() && record.init.open().is_some();
    let keeper_alive = same_boot && record.keeper.is_some_and(|k| k.open().is_some());
    let started_at = fs::metadata(run_dir.join(record::STARTED))
        .ok()
        .and_then(|m| m.modified().ok())
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
        // File times are coarser than the clock.
        .map(|d| (d.as_nanos() as u64).max(record.created_at));
    let status = match (alive, started_at) {
        (false, _) => Status::Stopped,
        (true, None) => Status::Created,
        (true, Some(_)) if frozen(&record) => Status::Paused,
        (true, Some(_)) => Status::Running,
    };
    Ok(Some(State {
        id: record.id,
        status,
        pid: alive.then_some(record.init.pid),
        keeper_pid: record.keeper.filter(|_| keeper_alive).map(|k| k.pid),
        created_at: record.created_at,
        started_at,
        exit,
        root_uid: IdMapping::to_host(&record.uid_mappings, 0),
        cgroup: record.cgroup,
    }))
}

fn open_cgroup(record: &Record) -> Result<Cgroup> {
    if record.cgroup.is_empty() {
        return Err(Error::invalid(format!("container `{}`", record.id), "it has no cgroup of its own"));
    }
    Cgroup::open(&record.cgroup).map_err(cgroup_error)
}

fn frozen(record: &Record) -> bool {
    !record.cgroup.is_empty() && open_cgroup(record).is_ok_and(|c| c.frozen().unwrap_or(false))
}

/// The record and process 1 of a container that must be alive.
pub fn alive(what: &'static str, run_dir: &Path) -> Result<(Record, OwnedFd)> {
    let record = record::need_record(run_dir)?;
    let process = (record.boot == record::boot_id()).then(|| record.init.open()).flatten();
    match process {
        Some(process) => Ok((record, process)),
        None => Err(Error::Status { what, id: record.id, status: Status::Stopped, wanted: "running" }),
    }
}

/// The same for one that must run and not be paused.
pub fn running(what: &'static str, run_dir: &Path) -> Result<(Record, OwnedFd)> {
    let (record, process) = alive(what, run_dir)?;
    let status = if !run_dir.join(record::STARTED).exists() {
        Status::Created
    } else if frozen(&record) {
        Status::Paused
    } else {
        return Ok((record, process));
    };
    Err(Error::Status { what, id: record.id, status, wanted: "running" })
}

/// See [`crate::netns`].
pub fn netns(run_dir: &Path) -> Result<OwnedFd> {
    open_of(run_dir, "ns/net", OFlags::RDONLY, "open network namespace")
}

/// See [`crate::open_root`].
pub fn open_root(run_dir: &Path) -> Result<OwnedFd> {
    open_of(run_dir, "root", OFlags::PATH | OFlags::DIRECTORY, "open root directory")
}

fn open_of(run_dir: &Path, name: &str, flags: OFlags, what: &'static str) -> Result<OwnedFd> {
    let (record, process) = alive(what, run_dir)?;
    let path = PathBuf::from(format!("/proc/{}/{name}", record.init.pid));
    let fd =
        rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|e| Error::path(what, &path, e))?;
    // Alive still: so the number was that process's all the time.
    if sys::has_ended(process.as_fd()) {
        return alive(what, run_dir).map(|_| fd);
    }
    Ok(fd)
}

/// See [`crate::mount_rootfs`].
pub fn mount_rootfs(rootfs: &Rootfs, mappings: &[IdMapping]) -> Result<OwnedFd> {
    let fail = |e: std::io::Error| Error::system("start", "the helper", e);
    let (ours, theirs) = UnixStream::pair().map_err(fail)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::system("open", "`/dev/null`", e))?;
    let null = null.as_fd();
    let helper = spawn::spawn(
        &spawn::find_helper("ilot-keeper")?,
        &keeper::arguments("mount", false),
        &[null, null, null, theirs.as_fd()],
    )?;
    drop(theirs);
    let request = keeper::MountRequest { rootfs: rootfs.clone(), mappings: mappings.to_vec() };
    let body = serde_json::to_vec(&request).map_err(|e| Error::invalid("request", e.to_string()))?;
    let answer = wire::send(&ours, Tag::Request, &body, &[])
        .map_err(fail)
        .and_then(|()| wire::expect(&ours, Tag::Done, "mount", "the helper ended early"));
    let _ = sys::waitpid(helper, 0);
    answer?.fds.pop().ok_or_else(|| Error::invalid("answer of the helper", "a descriptor is missing"))
}

/// See [`crate::is_attended`].
pub fn is_attended(run_dir: &Path) -> bool {
    let request: Option<Request> = record::read_json(&run_dir.join(record::CONFIG)).ok().flatten();
    request.is_some_and(|request| request.is_attended())
}

/// See [`crate::signal`].
pub fn signal(run_dir: &Path, signal: i32) -> Result<()> {
    let (record, process) = alive("signal", run_dir)?;
    sys::pidfd_signal(process.as_fd(), signal)
        .map_err(|e| Error::system("signal", format!("container `{}`", record.id), e))
}

/// See [`crate::kill_all`].
pub fn kill_all(run_dir: &Path) -> Result<()> {
    kill_all_of(&record::need_record(run_dir)?)
}

fn kill_all_of(record: &Record) -> Result<()> {
    if let Some(process) = record.init.open() {
        // The end of process 1 of a pid namespace is the end of all others in it.
        let _ = sys::pidfd_signal(process.as_fd(), libc::SIGKILL);
    }
    with_groups(record, |cgroup| {
        cgroup.kill_all()?;
        // What is frozen dies when it thaws (v1).
        let _ = cgroup.thaw();
        Ok(())
    })
}

/// Does something to the container's groups, unless they are gone: the keeper of a creator that was killed removes them by
/// itself, at the same time, one hierarchy after the other.
fn with_groups(record: &Record, work: impl Fn(&Cgroup) -> crate::cgroup::Result<()>) -> Result<()> {
    let end = Instant::now() + GROUPS_TIME;
    while record.cgroup.iter().any(|path| path.exists()) {
        match open_cgroup(record).and_then(|cgroup| work(&cgroup).map_err(cgroup_error)) {
            Ok(()) => break,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(())
}

/// The processes of a container, by the host's numbers: those of its groups; without one those of its pid namespace.
pub fn processes(record: &Record) -> Result<Vec<i32>> {
    if !record.cgroup.is_empty() {
        return Cgroup::open(&record.cgroup).and_then(|c| c.pids()).map_err(cgroup_error);
    }
    let Some(_alive) = record.init.open() else { return Ok(Vec::new()) };
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let theirs = namespace(&record.init.pid.to_string());
    if theirs.is_none() || theirs == namespace("self") {
        return Ok(vec![record.init.pid]);
    }
    let entries = fs::read_dir("/proc").map_err(|e| Error::path("list", Path::new("/proc"), e))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut pids: Vec<i32> =
        names.filter(|name| namespace(name) == theirs).filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// See [`crate::wait`].
pub fn wait(run_dir: &Path, timeout: Option<Duration>) -> Result<Option<Exit>> {
    let record = record::need_record(run_dir)?;
    let deadline = timeout.map(|t| Instant::now() + t);
    let end = record.keeper.and_then(ProcessRef::open).or_else(|| record.init.open());
    let Some(end) = end else {
        return lost(run_dir, &record);
    };
    let watch = may_be_removed(&record).then(|| watch_for_exit(run_dir)).transpose()?;
    loop {
        if let Some(exit) = record::read_exit(run_dir)? {
            reap(&record);
            return Ok(Some(exit));
        }
        if sys::has_ended(end.as_fd()) {
            reap(&record);
            return lost(run_dir, &record);
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        if left.is_some_and(|l| l.is_zero()) {
            return Ok(None);
        }
        let Some(watch) = &watch else {
            wait_any(&[end.as_fd()], left);
            continue;
        };
        wait_any(&[end.as_fd(), watch.as_fd()], left);
        let mut events = [0u8; 1024];
        let _ = rustix::io::read(watch, &mut events);
    }
}

/// Whether the keeper may go on after it has recorded the exit, with a command that may remove the record.
fn may_be_removed(record: &Record) -> bool {
    match record.last_command {
        LastCommand::None => false,
        LastCommand::IfAbandoned => !record.keeper.is_some_and(is_child),
        LastCommand::Always => true,
    }
}

/// Whether a keeper was made by this process.
fn is_child(keeper: ProcessRef) -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    rustix::process::Pid::from_raw(keeper.pid).is_some_and(|pid| waitid(WaitId::Pid(pid), options).is_ok())
}

/// Tells when the exit is recorded. To be asked for only where the keeper's own end will not do: letting go of it takes the
/// kernel more than ten milliseconds.
fn watch_for_exit(run_dir: &Path) -> Result<OwnedFd> {
    let fail = |e: rustix::io::Errno| Error::path("watch", run_dir, e);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).map_err(fail)?;
    inotify::add_watch(&watch, run_dir, inotify::WatchFlags::MOVED_TO).map_err(fail)?;
    Ok(watch)
}

/// The exit of a container whose keeper is gone: recorded in the last moment, or lost.
fn lost(run_dir: &Path, record: &Record) -> Result<Option<Exit>> {
    if let Some(exit) = record::read_exit(run_dir)? {
        return Ok(Some(exit));
    }
    if let Some(process) = record.init.open() {
        let _ = sys::poll_readable(process.as_fd(), -1);
    }
    Err(Error::Container {
        id: record.id.clone(),
        message: "its keeper was killed; the exit status is lost".to_owned(),
        errno: 0,
    })
}

/// Waits until one of these can be read, or for so long.
pub fn wait_any(fds: &[BorrowedFd<'_>], left: Option<Duration>) {
    use std::os::fd::AsRawFd;
    let mut list: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let time = left.map_or(-1, |l| i32::try_from(l.as_millis() + 1).unwrap_or(i32::MAX));
    // SAFETY: a valid list with its length.
    unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, time) };
}

/// Collects the keeper if it is a child of this process.
fn reap(record: &Record) {
    if let Some(keeper) = record.keeper {
        let _ = sys::waitpid(keeper.pid, libc::WNOHANG);
    }
}

/// See [`crate::pause`].
pub fn pause(run_dir: &Path) -> Result<()> {
    let (record, _) = running("pause", run_dir)?;
    open_cgroup(&record)?.freeze().map_err(cgroup_error)
}

/// See [`crate::resume`].
pub fn resume(run_dir: &Path) -> Result<()> {
    let (record, _) = alive("resume", run_dir)?;
    let cgroup = open_cgroup(&record)?;
    if !cgroup.frozen().map_err(cgroup_error)? {
        return Err(Error::Status { what: "resume", id: record.id, status: Status::Running, wanted: "paused" });
    }
    cgroup.thaw().map_err(cgroup_error)
}

/// See [`crate::update`].
pub fn update(run_dir: &Path, resources: &Resources) -> Result<()> {
    let (mut record, _) = alive("update", run_dir)?;
    let mut cgroup = open_cgroup(&record)?;
    if let Some(unit) = &record.unit {
        unit.update(resources)?;
    }
    // Devices are out of an ordinary user's reach anyway.
    let own = crate::container::rootless().then(|| Resources { devices: Vec::new(), ..resources.clone() });
    let resources = own.as_ref().unwrap_or(resources);
    let result = cgroup.update(resources).map_err(cgroup_error);
    // A first limit of a kind can add a group.
    let paths = cgroup.paths();
    if paths != record.cgroup {
        record.cgroup = paths;
        record::write_json(&run_dir.join(record::STATE), &record)?;
    }
    result
}

/// See [`crate::stats`].
pub fn stats(run_dir: &Path) -> Result<Stats> {
    let (record, _) = alive("measure", run_dir)?;
    open_cgroup(&record)?.stats().map_err(cgroup_error)
}

/// Waits until no keeper is at work in the run directory. One whose creator was killed before it wrote what it had made goes on
/// until it notices, and then removes that by path: nobody may have put something else there meanwhile.
fn unclaimed(run_dir: &Path) -> Result<()> {
    use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
    use rustix::io::Errno;
    let fail = |error: Errno| Error::path("lock", run_dir, error);
    let end = Instant::now() + crate::keeper::CLAIM;
    let dir = match open(run_dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(fail)?,
    };
    loop {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(Error::invalid("delete", "a keeper is still busy with this container; try again"));
            }
            Err(error) => return Err(fail(error)),
        }
    }
}

/// See [`crate::delete`].
pub fn delete(run_dir: &Path, force: bool) -> Result<()> {
    let run_dir = absolute(run_dir)?;
    let record = match record::read_record(&run_dir)? {
        Some(record) => record,
        None => {
            unclaimed(&run_dir)?;
            let Some(record) = record::read_record(&run_dir)? else { return Ok(()) };
            record
        }
    };
    let same_boot = record.boot == record::boot_id();
    if same_boot {
        let process = record.init.open();
        if let (Some(_), false) = (&process, force) {
            let status = state(&run_dir)?.map_or(Status::Running, |s| s.status);
            return Err(Error::Status { what: "delete", id: record.id, status, wanted: "stopped" });
        }
        if force {
            // By what was read: the keeper of a creator that was killed may remove the record now.
            kill_all_of(&record)?;
        }
        drop(leases(|map| map.remove(&run_dir)));
        let stays = |what: &str| Error::Container {
            id: record.id.clone(),
            message: format!("its {what} does not end"),
            errno: 0,
        };
        if let Some(fd) = process
            && !sys::poll_readable(fd.as_fd(), KILL_TIME.as_millis() as i32).unwrap_or(true)
        {
            return Err(stays("process 1"));
        }
        // Not for the keeper's own end: its last command can be what called this. An error means
        // that there is no keeper any more, or that it has removed the record of one never started.
        if matches!(wait(&run_dir, Some(KILL_TIME)), Ok(None)) {
            return Err(stays("keeper"));
        }
        reap(&record);
        // The keeper does this; without one it is left to us.
        with_groups(&record, |cgroup| {
            let _ = cgroup.kill_all();
            cgroup.delete()
        })?;
    }
    record::remove_files(&run_dir)
}
