//! `ilot run`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{IsTerminal, stdin};
use std::thread;

use ilot_native::{Exit, Native, NetChoice, RunOptions, Started};
use ilot_spec::{CpuAllowance, Limits};
use serde_json::json;

use super::image::ForPlatform;
use super::{Outcome, exec};
use crate::context::Context;
use crate::error::{CommandError, ErrorKind};
use crate::render::progress::Fetch;
use crate::signals::Forwarded;
use crate::ui;

/// The kernel's usual period of CPU quotas, in microseconds.
const PERIOD: u64 = 100_000;

/// Run one container, without any file
///
/// With `--net DOMAIN` it joins a domain that stands on this host; without, it has no network but itself. Everything
/// after the image is the command.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "ilot run [OPTIONS] IMAGE [COMMAND]...",
    after_help = "\
Examples:
  ilot run --rm busybox echo hello
  ilot run --rm -it images:debian/13 bash
  ilot run -d --name web --net lab -m 256MiB --cpus 0.5 busybox httpd -f
  ilot run --rm -i busybox wc -c < file

Exit codes: that of the command (128 + N: signal N ended it); 125 ilot failed, 126 the command cannot be executed,
127 there is no such command."
)]
pub(crate) struct Args {
    /// Remove it when it ends
    #[arg(long)]
    rm: bool,

    /// Hand standard input on
    #[arg(short, long)]
    interactive: bool,

    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,

    /// Start it, print its name and leave it running
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,

    /// Its name [default: made up]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Join this domain; `none`: loopback only
    #[arg(long, value_name = "DOMAIN|none", default_value = "none")]
    net: String,

    /// Limit its memory: `512MiB`, `2g`
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,

    /// Limit its CPU time, in CPUs: `0.5`, `2`
    #[arg(long, value_name = "N", value_parser = cpus)]
    cpus: Option<f64>,

    /// Limit its processes
    #[arg(long, value_name = "N")]
    pids_limit: Option<u64>,

    /// Set a variable, or pass on one of this shell's; may be repeated
    #[arg(short, long, value_name = "K=V")]
    env: Vec<String>,

    /// As this user: `name`, `uid`, `name:group` or `uid:gid` [default: the image's]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// In this directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Put ilot's small init above the command: it reaps orphans and forwards signals
    #[arg(long)]
    init: bool,

    #[command(flatten)]
    platform: ForPlatform,

    /// The image, and the command with its arguments [default: the image's]
    #[arg(value_names = ["IMAGE", "COMMAND"], required = true, num_args = 1.., trailing_var_arg = true)]
    image_and_command: Vec<OsString>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine().map_err(|error| error.of_kind(ErrorKind::Engine))?;
    if args.tty && !stdin().is_terminal() {
        return Err(CommandError::new("standard input is not a terminal, so `-t` cannot join one to it")
            .hint("leave `-t` out; `-i` alone hands standard input on")
            .of_kind(ErrorKind::Engine));
    }
    let mut options = options(args)?;
    if args.platform.get().is_some() {
        options.image = foreign(args, &options.image, context).map_err(|error| error.of_kind(ErrorKind::Engine))?;
    }
    let fetch = Fetch::new(context);
    engine.obtain(&options.image, &fetch).map_err(exec::failed)?;
    // Until here Ctrl-C ends this program, from here on it is the container's: also before its first word.
    let signals =
        (!args.detach && !args.tty).then(Forwarded::catch).transpose().map_err(|error| cannot_forward(&error))?;
    let started = engine.run(&options, &fetch).map_err(exec::failed)?;
    if args.detach {
        if context.json {
            ui::print_json(&json!({ "name": started.name, "pid": started.created.pid }));
        } else {
            ui::print(&started.name);
        }
        return Ok(0);
    }
    let exit = stay(&engine, &started, signals.as_ref()).map_err(|error| error.of_kind(ErrorKind::Engine))?;
    if args.rm {
        match engine.remove(&started.name, true) {
            // Its keeper removes it as well, in case this program is killed; one of the two comes first.
            Ok(()) | Err(ilot_native::Error::NoMachine(_)) => {}
            Err(error) => return Err(CommandError::from(error).of_kind(ErrorKind::Engine)),
        }
    }
    Ok(exec::code(exit))
}

