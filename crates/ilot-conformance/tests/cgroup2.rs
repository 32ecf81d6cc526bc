//! `config-linux.md`, "Control groups", on a host whose only hierarchy is v2: the kernel's files after `create` and `update`, and
//! what they do. `cargo xtask test --cgroup2` runs this in a virtual machine.

use ilot_conformance::{Bundle, Kind, bundle, conform, host, json, need, skip, wait_for};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

fn need_v2(controllers: &[&str]) {
    need(host::is_unified(), "needs a host whose only hierarchy is v2");
    let there = host::read("/sys/fs/cgroup/cgroup.controllers");
    for controller in controllers {
        need(there.split_whitespace().any(|c| c == *controller), &format!("needs the controller `{controller}`"));
    }
}

fn file(c: &Bundle, name: &str) -> String {
    c.cgroup("", name)
}

fn group(c: &Bundle) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(&c.id)
}

/// The disk that `/` is on.
fn disk() -> String {
    let device = std::fs::metadata("/").unwrap().dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    need(Path::new(&format!("/sys/dev/block/{major}:{minor}/queue")).exists(), "needs `/` on a whole block device");
    format!("{major}:{minor}")
}

fn numbers(disk: &str) -> (u64, u64) {
    let (major, minor) = disk.split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

/// Memory and swap are counted together in the specification and apart by the kernel.
#[test]
fn memory() {
    conform(|| {
        need_v2(&["memory"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["memory"] =
            json!({"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20});
        c.up();
        assert_eq!(file(&c, "memory.max"), (64 << 20).to_string());
        assert_eq!(file(&c, "memory.low"), (32 << 20).to_string());
        assert_eq!(file(&c, "memory.swap.max"), (32 << 20).to_string());
        assert!(file(&c, "cgroup.procs").lines().any(|l| l == c.pid().to_string()));
    });
}

#[test]
fn memory_limit_holds() {
    conform(|| {
        need_v2(&["memory"]);
        let mut c = Bundle::sh("trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done");
        c.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
        c.up();
        let output = c.exec(&[], &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"]);
        assert_eq!(output.code, 137, "{output:?}");
        let killed = |text: String| text.lines().any(|l| l.strip_prefix("oom_kill ").is_some_and(|n| n != "0"));
        assert!(killed(file(&c, "memory.events")), "{}", file(&c, "memory.events"));
    });
}

/// The smallest limit that people try.
#[test]
fn a_tiny_memory_limit() {
    conform(|| {
        need_v2(&["memory"]);
        let mut c = Bundle::new();
        if !bundle::is(Kind::Ilot) {
            skip("other runtimes need more");
        }
        c.config["linux"]["resources"]["memory"] = json!({"limit": 512 << 10});
        c.run().ok();
    });
}

#[test]
fn cpu() {
    conform(|| {
        need_v2(&["cpu"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"shares": 2048, "quota": 50_000, "period": 100_000});
        c.up();
        assert_eq!(file(&c, "cpu.max"), "50000 100000");
        let weight: u64 = file(&c, "cpu.weight").parse().unwrap();
        // The line of old (79) and the curve that runtimes have agreed on since (170).
        assert!((70..=200).contains(&weight), "{weight}");
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"quota": 40_000, "period": 100_000, "burst": 10_000});
        c.up();
        if bundle::is(Kind::Ilot) {
            assert_eq!(file(&c, "cpu.max.burst"), "10000");
        }
    });
}

/// A group that may use a tenth of a processor is stopped again and again.
#[test]
fn cpu_limit_holds() {
    conform(|| {
        need_v2(&["cpu"]);
        let mut c = Bundle::sh("echo up; while :; do :; done");
        c.config["linux"]["resources"]["cpu"] = json!({"quota": 10_000, "period": 100_000});
        c.up();
        let throttled =
            || file(&c, "cpu.stat").lines().any(|l| l.strip_prefix("nr_throttled ").is_some_and(|n| n != "0"));
        wait_for("the quota to be used up", || throttled().then_some(()));
    });
}

#[test]
fn cpu_idle() {
    conform(|| {
        need_v2(&["cpu"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"idle": 1});
        c.up();
        need(group(&c).join("cpu.idle").exists(), "needs Linux 5.15");
        if bundle::is(Kind::Ilot) {
            assert_eq!(file(&c, "cpu.idle"), "1");
        }
    });
}

#[test]
fn cpuset() {
    conform(|| {
        need_v2(&["cpuset"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"cpus": "0", "mems": "0"});
        c.up();
        assert_eq!((file(&c, "cpuset.cpus"), file(&c, "cpuset.mems")), ("0".into(), "0".into()));
        assert!(c.exec_sh("grep Cpus_allowed_list /proc/self/status").ok().ends_with("\t0\n"));
    });
}

#[test]
fn pids() {
    conform(|| {
        need_v2(&["pids"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["pids"] = json!({"limit": 20});
        c.up();
        assert_eq!(file(&c, "pids.max"), "20");
        c.exec_sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do sleep 5 & done 2>&1")
            .fails();
    });
}

#[test]
fn block_io() {
    conform(|| {
        need_v2(&["io"]);
        let disk = disk();
        let (major, minor) = numbers(&disk);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["blockIO"] = json!({
            "weight": 500,
            "throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 10_485_760}],
            "throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 5_242_880}],
            "throttleReadIOPSDevice": [{"major": major, "minor": minor, "rate": 1000}],
            "throttleWriteIOPSDevice": [{"major": major, "minor": minor, "rate": 2000}]
        });
        c.up();
        assert_eq!(file(&c, "io.max"), format!("{disk} rbps=10485760 wbps=5242880 riops=1000 wiops=2000"));
        let weight = if group(&c).join("io.bfq.weight").exists() { "io.bfq.weight" } else { "io.weight" };
        assert_ne!(file(&c, weight), "default 100");
    });
}

#[test]
fn huge_pages() {
    conform(|| {
        need_v2(&["hugetlb"]);
        need(Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists(), "needs huge pages of 2 MB");
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 4 << 20}]);
        c.up();
        assert_eq!(file(&c, "hugetlb.2MB.max"), (4 << 20).to_string());
        if bundle::is(Kind::Ilot) {
            assert_eq!(file(&c, "hugetlb.2MB.rsvd.max"), (4 << 20).to_string());
        }
    });
}

/// "unified": "a map of cgroup v2 files", any of them; keys of controllers that are not there, and paths, are errors.
#[test]
fn unified() {
    conform(|| {
        need_v2(&["memory", "pids", "cpu", "io"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["unified"] = json!({
            "memory.high": "50331648", "memory.min": "1048576", "pids.max": "77", "cpu.weight": "300",
            "io.weight": "default 200", "cgroup.max.depth": "3"
        });
        c.up();
        for (name, value) in [
            ("memory.high", "50331648"),
            ("memory.min", "1048576"),
            ("pids.max", "77"),
            ("cpu.weight", "300"),
            ("io.weight", "default 200"),
            ("cgroup.max.depth", "3"),
        ] {
            assert_eq!(file(&c, name), value, "{name}");
        }
        for (key, value) in [("memory.nothing", "1"), ("nothing.max", "1"), ("../escape", "1"), ("pids.max", "many")] {
            let mut c = Bundle::new();
            c.config["linux"]["resources"]["unified"] = json!({key: value});
            assert!(c.run().code != 0, "{key}={value}");
            assert!(!group(&c).exists(), "{key} leaves nothing");
        }
    });
}

/// What v2 cannot do is an error.
#[test]
fn what_v2_cannot_do() {
    conform(|| {
        need_v2(&[]);
        if !bundle::is(Kind::Ilot) {
            skip("other runtimes pass over some of these in silence");
        }
        for resources in [
            json!({"network": {"classID": 7}}),
            json!({"network": {"priorities": [{"name": "lo", "priority": 1}]}}),
            json!({"cpu": {"realtimeRuntime": 1000, "realtimePeriod": 10_000}}),
            json!({"rdma": {"no-such-device": {"hcaHandles": 1}}}),
            json!({"memory": {"swappiness": 10}}),
            json!({"memory": {"kernel": 10_000_000}}),
            json!({"memory": {"kernelTCP": 10_000_000}}),
            json!({"memory": {"disableOOMKiller": true}}),
            json!({"blockIO": {"leafWeight": 100}}),
        ] {
            let mut c = Bundle::new();
            c.config["linux"]["resources"] = resources.clone();
            let output = c.run();
            assert!(output.code != 0, "{resources}");
            assert!(!group(&c).exists(), "{resources} leaves nothing");
        }
    });
}

/// Device rules are a program at the group; `update` puts a new one in its place.
#[test]
fn device_program() {
    conform(|| {
        need_v2(&[]);
        let mut c = Bundle::sleeper();
        c.all_capabilities();
        c.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/own", "major": 1, "minor": 11}]);
        c.config["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
        c.up();
        let opens =
            || c.exec_sh("(: >/dev/own) 2>/dev/null && echo w; (: </dev/own) 2>/dev/null && echo r; echo end").ok();
        assert_eq!(opens(), "end\n");
        if !bundle::is(Kind::Ilot) {
            skip("only the start: `update` of devices is ilot's");
        }
        let rules = c.dir().join("rules.json");
        let allow = json!({"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]});
        std::fs::write(&rules, allow.to_string()).unwrap();
        c.call(&["update", "--resources", rules.to_str().unwrap(), &c.id]).ok();
        assert_eq!(opens(), "w\nend\n");
    });
}

#[test]
fn freezer() {
    conform(|| {
        need_v2(&[]);
        let c = Bundle::sh("echo up; while :; do :; done");
        c.up();
        let used = || {
            let text = file(&c, "cpu.stat");
            text.lines().find_map(|l| l.strip_prefix("usage_usec ")?.parse::<u64>().ok()).unwrap()
        };
        wait_for("work", || (used() > 1000).then_some(()));
        c.call(&["pause", &c.id]).ok();
        assert!(file(&c, "cgroup.events").contains("frozen 1"));
        assert_eq!(c.state()["status"], "paused");
        let before = used();
        assert!(
            std::process::Command::new("sh")
                .args(["-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
                .status()
                .unwrap()
                .success()
        );
        // What was used before may be added up a little later.
        assert!(used() < before + 5000, "it works on");
        c.call(&["resume", &c.id]).ok();
        wait_for("more work", || (used() > before + 5000).then_some(()));
    });
}

/// Every process is in the group from its birth, and sees it as the top in a cgroup namespace.
#[test]
fn born_in_the_group() {
    conform(|| {
        need_v2(&[]);
        let mut c = Bundle::sh("cat /proc/self/cgroup; echo up; sleep 1000");
        c.namespace("cgroup", Some(json!({"type": "cgroup"})));
        c.up();
        assert!(c.log().starts_with("0::/\n"), "{}", c.log());
        assert_eq!(c.exec_sh("cat /proc/self/cgroup").ok(), "0::/\n");
        assert_eq!(host::read(format!("/proc/{}/cgroup", c.pid())), format!("0::/{}\n", c.id));
    });
}

/// A container whose root is nobody outside gets its group to divide: children, their controllers, not its own limits.
#[test]
fn delegation() {
    conform(|| {
        need_v2(&["pids", "memory"]);
        let mut c = Bundle::sleeper();
        c.user_namespace(200_000);
        c.namespace("cgroup", Some(json!({"type": "cgroup"})));
        c.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid", "noexec", "nodev"]}));
        c.mount(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}));
        let mounts = c.config["mounts"].as_array_mut().unwrap();
        let last = mounts.pop().unwrap();
        mounts.retain(|m| m["destination"] != "/sys");
        let at = mounts.iter().position(|m| m["destination"] == "/sys/fs/cgroup").unwrap();
        mounts.insert(at, last);
        c.config["linux"]["resources"] = json!({"pids": {"limit": 50}, "memory": {"limit": 64 << 20}});
        c.up();
        let script = "cd /sys/fs/cgroup && mkdir init.scope && for p in $(cat cgroup.procs); do echo $p >init.scope/cgroup.procs; done 2>/dev/null
            mkdir job && echo +pids >cgroup.subtree_control && echo 5 >job/pids.max && cat job/pids.max
            (echo 9999 >pids.max) 2>/dev/null && echo raised; echo end";
        assert_eq!(c.exec_sh(script).ok(), "5\nend\n");
        assert_eq!(file(&c, "pids.max"), "50");
        assert_eq!(std::fs::metadata(group(&c)).unwrap().uid(), 200_000);
        // A further command still gets in, where processes are.
        assert_eq!(c.exec_sh("cat /proc/self/cgroup").ok(), "0::/init.scope\n");
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(!group(&c).exists());
    });
}

/// "update", for what had a limit and what had none: controllers are shared out when they are needed.
#[test]
fn update() {
    conform(|| {
        need_v2(&["memory", "cpu", "pids", "cpuset", "io"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c.up();
        let flags = [
            "update",
            "--memory",
            "50331648",
            "--cpu-quota",
            "20000",
            "--cpu-period",
            "40000",
            "--cpuset-cpus",
            "0",
            "--pids-limit",
            "33",
            &c.id,
        ];
        c.call(&flags).ok();
        assert_eq!(file(&c, "memory.max"), "50331648");
        assert_eq!(file(&c, "cpu.max"), "20000 40000");
        assert_eq!(file(&c, "cpuset.cpus"), "0");
        assert_eq!(file(&c, "pids.max"), "33");
        let path = c.dir().join("resources.json");
        let disk = disk();
        let (major, minor) = numbers(&disk);
        let device = json!([{"major": major, "minor": minor, "rate": 1_048_576}]);
        let resources = json!({"memory": {"limit": 40 << 20}, "blockIO": {"throttleReadBpsDevice": device}});
        std::fs::write(&path, resources.to_string()).unwrap();
        c.call(&["update", "--resources", path.to_str().unwrap(), &c.id]).ok();
        assert_eq!(file(&c, "memory.max"), (40 << 20).to_string());
        assert_eq!(file(&c, "io.max"), format!("{disk} rbps=1048576 wbps=max riops=max wiops=max"));
        assert_eq!(file(&c, "cpu.max"), "20000 40000", "what is not named stays");
        assert_eq!(c.state()["status"], "running");
    });
}

/// Without `cgroupsPath` the runtime chooses a place of the container's own, and takes it away again.
#[test]
fn own_place_without_a_path() {
    conform(|| {
        need_v2(&["memory"]);
        let mut c = Bundle::sleeper();
        c.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        c.up();
        let place = |pid: i32| host::read(format!("/proc/{pid}/cgroup")).trim().trim_start_matches("0::").to_owned();
        assert_ne!(place(c.pid()), place(std::process::id() as i32));
        let path = format!("/sys/fs/cgroup{}", place(c.pid()));
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(!Path::new(&path).exists(), "{path}");
    });
}

/// Limits that the kernel cannot apply are errors, and leave nothing.
#[test]
fn impossible_limits_are_errors() {
    conform(|| {
        need_v2(&["cpuset", "cpu"]);
        for cpu in [json!({"cpus": "4000"}), json!({"quota": 1, "period": 100_000})] {
            let mut c = Bundle::new();
            c.config["linux"]["resources"]["cpu"] = cpu;
            assert!(c.run().code != 0);
            c.call(&["state", &c.id]).fails();
            wait_for("the group to go", || (!group(&c).exists()).then_some(()));
        }
    });
}

/// `kill` and `delete` with processes in groups below the container's, which outlive its first one.
#[test]
fn nothing_is_left() {
    conform(|| {
        need_v2(&[]);
        let mut c = Bundle::sh("sleep 1000 & sleep 1000 & echo up; exec sleep 1000");
        c.namespace("pid", None);
        c.up();
        std::fs::create_dir_all(group(&c).join("a/b")).unwrap();
        let child = file(&c, "cgroup.procs").lines().find(|p| *p != c.pid().to_string()).unwrap().to_owned();
        std::fs::write(group(&c).join("a/b/cgroup.procs"), &child).unwrap();
        c.call(&["kill", &c.id, "KILL"]).ok();
        c.wait_end();
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(!group(&c).exists());
        wait_for("the last process", || (!Path::new(&format!("/proc/{child}/exe")).exists()).then_some(()));
    });
}
