//! The three layouts: which keys stand in which file. What they say is the same.

use indexmap::IndexMap;

use super::domain::{Domains, RawDomain};
use super::global::{AddressingForm, RawGlobal, base_octets, read_common, read_global};
use super::ilot::{IlotProject, read_project};
use super::policy::{RawPolicy, RawVolume, read_policies, read_volumes};
use crate::cx::{At, Cx, Path};
use crate::model::{Layout, TrustLevel};
use crate::problem::Role;
use crate::yaml::{Entry, Node, Span};

pub(crate) const FILE_KEYS: &[&str] =
    &["project_name", "global", "domains", "network_policies", "shared_volumes", "ilot"];
pub(crate) const PROJECT_KEYS: &[&str] = &[
    "schema_version",
    "project_name",
    "defaults",
    "addressing",
    "nesting",
    "resource_policy",
    "gpu_policy",
    "firewall_mode",
    "ai_access_policy",
    "ai_access_default",
    "ai_vram_flush",
    "default_user",
    "default_connection",
    "shared_volumes_base",
    "persistent_data_base",
    "shared_volumes",
    "network_passthrough",
    "requires_anklume",
    "ilot",
];
/// The versions of the project directory that we read.
pub(crate) const SCHEMA_VERSIONS: &[u32] = &[1];

/// Everything that the files say.
pub(crate) struct RawProject {
    pub(crate) name: String,
    pub(crate) schema_version: Option<u32>,
    pub(crate) global: RawGlobal,
    pub(crate) domains: Vec<RawDomain>,
    pub(crate) policies: Vec<RawPolicy>,
    /// The key that holds the policies, for the paths of problems.
    pub(crate) policies_key: &'static str,
    pub(crate) volumes: Vec<RawVolume>,
    pub(crate) ilot: IlotProject,
    pub(crate) extra: IndexMap<String, serde_json::Value>,
}

/// Reads the trees of a project's files, which stand in the order of the sources.
pub(crate) fn read(cx: &mut Cx<'_>, trees: &[Option<Node>]) -> RawProject {
    let layout = cx.sources.layout;
    let mut reader = Reader {
        project: RawProject {
            name: String::new(),
            schema_version: None,
            global: RawGlobal::new(0),
            domains: Vec::new(),
            policies: Vec::new(),
            policies_key: if layout == Layout::ProjectDirectory { "policies" } else { "network_policies" },
            volumes: Vec::new(),
            ilot: IlotProject::default(),
            extra: IndexMap::new(),
        },
        domains: Domains::default(),
        policies_at: None,
        ilot: Vec::new(),
    };
    let files: Vec<(usize, Role)> = cx.sources.files.iter().enumerate().map(|(i, f)| (i, f.role)).collect();
    for (index, role) in files {
        let tree = trees.get(index).and_then(Option::as_ref);
        let file = u32::try_from(index).unwrap_or_default();
        match (role, layout) {
            (Role::Main, Layout::ProjectDirectory) => reader.anklume(cx, tree, file),
            (Role::Main, _) => reader.main(cx, tree, file, layout),
            (Role::Domains, Layout::ProjectDirectory) => reader.domain_file(cx, tree, file),
            (Role::Domains, _) => reader.domains_file(cx, tree),
            (Role::Policies, _) => reader.policies_file(cx, tree),
            (Role::Ilot, _) => reader.ilot_file(cx, tree),
        }
    }
    let Reader { mut project, domains, ilot, .. } = reader;
    project.ilot = read_project(cx, &ilot, &Path::Root.key("ilot"));
    project.domains = domains.list;
    project
}

struct Reader<'n> {
    project: RawProject,
    domains: Domains,
    policies_at: Option<Span>,
    ilot: Vec<&'n Entry>,
}

impl<'n> Reader<'n> {
    /// `infra.yml` or `base.yml`.
    fn main(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>, file: u32, layout: Layout) {
        let root = Path::Root;
        let Some(entries) = top(cx, tree) else { return };
        let has = |key: &str| entries.iter().any(|e| &*e.key == key);
        for entry in entries {
            let path = root.key(&entry.key);
            match &*entry.key {
                "project_name" => self.name(cx, &entry.value, &path),
                "global" => self.project.global = read_global(cx, &entry.value, &path),
                "domains" => {
                    for domain in cx.map(&entry.value, &path).unwrap_or_default() {
                        self.domains.read(cx, &domain.key, domain.key_span, &domain.value, &path, false);
                    }
                }
                _ if self.shared_key(cx, entry) || for_anchors(entry) => {}
                _ => cx.unknown_key(entry, &root, FILE_KEYS),
            }
        }
        let domain_files = layout == Layout::SplitDirectory && cx.sources.files.iter().any(|f| f.role == Role::Domains);
        for (key, cure) in [
            ("project_name", "add a line such as `project_name: lab`"),
            ("global", "add `global: {}` for the defaults"),
            ("domains", "add `domains:` with at least one domain"),
        ] {
            let elsewhere = key == "domains" && (domain_files || cx.incomplete);
            if !(has(key) || elsewhere || cx.incomplete && tree.is_none()) {
                cx.error(Span::start_of(file), &root, format!("`{key}` is missing")).help(cure);
            }
        }
    }

