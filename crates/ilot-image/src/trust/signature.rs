//! Signatures beside images: made, found, read (cosign's signature specification; containers/image, sigstore attachments).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::key::{PublicKey, SigningKey};
use crate::blob;
use crate::error::{Error, Result};
use crate::http::Client;
use crate::lock::TempDir;
use crate::oci::{self, Descriptor, Index, Manifest};
use crate::reference::{Reference, RegistryName};
use crate::remote::{Remote, RemoteManifest};
use crate::source::{Registry, SMALL, verify};
use crate::store::Store;
use crate::types::Digest;

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Signatures that are kept as referrers.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";
/// A registry that shows more signatures for one image wants to keep somebody busy.
const MOST: usize = 64;
/// A payload names an image, and says little else.
const LONGEST: u64 = 64 << 10;

/// What [`Store::sign`] did to one manifest or index.
#[derive(Debug, Clone, Serialize)]
pub struct Signed {
    /// What was signed.
    pub digest: Digest,
    /// Where the signature is: `registry.example.org/team/tool:sha256-….sig`.
    pub signature: String,
    /// False where the same key had signed it under that name before.
    pub new: bool,
}

/// A signature that holds.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// What is signed.
    pub digest: Digest,
    /// Under which name.
    pub identity: String,
    /// By whose key: its file.
    pub key: String,
    /// What else the signer said.
    pub optional: Value,
}

/// One signature as the registry has it; nothing of it is believed before a key says so.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    payload: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
    #[serde(default)]
    optional: Value,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SignedImage,
    identity: SignedIdentity,
}

#[derive(Deserialize)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

impl Found {
    /// What a key that is trusted says of an image, if it says something.
    pub(crate) fn verified(&self, keys: &[PublicKey], digest: &Digest) -> std::result::Result<Verified, String> {
        let Some(key) = keys.iter().find(|key| key.signed(&self.payload, &self.signature)) else {
            return Err("is signed by none of the keys that are trusted for it".to_owned());
        };
        let payload: Payload =
            serde_json::from_slice(&self.payload).map_err(|e| format!("has a signature that is none: {e}"))?;
        if payload.critical.kind != TYPE {
            return Err(format!("has a signature of another type, `{}`", payload.critical.kind));
        }
        if payload.critical.image.digest != digest.to_string() {
            return Err(format!("has a signature for another image, {}", payload.critical.image.digest));
        }
        let identity = payload.critical.identity.reference;
        Ok(Verified { digest: digest.clone(), identity, key: key.origin.clone(), optional: payload.optional })
    }
}

fn tag_of(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm(), digest.hex())
}

/// The signatures that a registry has of a manifest: by the tag that stands for them, and among what refers to it.
pub(crate) fn found(http: &Client, registry: &Registry<'_>, digest: &Digest) -> Result<Vec<Found>> {
    let get = |path: String, limit: u64, expected: &[u16]| {
        let url = format!("{}/v2/{}/{path}", registry.base, registry.repository);
        http.ask("GET", &url, limit, expected, &registry.access())
    };
    let mut manifests: Vec<Manifest> = Vec::new();
    let tagged = get(format!("manifests/{}", tag_of(digest)), SMALL, &[200, 404])?;
    if tagged.status == 200 {
        manifests.push(registry.json("signatures", &tagged.body)?);
    }
    // Not every registry knows of referrers.
    if let Ok(list) = get(format!("referrers/{digest}"), SMALL, &[200])
        && let Ok(list) = serde_json::from_slice::<Index>(&list.body)
    {
        let is_signature = |d: &Descriptor| d.other.get("artifactType").and_then(Value::as_str) == Some(ARTIFACT);
        for entry in list.manifests.iter().filter(|d| is_signature(d)).take(MOST) {
            let received = get(format!("manifests/{}", entry.digest), SMALL, &[200])?;
            verify(&format!("{registry}"), &entry.digest, &received.body)?;
            manifests.push(registry.json("signature", &received.body)?);
        }
    }
    let layers = manifests.into_iter().flat_map(|m| m.layers).filter(|l| l.media_type == PAYLOAD && l.size <= LONGEST);
    let mut all = Vec::new();
    for layer in layers.take(MOST) {
        let Some(signature) = layer.annotations.get(ANNOTATION).and_then(|text| BASE64.decode(text).ok()) else {
            continue;
        };
        let received = get(format!("blobs/{}", layer.digest), LONGEST, &[200])?;
        verify(&format!("{registry}"), &layer.digest, &received.body)?;
        all.push(Found { payload: received.body, signature });
    }
    Ok(all)
}

fn registry_name(text: &str) -> Result<RegistryName> {
    match Reference::parse(text)? {
        Reference::Registry(name) => Ok(name),
        _ => Err(Error::BadReference {
            text: text.to_owned(),
            reason: "not a registry's name: signatures are kept beside the image, in its registry".to_owned(),
            help: Some(
                "push it first, then sign it there: `ilot image sign registry.example.org/team/tool:1`".to_owned(),
            ),
        }),
    }
}

