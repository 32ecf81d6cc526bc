//! Device nodes of the host in a machine: `unix-char`, `gpu`, `usb`.
//!
//! A user namespace can make no nodes, and the host's own nodes belong to nobody inside. So a node of the same device is
//! made in the machine's place in the store, owned by the machine's ids, and bound into its `/dev` at each start. What the
//! machine may open of all devices is also written to its control group, on v1 and v2.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ilot_runtime::spec::{DeviceRule, Mount};
use ilot_spec::Device;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use serde::{Deserialize, Serialize};

use super::{DeviceRecord, boolean, number, only, owner};
use crate::error::{Error, Result};
use crate::ids;
use crate::paths::{Paths, make_dir, remove_tree};
use crate::record::MachineRecord;

/// Owner and permissions inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOwner {
    /// User inside.
    pub uid: u32,
    /// Group inside.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
}

impl Default for NodeOwner {
    fn default() -> Self {
        Self { uid: 0, gid: 0, mode: 0o660 }
    }
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixCharRecord {
    /// The node on the host.
    pub source: PathBuf,
    /// Where it is in the machine.
    pub path: PathBuf,
    /// Whose it is inside.
    pub owner: NodeOwner,
    /// The machine does not start without it.
    pub required: bool,
}

/// Graphics cards; all of them without a choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    /// PCI address, `0000:01:00.0`.
    pub pci: Option<String>,
    /// Number of the card (`card0`).
    pub id: Option<u32>,
    /// Four hexadecimal digits.
    pub vendorid: Option<String>,
    /// Four hexadecimal digits.
    pub productid: Option<String>,
    /// Whose the nodes are inside.
    pub owner: NodeOwner,
}

/// USB devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbRecord {
    /// Four hexadecimal digits.
    pub vendorid: Option<String>,
    /// Four hexadecimal digits.
    pub productid: Option<String>,
    /// The serial number.
    pub serial: Option<String>,
    /// Number of the bus.
    pub busnum: Option<u32>,
    /// Number on the bus.
    pub devnum: Option<u32>,
    /// Whose the nodes are inside.
    pub owner: NodeOwner,
    /// The machine does not start without it.
    pub required: bool,
}

pub(super) fn unix_char(device: &Device) -> Result<UnixCharRecord, String> {
    only(device, &["gid", "mode", "path", "required", "source", "uid"])?;
    let get = |key: &str| device.get(key).map(PathBuf::from);
    let source = get("source").or(get("path")).ok_or("it has no `path`")?;
    let path = get("path").unwrap_or_else(|| source.clone());
    let plain = |path: &Path| path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir);
    if !plain(&path) || !plain(&source) {
        return Err("`path` and `source` must be absolute, without `..`".to_owned());
    }
    if !path.starts_with("/dev") {
        return Err(format!("`{}` is not below /dev", path.display()));
    }
    Ok(UnixCharRecord { source, path, owner: owner(device, 0o660)?, required: boolean(device, "required", true)? })
}

fn hex(device: &Device, key: &str) -> Result<Option<String>, String> {
    let Some(text) = device.get(key) else { return Ok(None) };
    let text = text.trim_start_matches("0x").to_ascii_lowercase();
    if text.len() != 4 || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(format!("`{key}: {text}` is not four hexadecimal digits"));
    }
    Ok(Some(text))
}

pub(super) fn gpu(device: &Device) -> Result<GpuRecord, String> {
    only(device, &["gid", "gputype", "id", "mode", "pci", "productid", "uid", "vendorid"])?;
    if let Some(kind) = device.get("gputype").filter(|kind| *kind != "physical") {
        return Err(format!("the native engine passes whole cards on, no `gputype: {kind}`"));
    }
    let pci = device.get("pci").map(|text| text.to_ascii_lowercase());
    let pci = pci.map(|text| if text.matches(':').count() == 1 { format!("0000:{text}") } else { text });
    Ok(GpuRecord {
        pci,
        id: number(device, "id")?,
        vendorid: hex(device, "vendorid")?,
        productid: hex(device, "productid")?,
        owner: owner(device, 0o660)?,
    })
}

