//! Images for other programs: an OCI layout, an archive of one, or what `docker load` reads.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::json;
use tar::EntryType;

use super::Store;
use crate::archive::codec;
use crate::archive::writer::{Meta, finish, header, pad};
use crate::blob;
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::oci::{self, Descriptor, Index};
use crate::reference::LayoutKind;
use crate::types::{Digest, Image};

impl Store {
    /// Writes an image to `path` under `name`: into a folder (made, or an OCI layout to add to), or as an archive, which
    /// appears whole or not at all.
    ///
    /// # Errors
    /// When a blob is damaged or `path` cannot be written.
    pub fn export(&self, image: &Image, kind: LayoutKind, path: &Path, name: &str) -> Result<()> {
        let manifest = self.manifest(&image.digest)?;
        let mut entry = Descriptor::new(oci::MANIFEST, image.digest.clone(), self.size_of(&image.digest)?);
        if let Some(media_type) = manifest.media_type.clone() {
            entry.media_type = media_type;
        }
        entry.annotations.insert(oci::REF_NAME.to_owned(), name.to_owned());
        let mut blobs: Vec<Digest> = vec![image.digest.clone(), manifest.config.digest.clone()];
        for layer in &manifest.layers {
            if !blobs.contains(&layer.digest) {
                blobs.push(layer.digest.clone());
            }
        }
        match kind {
            LayoutKind::Oci => self.export_folder(entry, &blobs, path),
            LayoutKind::OciArchive => self.export_file(path, |out| self.write_oci(entry, &blobs, out)),
            LayoutKind::DockerArchive => {
                let layers: Vec<Digest> = manifest.layers.iter().map(|l| l.digest.clone()).collect();
                self.export_file(path, |out| self.write_docker(name, &manifest.config.digest, &layers, out))
            }
        }
    }

    fn size_of(&self, digest: &Digest) -> Result<u64> {
        let path = self.blob_path(digest);
        fs::metadata(&path).map(|m| m.len()).map_err(|e| Error::io("read", path, e))
    }

    fn export_folder(&self, entry: Descriptor, blobs: &[Digest], path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(|e| Error::io("make folder", path, e))?;
        let aside = TempDir::new(path)?;
        for digest in blobs {
            let target = path.join(digest.path_in_layout());
            if target.exists() {
                continue;
            }
            let folder = path.join("blobs").join(digest.algorithm());
            fs::create_dir_all(&folder).map_err(|e| Error::io("make folder", &folder, e))?;
            let temporary = aside.path().join(digest.hex());
            let mut out = File::create(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
            self.copy_blob(digest, &mut out, &temporary)?;
            out.sync_all().map_err(|e| Error::io("write", &temporary, e))?;
            fs::rename(&temporary, &target).map_err(|e| Error::io("rename", &target, e))?;
        }
        let index_path = path.join("index.json");
        let mut index: Index = match fs::read(&index_path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Damaged { path: index_path.clone(), reason: e.to_string() })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(e) => return Err(Error::io("read", index_path, e)),
        };
        index.manifests.retain(|d| d.name() != entry.name());
        index.manifests.push(entry);
        for (name, content) in [("index.json", json!(index)), ("oci-layout", layout())] {
            let temporary = aside.path().join(name);
            fs::write(&temporary, content.to_string()).map_err(|e| Error::io("write", &temporary, e))?;
            fs::rename(&temporary, path.join(name)).map_err(|e| Error::io("rename", path.join(name), e))?;
        }
        Ok(())
    }

    /// Writes beside `path`, and renames.
    fn export_file(&self, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let aside = TempDir::new(folder)?;
        let temporary = aside.path().join("archive");
        let file = File::create(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
        let mut out = io::BufWriter::with_capacity(blob::BUFFER, file);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?;
        file.sync_all().map_err(|e| Error::io("write", path, e))?;
        fs::rename(&temporary, path).map_err(|e| Error::io("rename", path, e))
    }

    fn write_oci(&self, entry: Descriptor, blobs: &[Digest], mut out: &mut dyn Write) -> Result<()> {
        let failed = |e: io::Error| Error::io("write", self.root(), e);
        let index = Index { manifests: vec![entry], ..Index::default() };
        file(&mut out, "oci-layout", layout().to_string().as_bytes()).map_err(failed)?;
        file(&mut out, "index.json", json!(index).to_string().as_bytes()).map_err(failed)?;
        let others = blobs.iter().any(|b| b.algorithm() != "sha256");
        for folder in ["blobs/", "blobs/sha256/"].into_iter().chain(others.then_some("blobs/sha512/")) {
            header(&mut out, &Meta::new(folder.as_bytes(), EntryType::Directory, 0o755)).map_err(failed)?;
        }
        for digest in blobs {
            let size = self.size_of(digest)?;
            let path = digest.path_in_layout();
            let mut meta = Meta::new(path.as_bytes(), EntryType::Regular, 0o644);
            meta.size = size;
            header(&mut out, &meta).map_err(failed)?;
            self.copy_blob(digest, &mut out, self.root())?;
            pad(&mut out, size).map_err(failed)?;
        }
        finish(&mut out).map_err(failed)
    }

    /// `docker load` wants plain layers, and their names in `manifest.json`.
    fn write_docker(&self, name: &str, config: &Digest, layers: &[Digest], mut out: &mut dyn Write) -> Result<()> {
        let failed = |e: io::Error| Error::io("write", self.root(), e);
        let config_path = format!("{}.json", config.hex());
        let mut content = Vec::new();
        self.copy_blob(config, &mut content, self.root())?;
        file(&mut out, &config_path, &content).map_err(failed)?;
        let mut paths = Vec::new();
        for (i, digest) in layers.iter().enumerate() {
            let what = digest.to_string();
            let open = || {
                let blob = blob::open(&self.blob_path(digest), digest)?;
                codec::open(blob, self.limits.bytes).map_err(|f| f.of(&what, self.root()))
            };
            // A header comes before the content and names its size: read twice rather than held in memory.
            let size = io::copy(&mut open()?, &mut io::sink()).map_err(failed)?;
            let path = format!("{i}-{}.tar", digest.short());
            let mut meta = Meta::new(path.as_bytes(), EntryType::Regular, 0o644);
            meta.size = size;
            header(&mut out, &meta).map_err(failed)?;
            io::copy(&mut open()?.take(size), &mut out).map_err(failed)?;
            pad(&mut out, size).map_err(failed)?;
            paths.push(path);
        }
        let manifest = json!([{ "Config": config_path, "RepoTags": [name], "Layers": paths }]);
        file(&mut out, "manifest.json", manifest.to_string().as_bytes()).map_err(failed)?;
        finish(&mut out).map_err(failed)
    }

    /// Copies a blob and checks it on the way.
    fn copy_blob(&self, digest: &Digest, out: &mut impl Write, to: &Path) -> Result<()> {
        let path = self.blob_path(digest);
        let mut source = blob::open(&path, digest)?;
        io::copy(&mut source, out).map_err(|e| Error::io("copy", to, e))?;
        let (actual, ..) = source.digest();
        if actual != *digest {
            return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
        }
        Ok(())
    }
}

fn layout() -> serde_json::Value {
    json!({ "imageLayoutVersion": "1.0.0" })
}

fn file(out: &mut impl Write, path: &str, content: &[u8]) -> io::Result<()> {
    let mut meta = Meta::new(path.as_bytes(), EntryType::Regular, 0o644);
    meta.size = content.len() as u64;
    header(out, &meta)?;
    out.write_all(content)?;
    pad(out, meta.size)
}