    /// `anklume.yml`.
    fn anklume(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>, file: u32) {
        let root = Path::Root;
        let Some(entries) = top(cx, tree) else { return };
        self.project.global = RawGlobal::new(file);
        let mut named = false;
        for entry in entries {
            let path = root.key(&entry.key);
            match &*entry.key {
                "schema_version" => self.schema_version(cx, &entry.value, &path),
                "project_name" => {
                    named = true;
                    self.name(cx, &entry.value, &path);
                }
                "defaults" => self.defaults(cx, &entry.value, &path),
                "addressing" => self.addressing(cx, &entry.value, &path),
                "nesting" => {
                    for part in cx.map(&entry.value, &path).unwrap_or_default() {
                        match &*part.key {
                            "prefix" => {
                                let prefix = cx.boolean(&part.value, &path.key("prefix"));
                                self.project.global.nesting_prefix = prefix.unwrap_or(true);
                            }
                            _ => cx.unknown_key(part, &path, &["prefix"]),
                        }
                    }
                }
                "network_passthrough" => {
                    if let Some(value) = cx.boolean(&entry.value, &path) {
                        self.project.extra.insert(entry.key.to_string(), value.into());
                    }
                }
                "requires_anklume" => {
                    if let Some(value) = cx.value_text(&entry.value, &path) {
                        self.project.extra.insert(entry.key.to_string(), value.into());
                    }
                }
                "network_policies" => cx.unknown_key(entry, &root, PROJECT_KEYS),
                _ if self.shared_key(cx, entry) || for_anchors(entry) => {}
                _ if read_common(cx, &mut self.project.global, entry, &path) => {}
                _ => cx.unknown_key(entry, &root, PROJECT_KEYS),
            }
        }
        if !named {
            self.project.name = cx.sources.directory.clone().unwrap_or_else(|| "project".into());
        }
    }

    /// The keys that every main file may have.
    fn shared_key(&mut self, cx: &mut Cx<'_>, entry: &'n Entry) -> bool {
        let path = Path::Root;
        let path = path.key(&entry.key);
        match &*entry.key {
            "network_policies" => self.policies(cx, entry, &path),
            "shared_volumes" => self.project.volumes = read_volumes(cx, &entry.value, &path),
            "ilot" => self.ilot.extend(cx.map(&entry.value, &path).unwrap_or_default()),
            _ => return false,
        }
        true
    }

    fn policies(&mut self, cx: &mut Cx<'_>, entry: &'n Entry, path: &Path<'_>) {
        if let Some(first) = self.policies_at {
            let first = cx.position(first);
            let message = format!("these policies replace those at {}:{}", first.file.display(), first.line);
            cx.warning(entry.key_span, path, message).help("keep all of them in one file");
        }
        self.policies_at = Some(entry.key_span);
        self.project.policies = read_policies(cx, &entry.value, path);
    }

    /// `domains/<name>.yml` of a project directory: one domain, named by the file.
    fn domain_file(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>, file: u32) {
        let path = &cx.sources.files[file as usize].path;
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let root = Path::Root;
        if let Some(node) = tree {
            self.domains.read(cx, &name, Span::start_of(file), node, &root.key("domains"), true);
        } else if !cx.incomplete {
            cx.error(Span::start_of(file), &root.key("domains").key(&name), "the file of a domain is empty")
                .help("add at least `description:`, or remove the file");
        }
    }

    /// A file of `infra/domains/`: any number of domains by name.
    fn domains_file(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>) {
        let root = Path::Root;
        let domains = root.key("domains");
        for domain in top(cx, tree).unwrap_or_default().iter().filter(|e| !for_anchors(e)) {
            self.domains.read(cx, &domain.key, domain.key_span, &domain.value, &domains, false);
        }
    }

