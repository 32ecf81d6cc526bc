//! From raw settings to the project: what one part says of another is checked, defaults and inheritance filled in.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use indexmap::IndexMap;
use ipnet::Ipv4Net;

use crate::address::{self, FIREWALL_HOST, GATEWAY_HOST};
use crate::config;
use crate::cx::{At, Cx, Path};
use crate::model::{
    Addressing, AiAccessPolicy, Backend, Domain, DomainName, FirewallMode, Global, GpuPolicy, HostFacts, Isolation,
    Machine, MachineName, MachineType, PersistentData, Profile, Project, ResourcePolicy,
};
use crate::names::Names;
use crate::read::{AddressingForm, IlotBlock, RawDomain, RawMachine, RawProject};
use crate::{checks, policies, prefix, resources, units, volumes};

/// The image of a machine that names none, in a project that names none.
pub const DEFAULT_IMAGE: &str = "images:debian/13";
/// The names of a machine that filters between domains.
const FIREWALL_NAMES: [&str; 2] = ["anklume-firewall", "sys-firewall"];

/// Checks everything and builds the project; it is only whole when `cx` has no error.
pub(crate) fn assemble(cx: &mut Cx<'_>, mut raw: RawProject, host: &HostFacts) -> Project {
    overlay_ilot(cx, &mut raw);
    let subnets = address::subnets(cx, &raw.global, &raw.domains);
    let firewall = firewall(cx, &mut raw, &subnets);
    address::check_host(cx, &raw.domains, &subnets, host);
    let addresses = address::machines(cx, &raw.global, &raw.domains, &subnets);
    let names = Names::gather(cx, &raw.domains);

    let mut domains: Vec<Domain> = Vec::with_capacity(raw.domains.len());
    for ((domain, subnet), ips) in raw.domains.iter().zip(&subnets).zip(&addresses) {
        let built = build_domain(cx, &raw, domain, *subnet, ips, host);
        domains.push(built);
    }
    checks::machines(cx, &raw, &domains, host);
    let shared_volumes = volumes::resolve(cx, &raw, &names, &domains);
    let mut policies = policies::resolve(cx, &raw, &names);
    let ai_access_default = policies::ai_access(cx, &raw, &names, &mut policies);
    checks::references(cx, &raw, &names, &policies);
    if let Some(policy) = &raw.global.resource_policy {
        resources::share(cx, policy, &mut domains, host);
    }

    let mut project = Project {
        global: global(&raw, ai_access_default),
        name: raw.name,
        layout: cx.sources.layout,
        source: cx.sources.root.clone(),
        domains: domains.into_iter().map(|d| (d.name.clone(), d)).collect(),
        policies,
        shared_volumes,
        schema_version: raw.schema_version,
        name_prefix: String::new(),
        firewall,
        extra: raw.extra,
    };
    prefix::apply(cx, &mut project, host);
    project
}

/// `ilot.yml` and the project's block fill in what domains and machines leave out.
fn overlay_ilot(cx: &mut Cx<'_>, raw: &mut RawProject) {
    let root = Path::Root;
    let base = root.key("ilot");
    let (domains, machines) = (std::mem::take(&mut raw.ilot.domains), std::mem::take(&mut raw.ilot.machines));
    for (name, block) in domains {
        let domains = base.key("domains");
        let path = domains.key(&name);
        match raw.domains.iter_mut().find(|d| d.declared == name) {
            Some(domain) => domain.ilot.overlay(cx, block.value, &path),
            None if cx.incomplete => {}
            None => {
                let near = cx.nearest(&name, raw.domains.iter().map(|d| d.declared.as_str()));
                let help = near
                    .map_or("write the name of a domain of this project".into(), |n| format!("did you mean `{n}`?"));
                cx.error(block.span, &path, format!("`{name}` is no domain of this project")).help(help);
            }
        }
    }
    if machines.is_empty() {
        return;
    }
    let mut places: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (d, domain) in raw.domains.iter().enumerate() {
        for (m, machine) in domain.machines.iter().enumerate() {
            places.insert(machine.label().to_owned(), (d, m));
        }
    }
    for (name, block) in machines {
        let machines = base.key("machines");
        let path = machines.key(&name);
        match places.get(&name) {
            Some(&(d, m)) => raw.domains[d].machines[m].ilot.overlay(cx, block.value, &path),
            None if cx.incomplete => {}
            None => {
                let near = cx.nearest(&name, places.keys().map(String::as_str));
                let help = near
                    .map_or("write the name of a machine of this project".into(), |n| format!("did you mean `{n}`?"));
                cx.error(block.span, &path, format!("`{name}` is no machine of this project")).help(help);
            }
        }
    }
}

