//! `ilot init`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;

use common::Place;

#[test]
fn the_template_is_valid_as_it_is() {
    let place = Place::new();
    let ran = place.run(&["init"]).ok();
    assert!(ran.out.contains("infra.yml"), "{ran:?}");
    let json = place.run(&["check", "--json"]).ok().json();
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(0), "{json}");
    assert_eq!(json["machines"].as_object().map(serde_json::Map::len), Some(3));
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    place.write("lab/infra.yml", "mine");
    let ran = place.run(&["init", "lab"]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err,
        "error: `lab/infra.yml` is there already; nothing was written\n hint: choose another directory: `ilot init DIR`\n"
    );
    assert_eq!(fs::read_to_string(place.path().join("lab/infra.yml")).unwrap(), "mine");

    place.write("old/anklume.yml", "mine");
    assert_eq!(place.run(&["init", "old"]).code, 1);
    assert!(!place.path().join("old/infra.yml").exists());
}

#[test]
fn a_dangling_link_is_not_written_through() {
    let place = Place::new();
    fs::create_dir(place.path().join("lab")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", place.path().join("lab/infra.yml")).unwrap();
    assert_eq!(place.run(&["init", "lab"]).code, 1);
    assert!(!place.path().join("elsewhere").exists());
}

#[test]
fn every_example_can_be_started_from() {
    let place = Place::new();
    let list = place.run(&["init", "--list", "--json"]).ok().json();
    for example in list["examples"].as_array().unwrap() {
        let name = example["name"].as_str().unwrap();
        place.run(&["init", name, "--example", name]).ok();
        place.run(&["check", "-f", name]).ok();
    }
}

#[test]
fn an_unknown_example_is_wrong_usage() {
    let ran = Place::new().run(&["init", "--example", "nonesuch"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("error: no example `nonesuch`\n hint: "), "{ran:?}");
}
