//! Scopes of systemd, with the real one: `cargo xtask test --cgroup2` boots a machine for it. Elsewhere only that it is missed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::bundle::Bundle;
use common::{busybox_tree, host_can, libexec, until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn systemd_runs() -> bool {
    let runs = Path::new("/run/systemd/system").is_dir();
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !runs || !v2 {
        eprintln!("SKIPPED: needs systemd as process 1 ({runs}) and cgroup v2 alone ({v2})");
    }
    host_can() && runs && v2
}

fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// One property of a unit.
fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, unit]).trim().to_owned()
}

fn group_of(pid: &Value) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    Path::new("/sys/fs/cgroup").join(text.trim().trim_start_matches("0::/"))
}

fn read(group: &Path, file: &str) -> String {
    std::fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned()
}

/// A container that sleeps, in a scope of `machine.slice`.
fn sleeper() -> (Bundle, String) {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["cgroupsPath"] = json!(format!("machine.slice:ilot:{}", bundle.id));
    let unit = format!("ilot-{}.scope", bundle.id);
    (bundle, unit)
}

fn up(bundle: &Bundle) -> PathBuf {
    bundle.ok(&["--systemd-cgroup", "create", &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    group_of(&bundle.state()["pid"])
}

#[test]
fn a_scope_with_limits() {
    if !systemd_runs() {
        return;
    }
    let (mut bundle, unit) = sleeper();
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20, "reservation": 16 << 20, "swap": 96 << 20},
        "cpu": {"shares": 2048, "quota": 25_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 44},
        "blockIO": {"weight": 500},
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}],
        "unified": {"memory.high": "50331648"},
    });
    bundle.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/own", "major": 1, "minor": 11}]);
    bundle.config["annotations"] = json!({"org.systemd.property.TimeoutStopUSec": "uint64 5000000"});
    let group = up(&bundle);
    assert_eq!(group, Path::new("/sys/fs/cgroup/machine.slice").join(&unit));
    for (file, value) in [
        ("memory.max", (64 << 20).to_string()),
        ("memory.low", (16 << 20).to_string()),
        ("memory.swap.max", (32 << 20).to_string()),
        ("memory.high", "50331648".to_owned()),
        ("cpu.max", "25000 100000".to_owned()),
        ("cpuset.cpus", "0".to_owned()),
        ("pids.max", "44".to_owned()),
    ] {
        assert_eq!(read(&group, file), value, "{file}");
    }
    for (name, value) in [
        ("ActiveState", "active".to_owned()),
        ("Slice", "machine.slice".to_owned()),
        ("Delegate", "yes".to_owned()),
        ("MemoryMax", (64 << 20).to_string()),
        ("MemoryHigh", "50331648".to_owned()),
        ("MemorySwapMax", (32 << 20).to_string()),
        ("CPUQuotaPerSecUSec", "250ms".to_owned()),
        ("TasksMax", "44".to_owned()),
        ("AllowedCPUs", "0".to_owned()),
        ("DevicePolicy", "strict".to_owned()),
        ("TimeoutStopUSec", "5s".to_owned()),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    assert!(property(&unit, "DeviceAllow").contains("/dev/char/1:11 w"), "{}", property(&unit, "DeviceAllow"));
    assert_eq!(property(&unit, "CPUWeight"), read(&group, "cpu.weight"));
    // What people look at.
    let status = systemctl(&["status", "--no-pager", "--lines=0", &unit]);
    assert!(status.contains("active (running)") && status.contains("sleep 1000"), "{status}");
    // systemd's program and ours agree.
    let said = bundle.exec("(: >/dev/own) 2>/dev/null && echo w; (: </dev/own) 2>/dev/null && echo r; echo end");
    assert_eq!(said, "w\nend\n");
    assert_eq!(bundle.exec("cat /proc/self/cgroup"), "0::/\n");
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!group.exists());
    assert_eq!(property(&unit, "LoadState"), "not-found");
}

