//! Standard streams that come from outside of a container: named when it is written down, connected to the caller's own
//! when it comes back. The names are kept beside CRIU's images, in the file that runc and crun use for it.

use super::mounts::Mounts;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The file in the folder of images: a list of three strings.
pub const FILE: &str = "descriptors.json";

/// What the standard streams of process 1 are, by the names that CRIU knows them by: `pipe:[…]`, and for what CRIU
/// would not find in the container's mounts `file[…]` or `tty[…]`. Anything else is a name for people only.
pub fn names(init: i32, pids: &[i32], mounts: &Mounts) -> [String; 3] {
    [0, 1, 2].map(|number| name(init, number, pids, mounts))
}

fn name(init: i32, number: i32, pids: &[i32], mounts: &Mounts) -> String {
    let path = format!("/proc/{init}/fd/{number}");
    let Ok(link) = fs::read_link(&path) else { return String::new() };
    let link = link.to_string_lossy().into_owned();
    if link.starts_with("pipe:") {
        // One that has both its ends inside is the container's own.
        return if is_inside(&link, pids) { String::new() } else { link };
    }
    let (Ok(meta), Some(mount)) = (fs::metadata(&path), mount_of(init, number)) else { return link };
    if !link.starts_with('/') || mounts.has(mount) {
        return link;
    }
    let terminal = matches!(rustix::fs::major(meta.rdev()), 4 | 5 | 136..=143);
    if meta.mode() & libc::S_IFMT == libc::S_IFCHR && terminal {
        return format!("tty[{:x}:{:x}]", meta.rdev(), meta.dev());
    }
    // CRIU wants one of the same kind and permissions.
    format!("file[{mount:x}:{:x}] {:o}", meta.ino(), meta.mode())
}

/// The mount that an open file is on, `proc_pid_fdinfo(5)`.
fn mount_of(pid: i32, number: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Whether both ends of a pipe are held by these processes.
fn is_inside(pipe: &str, pids: &[i32]) -> bool {
    let mut ends = BTreeSet::new();
    for pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            if fs::read_link(entry.path()).is_ok_and(|l| l.as_os_str() == pipe) {
                // The link's own mode says how the file was opened.
                let mode = fs::symlink_metadata(entry.path()).map_or(0, |m| m.mode());
                ends.extend([0o400, 0o200].into_iter().filter(|bit| mode & bit != 0));
            }
        }
    }
    ends.len() == 2
}

/// The name by which CRIU knows a stream.
pub fn key(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

/// Whether CRIU has to be told about a stream when it writes the container down.
pub fn is_external(name: &str) -> bool {
    name.starts_with("file[") || name.starts_with("tty[")
}

/// Whether a stream is connected to the caller's when the container comes back.
pub fn is_inherited(name: &str) -> bool {
    name.starts_with("pipe:[") || is_external(name)
}

/// Whether a stream of the caller's can take the place of one that is named so: CRIU opens files and terminals anew. What
/// was a device that leads nowhere is one again if the caller has none (`Ok(false)`).
pub fn fits(name: &str, number: usize, stream: BorrowedFd<'_>) -> Result<bool> {
    let mode = name.split_once(' ').and_then(|(_, mode)| u32::from_str_radix(mode, 8).ok());
    let (wanted, fits) = match mode {
        _ if name.starts_with("tty[") => ("a terminal".to_owned(), rustix::termios::isatty(stream)),
        Some(mode) => {
            let found = rustix::fs::fstat(stream).map_or(0, |s| s.st_mode);
            (format!("a file with permissions {:o}", mode & 0o7777), found == mode)
        }
        None => return Ok(true),
    };
    let nowhere = mode.is_some_and(|mode| mode & libc::S_IFMT == libc::S_IFCHR);
    if fits || nowhere {
        return Ok(fits);
    }
    Err(Error::invalid(
        format!("standard {}", ["input", "output", "error"][number]),
        format!("it was {wanted} when the checkpoint was made, and is none now: redirect it to one"),
    ))
}

/// Writes the names into a folder of images.
pub fn write(images: &Path, names: &[String]) -> Result<()> {
    let path = images.join(FILE);
    let text = serde_json::to_vec(names).map_err(|e| Error::invalid(FILE, e.to_string()))?;
    fs::write(&path, text).map_err(|e| Error::path("write", &path, e))
}

/// Reads the names from a folder of images.
pub fn read(images: &Path) -> Result<Vec<String>> {
    let path = images.join(FILE);
    let names: Option<Vec<String>> = crate::record::read_json(&path)?;
    names.ok_or_else(|| {
        Error::invalid(format!("folder `{}`", images.display()), format!("there is no checkpoint in it (no `{FILE}`)"))
    })
}
