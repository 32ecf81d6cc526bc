//! What a machine sees of the host's file system: disk devices, shared volumes, persistent data, storage volumes.
//!
//! All are bind mounts, idmapped so that root inside owns what root outside owns and nothing is re-owned.

use std::path::{Component, Path, PathBuf};

use ilot_runtime::spec::Mount;
use ilot_spec::units::format_bytes;
use ilot_spec::{Device, Machine, Project};
use serde::{Deserialize, Serialize};

use crate::devices::{boolean, only};
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::record::MachineRecord;
use crate::storage::{Mounted, StorageRecord};

/// A directory or file of the host in a machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Where it is in the machine.
    pub path: PathBuf,
    /// What it is on the host.
    pub source: PathBuf,
    /// Not to be written.
    pub readonly: bool,
    /// Owners are translated (idmapped).
    pub shift: bool,
    /// Mounts made below the source appear in the machine.
    pub propagate: bool,
    /// Made when it is missing: persistent data, whose place is ilot's.
    pub make: bool,
    /// What is mounted below the source on the host comes with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
    /// The machine starts without it when the source is not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
    /// A volume of the store; `source` is empty then, for the store says where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageRecord>,
}

impl VolumeRecord {
    /// How the plan names it.
    pub(crate) fn value(&self) -> String {
        let mut text = match &self.storage {
            None => self.source.display().to_string(),
            Some(StorageRecord { name, size: None }) => format!("storage volume {name}"),
            Some(StorageRecord { name, size: Some(size) }) => format!("storage volume {name} {}", format_bytes(*size)),
        };
        if self.readonly {
            text.push_str(" read-only");
        }
        if !self.shift {
            text.push_str(" unshifted");
        }
        if self.propagate {
            text.push_str(" propagated");
        }
        if self.recursive {
            text.push_str(" recursive");
        }
        if self.optional {
            text.push_str(" optional");
        }
        text
    }

    pub(crate) fn field(&self) -> String {
        format!("volume {}", self.path.display())
    }

    pub(crate) fn mount(&self, paths: &Paths, machine: &MachineRecord) -> Mount {
        let source = self.storage.as_ref().map_or_else(|| self.source.clone(), |s| s.source(paths, &machine.name));
        // What holds for the source must hold for every mount below it that comes with it.
        let all = self.recursive || self.propagate;
        let mut options = if all { vec!["rbind", "rnosuid", "rnodev"] } else { vec!["bind", "nosuid", "nodev"] };
        // Nothing says `rw`: what the host mounted read-only stays so.
        if self.readonly {
            options.push(if all { "rro" } else { "ro" });
        }
        options.push(if self.propagate { "rslave" } else { "rprivate" });
        // Without a user namespace there is nothing to shift: the ids are the host's.
        if self.shift && !machine.privileged {
            options.push(if all { "ridmap" } else { "idmap" });
        }
        Mount {
            destination: self.path.to_string_lossy().into_owned(),
            kind: Some("bind".to_owned()),
            source: Some(source.to_string_lossy().into_owned()),
            options: options.into_iter().map(str::to_owned).collect(),
            ..Mount::default()
        }
    }

    /// Makes what is ilot's to make, and refuses what is not there. What it mounted stays until the value is dropped.
    pub(crate) fn ready(&self, paths: &Paths, machine: &str) -> Result<Option<Mounted>> {
        if let Some(storage) = &self.storage {
            return storage.ready(paths, machine);
        }
        if self.source.exists() {
            return Ok(None);
        }
        if self.make {
            return crate::paths::make_dir(&self.source, 0o755).map(|()| None);
        }
        if self.optional {
            return Ok(None);
        }
        Err(Error::Invalid {
            message: format!(
                "machine `{machine}`: `{}` for `{}` is not there",
                self.source.display(),
                self.path.display()
            ),
            help: Some(format!("make it: `mkdir -p {}`", self.source.display())),
        })
    }
}

impl VolumeRecord {
    /// Whether there is something to mount.
    pub(crate) fn is_there(&self) -> bool {
        !self.optional || self.source.exists()
    }

    /// One that every other kind begins with: written to, owners shifted, of nothing yet.
    pub(crate) fn at(path: PathBuf, source: PathBuf) -> Self {
        Self {
            path,
            source,
            readonly: false,
            shift: true,
            propagate: false,
            make: false,
            recursive: false,
            optional: false,
            storage: None,
        }
    }
}

/// Every volume of a machine, by path. Devices that are none are not in it.
pub(crate) fn of(project: &Project, machine: &Machine) -> Vec<VolumeRecord> {
    let mut volumes = Vec::new();
    for shared in &project.shared_volumes {
        if let Some(writable) = shared.consumers.get(&machine.name) {
            volumes.push(VolumeRecord {
                // A place that the file does not name is ilot's own to make.
                make: shared.source == project.global.shared_volumes_base.join(&shared.name),
                readonly: !writable,
                shift: shared.shift,
                propagate: shared.propagate,
                ..VolumeRecord::at(shared.path.clone(), shared.source.clone())
            });
        }
    }
    for data in machine.persistent_data.values() {
        volumes.push(VolumeRecord {
            readonly: data.readonly,
            make: true,
            ..VolumeRecord::at(data.path.clone(), data.source.clone())
        });
    }
    // What cannot be made keeps the machine from being made, with its reason.
    volumes.extend(disks(machine).filter_map(|(_, device)| disk(device).ok().flatten()));
    volumes.extend(crate::storage::of(machine).unwrap_or_default());
    volumes.sort();
    volumes
}

