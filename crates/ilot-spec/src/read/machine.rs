//! One machine's keys.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use indexmap::IndexMap;

use super::ilot::{IlotBlock, Level, read_block};
use super::valid_name_like;
use crate::config::{RawConfig, RawDevices, read_config, read_devices};
use crate::cx::{At, Cx, Path};
use crate::model::{MachineName, MachineType};
use crate::units;
use crate::yaml::{Entry, Node, Span};

pub(crate) const MACHINE_KEYS: &[&str] = &[
    "description",
    "type",
    "ip",
    "ephemeral",
    "gpu",
    "os_image",
    "profiles",
    "weight",
    "boot_autostart",
    "boot_priority",
    "snapshots_schedule",
    "snapshots_expiry",
    "config",
    "devices",
    "storage_volumes",
    "persistent_data",
    "persistent",
    "services",
    "roles",
    "vars",
    "gui",
    "workspace",
    "openclaw_server",
    "ilot",
];
pub(crate) const SERVICE_KEYS: &[&str] = &["name", "description", "tool", "tools", "consumers"];
pub(crate) const PERSISTENT_KEYS: &[&str] = &["path", "readonly"];

/// A machine as read; what its domain and profiles add is not in it yet.
#[derive(Debug, Clone)]
pub(crate) struct RawMachine {
    /// The name in the whole project; `None` when it is no name (the error is told).
    pub(crate) name: Option<MachineName>,
    /// The name in its file.
    pub(crate) declared: String,
    pub(crate) span: Span,
    pub(crate) description: String,
    pub(crate) machine_type: Option<MachineType>,
    pub(crate) ip: Option<At<Ipv4Addr>>,
    /// An address is given but is none: do not choose one.
    pub(crate) ip_broken: bool,
    pub(crate) ephemeral: Option<bool>,
    pub(crate) gpu: Option<At<bool>>,
    pub(crate) os_image: Option<String>,
    pub(crate) profiles: Option<Vec<At<String>>>,
    pub(crate) weight: u32,
    pub(crate) boot_autostart: Option<bool>,
    pub(crate) boot_priority: Option<u8>,
    pub(crate) snapshots_schedule: Option<String>,
    pub(crate) snapshots_expiry: Option<String>,
    pub(crate) config: RawConfig,
    pub(crate) devices: RawDevices,
    pub(crate) storage_volumes: IndexMap<String, serde_json::Value>,
    pub(crate) persistent: IndexMap<String, At<RawPersistent>>,
    pub(crate) services: Vec<serde_json::Value>,
    pub(crate) consumers: Vec<At<String>>,
    pub(crate) roles: Vec<String>,
    pub(crate) extra: IndexMap<String, serde_json::Value>,
    pub(crate) ilot: IlotBlock,
}

/// One volume of `persistent_data` or `persistent`.
#[derive(Debug, Clone)]
pub(crate) struct RawPersistent {
    pub(crate) path: At<PathBuf>,
    pub(crate) readonly: bool,
}

/// Reads a machine. `prefix` is the domain's name where the layout puts it before the machine's.
pub(crate) fn read_machine(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>, prefix: Option<&str>) -> RawMachine {
    let mut machine = RawMachine::new(read_name(cx, entry, path, prefix), entry.key.to_string(), entry.key_span);
    for item in cx.map(&entry.value, path).unwrap_or_default() {
        read_key(cx, &mut machine, item, path);
    }
    machine
}

impl RawMachine {
    /// A machine that no file declares: `span` is what asked for it.
    pub(crate) fn added(name: MachineName, span: Span) -> Self {
        let declared = name.to_string();
        Self::new(Some(name), declared, span)
    }

    fn new(name: Option<MachineName>, declared: String, span: Span) -> Self {
        Self {
            name,
            declared,
            span,
            description: String::new(),
            machine_type: None,
            ip: None,
            ip_broken: false,
            ephemeral: None,
            gpu: None,
            os_image: None,
            profiles: None,
            weight: 1,
            boot_autostart: None,
            boot_priority: None,
            snapshots_schedule: None,
            snapshots_expiry: None,
            config: RawConfig::new(),
            devices: RawDevices::new(),
            storage_volumes: IndexMap::new(),
            persistent: IndexMap::new(),
            services: Vec::new(),
            consumers: Vec::new(),
            roles: Vec::new(),
            extra: IndexMap::new(),
            ilot: IlotBlock::default(),
        }
    }

    /// What to call it in messages.
    pub(crate) fn label(&self) -> &str {
        self.name.as_ref().map_or(&self.declared, MachineName::as_str)
    }
}

