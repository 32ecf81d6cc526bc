//! `ilot image convert`.

use ilot_image::{Codec, Form, Image, Store};
use serde_json::json;

use super::super::Outcome;
use super::store;
use super::transfer::told;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Have an image in another form
///
/// Where the kernel can, machines get layers as EROFS images that it mounts as they are: nothing is unpacked, and all machines
/// of one trust level share a page cache. `--native` makes them now, and asks for them also where that is not the rule (Linux
/// 6.12; before, by a loop device); with `--unpacked` machines get folders, with `--auto` what is the rule. The name stays.
/// Machines that run go on as they are.
///
/// With `--layers`, a new image with the same configuration and the same files whose layers are compressed in another way:
/// umoci 0.4 and Docker before version 23 know gzip alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image convert --native images:debian/13
  ilot image convert --layers gzip golden golden:gzip     then: umoci unpack --image /var/lib/ilot:local:golden:gzip DIR")]
#[command(group = clap::ArgGroup::new("form").required(true).args(["native", "unpacked", "auto", "layers"]))]
pub(crate) struct Args {
    /// Layers as EROFS images from now on
    #[arg(long)]
    native: bool,

    /// Layers as folders from now on
    #[arg(long)]
    unpacked: bool,

    /// As EROFS images where the kernel can, as folders elsewhere
    #[arg(long)]
    auto: bool,

    /// Make them now for this trust level, too [default: those that have the image]
    #[arg(long, value_name = "LEVEL", requires = "native")]
    trust: Vec<String>,

    /// Compress its layers so
    #[arg(long, value_name = "HOW", requires = "name")]
    layers: Option<Layers>,

    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// The new image's name
    #[arg(value_name = "NAME", requires = "layers")]
    name: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Layers {
    /// What everybody reads
    Gzip,
    /// Smaller and quicker
    Zstd,
    /// Not at all
    Plain,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let store = store(context)?;
    let image = store.require(&args.image)?;
    let (Some(layers), Some(name)) = (args.layers, &args.name) else { return form(args, &store, &image, context) };
    let codec = match layers {
        Layers::Gzip => Codec::Gzip,
        Layers::Zstd => Codec::Zstd,
        Layers::Plain => Codec::Plain,
    };
    let converted = store.recompress(&image, codec, name, &Fetch::new(context))?;
    told(context, &converted);
    Ok(0)
}

/// Native, unpacked, or as the kernel can, from now on.
fn form(args: &Args, store: &Store, image: &Image, context: &Context) -> Outcome {
    let mut levels = store.trust_levels(image)?;
    levels.extend(args.trust.iter().cloned());
    levels.sort();
    levels.dedup();
    let progress = Fetch::new(context);
    let mut files = Vec::new();
    if args.native {
        for level in &levels {
            for layer in store.native(image, level, &progress)? {
                let size = std::fs::metadata(&layer.file).map_or(0, |m| m.len());
                files.push(json!({
                    "trust": level, "layer": layer.layer, "file": layer.file, "digest": layer.digest, "size": size
                }));
            }
        }
    }
    ilot_image::Progress::finished(&progress);
    let form = match (args.native, args.unpacked) {
        (true, _) => Form::Native,
        (_, true) => Form::Unpacked,
        _ => Form::Auto,
    };
    store.set_form(image, form).map_err(CommandError::from)?;
    if context.json {
        ui::print_json(&json!({
            "reference": image.reference, "digest": image.digest, "native": args.native, "form": form.name(), "layers": files,
        }));
    } else {
        let form = match form {
            Form::Auto => "native where the kernel can,",
            other => other.name(),
        };
        let made = if files.is_empty() { String::new() } else { format!(", {} made", ui::count(files.len(), "layer")) };
        context.note(&format!("{}: its layers are {form} for machines that start from now on{made}", image.reference));
    }
    Ok(0)
}
