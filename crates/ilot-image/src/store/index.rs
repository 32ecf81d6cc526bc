//! Reading and changing what the store says about its images.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::Store;
use crate::blob::{self, Codec, Import};
use crate::error::{Error, Result};
use crate::lock::{Lock, TempDir, rename, write_atomically};
use crate::oci::{self, Configuration, Descriptor, Facts, Index, Manifest};
use crate::platform::Platform;
use crate::scan::Scan;
use crate::source::Found;
use crate::types::{Digest, Image, ImageConfig};

/// Manifests and configurations are small; a larger one is none (the limit of containers/image).
const SMALL: u64 = 4 << 20;

impl Store {
    pub(crate) fn read_index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { path, reason: e.to_string() })
    }

    /// Only with the index' lock held.
    pub(crate) fn write_index(&self, index: &Index, aside: &TempDir) -> Result<()> {
        write_atomically(&self.root.join("index.json"), aside, &encode(index, &self.root)?)
    }

    /// Held for renames and small writes only.
    pub(crate) fn lock_index(&self) -> Result<Option<Lock>> {
        Lock::acquire(&self.root.join("images/.locks/index.lock"), |_| {}, || false)
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> Result<Manifest> {
        self.small_blob(digest)
    }

    /// An index that is a blob itself; an error where the blob is something else.
    pub(super) fn nested_index(&self, digest: &Digest) -> Result<Index> {
        let index: Index = self.small_blob(digest)?;
        match index.manifests.is_empty() {
            true => Err(Error::Damaged { path: self.blob_path(digest), reason: "no index".to_owned() }),
            false => Ok(index),
        }
    }

    pub(crate) fn configuration(&self, manifest: &Manifest) -> Result<Configuration> {
        self.small_blob(&manifest.config.digest)
    }

    /// A JSON blob, its digest checked.
    fn small_blob<T: DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let path = self.blob_path(digest);
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let size = fs::metadata(&path).map_err(|e| Error::io("read", &path, e))?.len();
        if size > SMALL {
            return Err(damaged(format!("{size} bytes, too large for what it should be")));
        }
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let actual = blob::digest_like(&bytes, digest);
        if actual != *digest {
            return Err(damaged(format!("its content is {actual}")));
        }
        serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))
    }

    /// The image of one entry of the index.
    pub(crate) fn image(&self, entry: &Descriptor) -> Result<Image> {
        let manifest = self.manifest(&entry.digest)?;
        let configuration = self.configuration(&manifest)?;
        let facts = self.facts(&entry.digest, &manifest)?;
        Ok(Image {
            reference: entry.name().map_or_else(|| entry.digest.to_string(), str::to_owned),
            digest: entry.digest.clone(),
            platform: entry.platform().unwrap_or_else(|| configuration.platform()),
            size: manifest.size(entry.size),
            unpacked_size: facts.unpacked_size,
            config: configuration.config.map(ImageConfig::from).unwrap_or_default(),
            init: facts.init,
            created: configuration.created,
            source: entry
                .annotations
                .get(oci::SOURCE)
                .or_else(|| manifest.annotations.get(oci::SOURCE))
                .cloned()
                .unwrap_or_default(),
        })
    }

    /// The image of one entry, or what the entry alone says where its files are damaged.
    pub(super) fn image_or_bare(&self, entry: &Descriptor) -> Image {
        self.image(entry).unwrap_or_else(|error| {
            tracing::warn!(digest = %entry.digest, %error, "damaged image");
            Image {
                reference: entry.name().map_or_else(|| entry.digest.to_string(), str::to_owned),
                digest: entry.digest.clone(),
                platform: entry.platform().unwrap_or_else(Platform::host),
                config: ImageConfig::default(),
                init: None,
                size: 0,
                unpacked_size: 0,
                created: None,
                source: entry.annotations.get(oci::SOURCE).cloned().unwrap_or_default(),
            }
        })
    }

    /// By a whole digest, with or without a name; by the start of one, among those with a name.
    pub(super) fn by_digest(&self, hex: &str) -> Result<Option<Image>> {
        let index = self.read_index()?;
        let mut fits: Vec<&Descriptor> = Vec::new();
        for entry in &index.manifests {
            if entry.digest.hex().starts_with(hex) && !fits.iter().any(|f| f.digest == entry.digest) {
                fits.push(entry);
            }
        }
        match fits[..] {
            [entry] => self.image(entry).map(Some),
            [] => {
                let Ok(digest) = hex.parse::<Digest>() else { return Ok(None) };
                match fs::metadata(self.blob_path(&digest)) {
                    Ok(meta) => self.image(&Descriptor::new(oci::MANIFEST, digest, meta.len())).map(Some),
                    Err(_) => Ok(None),
                }
            }
            _ => Err(Error::Ambiguous { prefix: hex.to_owned(), count: fits.len() }),
        }
    }

    fn rename_blob(&self, file: &Path, target: &Path) -> Result<()> {
        // The folder of the usual digests is the store's from the beginning; others come with the first of their kind.
        if let Some(folder) = target.parent().filter(|folder| !folder.exists()) {
            fs::create_dir_all(folder).map_err(|e| Error::io("make folder", folder, e))?;
        }
        rename(file, target)
    }

    pub(crate) fn facts_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }

    /// What is known beyond the image's own files; found out again where another program brought the image.
    fn facts(&self, digest: &Digest, manifest: &Manifest) -> Result<Facts> {
        let path = self.facts_path(digest);
        match fs::read(&path) {
            Ok(bytes) => {
                if let Ok(facts) = serde_json::from_slice(&bytes) {
                    return Ok(facts);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", path, e)),
        }
        let aside = TempDir::new(&self.temporary())?;
        let mut all = Scan::default();
        for layer in &manifest.layers {
            let what = layer.digest.to_string();
            let order =
                Import { what: &what, aside: &aside, codec: Codec::Plain, limits: self.limits, each: &|_| Ok(()) };
            let mut blob = blob::open(&self.blob_path(&layer.digest), &layer.digest)?;
            all = blob::rescan(&mut blob, &order)?.over(all);
        }
        let facts = facts_of(&all);
        write_atomically(&path, &aside, &encode(&facts, &path)?)?;
        Ok(facts)
    }

    /// Makes what a source found an image of the store: all or nothing.
    pub(crate) fn commit(&self, name: &str, found: Found, aside: &TempDir) -> Result<Image> {
        let platform = self.platform();
        let foreign = !platform.runs_here();
        let layers = found.layers;
        let diff_ids = layers.iter().map(|l| l.diff_id.clone()).collect();
        let mut scan = Scan::default();
        let mut files: Vec<(Digest, PathBuf)> = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            descriptors.push(Descriptor::new(&layer.media_type, layer.digest.clone(), layer.size));
            files.push((layer.digest, layer.file));
            scan = layer.scan.over(scan);
        }
        let mut put = |media_type: &str, bytes: Vec<u8>, digest: Digest| -> Result<Descriptor> {
            let path = aside.path().join(digest.hex());
            write_atomically(&path, aside, &bytes)?;
            files.push((digest.clone(), path));
            Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
        };
        let (configuration, manifest) = match found.brought {
            Some(brought) => (brought.configuration, brought.manifest),
            None => {
                let mut config = found.config;
                if config.cmd.is_empty() && config.entrypoint.is_empty() {
                    config.cmd.extend(scan.shell().map(str::to_owned));
                }
                let step =
                    oci::History { created: found.created, created_by: Some(found.made_by), ..Default::default() };
                let configuration = Configuration {
                    created: found.created,
                    architecture: platform.architecture.clone(),
                    variant: platform.variant.clone().filter(|_| foreign),
                    os: platform.os.clone(),
                    config: Some((&config).into()),
                    rootfs: oci::RootFs { kind: "layers".to_owned(), diff_ids },
                    history: vec![step],
                };
                (encode(&configuration, &self.root)?, None)
            }
        };
        // Under the digest that the manifest has for it, which may be of another kind than ilot's own.
        let digest = match &manifest {
            Some((_, bytes)) => {
                serde_json::from_slice::<Manifest>(bytes)
                    .map_err(|e| Error::Damaged { path: self.root.clone(), reason: e.to_string() })?
                    .config
                    .digest
            }
            None => blob::digest_of(&configuration),
        };
        let config = put(oci::CONFIG, configuration, digest)?;
        let (described, manifest) = match manifest {
            Some(brought) => brought,
            None => {
                let media_type = oci::MANIFEST.to_owned();
                let manifest = Manifest {
                    schema_version: 2,
                    media_type: Some(media_type.clone()),
                    config,
                    layers: descriptors,
                    annotations: BTreeMap::new(),
                };
                let bytes = encode(&manifest, &self.root)?;
                (Descriptor::new(oci::MANIFEST, blob::digest_of(&bytes), bytes.len() as u64), bytes)
            }
        };
        let mut entry = put(&described.media_type, manifest, described.digest)?;
        if foreign {
            entry.other.insert("platform".to_owned(), platform.to_json());
        }
        entry.annotations.insert(oci::REF_NAME.to_owned(), name.to_owned());
        entry.annotations.insert(oci::SOURCE.to_owned(), found.source);
        if let Some(stamp) = found.stamp {
            entry.annotations.insert(oci::STAMP.to_owned(), stamp);
        }
        let facts = self.facts_path(&entry.digest);
        write_atomically(&facts, aside, &encode(&facts_of(&scan), &facts)?)?;
        self.place(&entry, &files, aside)?;
        self.image(&entry)
    }

    /// Moves finished blobs in and names them, under the index' lock so that a collection sees all or none of it.
    pub(crate) fn place(&self, entry: &Descriptor, files: &[(Digest, PathBuf)], aside: &TempDir) -> Result<()> {
        let _lock = self.lock_index()?;
        let mut placed: Vec<PathBuf> = Vec::new();
        let result = (|| {
            for (digest, file) in files {
                let target = self.blob_path(digest);
                let is_new = !target.exists();
                // Also over one of the same digest: if that was damaged, it no longer is.
                match fs::symlink_metadata(file) {
                    Ok(_) => self.rename_blob(file, &target)?,
                    // Two layers of one image can be the same.
                    Err(_) if !is_new => continue,
                    Err(e) => return Err(Error::io("rename", file, e)),
                }
                if is_new {
                    placed.push(target);
                }
            }
            let mut index = self.read_index()?;
            // An image for another platform keeps the name for those who ask for that one.
            let same = |d: &Descriptor| match (d.platform(), entry.platform()) {
                (None, None) => true,
                (Some(a), Some(b)) => a == b,
                (Some(one), None) | (None, Some(one)) => one.runs_here(),
            };
            index.manifests.retain(|d| d.name() != entry.name() || !same(d));
            index.manifests.push(entry.clone());
            self.write_index(&index, aside)
        })();
        if result.is_err() {
            for path in placed {
                let _ = fs::remove_file(path);
            }
        }
        result
    }
}

pub(crate) fn facts_of(scan: &Scan) -> Facts {
    Facts { init: scan.init(), unpacked_size: scan.bytes }
}

pub(crate) fn encode(value: &impl serde::Serialize, path: &Path) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::Damaged { path: path.to_owned(), reason: e.to_string() })
}
