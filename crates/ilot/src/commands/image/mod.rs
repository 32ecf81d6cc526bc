//! `ilot image`: the images of the store.

mod build;
mod commit;
mod convert;
mod derive;
mod look;
mod ls;
mod mount;
mod pull;
mod push;
mod rm;
mod sbom;
mod search;
mod sign;
mod sync;
mod transfer;

use std::collections::BTreeSet;

use clap::Subcommand;
use ilot_image::{Digest, Platform, Store};

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Images: fetch, build, list, name, compare, remove them
///
/// Everything works on the store alone (`--root`); no daemon and no registry is needed. Images that machines stand on are
/// not removed. What an image's name can be is in docs/images.md.
#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pull(pull::Args),
    Build(Box<build::Args>),
    Push(push::Args),
    Ls(ls::Args),
    Rm(rm::RmArgs),
    Tag(transfer::TagArgs),
    Inspect(look::InspectArgs),
    History(look::HistoryArgs),
    Import(transfer::ImportArgs),
    Export(transfer::ExportArgs),
    Prune(rm::PruneArgs),
    Verify(look::VerifyArgs),
    Diff(look::DiffArgs),
    Commit(commit::Args),
    Convert(convert::Args),
    Derive(derive::Args),
    Mount(mount::MountArgs),
    Unmount(mount::UnmountArgs),
    Sign(sign::Args),
    Sbom(sbom::Args),
    Search(search::Args),
    Sync(sync::Args),
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    match &args.command {
        Command::Pull(args) => pull::run(args, context),
        Command::Build(args) => build::run(args, context),
        Command::Push(args) => push::run(args, context),
        Command::Ls(args) => ls::run(args, context),
        Command::Rm(args) => rm::rm(args, context),
        Command::Tag(args) => transfer::tag(args, context),
        Command::Inspect(args) => look::inspect(args, context),
        Command::History(args) => look::history(args, context),
        Command::Import(args) => transfer::import(args, context),
        Command::Export(args) => transfer::export(args, context),
        Command::Prune(args) => rm::prune(args, context),
        Command::Verify(args) => look::verify(args, context),
        Command::Diff(args) => look::diff(args, context),
        Command::Commit(args) => commit::run(args, context),
        Command::Convert(args) => convert::run(args, context),
        Command::Derive(args) => derive::run(args, context),
        Command::Mount(args) => mount::mount(args, context),
        Command::Unmount(args) => mount::unmount(args, context),
        Command::Sign(args) => sign::run(args, context),
        Command::Sbom(args) => sbom::run(args, context),
        Command::Search(args) => search::run(args, context),
        Command::Sync(args) => sync::run(args, context),
    }
}

/// `--platform`, of the commands that look an image up.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ForPlatform {
    /// For other machines than this one: `linux/arm64`, `linux/arm/v7`
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

impl ForPlatform {
    /// The store as somebody with that platform sees it.
    pub(crate) fn store(&self, context: &Context) -> Result<Store, CommandError> {
        let store = store(context)?;
        Ok(match &self.platform {
            Some(platform) => store.with_platform(platform.clone()),
            None => store,
        })
    }

    /// The platform, where one is given.
    pub(crate) fn get(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }
}

/// How registries are spoken to.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// `false`: take whatever certificate a registry shows, or none at all
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    tls_verify: bool,

    /// Log in as this user, whatever the auth files say; without a password it is asked for
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,

    /// Read logins from this file alone [default: those of `podman login` and `docker login`]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env_values = true)]
    authfile: Option<std::path::PathBuf>,
}

impl Access {
    /// The store as it speaks to registries then.
    fn of(&self, mut store: Store) -> Result<Store, CommandError> {
        if !self.tls_verify {
            store = store.without_tls_verification();
        }
        if let Some(file) = &self.authfile {
            store = store.with_auth_file(file);
        }
        let Some(given) = &self.creds else { return Ok(store) };
        if given.contains(':') {
            return Ok(store.with_login(given));
        }
        if !ui::is_interactive() {
            return Err(CommandError::usage(format!(
                "`--creds {given}` has no password, and there is no terminal to ask on"
            ))
            .hint("`--creds USER:PASSWORD`, or `--authfile FILE`, which others do not see in the list of processes"));
        }
        let password = ui::ask_secret(&format!("password of {given}: "))
            .map_err(|e| CommandError::new(format!("read the password: {e}")))?;
        Ok(store.with_login(&format!("{given}:{password}")))
    }
}

/// The store; a user may have one of his own.
fn store(context: &Context) -> Result<Store, CommandError> {
    if !context.root.is_dir() {
        // The store's own folder is made, those above it too (`/var/lib/ilot` on a new host).
        std::fs::create_dir_all(&context.root).map_err(|e| {
            CommandError::new(format!("make store `{}`: {e}", context.root.display()))
                .hint("the usual store belongs to root: run it with `sudo`, or choose another one with `--root`")
        })?;
    }
    Ok(Store::open(&context.root)?)
}

/// The digests that machines of this store stand on, and those that are mounted.
fn in_use(context: &Context) -> Result<BTreeSet<Digest>, CommandError> {
    let mut digests: BTreeSet<Digest> = store(context)?.mounted()?.into_iter().map(|mount| mount.digest).collect();
    // A store without machines needs no engine, and so no root.
    let machines = context.root.join("machines");
    if std::fs::read_dir(&machines).map_or(true, |mut entries| entries.next().is_none()) {
        return match std::fs::metadata(&machines) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(CommandError::new(format!("read `{}`: {e}", machines.display())).hint("run it with `sudo`"))
            }
            _ => Ok(digests),
        };
    }
    for machine in context.engine()?.machines()? {
        digests.insert(machine.record.image_digest.parse::<Digest>()?);
    }
    Ok(digests)
}
