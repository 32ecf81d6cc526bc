//! `config` and `devices` by Incus's names: which keys there are, what their values may be.

use indexmap::IndexMap;

use crate::cx::{At, Cx, Path, list};
use crate::model::{Device, Limits, MemoryEnforce};
use crate::units;
use crate::yaml::{Entry, Node};

/// `config` as written, with places.
pub(crate) type RawConfig = IndexMap<String, At<String>>;
/// `devices` as written, with places.
pub(crate) type RawDevices = IndexMap<String, At<Device>>;

/// The keys of `config` that ilot's own engine acts on (`environment.*` and `user.*` besides).
pub const CONFIG_KEYS: &[&str] = &[
    "boot.autostart",
    "boot.autostart.priority",
    "limits.cpu",
    "limits.cpu.allowance",
    "limits.memory",
    "limits.memory.enforce",
    "limits.processes",
    "security.nesting",
    "security.privileged",
    "snapshots.expiry",
    "snapshots.schedule",
];

/// Further keys of Incus: known, kept for its engine, not acted on by ilot's own.
pub(crate) const INCUS_KEYS: &[&str] = &[
    "agent.nic_config",
    "boot.autorestart",
    "boot.autostart.delay",
    "boot.host_shutdown_action",
    "boot.host_shutdown_timeout",
    "boot.stop.priority",
    "cluster.evacuate",
    "limits.cpu.nodes",
    "limits.cpu.priority",
    "limits.disk.priority",
    "limits.hugepages.1GB",
    "limits.hugepages.1MB",
    "limits.hugepages.2MB",
    "limits.hugepages.64KB",
    "limits.memory.hotplug",
    "limits.memory.hugepages",
    "limits.memory.oom_priority",
    "limits.memory.soft",
    "limits.memory.swap",
    "limits.memory.swap.priority",
    "linux.kernel_modules",
    "linux.sysctl",
    "migration.incremental.memory",
    "migration.stateful",
    "nvidia.driver.capabilities",
    "nvidia.require.cuda",
    "nvidia.require.driver",
    "nvidia.runtime",
    "oci.cwd",
    "oci.entrypoint",
    "oci.gid",
    "oci.uid",
    "security.agent.metrics",
    "security.csm",
    "security.guestapi",
    "security.guestapi.images",
    "security.idmap.base",
    "security.idmap.isolated",
    "security.idmap.size",
    "security.iommu",
    "security.protection.delete",
    "security.protection.shift",
    "security.secureboot",
    "security.sev",
    "security.syscalls.allow",
    "security.syscalls.deny",
    "security.syscalls.deny_compat",
    "security.syscalls.deny_default",
    "security.syscalls.intercept.bpf",
    "security.syscalls.intercept.bpf.devices",
    "security.syscalls.intercept.mknod",
    "security.syscalls.intercept.mount",
    "security.syscalls.intercept.mount.allowed",
    "security.syscalls.intercept.mount.fuse",
    "security.syscalls.intercept.mount.shift",
    "security.syscalls.intercept.sched_setscheduler",
    "security.syscalls.intercept.setxattr",
    "security.syscalls.intercept.sysinfo",
    "snapshots.pattern",
    "snapshots.schedule.stopped",
];

/// Of those, the ones that ask for something when they are off: the others then ask for nothing.
const ASKED_BY_FALSE: &[&str] = &["limits.memory.swap", "security.syscalls.deny_default"];

/// Who acts on a key of `config`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigUse {
    /// Every engine; or the value asks for nothing.
    Honoured,
    /// Nobody: it is the user's own (`user.*`), or no key that is known, which was warned about.
    Free,
    /// Incus alone.
    Incus,
}

/// Who acts on a key of `config` with this value.
#[must_use]
pub fn config_use(key: &str, value: &str) -> ConfigUse {
    if CONFIG_KEYS.contains(&key) || key.starts_with("environment.") {
        return ConfigUse::Honoured;
    }
    if !is_incus_only(key) {
        return ConfigUse::Free;
    }
    let off = units::parse_config_bool(value) == Some(false) && !ASKED_BY_FALSE.contains(&key);
    if off && INCUS_KEYS.contains(&key) { ConfigUse::Honoured } else { ConfigUse::Incus }
}

