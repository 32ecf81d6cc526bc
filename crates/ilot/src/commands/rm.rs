//! `ilot rm`.

use owo_colors::OwoColorize;
use serde_json::json;

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Remove containers that `ilot run` made
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot rm web
  ilot rm -f $(ilot ps -aq)

A machine of a project is removed by `ilot destroy --only NAME`, or by taking it out of the file.")]
pub(crate) struct Args {
    /// Containers
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,

    /// Running ones too: they are killed
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let mut failed = false;
    let mut report = Vec::new();
    for name in &args.names {
        let result = engine.remove(name, args.force).map_err(CommandError::from);
        failed |= result.is_err();
        match result {
            result if context.json => {
                let error = result.as_ref().err().map(CommandError::message);
                let word = if error.is_none() { "removed" } else { "failed" };
                report.push(json!({ "name": name, "result": word, "error": error }));
            }
            Ok(()) if context.quiet => {}
            Ok(()) => ui::print(&format!("{} {name}", "removed".green())),
            Err(error) => error.report(context),
        }
    }
    if context.json {
        ui::print_json(&json!({ "machines": report }));
    }
    Ok(u8::from(failed))
}
