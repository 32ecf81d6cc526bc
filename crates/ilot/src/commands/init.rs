//! `ilot init`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use owo_colors::OwoColorize;
use serde_json::json;

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::table::Table;
use crate::ui;

/// An example of the repository, inside the program.
struct Example {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

impl Example {
    /// The first sentence of its README, for the list.
    fn about(&self) -> &'static str {
        let readme = self.files.iter().find(|(path, _)| *path == "README.md").map_or("", |(_, text)| text);
        readme
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with(['#', '!', '[', '<', '`']))
            .unwrap_or_default()
    }
}

include!(concat!(env!("OUT_DIR"), "/examples.rs"));

const TEMPLATE: &str = include_str!("../../templates/infra.yml");

/// Start a project: a commented file that applies as it is
///
/// Writes `infra.yml` into a directory, which is made when it is not there. No file is ever overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot init                                 infra.yml in this directory
  ilot init lab                             in a new directory
  ilot init lab --example teacher-lab       one of the examples
  ilot init --list                          which examples there are")]
pub(crate) struct Args {
    /// Where the project is made
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Start from this example instead (`--list` shows them)
    #[arg(long, value_name = "NAME")]
    example: Option<String>,

    /// List the examples
    #[arg(long, conflicts_with = "example")]
    list: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    if args.list {
        list(context);
        return Ok(0);
    }
    let files = match &args.example {
        None => &[("infra.yml", TEMPLATE)][..],
        Some(name) => find(name)?.files,
    };
    write_all(&args.dir, files)?;
    if context.json {
        let paths: Vec<_> = files.iter().map(|(path, _)| args.dir.join(path)).collect();
        ui::print_json(&json!({ "directory": args.dir, "files": paths }));
    } else if !context.quiet {
        for (path, _) in files {
            ui::print(&format!("{} {}", "made".green(), args.dir.join(path).display()));
        }
        let here = args.dir == Path::new(".");
        let cd = if here { String::new() } else { format!("cd {} && ", args.dir.display()) };
        ui::print(&format!("\nnext: {}", format!("{cd}ilot check && ilot apply").bold()));
    }
    Ok(0)
}

fn list(context: &Context) {
    if context.json {
        let examples: Vec<_> = EXAMPLES.iter().map(|e| json!({ "name": e.name, "description": e.about() })).collect();
        ui::print_json(&json!({ "examples": examples }));
        return;
    }
    let mut table = Table::default();
    for example in EXAMPLES {
        table.row([example.name, example.about()]);
    }
    ui::write_out(&table.render());
}

fn find(name: &str) -> Result<&'static Example, CommandError> {
    EXAMPLES.iter().find(|example| example.name == name).ok_or_else(|| {
        let names: Vec<_> = EXAMPLES.iter().map(|e| format!("`{}`", e.name)).collect();
        CommandError::usage(format!("no example `{name}`")).hint(format!("there are {}", names.join(", ")))
    })
}

/// Writes the files, or none: what is there already is found before the first one is written.
fn write_all(dir: &Path, files: &[(&str, &str)]) -> Result<(), CommandError> {
    let mut taken: Vec<PathBuf> = files.iter().map(|(path, _)| dir.join(path)).filter(|path| exists(path)).collect();
    if taken.is_empty() {
        taken.extend(ilot_spec::find(dir));
    }
    if let Some(path) = taken.first() {
        return Err(CommandError::new(format!("`{}` is there already; nothing was written", path.display()))
            .hint("choose another directory: `ilot init DIR`"));
    }
    for (path, text) in files {
        let path = dir.join(path);
        write_new(&path, text)
            .map_err(|error| CommandError::new(format!("cannot write `{}`: {error}", path.display())))?;
    }
    Ok(())
}

fn exists(path: &Path) -> bool {
    // A link counts even when it leads nowhere.
    path.symlink_metadata().is_ok()
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // `create_new` never follows a link and never overwrites, whatever happened since the look above.
    fs::File::create_new(path)?.write_all(text.as_bytes())
}