/// The image for another platform than this host's, by its digest: the name alone means the host's.
fn foreign(args: &Args, name: &str, context: &Context) -> Result<String, CommandError> {
    let image = args.platform.store(context)?.obtain(name, &Fetch::new(context))?;
    if !image.platform.runs_here() && !has_interpreter(&image.platform.architecture) {
        context.note(&format!(
            "warning: {name} is for {}; without a program that runs it (package `qemu-user-binfmt` or \
             `qemu-user-static`) nothing of it can be executed here",
            image.platform
        ));
    }
    Ok(image.digest.to_string())
}

/// Whether the kernel was told who executes programs of another processor (binfmt_misc).
fn has_interpreter(architecture: &str) -> bool {
    let name = match architecture {
        "arm64" => "aarch64",
        "amd64" => "x86_64",
        "386" => "i386",
        other => other,
    };
    let entry = std::fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/qemu-{name}"));
    entry.is_ok_and(|text| text.starts_with("enabled"))
}

fn options(args: &Args) -> Result<RunOptions, CommandError> {
    let mut words = exec::text(&args.image_and_command)?;
    let image = words.remove(0);
    let environment: BTreeMap<String, String> = exec::environment(&args.env, args.tty)
        .into_iter()
        .filter_map(|entry| entry.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())))
        .collect();
    let quota = |cpus: f64| CpuAllowance::Quota { quota: (cpus * PERIOD as f64) as u64, period: PERIOD };
    Ok(RunOptions {
        image,
        command: words,
        name: args.name.clone(),
        net: if args.net == "none" { NetChoice::None } else { NetChoice::Domain(args.net.clone()) },
        limits: Limits {
            cpu_allowance: args.cpus.map(quota),
            memory: args.memory,
            processes: args.pids_limit,
            ..Limits::default()
        },
        environment,
        user: args.user.clone(),
        cwd: args.workdir.clone(),
        remove: args.rm,
        terminal: args.tty,
        detach: args.detach,
        init: args.init,
    })
}

/// Stays with a container until it ends, handing on what the user types or signals.
fn stay(engine: &Native, started: &Started, signals: Option<&Forwarded>) -> Result<Exit, CommandError> {
    let Some(signals) = signals else { return Ok(engine.attach(started)?) };
    let (end, ended) = rustix::pipe::pipe().map_err(|error| cannot_forward(&error.into()))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            signals.forward(end, |signal| {
                if let Err(error) = engine.signal(&started.name, signal) {
                    // It may have ended in the same moment.
                    tracing::debug!("signal {signal} was not handed on: {error}");
                }
            });
        });
        let exit = engine.wait(&started.name);
        drop(ended);
        Ok(exit?)
    })
}

fn cannot_forward(error: &std::io::Error) -> CommandError {
    CommandError::new(format!("cannot hand signals on: {error}")).of_kind(ErrorKind::Engine)
}

/// `512MiB`, `512m`, `2g`, `1073741824`: units of 1024 but for those that say otherwise (`MB`).
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 13] = [
        ("", 1),
        ("b", 1),
        ("k", 1 << 10),
        ("kib", 1 << 10),
        ("kb", 1000),
        ("m", 1 << 20),
        ("mib", 1 << 20),
        ("mb", 1_000_000),
        ("g", 1 << 30),
        ("gib", 1 << 30),
        ("gb", 1_000_000_000),
        ("t", 1 << 40),
        ("tib", 1 << 40),
    ];
    let wrong = || "not a size: write it like `512MiB` or `2g`".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(wrong)?;
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if (1.0..=9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

fn cpus(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|cpus| (0.01..=4096.0).contains(cpus))
        .ok_or_else(|| "not a number of CPUs: write it like `0.5` or `2`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_and_cpus() {
        let sizes = [("512MiB", 512 << 20), ("512m", 512 << 20), ("1.5g", 3 << 29), ("42", 42), ("1MB", 1_000_000)];
        for (text, bytes) in sizes {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "-1", "5 apples", "1e99g", "m"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cpus("0.5"), Ok(0.5));
        assert!(cpus("0").is_err() && cpus("NaN").is_err() && cpus("all").is_err());
    }
}