/// With `firewall_mode: vm`, the machine that filters: the declared one, else one is added to the domain `anklume`.
fn firewall(cx: &mut Cx<'_>, raw: &mut RawProject, subnets: &[Option<Ipv4Net>]) -> Option<MachineName> {
    let mode = raw.global.firewall_mode.filter(|m| m.value == FirewallMode::Vm)?;
    let machines = raw.domains.iter().flat_map(|d| &d.machines);
    let declared = machines.filter_map(|m| m.name.as_ref()).find(|n| FIREWALL_NAMES.contains(&n.as_str()));
    if let Some(name) = declared {
        return Some(name.clone());
    }
    let name = MachineName::new(FIREWALL_NAMES[0]).ok()?;
    let home = raw.domains.iter().position(|d| d.declared == "anklume" && d.enabled);
    let Some(home) = home else {
        if !cx.incomplete {
            let root = Path::Root;
            let path = root.key("global");
            cx.error(
                mode.span,
                &path.key("firewall_mode"),
                "`firewall_mode: vm` needs an enabled domain `anklume` for its machine",
            )
            .help("add the domain `anklume`, declare a machine `anklume-firewall`, or write `firewall_mode: host`");
        }
        return None;
    };
    let mut machine = RawMachine::added(name.clone(), mode.span);
    "Filters between the domains (added by firewall_mode: vm)".clone_into(&mut machine.description);
    machine.machine_type = Some(MachineType::Vm);
    machine.ephemeral = Some(false);
    machine.ip = subnets[home].map(|s| At { value: address::host_of(s, FIREWALL_HOST), span: mode.span });
    machine.ip_broken = machine.ip.is_none();
    machine.roles = vec!["base_system".into(), "firewall_router".into()];
    for (key, value) in [("limits.cpu", "2"), ("limits.memory", "2GiB")] {
        machine.config.insert(key.into(), At { value: value.into(), span: mode.span });
    }
    raw.domains[home].machines.push(machine);
    Some(name)
}

fn global(raw: &RawProject, ai_access_default: Option<DomainName>) -> Global {
    let g = &raw.global;
    Global {
        addressing: match g.addressing {
            AddressingForm::BaseSubnet { base } => Addressing::BaseSubnet { base },
            AddressingForm::Zones { base_octet, zone_base, zone_step } => {
                Addressing::Zones { base_octet, zone_base: zone_base.value, zone_step }
            }
            AddressingForm::Unknown => Addressing::Zones { base_octet: 10, zone_base: 100, zone_step: 10 },
        },
        default_os_image: default_image(raw).to_owned(),
        default_user: g.default_user.clone(),
        default_connection: g.default_connection.clone(),
        gpu_policy: g.gpu_policy.map_or(GpuPolicy::Exclusive, |p| p.value),
        firewall_mode: g.firewall_mode.map_or(FirewallMode::Host, |m| m.value),
        ai_access_policy: g.ai_access_policy.map_or(AiAccessPolicy::Open, |p| p.value),
        ai_access_default,
        ai_vram_flush: g.ai_vram_flush,
        nesting_prefix: g.nesting_prefix,
        shared_volumes_base: g.shared_volumes_base.clone(),
        persistent_data_base: g.persistent_data_base.clone(),
        resource_policy: g.resource_policy.as_ref().map(|p| ResourcePolicy {
            host_reserve_cpu: p.reserve_cpu,
            host_reserve_memory: p.reserve_memory,
            mode: p.mode,
            cpu_mode: p.cpu_mode,
            memory_enforce: p.memory_enforce,
            overcommit: p.overcommit,
        }),
    }
}

