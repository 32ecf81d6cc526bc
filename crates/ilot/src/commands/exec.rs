//! `ilot exec`.

use std::ffi::OsString;
use std::io::{IsTerminal, stdin};

use ilot_native::{ExecRequestParts, Native};

use super::Outcome;
use crate::context::Context;
use crate::error::{CommandError, ErrorKind};

/// Run a command in a running machine
///
/// Exit status and signals pass through. With `-it` it gets a terminal that follows the size of yours.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot exec web -- ls -l /etc
  ilot exec web -it bash
  ilot exec -u www-data -w /var/www -e LANG=C web -- make
  tar c . | ilot exec -i web -- tar x -C /srv

Exit codes: that of the command (128 + N: signal N ended it); 125 ilot failed, 126 the command cannot be executed,
127 there is no such command.")]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,

    /// The machine
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// How a command is run.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// Hand standard input on
    #[arg(short, long)]
    pub interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,

    /// Set a variable, or pass on one of this shell's; may be repeated
    #[arg(short, long, value_name = "K=V")]
    pub env: Vec<String>,

    /// As this user: `name`, `uid`, `name:group` or `uid:gid` [default: root]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,

    /// In this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,

    /// Do not wait for its end
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine().map_err(|error| error.of_kind(ErrorKind::Engine))?;
    perform(&engine, &args.machine, &args.options, text(&args.command)?)
}

/// Runs a command in a machine; the exit code is the command's.
pub(super) fn perform(engine: &Native, machine: &str, options: &Options, args: Vec<String>) -> Outcome {
    if options.tty && !stdin().is_terminal() {
        return Err(CommandError::new("standard input is not a terminal, so `-t` cannot join one to it")
            .hint("leave `-t` out; `-i` alone hands standard input on")
            .of_kind(ErrorKind::Engine));
    }
    let request = ExecRequestParts {
        args,
        env: environment(&options.env, options.tty),
        cwd: options.workdir.clone(),
        user: options.user.clone(),
        terminal: options.tty,
        stdin: options.interactive,
        detach: options.detach,
    };
    let exit = engine.exec(machine, request).map_err(failed)?;
    Ok(code(exit))
}

/// The exit code that a shell would show.
pub(super) fn code(exit: ilot_native::Exit) -> u8 {
    u8::try_from(exit.code.clamp(0, 255)).unwrap_or(255)
}

/// `K=V` as it is, `K` with this process's value; a terminal's kind goes with it.
pub(super) fn environment(given: &[String], tty: bool) -> Vec<String> {
    let mut env = Vec::new();
    if let (true, Ok(term)) = (tty, std::env::var("TERM")) {
        env.push(format!("TERM={term}"));
    }
    for entry in given {
        if entry.contains('=') {
            env.push(entry.clone());
        } else if let Ok(value) = std::env::var(entry) {
            env.push(format!("{entry}={value}"));
        }
    }
    env
}

/// A command line as text: what goes into a container's configuration has to be UTF-8.
pub(super) fn text(args: &[OsString]) -> Result<Vec<String>, CommandError> {
    args.iter()
        .map(|arg| {
            arg.to_str().map(str::to_owned).ok_or_else(|| {
                CommandError::usage(format!("argument `{}` is not UTF-8", arg.to_string_lossy()))
                    .of_kind(ErrorKind::Engine)
            })
        })
        .collect()
}

/// Exit codes as Docker and Podman have them.
pub(super) fn failed(error: ilot_native::Error) -> CommandError {
    let errno = match &error {
        ilot_native::Error::Runtime(ilot_runtime::Error::Container { errno, .. }) => *errno,
        _ => 0,
    };
    // The general cures for these numbers are about this host, not about what is inside.
    match errno {
        libc::ENOENT => CommandError::new(error).of_kind(ErrorKind::NotFound),
        libc::EACCES | libc::ENOEXEC | libc::EISDIR => {
            CommandError::new(error).of_kind(ErrorKind::NotExecutable).hint("name a program that may be executed there")
        }
        _ => CommandError::from(error).of_kind(ErrorKind::Engine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_set_or_passed_on() {
        let home = std::env::var("PATH").unwrap();
        let given = ["A=b=c".to_owned(), "PATH".to_owned(), "ILOT_SURELY_NOT_SET".to_owned()];
        assert_eq!(environment(&given, false), ["A=b=c".to_owned(), format!("PATH={home}")]);
    }
}
