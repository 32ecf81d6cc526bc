//! One file per command: its arguments with their help, and what it does.

pub(crate) mod apply;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod cp;
pub(crate) mod destroy;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod fmt;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod net;
pub(crate) mod orphans;
pub(crate) mod plan;
pub(crate) mod ps;
pub(crate) mod registry;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod shell;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod sync;

use crate::cli::Command;
use crate::context::Context;
use crate::error::CommandError;
use crate::{reference, ui};

/// The exit code of a command, or why it failed.
pub(crate) type Outcome = Result<u8, CommandError>;

/// Runs a command.
pub(crate) fn run(command: &Command, context: &Context) -> Outcome {
    match command {
        Command::Init(args) => init::run(args, context),
        Command::Check(args) => check::run(args, context),
        Command::Plan(args) => plan::run(args, context),
        Command::Apply(args) => apply::run(args, context),
        Command::Status(args) => status::run(args, context),
        Command::Destroy(args) => destroy::run(args, context),
        Command::Orphans(args) => orphans::run(args, context),
        Command::Sync(args) => sync::run(args, context),
        Command::Convert(args) => convert::run(args, context),
        Command::Explain(args) => explain::run(args, context),
        Command::Schema(args) => schema::run(args),
        Command::Fmt(args) => fmt::run(args, context),
        Command::Exec(args) => exec::run(args, context),
        Command::Shell(args) => shell::run(args, context),
        Command::Logs(args) => logs::run(args, context),
        Command::Cp(args) => cp::run(args, context),
        Command::Start(args) => lifecycle::start(args, context),
        Command::Stop(args) => lifecycle::stop(args, context),
        Command::Restart(args) => lifecycle::restart(args, context),
        Command::Pause(args) => lifecycle::pause(args, context),
        Command::Resume(args) => lifecycle::resume(args, context),
        Command::Run(args) => run::run(args, context),
        Command::Ps(args) => ps::run(args, context),
        Command::Stats(args) => stats::run(args, context),
        Command::Inspect(args) => inspect::run(args, context),
        Command::Rm(args) => rm::run(args, context),
        Command::Image(args) => image::run(args, context),
        Command::Registry(args) => registry::run(args, context),
        Command::Net(args) => net::run(args, context),
        Command::Doctor(args) => doctor::run(args, context),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args, context),
        Command::CliReference => {
            ui::write_out(&reference::markdown());
            Ok(0)
        }
    }
}
