//! `ilot check`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::path::Path;

use common::Place;
use serde_json::json;

const HEAD: &str = "project_name: lab\nglobal: {addressing: {base_octet: 10, zone_base: 100, zone_step: 10}}\n";

fn with(rest: &str) -> Place {
    let place = Place::new();
    place.write("infra.yml", &format!("{HEAD}{rest}"));
    place
}

#[test]
fn a_good_file_shows_its_addresses() {
    let place = with(
        "domains:\n  pro:\n    trust_level: trusted\n    machines:\n      web: {type: lxc, ip: 10.110.0.7}\n      db: {type: lxc}\n  old:\n    enabled: false\n    machines: {vm: {type: vm}}\nnetwork_policies:\n  - {from: pro, to: host, ports: [22], protocol: tcp}\n",
    );
    let ran = place.run(&["check"]).ok();
    insta::assert_snapshot!(ran.shown());
    assert_eq!(place.run(&["check", "-q"]).ok().out, "");
}

#[test]
fn every_problem_is_shown_with_its_line_and_the_cure() {
    let place = with(
        "domains:\n  pro:\n    trust_level: semi-trustd\n    machines:\n      web: {type: lxc, ip: 10.120.0.1}\n      été: {type: lxc, ip: 10.120.0.1, weigth: 2}\nnetwork_policies:\n  - {from: pro, to: nowhere, ports: [0]}\n",
    );
    let ran = place.run(&["check"]);
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(ran.shown());
}

#[test]
fn broken_yaml_shows_where_it_breaks() {
    let place = Place::new();
    place.write("infra.yml", "project_name: lab\ndomains:\n  pro: [1, 2\n  x: 3\n");
    let ran = place.run(&["check"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("infra.yml:"), "{}", ran.err);
}

#[test]
fn json_has_the_documented_shape() {
    let place = with(
        "domains:\n  pro:\n    description: Work\n    machines:\n      web: {type: lxc, image: busybox}\nnetwork_policies:\n  - {from: pro, to: host, ports: [53], protocol: udp}\n",
    );
    let json = place.run(&["check", "--json"]).ok().json();
    assert_eq!(json["ok"], json!(true));
    assert_eq!(json["project"], json!("lab"));
    assert_eq!(json["errors"], json!([]));
    let domain = json!({
        "subnet": "10.120.0.0/24", "gateway": "10.120.0.254", "bridge": "il-pro", "trust_level": "semi-trusted",
        "subnet6": "fd69:6c6f:740a:7800::/64", "gateway6": "fd69:6c6f:740a:7800::fe",
        "enabled": true, "ephemeral": json["domains"]["pro"]["ephemeral"], "description": "Work",
    });
    assert_eq!(json["domains"]["pro"], domain);
    let web = &json["machines"]["web"];
    assert_eq!((&web["domain"], &web["ip"], &web["type"]), (&json!("pro"), &json!("10.120.0.1"), &json!("lxc")));
    assert_eq!(web["ip6"], json!("fd69:6c6f:740a:7800::1"));
    assert!(web["image"].is_string() && web["limits"].is_object() && web["roles"].is_array(), "{web}");
    let policy = json!({
        "description": "", "from": "pro", "to": "host", "ports": [53], "protocol": "udp", "bidirectional": false,
    });
    assert_eq!(json["policies"], json!([policy]));
    // The unknown key `image` is no silence: it is an `ilot:` key in this layout.
    assert_eq!(json["warnings"][0]["path"], json!("domains.pro.machines.web.image"));
}

#[test]
fn json_of_errors_has_places() {
    let place = with("domains:\n  pro:\n    machines:\n      web: {type: lxcc}\n");
    let ran = place.run(&["check", "--json"]);
    assert_eq!(ran.code, 1);
    let json = ran.json();
    assert_eq!((&json["ok"], &json["domains"]), (&json!(false), &json!({})));
    let error = &json["errors"][0];
    assert_eq!((&error["file"], &error["line"], &error["column"]), (&json!("infra.yml"), &json!(6), &json!(19)));
    assert_eq!(error["path"], json!("domains.pro.machines.web.type"));
    assert!(error["help"].as_str().unwrap().contains("`lxc`"));
    assert_eq!(ran.err, "");
}

#[test]
fn the_file_is_named_or_found() {
    let place = Place::new();
    let none = place.run(&["check"]);
    assert_eq!(none.code, 1);
    insta::assert_snapshot!(none.shown());
    let text = format!("{HEAD}domains: {{pro: {{machines: {{web: {{type: lxc}}}}}}}}\n");
    place.write("sub/infra.yml", &text);
    for file in ["sub", "sub/infra.yml"] {
        place.run(&["check", "-f", file]).ok();
        place.run(&["-f", file, "check"]).ok();
    }
    assert_eq!(place.run(&["check", "-f", "absent.yml"]).code, 1);
}

#[test]
fn a_terminal_gets_colours_and_nothing_else_does() {
    let place = with("domains: {pro: {machines: {web: {type: lxcc}}}}\n");
    assert!(!place.run(&["check"]).err.contains('\x1b'));
    assert!(place.run(&["check", "--color", "always"]).err.contains('\x1b'));
    assert!(!place.run(&["check", "--color", "never"]).err.contains('\x1b'));
}

#[test]
fn every_example_is_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let Ok(entries) = fs::read_dir(&examples) else {
        println!("skipped: no examples in this tree");
        return;
    };
    let place = Place::new();
    let mut checked = 0;
    for entry in entries {
        let dir = entry.unwrap().path();
        if ilot_spec::find(&dir).is_some() {
            place.run(&["check", "-f", dir.to_str().unwrap()]).ok();
            checked += 1;
        }
    }
    println!("{checked} examples checked");
}
