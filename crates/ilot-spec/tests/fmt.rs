//! Formatting: one way to write a file, every comment kept, nothing changed in meaning.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use ilot_spec::{FormatError, HostFacts, Sources, format};

fn host() -> HostFacts {
    HostFacts { cpus: 8, memory: 16 << 30, ..HostFacts::default() }
}

fn formatted(text: &str) -> String {
    let after = format(&Sources::single("infra.yml", text), &host()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let after = after[0].after.clone();
    let again = format(&Sources::single("infra.yml", after.clone()), &host()).unwrap()[0].after.clone();
    assert_eq!(after, again, "formatting twice gives something else");
    after
}

/// Every comment of a text, sorted.
fn comments(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let at = if line.starts_with('#') { Some(0) } else { line.find(" #").map(|at| at + 1) };
            at.map(|at| line[at..].trim_end().to_owned())
        })
        .collect();
    all.sort();
    all
}

/// Every project of a directory of the repository.
fn projects(dir: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut all: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "yml") || ilot_spec::find(p).is_some())
        .collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

#[test]
fn examples_and_corpus_keep_comments_and_meaning() {
    let mut count = 0;
    for path in [projects("tests/corpus/good"), projects("../../examples")].concat() {
        let sources = ilot_spec::read(&path);
        let files = match format(&sources, &host()) {
            Ok(files) => files,
            // Some cases need facts of a host that the corpus test gives them.
            Err(FormatError::Invalid(_)) => continue,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let mut after = sources.clone();
        for (file, new) in after.files.iter_mut().zip(&files) {
            assert_eq!(comments(&new.before), comments(&new.after), "{}\n{}", new.path.display(), new.after);
            file.text.clone_from(&new.after);
        }
        for new in format(&after, &host()).unwrap() {
            assert_eq!(new.before, new.after, "{}", new.path.display());
        }
        count += 1;
    }
    assert!(count > 20, "{count}");
}

const MESSY: &str = r#"# A lab.
# Two lines.

# about the settings
global:   {gpu_policy:   exclusive,addressing: {zone_step: 10,zone_base: 100}}   # all of it
project_name:    "lab"
x-common: &common   # shared
    boot_autostart: true


    weight: 2
domains:
    # the first
    pro:
        machines:
            # own
            pro-b:
                <<: *common
                ip: 10.110.0.9   # fixed
                description: >-
                    A text
                    over lines

                    and a paragraph
                type: lxc  # a container
            pro-a: {weight: 3,
                    # why
                    description: "second",
                    roles: [a,b]
                   }
            pro-c:
              # nothing yet
        # the end of pro

        trust_level: trusted
        profiles:
            default: {}
    old: {enabled: no}
network_policies:
- to: host
  from: pro
  # ports
  ports: [22,
          80]
- {from: pro, to: old, ports: [1], description: "a rather long description so that the line does not fit any more, whatever one does"}
# the end
"#;

#[test]
fn a_messy_file() {
    insta::assert_snapshot!(formatted(MESSY));
    assert_eq!(comments(MESSY), comments(&formatted(MESSY)));
}

fn with_machine(body: &str) -> String {
    format!("project_name: t\nglobal: {{}}\ndomains:\n  pro:\n    machines:\n      pro-a:\n{body}")
}

#[test]
fn corner_cases() {
    for (body, expected) in [
        // Texts over several lines keep their meaning and their blank lines.
        (
            "        description: |\n            a\n              b\n\n            c\n\n        weight: 2\n",
            "        description: |\n          a\n            b\n\n          c\n\n        weight: 2\n",
        ),
        (
            "        description: |+\n          a\n\n\n        weight: 2\n",
            "        description: |+\n          a\n\n\n        weight: 2\n",
        ),
        (
            "        weight: 2\n\n        description: |+\n          a\n",
            "        description: |+\n          a\n        weight: 2\n",
        ),
        (
            "        description: |4  # why\n                a\n             b\n        weight: 2\n",
            "        description: |2  # why\n              a\n           b\n        weight: 2\n",
        ),
        ("        description: |\n          a", "        description: |\n          a\n"),
        ("        description: \"a\n            b\"   # c\n", "        description: \"a\n          b\"  # c\n"),
        ("        description: a # b\n", "        description: a  # b\n"),
        ("        description: 'it''s # no comment'\n", "        description: 'it''s # no comment'\n"),
        ("        description: \"\\\" # no comment\"\n", "        description: \"\\\" # no comment\"\n"),
        ("        description: a#b\n", "        description: a#b\n"),
        ("        description:\n          # c\n          text\n", "        # c\n        description: text\n"),
        // Explicit keys, odd indentation, sequences at their key's column.
        ("        ? weight\n        : 2\n", "        weight: 2\n"),
        (
            "        roles:\n        - a\n        # c\n        -   b # d\n        # e\n",
            "        roles:\n          - a\n          # c\n          - b  # d\n        # e\n",
        ),
        ("        roles: [ 'a' , \"b\" ,]\n", "        roles: ['a', \"b\"]\n"),
        ("        roles: [] # none\n", "        roles: []  # none\n"),
        ("        roles: [ # x\n          ]\n", "        # x\n        roles: []\n"),
        ("        vars: {a, b: , c: [x: y]}\n", "        vars: {a: null, b: null, c: [{x: y}]}\n"),
        (
            "        vars:\n          l:\n          - - 1\n            - 2\n          -\n            # c\n            a: 1\n            b: 2\n          - &m\n            a: 1\n          - *m\n",
            "        vars:\n          l:\n            - - 1\n              - 2\n            -\n              # c\n              a: 1\n              b: 2\n            - &m\n              a: 1\n            - *m\n",
        ),
        // Anchors: an alias never comes before its anchor.
        (
            "        weight: &w 2\n        boot_priority: *w\n        description: x\n",
            "        description: x\n        weight: &w 2\n        boot_priority: *w\n",
        ),
        ("        boot_priority: &w 2\n        weight: *w\n", "        boot_priority: &w 2\n        weight: *w\n"),
        (
            "        &k weight : 2\n        description: !!str x\n        vars: {*k : 1}\n",
            "        description: !!str x\n        &k weight: 2\n        vars: {*k : 1}\n",
        ),
        // Keys that nobody knows go last, as they were.
        (
            "        zebra: 1\n        apple: 1\n        weight: 2\n",
            "        weight: 2\n        zebra: 1\n        apple: 1\n",
        ),
        ("        weight: 2   # x\n        gpu: false # yy\n", "        gpu: false  # yy\n        weight: 2   # x\n"),
        ("", ""),
    ] {
        let (text, expected) = (with_machine(body), with_machine(expected));
        assert_eq!(formatted(&text), expected, "{text}");
    }
}

#[test]
fn whole_files() {
    for (text, expected) in [
        ("{project_name: t, domains: {}, global: {}}", "{project_name: t, global: {}, domains: {}}\n"),
        (
            "%YAML 1.2\n# a\n---  # b\n# c\nproject_name: t\r\nglobal: {}\r\ndomains: {}\r\n...\n# d\n",
            "%YAML 1.2\n# a\n--- # b\n# c\nproject_name: t\nglobal: {}\ndomains: {}\n# d\n",
        ),
        (
            "# yaml-language-server: $schema=x\n# g\nglobal: {}\ndomains: {}\nproject_name: t\n",
            "# yaml-language-server: $schema=x\n\nproject_name: t\n# g\nglobal: {}\ndomains: {}\n",
        ),
        ("\n\n\nproject_name: t\n\n\n\nglobal: {}\ndomains: {}\n\n\n", "project_name: t\n\nglobal: {}\ndomains: {}\n"),
        (
            "project_name: t\nglobal: {}\ndomains:\n  # none\n\n\n# end\n",
            "project_name: t\nglobal: {}\ndomains:\n  # none\n\n# end\n",
        ),
    ] {
        assert_eq!(formatted(text), expected, "{text}");
    }
}

/// What the parser takes although it is no YAML, or means something only where it stands.
#[test]
fn what_cannot_be_moved_is_refused() {
    for body in
        ["        vars:\n          c: |+\n            ", "        vars:\n          c: [|\n            |\n            ]"]
    {
        let error = format(&Sources::single("infra.yml", with_machine(body)), &host()).unwrap_err();
        assert!(matches!(error, FormatError::Unsupported { line: 8 | 9, .. }), "{body:?}: {error:?}");
    }
}

#[test]
fn files_with_errors_are_refused() {
    let refused = |text: &str| format(&Sources::single("infra.yml", text), &host()).unwrap_err();
    assert_eq!(refused("project_name: t\n"), FormatError::Invalid(2));
    let error = refused("project_name: t\nglobal: {}\ndomains:\n  ? |\n    pro\n  : {}\n");
    assert!(matches!(error, FormatError::Invalid(_)), "{error}");
}
