//! Removes trees that an adversary made: as deep as he likes, with a bounded stack and a bounded number of descriptors.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

/// Removes what is at `path`, a folder with all that is in it, following no link. Nothing there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let name = CString::new(name.as_encoded_bytes())?;
    let parent = match fs::File::open(parent) {
        Ok(parent) => parent,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    match remove_at(parent.as_fd(), &name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes `name` of a folder, and all that is in it.
///
/// A folder that is not empty is moved up to the top of what is removed, and emptied from there: a tree of ten thousand
/// levels needs no more than one of two.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let top = open(parent, name)?;
    let mut moved = 0u64;
    loop {
        let folders = empty(&top, &top, &mut moved)?;
        if folders.is_empty() {
            break;
        }
        for folder in folders {
            let fd = open(top.as_fd(), &folder)?;
            empty(&fd, &top, &mut moved)?;
            unlinkat(&top, &*folder, AtFlags::REMOVEDIR)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Takes everything out of a folder: files go, empty folders go, full ones are moved into `top`. The folders of `top`
/// itself stay and are given.
fn empty(folder: &OwnedFd, top: &OwnedFd, moved: &mut u64) -> Result<Vec<CString>, Errno> {
    let is_top = std::ptr::eq(folder, top);
    let mut left = Vec::new();
    for item in Dir::read_from(folder)? {
        let item = item?;
        let name = item.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            other => {
                other?;
                continue;
            }
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => {
                other?;
                continue;
            }
        }
        if is_top {
            left.push(name.to_owned());
            continue;
        }
        loop {
            *moved += 1;
            // The tree may have that name itself: then the next one.
            let to = format!(".gone-{moved}");
            match renameat_with(folder, name, top, to.as_str(), RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                other => break other?,
            }
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_a_path_is_removed_with_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        fs::create_dir(&path).unwrap();
        let top: OwnedFd = fs::File::open(&path).unwrap().into();
        fs::write(path.join(".gone-3"), "in the way").unwrap();
        std::os::unix::fs::symlink("/etc", path.join("link")).unwrap();
        let mut at = top.try_clone().unwrap();
        for _ in 0..6000 {
            for name in [c"a", c"b"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            }
            rustix::fs::mkdirat(&at, c"b/full", Mode::RWXU).unwrap();
            at = open(at.as_fd(), c"a").unwrap();
        }
        let open_before = fs::read_dir("/proc/self/fd").unwrap().count();
        remove(&path).unwrap();
        assert!(!path.exists() && Path::new("/etc").exists());
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() <= open_before + 4);
        remove(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
