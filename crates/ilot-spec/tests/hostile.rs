//! Files made to hurt: each is refused (or read) in a bounded time and memory.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::time::{Duration, Instant};

use ilot_spec::{HostFacts, Loaded, Sources};

/// Generous for a slow build on a busy machine; what is quadratic takes minutes.
const LIMIT: Duration = Duration::from_secs(20);

fn parse(text: &str) -> Loaded {
    let start = Instant::now();
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", text), &HostFacts::default());
    assert!(start.elapsed() < LIMIT, "took {:?}", start.elapsed());
    loaded
}

fn refused(text: &str, reason: &str) {
    let loaded = parse(text);
    assert!(loaded.project.is_none());
    assert!(loaded.errors.iter().any(|e| e.message.contains(reason)), "{:?}", loaded.errors.first());
}

#[test]
fn billion_laughs() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        text += &format!("a{i}: &a{i} [{aliases}]\n");
    }
    refused(&text, "expands to more than 250000 values");
}

#[test]
fn billion_merges() {
    let mut text = String::from("a0: &a0 {k: v}\n");
    for i in 1..40 {
        text += &format!("a{i}: &a{i} {{<<: [*a{0}, *a{0}], k{i}: {{<<: *a{0}, x: *a{0}}}}}\n", i - 1);
    }
    refused(&text, "expands to more than");
}

#[test]
fn deep_in_every_style() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
        (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>(),
        "? ".repeat(50_000),
    ] {
        let loaded = parse(&text);
        assert!(loaded.project.is_none() && !loaded.errors.is_empty());
    }
    let mut nested = String::from("x0: &x0 [a]\n");
    for i in 1..80 {
        nested += &format!("x{i}: &x{i} [*x{}]\n", i - 1);
    }
    refused(&nested, "nests deeper than 64 levels");
}

#[test]
fn long_lines_and_many_keys() {
    refused(
        &format!("project_name: {}\nglobal: {{}}\ndomains: {{}}\n", "a".repeat(1 << 20)),
        "cannot be a project's name",
    );
    let keys: String = (0..60_000).map(|i| format!("k{i}: 1\n")).collect();
    let loaded = parse(&keys);
    assert!(loaded.errors.len() == 3 && loaded.warnings.len() == 60_000);
    let twice: String = (0..60_000).map(|i| format!("k{}: 1\n", i / 2)).collect();
    assert!(parse(&twice).errors.len() >= 30_000);
}

#[test]
fn many_errors_about_names() {
    let mut text = String::from("project_name: t\nglobal: {}\ndomains:\n");
    for d in 0..200 {
        text += &format!("  d{d}:\n    trust_level: {}\n    machines:\n", ["admin", "trusted"][d % 2]);
        for m in 0..20 {
            text += &format!("      d{d}-m{m}: {{profiles: [p{m}]}}\n");
        }
    }
    text += "network_policies:\n";
    for i in 0..10_000 {
        text += &format!("  - {{from: d{i}-x, to: d{i}-y, ports: [80]}}\n");
    }
    assert_eq!(parse(&text).errors.len(), 4000 + 20_000);
}

#[test]
fn a_thousand_machines() {
    let mut text = String::from("project_name: t\nglobal: {}\ndomains:\n");
    for d in 0..100 {
        text += &format!("  d{d:02}:\n    trust_level: trusted\n    machines:\n");
        for m in 0..10 {
            text += &format!("      d{d:02}-m{m}: {{config: {{limits.memory: 64MiB}}, roles: [base_system]}}\n");
        }
    }
    let loaded = parse(&text);
    assert_eq!(loaded.errors, []);
    assert_eq!(loaded.project.unwrap().enabled_machines().count(), 1000);
}
