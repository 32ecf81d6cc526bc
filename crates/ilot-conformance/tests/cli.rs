//! Commands that describe the runtime: `spec`, `features`, `--version`; annotations; the rootless configuration.

use ilot_conformance::{Bundle, Kind, Value, bundle, conform, json, skip};
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn version_names_the_specification() {
    conform(|| {
        let c = Bundle::new();
        let text = c.runtime.run(&["--version"]).ok();
        assert!(text.contains("version"), "{text}");
        let spec = text.lines().find_map(|l| l.strip_prefix("spec: ")).unwrap_or_else(|| panic!("{text}"));
        assert!(spec.starts_with("1."), "{spec}");
    });
}

/// `spec` writes a configuration that runs.
#[test]
fn spec_runs() {
    conform(|| {
        let mut c = Bundle::new();
        let mut command = c.command(&["spec"]);
        command.current_dir(c.dir());
        ilot_conformance::runtime::run(command).ok();
        let text = std::fs::read_to_string(c.dir().join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        assert!(config["ociVersion"].is_string());
        let again = {
            let mut again = c.command(&["spec"]);
            again.current_dir(c.dir());
            ilot_conformance::runtime::run(again)
        };
        again.fails();
        c.config = config;
        c.config["process"]["terminal"] = json!(false);
        c.config["linux"]["cgroupsPath"] = json!(format!("/{}", c.id));
        // Raising limits needs a capability that not every host has.
        c.config["process"].as_object_mut().unwrap().remove("rlimits");
        assert_eq!(c.output("echo it runs"), "it runs\n");
    });
}

#[test]
fn spec_rootless() {
    conform(|| {
        let c = Bundle::new();
        let mut command = c.command(&["spec", "--rootless"]);
        command.current_dir(c.dir());
        ilot_conformance::runtime::run(command).ok();
        let text = std::fs::read_to_string(c.dir().join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        let kinds: Vec<&str> =
            config["linux"]["namespaces"].as_array().unwrap().iter().filter_map(|n| n["type"].as_str()).collect();
        assert!(kinds.contains(&"user"), "{kinds:?}");
        assert!(config["linux"]["uidMappings"].is_array());
    });
}

/// `features.md`, `features-linux.md`: the fields that must be there.
#[test]
fn features() {
    conform(|| {
        if bundle::is(Kind::Crun) {
            skip("`features` is newer than this runtime");
        }
        let c = Bundle::new();
        let f = c.runtime.run(&["features"]).json();
        for field in ["ociVersionMin", "ociVersionMax"] {
            assert!(f[field].as_str().is_some_and(|v| v.starts_with("1.")), "{f}");
        }
        let list = |value: &Value| -> Vec<String> {
            value
                .as_array()
                .unwrap_or_else(|| panic!("{f}"))
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            assert!(list(&f["hooks"]).iter().any(|h| h == kind), "{kind}");
        }
        for option in ["bind", "rbind", "ro", "nosuid", "rprivate", "rshared"] {
            assert!(list(&f["mountOptions"]).iter().any(|o| o == option), "{option}");
        }
        for kind in ["pid", "network", "mount", "ipc", "uts", "user", "cgroup"] {
            assert!(list(&f["linux"]["namespaces"]).iter().any(|n| n == kind), "{kind}");
        }
        assert!(list(&f["linux"]["capabilities"]).iter().any(|cap| cap == "CAP_SYS_ADMIN"));
        assert_eq!(f["linux"]["cgroup"]["v1"], true);
        assert_eq!(f["linux"]["cgroup"]["v2"], true);
        assert_eq!(f["linux"]["seccomp"]["enabled"], true);
        assert!(list(&f["linux"]["seccomp"]["actions"]).iter().any(|a| a == "SCMP_ACT_NOTIFY"));
        assert!(list(&f["linux"]["seccomp"]["operators"]).iter().any(|o| o == "SCMP_CMP_MASKED_EQ"));
        assert!(list(&f["linux"]["seccomp"]["archs"]).iter().any(|a| a == "SCMP_ARCH_X86_64"));
    });
}

#[test]
fn unknown_commands_and_flags_are_errors() {
    conform(|| {
        let c = Bundle::new();
        c.call(&["nonsense"]).fails();
        c.call(&["run", "--nonsense", &c.id]).fails();
    });
}

/// "Extensibility": "Runtimes … MUST NOT generate an error if they encounter an unknown property."
#[test]
fn unknown_properties_are_ignored() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["unknown"] = json!({"a": 1});
        c.config["process"]["unknown"] = json!([1]);
        c.config["linux"]["unknown"] = json!("x");
        c.run().ok();
    });
}

/// A configuration for who has one id of the host's: user 54321, who owns the bundle.
fn for_one_user(c: &mut Bundle) {
    c.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "sysfs" && m["type"] != "mqueue");
    c.namespace("network", None);
    let linux = c.config["linux"].as_object_mut().unwrap();
    linux.remove("resources");
    linux.remove("cgroupsPath");
    c.args(&["/bin/sh", "-c", "id -u; tr -s ' ' </proc/self/uid_map; touch /made"]);
    c.save();
    bundle::chown_tree(c.dir(), 54_321);
}

/// The file behind a program's name.
fn which(program: &OsStr) -> PathBuf {
    if program.as_encoded_bytes().contains(&b'/') {
        return program.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).expect("the runtime is there")
}

/// Runs the bundle as that user, through further programs.
fn run_as_user(c: &Bundle, through: &[&str]) -> ilot_conformance::Output {
    c.save();
    let run = c.bundle_command("run", &[]);
    // The project may lie where this user may not go, root's home for example.
    let program = c.dir().join("runtime");
    fs::copy(which(run.get_program()), &program).expect("copy the runtime");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.args(through).arg(program).args(run.get_args());
    command.env("HOME", c.dir()).env("XDG_RUNTIME_DIR", c.dir());
    for (key, value) in run.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    ilot_conformance::runtime::run(command)
}

/// An ordinary user, without help of anybody: one id inside and outside.
#[test]
fn ordinary_user() {
    conform(|| {
        let mut c = Bundle::new();
        c.namespace("user", Some(json!({"type": "user"})));
        c.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 54321, "size": 1}]);
        c.config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 54321, "size": 1}]);
        for_one_user(&mut c);
        assert_eq!(run_as_user(&c, &[]).ok(), "0\n 0 54321 1\n");
        assert!(c.rootfs().join("made").exists());
    });
}

/// Root of a user namespace that somebody else made, as Podman does for ordinary users.
#[test]
fn root_of_a_user_namespace() {
    conform(|| {
        let mut c = Bundle::new();
        c.config["linux"]["devices"] = json!([{"type": "c", "path": "/dev/zero", "major": 1, "minor": 5}]);
        for_one_user(&mut c);
        assert_eq!(run_as_user(&c, &["unshare", "--user", "--map-root-user", "--mount"]).ok(), "0\n 0 54321 1\n");
        assert!(c.rootfs().join("made").exists());
    });
}
