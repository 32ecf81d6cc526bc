//! The store of images.
//!
//! ```text
//! oci-layout, index.json      an OCI image layout: `skopeo … oci:ROOT:NAME` reads it
//! blobs/sha256/<hex>          manifests, configurations, layers
//! images/<manifest>.json      what was found out about an image; made again when missing
//! images/.locks/              one lock per name, per unpacked layer, and one for the index
//! images/.tmp/                work in progress; what has no living holder is garbage
//! images/.partial/            what came of blobs whose pull broke off
//! layers/<trust>/<diff id>/   layers unpacked, once per trust level; `<diff id>.erofs` is a native one
//! ```
//!
//! Whatever is put in place lay finished and synced in `images/.tmp` before: a rename makes it, and nothing else.

mod convert;
mod diff;
mod export;
mod form;
mod gc;
mod index;
mod layers;
mod look;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use diff::Paths;
pub use diff::{Change, ChangeKind};
pub use form::{Form, Lower};
pub use gc::Collected;
pub(crate) use gc::entries;
pub(crate) use index::{encode, facts_of};
pub(crate) use look::name_for;
pub use look::{Details, Finding, Step};

use crate::archive::Limits;
use crate::blob;
use crate::error::{Attempt, Error, Result};
use crate::http::{Client, Logins, Timeouts, says_no};
use crate::lock::{Lock, TempDir, sweep, write_atomically};
use crate::oci;
use crate::partial;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::{Reference, is_local, nearest};
use crate::remotes::{Remotes, ShortNames};
use crate::source::{self, Order};
use crate::trust::Policy;
use crate::types::{Digest, Image};

/// The images below one folder. Cheap to clone; any number of threads and processes may use the same folder at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    http: Arc<Client>,
    limits: Limits,
    /// What machines get layers as in this call, whatever the images say (`ILOT_LAYERS`).
    form: Option<Form>,
    /// Asked for by name; this host's otherwise.
    platform: Option<Platform>,
    /// The policy of signatures, where it is not the host's.
    policy: Option<PathBuf>,
}

impl Store {
    /// Opens the store below `root`, making it (mode 0700) when it is not there, and removes what dead processes left.
    ///
    /// # Errors
    /// When the folder cannot be made or is not a store that this version can read.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).map_err(|e| Error::io("find", root, e))?;
        let store = Self {
            root,
            http: Arc::new(Client::new(Timeouts::default())),
            limits: Limits::default(),
            platform: None,
            policy: None,
            form: form::of_call()?,
        };
        match fs::read(store.root.join("oci-layout")) {
            Ok(text) => {
                let version: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                if version["imageLayoutVersion"] != "1.0.0" {
                    let reason = "not an OCI image layout of version 1.0.0".to_owned();
                    return Err(Error::Damaged { path: store.root.join("oci-layout"), reason });
                }
                sweep(&store.temporary());
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => store.create()?,
            Err(e) => return Err(Error::io("read", store.root.join("oci-layout"), e)),
        }
        Ok(store)
    }

