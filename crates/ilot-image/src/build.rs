//! What a build needs of the store: layers made one by one, a cache of them by key, and an image of it all at the end.
//!
//! ```text
//! build/cache/<key>.json       the layer that a step with these inputs gave
//! build/scans/<diff id>.json   what a layer says about inits and shells, found once
//! build/lock                   shared by running builds; held alone by who empties the cache
//! ```
//!
//! A layer is placed and written down in the cache in one go, under the index' lock: a collection sees both or none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::archive::reader::Reader;
use crate::archive::unpack::unpack;
use crate::archive::writer::{Overlay, pack_overlay};
use crate::archive::{Fault, codec};
use crate::blob::{self, Codec, Hashing, Import};
use crate::error::{Error, Result};
use crate::lock::{TempDir, rename, sweep, write_atomically};
use crate::oci::{self, Descriptor};
use crate::progress::Progress;
use crate::scan::{Saved, Scan};
use crate::source::as_layer;
use crate::store::{Store, encode, entries, facts_of, name_for};
use crate::types::{Digest, Image, ImageConfig};

/// A layer of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltLayer {
    /// Digest of its blob.
    pub digest: Digest,
    /// Digest of its plain archive: what identifies its content.
    pub diff_id: Digest,
    /// Bytes of its blob.
    pub size: u64,
    /// Media type of its blob.
    pub media_type: String,
    /// When it was made here, in seconds since 1970; a layer of another image has none.
    #[serde(default)]
    pub created: Option<i64>,
}

/// What becomes a layer.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// The writable folder of an overlay, which nobody writes to any more.
    pub folder: &'a Path,
    /// The first id of its owners, and how many there are.
    pub ids: (u32, u32),
    /// Paths that stay out, without a slash in front.
    pub left_out: &'a [&'a str],
    /// The latest time that an entry may have, in seconds since 1970.
    pub newest: Option<i64>,
    /// Under which key it is found again.
    pub key: Option<&'a str>,
    /// What it is, for messages.
    pub what: &'a str,
}

/// What an image is made of, and called.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its names, as [`Store::tag`] takes them; none: it is reached by its digest.
    pub names: &'a [String],
    /// Its layers, the lowest first.
    pub layers: &'a [BuiltLayer],
    /// Its configuration; `rootfs` is set from the layers.
    pub configuration: &'a Value,
    /// Annotations of its manifest.
    pub annotations: &'a serde_json::Map<String, Value>,
    /// Where it came from, for people.
    pub source: &'a str,
}

/// A file that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// Digest of its content.
    pub digest: Digest,
    /// `Last-Modified`, as the server says it.
    pub modified: Option<String>,
}

/// The largest file that a build downloads, in bytes.
const LARGEST: u64 = 64 << 30;

/// A build's place in the store: a folder for its work, removed at its end, or by the next command when it was killed.
#[derive(Debug)]
pub struct Workshop {
    store: Store,
    aside: TempDir,
    _lock: File,
}

impl Store {
    /// A place for a build.
    ///
    /// # Errors
    /// When it cannot be made, or the build cache is being emptied.
    pub fn workshop(&self) -> Result<Workshop> {
        sweep(&self.temporary());
        for folder in ["build", "build/cache", "build/scans"] {
            let path = self.root().join(folder);
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .or_else(|e| if path.is_dir() { Ok(()) } else { Err(e) })
                .map_err(|e| Error::io("make folder", path, e))?;
        }
        let lock = self.build_lock()?;
        let path = self.root().join("build/lock");
        flock(&lock, FlockOperation::LockShared).map_err(|e| Error::io("lock", path, e))?;
        Ok(Workshop { store: self.clone(), aside: TempDir::new(&self.temporary())?, _lock: lock })
    }

    fn build_lock(&self) -> Result<File> {
        let path = self.root().join("build/lock");
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open lock", path, e))
    }

