//! However a project is written down, it means the same, and formatting it changes neither that nor its comments.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails may panic")]

mod generator;

use generator::{project, seeds, write};
use ilot_spec::{FormatError, HostFacts, Project, Sources, format, same_model};
use proptest::prelude::*;

fn host() -> HostFacts {
    HostFacts { cpus: 8, memory: 16 << 30, ..HostFacts::default() }
}

fn load(text: &str) -> Result<Project, TestCaseError> {
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", text), &host());
    prop_assert!(loaded.errors.is_empty(), "{:#?}\n{text}", loaded.errors);
    Ok(loaded.project.unwrap())
}

/// Without the text of limits, which are there as numbers too.
fn without_spelling(mut project: Project) -> Project {
    for domain in project.domains.values_mut() {
        for profile in domain.profiles.values_mut() {
            profile.config.retain(|key, _| !key.starts_with("limits."));
        }
        for machine in &mut domain.machines {
            machine.config.retain(|key, _| !key.starts_with("limits."));
        }
    }
    project
}

/// The beginning of a file in which a machine's variable comes next.
fn with_value() -> String {
    "project_name: t\nglobal: {}\ndomains:\n  a:\n    machines:\n      b:\n        vars:\n          c:".to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn order_comments_and_spelling_are_no_change((seed, one, other) in seeds()) {
        let tree = project(seed);
        let (one, other) = (write(&tree, one).0, write(&tree, other).0);
        let (a, b) = (without_spelling(load(&one)?), without_spelling(load(&other)?));
        prop_assert!(same_model(&a, &b), "{one}\n=====\n{other}\n{a:#?}\n=====\n{b:#?}");
    }

    #[test]
    fn formatting_keeps_meaning_and_comments((seed, how, _) in seeds()) {
        let (text, comments) = write(&project(seed), how);
        let before = load(&text)?;
        let once = format(&Sources::single("infra.yml", text.clone()), &host());
        let once = match once {
            Ok(files) => files[0].after.clone(),
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{text}"))),
        };
        prop_assert!(same_model(&before, &load(&once)?));
        let twice = format(&Sources::single("infra.yml", once.clone()), &host()).unwrap()[0].after.clone();
        prop_assert_eq!(&once, &twice, "{}", text);
        for comment in &comments {
            prop_assert_eq!(once.matches(&format!("{comment}\n")).count(), 1, "{} of\n{}\n====\n{}", comment, text, once);
        }
        let hashes = |text: &str| text.matches("# ").count();
        prop_assert_eq!(hashes(&once), hashes(&text));
        prop_assert!(!once.contains("\n\n\n") && !once.contains(" \n") && once.ends_with('\n'));
    }

    /// Odd values: what can be read is formatted without a change, what cannot is refused as invalid.
    #[test]
    fn odd_values_keep_their_meaning(
        soup in "([ ]{0,6}|\n {0,4}|\n|- |\\? |: |[a-z]{1,3}: |[a-z]{1,3}|\\{|\\}|\\[|\\]|, |&a |\\*a|<<: |\\|\n|>-\n|\\|\\+\n|\\|2\n|'|\"| # c\n|!!str |~|0|true|\t|é){0,24}",
    ) {
        let mut text = with_value();
        for line in soup.split('\n') {
            text.push_str(&format!("\n            {line}"));
        }
        match format(&Sources::single("infra.yml", text.clone()), &host()) {
            Err(FormatError::Invalid(_) | FormatError::Unsupported { .. }) => {}
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{text}"))),
            Ok(files) => {
                let once = files[0].after.clone();
                let twice = format(&Sources::single("infra.yml", once.clone()), &host());
                prop_assert_eq!(twice.map(|files| files[0].after.clone()), Ok(once), "{}", text);
            }
        }
    }

    #[test]
    fn damaged_files_are_refused_or_formatted(cut in 0_usize..9000, junk in "[ \\-:{}\\[\\]a\n\t\"'*&|>%@!#,?0]{0,4}") {
        for text in [include_str!("../../../examples/teacher-lab/infra.yml"), include_str!("corpus/good/anchors-and-merge.yml")] {
            let at = (0..=cut % text.len()).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
            let end = text.char_indices().map(|(i, _)| i).find(|&i| i >= at + 2).unwrap_or(text.len());
            let text = format!("{}{junk}{}", &text[..at], &text[end..]);
            if let Ok(files) = format(&Sources::single("infra.yml", text.clone()), &host()) {
                let once = files[0].after.clone();
                let twice = format(&Sources::single("infra.yml", once.clone()), &host());
                prop_assert_eq!(twice.map(|files| files[0].after.clone()), Ok(once), "{}", text);
            }
        }
    }
}
