//! Fields of the specification since 1.1.1: network devices, memory policy, CPU affinity of `exec`; and flags that few use.

use ilot_conformance::{Bundle, Kind, bundle, conform, json, need, skip};
use std::process::Command;

/// Skips for runtimes that are older than the field.
fn need_new_runtime() {
    if bundle::is(Kind::Crun) || bundle::is(Kind::Runc) {
        skip("the field is newer than this runtime");
    }
}

/// `config-linux.md`, "Network Devices" (1.3): moved in under a new name, with its addresses.
#[test]
fn network_devices() {
    conform(|| {
        need_new_runtime();
        let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success());
        need(ip("link add conf0 type veth peer name conf1"), "needs veth devices");
        assert!(ip("addr add 192.0.2.7/24 dev conf0"));
        let mut c = Bundle::new();
        c.config["linux"]["netDevices"] = json!({"conf0": {"name": "inside0"}});
        let text = c.output("ip addr show inside0");
        assert!(text.contains("192.0.2.7/24"), "{text}");
        let mut c = Bundle::new();
        c.config["linux"]["netDevices"] = json!({"no-such-dev": {}});
        assert!(c.run().code != 0, "a missing device is an error");
    });
}

/// `config-linux.md`, "Memory policy" (1.3).
#[test]
fn memory_policy() {
    conform(|| {
        need_new_runtime();
        need(std::path::Path::new("/proc/self/numa_maps").exists(), "needs a kernel with NUMA");
        let mut c = Bundle::new();
        c.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        let text = c.output("head -1 /proc/self/numa_maps");
        assert!(text.contains("bind:0"), "{text}");
        let mut joined = Bundle::sleeper();
        joined.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        joined.up();
        let text = joined.exec_sh("head -1 /proc/self/numa_maps").ok();
        assert!(text.contains("bind:0"), "of processes that join, too: {text}");
        c.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_NONSENSE", "nodes": "0"});
        assert!(c.run().code != 0);
    });
}

/// `config.md`, `execCPUAffinity` (1.2): of processes that join.
#[test]
fn affinity_of_exec() {
    conform(|| {
        need_new_runtime();
        need(std::thread::available_parallelism().is_ok_and(|n| n.get() > 1), "needs two CPUs");
        let mut c = Bundle::sleeper();
        c.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
        c.up();
        assert_eq!(c.exec_sh("grep Cpus_allowed_list /proc/self/status").ok(), "Cpus_allowed_list:\t1\n");
        // The container's own process is not meant.
        let own = std::fs::read_to_string(format!("/proc/{}/status", c.pid())).unwrap();
        assert!(!own.contains("Cpus_allowed_list:\t1\n"), "{own}");
    });
}

/// `pids.limit` (1.3): "`0` is a valid limit value … and SHOULD be treated as such". Before, it meant no limit.
#[test]
fn no_further_process() {
    conform(|| {
        need_new_runtime();
        for (version, forked) in [("1.3.0", false), ("1.0.2", true)] {
            let mut c = Bundle::new();
            c.config["ociVersion"] = json!(version);
            c.config["linux"]["resources"]["pids"] = json!({"limit": 0});
            let output = { c.args(&["/bin/sh", "-c", "(echo forked); echo end"]).run() };
            assert_eq!(output.out.contains("forked"), forked, "{version}: {output:?}");
        }
    });
}

/// Members that could have no effect are errors, not forgotten.
#[test]
fn what_could_have_no_effect() {
    conform(|| {
        need_new_runtime();
        for (member, value) in [
            ("timeOffsets", json!({"monotonic": {"secs": 1}})),
            ("personality", json!({"domain": "LINUX", "flags": ["NONSENSE"]})),
        ] {
            let mut c = Bundle::new();
            c.config["linux"][member] = value;
            assert!(c.run().code != 0, "{member}");
        }
    });
}

/// `features-linux.md` (1.3): what a runtime that knows this version says of it.
#[test]
fn newer_features() {
    conform(|| {
        need_new_runtime();
        let c = Bundle::new();
        let f = c.runtime.run(&["features"]).json();
        need(f["ociVersionMax"].as_str().is_some_and(|v| v.starts_with("1.3")), "needs a runtime of version 1.3");
        assert_eq!(f["linux"]["netDevices"]["enabled"], true);
        let modes = f["linux"]["memoryPolicy"]["modes"].as_array().unwrap();
        assert!(modes.iter().any(|m| m == "MPOL_WEIGHTED_INTERLEAVE"), "{modes:?}");
        assert_eq!(f["linux"]["intelRdt"]["monitoring"], true);
        let flags = f["linux"]["seccomp"]["knownFlags"].as_array().unwrap();
        assert!(flags.iter().any(|m| m == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"), "{flags:?}");
        let unsafe_ones = f["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
        assert!(unsafe_ones.iter().any(|m| m == "org.systemd.property."), "{unsafe_ones:?}");
    });
}

/// `linux.resources.unified` (1.1): a file of cgroup v2 by name; without v2 that is an error, not forgotten.
#[test]
fn unified_resources() {
    conform(|| {
        need(
            !ilot_conformance::host::is_unified() && !ilot_conformance::host::is_hybrid(),
            "needs a host with v1 alone",
        );
        let mut c = Bundle::new();
        c.config["linux"]["resources"]["unified"] = json!({"memory.high": "100000000"});
        assert!(c.run().code != 0);
    });
}

/// `run --keep`: the stopped container stays until it is deleted.
#[test]
fn run_and_keep() {
    conform(|| {
        if bundle::is(Kind::Crun) {
            skip("`--keep` is newer than this runtime");
        }
        let c = Bundle::new();
        c.run_with(&["--keep"]).ok();
        assert_eq!(c.state()["status"], "stopped");
        c.call(&["delete", &c.id]).ok();
    });
}

/// A new session keyring for each container, unless it is told to keep the caller's.
#[test]
fn session_keyring() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        // keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
        c.args(&["/bin/probe", "sys", "250", "0", "-3", "0"]);
        let one = c.run().ok();
        need(one.trim().parse::<i64>().is_ok_and(|id| id > 0), "needs a kernel with keys");
        assert_ne!(one, c.run().ok(), "two containers, two keyrings");
        assert_eq!(c.run_with(&["--no-new-keyring"]).ok(), c.run_with(&["--no-new-keyring"]).ok());
    });
}

/// `update --resources -` reads standard input.
#[test]
fn update_from_standard_input() {
    conform(|| {
        need(ilot_conformance::host::has_v1("pids"), "needs the v1 pids controller");
        let c = Bundle::sleeper();
        c.up();
        let file = c.dir().join("r.json");
        std::fs::write(&file, r#"{"pids": {"limit": 77}}"#).unwrap();
        let update = c.command(&["update", "--resources", "-", &c.id]);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "exec \"$@\" <\"$0\""]).arg(&file).arg(update.get_program()).args(update.get_args());
        for (key, value) in update.get_envs() {
            shell.env(key, value.unwrap_or_default());
        }
        ilot_conformance::runtime::run(shell).ok();
        assert_eq!(c.cgroup("pids", "pids.max"), "77");
    });
}
