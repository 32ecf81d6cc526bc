//! `ilot image rm` and `prune`.

use std::collections::BTreeSet;

use owo_colors::OwoColorize;
use serde_json::json;

use super::super::Outcome;
use super::{ForPlatform, in_use, store};
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Remove images: their names, and what nothing else needs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image rm docker://alpine:3.20
  ilot image rm 66abd35e81          by digest: all its names

An image that machines stand on is not removed.
Exit codes: 0 all are gone, 1 one is not.")]
pub(crate) struct RmArgs {
    /// Names or digests
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn rm(args: &RmArgs, context: &Context) -> Outcome {
    let store = args.platform.store(context)?;
    let used = in_use(context)?;
    let (mut failed, mut report) = (false, Vec::new());
    for name in &args.images {
        match store.remove(name, &used) {
            Ok(image) => {
                if context.json {
                    report.push(json!({ "name": name, "result": "removed", "digest": image.digest, "error": null }));
                } else if !context.quiet {
                    ui::print(&format!("{} {}", "removed".green(), image.reference));
                }
            }
            Err(error) => {
                failed = true;
                let error = CommandError::from(error);
                if context.json {
                    let message = error.message();
                    report.push(json!({ "name": name, "result": "failed", "digest": null, "error": message }));
                } else {
                    error.report(context);
                }
            }
        }
    }
    let freed = store.gc(&used)?;
    unmount_idle(context)?;
    if context.json {
        ui::print_json(&json!({ "images": report, "bytes": freed.bytes }));
    }
    Ok(u8::from(failed))
}

/// Layers that were kept mounted for the next machine: their files are gone, or are to be.
fn unmount_idle(context: &Context) -> Result<(), CommandError> {
    // Only who runs machines has some.
    if context.run.join("layers").is_dir() && rustix::process::geteuid().is_root() {
        context.engine()?.collect_layers(std::time::Duration::ZERO)?;
    }
    Ok(())
}

/// Remove what no image and no machine needs
///
/// Blobs that no image refers to, layers, and mounts of these; with `--all` also the images that no machine stands on, and the
/// cache of `ilot image build`. Runs beside pulls and machines without holding them up.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image prune
  ilot image prune --all --yes      every image that no machine stands on")]
pub(crate) struct PruneArgs {
    /// Images that no machine stands on too, and the build cache
    #[arg(short, long)]
    all: bool,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn prune(args: &PruneArgs, context: &Context) -> Outcome {
    let store = store(context)?;
    let used = in_use(context)?;
    let mut removed = Vec::new();
    if args.all {
        let unused: Vec<_> = store.list()?.into_iter().filter(|image| !used.contains(&image.digest)).collect();
        if !unused.is_empty() && !args.yes {
            if !ui::is_interactive() {
                return Err(CommandError::usage("`--all` removes images, and there is nobody to ask")
                    .hint("`--yes` removes them without asking"));
            }
            for image in &unused {
                ui::complain(&format!("  {}", image.reference));
            }
            let question = format!("remove {}?", ui::count(unused.len(), "image"));
            if !ui::confirm(&question).map_err(CommandError::new)? {
                return Ok(1);
            }
        }
        let digests: BTreeSet<_> = unused.iter().map(|image| image.digest.clone()).collect();
        // Looked at again under the store's lock: one that became used meanwhile stays.
        let used = in_use(context)?;
        for digest in digests {
            match store.remove(&digest.to_string(), &used) {
                Ok(image) => removed.push(image.reference),
                Err(ilot_image::Error::NotFound { .. } | ilot_image::Error::InUse { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    if args.all && store.empty_build_cache()?.is_none() {
        context.note("an image is being built: the build cache stays");
    }
    let freed = store.gc(&used)?;
    unmount_idle(context)?;
    if context.json {
        ui::print_json(&json!({
            "images": removed, "blobs": freed.blobs, "layers": freed.layers, "bytes": freed.bytes,
        }));
    } else if !context.quiet {
        for name in &removed {
            ui::print(&format!("{} {name}", "removed".green()));
        }
        let blobs = ui::count(freed.blobs, "blob");
        let layers = ui::count(freed.layers, "unpacked layer");
        ui::print(&format!("removed {blobs} ({}) and {layers}", ui::bytes(freed.bytes)));
    }
    Ok(0)
}
