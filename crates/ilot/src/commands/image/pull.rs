//! `ilot image pull`.

use ilot_image::Image;
use serde_json::json;

use super::super::Outcome;
use super::ForPlatform;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Fetch images into the store, asking their source even when the store has them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image pull images:debian/13
  ilot image pull docker://alpine:3.20 ghcr.io/owner/tool:1
  ilot image pull --missing busybox
  ilot image pull --platform linux/arm64 docker://alpine:3.20     beside the one for this host
  ilot image pull --tls-verify=false localhost:5000/team/tool:1

Exit codes: 0 all are there, 1 one is not.")]
pub(crate) struct Args {
    /// Names of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,

    /// Only what the store does not have
    #[arg(long)]
    missing: bool,

    #[command(flatten)]
    platform: ForPlatform,

    #[command(flatten)]
    access: super::Access,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let store = args.access.of(args.platform.store(context)?)?;
    let (mut failed, mut report) = (false, Vec::new());
    for name in &args.images {
        let before = store.resolve(name).ok().flatten().map(|image| image.digest);
        let progress = Fetch::new(context);
        let result = if args.missing { store.obtain(name, &progress) } else { store.refresh(name, &progress) };
        failed |= result.is_err();
        match result {
            Ok(image) => {
                let news = before.as_ref() != Some(&image.digest);
                if context.json {
                    let result = if news { "pulled" } else { "unchanged" };
                    report.push(json!({ "name": name, "result": result, "image": image, "error": null }));
                } else {
                    ui::print(&line(&image, news, context));
                }
            }
            Err(error) => {
                let error = CommandError::from(error);
                if context.json {
                    let message = error.message();
                    report.push(json!({ "name": name, "result": "failed", "image": null, "error": message }));
                } else {
                    error.report(context);
                }
            }
        }
        if signals::was_interrupted() {
            failed = true;
            break;
        }
    }
    if context.json {
        ui::print_json(&json!({ "images": report }));
    }
    Ok(u8::from(failed))
}

fn line(image: &Image, news: bool, context: &Context) -> String {
    if context.quiet {
        return image.digest.to_string();
    }
    let unchanged = if news { "" } else { ", unchanged" };
    format!("{} {} ({}{unchanged})", image.digest.short(), image.reference, ui::bytes(image.size))
}
