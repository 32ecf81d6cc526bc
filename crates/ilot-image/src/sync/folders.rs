//! Folders of the host that images are in: OCI layouts, and skopeo's `dir:`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::place::{Place, Told};
use super::selected;
use crate::blob;
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::oci::{self, Descriptor, Index};
use crate::remote::RemoteManifest;
use crate::source::{SMALL, media_type};
use crate::types::Digest;

/// A name that comes from elsewhere becomes a path below a folder, or nothing.
fn below(root: &Path, name: &str) -> Result<PathBuf> {
    let is_part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains('\0');
    if !name.split('/').all(is_part) {
        return Err(Error::BadReference {
            text: name.to_owned(),
            reason: "not a repository's name".to_owned(),
            help: None,
        });
    }
    Ok(root.join(name))
}

/// Folders below a root that have a file of a name, as paths with slashes.
fn folders_with(root: &Path, file: &str) -> Result<BTreeSet<String>> {
    let (mut found, mut left) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = left.pop() {
        if folder.join(file).is_file() {
            let name = folder.strip_prefix(root).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
            found.insert(name);
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(|e| Error::io("read folder", &folder, e))?.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) && !entry.file_name().as_encoded_bytes().starts_with(b".") {
                left.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn small(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > SMALL => {
            Err(Error::Damaged { path: path.to_owned(), reason: format!("{} bytes, too large", meta.len()) })
        }
        Ok(_) => fs::read(path).map(Some).map_err(|e| Error::io("read", path, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// Copies a blob from a file, and checks it on the way.
fn copy(from: &Path, digest: &Digest, to: &Path) -> Result<()> {
    let mut source = blob::open(from, digest)?;
    let mut out = File::create(to).map_err(|e| Error::io("create", to, e))?;
    io::copy(&mut source, &mut out).map_err(|e| Error::io("copy", to, e))?;
    let (actual, ..) = source.digest();
    if actual != *digest {
        return Err(Error::Damaged { path: from.to_owned(), reason: format!("its content is {actual}") });
    }
    out.sync_all().map_err(|e| Error::io("write", to, e))
}

/// Puts a file in place in one step.
fn place(folder: &Path, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io("make folder", folder, e))?;
    let aside = TempDir::new(folder)?;
    let temporary = aside.path().join("file");
    write(&temporary)?;
    fs::rename(&temporary, folder.join(name)).map_err(|e| Error::io("rename", folder.join(name), e))
}

fn put(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    place(folder, name, |path| fs::write(path, content).map_err(|e| Error::io("write", path, e)))
}

/// `ROOT/team/tool/{oci-layout,index.json,blobs}`: what a registry of ilot's has on its disk, too.
pub(super) struct Layouts {
    root: PathBuf,
}

impl Layouts {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn index(&self, repository: &str) -> Result<Index> {
        let path = self.folder(repository)?.join("index.json");
        match small(&path)? {
            None => Ok(Index::default()),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Damaged { path, reason: e.to_string() }),
        }
    }

    /// The root itself is one where it is a layout.
    fn folder(&self, repository: &str) -> Result<PathBuf> {
        if repository.is_empty() { Ok(self.root.clone()) } else { below(&self.root, repository) }
    }

    fn blob(&self, repository: &str, digest: &Digest) -> Result<PathBuf> {
        Ok(self.folder(repository)?.join(digest.path_in_layout()))
    }

    fn read(&self, repository: &str, digest: &Digest, said: String) -> Result<Option<RemoteManifest>> {
        let path = self.blob(repository, digest)?;
        let Some(bytes) = small(&path)? else { return Ok(None) };
        let actual = blob::digest_like(&bytes, digest);
        if actual != *digest {
            return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
        }
        let media_type = media_type(said, &bytes);
        Ok(Some(RemoteManifest { digest: digest.clone(), media_type, bytes }))
    }
}

impl Place for Layouts {
    fn repositories(&self, names: &[String]) -> Result<Vec<(String, String)>> {
        let root_name =
            self.root.file_name().map_or_else(|| "image".to_owned(), |n| n.to_string_lossy().to_lowercase());
        let named = |name: String| if name.is_empty() { (name, root_name.clone()) } else { (name.clone(), name) };
        Ok(selected(folders_with(&self.root, "oci-layout")?, names).into_iter().map(named).collect())
    }

    fn tags(&self, repository: &str) -> Result<Vec<String>> {
        Ok(self.index(repository)?.manifests.iter().filter_map(|d| d.name().map(str::to_owned)).collect())
    }

    fn digest(&self, repository: &str, reference: &str) -> Result<Option<Digest>> {
        if let Ok(digest) = reference.parse::<Digest>() {
            return Ok(self.blob(repository, &digest)?.exists().then_some(digest));
        }
        let index = self.index(repository)?;
        Ok(index.manifests.iter().find(|d| d.name() == Some(reference)).map(|d| d.digest.clone()))
    }

    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<RemoteManifest>> {
        if reference.contains(':') {
            return self.read(repository, &reference.parse()?, String::new());
        }
        let index = self.index(repository)?;
        match index.manifests.into_iter().find(|d| d.name() == Some(reference)) {
            None => Ok(None),
            Some(entry) => self.read(repository, &entry.digest, entry.media_type),
        }
    }

    fn referrers(&self, repository: &str, digest: &Digest) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for entry in self.index(repository)?.manifests {
            let Some(manifest) = self.read(repository, &entry.digest, entry.media_type.clone())? else { continue };
            let content: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
            if content["subject"]["digest"].as_str() == Some(&digest.to_string()) {
                let mut entry = Descriptor::new(&entry.media_type, entry.digest, entry.size);
                if !content["artifactType"].is_null() {
                    entry.other.insert("artifactType".to_owned(), content["artifactType"].clone());
                }
                all.push(json!(entry));
            }
        }
        Ok(all)
    }

    fn fetch(
        &self,
        repository: &str,
        digest: &Digest,
        to: &Path,
        _told: Told<'_>,
        _cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        copy(&self.blob(repository, digest)?, digest, to)
    }

    fn has(&self, repository: &str, _top: &str, digest: &Digest) -> Result<bool> {
        Ok(self.blob(repository, digest)?.exists())
    }

    fn put_blob(&self, repository: &str, _top: &str, digest: &Digest, file: &Path) -> Result<()> {
        let folder = self.folder(repository)?.join("blobs").join(digest.algorithm());
        place(&folder, digest.hex(), |path| copy(file, digest, path))
    }

    fn put_manifest(&self, repository: &str, _top: &str, reference: &str, manifest: &RemoteManifest) -> Result<()> {
        let folder = self.folder(repository)?;
        let blobs = folder.join("blobs").join(manifest.digest.algorithm());
        put(&blobs, manifest.digest.hex(), &manifest.bytes)?;
        let json: Value = serde_json::from_slice(&manifest.bytes).unwrap_or_default();
        let is_tag = !reference.contains(':');
        // What an index names is found by it; what refers to an image is found by the list alone.
        if is_tag || !json["subject"].is_null() {
            let mut index = self.index(repository)?;
            let size = manifest.bytes.len() as u64;
            let mut entry = Descriptor::new(&manifest.media_type, manifest.digest.clone(), size);
            if is_tag {
                entry.annotations.insert(oci::REF_NAME.to_owned(), reference.to_owned());
            }
            index.manifests.retain(|d| d.name() != entry.name() || entry.name().is_none() && d.digest != entry.digest);
            index.manifests.push(entry);
            put(&folder, "index.json", json!(index).to_string().as_bytes())?;
        }
        put(&folder, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    fn note_referrer(&self, _repository: &str, _subject: &Digest, _entry: &Value) -> Result<()> {
        Ok(())
    }

    fn bad(&self, reason: &str) -> Error {
        Error::Archive { what: self.root.display().to_string(), reason: reason.to_owned() }
    }
}

/// `ROOT/team/tool:1/{version,manifest.json,<hex>}`, as `skopeo sync --dest dir --scoped` writes and reads it.
pub(super) struct Folders {
    root: PathBuf,
}

impl Folders {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn image(&self, repository: &str, reference: &str) -> Result<PathBuf> {
        below(&self.root, &format!("{repository}:{reference}"))
    }

    /// All images of a repository.
    fn images(&self, repository: &str) -> Result<Vec<PathBuf>> {
        let tags = self.tags(repository)?;
        tags.iter().map(|tag| self.image(repository, tag)).collect()
    }

    /// A part of whichever image of the repository has it.
    fn part(&self, repository: &str, name: &str) -> Result<Option<PathBuf>> {
        let images = self.images(repository)?;
        Ok(images.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
    }

    fn read(path: &Path, expected: Option<&Digest>) -> Result<Option<RemoteManifest>> {
        let Some(bytes) = small(path)? else { return Ok(None) };
        let digest = expected.map_or_else(|| blob::digest_of(&bytes), |expected| blob::digest_like(&bytes, expected));
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(Error::Damaged { path: path.to_owned(), reason: format!("its content is {digest}") });
        }
        let media_type = media_type(String::new(), &bytes);
        Ok(Some(RemoteManifest { digest, media_type, bytes }))
    }
}

impl Place for Folders {
    fn repositories(&self, names: &[String]) -> Result<Vec<(String, String)>> {
        let images = folders_with(&self.root, "manifest.json")?;
        let all = images.iter().filter_map(|image| image.rsplit_once(':')).map(|(name, _)| name.to_owned());
        // A folder that skopeo made begins with the registry that it is from.
        let without_host = |name: &str| match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) => rest.to_owned(),
            _ => name.to_owned(),
        };
        Ok(selected(all, names).into_iter().map(|name| (name.clone(), without_host(&name))).collect())
    }

    fn tags(&self, repository: &str) -> Result<Vec<String>> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let images = folders_with(&self.root, "manifest.json")?;
        let split = images.iter().filter_map(|image| image.rsplit_once(':'));
        Ok(split.filter(|(name, _)| *name == repository).map(|(_, tag)| tag.to_owned()).collect())
    }

    fn digest(&self, repository: &str, reference: &str) -> Result<Option<Digest>> {
        Ok(self.manifest(repository, reference)?.map(|m| m.digest))
    }

    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<RemoteManifest>> {
        let Ok(digest) = reference.parse::<Digest>() else {
            return Self::read(&self.image(repository, reference)?.join("manifest.json"), None);
        };
        if let Some(path) = self.part(repository, &format!("{}.manifest.json", digest.hex()))? {
            return Self::read(&path, Some(&digest));
        }
        for image in self.images(repository)? {
            if let Some(found) = Self::read(&image.join("manifest.json"), None)?.filter(|m| m.digest == digest) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn referrers(&self, _repository: &str, _digest: &Digest) -> Result<Vec<Value>> {
        // A folder has an image and no more; signatures are images of their own.
        Ok(Vec::new())
    }

    fn fetch(
        &self,
        repository: &str,
        digest: &Digest,
        to: &Path,
        _told: Told<'_>,
        _cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        match self.part(repository, digest.hex())? {
            Some(path) => copy(&path, digest, to),
            None => Err(self.bad(&format!("`{repository}` has no blob {digest}"))),
        }
    }

    fn has(&self, repository: &str, top: &str, digest: &Digest) -> Result<bool> {
        Ok(self.coming(repository, top)?.join(digest.hex()).is_file())
    }

    fn put_blob(&self, repository: &str, top: &str, digest: &Digest, file: &Path) -> Result<()> {
        place(&self.coming(repository, top)?, digest.hex(), |path| copy(file, digest, path))
    }

    fn put_manifest(&self, repository: &str, top: &str, reference: &str, manifest: &RemoteManifest) -> Result<()> {
        let folder = self.coming(repository, top)?;
        if reference.contains(':') {
            return put(&folder, &format!("{}.manifest.json", manifest.digest.hex()), &manifest.bytes);
        }
        put(&folder, "manifest.json", &manifest.bytes)?;
        put(&folder, "version", b"Directory Transport Version: 1.1\n")?;
        let target = self.image(repository, reference)?;
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("make folder", parent, e))?;
        }
        let old = folder.with_extension("old");
        if target.exists() {
            fs::rename(&target, &old).map_err(|e| Error::io("rename", &target, e))?;
        }
        fs::rename(&folder, &target).map_err(|e| Error::io("rename", &target, e))?;
        let _ = fs::remove_dir_all(&old);
        // The folders above it go when nothing else is on its way.
        let mut above = folder.parent();
        while let Some(parent) = above.filter(|p| p.starts_with(self.root.join(".coming"))) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
            above = parent.parent();
        }
        Ok(())
    }

    fn note_referrer(&self, _repository: &str, _subject: &Digest, _entry: &Value) -> Result<()> {
        Ok(())
    }

    fn wants_everything(&self) -> bool {
        true
    }

    fn keeps_referrers(&self) -> bool {
        false
    }

    fn bad(&self, reason: &str) -> Error {
        Error::Archive { what: self.root.display().to_string(), reason: reason.to_owned() }
    }
}

impl Folders {
    /// Where an image's parts gather until all are there; a copy that broke off goes on with them.
    fn coming(&self, repository: &str, top: &str) -> Result<PathBuf> {
        below(&self.root, &format!(".coming/{repository}:{top}"))
    }
}
