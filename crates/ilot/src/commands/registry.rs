//! `ilot registry`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use ilot_image::{Remote, Timeouts};
use ilot_registry::{Options, Source};
use serde_json::json;

use super::Outcome;
use super::run::size;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// A registry of images on this host
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What a registry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// For this host, or for whoever reaches it
    Local,
    /// What is asked for comes from another registry, and is kept
    Mirror,
    /// For many: with logins, tokens and TLS, or not at all
    Central,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(ServeArgs),
}

/// Serve images to podman, docker, skopeo and `ilot image`, until Ctrl-C
///
/// The whole distribution-spec 1.1 on a store of its own, `registry` in the store (`--root`). One server per store; any user
/// can have one. What it holds can be read as OCI layouts without it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot registry serve                                    on loopback, for everybody on this host
  ilot registry serve --root ./images --listen 0.0.0.0:5000 --htpasswd users \\
      --tls-cert cert.pem --tls-key key.pem
  ilot registry serve --type mirror --upstream docker.io --quota 50GiB
  ilot registry serve --type central --listen 0.0.0.0:443 --htpasswd users --access access \\
      --tls-cert cert.pem --tls-key key.pem
  ilot registry serve --read-only

Then: ilot image push golden localhost:5000/golden --tls-verify=false")]
struct ServeArgs {
    /// Address and port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,

    /// Take nothing and remove nothing
    #[arg(long)]
    read_only: bool,

    /// What it is for
    #[arg(long = "type", value_name = "TYPE", default_value = "local")]
    kind: Kind,

    /// Of a mirror: where images come from, `docker.io`, `HOST:PORT`, `HOST/PATH`
    #[arg(long, value_name = "REGISTRY", required_if_eq("kind", "mirror"))]
    upstream: Option<String>,

    /// `false`: take whatever certificate the upstream shows, or none at all
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    upstream_tls_verify: bool,

    /// Of a mirror: believe for so long what is behind a tag, before the upstream is asked again
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    revalidate: u64,

    /// Of a mirror: forget what nobody asked for in so many days [default: only when `--quota` is reached]
    #[arg(long, value_name = "DAYS")]
    unused: Option<u64>,

    /// Only for the users of this file (`htpasswd -B`)
    #[arg(long, value_name = "FILE")]
    htpasswd: Option<PathBuf>,

    /// Who may do what: lines of `USER REPOSITORY ACTIONS`; `*` is everybody
    #[arg(long, value_name = "FILE")]
    access: Option<PathBuf>,

    /// Exchange logins for tokens that are good for five minutes
    #[arg(long, requires = "htpasswd")]
    tokens: bool,

    /// Certificate, and those above it, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Hold at most so much: `20GiB`
    #[arg(long, value_name = "SIZE", value_parser = size)]
    quota: Option<u64>,

    /// Keep what no manifest refers to for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    grace: u64,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    match &args.command {
        Command::Serve(args) => serve(args, context),
    }
}

/// Where the images of a mirror come from.
fn source(args: &ServeArgs) -> Result<Option<Arc<dyn Source>>, CommandError> {
    let wrong = |text: &str| Err(CommandError::usage(text).hint("`--type mirror --upstream docker.io`, for example"));
    match (args.kind, &args.upstream) {
        (Kind::Mirror, Some(upstream)) => {
            Ok(Some(Arc::new(Remote::new(upstream, Timeouts::default(), args.upstream_tls_verify)?)))
        }
        (Kind::Mirror, None) => wrong("a mirror needs an upstream"),
        (_, Some(_)) => wrong("only a mirror has an upstream"),
        (_, None) => Ok(None),
    }
}

fn serve(args: &ServeArgs, context: &Context) -> Outcome {
    let mut options = Options::new(args.listen, context.root.join("registry"));
    options.read_only = args.read_only;
    options.htpasswd.clone_from(&args.htpasswd);
    options.access.clone_from(&args.access);
    options.tokens = args.tokens || args.kind == Kind::Central;
    options.revalidate = Duration::from_secs(args.revalidate);
    options.unused = args.unused.map(|days| Duration::from_secs(days.saturating_mul(86_400)));
    options.source = source(args)?;
    if args.kind == Kind::Central && (args.htpasswd.is_none() || args.tls_cert.is_none()) {
        return Err(CommandError::usage("a central registry is for people who have a name, and not for the clear")
            .hint("give it `--htpasswd FILE`, and `--tls-cert FILE` with `--tls-key FILE`")
            .hint("`--type local` asks for neither"));
    }
    options.tls = args.tls_cert.clone().zip(args.tls_key.clone());
    options.quota = args.quota;
    options.grace = Duration::from_secs(args.grace);
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    if options.htpasswd.is_none() && !options.read_only && options.source.is_none() && !args.listen.ip().is_loopback() {
        context
            .note("warning: everybody who reaches this address can push and delete; `--htpasswd` asks for passwords");
    }
    if options.htpasswd.is_some() && options.tls.is_none() && !args.listen.ip().is_loopback() {
        context.note("warning: passwords go over the network in the clear; `--tls-cert` and `--tls-key` encrypt them");
    }
    let ready = |address: SocketAddr| {
        if context.json {
            ui::print_json_line(
                &json!({ "event": "listening", "address": address, "url": format!("{scheme}://{address}") }),
            );
        } else {
            context.note(&format!("listening on {scheme}://{address}, store {}", options.root.display()));
        }
    };
    ilot_registry::serve(&options, ready).map_err(|error| {
        let help = error.help();
        CommandError::new(error).maybe_hint(help)
    })?;
    Ok(0)
}
