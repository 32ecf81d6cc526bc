//! Storage volumes: directories of a machine's own that its replacement does not touch, with or without a size.
//!
//! They lie in the store, `volumes/<machine>/<name>`, and go with the machine. One without a size is a directory. One with a
//! size is an ext4 file system in a file that takes the room that is used; it is mounted below the run directory only for as
//! long as the machine is being put together. From then on the machine's own mount holds it: no path leads to it, and the
//! kernel lets go of it with the machine's last process.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ilot_spec::Machine;
use ilot_spec::units::{format_bytes, parse_bytes, parse_config_bool};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::paths::{Paths, make_dir};
use crate::volumes::VolumeRecord;

/// The smallest size that ext4 with its journal is of use in.
const SMALLEST: u64 = 8 << 20;

/// What makes a volume one of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StorageRecord {
    /// Its name in the file.
    pub name: String,
    /// Bytes that it may hold; everything that the store's file system has when absent.
    pub size: Option<u64>,
}

/// The storage volumes of a machine; the first one that cannot be made, and why.
pub(crate) fn of(machine: &Machine) -> std::result::Result<Vec<VolumeRecord>, (String, String)> {
    machine
        .storage_volumes
        .iter()
        .map(|(name, value)| read(name, value).map_err(|why| (format!("storage volume `{name}`"), why)))
        .collect()
}

fn read(name: &str, value: &Value) -> std::result::Result<VolumeRecord, String> {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(harmless) {
        return Err("its name needs letters, digits, `-`, `_` and `.`, 64 of them at most".to_owned());
    }
    let Some(keys) = value.as_object() else {
        return Err("write it as `{path: /where, size: 10GiB}`".to_owned());
    };
    let text = |key: &str| keys.get(key).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    for key in keys.keys() {
        if !["path", "size", "pool", "readonly"].contains(&key.as_str()) {
            return Err(format!("the native engine knows `path`, `size`, `readonly` and `pool`, not `{key}`"));
        }
    }
    if let Some(pool) = text("pool").filter(|pool| pool != "default") {
        return Err(format!("the native engine has one pool, `default`, and no `{pool}`"));
    }
    let path = text("path").unwrap_or_default();
    if !Path::new(&path).is_absolute() || path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty()
    {
        return Err("`path` says where it is in the machine: absolute, not `/`, without `..`".to_owned());
    }
    let size = match text("size") {
        None => None,
        Some(size) => match parse_bytes(&size).filter(|bytes| *bytes >= SMALLEST) {
            Some(bytes) => Some(bytes),
            None => return Err(format!("`size: {size}` is no size of {} or more", format_bytes(SMALLEST))),
        },
    };
    let readonly = match text("readonly").as_deref().map(parse_config_bool) {
        None => false,
        Some(Some(readonly)) => readonly,
        Some(None) => return Err("`readonly` must be `true` or `false`".to_owned()),
    };
    Ok(VolumeRecord {
        readonly,
        make: true,
        storage: Some(StorageRecord { name: name.to_owned(), size }),
        ..VolumeRecord::at(path.into(), PathBuf::new())
    })
}

impl StorageRecord {
    /// Where it lies: a directory `data` or a file `disk.ext4`.
    fn place(&self, paths: &Paths, machine: &str) -> PathBuf {
        paths.volumes(machine).join(&self.name)
    }

    /// What is bound into the machine.
    pub(crate) fn source(&self, paths: &Paths, machine: &str) -> PathBuf {
        match self.size {
            None => self.place(paths, machine).join("data"),
            Some(_) => paths.run.join("volumes").join(machine).join(&self.name),
        }
    }

    /// Makes it unless it is there, and mounts it if it is a file system of its own.
    pub(crate) fn ready(&self, paths: &Paths, machine: &str) -> Result<Option<Mounted>> {
        let place = self.place(paths, machine);
        let (data, disk) = (place.join("data"), place.join("disk.ext4"));
        let refuse = |message: String, help: &str| {
            let message = format!("machine `{machine}`: storage volume `{}`: {message}", self.name);
            Err(Error::Invalid { message, help: Some(help.to_owned()) })
        };
        make_dir(&place, 0o700)?;
        let Some(size) = self.size else {
            if disk.exists() {
                return refuse("it was made with a size".to_owned(), "give it a size again, or another name");
            }
            make_dir(&data, 0o755)?;
            return Ok(None);
        };
        if data.exists() {
            return refuse("it was made without a size".to_owned(), "take the size away, or give it another name");
        }
        let grown = match fs::metadata(&disk) {
            Err(_) => {
                make_disk(&place, &disk, size)?;
                false
            }
            Ok(file) if file.len() > size => {
                let is = format_bytes(file.len());
                return refuse(format!("it cannot shrink from {is} to {}", format_bytes(size)), "keep the larger size");
            }
            Ok(file) => file.len() < size,
        };
        if grown {
            let file = OpenOptions::new().write(true).open(&disk).map_err(Error::file("open", &disk))?;
            file.set_len(size).map_err(Error::file("enlarge", &disk))?;
            // Not mounted anywhere: the machine is about to start. `resize2fs` wants to have it checked before.
            program("e2fsck", &["-f", "-p"], &disk)?;
            program("resize2fs", &[], &disk)?;
        }
        Mounted::new(&disk, &self.source(paths, machine)).map(Some)
    }
}

