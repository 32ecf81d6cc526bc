//! `exec`: a further process in a running container, by flags or by a process file.

use ilot_conformance::{Bundle, Value, conform, host, json, terminal, wait_for};

fn up() -> Bundle {
    let c = Bundle::sleeper();
    c.up();
    c
}

/// A process file for `exec --process`.
fn process(c: &Bundle, change: impl FnOnce(&mut Value)) -> String {
    let mut process = c.config["process"].clone();
    change(&mut process);
    let path = c.dir().join("process.json");
    std::fs::write(&path, process.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn exit_code_and_streams() {
    conform(|| {
        let c = up();
        let output = c.exec_sh("echo out; echo err >&2; exit 7");
        assert_eq!((output.code, output.out.as_str(), output.err.as_str()), (7, "out\n", "err\n"));
        assert!(c.exec_sh("kill -9 $$").code == 137);
    });
}

#[test]
fn same_namespaces_and_root() {
    conform(|| {
        let c = up();
        for name in ["pid", "net", "mnt", "ipc", "uts"] {
            let theirs = std::fs::read_link(format!("/proc/{}/ns/{name}", c.pid())).unwrap();
            assert_eq!(c.exec_sh(&format!("readlink /proc/self/ns/{name}")).ok().trim(), theirs.to_str().unwrap());
        }
        assert_eq!(
            c.exec_sh("hostname; ls -d /bin/probe /home 2>/dev/null; true").ok().lines().next(),
            Some("conform")
        );
    });
}

#[test]
fn flags() {
    conform(|| {
        let c = up();
        let script = "pwd; id -u; id -g; echo $ONE $TWO";
        let flags = ["--cwd", "/root", "--user", "1000:1001", "--env", "ONE=1", "--env", "TWO=2"];
        // The user must be able to be in `/root`: it is open in this bundle.
        assert_eq!(c.exec(&flags, &["/bin/sh", "-c", script]).ok(), "/root\n1000\n1001\n1 2\n");
    });
}

#[test]
fn capability_flag() {
    conform(|| {
        let c = up();
        let text = c.exec(&["--cap", "CAP_SYS_PTRACE"], &["/bin/grep", "CapEff", "/proc/self/status"]).ok();
        let bits = u64::from_str_radix(text.trim().rsplit('\t').next().unwrap(), 16).unwrap();
        assert!(bits >> 19 & 1 == 1, "{text}");
    });
}

#[test]
fn process_file() {
    conform(|| {
        let c = up();
        let file = process(&c, |p| {
            p["args"] =
                json!(["/bin/sh", "-c", "pwd; id -u; umask; ulimit -n; echo $X; grep CapBnd /proc/self/status"]);
            p["cwd"] = json!("/tmp");
            p["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o077});
            p["env"] = json!(["X=y", "PATH=/bin"]);
            p["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]);
            p["capabilities"] = json!({"bounding": ["CAP_KILL"]});
        });
        let text = c.call(&["exec", "--process", &file, &c.id]).ok();
        assert_eq!(text, "/tmp\n1000\n0077\n99\ny\nCapBnd:\t0000000000000020\n");
    });
}

#[test]
fn no_new_privileges_is_inherited_by_the_configuration() {
    conform(|| {
        let c = up();
        let file = process(&c, |p| {
            p["args"] = json!(["/bin/grep", "NoNewPrivs", "/proc/self/status"]);
            p["noNewPrivileges"] = json!(false);
        });
        assert_eq!(c.call(&["exec", "--process", &file, &c.id]).ok(), "NoNewPrivs:\t0\n");
        assert_eq!(c.exec_sh("grep NoNewPrivs /proc/self/status").ok(), "NoNewPrivs:\t1\n");
    });
}

/// `--detach` returns at once; `--pid-file` has the host's number.
#[test]
fn detached_with_a_pid_file() {
    conform(|| {
        let c = up();
        let file = c.dir().join("exec.pid");
        let words = ["exec", "--detach", "--pid-file", file.to_str().unwrap(), &c.id, "/bin/sleep", "1000"];
        c.detached(c.command(&words)).ok();
        let pid: i32 = host::read(&file).trim().parse().unwrap();
        let name = wait_for("exec", || Some(host::read(format!("/proc/{pid}/cmdline"))).filter(|t| t.contains("1000")));
        assert_eq!(name, "/bin/sleep\u{0}1000\u{0}");
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
        assert_eq!(theirs, std::fs::read_link(format!("/proc/{}/ns/pid", c.pid())).unwrap());
    });
}

#[test]
fn terminal_with_a_console_socket() {
    conform(|| {
        let c = up();
        let receiver = terminal::Receiver::new(c.dir());
        let words = [
            "exec",
            "--tty",
            "--detach",
            "--console-socket",
            receiver.text(),
            &c.id,
            "/bin/sh",
            "-c",
            "tty && echo is; read x; echo got $x",
        ];
        c.detached(c.command(&words)).ok();
        let mut master = terminal::Master::new(receiver.receive().1.remove(0));
        master.read_until("is");
        master.type_in("word\n");
        assert!(master.read_until("got word").contains("/dev/pts/"));
    });
}

#[test]
fn preserved_descriptors() {
    conform(|| {
        let c = up();
        let file = c.dir().join("handed");
        std::fs::write(&file, "handed over\n").unwrap();
        let words =
            ["exec", "--preserve-fds", "1", &c.id, "/bin/sh", "-c", "cat <&3; readlink /proc/self/fd/4 || echo none"];
        let command = c.command(&words);
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "exec 3<\"$1\" 4<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&file);
        shell.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            shell.env(key, value.unwrap_or_default());
        }
        assert_eq!(ilot_conformance::runtime::run(shell).ok(), "handed over\nnone\n");
    });
}

#[test]
fn only_standard_descriptors() {
    conform(|| {
        let c = up();
        c.need_probe();
        let text = c.exec(&[], &["/bin/probe", "fds"]).ok();
        assert_eq!(text.lines().count(), 3, "{text}");
    });
}

/// In containers that do not run it is an error.
#[test]
fn wrong_status() {
    conform(|| {
        let c = Bundle::new();
        c.exec_sh("true").fails();
        c.create().ok();
        c.start();
        c.wait_end();
        c.exec_sh("true").fails();
    });
}

/// A paused container does not run anything: `exec` must not hang.
#[test]
fn paused() {
    conform(|| {
        let c = up();
        c.call(&["pause", &c.id]).ok();
        let output = c.exec_sh("true");
        c.call(&["resume", &c.id]).ok();
        output.fails();
    });
}

#[test]
fn missing_program() {
    conform(|| {
        let c = up();
        let output = c.exec(&[], &["/no/such/program"]);
        assert!(output.code != 0 && output.err.contains("/no/such/program"), "{output:?}");
        assert_eq!(c.state()["status"], "running");
    });
}

#[test]
fn missing_working_directory() {
    conform(|| {
        let c = up();
        let output = c.exec(&["--cwd", "/no/such/place"], &["/bin/true"]);
        assert!(output.code != 0 && output.err.contains("/no/such/place"), "{output:?}");
        c.exec_sh("test ! -e /no").ok();
    });
}

#[test]
fn user_namespace() {
    conform(|| {
        let mut c = Bundle::sleeper();
        c.user_namespace(200_000);
        c.up();
        let text = c.exec_sh("id -u; readlink /proc/self/ns/user; touch /made").ok();
        let theirs = std::fs::read_link(format!("/proc/{}/ns/user", c.pid())).unwrap();
        assert_eq!(text, format!("0\n{}\n", theirs.display()));
        let made = std::fs::metadata(c.rootfs().join("made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 200_000);
    });
}

/// The joining process is in the container's group before its program runs: a limit of one process less than needed
/// refuses it.
#[test]
fn joins_the_group_before_it_runs() {
    conform(|| {
        ilot_conformance::need(host::has_v1("pids"), "needs the v1 pids controller");
        let c = up();
        for _ in 0..10 {
            let text = c.exec(&[], &["/bin/cat", "/proc/self/cgroup"]).ok();
            let line = text.lines().find(|l| l.contains(":pids:")).unwrap();
            assert!(line.ends_with(&c.id), "{line}");
        }
    });
}