fn default_image(raw: &RawProject) -> &str {
    raw.global.default_os_image.as_deref().unwrap_or(DEFAULT_IMAGE)
}

fn build_domain(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    domain: &RawDomain,
    subnet: Option<Ipv4Net>,
    ips: &[Option<Ipv4Addr>],
    host: &HostFacts,
) -> Domain {
    // Placeholders stand only where an error was told; the project is then thrown away.
    let subnet = subnet.unwrap_or_default();
    let project = &raw.ilot.block;
    let mut built = Domain {
        name: domain.name.clone().unwrap_or_else(DomainName::placeholder),
        at: cx.position(domain.span),
        description: domain.description.clone(),
        enabled: domain.enabled,
        trust_level: domain.trust_level.unwrap_or(raw.global.default_trust_level),
        subnet,
        gateway: address::host_of(subnet, GATEWAY_HOST),
        ephemeral: domain.ephemeral,
        ai_provider: domain.ai_provider,
        ai_sanitize: domain.ai_sanitize,
        profiles: domain
            .profiles
            .iter()
            .map(|(name, p)| {
                let config = p.config.iter().map(|(k, v)| (k.clone(), v.value.clone())).collect();
                let devices = p.devices.iter().map(|(k, v)| (k.clone(), v.value.clone())).collect();
                (name.clone(), Profile { config, devices })
            })
            .collect(),
        machines: Vec::with_capacity(domain.machines.len()),
        egress: pick(&[&domain.ilot, project], |b| b.egress.as_ref()),
        amnesic: pick(&[&domain.ilot, project], |b| b.amnesic.as_ref()).unwrap_or(false),
        ipv6: pick(&[&domain.ilot, project], |b| b.ipv6.as_ref()).unwrap_or(true),
    };
    for (machine, ip) in domain.machines.iter().zip(ips) {
        let machine = build_machine(cx, raw, domain, &built, machine, *ip, host);
        built.machines.push(machine);
    }
    built
}

/// The first of the blocks that says something.
fn pick<T: Clone>(blocks: &[&IlotBlock], get: impl Fn(&IlotBlock) -> Option<&At<T>>) -> Option<T> {
    blocks.iter().find_map(|b| get(b)).map(|v| v.value.clone())
}

/// Config and devices of the machine's profiles in their order, then its own.
struct Effective {
    config: BTreeMap<String, String>,
    devices: IndexMap<String, crate::model::Device>,
    profiles: Vec<String>,
}

fn effective(cx: &mut Cx<'_>, domain: &RawDomain, machine: &RawMachine) -> Effective {
    let mut all = Effective { config: BTreeMap::new(), devices: IndexMap::new(), profiles: Vec::new() };
    let default = [At { value: "default".to_owned(), span: machine.span }];
    let named = machine.profiles.as_deref().unwrap_or(&default);
    for (i, name) in named.iter().enumerate() {
        if let Some(profile) = domain.profiles.get(&name.value) {
            all.config.extend(profile.config.iter().map(|(k, v)| (k.clone(), v.value.clone())));
            all.devices.extend(profile.devices.iter().map(|(k, v)| (k.clone(), v.value.clone())));
        } else if name.value != "default" {
            let known = domain.profiles.keys().map(String::as_str).chain(["default"]);
            let near = cx.nearest(&name.value, known);
            let help = near.map_or_else(
                || format!("define it under `profiles:` of the domain `{}`", domain.declared),
                |near| format!("did you mean `{near}`?"),
            );
            let shown = crate::cx::shorten(&name.value);
            let message = format!("the domain `{}` has no profile `{shown}`", domain.declared);
            address::with_machine_path(domain, machine, "profiles", |path| {
                cx.error(name.span, &path.index(i), message).help(help);
            });
        }
        all.profiles.push(name.value.clone());
    }
    all.config.extend(machine.config.iter().map(|(k, v)| (k.clone(), v.value.clone())));
    all.devices.extend(machine.devices.iter().map(|(k, v)| (k.clone(), v.value.clone())));
    all
}

