//! `ilot stats`.

use std::collections::HashMap;
use std::io::{IsTerminal, stdout};
use std::thread;
use std::time::{Duration, Instant};

use ilot_native::{MachineInfo, MachineState, Native};
use serde_json::{Value, json};

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::table::Table;
use crate::ui;

/// Between two looks of a running display.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between the two looks that one CPU percentage needs.
const GLANCE: Duration = Duration::from_millis(250);

/// Show the live usage of machines
///
/// On a terminal the table goes on until Ctrl-C; elsewhere, with `--json` or `--no-stream`, it is shown once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot stats
  ilot stats --no-stream lab
  ilot stats --json | jq '.[].memory'")]
pub(crate) struct Args {
    /// Machines, or domains for all of their machines [default: everything that runs]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Once
    #[arg(long)]
    no_stream: bool,
}

/// What one machine used between two looks.
struct Sample {
    machine: MachineInfo,
    /// Percent of one CPU.
    cpu: f64,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    engine.sweep()?;
    let mut before = look(&engine, &args.names)?;
    if context.json || args.no_stream || !stdout().is_terminal() {
        thread::sleep(GLANCE);
        let (samples, _) = sample(&engine, &args.names, &before)?;
        if context.json {
            ui::print_json(&samples.iter().map(as_json).collect::<Vec<_>>());
        } else {
            ui::write_out(&table(&samples).render());
        }
        return Ok(0);
    }
    let mut pause = GLANCE;
    loop {
        thread::sleep(pause);
        pause = INTERVAL;
        let (samples, now) = sample(&engine, &args.names, &before)?;
        before = now;
        // From the top left, each line and then the rest of the screen cleared, so that nothing flickers.
        let lines = table(&samples).render().replace('\n', "\x1b[K\n");
        ui::write_out(&format!("\x1b[H{lines}\x1b[J"));
    }
}

/// CPU time of each machine, and when it was read.
type Look = (Instant, HashMap<String, u64>);

fn machines(engine: &Native, names: &[String]) -> Result<Vec<MachineInfo>, CommandError> {
    if names.is_empty() {
        let all = engine.machines()?;
        return Ok(all.into_iter().filter(|machine| machine.state != MachineState::Stopped).collect());
    }
    engine.select(names)?.iter().map(|record| Ok(engine.machine_details(&record.name)?)).collect()
}

fn times(machines: &[MachineInfo]) -> Look {
    let times = machines.iter().filter_map(|m| m.usage.map(|usage| (m.record.name.clone(), usage.cpu_usec)));
    (Instant::now(), times.collect())
}

fn look(engine: &Native, names: &[String]) -> Result<Look, CommandError> {
    Ok(times(&machines(engine, names)?))
}

fn sample(engine: &Native, names: &[String], before: &Look) -> Result<(Vec<Sample>, Look), CommandError> {
    let machines = machines(engine, names)?;
    let now = times(&machines);
    let elapsed = now.0.duration_since(before.0).as_micros().max(1) as f64;
    let samples = machines.into_iter().map(|machine| {
        let used = match (now.1.get(&machine.record.name), before.1.get(&machine.record.name)) {
            (Some(now), Some(before)) => now.saturating_sub(*before),
            _ => 0,
        };
        Sample { machine, cpu: used as f64 / elapsed * 100.0 }
    });
    Ok((samples.collect(), now))
}

fn table(samples: &[Sample]) -> Table {
    let mut table = Table::new(&["NAME", "CPU %", "MEMORY", "LIMIT", "PROCESSES"]).right(&[1, 2, 3, 4]);
    for sample in samples {
        let name = sample.machine.record.name.clone();
        match sample.machine.usage {
            Some(usage) => table.row([
                name,
                format!("{:.1}", sample.cpu),
                ui::bytes(usage.memory),
                usage.memory_limit.map_or_else(|| "-".to_owned(), ui::bytes),
                usage.pids.to_string(),
            ]),
            None => table.row([name, "-".into(), "-".into(), "-".into(), "-".into()]),
        }
    }
    table
}

fn as_json(sample: &Sample) -> Value {
    let usage = sample.machine.usage;
    json!({
        "name": sample.machine.record.name,
        "domain": sample.machine.record.domain,
        "state": sample.machine.state,
        "cpu_percent": (sample.cpu * 10.0).round() / 10.0,
        "cpu_usec": usage.map(|u| u.cpu_usec),
        "memory": usage.map(|u| u.memory),
        "memory_limit": usage.and_then(|u| u.memory_limit),
        "pids": usage.map(|u| u.pids),
    })
}
