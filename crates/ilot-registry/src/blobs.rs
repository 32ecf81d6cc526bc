//! Blobs: read whole or in part, uploaded whole, in pieces or as a stream, mounted, deleted.

use std::fs;
use std::io::SeekFrom;
use std::sync::PoisonError;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::task::block_in_place;
use tokio_util::io::ReaderStream;

use crate::access::Caller;
use crate::api::{Answer, App, Ask, Query, built};
use crate::error::{Error, Refusal};
use crate::names::Digest;
use crate::uploads::{Shared, Upload};

/// Read from the disk at once.
const BUFFER: usize = 128 << 10;

impl App {
    pub(crate) async fn blob(&self, name: &str, digest: &str, ask: &Ask) -> Answer {
        let digest: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
        let repository = self.store.repository(name).ok_or_else(|| Refusal::name_unknown(name))?;
        if !repository.content().has_blob(&digest) {
            return Err(Refusal::blob_unknown(&digest));
        }
        let path = self.store.blob(&digest);
        let file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Refusal::blob_unknown(&digest)),
            Err(e) => return Err(Error::io("open", path, e).into()),
        };
        let size = file.metadata().await.map_err(|e| Error::io("read", &path, e))?.len();
        self.store.lease(&digest);
        let builder = Response::builder()
            .header("docker-content-digest", digest.to_string())
            .header(header::ETAG, format!("\"{digest}\""))
            .header(header::ACCEPT_RANGES, "bytes")
            // What has this address never has another content.
            .header(header::CACHE_CONTROL, "private, max-age=31536000, immutable");
        if unchanged(&ask.headers, &digest) {
            return built(builder.status(StatusCode::NOT_MODIFIED), Body::empty());
        }
        let builder = builder.header(header::CONTENT_TYPE, "application/octet-stream");
        let range = match range(&ask.headers, size) {
            Ok(range) => range,
            Err(()) => {
                let refusal = Refusal::upload_invalid(StatusCode::RANGE_NOT_SATISFIABLE, "no such bytes in it");
                return Err(refusal.with("Content-Range", format!("bytes */{size}")));
            }
        };
        let (from, length) = range.unwrap_or((0, size));
        let builder = match range {
            None => builder.status(StatusCode::OK),
            Some(_) => builder
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{size}", from + length - 1)),
        };
        let builder = builder.header(header::CONTENT_LENGTH, length);
        if ask.head {
            return built(builder, Body::empty());
        }
        let mut file = file;
        file.seek(SeekFrom::Start(from)).await.map_err(|e| Error::io("read", &path, e))?;
        built(builder, Body::from_stream(ReaderStream::with_capacity(file.take(length), BUFFER)))
    }

    pub(crate) fn delete_blob(&self, name: &str, digest: &str) -> Answer {
        let digest: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
        let repository = self.store.repository(name).ok_or_else(|| Refusal::name_unknown(name))?;
        let mut content = repository.content();
        if content.manifests.values().any(|entry| entry.blobs.contains(&digest)) {
            return Err(Refusal::unsupported("a manifest refers to this blob: delete the manifest"));
        }
        if !content.uploaded.contains(&digest) {
            return Err(Refusal::blob_unknown(&digest));
        }
        repository.forget_uploaded(&mut content, &digest);
        built(Response::builder().status(StatusCode::ACCEPTED), Body::empty())
    }

    pub(crate) async fn begin_upload(&self, name: &str, caller: &Caller, query: &Query, request: Request) -> Answer {
        if let Some(digest) = query.get("mount") {
            let digest: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
            if self.mount(name, caller, &digest, query.get("from").map(String::as_str))? {
                return created(name, &digest);
            }
        }
        let expected = query.get("digest").map(|d| d.parse::<Digest>()).transpose().map_err(Refusal::digest_invalid)?;
        self.store.repository_or_new(name)?;
        let (id, upload) = self.store.uploads.begin(name)?;
        let Some(expected) = expected else {
            // Content-Length: 0 it should be; what is sent all the same is not passed over.
            return progress(name, &id, 0, StatusCode::ACCEPTED);
        };
        let mut upload = upload.lock().await;
        let written = self.receive(&mut upload, request).await;
        match written {
            Ok(()) => self.complete(name, &id, &upload, &expected),
            Err(refusal) => {
                self.discard(name, &id, &upload);
                Err(refusal)
            }
        }
    }

    /// Takes a blob over from another repository, named or any, that whoever asks may read.
    fn mount(&self, name: &str, caller: &Caller, digest: &Digest, from: Option<&str>) -> Result<bool, Refusal> {
        // A token seldom names every repository; what its holder may read he may mount.
        let may = |from: &str| self.gate.may_list(caller, from);
        let _no_collection = self.store.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let there = match from {
            Some(from) => may(from) && self.store.repository(from).is_some_and(|r| r.content().has_blob(digest)),
            None => self.store.repositories().iter().any(|(from, r)| may(from) && r.content().has_blob(digest)),
        };
        if !there || !self.store.blob(digest).exists() {
            return Ok(false);
        }
        self.store.repository_or_new(name)?.note_uploaded(digest)?;
        self.store.lease(digest);
        Ok(true)
    }

    pub(crate) async fn upload_state(&self, name: &str, id: &str) -> Answer {
        let upload = self.upload(name, id)?;
        let size = upload.lock().await.size;
        progress(name, id, size, StatusCode::NO_CONTENT)
    }

    pub(crate) async fn continue_upload(&self, name: &str, id: &str, request: Request) -> Answer {
        let upload = self.upload(name, id)?;
        // Two at once would mix their pieces.
        let mut upload = upload.lock().await;
        in_step(name, id, &upload, request.headers())?;
        self.receive(&mut upload, request).await?;
        progress(name, id, upload.size, StatusCode::ACCEPTED)
    }

    pub(crate) async fn finish_upload(&self, name: &str, id: &str, query: &Query, request: Request) -> Answer {
        let digest = query.get("digest").ok_or_else(|| Refusal::digest_invalid("no `digest` is given"))?;
        let digest: Digest = digest.parse().map_err(Refusal::digest_invalid)?;
        let upload = self.upload(name, id)?;
        let mut upload = upload.lock().await;
        in_step(name, id, &upload, request.headers())?;
        self.receive(&mut upload, request).await?;
        self.complete(name, id, &upload, &digest)
    }

    pub(crate) async fn cancel_upload(&self, name: &str, id: &str) -> Answer {
        let upload = self.upload(name, id)?;
        let upload = upload.lock().await;
        self.discard(name, id, &upload);
        built(Response::builder().status(StatusCode::NO_CONTENT), Body::empty())
    }

    fn upload(&self, name: &str, id: &str) -> Result<Shared, Refusal> {
        block_in_place(|| self.store.uploads.find(name, id))?.ok_or_else(Refusal::upload_unknown)
    }

    /// Appends a request's body. What came before it broke off stays: a client goes on from there.
    async fn receive(&self, upload: &mut Upload, request: Request) -> Result<(), Refusal> {
        let length: Option<u64> =
            request.headers().get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
        let before = upload.size;
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|e| Refusal::upload_invalid(StatusCode::BAD_REQUEST, format!("the upload broke off: {e}")))?;
            let Some(bytes) = frame.data_ref() else { continue };
            self.store.charge(bytes.len() as u64)?;
            block_in_place(|| upload.write(bytes)).inspect_err(|_| self.store.refund(bytes.len() as u64))?;
        }
        match length {
            Some(length) if upload.size - before != length => {
                Err(Refusal::size_invalid(format!("{} bytes came, {length} were announced", upload.size - before)))
            }
            _ => Ok(()),
        }
    }

    /// Makes a whole upload a blob, if it is the one that was promised.
    fn complete(&self, name: &str, id: &str, upload: &Upload, expected: &Digest) -> Answer {
        let actual = block_in_place(|| upload.digest_like(expected))?;
        if actual != *expected {
            self.discard(name, id, upload);
            return Err(Refusal::digest_invalid(format!("what was uploaded is {actual}, not {expected}")));
        }
        block_in_place(|| -> Result<(), Error> {
            upload.sync()?;
            let repository = self.store.repository_or_new(name)?;
            self.store.commit(&upload.path, expected, &repository, upload.size)
        })?;
        self.store.uploads.forget(name, id);
        created(name, expected)
    }

    fn discard(&self, name: &str, id: &str, upload: &Upload) {
        self.store.uploads.forget(name, id);
        let _ = fs::remove_file(&upload.path);
        self.store.refund(upload.size);
    }
}

