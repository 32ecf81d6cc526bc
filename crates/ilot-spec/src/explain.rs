//! Where each effective value of a machine comes from: a line of a file, a profile, its domain, the project, a default,
//! or a computation.

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::model::{Domain, Layout, Machine, Position, Project};
use crate::problem::{Loaded, Role, Sources};
use crate::yaml::{self, Entry, Node, Span, Value};

/// One effective value and its origin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explained {
    /// The value's name: `ip`, `config.limits.memory`, `limits.cpu`.
    pub key: String,
    /// The value.
    pub value: Json,
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "origin", rename_all = "kebab-case")]
pub enum Origin {
    /// The machine's own line.
    Machine {
        /// Where it stands.
        at: Position,
    },
    /// A profile of its domain.
    Profile {
        /// The profile.
        name: String,
        /// Where it stands.
        at: Position,
    },
    /// Its domain.
    Domain {
        /// Where it stands.
        at: Position,
    },
    /// The project.
    Project {
        /// Where it stands.
        at: Position,
    },
    /// Nobody says it.
    Default,
    /// It follows from other values.
    Computed {
        /// From what, and how.
        rule: String,
        /// The line that asks for it, where there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<Position>,
    },
}

impl Origin {
    fn computed(rule: impl Into<String>) -> Self {
        Self::Computed { rule: rule.into(), at: None }
    }

    /// The line that says it, where there is one.
    #[must_use]
    pub fn at(&self) -> Option<&Position> {
        match self {
            Self::Machine { at } | Self::Profile { at, .. } | Self::Domain { at } | Self::Project { at } => Some(at),
            Self::Computed { at, .. } => at.as_ref(),
            Self::Default => None,
        }
    }
}

/// Explains every effective value of a machine of a project that loaded; `None` when there is no such machine.
#[must_use]
pub fn explain(loaded: &Loaded, machine: &str) -> Option<Vec<Explained>> {
    let project = loaded.project.as_ref()?;
    let machine = project.machine(machine)?;
    let domain = project.domains.get(&machine.domain)?;
    let trees: Vec<Option<Node>> = loaded
        .sources
        .files
        .iter()
        .enumerate()
        .map(|(i, f)| yaml::parse(&f.text, u32::try_from(i).unwrap_or_default()).root)
        .collect();
    let places = Places::find(project, domain, machine, &loaded.sources, &trees);
    let mut explainer = Explainer { project, domain, machine, sources: &loaded.sources, places, list: Vec::new() };
    explainer.network();
    explainer.plain();
    explainer.config();
    explainer.volumes();
    explainer.ilot();
    Some(explainer.list)
}

/// The nodes that have a say in a machine, the strongest block first.
struct Places<'t> {
    machine: Option<&'t Node>,
    domain: Option<&'t Node>,
    /// `global:`, or the whole `anklume.yml`.
    global: Option<&'t Node>,
    machine_ilot: Vec<&'t Node>,
    domain_ilot: Vec<&'t Node>,
    project_ilot: Vec<&'t Node>,
}

fn get<'t>(node: Option<&'t Node>, key: &str) -> Option<&'t Entry> {
    match &node?.value {
        Value::Mapping(entries) => entries.iter().find(|e| e.key == key && !e.value.is_null()),
        _ => None,
    }
}

fn child<'t>(node: Option<&'t Node>, key: &str) -> Option<&'t Node> {
    get(node, key).map(|e| &e.value)
}

impl<'t> Places<'t> {
    fn find(
        project: &Project,
        domain: &Domain,
        machine: &Machine,
        sources: &Sources,
        trees: &'t [Option<Node>],
    ) -> Self {
        let plain = |name: &str| name.strip_prefix(project.name_prefix.as_str()).unwrap_or(name).to_owned();
        let (domain_name, machine_name) = (plain(domain.name.as_str()), plain(machine.name.as_str()));
        let files = || sources.files.iter().zip(trees.iter().map(Option::as_ref));
        let main = files().find(|(f, _)| f.role == Role::Main).and_then(|(_, t)| t);
        let directory = project.layout == Layout::ProjectDirectory;
        let domain_node = if directory {
            files().find(|(f, _)| f.role == Role::Domains && f.path == domain.at.file).and_then(|(_, t)| t)
        } else {
            let in_files = || files().filter(|(f, _)| f.role == Role::Domains);
            child(child(main, "domains"), &domain_name).or_else(|| in_files().find_map(|(_, t)| child(t, &domain_name)))
        };
        let machine_node = child(child(domain_node, "machines"), &machine.declared_name);
        let beside = files().find(|(f, _)| f.role == Role::Ilot).and_then(|(_, t)| t);
        let beside = child(beside, "ilot").or(beside);
        let tops = [child(main, "ilot"), beside];
        let named = |list: &str, name: &str| tops.iter().find_map(|top| child(child(*top, list), name));
        Self {
            machine: machine_node,
            domain: domain_node,
            global: if directory { main } else { child(main, "global") },
            machine_ilot: [child(machine_node, "ilot"), named("machines", &machine_name)]
                .into_iter()
                .flatten()
                .collect(),
            domain_ilot: [child(domain_node, "ilot"), named("domains", &domain_name)].into_iter().flatten().collect(),
            project_ilot: tops.into_iter().flatten().collect(),
        }
    }
}