impl Store {
    /// Signs an image that is in a registry, and puts the signature beside it, as cosign does. Of an index, the index and
    /// each image in it is signed, for there are programs that look at the one or at the other.
    ///
    /// # Errors
    /// When the image is not there, or the registry refuses.
    pub fn sign(&self, name: &str, key: &SigningKey) -> Result<Vec<Signed>> {
        let name = registry_name(name)?;
        let remote = Remote::with(self.shared_client(), &name.host)?;
        let by = name.digest.as_ref().map(ToString::to_string).or_else(|| name.tag.clone()).unwrap_or_default();
        let top = remote.manifest(&name.repository, &by)?.ok_or_else(|| Error::Http {
            url: name.to_string(),
            reason: "not there (404)".to_owned(),
            unreachable: false,
        })?;
        let mut digests = vec![top.digest];
        if oci::is_index(&top.media_type) {
            let index: Index = serde_json::from_slice(&top.bytes)
                .map_err(|e| Error::Archive { what: name.to_string(), reason: format!("index: {e}") })?;
            digests.extend(index.manifests.into_iter().map(|d| d.digest));
        }
        digests.iter().map(|digest| self.sign_one(&remote, &name, digest, key)).collect()
    }

    fn sign_one(&self, remote: &Remote, name: &RegistryName, digest: &Digest, key: &SigningKey) -> Result<Signed> {
        let tag = tag_of(digest);
        // With its tag, as containers/image wants it by default; a digest is in the payload anyway.
        let identity = RegistryName { digest: None, ..name.clone() }.to_string();
        let signature_at = format!("{}/{}:{tag}", name.host, name.repository);
        let before = remote.with_registry(&name.repository, |registry| found(self.client(), registry, digest))?;
        let own = [key.public()];
        if before.iter().any(|f| f.verified(&own, digest).is_ok_and(|v| v.identity == identity)) {
            return Ok(Signed { digest: digest.clone(), signature: signature_at, new: false });
        }
        let payload = json!({
            "critical": { "identity": { "docker-reference": identity },
                "image": { "docker-manifest-digest": digest }, "type": TYPE },
            "optional": { "creator": concat!("ilot/", env!("CARGO_PKG_VERSION")),
                "timestamp": jiff::Timestamp::now().as_second() },
        });
        let payload = payload.to_string().into_bytes();
        let signature = key.sign(&payload).ok_or_else(|| Error::Host {
            what: "signing".to_owned(),
            reason: "no random numbers".to_owned(),
            help: None,
        })?;
        let mut layers = match remote.manifest(&name.repository, &tag)? {
            Some(old) => serde_json::from_slice::<Manifest>(&old.bytes).map(|m| m.layers).unwrap_or_default(),
            None => Vec::new(),
        };
        let mut layer = Descriptor::new(PAYLOAD, blob::digest_of(&payload), payload.len() as u64);
        layer.annotations.insert(ANNOTATION.to_owned(), BASE64.encode(signature));
        layers.push(layer);
        self.put_artifact(remote, &name.repository, &tag, &layers, &[payload])?;
        Ok(Signed { digest: digest.clone(), signature: signature_at, new: true })
    }

    /// Puts layers as an image that is none beside another one.
    fn put_artifact(
        &self,
        remote: &Remote,
        repository: &str,
        tag: &str,
        layers: &[Descriptor],
        blobs: &[Vec<u8>],
    ) -> Result<()> {
        let diff_ids: Vec<&Digest> = layers.iter().map(|l| &l.digest).collect();
        let config = json!({ "architecture": "", "os": "", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = config.to_string().into_bytes();
        let described = Descriptor::new(oci::CONFIG, blob::digest_of(&config), config.len() as u64);
        for content in blobs.iter().chain([&config]) {
            self.push_bytes(remote, repository, content)?;
        }
        let manifest = json!({ "schemaVersion": 2, "mediaType": oci::MANIFEST, "config": described, "layers": layers });
        let bytes = manifest.to_string().into_bytes();
        let media_type = oci::MANIFEST.to_owned();
        remote.push_manifest(repository, tag, &RemoteManifest { digest: blob::digest_of(&bytes), media_type, bytes })
    }

    /// Sends a small blob.
    pub(crate) fn push_bytes(&self, remote: &Remote, repository: &str, content: &[u8]) -> Result<()> {
        let aside = TempDir::new(&self.temporary())?;
        let file = aside.path().join("blob");
        std::fs::write(&file, content).map_err(|e| Error::io("write", &file, e))?;
        remote.push_blob(repository, &blob::digest_of(content), &file, &|_, _| {}, &|| false)?;
        Ok(())
    }

    /// The signatures of an image in a registry that these keys made; whatever name they were made under.
    ///
    /// # Errors
    /// When there is none that holds, or the registry cannot be asked.
    pub fn signatures(&self, name: &str, keys: &[PublicKey]) -> Result<Vec<Verified>> {
        let name = registry_name(name)?;
        let remote = Remote::with(self.shared_client(), &name.host)?;
        let by = name.digest.as_ref().map(ToString::to_string).or_else(|| name.tag.clone()).unwrap_or_default();
        let refused = |reason: String| Error::Refused { reference: name.to_string(), reason };
        let digest = remote.manifest(&name.repository, &by)?.ok_or_else(|| refused("is not there".to_owned()))?.digest;
        let all = remote.with_registry(&name.repository, |registry| found(self.client(), registry, &digest))?;
        if all.is_empty() {
            return Err(refused("is not signed".to_owned()));
        }
        let (mut good, mut why) = (Vec::new(), String::new());
        for one in &all {
            match one.verified(keys, &digest) {
                Ok(verified) => good.push(verified),
                Err(reason) => why = reason,
            }
        }
        if good.is_empty() { Err(refused(why)) } else { Ok(good) }
    }
}
