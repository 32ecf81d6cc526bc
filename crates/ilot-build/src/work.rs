//! What all stages of a build share: the store, the engine, the cache.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ilot_image::{BuiltLayer, Packed, Progress, Workshop};
use ilot_native::Builder;
use sha2::{Digest as _, Sha256};

use crate::copy::Target;
use crate::error::{Error, Result};
use crate::options::{Events, Options};
use crate::tree::{Tree, field};

/// Said in every key: another edition of ilot that makes layers differently says another one.
const EDITION: &str = "2";

/// Progress of what is too short or too frequent to be told: only the wish to stop is handed on.
pub(crate) struct Quiet<'a>(pub(crate) &'a dyn Events);

impl Progress for Quiet<'_> {
    fn stage(&self, _text: &str) {}
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, text: &str) {
        self.0.note(text);
    }
    fn finished(&self) {}
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// A build that runs.
pub(crate) struct Work<'a> {
    pub(crate) builder: &'a Builder<'a>,
    pub(crate) workshop: &'a Workshop,
    pub(crate) options: &'a Options,
    pub(crate) events: &'a dyn Events,
    /// Of base images being obtained, one after the other.
    pub(crate) progress: &'a dyn Progress,
    pub(crate) obtaining: Mutex<()>,
    pub(crate) context: &'a Tree,
    /// Set by the first stage that fails: the others end.
    pub(crate) failed: AtomicBool,
    /// Steps begun, and those that the cache had.
    pub(crate) begun: AtomicUsize,
    pub(crate) hits: AtomicUsize,
    pub(crate) total: AtomicUsize,
    folders: AtomicUsize,
}

/// Where a layer is made.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// What a step depends on, as it grows.
pub(crate) struct Key(Sha256);

impl Key {
    pub(crate) fn new(kind: &str) -> Self {
        let mut key = Self(Sha256::new());
        key.add("edition", EDITION);
        key.add("kind", kind);
        key
    }

    pub(crate) fn add(&mut self, name: &str, value: &str) {
        field(&mut self.0, name.as_bytes());
        field(&mut self.0, value.as_bytes());
    }

    pub(crate) fn add_all<'t>(&mut self, name: &str, values: impl IntoIterator<Item = &'t String>) {
        for value in values {
            self.add(name, value);
        }
    }

    /// The tree that a step stands on.
    pub(crate) fn on(&mut self, layers: &[BuiltLayer]) {
        for layer in layers {
            self.add("on", &layer.diff_id.to_string());
        }
    }

    pub(crate) fn hash(&mut self) -> &mut Sha256 {
        &mut self.0
    }

    pub(crate) fn end(self) -> String {
        hex(&self.0.finalize())
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

impl<'a> Work<'a> {
    pub(crate) fn new(
        builder: &'a Builder<'a>,
        workshop: &'a Workshop,
        options: &'a Options,
        events: &'a dyn Events,
        progress: &'a dyn Progress,
        context: &'a Tree,
    ) -> Self {
        Self {
            builder,
            workshop,
            options,
            events,
            progress,
            obtaining: Mutex::new(()),
            context,
            failed: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            hits: AtomicUsize::new(0),
            total: AtomicUsize::new(0),
            folders: AtomicUsize::new(0),
        }
    }

    pub(crate) fn quiet(&self) -> Quiet<'a> {
        Quiet(self.events)
    }

    /// Whether this build is to end.
    pub(crate) fn cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.events.cancelled()
    }

    /// A new folder for one purpose.
    pub(crate) fn folder(&self, what: &str) -> Result<PathBuf> {
        let number = self.folders.fetch_add(1, Ordering::Relaxed);
        make(self.workshop.path().join(format!("{what}-{number}")))
    }

    /// The folders of some layers, top first, unpacked where they are not yet.
    pub(crate) fn lowers(&self, layers: &[BuiltLayer]) -> Result<Vec<PathBuf>> {
        let mut lowers = Vec::new();
        for layer in layers.iter().rev() {
            lowers.push(self.workshop.unpack(layer, self.builder.trust(), &self.quiet())?);
        }
        if lowers.is_empty() {
            let empty = self.workshop.path().join("empty");
            if !empty.is_dir() {
                // Another stage may be quicker.
                let _ = fs::DirBuilder::new().mode(0o755).create(&empty);
            }
            lowers.push(empty);
        }
        Ok(lowers)
    }

    pub(crate) fn place(&self, layers: &[BuiltLayer]) -> Result<Place> {
        let folder = self.folder("step")?;
        let (upper, work) = (folder.join("upper"), folder.join("work"));
        Ok(Place { lowers: self.lowers(layers)?, upper, work, folder })
    }

    pub(crate) fn mount(&self, place: &Place) -> Result<OwnedFd> {
        Ok(self.builder.mount(place.lowers.clone(), place.upper.clone(), place.work.clone())?)
    }

    /// The tree of some layers, to be read. What is written to it is lost.
    pub(crate) fn tree(&self, layers: &[BuiltLayer], what: String) -> Result<Tree> {
        let place = self.place(layers)?;
        let mut tree = Tree::new(self.mount(&place)?, what);
        tree.first_id = Some(self.builder.id_base());
        Ok(tree)
    }

    /// A tree that is written to.
    pub(crate) fn target<'t>(&self, root: &'t OwnedFd) -> Target<'t> {
        Target { root, first_id: self.builder.id_base(), owner: None, mode: None, now: self.options.epoch }
    }

    /// The layer that the cache has for a key.
    pub(crate) fn cached(&self, key: &str) -> Option<BuiltLayer> {
        if self.options.no_cache {
            return None;
        }
        self.workshop.cached(key)
    }

    /// Makes a layer of what is in a place.
    pub(crate) fn pack(&self, place: &Place, key: &str, what: &str) -> Result<BuiltLayer> {
        let packed = Packed {
            folder: &place.upper,
            ids: (self.builder.id_base(), self.builder.ids()),
            left_out: &[],
            newest: self.options.epoch,
            key: Some(key),
            what,
        };
        let layer = self.workshop.pack(&packed, &self.quiet())?;
        // The disk is needed for what comes; what cannot be removed now goes with the build.
        let _ = fs::remove_dir_all(&place.folder);
        Ok(layer)
    }

    /// What is the same for every step.
    pub(crate) fn key(&self, kind: &str) -> Key {
        let mut key = Key::new(kind);
        if let Some(epoch) = self.options.epoch {
            key.add("epoch", &epoch.to_string());
        }
        key
    }
}

