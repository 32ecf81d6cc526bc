//! What comes from outside is read without a panic, whatever it is, and means the same when written again: the
//! configuration, mount options, the filter kept for `exec`, the files of a run directory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use ilot_runtime::seccomp::Program;
use ilot_runtime::spec::Spec;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Any JSON, with the member names of the specification among its keys.
fn value() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("process"),
        Just("root"),
        Just("mounts"),
        Just("linux"),
        Just("hooks"),
        Just("args"),
        Just("user"),
        Just("uid"),
        Just("namespaces"),
        Just("type"),
        Just("path"),
        Just("resources"),
        Just("memory"),
        Just("limit"),
        Just("devices"),
        Just("options"),
        Just("destination"),
        Just("seccomp"),
        Just("syscalls"),
        Just("names"),
        Just("uidMappings"),
        Just("size"),
        Just("rlimits"),
        Just("timeOffsets"),
        Just("annotations"),
        Just("cpu"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

/// A configuration that means something.
fn config() -> impl Strategy<Value = Value> {
    let word = "[a-z0-9/_.=,-]{0,16}";
    (prop::collection::vec(word, 0..6), prop::collection::vec((word, prop::collection::vec(word, 0..4)), 0..5), any::<u32>(), any::<i64>())
        .prop_map(|(args, mounts, uid, limit)| {
            let mounts: Vec<Value> =
                mounts.iter().map(|(d, o)| json!({"destination": d, "type": "tmpfs", "options": o})).collect();
            json!({
                "ociVersion": "1.2.0", "process": {"args": args, "cwd": "/", "user": {"uid": uid, "gid": uid}},
                "root": {"path": "rootfs"}, "mounts": mounts,
                "linux": {"resources": {"memory": {"limit": limit}}, "namespaces": [{"type": "pid"}, {"type": "mount"}]},
            })
        })
}

proptest! {
    #[test]
    fn a_configuration_of_any_form_is_read_or_refused(value in value()) {
        if let Ok(spec) = serde_json::from_value::<Spec>(value) {
            let again: Spec = serde_json::from_slice(&serde_json::to_vec(&spec).unwrap()).unwrap();
            prop_assert_eq!(again, spec);
        }
    }

    #[test]
    fn a_configuration_means_the_same_when_written_again(config in config()) {
        let spec: Spec = serde_json::from_value(config).unwrap();
        let again: Spec = serde_json::from_slice(&serde_json::to_vec(&spec).unwrap()).unwrap();
        prop_assert_eq!(again, spec);
    }

    #[test]
    fn any_bytes_are_read_as_a_filter_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(program) = Program::from_bytes(&bytes) {
            prop_assert_eq!(program.to_bytes(), bytes);
        }
    }

    /// One byte of a real filter changed: it still ends, or it is none.
    #[test]
    fn a_damaged_filter_is_whole_or_refused(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let profile = ilot_runtime::seccomp::default_profile(ilot_runtime::seccomp::DefaultKind::Machine);
        let mut bytes = Program::compile(&profile).unwrap().to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Some(program) = Program::from_bytes(&bytes) {
            prop_assert_eq!(program.to_bytes(), bytes);
        }
    }

    /// A damaged state is an error, never a panic and never a container that is not there.
    #[test]
    fn a_state_of_any_form_is_read_or_refused(state in value(), exit in value(), text in prop::option::of(".{0,40}")) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("state.json", &state);
        write("exit.json", &exit);
        if let Some(text) = text {
            std::fs::write(dir.path().join("state.json"), text).unwrap();
        }
        if let Ok(Some(state)) = ilot_runtime::state(dir.path()) {
            prop_assert_eq!(state.pid, None);
        }
    }
}
