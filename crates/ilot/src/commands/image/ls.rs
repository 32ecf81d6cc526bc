//! `ilot image ls`.

use ilot_image::Image;
use jiff::Timestamp;
use serde_json::json;

use super::super::Outcome;
use super::{in_use, store};
use crate::context::Context;
use crate::render::table::{Cell, Table};
use crate::ui;

/// List the images of the store
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list",
    after_help = "\
Examples:
  ilot image ls
  ilot image ls debian              names that contain it
  ilot image ls -q                  digests only"
)]
pub(crate) struct Args {
    /// Only names that contain this
    #[arg(value_name = "TEXT")]
    filter: Option<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let used = in_use(context)?;
    let images: Vec<Image> = store(context)?
        .list()?
        .into_iter()
        .filter(|image| args.filter.as_ref().is_none_or(|text| image.reference.contains(text.as_str())))
        .collect();
    if context.json {
        let mut list = Vec::new();
        for image in &images {
            let mut value = serde_json::to_value(image).map_err(crate::error::CommandError::new)?;
            value["in_use"] = json!(used.contains(&image.digest));
            list.push(value);
        }
        ui::print_json(&list);
        return Ok(0);
    }
    if context.quiet {
        for image in &images {
            ui::print(&image.digest.to_string());
        }
        return Ok(0);
    }
    let foreign = |image: &Image| !image.platform.runs_here();
    let mut table = Table::new(&["NAME", "DIGEST", "SIZE", "UNPACKED", "CREATED", "INIT", "USED"]).right(&[2, 3]);
    for image in &images {
        table.row([
            Cell::from(if foreign(image) {
                format!("{} ({})", image.reference, image.platform)
            } else {
                image.reference.clone()
            }),
            Cell::from(image.digest.short()),
            Cell::from(ui::bytes(image.size)),
            Cell::from(ui::bytes(image.unpacked_size)),
            Cell::from(ago(image.created)),
            Cell::from(image.init.as_ref().map_or("-", |init| match init.kind {
                ilot_image::InitKind::Systemd { .. } => "systemd",
                ilot_image::InitKind::Other => "other",
            })),
            Cell::from(if used.contains(&image.digest) { "yes" } else { "-" }),
        ]);
    }
    ui::write_out(&table.render());
    Ok(0)
}

/// `3d 4h ago`; `-` where it is not known.
pub(super) fn ago(time: Option<Timestamp>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    match Timestamp::now().duration_since(time).try_into() {
        Ok(span) => format!("{} ago", ui::duration(span)),
        // Of tomorrow, by another clock.
        Err(_) => time.to_string(),
    }
}
