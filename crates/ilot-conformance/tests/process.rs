//! `config.md`, "Process" and "User": what the program starts with.

use ilot_conformance::{Bundle, Kind, bundle, conform, json, skip, terminal};

/// One line of `/proc/self/status` in the container.
fn status(c: &mut Bundle, name: &str) -> String {
    let text = c.output("cat /proc/self/status");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap_or_else(|| panic!("{text}"));
    line.trim().to_owned()
}

#[test]
fn arguments_are_passed_as_they_are() {
    conform(|| {
        let mut c = Bundle::new();
        c.args(&["/bin/sh", "-c", "for a; do echo \"<$a>\"; done", "zero", "one two", "", "*", "é\n"]);
        assert_eq!(c.run().ok(), "<one two>\n<>\n<*>\n<é\n>\n");
    });
}

/// `args[0]` without a slash is looked for on the container's `PATH`.
#[test]
fn program_found_on_the_path() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["env"] = json!(["PATH=/nowhere:/opt"]);
        std::fs::create_dir(c.rootfs().join("opt")).unwrap();
        std::os::unix::fs::symlink("/bin/busybox", c.rootfs().join("opt/echo")).unwrap();
        c.args(&["echo", "found"]);
        assert_eq!(c.run().ok(), "found\n");
    });
}

/// The environment is the configuration's, nothing of the caller's; `HOME` may be added.
#[test]
fn environment() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["env"] = json!(["PATH=/bin", "A=1", "B=x=y", "EMPTY="]);
        c.args(&["/bin/env"]);
        let text = c.run().ok();
        let mut lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("HOME=")).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["A=1", "B=x=y", "EMPTY=", "PATH=/bin"]);
    });
}

#[test]
fn working_directory() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["cwd"] = json!("/root");
        assert_eq!(c.output("pwd"), "/root\n");
    });
}

/// A working directory that only the user may enter, and one that is missing (runc makes it).
#[test]
fn working_directory_of_the_user() {
    conform(|| {
        let mut c = Bundle::new();
        let home = c.rootfs().join("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
        c.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c.config["process"]["capabilities"] = json!({});
        c.config["process"]["cwd"] = json!("/home");
        assert_eq!(c.output("pwd; id -u"), "/home\n1000\n");
    });
}

#[test]
fn user_and_groups() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 7777]});
        assert_eq!(status(&mut c, "Uid"), "1000\t1000\t1000\t1000");
        assert_eq!(status(&mut c, "Gid"), "1001\t1001\t1001\t1001");
        let mut groups: Vec<u32> = status(&mut c, "Groups").split_whitespace().map(|g| g.parse().unwrap()).collect();
        groups.retain(|g| *g != 1001);
        assert_eq!(groups, [5, 7777]);
    });
}

/// Without `additionalGids` the caller's groups are gone.
#[test]
fn no_groups_of_the_caller() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        assert!(matches!(status(&mut c, "Groups").as_str(), "" | "1000"));
    });
}

#[test]
fn umask() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["user"]["umask"] = json!(0o027);
        assert_eq!(c.output("umask"), "0027\n");
    });
}

/// Limits below the caller's: raising them needs `CAP_SYS_RESOURCE`, which this host may lack.
#[test]
fn rlimits() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152}
        ]);
        let text = c.output("cat /proc/self/limits");
        let line = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(line("Max open files"), "100 200");
        assert_eq!(line("Max core file size"), "0 0");
        assert_eq!(line("Max stack size"), "1048576 2097152");
    });
}

/// "the runtime MUST generate an error for any values which cannot be mapped to a relevant kernel interface", and for
/// duplicate types.
#[test]
fn bad_rlimits_are_errors() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]);
        assert!(c.run().code != 0);
    });
}