    /// Forgets every layer of the build cache, and what its cache mounts hold: how many layers. What no image needs goes
    /// with the next [`Store::gc`]. `None`: a build is running.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn empty_build_cache(&self) -> Result<Option<usize>> {
        let folder = self.root().join("build");
        if !folder.is_dir() {
            return Ok(Some(0));
        }
        let lock = self.build_lock()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let records = entries(&folder.join("cache"))?;
        for record in &records {
            fs::remove_file(record).map_err(|e| Error::io("remove", record, e))?;
        }
        for part in ["scans", "mounts"] {
            let part = folder.join(part);
            match fs::remove_dir_all(&part) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", part, e)),
                _ => {}
            }
        }
        Ok(Some(records.len()))
    }

    /// The layers that the build cache has.
    pub(crate) fn cached_layers(&self) -> Result<Vec<BuiltLayer>> {
        let records = entries(&self.root().join("build/cache"))?;
        // A record that cannot be read keeps nothing: its step is done again.
        Ok(records.iter().filter_map(|record| serde_json::from_slice(&fs::read(record).ok()?).ok()).collect())
    }
}

impl Workshop {
    /// The folder for the build's work.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.aside.path()
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn record(&self, key: &str) -> PathBuf {
        self.store.root().join("build/cache").join(format!("{key}.json"))
    }

    /// The layer that the cache has for a key, held for as long as this build lasts.
    #[must_use]
    pub fn cached(&self, key: &str) -> Option<BuiltLayer> {
        let layer: BuiltLayer = serde_json::from_slice(&fs::read(self.record(key)).ok()?).ok()?;
        self.hold(&layer).ok()?;
        Some(layer)
    }

    /// A link to the blob keeps its bytes whatever a collection does.
    fn hold(&self, layer: &BuiltLayer) -> Result<PathBuf> {
        let blob = self.store.blob_file(&layer.digest);
        let held = self.path().join(format!("held-{}", layer.digest.hex()));
        match fs::hard_link(&blob, &held) {
            Err(_) if held.exists() => Ok(held),
            Err(e) => Err(Error::io("link", blob, e)),
            Ok(()) => Ok(held),
        }
    }

    /// Packs a layer, places it in the store and writes it down under its key.
    ///
    /// # Errors
    /// When it cannot be read or written, and when the build is cancelled.
    pub fn pack(&self, packed: &Packed<'_>, progress: &dyn Progress) -> Result<BuiltLayer> {
        let wanted = |_| {
            if progress.cancelled() { Err(Error::Cancelled { reference: packed.what.to_owned() }) } else { Ok(()) }
        };
        let import = Import {
            what: packed.what,
            aside: &self.aside,
            codec: Codec::Zstd,
            limits: self.store.limits(),
            each: &wanted,
        };
        let overlay = Overlay { ids: packed.ids, left_out: packed.left_out, emptied: &[], newest: packed.newest };
        let (layer, _) = as_layer(packed.folder, &import, |out| pack_overlay(packed.folder, overlay, out))?;
        let built = BuiltLayer {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            created: Some(packed.newest.unwrap_or_else(|| jiff::Timestamp::now().as_second())),
        };
        self.save_scan(&built.diff_id, &layer.scan)?;
        {
            let _lock = self.store.lock_index()?;
            rename(&layer.file, &self.store.blob_file(&built.digest))?;
            self.hold(&built)?;
            if let Some(key) = packed.key {
                let record = self.record(key);
                write_atomically(&record, &self.aside, &encode(&built, &record)?)?;
            }
        }
        Ok(built)
    }

    /// Downloads a file that nothing is known of; as for images, the host's authorities and proxies are used.
    ///
    /// # Errors
    /// When the server cannot be reached, says no, or breaks off; when the file cannot be written.
    pub fn download(&self, url: &str, to: &Path, progress: &dyn Progress) -> Result<Downloaded> {
        let failed = |reason: String| Error::Http { url: url.to_owned(), reason, unreachable: false };
        let mut answer = self.store.client().agent(url).get(url).call().map_err(|e| failed(e.to_string()))?;
        if !answer.status().is_success() {
            return Err(failed(format!("the server answers {}", answer.status())));
        }
        let modified = answer.headers().get("last-modified").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let file = File::options().write(true).create_new(true).open(to).map_err(|e| Error::io("create", to, e))?;
        let mut out = Hashing::new(file);
        let mut body = answer.body_mut().with_config().limit(LARGEST).reader();
        let mut buffer = vec![0; blob::BUFFER];
        loop {
            if progress.cancelled() {
                return Err(Error::Cancelled { reference: url.to_owned() });
            }
            let n = io::Read::read(&mut body, &mut buffer).map_err(|e| failed(e.to_string()))?;
            if n == 0 {
                break;
            }
            io::Write::write_all(&mut out, &buffer[..n]).map_err(|e| Error::io("write", to, e))?;
        }
        Ok(Downloaded { digest: out.digest().0, modified })
    }

