//! `config-linux.md`, "Namespaces", "User namespace mappings", "Time offsets"; host and domain names.

use ilot_conformance::{Bundle, Kind, bundle, conform, host, json, need, skip, terminal};

const KINDS: [(&str, &str); 7] = [
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("user", "user"),
];

fn own(file: &str) -> String {
    std::fs::read_link(format!("/proc/thread-self/ns/{file}")).unwrap().display().to_string()
}

/// Each listed kind is new, each other one is the caller's.
#[test]
fn listed_are_new_and_others_are_the_callers() {
    conform(|| {
        for (kind, file) in KINDS {
            if matches!(kind, "mount" | "user") {
                continue;
            }
            let mut c = Bundle::new();
            // sysfs in a network namespace of another owner, mqueue without an own IPC namespace: not today's matter.
            c.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "mqueue" && m["type"] != "sysfs");
            c.config["hostname"].take();
            c.namespace(kind, Some(json!({"type": kind})));
            let script = format!("readlink /proc/self/ns/{file}");
            assert_ne!(c.output(&script).trim(), own(file), "{kind} listed");
            c.namespace(kind, None);
            c.config.as_object_mut().unwrap().remove("hostname");
            assert_eq!(c.output(&script).trim(), own(file), "{kind} not listed");
        }
    });
}

#[test]
fn process_one() {
    conform(|| {
        let mut c = Bundle::new();
        assert_eq!(c.output("echo $$"), "1\n");
    });
}

/// A new network namespace has its loopback up.
#[test]
fn loopback_is_up() {
    conform(|| {
        let mut c = Bundle::new();
        assert!(c.output("ip addr show lo").contains("127.0.0.1/8"));
    });
}

/// `path`: the namespaces of a running container are joined.
#[test]
fn joined_by_path() {
    conform(|| {
        let first = Bundle::sleeper();
        first.up();
        let pid = first.pid();
        for (kind, file) in KINDS {
            if matches!(kind, "mount" | "user" | "cgroup") {
                continue;
            }
            let mut c = Bundle::new();
            c.config.as_object_mut().unwrap().remove("hostname");
            c.namespace(kind, Some(json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")})));
            let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap();
            let seen = c.output(&format!("readlink /proc/self/ns/{file}"));
            assert_eq!(seen.trim(), theirs.display().to_string(), "{kind}");
        }
    });
}

/// "The runtime MUST generate an error if the `path` is not associated with a namespace of type `type`", or is missing.
#[test]
fn wrong_paths_are_errors() {
    conform(|| {
        for path in ["/proc/self/ns/uts", "/no/such/namespace", "/etc/passwd"] {
            let mut c = Bundle::new();
            c.namespace("network", Some(json!({"type": "network", "path": path})));
            assert!(c.run().code != 0, "{path}");
        }
    });
}

/// "If a `namespaces` field contains duplicated namespaces with same `type`, the runtime MUST generate an error."
#[test]
fn duplicates_are_errors() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"}));
        assert!(c.run().code != 0);
    });
}

#[test]
fn unknown_kinds_are_errors() {
    conform(|| {
        let mut c = Bundle::new();
        c.namespace("nonsense", Some(json!({"type": "nonsense"})));
        assert!(c.run().code != 0);
    });
}

#[test]
fn host_name() {
    conform(|| {
        let before = host::read("/proc/sys/kernel/hostname");
        let mut c = Bundle::new();
        c.config["hostname"] = json!("a-name");
        assert_eq!(c.output("hostname"), "a-name\n");
        assert_eq!(host::read("/proc/sys/kernel/hostname"), before);
        // Without an own UTS namespace it would be the host's name.
        c.namespace("uts", None);
        assert!(c.run().code != 0);
        assert_eq!(host::read("/proc/sys/kernel/hostname"), before);
    });
}

/// `domainname`, since 1.1.
#[test]
fn domain_name() {
    conform(|| {
        if bundle::is(Kind::Runc) {
            skip("the domain name is newer than this runtime");
        }
        let mut c = Bundle::new();
        c.config["domainname"] = json!("example.test");
        assert_eq!(c.output("cat /proc/sys/kernel/domainname"), "example.test\n");
    });
}

