//! Writing into an image's tree: never through a link out of it, whatever the image's links are.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fsetxattr,
    futimens, linkat, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::mode::ModeChange;
use crate::tree::{Item, Kind, Tree, join, kind_of, look, open_in, shown, text};

/// A tree that is written to.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) root: &'a OwnedFd,
    /// The host's id of owner 0.
    pub(crate) first_id: u32,
    /// `--chown`.
    pub(crate) owner: Option<(u32, u32)>,
    /// `--chmod`.
    pub(crate) mode: Option<ModeChange>,
    /// The latest time that a new folder may have.
    pub(crate) now: Option<i64>,
}

impl Target<'_> {
    fn fail(&self, operation: &'static str, path: &[u8], error: impl Into<io::Error>) -> Error {
        let path = join(b"/", path);
        Error::File { operation, path: shown(&path[1..]), source: explain(error.into()) }
    }

    fn owner_of(&self, item: (u32, u32)) -> (Option<Uid>, Option<Gid>) {
        let (uid, gid) = self.owner.unwrap_or(item);
        (Some(Uid::from_raw(self.first_id + uid)), Some(Gid::from_raw(self.first_id + gid)))
    }

    fn mode_of(&self, item: &Item) -> Mode {
        let mode = self.mode.as_ref().map_or(item.mode, |change| change.apply(item.mode, item.kind == Kind::Dir));
        Mode::from_raw_mode(mode)
    }

    /// Makes a folder and those above it where they are missing. Links on the way are followed as in the machine.
    pub(crate) fn make_folder(&self, path: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match open_in(self.root, path, flags) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|e| self.fail("open folder", path, e)),
        }
        let mut current = open_in(self.root, b"", flags).map_err(|e| self.fail("open folder", b"", e))?;
        let mut done: Vec<u8> = Vec::new();
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            done = join(&done, part);
            match mkdirat(&current, part, Mode::from_raw_mode(0o700)) {
                Ok(()) => {
                    let made = open_in(self.root, &done, flags).map_err(|e| self.fail("open folder", &done, e))?;
                    let (uid, gid) = self.owner_of(owner.unwrap_or((0, 0)));
                    fchown(&made, uid, gid).map_err(|e| self.fail("chown", &done, e))?;
                    fchmod(&made, Mode::from_raw_mode(mode)).map_err(|e| self.fail("chmod", &done, e))?;
                    if let Some(now) = self.now {
                        futimens(&made, &times((now, 0))).map_err(|e| self.fail("set the time of", &done, e))?;
                    }
                    current = made;
                }
                Err(Errno::EXIST) => {
                    current = open_in(self.root, &done, flags).map_err(|e| self.fail("open folder", &done, e))?;
                }
                Err(e) => return Err(self.fail("make folder", &done, e)),
            }
        }
        Ok(current)
    }

    /// Copies listed items below `destination`; an item whose path is empty becomes `destination` itself.
    pub(crate) fn copy(&self, tree: &Tree, items: &[Item], destination: &[u8]) -> Result<()> {
        let mut folders = Vec::new();
        let mut parent: Option<(Vec<u8>, OwnedFd)> = None;
        for item in items {
            let path = if item.inside.is_empty() { destination.to_vec() } else { join(destination, &item.inside) };
            let (folder, name) = match path.iter().rposition(|&b| b == b'/') {
                Some(at) => (path[..at].to_vec(), path[at + 1..].to_vec()),
                None => (Vec::new(), path.clone()),
            };
            if name.starts_with(b".wh.") {
                return Err(Error::invalid(
                    format!("`{}` cannot be in an image: names that begin with `.wh.` hide files there", text(&path)),
                    "give the file another name, or leave it out with `.containerignore`",
                ));
            }
            if item.kind == Kind::Dir {
                if self.folder(&folder, &name, &path, item)? {
                    folders.push((path, item.mtime));
                }
                continue;
            }
            if parent.as_ref().is_none_or(|(at, _)| *at != folder) {
                parent = Some((folder.clone(), self.make_folder(&folder, 0o755, self.owner)?));
            }
            let Some((_, fd)) = &parent else { continue };
            match &item.same_as {
                Some(first) => self.again(&join(destination, first), fd, &name, &path)?,
                None => self.entry(tree, item, fd, &name, &path)?,
            }
        }
        // Now that nothing more is written into them.
        for (path, mtime) in folders.iter().rev() {
            if let Ok(fd) = open_in(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
                futimens(&fd, &times(*mtime)).map_err(|e| self.fail("set the time of", path, e))?;
            }
        }
        Ok(())
    }

    /// A folder as its item says; one that is there already keeps its time. `true`: its time is to be set.
    fn folder(&self, above: &[u8], name: &[u8], path: &[u8], item: &Item) -> Result<bool> {
        if name.is_empty() {
            return Ok(false);
        }
        let parent = self.make_folder(above, 0o755, self.owner)?;
        let mut is_new = false;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => is_new = true,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(self.fail("make folder", path, e)),
        }
        // A link to a folder is kept, and followed in the tree: `/lib` of many systems is one.
        let fd = open_in(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|e| match e {
            Errno::NOTDIR | Errno::NOENT => self.fail("replace", path, io::Error::other("a file by a folder")),
            e => self.fail("open folder", path, e),
        })?;
        // What was there and is the destination itself stays as it is.
        if item.inside.is_empty() && !is_new {
            return Ok(false);
        }
        let (uid, gid) = self.owner_of(item.owner);
        fchown(&fd, uid, gid).map_err(|e| self.fail("chown", path, e))?;
        fchmod(&fd, self.mode_of(item)).map_err(|e| self.fail("chmod", path, e))?;
        self.xattrs(&fd, item, path)?;
        Ok(true)
    }

    /// One more name of a file that was copied before.
    fn again(&self, first: &[u8], parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        let at = first.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let folder = open_in(self.root, &first[..at], OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|e| self.fail("open folder", first, e))?;
        self.clear(parent, name, path)?;
        linkat(&folder, &first[at..], parent, name, AtFlags::empty()).map_err(|e| self.fail("link", path, e))
    }

    /// Removes what stands where something else is to be; a folder is not.
    fn clear(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        match look(parent, name) {
            Ok(stat) if kind_of(&stat) == FileType::Directory => {
                Err(self.fail("replace", path, io::Error::other("a folder by what is none")))
            }
            Ok(_) => unlinkat(parent, name, AtFlags::empty()).map_err(|e| self.fail("replace", path, e)),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.fail("look at", path, e)),
        }
    }

    fn entry(&self, tree: &Tree, item: &Item, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        if name.is_empty() {
            return Err(self.fail("replace", b"/", io::Error::other("the root by a file")));
        }
        self.clear(parent, name, path)?;
        let (uid, gid) = self.owner_of(item.owner);
        match &item.kind {
            Kind::Link(target) => {
                let target = CString::new(target.as_slice()).map_err(|_| self.fail("link", path, Errno::INVAL))?;
                symlinkat(&*target, parent, name).map_err(|e| self.fail("link", path, e))?;
                chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| self.fail("chown", path, e))?;
                utimensat(parent, name, &times(item.mtime), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| self.fail("set the time of", path, e))
            }
            Kind::Fifo => {
                mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                    .map_err(|e| self.fail("make", path, e))?;
                chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| self.fail("chown", path, e))?;
                rustix::fs::chmodat(parent, name, self.mode_of(item), AtFlags::empty())
                    .map_err(|e| self.fail("chmod", path, e))
            }
            Kind::File => {
                let mut from = tree.read(item)?;
                let file = self.create(parent, name, path)?;
                let mut out = &file;
                io::copy(&mut from, &mut out).map_err(|e| self.fail("write", path, e))?;
                self.finish(&file, item, path)
            }
            Kind::Dir => Ok(()),
        }
    }

    fn create(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| self.fail("create", path, e))
    }

    /// In this order: a change of owner clears set-id bits and capabilities.
    fn finish(&self, file: &File, item: &Item, path: &[u8]) -> Result<()> {
        let (uid, gid) = self.owner_of(item.owner);
        fchown(file, uid, gid).map_err(|e| self.fail("chown", path, e))?;
        fchmod(file, self.mode_of(item)).map_err(|e| self.fail("chmod", path, e))?;
        self.xattrs(file, item, path)?;
        futimens(file, &times(item.mtime)).map_err(|e| self.fail("set the time of", path, e))
    }

    fn xattrs(&self, fd: impl AsFd, item: &Item, path: &[u8]) -> Result<()> {
        for (name, value) in &item.xattrs {
            match fsetxattr(fd.as_fd(), &**name, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                Err(e) => return Err(self.fail("set attributes of", path, e)),
            }
        }
        Ok(())
    }

    /// Writes a file whose content is at hand.
    pub(crate) fn write(&self, path: &[u8], content: &[u8], mode: u32, mtime: i64) -> Result<()> {
        let (folder, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let parent = self.make_folder(folder, 0o755, self.owner)?;
        self.clear(&parent, name, path)?;
        let file = self.create(&parent, name, path)?;
        (&file).write_all(content).map_err(|e| self.fail("write", path, e))?;
        let item = Item::made(mode, mtime);
        self.finish(&file, &item, path)
    }
}

fn times((seconds, nanos): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    Timestamps { last_access: time, last_modification: time }
}

/// What the kernel says about a path that would leave the tree.
fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT) => io::Error::other("a link on the way leads to nothing in the image"),
        Some(libc::ELOOP) => io::Error::other("links on the way lead in a circle"),
        Some(libc::ENOTDIR) => io::Error::other("something on the way is no folder"),
        _ => error,
    }
}

/// A path of the image, from a folder of it, as components below the root: `..` leads up and never out.
pub(crate) fn absolute(folder: &str, path: &str) -> Vec<u8> {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/").into_bytes()
}
