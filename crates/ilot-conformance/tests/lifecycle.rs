//! `runtime.md`: the container's life, its state, and errors.

use ilot_conformance::{Bundle, conform, json, wait_for};

/// "State": `ociVersion`, `id`, `status`, `pid`, `bundle`, `annotations`.
#[test]
fn state_has_the_fields_of_the_specification() {
    conform(|| {
        let mut c = Bundle::sleeper();
        c.config["annotations"] = json!({"org.example.key": "value"});
        c.create().ok();
        let state = c.state();
        assert!(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "{state}");
        assert_eq!(state["id"], c.id.as_str());
        assert_eq!(state["status"], "created");
        assert_eq!(state["bundle"], c.dir().to_str().unwrap());
        assert_eq!(state["annotations"]["org.example.key"], "value");
        let pid = state["pid"].as_i64().unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        c.start();
        assert_eq!(c.state()["status"], "running");
        assert_eq!(c.pid() as i64, pid, "the process stays the same one");
    });
}

/// "Lifecycle" 2 to 10: nothing of the user's program runs before `start`.
#[test]
fn create_does_not_start() {
    conform(|| {
        let c = Bundle::sh("echo started > /mark");
        c.create().ok();
        assert!(!c.rootfs().join("mark").exists());
        c.start();
        c.wait_end();
        assert_eq!(ilot_conformance::host::read(c.rootfs().join("mark")), "started\n");
    });
}

/// "State", "pid": of a stopped container there is none, and `delete` takes everything away.
#[test]
fn stopped_then_deleted() {
    conform(|| {
        let c = Bundle::sh("exit 3");
        c.create().ok();
        c.start();
        c.wait_end();
        assert!(matches!(c.state()["pid"].as_i64(), None | Some(0)));
        c.call(&["delete", &c.id]).ok();
        c.call(&["state", &c.id]).fails();
        assert!(!std::path::Path::new(&format!("/sys/fs/cgroup/memory/{}", c.id)).exists(), "its group is gone");
    });
}

/// `run` gives the program's own code; a signal counts 128 and its number.
#[test]
fn run_gives_the_exit_code() {
    conform(|| {
        assert_eq!(Bundle::sh("exit 37").run().code, 37);
        assert_eq!(Bundle::sh("exit 0").run().code, 0);
        let mut c = Bundle::sh("exec sleep 1000");
        c.namespace("pid", None);
        let mut child = c.spawn(&[]);
        c.wait_for_running();
        c.call(&["kill", &c.id, "KILL"]).ok();
        assert_eq!(child.wait().unwrap().code(), Some(137));
    });
}

/// `run` leaves nothing behind; `--keep` does.
#[test]
fn run_deletes() {
    conform(|| {
        let c = Bundle::new();
        c.run().ok();
        c.call(&["state", &c.id]).fails();
        // The same id is free again.
        c.run().ok();
    });
}

/// "Create" 1: an id that exists is an error, and the container that has it is left alone.
#[test]
fn duplicate_id() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        c.save();
        let second = ilot_conformance::runtime::run(c.bundle_command("create", &[]));
        second.fails();
        assert_eq!(c.state()["status"], "running");
    });
}

/// "Start", "Kill", "Delete": each demands a status.
#[test]
fn wrong_status_is_an_error() {
    conform(|| {
        let c = Bundle::sleeper();
        for word in ["state", "start", "kill", "delete"] {
            c.call(&[word, &c.id]).fails();
        }
        c.up();
        c.call(&["start", &c.id]).fails();
        c.call(&["delete", &c.id]).fails();
        assert_eq!(c.state()["status"], "running");
        c.call(&["kill", &c.id, "KILL"]).ok();
        c.wait_end();
        c.call(&["start", &c.id]).fails();
        c.call(&["delete", &c.id]).ok();
    });
}

/// "Kill": of a stopped container it is an error.
#[test]
fn kill_of_a_stopped_container() {
    conform(|| {
        let c = Bundle::new();
        c.create().ok();
        c.start();
        c.wait_end();
        c.call(&["kill", &c.id, "TERM"]).fails();
    });
}

/// "Kill": a created container can be killed.
#[test]
fn kill_of_a_created_container() {
    conform(|| {
        let c = Bundle::sleeper();
        c.create().ok();
        c.call(&["kill", &c.id, "KILL"]).ok();
        c.wait_end();
        c.call(&["delete", &c.id]).ok();
    });
}

/// Names with and without `SIG`, and numbers; the default is `TERM`.
#[test]
fn kill_takes_names_and_numbers() {
    conform(|| {
        let script = "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap 'echo hup' HUP; trap 'echo term; exit' TERM
            echo up; while :; do sleep 1000 & wait $!; done";
        let c = Bundle::sh(script);
        c.up();
        for (signal, word) in [("USR1", "usr1"), ("SIGUSR2", "usr2"), ("1", "hup")] {
            c.call(&["kill", &c.id, signal]).ok();
            wait_for(word, || c.log().contains(word).then_some(()));
        }
        c.call(&["kill", &c.id]).ok();
        c.wait_end();
        assert!(c.log().contains("term"));
    });
}

/// A signal that does not exist is an error.
#[test]
fn kill_with_an_unknown_signal() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        c.call(&["kill", &c.id, "NOSUCH"]).fails();
        c.call(&["kill", &c.id, "1000"]).fails();
    });
}