fn disks(machine: &Machine) -> impl Iterator<Item = (&String, &Device)> {
    machine.devices.iter().filter(|(_, device)| device.get("type").is_some_and(|kind| kind == "disk"))
}

/// A `disk` device that is a path of the host in the machine; `None`: it is the root disk, which the machine has anyway. Or
/// why it cannot be made.
fn disk(device: &Device) -> Result<Option<VolumeRecord>, String> {
    let get = |key: &str| device.get(key).map(String::as_str).filter(|text| !text.is_empty());
    if get("path") == Some("/") {
        if device.contains_key("size") {
            return Err("the native engine limits no disk size yet".to_owned());
        }
        return only(device, &["path", "pool"]).map(|()| None);
    }
    only(device, &["path", "propagation", "readonly", "recursive", "required", "shift", "source"]).map_err(|why| {
        if device.contains_key("pool") {
            "the native engine attaches paths of the host, no pools".to_owned()
        } else {
            why
        }
    })?;
    let source = get("source").ok_or("it has no `source`, an absolute path of the host")?;
    let Ok(source) = absolute(source) else {
        return Err(format!("`source: {source}` is not an absolute path of the host without `..`"));
    };
    let path = get("path").ok_or("it has no `path`")?;
    let path = absolute(path).map_err(|()| format!("`path: {path}` is not an absolute path without `..`"))?;
    let propagate = match get("propagation") {
        None | Some("private" | "rprivate") => false,
        Some("slave" | "rslave") => true,
        Some(other) => return Err(format!("`propagation: {other}` would reach back to this host")),
    };
    Ok(Some(VolumeRecord {
        readonly: boolean(device, "readonly", false)?,
        shift: boolean(device, "shift", true)?,
        propagate,
        recursive: boolean(device, "recursive", false)?,
        optional: !boolean(device, "required", true)?,
        ..VolumeRecord::at(path, source)
    }))
}

/// An absolute path that leads nowhere else, in its one spelling.
fn absolute(text: &str) -> Result<PathBuf, ()> {
    let path: PathBuf = Path::new(text).components().collect();
    let plain = path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    if plain { Ok(path) } else { Err(()) }
}

/// A `disk` that the native engine cannot attach, and why.
pub(crate) fn refused(machine: &Machine) -> Option<(String, String)> {
    disks(machine).find_map(|(name, device)| Some((format!("device `{name}` (disk)"), disk(device).err()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(options: &[(&str, &str)]) -> Device {
        [("type", "disk")].iter().chain(options).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn disks_are_honoured_or_refused() {
        let made = |options: &[(&str, &str)]| disk(&device(options)).unwrap().unwrap();
        let plain = made(&[("source", "/srv/x/"), ("path", "/x//y/")]);
        assert_eq!(plain, VolumeRecord::at("/x/y".into(), "/srv/x".into()));
        for yes in ["true", "True", "1", "yes", "on"] {
            let disk = made(&[("source", "/s"), ("path", "/p"), ("readonly", yes), ("recursive", yes)]);
            assert!(disk.readonly && disk.recursive, "{yes}");
        }
        for no in ["false", "0", "no", "Off"] {
            let disk = made(&[("source", "/s"), ("path", "/p"), ("shift", no), ("required", no)]);
            assert!(!disk.shift && disk.optional, "{no}");
        }
        assert!(made(&[("source", "/s"), ("path", "/p"), ("propagation", "rslave")]).propagate);
        assert_eq!(disk(&device(&[("path", "/"), ("pool", "default")])), Ok(None));
        for (options, why) in [
            (&[("path", "/"), ("pool", "default"), ("size", "10GiB")][..], "no disk size"),
            (&[("path", "/"), ("limits.read", "10MB")], "`limits.read`"),
            (&[("path", "/p"), ("pool", "default"), ("source", "data")], "no pools"),
            (&[("path", "/p")], "no `source`"),
            (&[("path", "/p"), ("source", "data")], "absolute path of the host"),
            (&[("path", "/p"), ("source", "/srv/../etc")], "without `..`"),
            (&[("path", "/p"), ("source", "/s"), ("readonly", "maybe")], "`readonly` must be"),
            (&[("path", "/p"), ("source", "/s"), ("propagation", "rshared")], "reach back"),
            (&[("path", "/p"), ("source", "/s"), ("raw.mount.options", "x")], "`raw.mount.options`"),
            (&[("path", "/p"), ("source", "/s"), ("limits.max", "10MB")], "`limits.max`"),
            (&[("path", "/p"), ("source", "/s"), ("io.cache", "none")], "`io.cache`"),
        ] {
            let said = disk(&device(options)).unwrap_err();
            assert!(said.contains(why), "{options:?}: {said}");
        }
    }
}
