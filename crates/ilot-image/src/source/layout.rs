//! Images that other programs packed: OCI layouts, archives of them, and what `docker save` writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::import_stream;
use super::{Brought, Found, Order};
use crate::archive::unpack::unpack;
use crate::archive::{Fault, codec};
use crate::blob::{self, Codec, Import};
use crate::error::{Error, Result};
use crate::oci::{self, Configuration, Descriptor, Index, Manifest};
use crate::platform::Platform;
use crate::reference::{LayoutKind, RegistryName};
use crate::types::Digest;

/// Indexes, manifests and configurations are small (the limit of containers/image).
const SMALL: u64 = 4 << 20;
/// An index of indexes of indexes is nobody's.
const DEPTH: usize = 4;

/// One image of `docker save`'s `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn import(order: &Order<'_>, kind: LayoutKind, path: &Path, name: Option<&str>) -> Result<Found> {
    order.stage(&format!("import {}", path.display()));
    let unpacked;
    let root = match kind {
        LayoutKind::Oci => path,
        LayoutKind::OciArchive | LayoutKind::DockerArchive => {
            unpacked = open_archive(order, path)?;
            unpacked.as_path()
        }
    };
    let layout = Layout { order, root, shown: path };
    let mut found = match kind {
        // Newer Dockers save both forms in one archive; the names that people know are in theirs.
        LayoutKind::DockerArchive if root.join("manifest.json").exists() => layout.docker(name)?,
        _ => layout.oci(name)?,
    };
    if kind != LayoutKind::Oci {
        let _ = fs::remove_dir_all(root);
    }
    found.stamp = super::stamp(order.reference)?;
    Ok(found)
}

/// Which of the two an archive of images is; none where it is a root file system. Reads no further than it must: the
/// first name that has no place among images answers.
pub(super) fn kind_of(path: &Path, limits: crate::archive::Limits) -> Result<Option<LayoutKind>> {
    let what = path.display().to_string();
    let fault = |f: Fault| f.of(&what, path);
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let plain = codec::open(file, limits.bytes).map_err(fault)?;
    let mut reader = crate::archive::reader::Reader::new(plain, limits);
    let mut found = None;
    while let Some(entry) = reader.next().map_err(fault)? {
        let parts = crate::archive::components(&entry.path).map_err(fault)?;
        let name = parts.last().copied().unwrap_or_default();
        match parts.as_slice() {
            [] | [b"blobs" | b"index.json" | b"repositories", ..] => {}
            [b"manifest.json"] => return Ok(Some(LayoutKind::DockerArchive)),
            [b"oci-layout"] => found = Some(LayoutKind::OciArchive),
            // Layers and configurations of `docker save`: files by digest, or folders with three known files.
            [one] if one.ends_with(b".tar") || one.ends_with(b".json") || is_digest(one) => {}
            [folder, _] if is_digest(folder) && matches!(name, b"VERSION" | b"json" | b"layer.tar") => {}
            _ => return Ok(None),
        }
    }
    Ok(found)
}

fn is_digest(name: &[u8]) -> bool {
    name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit)
}

/// Unpacks an archive of blobs beside the work in progress.
fn open_archive(order: &Order<'_>, path: &Path) -> Result<PathBuf> {
    let tree = order.aside.path().join("layout");
    fs::create_dir(&tree).map_err(|e| Error::io("make folder", &tree, e))?;
    let what = path.display().to_string();
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let plain = codec::open(file, order.limits.bytes).map_err(|f| f.of(&what, &tree))?;
    let each = |bytes| order.bytes(bytes, None).map_err(|_| Fault::bad("cancelled"));
    let unpacked = unpack(plain, &tree, None, order.limits, each);
    order.wanted()?;
    unpacked.map_err(|f| f.of(&what, &tree))?;
    Ok(tree)
}

struct Layout<'a> {
    order: &'a Order<'a>,
    root: &'a Path,
    /// The path as the user knows it.
    shown: &'a Path,
}

