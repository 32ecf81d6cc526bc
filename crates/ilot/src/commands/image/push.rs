//! `ilot image push`.

use ilot_image::Reference;

use super::super::Outcome;
use super::{ForPlatform, transfer};
use crate::context::Context;
use crate::render::progress::Fetch;
use crate::{signals, ui};

/// Send an image to a registry
///
/// Blobs that the registry has are not sent again, and the digest stays. Logins are those of `podman login` and `docker
/// login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image push ghcr.io/owner/tool:1                  an image of that name
  ilot image push golden ghcr.io/owner/golden:1
  ilot image push --tls-verify=false golden localhost:5000/golden
  ilot image push --all golden ghcr.io/owner/golden:1    an index of all platforms that it is here for
  ilot image push golden oci-archive:golden.tar         as `ilot image export`")]
pub(crate) struct Args {
    /// Name or digest
    #[arg(value_name = "IMAGE")]
    image: String,

    /// A registry's name [default: the image's own]
    #[arg(value_name = "DEST")]
    destination: Option<String>,

    #[command(flatten)]
    platform: ForPlatform,

    /// The images that the name has for all platforms, and an index of them
    #[arg(long, conflicts_with = "platform")]
    all: bool,

    /// Sign it with this private key, as `ilot image sign`
    #[arg(long, value_name = "FILE")]
    sign_by_sigstore_private_key: Option<std::path::PathBuf>,

    /// The passphrase of that key is the first line of this file
    #[arg(long, value_name = "FILE", requires = "sign_by_sigstore_private_key")]
    sign_passphrase_file: Option<std::path::PathBuf>,

    #[command(flatten)]
    access: super::Access,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    if let Some(destination) = &args.destination
        && let Ok(Reference::Layout { .. }) = Reference::parse(destination)
    {
        return transfer::export_to(&args.image, destination, &args.platform, context);
    }
    signals::raise_flag_on_interrupt();
    let store = args.access.of(args.platform.store(context)?)?;
    // Before anything is sent: a key that cannot be read is told early.
    let key = match &args.sign_by_sigstore_private_key {
        Some(path) => Some(super::sign::key(path, args.sign_passphrase_file.as_deref())?),
        None => None,
    };
    let (destination, progress) = (args.destination.as_deref(), Fetch::new(context));
    let pushed = if args.all {
        store.push_all(&args.image, destination, &progress)?
    } else {
        store.push(&store.require(&args.image)?, destination, &progress)?
    };
    if context.json {
        ui::print_json(&pushed);
    } else if context.quiet {
        ui::print(&pushed.digest.to_string());
    } else {
        let had = match (pushed.present, pushed.mounted) {
            (0, 0) => String::new(),
            (present, mounted) => format!(", {} there already", present + mounted),
        };
        let sent = format!("{} sent ({}){had}", ui::count(pushed.sent, "blob"), ui::bytes(pushed.bytes));
        ui::print(&format!("{} {}: {sent}", pushed.digest.short(), pushed.destination));
    }
    if let Some(key) = key {
        store.sign(&pushed.destination, &key)?;
        context.note(&format!("{} is signed", pushed.destination));
    }
    Ok(0)
}
