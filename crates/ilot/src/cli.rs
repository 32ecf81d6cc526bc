//! The one definition of the command line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    apply, check, completions, convert, cp, destroy, doctor, exec, explain, fmt, image, init, inspect, lifecycle, logs,
    man, net, orphans, plan, ps, registry, rm, run, schema, shell, stats, status, sync,
};
pub use crate::ui::Color;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const LONG_ABOUT: &str = "\
Turns a file that describes isolated domains into running machines, each domain an island of its own: an own network, \
an own range of ids, and nothing shared with the others but what the file opens. No daemon: everything is in the store, \
in the kernel, and in this program.";

const AFTER_HELP: &str = "\
Exit codes:
  0        done
  1        what was asked for could not be done, or `check` found errors
  2        the command line makes no sense; `plan --detailed-exitcode`: there are changes
  125      `run`, `exec`, `shell`: ilot failed
  126, 127 `run`, `exec`, `shell`: the command cannot be executed, does not exist
  other    `run`, `exec`, `shell`: that of the command itself (128 + N: signal N ended it)

Environment:
  ILOT_ROOT     the store, like --root
  ILOT_RUN      the live state, like --run-dir
  ILOT_LIBEXEC  where ilot's helper programs are, beside `ilot` by default
  ILOT_LOG      what to log, by module: `ilot_net=debug`
  NO_COLOR      no colours";

/// Islands on one machine.
#[derive(Debug, Parser)]
#[command(
    name = "ilot",
    version,
    about = "Islands on one machine: from one file to isolated, running containers and machines",
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    styles = STYLES,
    max_term_width = 110,
    arg_required_else_help = true,
    propagate_version = false
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) file: FileArg,
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The store: images, machines, their disks
    #[arg(
        long,
        value_name = "DIR",
        env = "ILOT_ROOT",
        hide_env_values = true,
        default_value = "/var/lib/ilot",
        global = true,
        help_heading = "Global options"
    )]
    pub root: PathBuf,

    /// The live state: sockets, locks, what is mounted
    #[arg(
        long = "run-dir",
        alias = "run",
        value_name = "DIR",
        env = "ILOT_RUN",
        hide_env_values = true,
        default_value = "/run/ilot",
        global = true,
        help_heading = "Global options"
    )]
    pub run: PathBuf,

    /// Print JSON instead of text (the shapes are in docs/json.md)
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,

    /// When to use colours
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, global = true, help_heading = "Global options")]
    pub color: Color,

    /// Say only what was asked for
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,

    /// Say what is done; twice or three times: in more detail
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Global options")]
    pub verbose: u8,
}

/// The project that a command is about.
#[derive(Debug, Default, Args)]
pub(crate) struct FileArg {
    /// The project's file or directory [default: infra.yml, infra/ or anklume.yml here]
    #[arg(short, long, value_name = "PATH")]
    pub file: Option<PathBuf>,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::Args),
    Check(check::Args),
    Plan(plan::Args),
    Apply(apply::Args),
    Status(status::Args),
    Destroy(destroy::Args),
    Orphans(orphans::Args),
    Sync(sync::Args),
    Convert(convert::Args),
    Explain(explain::Args),
    Schema(schema::Args),
    Fmt(fmt::Args),

    Exec(exec::Args),
    Shell(shell::Args),
    Logs(logs::Args),
    Cp(cp::Args),
    Start(lifecycle::StartArgs),
    Stop(lifecycle::StopArgs),
    Restart(lifecycle::RestartArgs),
    Pause(lifecycle::PauseArgs),
    Resume(lifecycle::ResumeArgs),

    Run(run::Args),
    Ps(ps::Args),
    Stats(stats::Args),
    Inspect(inspect::Args),
    Rm(rm::Args),

    Image(image::Args),
    Registry(registry::Args),

    Net(net::Args),

    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    CliReference,
}

impl Command {
    /// The project named after the command; it counts more than one named before it.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        let arg = match self {
            Self::Check(args) => &args.file,
            Self::Plan(args) => &args.file,
            Self::Apply(args) => &args.file,
            Self::Status(args) => &args.file,
            Self::Destroy(args) => &args.file,
            Self::Sync(args) => &args.file,
            Self::Explain(args) => &args.file,
            Self::Net(args) => return args.file(),
            _ => return None,
        };
        arg.file.as_ref()
    }
}

/// The parts of the overview that `ilot --help` gives, and the commands in each.
const PARTS: [(&str, &[&str]); 6] = [
    (
        "A project, from its file",
        &[
            "init", "check", "plan", "apply", "status", "destroy", "orphans", "explain", "schema", "fmt", "convert",
            "sync",
        ],
    ),
    ("Machines", &["exec", "shell", "logs", "cp", "start", "stop", "restart", "pause", "resume", "inspect", "stats"]),
    ("Containers without a file", &["run", "ps", "rm"]),
    ("Images", &["image", "registry"]),
    ("Networks", &["net"]),
    ("This host and this program", &["doctor", "completions", "man"]),
];

/// The whole command tree, as clap knows it.
#[must_use]
pub fn command() -> clap::Command {
    let command = Cli::command();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{}\n{header}Options:{header:#}\n{{options}}{{after-help}}",
        overview(&command),
        header = STYLES.get_header(),
    );
    command.help_template(template)
}

/// The commands by what they are about.
fn overview(command: &clap::Command) -> String {
    let (header, literal) = (STYLES.get_header(), STYLES.get_literal());
    let mut text = String::new();
    for (part, names) in PARTS {
        let _ = write!(text, "\n{header}{part}:{header:#}\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {literal}{name:<11}{literal:#}  {about}");
        }
    }
    text
}

impl Cli {
    /// Reads the arguments of this process, the program's name first.
    ///
    /// # Errors
    ///
    /// What clap says of them: wrong ones, or that help was asked for.
    pub fn read<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let mut command = command();
        let matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_has_every_command_once() {
        let mut named: Vec<&str> = PARTS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = Cli::command();
        let mut all: Vec<&str> =
            command.get_subcommands().filter(|c| !c.is_hide_set()).map(clap::Command::get_name).collect();
        named.sort_unstable();
        all.sort_unstable();
        assert_eq!(named, all);
    }
}
