//! Where images come from. Each source gives layers that lie finished in a temporary folder; the store takes them in.

mod apt;
mod archive;
mod bootstrap;
mod busybox;
mod layout;
mod logins;
mod registry;
mod simplestreams;

pub(crate) use archive::as_layer;
#[cfg(fuzzing)]
pub(crate) use layout::{best, check};
#[cfg(fuzzing)]
pub(crate) use registry::fuzz_texts;
pub(crate) use registry::{Login, Registry, SMALL, escape, media_type, verify};
#[cfg(fuzzing)]
pub(crate) use simplestreams::fuzz_streams;

use std::path::Path;

use jiff::Timestamp;

use crate::archive::Limits;
use crate::blob::Layer;
use crate::error::{Attempt, Error, Result};
use crate::http::Client;
use crate::lock::TempDir;
use crate::oci::Descriptor;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::{LayoutKind, Reference};
use crate::remotes::Remotes;
use crate::trust::Policy;
use crate::types::ImageConfig;

/// What programs find their commands by in an image that says nothing.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a source is asked for, and what it works with.
pub(crate) struct Order<'a> {
    pub(crate) reference: &'a Reference,
    /// The reference's normal form.
    pub(crate) name: &'a str,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) http: &'a Client,
    pub(crate) remotes: &'a Remotes,
    /// Who must have signed what.
    pub(crate) policy: &'a Policy,
    /// For which machines the image must be.
    pub(crate) platform: &'a Platform,
    pub(crate) aside: &'a TempDir,
    /// The store, for the blobs that it has already.
    pub(crate) store: &'a Path,
    pub(crate) limits: Limits,
    /// Where native layers are put that are made while their blobs are checked; none where none are wanted.
    pub(crate) prepare: Option<&'a Path>,
}

impl Order<'_> {
    fn stage(&self, text: &str) {
        self.progress.stage(&format!("{}: {text}", self.name));
    }

    /// Told by long work: how far it is; gives an error when nobody wants it any more.
    fn bytes(&self, done: u64, total: Option<u64>) -> Result<()> {
        self.progress.bytes(done, total);
        self.wanted()
    }

    fn wanted(&self) -> Result<()> {
        if self.progress.cancelled() { Err(Error::Cancelled { reference: self.name.to_owned() }) } else { Ok(()) }
    }
}

/// What a source found.
pub(crate) struct Found {
    /// The lowest first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
    pub(crate) created: Option<Timestamp>,
    /// Where it came from, for people.
    pub(crate) source: String,
    /// The same in a few words without what differs from host to host: part of the image's digest.
    pub(crate) made_by: String,
    /// The configuration and manifest that the image came with: kept to the byte, so that its digest stays.
    pub(crate) brought: Option<Brought>,
    /// What it was made of looked like, where that can change under the same name.
    pub(crate) stamp: Option<String>,
}

/// The files of an image that was made elsewhere.
pub(crate) struct Brought {
    pub(crate) configuration: Vec<u8>,
    /// By what it is known, and its content; none where its layers were made anew.
    pub(crate) manifest: Option<(Descriptor, Vec<u8>)>,
}

impl Found {
    fn new(layer: Layer, source: String, made_by: &str) -> Self {
        let config = ImageConfig { env: vec![PATH.to_owned()], ..ImageConfig::default() };
        let made_by = made_by.to_owned();
        Self { layers: vec![layer], config, created: None, source, made_by, brought: None, stamp: None }
    }

    /// An image with files of its own.
    pub(crate) fn brought(layers: Vec<Layer>, source: String, brought: Brought) -> Self {
        let (config, made_by) = (ImageConfig::default(), String::new());
        Self { layers, config, created: None, source, made_by, brought: Some(brought), stamp: None }
    }
}

