//! Reading a tree that nobody trusts: a build's context, or the files of another stage.
//!
//! Every path is resolved by the kernel from the tree's handle (`openat2(RESOLVE_IN_ROOT)`): `..` and links lead nowhere
//! but into it. What is found is listed first, hashed then, and copied last.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::glob;
use crate::ignore::Ignore;

/// A tree, and how it is seen.
#[derive(Debug)]
pub(crate) struct Tree {
    fd: OwnedFd,
    /// What it is, for messages: `the context`, `stage build`.
    pub(crate) what: String,
    /// The owner that counts as 0, where owners are kept; `None`: everything is root's.
    pub(crate) first_id: Option<u32>,
    pub(crate) ignore: Ignore,
    /// A context: nothing above it exists, and asking for it is a mistake worth telling.
    pub(crate) is_context: bool,
}

/// What a path of a COPY stands for.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Its name where it is copied into a folder.
    pub(crate) name: Vec<u8>,
    /// Its real path in the tree, without a slash in front; empty: the tree itself.
    pub(crate) path: Vec<u8>,
    pub(crate) is_dir: bool,
    /// The path as it was asked for, for `--parents`.
    pub(crate) asked: Vec<u8>,
}

/// One thing to copy.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Below the source; empty: the source itself.
    pub(crate) inside: Vec<u8>,
    /// In the tree.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: Vec<(CString, Vec<u8>)>,
    /// Its number on its file system, where it has several names.
    number: Option<(u64, u64)>,
    /// The first of its names in the list, below the source.
    pub(crate) same_as: Option<Vec<u8>>,
}

/// What an [`Item`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir,
    File,
    Link(Vec<u8>),
    Fifo,
}

/// Deeper trees are no work of anybody who wants them copied.
const DEPTH: usize = 1024;

pub(crate) fn resolve_flags() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

