//! `ilot image sign`, and what other commands need of keys.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use ilot_image::{PublicKey, Signed, SigningKey, Store};
use serde_json::json;

use super::super::Outcome;
use super::store;
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Sign images in their registry, or make a pair of keys to sign with
///
/// The signature is what cosign, podman and skopeo make and read: it lies beside the image in its repository. Of an index,
/// the index and each image in it is signed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot image sign --generate-key team                      team.private and team.pub
  ilot image sign --key team.private registry.example.org/team/tool:1
  ilot image push --sign-by-sigstore-private-key team.private golden registry.example.org/team/golden:1
  ilot image verify --key team.pub registry.example.org/team/tool:1

The passphrase comes from `--passphrase-file`, else from the variable COSIGN_PASSWORD, else from the terminal.")]
pub(crate) struct Args {
    /// Names of images in registries
    #[arg(value_name = "IMAGE", required_unless_present = "generate_key")]
    images: Vec<String>,

    /// The private key: ECDSA on P-256, as cosign, skopeo or openssl (PKCS#8) wrote it
    #[arg(long, value_name = "FILE", required_unless_present = "generate_key")]
    key: Option<PathBuf>,

    /// Make `PREFIX.private`, sealed with the passphrase, and `PREFIX.pub`
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["images", "key"])]
    generate_key: Option<PathBuf>,

    /// The passphrase of the key is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    #[command(flatten)]
    access: super::Access,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    if let Some(prefix) = &args.generate_key {
        return generate(prefix, args, context);
    }
    let Some(path) = &args.key else { return Err(CommandError::usage("signing needs a key: `--key FILE`")) };
    let key = key(path, args.passphrase_file.as_deref())?;
    let store = args.access.of(store(context)?)?;
    let mut all = Vec::new();
    for name in &args.images {
        all.extend(sign(&store, name, &key, context)?);
    }
    if context.json {
        ui::print_json(&all);
    }
    Ok(0)
}

/// Signs one image, and says so.
pub(super) fn sign(
    store: &Store,
    name: &str,
    key: &SigningKey,
    context: &Context,
) -> Result<Vec<Signed>, CommandError> {
    let signed = store.sign(name, key)?;
    if !context.json {
        for one in &signed {
            let what = if one.new { "signed" } else { "signed before" };
            ui::print(&format!("{} {what}: {}", one.digest.short(), one.signature));
        }
    }
    Ok(signed)
}

fn generate(prefix: &Path, args: &Args, context: &Context) -> Outcome {
    let passphrase = passphrase(args.passphrase_file.as_deref(), true)?;
    let key = SigningKey::generate(prefix, &passphrase)?;
    let (private, public) = (format!("{}.private", prefix.display()), format!("{}.pub", prefix.display()));
    if context.json {
        ui::print_json(&json!({ "private": private, "public": public, "pem": key.public_pem() }));
    } else {
        context.note(&format!("{private} signs: keep it to yourself; {public} is for those who verify"));
    }
    Ok(0)
}

/// Reads a private key, asking for its passphrase where it has one.
pub(super) fn key(path: &Path, passphrase_file: Option<&Path>) -> Result<SigningKey, CommandError> {
    let passphrase = if SigningKey::is_sealed(path)? { passphrase(passphrase_file, false)? } else { Vec::new() };
    Ok(SigningKey::read(path, &passphrase)?)
}

fn passphrase(file: Option<&Path>, new: bool) -> Result<Vec<u8>, CommandError> {
    if let Some(file) = file {
        let text = std::fs::read_to_string(file)
            .map_err(|e| CommandError::new(format!("read passphrase file `{}`: {e}", file.display())))?;
        return Ok(text.lines().next().unwrap_or_default().as_bytes().to_vec());
    }
    if let Some(text) = std::env::var_os("COSIGN_PASSWORD") {
        return Ok(text.into_encoded_bytes());
    }
    if !std::io::stdin().is_terminal() {
        return Err(CommandError::new("the key needs a passphrase, and there is no terminal to ask on")
            .hint("`--passphrase-file FILE`, or the variable COSIGN_PASSWORD; an empty one is one too"));
    }
    let failed = |e: std::io::Error| CommandError::new(format!("read the passphrase: {e}"));
    let first = ui::ask_secret("passphrase: ").map_err(failed)?;
    if new && ui::ask_secret("once more: ").map_err(failed)? != first {
        return Err(CommandError::new("the two passphrases differ"));
    }
    Ok(first.into_bytes())
}

/// `ilot image verify --key`: who signed images in their registries.
pub(super) fn verify(names: &[String], keys: &[PathBuf], store: &Store, context: &Context) -> Outcome {
    let keys: Vec<PublicKey> = keys.iter().map(|path| PublicKey::read(path)).collect::<Result<_, _>>()?;
    let mut all = Vec::new();
    for name in names {
        let found = store.signatures(name, &keys)?;
        if !context.json {
            for one in &found {
                ui::print(&format!("{} {} signed by {}", one.digest.short(), one.identity, one.key));
            }
        }
        all.push(json!({ "name": name, "signatures": found }));
    }
    if context.json {
        ui::print_json(&json!({ "images": all }));
    }
    Ok(0)
}
