//! Images pulled from a registry (OCI distribution-spec 1.1, and Docker's version 2 that it came from).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;

use super::layout::{best, check, offered};
use super::logins::credentials;
use super::{Brought, Found, Order};
use crate::blob::{self, Codec, Import, Layer};
use crate::error::{Error, Result};
use crate::http::{Access, Client, Watch};
use crate::oci::{self, Configuration, Descriptor, Index, Manifest};
use crate::partial::Partial;
use crate::reference::RegistryName;
use crate::trust::signature;
use crate::types::Digest;

/// Manifests and configurations are small (the limit of containers/image).
pub(crate) const SMALL: u64 = 4 << 20;
/// Layers fetched at the same time.
const PARALLEL: usize = 3;
/// How often the sum of what came is told.
const REPORT: Duration = Duration::from_millis(50);

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// From the registry's mirrors in order, else from the registry itself.
pub(super) fn pull(order: &Order<'_>, name: &RegistryName) -> Result<Found> {
    for mirror in order.remotes.mirrors(&name.host) {
        let at = match name.on_mirror(mirror) {
            Ok(at) => at,
            Err(reason) => {
                order.progress.note(&format!("{}: mirror `{mirror}`: {reason}; next {}", order.name, name.host));
                continue;
            }
        };
        match pull_from(order, &at, name) {
            // Trying elsewhere would not help, or not be wanted.
            Err(
                error @ (Error::NoSpace { .. } | Error::Cancelled { .. } | Error::Io { .. } | Error::Damaged { .. }),
            ) => {
                return Err(error);
            }
            Err(error) => order.progress.note(&format!("{}: mirror {mirror}: {error}", order.name)),
            found => return found,
        }
    }
    pull_from(order, name, name)
}

/// From `name`, which is where the image that is asked for as `asked` may be.
fn pull_from(order: &Order<'_>, name: &RegistryName, asked: &RegistryName) -> Result<Found> {
    let registry = Registry::of(order.http, name, name != asked);
    order.stage(&format!("ask {}", registry.base));
    let (entry, bytes, passed) = registry.manifest(order, name)?;
    order.policy.check(asked, &passed, |digest| signature::found(order.http, &registry, digest))?;
    let manifest: Manifest = registry.json("manifest", &bytes)?;
    let configuration = registry.small(&manifest.config.digest)?;
    let parsed: Configuration = registry.json("configuration", &configuration)?;
    check(&parsed, manifest.layers.len(), order.platform).map_err(|reason| registry.bad(reason))?;
    order.stage(&format!("download {} layers from {}", manifest.layers.len(), name.host));
    let layers = registry.layers(order, &manifest.layers, &parsed.rootfs.diff_ids)?;
    let brought = Brought { configuration, manifest: Some((entry, bytes)) };
    Ok(Found::brought(layers, registry.base, brought))
}

/// One repository of one registry.
pub(crate) struct Registry<'a> {
    http: &'a Client,
    /// `https://ghcr.io`
    pub(crate) base: String,
    pub(crate) repository: &'a str,
    login: Arc<Login>,
}

impl std::fmt::Display for Registry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.repository)
    }
}

impl<'a> Registry<'a> {
    pub(crate) fn new(http: &'a Client, name: &'a RegistryName) -> Self {
        Self::of(http, name, false)
    }

    fn of(http: &'a Client, name: &'a RegistryName, is_mirror: bool) -> Self {
        let insecure = std::env::var("ILOT_INSECURE_REGISTRIES").unwrap_or_default();
        let named = insecure.split(',').any(|h| h.trim() == name.host);
        // Docker Hub's images are at another name than its own.
        let host = if name.host == "docker.io" { "registry-1.docker.io" } else { &name.host };
        // Without verification: TLS where there is some, whatever the certificate, and none where there is none.
        let clear = named || !http.verifies() && !http.answers(&format!("https://{host}/v2/"));
        let scheme = if clear { "http" } else { "https" };
        let basic = credentials(http.logins(), &name.host, &name.repository, is_mirror);
        Self {
            http,
            base: format!("{scheme}://{host}"),
            repository: &name.repository,
            login: Arc::new(Login { header: Mutex::new(None), basic, secure: scheme == "https" }),
        }
    }