/// `timeOffsets`, since 1.1: the boot clock is an hour ahead.
#[test]
fn time_offsets() {
    conform(|| {
        need(std::path::Path::new("/proc/self/ns/time").exists(), "needs a kernel with time namespaces");
        if bundle::is(Kind::Runc) {
            skip("time namespaces are newer than this runtime");
        }
        let uptime = |text: &str| text.split('.').next().unwrap().trim().parse::<i64>().unwrap();
        let mut c = Bundle::new();
        c.namespace("time", Some(json!({"type": "time"})));
        c.config["linux"]["timeOffsets"] =
            json!({"boottime": {"secs": 3600, "nanosecs": 0}, "monotonic": {"secs": 7200}});
        let inside = uptime(&c.output("cat /proc/uptime"));
        let outside = uptime(&host::read("/proc/uptime"));
        assert!((inside - outside - 3600).abs() < 60, "{inside} {outside}");
    });
}

/// Ids are mapped, `setgroups` works, files of the host's root belong to nobody.
#[test]
fn user_namespace() {
    conform(|| {
        let mut c = Bundle::new();
        c.user_namespace(200_000);
        std::fs::write(c.rootfs().join("foreign"), "").unwrap();
        let text = c.output("id -u; tr -s ' ' </proc/self/uid_map; stat -c %u /foreign /bin; touch /made");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, ["0", "0", "200000", "65536", "65534", "0"]);
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(c.rootfs().join("made")).unwrap());
        assert_eq!(owner, 200_000);
    });
}

/// A user of the container other than root; capabilities count inside only.
#[test]
fn user_in_a_user_namespace() {
    conform(|| {
        let mut c = Bundle::new();
        c.user_namespace(200_000);
        c.config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [10]});
        assert_eq!(c.output("id -u; id -g; id -G").split_whitespace().collect::<Vec<_>>()[..2], ["1000", "1000"]);
    });
}

/// Joining an existing user namespace by path.
#[test]
fn user_namespace_by_path() {
    conform(|| {
        let mut first = Bundle::sleeper();
        first.user_namespace(200_000);
        first.up();
        let path = format!("/proc/{}/ns/user", first.pid());
        let mut c = Bundle::new();
        c.user_namespace(200_000);
        c.namespace("user", Some(json!({"type": "user", "path": path})));
        c.config["linux"].as_object_mut().unwrap().remove("uidMappings");
        c.config["linux"].as_object_mut().unwrap().remove("gidMappings");
        let theirs = std::fs::read_link(&path).unwrap().display().to_string();
        assert_eq!(c.output("readlink /proc/self/ns/user").trim(), theirs);
    });
}

/// A terminal and devices work in a user namespace too.
#[test]
fn terminal_in_a_user_namespace() {
    conform(|| {
        let mut c = Bundle::new();
        c.user_namespace(200_000);
        c.config["process"]["terminal"] = json!(true);
        c.args(&["/bin/sh", "-c", "stat -c %u /dev/pts/0; echo end >/dev/tty"]);
        let receiver = terminal::Receiver::new(c.dir());
        c.create_with(&["--console-socket", receiver.text()]).ok();
        let mut master = terminal::Master::new(receiver.receive().1.remove(0));
        c.start();
        assert!(master.read_until("end").starts_with('0'));
    });
}

/// `sysctl`: set in the container, the host's untouched.
#[test]
fn kernel_parameters() {
    conform(|| {
        let before = host::read("/proc/sys/kernel/msgmax");
        let mut c = Bundle::new();
        c.config["linux"]["sysctl"] = json!({"kernel.msgmax": "12345", "net.ipv4.ip_default_ttl": "33"});
        assert_eq!(c.output("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl"), "12345\n33\n");
        assert_eq!(host::read("/proc/sys/kernel/msgmax"), before);
    });
}

/// One that is not of a namespace of the container's own would be the host's.
#[test]
fn kernel_parameters_of_the_host_are_refused() {
    conform(|| {
        let before = host::read("/proc/sys/kernel/msgmax");
        let mut c = Bundle::new();
        c.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "mqueue");
        c.namespace("ipc", None);
        c.config["linux"]["sysctl"] = json!({"kernel.msgmax": "12345"});
        assert!(c.run().code != 0);
        assert_eq!(host::read("/proc/sys/kernel/msgmax"), before);
        let mut c = Bundle::new();
        c.config["linux"]["sysctl"] = json!({"vm.swappiness": host::read("/proc/sys/vm/swappiness").trim()});
        assert!(c.run().code != 0);
    });
}
