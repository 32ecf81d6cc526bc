//! The places that images are copied between.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::folders::{Folders, Layouts};
use super::selected;
use crate::error::{Error, Result};
use crate::http::Client;
use crate::reference::RegistryName;
use crate::remote::{Remote, RemoteManifest};
use crate::types::Digest;

/// What is known of the progress of one blob.
pub(super) type Told<'a> = &'a dyn Fn(u64, Option<u64>);

/// Somewhere that images are.
pub(super) trait Place {
    /// Repositories that fit, each with the name that it has at the target.
    fn repositories(&self, names: &[String]) -> Result<Vec<(String, String)>>;
    fn tags(&self, repository: &str) -> Result<Vec<String>>;
    fn digest(&self, repository: &str, reference: &str) -> Result<Option<Digest>>;
    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<RemoteManifest>>;
    fn referrers(&self, repository: &str, digest: &Digest) -> Result<Vec<Value>>;
    /// A blob into a file, its digest checked.
    fn fetch(
        &self,
        repository: &str,
        digest: &Digest,
        to: &Path,
        told: Told<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()>;
    fn has(&self, repository: &str, top: &str, digest: &Digest) -> Result<bool>;
    fn put_blob(&self, repository: &str, top: &str, digest: &Digest, file: &Path) -> Result<()>;
    fn put_manifest(&self, repository: &str, top: &str, reference: &str, manifest: &RemoteManifest) -> Result<()>;
    fn note_referrer(&self, repository: &str, subject: &Digest, entry: &Value) -> Result<()>;
    /// Whether an image must be there with all its parts, also where another one has them.
    fn wants_everything(&self) -> bool {
        false
    }
    /// Whether it has a place for what refers to an image.
    fn keeps_referrers(&self) -> bool {
        true
    }
    fn bad(&self, reason: &str) -> Error;
}

/// A place as it was named.
#[derive(Debug)]
pub(super) struct Spot {
    kind: Kind,
    text: String,
    /// Of a registry's image.
    pub(super) tag: Option<String>,
}

#[derive(Debug)]
enum Kind {
    Registry { host: String, path: String },
    Layouts(PathBuf),
    Folders(PathBuf),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Spot {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |reason: &str| Error::BadReference {
            text: text.to_owned(),
            reason: reason.to_owned(),
            help: Some("a place is `HOST[:PORT][/PATH[:TAG]]`, `oci:DIR` or `dir:DIR`".to_owned()),
        };
        let folder = |path: &str| if path.is_empty() { Err(bad("no folder")) } else { Ok(PathBuf::from(path)) };
        let (kind, tag) = if let Some(path) = text.strip_prefix("oci:") {
            (Kind::Layouts(folder(path)?), None)
        } else if let Some(path) = text.strip_prefix("dir:") {
            (Kind::Folders(folder(path)?), None)
        } else {
            let rest = text.strip_prefix("docker://").unwrap_or(text).trim_end_matches('/');
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (path, tag) = path.split_once(':').map_or((path, None), |(path, tag)| (path, Some(tag.to_owned())));
            let is_host = host == "localhost" || host.contains(['.', ':']);
            let name = if path.is_empty() { "x" } else { path };
            if !is_host || RegistryName::parse(&format!("{host}/{name}")).is_err() {
                return Err(bad("not a place that images are in"));
            }
            (Kind::Registry { host: host.to_owned(), path: path.to_owned() }, tag)
        };
        Ok(Self { kind, text: text.to_owned(), tag })
    }

    pub(super) fn open(self, http: Arc<Client>) -> Result<Box<dyn Place>> {
        Ok(match self.kind {
            Kind::Registry { host, path } => Box::new(AtRegistry { remote: Remote::with(http, &host)?, path }),
            Kind::Layouts(root) => Box::new(Layouts::new(root)),
            Kind::Folders(root) => Box::new(Folders::new(root)),
        })
    }
}

struct AtRegistry {
    remote: Remote,
    /// A repository, or the beginning of several; empty for all.
    path: String,
}

impl AtRegistry {
    fn inside(&self, repository: &str) -> String {
        if self.path.is_empty() { repository.to_owned() } else { format!("{}/{repository}", self.path) }
    }
}

impl Place for AtRegistry {
    fn repositories(&self, names: &[String]) -> Result<Vec<(String, String)>> {
        if !self.path.is_empty() && self.remote.tags(&self.path)?.is_some() {
            let name = self.path.rsplit('/').next().unwrap_or(&self.path).to_owned();
            return Ok(vec![(self.path.clone(), name)]);
        }
        let below = if self.path.is_empty() { String::new() } else { format!("{}/", self.path) };
        let all = self.remote.repositories()?;
        let all = all.into_iter().filter_map(|name| name.strip_prefix(&below).map(str::to_owned));
        Ok(selected(all, names).into_iter().map(|name| (format!("{below}{name}"), name)).collect())
    }

    fn tags(&self, repository: &str) -> Result<Vec<String>> {
        Ok(self.remote.tags(repository)?.unwrap_or_default())
    }

    fn digest(&self, repository: &str, reference: &str) -> Result<Option<Digest>> {
        self.remote.digest(&self.inside(repository), reference)
    }

    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<RemoteManifest>> {
        self.remote.manifest(repository, reference)
    }

    fn referrers(&self, repository: &str, digest: &Digest) -> Result<Vec<Value>> {
        self.remote.referrers(repository, digest)
    }

    fn fetch(
        &self,
        repository: &str,
        digest: &Digest,
        to: &Path,
        told: Told<'_>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        self.remote.blob(repository, digest, to, None, told, cancelled)
    }

    fn has(&self, repository: &str, _top: &str, digest: &Digest) -> Result<bool> {
        Ok(self.remote.blob_size(&self.inside(repository), digest)?.is_some())
    }

    fn put_blob(&self, repository: &str, _top: &str, digest: &Digest, file: &Path) -> Result<()> {
        self.remote.push_blob(&self.inside(repository), digest, file, &|_, _| {}, &|| false).map(drop)
    }

    fn put_manifest(&self, repository: &str, _top: &str, reference: &str, manifest: &RemoteManifest) -> Result<()> {
        self.remote.push_manifest(&self.inside(repository), reference, manifest)
    }

    fn note_referrer(&self, repository: &str, subject: &Digest, entry: &Value) -> Result<()> {
        self.remote.note_referrer(&self.inside(repository), subject, entry)
    }

    fn bad(&self, reason: &str) -> Error {
        Error::Http {
            url: format!("{}/{}", self.remote.host(), self.path),
            reason: reason.to_owned(),
            unreachable: false,
        }
    }
}
