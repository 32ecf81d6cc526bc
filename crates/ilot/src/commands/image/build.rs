//! `ilot image build`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use ilot_build::{Built, Context as From, Error, Events, FileAt, Options, Pull, Secret, StepEnd, StepInfo};
use ilot_native::BuildNet;
use owo_colors::OwoColorize;
use serde_json::json;

use super::super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Make an image from a Containerfile
///
/// CONTEXT is a folder, a repository (`https://….git#branch:folder`), an archive over HTTP, or `-` for standard input. Steps
/// run in containers of a user namespace, with a network of the build's own that leads out and to nothing else. A step
/// whose inputs did not change is not done again; stages that need nothing of one another are built side by side.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image build -t app .
  ilot image build -t app:2 -f deploy/Containerfile --build-arg VERSION=2 --target runtime .
  ilot image build --secret id=token,src=token.txt --net none .
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) ilot image build -t app .     the same digest each time

What of Containerfiles is understood, and where it differs from other builders, is in docs/build.md.
Exit codes: 0 built, 1 not.")]
pub(crate) struct Args {
    /// The image's name; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,

    /// The Containerfile; `-`: standard input [default: Containerfile or Dockerfile of the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Give an ARG a value, or this shell's; may be repeated
    #[arg(long = "build-arg", value_name = "K=V")]
    arguments: Vec<String>,

    /// Stop at this stage: a name, or a number from 0 [default: the last one]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Build for `linux/arm64` and the like [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,

    /// `id=NAME,src=FILE` or `id=NAME,env=VARIABLE`: for `RUN --mount=type=secret`; may be repeated
    #[arg(long = "secret", value_name = "SPEC")]
    secrets: Vec<String>,

    /// An ssh agent for `RUN --mount=type=ssh`; may be repeated
    #[arg(long = "ssh", value_name = "ID[=SOCKET]")]
    agents: Vec<String>,

    /// Do every step anew
    #[arg(long)]
    no_cache: bool,

    /// Ask for base images again [default: missing]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pull: Option<When>,

    /// Network of the steps: `default`, `none`, `host`, or a domain that stands on this host
    #[arg(long, alias = "network", value_name = "NET", default_value = "default")]
    net: String,

    /// Let steps have what they ask for; may be repeated
    #[arg(long, value_name = "RIGHT", value_enum)]
    allow: Vec<Allow>,

    /// Set a label; may be repeated
    #[arg(long = "label", value_name = "K=V")]
    labels: Vec<String>,

    /// Set an annotation of the manifest; may be repeated
    #[arg(long = "annotation", value_name = "K=V")]
    annotations: Vec<String>,

