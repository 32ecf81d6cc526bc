//! `ilot image derive`.

use std::path::PathBuf;

use ilot_image::Changes;

use super::super::Outcome;
use super::{ForPlatform, transfer};
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::signals;

/// Make an image of another one: other settings, files on top; nothing of it is run
///
/// What is copied belongs to root and is one layer; links of the image are followed inside it. Of a folder, what is in it is
/// copied. Steps that run something are for `ilot image build`, or `ilot run` and `ilot image commit`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image derive --env LANG=C.UTF-8 --cmd 'httpd -f' busybox web
  ilot image derive --copy ./site:/srv/www --copy nginx.conf:/etc/nginx/ images:debian/13 site:2
  ilot image derive --label org.opencontainers.image.version=2 --user 1000 golden golden:2")]
pub(crate) struct Args {
    /// The image to begin with
    #[arg(value_name = "BASE")]
    base: String,

    /// The new image's name, as `ilot image tag` takes it; it moves when another image has it
    #[arg(value_name = "NAME")]
    name: String,

    /// Set a variable; may be repeated
    #[arg(short, long, value_name = "K=V")]
    env: Vec<String>,

    /// Its command: words, or a JSON list of them
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,

    /// What is run before the command: words, or a JSON list of them
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,

    /// Set a label; may be repeated
    #[arg(short, long, value_name = "K=V")]
    label: Vec<String>,

    /// As this user
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,

    /// In this folder
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Stopped by this signal
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,

    /// Copy a file or what is in a folder; a path with `/` at its end is a folder; may be repeated
    #[arg(long, value_name = "SRC:DST")]
    copy: Vec<String>,

    /// Say something about it in the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    #[command(flatten)]
    platform: ForPlatform,
}

/// Words between spaces, or a JSON list where there are spaces in one of them.
fn words(text: &str) -> Result<Vec<String>, CommandError> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .map_err(|e| CommandError::usage(format!("`{text}`: not a JSON list of words: {e}")));
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let copy = |pair: &String| match pair.rsplit_once(':') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((PathBuf::from(from), to.to_owned())),
        _ => Err(CommandError::usage(format!("`--copy {pair}`: not of the form SRC:DST"))),
    };
    let changes = Changes {
        env: args.env.clone(),
        cmd: args.cmd.as_deref().map(words).transpose()?,
        entrypoint: args.entrypoint.as_deref().map(words).transpose()?,
        labels: args.label.clone(),
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        stop_signal: args.stop_signal.clone(),
        copies: args.copy.iter().map(copy).collect::<Result<_, _>>()?,
        comment: args.message.clone(),
    };
    signals::raise_flag_on_interrupt();
    let store = args.platform.store(context)?;
    let progress = Fetch::new(context);
    let base = store.obtain(&args.base, &progress)?;
    let image = store.derive(&base, &changes, &args.name, &progress)?;
    transfer::told(context, &image);
    Ok(0)
}
