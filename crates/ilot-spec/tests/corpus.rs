//! The corpus: every file under `corpus/bad` gives exactly the errors that it expects, every one under `corpus/good`
//! loads and means what the JSON beside it says.
//!
//! A bad file names its errors in comments at its end, `# expect: LINE:COLUMN TEXT`, or in a file `NAME.expect` beside
//! it; a directory in its file `expect`, with `FILE:` before the line, or `- TEXT` for an error without a place. Every
//! error must match one line, and every line one error. Warnings are checked for good files: `# warn: …`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ilot_spec::{HostFacts, Loaded, Nesting, Problem};

fn corpus(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind)
}

fn host() -> HostFacts {
    HostFacts { cpus: 8, memory: 16 << 30, subnets: Vec::new(), nesting: None }
}

/// The facts of a case's host: `# host: nested`, `# host: has 10.120.0.0/16 eth9` and the like.
fn facts(case: &Path) -> HostFacts {
    let mut host = host();
    let text = if case.is_file() { fs::read_to_string(case).unwrap() } else { String::new() };
    if text.contains("# host: nested") {
        host.nesting = Some(Nesting { absolute_level: 1, relative_level: 1, vm_nested: false });
    }
    if text.contains("# host: below a vm") {
        host.nesting = Some(Nesting { absolute_level: 2, relative_level: 1, vm_nested: true });
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("# host: has ")) {
        let (net, interface) = line.split_once(' ').unwrap();
        host.subnets.push((interface.to_owned(), net.parse().unwrap()));
    }
    if text.contains("# host: unknown") {
        host = HostFacts::default();
    }
    host
}

/// The cases of a directory: `*.yml` files and directories.
fn cases(kind: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(corpus(kind))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "yml"))
        .collect();
    paths.sort();
    paths
}

/// The file or directory of a case that a user would name.
fn target(case: &Path) -> PathBuf {
    if case.join("infra/base.yml").is_file() { case.join("infra") } else { case.to_path_buf() }
}

