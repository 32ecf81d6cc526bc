//! Devices by Incus's names: what a machine gets beside its files and its one port.
//!
//! `disk` is [`crate::volumes`]'s. A device, or an option of one, that this engine cannot honour is refused with the reason,
//! never ignored.

mod nics;
mod nodes;
mod relays;

use std::collections::BTreeMap;

use ilot_net::proxy::{Address, Bind};
use ilot_spec::{Device, Machine, Project};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

pub use nics::{Leg, NicRecord};
pub(crate) use nics::{choose_addresses, leg_name, rates};
pub(crate) use nodes::prepare;
pub use nodes::{GpuRecord, NodeOwner, UnixCharRecord, UsbRecord};

/// A device as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DeviceRecord {
    /// A relay between this host and the machine.
    Proxy(ProxyRecord),
    /// A character device of the host.
    UnixChar(UnixCharRecord),
    /// Graphics cards.
    Gpu(GpuRecord),
    /// A USB device.
    Usb(UsbRecord),
    /// A further network card.
    Nic(NicRecord),
}

/// A relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyRecord {
    /// Which side listens.
    pub bind: Bind,
    /// What is listened on, and where each is connected to.
    pub pairs: Vec<(Address, Address)>,
    /// Owner and permissions of a socket file that is listened on, as ids of the side that listens.
    pub socket: NodeOwner,
    /// Whom connections are made as, as ids of the side that connects.
    pub user: Option<(u32, u32)>,
}

impl DeviceRecord {
    /// Whether it can come and go while the machine runs.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Proxy(_))
    }

    /// How the plan compares it.
    pub(crate) fn value(&self) -> Value {
        // A record of plain data always is a value.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The legs of a machine in other domains: [`leg_name`], the domain, and the interface inside.
pub(crate) fn legs(record: &crate::record::MachineRecord) -> impl Iterator<Item = (String, &str, &str)> {
    record.devices.values().filter_map(|device| match device {
        DeviceRecord::Nic(NicRecord { name, to: Leg::Domain { domain, .. }, .. }) => {
            Some((leg_name(&record.name, name), domain.as_str(), name.as_str()))
        }
        _ => None,
    })
}

/// The devices of a machine by name, `disk` ones left out; or which one is refused and why.
pub(crate) fn of(project: &Project, machine: &Machine) -> Result<BTreeMap<String, DeviceRecord>> {
    let mut devices = BTreeMap::new();
    for (name, device) in &machine.devices {
        let kind = device.get("type").map_or("", String::as_str);
        let read = match kind {
            "disk" => continue,
            "proxy" => proxy(device).map(DeviceRecord::Proxy).map(Some),
            "unix-char" => nodes::unix_char(device).map(DeviceRecord::UnixChar).map(Some),
            "gpu" => nodes::gpu(device).map(DeviceRecord::Gpu).map(Some),
            "usb" => nodes::usb(device).map(DeviceRecord::Usb).map(Some),
            "nic" => nics::read(project, machine, name, device).map(|nic| nic.map(DeviceRecord::Nic)),
            _ => Err("the native engine makes no such device".to_owned()),
        };
        let read = read.map_err(|why| Error::Unsupported {
            what: format!("machine `{}`: device `{name}` ({kind})", machine.name),
            why,
        })?;
        if let Some(record) = read {
            devices.insert(name.clone(), record);
        }
    }
    if machine.gpu && !devices.values().any(|d| matches!(d, DeviceRecord::Gpu(_))) {
        devices.insert("gpu".to_owned(), DeviceRecord::Gpu(GpuRecord::default()));
    }
    Ok(devices)
}

/// Refuses every option that is not among these.
pub(crate) fn only(device: &Device, known: &[&str]) -> Result<(), String> {
    match device.keys().find(|key| *key != "type" && !known.contains(&key.as_str()) && !key.starts_with("user.")) {
        Some(key) => Err(format!("the native engine does not honour `{key}`")),
        None => Ok(()),
    }
}

pub(crate) fn boolean(device: &Device, key: &str, default: bool) -> Result<bool, String> {
    match device.get(key).map(|text| text.to_ascii_lowercase()) {
        None => Ok(default),
        Some(text) => match text.as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(format!("`{key}` must be `true` or `false`")),
        },
    }
}

fn number(device: &Device, key: &str) -> Result<Option<u32>, String> {
    device.get(key).map(|text| text.parse().map_err(|_| format!("`{key}: {text}` is not a number"))).transpose()
}

/// `uid`, `gid` and `mode` (octal).
fn owner(device: &Device, mode: u32) -> Result<NodeOwner, String> {
    let mode = match device.get("mode") {
        None => mode,
        Some(text) => u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or_else(|| format!("`mode: {text}` is not octal permissions such as \"0660\""))?,
    };
    Ok(NodeOwner { uid: number(device, "uid")?.unwrap_or(0), gid: number(device, "gid")?.unwrap_or(0), mode })
}

fn proxy(device: &Device) -> Result<ProxyRecord, String> {
    const KNOWN: &[&str] =
        &["bind", "connect", "gid", "listen", "mode", "nat", "proxy_protocol", "security.gid", "security.uid", "uid"];
    only(device, KNOWN)?;
    for key in ["nat", "proxy_protocol"] {
        if boolean(device, key, false)? {
            return Err(format!("the native engine does not honour `{key}: true`"));
        }
    }
    let get = |key: &str| device.get(key).map(String::as_str).ok_or_else(|| format!("it has no `{key}`"));
    let bind = match device.get("bind").map(String::as_str) {
        None | Some("host") => Bind::Host,
        Some("instance" | "guest" | "container") => Bind::Instance,
        Some(other) => return Err(format!("`bind: {other}` is neither `host` nor `instance`")),
    };
    let user = match (number(device, "security.uid")?, number(device, "security.gid")?) {
        (None, None) => None,
        (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
    };
    let pairs = ilot_net::proxy::pairs(get("listen")?, get("connect")?)?;
    Ok(ProxyRecord { bind, pairs, socket: owner(device, 0o644)?, user })
}