impl Layout<'_> {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::Archive { what: self.shown.display().to_string(), reason: reason.into() }
    }

    /// Opens a file of the layout; its links lead nowhere else.
    fn open(&self, path: &str) -> Result<File> {
        use rustix::fs::{Mode, OFlags, ResolveFlags};
        let failed = |e: rustix::io::Errno| self.bad(format!("`{path}`: {}", std::io::Error::from(e)));
        let root = rustix::fs::open(self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(failed)?;
        Ok(File::from(fd))
    }

    fn small(&self, path: &str) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let limited = self.open(path)?.take(SMALL + 1).read_to_end(&mut bytes);
        limited.map_err(|e| self.bad(format!("`{path}`: {e}")))?;
        if bytes.len() as u64 > SMALL {
            return Err(self.bad(format!("`{path}`: too large for what it should be")));
        }
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|e| self.bad(format!("`{path}`: {e}")))
    }

    /// A small blob, its digest checked.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = digest.path_in_layout();
        let bytes = self.small(&path)?;
        let actual = blob::digest_like(&bytes, digest);
        if actual != *digest {
            let what = format!("{}: `{path}`", self.shown.display());
            return Err(Error::Mismatch { what, expected: digest.clone(), actual });
        }
        Ok(bytes)
    }

    fn oci(&self, name: Option<&str>) -> Result<Found> {
        let index: Index = self.json("index.json", &self.small("index.json")?)?;
        let entry = self.choose(index, name)?;
        let bytes = self.blob(&entry.digest)?;
        let manifest: Manifest = self.json("manifest", &bytes)?;
        let configuration = self.blob(&manifest.config.digest)?;
        let parsed: Configuration = self.json("configuration", &configuration)?;
        check(&parsed, manifest.layers.len(), self.order.platform).map_err(|reason| self.bad(reason))?;
        let total = manifest.layers.len();
        let mut layers = Vec::with_capacity(total);
        for (i, (layer, diff_id)) in manifest.layers.iter().zip(&parsed.rootfs.diff_ids).enumerate() {
            self.order.stage(&format!("layer {} of {total}", i + 1));
            let what = format!("{}: layer {}", self.shown.display(), layer.digest.short());
            let each = |bytes| self.order.bytes(bytes, None);
            let import = self.import(&what, &each);
            let source = self.open(&layer.digest.path_in_layout())?;
            layers.push(blob::adopt(source, &layer.digest, diff_id, &layer.media_type, &import)?);
        }
        let brought = Brought { configuration, manifest: Some((entry, bytes)) };
        Ok(Found::brought(layers, self.shown.display().to_string(), brought))
    }

    /// The manifest that a name and this host's processor mean.
    fn choose(&self, mut index: Index, name: Option<&str>) -> Result<Descriptor> {
        if let Some(name) = name {
            let known: Vec<_> = index.manifests.iter().filter_map(|d| d.name().map(str::to_owned)).collect();
            index.manifests.retain(|d| d.name() == Some(name));
            if index.manifests.is_empty() {
                return Err(self.bad(format!("has no image `{name}`, only {}", list(&known))));
            }
        }
        for _ in 0..DEPTH {
            let has = offered(&index.manifests);
            let mut fitting = best(index.manifests, self.order.platform);
            let entry = match fitting.len() {
                0 => return Err(self.bad(format!("has no image for {}, only for {has}", self.order.platform))),
                1 => fitting.remove(0),
                _ => {
                    let known: Vec<_> = fitting.iter().filter_map(|d| d.name().map(str::to_owned)).collect();
                    return Err(self.bad(format!("has several images: add `:NAME`, one of {}", list(&known))));
                }
            };
            if !oci::is_index(&entry.media_type) {
                return Ok(entry);
            }
            index = self.json("index", &self.blob(&entry.digest)?)?;
        }
        Err(self.bad("indexes within indexes without end"))
    }

    /// Layers of `docker save` are plain archives: they are compressed on the way in.
    fn docker(&self, name: Option<&str>) -> Result<Found> {
        let images: Vec<DockerImage> = self.json("manifest.json", &self.small("manifest.json")?)?;
        let tags = |i: &DockerImage| i.repo_tags.clone().unwrap_or_default();
        let known: Vec<String> = images.iter().flat_map(tags).collect();
        let mut fitting: Vec<_> =
            images.into_iter().filter(|i| name.is_none_or(|n| tags(i).iter().any(|t| same_name(t, n)))).collect();
        let image = match fitting.len() {
            1 => fitting.remove(0),
            0 => return Err(self.bad(format!("has no image `{}`, only {}", name.unwrap_or_default(), list(&known)))),
            _ => return Err(self.bad(format!("has several images: add `:NAME`, one of {}", list(&known)))),
        };
        let configuration = self.small(&image.config)?;
        let parsed: Configuration = self.json(&image.config, &configuration)?;
        check(&parsed, image.layers.len(), self.order.platform).map_err(|reason| self.bad(reason))?;
        let mut layers = Vec::with_capacity(image.layers.len());
        for (path, diff_id) in image.layers.iter().zip(&parsed.rootfs.diff_ids) {
            let what = format!("{}: `{path}`", self.shown.display());
            let layer = import_stream(self.order, &what, self.open(path)?, None)?;
            if layer.diff_id != *diff_id {
                return Err(Error::Mismatch { what, expected: diff_id.clone(), actual: layer.diff_id });
            }
            layers.push(layer);
        }
        let brought = Brought { configuration, manifest: None };
        Ok(Found::brought(layers, self.shown.display().to_string(), brought))
    }

    fn import<'b>(&'b self, what: &'b str, each: &'b dyn Fn(u64) -> Result<()>) -> Import<'b> {
        Import { what, aside: self.order.aside, codec: Codec::Zstd, limits: self.order.limits, each }
    }
}

