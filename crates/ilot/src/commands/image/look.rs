//! `ilot image inspect`, `history`, `verify` and `diff`.

use ilot_image::{ChangeKind, Finding};
use owo_colors::{OwoColorize, Style};
use serde_json::json;

use super::super::Outcome;
use super::{ForPlatform, ls, store};
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::render::table::{Cell, Table};
use crate::{signals, ui};

/// Print everything known about images, as JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image inspect busybox
  ilot image inspect images:debian/13 | jq '.[0].configuration.config'")]
pub(crate) struct InspectArgs {
    /// Names or digests
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn inspect(args: &InspectArgs, context: &Context) -> Outcome {
    let store = args.platform.store(context)?;
    let found: Result<Vec<_>, _> = args.images.iter().map(|name| store.details(name)).collect();
    ui::print_json(&found?);
    Ok(0)
}

/// Show how an image was made, the last step first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image history docker://alpine:3.20")]
pub(crate) struct HistoryArgs {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn history(args: &HistoryArgs, context: &Context) -> Outcome {
    let store = args.platform.store(context)?;
    let steps = store.history(&store.require(&args.image)?)?;
    if context.json {
        ui::print_json(&steps);
        return Ok(0);
    }
    let mut table = Table::new(&["LAYER", "SIZE", "CREATED", "BY"]).right(&[1]);
    for step in &steps {
        let by = if step.created_by.is_empty() { "-" } else { step.created_by.as_str() };
        table.row([
            Cell::from(step.layer.as_ref().map_or("-", ilot_image::Digest::short)),
            Cell::from(ui::bytes(step.size)),
            Cell::from(ls::ago(step.created)),
            // One line each, whatever somebody wrote into it.
            Cell::from(by.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>()),
        ]);
    }
    ui::write_out(&table.render());
    Ok(0)
}

/// Read every file of images and compare it with its digest; or see who signed them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image verify                 all of them
  ilot image verify busybox
  ilot image verify --key team.pub registry.example.org/team/tool:1     who signed it, in its registry

Exit codes: 0 all is well, 1 something is damaged or not signed by the keys.")]
pub(crate) struct VerifyArgs {
    /// Names or digests [default: all]
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,

    /// Ask the registry for signatures of this public key, and look at no files; may be repeated
    #[arg(long, value_name = "FILE", requires = "images")]
    key: Vec<std::path::PathBuf>,

    #[command(flatten)]
    access: super::Access,
}

pub(crate) fn verify(args: &VerifyArgs, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let store = store(context)?;
    if !args.key.is_empty() {
        return super::sign::verify(&args.images, &args.key, &args.access.of(store)?, context);
    }
    let images = match args.images.as_slice() {
        [] => store.list()?,
        names => {
            let all = store.list()?;
            // A damaged image cannot be looked up by its name; what the list says of it is enough.
            let find = |name: &String| match store.require(name) {
                Ok(image) => Ok(image),
                Err(error) => all.iter().find(|image| image.reference == *name).cloned().ok_or(error),
            };
            names.iter().map(find).collect::<Result<_, _>>()?
        }
    };
    let mut findings: Vec<Finding> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let progress = Fetch::new(context);
    for image in &images {
        if seen.insert(&image.digest) {
            findings.extend(store.verify(image, &progress)?);
        }
    }
    if context.json {
        ui::print_json(&json!({ "images": seen.len(), "findings": findings }));
        return Ok(u8::from(!findings.is_empty()));
    }
    for finding in &findings {
        let text = format!("image `{}`: {}: {}", finding.image, finding.path.display(), finding.reason);
        ui::complain(&format!("{} {text}", "damaged:".red().bold()));
    }
    if findings.is_empty() {
        context.note(&format!("{}: all is well", ui::count(seen.len(), "image")));
        return Ok(0);
    }
    Err(CommandError::new(format!("{} damaged", ui::count(findings.len(), "file")))
        .hint("`ilot image pull NAME` puts a good image in a damaged one's place"))
}

/// Show what differs between two images, or what an image's top layer changes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image diff golden            its top layer against those below
  ilot image diff images:debian/13 golden

A added, C changed, D deleted. Times alone are no difference.
Exit codes: 0 whether they differ or not.")]
pub(crate) struct DiffArgs {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// The one to compare it with
    #[arg(value_name = "OTHER")]
    other: Option<String>,
}

pub(crate) fn diff(args: &DiffArgs, context: &Context) -> Outcome {
    let store = store(context)?;
    let image = store.require(&args.image)?;
    let changes = match &args.other {
        Some(other) => store.diff(&image, &store.require(other)?)?,
        None => store.diff_of_top(&image)?,
    };
    if context.json {
        ui::print_json(&changes);
        return Ok(0);
    }
    let mut text = String::new();
    for change in &changes {
        let (letter, style) = match change.kind {
            ChangeKind::Added => ("A", Style::new().green()),
            ChangeKind::Changed => ("C", Style::new().yellow()),
            ChangeKind::Deleted => ("D", Style::new().red()),
        };
        let what = if change.what.is_empty() { String::new() } else { format!(" ({})", change.what.join(", ")) };
        let path: String = change.path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        text.push_str(&format!("{} {path}{}\n", letter.style(style), what.dimmed()));
    }
    ui::write_out(&text);
    Ok(0)
}
