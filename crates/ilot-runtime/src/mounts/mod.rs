//! Mounts made with descriptors only (`fsopen`, `open_tree`, `move_mount`): no path of the
//! container's tree is ever handed to the kernel as a string from the host's root.

pub mod options;
pub mod rootfs;

use crate::sys::{self, MountAttr};
use crate::{Error, Result};
use options::Options;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// An error of the mount API with what the kernel wrote about it.
pub fn explain(what: &'static str, on: &str, context: BorrowedFd<'_>, error: rustix::io::Errno) -> Error {
    let mut text = [0u8; 512];
    let said = match rustix::io::read(context, &mut text) {
        Ok(n) => String::from_utf8_lossy(&text[..n]).trim().to_owned(),
        Err(_) => String::new(),
    };
    // Messages look like `e overlay: No such …`.
    let said = said.split_once(' ').map_or("", |(_, rest)| rest);
    let on = if said.is_empty() { on.to_owned() } else { format!("{on} ({said})") };
    Error::system(what, on, error)
}

/// Makes a file system and a mount of it, attached nowhere.
pub fn new_filesystem(kind: &str, source: Option<&str>, options: &Options) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Error::system("mount file system", format!("`{kind}`"), e))?;
    let fd = context.as_fd();
    let set = |key: &str, value: Option<&str>| {
        match value {
            Some(value) => fsconfig_set_string(fd, key, value),
            None => fsconfig_set_flag(fd, key),
        }
        .map_err(|e| explain("set mount option", &format!("`{key}` of `{kind}`"), fd, e))
    };
    if let Some(source) = source {
        set("source", Some(source))?;
    }
    configure(options, set)?;
    fsconfig_create(fd).map_err(|e| explain("mount file system", &format!("`{kind}`"), fd, e))?;
    fsmount(fd, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(options.new_mount() as u32))
        .map_err(|e| explain("mount file system", &format!("`{kind}`"), fd, e))
}

/// Hands flags and parameters of a file system to `set`.
fn configure(options: &Options, set: impl Fn(&str, Option<&str>) -> Result<()>) -> Result<()> {
    options.flags.iter().try_for_each(|flag| set(flag, None))?;
    options.data.iter().try_for_each(|item| match item.split_once('=') {
        Some((key, value)) => set(key, Some(value)),
        None => set(item, None),
    })
}

/// Changes parameters of the file system that is mounted at a place.
pub fn reconfigure(place: BorrowedFd<'_>, on: &str, options: &Options) -> Result<()> {
    let context = fspick(place, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)
        .map_err(|e| Error::system("remount", format!("`{on}`"), e))?;
    let fd = context.as_fd();
    configure(options, |key, value| {
        match value {
            Some(value) => fsconfig_set_string(fd, key, value),
            None => fsconfig_set_flag(fd, key),
        }
        .map_err(|e| explain("set mount option", &format!("`{key}` of `{on}`"), fd, e))
    })?;
    fsconfig_reconfigure(fd).map_err(|e| explain("remount", &format!("`{on}`"), fd, e))
}

/// Clones the mount at a path of the host, with all below it if `recursive`, attached nowhere.
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|e| Error::path("bind", path, e))
}

/// Clones the mount of a descriptor, attached nowhere.
pub fn clone_fd(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags)
}

/// Attaches a mount at the place of a descriptor.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_mount(mount, "", target, "", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// Applies the attributes of a bind mount.
pub fn apply_changes(mount: BorrowedFd<'_>, options: &Options, on: &str) -> Result<()> {
    for (attr, recursive) in options.changes() {
        sys::mount_setattr(mount, recursive, &attr).map_err(|e| Error::system("set mount attributes", on, e))?;
    }
    Ok(())
}

/// Makes a mount idmapped.
pub fn idmap(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let attr = MountAttr { set: sys::ATTR_IDMAP, userns: userns.as_raw_fd() as u64, ..Default::default() };
    sys::mount_setattr(mount, recursive, &attr)
}
