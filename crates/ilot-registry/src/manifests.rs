//! Manifests, tags, referrers, and the list of repositories.

use std::fs;
use std::sync::PoisonError;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::access::Caller;
use crate::api::{Answer, App, Ask, Query, built, json, page};
use crate::blobs::unchanged;
use crate::error::{Error, Refusal};
use crate::names::{Digest, is_tag};
use crate::repository::{Content, Entry};
use crate::store::write_atomically;

/// Bytes of a manifest; the specification asks for at least as many.
const LARGEST: usize = 4 << 20;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl App {
    pub(crate) fn manifest(&self, name: &str, reference: &str, ask: &Ask) -> Answer {
        let repository = self.store.repository(name).ok_or_else(|| Refusal::name_unknown(name))?;
        let unknown = || Refusal::manifest_unknown(reference);
        let (digest, media_type, size) = {
            let content = repository.content();
            let digest = content.resolve(reference).ok_or_else(unknown)?;
            let entry = content.manifests.get(&digest).ok_or_else(unknown)?;
            (digest.clone(), entry.media_type.clone(), entry.size)
        };
        self.store.lease(&digest);
        let builder = Response::builder()
            .header("docker-content-digest", digest.to_string())
            .header(header::ETAG, format!("\"{digest}\""));
        if unchanged(&ask.headers, &digest) {
            return built(builder.status(StatusCode::NOT_MODIFIED), Body::empty());
        }
        let builder = builder.header(header::CONTENT_TYPE, media_type).header(header::CONTENT_LENGTH, size);
        if ask.head {
            return built(builder, Body::empty());
        }
        let path = self.store.blob(&digest);
        let bytes = block_in_place(|| fs::read(&path)).map_err(|e| Error::io("read", &path, e))?;
        built(builder, Body::from(bytes))
    }

    pub(crate) async fn put_manifest(&self, name: &str, reference: &str, request: Request) -> Answer {
        let said = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let said = said.map(|v| v.split(';').next().unwrap_or(v).trim().to_owned());
        let bytes = match Limited::new(request.into_body(), LARGEST).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<LengthLimitError>() => return Err(Refusal::manifest_too_large(LARGEST)),
            Err(e) => return Err(Refusal::manifest_invalid(format!("the upload broke off: {e}"))),
        };
        let mut digest = Digest::of(&bytes);
        if !is_tag(reference) {
            let expected: Digest = reference.parse().map_err(Refusal::digest_invalid)?;
            digest = Digest::like(&bytes, &expected);
            if expected != digest {
                return Err(Refusal::digest_invalid(format!("what was uploaded is {digest}, not {expected}")));
            }
        }
        let media_type = said.unwrap_or_else(|| guess(&bytes));
        let entry = Entry::parse(&bytes, &media_type).map_err(Refusal::manifest_invalid)?;
        let subject = entry.subject.clone();
        block_in_place(|| self.keep_manifest(name, reference, &digest, entry, &bytes))?;
        let mut builder = Response::builder()
            .status(StatusCode::CREATED)
            .header(header::LOCATION, format!("/v2/{name}/manifests/{reference}"))
            .header("docker-content-digest", digest.to_string());
        if let Some(subject) = subject {
            builder = builder.header("oci-subject", subject.to_string());
        }
        built(builder, Body::empty())
    }

    fn keep_manifest(
        &self,
        name: &str,
        reference: &str,
        digest: &Digest,
        entry: Entry,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        self.keep(name, reference, digest, entry, bytes, true)
    }

    /// A manifest whose blobs come when they are asked for.
    pub(crate) fn keep_mirrored(
        &self,
        name: &str,
        reference: &str,
        digest: &Digest,
        entry: Entry,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        self.keep(name, reference, digest, entry, bytes, false)
    }

    fn keep(
        &self,
        name: &str,
        reference: &str,
        digest: &Digest,
        entry: Entry,
        bytes: &[u8],
        complete: bool,
    ) -> Result<(), Refusal> {
        let repository = self.store.repository_or_new(name)?;
        // From the look at its blobs to its place in the index no collection may come between.
        let _no_collection = self.store.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let mut content = repository.content();
        for blob in entry.blobs.iter().filter(|_| complete) {
            if !content.has_blob(blob) || !self.store.blob(blob).exists() {
                return Err(Refusal::manifest_blob_unknown(blob));
            }
        }
        if let Some(missing) = entry.manifests.iter().find(|m| complete && !content.manifests.contains_key(*m)) {
            return Err(Refusal::manifest_blob_unknown(missing));
        }
        let path = self.store.blob(digest);
        if !path.exists() {
            self.store.charge(bytes.len() as u64)?;
            write_atomically(&path, bytes).inspect_err(|_| self.store.refund(bytes.len() as u64))?;
        }
        let no_longer_loose: Vec<Digest> = entry.blobs.clone();
        let before = content.manifests.insert(digest.clone(), entry);
        let tag = is_tag(reference).then(|| content.tags.insert(reference.to_owned(), digest.clone()));
        if let Err(error) = repository.save(&content) {
            restore(&mut content, digest, before, tag.map(|old| (reference.to_owned(), old)));
            return Err(error.into());
        }
        for blob in no_longer_loose {
            repository.forget_uploaded(&mut content, &blob);
        }
        Ok(())
    }

    /// Takes a tag away.
    pub(crate) fn forget_tag(&self, name: &str, tag: &str) -> Result<(), Refusal> {
        let Some(repository) = self.store.repository(name) else { return Ok(()) };
        let mut content = repository.content();
        content.tags.remove(tag);
        Ok(repository.save(&content)?)
    }

    /// Takes a manifest and its tags away; its blobs go with the next collection.
    pub(crate) fn forget_manifest(&self, name: &str, digest: &Digest) {
        let Some(repository) = self.store.repository(name) else { return };
        let mut content = repository.content();
        content.manifests.remove(digest);
        content.tags.retain(|_, d| d != digest);
        if let Err(error) = repository.save(&content) {
            tracing::error!(%error, "cannot forget a manifest");
        }
    }

    pub(crate) fn delete_manifest(&self, name: &str, reference: &str) -> Answer {
        let repository = self.store.repository(name).ok_or_else(|| Refusal::name_unknown(name))?;
        let _no_collection = self.store.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let mut content = repository.content();
        let digest = content.resolve(reference).ok_or_else(|| Refusal::manifest_unknown(reference))?;
        if is_tag(reference) {
            content.tags.remove(reference);
        } else {
            let gone = content.manifests.remove(&digest);
            content.tags.retain(|_, d| *d != digest);
            // Whoever was told that a blob is there may be about to push a manifest that needs it.
            for blob in gone.into_iter().flat_map(|entry| entry.blobs) {
                if self.store.is_leased(&blob) {
                    repository.mark_uploaded(&mut content, &blob)?;
                }
            }
        }
        block_in_place(|| repository.save(&content))?;
        built(Response::builder().status(StatusCode::ACCEPTED), Body::empty())
    }

    pub(crate) fn tags(&self, name: &str, query: &Query) -> Answer {
        let repository = self.store.repository(name).ok_or_else(|| Refusal::name_unknown(name))?;
        let tags: Vec<String> = repository.content().tags.keys().cloned().collect();
        self.list_tags(name, tags, query)
    }

    pub(crate) fn list_tags(&self, name: &str, tags: Vec<String>, query: &Query) -> Answer {
        let (list, link) = page(tags.into_iter(), query, &format!("/v2/{name}/tags/list"))?;
        listed(&json!({ "name": name, "tags": list }), link)
    }

    pub(crate) fn catalog(&self, caller: &Caller, query: &Query) -> Answer {
        let names = self.store.repositories().into_iter().filter(|(name, _)| self.gate.may_list(caller, name));
        // One that was only begun is none yet.
        let names = names.filter(|(_, r)| !r.content().manifests.is_empty()).map(|(name, _)| name);
        let (list, link) = page(names, query, "/v2/_catalog")?;
        listed(&json!({ "repositories": list }), link)
    }

    pub(crate) fn referrers(&self, name: &str, digest: &str, query: &Query) -> Answer {
        let digest: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
        let wanted = query.get("artifactType").filter(|wanted| !wanted.is_empty());
        let mut manifests = Vec::new();
        if let Some(repository) = self.store.repository(name) {
            for (digest_of_it, entry) in &repository.content().manifests {
                let fits = entry.subject.as_ref() == Some(&digest)
                    && wanted.is_none_or(|wanted| entry.artifact_type.as_ref() == Some(wanted));
                if fits {
                    manifests.push(descriptor(digest_of_it, entry));
                }
            }
        }
        let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
        let mut answer = json(StatusCode::OK, body, INDEX)?;
        if wanted.is_some() {
            let value = header::HeaderValue::from_static("artifactType");
            answer.headers_mut().insert("oci-filters-applied", value);
        }
        Ok(answer)
    }
}

