//! Images pushed to a registry (OCI distribution-spec 1.1, "Push").

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::http::{Body, Client, Open, Sent, Watch};
use crate::oci::{self, Descriptor};
use crate::progress::Progress;
use crate::reference::{Reference, RegistryName};
use crate::remote::BlobPushed;
use crate::source::Registry;
use crate::store::Store;
use crate::types::{Digest, Image};

/// Blobs sent at the same time.
const PARALLEL: usize = 3;
/// How often the sum of what went is told.
const REPORT: Duration = Duration::from_millis(50);
/// Bytes of a piece, where a blob that did not get through whole is sent in pieces.
const CHUNK: u64 = 16 << 20;

/// What a push did.
#[derive(Debug, Clone, Serialize)]
pub struct Pushed {
    /// Where the image is now: `ghcr.io/owner/tool:1`.
    pub destination: String,
    /// Its manifest there; the same as here.
    pub digest: Digest,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs that the registry took over from another repository of its own.
    pub mounted: usize,
    /// Blobs that it had.
    pub present: usize,
    /// Bytes that were sent.
    pub bytes: u64,
}

/// What became of one blob.
enum Fate {
    Present,
    Mounted,
    Sent,
}

impl Store {
    /// Sends an image to a registry, to the byte as it is here: blobs that the registry has are not sent, those that
    /// another of its repositories has are mounted. `destination` is a registry's name; without one, the image's own is
    /// meant.
    ///
    /// # Errors
    /// When the destination is no registry's name, the registry refuses or cannot be reached, or a blob is damaged.
    pub fn push(&self, image: &Image, destination: Option<&str>, progress: &dyn Progress) -> Result<Pushed> {
        let (name, tag) = destination_of(destination.unwrap_or(&image.reference))?;
        progress.stage(&format!("{name}: push"));
        let registry = Registry::new(self.client(), &name);
        let pushed = self.push_one(image, &name, &registry, &tag, progress);
        progress.finished();
        pushed.map(|(pushed, _)| pushed)
    }

    /// Sends the images that a name has for all platforms, and an index of them under the destination's tag.
    ///
    /// # Errors
    /// As [`Store::push`].
    pub fn push_all(&self, reference: &str, destination: Option<&str>, progress: &dyn Progress) -> Result<Pushed> {
        let first = self.require(reference).or_else(|error| {
            // A name may have images for other platforms alone.
            let any = self.list()?.into_iter().find(|image| image.reference == reference);
            any.ok_or(error)
        })?;
        let mut images: Vec<Image> = self.list()?.into_iter().filter(|i| i.reference == first.reference).collect();
        images.sort_by(|a, b| a.platform.cmp(&b.platform));
        let (name, tag) = destination_of(destination.unwrap_or(&first.reference))?;
        let registry = Registry::new(self.client(), &name);
        let mut all =
            Pushed { destination: name.to_string(), digest: first.digest, sent: 0, mounted: 0, present: 0, bytes: 0 };
        let mut entries = Vec::new();
        for image in &images {
            progress.stage(&format!("{name}: push {}", image.platform));
            let by = image.digest.to_string();
            let (pushed, mut entry) =
                self.push_one(image, &name, &registry, &by, progress).inspect_err(|_| progress.finished())?;
            all.sent += pushed.sent;
            all.mounted += pushed.mounted;
            all.present += pushed.present;
            all.bytes += pushed.bytes;
            entry.other.insert("platform".to_owned(), image.platform.to_json());
            entries.push(entry);
        }
        progress.finished();
        let index = oci::Index { manifests: entries, ..oci::Index::default() };
        let bytes = serde_json::to_vec(&index)
            .map_err(|e| Error::Damaged { path: self.root().to_owned(), reason: e.to_string() })?;
        all.digest = crate::blob::digest_of(&bytes);
        let file = |digest: &Digest| self.blob_file(digest);
        let push = Push { http: self.client(), registry: &registry, file: &file, from: BTreeSet::new() };
        push.put_manifest(&bytes, &all.digest, oci::INDEX, &tag)?;
        Ok(all)
    }

