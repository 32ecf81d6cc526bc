//! `ilot explain`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use common::Place;
use serde_json::{Value, json};

const TEXT: &str = "\
project_name: lab
global:
  default_os_image: busybox
domains:
  pro:
    ephemeral: true
    profiles:
      small: {config: {limits.memory: 256MiB, limits.processes: 50}}
    machines:
      web:
        description: Pages
        profiles: [default, small]
        config: {limits.processes: 90}
        persistent_data: {home: {path: /home/user}}
      db: {ip: 10.120.0.9}
shared_volumes:
  docs: {source: /srv/docs, path: /docs, consumers: {pro: ro, web: rw}}
ilot: {restart: always}
";

fn place() -> Place {
    let place = Place::new();
    place.write("infra.yml", TEXT);
    place
}

fn value<'v>(json: &'v Value, key: &str) -> &'v Value {
    json["values"].as_array().unwrap().iter().find(|v| v["key"] == key).unwrap_or_else(|| panic!("{key}: {json}"))
}

#[test]
fn every_value_names_its_line() {
    let ran = place().run(&["explain", "web"]).ok();
    insta::assert_snapshot!(ran.shown());
}

#[test]
fn defaults_can_be_left_out() {
    let ran = place().run(&["explain", "web", "--set"]).ok();
    assert!(!ran.out.contains("default "), "{}", ran.out);
    assert!(ran.out.contains("infra.yml:13"), "{}", ran.out);
}

#[test]
fn json_has_the_documented_shape() {
    let json = place().run(&["explain", "web", "--json"]).ok().json();
    assert_eq!(json["machine"], "web");
    let own = json!({"key": "config.limits.processes", "value": "90", "origin": "machine", "profile": null, "rule": null,
        "file": "infra.yml", "line": 13, "column": 36});
    assert_eq!(value(&json, "config.limits.processes"), &own);
    let memory = value(&json, "config.limits.memory");
    assert_eq!(
        (&memory["origin"], &memory["profile"], &memory["line"]),
        (&json!("profile"), &json!("small"), &json!(8))
    );
    let ip = value(&json, "ip");
    assert_eq!((&ip["origin"], &ip["value"], &ip["file"]), (&json!("computed"), &json!("10.120.0.1"), &Value::Null));
    let weight = value(&json, "weight");
    assert_eq!((&weight["origin"], &weight["value"], &weight["line"]), (&json!("default"), &json!(1), &Value::Null));
    let volume = value(&json, "shared_volumes.docs");
    assert_eq!((&volume["value"]["mode"], &volume["line"]), (&json!("rw"), &json!(17)));
}

#[test]
fn lines_are_those_of_the_files_of_any_layout() {
    let place = Place::new();
    place.write("anklume.yml", "schema_version: 1\ndefaults: {os_image: busybox}\n");
    place.write("domains/pro.yml", "machines:\n  dev:\n    weight: 3\n");
    let json = place.run(&["explain", "pro-dev", "--json"]).ok().json();
    let (weight, image) = (value(&json, "weight"), value(&json, "image"));
    assert_eq!((&weight["file"], &weight["line"]), (&json!("domains/pro.yml"), &json!(3)));
    assert_eq!((&image["file"], &image["line"]), (&json!("anklume.yml"), &json!(2)));
}

#[test]
fn an_unknown_machine_is_told_with_the_nearest() {
    let place = place();
    for (name, hint) in [("wbe", "did you mean `web`?"), ("pro", "it is a domain"), ("nothing-near", "ilot check")] {
        let ran = place.run(&["explain", name]);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains(&format!("`{name}` is no machine")) && ran.err.contains(hint), "{}", ran.err);
    }
}

#[test]
fn a_file_with_errors_is_not_explained() {
    let place = Place::new();
    place.write("infra.yml", "project_name: lab\nglobal: {}\ndomains: {pro: {machines: {web: {weight: 0}}}}\n");
    let ran = place.run(&["explain", "web"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("infra.yml:3") && ran.err.contains("1 error: nothing to explain"), "{}", ran.err);
}
