//! `ilot cp`.

use std::ffi::OsString;

use ilot_native::CopyEnd;

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Copy files and directories between this host and a machine, or between machines
///
/// Owners, modes and times are kept. No link inside a machine leads out of it. The machine may be stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot cp index.html web:/var/www/
  ilot cp web:/etc/nginx ./nginx
  ilot cp site/. web:/srv              the content of a directory
  ilot cp web:/etc/hosts db:/etc/hosts
  ilot cp ./odd:name web:/tmp/         a host path with a colon")]
pub(crate) struct Args {
    /// What is copied: a path, or `machine:/path`
    #[arg(value_name = "SRC")]
    source: OsString,

    /// Where to: a path, or `machine:/path`
    #[arg(value_name = "DST")]
    target: OsString,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let (source, target) = (CopyEnd::parse(&args.source), CopyEnd::parse(&args.target));
    if let (CopyEnd::Host(_), CopyEnd::Host(_)) = (&source, &target) {
        return Err(CommandError::usage("neither side is in a machine")
            .hint("write `MACHINE:/PATH` on one side, with an absolute path"));
    }
    let report = context.engine()?.copy(&source, &target)?;
    if context.json {
        ui::print_json(&report);
        return Ok(0);
    }
    for path in &report.skipped {
        ui::complain(&format!("note: not copied: {path}"));
    }
    if !context.quiet {
        let entries = report.files + report.directories + report.links;
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let noun = if entries == 1 { "entry" } else { "entries" };
        ui::print(&format!("copied {entries} {noun}, {}", ui::bytes(report.bytes)));
    }
    Ok(0)
}