/// "if `rlimits` contains duplicated entries with same `type`, the runtime MUST generate an error".
#[test]
fn duplicate_rlimits_are_errors() {
    conform(|| {
        let mut c = Bundle::new();
        let limit = json!({"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64});
        c.config["process"]["rlimits"] = json!([limit, limit]);
        assert!(c.run().code != 0);
    });
}

#[test]
fn oom_score() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["oomScoreAdj"] = json!(500);
        assert_eq!(c.output("cat /proc/self/oom_score_adj"), "500\n");
    });
}

/// The five sets as the kernel shows them.
#[test]
fn capability_sets() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"],
            "permitted": ["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"],
            "inheritable": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"],
            "ambient": ["CAP_KILL"]
        });
        c.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        c.config["process"]["noNewPrivileges"] = json!(false);
        // After execve of a non-root user: permitted and effective are the ambient ones (capabilities(7)).
        let text = c.output("cat /proc/self/status");
        let set = |name: &str| {
            let hex = text.lines().find_map(|l| l.strip_prefix(&format!("{name}:"))).unwrap().trim();
            u64::from_str_radix(hex, 16).unwrap()
        };
        let (chown, kill, raw) = (1, 1 << 5, 1 << 13);
        assert_eq!(set("CapBnd"), chown | kill | raw, "bounding");
        assert_eq!(set("CapInh"), chown | kill, "inheritable");
        assert_eq!(set("CapAmb"), kill, "ambient");
        assert_eq!(set("CapPrm"), kill, "permitted");
        assert_eq!(set("CapEff"), kill, "effective");
    });
}

/// "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning", and is no error.
#[test]
fn unknown_capabilities_are_warned_about() {
    conform(|| {
        let mut c = Bundle::new();
        for set in ["bounding", "permitted", "effective"] {
            c.config["process"]["capabilities"][set] = json!(["CAP_KILL", "CAP_OF_NO_KERNEL"]);
        }
        c.args(&["/bin/grep", "CapPrm", "/proc/self/status"]);
        let log = c.dir().join("log.of.runtime");
        c.global = vec!["--log".to_owned(), log.to_str().unwrap().to_owned()];
        let output = c.run();
        let said = format!("{}{}", output.err, ilot_conformance::host::read(log));
        assert!(output.ok().trim().ends_with("0000000000000020"));
        assert!(said.contains("CAP_OF_NO_KERNEL"), "{said}");
    });
}

/// An absent object means none at all for an ordinary user, and root cannot have more than the bounding set.
#[test]
fn root_has_the_bounding_set_at_most() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["capabilities"] =
            json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
        assert_eq!(u64::from_str_radix(&status(&mut c, "CapPrm"), 16).unwrap(), 1 << 5);
        assert_eq!(u64::from_str_radix(&status(&mut c, "CapBnd"), 16).unwrap(), 1 << 5);
    });
}

#[test]
fn no_new_privileges() {
    conform(|| {
        let mut c = Bundle::new();
        assert_eq!(status(&mut c, "NoNewPrivs"), "1");
        c.config["process"]["noNewPrivileges"] = json!(false);
        assert_eq!(status(&mut c, "NoNewPrivs"), "0");
    });
}

/// The program starts with no signal blocked or ignored.
#[test]
fn signals_are_the_default() {
    conform(|| {
        let mut c = Bundle::new();
        c.args(&["/bin/cat", "/proc/self/status"]);
        let text = c.run().ok();
        for name in ["SigBlk", "SigIgn"] {
            let hex = text.lines().find_map(|l| l.strip_prefix(&format!("{name}:"))).unwrap().trim();
            // 32 and 33 belong to the C library of whoever started us.
            assert_eq!(u64::from_str_radix(hex, 16).unwrap() & 0x7fff_ffff, 0, "{name}");
        }
    });
}

/// Only the standard streams are open.
#[test]
fn no_other_descriptors() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        c.args(&["/bin/probe", "fds"]);
        let text = c.run().ok();
        assert_eq!(text.lines().count(), 3, "{text}");
    });
}

