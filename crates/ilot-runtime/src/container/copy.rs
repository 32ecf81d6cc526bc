//! `tmpcopyup`: what the image has at a place, copied into the file system that will cover it.

use crate::{Error, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Deepest tree that is copied: one is deeper only to use up the stack.
const DEEPEST: u32 = 256;

/// Copies the content of a directory with owners, modes and extended attributes.
pub fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    copy_dir(from, to, 0).map_err(|e| Error::system("copy", "directory into tmpfs", e))
}

fn open(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)
}

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> rustix::io::Result<()> {
    if depth > DEEPEST {
        return Err(Errno::LOOP);
    }
    let readable = open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&readable)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    // Wider only once it has its owner.
    let narrow = Mode::from_raw_mode(stat.st_mode & 0o700);
    let read = OFlags::RDONLY | OFlags::NONBLOCK;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, narrow)?;
            let source = open(from, name, read | OFlags::DIRECTORY, Mode::empty())?;
            let target = open(to, name, read | OFlags::DIRECTORY, Mode::empty())?;
            copy_dir(source.as_fd(), target.as_fd(), depth + 1)?;
            dress(&source, &target, &stat)
        }
        FileType::RegularFile => {
            let source = open(from, name, read, Mode::empty())?;
            let target = open(to, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, narrow)?;
            let (mut input, mut output) = (std::fs::File::from(source), std::fs::File::from(target));
            std::io::copy(&mut input, &mut output)
                .map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap_or(libc::EIO)))?;
            dress(&input.into(), &output.into(), &stat)
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(link, to, name)?;
            let (uid, gid) = owner(&stat);
            mapped(rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
        }
        // Sockets, pipes and device nodes have no content to bring along.
        _ => Ok(()),
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// An owner that the user namespace has no number for stays its root; all else that fails, fails.
fn mapped(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Owner, then attributes and mode: a change of owner takes set-user-id bits and capabilities away.
fn dress(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = owner(stat);
    mapped(rustix::fs::fchown(to, uid, gid))?;
    attributes(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn attributes(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0u8; 65536];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e),
    };
    for name in names[..length].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        // The label of the new place is that place's own, and `trusted` is the host's.
        if name.to_bytes() == b"security.selinux" || name.to_bytes().starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0u8; 65536];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // A kernel whose tmpfs has no attributes of that class.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    #[test]
    fn owners_modes_and_attributes_come_along() {
        // SAFETY: no arguments, no failure.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        std::fs::create_dir(from.path().join("dir")).unwrap();
        let file = from.path().join("dir/file");
        std::fs::write(&file, "content").unwrap();
        chown(&file, Some(12), Some(34)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).unwrap();
        chown(from.path().join("dir"), Some(56), Some(78)).unwrap();
        std::fs::set_permissions(from.path().join("dir"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("nowhere", from.path().join("link")).unwrap();
        std::os::unix::fs::lchown(from.path().join("link"), Some(9), Some(8)).unwrap();
        // `cap_net_bind_service=ep`, as setcap writes it.
        let mut capability = [0u8; 20];
        capability[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
        capability[4..8].copy_from_slice(&(1u32 << 10).to_le_bytes());
        rustix::fs::setxattr(&file, c"security.capability", &capability, XattrFlags::empty()).unwrap();

        let open_dir = |path: &std::path::Path| crate::paths::open_host_dir(path).unwrap();
        copy_up(open_dir(from.path()).as_fd(), open_dir(to.path()).as_fd()).unwrap();
        let look = |name: &str| std::fs::symlink_metadata(to.path().join(name)).unwrap();
        let (dir, file, link) = (look("dir"), look("dir/file"), look("link"));
        assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (56, 78, 0o1777));
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (12, 34, 0o4755));
        assert_eq!((link.uid(), link.gid()), (9, 8));
        let mut value = [0u8; 64];
        let length = rustix::fs::getxattr(to.path().join("dir/file"), c"security.capability", &mut value[..]).unwrap();
        assert_eq!(&value[..length], capability);
    }
}
