//! A directory of a control group file system, and the only place where files there are opened.
//!
//! Everything below a hierarchy is reached from a descriptor of its mount, which was checked to be cgroupfs,
//! by names resolved with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV` (openat2(2)): a value can
//! only ever land in a control file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{CgroupError, Result};

/// `CGROUP_SUPER_MAGIC` of linux/magic.h.
const V1_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const V2_MAGIC: u64 = 0x6367_7270;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The extended attribute that marks a parent group as made by ilot, so that it may be removed when empty.
const MARK: &str = "trusted.ilot";
/// The same where `trusted.` is out of reach (rootless, v2).
const USER_MARK: &str = "user.ilot";

/// An open directory of a cgroup file system.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    /// For messages only; never opened again.
    path: PathBuf,
}

impl Dir {
    /// Opens a mount point and proves by its magic number that it is cgroupfs of the version.
    pub(super) fn mount(path: &Path, v2: bool) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io_error("open", path, e))?;
        let magic = rustix::fs::fstatfs(&fd).map_err(|e| io_error("statfs", path, e))?.f_type;
        let wanted = if v2 { V2_MAGIC } else { V1_MAGIC };
        if magic as u64 & 0xffff_ffff != wanted {
            return Err(CgroupError::NotCgroup { path: path.into() });
        }
        Ok(Self { fd, path: path.into() })
    }

    /// A plain directory, for tests of what is written where.
    #[cfg(test)]
    pub(super) fn plain(path: &Path) -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).expect("a directory");
        Self { fd, path: path.into() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its descriptor alone.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens a group below this one; `None` if there is none.
    pub(super) fn child(&self, rel: &Path) -> Result<Option<Self>> {
        let path = self.path.join(rel);
        let name = if rel.as_os_str().is_empty() { Path::new(".") } else { rel };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open_beneath(self.fd(), name, flags) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(e) => Err(io_error("open", &path, e)),
        }
    }

    /// Makes the child `name` unless it exists; says whether it was made.
    pub(super) fn make(&self, name: &str) -> Result<bool> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(io_error("create cgroup", &self.path.join(name), e)),
        }
    }

    /// Removes the child `name`; a child that is not there is no error.
    pub(super) fn remove(&self, name: &Path) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// The names of the child groups.
    pub(super) fn children(&self) -> Result<Vec<PathBuf>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let err = |e| io_error("list", &self.path, e);
        let fd = match open_beneath(self.fd(), Path::new("."), flags) {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
            other => other.map_err(err)?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd).map_err(err)? {
            let entry = match entry {
                // Removed while it was read.
                Err(Errno::NOENT | Errno::NODEV) => break,
                other => other.map_err(err)?,
            };
            let name = entry.file_name().to_bytes();
            if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".." {
                names.push(PathBuf::from(String::from_utf8_lossy(name).into_owned()));
            }
        }
        Ok(names)
    }

    /// Opens one control file of this group.
    pub(super) fn open(&self, file: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        if file.is_empty() || file.contains('/') || file == "." || file == ".." {
            return Err(Errno::INVAL);
        }
        open_beneath(self.fd(), Path::new(file), flags | OFlags::CLOEXEC)
    }

    /// Whether the group has the control file.
    pub(super) fn has(&self, file: &str) -> bool {
        self.open(file, OFlags::PATH).is_ok()
    }

    /// Whether the caller may write the control file.
    pub(super) fn writable(&self, file: &str) -> bool {
        self.open(file, OFlags::WRONLY).is_ok()
    }

    /// Writes a value, whole, or says which file refused what.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        self.try_write(file, value).map_err(|e| self.write_error(file, value, e))
    }

    pub(super) fn try_write(&self, file: &str, value: &str) -> rustix::io::Result<()> {
        let fd = self.open(file, OFlags::WRONLY)?;
        write_whole(&fd, value)
    }

    pub(super) fn write_error(&self, file: &str, value: &str, e: Errno) -> CgroupError {
        CgroupError::Write { file: self.path.join(file), value: value.into(), source: e.into() }
    }

    /// Reads a control file; `None` if this kernel has none of that name.
    pub(super) fn read(&self, file: &str) -> Result<Option<String>> {
        match self.try_read(file) {
            Ok(text) => Ok(Some(text)),
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            Err(e) => Err(io_error("read", &self.path.join(file), e)),
        }
    }

    pub(super) fn try_read(&self, file: &str) -> rustix::io::Result<String> {
        let fd = self.open(file, OFlags::RDONLY)?;
        let mut bytes = Vec::with_capacity(256);
        loop {
            bytes.reserve(4096);
            let spare = rustix::buffer::spare_capacity(&mut bytes);
            if rustix::io::read(&fd, spare)? == 0 {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file that holds one number (`max` reads as `None`, as does a missing file).
    pub(super) fn read_number(&self, file: &str) -> Result<Option<u64>> {
        Ok(self.read(file)?.and_then(|t| t.trim().parse().ok()))
    }

    /// The number behind `key` in a file of `key value` lines.
    pub(super) fn read_key(&self, file: &str, key: &str) -> Result<Option<u64>> {
        Ok(self.read(file)?.and_then(|t| flat_key(&t, key)))
    }

    /// The processes of this group and, if asked, of all below it. Sees itself change: call again to be sure.
    pub(super) fn pids(&self, recursive: bool, out: &mut Vec<i32>) -> Result<()> {
        match self.try_read("cgroup.procs") {
            Ok(text) => out.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
            // A threaded child of a v2 group has no list of its own; its processes are in the parent's.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(io_error("read", &self.path.join("cgroup.procs"), e)),
        }
        if recursive {
            for name in self.children()? {
                if let Some(child) = self.child(&name)? {
                    child.pids(true, out)?;
                }
            }
        }
        Ok(())
    }

    /// Marks this group as made by ilot.
    pub(super) fn mark(&self) {
        // A file system without attributes (v1 before 5.7, rootless v1) just keeps its empty parents.
        let Ok(fd) = self.readable() else { return };
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::fsetxattr(&fd, MARK, b"1", flags).is_err() {
            let _ = rustix::fs::fsetxattr(&fd, USER_MARK, b"1", flags);
        }
    }

    /// Whether this group carries ilot's mark.
    pub(super) fn marked(&self) -> bool {
        self.has_attribute(MARK) || self.has_attribute(USER_MARK)
    }

    pub(super) fn has_attribute(&self, name: &str) -> bool {
        self.readable().is_ok_and(|fd| rustix::fs::fgetxattr(&fd, name, &mut [0_u8; 8]).is_ok())
    }

    /// Attributes and ownership cannot be changed through an `O_PATH` descriptor.
    pub(super) fn readable(&self) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open_beneath(self.fd(), Path::new("."), flags)
    }

    /// Waits until `key` has `value` in `cgroup.events` (v2), at most until the deadline.
    ///
    /// The kernel announces each change of that file by `POLLPRI`, so nothing is polled in vain.
    pub(super) fn wait_event(&self, key: &str, value: u64, timeout: Duration) -> Result<bool> {
        let path = self.path.join("cgroup.events");
        let fd = match self.open("cgroup.events", OFlags::RDONLY) {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
            other => other.map_err(|e| io_error("open", &path, e))?,
        };
        let end = Instant::now() + timeout;
        loop {
            let mut buf = [0_u8; 128];
            let n = match rustix::io::pread(&fd, &mut buf, 0) {
                // The group is gone, and with it every process of it.
                Err(Errno::NODEV) => return Ok(true),
                other => other.map_err(|e| io_error("read", &path, e))?,
            };
            if flat_key(&String::from_utf8_lossy(&buf[..n]), key) == Some(value) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
            let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
            // SAFETY: one valid pollfd, borrowed for the call; errors and EINTR only lead to another look.
            unsafe { libc::poll(&raw mut poll, 1, ms) };
        }
    }
}

/// The number behind `key` in text of `key value` lines.
pub(super) fn flat_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn open_beneath(dir: BorrowedFd<'_>, name: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    loop {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), BENEATH) {
            // The kernel could not prove the walk safe because of a rename somewhere: try again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Control files take a value in one write(2); a part of it would be another value.
pub(super) fn write_whole(fd: &OwnedFd, value: &str) -> rustix::io::Result<()> {
    loop {
        match rustix::io::write(fd, value.as_bytes()) {
            Ok(n) if n == value.len() => return Ok(()),
            Ok(_) => return Err(Errno::IO),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

pub(super) fn io_error(op: &'static str, path: &Path, e: Errno) -> CgroupError {
    CgroupError::Io { op, path: path.into(), source: io::Error::from(e) }
}
