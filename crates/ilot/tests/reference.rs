//! `docs/cli.md` says what the program says.

mod common;

use std::fs;
use std::path::Path;

use common::Place;

#[test]
fn the_page_is_what_the_definition_gives() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let generated = Place::new().run(&["cli-reference"]).ok().out;
    assert_eq!(generated, ilot::reference::markdown());
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == generated,
        "docs/cli.md is out of date; update it with `cargo run -p ilot -- cli-reference > docs/cli.md`"
    );
}

#[test]
fn every_command_has_an_example_or_is_plain() {
    // Those whose usage says it all.
    let plain = ["restart", "pause", "resume"];
    for command in
        ilot::cli::command().get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        let has = command.get_after_help().is_some_and(|help| help.to_string().contains("Examples:"));
        // A group's examples are those of its commands.
        let is_plain = plain.contains(&command.get_name()) || command.has_subcommands();
        assert!(has || is_plain, "{}", command.get_name());
        assert!(command.get_about().is_some());
    }
}