/// A piece that says where it belongs must belong where the upload is.
fn in_step(name: &str, id: &str, upload: &Upload, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(said) = headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let parsed = said.to_str().ok().and_then(|text| {
        let (from, to) = text.trim_start_matches("bytes ").split_once('-')?;
        Some((from.trim().parse::<u64>().ok()?, to.split('/').next()?.trim().parse::<u64>().ok()?))
    });
    let refuse = |message: String| {
        Err(Refusal::upload_invalid(StatusCode::RANGE_NOT_SATISFIABLE, message)
            .with("Range", received(upload.size))
            .with("Location", format!("/v2/{name}/blobs/uploads/{id}")))
    };
    let Some((from, to)) = parsed else { return refuse("`Content-Range` is not of the form `FROM-TO`".to_owned()) };
    if from != upload.size {
        return refuse(format!("the upload has {} bytes, the piece begins at {from}", upload.size));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| from + length != to + 1) {
        return refuse(format!("a piece {from}-{to} does not have {} bytes", length.unwrap_or_default()));
    }
    Ok(())
}

/// `0-LAST` of what an upload has; `0-0` of nothing, as all registries write it.
fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn progress(name: &str, id: &str, size: u64, status: StatusCode) -> Answer {
    let builder = Response::builder()
        .status(status)
        .header(header::LOCATION, format!("/v2/{name}/blobs/uploads/{id}"))
        .header(header::RANGE, received(size))
        .header("docker-upload-uuid", id);
    built(builder, Body::empty())
}

