//! Finding and reading projects on a real file system.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use ilot_spec::{HostFacts, Layout, Role};

fn write(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

const SINGLE: &[u8] = b"project_name: t\nglobal: {}\ndomains: {pro: {machines: {pro-dev: {}}}}\n";

#[test]
fn find_prefers_the_single_file() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(ilot_spec::find(dir.path()), None);
    write(dir.path(), &[("anklume.yml", b"schema_version: 1\n")]);
    assert_eq!(ilot_spec::find(dir.path()), Some(dir.path().join("anklume.yml")));
    write(dir.path(), &[("infra/notes.txt", b"")]);
    assert_eq!(ilot_spec::find(dir.path()), Some(dir.path().join("anklume.yml")), "`infra/` without a base.yml");
    write(dir.path(), &[("infra/base.yml", SINGLE)]);
    assert_eq!(ilot_spec::find(dir.path()), Some(dir.path().join("infra")));
    write(dir.path(), &[("infra.yml", SINGLE)]);
    assert_eq!(ilot_spec::find(dir.path()), Some(dir.path().join("infra.yml")));
}

#[test]
fn three_layouts_one_model() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("one/infra.yml", SINGLE),
            ("two/infra/base.yml", b"project_name: t\nglobal: {}\n"),
            ("two/infra/domains/pro.yml", b"pro: {machines: {pro-dev: {}}}\n"),
            ("three/anklume.yml", b"schema_version: 1\nproject_name: t\n"),
            ("three/domains/pro.yml", b"machines: {dev: {}}\n"),
        ],
    );
    let mut seen = Vec::new();
    for (name, layout) in [
        ("one/infra.yml", Layout::SingleFile),
        ("one", Layout::SingleFile),
        ("two/infra", Layout::SplitDirectory),
        ("two/infra/base.yml", Layout::SplitDirectory),
        ("two", Layout::SplitDirectory),
        ("three", Layout::ProjectDirectory),
        ("three/anklume.yml", Layout::ProjectDirectory),
    ] {
        let path = dir.path().join(name);
        let loaded = ilot_spec::load(&path, &HostFacts::default());
        assert_eq!(loaded.errors, [], "{name}");
        let project = loaded.project.unwrap();
        assert_eq!((project.layout, &project.source), (layout, &path), "{name}");
        assert_eq!(loaded.sources.files[0].role, Role::Main);
        let domain = &project.domains["pro"];
        let machine = &domain.machines[0];
        seen.push((project.name, domain.subnet, machine.name.clone(), machine.ip, project.global));
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]), "{seen:?}");
}

#[test]
fn positions_name_files_as_the_user_did() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("p/anklume.yml", b"schema_version: 1\n"), ("p/domains/pro.yml", b"enabled: 1\n")]);
    let loaded = ilot_spec::load(&dir.path().join("p/./"), &HostFacts::default());
    let at = loaded.errors[0].at.clone().unwrap();
    assert_eq!(at.file, dir.path().join("p/./").join("domains/pro.yml"));
    assert_eq!((at.line, at.column), (1, 10));
    assert_eq!(loaded.sources.line(&at), Some("enabled: 1"));
}

#[test]
fn a_project_directory_is_called_after_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("my-lab/anklume.yml", b"schema_version: 1\n")]);
    let loaded = ilot_spec::load(&dir.path().join("my-lab"), &HostFacts::default());
    assert_eq!(loaded.project.unwrap().name, "my-lab");
}

#[test]
fn unreadable_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let host = HostFacts::default();
    let message = |path: PathBuf| {
        let loaded = ilot_spec::load(&path, &host);
        assert!(loaded.project.is_none());
        assert_eq!(loaded.errors.len(), 1, "{:?}", loaded.errors);
        assert!(loaded.errors[0].help.is_some());
        loaded.errors[0].message.clone()
    };
    assert!(message(dir.path().join("none.yml")).contains("no such file"));
    assert!(message(dir.path().to_path_buf()).contains("no project in"));
    write(dir.path(), &[("latin.yml", b"project_name: \xe9\n"), ("wide.yml", b"\xff\xfea\0")]);
    assert!(message(dir.path().join("latin.yml")).contains("not UTF-8 (byte 15 on line 1)"));
    assert!(message(dir.path().join("wide.yml")).contains("not UTF-8"));
    fs::write(dir.path().join("big.yml"), vec![b'#'; (4 << 20) + 1]).unwrap();
    assert!(message(dir.path().join("big.yml")).contains("larger than 4 MiB"));
    fs::create_dir(dir.path().join("ilot.yml")).unwrap();
    fs::write(dir.path().join("ok.yml"), SINGLE).unwrap();
    assert!(message(dir.path().join("ok.yml")).contains("it is a directory"));
}

