//! `ilot ps`.

use ilot_native::{MachineInfo, MachineState};
use jiff::Timestamp;
use owo_colors::Style;

use super::Outcome;
use crate::context::Context;
use crate::render::table::{Cell, Table};
use crate::ui;

/// List what runs on this host, of every project and of `ilot run`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot ps
  ilot ps -a              stopped ones too
  ilot ps -aq             names only")]
pub(crate) struct Args {
    /// Stopped ones too
    #[arg(short, long)]
    all: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    engine.sweep()?;
    let machines: Vec<MachineInfo> =
        engine.machines()?.into_iter().filter(|machine| args.all || machine.state != MachineState::Stopped).collect();
    if context.json {
        ui::print_json(&machines);
        return Ok(0);
    }
    if context.quiet {
        for machine in &machines {
            ui::print(&machine.record.name);
        }
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "STATE", "DOMAIN", "ADDRESS", "IMAGE", "UPTIME", "PROJECT"]);
    for machine in &machines {
        let record = &machine.record;
        table.row([
            Cell::from(record.name.as_str()),
            state(machine.state),
            Cell::from(record.domain.as_deref().unwrap_or("-")),
            Cell::from(record.ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string())),
            Cell::from(record.image.as_str()),
            Cell::from(uptime(machine)),
            Cell::from(record.project.as_deref().unwrap_or("-")),
        ]);
    }
    ui::write_out(&table.render());
    Ok(0)
}

/// A state in its colour.
pub(super) fn state(state: MachineState) -> Cell {
    let style = Style::new();
    let style = match state {
        MachineState::Running => style.green(),
        MachineState::Paused => style.yellow(),
        MachineState::Stopped => style.dimmed(),
    };
    Cell::new(state.to_string(), style)
}

/// How long it runs, `-` when it does not.
pub(super) fn uptime(machine: &MachineInfo) -> String {
    let since = machine.started_at.map(|start| Timestamp::now().duration_since(start));
    since.and_then(|span| span.try_into().ok()).map_or_else(|| "-".to_owned(), ui::duration)
}
