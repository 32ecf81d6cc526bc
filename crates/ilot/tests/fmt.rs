//! `ilot fmt`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::Place;
use serde_json::json;

const MESSY: &str = "\
# The lab
global: {}
project_name:   lab
domains:
    pro:
        machines:
            web: {weight: 2,   description: Pages}   # the server
        trust_level: trusted
";

const NEAT: &str = "\
# The lab

project_name: lab
global: {}
domains:
  pro:
    trust_level: trusted
    machines:
      web: {description: Pages, weight: 2}  # the server
";

fn place() -> Place {
    let place = Place::new();
    place.write("infra.yml", MESSY);
    place
}

fn read(place: &Place, name: &str) -> String {
    fs::read_to_string(place.path().join(name)).unwrap()
}

#[test]
fn the_file_is_written_once() {
    let place = place();
    let ran = place.run(&["fmt"]).ok();
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("formatted infra.yml\n", ""));
    assert_eq!(read(&place, "infra.yml"), NEAT);
    assert_eq!(place.run(&["fmt"]).ok().out, "");
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["infra.yml"]);
}

#[test]
fn check_and_diff_change_nothing() {
    let place = place();
    let check = place.run(&["fmt", "--check"]);
    assert_eq!((check.code, check.out.as_str()), (1, "infra.yml\n"));
    let diff = place.run(&["fmt", "--diff"]).ok();
    insta::assert_snapshot!(diff.shown());
    assert_eq!(place.run(&["fmt", "--diff", "--check"]).code, 1);
    assert_eq!(read(&place, "infra.yml"), MESSY);
    place.write("infra.yml", NEAT);
    assert_eq!(place.run(&["fmt", "--check", "--diff"]).ok().out, "");
}

#[test]
fn every_file_of_a_directory_is_written() {
    let place = Place::new();
    place.write("infra/base.yml", "global: {}\nproject_name: lab\n");
    place.write("infra/domains/pro.yml", "pro:\n   machines: { web: {} }\n   enabled: true\n");
    place.write("infra/policies.yml", "network_policies:\n- {to: host, from: pro, ports: [1]}\n");
    place.write("infra/ilot.yml", "restart: always\nimage: busybox\n");
    let ran = place.run(&["fmt", "infra"]).ok();
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    assert_eq!(read(&place, "infra/base.yml"), "project_name: lab\nglobal: {}\n");
    assert_eq!(read(&place, "infra/domains/pro.yml"), "pro:\n  enabled: true\n  machines: {web: {}}\n");
    assert_eq!(read(&place, "infra/policies.yml"), "network_policies:\n  - {from: pro, to: host, ports: [1]}\n");
    assert_eq!(read(&place, "infra/ilot.yml"), "image: busybox\nrestart: always\n");
    assert_eq!(place.run(&["fmt", "--check"]).ok().out, "");
}

#[test]
fn a_file_with_errors_is_not_touched() {
    let place = Place::new();
    let text = "global: {}\nproject_name:  lab\ndomains: {pro: {machines: {web: {weight: 0}}}}\n";
    place.write("infra.yml", text);
    let ran = place.run(&["fmt"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("infra.yml:3") && ran.err.contains("1 error: nothing was changed"), "{}", ran.err);
    assert_eq!(read(&place, "infra.yml"), text);
}

#[test]
fn modes_and_links_stay() {
    let place = Place::new();
    place.write("real/lab.yml", MESSY);
    let real = place.path().join("real/lab.yml");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real/lab.yml", place.path().join("infra.yml")).unwrap();
    place.run(&["fmt"]).ok();
    assert!(place.path().join("infra.yml").symlink_metadata().unwrap().is_symlink());
    assert_eq!(read(&place, "real/lab.yml"), NEAT);
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn json_has_the_documented_shape() {
    let place = place();
    let json = place.run(&["fmt", "--check", "--json"]).json();
    assert_eq!(json, json!({"written": false, "files": [{"file": "infra.yml", "changed": true, "diff": null}]}));
    let json = place.run(&["fmt", "--json"]).ok().json();
    assert_eq!(json["written"], json!(true));
}