#[test]
fn update_reaches_systemd_and_the_kernel() {
    if !systemd_runs() {
        return;
    }
    let (bundle, unit) = sleeper();
    let group = up(&bundle);
    bundle.ok(&[
        "update",
        "--memory",
        "48m",
        "--pids-limit",
        "33",
        "--cpu-quota",
        "50000",
        "--cpu-period",
        "100000",
        "--cpuset-cpus",
        "0",
        &bundle.id,
    ]);
    let check = || {
        assert_eq!(read(&group, "memory.max"), (48 << 20).to_string());
        assert_eq!(read(&group, "pids.max"), "33");
        assert_eq!(read(&group, "cpu.max"), "50000 100000");
        assert_eq!(read(&group, "cpuset.cpus"), "0");
        assert_eq!(property(&unit, "MemoryMax"), (48 << 20).to_string());
        assert_eq!(property(&unit, "TasksMax"), "33");
        assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "500ms");
    };
    check();
    // It would undo what it does not know of.
    systemctl(&["daemon-reload"]);
    check();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["update", "--memory=-1", "--pids-limit=-1", &bundle.id]);
    assert_eq!((read(&group, "memory.max"), read(&group, "pids.max")), ("max".into(), "max".into()));
    assert_eq!(property(&unit, "MemoryMax"), "infinity");
}

#[test]
fn a_name_can_be_used_again_at_once() {
    if !systemd_runs() {
        return;
    }
    let (mut bundle, unit) = sleeper();
    bundle.config["process"]["args"] = json!(["/bin/sh", "-c", "cat /proc/self/cgroup; exit 3"]);
    for _ in 0..3 {
        let output = bundle.output(&["--cgroup-manager", "systemd", "run", &bundle.id]);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(property(&unit, "LoadState"), "not-found");
    // A second of the same name is told so, and the first is left alone.
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    let group = up(&bundle);
    let mut other = Bundle::new(&["true"]);
    other.config["linux"]["cgroupsPath"] = bundle.config["linux"]["cgroupsPath"].clone();
    let said = other.fails(&["--systemd-cgroup", "run", &other.id]);
    assert!(said.contains(&unit) && said.contains("UnitExists"), "{said}");
    assert_eq!(read(&group, "cgroup.procs").lines().count(), 1);
    // What systemd ends is seen, and can be deleted.
    systemctl(&["stop", &unit]);
    until("the container has ended", || bundle.state()["status"] == "stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn a_limit_that_is_refused_leaves_no_unit() {
    if !systemd_runs() {
        return;
    }
    let (mut bundle, unit) = sleeper();
    bundle.config["linux"]["resources"] = json!({"unified": {"memory.nothing": "1"}});
    assert!(bundle.fails(&["--systemd-cgroup", "run", &bundle.id]).contains("memory.nothing"));
    assert_eq!(property(&unit, "LoadState"), "not-found");
    bundle.config["linux"]["cgroupsPath"] = json!("/plain/path");
    let said = bundle.fails(&["--systemd-cgroup", "run", &bundle.id]);
    assert!(said.contains("SLICE:PREFIX:NAME"), "{said}");
}

/// An init that divides its group gets a scope to divide.
#[test]
fn a_scope_is_delegated() {
    if !systemd_runs() {
        return;
    }
    let (mut bundle, _) = sleeper();
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 50}});
    let group = up(&bundle);
    std::fs::create_dir(group.join("job")).unwrap();
    std::fs::write(group.join("job/cgroup.procs"), bundle.state()["pid"].to_string()).unwrap();
    std::fs::write(group.join("cgroup.subtree_control"), "+pids").unwrap();
    systemctl(&["daemon-reload"]);
    assert_eq!(read(&group.join("job"), "cgroup.procs").lines().count(), 1);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!group.exists());
}