/// `kill --all` reaches every process, even where the container has no process namespace.
#[test]
fn kill_all() {
    conform(|| {
        let mut c = Bundle::sh("sleep 1000 & sleep 1000 & echo up; wait");
        c.namespace("pid", None);
        c.up();
        let pids = c.cgroup("pids", "cgroup.procs");
        assert!(pids.lines().count() >= 3, "{pids}");
        c.call(&["kill", "--all", &c.id, "KILL"]).ok();
        wait_for("all to end", || c.cgroup("pids", "cgroup.procs").is_empty().then_some(()));
        c.call(&["delete", "--force", &c.id]).ok();
    });
}

/// `delete --force` ends a running container, a paused one, and does not mind a missing one.
#[test]
fn delete_force() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        let pid = c.pid();
        c.call(&["delete", "--force", &c.id]).ok();
        assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
        c.call(&["state", &c.id]).fails();
        c.call(&["delete", "--force", &c.id]).ok();
    });
}

/// The pid file holds the number of the container's process.
#[test]
fn pid_file() {
    conform(|| {
        let c = Bundle::sleeper();
        let file = c.dir().join("pid");
        c.create_with(&["--pid-file", file.to_str().unwrap()]).ok();
        assert_eq!(ilot_conformance::host::read(file).trim(), c.pid().to_string());
    });
}

/// `run --detach` returns while the container runs.
#[test]
fn run_detached() {
    conform(|| {
        let c = Bundle::sleeper();
        c.save();
        c.detached(c.bundle_command("run", &["--detach"])).ok();
        assert_eq!(c.state()["status"], "running");
    });
}

/// A foreground `run` hands signals on.
#[test]
fn run_forwards_signals() {
    conform(|| {
        let c = Bundle::sh("trap 'echo got; exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done");
        let mut child = c.spawn(&[]);
        wait_for("up", || c.log().contains("up").then_some(()));
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5));
        assert!(c.log().contains("got"));
    });
}

/// A program that is not there is an error of `create` or of `start`, and nothing is left.
#[test]
fn missing_program() {
    conform(|| {
        let mut c = Bundle::new();
        c.args(&["/no/such/program"]);
        let output = c.run();
        assert!(output.code != 0);
        assert!(
            output.err.contains("/no/such/program") || output.err.to_lowercase().contains("no such file"),
            "{output:?}"
        );
        c.call(&["state", &c.id]).fails();
    });
}

/// "Create": a configuration that cannot be applied is an error, and nothing is left.
#[test]
fn broken_configurations() {
    conform(|| {
        for (pointer, value) in [
            ("root", json!({"path": "no/such/dir"})),
            ("mounts", json!([{"destination": "/mnt", "type": "nosuchfs", "source": "none"}])),
            ("mounts", json!([{"destination": "/mnt", "type": "bind", "source": "/no/such", "options": ["bind"]}])),
        ] {
            let mut c = Bundle::new();
            c.config[pointer] = value;
            assert!(c.run().code != 0, "{pointer} should have been refused");
            c.call(&["state", &c.id]).fails();
        }
        let c = Bundle::new();
        std::fs::write(c.dir().join("config.json"), "{ nonsense").unwrap();
        ilot_conformance::runtime::run(c.bundle_command("create", &[])).fails();
        let c = Bundle::new();
        ilot_conformance::runtime::run(c.bundle_command("create", &[])).fails();
    });
}

/// `config.md`, "Process", `cwd`: "This value MUST be an absolute path."
#[test]
fn relative_working_directory() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["process"]["cwd"] = json!("tmp");
        assert!(c.run().code != 0);
    });
}

/// Ids that would leave the state directory, or hold what a path may not.
#[test]
fn bad_ids() {
    conform(|| {
        for id in ["../up", "a/b", "", ".", ".."] {
            let mut c = Bundle::new();
            let good = std::mem::replace(&mut c.id, id.to_owned());
            c.config["linux"]["cgroupsPath"] = json!(format!("/{good}"));
            let output = c.run();
            c.id = good;
            assert!(output.code != 0, "`{id}` should have been refused");
        }
    });
}

/// `list` in its formats.
#[test]
fn list_formats() {
    conform(|| {
        let c = Bundle::sleeper();
        c.up();
        let list = c.call(&["list", "--format", "json"]).json();
        let entry = list.as_array().unwrap().iter().find(|entry| entry["id"] == c.id.as_str()).unwrap();
        assert_eq!(entry["status"], "running");
        assert_eq!(entry["pid"].as_i64(), Some(i64::from(c.pid())));
        assert_eq!(entry["bundle"], c.dir().to_str().unwrap());
        let table = c.call(&["list"]).ok();
        assert!(table.lines().next().unwrap().contains("ID"), "{table}");
        assert!(table.contains(&c.id) && table.contains("running"), "{table}");
        assert_eq!(c.call(&["list", "--quiet"]).ok().trim(), c.id);
    });
}

/// `--log-format json`: lines of `msg`, `level`, `time`, as engines read them.
#[test]
fn log_in_json() {
    conform(|| {
        let mut c = Bundle::new();
        c.args(&["/no/such/program"]);
        let log = c.dir().join("runtime.log");
        c.global = ["--log", log.to_str().unwrap(), "--log-format", "json"].map(str::to_owned).to_vec();
        assert!(c.run().code != 0);
        let text = ilot_conformance::host::read(&log);
        let line = text.lines().last().unwrap_or_else(|| panic!("the log is empty"));
        let line: ilot_conformance::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "error", "{line}");
        assert!(line["msg"].as_str().is_some_and(|text| !text.is_empty()), "{line}");
        assert!(line["time"].is_string(), "{line}");
    });
}