/// `(where, text)` of each expected problem.
fn expectations(case: &Path, word: &str) -> Vec<(String, String)> {
    let file = if case.is_dir() { case.join(word) } else { case.with_extension(word) };
    let lines: Vec<String> = if file.is_file() {
        fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    } else if case.is_file() {
        let prefix = format!("# {word}: ");
        let text = fs::read_to_string(case).unwrap();
        text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    lines
        .iter()
        .filter(|l| !l.trim().is_empty())
        .map(|line| {
            let (place, text) = line.split_once(' ').unwrap_or((line, ""));
            (place.to_owned(), text.to_owned())
        })
        .collect()
}

fn place(case: &Path, problem: &Problem) -> String {
    let Some(at) = &problem.at else { return "-".into() };
    let file = at.file.strip_prefix(case).unwrap_or(&at.file);
    if case.is_dir() {
        format!("{}:{}:{}", file.display(), at.line, at.column)
    } else {
        format!("{}:{}", at.line, at.column)
    }
}

/// What differs between the problems that came and those that were expected; empty when nothing does.
fn compare(case: &Path, problems: &[Problem], expected: &[(String, String)]) -> String {
    let mut left: Vec<&(String, String)> = expected.iter().collect();
    let mut report = String::new();
    for problem in problems {
        let place = place(case, problem);
        let message = problem.message.replace(&format!("{}/", case.display()), "");
        match left.iter().position(|(at, text)| *at == place && message.contains(text.as_str())) {
            Some(found) => drop(left.remove(found)),
            None => writeln!(report, "  unexpected: {place} {message}").unwrap(),
        }
        if problem.help.as_ref().is_none_or(String::is_empty) {
            writeln!(report, "  no cure: {place} {message}").unwrap();
        }
        if message.chars().next().is_some_and(char::is_uppercase) {
            writeln!(report, "  not lower case: {message}").unwrap();
        }
    }
    for (at, text) in left {
        writeln!(report, "  missing: {at} {text}").unwrap();
    }
    report
}

/// A column must lie on its line, or just behind it.
fn check_positions(loaded: &Loaded) -> String {
    let mut report = String::new();
    for problem in loaded.errors.iter().chain(&loaded.warnings) {
        let Some(at) = &problem.at else { continue };
        let line = loaded.sources.line(at).unwrap_or_default();
        if at.column as usize > line.chars().count() + 1 {
            writeln!(report, "  outside its line: {problem}").unwrap();
        }
    }
    report
}

#[test]
fn bad() {
    let cases = cases("bad");
    assert!(cases.len() >= 200, "only {} bad cases", cases.len());
    let mut failures = String::new();
    for case in &cases {
        let loaded = ilot_spec::load(&target(case), &facts(case));
        let expected = expectations(case, "expect");
        let mut report = compare(case, &loaded.errors, &expected);
        report += &check_positions(&loaded);
        if expected.is_empty() {
            report += "  the case expects no error\n";
        }
        if loaded.project.is_some() {
            report += "  there is a project in spite of the errors\n";
        }
        if !report.is_empty() {
            write!(failures, "{}\n{report}", case.file_name().unwrap().to_string_lossy()).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// What a project came to, without what is at its default.
fn summary(loaded: &Loaded) -> serde_json::Value {
    let mut value = serde_json::to_value(loaded.project.as_ref().unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("source");
    prune(&mut value);
    value
}

fn prune(value: &mut serde_json::Value) {
    use serde_json::Value;
    const DEFAULTS: &[(&str, &str)] = &[
        ("enabled", "true"),
        ("ephemeral", "false"),
        ("type", "\"lxc\""),
        ("gpu", "false"),
        ("weight", "1"),
        ("boot_autostart", "false"),
        ("boot_priority", "0"),
        ("backend", "\"native\""),
        ("isolation", "\"basic\""),
        ("preload", "0"),
        ("amnesic", "false"),
        ("ipv6", "true"),
        ("image", "\"images:debian/13\""),
        ("profiles", "[\"default\"]"),
        ("bidirectional", "false"),
        ("readonly", "false"),
        ("default_os_image", "\"images:debian/13\""),
        ("gpu_policy", "\"exclusive\""),
        ("firewall_mode", "\"host\""),
        ("ai_access_policy", "\"open\""),
        ("ai_vram_flush", "true"),
        ("nesting_prefix", "true"),
        ("shared_volumes_base", "\"/srv/anklume/shares\""),
        ("persistent_data_base", "\"/srv/anklume/data\""),
        ("trust_level", "\"semi-trusted\""),
    ];
    match value {
        Value::Object(map) => {
            let name = map.get("name").cloned();
            map.retain(|key, v| {
                prune(v);
                let empty = v.is_null()
                    || v.as_object().is_some_and(serde_json::Map::is_empty)
                    || v.as_array().is_some_and(Vec::is_empty)
                    || v.as_str() == Some("");
                let text = v.to_string();
                let default = DEFAULTS.iter().any(|(k, d)| k == key && text == *d);
                let repeated = key == "declared_name" && Some(&*v) == name.as_ref();
                !(empty || default || repeated || key == "at" || key == "domain" && name.is_some())
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[test]
fn good() {
    let cases = cases("good");
    assert!(cases.len() >= 40, "only {} good cases", cases.len());
    let bless = std::env::var_os("BLESS").is_some();
    let mut failures = String::new();
    for case in &cases {
        let loaded = ilot_spec::load(&target(case), &facts(case));
        let mut report = compare(case, &loaded.errors, &[]);
        report += &compare(case, &loaded.warnings, &expectations(case, "warn"));
        report += &check_positions(&loaded);
        if loaded.project.is_some() {
            let file = if case.is_dir() { case.join("expect.json") } else { case.with_extension("json") };
            let got = serde_json::to_string_pretty(&summary(&loaded)).unwrap() + "\n";
            if bless {
                fs::write(&file, &got).unwrap();
            }
            let want = fs::read_to_string(&file).unwrap_or_default();
            if got != want {
                let line = got.lines().zip(want.lines()).position(|(a, b)| a != b).unwrap_or(0);
                writeln!(
                    report,
                    "  differs from {} at line {}: got {:?}, want {:?} (write it anew with BLESS=1, then read it)",
                    file.display(),
                    line + 1,
                    got.lines().nth(line),
                    want.lines().nth(line)
                )
                .unwrap();
            }
        }
        if !report.is_empty() {
            write!(failures, "{}\n{report}", case.file_name().unwrap().to_string_lossy()).unwrap();
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn examples() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut found = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let example = entry.unwrap().path();
        if !example.join("infra.yml").is_file() {
            continue;
        }
        found += 1;
        let name = example.file_name().unwrap().to_string_lossy().into_owned();
        let small = HostFacts { cpus: 2, memory: 8 << 30, ..HostFacts::default() };
        let loaded = ilot_spec::load(&example, &small);
        assert_eq!(loaded.errors, [], "{name}");
        let project = loaded.project.unwrap();
        assert_eq!(project.name, name);
        let kernel = loaded.warnings.iter().filter(|w| w.message.contains("shares the host's kernel")).count();
        let wanted = if name == "sandbox-isolation" { 2 } else { 0 };
        assert_eq!((kernel, loaded.warnings.len()), (wanted, wanted), "{name}: {:?}", loaded.warnings);
        assert!(example.join("README.md").is_file(), "{name} has no README");
        if name == "teacher-lab" {
            assert_eq!((project.domains.len(), project.enabled_machines().count()), (31, 61));
            assert_eq!(project.policies.len(), 30);
            assert_eq!(project.machine("s17-web").unwrap().ip.unwrap().to_string(), "10.120.16.1");
            assert!(project.enabled_machines().all(|m| m.image == "busybox" && m.ephemeral));
        }
    }
    assert!(found >= 5, "only {found} examples");
}