    /// Nothing in the image is newer than this, in seconds since 1970: the same inputs give the same digest
    #[arg(
        long,
        visible_alias = "timestamp",
        value_name = "SECONDS",
        env = "SOURCE_DATE_EPOCH",
        hide_env_values = true
    )]
    source_date_epoch: Option<i64>,

    /// Steps that run at once [default: one for each CPU]
    #[arg(short, long, value_name = "N")]
    jobs: Option<usize>,

    /// Write the image's digest into a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,

    /// What is shown: `plain` is every line of every step, `quiet` the steps alone, `none` nothing
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    progress: How,

    /// Where the files are
    #[arg(value_name = "CONTEXT", default_value = ".")]
    context: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum When {
    Always,
    Missing,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Allow {
    /// `RUN --network=host`
    #[value(name = "network.host")]
    NetworkHost,
    /// `RUN --security=insecure`
    #[value(name = "security.insecure")]
    SecurityInsecure,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum How {
    #[default]
    Auto,
    Plain,
    Quiet,
    None,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let options = options(args)?;
    let engine = context.engine()?;
    signals::raise_flag_on_interrupt();
    let watch = Watch::new(context, args.progress);
    match ilot_build::build(&engine, &options, &watch, &Fetch::new(context)) {
        Ok(built) => done(args, context, &built),
        Err(error) => {
            if context.json {
                ui::print_json_line(&failed(&error));
                let error = CommandError::from(error);
                ui::complain(&format!("{} {}", "error:".red().bold(), error.message()));
                return Err(CommandError::reported());
            }
            Err(error.into())
        }
    }
}

fn done(args: &Args, context: &Context, built: &Built) -> Outcome {
    if let Some(path) = &args.iidfile {
        std::fs::write(path, built.image.digest.to_string())
            .map_err(|e| CommandError::new(format!("write `{}`: {e}", path.display())))?;
    }
    if context.json {
        let (steps, cached) = built.steps;
        ui::print_json_line(&json!({
            "event": "built", "image": built.image, "steps": steps, "cached": cached, "names": args.tags,
        }));
    } else {
        ui::print(&built.image.digest.to_string());
    }
    Ok(0)
}

fn failed(error: &Error) -> serde_json::Value {
    let place = error.place();
    let message = match error {
        Error::At { message, .. } => message.clone(),
        other => other.to_string(),
    };
    json!({
        "event": "failed",
        "error": message,
        "help": error.help(),
        "file": place.map(|p| &p.file),
        "line": place.map(|p| p.line),
        "column": place.map(|p| p.column),
    })
}

fn options(args: &Args) -> Result<Options, CommandError> {
    let context = match args.context.as_str() {
        "-" => From::Input,
        text if text.contains("://") || text.starts_with("git@") => From::Address(text.to_owned()),
        text => From::Folder(PathBuf::from(text)),
    };
    let file = match &args.file {
        None => FileAt::Usual,
        Some(path) if path == Path::new("-") => FileAt::Input,
        Some(path) => FileAt::Path(path.clone()),
    };
    let mut agents = BTreeMap::new();
    for text in &args.agents {
        let (id, socket) = text.split_once('=').unwrap_or((text, ""));
        let socket = match socket {
            "" => std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
                CommandError::usage(format!("`--ssh {id}` needs an agent, and SSH_AUTH_SOCK is not set"))
                    .hint(format!("start one, or name its socket: `--ssh {id}=SOCKET`"))
            })?,
            socket => PathBuf::from(socket),
        };
        agents.insert(id.to_owned(), socket);
    }
    Ok(Options {
        context,
        file,
        names: args.tags.clone(),
        arguments: arguments(&args.arguments),
        target: args.target.clone(),
        platform: args.platform.clone(),
        secrets: args.secrets.iter().map(|text| secret(text)).collect::<Result<_, _>>()?,
        agents,
        no_cache: args.no_cache,
        pull: match args.pull {
            Some(When::Always) => Pull::Always,
            Some(When::Never) => Pull::Never,
            Some(When::Missing) | None => Pull::Missing,
        },
        labels: pairs("--label", &args.labels)?,
        annotations: pairs("--annotation", &args.annotations)?,
        net: match args.net.as_str() {
            "default" => BuildNet::Own,
            "none" => BuildNet::None,
            "host" => BuildNet::Host,
            domain => BuildNet::Domain(domain.to_owned()),
        },
        allow_insecure: args.allow.contains(&Allow::SecurityInsecure),
        allow_host_network: args.allow.contains(&Allow::NetworkHost) || args.net == "host",
        epoch: args.source_date_epoch,
        jobs: args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
    })
}

/// `K=V`, or `K` for this shell's value; one that is not set is not passed on.
fn arguments(list: &[String]) -> BTreeMap<String, String> {
    let value = |text: &String| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => std::env::var(text).ok().map(|value| (text.clone(), value)),
    };
    list.iter().filter_map(value).collect()
}

fn pairs(option: &str, list: &[String]) -> Result<Vec<(String, String)>, CommandError> {
    let pair = |text: &String| {
        text.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .ok_or_else(|| CommandError::usage(format!("`{option} {text}`: write it like `{option} name=value`")))
    };
    list.iter().map(pair).collect()
}

