//! The OCI files of the store: index, manifest, configuration (image-spec 1.1).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::platform::Platform;
use crate::types::{Digest, ImageConfig, ImageInit};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's older names of the same (image manifest version 2, schema 2).
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Whether a media type is a manifest's, OCI's or Docker's.
pub(crate) fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | DOCKER_MANIFEST)
}

/// Whether a media type is an index', OCI's or Docker's.
pub(crate) fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | DOCKER_INDEX)
}

/// The annotation by which other programs find an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where an image came from.
pub(crate) const SOURCE: &str = "io.ilot.source";
/// How machines get its layers: `native` is the only value.
pub(crate) const LAYERS: &str = "io.ilot.layers";
/// What its file, folder or program looked like: another stamp means another image.
pub(crate) const STAMP: &str = "io.ilot.stamp";

/// A pointer to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// `platform` and whatever else another program wrote: kept.
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, serde_json::Value>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: BTreeMap::new(), other: BTreeMap::new() }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }

    /// What it says about the machines that it is for.
    pub(crate) fn platform(&self) -> Option<Platform> {
        self.other.get("platform").and_then(Platform::of_json)
    }
}

/// `index.json` of the layout: the names of the images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, serde_json::Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: Vec::new(), other: BTreeMap::new() }
    }
}

/// The manifest of one image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Bytes of the image's blobs: what it says, which may be anything.
    pub(crate) fn size(&self, own: u64) -> u64 {
        let layers = self.layers.iter().map(|l| l.size);
        layers.fold(own.saturating_add(self.config.size), u64::saturating_add)
    }
}

/// The configuration blob of one image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<Timestamp>,
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) config: Option<Process>,
    pub(crate) rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) history: Vec<History>,
}

impl Configuration {
    /// For which machines it is.
    pub(crate) fn platform(&self) -> Platform {
        let json = serde_json::json!({ "os": self.os, "architecture": self.architecture, "variant": self.variant });
        Platform::of_json(&json).unwrap_or_else(Platform::host)
    }
}

/// `config` of the configuration; other programs write `null` where they mean nothing.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Process {
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

impl From<Process> for ImageConfig {
    fn from(p: Process) -> Self {
        Self {
            env: p.env.unwrap_or_default(),
            entrypoint: p.entrypoint.unwrap_or_default(),
            cmd: p.cmd.unwrap_or_default(),
            user: p.user.unwrap_or_default(),
            working_dir: p.working_dir.unwrap_or_default(),
            stop_signal: p.stop_signal.unwrap_or_default(),
        }
    }
}

impl From<&ImageConfig> for Process {
    fn from(c: &ImageConfig) -> Self {
        let list = |l: &Vec<String>| (!l.is_empty()).then(|| l.clone());
        let text = |t: &String| (!t.is_empty()).then(|| t.clone());
        Self {
            env: list(&c.env),
            entrypoint: list(&c.entrypoint),
            cmd: list(&c.cmd),
            user: text(&c.user),
            working_dir: text(&c.working_dir),
            stop_signal: text(&c.stop_signal),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) diff_ids: Vec<Digest>,
}

/// One step of how an image was made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) empty_layer: bool,
}

/// What is known of an image beyond its own files, found once: `images/<manifest>.json`. Removed, it is found again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) init: Option<ImageInit>,
    pub(crate) unpacked_size: u64,
}

/// This host's processor in OCI's (Go's) words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        other => other,
    }
}

/// This host's processor in Debian's words, which simplestreams servers use too.
pub(crate) fn debian_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "i386",
        "aarch64" => "arm64",
        "arm" => "armhf",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64el",
        other => other,
    }
}