pub(super) fn usb(device: &Device) -> Result<UsbRecord, String> {
    only(device, &["busnum", "devnum", "gid", "mode", "productid", "required", "serial", "uid", "vendorid"])?;
    let record = UsbRecord {
        vendorid: hex(device, "vendorid")?,
        productid: hex(device, "productid")?,
        serial: device.get("serial").cloned(),
        busnum: number(device, "busnum")?,
        devnum: number(device, "devnum")?,
        owner: owner(device, 0o660)?,
        required: boolean(device, "required", false)?,
    };
    let chosen =
        [record.vendorid.is_some(), record.serial.is_some(), record.busnum.is_some() && record.devnum.is_some()];
    if chosen.contains(&true) {
        Ok(record)
    } else {
        Err("say which: `vendorid` and `productid`, `serial`, or `busnum` and `devnum`".to_owned())
    }
}

/// A node to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: PathBuf,
    major: u32,
    minor: u32,
    owner: NodeOwner,
}

/// Looks at a node of the host; `None` when nothing is there.
fn look(root: &Path, source: &Path, path: &Path, owner: NodeOwner) -> Result<Option<Node>> {
    let real = root.join(source.strip_prefix("/").unwrap_or(source));
    let meta = match fs::metadata(&real) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::file("look at", real)(e)),
    };
    if !meta.file_type().is_char_device() {
        return Err(Error::Invalid { message: format!("`{}` is no character device", source.display()), help: None });
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok(Some(Node { path: path.to_owned(), major, minor, owner }))
}

