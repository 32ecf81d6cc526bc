//! A mirror: what is asked for comes from another registry, is kept, and served from here from then on.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use crate::api::{Answer, App, Ask, Query, built, json as document};
use crate::error::{Error, Refusal};
use crate::names::Digest;
use crate::repository::Entry;
use crate::transport::{self, Transport};

/// Between the disk and a client that reads slowly.
const BUFFER: usize = 256 << 10;
/// A manifest's time of use is not written more often.
const TOUCH: Duration = Duration::from_secs(60);

/// A manifest as a source has it, its digest checked.
#[derive(Debug, Clone)]
pub struct SourceManifest {
    /// `sha256:…`
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// To the byte.
    pub bytes: Vec<u8>,
}

/// Where the images of a mirror come from: another registry, or whoever has them. Calls may block.
pub trait Source: Send + Sync + fmt::Debug {
    /// For people: `docker.io`.
    fn name(&self) -> String;

    /// The digest behind a tag; none where it is not there.
    ///
    /// # Errors
    /// Why it cannot be asked.
    fn digest(&self, repository: &str, reference: &str) -> Result<Option<String>, String>;

    /// The manifest behind a tag or digest; none where it is not there.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<SourceManifest>, String>;

    /// A blob's size; none where it is not there.
    ///
    /// # Errors
    /// Why it cannot be asked.
    fn blob_size(&self, repository: &str, digest: &str) -> Result<Option<u64>, String>;

    /// A blob into a file, its digest checked. `told` hears how much is there and how much there will be.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn blob(
        &self,
        repository: &str,
        digest: &str,
        to: &Path,
        size: Option<u64>,
        told: &dyn Fn(u64, Option<u64>),
    ) -> Result<(), String>;

    /// All tags of a repository; none where there is no such.
    ///
    /// # Errors
    /// Why it cannot be asked.
    fn tags(&self, repository: &str) -> Result<Option<Vec<String>>, String>;

    /// The descriptors of what refers to a manifest.
    ///
    /// # Errors
    /// Why it cannot be asked.
    fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Value>, String>;
}

fn text(error: &ilot_image::Error) -> String {
    error.to_string()
}

impl Source for ilot_image::Remote {
    fn name(&self) -> String {
        self.host().to_owned()
    }

    fn digest(&self, repository: &str, reference: &str) -> Result<Option<String>, String> {
        Self::digest(self, repository, reference).map(|d| d.map(|d| d.to_string())).map_err(|e| text(&e))
    }

    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<SourceManifest>, String> {
        let found = Self::manifest(self, repository, reference).map_err(|e| text(&e))?;
        Ok(found.map(|m| SourceManifest { digest: m.digest.to_string(), media_type: m.media_type, bytes: m.bytes }))
    }

    fn blob_size(&self, repository: &str, digest: &str) -> Result<Option<u64>, String> {
        let digest = digest.parse().map_err(|e| text(&e))?;
        Self::blob_size(self, repository, &digest).map_err(|e| text(&e))
    }

    fn blob(
        &self,
        repository: &str,
        digest: &str,
        to: &Path,
        size: Option<u64>,
        told: &dyn Fn(u64, Option<u64>),
    ) -> Result<(), String> {
        let digest = digest.parse().map_err(|e| text(&e))?;
        Self::blob(self, repository, &digest, to, size, told, &|| false).map_err(|e| text(&e))
    }

    fn tags(&self, repository: &str) -> Result<Option<Vec<String>>, String> {
        Self::tags(self, repository).map_err(|e| text(&e))
    }

    fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Value>, String> {
        let digest = digest.parse().map_err(|e| text(&e))?;
        Self::referrers(self, repository, &digest).map_err(|e| text(&e))
    }
}

/// How far a download is.
#[derive(Debug, Clone)]
struct Coming {
    path: PathBuf,
    done: u64,
    /// Whole and checked, or why not.
    end: Option<Result<(), String>>,
}

/// The part of a mirror's server that a usual registry does not have.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(crate) source: Arc<dyn Source>,
    transports: Vec<Arc<dyn Transport>>,
    /// How long the answer to "what is behind this tag" is good for.
    pub(crate) revalidate: Duration,
    checked: Mutex<HashMap<String, Instant>>,
    coming: Mutex<HashMap<Digest, watch::Receiver<Coming>>>,
}

