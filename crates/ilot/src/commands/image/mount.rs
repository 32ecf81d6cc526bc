//! `ilot image mount` and `unmount`.

use std::path::PathBuf;

use serde_json::json;

use super::super::Outcome;
use super::{ForPlatform, store};
use crate::context::Context;
use crate::render::progress::Fetch;
use crate::render::table::{Cell, Table};
use crate::{signals, ui};

/// Look at an image's files: mounted read-only, without set-id programs and devices
///
/// Without arguments, lists what is mounted. An image that is mounted is not removed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image mount images:debian/13                 prints where
  ilot image mount golden /mnt
  ilot image mount                                  what is mounted
  ilot image unmount /mnt")]
pub(crate) struct MountArgs {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: Option<String>,

    /// An empty folder, or one that is not there [default: one in the run directory]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn mount(args: &MountArgs, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let store = args.platform.store(context)?;
    let Some(name) = &args.image else { return list(&store, context) };
    let image = store.require(name)?;
    let usual = || context.run.join("mounts").join(image.digest.short());
    let at = args.path.clone().unwrap_or_else(usual);
    let mounted = store.mount(&image, &at, &Fetch::new(context))?;
    if context.json {
        ui::print_json(&mounted);
    } else {
        ui::print(&mounted.path.display().to_string());
    }
    Ok(0)
}

fn list(store: &ilot_image::Store, context: &Context) -> Outcome {
    let all = store.mounted()?;
    if context.json {
        ui::print_json(&all);
        return Ok(0);
    }
    let images = store.list()?;
    let mut table = Table::new(&["IMAGE", "DIGEST", "PATH"]);
    for mount in &all {
        let name = images.iter().find(|image| image.digest == mount.digest).map_or("-", |i| i.reference.as_str());
        table.row([Cell::from(name), Cell::from(mount.digest.short()), Cell::from(mount.path.display().to_string())]);
    }
    ui::write_out(&table.render());
    Ok(0)
}

/// Take mounts of images away
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "umount",
    after_help = "\
Examples:
  ilot image unmount /mnt
  ilot image unmount golden          wherever it is mounted
  ilot image unmount --all"
)]
pub(crate) struct UnmountArgs {
    /// Paths, names or digests
    #[arg(value_name = "PATH|IMAGE", required_unless_present = "all")]
    what: Vec<String>,

    /// Everything that is mounted from this store
    #[arg(long, conflicts_with = "what")]
    all: bool,
}

pub(crate) fn unmount(args: &UnmountArgs, context: &Context) -> Outcome {
    let store = store(context)?;
    let mut what = args.what.clone();
    if args.all {
        what.extend(store.mounted()?.into_iter().map(|m| m.path.display().to_string()));
    }
    let mut gone = Vec::new();
    for one in &what {
        gone.extend(store.unmount(one)?);
    }
    for mount in &gone {
        // A folder that was made for it goes with it; one that somebody named stays.
        if mount.path.starts_with(context.run.join("mounts")) {
            let _ = std::fs::remove_dir(&mount.path);
        }
    }
    if context.json {
        ui::print_json(&json!({ "unmounted": gone }));
    }
    Ok(0)
}
