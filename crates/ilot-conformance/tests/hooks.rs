//! `config.md`, "POSIX-platform Hooks"; `runtime.md`, "Lifecycle".

use ilot_conformance::{Bundle, Value, conform, host, json, wait_for};
use std::path::Path;
use std::time::{Duration, Instant};

/// A hook that adds a line: its name, its argument zero, whether the program has run, and keeps the state it got.
fn hook(dir: &Path, name: &str) -> Value {
    let dir = dir.display();
    let script = format!(
        "cat >{dir}/state.{name}; readlink /proc/self/ns/mnt >{dir}/ns.{name}; echo {name} $0 $VARIABLE >>{dir}/order"
    );
    json!({"path": "/bin/sh", "args": ["sh", "-c", script, "argument"], "env": ["VARIABLE=value", "PATH=/usr/bin:/bin"]})
}

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A container with a hook of each kind; `startContainer` is looked for inside.
fn with_all() -> Bundle {
    let mut c = Bundle::sleeper();
    let dir = c.dir().join("hooks");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.display().to_string();
    c.mount(json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]}));
    for kind in KINDS {
        c.config["hooks"][kind] = json!([hook(&dir, kind)]);
    }
    c
}

fn order(c: &Bundle) -> Vec<String> {
    let text = host::read(c.dir().join("hooks/order"));
    text.lines().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect()
}

#[test]
fn each_at_its_time() {
    conform(|| {
        let c = with_all();
        c.create().ok();
        assert_eq!(order(&c), KINDS[..3]);
        c.start();
        wait_for("poststart", || (order(&c).len() == 5).then_some(()));
        assert_eq!(order(&c), KINDS[..5]);
        c.call(&["kill", &c.id, "KILL"]).ok();
        c.wait_end();
        c.call(&["delete", &c.id]).ok();
        assert_eq!(order(&c), KINDS);
        let first = host::read(c.dir().join("hooks/order"));
        assert!(first.starts_with("prestart argument value\n"), "{first}");
    });
}

/// "The state of the container MUST be passed to hooks over stdin", with the status of the moment.
#[test]
fn state_on_standard_input() {
    conform(|| {
        let mut c = with_all();
        c.config["annotations"] = json!({"key": "value"});
        c.create().ok();
        let pid = c.pid();
        c.start();
        wait_for("poststart", || (order(&c).len() == 5).then_some(()));
        c.call(&["delete", "--force", &c.id]).ok();
        for (kind, status) in KINDS.iter().zip(["creating", "creating", "creating", "created", "running", "stopped"]) {
            let text = host::read(c.dir().join(format!("hooks/state.{kind}")));
            let state: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}: {text}"));
            assert_eq!(state["id"], c.id.as_str(), "{kind}");
            assert_eq!(state["bundle"], c.dir().to_str().unwrap(), "{kind}");
            assert_eq!(state["annotations"]["key"], "value", "{kind}");
            assert!(state["ociVersion"].is_string(), "{kind}");
            assert_eq!(state["status"], status, "{kind}");
            if matches!(*kind, "prestart" | "createRuntime" | "poststart") {
                assert_eq!(state["pid"].as_i64(), Some(i64::from(pid)), "{kind}");
            }
        }
    });
}

/// Runtime namespace or container namespace, by kind.
#[test]
fn namespaces_of_hooks() {
    conform(|| {
        let c = with_all();
        c.up();
        wait_for("poststart", || (order(&c).len() == 5).then_some(()));
        let inside = std::fs::read_link(format!("/proc/{}/ns/mnt", c.pid())).unwrap().display().to_string();
        for (kind, expected) in KINDS[..5].iter().zip([false, false, true, true, false]) {
            let seen = host::read(c.dir().join(format!("hooks/ns.{kind}")));
            assert_eq!(seen.trim() == inside, expected, "{kind}: {seen}");
        }
    });
}

#[test]
fn listed_order() {
    conform(|| {
        let mut c = Bundle::new();
        let file = c.dir().join("order");
        let entry = |n: u32| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo {n} >>{}", file.display())]});
        c.config["hooks"]["createRuntime"] = json!([entry(1), entry(2), entry(3)]);
        c.run().ok();
        assert_eq!(host::read(&file), "1\n2\n3\n");
    });
}

/// "If any hook fails, … the runtime MUST generate an error, stop the container", and the later ones do not run.
#[test]
fn a_failing_hook_ends_the_creation() {
    conform(|| {
        for kind in &KINDS[..3] {
            let mut c = Bundle::sh("echo started >/mark");
            let after = c.dir().join("after");
            c.config["hooks"][kind] = json!([
                {"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]},
                {"path": "/bin/touch", "args": ["touch", after.to_str()]}
            ]);
            assert!(c.run().code != 0, "{kind}");
            assert!(!after.exists(), "{kind}");
            assert!(!c.rootfs().join("mark").exists(), "{kind}");
            c.call(&["state", &c.id]).fails();
        }
    });
}

/// `startContainer` fails: `start` does.
#[test]
fn a_failing_start_hook() {
    conform(|| {
        let mut c = Bundle::sh("echo started >/mark");
        c.config["hooks"]["startContainer"] = json!([{"path": "/bin/false"}]);
        assert!(c.run().code != 0);
        assert!(!c.rootfs().join("mark").exists());
    });
}

/// `poststop` fails: "the runtime MUST log a warning, but the remaining hooks and lifecycle continue".
#[test]
fn a_failing_poststop_hook() {
    conform(|| {
        let mut c = Bundle::new();
        let after = c.dir().join("after");
        c.config["hooks"]["poststop"] = json!([
            {"path": "/bin/false"},
            {"path": "/bin/touch", "args": ["touch", after.to_str()]}
        ]);
        c.create().ok();
        c.start();
        c.wait_end();
        let deleted = c.call(&["delete", &c.id]);
        assert!(after.exists(), "{deleted:?}");
        c.call(&["state", &c.id]).fails();
    });
}

/// `timeout`: the hook is aborted, which is a failure.
#[test]
fn timeout() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1}]);
        let start = Instant::now();
        assert!(c.run().code != 0);
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}

/// A hook's `path` must be absolute.
#[test]
fn relative_path() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["hooks"]["createRuntime"] = json!([{"path": "true"}]);
        assert!(c.run().code != 0);
    });
}