    /// One that was spoken to before, with the login that it was given.
    pub(crate) fn again(http: &'a Client, name: &'a RegistryName, base: String, login: Arc<Login>) -> Self {
        Self { http, base, repository: &name.repository, login }
    }

    pub(crate) fn login(&self) -> Arc<Login> {
        self.login.clone()
    }

    pub(crate) fn access(&self) -> Session<'_> {
        Session { http: self.http, login: &self.login }
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> Error {
        Error::Http { url: self.to_string(), reason: reason.into(), unreachable: false }
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|e| self.bad(format!("{what}: {e}")))
    }

    /// The manifest for the platform, all indexes passed, each checked against the digest that named it; and the digests
    /// of them all.
    fn manifest(&self, order: &Order<'_>, name: &RegistryName) -> Result<(Descriptor, Vec<u8>, Vec<Digest>)> {
        let mut passed = Vec::new();
        let mut wanted = name.digest.clone();
        let mut by = wanted.as_ref().map(ToString::to_string).or_else(|| name.tag.clone()).unwrap_or_default();
        for _ in 0..3 {
            order.wanted()?;
            let url = format!("{}/v2/{}/manifests/{by}", self.base, self.repository);
            let (bytes, said) = self.http.get_as(&url, SMALL, None, &self.access())?;
            let media_type = media_type(said, &bytes);
            let digest = match wanted {
                Some(expected) => verify(&url, &expected, &bytes).map(|()| expected)?,
                None => blob::digest_of(&bytes),
            };
            passed.push(digest.clone());
            if oci::is_manifest(&media_type) {
                return Ok((Descriptor::new(&media_type, digest, bytes.len() as u64), bytes, passed));
            }
            if !oci::is_index(&media_type) {
                return Err(self.bad(format!("answers with `{media_type}`, which is no image")));
            }
            let index: Index = self.json("index", &bytes)?;
            let has = offered(&index.manifests);
            let entry = best(index.manifests, order.platform).into_iter().next();
            let entry =
                entry.ok_or_else(|| self.bad(format!("has no image for {}, only for {has}", order.platform)))?;
            by = entry.digest.to_string();
            wanted = Some(entry.digest);
        }
        Err(self.bad("indexes within indexes without end"))
    }

    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/v2/{}/blobs/{digest}", self.base, self.repository)
    }

    fn small(&self, digest: &Digest) -> Result<Vec<u8>> {
        let url = self.blob_url(digest);
        let (bytes, _) = self.http.get_as(&url, SMALL, None, &self.access())?;
        verify(&url, digest, &bytes)?;
        Ok(bytes)
    }

    /// All layers, several at a time, each read and checked as soon as it is there; those that the store has are linked,
    /// not fetched.
    fn layers(&self, order: &Order<'_>, layers: &[Descriptor], diff_ids: &[Digest]) -> Result<Vec<Layer>> {
        let found: Vec<Mutex<Option<Layer>>> = layers.iter().map(|_| Mutex::new(None)).collect();
        let total = layers.iter().map(|l| l.size).fold(0, u64::saturating_add);
        let done: Vec<AtomicU64> = layers.iter().map(|_| AtomicU64::new(0)).collect();
        let (next, ended, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let workers = PARALLEL.min(layers.len());
        let work = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = layers.get(i).filter(|_| !stop.load(Ordering::Relaxed)) else { break };
                let watch = Watch {
                    bytes: &|bytes, _| done[i].store(bytes, Ordering::Relaxed),
                    cancelled: &|| stop.load(Ordering::Relaxed),
                };
                let result = self.layer(order, layer, &diff_ids[i], i, &watch).map(|layer| {
                    *found[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(layer);
                });
                if let Err(error) = result {
                    // The first failure is the reason; the others only follow from it.
                    if !stop.swap(true, Ordering::Relaxed) {
                        *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    }
                    break;
                }
                done[i].store(layer.size, Ordering::Relaxed);
            }
            ended.fetch_add(1, Ordering::Release);
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            while ended.load(Ordering::Acquire) < workers
                && !handles.iter().all(std::thread::ScopedJoinHandle::is_finished)
            {
                order.progress.bytes(done.iter().map(|d| d.load(Ordering::Relaxed)).sum(), Some(total));
                if order.progress.cancelled() {
                    stop.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(REPORT);
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        order.bytes(total, Some(total))?;
        let found = found.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner));
        // A worker that saw the stop left none.
        found.collect::<Option<_>>().ok_or_else(|| Error::Cancelled { reference: order.name.to_owned() })
    }

    fn layer(
        &self,
        order: &Order<'_>,
        layer: &Descriptor,
        diff_id: &Digest,
        i: usize,
        watch: &Watch<'_>,
    ) -> Result<Layer> {
        let file = order.aside.path().join(format!("pulled-{i}"));
        let is_new = self.fetch(order.store, layer, &file, watch)?;
        let what = format!("{self}: layer {}", layer.digest.short());
        let each = |_| match (watch.cancelled)() {
            true => Err(Error::Cancelled { reference: order.name.to_owned() }),
            false => Ok(()),
        };
        let import = Import { what: &what, aside: order.aside, codec: Codec::Plain, limits: order.limits, each: &each };
        // What the store had already has its place, or gets it when a machine wants it.
        if let Some(folder) = order.prepare.filter(|_| is_new) {
            let found = blob::inspect_and_prepare(&file, &layer.digest, diff_id, &layer.media_type, &import, folder);
            match found {
                Ok(layer) => return Ok(layer),
                Err(error @ Error::Cancelled { .. }) => return Err(error),
                // What the native format does not take may be fine otherwise; and what is not is told the usual way.
                Err(error) => tracing::debug!(%error, layer = layer.digest.short(), "not made native on the way"),
            }
        }
        blob::inspect(file, &layer.digest, diff_id, &layer.media_type, &import)
    }

    /// Whether it had to come.
    fn fetch(&self, store: &Path, layer: &Descriptor, file: &Path, watch: &Watch<'_>) -> Result<bool> {
        // A link keeps it from a collection until it is taken in again.
        if fs::hard_link(store.join(layer.digest.path_in_layout()), file).is_ok() {
            let mut linked = blob::open(file, &layer.digest)?;
            std::io::copy(&mut linked, &mut std::io::sink()).map_err(|e| Error::io("read", file, e))?;
            if linked.digest().0 == layer.digest {
                return Ok(false);
            }
            fs::remove_file(file).map_err(|e| Error::io("remove", file, e))?;
        }
        let url = self.blob_url(&layer.digest);
        let download = |to: &Path| {
            self.http.download(&url, to, &layer.digest, Some(layer.size), &self.access(), watch).map(|()| true)
        };
        // Another pull may be at the same blob: then this one has it for itself.
        let Some(partial) = Partial::take(store, &layer.digest)? else { return download(file) };
        match download(&partial.path) {
            Ok(_) => {}
            // Worth going on with.
            Err(error @ (Error::Cancelled { .. } | Error::Http { .. })) => return Err(error),
            Err(error) => {
                partial.discard();
                return Err(error);
            }
        }
        fs::hard_link(&partial.path, file).map_err(|e| Error::io("link", &partial.path, e))?;
        Ok(true)
    }
}

