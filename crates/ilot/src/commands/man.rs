//! `ilot man`.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::Outcome;
use crate::cli;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Print the manual page, or write one for each command into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot man | man -l -                  read it
  ilot man /usr/local/share/man/man1   install all of them")]
pub(crate) struct Args {
    /// Write `ilot.1`, `ilot-apply.1` and so on here
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(cli::command())
            .render(&mut page)
            .map_err(|error| CommandError::new(format!("cannot make the manual page: {error}")))?;
        ui::write_out(&String::from_utf8_lossy(&page));
        return Ok(0);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(cli::command(), dir))
        .map_err(|error| CommandError::new(format!("cannot write the manual to `{}`: {error}", dir.display())))?;
    if context.json {
        ui::print_json(&json!({ "directory": dir }));
    } else {
        context.note(&format!("manual pages written to {}", dir.display()));
    }
    Ok(0)
}