fn read_name(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>, prefix: Option<&str>) -> Option<MachineName> {
    let full = match prefix {
        Some(domain) => format!("{domain}-{}", entry.key),
        None => entry.key.to_string(),
    };
    // The prefix cannot make up for a bad name: `pro` and `-x` are not `pro--x`.
    let own_ok = MachineName::new(&*entry.key).is_ok();
    match MachineName::new(full) {
        Ok(name) if own_ok => Some(name),
        result => {
            let shown = result.map_or_else(|e| e.0, |n| n.to_string());
            let (message, help) = if own_ok {
                (format!("the machine name `{shown}` is longer than 63 characters"), "shorten it".to_string())
            } else {
                let shown = crate::cx::shorten(&entry.key);
                (format!("`{shown}` is not a machine name"), name_cure(&entry.key))
            };
            cx.error(entry.key_span, path, message).help(help);
            None
        }
    }
}

/// The cure for a bad name of a domain or a machine.
pub(crate) fn name_cure(text: &str) -> String {
    const RULE: &str = "use lower-case letters, digits and inner hyphens, 63 at most";
    match valid_name_like(text) {
        Some(like) => format!("{RULE}: `{like}`"),
        None => RULE.into(),
    }
}

fn read_key(cx: &mut Cx<'_>, m: &mut RawMachine, item: &Entry, parent: &Path<'_>) {
    let (node, span) = (&item.value, item.value.span);
    let path = &parent.key(&item.key);
    match &*item.key {
        "description" => m.description = cx.text(node, path).unwrap_or_default().to_owned(),
        "type" => m.machine_type = cx.choice(node, path, MachineType::parse, MachineType::CHOICES),
        "ip" => read_ip(cx, m, node, path),
        "ephemeral" => m.ephemeral = cx.boolean(node, path),
        "gpu" => m.gpu = cx.boolean(node, path).map(|value| At { value, span }),
        "os_image" => m.os_image = cx.filled_text(node, path).map(str::to_owned),
        "profiles" => m.profiles = cx.text_list(node, path),
        "weight" => {
            let weight = cx.integer(node, path, 1..=i64::from(u32::MAX));
            m.weight = weight.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
        }
        "boot_autostart" => m.boot_autostart = cx.boolean(node, path),
        "boot_priority" => m.boot_priority = cx.integer(node, path, 0..=100).and_then(|n| u8::try_from(n).ok()),
        "snapshots_schedule" => m.snapshots_schedule = read_schedule(cx, node, path),
        "snapshots_expiry" => m.snapshots_expiry = read_expiry(cx, node, path),
        "config" => m.config = read_config(cx, node, path),
        "devices" => m.devices = read_devices(cx, node, path),
        "storage_volumes" => {
            for volume in cx.map(node, path).unwrap_or_default() {
                m.storage_volumes.insert(volume.key.to_string(), volume.value.to_json());
            }
        }
        "persistent_data" => read_persistent_data(cx, m, node, path),
        "persistent" => read_persistent(cx, m, node, path),
        "services" => read_services(cx, m, node, path),
        "roles" => {
            m.roles = cx.text_list(node, path).unwrap_or_default().into_iter().map(|r| r.value).collect();
        }
        "gui" => {
            if let Some(gui) = cx.boolean(node, path) {
                m.extra.insert("gui".into(), gui.into());
            }
        }
        "vars" | "workspace" => {
            if cx.map(node, path).is_some() {
                m.extra.insert(item.key.to_string(), node.to_json());
            }
        }
        "openclaw_server" => {
            if !node.is_null() {
                m.extra.insert("openclaw_server".into(), node.to_json());
            }
        }
        "ilot" => m.ilot = read_block(cx, node, path, Level::Machine),
        _ => cx.unknown_key(item, parent, MACHINE_KEYS),
    }
}

fn read_ip(cx: &mut Cx<'_>, m: &mut RawMachine, node: &Node, path: &Path<'_>) {
    if node.is_null() {
        return;
    }
    let Some(text) = cx.text(node, path) else {
        m.ip_broken = true;
        return;
    };
    match text.parse() {
        Ok(value) => m.ip = Some(At { value, span: node.span }),
        Err(_) => {
            m.ip_broken = true;
            let message = format!("`{}` is not an IPv4 address", crate::cx::shorten(text));
            cx.error(node.span, path, message)
                .help("write four numbers such as `10.120.3.10`, or remove the key to have one chosen");
        }
    }
}

