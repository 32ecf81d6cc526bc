//! What is there: taken before and after, so that what stays behind can be named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::World;

/// Links, rules, mounts, cgroups and processes that could be a world's.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// What there is now. Must be called in the world's own thread.
    #[must_use]
    pub fn take(world: &World) -> Self {
        let mut things = BTreeSet::new();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output().expect("run a tool");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for line in run("ip", &["-o", "link"]).lines() {
            let name = line.split(':').nth(1).unwrap_or(line).trim();
            things.insert(format!("link {name}"));
        }
        for line in run("nft", &["list", "tables"]).lines() {
            things.insert(format!("nft {line}"));
        }
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/up0/accept_ra"] {
            let value = fs::read_to_string(Path::new("/proc/sys/net").join(setting)).unwrap_or_default();
            things.insert(format!("{setting} {}", value.trim()));
        }
        for line in fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default().lines() {
            // The mount id and parent id differ from run to run; what is mounted where does not.
            things.insert(format!("mount {}", line.splitn(3, ' ').nth(2).unwrap_or(line)));
        }
        for dir in cgroups(world) {
            things.insert(format!("cgroup {}", dir.display()));
        }
        for (pid, line) in processes(world) {
            things.insert(format!("process {pid} {line}"));
        }
        Self { things }
    }

    /// What is here and not in `before`.
    #[must_use]
    pub fn minus(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// The cgroups of the world's store.
fn cgroups(world: &World) -> Vec<PathBuf> {
    let Ok(root) = fs::canonicalize(world.root()) else { return Vec::new() };
    let name = format!("ilot-{}", store_id(&root));
    let mut found = Vec::new();
    let mut dirs = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            // Controllers mounted together have link names besides.
            if !path.is_dir() || path.is_symlink() {
                continue;
            }
            if entry.file_name().to_string_lossy() == name {
                found.push(path.clone());
            }
            if depth < 6 {
                dirs.push((path, depth + 1));
            }
        }
    }
    found.sort_by_key(|p| std::cmp::Reverse(p.as_os_str().len()));
    found
}

fn store_id(root: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", "printf %s \"$0\" | sha256sum | cut -c1-8"])
        .arg(root)
        .output()
        .expect("run sha256sum");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Processes that live in this thread's network namespace or name the world's directory.
fn processes(world: &World) -> Vec<(i32, String)> {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    let mark = world.dir.path().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if u32::try_from(pid) == Ok(std::process::id()) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let here = own.is_some() && fs::read_link(entry.path().join("ns/net")).ok() == own;
        if here || line.contains(&mark) {
            found.push((pid, line));
        }
    }
    found
}

/// Ends and removes what a failed test left, so that it fails alone.
pub(crate) fn remove_everything(world: &World) {
    for attempt in 0..3 {
        for (pid, _) in processes(world) {
            // Only processes of this world are in the list: its namespace and its directory are nobody else's.
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for dir in cgroups(world) {
            remove_cgroup(&dir);
        }
        if cgroups(world).is_empty() && processes(world).is_empty() {
            break;
        }
        if attempt < 2 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    // Or the world's folder could not be removed.
    for line in fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default().lines().rev() {
        if let Some(at) = line.split(' ').nth(4).map(Path::new).filter(|at| at.starts_with(world.dir.path())) {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Kills what is in a group and removes it with those below it.
fn remove_cgroup(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten().filter(|e| e.path().is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = fs::write(dir.join("freezer.state"), "THAWED");
    let _ = fs::remove_dir(dir);
}
