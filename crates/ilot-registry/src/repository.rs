//! One repository: its manifests and tags, an OCI image layout on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::names::Digest;
use crate::store::write_atomically;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What the registry needs to know of a manifest without reading it again.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) media_type: String,
    pub(crate) size: u64,
    /// Of the artifact, or of the configuration where it says none.
    pub(crate) artifact_type: Option<String>,
    pub(crate) annotations: Option<Value>,
    pub(crate) subject: Option<Digest>,
    /// Blobs that it refers to.
    pub(crate) blobs: Vec<Digest>,
    /// Manifests that it refers to.
    pub(crate) manifests: Vec<Digest>,
}

/// What a repository has.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) manifests: BTreeMap<Digest, Entry>,
    pub(crate) tags: BTreeMap<String, Digest>,
    /// Uploaded or mounted, and no manifest refers to them yet.
    pub(crate) uploaded: BTreeSet<Digest>,
}

impl Content {
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.uploaded.contains(digest)
            || self.manifests.contains_key(digest)
            || self.manifests.values().any(|entry| entry.blobs.contains(digest))
    }

    pub(crate) fn resolve(&self, reference: &str) -> Option<Digest> {
        match reference.parse::<Digest>() {
            Ok(digest) => self.manifests.contains_key(&digest).then_some(digest),
            Err(_) => self.tags.get(reference).cloned(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Repository {
    pub(crate) folder: PathBuf,
    content: Mutex<Content>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Listed>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Repository {
    /// A new one, or the one that is there.
    pub(crate) fn open(folder: PathBuf, blobs: &Path) -> Result<Self> {
        let uploaded = folder.join("uploaded");
        fs::create_dir_all(&uploaded).map_err(|e| Error::io("make folder", &uploaded, e))?;
        let link = folder.join("blobs");
        match std::os::unix::fs::symlink("../../blobs", &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("link", link, e)),
            _ => {}
        }
        let layout = folder.join("oci-layout");
        if !layout.exists() {
            write_atomically(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let content = load(&folder, blobs)?;
        let repository = Self { folder, content: Mutex::new(content) };
        if !repository.folder.join("index.json").exists() {
            repository.save(&repository.content())?;
        }
        Ok(repository)
    }

    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a blob came by upload or mount.
    pub(crate) fn note_uploaded(&self, digest: &Digest) -> Result<()> {
        self.mark_uploaded(&mut self.content(), digest)
    }

    pub(crate) fn mark_uploaded(&self, content: &mut Content, digest: &Digest) -> Result<()> {
        let path = self.folder.join("uploaded").join(digest.hex());
        fs::write(&path, b"").map_err(|e| Error::io("write", path, e))?;
        content.uploaded.insert(digest.clone());
        Ok(())
    }

    pub(crate) fn forget_uploaded(&self, content: &mut Content, digest: &Digest) {
        content.uploaded.remove(digest);
        let _ = fs::remove_file(self.folder.join("uploaded").join(digest.hex()));
    }

    /// Brings the manifests and tags to the disk.
    pub(crate) fn save(&self, content: &Content) -> Result<()> {
        let mut manifests = Vec::new();
        for (digest, entry) in &content.manifests {
            let listed = |annotations| Listed {
                media_type: entry.media_type.clone(),
                digest: digest.clone(),
                size: entry.size,
                annotations,
            };
            let tags: Vec<_> = content.tags.iter().filter(|(_, d)| *d == digest).collect();
            if tags.is_empty() {
                manifests.push(listed(BTreeMap::new()));
            }
            for (tag, _) in tags {
                manifests.push(listed(BTreeMap::from([(REF_NAME.to_owned(), tag.clone())])));
            }
        }
        let media_type = "application/vnd.oci.image.index.v1+json".to_owned();
        let index = json!(Index { schema_version: 2, media_type, manifests });
        write_atomically(&self.folder.join("index.json"), index.to_string().as_bytes())
    }
}

fn load(folder: &Path, blobs: &Path) -> Result<Content> {
    let mut content = Content::default();
    let path = folder.join("index.json");
    let index: Index = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::io("read", &path, io::Error::from(e)))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Index { schema_version: 2, media_type: String::new(), manifests: Vec::new() }
        }
        Err(e) => return Err(Error::io("read", path, e)),
    };
    for listed in index.manifests {
        if !content.manifests.contains_key(&listed.digest) {
            let blob = blobs.join(listed.digest.algorithm()).join(listed.digest.hex());
            let parsed = fs::read(&blob).map_err(|e| e.to_string()).and_then(|b| Entry::parse(&b, &listed.media_type));
            match parsed {
                Ok(entry) => drop(content.manifests.insert(listed.digest.clone(), entry)),
                Err(reason) => {
                    tracing::warn!(blob = %blob.display(), reason, "a manifest of the index is not there any more");
                    continue;
                }
            }
        }
        if let Some(tag) = listed.annotations.get(REF_NAME) {
            content.tags.insert(tag.clone(), listed.digest);
        }
    }
    let uploaded = folder.join("uploaded");
    for entry in fs::read_dir(&uploaded).map_err(|e| Error::io("read folder", &uploaded, e))?.flatten() {
        content.uploaded.extend(entry.file_name().to_str().and_then(Digest::from_hex));
    }
    Ok(content)
}

impl Entry {
    /// Reads a manifest or index of a known media type.
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if json["schemaVersion"] != 2 {
            return Err("`schemaVersion` is not 2".to_owned());
        }
        match json.get("mediaType") {
            None => {}
            Some(said) if said == media_type => {}
            Some(said) => return Err(format!("says that it is {said}, sent as `{media_type}`")),
        }
        let digest = |descriptor: &Value| -> Result<Digest, String> {
            if !descriptor["size"].is_u64() || !descriptor["mediaType"].is_string() {
                return Err("a descriptor without media type or size".to_owned());
            }
            descriptor["digest"].as_str().ok_or("a descriptor without digest")?.parse()
        };
        // What is fetched elsewhere need not be here (image-spec, non-distributable layers).
        let is_elsewhere = |descriptor: &Value| {
            descriptor["urls"].as_array().is_some_and(|urls| !urls.is_empty())
                || descriptor["mediaType"]
                    .as_str()
                    .is_some_and(|m| m.contains("nondistributable") || m.contains("foreign"))
        };
        let list = |key: &str| -> Result<Vec<Digest>, String> {
            let list = json[key].as_array().ok_or_else(|| format!("no list `{key}`"))?;
            list.iter().filter(|d| !is_elsewhere(d)).map(digest).collect()
        };
        let (blobs, manifests) = match kind(media_type) {
            Some(Kind::Image) => {
                let mut blobs = list("layers")?;
                blobs.push(digest(&json["config"])?);
                (blobs, Vec::new())
            }
            Some(Kind::Index) => (Vec::new(), list("manifests")?),
            None => return Err(format!("`{media_type}` is no manifest's media type")),
        };
        let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        Ok(Self {
            media_type: media_type.to_owned(),
            size: bytes.len() as u64,
            artifact_type: text(&json["artifactType"]).or_else(|| text(&json["config"]["mediaType"])),
            annotations: json.get("annotations").filter(|a| a.is_object()).cloned(),
            subject: json.get("subject").filter(|s| !s.is_null()).map(digest).transpose()?,
            blobs,
            manifests,
        })
    }
}

enum Kind {
    Image,
    Index,
}

fn kind(media_type: &str) -> Option<Kind> {
    match media_type {
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Some(Kind::Image)
        }
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Some(Kind::Index)
        }
        _ => None,
    }
}
