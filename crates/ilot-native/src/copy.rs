//! `ilot cp`: files into and out of machines.
//!
//! The tree of a machine is its root user's: any name may become a link at any moment. So nothing is reached by a path
//! below the first step: that one is resolved by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, everything else by
//! one name in an open directory, never following a link. Files are written aside and renamed, so a copy that ends
//! half-way leaves the old file.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::{Native, ids};

/// Directories within directories that are followed; more is a trap or a mistake.
const MAX_DEPTH: usize = 500;
/// Owner of what is outside the machine's range (`nobody`).
const NOBODY: u32 = 65_534;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path on this host.
    Host(PathBuf),
    /// An absolute path in a machine.
    Machine {
        /// The machine.
        name: String,
        /// The path in it.
        path: PathBuf,
    },
}

impl CopyEnd {
    /// Reads `machine:/path`; everything else is a path of this host (`./odd:name` for one with a colon).
    #[must_use]
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if let Some(colon) = bytes.iter().position(|b| *b == b':')
            && let Ok(name) = std::str::from_utf8(&bytes[..colon])
            && ilot_spec::MachineName::new(name).is_ok()
            && bytes.get(colon + 1) == Some(&b'/')
        {
            let path = PathBuf::from(OsString::from_vec(bytes[colon + 1..].to_vec()));
            return Self::Machine { name: name.to_owned(), path };
        }
        Self::Host(PathBuf::from(text))
    }
}

impl fmt::Display for CopyEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(path) => write!(f, "{}", path.display()),
            Self::Machine { name, path } => write!(f, "{name}:{}", path.display()),
        }
    }
}

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What cannot be copied (devices, sockets).
    pub skipped: Vec<String>,
}

/// How an owner's number is that of the other side.
#[derive(Debug, Clone, Copy)]
struct Owners {
    from_base: u32,
    to_base: u32,
}

impl Owners {
    fn translate(self, id: u32) -> u32 {
        let inside = match self.from_base {
            0 => id,
            base => id.checked_sub(base).filter(|i| *i < ids::SIZE).unwrap_or(NOBODY),
        };
        match self.to_base {
            0 => inside,
            base => base + if inside < ids::SIZE { inside } else { NOBODY },
        }
    }
}

/// A side with its root open.
struct Side {
    /// Resolves in here; `None` is this host's own tree.
    root: Option<OwnedFd>,
    base: u32,
    label: String,
}

impl Native {
    /// Copies a file or a tree. As `cp -a`: into the target when that is a directory, else to that name; owners, modes
    /// and times are kept. `source/.` means the content of a directory.
    ///
    /// # Errors
    /// When a side does not exist or cannot be read or written. What was copied before the error stays.
    pub fn copy(&self, source: &CopyEnd, target: &CopyEnd) -> Result<CopyReport> {
        let (from, from_path) = self.open_side(source)?;
        let (to, to_path) = match (source, target) {
            // Mounted once: the writable layer of a machine that does not run bears no second mount.
            (CopyEnd::Machine { name, .. }, CopyEnd::Machine { name: same, path }) if name == same => {
                (from.again().map_err(Error::file("open", path))?, path.as_path())
            }
            _ => self.open_side(target)?,
        };
        let owners = Owners { from_base: from.base, to_base: to.base };
        let mut copier = Copier { owners, report: CopyReport::default() };
        let fail = |label: &str, path: &Path, e: Errno| Error::File {
            operation: "copy",
            path: PathBuf::from(format!("{label}{}", path.display())),
            source: e.into(),
        };
        let content_only = ends_with_dot(from_path);
        let (from_dir, from_name) = from.parent(from_path).map_err(|e| fail(&from.label, from_path, e))?;
        let target_dir = to.directory(to_path);
        let inside_of_source = |place: &OwnedFd| -> Result<()> {
            if !lies_in(&to, place.as_fd(), from_dir.as_fd(), &from_name).unwrap_or(false) {
                return Ok(());
            }
            Err(Error::Invalid {
                message: format!("`{source}` cannot be copied into itself (`{target}`)"),
                help: Some("name a target outside of it".to_owned()),
            })
        };
        if let Ok(directory) = &target_dir {
            inside_of_source(directory)?;
        }
        let result = match target_dir {
            Ok(directory) if content_only => {
                let inner = open_dir(from_dir.as_fd(), &from_name).map_err(|e| fail(&from.label, from_path, e))?;
                copier.content(inner.as_fd(), directory.as_fd(), 0)
            }
            Ok(directory) => {
                let name = base_name(from_path).unwrap_or_else(|| OsString::from("root"));
                copier.entry(from_dir.as_fd(), &from_name, directory.as_fd(), &name, 0)
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let (to_dir, to_name) = to.parent(to_path).map_err(|e| fail(&to.label, to_path, e))?;
                inside_of_source(&to_dir)?;
                let is_dir = stat(from_dir.as_fd(), &from_name).is_ok_and(|s| s.kind == FileType::Directory);
                if is_dir && stat(to_dir.as_fd(), &to_name).is_ok() {
                    return Err(Error::Invalid {
                        message: format!("`{target}` is a file, `{source}` a directory"),
                        help: Some("name a directory as the target".to_owned()),
                    });
                }
                copier.entry(from_dir.as_fd(), &from_name, to_dir.as_fd(), &to_name, 0)
            }
            Err(e) => return Err(fail(&to.label, to_path, e)),
        };
        // What failed begins with the source's own name, but for the content of a directory.
        let above = if content_only { from_path } else { from_path.parent().unwrap_or(from_path) };
        result.map_err(|(path, e)| fail(&from.label, &above.join(path), e))?;
        Ok(copier.report)
    }