/// Every node of a device, or why there is none.
fn nodes_of(root: &Path, device: &DeviceRecord) -> Result<Vec<Node>> {
    let missing = |what: String, cure: &str| Err(Error::Invalid { message: what, help: Some(cure.to_owned()) });
    match device {
        DeviceRecord::UnixChar(char) => match look(root, &char.source, &char.path, char.owner)? {
            Some(node) => Ok(vec![node]),
            None if !char.required => Ok(Vec::new()),
            None => missing(
                format!("`{}` is not there", char.source.display()),
                "load the driver that makes it, or write `required: false`",
            ),
        },
        DeviceRecord::Gpu(gpu) => {
            let nodes = gpu_nodes(root, gpu)?;
            if nodes.is_empty() {
                let what = if *gpu == (GpuRecord { owner: gpu.owner, ..GpuRecord::default() }) {
                    "this host has no graphics card (nothing in /dev/dri, no /dev/nvidia0)"
                } else {
                    "this host has no such graphics card"
                };
                return missing(what.to_owned(), "`ls -l /sys/class/drm` shows the cards and their PCI addresses");
            }
            Ok(nodes)
        }
        DeviceRecord::Usb(usb) => {
            let nodes = usb_nodes(root, usb)?;
            if nodes.is_empty() && usb.required {
                return missing(
                    "no such USB device is plugged in".to_owned(),
                    "plug it in, or remove `required: true`",
                );
            }
            Ok(nodes)
        }
        DeviceRecord::Proxy(_) | DeviceRecord::Nic(_) => Ok(Vec::new()),
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Names in a directory, sorted; none without it.
fn list(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The nodes of graphics cards: those of the kernel's DRM, and NVIDIA's own.
fn gpu_nodes(root: &Path, gpu: &GpuRecord) -> Result<Vec<Node>> {
    let any = gpu.pci.is_none() && gpu.id.is_none() && gpu.vendorid.is_none() && gpu.productid.is_none();
    let drm = root.join("sys/class/drm");
    let mut nodes = Vec::new();
    let mut add = |path: PathBuf| -> Result<()> {
        nodes.extend(look(root, &path, &path, gpu.owner)?);
        Ok(())
    };
    let id = |dir: &Path, file: &str| read(&dir.join(file)).map(|t| t.trim_start_matches("0x").to_owned());
    let mut cards: Vec<PathBuf> = Vec::new();
    for name in list(&drm) {
        // `card0-HDMI-A-1` and the like are connectors.
        let Some(number) = name.strip_prefix("card").and_then(|n| n.parse::<u32>().ok()) else { continue };
        let dir = drm.join(&name).join("device");
        let address = fs::canonicalize(&dir).ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
        let fits = gpu.pci.as_ref().is_none_or(|pci| address.as_ref() == Some(pci))
            && gpu.id.is_none_or(|id| id == number)
            && gpu.vendorid.as_ref().is_none_or(|v| id(&dir, "vendor").as_ref() == Some(v))
            && gpu.productid.as_ref().is_none_or(|p| id(&dir, "device").as_ref() == Some(p));
        if fits {
            for node in list(&dir.join("drm")) {
                add(Path::new("/dev/dri").join(node))?;
            }
            cards.push(dir);
        }
    }
    let nvidia: Vec<&PathBuf> = cards.iter().filter(|dir| id(dir, "vendor").as_deref() == Some("10de")).collect();
    let minors: Vec<u32> = if any {
        list(&root.join("dev")).iter().filter_map(|n| n.strip_prefix("nvidia")?.parse().ok()).collect()
    } else {
        nvidia.iter().filter_map(|dir| nvidia_minor(root, dir)).collect()
    };
    for minor in &minors {
        add(PathBuf::from(format!("/dev/nvidia{minor}")))?;
    }
    if !minors.is_empty() {
        for shared in ["nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools"] {
            add(Path::new("/dev").join(shared))?;
        }
    }
    Ok(nodes)
}

/// The number in `/dev/nvidiaN` of a card, as NVIDIA's driver says it.
fn nvidia_minor(root: &Path, card: &Path) -> Option<u32> {
    let address = fs::canonicalize(card).ok()?.file_name()?.to_owned();
    let text = read(&root.join("proc/driver/nvidia/gpus").join(address).join("information"))?;
    text.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse().ok())
}

/// The nodes of USB devices that fit.
fn usb_nodes(root: &Path, usb: &UsbRecord) -> Result<Vec<Node>> {
    let top = root.join("sys/bus/usb/devices");
    let mut nodes = Vec::new();
    for name in list(&top) {
        let dir = top.join(name);
        // Interfaces of devices have no numbers.
        let number = |file: &str| read(&dir.join(file)).and_then(|t| t.parse::<u32>().ok());
        let (Some(bus), Some(device)) = (number("busnum"), number("devnum")) else { continue };
        let fits = |wanted: &Option<String>, file: &str| wanted.is_none() || read(&dir.join(file)) == *wanted;
        let fits = fits(&usb.vendorid, "idVendor")
            && fits(&usb.productid, "idProduct")
            && fits(&usb.serial, "serial")
            && usb.busnum.is_none_or(|n| n == bus)
            && usb.devnum.is_none_or(|n| n == device);
        if fits {
            let path = PathBuf::from(format!("/dev/bus/usb/{bus:03}/{device:03}"));
            nodes.extend(look(root, &path, &path, usb.owner)?);
        }
    }
    Ok(nodes)
}

/// Makes the machine's nodes anew and says how they are mounted, and which devices it may open.
pub(crate) fn prepare(paths: &Paths, record: &MachineRecord) -> Result<(Vec<Mount>, Vec<DeviceRule>)> {
    let dir = paths.machine(&record.name).join("devices");
    remove_tree(&dir)?;
    let mut nodes: Vec<Node> = Vec::new();
    for (name, device) in &record.devices {
        let found = nodes_of(Path::new("/"), device).map_err(|error| Error::Invalid {
            help: error.help(),
            message: format!("machine `{}`: device `{name}`: {error}", record.name),
        })?;
        nodes.extend(found);
    }
    if nodes.is_empty() {
        // No namespace keeps a privileged machine from the host's disks: the control group does.
        let closed = if record.privileged { rules(&[]) } else { Vec::new() };
        return Ok((Vec::new(), closed));
    }
    make_dir(&dir, 0o700)?;
    let mut mounts = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let place = dir.join(number.to_string());
        make_node(&place, node, record.id_base)?;
        mounts.push(Mount {
            destination: node.path.to_string_lossy().into_owned(),
            kind: Some("bind".to_owned()),
            source: Some(place.to_string_lossy().into_owned()),
            options: ["bind", "nosuid", "noexec", "rprivate"].map(str::to_owned).to_vec(),
            ..Mount::default()
        });
    }
    Ok((mounts, rules(&nodes)))
}

fn make_node(place: &Path, node: &Node, id_base: u32) -> Result<()> {
    let (uid, gid) = (node.owner.uid, node.owner.gid);
    if uid >= ids::SIZE || gid >= ids::SIZE {
        return Err(Error::Invalid {
            message: format!("`{}`: no machine has the id {}", node.path.display(), uid.max(gid)),
            help: Some(format!("ids inside are 0 to {}", ids::SIZE - 1)),
        });
    }
    let fail = |operation: &'static str| {
        let place = place.to_owned();
        move |e: rustix::io::Errno| Error::file(operation, place)(e.into())
    };
    let mode = Mode::from_raw_mode(node.owner.mode);
    let id = rustix::fs::makedev(node.major, node.minor);
    rustix::fs::mknodat(CWD, place, FileType::CharacterDevice, mode, id).map_err(fail("make"))?;
    // The umask counts for a new node, not for a change.
    rustix::fs::chmodat(CWD, place, mode, AtFlags::empty()).map_err(fail("chmod"))?;
    let (uid, gid) = (Uid::from_raw(id_base + uid), Gid::from_raw(id_base + gid));
    rustix::fs::chownat(CWD, place, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("chown"))
}

