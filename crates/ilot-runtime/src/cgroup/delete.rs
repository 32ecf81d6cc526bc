//! Freezing, killing and removing groups.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Cgroup;
use super::create::Group;
use super::dir::{Dir, io_error};
use super::error::{CgroupError, Result};

/// How long [`delete`] waits for processes that are on their way out.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Rounds of killing what was forked meanwhile, on v1 without a freezer.
const KILL_ROUNDS: usize = 100;

/// The v1 freezer's group, if that is what freezes here.
fn freezer(cgroup: &Cgroup) -> Option<&Group> {
    cgroup.groups.iter().find(|g| g.has("freezer"))
}

fn v2_freezer(cgroup: &Cgroup) -> Option<&Group> {
    cgroup.v2().filter(|g| g.dir.has("cgroup.freeze"))
}

fn no_freezer(cgroup: &Cgroup) -> CgroupError {
    CgroupError::NoController { what: "freezing".into(), controller: "freezer".into(), group: cgroup.common_path() }
}

pub(super) fn freeze(cgroup: &Cgroup, timeout: Duration) -> Result<()> {
    let frozen = if let Some(g) = v2_freezer(cgroup) {
        g.dir.write("cgroup.freeze", "1")?;
        g.dir.wait_event("frozen", 1, timeout)?
    } else if let Some(g) = freezer(cgroup) {
        freeze_v1(&g.dir, timeout)?
    } else {
        return Err(no_freezer(cgroup));
    };
    if frozen {
        return Ok(());
    }
    thaw(cgroup)?;
    let path = cgroup.groups.first().map(|g| g.dir.path().to_path_buf()).unwrap_or_default();
    Err(CgroupError::NotFrozen { path, seconds: timeout.as_secs() })
}

/// The v1 freezer announces nothing, and a task that forks while it freezes can keep the group in `FREEZING`: writing
/// `FROZEN` again freezes the newcomers.
fn freeze_v1(dir: &Dir, timeout: Duration) -> Result<bool> {
    let end = Instant::now() + timeout;
    let mut pause = Pause::new(end);
    loop {
        dir.write("freezer.state", "FROZEN")?;
        if dir.read("freezer.state")?.is_some_and(|s| s.trim() == "FROZEN") {
            return Ok(true);
        }
        if !pause.next() {
            return Ok(false);
        }
    }
}

pub(super) fn thaw(cgroup: &Cgroup) -> Result<()> {
    if let Some(g) = v2_freezer(cgroup) {
        g.dir.write("cgroup.freeze", "0")?;
        g.dir.wait_event("frozen", 0, Duration::from_secs(10))?;
        return Ok(());
    }
    match freezer(cgroup) {
        // A group that somebody else removes meanwhile (a keeper, of a container that was killed) holds nobody any more.
        Some(g) => match g.dir.try_write("freezer.state", "THAWED") {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            Err(e) => Err(g.dir.write_error("freezer.state", "THAWED", e)),
        },
        None => Err(no_freezer(cgroup)),
    }
}

pub(super) fn frozen(cgroup: &Cgroup) -> Result<bool> {
    if let Some(g) = v2_freezer(cgroup) {
        return Ok(g.dir.read_key("cgroup.events", "frozen")? == Some(1));
    }
    match freezer(cgroup) {
        Some(g) => Ok(g.dir.read("freezer.state")?.is_some_and(|s| s.trim() == "FROZEN")),
        None => Ok(false),
    }
}

pub(super) fn kill_all(cgroup: &Cgroup) -> Result<()> {
    if let Some(g) = cgroup.v2() {
        match g.dir.try_write("cgroup.kill", "1") {
            // A frozen group dies too: cgroup.kill reaches it (cgroup-v2.rst).
            Ok(()) => return Ok(()),
            // Gone already, or a kernel before 5.14.
            Err(Errno::NODEV) => return Ok(()),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(g.dir.write_error("cgroup.kill", "1", e)),
        }
    }
    let can_freeze = v2_freezer(cgroup).is_some() || freezer(cgroup).is_some();
    if can_freeze && cgroup.exists() {
        // Frozen, nobody can fork away; SIGKILL is delivered on thawing.
        let held = freeze(cgroup, Duration::from_secs(2));
        let killed = kill_round(cgroup);
        if held.is_ok() {
            thaw(cgroup)?;
        }
        killed?;
    }
    for _ in 0..KILL_ROUNDS {
        if kill_round(cgroup)? == 0 {
            break;
        }
    }
    Ok(())
}

