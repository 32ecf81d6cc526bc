//! `ilot image sbom`.

use std::path::PathBuf;

use ilot_image::SbomFormat;

use super::super::Outcome;
use super::ForPlatform;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// List the packages of an image, as SPDX or CycloneDX
///
/// Read from its layers, without running anything of it: dpkg's and apk's databases, Python's and Node's installed packages,
/// `package-lock.json` and `Cargo.lock`. The same image gives the same document.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image sbom images:debian/13 > debian.spdx.json
  ilot image sbom --format cyclonedx -o tool.cdx.json docker://alpine:3.20
  ilot image sbom --attach registry.example.org/team/tool:1      beside the image, for `oras discover`")]
pub(crate) struct Args {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// How it is written
    #[arg(long, value_name = "FORMAT", default_value = "spdx")]
    format: Format,

    /// Write it into this file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Put it beside the image in its registry, as what refers to it
    #[arg(long)]
    attach: bool,

    #[command(flatten)]
    platform: ForPlatform,

    #[command(flatten)]
    access: super::Access,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// SPDX 2.3
    Spdx,
    /// CycloneDX 1.5
    Cyclonedx,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let store = args.access.of(args.platform.store(context)?)?;
    let format = match args.format {
        Format::Spdx => SbomFormat::Spdx,
        Format::Cyclonedx => SbomFormat::CycloneDx,
    };
    let image = store.require(&args.image)?;
    let bill = store.packages(&image)?;
    for note in &bill.notes {
        context.note(&format!("note: {}: {note}", image.reference));
    }
    let document = store.sbom(&image, &bill, format);
    if let Some(path) = &args.output {
        let text = format!("{document:#}\n");
        std::fs::write(path, text).map_err(|e| CommandError::new(format!("write {}: {e}", path.display())))?;
    }
    if args.attach {
        let digest = store.attach(&args.image, &image, &document, format.media_type())?;
        context.note(&format!("{} refers to {} in {}", digest.short(), image.digest.short(), args.image));
    }
    if args.output.is_none() && !args.attach {
        ui::print_json(&document);
    }
    Ok(0)
}