fn created(name: &str, digest: &Digest) -> Answer {
    let builder = Response::builder()
        .status(StatusCode::CREATED)
        .header(header::LOCATION, format!("/v2/{name}/blobs/{digest}"))
        .header("docker-content-digest", digest.to_string());
    built(builder, Body::empty())
}

/// Whether the client says that it has that content.
pub(crate) fn unchanged(headers: &HeaderMap, digest: &Digest) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    tags.flat_map(|v| v.split(',')).any(|tag| {
        let tag = tag.trim().trim_start_matches("W/").trim_matches('"');
        tag == "*" || tag == digest.to_string()
    })
}

/// One range of bytes, as offset and length (RFC 9110, 14.2); several are answered with the whole.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(text) = headers.get(header::RANGE).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    let Some(spec) = text.strip_prefix("bytes=").filter(|s| !s.contains(',')) else { return Ok(None) };
    let Some((from, to)) = spec.trim().split_once('-') else { return Ok(None) };
    let range = match (from.trim().parse::<u64>().ok(), to.trim().parse::<u64>().ok()) {
        (Some(from), None) if to.trim().is_empty() => (from, size),
        (Some(from), Some(to)) if from <= to => (from, size.min(to.saturating_add(1))),
        (None, Some(last)) if from.trim().is_empty() => (size.saturating_sub(last), size),
        _ => return Ok(None),
    };
    if range.0 >= range.1 { Err(()) } else { Ok(Some((range.0, range.1 - range.0))) }
}
