//! `global:` and the same settings of `anklume.yml`.

use std::path::PathBuf;

use crate::cx::{At, Cx, Path};
use crate::model::{AiAccessPolicy, CpuMode, FirewallMode, GpuPolicy, MemoryEnforce, Reserve, ShareMode, TrustLevel};
use crate::units;
use crate::yaml::{Entry, Kind, Node, Span, Value};

pub(crate) const GLOBAL_KEYS: &[&str] = &[
    "addressing",
    "base_subnet",
    "default_os_image",
    "default_connection",
    "default_user",
    "gpu_policy",
    "firewall_mode",
    "ai_access_policy",
    "ai_access_default",
    "ai_vram_flush",
    "nesting_prefix",
    "shared_volumes_base",
    "persistent_data_base",
    "resource_policy",
];
pub(crate) const ADDRESSING_KEYS: &[&str] = &["base_octet", "zone_base", "zone_step"];
pub(crate) const RESOURCE_KEYS: &[&str] =
    &["host_reserve", "host_reserve_cpu", "host_reserve_memory", "mode", "cpu_mode", "memory_enforce", "overcommit"];

/// How subnets are chosen, as far as the file says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AddressingForm {
    Zones {
        base_octet: u8,
        zone_base: At<u8>,
        zone_step: u8,
    },
    BaseSubnet {
        base: [u8; 2],
    },
    /// Something is wrong with it: no address can be judged.
    Unknown,
}

/// `resource_policy` with its defaults.
#[derive(Debug, Clone)]
pub(crate) struct RawResourcePolicy {
    pub(crate) span: Span,
    pub(crate) reserve_cpu: Reserve,
    pub(crate) reserve_memory: Reserve,
    pub(crate) mode: ShareMode,
    pub(crate) cpu_mode: CpuMode,
    pub(crate) memory_enforce: MemoryEnforce,
    pub(crate) overcommit: bool,
}

/// Project-wide settings as read.
#[derive(Debug, Clone)]
pub(crate) struct RawGlobal {
    pub(crate) addressing: AddressingForm,
    pub(crate) default_os_image: Option<String>,
    pub(crate) default_trust_level: TrustLevel,
    pub(crate) default_user: Option<String>,
    pub(crate) default_connection: Option<String>,
    pub(crate) gpu_policy: Option<At<GpuPolicy>>,
    pub(crate) firewall_mode: Option<At<FirewallMode>>,
    pub(crate) ai_access_policy: Option<At<AiAccessPolicy>>,
    pub(crate) ai_access_default: Option<At<String>>,
    pub(crate) ai_vram_flush: bool,
    pub(crate) nesting_prefix: bool,
    pub(crate) shared_volumes_base: PathBuf,
    pub(crate) persistent_data_base: PathBuf,
    pub(crate) resource_policy: Option<RawResourcePolicy>,
}

impl RawGlobal {
    pub(crate) fn new(file: u32) -> Self {
        let zone_base = At { value: 100, span: Span::start_of(file) };
        Self {
            addressing: AddressingForm::Zones { base_octet: 10, zone_base, zone_step: 10 },
            default_os_image: None,
            default_trust_level: TrustLevel::SemiTrusted,
            default_user: None,
            default_connection: None,
            gpu_policy: None,
            firewall_mode: None,
            ai_access_policy: None,
            ai_access_default: None,
            ai_vram_flush: true,
            nesting_prefix: true,
            shared_volumes_base: "/srv/anklume/shares".into(),
            persistent_data_base: "/srv/anklume/data".into(),
            resource_policy: None,
        }
    }
}

