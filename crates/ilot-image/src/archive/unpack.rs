//! Writes an archive's entries below one folder, and never anywhere else.
//!
//! Every path is resolved by the kernel with `openat2(RESOLVE_IN_ROOT)` from the folder's handle, so that `..` and
//! links of any kind, made by this or an earlier entry, can lead nowhere but into the folder; the last component is
//! never followed. What overlayfs would take as an order (`trusted.overlay.*`) is not taken from an archive.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fsetxattr, linkat, mkdirat, mknodat, openat, openat2, renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::reader::{Entry, Kind, Reader};
use super::remove::remove_at;
use super::{Fault, Limits, Names, components};

/// The whiteout prefix of OCI layers (image-spec, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Says that nothing of a folder in the layers below is seen.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The largest id of a machine's range; what an archive owns beyond becomes this one, `nobody`.
const NOBODY: u32 = 65534;

/// What was unpacked, and what was left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// Device nodes, not made: a machine's `/dev` is made anew.
    pub(crate) devices: u64,
    /// Entries of owners beyond 65535, given to `nobody`.
    pub(crate) foreign_owners: u64,
    /// Extended attributes not set: not portable, not supported here, or not harmless.
    pub(crate) xattrs: u64,
}

/// Unpacks a decompressed archive below `root`, an empty folder; `strip` names the folder of the archive that counts
/// (the rest is left out).
pub(crate) fn unpack(
    source: impl Read,
    root: &Path,
    strip: Option<&[u8]>,
    limits: Limits,
    mut each: impl FnMut(u64) -> Result<(), Fault>,
) -> Result<Unpacked, Fault> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| Fault::Read(e.into()))?;
    let mut unpacker = Unpacker {
        root,
        parent: None,
        times: HashMap::new(),
        skipped: HashSet::new(),
        names: Names::default(),
        limits,
        done: Unpacked::default(),
        buffer: vec![0; 128 << 10],
    };
    let mut reader = Reader::new(io::BufReader::with_capacity(crate::blob::BUFFER, source), limits);
    while let Some(mut entry) = reader.next()? {
        if strip.is_none_or(|prefix| strip_prefix(&mut entry, prefix)) {
            unpacker.entry(&entry, &mut reader)?;
        }
        each(unpacker.done.bytes)?;
    }
    reader.drain()?;
    unpacker.finish()
}

/// Takes `prefix/` off an entry's path and hard link target; false when it lies elsewhere.
fn strip_prefix(entry: &mut Entry, prefix: &[u8]) -> bool {
    let inside = |path: &[u8]| -> Option<Vec<u8>> {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let rest = path.strip_prefix(prefix)?;
        (rest.is_empty() || rest[0] == b'/').then(|| rest.to_vec())
    };
    let Some(path) = inside(&entry.path) else { return false };
    if entry.kind == Kind::Hardlink {
        let Some(link) = inside(&entry.link) else { return false };
        entry.link = link;
    }
    entry.path = path;
    true
}

