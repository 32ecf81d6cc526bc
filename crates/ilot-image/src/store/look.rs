//! Looking at an image: its files, its history, whether they are whole; and giving it another name.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::Store;
use crate::archive::codec;
use crate::blob::{self, Hashing};
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::oci;
use crate::progress::Progress;
use crate::reference::{LayoutKind, Reference, is_local};
use crate::types::{Digest, Image};

/// Everything that the store knows of an image.
#[derive(Debug, Clone, Serialize)]
pub struct Details {
    /// What `list` says.
    #[serde(flatten)]
    pub image: Image,
    /// All its names.
    pub names: Vec<String>,
    /// Its manifest, as it is.
    pub manifest: Value,
    /// Its configuration, as it is.
    pub configuration: Value,
}

/// One step of how an image was made, the newest first in [`Store::history`].
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// When.
    pub created: Option<Timestamp>,
    /// By what: a line of a Containerfile, a program.
    pub created_by: String,
    /// What was said about it.
    pub comment: String,
    /// The layer that it made, where it made one.
    pub layer: Option<Digest>,
    /// Bytes of that layer in the store.
    pub size: u64,
}

/// Something of the store that is not what it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The image that it belongs to.
    pub image: String,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Store {
    /// An image that is in the store, or the reason why it is not: no source is asked.
    ///
    /// # Errors
    /// [`Error::NotFound`], and what [`Store::resolve`] gives.
    pub fn require(&self, reference: &str) -> Result<Image> {
        self.resolve(reference)?
            .ok_or_else(|| Error::NotFound { reference: reference.to_owned(), store: self.root().to_owned() })
    }

    /// The image with all its names and files.
    ///
    /// # Errors
    /// [`Error::NotFound`], or a damaged image.
    pub fn details(&self, reference: &str) -> Result<Details> {
        let image = self.require(reference)?;
        let manifest = self.manifest(&image.digest)?;
        let json = |digest: &Digest| -> Result<Value> {
            let path = self.blob_path(digest);
            let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { path, reason: e.to_string() })
        };
        let index = self.read_index()?;
        let names = index.manifests.iter().filter(|d| d.digest == image.digest).filter_map(|d| d.name());
        Ok(Details {
            names: names.map(str::to_owned).collect(),
            manifest: json(&image.digest)?,
            configuration: json(&manifest.config.digest)?,
            image,
        })
    }

    /// How the image was made, the last step first.
    ///
    /// # Errors
    /// When its files are damaged.
    pub fn history(&self, image: &Image) -> Result<Vec<Step>> {
        let manifest = self.manifest(&image.digest)?;
        let configuration = self.configuration(&manifest)?;
        let mut layers = manifest.layers.iter();
        let mut steps: Vec<Step> = Vec::new();
        for step in configuration.history {
            let layer = if step.empty_layer { None } else { layers.next() };
            steps.push(Step {
                created: step.created,
                created_by: step.created_by.unwrap_or_default(),
                comment: step.comment.unwrap_or_default(),
                size: layer.map_or(0, |l| l.size),
                layer: layer.map(|l| l.digest.clone()),
            });
        }
        // History is optional: a layer that it does not mention is a step all the same.
        for layer in layers {
            let (created_by, comment) = (String::new(), String::new());
            let (layer, size) = (Some(layer.digest.clone()), layer.size);
            steps.push(Step { created: None, created_by, comment, layer, size });
        }
        steps.reverse();
        Ok(steps)
    }

    /// Gives an image of the store one more name. A bare word becomes `local:WORD`; a registry's name
    /// (`ghcr.io/owner/tool:1`) is what a push to it takes. A name that meant another image means this one then.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::BadReference`] for a name that belongs to a source of its own.
    pub fn tag(&self, reference: &str, name: &str) -> Result<Image> {
        let target = name_for(name)?;
        let image = self.require(reference)?;
        let aside = TempDir::new(&self.temporary())?;
        let _lock = self.lock_index()?;
        let mut index = self.read_index()?;
        let Some(mut entry) = index.manifests.iter().find(|d| d.digest == image.digest).cloned().or_else(|| {
            let size = fs::metadata(self.blob_path(&image.digest)).ok()?.len();
            Some(oci::Descriptor::new(oci::MANIFEST, image.digest.clone(), size))
        }) else {
            return Err(Error::NotFound { reference: reference.to_owned(), store: self.root().to_owned() });
        };
        entry.annotations.remove(oci::STAMP);
        entry.annotations.insert(oci::REF_NAME.to_owned(), target.to_string());
        if !image.source.is_empty() {
            entry.annotations.insert(oci::SOURCE.to_owned(), image.source.clone());
        }
        index.manifests.retain(|d| d.name() != entry.name() || d.platform() != entry.platform());
        index.manifests.push(entry);
        self.write_index(&index, &aside)?;
        Ok(Image { reference: target.to_string(), ..image })
    }

    /// Imports a file or folder, whatever is in it: an OCI layout or an archive of one, what `docker save` wrote, a tar
    /// archive or the folder of a root file system; under `name` where one is given.
    ///
    /// # Errors
    /// As [`Store::obtain`].
    pub fn import(&self, source: &str, name: Option<&str>, progress: &dyn Progress) -> Result<Image> {
        if let Some(name) = name {
            name_for(name)?;
        }
        let path = std::path::absolute(source).unwrap_or_else(|_| PathBuf::from(source));
        let source = match fs::metadata(&path) {
            Err(_) => source.to_owned(),
            Ok(meta) if meta.is_dir() && path.join("oci-layout").is_file() => {
                format!("{}:{}", LayoutKind::Oci, path.display())
            }
            Ok(meta) if meta.is_dir() => format!("dir:{}", path.display()),
            Ok(_) => match crate::source::archive_kind(&path, self.limits)? {
                Some(kind) => format!("{kind}:{}", path.display()),
                None => format!("tar:{}", path.display()),
            },
        };
        let image = self.obtain(&source, progress)?;
        match name {
            Some(name) => self.tag(&image.digest.to_string(), name),
            None => Ok(image),
        }
    }

    /// Reads every file of an image and compares it with its digest, layers also uncompressed.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; what is damaged is in the list.
    pub fn verify(&self, image: &Image, progress: &dyn Progress) -> Result<Vec<Finding>> {
        let mut found = Vec::new();
        let mut add = |path: PathBuf, reason: String| {
            found.push(Finding { image: image.reference.clone(), path, reason });
        };
        progress.stage(&format!("{}: verify", image.reference));
        let manifest = match self.manifest(&image.digest) {
            Ok(manifest) => manifest,
            Err(error) => {
                add(self.blob_path(&image.digest), why(error));
                return Ok(found);
            }
        };
        let configuration = match self.configuration(&manifest) {
            Ok(configuration) => Some(configuration),
            Err(error) => {
                add(self.blob_path(&manifest.config.digest), why(error));
                None
            }
        };
        let diff_ids = configuration.map(|c| c.rootfs.diff_ids).unwrap_or_default();
        let mut done = 0;
        for (i, layer) in manifest.layers.iter().enumerate() {
            if progress.cancelled() {
                return Err(Error::Cancelled { reference: image.reference.clone() });
            }
            progress.bytes(done, Some(image.size));
            if let Err(reason) = self.verify_layer(layer, diff_ids.get(i)) {
                add(self.blob_path(&layer.digest), reason);
            }
            done += layer.size;
        }
        for (path, reason) in self.verify_native(&diff_ids)? {
            add(path, reason);
        }
        progress.finished();
        Ok(found)
    }

    fn verify_layer(&self, layer: &oci::Descriptor, diff_id: Option<&Digest>) -> Result<(), String> {
        let path = self.blob_path(&layer.digest);
        let mut raw = blob::open(&path, &layer.digest).map_err(why)?;
        std::io::copy(&mut raw, &mut std::io::sink()).map_err(|e| e.to_string())?;
        let (actual, bytes, _) = raw.digest();
        if actual != layer.digest {
            return Err(format!("its content is {actual}"));
        }
        if bytes != layer.size {
            return Err(format!("has {bytes} bytes, its manifest says {}", layer.size));
        }
        let Some(diff_id) = diff_id else { return Ok(()) };
        let file = fs::File::open(&path).map_err(|e| e.to_string())?;
        let plain = codec::open(file, self.limits.bytes).map_err(|f| f.of("", self.root()).to_string())?;
        let mut plain = Hashing::like(plain, diff_id);
        std::io::copy(&mut plain, &mut std::io::sink()).map_err(|e| e.to_string())?;
        let (actual, ..) = plain.digest();
        if actual == *diff_id { Ok(()) } else { Err(format!("uncompressed it is {actual}, not {diff_id}")) }
    }
}

/// Why, without the file that the caller names himself.
pub(super) fn why(error: Error) -> String {
    match error {
        Error::Damaged { reason, .. } => reason,
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// A name that `tag` may give: a registry's, or a local one.
pub(crate) fn name_for(name: &str) -> Result<Reference> {
    let bad = |reason: &str| Error::BadReference {
        text: name.to_owned(),
        reason: reason.to_owned(),
        help: Some("for example `golden`, `golden:2` or `ghcr.io/owner/tool:1`".to_owned()),
    };
    match Reference::parse(name) {
        Ok(reference @ Reference::Local(_)) => Ok(reference),
        Ok(Reference::Registry(r)) if r.digest.is_some() => Err(bad("a digest cannot be given as a name")),
        Ok(reference @ Reference::Registry(_)) => Ok(reference),
        Ok(Reference::Remote { .. }) | Err(_) if is_local(name) => Ok(Reference::Local(name.to_owned())),
        Ok(Reference::Busybox | Reference::Bootstrap { .. } | Reference::Remote { .. }) => {
            Err(bad("that name belongs to a source of images"))
        }
        Ok(_) | Err(_) => Err(bad("not a name that an image can be given")),
    }
}
