//! `ilot image sync`.

use ilot_image::{SyncResult, SyncRules, Synced};
use jiff::Timestamp;
use serde_json::json;

use super::super::Outcome;
use super::store;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Copy images between registries and folders
///
/// Indexes with all their images, signatures and what else refers to an image come along, to the byte. What is there is not
/// copied again: a copy that broke off goes on. The store is not touched.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "replicate",
    after_help = "\
Examples:
  ilot image sync registry.example.org/team oci:/media/usb           all repositories below team
  ilot image sync oci:/media/usb localhost:5000/team --tls-verify=false
  ilot image sync docker.io/library/alpine localhost:5000 --tag '3.*' --since 2025-01-01
  ilot image sync --dry-run a.example.org b.example.org --name 'team/*'

A place is HOST[:PORT][/PATH[:TAG]], `oci:DIR` (an OCI layout for each repository) or `dir:DIR` (a folder for each image, as
`skopeo sync` has them).
Exit codes: 0 all are there, 1 one is not."
)]
pub(crate) struct Args {
    /// Where images come from
    #[arg(value_name = "FROM")]
    from: String,

    /// Where they go
    #[arg(value_name = "TO")]
    to: String,

    /// Only repositories whose name fits; `*` is anything; may be repeated
    #[arg(long, value_name = "GLOB")]
    name: Vec<String>,

    /// Only tags that fit; may be repeated
    #[arg(long, value_name = "GLOB")]
    tag: Vec<String>,

    /// Only images that were made then or later: `2025-01-31`, `2025-01-31T12:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,

    /// Only say what would be copied
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// `false`: take whatever certificate the registries show, or none at all
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    tls_verify: bool,

    /// Read logins from this file alone [default: those of `podman login` and `docker login`]
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env_values = true)]
    authfile: Option<std::path::PathBuf>,
}

fn time(text: &str) -> Result<Timestamp, String> {
    let day = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    text.parse().ok().or_else(|| day().map(|z| z.timestamp())).ok_or_else(|| "not a time like `2025-01-31`".to_owned())
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let mut store = store(context)?;
    if !args.tls_verify {
        store = store.without_tls_verification();
    }
    if let Some(file) = &args.authfile {
        store = store.with_auth_file(file);
    }
    let rules =
        SyncRules { names: args.name.clone(), tags: args.tag.clone(), since: args.since, dry_run: args.dry_run };
    let mut each = |one: &Synced| {
        if !context.json {
            told(one, context);
        }
    };
    let all = store.sync(&args.from, &args.to, &rules, &Fetch::new(context), &mut each)?;
    let count = |result: SyncResult| all.iter().filter(|one| one.result == result).count();
    let failed = count(SyncResult::Failed);
    if context.json {
        ui::print_json(&json!({ "images": all }));
        return Ok(u8::from(failed > 0));
    }
    let copied = ui::count(count(SyncResult::Copied), "image");
    let blobs: u64 = all.iter().map(|one| one.bytes).sum();
    context.note(&format!("{copied} copied ({}), {} there already", ui::bytes(blobs), count(SyncResult::Present)));
    if failed > 0 {
        return Err(CommandError::new(format!("{} could not be copied", ui::count(failed, "image")))
            .hint("the same command goes on where this one ended"));
    }
    Ok(0)
}

fn told(one: &Synced, context: &Context) {
    // A digest is of something that refers to an image, and not behind a colon.
    let mark = if one.tag.contains(':') { '@' } else { ':' };
    let name = format!("{}{mark}{}", one.repository, one.tag);
    match (&one.error, one.result) {
        (Some(error), _) => ui::complain(&format!("error: {name}: {error}")),
        (None, SyncResult::Copied) => ui::print(&format!("{name}: copied ({})", ui::bytes(one.bytes))),
        (None, SyncResult::WouldCopy) => ui::print(&format!("{name}: would be copied")),
        (None, SyncResult::TooOld) if context.verbose => ui::print(&format!("{name}: too old")),
        (None, SyncResult::Present) if context.verbose => ui::print(&format!("{name}: there already")),
        _ => {}
    }
}