fn secret(text: &str) -> Result<(String, Secret), CommandError> {
    let wrong = || {
        CommandError::usage(format!("`--secret {text}` makes no sense"))
            .hint("write it like `--secret id=token,src=FILE` or `--secret id=token,env=VARIABLE`")
    };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("src" | "source", value)) => file = Some(value.to_owned()),
            Some(("env", value)) => variable = Some(value.to_owned()),
            Some(("type", value)) if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            _ => return Err(wrong()),
        }
    }
    let id = id.ok_or_else(wrong)?;
    let secret = match (kind.as_deref(), file, variable) {
        (Some("env"), Some(name), None) | (None | Some("env"), None, Some(name)) => Secret::Variable(name),
        (None | Some("file"), Some(path), None) => Secret::File(PathBuf::from(path)),
        // As others have it: a variable of that name, else a file.
        (None, None, None) if std::env::var_os(&id).is_some() => Secret::Variable(id.clone()),
        (None | Some("file"), None, None) => Secret::File(PathBuf::from(&id)),
        _ => return Err(wrong()),
    };
    Ok((id, secret))
}

/// Shows the steps of a build.
struct Watch {
    json: bool,
    steps: bool,
    output: bool,
}

impl Watch {
    fn new(context: &Context, how: How) -> Self {
        let quiet = context.quiet || how == How::None;
        Self { json: context.json, steps: !quiet && !context.json, output: !quiet && how != How::Quiet }
    }
}

fn step_json(event: &str, step: &StepInfo) -> serde_json::Value {
    json!({
        "event": event, "step": step.number, "steps": step.total, "stage": step.stage, "line": step.line,
        "instruction": step.text,
    })
}

/// What steps and files of others say must not command the user's terminal.
fn visible(line: &str) -> String {
    let plain = anstream::adapter::strip_str(line).to_string();
    plain.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// The first line of an instruction, short enough for a line of a terminal.
fn short(text: &str) -> String {
    let mut short: String = visible(text.lines().next().unwrap_or_default()).chars().take(100).collect();
    if text.lines().nth(1).is_some() || text.chars().count() > 100 {
        short.push('…');
    }
    short
}

impl Events for Watch {
    fn begins(&self, step: &StepInfo) {
        if self.json {
            ui::print_json_line(&step_json("started", step));
        } else if self.steps {
            let head = format!("[{} {}/{}]", step.stage, step.number, step.total);
            ui::complain(&format!("{} {}", head.cyan(), short(&step.text)));
        }
    }

    fn output(&self, step: &StepInfo, line: &str) {
        if self.json {
            let mut event = step_json("output", step);
            event["text"] = line.into();
            ui::print_json_line(&event);
        } else if self.output {
            ui::complain(&format!("#{} {}", step.number, visible(line)));
        }
    }

    fn ends(&self, step: &StepInfo, end: StepEnd, took: Duration) {
        if self.json {
            let mut event = step_json("finished", step);
            event["result"] = match end {
                StepEnd::Done => "done",
                StepEnd::Cached => "cached",
                StepEnd::Failed => "failed",
            }
            .into();
            event["milliseconds"] = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into();
            ui::print_json_line(&event);
        } else if self.steps {
            match end {
                StepEnd::Cached => ui::complain(&format!("#{} {}", step.number, "cached".green())),
                StepEnd::Done if took >= Duration::from_secs(1) => {
                    ui::complain(&format!("#{} {}", step.number, ui::duration(took).dimmed()));
                }
                StepEnd::Done | StepEnd::Failed => {}
            }
        }
    }

    fn note(&self, text: &str) {
        if self.json {
            ui::print_json_line(&json!({ "event": "note", "text": text }));
        } else if self.steps {
            ui::complain(&format!("{} {text}", "note:".cyan()));
        }
    }

    fn cancelled(&self) -> bool {
        signals::was_interrupted()
    }
}