/// The user's own manager, for who has no rights on the system's.
#[test]
fn an_ordinary_user() {
    if !systemd_runs() {
        return;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    if !passwd.lines().any(|l| l.starts_with("ann:x:1000:")) || !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("SKIPPED: needs the user `ann` of the test machine, and setpriv");
        return;
    }
    assert!(Command::new("loginctl").args(["enable-linger", "ann"]).status().unwrap().success());
    until("the user's bus", || Path::new("/run/user/1000/bus").exists());
    let dir = tempfile::Builder::new().prefix("ilot-user-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    busybox_tree(&path("rootfs"));
    std::fs::copy(libexec().join("ilot-oci"), path("ilot-oci")).unwrap();
    assert!(Command::new("chown").args(["-R", "ann:ann"]).arg(dir.path()).status().unwrap().success());
    let call = |args: &[&str], bus: bool| {
        let (out, err) = (path("out"), path("err"));
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]).arg(path("ilot-oci"));
        command.arg("--root").arg(path("state")).args(args).current_dir(dir.path()).stdin(Stdio::null());
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("XDG_RUNTIME_DIR");
        if bus {
            command.env("XDG_RUNTIME_DIR", "/run/user/1000");
        }
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        let good = command.status().unwrap().success();
        let text = |p: &Path| std::fs::read_to_string(p).unwrap();
        (good, text(&out) + &text(&err))
    };
    assert!(call(&["spec", "--rootless"], true).0);
    let mut config: Value = serde_json::from_slice(&std::fs::read(path("config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sleep", "1000"]);
    config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 33},
        "devices": [{"allow": false, "access": "rwm"}],
    });
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let (good, said) = call(&["--systemd-cgroup", "run", "--detach", "rl"], false);
    assert!(!good && said.contains("enable-linger"), "{said}");
    let (good, said) = call(&["--systemd-cgroup", "run", "--detach", "rl"], true);
    assert!(good, "{said}");
    let state: Value = serde_json::from_str(&call(&["state", "rl"], true).1).unwrap();
    let group = group_of(&state["pid"]);
    assert!(group.ends_with("user.slice/ilot-rl.scope") || group.ends_with("ilot-rl.scope"), "{}", group.display());
    assert!(group.starts_with("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service"), "{}", group.display());
    assert_eq!((read(&group, "memory.max"), read(&group, "pids.max")), ((64 << 20).to_string(), "33".into()));
    let (good, said) = call(&["update", "--memory", "32m", "rl"], true);
    assert!(good, "{said}");
    assert_eq!(read(&group, "memory.max"), (32 << 20).to_string());
    let (good, said) = call(&["delete", "--force", "rl"], true);
    assert!(good, "{said}");
    assert!(!group.exists());
}

/// Written down, gone, and back in a scope of the same name with the same limits.
#[test]
fn a_container_comes_back_into_a_scope() {
    if !systemd_runs() {
        return;
    }
    let check = Command::new("criu").arg("check").output();
    if !check.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: needs a CRIU that works with this kernel: {check:?}");
        return;
    }
    let (mut bundle, unit) = sleeper();
    let script = "i=0; while :; do i=$((i+1)); echo $i >/n.new; busybox mv /n.new /n; sleep 0.05; done";
    bundle.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 44}});
    let group = up(&bundle);
    let count = || std::fs::read_to_string(bundle.rootfs().join("n")).ok().and_then(|n| n.trim().parse::<u64>().ok());
    until("it counts", || count() > Some(3));
    let (images, work) = (bundle.dir.path().join("images"), bundle.dir.path().join("work"));
    let folders = ["--image-path", images.to_str().unwrap(), "--work-path", work.to_str().unwrap()];
    bundle.ok(&[&["--systemd-cgroup", "checkpoint"], &folders[..], &[&bundle.id]].concat());
    bundle.fails(&["state", &bundle.id]);
    assert!(!group.exists() && property(&unit, "LoadState") == "not-found", "the scope is gone with it");
    let before = count();
    bundle.ok(&[&["--systemd-cgroup", "restore", "--detach"], &folders[..], &[&bundle.id]].concat());
    assert_eq!(group_of(&bundle.state()["pid"]), group);
    assert_eq!((read(&group, "memory.max"), read(&group, "pids.max")), ((64 << 20).to_string(), "44".into()));
    assert_eq!((property(&unit, "ActiveState"), property(&unit, "TasksMax")), ("active".into(), "44".into()));
    until("it counts on", || count() > before.map(|n| n + 3));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!group.exists());
    assert_eq!(property(&unit, "LoadState"), "not-found");
}

/// Where systemd does not run: an error that says so, and what to do.
#[test]
fn without_systemd() {
    if !host_can() || Path::new("/run/systemd/system").is_dir() {
        eprintln!("SKIPPED: needs root, busybox and a host without systemd");
        return;
    }
    let (bundle, _) = sleeper();
    for option in [&["--systemd-cgroup"][..], &["--cgroup-manager", "systemd"]] {
        let said = bundle.fails(&[option, &["run", &bundle.id]].concat());
        assert!(said.contains("systemd is not running") && said.contains("cgroupfs"), "{said}");
    }
    let said = bundle.fails(&["--cgroup-manager", "other", "list"]);
    assert!(said.contains("`other`"), "{said}");
}
