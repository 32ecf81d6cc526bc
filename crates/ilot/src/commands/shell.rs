//! `ilot shell`.

use std::io::{IsTerminal, stdin};

use super::{Outcome, exec};
use crate::context::Context;
use crate::error::ErrorKind;

/// The best shell that the machine has.
const SHELL: &str = "if command -v bash >/dev/null 2>&1; then exec bash -l; else exec sh -l; fi";

/// Open a shell in a running machine
///
/// A login shell, bash where the machine has it, on a terminal. What is piped in is run as a script.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot shell web
  ilot shell web -u www-data
  echo 'ip addr; ip route' | ilot shell web")]
pub(crate) struct Args {
    /// The machine
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// As this user: `name`, `uid`, `name:group` or `uid:gid` [default: root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// In this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Set a variable, or pass on one of this shell's; may be repeated
    #[arg(short, long, value_name = "K=V")]
    env: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine().map_err(|error| error.of_kind(ErrorKind::Engine))?;
    let options = exec::Options {
        interactive: true,
        tty: stdin().is_terminal(),
        env: args.env.clone(),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        detach: false,
    };
    exec::perform(&engine, &args.machine, &options, vec!["/bin/sh".into(), "-c".into(), SHELL.into()])
}
