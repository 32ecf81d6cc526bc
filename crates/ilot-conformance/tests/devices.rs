//! `config-linux.md`, "Default Filesystems", "Devices", "Default Devices", "Masked Paths", "Readonly Paths"; `runtime-linux.md`,
//! "Dev symbolic links".

use ilot_conformance::{Bundle, conform, json};

#[test]
fn default_devices() {
    conform(|| {
        let mut c = Bundle::new();
        for (name, numbers) in
            [("null", "1 3"), ("zero", "1 5"), ("full", "1 7"), ("random", "1 8"), ("urandom", "1 9"), ("tty", "5 0")]
        {
            let text = c.output(&format!("stat -c '%F %t %T %a' /dev/{name}"));
            assert_eq!(text, format!("character special file {numbers} 666\n"), "{name}");
        }
        assert_eq!(
            c.output("echo x >/dev/null && head -c 3 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c"),
            "3\n1\n"
        );
    });
}

/// `/dev/fd`, `/dev/stdin`, … and `/dev/ptmx`.
#[test]
fn default_links() {
    conform(|| {
        let mut c = Bundle::new();
        let text =
            c.output("for l in fd stdin stdout stderr; do readlink /dev/$l; done; test -c /dev/ptmx && echo ptmx");
        assert_eq!(text, "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\nptmx\n");
    });
}

#[test]
fn listed_devices() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["linux"]["devices"] = json!([
            {"type": "c", "path": "/dev/deep/own-null", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6},
            {"type": "b", "path": "/dev/block", "major": 7, "minor": 200},
            {"type": "p", "path": "/dev/pipe", "fileMode": 0o600}
        ]);
        let text = c.output("for d in deep/own-null block pipe; do stat -c '%F %t %T %a %u %g' /dev/$d; done");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "character special file 1 3 640 5 6");
        assert!(lines[1].starts_with("block special file 7 c8"), "{text}");
        assert!(lines[2].starts_with("fifo 0 0 600 0 0"), "{text}");
    });
}

/// In a user namespace nodes cannot be made: the host's are bound.
#[test]
fn default_devices_in_a_user_namespace() {
    conform(|| {
        let mut c = Bundle::new();
        c.user_namespace(200_000);
        assert_eq!(
            c.output("stat -c '%F %t %T' /dev/null /dev/zero; echo x >/dev/null && echo fine"),
            "character special file 1 3\ncharacter special file 1 5\nfine\n"
        );
    });
}

/// "The runtime MUST NOT" use what it is not told: other devices of the host are out of reach.
#[test]
fn denied_devices() {
    conform(|| {
        let mut c = Bundle::new();
        c.all_capabilities();
        // The memory device: a node can be made, and not opened.
        let text =
            c.output("mknod /dev/m c 1 1 2>/dev/null; head -c 1 /dev/m >/dev/null 2>&1 && echo read || echo denied");
        assert_eq!(text, "denied\n");
    });
}

/// `resources.devices`: later rules count, access letters one by one.
#[test]
fn device_rules() {
    conform(|| {
        let mut c = Bundle::new();
        c.all_capabilities();
        c.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/own", "major": 1, "minor": 11}]);
        c.config["linux"]["resources"]["devices"] = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}
        ]);
        let text = c.output("(: >/dev/own) 2>/dev/null && echo w; (: </dev/own) 2>/dev/null && echo r; echo end");
        assert_eq!(text, "w\nend\n");
    });
}

#[test]
fn masked_paths() {
    conform(|| {
        let mut c = Bundle::new();
        std::fs::create_dir(c.rootfs().join("secret")).unwrap();
        std::fs::write(c.rootfs().join("secret/file"), "x").unwrap();
        std::fs::write(c.rootfs().join("hidden"), "x").unwrap();
        c.config["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/proc/timer_list", "/no/such/path"]);
        let text = c.output("ls /secret; cat /hidden; cat /proc/timer_list; echo end; (echo x >/secret/new) 2>/dev/null && echo written; true");
        assert_eq!(text, "end\n");
        assert!(!c.rootfs().join("secret/new").exists());
    });
}

#[test]
fn readonly_paths() {
    conform(|| {
        let mut c = Bundle::new();
        std::fs::create_dir(c.rootfs().join("data")).unwrap();
        c.config["linux"]["readonlyPaths"] = json!(["/data", "/proc/sys", "/no/such/path"]);
        let text = c.output("(echo x >/data/new) 2>/dev/null && echo written; (echo x >/proc/sys/kernel/hostname) 2>/dev/null && echo written; echo end");
        assert_eq!(text, "end\n");
    });
}

/// Through `/proc` of the container the host's keys of power are not writable.
#[test]
fn dangerous_files_are_closed() {
    conform(|| {
        let mut c = Bundle::new();
        c.all_capabilities();
        let text = c.output(
            "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/irq/default_smp_affinity /sys/kernel/uevent_helper; do
                test -e $f && (: >>$f) 2>/dev/null && echo \"$f\"; done; echo end",
        );
        assert_eq!(text, "end\n");
    });
}
