//! From a project to the resources that should be, and to the records that will say so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ilot_image::Reference;
use ilot_plan::{Effect, Kind, Resource};
use ilot_spec::units::parse_config_bool;
use ilot_spec::{CpuAllowance, CpuLimit, Domain, Layout, Limits, Machine, Project};
use serde_json::{Value, json};

use crate::devices::{self, DeviceRecord};
use crate::error::{Error, Result};
use crate::record::{DomainRecord, MachineRecord, PolicyRecord, ProjectRecord};
use crate::volumes;

/// The dynamic part of a subnet (`.100`–`.199`), for machines without an address of their own.
const DYNAMIC: std::ops::RangeInclusive<u8> = 100..=199;

/// What the store knows of a project before it is changed.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub project: Option<ProjectRecord>,
    pub domains: BTreeMap<String, DomainRecord>,
    pub machines: BTreeMap<String, MachineRecord>,
}

/// The address of every machine of the project's enabled domains: from the file, else the one it has, else the lowest
/// free dynamic one.
pub(crate) fn addresses(project: &Project, known: &Known) -> Result<BTreeMap<String, Ipv4Addr>> {
    let mut given = BTreeMap::new();
    for domain in project.enabled_domains() {
        let mut taken: BTreeSet<Ipv4Addr> = domain.machines.iter().filter_map(|m| m.ip).collect();
        // Containers of `ilot run` hold dynamic addresses too.
        taken.extend(
            known
                .machines
                .values()
                .filter(|m| m.project.is_none() && m.domain.as_deref() == Some(domain.name.as_str()))
                .filter_map(|m| m.ip),
        );
        for machine in &domain.machines {
            let ip = match machine.ip {
                Some(ip) => ip,
                None => {
                    let kept = known
                        .machines
                        .get(machine.name.as_str())
                        .and_then(|m| m.ip)
                        .filter(|ip| domain.subnet.contains(ip) && !taken.contains(ip));
                    kept.or_else(|| free_dynamic(domain.subnet, &taken))
                        .ok_or_else(|| no_address(machine.name.as_str(), domain.name.as_str()))?
                }
            };
            taken.insert(ip);
            given.insert(machine.name.to_string(), ip);
        }
    }
    Ok(given)
}

/// The lowest free address of the dynamic part of a subnet.
pub(crate) fn free_dynamic(subnet: ipnet::Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let [a, b, c, _] = subnet.network().octets();
    DYNAMIC.map(|host| Ipv4Addr::new(a, b, c, host)).find(|ip| !taken.contains(ip))
}

pub(crate) fn no_address(machine: &str, domain: &str) -> Error {
    Error::Exhausted(format!(
        "no address left for machine `{machine}` in domain `{domain}` (.100 to .199 are all taken)"
    ))
}

/// Everything that should be.
pub(crate) fn resources(project: &Project, known: &Known) -> Result<Vec<Resource>> {
    let addresses = addresses(project, known)?;
    let mut resources = vec![firewall(project, known)];
    for domain in project.enabled_domains() {
        resources.push(domain_resource(domain));
    }
    let mut machines: Vec<(&Domain, &Machine)> =
        project.enabled_domains().flat_map(|d| d.machines.iter().map(move |m| (d, m))).collect();
    // The order of starting: higher priority first, then the order of the file (the sort is stable).
    machines.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.boot_priority));
    for (domain, machine) in machines {
        let ip = addresses.get(machine.name.as_str()).copied();
        let existing = known.machines.get(machine.name.as_str());
        resources.push(machine_resource(project, domain, machine, ip, existing));
    }
    Ok(resources)
}

fn firewall(project: &Project, known: &Known) -> Resource {
    let mut resource = Resource::new(Kind::Firewall, project.name.as_str()).live("table", "installed");
    let wanted: Vec<PolicyRecord> = project.policies.iter().map(PolicyRecord::from).collect();
    for policy in &wanted {
        resource = resource.live(&policy.to_string(), "allowed");
    }
    // A field that the desired side lacks is not compared, so what was allowed and no longer is must be said.
    for policy in known.project.iter().flat_map(|p| &p.policies) {
        let name = policy.to_string();
        if !resource.fields.contains_key(&name) {
            resource = resource.live(&name, Value::Null);
        }
    }
    resource
}

