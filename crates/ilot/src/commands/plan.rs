//! `ilot plan`.

use ilot_native::Native;
use ilot_plan::{DiffOptions, Engine, Plan, Selection, diff_with};
use ilot_spec::Project;
use owo_colors::OwoColorize;

use super::Outcome;
use crate::cli::FileArg;
use crate::context::{Context, phase};
use crate::error::CommandError;
use crate::project::{self, Warnings};
use crate::render::change;
use crate::ui;

/// Show what `apply` would change and why, field by field
///
/// Nothing is changed. What is as the file says is not shown; when nothing differs, one line says so. Of what is created
/// only what is not at its default is shown, with `-v` everything.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signs: + create, > start, ~ change (live, or by a restart), -/+ replace, - delete, ! protected and left alone

Examples:
  ilot plan
  ilot plan --only web                 one machine and what it needs
  ilot plan --detailed-exitcode -q     for scripts: is there anything to do?

Exit codes: 0, 1 it failed; with --detailed-exitcode: 0 nothing to do, 2 there are changes.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,

    /// Only this domain, or this machine with what it needs; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Exit with 2 when there are changes
    #[arg(long)]
    detailed_exitcode: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let project = project::require(context, Warnings::Counted)?;
    let engine = context.engine()?;
    let plan = make(&engine, &project, &args.only, Interruptions::Planned)?;
    if context.json {
        ui::print_json(&plan);
    } else if context.quiet {
        ui::print(&change::summary(&plan));
    } else {
        phase("show", || ui::write_out(&change::plan(&plan, context.verbose)));
        if plan.interruptions().next().is_some() {
            let text =
                "machines are restarted or replaced only with `ilot apply --allow-restart`, or when it is agreed to";
            ui::complain(&format!("{} {text}", "note:".cyan()));
        }
        for refusal in ilot_native::refusals(&project) {
            ui::complain(&format!("{} `ilot apply` will refuse {}", "warning:".yellow().bold(), refusal.message));
        }
        for note in engine.notes(&project) {
            ui::complain(&format!("{} {note}", "note:".cyan()));
        }
    }
    Ok(if args.detailed_exitcode && !plan.is_empty() { 2 } else { 0 })
}

/// What becomes of changes for which something that runs must be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interruptions {
    /// They are in the plan.
    Planned,
    /// They are left alone, and the plan says so.
    HeldBack,
}

/// What would change.
pub(super) fn make(
    engine: &Native,
    project: &Project,
    only: &[String],
    interruptions: Interruptions,
) -> Result<Plan, CommandError> {
    engine.accepts(project)?;
    let desired = phase("what should be", || engine.desired(project))?;
    let actual = phase("what is", || engine.actual(project))?;
    let only = selection(only, desired.iter().chain(&actual))?;
    let uninterrupted = interruptions == Interruptions::HeldBack;
    let options = DiffOptions { only, force: false, uninterrupted };
    Ok(phase("compare", || diff_with(&desired, &actual, &options)))
}

/// The choice that `--only` makes, if any.
pub(super) fn selection<'a>(
    only: &[String],
    resources: impl Iterator<Item = &'a ilot_plan::Resource>,
) -> Result<Option<Selection>, CommandError> {
    Ok(if only.is_empty() { None } else { Some(Selection::new(only, resources)?) })
}