/// Whether a configuration can be run here and belongs to so many layers.
pub(crate) fn check(
    configuration: &Configuration,
    layers: usize,
    wanted: &Platform,
) -> std::result::Result<(), String> {
    let is = configuration.platform();
    // Many configurations do not say their variant: the index says it.
    let whatever = Platform { variant: wanted.variant.clone(), ..is.clone() };
    if wanted.rank(&is).is_none() && wanted.rank(&whatever).is_none() {
        return Err(format!("is for {is}, not for {wanted}"));
    }
    let ids = configuration.rootfs.diff_ids.len();
    if ids != layers {
        return Err(format!("{layers} layers, but {ids} of them in its configuration"));
    }
    Ok(())
}

/// The entries of an index that fit a platform best, in the index' order; one that does not say is looked into where
/// none says that it fits.
pub(crate) fn best(entries: Vec<Descriptor>, wanted: &Platform) -> Vec<Descriptor> {
    let is_image = |d: &Descriptor| oci::is_index(&d.media_type) || oci::is_manifest(&d.media_type);
    let rank = |d: &Descriptor| match d.platform() {
        Some(platform) => wanted.rank(&platform).map(|rank| rank + 1),
        None => Some(0),
    };
    let ranked: Vec<_> = entries.into_iter().filter(is_image).filter_map(|d| Some((rank(&d)?, d))).collect();
    let most = ranked.iter().map(|(rank, _)| *rank).max();
    ranked.into_iter().filter(|(rank, _)| Some(*rank) == most).map(|(_, d)| d).collect()
}

/// What an index has, for people.
pub(super) fn offered(entries: &[Descriptor]) -> String {
    let all: std::collections::BTreeSet<String> =
        entries.iter().filter_map(Descriptor::platform).map(|p| p.to_string()).collect();
    if all.is_empty() { "nothing".to_owned() } else { all.into_iter().collect::<Vec<_>>().join(", ") }
}

/// `debian:13` is `docker.io/library/debian:13`.
fn same_name(a: &str, b: &str) -> bool {
    a == b || RegistryName::parse(a).is_ok_and(|a| RegistryName::parse(b).is_ok_and(|b| a == b))
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "such without a name".to_owned()
    } else {
        names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
    }
}