    /// Unpacks a tar archive, compressed or not, into an empty folder, owners as it says; `false`: the file is none.
    /// Devices in it are left out.
    ///
    /// # Errors
    /// When it is damaged or hostile, or cannot be written.
    pub fn unpack_archive(&self, file: &Path, into: &Path, progress: &dyn Progress) -> Result<bool> {
        let what = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = || File::open(file).map_err(|e| Error::io("open", file, e));
        let limits = self.store.limits();
        let mut start = [0; 4];
        let known = io::Read::read(&mut open()?, &mut start).map_err(|e| Error::io("read", file, e))?;
        if start[..known].starts_with(b"BZh") {
            return Err(Error::Archive { what, reason: "bzip2 is not read; pack it with gzip, xz or zstd".to_owned() });
        }
        let first = codec::open(open()?, limits.bytes).map_err(|f| f.of(&what, into)).map(|plain| {
            let entry = Reader::new(io::BufReader::new(plain), limits).next();
            matches!(entry, Ok(Some(_)))
        });
        if !first.unwrap_or(false) {
            return Ok(false);
        }
        let plain = codec::open(open()?, limits.bytes).map_err(|f| f.of(&what, into))?;
        let each = |_| if progress.cancelled() { Err(Fault::bad("cancelled")) } else { Ok(()) };
        let done = unpack(plain, into, None, limits, each);
        if progress.cancelled() {
            return Err(Error::Cancelled { reference: what });
        }
        done.map(|_| true).map_err(|f| f.of(&what, into))
    }

