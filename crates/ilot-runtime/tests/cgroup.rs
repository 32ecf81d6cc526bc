//! Control groups on the host's real hierarchies: each test makes groups below its own group and removes them.
//!
//! Every test runs with the host's layout and, on a hybrid host, once more as if there were no v2 hierarchy.
// Helpers of tests may unwrap as tests do.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ilot_runtime::cgroup::{Cgroup, CgroupError, Layout, Mode};
use ilot_runtime::spec::Resources;

/// The layouts to test, with a name; empty (and said so) where groups cannot be made.
fn layouts() -> Vec<(&'static str, Layout)> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(e) => {
            println!("skipped: {e}");
            return Vec::new();
        }
    };
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: needs root");
        return Vec::new();
    }
    if layout.mode() == Mode::Hybrid {
        let v1 = Layout { v2: None, ..layout.clone() };
        return vec![("hybrid", layout), ("v1", v1)];
    }
    vec![("host", layout)]
}

/// Groups that are killed and removed whatever happens.
struct Temp {
    group: Cgroup,
    layout: Layout,
    path: String,
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = self.group.kill_all();
        let _ = self.group.delete();
    }
}

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("ilot-test-{}-{}/in/group", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn resources(json: &str) -> Resources {
    serde_json::from_str(json).expect("resources")
}

fn make(layout: &Layout, json: &str) -> Temp {
    let path = unique();
    let group = Cgroup::create(layout, &path, &resources(json)).expect("create");
    Temp { group, layout: layout.clone(), path }
}

impl Temp {
    /// Starts a program that joins by itself, as a container's first process does.
    fn spawn(&self, command: &mut Command) -> Child {
        let joiner = self.group.joiner(false).expect("joiner");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: writes to open descriptors only.
        unsafe { command.pre_exec(move || joiner.join().map_err(|_| std::io::Error::last_os_error())) };
        command.spawn().expect("spawn")
    }

    fn sleeper(&self) -> Child {
        self.spawn(Command::new("sleep").arg("1000"))
    }

    fn dir(&self, controller: &str) -> std::path::PathBuf {
        let mount = self.layout.v1_of(controller).or(self.layout.v2.as_ref()).expect("a hierarchy").mount.clone();
        self.group.paths().into_iter().find(|p| p.starts_with(&mount)).expect("a group")
    }

    fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let name = if self.layout.v1_of(controller).is_some() { v1 } else { v2 };
        fs::read_to_string(self.dir(controller).join(name)).expect(name).trim().into()
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn limits_are_set_changed_and_removed() {
    for (name, layout) in layouts() {
        println!("{name}");
        let t = make(
            &layout,
            r#"{"memory":{"limit":33554432},"pids":{"limit":20},"cpu":{"shares":512,"quota":50000,"period":100000}}"#,
        );
        assert_eq!(t.file("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
        assert_eq!(t.file("pids", "pids.max", "pids.max"), "20");
        if layout.v1_of("cpu").is_some() {
            assert_eq!(t.file("cpu", "cpu.shares", ""), "512");
            assert_eq!(t.file("cpu", "cpu.cfs_quota_us", ""), "50000");
        }
        let mut child = t.sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(t.group.pids().unwrap(), [pid]);
        let stats = t.group.stats().unwrap();
        assert_eq!(stats.memory_limit, Some(33_554_432));
        assert_eq!(stats.pids_limit, Some(20));
        assert_eq!(stats.pids, Some(1));
        assert!(stats.memory.unwrap() > 0 && stats.cpu_usec.is_some(), "{stats:?}");

        let paths = t.group.paths();
        let mut again = Cgroup::open_in(&layout, &paths).unwrap();
        assert_eq!(again.paths(), paths);
        // Each of the two orders in which a quota and its period may have to be written.
        for json in [
            r#"{"cpu":{"quota":2000,"period":1000},"memory":{"limit":67108864},"pids":{"limit":-1}}"#,
            r#"{"cpu":{"quota":900000,"period":1000000},"memory":{"limit":-1}}"#,
        ] {
            again.update(&resources(json)).unwrap();
        }
        let stats = again.stats().unwrap();
        assert_eq!((stats.memory_limit, stats.pids_limit), (None, None));

        assert!(matches!(
            Cgroup::create(&layout, &t.path, &Resources::default()),
            Err(CgroupError::Taken { pids, .. }) if pids == [pid]
        ));
        t.group.kill_all().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        t.group.delete().unwrap();
        assert!(!t.group.exists());
        for path in paths {
            // The parents of our making are gone too.
            assert!(!path.parent().unwrap().parent().unwrap().exists(), "{}", path.display());
        }
        t.group.kill_all().unwrap();
        t.group.delete().unwrap();
        assert!(Cgroup::open_in(&layout, &t.group.paths()).unwrap().paths().is_empty());
    }
}

#[test]
fn a_process_joins_by_itself_or_is_moved() {
    for (_, layout) in layouts() {
        let t = make(&layout, r#"{"pids":{"limit":50}}"#);
        let mut a = t.sleeper();
        let mut b = Command::new("sleep").arg("1000").spawn().unwrap();
        t.group.join(i32::try_from(b.id()).unwrap()).unwrap();
        // A second time is no error.
        t.group.join(i32::try_from(b.id()).unwrap()).unwrap();
        for child in [&a, &b] {
            let text = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
            for path in t.group.paths() {
                let end = path.file_name().unwrap().to_str().unwrap();
                assert!(text.contains(&format!("/{end}\n")));
            }
            let inside = text.lines().filter(|l| l.ends_with("/in/group")).count();
            assert_eq!(inside, t.group.paths().len(), "{text}");
        }
        t.group.kill_all().unwrap();
        a.wait().unwrap();
        b.wait().unwrap();
    }
}

#[test]
fn running_out_of_memory_is_told() {
    for (_, layout) in layouts() {
        let t = make(&layout, r#"{"memory":{"limit":16777216,"swap":16777216}}"#);
        assert!(!t.group.oom_killed().unwrap());
        // 64 MiB in one shell variable.
        let script = "x=$(head -c 67108864 /dev/zero | tr '\\0' x); echo ${#x}";
        let status = t.spawn(Command::new("sh").args(["-c", script])).wait().unwrap();
        assert!(!status.success());
        assert!(t.group.oom_killed().unwrap());
        assert!(t.group.stats().unwrap().oom_kills.unwrap() > 0);
    }
}

#[test]
fn processes_are_bounded() {
    for (_, layout) in layouts() {
        let t = make(&layout, r#"{"pids":{"limit":4}}"#);
        let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
        let mut child = t.spawn(Command::new("sh").args(["-c", script]));
        wait_for("reaching the limit", || {
            let events = fs::read_to_string(t.dir("pids").join("pids.events")).unwrap();
            !events.contains("max 0")
        });
        assert!(t.group.pids().unwrap().len() <= 4);
        t.group.kill_all().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn frozen_processes_do_nothing_and_die_when_killed() {
    for (_, layout) in layouts() {
        let t = make(&layout, "{}");
        let mut child = t.spawn(Command::new("sh").args(["-c", "while :; do :; done"]));
        let used = || t.group.stats().unwrap().cpu_usec.unwrap();
        wait_for("work", || used() > 2000);
        t.group.freeze().unwrap();
        assert!(t.group.frozen().unwrap());
        let before = used();
        // Long enough for a scheduler period or two, were it running.
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        assert!(Command::new("sh").args(["-c", busy]).status().unwrap().success());
        // What was used before may be added up a little later.
        assert!(used() < before + 5000);
        t.group.thaw().unwrap();
        assert!(!t.group.frozen().unwrap());
        wait_for("more work", || used() > before + 5000);
        t.group.freeze().unwrap();
        t.group.kill_all().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        t.group.delete().unwrap();
    }
}

#[test]
fn nobody_forks_away_from_the_end() {
    for (_, layout) in layouts() {
        let t = make(&layout, r#"{"pids":{"limit":200}}"#);
        let script = "f() { sleep 1000 & (f) & }; f; while :; do sleep 0.001 & done";
        let mut child = t.spawn(Command::new("sh").args(["-c", script]));
        wait_for("a crowd", || t.group.pids().unwrap().len() > 20);
        t.group.kill_all().unwrap();
        child.wait().unwrap();
        t.group.delete().unwrap();
        assert!(!t.group.exists());
    }
}

#[test]
fn children_of_the_group_go_with_it() {
    for (_, layout) in layouts() {
        let t = make(&layout, "{}");
        for path in t.group.paths() {
            fs::create_dir_all(path.join("a/b")).unwrap();
            fs::create_dir(path.join("c")).unwrap();
        }
        t.group.delete().unwrap();
        assert!(!t.group.exists());
        // What a crash left is replaced.
        let left = Cgroup::create(&layout, &t.path, &resources(r#"{"pids":{"limit":3}}"#)).unwrap();
        for path in left.paths() {
            fs::create_dir(path.join("x")).unwrap();
        }
        let new = Cgroup::create(&layout, &t.path, &Resources::default()).unwrap();
        assert_eq!(new.stats().unwrap().pids_limit, None);
        assert!(!new.paths()[0].join("x").exists());
        new.delete().unwrap();
    }
}

#[test]
fn a_failed_create_leaves_nothing() {
    for (_, layout) in layouts() {
        for json in [
            r#"{"cpu":{"quota":1,"period":100000}}"#,
            r#"{"memory":{"limit":100,"swap":50}}"#,
            r#"{"unified":{"../escape":"1"}}"#,
            r#"{"hugepageLimits":[{"pageSize":"3XB","limit":1}]}"#,
            r#"{"rdma":{"mlx5_0":{"hcaHandles":1}}}"#,
            r#"{"devices":[{"allow":true,"type":"x"}]}"#,
        ] {
            let path = unique();
            let error = Cgroup::create(&layout, &path, &resources(json)).unwrap_err();
            let top = path.split('/').next().unwrap();
            for h in layout.v1.iter().chain(&layout.v2) {
                assert!(!h.mount.join(&h.own).join(top).exists(), "{json}: {error}");
            }
        }
        for path in ["../x", "a/../../b", "", "/", "a/cgroup.procs"] {
            assert!(matches!(Cgroup::create(&layout, path, &Resources::default()), Err(CgroupError::BadPath { .. })));
        }
        assert!(Cgroup::open_in(&layout, &["/etc".into()]).is_err());
        let mount = layout.v1.iter().chain(&layout.v2).next().unwrap().mount.clone();
        assert!(Cgroup::open_in(&layout, std::slice::from_ref(&mount)).is_err());
        assert!(Cgroup::open_in(&layout, &[mount.join("../../etc")]).is_err());
    }
}

#[test]
fn an_error_names_file_value_and_cure() {
    for (_, layout) in layouts() {
        let bad = r#"{"cpu":{"quota":1,"period":100000}}"#;
        let error = Cgroup::create(&layout, &unique(), &resources(bad)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("cpu.") && text.contains('1'), "{text}");
        assert!(error.help().unwrap().contains("1000 µs"), "{:?}", error.help());
        let t = make(&layout, r#"{"memory":{"limit":67108864}}"#);
        let mut child = t.sleeper();
        if layout.v1_of("memory").is_some() {
            let mut group = Cgroup::open_in(&layout, &t.group.paths()).unwrap();
            let below = r#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#;
            let error = group.update(&resources(below)).unwrap_err();
            assert!(matches!(error, CgroupError::InUse { usage, .. } if usage > 4096), "{error}");
        }
        t.group.kill_all().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_new_limit_takes_running_processes_along() {
    for (_, layout) in layouts() {
        let mut t = make(&layout, "{}");
        let mut child = t.spawn(Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & wait"]));
        wait_for("three processes", || t.group.pids().unwrap().len() == 3);
        t.group.update(&resources(r#"{"cpu":{"cpus":"0"}}"#)).unwrap();
        assert_eq!(t.file("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
        for pid in t.group.pids().unwrap() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
        }
        t.group.kill_all().unwrap();
        child.wait().unwrap();
        let cpuset = t.dir("cpuset");
        t.group.delete().unwrap();
        assert!(!cpuset.exists());
    }
}

#[test]
fn devices_are_an_allowlist() {
    let mut all = layouts();
    // A program at the v2 group, as on hosts without the v1 controller.
    if let Some((_, layout)) = all.first().cloned().filter(|(_, l)| l.mode() == Mode::Hybrid) {
        let v1 = layout.v1.iter().filter(|h| !h.controllers.iter().any(|c| c == "devices")).cloned().collect();
        all.push(("program", Layout { v1, ..layout }));
    }
    for (name, layout) in all {
        println!("{name}");
        let rules = r#"{"devices":[{"allow":false,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"},
            {"allow":true,"type":"c","major":1,"minor":9,"access":"r"}]}"#;
        let t = make(&layout, rules);
        let opens = |what: &str| {
            let status = t.spawn(Command::new("sh").args(["-c", what])).wait().unwrap();
            status.success()
        };
        assert!(opens(": >/dev/null"));
        assert!(opens(": </dev/null; head -c 1 /dev/urandom"));
        assert!(!opens("head -c 1 /dev/zero"));
        assert!(!opens("exec >/dev/urandom"));
        let mut group = Cgroup::open_in(&layout, &t.group.paths()).unwrap();
        group
            .update(&resources(r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":5,"access":"r"}]}"#))
            .unwrap();
        assert!(opens("head -c 1 /dev/zero"));
        // Each list starts from none.
        assert!(!opens("head -c 1 /dev/urandom"));
    }
}

#[test]
fn parents_come_and_go_while_others_use_them() {
    for (_, layout) in layouts() {
        let top = unique().replace("/in/group", "");
        // Limits: on v2 one shares controllers out to the parent while another finds them there already.
        let limits = resources(r#"{"memory":{"limit":33554432},"pids":{"limit":20},"cpu":{"shares":512}}"#);
        std::thread::scope(|s| {
            for i in 0..4 {
                let (layout, top, limits) = (&layout, &top, &limits);
                s.spawn(move || {
                    for round in 0..40 {
                        let path = format!("{top}/pro/m{i}-{round}");
                        let group = Cgroup::create(layout, &path, limits).unwrap();
                        group.delete().unwrap();
                    }
                });
            }
        });
        for h in layout.v1.iter().chain(&layout.v2) {
            assert!(!h.mount.join(&h.own).join(&top).exists(), "{}", h.mount.display());
        }
    }
}

#[test]
fn a_delegated_group_can_be_divided_inside() {
    for (_, layout) in layouts().into_iter().filter(|(_, l)| l.v2.is_some()) {
        let t = make(&layout, r#"{"pids":{"limit":40}}"#);
        t.group.delegate(1_000_000, 1_000_000).unwrap();
        let v2 = t.group.v2_path().unwrap().to_path_buf();
        let joiner = t.group.joiner(false).unwrap();
        let script = "mkdir sub && echo $$ > sub/cgroup.procs && cat /proc/self/cgroup >&2 && ! mkdir ../beside";
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&v2).stdin(Stdio::null());
        // SAFETY: writes to open descriptors and changes the ids of the child only.
        unsafe {
            command.pre_exec(move || {
                joiner.join().map_err(|_| std::io::Error::last_os_error())?;
                if libc::setgroups(0, std::ptr::null()) != 0
                    || libc::setgid(1_000_000) != 0
                    || libc::setuid(1_000_000) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{text}");
        assert!(text.lines().any(|l| l.starts_with("0::") && l.ends_with("/sub")), "{text}");
        assert!(!Path::new("beside").exists());
        assert_eq!(fs::read_to_string(v2.join("cgroup.max.descendants")).unwrap(), "2048\n");
        // The limits stay the host's.
        if let Some(pids) = layout.v1_of("pids") {
            let dir = t.group.paths().into_iter().find(|p| p.starts_with(&pids.mount)).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(dir.join("pids.max")).unwrap()), 0);
        }
        t.group.delete().unwrap();
        assert!(!v2.exists());
    }
}
