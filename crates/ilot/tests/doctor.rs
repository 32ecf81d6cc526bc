//! `ilot doctor`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::Place;

#[test]
fn json_says_what_the_exit_code_says() {
    let place = Place::new();
    let ran = place.run(&["doctor", "--json"]);
    let json = ran.json();
    assert_eq!(ran.code, i32::from(json["ok"] == false));
    let findings = json["findings"].as_array().unwrap();
    let names: BTreeSet<&str> = findings.iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), findings.len(), "each name once");
    for name in
        ["kernel", "user namespaces", "idmapped mounts", "overlay", "cgroup layout", "nft", "kvm", "ilot-keeper"]
    {
        assert!(names.contains(name), "{name}");
    }
    for finding in findings {
        let level = finding["level"].as_str().unwrap();
        assert!(["ok", "warn", "missing"].contains(&level), "{finding}");
        assert_eq!(finding["cure"].is_null(), level == "ok", "{finding}");
    }
    let missing = findings.iter().any(|f| f["level"] == "missing");
    assert_eq!(json["ok"] == false, missing);
}

#[test]
fn text_names_the_cure_of_each_lack() {
    let place = Place::new();
    let ran = place.run(&["doctor"]);
    assert!(ran.out.contains("kernel") && ran.out.contains("control groups"), "{}", ran.out);
    let lacks = ran.out.lines().filter(|l| l.starts_with("  warn") || l.starts_with("  missing")).count();
    assert_eq!(ran.out.matches('→').count(), lacks, "{}", ran.out);
}

/// What a probe may leave: nothing.
fn traces() -> String {
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    let links: Vec<&str> = links.lines().filter_map(|l| l.split_once(':')).map(|(name, _)| name.trim()).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains("ilot-doctor")).collect();
    format!("{:?} {mounts:?}", links.iter().filter(|l| l.starts_with("il-doctor") || l.starts_with("iv")).count())
}

#[test]
fn nothing_is_left_behind() {
    let place = Place::new();
    let before = traces();
    place.run(&["doctor"]);
    assert_eq!(traces(), before);
    let entries: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
    assert!(entries.is_empty(), "{entries:?}");
}