    fn push_one(
        &self,
        image: &Image,
        name: &RegistryName,
        registry: &Registry<'_>,
        reference: &str,
        progress: &dyn Progress,
    ) -> Result<(Pushed, Descriptor)> {
        let manifest = self.manifest(&image.digest)?;
        let mut blobs: Vec<Descriptor> = Vec::new();
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            if !blobs.iter().any(|b| b.digest == blob.digest) {
                blobs.push(blob.clone());
            }
        }
        let from = self.other_repositories(image, name)?;
        let file = |digest: &Digest| self.blob_file(digest);
        let push = Push { http: self.client(), registry, file: &file, from };
        let fates = push.all(&blobs, progress)?;
        let media_type = manifest.media_type.as_deref().unwrap_or(oci::MANIFEST);
        let size = push.manifest(&image.digest, media_type, reference)?;
        let count = |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count();
        let pushed = Pushed {
            destination: name.to_string(),
            digest: image.digest.clone(),
            sent: count(|f| matches!(f, Fate::Sent)),
            mounted: count(|f| matches!(f, Fate::Mounted)),
            present: count(|f| matches!(f, Fate::Present)),
            bytes: blobs.iter().zip(&fates).filter(|(_, f)| matches!(f, Fate::Sent)).map(|(b, _)| b.size).sum(),
        };
        Ok((pushed, Descriptor::new(media_type, image.digest.clone(), size)))
    }

    /// Repositories of the same registry that are known to have blobs of this image: those of its other names.
    fn other_repositories(&self, image: &Image, to: &RegistryName) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for other in self.list()? {
            let shares = other.digest == image.digest;
            if let (true, Ok(Reference::Registry(name))) = (shares, Reference::parse(&other.reference))
                && name.host == to.host
                && name.repository != to.repository
            {
                all.insert(name.repository);
            }
        }
        Ok(all)
    }
}

/// Where a push goes, and under which tag.
fn destination_of(text: &str) -> Result<(RegistryName, String)> {
    let bad = |reason: &str| Error::BadReference {
        text: text.to_owned(),
        reason: reason.to_owned(),
        help: Some("for example `ghcr.io/owner/tool:1` or `docker://localhost:5000/tool`".to_owned()),
    };
    let Reference::Registry(name) = Reference::parse(text)? else {
        return Err(bad("not a registry's name, so it cannot be pushed to"));
    };
    match name.tag.clone() {
        Some(tag) => Ok((name, tag)),
        None => Err(bad("a push needs a tag, not a digest")),
    }
}

/// Sends one blob that lies in a file.
pub(crate) fn one_blob(
    http: &Client,
    registry: &Registry<'_>,
    digest: &Digest,
    file: &Path,
    watch: &Watch<'_>,
) -> Result<BlobPushed> {
    let size = std::fs::metadata(file).map_err(|e| Error::io("read", file, e))?.len();
    let find = |_: &Digest| file.to_owned();
    let push = Push { http, registry, file: &find, from: BTreeSet::new() };
    Ok(match push.blob(&Descriptor::new("", digest.clone(), size), watch)? {
        Fate::Present => BlobPushed::Present,
        Fate::Mounted | Fate::Sent => BlobPushed::Sent,
    })
}

struct Push<'a> {
    http: &'a Client,
    registry: &'a Registry<'a>,
    /// Where a blob lies.
    file: &'a (dyn Fn(&Digest) -> PathBuf + Sync),
    /// Where the registry may have the blobs already.
    from: BTreeSet<String>,
}