fn domain_resource(domain: &Domain) -> Resource {
    let mut resource = Resource::new(Kind::Domain, domain.name.as_str());
    resource.protected = !domain.ephemeral;
    resource
        .restart("subnet", domain.subnet.to_string())
        .live("bridge", ilot_net::bridge_name(domain.name.as_str()))
        .restart("trust_level", domain.trust_level.as_str())
        .live("description", domain.description.as_str())
        .live("ephemeral", domain.ephemeral)
        .live("ilot.egress", json!(domain.egress))
        .live("machines' ilot.egress", some(&machine_egress(domain)))
        .live("ilot.ipv6", domain.ipv6)
        .live("link", "up")
        .live("names", "answering")
}

fn machine_resource(
    project: &Project,
    domain: &Domain,
    machine: &Machine,
    ip: Option<Ipv4Addr>,
    existing: Option<&MachineRecord>,
) -> Resource {
    let mut resource = Resource::new(Kind::Machine, machine.name.as_str()).in_domain(domain.name.as_str());
    resource.protected = !machine.ephemeral;
    resource.running = Some(true);
    resource = resource
        .replace("domain", domain.name.as_str())
        .replace("type", machine.machine_type.as_str())
        .replace("image", image_name(project, machine))
        .restart("trust_level", domain.trust_level.as_str())
        .restart("ip", json!(ip))
        .restart("ilot.command", json!(machine.command))
        .restart("ilot.isolation", machine.isolation.as_str())
        .restart("security.nesting", is_true(machine, "security.nesting"))
        .replace("security.privileged", is_privileged(machine))
        .replace("ilot.amnesic", machine.amnesic || domain.amnesic);
    resource = limit_fields(resource, &machine.limits);
    let volumes = volumes::of(project, machine);
    for volume in &volumes {
        resource = resource.restart(&volume.field(), volume.value());
    }
    for volume in existing.iter().flat_map(|e| &e.volumes) {
        if !volumes.iter().any(|v| v.path == volume.path) {
            resource = resource.restart(&volume.field(), Value::Null);
        }
    }
    resource = device_fields(resource, project, machine);
    let environment = environment(machine);
    for (key, value) in &environment {
        resource = resource.restart(&format!("environment.{key}"), value.as_str());
    }
    for key in existing.iter().flat_map(|e| e.environment.keys()) {
        if !environment.contains_key(key) {
            resource = resource.restart(&format!("environment.{key}"), Value::Null);
        }
    }
    resource
        .live("description", machine.description.as_str())
        .live("ephemeral", machine.ephemeral)
        .live("boot_autostart", machine.boot_autostart)
        .live("boot_priority", machine.boot_priority)
        .live("roles", json!(machine.roles))
        .live("link", "attached")
}

fn device_fields(mut resource: Resource, project: &Project, machine: &Machine) -> Resource {
    match devices::of(project, machine) {
        Ok(devices) => {
            for (name, device) in &devices {
                let effect = if device.is_live() { Effect::Live } else { Effect::Restart };
                resource = resource.with(&format!("devices.{name}"), device.value(), effect);
                if matches!(device, DeviceRecord::Proxy(_)) {
                    resource = resource.live(&format!("relay {name}"), "running");
                }
            }
            resource
        }
        // The plan shows what was asked for; making the machine says why it is refused.
        Err(_) => resource.restart("devices", json!(machine.devices)),
    }
}

/// `limits.*` in their one canonical form.
pub(crate) fn limit_fields(resource: Resource, limits: &Limits) -> Resource {
    let cpu = limits.cpu.as_ref().map(|cpu| match cpu {
        CpuLimit::Count(count) => json!(count),
        CpuLimit::Set(set) => json!(set),
    });
    let allowance = limits.cpu_allowance.map(|allowance| match allowance {
        CpuAllowance::Percent(percent) => format!("{percent}%"),
        CpuAllowance::Quota { quota, period } => format!("{quota}us/{period}us"),
    });
    resource
        .with("limits.cpu", json!(cpu), Effect::Live)
        .with("limits.cpu.allowance", json!(allowance), Effect::Live)
        .with("limits.memory", json!(limits.memory), Effect::Live)
        .with("limits.memory.enforce", json!(limits.memory_enforce), Effect::Live)
        .with("limits.processes", json!(limits.processes), Effect::Live)
}

/// Whether a key of `config` is on, in any of Incus's spellings.
pub(crate) fn is_true(machine: &Machine, key: &str) -> bool {
    machine.config.get(key).and_then(|text| parse_config_bool(text)).unwrap_or(false)
}

