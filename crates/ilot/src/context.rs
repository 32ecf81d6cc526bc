//! What every command is given: where the project is, where the store is, and how to speak.

use std::path::PathBuf;
use std::time::Instant;

use ilot_native::Native;

use crate::cli::{Cli, Command};
use crate::error::CommandError;
use crate::ui;

/// The settings that all commands share.
#[derive(Debug)]
pub(crate) struct Context {
    /// `-f`.
    pub file: Option<PathBuf>,
    /// The store.
    pub root: PathBuf,
    /// The live state.
    pub run: PathBuf,
    /// `--json`.
    pub json: bool,
    /// `-q`.
    pub quiet: bool,
    /// `-v`.
    pub verbose: bool,
}

impl Context {
    /// Splits the parsed arguments into the command and what all commands share.
    pub fn new(cli: Cli) -> (Command, Self) {
        let file = cli.command.file().cloned().or(cli.file.file);
        let context = Self {
            file,
            root: cli.globals.root,
            run: cli.globals.run,
            json: cli.globals.json,
            quiet: cli.globals.quiet,
            verbose: cli.globals.verbose > 0,
        };
        (cli.command, context)
    }

    /// Says something that is not the result: on standard error, unless `-q`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            ui::complain(text);
        }
    }

    /// Opens the native engine on the store.
    pub fn engine(&self) -> Result<Native, CommandError> {
        if !rustix::process::geteuid().is_root() {
            return Err(CommandError::new("containers, networks and the store need root").hint("run it with `sudo`"));
        }
        Ok(Native::open(&self.root, &self.run)?)
    }
}

/// Does a part of a command; how long it took is told with `-vv`.
pub(crate) fn phase<T>(name: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(target: "ilot::phase", micros, "{name}");
    result
}
