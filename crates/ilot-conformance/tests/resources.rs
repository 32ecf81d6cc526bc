//! `config-linux.md`, "Control groups": limits at creation, `update`, `pause`, `resume`, `events`, `ps`.

use ilot_conformance::{Bundle, Kind, Value, bundle, conform, host, json, need, skip, wait_for};

fn need_v1(controllers: &[&str]) {
    for controller in controllers {
        need(host::has_v1(controller), &format!("needs the v1 controller `{controller}`"));
    }
}

#[test]
fn memory() {
    conform(|| {
        need_v1(&["memory"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "reservation": 32 << 20});
        c.up();
        assert_eq!(c.cgroup("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(c.cgroup("memory", "memory.soft_limit_in_bytes"), (32 << 20).to_string());
        assert!(c.cgroup("memory", "cgroup.procs").lines().any(|l| l == c.pid().to_string()));
    });
}

/// The limit holds: the kernel ends who takes more.
#[test]
fn memory_limit_holds() {
    conform(|| {
        need_v1(&["memory"]);
        let mut c = Bundle::sh(
            "head -c 64m /dev/zero | tail -c 60m >/dev/null; dd if=/dev/zero of=/dev/null bs=96M count=1 2>/dev/null; echo survived",
        );
        c.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
        let output = c.run();
        // The shell lives on; what it started was killed.
        assert!(
            output.err.to_lowercase().contains("killed") || output.code != 0 || output.out.contains("survived"),
            "{output:?}"
        );
        let mut c = Bundle::new();
        c.args(&["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"]);
        c.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
        assert!(c.run().code != 0, "96 MB in a container of 32 MB");
    });
}

#[test]
fn cpu() {
    conform(|| {
        need_v1(&["cpu"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
        c.up();
        assert_eq!(c.cgroup("cpu", "cpu.shares"), "512");
        assert_eq!(c.cgroup("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(c.cgroup("cpu", "cpu.cfs_period_us"), "100000");
    });
}

#[test]
fn cpuset() {
    conform(|| {
        need_v1(&["cpuset"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["cpu"] = json!({"cpus": "0", "mems": "0"});
        c.up();
        assert_eq!(c.cgroup("cpuset", "cpuset.cpus"), "0");
        assert_eq!(c.cgroup("cpuset", "cpuset.mems"), "0");
        assert!(c.exec_sh("grep Cpus_allowed_list /proc/self/status").ok().ends_with("\t0\n"));
    });
}

#[test]
fn pids() {
    conform(|| {
        need_v1(&["pids"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["pids"] = json!({"limit": 20});
        c.up();
        assert_eq!(c.cgroup("pids", "pids.max"), "20");
        c.exec_sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do sleep 5 & done 2>&1")
            .fails();
    });
}

#[test]
fn block_io() {
    conform(|| {
        need_v1(&["blkio"]);
        let mut c = Bundle::sleeper();
        let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata("/").unwrap());
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        need(std::path::Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists(), "needs `/` on a block device");
        c.config["linux"]["resources"]["blockIO"] =
            json!({"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 10_485_760}]});
        c.up();
        let text = c.cgroup("blkio", "blkio.throttle.read_bps_device");
        assert_eq!(text, format!("{major}:{minor} 10485760"));
    });
}

/// Without `cgroupsPath` the runtime chooses a place of the container's own.
#[test]
fn own_place_without_a_path() {
    conform(|| {
        need_v1(&["memory"]);
        let mut c = Bundle::sleeper();
        c.config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        c.up();
        let place = |pid: i32| {
            let text = host::read(format!("/proc/{pid}/cgroup"));
            text.lines().find_map(|l| l.split_once(":memory:").map(|(_, path)| path.to_owned())).unwrap()
        };
        assert_ne!(place(c.pid()), place(std::process::id() as i32));
        let path = format!("/sys/fs/cgroup/memory{}", place(c.pid()));
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(!std::path::Path::new(&path).exists(), "{path}");
    });
}

/// "update": flags, and a file or standard input.
#[test]
fn update() {
    conform(|| {
        need_v1(&["memory", "cpu", "pids"]);
        let mut c = Bundle::sleeper();
        c.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        c.up();
        let flags = [
            "update",
            "--memory",
            "50331648",
            "--cpu-share",
            "300",
            "--cpu-quota",
            "20000",
            "--cpu-period",
            "40000",
            "--pids-limit",
            "33",
            &c.id,
        ];
        c.call(&flags).ok();
        assert_eq!(c.cgroup("memory", "memory.limit_in_bytes"), "50331648");
        assert_eq!(c.cgroup("cpu", "cpu.shares"), "300");
        assert_eq!(c.cgroup("cpu", "cpu.cfs_quota_us"), "20000");
        assert_eq!(c.cgroup("cpu", "cpu.cfs_period_us"), "40000");
        assert_eq!(c.cgroup("pids", "pids.max"), "33");
        let file = c.dir().join("resources.json");
        std::fs::write(&file, json!({"memory": {"limit": 40 << 20}, "pids": {"limit": 44}}).to_string()).unwrap();
        c.call(&["update", "--resources", file.to_str().unwrap(), &c.id]).ok();
        assert_eq!(c.cgroup("memory", "memory.limit_in_bytes"), (40 << 20).to_string());
        assert_eq!(c.cgroup("pids", "pids.max"), "44");
        assert_eq!(c.cgroup("cpu", "cpu.shares"), "300", "what is not named stays");
        assert_eq!(c.state()["status"], "running");
    });
}

/// Quantities as engines write them, and nonsense refused.
#[test]
fn update_of_a_missing_container_fails() {
    conform(|| {
        let c = Bundle::new();
        c.call(&["update", "--memory", "50331648", &c.id]).fails();
    });
}

/// Whether the kernel holds the container: by the v1 freezer, or by the unified hierarchy beside it.
fn frozen(c: &Bundle) -> bool {
    c.cgroup("freezer", "freezer.state") == "FROZEN"
        || ["unified", "."].iter().any(|place| c.cgroup(place, "cgroup.freeze") == "1")
}

#[test]
fn pause_and_resume() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        c.call(&["pause", &c.id]).ok();
        assert_eq!(c.state()["status"], "paused");
        assert!(frozen(&c), "the kernel has frozen it");
        c.call(&["resume", &c.id]).ok();
        assert_eq!(c.state()["status"], "running");
        assert!(!frozen(&c));
        // Signals come through again.
        c.call(&["kill", &c.id, "TERM"]).ok();
        c.wait_end();
    });
}

#[test]
fn delete_force_of_a_paused_container() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        c.call(&["pause", &c.id]).ok();
        c.call(&["delete", "--force", &c.id]).ok();
        c.call(&["state", &c.id]).fails();
    });
}

/// `ps` as a table and as JSON: numbers of the host.
#[test]
fn ps() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        let pids = c.call(&["ps", "--format", "json", &c.id]).json();
        let listed: Vec<i64> = pids.as_array().unwrap().iter().filter_map(Value::as_i64).collect();
        assert!(listed.contains(&i64::from(c.pid())), "{pids}");
        assert!(listed.len() >= 2, "the shell and its child: {pids}");
        let table = c.call(&["ps", &c.id]).ok();
        assert!(table.contains("PID") && table.contains(&c.pid().to_string()), "{table}");
    });
}

/// `events --stats`: one line of JSON, in runc's form, which engines parse.
#[test]
fn statistics() {
    conform(|| {
        if bundle::is(Kind::Crun) {
            skip("crun has no `events`");
        }
        let c = Bundle::sleeper();
        c.up();
        let event = c.call(&["events", "--stats", &c.id]).json();
        assert_eq!(event["type"], "stats");
        assert_eq!(event["id"], c.id.as_str());
        assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{event}");
        assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{event}");
        assert!(event["data"]["pids"]["current"].as_u64().unwrap() >= 2, "{event}");
    });
}

/// Every process of the container is in its groups, those that it starts and those that are started in it.
#[test]
fn everything_is_accounted() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        let text = c.exec_sh("cat /proc/self/cgroup").ok();
        if host::is_unified() {
            assert_eq!(text, format!("0::/{}\n", c.id));
            return;
        }
        for controller in ["memory", "pids", "cpu", "devices"] {
            let line = text.lines().find(|l| l.contains(&format!(":{controller}:"))).unwrap();
            assert!(line.ends_with(&format!("/{}", c.id)), "{line}");
        }
    });
}

