//! `ilot schema`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::path::Path;

use common::Place;
use serde_json::Value;

const FILES: [(&[&str], &str); 8] = [
    (&[], "infra"),
    (&["--layout", "split"], "infra"),
    (&["--layout", "split", "--part", "domain"], "domains"),
    (&["--layout", "project"], "anklume"),
    (&["--layout", "project", "--part", "domain"], "domain"),
    (&["--layout", "project", "--part", "policies"], "policies"),
    (&["--layout", "split", "--part", "policies"], "policies"),
    (&["--part", "ilot"], "ilot"),
];

#[test]
fn it_is_the_one_that_the_repository_keeps() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ilot-spec/schema");
    let place = Place::new();
    for (args, file) in FILES {
        let printed = place.run(&[&["schema"], args].concat()).ok().json();
        let text = fs::read_to_string(kept.join(format!("{file}.schema.json"))).unwrap();
        assert_eq!(printed, serde_json::from_str::<Value>(&text).unwrap(), "{args:?}");
        assert_eq!(printed["$schema"], "https://json-schema.org/draft/2020-12/schema");
    }
}

#[test]
fn a_part_that_the_layout_lacks_is_told() {
    let place = Place::new();
    for part in ["domain", "policies"] {
        let ran = place.run(&["schema", "--part", part]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""));
        assert!(ran.err.contains("no such part") && ran.err.contains("--layout split"), "{}", ran.err);
    }
}