impl Push<'_> {
    /// All blobs, several at a time; the first failure ends the others.
    fn all(&self, blobs: &[Descriptor], progress: &dyn Progress) -> Result<Vec<Fate>> {
        let total: u64 = blobs.iter().map(|b| b.size).sum();
        let done: Vec<AtomicU64> = blobs.iter().map(|_| AtomicU64::new(0)).collect();
        let fates: Vec<Mutex<Option<Fate>>> = blobs.iter().map(|_| Mutex::new(None)).collect();
        let (next, ended, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let workers = PARALLEL.min(blobs.len());
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(blob) = blobs.get(i).filter(|_| !stop.load(Ordering::Relaxed)) else { break };
                let watch = Watch {
                    bytes: &|bytes, _| done[i].store(bytes, Ordering::Relaxed),
                    cancelled: &|| stop.load(Ordering::Relaxed),
                };
                match self.blob(blob, &watch) {
                    Ok(fate) => *fates[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(fate),
                    Err(error) => {
                        if !stop.swap(true, Ordering::Relaxed) {
                            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        }
                        break;
                    }
                }
                done[i].store(blob.size, Ordering::Relaxed);
            }
            ended.fetch_add(1, Ordering::Release);
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            while ended.load(Ordering::Acquire) < workers
                && !handles.iter().all(std::thread::ScopedJoinHandle::is_finished)
            {
                progress.bytes(done.iter().map(|d| d.load(Ordering::Relaxed)).sum(), Some(total));
                if progress.cancelled() {
                    stop.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(REPORT);
            }
        });
        if progress.cancelled() {
            return Err(Error::Cancelled { reference: self.registry.to_string() });
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        Ok(fates.into_iter().filter_map(|f| f.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
    }

    /// A request; the login goes to the registry alone, wherever it sends uploads.
    fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        body: Body<'_>,
        expected: &[u16],
        watch: &Watch<'_>,
    ) -> Result<Sent> {
        if url.starts_with(&format!("{}/", self.registry.base)) {
            self.http.send(method, url, headers, body, expected, (&self.registry.access(), watch))
        } else {
            self.http.send(method, url, headers, body, expected, (&Open, watch))
        }
    }

    fn blob(&self, blob: &Descriptor, watch: &Watch<'_>) -> Result<Fate> {
        let url = self.registry.blob_url(&blob.digest);
        let there = self.send("HEAD", &url, &[], Body::None, &[200, 404], watch)?;
        if there.status == 200 {
            return Ok(Fate::Present);
        }
        let path = self.checked(blob)?;
        let start = format!("{}/v2/{}/blobs/uploads/", self.registry.base, self.registry.repository);
        for from in &self.from {
            let url = format!("{start}?mount={}&from={from}", blob.digest);
            // A registry that may not, or does not want to, mount begins an upload, which is left to expire.
            if let Ok(sent) = self.send("POST", &url, &[], Body::None, &[201, 202], watch)
                && sent.status == 201
            {
                return Ok(Fate::Mounted);
            }
        }
        let chunk = std::env::var("ILOT_PUSH_CHUNK").ok().and_then(|c| c.parse().ok()).filter(|c| *c > 0);
        match chunk {
            Some(chunk) => self.in_pieces(blob, &path, &start, chunk, watch)?,
            None => {
                let begun = self.send("POST", &start, &[], Body::None, &[202], watch)?;
                let url = self.place(&begun, &start, Some(&blob.digest))?;
                let whole = Body::File(&path, 0, blob.size);
                match self.send("PUT", &url, &binary(), whole, &[201, 204], watch) {
                    Ok(_) => {}
                    // What lies between may not let so much through at once, and may not let it through in time.
                    Err(Error::Http { unreachable: false, .. }) if blob.size > CHUNK && !(watch.cancelled)() => {
                        self.in_pieces(blob, &path, &start, CHUNK, watch)?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Fate::Sent)
    }

    /// Sends a blob piece by piece; one that is lost is asked for and sent again alone.
    fn in_pieces(&self, blob: &Descriptor, path: &Path, start: &str, chunk: u64, watch: &Watch<'_>) -> Result<()> {
        let begun = self.send("POST", start, &[], Body::None, &[202], watch)?;
        let chunk = chunk.max(begun.chunk.unwrap_or(0));
        let mut url = self.place(&begun, start, None)?;
        let mut at = 0;
        let mut stuck = 0;
        while at < blob.size {
            let length = chunk.min(blob.size - at);
            let mut headers = binary();
            headers.push(("Content-Range", format!("{at}-{}", at + length - 1)));
            let piece = Body::File(path, at, length);
            let told = Watch { bytes: &|bytes, _| (watch.bytes)(at + bytes, None), cancelled: watch.cancelled };
            match self.send("PATCH", &url, &headers, piece, &[202, 416], &told) {
                Ok(sent) if sent.status == 202 => {
                    url = self.place(&sent, &url, None)?;
                    at += length;
                    stuck = 0;
                }
                // Out of step: the answer to a piece was lost, or part of it. The registry knows where it is.
                Ok(_) | Err(Error::Http { unreachable: false, .. }) if stuck < 3 && !(watch.cancelled)() => {
                    stuck += 1;
                    let state = self.send("GET", &url, &[], Body::None, &[204], watch)?;
                    at = state.received.map_or(0, |last| if last == 0 { 0 } else { last + 1 });
                    url = self.place(&state, &url, None).unwrap_or(url);
                }
                Ok(sent) => return Err(self.registry.bad(format!("answers {} to a piece of a blob", sent.status))),
                Err(error) => return Err(error),
            }
        }
        let url = with_digest(&url, &blob.digest);
        self.send("PUT", &url, &binary(), Body::None, &[201, 204], watch)?;
        Ok(())
    }

    fn manifest(&self, digest: &Digest, media_type: &str, tag: &str) -> Result<u64> {
        let path = (self.file)(digest);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", path, e))?;
        self.put_manifest(&bytes, digest, media_type, tag)?;
        Ok(bytes.len() as u64)
    }

    fn put_manifest(&self, bytes: &[u8], digest: &Digest, media_type: &str, tag: &str) -> Result<()> {
        let url = format!("{}/v2/{}/manifests/{tag}", self.registry.base, self.registry.repository);
        let watch = Watch { bytes: &|_, _| {}, cancelled: &|| false };
        let headers = [("Content-Type", media_type.to_owned())];
        let sent = self.send("PUT", &url, &headers, Body::Bytes(bytes), &[200, 201, 202], &watch)?;
        match sent.digest.and_then(|d| d.parse::<Digest>().ok()) {
            Some(actual) if actual != *digest => Err(Error::Mismatch { what: url, expected: digest.clone(), actual }),
            _ => Ok(()),
        }
    }

    /// The blob's file, if it is what it should be: a damaged one is not passed on.
    fn checked(&self, blob: &Descriptor) -> Result<PathBuf> {
        let path = (self.file)(&blob.digest);
        let mut file = crate::blob::open(&path, &blob.digest)?;
        std::io::copy(&mut file, &mut std::io::sink()).map_err(|e| Error::io("read", &path, e))?;
        let (actual, ..) = file.digest();
        if actual != blob.digest {
            return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
        }
        Ok(path)
    }

    /// Where an upload goes on: `Location`, absolute or seen from the address before.
    fn place(&self, sent: &Sent, before: &str, digest: Option<&Digest>) -> Result<String> {
        let location = sent.location.as_deref().ok_or_else(|| self.registry.bad("does not say where to upload to"))?;
        let url = match location {
            absolute if absolute.contains("://") => absolute.to_owned(),
            rooted if rooted.starts_with('/') => format!("{}{rooted}", self.registry.base),
            relative => format!("{}/{relative}", before.split('?').next().unwrap_or(before).trim_end_matches('/')),
        };
        // A login is for the registry alone, and not for the clear.
        if self.registry.base.starts_with("https://") && !url.starts_with("https://") {
            return Err(self.registry.bad("wants the upload sent without TLS"));
        }
        Ok(digest.map_or_else(|| url.clone(), |digest| with_digest(&url, digest)))
    }
}

fn binary() -> Vec<(&'static str, String)> {
    vec![("Content-Type", "application/octet-stream".to_owned())]
}

fn with_digest(url: &str, digest: &Digest) -> String {
    format!("{url}{}digest={digest}", if url.contains('?') { '&' } else { '?' })
}
