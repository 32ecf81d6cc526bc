//! Any valid file: formatting keeps what it means and its comments, and doing it twice changes nothing.
//!
//! A text is a file, or a value deep in one: most random texts are no projects, but many are values.

#![no_main]

use ilot_spec::{FormatError, HostFacts, Sources, format};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &str)| {
    let text = if input.0 { input.1.to_owned() } else { value(input.1) };
    let host = HostFacts { cpus: 4, memory: 8 << 30, ..HostFacts::default() };
    let formatted = |text: &str| format(&Sources::single("infra.yml", text), &host).map(|mut files| files.remove(0).after);
    match formatted(&text) {
        Ok(once) => assert_eq!(formatted(&once).as_deref(), Ok(once.as_str()), "twice"),
        Err(error @ (FormatError::Meaning(_) | FormatError::Lost(_))) => panic!("{error}"),
        // What it cannot read it must at least not misread.
        Err(FormatError::Invalid(_) | FormatError::Unsupported { .. }) => {}
    }
});

/// A machine's variable, which may be anything.
fn value(text: &str) -> String {
    let mut file = "project_name: t\nglobal: {}\ndomains:\n  a:\n    machines:\n      b:\n        vars:\n          c:".to_owned();
    for line in text.split('\n') {
        file.push_str("\n            ");
        file.push_str(line);
    }
    file
}
