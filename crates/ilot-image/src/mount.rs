//! An image's files at a path of the host, to be looked at: read-only, without set-id programs and devices.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};
use serde::Serialize;

use crate::blob;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::Store;
use crate::types::{Digest, Image};

/// The trust level of the host's own eyes: no machine's, so that no machine shares a page with it.
const TRUST: &str = "mounted";

/// An image that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mounted {
    /// Where.
    pub path: PathBuf,
    /// Which image.
    pub digest: Digest,
}

impl Store {
    /// Mounts an image's files below `at`, a folder that is empty or not there. Needs root.
    ///
    /// # Errors
    /// When the folder has something in it, the image is damaged, or the kernel refuses.
    pub fn mount(&self, image: &Image, at: &Path, progress: &dyn Progress) -> Result<Mounted> {
        let existed = at.is_dir();
        fs::create_dir_all(at).map_err(|e| Error::io("make folder", at, e))?;
        let at = fs::canonicalize(at).map_err(|e| Error::io("find", at, e))?;
        let is_empty = fs::read_dir(&at).map_err(|e| Error::io("read folder", &at, e))?.next().is_none();
        let is_taken = mounts()?.iter().any(|mount| mount.path == at);
        if !is_empty || is_taken {
            return Err(Error::Host {
                what: format!("mount at {}", at.display()),
                reason: if is_taken { "something is mounted there" } else { "the folder is not empty" }.to_owned(),
                help: Some("name another folder; one that is not there is made".to_owned()),
            });
        }
        let mounted =
            self.materialize_with(image, TRUST, progress).and_then(|layers| self.attach_at(image, &layers, &at));
        progress.finished();
        if mounted.is_err() && !existed {
            let _ = fs::remove_dir(&at);
        }
        mounted.map(|()| Mounted { path: at, digest: image.digest.clone() })
    }

    fn attach_at(&self, image: &Image, layers: &[PathBuf], at: &Path) -> Result<()> {
        // An overlay without a writable layer needs two others: one of them may be empty.
        let empty = self.root().join("images/empty");
        fs::create_dir_all(&empty).map_err(|e| Error::io("make folder", &empty, e))?;
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).chain([empty.as_path()]).collect();
        let source = format!("{}{}", self.mark(), image.digest);
        let overlay = || -> rustix::io::Result<rustix::fd::OwnedFd> {
            let begin = || -> rustix::io::Result<rustix::fd::OwnedFd> {
                let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
                fsconfig_set_string(context.as_fd(), "source", source.as_str())?;
                Ok(context)
            };
            let mut context = begin()?;
            let one_by_one = layers.iter().try_for_each(|l| fsconfig_set_string(context.as_fd(), "lowerdir+", *l));
            if one_by_one.is_err() {
                // Kernels before 6.5 take them all at once.
                context = begin()?;
                let names: Vec<String> = layers.iter().map(|l| escape(l)).collect();
                fsconfig_set_string(context.as_fd(), "lowerdir", names.join(":"))?;
            }
            fsconfig_create(context.as_fd())?;
            let safe = MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV;
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, safe)
        };
        let failed = |e: rustix::io::Errno| match e {
            rustix::io::Errno::PERM => Error::Host {
                what: format!("mount at {}", at.display()),
                reason: "not permitted".to_owned(),
                help: Some("mounting needs root: run it with `sudo`".to_owned()),
            },
            e => Error::io("mount at", at, e),
        };
        let mount = overlay().map_err(failed)?;
        move_mount(mount.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed)?;
        // What is mounted below it later stays here, and does not travel to others.
        mount_change(at, MountPropagationFlags::PRIVATE).map_err(failed)
    }

    /// By what mounts of this store are told from others'.
    fn mark(&self) -> String {
        let root = self.root().as_os_str().as_encoded_bytes();
        format!("ilot-image:{}:", blob::digest_of(root).short())
    }

    /// The images of this store that are mounted, as far as this process sees mounts.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn mounted(&self) -> Result<Vec<Mounted>> {
        let mark = self.mark();
        let of = |mount: Mount| {
            let digest = mount.source.strip_prefix(&mark)?.parse().ok()?;
            Some(Mounted { path: mount.path, digest })
        };
        Ok(mounts()?.into_iter().filter_map(of).collect())
    }

    /// Takes mounts of this store away: the one at a path, or all of an image. A folder that is empty then stays.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is none, and when somebody is still in it.
    pub fn unmount(&self, what: &str) -> Result<Vec<Mounted>> {
        let path = fs::canonicalize(what).ok();
        let digest = self.resolve(what).ok().flatten().map(|image| image.digest);
        let fits = |m: &Mounted| path.as_ref() == Some(&m.path) || digest.as_ref() == Some(&m.digest);
        let all: Vec<Mounted> = self.mounted()?.into_iter().filter(fits).collect();
        if all.is_empty() {
            return Err(Error::Host {
                what: format!("unmount `{what}`"),
                reason: "neither a path nor an image that is mounted from this store".to_owned(),
                help: Some("`ilot image mount` without arguments lists what is".to_owned()),
            });
        }
        for mount in &all {
            unmount(&mount.path, UnmountFlags::NOFOLLOW).map_err(|e| match e {
                rustix::io::Errno::BUSY => Error::Host {
                    what: format!("unmount {}", mount.path.display()),
                    reason: "somebody is in it, or has a file of it open".to_owned(),
                    help: Some(format!("`fuser -vm {}` says who", mount.path.display())),
                },
                e => Error::io("unmount", &mount.path, e),
            })?;
        }
        Ok(all)
    }
}

/// The old list of layers is parted by colons.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

struct Mount {
    path: PathBuf,
    source: String,
}

/// The mounts that this process sees (proc_pid_mountinfo(5)).
fn mounts() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let of = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let path = PathBuf::from(unescape(before.split(' ').nth(4)?));
        Some(Mount { path, source: unescape(after.split(' ').nth(1)?) })
    };
    Ok(text.lines().filter_map(of).collect())
}

/// `\040` is a space.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernels_escapes() {
        assert_eq!(super::unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(super::unescape(r"/plain"), "/plain");
        assert_eq!(super::escape("/a:b".as_ref()), r"/a\:b");
    }
}