/// Takes back what could not be brought to the disk.
fn restore(content: &mut Content, digest: &Digest, manifest: Option<Entry>, tag: Option<(String, Option<Digest>)>) {
    match manifest {
        Some(entry) => drop(content.manifests.insert(digest.clone(), entry)),
        None => drop(content.manifests.remove(digest)),
    }
    match tag {
        Some((tag, Some(digest))) => drop(content.tags.insert(tag, digest)),
        Some((tag, None)) => drop(content.tags.remove(&tag)),
        None => {}
    }
}

fn listed(value: &Value, link: Option<String>) -> Answer {
    let body = value.to_string();
    let mut builder =
        Response::builder().header(header::CONTENT_TYPE, "application/json").header(header::CONTENT_LENGTH, body.len());
    if let Some(link) = link {
        builder = builder.header(header::LINK, link);
    }
    built(builder, Body::from(body))
}

/// A manifest as the list of referrers shows it.
fn descriptor(digest: &Digest, entry: &Entry) -> Value {
    let mut value = json!({ "mediaType": entry.media_type, "digest": digest, "size": entry.size });
    if let Some(kind) = &entry.artifact_type {
        value["artifactType"] = json!(kind);
    }
    if let Some(annotations) = &entry.annotations {
        value["annotations"] = annotations.clone();
    }
    value
}

/// The media type of a manifest that came without one.
fn guess(bytes: &[u8]) -> String {
    let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match json["mediaType"].as_str() {
        Some(said) => said.to_owned(),
        None if json.get("manifests").is_some() => INDEX.to_owned(),
        None => MANIFEST.to_owned(),
    }
}
