//! `ilot start`, `stop`, `restart`, `pause` and `resume`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ilot_native::Native;
use owo_colors::OwoColorize;
use serde_json::json;

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Stopping is mostly waiting, so more machines are stopped at once than there are CPUs.
const AT_ONCE: usize = 16;

/// Start machines that were made before
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot start web
  ilot start lab          every machine of a domain
  ilot start --autostart  every machine with `boot_autostart: true`: for the start of the host")]
pub(crate) struct StartArgs {
    /// Machines, or domains for all of their machines
    #[arg(value_name = "NAME", required_unless_present = "autostart")]
    names: Vec<String>,

    /// Every machine that starts with the host, the highest `boot_priority` first
    #[arg(long, conflicts_with = "names")]
    autostart: bool,
}

/// Stop machines: ask politely, then kill
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot stop web
  ilot stop --timeout 60 db
  ilot stop -t 0 lab      kill every machine of a domain")]
pub(crate) struct StopArgs {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    timeout: Timeout,
}

/// Stop machines and start them again
#[derive(Debug, clap::Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    names: Names,
    #[command(flatten)]
    timeout: Timeout,
}

/// Freeze every process of machines
#[derive(Debug, clap::Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    names: Names,
}

/// Let frozen machines go on
#[derive(Debug, clap::Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    names: Names,
}

#[derive(Debug, clap::Args)]
struct Names {
    /// Machines, or domains for all of their machines
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Timeout {
    /// How long a machine may take before it is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.0..=31_536_000.0).contains(seconds))
        .ok_or_else(|| "not a number of seconds from 0 to a year".to_owned())
}

pub(crate) fn start(args: &StartArgs, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let work = |engine: &Native, name: &str| Ok(engine.start(name)?);
    if !args.autostart {
        let outcome = each_of(context, &engine, &select(&engine, &args.names)?, "started", work);
        engine.settle_shortcuts();
        return outcome;
    }
    let mut failed = false;
    let mut report = Vec::new();
    // One priority after the other; those of one priority side by side.
    for machines in engine.autostart()? {
        let (worse, mut lines) = at_once(context, &engine, &machines, "started", work);
        failed |= worse;
        report.append(&mut lines);
    }
    engine.settle_shortcuts();
    if context.json {
        ui::print_json(&json!({ "machines": report }));
    }
    Ok(u8::from(failed))
}

fn select(engine: &Native, names: &[String]) -> Result<Vec<String>, CommandError> {
    Ok(engine.select(names)?.into_iter().map(|machine| machine.name).collect())
}

pub(crate) fn stop(args: &StopArgs, context: &Context) -> Outcome {
    let timeout = Duration::from_secs_f64(args.timeout.timeout);
    each(context, &args.names, "stopped", |engine, name| Ok(engine.stop(name, timeout)?))
}

pub(crate) fn restart(args: &RestartArgs, context: &Context) -> Outcome {
    let timeout = Duration::from_secs_f64(args.timeout.timeout);
    let engine = context.engine()?;
    let outcome = each_of(context, &engine, &select(&engine, &args.names.names)?, "restarted", |engine, name| {
        engine.stop(name, timeout)?;
        engine.start(name)?;
        Ok(true)
    });
    engine.settle_shortcuts();
    outcome
}

pub(crate) fn pause(args: &PauseArgs, context: &Context) -> Outcome {
    each(context, &args.names, "paused", |engine, name| {
        engine.pause(name)?;
        Ok(true)
    })
}

pub(crate) fn resume(args: &ResumeArgs, context: &Context) -> Outcome {
    each(context, &args.names, "resumed", |engine, name| {
        engine.resume(name)?;
        Ok(true)
    })
}

/// Does something to every machine that the names mean, side by side, and reports in their order. The work says whether
/// it changed anything.
fn each(
    context: &Context,
    names: &Names,
    done: &str,
    work: impl Fn(&Native, &str) -> Result<bool, CommandError> + Sync,
) -> Outcome {
    let engine = context.engine()?;
    let machines = select(&engine, &names.names)?;
    each_of(context, &engine, &machines, done, work)
}

fn each_of(
    context: &Context,
    engine: &Native,
    machines: &[String],
    done: &str,
    work: impl Fn(&Native, &str) -> Result<bool, CommandError> + Sync,
) -> Outcome {
    let (failed, report) = at_once(context, engine, machines, done, work);
    if context.json {
        ui::print_json(&json!({ "machines": report }));
    }
    Ok(u8::from(failed))
}

/// Whether any failed, and with `--json` what became of each.
fn at_once(
    context: &Context,
    engine: &Native,
    machines: &[String],
    done: &str,
    work: impl Fn(&Native, &str) -> Result<bool, CommandError> + Sync,
) -> (bool, Vec<serde_json::Value>) {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<bool, CommandError>>>> = Mutex::new(machines.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..machines.len().min(AT_ONCE) {
            scope.spawn(|| {
                while let Some((index, name)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    machines.get(index).map(|name| (index, name))
                } {
                    let result = work(engine, name);
                    if let Ok(mut results) = results.lock() {
                        results[index] = Some(result);
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_default();
    let mut failed = false;
    let mut report = Vec::new();
    for (name, result) in machines.iter().zip(results.into_iter().flatten()) {
        let (what, error) = match result {
            Ok(true) => (done, None),
            Ok(false) => ("unchanged", None),
            Err(error) => ("failed", Some(error)),
        };
        failed |= error.is_some();
        if context.json {
            report.push(json!({ "name": name, "result": what, "error": error.map(|e| e.message()) }));
        } else if let Some(error) = error {
            error.report(context);
        } else if !context.quiet {
            let what = if what == done { what.green().to_string() } else { format!("already {done}") };
            ui::print(&format!("{what} {name}"));
        }
    }
    (failed, report)
}
