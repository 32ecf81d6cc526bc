//! `ilot convert`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::path::Path;

use common::{Place, Ran};
use serde_json::{Value, json};

const SINGLE: &str = "\
# The lab
project_name: lab
global: {default_os_image: busybox}
domains:
  # work
  pro:
    machines:
      pro-web: {weight: 2}  # the server
      pro-db: {}
  old: {trust_level: trusted, enabled: false, machines: {old-a: {}}}
network_policies:
  - {from: pro, to: pro-web, ports: [80]}
";

fn place() -> Place {
    let place = Place::new();
    place.write("infra.yml", SINGLE);
    place
}

/// What `check` says of a project, without what says where it stands.
fn addresses(place: &Place, path: &str) -> Value {
    let json = place.run(&["check", "--json", "-f", path]).ok().json();
    let plain = |machine: &Value| {
        let mut machine = machine.clone();
        machine.as_object_mut().unwrap().remove("declared_name");
        machine
    };
    let machines: serde_json::Map<_, _> =
        json["machines"].as_object().unwrap().iter().map(|(name, machine)| (name.clone(), plain(machine))).collect();
    json!([json["project"], json["domains"], machines, json["policies"]])
}

fn files(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path.display().to_string());
        }
    }
    all.sort();
    all
}

#[test]
fn every_layout_means_the_same() {
    let place = place();
    let split = place.run(&["convert", "--to", "split", "a"]).ok();
    assert_eq!(
        split.out,
        "made a/infra/base.yml\nmade a/infra/domains/pro.yml\nmade a/infra/domains/old.yml\nmade a/infra/policies.yml\n"
    );
    place.run(&["convert", "--to", "project", "b/c", "a"]).ok();
    place.run(&["convert", "--to", "single", "d/back.yml", "b/c"]).ok();
    place.run(&["convert", "--to", "split", "e/infra"]).ok();
    assert!(place.path().join("e/infra/base.yml").is_file());
    let expected = addresses(&place, "infra.yml");
    for path in ["a", "b/c", "d/back.yml", "e"] {
        assert_eq!(addresses(&place, path), expected, "{path}");
    }
    let back = fs::read_to_string(place.path().join("d/back.yml")).unwrap();
    for comment in ["# The lab", "# work", "# the server"] {
        assert!(back.contains(comment), "{back}");
    }
    assert_eq!(fs::read_to_string(place.path().join("infra.yml")).unwrap(), SINGLE);
}

#[track_caller]
fn refused(ran: &Ran, texts: &[&str]) {
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    for text in texts {
        assert!(ran.err.contains(text), "{text}: {}", ran.err);
    }
}

#[test]
fn nothing_is_overwritten() {
    for there in ["out/anklume.yml", "out/domains/other.yml", "out/policies.yml", "out/ilot.yml"] {
        let place = place();
        place.write(there, "x-mine: 1\n");
        let before = files(place.path());
        refused(&place.run(&["convert", "--to", "project", "out"]), &[there, "is there already: nothing was written"]);
        assert_eq!(files(place.path()), before);
    }
    let place = place();
    fs::write(place.path().join("file"), "").unwrap();
    refused(&place.run(&["convert", "--to", "project", "file/out"]), &["cannot write", "nothing was left behind"]);
    // Beside the project that it comes from.
    place.run(&["convert", "--to", "split", "."]).ok();
    assert!(place.path().join("infra/base.yml").is_file());
}

#[test]
fn what_cannot_be_said_is_refused() {
    let place = Place::new();
    place.write("infra.yml", "project_name: lab\nglobal: {}\ndomains: {pro: {machines: {web: {}, pro-db: {}}}}\n");
    refused(
        &place.run(&["convert", "--to", "project", "out"]),
        &["`<domain>-<machine>`, and `web` would change", "`split`"],
    );
    refused(&place.run(&["convert", "--to", "single", "out"]), &["has this layout already"]);
    place.write("infra.yml", "project_name: lab\nglobal: {}\ndomains: {pro: {machines: {web: {weight: 0}}}}\n");
    refused(&place.run(&["convert", "--to", "split", "out"]), &["infra.yml:3", "1 error: nothing was written"]);
    assert!(!place.path().join("out").exists());
}

#[test]
fn notes_say_what_is_left_out() {
    let place = Place::new();
    place.write("anklume.yml", "schema_version: 1\nproject_name: lab\nrequires_anklume: \">=1\"\n");
    place.write("domains/pro.yml", "machines: {dev: {}}\n");
    let ran = place.run(&["convert", "--to", "single", "out"]).ok();
    assert!(ran.err.contains("`requires_anklume` is left out"), "{}", ran.err);
    let json = place.run(&["convert", "--to", "split", "other", "--json"]).ok().json();
    assert_eq!(json["files"], json!(["other/infra/base.yml", "other/infra/domains/pro.yml"]));
    assert!(json["notes"][0].as_str().unwrap().contains("requires_anklume"));
}