/// Everything that a container has anyway (runtime-spec, `config-linux.md`, "Default Devices"), and these.
fn rules(nodes: &[Node]) -> Vec<DeviceRule> {
    let allow = |major: u32, minor: Option<u32>, access: &str| DeviceRule {
        allow: true,
        kind: Some("c".to_owned()),
        major: Some(i64::from(major)),
        minor: minor.map(i64::from),
        access: Some(access.to_owned()),
    };
    let nothing = DeviceRule { allow: false, kind: Some("a".to_owned()), major: None, minor: None, access: None };
    let mut rules = vec![nothing];
    // null, zero, full, random, urandom; tty, console, ptmx; terminals.
    rules.extend([3, 5, 7, 8, 9].map(|minor| allow(1, Some(minor), "rwm")));
    rules.extend([0, 1, 2].map(|minor| allow(5, Some(minor), "rwm")));
    rules.push(allow(136, None, "rwm"));
    rules.extend(nodes.iter().map(|node| allow(node.major, Some(node.minor), "rw")));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host made of files: `nodes` are devices, `files` have content, `links` lead elsewhere.
    fn host(nodes: &[(&str, u32)], files: &[(&str, &str)], links: &[(&str, &str)]) -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for (path, minor) in nodes {
            let id = rustix::fs::makedev(226, *minor);
            if rustix::fs::mknodat(CWD, place(path), FileType::CharacterDevice, Mode::RUSR, id).is_err() {
                eprintln!("SKIPPED: needs root (mknod)");
                return None;
            }
        }
        for (path, content) in files {
            fs::write(place(path), content).unwrap();
        }
        for (path, target) in links {
            std::os::unix::fs::symlink(target, place(path)).unwrap();
        }
        Some(dir)
    }

    fn paths(nodes: &[Node]) -> Vec<String> {
        nodes.iter().map(|n| n.path.display().to_string()).collect()
    }

    #[test]
    fn cards_are_found_by_what_exists() {
        let Some(host) = host(
            &[
                ("dev/dri/card0", 0),
                ("dev/dri/renderD128", 128),
                ("dev/dri/card1", 1),
                ("dev/nvidia0", 9),
                ("dev/nvidiactl", 255),
            ],
            &[
                ("sys/devices/0000:00:02.0/vendor", "0x8086\n"),
                ("sys/devices/0000:00:02.0/device", "0x46a6\n"),
                ("sys/devices/0000:00:02.0/drm/card0/dev", ""),
                ("sys/devices/0000:00:02.0/drm/renderD128/dev", ""),
                ("sys/devices/0000:01:00.0/vendor", "0x10de\n"),
                ("sys/devices/0000:01:00.0/drm/card1/dev", ""),
                ("sys/class/drm/card0-HDMI-A-1/status", "connected"),
                ("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: x\nDevice Minor: \t 0\n"),
            ],
            &[
                ("sys/class/drm/card0/device", "../../../devices/0000:00:02.0"),
                ("sys/class/drm/card1/device", "../../../devices/0000:01:00.0"),
            ],
        ) else {
            return;
        };
        let root = host.path();
        let found = |gpu: GpuRecord| paths(&gpu_nodes(root, &gpu).unwrap());
        let all = found(GpuRecord::default());
        assert_eq!(all, ["/dev/dri/card0", "/dev/dri/renderD128", "/dev/dri/card1", "/dev/nvidia0", "/dev/nvidiactl"]);
        let intel = GpuRecord { vendorid: Some("8086".into()), ..GpuRecord::default() };
        assert_eq!(found(intel), ["/dev/dri/card0", "/dev/dri/renderD128"]);
        let nvidia = GpuRecord { pci: Some("0000:01:00.0".into()), ..GpuRecord::default() };
        assert_eq!(found(nvidia), ["/dev/dri/card1", "/dev/nvidia0", "/dev/nvidiactl"]);
        assert_eq!(found(GpuRecord { id: Some(7), ..GpuRecord::default() }), Vec::<String>::new());
        let none = nodes_of(root, &DeviceRecord::Gpu(GpuRecord { id: Some(7), ..GpuRecord::default() })).unwrap_err();
        assert!(none.help().is_some_and(|h| h.contains("/sys/class/drm")), "{none}");
    }

    #[test]
    fn usb_devices_are_found_by_their_numbers() {
        let Some(host) = host(
            &[("dev/bus/usb/001/004", 3), ("dev/bus/usb/002/001", 128)],
            &[
                ("sys/bus/usb/devices/1-1/busnum", "1\n"),
                ("sys/bus/usb/devices/1-1/devnum", "4\n"),
                ("sys/bus/usb/devices/1-1/idVendor", "1050\n"),
                ("sys/bus/usb/devices/1-1/idProduct", "0407\n"),
                ("sys/bus/usb/devices/usb2/busnum", "2\n"),
                ("sys/bus/usb/devices/usb2/devnum", "1\n"),
                ("sys/bus/usb/devices/usb2/idVendor", "1d6b\n"),
                ("sys/bus/usb/devices/1-1:1.0/bInterfaceNumber", "00\n"),
            ],
            &[],
        ) else {
            return;
        };
        let device = |pairs: &[(&str, &str)]| {
            let device: Device = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            usb(&device)
        };
        let key = device(&[("vendorid", "1050"), ("productid", "0407")]).unwrap();
        assert_eq!(paths(&usb_nodes(host.path(), &key).unwrap()), ["/dev/bus/usb/001/004"]);
        let by_place = device(&[("busnum", "2"), ("devnum", "1")]).unwrap();
        assert_eq!(paths(&usb_nodes(host.path(), &by_place).unwrap()), ["/dev/bus/usb/002/001"]);
        let gone = device(&[("vendorid", "ffff"), ("required", "true")]).unwrap();
        assert!(nodes_of(host.path(), &DeviceRecord::Usb(gone)).unwrap_err().to_string().contains("plugged in"));
        let absent = device(&[("vendorid", "ffff")]).unwrap();
        assert_eq!(nodes_of(host.path(), &DeviceRecord::Usb(absent)).unwrap(), []);
        assert!(device(&[]).is_err() && device(&[("vendorid", "xyz")]).is_err());
    }
}