fn kill_round(cgroup: &Cgroup) -> Result<usize> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let pids = cgroup.pids()?;
    let mut alive = 0;
    for pid in pids.into_iter().filter(|p| *p > 1 && *p != own) {
        // A descriptor of the process: if the number was handed to another between the two calls, the second look at
        // the group tells.
        let Some(fd) = pidfd(pid) else { continue };
        if cgroup.pids()?.contains(&pid) && signal(&fd, libc::SIGKILL) {
            alive += 1;
        }
    }
    Ok(alive)
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain integers; the result is checked and owned here alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a new descriptor that nobody else has.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signal(pidfd: &OwnedFd, sig: i32) -> bool {
    // SAFETY: a valid descriptor, no siginfo.
    let r = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), sig, std::ptr::null::<u8>(), 0) };
    r == 0
}

pub(super) fn delete(cgroup: &Cgroup) -> Result<()> {
    let end = Instant::now() + END_TIMEOUT;
    if let Some(g) = cgroup.v2() {
        // One event says that the last process is gone, for all hierarchies.
        g.dir.wait_event("populated", 0, END_TIMEOUT)?;
    }
    let mut first = None;
    for g in &cgroup.groups {
        if let Err(e) = delete_group(g, end) {
            first.get_or_insert(e);
        }
    }
    first.map_or(Ok(()), Err)
}

fn delete_group(group: &Group, end: Instant) -> Result<()> {
    let mount = Dir::mount(&group.mount, group.v2)?;
    let mut pause = Pause::new(end);
    loop {
        match remove_below(&mount, &group.rel) {
            Ok(()) => break,
            Err(Errno::BUSY) => {
                let mut pids = Vec::new();
                group.dir.pids(true, &mut pids)?;
                wait_for_end(&pids, end);
                // Even after an event the kernel needs a moment to let go of the last task.
                if !pause.next() {
                    return Err(CgroupError::Busy { path: group.dir.path().into(), pids });
                }
            }
            Err(e) => return Err(io_error("remove cgroup", group.dir.path(), e)),
        }
    }
    remove_parents(&mount, &group.rel);
    Ok(())
}

/// Waits until one of the processes has ended, or the deadline.
fn wait_for_end(pids: &[i32], end: Instant) {
    let open: Vec<OwnedFd> = pids.iter().filter_map(|p| pidfd(*p)).collect();
    if pids.is_empty() || open.len() < pids.len() {
        return;
    }
    let mut polls: Vec<libc::pollfd> =
        open.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let ms = i32::try_from(end.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(i32::MAX);
    // SAFETY: a valid array for the call's duration, of the length given.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, ms) };
}

/// Removes a group and its children, deepest first.
fn remove_below(mount: &Dir, rel: &Path) -> rustix::io::Result<()> {
    let parent = mount.child(rel.parent().unwrap_or(Path::new(""))).map_err(|e| errno(&e))?;
    let (Some(parent), Some(name)) = (parent, rel.file_name()) else { return Ok(()) };
    // The usual case: no children, one call.
    match parent.remove(Path::new(name)) {
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        other => return other,
    }
    if let Some(dir) = parent.child(Path::new(name)).map_err(|e| errno(&e))? {
        for child in dir.children().map_err(|e| errno(&e))? {
            remove_below(&dir, &child)?;
        }
    }
    parent.remove(Path::new(name))
}

/// As [`remove_below`], for a group that holds no process.
pub(super) fn remove_tree(parent: &Dir, name: &Path) -> Result<()> {
    remove_below(parent, name).map_err(|e| io_error("remove cgroup", &parent.path().join(name), e))
}

fn errno(e: &CgroupError) -> Errno {
    e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

/// Removes the parents that ilot made, as far up as they are empty. The kernel refuses the others.
pub(super) fn remove_parents(mount: &Dir, rel: &Path) {
    for parent in rel.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
        let marked = mount.child(parent).ok().flatten().is_some_and(|d| d.marked());
        if !marked || mount.remove(parent).is_err() {
            break;
        }
    }
}

/// Waits that grow from 50 µs to 20 ms, until a deadline: for the few things the kernel does not announce.
struct Pause {
    end: Instant,
    step: Duration,
}

impl Pause {
    fn new(end: Instant) -> Self {
        Self { end, step: Duration::from_micros(50) }
    }

    fn next(&mut self) -> bool {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.step.min(left));
        self.step = (self.step * 2).min(Duration::from_millis(20));
        true
    }
}