impl Mirror {
    pub(crate) fn new(source: Arc<dyn Source>, transports: Vec<Arc<dyn Transport>>, revalidate: Duration) -> Self {
        Self { source, transports, revalidate, checked: Mutex::default(), coming: Mutex::default() }
    }

    fn unavailable(&self, reason: &str) -> Refusal {
        Refusal::upstream(format!("{}: {reason}", self.source.name()))
    }

    fn is_fresh(&self, key: &str) -> bool {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.get(key).is_some_and(|since| since.elapsed() < self.revalidate)
    }

    fn check(&self, key: String) {
        if self.revalidate.is_zero() {
            return;
        }
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        checked.retain(|_, since| since.elapsed() < self.revalidate);
        checked.insert(key, Instant::now());
    }
}

/// What a blocking call of the source gives.
async fn ask<T: Send + 'static>(call: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(|e| Err(e.to_string()))
}

impl App {
    /// A manifest from here if the source says that it is still that one, or says nothing; else from the source.
    pub(crate) async fn mirrored_manifest(&self, mirror: &Mirror, name: &str, reference: &str, want: &Ask) -> Answer {
        let local = self.store.repository(name).and_then(|r| r.content().resolve(reference));
        let is_digest = reference.contains(':');
        if is_digest {
            reference.parse::<Digest>().map_err(Refusal::digest_invalid)?;
        }
        let key = format!("{name}:{reference}");
        if local.is_some() && (is_digest || mirror.is_fresh(&key)) {
            self.touch(local.as_ref());
            return self.manifest(name, reference, want);
        }
        let (source, at) = (mirror.source.clone(), (name.to_owned(), reference.to_owned()));
        let known = local.as_ref().map(ToString::to_string);
        let asked = ask(move || {
            // Asking what is behind a tag costs less than having it sent, here and in the registry's accounts.
            if let Some(known) = known {
                match source.digest(&at.0, &at.1)? {
                    Some(digest) if digest == known => return Ok(Upstream::Same),
                    Some(_) => {}
                    None => return Ok(Upstream::Gone),
                }
            }
            Ok(source.manifest(&at.0, &at.1)?.map_or(Upstream::Gone, Upstream::New))
        })
        .await;
        match asked {
            Ok(Upstream::Same) => {}
            Ok(Upstream::New(manifest)) => {
                let digest: Digest = manifest.digest.parse().map_err(Refusal::digest_invalid)?;
                let entry = Entry::parse(&manifest.bytes, &manifest.media_type);
                let entry = entry.map_err(|reason| mirror.unavailable(&reason))?;
                tokio::task::block_in_place(|| {
                    self.make_room(manifest.bytes.len() as u64);
                    self.keep_mirrored(name, reference, &digest, entry, &manifest.bytes)
                })?;
            }
            Ok(Upstream::Gone) => {
                if local.is_some() && !is_digest {
                    // The tag is no more; whoever knows the digest still finds the image.
                    self.forget_tag(name, reference)?;
                }
                return Err(Refusal::manifest_unknown(reference));
            }
            Err(reason) if local.is_some() => {
                tracing::warn!(name, reference, reason, "the source does not answer; serving what is here");
                let mut answer = self.manifest(name, reference, want)?;
                let stale = header::HeaderValue::from_static("110 - \"the source does not answer\"");
                answer.headers_mut().insert(header::WARNING, stale);
                return Ok(answer);
            }
            Err(reason) => return Err(mirror.unavailable(&reason)),
        }
        mirror.check(key);
        self.touch(self.store.repository(name).and_then(|r| r.content().resolve(reference)).as_ref());
        self.manifest(name, reference, want)
    }

