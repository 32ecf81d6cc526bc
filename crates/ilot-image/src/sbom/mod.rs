//! What is in an image: the packages that its own databases name, as SPDX or CycloneDX.

mod format;
mod packages;
mod rpm;

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::Serialize;
use serde_json::Value;

use crate::archive::reader::{Kind, Reader};
use crate::archive::{Fault, codec, components};
use crate::blob;
use crate::error::{Error, Result};
use crate::oci;
use crate::reference::{Reference, RegistryName};
use crate::remote::{Remote, RemoteManifest};
use crate::store::Store;
use crate::types::{Digest, Image};

/// A database of packages is not larger; one that is is left out, and said so.
const LARGEST: u64 = 64 << 20;
/// All that is held in memory of one image.
const MOST: u64 = 512 << 20;

/// How a list of packages is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SbomFormat {
    /// SPDX 2.3, JSON.
    Spdx,
    /// CycloneDX 1.5, JSON.
    CycloneDx,
}

impl SbomFormat {
    /// The media type of its documents.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Spdx => "application/spdx+json",
            Self::CycloneDx => "application/vnd.cyclonedx+json",
        }
    }
}

/// One package of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Package {
    /// `deb`, `apk`, `rpm`, `pypi`, `npm`, `cargo`, `composer`, `gem`, `golang`: the type of its package URL.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its processor, where it says one.
    pub architecture: Option<String>,
    /// What its database says of its licence.
    pub license: Option<String>,
    /// The file of the image that says so.
    pub found_in: String,
}

/// All packages of an image, and of which distribution it is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Bill {
    /// `ID` of os-release: `debian`, `alpine`.
    pub distribution: Option<String>,
    /// `VERSION_ID`.
    pub version: Option<String>,
    /// Sorted.
    pub packages: Vec<Package>,
    /// What could not be read, for people.
    pub notes: Vec<String>,
}

type Files = BTreeMap<Vec<u8>, Vec<u8>>;

impl Store {
    /// The packages of an image, read from its layers; nothing is unpacked and nothing of it is run.
    ///
    /// # Errors
    /// When a layer is damaged.
    pub fn packages(&self, image: &Image) -> Result<Bill> {
        let mut notes = Vec::new();
        let files = self.databases(image, &mut notes)?;
        Ok(packages::read(&files, notes))
    }

    /// The same as a document, which is the same for the same image.
    #[must_use]
    pub fn sbom(&self, image: &Image, bill: &Bill, format: SbomFormat) -> Value {
        match format {
            SbomFormat::Spdx => format::spdx(image, bill),
            SbomFormat::CycloneDx => format::cyclone_dx(image, bill),
        }
    }

    /// The files of the image that packages are named in, as the topmost layer has them.
    fn databases(&self, image: &Image, notes: &mut Vec<String>) -> Result<Files> {
        let manifest = self.manifest(&image.digest)?;
        let (mut files, mut held) = (Files::new(), 0u64);
        for layer in &manifest.layers {
            let path = self.blob_file(&layer.digest);
            let fault = |f: Fault| f.of(&format!("layer {}", layer.digest.short()), self.root());
            let mut raw = blob::open(&path, &layer.digest)?;
            let plain = codec::open(&mut raw, self.limits().bytes).map_err(fault)?;
            let mut reader = Reader::new(std::io::BufReader::with_capacity(blob::BUFFER, plain), self.limits());
            let mut new = Files::new();
            while let Some(entry) = reader.next().map_err(fault)? {
                let parts = components(&entry.path).map_err(fault)?;
                let Some((name, folder)) = parts.split_last() else { continue };
                let at = parts.join(&b'/');
                if *name == b".wh..wh..opq" {
                    hide(&mut files, &folder.join(&b'/'));
                } else if let Some(gone) = name.strip_prefix(b".wh.") {
                    hide(&mut files, &[folder, &[gone]].concat().join(&b'/'));
                } else if entry.kind != Kind::Dir {
                    hide(&mut files, &at);
                    let shown = String::from_utf8_lossy(&at).into_owned();
                    if packages::is_unread(&at) {
                        notes.push(format!("{shown}: a database of rpm before 4.16, which is not read"));
                    }
                    if entry.kind != Kind::File || !packages::is_wanted(&at) {
                        continue;
                    }
                    if entry.size > LARGEST || held + entry.size > MOST || entry.sparse.is_some() {
                        notes.push(format!("{shown}: {} bytes, too large to be read", entry.size));
                        continue;
                    }
                    held += entry.size;
                    let mut content = Vec::new();
                    reader.data().read_to_end(&mut content).map_err(|e| Error::io("read", &path, e))?;
                    new.insert(at, content);
                }
            }
            reader.drain().map_err(fault)?;
            std::io::copy(&mut raw, &mut std::io::sink()).map_err(|e| Error::io("read", &path, e))?;
            let (actual, ..) = raw.digest();
            if actual != layer.digest {
                return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
            }
            files.extend(new);
        }
        Ok(files)
    }

    /// Puts a document beside an image in its registry, as what refers to it; its digest there.
    ///
    /// # Errors
    /// When the image is not there, or the registry refuses.
    pub fn attach(&self, name: &str, image: &Image, document: &Value, media_type: &str) -> Result<Digest> {
        let Reference::Registry(name) = Reference::parse(name)? else {
            return Err(Error::BadReference {
                text: name.to_owned(),
                reason: "not a registry's name: a document is attached to an image in its registry".to_owned(),
                help: Some("push the image first, then name it as it is there".to_owned()),
            });
        };
        let remote = Remote::with(self.shared_client(), &name.host)?;
        let subject = remote.manifest(&name.repository, &image.digest.to_string())?;
        let subject = subject.ok_or_else(|| Error::Http {
            url: RegistryName { tag: None, digest: Some(image.digest.clone()), ..name.clone() }.to_string(),
            reason: "the image is not there (404): push it first".to_owned(),
            unreachable: false,
        })?;
        let content = document.to_string().into_bytes();
        let (empty, repository) = (b"{}".to_vec(), name.repository.as_str());
        let descriptor = |media_type: &str, bytes: &[u8]| {
            oci::Descriptor::new(media_type, blob::digest_of(bytes), bytes.len() as u64)
        };
        for bytes in [&content, &empty] {
            self.push_bytes(&remote, repository, bytes)?;
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": oci::MANIFEST, "artifactType": media_type,
            "config": descriptor("application/vnd.oci.empty.v1+json", &empty),
            "layers": [descriptor(media_type, &content)],
            "subject": descriptor(&subject.media_type, &subject.bytes),
            "annotations": { "org.opencontainers.image.created": format::time(image) },
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = blob::digest_of(&bytes);
        let mut entry = descriptor(oci::MANIFEST, &bytes);
        entry.other.insert("artifactType".to_owned(), Value::from(media_type));
        let manifest = RemoteManifest { digest: digest.clone(), media_type: oci::MANIFEST.to_owned(), bytes };
        remote.push_manifest(repository, &digest.to_string(), &manifest)?;
        remote.note_referrer(repository, &image.digest, &serde_json::json!(entry))?;
        Ok(digest)
    }
}

/// Databases of packages, for the fuzzer.
#[cfg(fuzzing)]
pub(crate) fn fuzz_packages(bytes: &[u8]) {
    packages::fuzz(bytes);
}

/// Takes away what a whiteout, or what replaces it, hides.
fn hide(files: &mut Files, path: &[u8]) {
    files.remove(path);
    let below: Vec<u8> = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    files.retain(|at, _| !at.starts_with(&below));
}
