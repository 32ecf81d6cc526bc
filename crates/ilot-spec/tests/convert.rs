//! From each layout to each other: the same project, every comment kept.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

mod generator;

use std::path::{Path, PathBuf};

use generator::{project, seeds, write};
use ilot_spec::{ConvertError, Converted, HostFacts, Layout, Role, SourceFile, Sources, convert};
use proptest::prelude::*;

fn host() -> HostFacts {
    HostFacts { cpus: 8, memory: 16 << 30, ..HostFacts::default() }
}

fn single(text: &str) -> Sources {
    Sources::single("infra.yml", text)
}

fn to(sources: &Sources, layout: Layout) -> Converted {
    convert(sources, &host(), layout).unwrap_or_else(|error| panic!("{error}: {}", sources.files[0].text))
}

/// The result as it would be read from the disk.
fn sources(converted: &Converted, layout: Layout) -> Sources {
    let role = |path: &Path| match path.file_name().unwrap().to_str().unwrap() {
        _ if path.parent().is_some_and(|dir| dir.ends_with("domains")) => Role::Domains,
        "policies.yml" => Role::Policies,
        "ilot.yml" => Role::Ilot,
        _ => Role::Main,
    };
    let file =
        |(path, text): &(PathBuf, String)| SourceFile { path: path.clone(), role: role(path), text: text.clone() };
    let mut files: Vec<SourceFile> = converted.files.iter().map(file).collect();
    files[1..].sort_by_key(|file| (file.role as u8, file.path.clone()));
    Sources { layout, root: "x".into(), directory: Some("x".into()), files, unreadable: Vec::new() }
}

fn shown(converted: &Converted) -> String {
    let files: Vec<String> =
        converted.files.iter().map(|(path, text)| format!("=== {}\n{text}", path.display())).collect();
    format!("{}notes: {:?}\n", files.concat(), converted.notes)
}

const SINGLE: &str = "\
# The lab.

project_name: lab
x-small: &small {limits.memory: 256MiB}  # small ones
# settings
global:  # all
  addressing:
    base_octet: 10  # fixed
    zone_base: 90
  default_os_image: busybox  # tiny
  gpu_policy: shared
# the islands
domains:
  # work
  pro:  # p
    machines:
      # the server
      pro-web:
        config: *small  # little
        roles: &roles [web]
      pro-db: {roles: *roles}
    # end of pro
  lab: {trust_level: trusted, machines: {lab-a: {config: {<<: *small, limits.processes: 5}}}}
  none:
# walls
network_policies:
  # why
  - {from: pro, to: pro-web, ports: [80]}
  - {from: lab, to: pro-db, ports: [5432]}  # data
ilot: {restart: always}
# the end
";

#[test]
fn single_to_split() {
    insta::assert_snapshot!(shown(&to(&single(SINGLE), Layout::SplitDirectory)));
}

#[test]
fn single_to_project() {
    insta::assert_snapshot!(shown(&to(&single(SINGLE), Layout::ProjectDirectory)));
}

#[test]
fn there_and_back() {
    for layout in [Layout::SplitDirectory, Layout::ProjectDirectory] {
        let there = to(&single(SINGLE), layout);
        let back = to(&sources(&there, layout), Layout::SingleFile);
        if layout == Layout::ProjectDirectory {
            insta::assert_snapshot!(shown(&back));
        }
        for comment in SINGLE.lines().filter_map(|line| line.find("# ").map(|at| &line[at..])) {
            // What stood at a key that this layout does not have.
            let count = back.files[0].1.matches(&format!("{comment}\n")).count();
            assert_eq!(count, 1, "{comment} of {}", back.files[0].1);
        }
    }
}

#[test]
fn project_to_single_writes_defaults_out() {
    let file = |path: &str, role, text: &str| SourceFile { path: path.into(), role, text: text.into() };
    let from = Sources {
        layout: Layout::ProjectDirectory,
        root: "x".into(),
        directory: Some("my lab".into()),
        files: vec![
            file(
                "anklume.yml",
                Role::Main,
                "schema_version: 1  # first\ndefaults: {trust_level: untrusted, os_image: busybox}\naddressing: {base: \"10.60\"}\nnesting: {prefix: false}\nai_access_policy: exclusive\nrequires_anklume: \">=2\"  # new\nx-a: &a {weight: 2}\n",
            ),
            file(
                "domains/ai-tools.yml",
                Role::Domains,
                "# ai\ntrust_level: trusted\nmachines: {gpu: {weight: &a 3}}\n# bye\n",
            ),
            file("domains/empty.yml", Role::Domains, "{}\n"),
            file("domains/pro.yml", Role::Domains, "machines:\n  dev: {weight: &a 5, boot_priority: *a}\n"),
            file("policies.yml", Role::Policies, "# walls\npolicies:\n  - {from: pro, to: ai-tools, ports: [1]}\n"),
            file("ilot.yml", Role::Ilot, "machines: {pro-dev: {restart: always}}  # x\n"),
        ],
        unreadable: Vec::new(),
    };
    insta::assert_snapshot!(shown(&to(&from, Layout::SingleFile)));
    to(&from, Layout::SplitDirectory);
}