    /// Writes down that a manifest is used: what is used least goes first when room is needed.
    fn touch(&self, digest: Option<&Digest>) {
        let Some(path) = digest.map(|digest| self.store.blob(digest)) else { return };
        let age = std::fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok());
        if age.is_some_and(|age| age > TOUCH) {
            let _ = std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        }
    }

    /// A blob from here, or from the source: handed on while it comes, kept when it is whole and what it should be.
    pub(crate) async fn mirrored_blob(
        self: &Arc<Self>,
        mirror: &Arc<Mirror>,
        name: &str,
        digest: &str,
        want: &Ask,
    ) -> Answer {
        let wanted: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
        let here = self.store.repository(name).is_some_and(|r| r.content().has_blob(&wanted));
        if here && self.store.blob(&wanted).exists() {
            return self.blob(name, digest, want).await;
        }
        let (source, at) = (mirror.source.clone(), (name.to_owned(), digest.to_owned()));
        // The source decides whether this repository has it, and how large it is.
        let size = ask(move || source.blob_size(&at.0, &at.1)).await.map_err(|reason| mirror.unavailable(&reason))?;
        let Some(size) = size else { return Err(Refusal::blob_unknown(&wanted)) };
        let builder = Response::builder()
            .header("docker-content-digest", wanted.to_string())
            .header(header::ETAG, format!("\"{wanted}\""))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, size);
        if want.head {
            return built(builder, Body::empty());
        }
        let mut coming = self.fetch(mirror, name, &wanted, size);
        // Nothing is promised to the client before something has come.
        let begun = coming.wait_for(|c| c.done > 0 || c.end.is_some()).await.map(|c| c.clone());
        let begun = begun.map_err(|_| mirror.unavailable("the download ended"))?;
        if let Some(Err(reason)) = &begun.end {
            return Err(mirror.unavailable(reason));
        }
        let file = match tokio::fs::File::open(&begun.path).await {
            Ok(file) => file,
            // Done and in its place since.
            Err(_) => tokio::fs::File::open(self.store.blob(&wanted))
                .await
                .map_err(|e| Error::io("open", self.store.blob(&wanted), e))?,
        };
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        tokio::spawn(async move {
            if let Err(error) = hand_on(file, coming, size, ours).await {
                // The client sees that it got less than was announced.
                tracing::debug!(%error, "a blob was not handed on to its end");
            }
        });
        built(builder, Body::from_stream(ReaderStream::with_capacity(theirs, BUFFER)))
    }

    /// The download of a blob: the one that is going on, or a new one.
    fn fetch(
        self: &Arc<Self>,
        mirror: &Arc<Mirror>,
        name: &str,
        digest: &Digest,
        size: u64,
    ) -> watch::Receiver<Coming> {
        let mut all = mirror.coming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(coming) = all.get(digest) {
            return coming.clone();
        }
        let path = self.store.root.join("uploads").join(format!("mirrored-{}", digest.hex()));
        let (sender, receiver) = watch::channel(Coming { path: path.clone(), done: 0, end: None });
        all.insert(digest.clone(), receiver.clone());
        let (app, mirror) = (self.clone(), mirror.clone());
        let (name, digest) = (name.to_owned(), digest.clone());
        tokio::task::spawn_blocking(move || {
            app.make_room(size);
            let told = |done, _| sender.send_modify(|c| c.done = done);
            let got = if transport::bring(&mirror.transports, &name, &digest, &path, size) {
                told(size, Some(size));
                Ok(())
            } else {
                mirror.source.blob(&name, &digest.to_string(), &path, Some(size), &told)
            };
            let end = got.and_then(|()| app.keep_blob(&name, &digest, &path, size).map_err(|e| e.to_string()));
            mirror.coming.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
            let _ = std::fs::remove_file(&path);
            if let Err(reason) = &end {
                tracing::warn!(name, %digest, reason, "not mirrored");
            }
            sender.send_modify(|c| c.end = Some(end));
        });
        receiver
    }

    fn keep_blob(&self, name: &str, digest: &Digest, path: &Path, size: u64) -> Result<(), Error> {
        let repository = self.store.repository_or_new(name)?;
        if self.store.charge(size).is_err() {
            // There is no room for it: whoever waits for it gets it all the same, from the file that he has open.
            tracing::warn!(name, %digest, size, "no room to keep it");
            return Ok(());
        }
        std::fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", path, e))?;
        self.store.commit(path, digest, &repository, size).inspect_err(|_| self.store.refund(size))
    }

    /// All tags of the source; those that are here where it does not answer.
    pub(crate) async fn mirrored_tags(&self, mirror: &Mirror, name: &str, query: &Query) -> Answer {
        let (source, at) = (mirror.source.clone(), name.to_owned());
        match ask(move || source.tags(&at)).await {
            Ok(Some(mut tags)) => {
                tags.sort();
                tags.dedup();
                self.list_tags(name, tags, query)
            }
            Ok(None) => Err(Refusal::name_unknown(name)),
            Err(reason) if self.store.repository(name).is_some() => {
                tracing::warn!(name, reason, "the source does not answer; listing what is here");
                self.tags(name, query)
            }
            Err(reason) => Err(mirror.unavailable(&reason)),
        }
    }

    /// What the source knows to refer to a manifest, or what is here.
    pub(crate) async fn mirrored_referrers(&self, mirror: &Mirror, name: &str, digest: &str, query: &Query) -> Answer {
        digest.parse::<Digest>().map_err(Refusal::digest_invalid)?;
        let (source, at) = (mirror.source.clone(), (name.to_owned(), digest.to_owned()));
        let Ok(mut manifests) = ask(move || source.referrers(&at.0, &at.1)).await else {
            return self.referrers(name, digest, query);
        };
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let wanted = query.get("artifactType").filter(|wanted| !wanted.is_empty());
        if let Some(wanted) = wanted {
            manifests.retain(|m| m["artifactType"] == **wanted);
        }
        let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
        let mut answer = document(StatusCode::OK, body, INDEX)?;
        if wanted.is_some() {
            let value = header::HeaderValue::from_static("artifactType");
            answer.headers_mut().insert("oci-filters-applied", value);
        }
        Ok(answer)
    }

    /// Forgets what was used least until so many bytes fit.
    fn make_room(&self, bytes: u64) {
        if self.store.can_never_fit(bytes) {
            return;
        }
        let mut oldest = self.by_use().into_iter();
        while !self.store.fits(bytes) {
            let Some((_, name, digest)) = oldest.next() else { return };
            tracing::info!(name, %digest, "forgotten to make room");
            self.forget_manifest(&name, &digest);
            // Whoever needs one of its blobs asks the source again: nothing has to be kept for a push.
            if let Err(error) = self.store.collect(Duration::ZERO) {
                tracing::error!(%error, "cannot collect");
                return;
            }
        }
    }

    /// Forgets the manifests that nobody asked for in so long.
    pub(crate) fn forget_unused(&self, unused: Duration) {
        for (used, name, digest) in self.by_use() {
            if used.elapsed().is_ok_and(|age| age >= unused) {
                self.forget_manifest(&name, &digest);
            }
        }
    }

    /// All manifests, the one that was used least recently first.
    fn by_use(&self) -> Vec<(SystemTime, String, Digest)> {
        let mut all = Vec::new();
        for (name, repository) in self.store.repositories() {
            let digests: Vec<Digest> = repository.content().manifests.keys().cloned().collect();
            for digest in digests {
                let used = std::fs::metadata(self.store.blob(&digest)).and_then(|m| m.modified());
                all.push((used.unwrap_or(SystemTime::UNIX_EPOCH), name.clone(), digest));
            }
        }
        all.sort();
        all
    }
}