struct Unpacker {
    root: OwnedFd,
    /// The folder of the last entry: most entries follow one of the same folder.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of folders, set when nothing more is written into them.
    times: HashMap<Vec<u8>, (i64, u32)>,
    /// Devices that were not made: hard links to them are not either.
    skipped: HashSet<Vec<u8>>,
    names: Names,
    limits: Limits,
    done: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, reader: &mut Reader<impl Read>) -> Result<(), Fault> {
        let parts = components(&entry.path)?;
        self.done.entries += 1;
        let Some((&name, folders)) = parts.split_last() else {
            return match entry.kind {
                Kind::Dir => self.root_folder(entry),
                _ => Err(Fault::bad("the root itself is not a folder")),
            };
        };
        let folder = folders.join(&b'/');
        self.open_parent(&folder)?;
        let Some((_, parent)) = self.parent.take() else { return Ok(()) };
        let result = self.make(entry, reader, &folder, parent.as_fd(), name);
        self.parent = Some((folder, parent));
        result
    }

    fn make(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<impl Read>,
        folder: &[u8],
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<(), Fault> {
        let at = Place { parent, name: cstring(name)?, entry };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&at, name, hidden);
        }
        match entry.kind {
            Kind::Dir => {
                self.folder(&at)?;
                let path = join(folder, name);
                self.names.add(&path, self.limits)?;
                self.times.insert(path, entry.mtime);
                Ok(())
            }
            Kind::File => self.file(&at, reader),
            Kind::Symlink => {
                let target = cstring(&entry.link)?;
                at.replacing(|| symlinkat(&*target, parent, &*at.name)).map_err(|e| at.fault("symlink", e))?;
                self.owner_and_time(&at)
            }
            Kind::Hardlink => self.hard_link(&at, &join(folder, name)),
            Kind::Fifo => {
                at.replacing(|| mknodat(parent, &*at.name, FileType::Fifo, Mode::from_raw_mode(0o600), 0))
                    .map_err(|e| at.fault("mkfifo", e))?;
                self.owner_and_time(&at)?;
                // The name was made by the lines above in a folder that nobody else can reach: it is no link.
                rustix::fs::chmodat(parent, &*at.name, mode(entry), AtFlags::empty()).map_err(|e| at.fault("chmod", e))
            }
            // The form that overlayfs itself gives a whiteout: a layer packed from an upper folder has these.
            Kind::Char if entry.device == (0, 0) => at.hide(),
            Kind::Char | Kind::Block => {
                self.done.devices += 1;
                self.names.add(name, self.limits)?;
                self.names.add(folder, self.limits)?;
                self.skipped.insert(join(folder, name));
                Ok(())
            }
        }
    }

    fn root_folder(&mut self, entry: &Entry) -> Result<(), Fault> {
        let at = Place { parent: self.root.as_fd(), name: c".".to_owned(), entry };
        let (uid, gid) = owner(entry, &mut self.done);
        rustix::fs::fchown(&self.root, Some(uid), Some(gid)).map_err(|e| at.fault("chown", e))?;
        fchmod(&self.root, mode(entry)).map_err(|e| at.fault("chmod", e))?;
        set_xattrs(&self.root, entry, &mut self.done)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    /// Makes `self.parent` the handle of a folder, made (with its own parents) where it is not there.
    fn open_parent(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.parent.as_ref().is_some_and(|(p, _)| p == path) {
            return Ok(());
        }
        let fd = match open_in(self.root.as_fd(), path) {
            // No folder: perhaps one that this layer whited out before.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            other => other.map_err(|e| through(path, e))?,
        };
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    fn make_parents(&self, path: &[u8]) -> Result<OwnedFd, Fault> {
        let mut current = open_in(self.root.as_fd(), b"").map_err(|e| through(path, e))?;
        let mut end = 0;
        for part in path.split(|&b| b == b'/') {
            end += part.len() + usize::from(end > 0);
            let name = cstring(part)?;
            match mkdirat(&current, &*name, Mode::from_raw_mode(0o755)) {
                // The umask of whoever runs this must not shape the tree.
                Ok(()) => rustix::fs::chmodat(&current, &*name, Mode::from_raw_mode(0o755), AtFlags::empty())
                    .map_err(|e| through(path, e))?,
                Err(Errno::EXIST) if is_whiteout(current.as_fd(), &name) => {
                    fill_whiteout(current.as_fd(), &name).map_err(|e| through(path, e))?;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(through(path, e)),
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            current = match openat(&current, &*name, flags, Mode::empty()) {
                // A link on the way is followed as the machine would follow it: from the root.
                Err(Errno::NOTDIR) => open_in(self.root.as_fd(), &path[..end]),
                other => other,
            }
            .map_err(|e| through(path, e))?;
        }
        Ok(current)
    }

    fn folder(&mut self, at: &Place<'_>) -> Result<(), Fault> {
        match mkdirat(at.parent, &*at.name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) if at.is_folder() => {}
            Err(Errno::EXIST) if is_whiteout(at.parent, &at.name) => {
                fill_whiteout(at.parent, &at.name).map_err(|e| at.fault("mkdir", e))?;
            }
            Err(Errno::EXIST) => at
                .replacing(|| mkdirat(at.parent, &*at.name, Mode::from_raw_mode(0o700)))
                .map_err(|e| at.fault("mkdir", e))?,
            Err(e) => return Err(at.fault("mkdir", e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(at.parent, &*at.name, flags, Mode::empty()).map_err(|e| at.fault("open", e))?;
        let (uid, gid) = owner(at.entry, &mut self.done);
        rustix::fs::fchown(&fd, Some(uid), Some(gid)).map_err(|e| at.fault("chown", e))?;
        fchmod(&fd, mode(at.entry)).map_err(|e| at.fault("chmod", e))?;
        set_xattrs(&fd, at.entry, &mut self.done)
    }

    fn file(&mut self, at: &Place<'_>, reader: &mut Reader<impl Read>) -> Result<(), Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = at
            .replacing(|| openat(at.parent, &*at.name, flags, Mode::from_raw_mode(0o600)))
            .map_err(|e| at.fault("create", e))?;
        let mut file = File::from(fd);
        match &at.entry.sparse {
            None => loop {
                let n = reader.data().read(&mut self.buffer)?;
                if n == 0 {
                    break;
                }
                file.write_all(&self.buffer[..n]).map_err(|e| at.io("write", e))?;
                self.done.bytes += n as u64;
            },
            Some(pieces) => {
                for &(offset, length) in pieces {
                    self.piece(at, reader, &file, offset, length)?;
                }
                file.set_len(at.entry.size).map_err(|e| at.io("set its size", e))?;
            }
        }
        let (uid, gid) = owner(at.entry, &mut self.done);
        // In this order: a change of owner clears set-id bits and capabilities.
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(|e| at.fault("chown", e))?;
        fchmod(&file, mode(at.entry)).map_err(|e| at.fault("chmod", e))?;
        set_xattrs(&file, at.entry, &mut self.done)?;
        rustix::fs::futimens(&file, &times(at.entry.mtime)).map_err(|e| at.fault("set its time", e))
    }

    fn piece(
        &mut self,
        at: &Place<'_>,
        reader: &mut Reader<impl Read>,
        file: &File,
        mut offset: u64,
        length: u64,
    ) -> Result<(), Fault> {
        let mut data = reader.data().take(length);
        loop {
            let n = data.read(&mut self.buffer)?;
            if n == 0 {
                return Ok(());
            }
            file.write_all_at(&self.buffer[..n], offset).map_err(|e| at.io("write", e))?;
            offset += n as u64;
            self.done.bytes += n as u64;
        }
    }

    fn hard_link(&mut self, at: &Place<'_>, own: &[u8]) -> Result<(), Fault> {
        let parts = components(&at.entry.link)?;
        let target = parts.join(&b'/');
        let Some((&name, folders)) = parts.split_last() else {
            return Err(at.fault("hard link to the root", Errno::PERM));
        };
        if target == own {
            return Ok(());
        }
        if self.skipped.contains(&target) {
            self.skipped.insert(own.to_vec());
            return Ok(());
        }
        let missing = || {
            Fault::bad(format!(
                "`{}`: hard link to `{}`, which the archive did not bring before it",
                at.entry.path.escape_ascii(),
                at.entry.link.escape_ascii()
            ))
        };
        let from = match open_in(self.root.as_fd(), &folders.join(&b'/')) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(e) => return Err(through(&target, e)),
        };
        let name = cstring(name)?;
        match linkat(&from, &*name, at.parent, &*at.name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(missing()),
            // Never remove first: the name could be another one of the very file that the link is to.
            Err(Errno::EXIST) => {
                let aside = c".wh.ilot-link";
                linkat(&from, &*name, at.parent, aside, AtFlags::empty()).map_err(|e| at.fault("hard link", e))?;
                let renamed = match renameat(at.parent, aside, at.parent, &*at.name) {
                    Err(Errno::ISDIR | Errno::NOTEMPTY) => {
                        at.remove().and_then(|()| renameat(at.parent, aside, at.parent, &*at.name))
                    }
                    other => other,
                };
                // Two names of one file: rename does nothing then, and leaves the first.
                let _ = unlinkat(at.parent, aside, AtFlags::empty());
                renamed.map_err(|e| at.fault("hard link", e))
            }
            Err(e) => Err(at.fault("hard link", e)),
        }
    }

    fn whiteout(&mut self, at: &Place<'_>, name: &[u8], hidden: &[u8]) -> Result<(), Fault> {
        if name == OPAQUE {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = openat(at.parent, c".", flags, Mode::empty()).map_err(|e| at.fault("open", e))?;
            return mark_opaque(&fd).map_err(|e| at.fault("mark as opaque", e));
        }
        // What else begins so is aufs' own bookkeeping.
        if hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::bad(format!("`{}`: a whiteout of no name", at.entry.path.escape_ascii())));
        }
        Place { parent: at.parent, name: cstring(hidden)?, entry: at.entry }.hide()
    }

    fn owner_and_time(&mut self, at: &Place<'_>) -> Result<(), Fault> {
        let (uid, gid) = owner(at.entry, &mut self.done);
        chownat(at.parent, &*at.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| at.fault("chown", e))?;
        utimensat(at.parent, &*at.name, &times(at.entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| at.fault("set its time", e))
    }

    fn finish(self) -> Result<Unpacked, Fault> {
        for (path, mtime) in &self.times {
            // A later entry may have put something else in a folder's place; its time is not this one's then.
            let Ok(fd) = open_in(self.root.as_fd(), path) else { continue };
            let _ = utimensat(&fd, c".", &times(*mtime), AtFlags::SYMLINK_NOFOLLOW);
        }
        if self.done.entries == 0 {
            return Err(Fault::bad("no entries"));
        }
        Ok(self.done)
    }
}

/// A name in a folder, and the entry that it is for.
struct Place<'a> {
    parent: BorrowedFd<'a>,
    name: CString,
    entry: &'a Entry,
}

impl Place<'_> {
    fn fault(&self, operation: &'static str, error: Errno) -> Fault {
        self.io(operation, error.into())
    }

    fn io(&self, operation: &'static str, source: io::Error) -> Fault {
        Fault::Write { operation, entry: self.entry.path.escape_ascii().to_string(), source }
    }

    /// Makes something; what an earlier entry of that name left goes first, as in GNU tar.
    fn replacing<T>(&self, make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove()?;
                make()
            }
            other => other,
        }
    }

    fn is_folder(&self) -> bool {
        rustix::fs::statat(self.parent, &*self.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
    }

    /// A whiteout, as overlayfs has it: a character device 0/0. It hides what the layers below have of that name, never
    /// what this layer brings (image-spec, "Whiteouts"): that stays, and a folder no longer shows what is below it.
    fn hide(&self) -> Result<(), Fault> {
        match mknodat(self.parent, &*self.name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) if self.is_folder() => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(self.parent, &*self.name, flags, Mode::empty()).map_err(|e| self.fault("open", e))?;
                mark_opaque(&fd).map_err(|e| self.fault("mark as opaque", e))
            }
            Err(Errno::EXIST) => Ok(()),
            other => other.map_err(|e| self.fault("whiteout", e)),
        }
    }

    fn remove(&self) -> Result<(), Errno> {
        remove_at(self.parent, &self.name)
    }
}