    /// An image's layers, the lowest first, and its configuration as it is.
    ///
    /// # Errors
    /// When the image is damaged.
    pub fn parts(&self, image: &Image) -> Result<(Vec<BuiltLayer>, Value)> {
        let manifest = self.store.manifest(&image.digest)?;
        let path = self.store.blob_file(&manifest.config.digest);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let actual = blob::digest_like(&bytes, &manifest.config.digest);
        if actual != manifest.config.digest {
            return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
        }
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let configuration: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let diff_ids = self.store.configuration(&manifest)?.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(damaged("not as many layers as its manifest".to_owned()));
        }
        let layer = |(layer, diff_id): (&Descriptor, &Digest)| BuiltLayer {
            digest: layer.digest.clone(),
            diff_id: diff_id.clone(),
            size: layer.size,
            media_type: oci_type(&layer.media_type),
            created: None,
        };
        let layers: Vec<_> = manifest.layers.iter().zip(&diff_ids).map(layer).collect();
        for layer in &layers {
            self.hold(layer)?;
        }
        Ok((layers, configuration))
    }

    /// A layer unpacked for a trust level.
    ///
    /// # Errors
    /// When it is damaged, or cannot be written.
    pub fn unpack(&self, layer: &BuiltLayer, trust: &str, progress: &dyn Progress) -> Result<PathBuf> {
        let descriptor = Descriptor::new(&layer.media_type, layer.digest.clone(), layer.size);
        let image = Image {
            reference: "build".to_owned(),
            digest: layer.digest.clone(),
            config: ImageConfig::default(),
            platform: crate::platform::Platform::host(),
            init: None,
            size: layer.size,
            unpacked_size: 0,
            created: None,
            source: String::new(),
        };
        self.store.layer(&image, &descriptor, &layer.diff_id, trust, progress)
    }

    fn scan_path(&self, diff_id: &Digest) -> PathBuf {
        self.store.root().join("build/scans").join(format!("{}.json", diff_id.hex()))
    }

    fn save_scan(&self, diff_id: &Digest, scan: &Scan) -> Result<()> {
        let path = self.scan_path(diff_id);
        write_atomically(&path, &self.aside, &encode(&scan.saved(), &path)?)
    }

    fn scan(&self, layer: &BuiltLayer) -> Result<Scan> {
        let saved = fs::read(self.scan_path(&layer.diff_id)).ok();
        if let Some(saved) = saved.and_then(|bytes| serde_json::from_slice::<Saved>(&bytes).ok()) {
            return Ok(Scan::from_saved(saved));
        }
        let what = layer.digest.to_string();
        let each = |_| Ok(());
        let limits = self.store.limits();
        let order = Import { what: &what, aside: &self.aside, codec: Codec::Plain, limits, each: &each };
        let scan = blob::rescan(&mut blob::open(&self.store.blob_file(&layer.digest), &layer.digest)?, &order)?;
        self.save_scan(&layer.diff_id, &scan)?;
        Ok(scan)
    }

    /// Makes the image: all of it or nothing.
    ///
    /// # Errors
    /// For a name that cannot be given, and when the store cannot be written.
    pub fn commit(&self, named: &Named<'_>) -> Result<Image> {
        let mut names = Vec::new();
        for name in named.names {
            names.push(name_for(name)?.to_string());
        }
        let mut scan = Scan::default();
        for layer in named.layers {
            scan = self.scan(layer)?.over(scan);
        }
        let mut configuration = named.configuration.clone();
        let diff_ids: Vec<_> = named.layers.iter().map(|l| &l.diff_id).collect();
        configuration["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let configuration = configuration.to_string().into_bytes();
        let described = |l: &BuiltLayer| Descriptor::new(&l.media_type, l.digest.clone(), l.size);
        let config = Descriptor::new(oci::CONFIG, blob::digest_of(&configuration), configuration.len() as u64);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci::MANIFEST,
            "config": config,
            "layers": named.layers.iter().map(described).collect::<Vec<_>>(),
        });
        if !named.annotations.is_empty() {
            manifest["annotations"] = Value::Object(named.annotations.clone());
        }
        let manifest = manifest.to_string().into_bytes();
        let mut entry = Descriptor::new(oci::MANIFEST, blob::digest_of(&manifest), manifest.len() as u64);
        entry.annotations.insert(oci::SOURCE.to_owned(), named.source.to_owned());
        let facts = self.store.facts_path(&entry.digest);
        let facts_bytes = encode(&facts_of(&scan), &facts)?;

        let _lock = self.store.lock_index()?;
        for layer in named.layers {
            // A collection may have taken what only this build needs.
            let (blob, held) = (self.store.blob_file(&layer.digest), self.hold(layer)?);
            if !blob.exists() {
                fs::hard_link(&held, &blob).map_err(|e| Error::io("link", blob, e))?;
            }
        }
        write_atomically(&self.store.blob_file(&config.digest), &self.aside, &configuration)?;
        write_atomically(&self.store.blob_file(&entry.digest), &self.aside, &manifest)?;
        write_atomically(&facts, &self.aside, &facts_bytes)?;
        let mut index = self.store.read_index()?;
        if names.is_empty() && !index.manifests.iter().any(|d| d.digest == entry.digest) {
            index.manifests.push(entry.clone());
        }
        for name in &names {
            entry.annotations.insert(oci::REF_NAME.to_owned(), name.clone());
            index.manifests.retain(|d| d.name() != Some(name));
            index.manifests.push(entry.clone());
        }
        self.store.write_index(&index, &self.aside)?;
        if let Some(first) = names.first() {
            entry.annotations.insert(oci::REF_NAME.to_owned(), first.clone());
        }
        self.store.image(&entry)
    }
}

/// The same in OCI's words, where a layer came under Docker's.
pub(crate) fn oci_type(media_type: &str) -> String {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar".to_owned(),
        other => other.to_owned(),
    }
}