fn is_incus_only(key: &str) -> bool {
    const FAMILIES: &[&str] = &["cloud-init.", "limits.kernel.", "linux.sysctl.", "raw."];
    INCUS_KEYS.contains(&key) || FAMILIES.iter().any(|family| key.starts_with(family))
}

/// The device types that ilot's own engine knows.
pub const DEVICE_TYPES: &[&str] = &["disk", "gpu", "nic", "proxy", "unix-char", "usb"];
pub(crate) const INCUS_DEVICE_TYPES: &[&str] = &["infiniband", "none", "pci", "tpm", "unix-block", "unix-hotplug"];

/// Reads and checks `config`.
pub(crate) fn read_config(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> RawConfig {
    let entries = cx.map(node, path).unwrap_or_default();
    let mut config = RawConfig::with_capacity(entries.len());
    for entry in entries {
        let path = path.key(&entry.key);
        let Some(text) = cx.value_text(&entry.value, &path) else { continue };
        if check_key(cx, entry, &path) {
            check_value(cx, entry, text, &path);
            // `raw.*` is judged where the backend is known, and its key is to blame.
            let span = if entry.key.starts_with("raw.") { entry.key_span } else { entry.value.span };
            config.insert(entry.key.to_string(), At { value: text.to_owned(), span });
        }
    }
    config
}

fn check_key(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>) -> bool {
    let key = &*entry.key;
    if let Some(name) = key.strip_prefix("environment.") {
        let head = |c: char| c.is_ascii_alphabetic() || c == '_';
        if !(name.starts_with(head) && name.chars().all(|c| head(c) || c.is_ascii_digit())) {
            cx.error(entry.key_span, path, format!("`{name}` cannot be the name of an environment variable"))
                .help("use letters, digits and `_`, not a digit first");
            return false;
        }
        return true;
    }
    if CONFIG_KEYS.contains(&key) || key.starts_with("user.") || key.starts_with("raw.") {
        return true;
    }
    if is_incus_only(key) {
        cx.warning(entry.key_span, path, format!("`{key}` is kept, but only the incus backend acts on it"))
            .help("remove it, or run the machine with `ilot: {backend: incus}`");
        return true;
    }
    let near = cx.nearest(key, CONFIG_KEYS.iter().chain(INCUS_KEYS).copied());
    let help = near.map_or_else(
        || "see docs/infra.md for the keys there are".to_string(),
        |near| format!("did you mean `{near}`?"),
    );
    cx.warning(entry.key_span, path, format!("the key `{key}` is not known in `config`")).help(help);
    true
}

fn check_value(cx: &mut Cx<'_>, entry: &Entry, text: &str, path: &Path<'_>) {
    let cure = match &*entry.key {
        "limits.cpu" if units::parse_cpu(text).is_none() => "write a count such as `4`, or a set such as `0-1,3`",
        "limits.cpu.allowance" if units::parse_allowance(text).is_none() => {
            "write a percentage such as `50%` (1 to 100), or a quota such as `25ms/100ms` (period up to 1000ms)"
        }
        "limits.memory" if !is_memory(text) => "write a size such as `512MiB` or `2GiB`, or a share such as `50%`",
        "limits.memory.enforce" if MemoryEnforce::parse(text).is_none() => "write `soft` or `hard`",
        "limits.processes" if !text.parse::<u64>().is_ok_and(|n| n >= 1) => "write a whole number from 1",
        "security.nesting" | "security.privileged" | "boot.autostart" if units::parse_config_bool(text).is_none() => {
            "write `\"true\"` or `\"false\"`"
        }
        "boot.autostart.priority" if !text.parse::<u8>().is_ok_and(|n| n <= 100) => "write a number from 0 to 100",
        "snapshots.schedule" => match check_schedule(text) {
            Ok(()) => return,
            Err(_) => "write five cron fields such as `0 2 * * *`, or `@daily`",
        },
        "snapshots.expiry" if !text.is_empty() && !text.split_whitespace().all(is_incus_expiry) => {
            "write a time such as `30d`"
        }
        _ => return,
    };
    let shown = crate::cx::shorten(text);
    cx.error(entry.value.span, path, format!("`{shown}` is not a `{}`", entry.key)).help(cure);
}

fn is_memory(text: &str) -> bool {
    units::parse_percent(text).is_some() || units::parse_bytes(text).is_some_and(|bytes| bytes > 0)
}

fn is_incus_expiry(text: &str) -> bool {
    text.strip_suffix(['M', 'H', 'd', 'w', 'm', 'y', 'S', 'h'])
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
}

/// Incus also takes `@hourly` and the like, and several schedules separated by commas and spaces.
fn check_schedule(text: &str) -> Result<(), String> {
    let text = text.trim();
    if text.is_empty()
        || text.split(", ").all(|s| {
            matches!(
                s.trim(),
                "@hourly"
                    | "@daily"
                    | "@midnight"
                    | "@weekly"
                    | "@monthly"
                    | "@annually"
                    | "@yearly"
                    | "@startup"
                    | "@never"
            )
        })
    {
        return Ok(());
    }
    text.split(", ").try_for_each(units::check_cron)
}

/// The limits of a config whose values were checked. `memory` is the host's, for percentages.
pub(crate) fn limits<'c>(config: impl Fn(&str) -> Option<&'c str>, memory: u64) -> Limits {
    Limits {
        cpu: config("limits.cpu").and_then(units::parse_cpu),
        cpu_allowance: config("limits.cpu.allowance").and_then(units::parse_allowance),
        memory: config("limits.memory").and_then(|text| match units::parse_percent(text) {
            Some(percent) => (memory > 0).then(|| share_of(memory, percent)),
            None => units::parse_bytes(text),
        }),
        memory_enforce: config("limits.memory.enforce").and_then(MemoryEnforce::parse),
        processes: config("limits.processes").and_then(|n| n.parse().ok()),
    }
}