/// A new file system, in place only when it is whole.
fn make_disk(place: &Path, disk: &Path, size: u64) -> Result<()> {
    let aside = place.join(".new");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .map_err(Error::file("make", &aside))?;
    file.set_len(size).map_err(Error::file("enlarge", &aside))?;
    program("mkfs.ext4", &["-q", "-F", "-m", "0"], &aside)?;
    file.sync_all().map_err(Error::file("write", &aside))?;
    fs::rename(&aside, disk).map_err(Error::file("make", disk))
}

/// Runs a program of e2fsprogs or util-linux on a file.
fn program(name: &str, args: &[&str], file: &Path) -> Result<()> {
    let output = Command::new(name).args(args).arg(file).stdin(Stdio::null()).output();
    let said = match output {
        // e2fsck says 1 when it has put something right.
        Ok(output) if output.status.success() || name == "e2fsck" && output.status.code() == Some(1) => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
        Err(e) => e.to_string(),
    };
    Err(Error::Invalid {
        message: format!("`{name}` failed on `{}`: {said}", file.display()),
        help: Some("volumes with a size need the packages e2fsprogs and mount, and loop devices".to_owned()),
    })
}

/// A volume's file system while the machine is put together.
#[derive(Debug)]
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(disk: &Path, at: &Path) -> Result<Self> {
        make_dir(at, 0o700)?;
        // What a killed command left.
        let _ = unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", "loop,nosuid,nodev,noatime", "--"])
            .args([disk, at])
            .stdin(Stdio::null())
            .output()
            .map_err(Error::file("mount", disk))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(Error::Invalid {
                message: format!("cannot mount `{}`: {said}", disk.display()),
                help: Some("volumes with a size need a free loop device: `losetup -a` shows who has them".to_owned()),
            });
        }
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays behind is taken away by the next start or the removal of the machine.
        let _ = unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_dir(&self.at);
    }
}

/// Removes the volumes of a machine that is removed for good.
pub(crate) fn remove(paths: &Paths, machine: &str) -> Result<()> {
    let mounts = paths.run.join("volumes").join(machine);
    for entry in fs::read_dir(&mounts).into_iter().flatten().flatten() {
        let _ = unmount(entry.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
    for dir in [mounts, paths.volumes(machine)] {
        crate::remove::remove_tree(&dir).map_err(|e| Error::file("remove", &dir)(e.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_honoured_is_said() {
        let said = |name: &str, text: &str| read(name, &serde_json::from_str(text).unwrap()).err().unwrap_or_default();
        assert_eq!(said("data", r#"{"path": "/data"}"#), "");
        assert_eq!(said("data", r#"{"path": "/data", "pool": "default", "size": "10GiB", "readonly": true}"#), "");
        for (name, text, wanted) in [
            ("../x", r#"{"path": "/data"}"#, "its name"),
            (".x", r#"{"path": "/data"}"#, "its name"),
            ("x", "null", "write it as"),
            ("x", r#"{"size": "10GiB"}"#, "`path`"),
            ("x", r#"{"path": "data"}"#, "`path`"),
            ("x", r#"{"path": "/a/../../etc"}"#, "`path`"),
            ("x", r#"{"path": "//"}"#, "`path`"),
            ("x", r#"{"path": "/x", "size": "much"}"#, "no size"),
            ("x", r#"{"path": "/x", "size": "1MiB"}"#, "8MiB or more"),
            ("x", r#"{"path": "/x", "pool": "fast"}"#, "no `fast`"),
            ("x", r#"{"path": "/x", "readonly": "maybe"}"#, "`readonly` must"),
            ("x", r#"{"path": "/x", "snapshots.schedule": "@daily"}"#, "not `snapshots.schedule`"),
        ] {
            assert!(said(name, text).contains(wanted), "{name} {text}: {}", said(name, text));
        }
    }
}