fn build_machine(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    domain: &RawDomain,
    built: &Domain,
    machine: &RawMachine,
    ip: Option<Ipv4Addr>,
    host: &HostFacts,
) -> Machine {
    let Effective { config, devices, profiles } = effective(cx, domain, machine);
    let get = |key: &str| config.get(key).map(String::as_str);
    let blocks = [&machine.ilot, &domain.ilot, &raw.ilot.block];
    let name = machine.name.clone().unwrap_or_else(MachineName::placeholder);
    let image = machine
        .ilot
        .image
        .as_ref()
        .map(|i| i.value.clone())
        .or_else(|| machine.os_image.clone())
        .or_else(|| pick(&blocks, |b| b.image.as_ref()))
        .unwrap_or_else(|| default_image(raw).to_owned());
    let persistent = |(volume, p): (&String, &At<crate::read::RawPersistent>)| {
        let parts = [domain.declared.as_str(), name.as_str(), volume.as_str()];
        let source = raw.global.persistent_data_base.join(parts.join("/"));
        (volume.clone(), PersistentData { source, path: p.value.path.value.clone(), readonly: p.value.readonly })
    };
    Machine {
        domain: built.name.clone(),
        declared_name: machine.declared.clone(),
        at: cx.position(machine.span),
        description: machine.description.clone(),
        machine_type: machine.machine_type.unwrap_or(MachineType::Lxc),
        ip,
        ephemeral: machine.ephemeral.unwrap_or(domain.ephemeral),
        gpu: machine.gpu.is_some_and(|g| g.value),
        profiles,
        weight: machine.weight,
        boot_autostart: machine
            .boot_autostart
            .or_else(|| get("boot.autostart").and_then(units::parse_config_bool))
            .unwrap_or(false),
        boot_priority: machine
            .boot_priority
            .or_else(|| get("boot.autostart.priority").and_then(|n| n.parse().ok()))
            .unwrap_or(0),
        snapshots_schedule: machine.snapshots_schedule.clone().or_else(|| filled(get("snapshots.schedule"))),
        snapshots_expiry: machine.snapshots_expiry.clone().or_else(|| filled(get("snapshots.expiry"))),
        image,
        limits: config::limits(get, host.memory),
        persistent_data: machine.persistent.iter().map(persistent).collect(),
        name,
        config,
        devices,
        storage_volumes: machine.storage_volumes.clone(),
        services: machine.services.clone(),
        roles: machine.roles.clone(),
        extra: machine.extra.clone(),
        backend: pick(&blocks, |b| b.backend.as_ref()).unwrap_or(Backend::Native),
        isolation: pick(&blocks, |b| b.isolation.as_ref()).unwrap_or(Isolation::Basic),
        kind: pick(&blocks, |b| b.kind.as_ref()),
        command: machine.ilot.command.as_ref().map(|c| c.value.clone()),
        restart: pick(&blocks, |b| b.restart.as_ref()),
        health: machine.ilot.health.as_ref().map(|h| h.value.clone()),
        amnesic: pick(&blocks, |b| b.amnesic.as_ref()).unwrap_or(false),
        preload: pick(&blocks, |b| b.preload.as_ref()).unwrap_or(0),
        egress: machine.ilot.egress.as_ref().map(|e| e.value.clone()),
    }
}

fn filled(text: Option<&str>) -> Option<String> {
    text.filter(|t| !t.is_empty()).map(str::to_owned)
}