/// What the source says of a manifest.
enum Upstream {
    Same,
    New(SourceManifest),
    Gone,
}

/// Hands a growing file on. Its last byte goes only when the whole is what it should be: nobody gets a whole blob that is
/// another one.
async fn hand_on(
    mut file: tokio::fs::File,
    mut coming: watch::Receiver<Coming>,
    size: u64,
    mut to: tokio::io::DuplexStream,
) -> std::io::Result<()> {
    let mut at = 0u64;
    let mut buffer = vec![0; 128 << 10];
    loop {
        let ended = |e| std::io::Error::other(format!("{e}"));
        let state = coming.wait_for(|c| c.end.is_some() || c.done.saturating_sub(1) > at).await.map_err(ended)?.clone();
        let until = match state.end {
            Some(Ok(())) => size,
            Some(Err(reason)) => return Err(std::io::Error::other(reason)),
            None => state.done.saturating_sub(1).min(size.saturating_sub(1)),
        };
        while at < until {
            // A download that had to begin again writes the file anew: the place is looked for each time.
            file.seek(std::io::SeekFrom::Start(at)).await?;
            let most = usize::try_from(until - at).unwrap_or(usize::MAX).min(buffer.len());
            let n = file.read(&mut buffer[..most]).await?;
            if n == 0 {
                break;
            }
            to.write_all(&buffer[..n]).await?;
            at += n as u64;
        }
        if at >= size {
            return to.shutdown().await;
        }
        if state.end.is_some() {
            return Err(std::io::Error::other("the file is shorter than it was said to be"));
        }
    }
}