/// `environment.*` of the config.
pub(crate) fn environment(machine: &Machine) -> BTreeMap<String, String> {
    machine
        .config
        .iter()
        .filter_map(|(key, value)| key.strip_prefix("environment.").map(|k| (k.to_owned(), value.clone())))
        .collect()
}

/// Machines' lists as a field's value: none is none.
pub(crate) fn some(lists: &BTreeMap<String, Vec<String>>) -> Value {
    if lists.is_empty() { Value::Null } else { json!(lists) }
}

/// The egress lists of the machines that have one of their own.
fn machine_egress(domain: &Domain) -> BTreeMap<String, Vec<String>> {
    domain.machines.iter().filter_map(|m| Some((m.name.to_string(), m.egress.clone()?))).collect()
}

/// The record of a domain as the file has it. `id_base` and the hosts are the store's to fill in.
pub(crate) fn domain_record(
    project: &Project,
    domain: &Domain,
    id_base: u32,
    hosts: BTreeMap<String, Ipv4Addr>,
) -> DomainRecord {
    DomainRecord {
        name: domain.name.to_string(),
        project: project.name.clone(),
        description: domain.description.clone(),
        trust: domain.trust_level,
        bridge: ilot_net::bridge_name(domain.name.as_str()),
        subnet: domain.subnet,
        gateway: domain.gateway,
        id_base,
        ephemeral: domain.ephemeral,
        egress: domain.egress.clone(),
        machine_egress: machine_egress(domain),
        hosts,
        ipv6: domain.ipv6,
    }
}

/// Whether it runs without a user namespace. The file is only read where a VM stands above this host.
pub(crate) fn is_privileged(machine: &Machine) -> bool {
    is_true(machine, "security.privileged")
}

/// The machine's image by a name that means the same from everywhere: a relative path is seen from the project's folder.
/// What is no name of an image stays as it is, for the message that says so.
fn image_name(project: &Project, machine: &Machine) -> String {
    match Reference::parse(&machine.image) {
        Ok(path @ (Reference::Tar(_) | Reference::Dir(_) | Reference::Layout { .. })) => {
            path.absolute(&folder(project)).to_string()
        }
        _ => machine.image.clone(),
    }
}

/// The folder that holds the project's main file, whichever way the project was named.
fn folder(project: &Project) -> PathBuf {
    let source = std::path::absolute(&project.source).unwrap_or_else(|_| project.source.clone());
    if !source.is_dir() {
        return source.parent().map_or_else(|| source.clone(), Path::to_path_buf);
    }
    let is_split = project.layout == Layout::SplitDirectory;
    if is_split && !source.join("base.yml").is_file() { source.join("infra") } else { source }
}

/// The record of a machine as the file has it.
pub(crate) fn machine_record(
    project: &Project,
    domain: &Domain,
    machine: &Machine,
    id_base: u32,
    ip: Option<Ipv4Addr>,
    existing: Option<&MachineRecord>,
) -> MachineRecord {
    MachineRecord {
        name: machine.name.to_string(),
        project: Some(project.name.clone()),
        domain: Some(domain.name.to_string()),
        description: machine.description.clone(),
        image: image_name(project, machine),
        image_digest: existing.map(|e| e.image_digest.clone()).unwrap_or_default(),
        trust: domain.trust_level,
        id_base: if is_privileged(machine) { 0 } else { id_base },
        ip,
        mac: Some(ilot_net::mac_for(machine.name.as_str()).to_string()),
        limits: machine.limits.clone(),
        environment: environment(machine),
        command: machine.command.clone(),
        user: None,
        cwd: None,
        ephemeral: machine.ephemeral,
        boot_autostart: machine.boot_autostart,
        boot_priority: machine.boot_priority,
        roles: machine.roles.clone(),
        volumes: volumes::of(project, machine),
        // What is refused keeps the machine from being made before its record is.
        devices: devices::of(project, machine).unwrap_or_default(),
        isolation: machine.isolation,
        privileged: is_privileged(machine),
        amnesic: machine.amnesic || domain.amnesic,
        // The engine allocates them.
        nested_ids: None,
        remove_on_exit: false,
        terminal: false,
        command_is_init: false,
        created_at: existing.map_or_else(jiff::Timestamp::now, |e| e.created_at),
    }
}
