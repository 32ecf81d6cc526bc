//! A registry as a place that manifests and blobs are read from and written to one by one: for mirrors and copies, which
//! keep nothing in a store of images.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::Value;

use crate::blob;
use crate::error::{Error, Result};
use crate::http::{Body, Client, Received, Timeouts, Watch};
use crate::oci;
use crate::push;
use crate::reference::RegistryName;
use crate::source::{Login, Registry, SMALL, media_type, verify};
use crate::types::Digest;

/// Lists come in pages; a server that never ends them is left.
const PAGES: usize = 1000;
const LIST: u64 = 8 << 20;

/// A registry, or a path on one.
#[derive(Debug)]
pub struct Remote {
    http: Arc<Client>,
    host: String,
    /// Stands before each repository's name; empty, or ends with a slash.
    prefix: String,
    /// Address and login of each repository that was asked for, found once.
    known: Mutex<HashMap<String, (String, Arc<Login>)>>,
}

/// A manifest or index as it came, its digest checked.
#[derive(Debug, Clone)]
pub struct RemoteManifest {
    /// What names it.
    pub digest: Digest,
    /// `application/vnd.oci.image.manifest.v1+json`…
    pub media_type: String,
    /// To the byte.
    pub bytes: Vec<u8>,
}

/// What [`Remote::push_blob`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobPushed {
    /// The registry had it.
    Present,
    /// It was sent.
    Sent,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Catalog {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Referrers {
    #[serde(default)]
    manifests: Vec<Value>,
}

impl Remote {
    /// `HOST[:PORT]`, with a path below which its repositories are or without. Without `tls_verify`, any certificate will
    /// do, or none.
    ///
    /// # Errors
    /// For a name that is none.
    pub fn new(registry: &str, timeouts: Timeouts, tls_verify: bool) -> Result<Self> {
        let client = Client::new(timeouts);
        Self::with(Arc::new(if tls_verify { client } else { client.unverified() }), registry)
    }

    pub(crate) fn with(http: Arc<Client>, registry: &str) -> Result<Self> {
        let registry = registry.trim_end_matches('/');
        let (host, path) = registry.split_once('/').unwrap_or((registry, ""));
        let bad = |reason: &str| Error::BadReference {
            text: registry.to_owned(),
            reason: reason.to_owned(),
            help: Some("a registry is `HOST`, `HOST:PORT` or `HOST/PATH`, for example `docker.io`".to_owned()),
        };
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        match RegistryName::parse(&format!("{host}/{prefix}x")) {
            Ok(name) if name.host == host => {}
            Ok(_) => return Err(bad("not a registry")),
            Err(reason) => return Err(bad(reason)),
        }
        Ok(Self { http, host: host.to_owned(), prefix, known: Mutex::default() })
    }

    /// `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    fn name(&self, repository: &str) -> Result<RegistryName> {
        let text = format!("{}/{}{repository}", self.host, self.prefix);
        let parsed = RegistryName::parse(&text);
        let parsed = parsed.map_err(|reason| Error::BadReference {
            text: text.clone(),
            reason: reason.to_owned(),
            help: None,
        })?;
        Ok(RegistryName { tag: None, ..parsed })
    }

    pub(crate) fn with_registry<T>(&self, repository: &str, go: impl FnOnce(&Registry<'_>) -> Result<T>) -> Result<T> {
        let name = self.name(repository)?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(repository).cloned();
        let registry = match known {
            Some((base, login)) => Registry::again(&self.http, &name, base, login),
            None => Registry::new(&self.http, &name),
        };
        let parts = (registry.base.clone(), registry.login());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(repository.to_owned(), parts);
        go(&registry)
    }

    /// A small document of the registry's, or none where it says 404.
    fn ask(&self, method: &str, registry: &Registry<'_>, path: &str, limit: u64) -> Result<Option<Received>> {
        let url = if path.starts_with('/') { format!("{}{path}", registry.base) } else { path.to_owned() };
        let received = self.http.ask(method, &url, limit, &[200, 404], &registry.access())?;
        Ok(Some(received).filter(|r| r.status == 200))
    }

    /// The digest behind a tag or digest, without the manifest itself; none where it is not there.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn digest(&self, repository: &str, reference: &str) -> Result<Option<Digest>> {
        self.with_registry(repository, |registry| {
            let path = format!("/v2/{}/manifests/{reference}", registry.repository);
            let Some(received) = self.ask("HEAD", registry, &path, 0)? else { return Ok(None) };
            match received.header("docker-content-digest").and_then(|d| d.parse().ok()) {
                Some(digest) => Ok(Some(digest)),
                // A registry that does not say it has to send the whole.
                None => Ok(self.manifest_of(registry, reference)?.map(|m| m.digest)),
            }
        })
    }

    /// The manifest or index behind a tag or digest; none where it is not there. By digest it is checked against that.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends something else.
    pub fn manifest(&self, repository: &str, reference: &str) -> Result<Option<RemoteManifest>> {
        self.with_registry(repository, |registry| self.manifest_of(registry, reference))
    }

    fn manifest_of(&self, registry: &Registry<'_>, reference: &str) -> Result<Option<RemoteManifest>> {
        let path = format!("/v2/{}/manifests/{reference}", registry.repository);
        let Some(received) = self.ask("GET", registry, &path, SMALL)? else { return Ok(None) };
        let media_type = media_type(received.media_type(), &received.body);
        if !oci::is_manifest(&media_type) && !oci::is_index(&media_type) {
            return Err(registry.bad(format!("answers with `{media_type}`, which is no image")));
        }
        let digest = match reference.contains(':') {
            true => {
                let digest: Digest = reference.parse()?;
                verify(&path, &digest, &received.body)?;
                digest
            }
            false => blob::digest_of(&received.body),
        };
        Ok(Some(RemoteManifest { digest, media_type, bytes: received.body }))
    }

    /// Bytes of a blob, where the registry has it and says so.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn blob_size(&self, repository: &str, digest: &Digest) -> Result<Option<u64>> {
        self.with_registry(repository, |registry| {
            let path = format!("/v2/{}/blobs/{digest}", registry.repository);
            let received = self.ask("HEAD", registry, &path, 0)?;
            Ok(received.map(|r| r.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)))
        })
    }

    /// A blob into a file, checked against its digest; what broke off is gone on with. `told` hears how much is there and
    /// how much there will be, `cancelled` is asked.
    ///
    /// # Errors
    /// When the registry refuses, cannot be reached, or sends something else.
    pub fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        to: &Path,
        size: Option<u64>,
        told: &dyn Fn(u64, Option<u64>),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        self.with_registry(repository, |registry| {
            let watch = Watch { bytes: told, cancelled };
            self.http.download(&registry.blob_url(digest), to, digest, size, &registry.access(), &watch)
        })
    }

    /// All tags of a repository; none where there is no such.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn tags(&self, repository: &str) -> Result<Option<Vec<String>>> {
        self.with_registry(repository, |registry| {
            let mut all = Vec::new();
            let pages = self.pages(registry, format!("/v2/{}/tags/list", registry.repository), |bytes| {
                let page: Tags = registry.json("tags", bytes)?;
                all.extend(page.tags.unwrap_or_default());
                Ok(())
            })?;
            Ok((pages > 0).then_some(all))
        })
    }

    /// All repositories, where the registry lists them.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn repositories(&self) -> Result<Vec<String>> {
        // The list is no repository's; its login is that of the registry as a whole.
        self.with_registry("catalog", |registry| {
            let mut all = Vec::new();
            self.pages(registry, "/v2/_catalog".to_owned(), |bytes| {
                let page: Catalog = registry.json("catalogue", bytes)?;
                all.extend(page.repositories.unwrap_or_default());
                Ok(())
            })?;
            all.retain(|name| name.starts_with(&self.prefix));
            Ok(all.into_iter().map(|name| name[self.prefix.len()..].to_owned()).collect())
        })
    }

    fn pages(
        &self,
        registry: &Registry<'_>,
        first: String,
        mut page: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let mut path = first;
        for count in 0..PAGES {
            let Some(received) = self.ask("GET", registry, &path, LIST)? else { return Ok(count) };
            page(&received.body)?;
            match received.header("link").and_then(next_page) {
                // To the registry itself, wherever it says.
                Some(next) if next.starts_with('/') => path = next,
                Some(next) if next.starts_with(&format!("{}/", registry.base)) => path = next,
                _ => return Ok(count + 1),
            }
        }
        Err(registry.bad("lists without end"))
    }

    /// The descriptors of what refers to a manifest: by the referrers API, else by the tag that stands for it
    /// (distribution-spec, "Referrers Tag Schema").
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn referrers(&self, repository: &str, digest: &Digest) -> Result<Vec<Value>> {
        self.with_registry(repository, |registry| {
            let path = format!("/v2/{}/referrers/{digest}", registry.repository);
            let mut all: Vec<Value> = Vec::new();
            let read = |bytes: &[u8]| -> Result<Vec<Value>> {
                registry.json::<Referrers>("referrers", bytes).map(|list| list.manifests)
            };
            let pages = self.pages(registry, path, |bytes| {
                all.extend(read(bytes)?);
                Ok(())
            })?;
            if pages == 0 {
                let tag = format!("{}-{}", digest.algorithm(), digest.hex());
                if let Some(index) = self.manifest_of(registry, &tag)? {
                    all = read(&index.bytes)?;
                }
            }
            Ok(all)
        })
    }

    /// Writes down that a descriptor refers to a manifest, where the registry does not find that out by itself.
    pub(crate) fn note_referrer(&self, repository: &str, subject: &Digest, entry: &Value) -> Result<()> {
        let bytes = self.with_registry(repository, |registry| {
            let path = format!("/v2/{}/referrers/{subject}", registry.repository);
            if self.ask("GET", registry, &path, LIST)?.is_some() {
                return Ok(None);
            }
            let tag = format!("{}-{}", subject.algorithm(), subject.hex());
            let mut all = match self.manifest_of(registry, &tag)? {
                Some(index) => registry.json::<Referrers>("referrers", &index.bytes)?.manifests,
                None => Vec::new(),
            };
            all.retain(|old| old["digest"] != entry["digest"]);
            all.push(entry.clone());
            let index = serde_json::json!({ "schemaVersion": 2, "mediaType": oci::INDEX, "manifests": all });
            Ok(Some((tag, index.to_string().into_bytes())))
        })?;
        let Some((tag, bytes)) = bytes else { return Ok(()) };
        let media_type = oci::INDEX.to_owned();
        self.push_manifest(repository, &tag, &RemoteManifest { digest: blob::digest_of(&bytes), media_type, bytes })
    }

    /// Repositories whose name or description has a word in it: the registry's own search where it has one (as Docker's
    /// and podman's clients ask), else the names of its catalogue.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached.
    pub fn search(&self, word: &str, limit: usize) -> Result<Vec<SearchHit>> {
        let found = self.with_registry("catalog", |registry| {
            // Docker Hub's search is at another name than its images.
            let base = if self.host == "docker.io" { "https://index.docker.io" } else { &registry.base };
            let url = format!("{base}/v1/search?q={}&n={limit}", crate::source::escape(word));
            self.http.ask("GET", &url, LIST, &[200, 401, 403, 404, 405], &crate::http::Open)
        });
        if let Ok(received) = found
            && received.status == 200
            && let Ok(answer) = serde_json::from_slice::<SearchAnswer>(&received.body)
        {
            return Ok(answer.results.into_iter().take(limit).collect());
        }
        let word = word.to_lowercase();
        let names = self.repositories()?.into_iter().filter(|name| name.contains(&word));
        Ok(names.take(limit).map(|name| SearchHit { name, ..SearchHit::default() }).collect())
    }

    /// Sends a blob that lies in a file, unless the registry has it.
    ///
    /// # Errors
    /// When the registry refuses or cannot be reached, or the file is something else.
    pub fn push_blob(
        &self,
        repository: &str,
        digest: &Digest,
        file: &Path,
        told: &dyn Fn(u64, Option<u64>),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<BlobPushed> {
        self.with_registry(repository, |registry| {
            let watch = Watch { bytes: told, cancelled };
            push::one_blob(&self.http, registry, digest, file, &watch)
        })
    }

    /// Puts a manifest under a tag, or under its digest.
    ///
    /// # Errors
    /// When the registry refuses, for example because a blob is not there.
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &RemoteManifest) -> Result<()> {
        self.with_registry(repository, |registry| {
            let url = format!("{}/v2/{}/manifests/{reference}", registry.base, registry.repository);
            let headers = [("Content-Type", manifest.media_type.clone())];
            let watch = Watch { bytes: &|_, _| {}, cancelled: &|| false };
            let body = Body::Bytes(&manifest.bytes);
            self.http.send("PUT", &url, &headers, body, &[200, 201, 202], (&registry.access(), &watch))?;
            Ok(())
        })
    }
}

/// A repository that a search found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct SearchHit {
    /// `library/debian`.
    pub name: String,
    /// In the publisher's words.
    pub description: String,
    /// How many people like it, where the registry counts.
    pub star_count: u64,
    /// The registry's own.
    pub is_official: bool,
    /// Whatever else the registry says.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct SearchAnswer {
    results: Vec<SearchHit>,
}

/// `</v2/…>; rel="next"` (RFC 8288).
fn next_page(link: &str) -> Option<String> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    parameters.contains("next").then(|| target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_paths_on_them() {
        for good in ["docker.io", "localhost:5000", "mirror.example.org/hub/x/", "127.0.0.1:1"] {
            let remote = Remote::new(good, Timeouts::default(), true).unwrap();
            assert!(remote.name("a/b").is_ok(), "{good}");
        }
        for bad in ["", "x", "https://x.y", "a b.c", "x.y/UP"] {
            assert!(Remote::new(bad, Timeouts::default(), true).is_err(), "{bad}");
        }
        assert_eq!(next_page(r#"</v2/x?last=1>; rel="next""#).as_deref(), Some("/v2/x?last=1"));
        assert_eq!(next_page("nonsense"), None);
    }
}