    fn policies_file(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>) {
        let root = Path::Root;
        for entry in top(cx, tree).unwrap_or_default() {
            let path = root.key(&entry.key);
            match &*entry.key {
                "policies" | "network_policies" => {
                    self.project.policies_key = if &*entry.key == "policies" { "policies" } else { "network_policies" };
                    self.policies(cx, entry, &path);
                }
                _ if for_anchors(entry) => {}
                _ => cx.unknown_key(entry, &root, &[self.project.policies_key]),
            }
        }
    }

    /// `ilot.yml`: what the `ilot:` block may hold, with or without that key around it.
    fn ilot_file(&mut self, cx: &mut Cx<'_>, tree: Option<&'n Node>) {
        let root = Path::Root;
        let entries = top(cx, tree).unwrap_or_default();
        match entries {
            [only] if &*only.key == "ilot" => {
                self.ilot.extend(cx.map(&only.value, &root.key("ilot")).unwrap_or_default());
            }
            _ => self.ilot.extend(entries),
        }
    }

    fn name(&mut self, cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) {
        let Some(name) = cx.filled_text(node, path) else {
            if node.is_null() {
                cx.error(node.span, path, "`project_name` is empty").help("write a name such as `lab`");
            }
            return;
        };
        if name.len() > 64 || name != name.trim() || name.contains(|c: char| c.is_control() || c == '/' || c == ':') {
            let message = format!("`{}` cannot be a project's name", crate::cx::shorten(name));
            cx.error(node.span, path, message).help("use at most 64 bytes, no `/`, no `:`, no space at the ends");
            return;
        }
        name.clone_into(&mut self.project.name);
    }

    fn schema_version(&mut self, cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) {
        let Some(version) = cx.integer(node, path, 0..=i64::from(u32::MAX)) else { return };
        match u32::try_from(version) {
            Ok(version) if SCHEMA_VERSIONS.contains(&version) => self.project.schema_version = Some(version),
            _ => {
                let known: Vec<String> = SCHEMA_VERSIONS.iter().map(ToString::to_string).collect();
                cx.error(node.span, path, format!("schema version {version} is not known"))
                    .help(format!("the versions that this ilot reads: {}", known.join(", ")));
            }
        }
    }

    fn defaults(&mut self, cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) {
        for entry in cx.map(node, path).unwrap_or_default() {
            let own = path.key(&entry.key);
            match &*entry.key {
                "os_image" => {
                    self.project.global.default_os_image = cx.filled_text(&entry.value, &own).map(str::to_owned);
                }
                "trust_level" => {
                    let level = cx.choice(&entry.value, &own, TrustLevel::parse, TrustLevel::CHOICES);
                    match level {
                        Some(level) => self.project.global.default_trust_level = level,
                        None if entry.value.is_null() => {}
                        None => self.project.global.addressing = AddressingForm::Unknown,
                    }
                }
                _ => cx.unknown_key(entry, path, &["os_image", "trust_level"]),
            }
        }
    }

    fn addressing(&mut self, cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) {
        let AddressingForm::Zones { mut zone_base, mut zone_step, base_octet } = self.project.global.addressing else {
            return;
        };
        let mut wrong = false;
        for entry in cx.map(node, path).unwrap_or_default() {
            let (value, own) = (&entry.value, path.key(&entry.key));
            match &*entry.key {
                _ if value.is_null() => {}
                "base" => match base_octets(cx, value, &own) {
                    Some([10, base @ 0..=245]) => zone_base = At { value: base, span: value.span },
                    Some([a, b]) => {
                        wrong = true;
                        cx.error(value.span, &own, format!("`base` is {a}.{b}, but must be from 10.0 to 10.245"))
                            .help("write, for example, `\"10.100\"`: 10.0.0.0/8 is the private range that has room for the zones");
                    }
                    None => wrong = true,
                },
                "zone_step" => match cx.integer(value, &own, 1..=255).and_then(|n| u8::try_from(n).ok()) {
                    Some(step) => zone_step = step,
                    None => wrong = true,
                },
                _ => cx.unknown_key(entry, path, &["base", "zone_step"]),
            }
        }
        self.project.global.addressing =
            if wrong { AddressingForm::Unknown } else { AddressingForm::Zones { base_octet, zone_base, zone_step } };
    }
}

/// Keys that start with `x-` at the top of a file hold values for anchors to name, and mean nothing themselves.
fn for_anchors(entry: &Entry) -> bool {
    entry.key.starts_with("x-")
}

/// The entries of a file; an empty one has none.
fn top<'n>(cx: &mut Cx<'_>, tree: Option<&'n Node>) -> Option<&'n [Entry]> {
    match tree {
        None => Some(&[]),
        Some(node) if node.is_null() => Some(&[]),
        Some(node) => cx.map(node, &Path::Root),
    }
}