/// `--preserve-fds`: so many descriptors after the standard ones come along.
#[test]
fn preserved_descriptors() {
    conform(|| {
        let mut c = Bundle::new();
        let file = c.dir().join("handed");
        std::fs::write(&file, "handed over\n").unwrap();
        c.args(&["/bin/sh", "-c", "cat <&3; readlink /proc/self/fd/4 || echo none"]);
        c.save();
        let mut shell = std::process::Command::new("/bin/sh");
        let command = c.bundle_command("run", &["--preserve-fds", "1"]);
        shell.args(["-c", "exec 3<\"$1\" 4<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&file);
        shell.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            shell.env(key, value.unwrap_or_default());
        }
        assert_eq!(ilot_conformance::runtime::run(shell).ok(), "handed over\nnone\n");
    });
}

/// `terminal`, `consoleSize`: the master comes over `--console-socket`, `/dev/console` is the terminal.
#[test]
fn terminal_and_its_size() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        c.config["process"]["terminal"] = json!(true);
        c.config["process"]["consoleSize"] = json!({"height": 33, "width": 101});
        c.args(&["/bin/sh", "-c", "tty; probe winsize; tty </dev/console; cat /proc/self/stat | cut -d' ' -f7; read x; echo \"got $x\"; exit 4"]);
        let receiver = terminal::Receiver::new(c.dir());
        c.create_with(&["--console-socket", receiver.text()]).ok();
        let (_, fds) = receiver.receive();
        assert_eq!(fds.len(), 1);
        let mut master = terminal::Master::new(fds.into_iter().next().unwrap());
        c.start();
        let text = master.read_until("101");
        assert!(text.contains("33 101"), "{text}");
        assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
        master.type_in("hello\n");
        master.read_until("got hello");
        c.wait_end();
    });
}

/// Create with a terminal but without a socket for it is an error, and the other way round too.
#[test]
fn terminal_needs_a_socket() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["terminal"] = json!(true);
        c.create().fails();
    });
}

#[test]
fn personality() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        c.args(&["/bin/probe", "personality"]);
        c.config["linux"]["personality"] = json!({"domain": "LINUX32"});
        assert_eq!(c.run().ok(), "8\n");
        c.config["linux"]["personality"] = json!({"domain": "LINUX"});
        assert_eq!(c.run().ok(), "0\n");
        c.config["linux"]["personality"] = json!({"domain": "BSD"});
        assert!(c.run().code != 0, "an unknown domain is an error");
    });
}

/// "Scheduler", `config.md` 1.1: policy and nice value.
#[test]
fn scheduler() {
    conform(|| {
        if bundle::is(Kind::Runc) || bundle::is(Kind::Crun) {
            skip("the scheduler is newer than this runtime");
        }
        let mut c = Bundle::new();
        c.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        // Fields 19 (nice) and 41 (policy) of stat(5); SCHED_BATCH is 3.
        assert_eq!(c.output("cut -d' ' -f19,41 /proc/self/stat"), "5 3\n");
        c.config["process"]["scheduler"] = json!({"policy": "SCHED_NONSENSE"});
        assert!(c.run().code != 0);
    });
}

/// "Linux Process", `ioPriority` (1.1).
#[test]
fn io_priority() {
    conform(|| {
        if bundle::is(Kind::Runc) || bundle::is(Kind::Crun) {
            skip("the I/O priority is newer than this runtime");
        }
        let mut c = Bundle::new();
        c.need_probe();
        c.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        // ioprio_get(IOPRIO_WHO_PROCESS, 0): class 2, priority 6.
        c.args(&["/bin/probe", "sys", "252", "1", "0"]);
        assert_eq!(c.run().ok().trim().parse::<i32>().unwrap(), 2 << 13 | 6);
        for priority in [8, -1] {
            c.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": priority});
            assert!(c.run().code != 0, "{priority} is not 0 to 7");
        }
    });
}

/// An AppArmor profile on a kernel without AppArmor is an error or ignored with a warning, never a crash; an empty one is
/// no profile.
#[test]
fn empty_lsm_labels_mean_none() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["apparmorProfile"] = json!("");
        c.config["process"]["selinuxLabel"] = json!("");
        c.run().ok();
    });
}