/// A folder below `root`; links are followed as if `root` were `/`.
fn open_in(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            // "The caller should retry": a rename somewhere raced with the look-up of `..` (openat2(2)).
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Has a folder hide what the layers below have in it.
fn mark_opaque(fd: &OwnedFd) -> Result<(), Errno> {
    // Both names: which one overlayfs reads depends on who mounts it (`userxattr`).
    fsetxattr(fd, c"trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    let _ = fsetxattr(fd, c"user.overlay.opaque", b"y", XattrFlags::empty());
    Ok(())
}

/// Whether a name is a whiteout, as overlayfs has it.
fn is_whiteout(parent: BorrowedFd<'_>, name: &CString) -> bool {
    rustix::fs::statat(parent, &**name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == 0)
}

/// Makes a folder where this layer has a whiteout: nothing of the layers below is in it.
fn fill_whiteout(parent: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    unlinkat(parent, &**name, AtFlags::empty())?;
    mkdirat(parent, &**name, Mode::from_raw_mode(0o755))?;
    rustix::fs::chmodat(parent, &**name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    mark_opaque(&openat(parent, &**name, flags, Mode::empty())?)
}

pub(crate) fn through(path: &[u8], error: Errno) -> Fault {
    let path = path.escape_ascii();
    match error {
        Errno::NOENT => Fault::bad(format!("`{path}`: leads through a link to nowhere")),
        Errno::NOTDIR => Fault::bad(format!("`{path}`: leads through what is no folder")),
        Errno::LOOP => Fault::bad(format!("`{path}`: leads through links in a circle")),
        Errno::XDEV => Fault::bad(format!("`{path}`: leads out of the tree")),
        e => Fault::Write { operation: "open", entry: path.to_string(), source: e.into() },
    }
}

/// Whom an entry belongs to in a machine's range.
pub(crate) fn owner_of(entry: &Entry, done: &mut Unpacked) -> (u32, u32) {
    let inside = |id: u64| u32::try_from(id).ok().filter(|&id| id <= 65535);
    let (uid, gid) = (inside(entry.uid), inside(entry.gid));
    done.foreign_owners += u64::from(uid.is_none() || gid.is_none());
    (uid.unwrap_or(NOBODY), gid.unwrap_or(NOBODY))
}

fn owner(entry: &Entry, done: &mut Unpacked) -> (Uid, Gid) {
    let (uid, gid) = owner_of(entry, done);
    (Uid::from_raw(uid), Gid::from_raw(gid))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode as RawMode)
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// What a layer may carry: users' attributes, file capabilities and access lists. Labels of security modules belong to
/// the host, and overlayfs' own are orders to it (a redirect could show another folder's content).
pub(crate) fn wanted_xattr(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn set_xattrs(fd: impl AsFd, entry: &Entry, done: &mut Unpacked) -> Result<(), Fault> {
    for (name, value) in &entry.xattrs {
        let set = || {
            let name = CString::new(name.as_slice()).map_err(|_| Errno::INVAL)?;
            fsetxattr(fd.as_fd(), &*name, value, XattrFlags::empty())
        };
        match if wanted_xattr(name) { set() } else { Err(Errno::NOTSUP) } {
            Ok(()) => {}
            // ext4 says the same of a full disk and of a file with more attributes than it keeps for one.
            Err(Errno::NOSPC) if rustix::fs::fstatvfs(fd.as_fd()).is_ok_and(|s| s.f_bavail > 1024) => {
                let (path, name) = (entry.path.escape_ascii(), name.escape_ascii());
                return Err(Fault::bad(format!(
                    "`{path}`: attribute `{name}`: more than the store's file system keeps"
                )));
            }
            Err(e @ (Errno::NOSPC | Errno::DQUOT)) => {
                let entry = entry.path.escape_ascii().to_string();
                return Err(Fault::Write { operation: "set an attribute", entry, source: e.into() });
            }
            Err(_) => done.xattrs += 1,
        }
    }
    Ok(())
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

fn cstring(bytes: &[u8]) -> Result<CString, Fault> {
    CString::new(bytes).map_err(|_| Fault::bad(format!("`{}`: NUL in a path", bytes.escape_ascii())))
}
