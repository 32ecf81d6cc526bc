//! `ilot completions`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::Place;

#[test]
fn each_shell_accepts_its_script() {
    let place = Place::new();
    for (shell, program, args) in [("bash", "bash", ["-n"]), ("zsh", "zsh", ["-n"]), ("fish", "fish", ["-n"])] {
        let script = place.run(&["completions", shell]).ok().out;
        assert!(script.contains("ilot"), "{shell}");
        let Ok(mut child) = Command::new(program).args(args).stdin(Stdio::piped()).spawn() else {
            println!("skipped: `{program}` is not installed, so its script was not parsed");
            continue;
        };
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{shell}");
    }
}

#[test]
fn an_unknown_shell_is_wrong_usage() {
    assert_eq!(Place::new().run(&["completions", "tcsh"]).code, 2);
}
