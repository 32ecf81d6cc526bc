//! Every effective value names the line, the profile, the default or the rule that it comes from.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::collections::BTreeMap;
use std::fs;

use ilot_spec::{HostFacts, Loaded, Nesting, Origin, Sources, explain};

/// `key` → `origin line:column`.
fn origins(loaded: &Loaded, machine: &str) -> BTreeMap<String, String> {
    assert_eq!(loaded.errors, []);
    explain(loaded, machine)
        .unwrap()
        .into_iter()
        .map(|row| {
            let text = match row.origin {
                Origin::Machine { at } => format!("machine {}:{}", at.line, at.column),
                Origin::Profile { name, at } => format!("profile {name} {}:{}", at.line, at.column),
                Origin::Domain { at } => format!("domain {}:{}", at.line, at.column),
                Origin::Project { at } => format!("project {}:{}", at.line, at.column),
                Origin::Default => "default".into(),
                Origin::Computed { rule, at: None } => rule,
                Origin::Computed { rule, at: Some(at) } => format!("{rule} {}:{}", at.line, at.column),
            };
            (row.key, text)
        })
        .collect()
}

const TEXT: &str = "\
project_name: t
global:
  default_os_image: images:debian/12
  resource_policy: true
domains:
  pro:
    ephemeral: true
    profiles:
      small: {config: {limits.memory: 1GiB, limits.processes: 5}}
    ilot: {isolation: enhanced}
    machines:
      a:
        ip: 10.120.0.7
        profiles: [small]
        config: {limits.processes: 9}
        ilot: {kind: dev}
      b: {}
ilot: {restart: always}
";

#[test]
fn each_origin() {
    let host = HostFacts { cpus: 4, memory: 8 << 30, ..HostFacts::default() };
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", TEXT), &host);
    let a = origins(&loaded, "a");
    for (key, origin) in [
        ("ip", "machine 13:13"),
        ("image", "project 3:21"),
        ("ephemeral", "domain 7:16"),
        ("profiles", "machine 14:19"),
        ("config.limits.memory", "profile small 9:39"),
        ("config.limits.processes", "machine 15:36"),
        ("limits.cpu.allowance", "the share of weight 1 by `resource_policy` 4:20"),
        ("limits.memory.enforce", "by `resource_policy` 4:20"),
        ("subnet", "the lowest free number of the semi-trusted zone, in the order of names"),
        ("trust_level", "default"),
        ("weight", "default"),
        ("ilot.kind", "machine 16:22"),
        ("ilot.isolation", "domain 10:23"),
        ("ilot.restart", "project 18:17"),
        ("ilot.backend", "default"),
    ] {
        assert_eq!(a[key], origin, "{key}");
    }
    assert!(!a.contains_key("limits.memory"), "its own limit stands under `config`");
    let b = origins(&loaded, "b");
    assert_eq!(b["ip"], "the lowest free host from .1, in the order of the file");
    assert_eq!(b["limits.memory"], "the share of weight 1 by `resource_policy` 4:20");
    assert_eq!(explain(&loaded, "c"), None);
}

#[test]
fn values_are_those_of_the_model() {
    let host = HostFacts { cpus: 4, memory: 8 << 30, ..HostFacts::default() };
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", TEXT), &host);
    let rows = explain(&loaded, "a").unwrap();
    let value = |key: &str| rows.iter().find(|r| r.key == key).unwrap().value.clone();
    assert_eq!(value("ip"), "10.120.0.7");
    assert_eq!(value("config.limits.processes"), "9");
    assert_eq!(value("ephemeral"), true);
    assert_eq!(value("image"), "images:debian/12");
}

#[test]
fn project_directory_and_nesting_prefix() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("domains")).unwrap();
    fs::write(dir.path().join("anklume.yml"), "project_name: t\ndefaults: {trust_level: trusted}\n").unwrap();
    fs::write(dir.path().join("domains/pro.yml"), "machines:\n  dev:\n    weight: 2\n").unwrap();
    fs::write(dir.path().join("ilot.yml"), "machines: {pro-dev: {image: busybox}}\n").unwrap();
    let host = HostFacts {
        nesting: Some(Nesting { absolute_level: 1, relative_level: 1, vm_nested: false }),
        ..HostFacts::default()
    };
    let loaded = ilot_spec::load(dir.path(), &host);
    for name in ["pro-dev", "001-pro-dev"] {
        let rows = origins(&loaded, name);
        assert_eq!(rows["weight"], "machine 3:13");
        assert_eq!(rows["image"], "machine 1:29");
        assert_eq!(rows["trust_level"], "project 2:25");
    }
}

#[test]
fn the_added_firewall() {
    let text = "project_name: t\nglobal: {firewall_mode: vm}\ndomains: {anklume: {}}\n";
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", text), &HostFacts::default());
    let rows = origins(&loaded, "anklume-firewall");
    for key in ["ip", "type", "ephemeral", "config.limits.cpu"] {
        assert_eq!(rows[key], "added by `firewall_mode: vm` 2:25", "{key}");
    }
}