/// A percentage from 1 to 100 of a size, rounded down.
fn share_of(size: u64, percent: u32) -> u64 {
    u64::try_from(u128::from(size) * u128::from(percent) / 100).unwrap_or(size)
}

/// Reads and checks `devices`.
pub(crate) fn read_devices(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> RawDevices {
    let entries = cx.map(node, path).unwrap_or_default();
    let mut devices = RawDevices::with_capacity(entries.len());
    for entry in entries {
        let path = path.key(&entry.key);
        let Some(options) = cx.map(&entry.value, &path) else {
            if entry.value.is_null() {
                cx.error(entry.key_span, &path, format!("the device `{}` has no `type`", entry.key))
                    .help(format!("add `type:`, one of {}", list(DEVICE_TYPES)));
            }
            continue;
        };
        let mut device = Device::with_capacity(options.len());
        for option in options {
            if let Some(text) = cx.value_text(&option.value, &path.key(&option.key)) {
                device.insert(option.key.to_string(), text.to_owned());
            }
        }
        check_device(cx, entry, options, &device, &path);
        devices.insert(entry.key.to_string(), At { value: device, span: entry.key_span });
    }
    devices
}

fn check_device(cx: &mut Cx<'_>, entry: &Entry, options: &[Entry], device: &Device, path: &Path<'_>) {
    let Some(kind) = device.get("type") else {
        if !options.iter().any(|o| &*o.key == "type") {
            cx.error(entry.key_span, path, format!("the device `{}` has no `type`", entry.key))
                .help(format!("add `type:`, one of {}", list(DEVICE_TYPES)));
        }
        return;
    };
    let type_span = options.iter().find(|o| &*o.key == "type").map_or(entry.key_span, |o| o.value.span);
    let type_path = path.key("type");
    if INCUS_DEVICE_TYPES.contains(&kind.as_str()) {
        let message = format!("a device of type `{kind}` is kept, but only the incus backend makes it");
        cx.warning(type_span, &type_path, message).help("remove it, or run the machine with `ilot: {backend: incus}`");
        return;
    }
    let Some(known) = device_options(kind) else {
        return cx.unknown_choice(type_span, &type_path, kind, DEVICE_TYPES);
    };
    for option in options {
        if &*option.key != "type" && !known.contains(&&*option.key) && !option.key.starts_with("user.") {
            cx.unknown_key(option, path, known);
        }
    }
    let needed: &[&str] = match kind.as_str() {
        "disk" => &["path"],
        "proxy" => &["listen", "connect"],
        _ => &[],
    };
    for need in needed {
        if !options.iter().any(|o| &*o.key == *need) {
            cx.error(entry.key_span, path, format!("the {kind} device `{}` has no `{need}`", entry.key))
                .help(format!("add `{need}:`"));
        }
    }
    if kind == "unix-char" && !device.contains_key("path") && !device.contains_key("source") {
        cx.error(entry.key_span, path, format!("the unix-char device `{}` has no `path`", entry.key))
            .help("add `path: /dev/…`");
    }
    check_device_values(cx, options, kind, path);
}

fn check_device_values(cx: &mut Cx<'_>, options: &[Entry], kind: &str, path: &Path<'_>) {
    for option in options {
        let path = path.key(&option.key);
        match (kind, &*option.key) {
            ("disk" | "unix-char", "path") => drop(cx.absolute_path(&option.value, &path)),
            ("disk", "readonly" | "shift" | "required" | "recursive") | ("unix-char" | "usb", "required") => {
                let text = cx_text(&option.value);
                if text.is_some_and(|t| units::parse_config_bool(t).is_none()) {
                    cx.error(option.value.span, &path, format!("`{}` must be `true` or `false`", option.key))
                        .help("write `true` or `false`");
                }
            }
            ("proxy", "listen" | "connect") => {
                if let Some(text) = cx_text(&option.value)
                    && !is_proxy_address(text)
                {
                    let shown = crate::cx::shorten(text);
                    cx.error(option.value.span, &path, format!("`{shown}` is not an address of a proxy device"))
                        .help("write `tcp:ADDRESS:PORT`, `udp:ADDRESS:PORT` or `unix:/path`");
                }
            }
            _ => {}
        }
    }
}

fn cx_text(node: &Node) -> Option<&str> {
    match &node.value {
        crate::yaml::Value::Scalar(s) => Some(&s.text),
        _ => None,
    }
}

fn is_proxy_address(text: &str) -> bool {
    match text.split_once(':') {
        Some(("unix", path)) => path.starts_with('/') || path.starts_with('@'),
        Some(("tcp" | "udp", rest)) => rest.rsplit_once(':').is_some_and(|(host, ports)| {
            let port = |p: &str| p.parse::<u16>().is_ok_and(|p| p > 0);
            !host.is_empty() && ports.split(',').all(|p| p.split('-').all(port))
        }),
        _ => false,
    }
}

pub(crate) fn device_options(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "disk" => &[
            "boot.priority",
            "ceph.cluster_name",
            "ceph.user_name",
            "initial.gid",
            "initial.mode",
            "initial.uid",
            "io.bus",
            "io.cache",
            "limits.max",
            "limits.read",
            "limits.write",
            "path",
            "pool",
            "propagation",
            "raw.mount.options",
            "readonly",
            "recursive",
            "required",
            "shift",
            "size",
            "size.state",
            "source",
        ],
        "gpu" => &[
            "gid",
            "gputype",
            "id",
            "mdev",
            "mig.ci",
            "mig.gi",
            "mig.uuid",
            "mode",
            "pci",
            "productid",
            "uid",
            "vendorid",
        ],
        "nic" => &[
            "acceleration",
            "boot.priority",
            "bridge.vlan",
            "gvrp",
            "host_name",
            "hwaddr",
            "ipv4.address",
            "ipv4.gateway",
            "ipv4.host_table",
            "ipv4.neighbor_probe",
            "ipv4.routes",
            "ipv4.routes.external",
            "ipv6.address",
            "ipv6.gateway",
            "ipv6.host_table",
            "ipv6.routes",
            "ipv6.routes.external",
            "limits.egress",
            "limits.ingress",
            "limits.max",
            "limits.priority",
            "mode",
            "mtu",
            "name",
            "nested",
            "network",
            "nictype",
            "parent",
            "queue.tx.length",
            "security.acls",
            "security.ipv4_filtering",
            "security.ipv6_filtering",
            "security.mac_filtering",
            "security.port_isolation",
            "vlan",
            "vlan.tagged",
        ],
        "proxy" => &[
            "bind",
            "connect",
            "gid",
            "listen",
            "mode",
            "nat",
            "proxy_protocol",
            "security.gid",
            "security.uid",
            "uid",
        ],
        "unix-char" => &["gid", "major", "minor", "mode", "path", "required", "source", "uid"],
        "usb" => &["busnum", "devnum", "gid", "mode", "productid", "required", "serial", "uid", "vendorid"],
        _ => return None,
    })
}