#[test]
fn a_link_to_nowhere_is_told() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("anklume.yml", b"schema_version: 1\n")]);
    std::os::unix::fs::symlink("/nonexistent/x", dir.path().join("policies.yml")).unwrap();
    let loaded = ilot_spec::load(dir.path(), &HostFacts::default());
    assert!(loaded.errors[0].message.contains("policies.yml` cannot be read"), "{:?}", loaded.errors);
}

#[test]
fn byte_order_mark_and_line_ends() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\u{feff}project_name: t\r\nglobal: {}\r\ndomains:\r\n  pro: {enabled: 1}\r\n";
    write(dir.path(), &[("infra.yml", text.as_bytes())]);
    let loaded = ilot_spec::load(&dir.path().join("infra.yml"), &HostFacts::default());
    let at = loaded.errors[0].at.clone().unwrap();
    assert_eq!((at.line, at.column), (4, 18));
    assert_eq!(loaded.sources.line(&at), Some("  pro: {enabled: 1}"));
    let first = ilot_spec::parse(&ilot_spec::Sources::single("x.yml", "\u{feff}a: 1\n"), &HostFacts::default());
    let warning = first.warnings.iter().find(|w| w.message.contains("`a`")).unwrap();
    assert_eq!(warning.at.as_ref().unwrap().column, 1);
}

#[test]
fn a_subnet_of_the_host_is_refused() {
    let host = HostFacts {
        subnets: vec![("eth0".into(), "10.120.0.0/16".parse().unwrap()), ("lo".into(), "127.0.0.0/8".parse().unwrap())],
        ..HostFacts::default()
    };
    let text = "project_name: t\nglobal: {}\ndomains:\n  a: {subnet_id: 4}\n  b: {trust_level: admin}\n  c: {enabled: false}\n";
    let loaded = ilot_spec::parse(&ilot_spec::Sources::single("x.yml", text), &host);
    assert_eq!(loaded.errors.len(), 1, "{:?}", loaded.errors);
    let error = &loaded.errors[0];
    assert_eq!(error.message, "the subnet 10.120.4.0/24 of the domain `a` overlaps 10.120.0.0/16 on `eth0`");
    assert_eq!(error.path, "domains.a.subnet_id");
    let at = error.at.as_ref().unwrap();
    assert_eq!((at.line, at.column), (4, 18));
}

#[test]
fn lookups() {
    let text = "project_name: t\nglobal: {}\ndomains: {a: {machines: {m: {}}}, b: {}}\nnetwork_policies:\n  - {from: m, to: b, ports: all}\n  - {from: host, to: internet, ports: all}\n";
    let loaded = ilot_spec::parse(&ilot_spec::Sources::single("x.yml", text), &HostFacts::default());
    let project = loaded.project.unwrap();
    let index = project.index();
    let net = |side: &ilot_spec::Endpoint| index.network_of(side).map(|n| n.to_string());
    assert_eq!(net(&project.policies[0].from).as_deref(), Some("10.120.0.1/32"));
    assert_eq!(net(&project.policies[0].to).as_deref(), Some("10.120.1.0/24"));
    assert_eq!(net(&project.policies[1].from), None);
    assert_eq!(index.side(&project.policies[1].to), Some(ilot_spec::Side::Internet));
    assert_eq!(index.machine_at("10.120.0.1".parse().unwrap()).unwrap().name.as_str(), "m");
    assert!(project.machine("m").is_some() && project.machine("x").is_none());
    assert_eq!(project.domain("b").unwrap().subnet.to_string(), "10.120.1.0/24");
}
