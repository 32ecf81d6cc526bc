//! Paths inside a container's tree, resolved by the kernel and never by joining strings.
//!
//! The container controls every link in its tree. `openat2(2)` with `RESOLVE_IN_ROOT` treats the
//! given directory as the root for `/`, `..` and links; magic links are refused.

use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2, unlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How paths inside a container are resolved.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Retries while the kernel cannot promise that nothing was moved meanwhile.
fn openat2_retry(
    root: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 128 => tries += 1,
            other => return other,
        }
    }
}

/// Opens `path` with `root` as its root directory; links are followed inside the root.
pub fn open_in_root(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2_retry(root, path, flags, Mode::empty(), IN_ROOT)
}

/// Opens `path` below `root`, following no link at all and crossing no mount: for procfs and
/// sysfs, where a link or a mount in the way is somebody's trick.
pub fn open_beneath(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat2_retry(
        root,
        path.trim_start_matches('/'),
        flags,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Opens the directory `path` in `root`, making what is missing of it.
pub fn mkdir_in_root(root: BorrowedFd<'_>, path: &str, mode: u32) -> Result<OwnedFd> {
    make_dir(root, path, mode, IN_ROOT)
}

/// As [`mkdir_in_root`], without following any link: for places where the kernel's own file systems go, which are
/// found again by their names.
pub fn mkdir_without_links(root: BorrowedFd<'_>, path: &str, mode: u32) -> Result<OwnedFd> {
    make_dir(root, path, mode, IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn make_dir(root: BorrowedFd<'_>, path: &str, mode: u32, resolve: ResolveFlags) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let open = || openat2_retry(root, path, flags, Mode::empty(), resolve);
    match open() {
        Err(Errno::NOENT) => {}
        Ok(fd) => return Ok(fd),
        Err(error) => return Err(Error::system("open directory", inside(path), error)),
    }
    let (parent, name) = split(path)?;
    let parent = make_dir(root, parent, mode, resolve)?;
    match mkdirat(parent.as_fd(), name, Mode::from_raw_mode(mode)) {
        // A dangling link stands there: made inside the root if it points there, else refused.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Error::system("make directory", inside(path), error)),
    }
    open().map_err(|error| Error::system("open directory", inside(path), error))
}

/// Opens the file `path` in `root` as a place to mount on, making it (empty) if missing.
pub fn touch_in_root(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd> {
    match open_in_root(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        Ok(fd) => return Ok(fd),
        Err(error) => return Err(Error::system("open file", inside(path), error)),
    }
    let (parent, name) = split(path)?;
    let parent = mkdir_in_root(root, parent, 0o755)?;
    openat2_retry(
        parent.as_fd(),
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW,
        Mode::from_raw_mode(0o644),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .map_err(|error| Error::system("make file", inside(path), error))?;
    open_in_root(root, path, OFlags::PATH).map_err(|error| Error::system("open file", inside(path), error))
}

/// Writes a new file in `root`: what stands there and is no directory is removed first, so that
/// no link, device or pipe is ever written through.
pub fn replace_in_root(root: BorrowedFd<'_>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let (parent, name) = split(path)?;
    let parent = mkdir_in_root(root, parent, 0o755)?;
    match unlinkat(parent.as_fd(), name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(Error::system("replace file", inside(path), error)),
    }
    let fail = |error: std::io::Error| Error::system("write file", inside(path), error);
    let file = openat2_retry(
        parent.as_fd(),
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW,
        Mode::from_raw_mode(mode & 0o7777),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .map_err(|error| fail(error.into()))?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, content).map_err(fail)?;
    rustix::fs::fchmod(file.as_fd(), Mode::from_raw_mode(mode & 0o7777)).map_err(|error| fail(error.into()))
}

/// Whether anything stands at `path` in `root` (a dangling link does).
pub fn exists_in_root(root: BorrowedFd<'_>, path: &str) -> Result<bool> {
    let (parent, name) = split(path)?;
    match open_in_root(root, parent, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(parent) => Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(Error::system("open directory", inside(parent), error)),
    }
}

/// Reads a small file in `root`; `None` if there is none.
pub fn read_in_root(root: BorrowedFd<'_>, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
    let fail = |error: std::io::Error| Error::system("read file", inside(path), error);
    // Not blocking: a pipe may stand there.
    let file = match open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(fd) => std::fs::File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, max), &mut content).map_err(fail)?;
    Ok(Some(content))
}

/// Opens a directory of the host.
pub fn open_host_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::path("open directory", path, error))
}

/// Parent and last name of an absolute path.
fn split(path: &str) -> Result<(&str, &str)> {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some((parent, name)) if !matches!(name, "" | "." | "..") => {
            Ok((if parent.is_empty() { "/" } else { parent }, name))
        }
        _ => Err(Error::invalid(format!("path `{path}` in the container"), "it must be absolute and name something")),
    }
}

/// How a path inside is called in messages.
fn inside(path: &str) -> String {
    format!("`{path}` in the container")
}