    fn open_side<'a>(&self, end: &'a CopyEnd) -> Result<(Side, &'a Path)> {
        match end {
            CopyEnd::Host(path) => Ok((Side { root: None, base: 0, label: String::new() }, path)),
            CopyEnd::Machine { name, path } => {
                let record = self.machine(name)?;
                let root = if self.is_running(name)? {
                    ilot_runtime::open_root(&self.paths.machine_run(name))?
                } else {
                    let image = self.image_of(&record, &ilot_image::Silent)?;
                    let (rootfs, _layers) = self.rootfs(&record, &image, None)?;
                    ilot_runtime::mount_rootfs(&rootfs, &crate::spec::mappings(&record))?
                };
                Ok((Side { root: Some(root), base: record.id_base, label: format!("{name}:") }, path))
            }
        }
    }
}

impl Side {
    /// The same side once more.
    fn again(&self) -> io::Result<Self> {
        let root = self.root.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Self { root, base: self.base, label: self.label.clone() })
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match &self.root {
            None => rfs::openat(CWD, path, flags, Mode::empty()),
            Some(root) => {
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                // A rename racing with the resolution gives EAGAIN (openat2(2)); whoever keeps renaming only stops this copy.
                let mut tries = 0;
                loop {
                    match rfs::openat2(root, path, flags, Mode::empty(), resolve) {
                        Err(Errno::AGAIN | Errno::INTR) if tries < 64 => tries += 1,
                        result => return result,
                    }
                }
            }
        }
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The open directory that holds the path's last name, and that name. A root itself is `.` in itself.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Errno> {
        let name = base_name(path);
        match name {
            Some(name) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Ok((self.directory(parent)?, name))
            }
            None => Ok((self.directory(path)?, OsString::from("."))),
        }
    }
}

fn base_name(path: &Path) -> Option<OsString> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Some(name.to_owned()),
        _ => None,
    }
}

fn ends_with_dot(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/.") || path.as_os_str() == "."
}

struct Entry {
    kind: FileType,
    stat: rfs::Stat,
}

fn stat(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Entry, Errno> {
    let stat = rfs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Entry { kind: FileType::from_raw_mode(stat.st_mode), stat })
}

/// Directories above one another that are looked at; more than a path can name.
const MOST_ABOVE: usize = 4096;

/// Whether `place` is the source directory or lies in it. Where somebody moves directories meanwhile the answer may be
/// wrong; the depth that a copy goes down to is bounded all the same.
fn lies_in(side: &Side, place: BorrowedFd<'_>, from: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    let id = |stat: rfs::Stat| (stat.st_dev, stat.st_ino);
    let source = stat(from, name)?;
    if source.kind != FileType::Directory {
        return Ok(false);
    }
    let source = id(source.stat);
    let top = side.root.as_ref().map(|root| rfs::fstat(root).map(id)).transpose()?;
    let mut here: OwnedFd = place.try_clone_to_owned().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for _ in 0..MOST_ABOVE {
        let at = id(rfs::fstat(&here)?);
        if at == source {
            return Ok(true);
        }
        if Some(at) == top {
            return Ok(false);
        }
        let above = rfs::openat(&here, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if id(rfs::fstat(&above)?) == at {
            return Ok(false);
        }
        here = above;
    }
    Ok(false)
}

fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rfs::openat(dir, name, flags, Mode::empty())
}

struct Copier {
    owners: Owners,
    report: CopyReport,
}

/// Where below the source it failed, and why.
type Failure = (PathBuf, Errno);