fn read_schedule(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<String> {
    let text = cx.text(node, path)?;
    match units::check_cron(text) {
        Ok(()) => Some(text.to_owned()),
        Err(reason) => {
            let message = format!("the schedule `{}` {reason}", crate::cx::shorten(text));
            cx.error(node.span, path, message)
                .help("write minute, hour, day of month, month and day of week: `0 2 * * *` is each night at two");
            None
        }
    }
}

fn read_expiry(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<String> {
    let text = cx.text(node, path)?;
    if units::is_expiry(text) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` is not a time that snapshots may live", crate::cx::shorten(text));
    cx.error(node.span, path, message).help("write a number and `d`, `h` or `m`: `30d`");
    None
}

/// The name of a volume is a directory on the host.
pub(crate) fn volume_name_ok(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>) -> bool {
    let ok = MachineName::new(&*entry.key).is_ok();
    if !ok {
        let message = format!("`{}` is not a volume name", crate::cx::shorten(&entry.key));
        cx.error(entry.key_span, path, message).help(name_cure(&entry.key));
    }
    ok
}

fn read_persistent_data(cx: &mut Cx<'_>, m: &mut RawMachine, node: &Node, path: &Path<'_>) {
    for volume in cx.map(node, path).unwrap_or_default() {
        let own = path.key(&volume.key);
        let named = volume_name_ok(cx, volume, &own);
        let (mut place, mut readonly, mut given) = (None, false, false);
        for option in cx.map(&volume.value, &own).unwrap_or_default() {
            let option_path = own.key(&option.key);
            match &*option.key {
                "path" => {
                    given = !option.value.is_null();
                    let value = cx.absolute_path(&option.value, &option_path);
                    place = value.map(|value| At { value, span: option.value.span });
                }
                "readonly" => readonly = cx.boolean(&option.value, &option_path).unwrap_or(false),
                _ => cx.unknown_key(option, &own, PERSISTENT_KEYS),
            }
        }
        if let (true, Some(path)) = (named, place) {
            let value = RawPersistent { path, readonly };
            m.persistent.insert(volume.key.to_string(), At { value, span: volume.key_span });
        } else if !given {
            cx.error(volume.key_span, &own, format!("the persistent volume `{}` has no `path`", volume.key))
                .help("add `path:`, the absolute path that it has inside the machine");
        }
    }
}

/// `persistent: {volume: /path}` of the project directory.
fn read_persistent(cx: &mut Cx<'_>, m: &mut RawMachine, node: &Node, path: &Path<'_>) {
    for volume in cx.map(node, path).unwrap_or_default() {
        let own = path.key(&volume.key);
        let named = volume_name_ok(cx, volume, &own);
        if volume.value.is_null() {
            cx.error(volume.key_span, &own, format!("the persistent volume `{}` has no path", volume.key))
                .help("write the absolute path that it has inside the machine");
            continue;
        }
        let Some(place) = cx.absolute_path(&volume.value, &own) else { continue };
        if let Some(first) = m.persistent.get(&*volume.key) {
            let message = format!("the volume `{}` stands in `persistent` and in `persistent_data`", volume.key);
            cx.clash(volume.key_span, &own, message, first.span, "first here").help("keep one of them");
        } else if named {
            let path = At { value: place, span: volume.value.span };
            let value = RawPersistent { path, readonly: false };
            m.persistent.insert(volume.key.to_string(), At { value, span: volume.key_span });
        }
    }
}

fn read_services(cx: &mut Cx<'_>, m: &mut RawMachine, node: &Node, path: &Path<'_>) {
    for (i, service) in cx.list(node, path).unwrap_or_default().iter().enumerate() {
        let own = path.index(i);
        let Some(entries) = cx.map(service, &own) else {
            if service.is_null() {
                cx.error(service.span, &own, "an empty service")
                    .help("remove the item, or write `{name: …, consumers: […]}`");
            }
            continue;
        };
        let mut named = false;
        for entry in entries {
            let key_path = own.key(&entry.key);
            match &*entry.key {
                "name" => named = cx.filled_text(&entry.value, &key_path).is_some() || !entry.value.is_null(),
                "tool" | "description" => drop(cx.text(&entry.value, &key_path)),
                "consumers" => m.consumers.extend(cx.text_list(&entry.value, &key_path).unwrap_or_default()),
                "tools" => drop(cx.list(&entry.value, &key_path)),
                _ => cx.unknown_key(entry, &own, SERVICE_KEYS),
            }
        }
        if !named {
            cx.error(service.span, &own, "a service without a `name`").help("add `name:`");
        }
        m.services.push(service.to_json());
    }
}