/// The look of the file, folder or program that a name stands for: size, times and number. `None` for names that need
/// none, and where it is gone: what was imported from it stays.
pub(crate) fn stamp(reference: &Reference) -> Result<Option<String>> {
    match reference {
        Reference::Busybox => Ok(busybox::stamp()),
        Reference::Tar(path) => Ok(archive::file_stamp(path)),
        Reference::Layout { kind: LayoutKind::Oci, path, .. } => Ok(archive::file_stamp(&path.join("index.json"))),
        Reference::Layout { path, .. } => Ok(archive::file_stamp(path)),
        Reference::Dir(path) if path.is_dir() => archive::tree_stamp(path).map(Some),
        _ => Ok(None),
    }
}

/// Whether an archive holds images, and of which form.
pub(crate) fn archive_kind(path: &Path, limits: Limits) -> Result<Option<LayoutKind>> {
    layout::kind_of(path, limits)
}

/// Asks the sources of a name in order.
pub(crate) fn find(order: &Order<'_>) -> Result<Found> {
    let of_host =
        matches!(order.reference, Reference::Busybox | Reference::Bootstrap { .. } | Reference::Remote { .. });
    if of_host && !order.platform.runs_here() {
        return Err(Error::BadReference {
            text: order.name.to_owned(),
            reason: format!("cannot be had for {}, only for this host's processor", order.platform),
            help: Some("images of registries can: `docker://debian:13`".to_owned()),
        });
    }
    match order.reference {
        Reference::Busybox => busybox::make(order),
        Reference::Tar(path) => archive::import_file(order, path),
        Reference::Dir(path) => archive::import_folder(order, path),
        Reference::Layout { kind, path, name } => {
            order.policy.check_other(&kind.to_string(), order.name)?;
            layout::import(order, *kind, path, name.as_deref())
        }
        Reference::Registry(name) => registry::pull(order, name),
        Reference::Digest(_) | Reference::Local(_) => Err(not_found(order)),
        Reference::Bootstrap { .. } | Reference::Remote { .. } => find_distribution(order),
    }
}

fn not_found(order: &Order<'_>) -> Error {
    Error::NotFound { reference: order.name.to_owned(), store: order.aside.path().to_owned() }
}

fn find_distribution(order: &Order<'_>) -> Result<Found> {
    let mut attempts = Vec::new();
    let mut failed = |source: String, error: Error, last: bool| -> Result<()> {
        match error {
            // Trying elsewhere would not help, or not be wanted.
            Error::NoSpace { .. } | Error::Cancelled { .. } | Error::Io { .. } => return Err(error),
            _ => {}
        }
        let reason = match &error {
            // The source's own name stands before it already.
            Error::Http { url, reason, .. } => format!("{}: {reason}", url.strip_prefix(&source).unwrap_or(url)),
            other => other.to_string(),
        };
        let next = if last { "" } else { "; next the package mirror" };
        order.progress.note(&format!("{}: {source}: {reason}{next}", order.name));
        attempts.push(Attempt { source, reason, help: error.help() });
        Ok(())
    };
    let mirror = order.reference.bootstrap();
    if let Reference::Remote { remote, alias } = order.reference {
        let server = order.remotes.get(remote).unwrap_or_default();
        match simplestreams::fetch(order, server, alias) {
            Ok(found) => return Ok(found),
            Err(error) => failed(server.to_owned(), error, mirror.is_none())?,
        }
    }
    match mirror {
        Some((distribution, suite, cloud)) => match bootstrap::install(order, distribution, &suite, cloud) {
            Ok(found) => return Ok(found),
            Err(error) => failed(format!("mmdebstrap {distribution}/{suite}"), error, true)?,
        },
        None => attempts.push(Attempt {
            source: "package mirror".to_owned(),
            reason: "only Debian and Ubuntu can be installed from theirs".to_owned(),
            help: None,
        }),
    }
    Err(Error::NoSource { reference: order.name.to_owned(), attempts })
}

/// Epoch seconds as a time; a nonsense value is none.
fn at(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

/// A file's size, time and number, as text.
fn look(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(path).ok()?;
    Some(format!("{}-{}.{:09}-{}", meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
}
