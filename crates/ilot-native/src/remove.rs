//! Removal of trees that a machine's root shaped.
//!
//! Directories can be nested deeper than a process may have open descriptors, and paths longer than the kernel takes, by
//! whoever makes them step by step. So the walk keeps few descriptors open: what lies deeper than [`DEPTH`] is first
//! moved to the top of the tree, and removed from there.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// Directories in directories that are walked before the rest is moved up.
const DEPTH: usize = 32;
/// How often a directory that somebody writes into is emptied again before giving up.
const TRIES: usize = 16;

/// Removes a file or a tree, never following a link. None is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Errno> {
    let stat = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(CWD, path, AtFlags::empty());
    }
    // Whoever else removes it at the same time (a keeper that ends) has done our work.
    ignore_missing(remove_dir(path))
}

fn remove_dir(path: &Path) -> Result<(), Errno> {
    let top = open_dir(CWD, path.as_os_str())?;
    let mut walk = Walk { top: top.as_fd(), moved: 0 };
    // What is moved up while walking appears in the top directory again, and somebody may still write into it.
    for _ in 0..TRIES {
        loop {
            let before = walk.moved;
            walk.content(top.as_fd(), 0)?;
            if walk.moved == before {
                break;
            }
        }
        match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return done,
        }
    }
    Err(Errno::NOTEMPTY)
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
}

impl Walk<'_> {
    fn content(&mut self, dir: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
        let names: Vec<(CString, FileType)> = Dir::read_from(dir)?
            .filter_map(|entry| match entry {
                Ok(entry) => {
                    let name = entry.file_name();
                    let own = name.to_bytes() != b"." && name.to_bytes() != b"..";
                    own.then(|| Ok((name.to_owned(), entry.file_type())))
                }
                Err(e) => Some(Err(e)),
            })
            .collect::<Result<_, _>>()?;
        for (name, kind) in names {
            if kind == FileType::Directory || (kind == FileType::Unknown && is_dir(dir, &name)) {
                self.directory(dir, &name, depth)?;
            } else {
                ignore_missing(unlinkat(dir, &name, AtFlags::empty()))?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, parent: BorrowedFd<'_>, name: &CString, depth: usize) -> Result<(), Errno> {
        if depth >= DEPTH {
            self.moved += 1;
            let aside = format!(".ilot-deep-{}-{}", std::process::id(), self.moved);
            return ignore_missing(renameat(parent, name, self.top, aside));
        }
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            done => return ignore_missing(done),
        }
        match open_dir(parent, OsStr::from_bytes(name.as_bytes())) {
            Ok(dir) => self.content(dir.as_fd(), depth + 1)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        }
        ignore_missing(unlinkat(parent, name, AtFlags::REMOVEDIR))
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn is_dir(dir: BorrowedFd<'_>, name: &CString) -> bool {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeper_than_descriptors_and_paths_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mut at = open_dir(CWD, root.as_os_str()).unwrap();
        for _ in 0..2500 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            at = open_dir(at.as_fd(), OsStr::new("d")).unwrap();
        }
        drop(at);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(Path::new("/etc").exists());
    }

    #[test]
    fn two_may_remove_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let root = dir.path().join(format!("root-{round}"));
            for i in 0..40 {
                std::fs::create_dir_all(root.join(format!("{i}/a/b"))).unwrap();
            }
            std::thread::scope(|scope| {
                let other = scope.spawn(|| remove_tree(&root));
                assert_eq!(remove_tree(&root), Ok(()));
                assert_eq!(other.join().unwrap(), Ok(()));
            });
            assert!(!root.exists());
        }
    }

    #[test]
    fn links_are_removed_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(&kept, root.join("link")).unwrap();
        remove_tree(&root).unwrap();
        assert!(kept.join("file").exists());
        remove_tree(&root).unwrap();
        std::os::unix::fs::symlink(&kept, &root).unwrap();
        remove_tree(&root).unwrap();
        assert!(kept.join("file").exists() && !root.is_symlink());
    }
}
