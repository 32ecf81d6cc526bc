//! `ilot apply`.

use std::time::Duration;

use ilot_native::Native;
use ilot_plan::{ExecuteOptions, Plan, Report, execute};
use ilot_spec::Project;
use indexmap::IndexSet;
use owo_colors::OwoColorize;
use serde_json::json;

use super::Outcome;
use super::plan::{self, Interruptions};
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project::{self, Warnings};
use crate::render::change;
use crate::render::progress::Watch;
use crate::{signals, ui};

/// Make the project real: create, change and remove until everything is as the file says
///
/// Domains proceed side by side. A failure in one leaves the others converged and is reported with its reason; the next
/// `apply` goes on from there. Ctrl-C finishes what has begun and begins nothing more.
///
/// What can only be changed by a restart or a replacement of a machine is held back and reported, unless it is allowed;
/// the rest is done. On a terminal it is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ilot apply                     show the plan, ask, do it
  sudo ilot apply --yes               do it
  sudo ilot apply --only lab --yes    one domain
  sudo ilot apply --yes --json        one JSON object per event, as it happens
  sudo ilot apply --yes --allow-restart   machines may be stopped for it

Exit codes: 0 done (what waits for a restart is named), 1 something failed; with --detailed-exitcode: 2 something waits
for a restart.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,

    /// Only this domain, or this machine with what it needs; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,

    /// Restart and replace machines where a change needs it
    #[arg(long)]
    allow_restart: bool,

    /// Exit with 2 when changes wait for a restart
    #[arg(long)]
    detailed_exitcode: bool,

    /// Changes made at once [default: four for each CPU]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    jobs: usize,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let project = project::require(context, Warnings::Counted)?;
    let engine = context.engine()?;
    let _session = engine.begin(&waiting(context))?;
    // Whoever is asked sees everything first.
    let asked = !args.yes && !context.json && ui::is_interactive();
    let interruptions = if args.allow_restart || asked { Interruptions::Planned } else { Interruptions::HeldBack };
    let mut plan = plan::make(&engine, &project, &args.only, interruptions)?;
    if !agreed(context, &plan, args.yes, "apply")? {
        return Ok(1);
    }
    let interrupted = plan.interruptions().count();
    if asked && !args.allow_restart && interrupted > 0 {
        let question = format!("{} must be stopped for that: allow it?", ui::count(interrupted, "object"));
        if !confirmed(&question)? {
            plan = plan::make(&engine, &project, &args.only, Interruptions::HeldBack)?;
        }
    }
    let code = carry_out(context, &engine, &project, &plan, args.jobs)?;
    let held = tell_held(context, &plan);
    Ok(if code == 0 && held && args.detailed_exitcode { 2 } else { code })
}

/// Names what waits for a restart, and the cure. Whether there is any.
fn tell_held(context: &Context, plan: &Plan) -> bool {
    let names: IndexSet<String> =
        plan.kept.iter().filter(|k| k.held).map(|k| format!("{} `{}`", k.kind, k.name)).collect();
    if names.is_empty() {
        return false;
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    context.note(&format!("{} held back until a restart is allowed: {}", "note:".cyan(), names.join(", ")));
    context.note(&format!(" {} `ilot apply --allow-restart` changes them too", "hint:".cyan().bold()));
    true
}

/// Says whom this command waits for.
pub(super) fn waiting(context: &Context) -> impl Fn(&str) {
    let quiet = context.quiet;
    move |holder: &str| {
        if !quiet {
            ui::complain(&format!("{} waiting for {holder}", "note:".cyan()));
        }
    }
}

/// Shows the plan and has it agreed to.
pub(super) fn agreed(context: &Context, plan: &Plan, yes: bool, command: &str) -> Result<bool, CommandError> {
    if context.json {
        let mut event = json!({ "event": "plan" });
        if let (Some(event), Ok(serde_json::Value::Object(plan))) = (event.as_object_mut(), serde_json::to_value(plan))
        {
            event.extend(plan);
        }
        ui::print_json_line(&event);
    } else if plan.is_empty() {
        // The one line that says so; protected things that are left alone come with it.
        ui::write_out(&change::plan(plan, context.verbose));
    } else if !context.quiet && !yes {
        ui::write_out(&change::plan(plan, context.verbose));
    }
    if yes || plan.is_empty() {
        return Ok(true);
    }
    if context.json || !ui::is_interactive() {
        return Err(CommandError::new(format!(
            "`{command}` asks before it changes anything, and there is nobody to ask"
        ))
        .hint(format!("`ilot {command} --yes` does it without asking")));
    }
    let agreed = confirmed("do it?")?;
    if !agreed {
        ui::complain("nothing was changed");
    }
    Ok(agreed)
}

fn confirmed(question: &str) -> Result<bool, CommandError> {
    ui::confirm(question).map_err(|error| CommandError::new(format!("cannot read the answer: {error}")))
}

/// Carries a plan out, settles what is left and reports.
pub(super) fn carry_out(context: &Context, engine: &Native, project: &Project, plan: &Plan, jobs: usize) -> Outcome {
    let watch = Watch::new(context, plan.changes.len());
    let cancelled = (!plan.is_empty()).then(signals::raise_flag_on_interrupt);
    let result = execute(engine, project, plan, &watch, ExecuteOptions { workers: jobs, cancelled });
    watch.end();
    let report = result?;
    if !plan.is_empty() {
        engine.finish(&project.name)?;
    }
    if context.json {
        let (done, failed, skipped) = report.counts();
        ui::print_json_line(&json!({
            "event": "summary",
            "ok": report.is_success(),
            "done": done,
            "failed": failed,
            "skipped": skipped,
            "held": plan.summary().held,
            "milliseconds": u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX),
        }));
    } else if !plan.is_empty() {
        tell(context, plan, &report);
    }
    Ok(u8::from(!report.is_success()))
}

/// More failures than this were told when they happened, and are not told again.
const FEW: usize = 10;

/// The summary, failures with their reasons, and each cure once.
fn tell(context: &Context, plan: &Plan, report: &Report) {
    let (done, failed, skipped) = report.counts();
    if failed <= FEW || context.quiet {
        for (change, error) in report.failures(plan) {
            ui::complain(&format!("{} {change}: {}", "error:".red().bold(), error.full_message()));
        }
    }
    let cures: IndexSet<&str> = report.failures(plan).filter_map(|(_, error)| error.help()).collect();
    for cure in cures {
        ui::complain(&format!(" {} {cure}", "hint:".cyan().bold()));
    }
    let took = ui::duration(report.elapsed);
    if report.is_success() {
        if !context.quiet {
            ui::print(&format!("{}: {} in {took}", "done".green().bold(), ui::count(done, "change")));
        }
        slowest(plan, report);
        return;
    }
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    ui::complain(&format!("{}{skipped}, {done} done in {took}", format!("{failed} failed").red().bold()));
    ui::complain(&format!(" {} `ilot apply` goes on from here", "hint:".cyan().bold()));
}

/// With `-v`: where the time went.
fn slowest(plan: &Plan, report: &Report) {
    let mut times: Vec<(&Duration, String)> =
        report.durations.iter().zip(&plan.changes).map(|(time, change)| (time, change.to_string())).collect();
    times.sort_by(|a, b| b.cmp(a));
    for (time, change) in times.iter().take(10) {
        tracing::info!("{change} took {}", ui::duration(**time));
    }
}