/// `openat2`, again where the kernel asks for it.
pub(crate) fn open_in(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let mode = Mode::empty();
    loop {
        match openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve_flags()) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl Item {
    /// A file of nobody's tree.
    pub(crate) fn made(mode: u32, mtime: i64) -> Self {
        Self {
            inside: Vec::new(),
            path: Vec::new(),
            kind: Kind::File,
            mode,
            owner: (0, 0),
            mtime: (mtime, 0),
            xattrs: Vec::new(),
            number: None,
            same_as: None,
        }
    }
}

impl Tree {
    pub(crate) fn new(fd: OwnedFd, what: impl Into<String>) -> Self {
        Self { fd, what: what.into(), first_id: None, ignore: Ignore::default(), is_context: false }
    }

    pub(crate) fn open(path: &Path, what: impl Into<String>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::file("open", path, e))?;
        Ok(Self::new(fd, what))
    }

    fn fail(&self, operation: &'static str, path: &[u8], error: impl Into<io::Error>) -> Error {
        let shown = PathBuf::from(format!("{} of {}", text(path), self.what));
        Error::File { operation, path: shown, source: error.into() }
    }

    /// What a path or pattern stands for, sorted.
    pub(crate) fn find(&self, asked: &str) -> Result<Vec<Source>> {
        let mut parts: Vec<&str> = Vec::new();
        for part in asked.split('/') {
            match part {
                "" | "." => {}
                ".." if self.is_context && parts.is_empty() => {
                    return Err(Error::invalid(
                        format!("`{asked}` leads out of the context"),
                        "a build sees its context only: build in a folder above, or copy the file into it",
                    ));
                }
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let mut found: Vec<Vec<u8>> = vec![Vec::new()];
        for part in &parts {
            let mut next = Vec::new();
            for folder in &found {
                if !glob::is_pattern(part) {
                    next.push(join(folder, part.as_bytes()));
                    continue;
                }
                let Ok(fd) = open_in(&self.fd, folder, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
                let names = names(fd).map_err(|e| self.fail("read folder", folder, e))?;
                let fits = |name: &Vec<u8>| std::str::from_utf8(name).is_ok_and(|n| glob::matches_text(part, n));
                next.extend(names.iter().filter(|name| fits(name)).map(|name| join(folder, name)));
            }
            found = next;
        }
        let wild = parts.iter().any(|part| glob::is_pattern(part));
        let mut sources = Vec::new();
        for path in found {
            sources.extend(self.source(&path, wild)?);
        }
        if sources.is_empty() {
            return Err(self.missing(asked, &parts));
        }
        Ok(sources)
    }

    /// One path without patterns; `None` where it is hidden, or gone and one of many.
    fn source(&self, asked: &[u8], wild: bool) -> Result<Option<Source>> {
        let fd = match open_in(&self.fd, asked, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(Errno::LOOP) if wild => return Ok(None),
            Err(e) => return Err(self.fail("open", asked, e)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.fail("look at", asked, e))?;
        let path = self.real(&fd).map_err(|e| self.fail("look at", asked, e))?;
        let is_dir = kind_of(&stat) == FileType::Directory;
        if self.ignore.hides(&text(&path)) && !(is_dir && self.ignore.takes_back()) {
            return Ok(None);
        }
        let name = asked.rsplit(|&b| b == b'/').next().unwrap_or_default().to_vec();
        Ok(Some(Source { name, path, is_dir, asked: asked.to_vec() }))
    }

    /// Where a handle is in the tree, links resolved.
    fn real(&self, fd: &OwnedFd) -> io::Result<Vec<u8>> {
        let path_of = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (root, path) = (path_of(&self.fd)?, path_of(fd)?);
        match path.strip_prefix(&root) {
            Ok(inside) => Ok(inside.as_os_str().as_bytes().to_vec()),
            Err(_) => Err(io::Error::other("it was moved meanwhile")),
        }
    }

    fn missing(&self, asked: &str, parts: &[&str]) -> Error {
        let path = parts.join("/");
        let help = if !self.ignore.hides(&path) {
            let folder = parts.split_last().map(|(_, above)| above.join("/")).unwrap_or_default();
            let wanted = parts.last().copied().unwrap_or_default();
            let near = open_in(&self.fd, folder.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)
                .ok()
                .and_then(|fd| names(fd).ok())
                .unwrap_or_default()
                .into_iter()
                .filter_map(|name| String::from_utf8(name).ok())
                .map(|name| (strsim::damerau_levenshtein(&name, wanted), name))
                .filter(|(distance, _)| *distance <= 2)
                .min();
            match near {
                Some((_, name)) => format!("is `{name}` meant?"),
                None => {
                    format!("paths are seen from the root of {}; a link that leads out of it leads nowhere", self.what)
                }
            }
        } else {
            "the ignore file of the context hides it".to_owned()
        };
        Error::invalid(format!("`{asked}` is not in {}", self.what), help)
    }

    /// Everything of a source, folders before what is in them, sorted by name. `hidden` are patterns of `--exclude`.
    pub(crate) fn list(&self, source: &Source, hidden: &Ignore) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut left: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
        // Folders that are there only if something in them is.
        let mut maybe: Vec<Item> = Vec::new();
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        while let Some((inside, depth)) = left.pop() {
            let path = if inside.is_empty() { source.path.clone() } else { join(&source.path, &inside) };
            let Some(mut item) = self.item(&path, inside)? else { continue };
            let is_dir = item.kind == Kind::Dir;
            let out = |rules: &Ignore, path: &[u8]| !path.is_empty() && rules.hides(&text(path));
            let hides = out(&self.ignore, &item.path) || out(hidden, &item.inside);
            let again = self.ignore.takes_back() || hidden.takes_back();
            if hides && !(is_dir && again) {
                continue;
            }
            if is_dir {
                if depth >= DEPTH {
                    return Err(self.fail("copy", &path, io::Error::other("more than 1024 folders in one another")));
                }
                let fd = self.open_item(&item, OFlags::RDONLY | OFlags::DIRECTORY)?;
                let names = names(fd).map_err(|e| self.fail("read folder", &path, e))?;
                left.extend(names.iter().rev().map(|name| (join(&item.inside, name), depth + 1)));
            }
            maybe.retain(|folder| is_below(&item.inside, &folder.inside));
            if let Some(number) = item.number.filter(|_| !hides) {
                match first.get(&number) {
                    Some(name) => item.same_as = Some(Vec::clone(name)),
                    None => drop(first.insert(number, item.inside.clone())),
                }
            }
            if hides {
                maybe.push(item);
            } else {
                items.append(&mut maybe);
                items.push(item);
            }
        }
        Ok(items)
    }

    fn item(&self, path: &[u8], inside: Vec<u8>) -> Result<Option<Item>> {
        let fail = |operation, e: io::Error| self.fail(operation, path, e);
        // Real already: a link that stands there now is copied as one.
        let fd = match open_in(&self.fd, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(fail("open", e.into())),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| fail("look at", e.into()))?;
        let kind = match kind_of(&stat) {
            FileType::Directory => Kind::Dir,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(|e| fail("read link", e.into()))?;
                Kind::Link(target.into_bytes())
            }
            FileType::Fifo => Kind::Fifo,
            // It means nothing without the process that listens to it.
            FileType::Socket => return Ok(None),
            _ => {
                return Err(Error::invalid(
                    format!("`{}` of {} is a device", text(path), self.what),
                    "devices cannot be copied into an image: leave it out with `.containerignore`",
                ));
            }
        };
        let owner = match self.first_id {
            Some(first) => (inside_id(stat.st_uid, first), inside_id(stat.st_gid, first)),
            None => (0, 0),
        };
        let mut item = Item {
            inside,
            path: path.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            owner,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            xattrs: Vec::new(),
            number: (kind_of(&stat) == FileType::RegularFile && stat.st_nlink > 1)
                .then_some((stat.st_dev, stat.st_ino)),
            same_as: None,
        };
        if matches!(item.kind, Kind::File | Kind::Dir) {
            let fd = self.open_item(&item, OFlags::RDONLY)?;
            item.xattrs = xattrs(&fd).map_err(|e| fail("read attributes of", e))?;
        }
        Ok(Some(item))
    }

    /// Opens what was listed. Never waits: a FIFO that took its place gives an end at once.
    fn open_item(&self, item: &Item, flags: OFlags) -> Result<OwnedFd> {
        open_in(&self.fd, &item.path, flags | OFlags::NOFOLLOW | OFlags::NONBLOCK)
            .map_err(|e| self.fail("open", &item.path, e))
    }

    /// The content of a listed file.
    pub(crate) fn read(&self, item: &Item) -> Result<File> {
        let file = File::from(self.open_item(item, OFlags::RDONLY)?);
        match file.metadata() {
            Ok(meta) if meta.is_file() => Ok(file),
            Ok(_) => Err(self.fail("read", &item.path, io::Error::other("it changed meanwhile"))),
            Err(e) => Err(self.fail("read", &item.path, e)),
        }
    }

    /// Adds everything that a copy of these items depends on to a hash: not their times.
    pub(crate) fn hash(&self, items: &[Item], hash: &mut Sha256) -> Result<()> {
        for item in items {
            field(hash, &item.inside);
            hash.update(item.mode.to_le_bytes());
            hash.update(item.owner.0.to_le_bytes());
            hash.update(item.owner.1.to_le_bytes());
            for (name, value) in &item.xattrs {
                field(hash, name.as_bytes());
                field(hash, value);
            }
            if let Some(first) = &item.same_as {
                hash.update(b"h");
                field(hash, first);
                continue;
            }
            match &item.kind {
                Kind::Dir => hash.update(b"d"),
                Kind::Fifo => hash.update(b"p"),
                Kind::Link(target) => {
                    hash.update(b"l");
                    field(hash, target);
                }
                Kind::File => {
                    let mut own = Sha256::new();
                    let mut file = self.read(item)?;
                    let mut buffer = vec![0; 128 << 10];
                    loop {
                        let n = file.read(&mut buffer).map_err(|e| self.fail("read", &item.path, e))?;
                        if n == 0 {
                            break;
                        }
                        own.update(&buffer[..n]);
                    }
                    hash.update(b"f");
                    hash.update(own.finalize());
                }
            }
        }
        Ok(())
    }

    /// A small text file of the tree, such as `/etc/passwd`; `None` where there is none.
    pub(crate) fn small_file(&self, path: &str) -> Option<String> {
        let fd = open_in(&self.fd, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
        let file = File::from(fd);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(4 << 20).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether there is a folder, links followed in the tree.
    pub(crate) fn is_dir(&self, path: &[u8]) -> bool {
        open_in(&self.fd, path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Whether there is something, links not followed at the end.
    pub(crate) fn exists(&self, path: &[u8]) -> bool {
        open_in(&self.fd, path, OFlags::PATH | OFlags::NOFOLLOW).is_ok()
    }
}

fn inside_id(id: u32, first: u32) -> u32 {
    id.checked_sub(first).filter(|id| *id < 65_536).unwrap_or(65_534)
}

fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.len() > folder.len()
        && path.starts_with(folder)
        && (folder.is_empty() || path.get(folder.len()) == Some(&b'/'))
}

/// A length and the bytes: no two lists of fields look the same.
pub(crate) fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

pub(crate) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn names(fd: OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The attributes that a layer can carry: users' own and file capabilities.
fn xattrs(fd: &OwnedFd) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::flistxattr(fd, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut list = Vec::new();
    for name in names[..length].split(|&b| b == 0) {
        let wanted =
            name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."));
        let Ok(name) = CString::new(name) else { continue };
        if !wanted {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::fgetxattr(fd, &*name, &mut value)?;
        value.truncate(length);
        list.push((name, value));
    }
    list.sort();
    Ok(list)
}

/// Whether a path names something in a folder whatever the host has there: not used for anything but messages.
pub(crate) fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

/// The owner and type of a name in a folder, links not followed.
pub(crate) fn look(folder: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
}