    /// The same store with other waits for servers.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.http = Arc::new(self.http.with_timeouts(timeouts));
        self
    }

    /// The same store that logs in to registries as `user:password`, whatever the auth files have; not to mirrors.
    #[must_use]
    pub fn with_login(mut self, login: &str) -> Self {
        let logins = Logins { given: Some(login.to_owned()), ..self.http.logins().clone() };
        self.http = Arc::new(self.http.with_logins(logins));
        self
    }

    /// The same store that reads logins from this auth file alone.
    #[must_use]
    pub fn with_auth_file(mut self, file: &Path) -> Self {
        let logins = Logins { file: Some(file.to_owned()), ..self.http.logins().clone() };
        self.http = Arc::new(self.http.with_logins(logins));
        self
    }

    /// The same store with other bounds for archives.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same store that takes whatever certificate a registry shows, or none at all.
    #[must_use]
    pub fn without_tls_verification(mut self) -> Self {
        self.http = Arc::new(self.http.unverified());
        self
    }

    /// The same store, seen by somebody who wants images for another platform than this host's. A name can have one
    /// image for each platform side by side.
    #[must_use]
    pub fn with_platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// The same store with another policy of signatures than the host's `policy.json`.
    #[must_use]
    pub fn with_policy(mut self, policy: &Path) -> Self {
        self.policy = Some(policy.to_owned());
        self
    }

    /// For which machines images are looked for.
    pub(crate) fn platform(&self) -> Platform {
        self.platform.clone().unwrap_or_else(Platform::host)
    }

    /// Whether an entry of the index is for the platform that is asked for. One that does not say is this host's.
    fn is_wanted(&self, entry: &oci::Descriptor) -> bool {
        match (entry.platform(), &self.platform) {
            (None, None) => true,
            (None, Some(wanted)) => wanted.runs_here(),
            (Some(is), None) => Platform::host().rank(&is).is_some(),
            (Some(is), Some(wanted)) => is == *wanted || is.runs_here() && wanted.runs_here(),
        }
    }

    /// The store's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self) -> Result<()> {
        // `layers` is private whatever the store's own folder was: set-id files of images are in there.
        for folder in ["", "blobs", "blobs/sha256", "images", "images/.locks", "images/.tmp", "layers"] {
            let path = self.root.join(folder);
            fs::DirBuilder::new()
                .mode(0o700)
                .recursive(folder.is_empty())
                .create(&path)
                .or_else(|e| if path.is_dir() { Ok(()) } else { Err(e) })
                .map_err(|e| Error::io("make folder", path, e))?;
        }
        let aside = TempDir::new(&self.temporary())?;
        let _lock = self.lock_index()?;
        if !self.root.join("index.json").exists() {
            self.write_index(&oci::Index::default(), &aside)?;
        }
        write_atomically(&self.root.join("oci-layout"), &aside, br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// The image of that name if the store has it. Quick: no network, no unpacking. An archive, a folder or a busybox
    /// that changed since its import counts as not there. Relative paths are seen from the current folder.
    ///
    /// # Errors
    /// For a name that is none, or a damaged store.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>> {
        let reference = self.parse(reference)?;
        self.lookup(&reference)
    }

    /// What a name means: for a short one what is here of it, else the first that it can mean.
    fn parse(&self, text: &str) -> Result<Reference> {
        let mut all = self.meanings(text)?;
        let here = all.iter().position(|name| all.len() > 1 && self.has_name(&name.to_string()).unwrap_or(false));
        Ok(all.swap_remove(here.unwrap_or(0)))
    }

    /// What a name can mean, the first choice first; at least one. A name given here comes before a server's, a server's before
    /// those of registries (docs/images.md, "Short names").
    fn meanings(&self, text: &str) -> Result<Vec<Reference>> {
        let text = text.trim();
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let strict = Reference::parse(text).map(|reference| reference.absolute(&here));
        let is_given = |text: &str| is_local(text) && self.has_name(&format!("local:{text}")).unwrap_or(false);
        match &strict {
            // A bare word, or one with a tag that looks like a server's alias.
            Err(_) | Ok(Reference::Remote { .. }) if is_given(text) => {
                return Ok(vec![Reference::Local(text.to_owned())]);
            }
            Ok(Reference::Remote { remote, .. }) if Remotes::load(&self.root)?.get(remote).is_none() => {}
            Err(_) => {}
            Ok(_) => return Ok(vec![strict?]),
        }
        let names = if text.contains("://") { Vec::new() } else { ShortNames::load(&self.root)?.candidates(text)? };
        match strict {
            _ if !names.is_empty() => Ok(names.into_iter().map(Reference::Registry).collect()),
            Ok(Reference::Remote { remote, .. }) => Err(self.no_server(text, &remote)?),
            Ok(reference) => Ok(vec![reference]),
            Err(error) => Err(error),
        }
    }

    /// What a name without a host can mean on registries, the first choice first.
    ///
    /// # Errors
    /// When `short-names.json` is not of its form.
    pub fn short_name(&self, name: &str) -> Result<Vec<String>> {
        let names = ShortNames::load(&self.root)?.candidates(name)?;
        Ok(names.into_iter().map(|name| Reference::Registry(name).to_string()).collect())
    }

    fn no_server(&self, text: &str, remote: &str) -> Result<Error> {
        let remotes = Remotes::load(&self.root)?;
        let known: Vec<_> = remotes.names().collect();
        let help = nearest(text).unwrap_or_else(|| {
            format!("known: {}; add others to {}", known.join(", "), self.root.join("remotes.json").display())
        });
        Ok(Error::BadReference {
            text: text.to_owned(),
            reason: format!("no server is named `{remote}`"),
            help: Some(format!("{help} A registry's image is `docker://{text}`.")),
        })
    }

    fn has_name(&self, name: &str) -> Result<bool> {
        Ok(self.read_index()?.manifests.iter().any(|d| d.name() == Some(name)))
    }

    fn lookup(&self, reference: &Reference) -> Result<Option<Image>> {
        if let Reference::Digest(hex) = reference {
            return self.by_digest(hex);
        }
        let index = self.read_index()?;
        let name = reference.to_string();
        let named =
            |d: &&oci::Descriptor| d.name() == Some(&name) && oci::is_manifest(&d.media_type) && self.is_wanted(d);
        let Some(entry) = index.manifests.iter().find(named) else {
            return Ok(None);
        };
        match source::stamp(reference)? {
            Some(stamp) if entry.annotations.get(oci::STAMP) != Some(&stamp) => Ok(None),
            _ => self.image(entry).map(Some),
        }
    }

    /// The image of that name: from the store, else from the sources of the name in order; each try and its reason goes
    /// to `progress`. A second call for the same name, from whichever process, waits for the first.
    ///
    /// # Errors
    /// [`Error::NoSource`] with every attempt, and whatever reading and writing the store gives.
    pub fn obtain(&self, reference: &str, progress: &dyn Progress) -> Result<Image> {
        let parsed = self.parse(reference)?;
        match self.lookup(&parsed) {
            Ok(Some(image)) => {
                progress.finished();
                Ok(image)
            }
            Ok(None) => self.fetch_first(reference, false, progress),
            // What its sources give now takes the damaged one's place.
            Err(error @ Error::Damaged { .. }) if !matches!(parsed, Reference::Digest(_)) => {
                progress.note(&format!("{parsed}: {error}; obtaining it again"));
                self.fetch(&parsed, true, progress)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Store::obtain`], but asks the sources even when the store has the image; its name then means the new one.
    ///
    /// # Errors
    /// As [`Store::obtain`].
    pub fn refresh(&self, reference: &str, progress: &dyn Progress) -> Result<Image> {
        self.fetch_first(reference, true, progress)
    }

    /// From the first that has it of what a name can mean. One that cannot be asked ends the search: what it would have said
    /// is not guessed.
    fn fetch_first(&self, text: &str, again: bool, progress: &dyn Progress) -> Result<Image> {
        let meanings = self.meanings(text)?;
        let is_short = Reference::parse(text).ok().as_ref() != meanings.first();
        let mut attempts = Vec::new();
        for meaning in &meanings {
            let error = match self.fetch(meaning, again, progress) {
                Err(error) if is_short && matches!(meaning, Reference::Registry(_)) => error,
                done => return done,
            };
            let is_no = says_no(&error);
            if !is_no && !matches!(error, Error::Http { .. }) {
                return Err(error);
            }
            let help = nearest(text).or_else(|| error.help());
            attempts.push(Attempt { source: meaning.to_string(), reason: error.to_string(), help });
            if !is_no {
                break;
            }
            progress.note(&format!("{text}: {error}"));
        }
        Err(Error::NoSource { reference: text.to_owned(), attempts })
    }

    fn fetch(&self, reference: &Reference, again: bool, progress: &dyn Progress) -> Result<Image> {
        let name = reference.to_string();
        if let Reference::Digest(_) | Reference::Local(_) = reference {
            return self
                .lookup(reference)?
                .ok_or_else(|| Error::NotFound { reference: name, store: self.root.clone() });
        }
        let lock = self.lock_path("obtain", &self.platform.iter().fold(name.clone(), |name, p| format!("{name} {p}")));
        let told = |holder: Option<u32>| {
            let by = holder.map(|pid| format!(" by process {pid}")).unwrap_or_default();
            progress.note(&format!("{name}: being obtained{by}; waiting for it"));
        };
        let Some(_lock) = Lock::acquire(&lock, told, || progress.cancelled())? else {
            return Err(Error::Cancelled { reference: name });
        };
        // Whoever held the lock may have brought it.
        if !again && let Some(image) = self.lookup(reference)? {
            progress.finished();
            return Ok(image);
        }
        sweep(&self.temporary());
        partial::sweep(&self.root);
        let aside = TempDir::new(&self.temporary())?;
        let remotes = Remotes::load(&self.root)?;
        // Where machines shall have native layers, they are made of what comes, in the same pass.
        let prepare = if let Reference::Registry(_) = reference { self.prepare()? } else { None };
        let policy = Policy::load(&self.root, self.policy.as_deref())?;
        let order = Order {
            reference,
            name: &name,
            progress,
            http: &self.http,
            remotes: &remotes,
            platform: &self.platform(),
            policy: &policy,
            aside: &aside,
            store: &self.root,
            limits: self.limits,
            prepare: prepare.as_deref(),
        };
        let image = source::find(&order).and_then(|found| {
            let layers: Vec<Digest> = found.layers.iter().map(|layer| layer.digest.clone()).collect();
            let image = self.commit(&name, found, &aside)?;
            partial::done(&self.root, layers.iter());
            Ok(image)
        });
        progress.finished();
        image
    }

    /// The image's unpacked layers for one trust level, top first, ready to be the lower folders of an overlay. Owners
    /// are the image's own (0 to 65535): mount them idmapped. No other trust level shares an inode with them.
    ///
    /// # Errors
    /// For a bad trust level, damaged blobs or archives, a full file system.
    pub fn materialize(&self, image: &Image, trust: &str) -> Result<Vec<PathBuf>> {
        self.unpacked(image, trust, &crate::Silent)
    }

    /// As [`Store::materialize`], and tells how far it is; a quick no-op where the layers are there.
    ///
    /// # Errors
    /// As [`Store::materialize`].
    pub fn materialize_with(&self, image: &Image, trust: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
        self.unpacked(image, trust, progress)
    }

    /// All images, by name; those without a name are reached by digest only. Of a damaged one, name and digest.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let index = self.read_index()?;
        let mut images = index
            .manifests
            .iter()
            .filter(|d| oci::is_manifest(&d.media_type))
            .map(|entry| self.image_or_bare(entry))
            .collect::<Vec<_>>();
        images.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// Forgets a name (or, given a digest, all names of that image). Blobs and layers go with the next [`Store::gc`].
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::InUse`] when its digest is in `in_use` and it has no other name.
    pub fn remove(&self, reference: &str, in_use: &BTreeSet<Digest>) -> Result<Image> {
        let parsed = self.parse(reference)?;
        let aside = TempDir::new(&self.temporary())?;
        let _lock = self.lock_index()?;
        let mut index = self.read_index()?;
        let name = parsed.to_string();
        let goes = |d: &oci::Descriptor| match &parsed {
            Reference::Digest(hex) => d.digest.hex().starts_with(hex.as_str()),
            // Without a platform, the name goes as a whole.
            _ => d.name() == Some(&name) && (self.platform.is_none() || self.is_wanted(d)),
        };
        let Some(entry) = index.manifests.iter().find(|d| goes(d)).cloned() else {
            return Err(Error::NotFound { reference: name, store: self.root.clone() });
        };
        if let Reference::Digest(prefix) = &parsed {
            let fits: BTreeSet<_> = index.manifests.iter().filter(|d| goes(d)).map(|d| &d.digest).collect();
            if fits.len() > 1 {
                return Err(Error::Ambiguous { prefix: prefix.clone(), count: fits.len() });
            }
        }
        let other_names = |digest: &Digest| index.manifests.iter().any(|d| d.digest == *digest && !goes(d));
        if index.manifests.iter().any(|d| goes(d) && in_use.contains(&d.digest) && !other_names(&d.digest)) {
            return Err(Error::InUse { reference: name });
        }
        let image = self.image_or_bare(&entry);
        index.manifests.retain(|d| !goes(d));
        self.write_index(&index, &aside)?;
        Ok(image)
    }

    pub(crate) fn shared_client(&self) -> Arc<Client> {
        self.http.clone()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.http
    }

    /// Where a blob is, if it is there.
    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.blob_path(digest)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("images/.tmp")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.path_in_layout())
    }

    fn lock_path(&self, kind: &str, name: &str) -> PathBuf {
        self.root.join("images/.locks").join(format!("{kind}-{}.lock", blob::digest_of(name.as_bytes()).short()))
    }
}
