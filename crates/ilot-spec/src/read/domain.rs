//! One domain's keys.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::ilot::{IlotBlock, Level, read_block};
use super::machine::{RawMachine, name_cure, read_machine};
use crate::config::{RawConfig, RawDevices, read_config, read_devices};
use crate::cx::{At, Cx, Path};
use crate::model::{AiProvider, AiSanitize, DomainName, TrustLevel};
use crate::yaml::{Entry, Kind, Node, Span, Value};

pub(crate) const DOMAIN_KEYS: &[&str] = &[
    "description",
    "enabled",
    "trust_level",
    "subnet_id",
    "ephemeral",
    "ai_provider",
    "ai_sanitize",
    "profiles",
    "machines",
    "ilot",
];
pub(crate) const PROFILE_KEYS: &[&str] = &["description", "config", "devices"];

/// A profile as read.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawProfile {
    pub(crate) config: RawConfig,
    pub(crate) devices: RawDevices,
}

/// A domain as read.
#[derive(Debug, Clone)]
pub(crate) struct RawDomain {
    /// `None` when it is no name (the error is told).
    pub(crate) name: Option<DomainName>,
    pub(crate) declared: String,
    pub(crate) span: Span,
    pub(crate) description: String,
    pub(crate) enabled: bool,
    pub(crate) trust_level: Option<TrustLevel>,
    pub(crate) subnet_id: Option<At<u8>>,
    /// Its trust level or `subnet_id` is wrong: its addresses cannot be judged.
    pub(crate) place_broken: bool,
    pub(crate) ephemeral: bool,
    pub(crate) ai_provider: Option<AiProvider>,
    pub(crate) ai_sanitize: Option<AiSanitize>,
    pub(crate) profiles: IndexMap<String, RawProfile>,
    pub(crate) machines: Vec<RawMachine>,
    pub(crate) ilot: IlotBlock,
}

/// The domains of a project as they come in, from one file or many.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    pub(crate) list: Vec<RawDomain>,
    seen: HashMap<String, Span>,
}

impl Domains {
    /// Reads one domain. `prefixed` says whether its name goes before those of its machines.
    pub(crate) fn read(
        &mut self,
        cx: &mut Cx<'_>,
        name: &str,
        span: Span,
        node: &Node,
        path: &Path<'_>,
        prefixed: bool,
    ) {
        let path = path.key(name);
        if let Some(&first) = self.seen.get(name) {
            cx.clash(span, &path, format!("the domain `{name}` is defined twice"), first, "first here")
                .help("rename one, or move its machines to the other");
            return;
        }
        self.seen.insert(name.to_owned(), span);
        let domain = read_domain(cx, name, span, node, &path, prefixed);
        self.list.push(domain);
    }
}

fn read_domain(cx: &mut Cx<'_>, name: &str, span: Span, node: &Node, path: &Path<'_>, prefixed: bool) -> RawDomain {
    let valid = DomainName::new(name).ok();
    if valid.is_none() {
        let shown = crate::cx::shorten(name);
        cx.error(span, path, format!("`{shown}` is not a domain name")).help(name_cure(name));
    }
    let mut domain = RawDomain {
        name: valid,
        declared: name.to_owned(),
        span,
        description: String::new(),
        enabled: true,
        trust_level: None,
        subnet_id: None,
        place_broken: false,
        ephemeral: false,
        ai_provider: None,
        ai_sanitize: None,
        profiles: IndexMap::new(),
        machines: Vec::new(),
        ilot: IlotBlock::default(),
    };
    for entry in cx.map(node, path).unwrap_or_default() {
        read_key(cx, &mut domain, entry, path, prefixed.then_some(name));
    }
    domain
}

fn read_key(cx: &mut Cx<'_>, d: &mut RawDomain, entry: &Entry, parent: &Path<'_>, prefix: Option<&str>) {
    let node = &entry.value;
    let path = &parent.key(&entry.key);
    match &*entry.key {
        "description" => d.description = cx.text(node, path).unwrap_or_default().to_owned(),
        "enabled" => d.enabled = cx.boolean(node, path).unwrap_or(true),
        "trust_level" => {
            d.trust_level = cx.choice(node, path, TrustLevel::parse, TrustLevel::CHOICES);
            d.place_broken |= d.trust_level.is_none() && !node.is_null();
        }
        "subnet_id" => {
            let id = cx.integer(node, path, 0..=254).and_then(|n| u8::try_from(n).ok());
            d.place_broken |= id.is_none() && !node.is_null();
            d.subnet_id = id.map(|value| At { value, span: node.span });
        }
        "ephemeral" => d.ephemeral = cx.boolean(node, path).unwrap_or(false),
        "ai_provider" => d.ai_provider = cx.choice(node, path, AiProvider::parse, AiProvider::CHOICES),
        "ai_sanitize" => d.ai_sanitize = read_sanitize(cx, node, path),
        "profiles" => read_profiles(cx, d, node, path),
        "machines" => {
            let machines = cx.map(node, path).unwrap_or_default();
            d.machines.reserve(machines.len());
            for machine in machines {
                let machine = read_machine(cx, machine, &path.key(&machine.key), prefix);
                d.machines.push(machine);
            }
        }
        "ilot" => d.ilot = read_block(cx, node, path, Level::Domain),
        _ => cx.unknown_key(entry, parent, DOMAIN_KEYS),
    }
}

/// `true` and `false` are booleans here, `always` is text.
fn read_sanitize(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<AiSanitize> {
    match &node.value {
        Value::Scalar(s) => match s.kind {
            Kind::Null => None,
            Kind::Bool(true) => Some(AiSanitize::Yes),
            Kind::Bool(false) => Some(AiSanitize::No),
            Kind::Text { .. } if &*s.text == "always" => Some(AiSanitize::Always),
            Kind::Text { plain: false } if matches!(&*s.text, "true" | "false") => {
                cx.error(node.span, path, "`ai_sanitize` must be a boolean or `always`, not text")
                    .help(format!("write `{}` without quotes", s.text));
                None
            }
            _ => {
                cx.unknown_choice(node.span, path, &s.text, AiSanitize::CHOICES);
                None
            }
        },
        _ => {
            let message = format!("`ai_sanitize` must be a boolean or `always`, not {}", node.describe());
            cx.error(node.span, path, message).help("write `true`, `false` or `always`");
            None
        }
    }
}

fn read_profiles(cx: &mut Cx<'_>, d: &mut RawDomain, node: &Node, path: &Path<'_>) {
    for entry in cx.map(node, path).unwrap_or_default() {
        let own = path.key(&entry.key);
        let mut profile = RawProfile::default();
        for part in cx.map(&entry.value, &own).unwrap_or_default() {
            let part_path = own.key(&part.key);
            match &*part.key {
                "config" => profile.config = read_config(cx, &part.value, &part_path),
                "devices" => profile.devices = read_devices(cx, &part.value, &part_path),
                "description" => drop(cx.text(&part.value, &part_path)),
                _ => cx.unknown_key(part, &own, PROFILE_KEYS),
            }
        }
        d.profiles.insert(entry.key.to_string(), profile);
    }
}