#[test]
fn anchors_of_several_files_stay_apart() {
    let file = |path: &str, role, text: &str| SourceFile { path: path.into(), role, text: text.into() };
    let from = Sources {
        layout: Layout::SplitDirectory,
        root: "x".into(),
        directory: None,
        files: vec![
            file("base.yml", Role::Main, "project_name: t\nglobal: {}\nx-a: &a {weight: 2}\n"),
            file(
                "domains/a.yml",
                Role::Domains,
                "x-a: &a {weight: 3}\na: {machines: {one: *a}}\nb: {machines: {two: {<<: *a, gpu: true}}}\n",
            ),
            file("domains/c.yml", Role::Domains, "c: {machines: {three: &a {weight: 4}, four: *a}}\n"),
        ],
        unreadable: Vec::new(),
    };
    insta::assert_snapshot!(shown(&to(&from, Layout::SingleFile)));
    assert_eq!(
        convert(&from, &host(), Layout::ProjectDirectory).unwrap_err(),
        ConvertError::Names(["one", "two", "three", "four"].map(str::to_owned).into())
    );
}

#[test]
fn what_has_no_place_is_refused() {
    let refused = |text: &str, layout| convert(&single(text), &host(), layout).unwrap_err();
    let head = "project_name: t\nglobal: {}\ndomains: ";
    assert_eq!(refused("project_name: t\n", Layout::SplitDirectory), ConvertError::Invalid(2));
    assert_eq!(refused(&format!("{head}{{}}\n"), Layout::SingleFile), ConvertError::Same);
    let names = refused(&format!("{head}{{pro: {{machines: {{web: {{}}, pro-: {{}}}}}}}}\n"), Layout::ProjectDirectory);
    assert!(matches!(names, ConvertError::Invalid(_)), "{names}");
    let names =
        refused(&format!("{head}{{pro: {{machines: {{web: {{}}, pro-a: {{}}}}}}}}\n"), Layout::ProjectDirectory);
    assert_eq!(names, ConvertError::Names(vec!["web".into()]));
    let old = "project_name: t\nglobal: {base_subnet: \"10.100\"}\ndomains: {pro: {subnet_id: 1}}\n";
    assert!(matches!(refused(old, Layout::ProjectDirectory), ConvertError::NoPlace(_)));
    to(&single(old), Layout::SplitDirectory);
    let merged = "project_name: t\nx-g: &g {gpu_policy: shared}\nglobal: {<<: *g}\ndomains: {}\n";
    assert!(matches!(refused(merged, Layout::ProjectDirectory), ConvertError::Unsupported { .. }));
    to(&single(merged), Layout::SplitDirectory);
}

#[test]
fn the_examples_and_the_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut done, mut refused) = (0, 0);
    for dir in ["tests/corpus/good", "../../examples"] {
        for entry in std::fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "yml") && ilot_spec::find(&path).is_none() {
                continue;
            }
            let from = ilot_spec::read(&path);
            for layout in [Layout::SingleFile, Layout::SplitDirectory, Layout::ProjectDirectory] {
                match convert(&from, &host(), layout) {
                    Ok(_) => done += 1,
                    Err(error @ ConvertError::Meaning(_)) => panic!("{} to {layout:?}: {error}", path.display()),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    println!("{done} converted, {refused} refused");
    assert!(done > 80, "{done} {refused}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn comments_and_meaning_survive((seed, how, _) in seeds()) {
        let (text, comments) = write(&project(seed), how);
        let from = single(&text);
        for layout in [Layout::SplitDirectory, Layout::ProjectDirectory] {
            let there = convert(&from, &host(), layout);
            let there = there.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            let middle = sources(&there, layout);
            let back = convert(&middle, &host(), Layout::SingleFile);
            let back = back.map_err(|error| TestCaseError::fail(format!("{error}\n{}", shown(&there))))?;
            for result in [&there, &back] {
                let all: String = result.files.iter().map(|(_, text)| text.as_str()).collect();
                for comment in &comments {
                    prop_assert_eq!(all.matches(&format!("{comment}\n")).count(), 1, "{} of\n{}\n{}", comment, text, all);
                }
                // The printed files are in the one usual way already.
            }
            for (sources, layout) in [(&middle, layout), (&sources(&back, Layout::SingleFile), Layout::SingleFile)] {
                for file in ilot_spec::format(sources, &host()).unwrap() {
                    prop_assert!(!file.changed(), "{:?} {}\n{}\n=====\n{}", layout, file.path.display(), file.before, file.after);
                }
            }
        }
    }
}