struct Explainer<'a> {
    project: &'a Project,
    domain: &'a Domain,
    machine: &'a Machine,
    sources: &'a Sources,
    places: Places<'a>,
    list: Vec<Explained>,
}

impl Explainer<'_> {
    fn at(&self, span: Span) -> Position {
        self.sources.position(span)
    }

    fn push(&mut self, key: impl Into<String>, value: Json, origin: Origin) {
        self.list.push(Explained { key: key.into(), value, origin });
    }

    /// The machine's own key, else the domain's of that name, else the default.
    fn own(&self, key: &str) -> Option<Origin> {
        get(self.places.machine, key).map(|e| Origin::Machine { at: self.at(e.value.span) })
    }

    fn of_domain(&self, key: &str) -> Option<Origin> {
        get(self.places.domain, key).map(|e| Origin::Domain { at: self.at(e.value.span) })
    }

    fn of_project(&self, key: &str) -> Option<Origin> {
        get(self.places.global, key).map(|e| Origin::Project { at: self.at(e.value.span) })
    }

    /// Whoever adds a machine that no file declares says all of it.
    fn otherwise(&self) -> Origin {
        if self.places.machine.is_none() && self.project.firewall.as_ref() == Some(&self.machine.name) {
            let at = self.of_project("firewall_mode").and_then(|origin| origin.at().cloned());
            return Origin::Computed { rule: "added by `firewall_mode: vm`".into(), at };
        }
        Origin::Default
    }

    fn network(&mut self) {
        let (domain, machine) = (self.domain, self.machine);
        let level = self.of_domain("trust_level").or_else(|| {
            let defaults = child(self.places.global, "defaults");
            get(defaults, "trust_level").map(|e| Origin::Project { at: self.at(e.value.span) })
        });
        self.push("domain", json!(domain.name), Origin::Domain { at: domain.at.clone() });
        self.push("trust_level", json!(domain.trust_level), level.unwrap_or(Origin::Default));
        let subnet = match self.of_domain("subnet_id") {
            Some(origin) => origin,
            None => Origin::computed(format!(
                "the lowest free number of the {} zone, in the order of names",
                domain.trust_level
            )),
        };
        self.push("subnet", json!(domain.subnet), subnet);
        self.push("gateway", json!(domain.gateway), Origin::computed("always .254"));
        let ip = self.own("ip").unwrap_or_else(|| match (self.otherwise(), machine.ip) {
            (origin @ Origin::Computed { .. }, _) => origin,
            (_, Some(_)) => Origin::computed("the lowest free host from .1, in the order of the file"),
            (_, None) => Origin::computed("a dynamic lease from .100 to .199, when it starts"),
        });
        self.push("ip", json!(machine.ip), ip);
        let off = || {
            let find = |nodes: &[&Node]| {
                nodes.iter().find_map(|n| get(Some(*n), "ipv6")).map(|entry| self.at(entry.value.span))
            };
            let domain = find(&self.places.domain_ilot).map(|at| Origin::Domain { at });
            domain
                .or_else(|| find(&self.places.project_ilot).map(|at| Origin::Project { at }))
                .unwrap_or(Origin::Default)
        };
        let origin = |rule: &str| if domain.ipv6 { Origin::computed(rule) } else { off() };
        let rows = [
            ("subnet6", json!(domain.subnet6()), origin("the octets of `subnet` behind fd69:6c6f:74")),
            ("gateway6", json!(domain.gateway6()), origin("the last octet of `gateway` in `subnet6`")),
            ("ip6", json!(domain.ip6(machine)), origin("the last octet of `ip` in `subnet6`")),
        ];
        for (key, value, origin) in rows {
            self.push(key, value, origin);
        }
    }

    /// Keys that only the machine may have, `ephemeral` and the image.
    fn plain(&mut self) {
        let m = self.machine;
        let ephemeral = self.own("ephemeral").or_else(|| self.of_domain("ephemeral"));
        let ephemeral = ephemeral.unwrap_or_else(|| self.otherwise());
        let image = self.image();
        self.push("image", json!(m.image), image);
        self.push("ephemeral", json!(m.ephemeral), ephemeral);
        let rows = [
            ("description", json!(m.description), None),
            ("type", json!(m.machine_type), None),
            ("gpu", json!(m.gpu), None),
            ("profiles", json!(m.profiles), None),
            ("weight", json!(m.weight), None),
            ("boot_autostart", json!(m.boot_autostart), Some("boot.autostart")),
            ("boot_priority", json!(m.boot_priority), Some("boot.autostart.priority")),
            ("snapshots_schedule", json!(m.snapshots_schedule), Some("snapshots.schedule")),
            ("snapshots_expiry", json!(m.snapshots_expiry), Some("snapshots.expiry")),
            ("storage_volumes", json!(m.storage_volumes), None),
            ("services", json!(m.services), None),
            ("roles", json!(m.roles), None),
        ];
        for (key, value, config) in rows {
            let origin = self.own(key).or_else(|| config.and_then(|c| self.of_config(c)));
            let origin = origin.unwrap_or_else(|| self.otherwise());
            self.push(key, value, origin);
        }
        for (name, volume) in &m.persistent_data {
            let written = ["persistent_data", "persistent"]
                .into_iter()
                .find_map(|key| get(child(self.places.machine, key), name))
                .map(|e| Origin::Machine { at: self.at(e.value.span) });
            self.push(format!("persistent_data.{name}"), json!(volume), written.unwrap_or(Origin::Default));
        }
        for (key, value) in &m.extra {
            let origin = self.own(key).unwrap_or(Origin::Default);
            self.push(key.clone(), value.clone(), origin);
        }
    }

    fn image(&self) -> Origin {
        let block = |nodes: &[&Node]| nodes.iter().find_map(|n| get(Some(*n), "image")).map(|e| self.at(e.value.span));
        if let Some(at) = block(&self.places.machine_ilot) {
            return Origin::Machine { at };
        }
        if let Some(origin) = self.own("os_image") {
            return origin;
        }
        if let Some(at) = block(&self.places.domain_ilot) {
            return Origin::Domain { at };
        }
        if let Some(at) = block(&self.places.project_ilot) {
            return Origin::Project { at };
        }
        let defaults = get(child(self.places.global, "defaults"), "os_image");
        let defaults = defaults.map(|e| Origin::Project { at: self.at(e.value.span) });
        self.of_project("default_os_image").or(defaults).unwrap_or(Origin::Default)
    }

    /// Who gives a key of `config` or a device: the machine, else the last of its profiles that has it.
    fn layered(&self, part: &str, key: &str) -> Option<Origin> {
        if let Some(entry) = get(child(self.places.machine, part), key) {
            return Some(Origin::Machine { at: self.at(entry.value.span) });
        }
        let profiles = child(self.places.domain, "profiles");
        self.machine.profiles.iter().rev().find_map(|name| {
            let entry = get(child(child(profiles, name), part), key)?;
            Some(Origin::Profile { name: name.clone(), at: self.at(entry.value.span) })
        })
    }

    fn of_config(&self, key: &str) -> Option<Origin> {
        self.layered("config", key)
    }

    fn config(&mut self) {
        let m = self.machine;
        for (key, value) in &m.config {
            let origin = self.of_config(key).unwrap_or_else(|| self.otherwise());
            self.push(format!("config.{key}"), json!(value), origin);
        }
        for (name, device) in &m.devices {
            let origin = self.layered("devices", name).unwrap_or(Origin::Default);
            self.push(format!("devices.{name}"), json!(device), origin);
        }
        let limits = [
            ("limits.cpu", json!(m.limits.cpu)),
            ("limits.cpu.allowance", json!(m.limits.cpu_allowance)),
            ("limits.memory", json!(m.limits.memory)),
            ("limits.memory.enforce", json!(m.limits.memory_enforce)),
            ("limits.processes", json!(m.limits.processes)),
        ];
        let policy = self.of_project("resource_policy").and_then(|origin| origin.at().cloned());
        for (key, value) in limits {
            // What `config` says stands above already; here is what the resource policy added.
            if !value.is_null() && !m.config.contains_key(key) {
                let rule = format!("the share of weight {} by `resource_policy`", m.weight);
                let rule = if key.ends_with("enforce") { "by `resource_policy`".into() } else { rule };
                self.push(key, value, Origin::Computed { rule, at: policy.clone() });
            }
        }
    }

    /// The shared volumes that it sees.
    fn volumes(&mut self) {
        let project = self.project;
        for volume in &project.shared_volumes {
            if let Some(writable) = volume.consumers.get(&self.machine.name) {
                let mode = if *writable { "rw" } else { "ro" };
                let value = json!({"source": volume.source, "path": volume.path, "mode": mode});
                self.push(format!("shared_volumes.{}", volume.name), value, Origin::Project { at: volume.at.clone() });
            }
        }
    }

    fn ilot(&mut self) {
        let m = self.machine;
        let egress = m.egress.as_ref().or(self.domain.egress.as_ref());
        let rows = [
            ("backend", json!(m.backend)),
            ("isolation", json!(m.isolation)),
            ("kind", json!(m.kind)),
            ("command", json!(m.command)),
            ("restart", json!(m.restart)),
            ("health", json!(m.health)),
            ("egress", json!(egress)),
            ("amnesic", json!(m.amnesic)),
            ("preload", json!(m.preload)),
        ];
        for (key, value) in rows {
            let find = |nodes: &[&Node]| nodes.iter().find_map(|n| get(Some(*n), key)).map(|e| self.at(e.value.span));
            let origin = find(&self.places.machine_ilot)
                .map(|at| Origin::Machine { at })
                .or_else(|| find(&self.places.domain_ilot).map(|at| Origin::Domain { at }))
                .or_else(|| find(&self.places.project_ilot).map(|at| Origin::Project { at }));
            self.push(format!("ilot.{key}"), value, origin.unwrap_or(Origin::Default));
        }
    }
}