/// What a registry says that it sends, or, where it says only that it is JSON, what the content says itself.
pub(crate) fn media_type(said: String, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: String,
    }
    if oci::is_manifest(&said) || oci::is_index(&said) {
        return said;
    }
    serde_json::from_slice::<Typed>(bytes).map_or(said, |typed| typed.media_type)
}

pub(crate) fn verify(url: &str, expected: &Digest, bytes: &[u8]) -> Result<()> {
    let actual = blob::digest_like(bytes, expected);
    if actual == *expected {
        Ok(())
    } else {
        Err(Error::Mismatch { what: url.to_owned(), expected: expected.clone(), actual })
    }
}

/// Who asks, as far as the registry wants to know.
#[derive(Debug)]
pub(crate) struct Login {
    /// The `Authorization` in use.
    header: Mutex<Option<String>>,
    /// From an auth file: `Basic …`.
    basic: Option<String>,
    /// A password goes over TLS, or not at all unless the registry was named insecure.
    secure: bool,
}

/// The login of one repository, as requests carry it.
pub(crate) struct Session<'a> {
    http: &'a Client,
    login: &'a Login,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Access for Session<'_> {
    fn headers(&self) -> Vec<(&'static str, String)> {
        let header = self.login.header.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = vec![("Accept", ACCEPT.to_owned())];
        all.extend(header.map(|h| ("Authorization", h)));
        all
    }

    fn challenged(&self, challenge: &str) -> Result<bool> {
        let set = |header: String| {
            *self.login.header.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
            true
        };
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok(self.login.basic.clone().is_some_and(set));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(false);
        }
        let fields = parameters(rest);
        let Some(realm) = fields.get("realm") else { return Ok(false) };
        if self.login.secure && !realm.starts_with("https://") {
            let reason = "wants the login sent without TLS".to_owned();
            return Err(Error::Http { url: realm.clone(), reason, unreachable: false });
        }
        let query: Vec<String> = ["service", "scope"]
            .iter()
            .filter_map(|key| Some(format!("{key}={}", escape(fields.get(*key)?))))
            .collect();
        let url = format!("{realm}{}{}", if realm.contains('?') { '&' } else { '?' }, query.join("&"));
        let (bytes, _) = self.http.get_as(&url, SMALL, None, &Basic(self.login.basic.clone()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|e| Error::Http {
            url: url.clone(),
            reason: format!("no token: {e}"),
            unreachable: false,
        })?;
        Ok(token.token.or(token.access_token).is_some_and(|token| set(format!("Bearer {token}"))))
    }
}