/// Reads `global:` of the single file and the split directory.
pub(crate) fn read_global(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> RawGlobal {
    let mut global = RawGlobal::new(node.span.file);
    let entries = cx.map(node, path).unwrap_or_default();
    let has_zones = entries.iter().any(|e| &*e.key == "addressing" && !e.value.is_null());
    for entry in entries {
        let own = path.key(&entry.key);
        match &*entry.key {
            "addressing" => read_zones(cx, &mut global, &entry.value, &own),
            "base_subnet" if has_zones => {
                cx.warning(entry.key_span, &own, "`base_subnet` is not used: `addressing` decides")
                    .help("keep one of the two");
            }
            "base_subnet" => {
                if !entry.value.is_null() {
                    global.addressing = base_octets(cx, &entry.value, &own)
                        .map_or(AddressingForm::Unknown, |base| AddressingForm::BaseSubnet { base });
                }
            }
            "default_os_image" => global.default_os_image = cx.filled_text(&entry.value, &own).map(str::to_owned),
            "nesting_prefix" => global.nesting_prefix = cx.boolean(&entry.value, &own).unwrap_or(true),
            _ if read_common(cx, &mut global, entry, &own) => {}
            _ => cx.unknown_key(entry, path, GLOBAL_KEYS),
        }
    }
    global
}

/// The settings that `global:` and `anklume.yml` have in common; `false` when the key is none of them.
pub(crate) fn read_common(cx: &mut Cx<'_>, global: &mut RawGlobal, entry: &Entry, path: &Path<'_>) -> bool {
    let (node, span) = (&entry.value, entry.value.span);
    match &*entry.key {
        "default_connection" => global.default_connection = cx.text(node, path).map(str::to_owned),
        "default_user" => global.default_user = cx.filled_text(node, path).map(str::to_owned),
        "gpu_policy" => {
            let value = cx.choice(node, path, GpuPolicy::parse, GpuPolicy::CHOICES);
            global.gpu_policy = value.map(|value| At { value, span });
        }
        "firewall_mode" => {
            let value = cx.choice(node, path, FirewallMode::parse, FirewallMode::CHOICES);
            global.firewall_mode = value.map(|value| At { value, span });
        }
        "ai_access_policy" => {
            let value = cx.choice(node, path, AiAccessPolicy::parse, AiAccessPolicy::CHOICES);
            global.ai_access_policy = value.map(|value| At { value, span });
        }
        "ai_access_default" => {
            global.ai_access_default = cx.text(node, path).map(|t| At { value: t.to_owned(), span });
        }
        "ai_vram_flush" => global.ai_vram_flush = cx.boolean(node, path).unwrap_or(true),
        "shared_volumes_base" => {
            if let Some(base) = cx.absolute_path(node, path) {
                global.shared_volumes_base = base;
            }
        }
        "persistent_data_base" => {
            if let Some(base) = cx.absolute_path(node, path) {
                global.persistent_data_base = base;
            }
        }
        "resource_policy" => global.resource_policy = read_resources(cx, entry, path),
        _ => return false,
    }
    true
}

fn read_zones(cx: &mut Cx<'_>, global: &mut RawGlobal, node: &Node, path: &Path<'_>) {
    let Some(entries) = cx.map(node, path) else {
        if !node.is_null() {
            global.addressing = AddressingForm::Unknown;
        }
        return;
    };
    let (mut base_octet, mut zone_base, mut zone_step) = (10, At { value: 100, span: node.span }, 10);
    let mut wrong = false;
    for entry in entries {
        let own = path.key(&entry.key);
        let value = &entry.value;
        match &*entry.key {
            _ if value.is_null() => {}
            "base_octet" => match cx.integer(value, &own, 0..=255) {
                Some(10) => base_octet = 10,
                Some(other) => {
                    wrong = true;
                    cx.error(value.span, &own, format!("`base_octet` is {other}, but must be 10")).help(
                        "write 10, or remove the key: 10.0.0.0/8 is the private range that has room for the zones",
                    );
                }
                None => wrong = true,
            },
            "zone_base" => match cx.integer(value, &own, 0..=245).and_then(|n| u8::try_from(n).ok()) {
                Some(n) => zone_base = At { value: n, span: value.span },
                None => wrong = true,
            },
            "zone_step" => match cx.integer(value, &own, 1..=255).and_then(|n| u8::try_from(n).ok()) {
                Some(n) => zone_step = n,
                None => wrong = true,
            },
            _ => cx.unknown_key(entry, path, ADDRESSING_KEYS),
        }
    }
    global.addressing =
        if wrong { AddressingForm::Unknown } else { AddressingForm::Zones { base_octet, zone_base, zone_step } };
}

/// `"10.100"`: two octets.
pub(crate) fn base_octets(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<[u8; 2]> {
    let text = cx.text(node, path)?;
    let octet = |t: &str| (t.len() == 1 || !t.starts_with('0')).then(|| t.parse::<u8>().ok()).flatten();
    let base = text.split_once('.').and_then(|(a, b)| Some([octet(a)?, octet(b)?]));
    if base.is_none() {
        let message =
            format!("`{}` of `{}` is not the first two numbers of an address", crate::cx::shorten(text), path.name());
        cx.error(node.span, path, message).help("write, for example, `\"10.100\"`");
    }
    base
}

fn read_resources(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>) -> Option<RawResourcePolicy> {
    let mut policy = RawResourcePolicy {
        span: entry.key_span,
        reserve_cpu: Reserve::Percent(20.0),
        reserve_memory: Reserve::Percent(20.0),
        mode: ShareMode::Proportional,
        cpu_mode: CpuMode::Allowance,
        memory_enforce: MemoryEnforce::Soft,
        overcommit: false,
    };
    let entries = match &entry.value.value {
        Value::Scalar(s) if s.kind == Kind::Bool(true) => return Some(policy),
        Value::Scalar(s) if matches!(s.kind, Kind::Bool(false) | Kind::Null) => return None,
        Value::Mapping(entries) => entries,
        _ => {
            let message = format!("`resource_policy` must be `true` or a mapping, not {}", entry.value.describe());
            cx.error(entry.value.span, path, message).help("write `true` for the defaults");
            return None;
        }
    };
    for entry in entries {
        let (node, own) = (&entry.value, path.key(&entry.key));
        match &*entry.key {
            "host_reserve" => {
                for part in cx.map(node, &own).unwrap_or_default() {
                    let part_path = own.key(&part.key);
                    match &*part.key {
                        "cpu" => set(&mut policy.reserve_cpu, reserve_cpu(cx, &part.value, &part_path)),
                        "memory" => set(&mut policy.reserve_memory, reserve_memory(cx, &part.value, &part_path)),
                        _ => cx.unknown_key(part, &own, &["cpu", "memory"]),
                    }
                }
            }
            "host_reserve_cpu" => set(&mut policy.reserve_cpu, reserve_cpu(cx, node, &own)),
            "host_reserve_memory" => set(&mut policy.reserve_memory, reserve_memory(cx, node, &own)),
            "mode" => set(&mut policy.mode, cx.choice(node, &own, ShareMode::parse, ShareMode::CHOICES)),
            "cpu_mode" => set(&mut policy.cpu_mode, cx.choice(node, &own, CpuMode::parse, CpuMode::CHOICES)),
            "memory_enforce" => {
                set(&mut policy.memory_enforce, cx.choice(node, &own, MemoryEnforce::parse, MemoryEnforce::CHOICES));
            }
            "overcommit" => set(&mut policy.overcommit, cx.boolean(node, &own)),
            _ => cx.unknown_key(entry, path, RESOURCE_KEYS),
        }
    }
    Some(policy)
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn reserve_cpu(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<Reserve> {
    reserve(cx, node, path, "a share such as `\"20%\"` or a number of cores", |text| text.parse().ok())
}

fn reserve_memory(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<Reserve> {
    reserve(cx, node, path, "a share such as `\"20%\"` or a size such as `\"4GiB\"`", units::parse_bytes)
}

fn reserve(
    cx: &mut Cx<'_>,
    node: &Node,
    path: &Path<'_>,
    cure: &str,
    amount: fn(&str) -> Option<u64>,
) -> Option<Reserve> {
    if node.is_null() {
        return None;
    }
    let text = cx.value_text(node, path)?;
    let found = match text.trim().strip_suffix('%') {
        Some(share) => share.parse::<f64>().ok().filter(|p| *p > 0.0 && *p < 100.0).map(Reserve::Percent),
        None => amount(text.trim()).filter(|&n| n > 0).map(Reserve::Amount),
    };
    if found.is_none() {
        let message = format!("`{}` is not a reserve for the host", crate::cx::shorten(text));
        cx.error(node.span, path, message).help(format!("write {cure}"));
    }
    found
}