impl Copier {
    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        depth: usize,
    ) -> Result<(), Failure> {
        let here = |e: Errno| (PathBuf::from(name), e);
        if depth > MAX_DEPTH {
            return Err(here(Errno::LOOP));
        }
        let entry = stat(from, name).map_err(here)?;
        match entry.kind {
            FileType::Directory => {
                self.directory(from, name, to, to_name, depth).map_err(|(p, e)| (Path::new(name).join(p), e))
            }
            FileType::RegularFile => self.file(from, name, to, to_name).map_err(here),
            FileType::Symlink => self.link(from, name, to, to_name, &entry.stat).map_err(here),
            FileType::Fifo => self.fifo(to, to_name, &entry.stat).map_err(here),
            _ => {
                self.report.skipped.push(name.to_string_lossy().into_owned());
                Ok(())
            }
        }
    }

    fn content(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> Result<(), Failure> {
        let here = |e: Errno| (PathBuf::new(), e);
        let names: Vec<OsString> = rfs::Dir::read_from(from)
            .map_err(here)?
            .filter_map(|entry| match entry {
                Ok(entry) => {
                    let name = entry.file_name().to_bytes();
                    (name != b"." && name != b"..").then(|| Ok(OsString::from_vec(name.to_vec())))
                }
                Err(e) => Some(Err(here(e))),
            })
            .collect::<Result<_, _>>()?;
        for name in names {
            self.entry(from, &name, to, &name, depth + 1)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        depth: usize,
    ) -> Result<(), Failure> {
        let here = |e: Errno| (PathBuf::new(), e);
        let source = open_dir(from, name).map_err(here)?;
        match rfs::mkdirat(to, to_name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(here(e)),
        }
        let target = open_dir(to, to_name).map_err(here)?;
        self.content(source.as_fd(), target.as_fd(), depth)?;
        // Last: a mode without write permission must not stop the content.
        let stat = rfs::fstat(&source).map_err(here)?;
        self.attributes(target.as_fd(), &stat).map_err(here)?;
        self.report.directories += 1;
        Ok(())
    }

    fn file(&mut self, from: BorrowedFd<'_>, name: &OsStr, to: BorrowedFd<'_>, to_name: &OsStr) -> Result<(), Errno> {
        // O_NONBLOCK: it may have become a FIFO that nobody writes to.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rfs::openat(from, name, flags, Mode::empty())?;
        let stat = rfs::fstat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let aside = OsString::from(format!(".ilot-cp-{}-{}", std::process::id(), self.report.files));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rfs::openat(to, &aside, flags, Mode::RUSR | Mode::WUSR)?;
        let result = (|| {
            let mut reader = std::fs::File::from(source);
            let mut writer = std::fs::File::from(target);
            let bytes =
                io::copy(&mut reader, &mut writer).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            self.attributes(writer.as_fd(), &stat)?;
            rfs::renameat(to, &aside, to, to_name)?;
            Ok(bytes)
        })();
        match result {
            Ok(bytes) => {
                self.report.files += 1;
                self.report.bytes += bytes;
                Ok(())
            }
            Err(e) => {
                // The error above is the one to report.
                let _ = rfs::unlinkat(to, &aside, AtFlags::empty());
                Err(e)
            }
        }
    }

    fn link(
        &mut self,
        from: BorrowedFd<'_>,
        name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        stat: &rfs::Stat,
    ) -> Result<(), Errno> {
        let text = rfs::readlinkat(from, name, Vec::new())?;
        match rfs::unlinkat(to, to_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        rfs::symlinkat(text.as_c_str(), to, to_name)?;
        let (uid, gid) = self.owner(stat);
        rfs::chownat(to, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        self.report.links += 1;
        Ok(())
    }

    fn fifo(&mut self, to: BorrowedFd<'_>, to_name: &OsStr, stat: &rfs::Stat) -> Result<(), Errno> {
        match rfs::unlinkat(to, to_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        rfs::mknodat(to, to_name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode), 0)?;
        let (uid, gid) = self.owner(stat);
        rfs::chownat(to, to_name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn owner(&self, stat: &rfs::Stat) -> (Uid, Gid) {
        (Uid::from_raw(self.owners.translate(stat.st_uid)), Gid::from_raw(self.owners.translate(stat.st_gid)))
    }

    /// Owner first: changing it clears the set-id bits that the mode then restores.
    fn attributes(&self, target: BorrowedFd<'_>, stat: &rfs::Stat) -> Result<(), Errno> {
        let (uid, gid) = self.owner(stat);
        rfs::fchown(target, Some(uid), Some(gid))?;
        rfs::fchmod(target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let time = |sec: i64, nsec: i64| rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
        #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast, reason = "nanoseconds are below 2^30")]
        let times = rfs::Timestamps {
            last_access: time(stat.st_atime as i64, stat.st_atime_nsec as i64),
            last_modification: time(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        };
        rfs::futimens(target, &times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends() {
        let end = |t: &str| CopyEnd::parse(OsStr::new(t));
        assert_eq!(end("web:/etc"), CopyEnd::Machine { name: "web".into(), path: "/etc".into() });
        assert_eq!(end("./web:/etc"), CopyEnd::Host("./web:/etc".into()));
        assert_eq!(end("web:etc"), CopyEnd::Host("web:etc".into()));
        assert_eq!(end("/tmp/x"), CopyEnd::Host("/tmp/x".into()));
    }

    #[test]
    fn owners_cross_the_range() {
        let base = ids::FIRST;
        let into = Owners { from_base: 0, to_base: base };
        assert_eq!(into.translate(0), base);
        assert_eq!(into.translate(1000), base + 1000);
        assert_eq!(into.translate(100_000), base + NOBODY);
        let out = Owners { from_base: base, to_base: 0 };
        assert_eq!(out.translate(base + 33), 33);
        assert_eq!(out.translate(0), NOBODY);
        let across = Owners { from_base: base, to_base: base + ids::SIZE };
        assert_eq!(across.translate(base + 5), base + ids::SIZE + 5);
    }
}