/// Asks for a token, with a password where there is one.
struct Basic(Option<String>);

impl Access for Basic {
    fn headers(&self) -> Vec<(&'static str, String)> {
        self.0.iter().map(|basic| ("Authorization", basic.clone())).collect()
    }

    fn challenged(&self, _challenge: &str) -> Result<bool> {
        Ok(false)
    }
}

/// `realm="https://…",service="…"` of a `WWW-Authenticate` (RFC 9110, auth-param).
fn parameters(text: &str) -> HashMap<String, String> {
    let mut all = HashMap::new();
    let mut rest = text.trim();
    while let Some((key, value)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => value.split_once(',').unwrap_or((value, "")),
        };
        all.insert(key, value.to_owned());
        rest = after;
    }
    all
}

/// Percent-encodes for a query.
pub(crate) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'/' | b':') {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
        out
    })
}

/// What a registry says of itself and of what it sends.
#[cfg(fuzzing)]
pub(crate) fn fuzz_texts(bytes: &[u8]) {
    let _ = media_type(String::new(), bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = parameters(text).values().map(|value| escape(value)).collect::<Vec<_>>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let fields = parameters(r#"realm="https://auth.x/token",service="reg x",scope="repository:a/b:pull,push""#);
        assert_eq!(fields["realm"], "https://auth.x/token");
        assert_eq!(fields["scope"], "repository:a/b:pull,push");
        assert_eq!(parameters("realm=plain, charset=UTF-8")["charset"], "UTF-8");
        assert!(parameters("").is_empty());
        assert_eq!(escape("reg x,y"), "reg%20x%2Cy");
    }
}