/// A private folder.
pub(crate) fn make(path: PathBuf) -> Result<PathBuf> {
    fs::DirBuilder::new().mode(0o700).create(&path).map_err(|e| Error::file("make folder", &path, e))?;
    Ok(path)
}

/// Users and groups of an image, by name.
#[derive(Debug, Default)]
pub(crate) struct Users {
    users: BTreeMap<String, (u32, u32)>,
    groups: BTreeMap<String, u32>,
}

impl Users {
    pub(crate) fn of(tree: &Tree) -> Self {
        let mut this = Self::default();
        for line in tree.small_file("etc/passwd").unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, ..] = fields[..]
                && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
            {
                this.users.entry(name.to_owned()).or_insert((uid, gid));
            }
        }
        for line in tree.small_file("etc/group").unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, gid, ..] = fields[..]
                && let Ok(gid) = gid.parse()
            {
                this.groups.entry(name.to_owned()).or_insert(gid);
            }
        }
        this
    }

    /// `name`, `uid`, `name:group`, `uid:gid`.
    pub(crate) fn owner(&self, text: &str) -> Result<(u32, u32)> {
        let unknown = |what: &str, name: &str| {
            let help = "make it in a step before, or use its number";
            Error::invalid(format!("the image has no {what} `{name}`"), help)
        };
        let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id < 65_536);
        let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let (uid, own) = match number(user) {
            // As the reference has it: a number alone is the group's too.
            Some(uid) => (uid, uid),
            None if user.is_empty() => (0, 0),
            None => *self.users.get(user).ok_or_else(|| unknown("user", user))?,
        };
        let gid = match group.filter(|group| !group.is_empty()) {
            None => own,
            Some(group) => match number(group) {
                Some(gid) => gid,
                None => *self.groups.get(group).ok_or_else(|| unknown("group", group))?,
            },
        };
        Ok((uid, gid))
    }
}

/// Removes what was made for mounts: empty files and folders that the layers below do not have.
pub(crate) fn clear(upper: &Path, made: &[Vec<u8>]) {
    use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, unlinkat};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(upper, flags, Mode::empty()) else { return };
    for path in made {
        let (folder, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], &path[..]),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let Ok(parent) = openat2(&root, folder, flags, Mode::empty(), resolve) else { continue };
        let Ok(stat) = crate::tree::look(&parent, name) else { continue };
        // A folder that a step put something in stays, and so does a file.
        let _ = match crate::tree::kind_of(&stat) {
            rustix::fs::FileType::Directory => unlinkat(&parent, name, AtFlags::REMOVEDIR),
            rustix::fs::FileType::RegularFile if stat.st_size == 0 => unlinkat(&parent, name, AtFlags::empty()),
            _ => Ok(()),
        };
    }
}
