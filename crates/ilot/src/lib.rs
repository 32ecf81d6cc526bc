//! The command line of ilot: what the user types, and what they see.
//!
//! One file per command in `commands`; [`cli`] is the definition from which parsing, help, completions, manual pages
//! and `docs/cli.md` all come.

pub mod cli;
mod commands;
mod context;
mod doctor;
mod error;
mod project;
pub mod reference;
mod render;
mod signals;
mod ui;

use std::process::ExitCode;

use crate::cli::Cli;
use crate::context::Context;

pub use crate::error::{CommandError, ErrorKind};

/// Runs the command that the arguments of this process ask for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing sensible can be done when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { error::USAGE } else { 0 });
        }
    };
    ui::set_color(cli.globals.color);
    init_log(cli.globals.verbose);
    let (command, context) = Context::new(cli);
    match commands::run(&command, &context) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            error.report(&context);
            ExitCode::from(error.exit_code())
        }
    }
}

/// `-v` shows what ilot does, `-vv` how, `-vvv` everything; `ILOT_LOG` picks by module.
fn init_log(verbose: u8) {
    use tracing::Level;
    use tracing_subscriber::EnvFilter;
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(ui::stderr_has_color())
        .with_target(verbose > 1)
        .without_time();
    // Only a filter by module needs the machinery for one, which takes part of a millisecond.
    match EnvFilter::try_from_env("ILOT_LOG") {
        Ok(filter) => log.with_env_filter(filter).init(),
        Err(_) => {
            let level = match verbose {
                0 => Level::WARN,
                1 => Level::INFO,
                2 => Level::DEBUG,
                _ => Level::TRACE,
            };
            log.with_max_level(level).init();
        }
    }
}