/// Limits that the kernel cannot apply are errors, and leave nothing.
#[test]
fn impossible_limits_are_errors() {
    conform(|| {
        need_v1(&["cpuset"]);
        let mut c = Bundle::new();
        c.config["linux"]["resources"]["cpu"] = json!({"cpus": "4000"});
        assert!(c.run().code != 0);
        c.call(&["state", &c.id]).fails();
        wait_for("the group to go", || {
            (!std::path::Path::new(&format!("/sys/fs/cgroup/pids/{}", c.id)).exists()).then_some(())
        });
    });
}

/// `linux.resources.rdma`, `hugepageLimits`: what this kernel lacks is an error, not forgotten.
#[test]
fn missing_controllers_are_errors() {
    conform(|| {
        need(!host::has_v1("hugetlb"), "needs a host without the hugetlb controller");
        let unified =
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|d| host::read(format!("{d}/cgroup.controllers")));
        need(!unified.concat().contains("hugetlb"), "needs a host without the hugetlb controller");
        let mut c = Bundle::new();
        c.config["linux"]["resources"]["hugepageLimits"] = json!([{"pageSize": "2MB", "limit": 0}]);
        assert!(c.run().code != 0);
    });
}

/// "IntelRdt": "The runtime MUST return an error when the container's process cannot be placed".
#[test]
fn intel_rdt() {
    conform(|| {
        need(!std::path::Path::new("/sys/fs/resctrl/schemata").exists(), "needs a host without RDT");
        let mut c = Bundle::new();
        c.config["linux"]["intelRdt"] = json!({"closID": "conform", "l3CacheSchema": "L3:0=f"});
        assert!(c.run().code != 0);
    });
}
