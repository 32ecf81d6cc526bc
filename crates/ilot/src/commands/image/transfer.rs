//! `ilot image tag`, `import` and `export`.

use ilot_image::{LayoutKind, Reference};
use serde_json::json;

use super::super::Outcome;
use super::ForPlatform;
use crate::context::Context;
use crate::error::CommandError;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Give an image one more name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image tag images:debian/13 golden              then: ilot run golden
  ilot image tag golden ghcr.io/owner/golden:1        then: ilot image push")]
pub(crate) struct TagArgs {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// A word, with a tag or without, or a registry's name; it moves when another image has it
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn tag(args: &TagArgs, context: &Context) -> Outcome {
    let image = args.platform.store(context)?.tag(&args.image, &args.name)?;
    told(context, &image);
    Ok(0)
}

/// The image on one line, or as JSON.
pub(super) fn told(context: &Context, image: &ilot_image::Image) {
    if context.json {
        ui::print_json(image);
    } else if context.quiet {
        ui::print(&image.digest.to_string());
    } else {
        ui::print(&format!("{} {} ({})", image.digest.short(), image.reference, ui::bytes(image.size)));
    }
}

/// Take in an archive or a folder, whatever kind of image is in it
///
/// An OCI layout or an archive of one, what `docker save` and `podman save` write, a tar archive of a root file system or
/// the folder of one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image import ./image.tar
  ilot image import ./rootfs.tar.zst mine:1
  ilot image import docker-archive:all.tar:tool:2 tool")]
pub(crate) struct ImportArgs {
    /// A file or folder, or one with its kind in front (`oci:`, `oci-archive:`, `docker-archive:`, `tar:`, `dir:`)
    #[arg(value_name = "FILE")]
    source: String,

    /// Name it
    #[arg(value_name = "NAME")]
    name: Option<String>,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn import(args: &ImportArgs, context: &Context) -> Outcome {
    signals::raise_flag_on_interrupt();
    let image = args.platform.store(context)?.import(&args.source, args.name.as_deref(), &Fetch::new(context))?;
    told(context, &image);
    Ok(0)
}

/// Write an image for other programs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image export golden golden.tar                       an archive of an OCI layout
  ilot image export golden docker-archive:golden.tar:golden:1   for `docker load`
  ilot image export golden oci:./layout:golden              a folder, other images in it stay")]
pub(crate) struct ExportArgs {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// A file, or `oci:DIR`, `oci-archive:FILE`, `docker-archive:FILE`, with `:NAME` behind it
    #[arg(value_name = "DEST")]
    destination: String,

    #[command(flatten)]
    platform: ForPlatform,
}

pub(crate) fn export(args: &ExportArgs, context: &Context) -> Outcome {
    export_to(&args.image, &args.destination, &args.platform, context)
}

pub(super) fn export_to(image_name: &str, destination: &str, platform: &ForPlatform, context: &Context) -> Outcome {
    let store = platform.store(context)?;
    let image = store.require(image_name)?;
    let (kind, path, name) = match Reference::parse(destination) {
        Ok(Reference::Layout { kind, path, name }) => (kind, path, name),
        // `golden.tar` and `./golden` are files; anything else with a colon is a mistake.
        _ if !destination.contains(':') => (LayoutKind::OciArchive, destination.into(), None),
        _ => {
            return Err(CommandError::usage(format!("destination `{destination}`: not a place for an image"))
                .hint("a file's name, `oci:DIR`, `oci-archive:FILE` or `docker-archive:FILE`")
                .hint("`ilot image push` sends images to registries"));
        }
    };
    if kind != LayoutKind::Oci && path.is_dir() {
        return Err(CommandError::new(format!("export to {}: it is a folder", path.display()))
            .hint(format!("`oci:{}` writes an OCI layout into it", path.display())));
    }
    let name = name.unwrap_or_else(|| outside_name(&image.reference));
    store.export(&image, kind, &path, &name)?;
    if context.json {
        let value = json!({ "digest": image.digest, "kind": kind.to_string(), "path": path, "name": name });
        ui::print_json(&value);
    } else {
        context.note(&format!("{image_name} is in {kind}:{} as `{name}`", path.display()));
    }
    Ok(0)
}

/// The name as other programs can read it: `local:golden` is `golden` for them, `images:debian/13` is `debian:13`.
fn outside_name(reference: &str) -> String {
    let (scheme, rest) = reference.split_once(':').unwrap_or(("", reference));
    match scheme {
        "docker" => rest.trim_start_matches("//").to_owned(),
        "local" | "" if rest.contains(':') => rest.to_owned(),
        "local" | "" => format!("{rest}:latest"),
        "images" | "bootstrap" => match rest.split_once('/') {
            Some((name, version)) => format!("{name}:{}", version.replace('/', "-")),
            None => format!("{rest}:latest"),
        },
        "sha256" => format!("sha256-{rest}"),
        _ => "image:latest".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::outside_name;

    #[test]
    fn names_for_other_programs() {
        let names = [
            ("busybox", "busybox:latest"),
            ("local:golden", "golden:latest"),
            ("local:golden:2", "golden:2"),
            ("images:debian/13/cloud", "debian:13-cloud"),
            ("docker://docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20"),
            ("tar:/srv/x.tar", "image:latest"),
        ];
        for (inside, outside) in names {
            assert_eq!(outside_name(inside), outside);
        }
    }
}
