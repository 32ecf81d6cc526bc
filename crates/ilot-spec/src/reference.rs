//! The reference page, `docs/infra.md`, against what the reader knows: every key with its type, default, version and an
//! example, and every example read.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::config::{CONFIG_KEYS, DEVICE_TYPES};
use crate::problem::{Role, SourceFile, Sources};
use crate::read::keys;
use crate::{HostFacts, Layout, Loaded};

const PAGE: &str = include_str!("../../../docs/infra.md");

/// The rows of the first table below a heading, cell by cell.
fn table(heading: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let section = PAGE.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let head = cells(lines.next().unwrap());
    (head, lines.skip(1).map(cells).collect())
}

fn plain(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// Every key of a table has a row, and each row is whole; the examples, by key.
fn examples(heading: &str, known: &[&str], not_there: &[&str]) -> Vec<(String, String)> {
    let (head, rows) = table(heading);
    let column = |name: &str| head.iter().position(|h| h == name).unwrap_or_else(|| panic!("{heading}: no {name}"));
    let (since, example) = (column("since"), column("example"));
    let mut found = Vec::new();
    for row in &rows {
        assert_eq!(row.len(), head.len(), "{heading}: {row:?}");
        let levels = |name: &str| ["project", "domain", "machine"].contains(&name);
        for (cell, name) in row.iter().zip(&head) {
            assert!(!cell.is_empty() || levels(name), "{heading}: {} has no {name}", row[0]);
        }
        assert!(row[since].split('.').all(|n| n.parse::<u32>().is_ok()), "{heading}: {row:?}");
        for key in row[0].split(", ").map(plain) {
            found.push((key.to_owned(), plain(&row[example]).to_owned()));
        }
    }
    for key in known.iter().filter(|key| !not_there.contains(key)) {
        assert!(found.iter().any(|(k, _)| k == key), "{heading}: no row for `{key}`");
    }
    found.retain(|(_, example)| example != "as there");
    assert!(!found.is_empty());
    found
}

/// A project in which `what` stands at a place: a template whose `HERE` it replaces.
fn load(template: &str, what: &str) -> Loaded {
    let text = template.replace("HERE", what);
    let host = HostFacts { cpus: 8, memory: 16 << 30, ..HostFacts::default() };
    crate::parse(&Sources::single("infra.yml", text), &host)
}

fn check(heading: &str, key: &str, loaded: &Loaded) {
    assert_eq!(loaded.errors, [], "{heading}: {key}");
    let unknown = loaded.warnings.iter().find(|w| w.message.contains("is not known"));
    assert!(unknown.is_none(), "{heading}: {key}: {unknown:?}");
}

/// Where the examples of a heading stand, the other keys that must be there, and those that are told elsewhere.
const PLACES: &[(&str, &str)] = &[
    (
        "## `global`",
        "project_name: t\nglobal:\n  HERE\ndomains: {pro: {subnet_id: 1, machines: {pro-web: {}}}, lab: {subnet_id: 2}}\n",
    ),
    ("### `addressing`", "project_name: t\nglobal:\n  addressing:\n    HERE\ndomains: {}\n"),
    ("### `resource_policy`", "project_name: t\nglobal:\n  resource_policy:\n    HERE\ndomains: {}\n"),
    ("## `domains`", "project_name: t\nglobal: {}\ndomains:\n  pro:\n    HERE\n"),
    (
        "## Machines",
        "project_name: t\nglobal: {}\ndomains:\n  lab: {}\n  pro:\n    subnet_id: 0\n    profiles: {small: {}}\n    machines:\n      pro-web:\n        HERE\n",
    ),
    (
        "### `config`",
        "project_name: t\nglobal: {}\nilot: {backend: incus}\ndomains:\n  pro:\n    machines:\n      pro-web:\n        config:\n          HERE\n",
    ),
    (
        "### `devices`",
        "project_name: t\nglobal: {}\ndomains:\n  pro:\n    machines:\n      pro-web:\n        devices:\n          HERE\n",
    ),
    (
        "## `shared_volumes`",
        "project_name: t\nglobal: {}\ndomains: {pro: {machines: {pro-web: {}}}}\nshared_volumes:\n  docs:\n    HERE\n",
    ),
];

#[test]
fn every_key_has_a_whole_row_and_an_example_that_loads() {
    let known = |heading: &str| match heading {
        "## `global`" => keys::GLOBAL,
        "### `addressing`" => keys::ADDRESSING,
        "### `resource_policy`" => keys::RESOURCES,
        "## `domains`" => keys::DOMAIN,
        "## Machines" => keys::MACHINE,
        "### `config`" => CONFIG_KEYS,
        "### `devices`" => DEVICE_TYPES,
        _ => keys::VOLUME,
    };
    for &(heading, template) in PLACES {
        for (key, example) in examples(heading, known(heading), &[]) {
            let mut template = template.to_owned();
            if heading == "## `shared_volumes`" && key != "consumers" {
                template = template.replace("    HERE", "    consumers: {pro: ro}\n    HERE");
            }
            check(heading, &key, &load(&template, &example));
        }
    }
}

#[test]
fn the_top_level_policies_and_blocks_have_them_too() {
    for (key, example) in examples("## Top level", keys::FILE, &[]) {
        let rest = [("project_name", "t"), ("global", "{}"), ("domains", "{pro: {}, lab: {}}")];
        let rest = rest.into_iter().filter(|(other, _)| *other != key);
        let rest: String = rest.map(|(key, value)| format!("{key}: {value}\n")).collect();
        check("top", &key, &load(&format!("{rest}HERE\n"), &example));
    }
    for (key, example) in examples("## `network_policies`", keys::POLICY, &[]) {
        let rest = [("from", "pro"), ("to", "lab"), ("ports", "[80]")].into_iter().filter(|(other, _)| *other != key);
        let rest: Vec<String> = rest.map(|(key, value)| format!("{key}: {value}")).collect();
        let template =
            "project_name: t\nglobal: {}\ndomains: {pro: {}, lab: {}}\nnetwork_policies:\n  - {REST, HERE}\n";
        check("policies", &key, &load(&template.replace("REST", &rest.join(", ")), &example));
    }
    let all: Vec<&str> = [keys::ILOT_PROJECT, keys::ILOT_DOMAIN, keys::ILOT_MACHINE].concat();
    for (key, example) in examples("## The `ilot:` block", &all, &[]) {
        let machine = keys::ILOT_MACHINE.contains(&key.as_str());
        let template = if machine {
            "project_name: t\nglobal: {}\ndomains:\n  pro:\n    ephemeral: true\n    machines:\n      pro-web:\n        ilot:\n          HERE\n"
        } else {
            "project_name: t\nglobal: {}\ndomains: {pro: {machines: {pro-web: {}}}}\nilot:\n  HERE\n"
        };
        check("ilot", &key, &load(template, &example));
    }
}

#[test]
fn a_project_directory_has_them_too() {
    for (key, example) in examples("## Project directory", keys::PROJECT, &[]) {
        let file = |path: &str, role, text: String| SourceFile { path: path.into(), role, text };
        let sources = Sources {
            layout: Layout::ProjectDirectory,
            root: "lab".into(),
            directory: Some("lab".into()),
            files: vec![
                file("anklume.yml", Role::Main, format!("{example}\n")),
                file("domains/pro.yml", Role::Domains, "machines: {web: {}}\n".to_owned()),
            ],
            unreadable: Vec::new(),
        };
        let host = HostFacts { cpus: 8, memory: 16 << 30, ..HostFacts::default() };
        check("project", &key, &crate::parse(&sources, &host));
    }
}

#[test]
fn every_block_of_the_page_is_read() {
    let first = PAGE.split("```yaml\n").nth(1).and_then(|t| t.split("```").next()).unwrap();
    let loaded = crate::parse(&Sources::single("infra.yml", first), &HostFacts::default());
    assert_eq!((loaded.errors, loaded.warnings), (Vec::new(), Vec::new()));
    for block in PAGE.split("```yaml\n").skip(1).filter_map(|t| t.split("```").next()) {
        let parsed = crate::yaml::parse(block, 0);
        assert!(parsed.errors.is_empty(), "{:?} in\n{block}", parsed.errors);
    }
}

/// Every key that the reader knows stands in a file of the corpus that loads.
#[test]
fn every_key_is_in_the_corpus() {
    fn texts(dir: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                texts(&path, all);
            } else if path.extension().is_some_and(|e| e == "yml") {
                all.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    texts(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/good"), &mut text);
    let stands = |key: &str| {
        text.match_indices(&format!("{key}:"))
            .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')))
    };
    let device_options = DEVICE_TYPES.iter().flat_map(|kind| crate::config::device_options(kind).unwrap());
    let lists = [
        keys::FILE,
        keys::PROJECT,
        keys::GLOBAL,
        keys::ADDRESSING,
        keys::RESOURCES,
        keys::DOMAIN,
        keys::PROFILE,
        keys::MACHINE,
        keys::PERSISTENT,
        keys::SERVICE,
        keys::POLICY,
        keys::VOLUME,
        keys::ILOT_PROJECT,
        keys::ILOT_DOMAIN,
        keys::ILOT_MACHINE,
        keys::HEALTH,
        CONFIG_KEYS,
        crate::config::INCUS_KEYS,
    ];
    let missing: Vec<&&str> = lists.into_iter().flatten().chain(device_options).filter(|key| !stands(key)).collect();
    assert!(missing.is_empty(), "in no good file of the corpus: {missing:?}");
    for kind in DEVICE_TYPES.iter().chain(crate::config::INCUS_DEVICE_TYPES) {
        assert!(text.contains(&format!("type: {kind}")), "{kind}");
    }
}
