//! From the store and the kernel to the resources that are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use ilot_plan::{Effect, Kind, Resource};
use ilot_runtime::Status;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::desired::{Known, limit_fields, some};
use crate::devices::DeviceRecord;
use crate::error::{Error, Result};
use crate::paths::{Paths, read_json};
use crate::record::{DomainRecord, MachineRecord, ProjectRecord};
use crate::{Native, network};

/// Every record of one kind in a directory, by name.
fn records<T: DeserializeOwned>(dir: &std::path::Path, suffix: &str) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let entry = entry.map_err(Error::file("read", dir))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        // Names begin with a letter or digit; what begins with a dot is half made or half removed.
        if name.starts_with('.') {
            continue;
        }
        let (name, path) = if suffix.is_empty() {
            (name, entry.path().join("machine.json"))
        } else {
            match name.strip_suffix(suffix) {
                Some(stem) => (stem.to_owned(), entry.path()),
                None => continue,
            }
        };
        if let Some(record) = read_json(&path)? {
            found.insert(name, record);
        }
    }
    Ok(found)
}

/// Every machine of the store.
pub(crate) fn machine_records(paths: &Paths) -> Result<BTreeMap<String, MachineRecord>> {
    records(&paths.root.join("machines"), "")
}

/// Every domain of the store.
pub(crate) fn domain_records(paths: &Paths) -> Result<BTreeMap<String, DomainRecord>> {
    records(&paths.root.join("domains"), ".json")
}

/// Every project of the store.
pub(crate) fn project_records(paths: &Paths) -> Result<BTreeMap<String, ProjectRecord>> {
    records(&paths.root.join("projects"), ".json")
}

/// What the store knows, whole; `project` is the one asked about.
pub(crate) fn known(paths: &Paths, project: &str) -> Result<Known> {
    Ok(Known {
        project: read_json(&paths.project_record(project))?,
        domains: domain_records(paths)?,
        machines: machine_records(paths)?,
    })
}

/// Everything of the project that there is. A domain of which only the record stands counts: it is half made, and is
/// finished or removed by whatever comes next.
pub(crate) fn resources(native: &Native, name: &str, known: &Known) -> Result<Vec<Resource>> {
    let paths = &native.paths;
    let bridges: BTreeMap<String, ilot_net::BridgeState> =
        ilot_net::bridges(&paths.store_id)?.into_iter().map(|b| (b.name.clone(), b)).collect();
    let ports: BTreeSet<String> = ilot_net::ports(&paths.store_id)?
        .into_iter()
        .filter(|p| p.up && p.bridge.is_some())
        .map(|p| p.host_if)
        .collect();
    let services: BTreeSet<String> = ilot_net::names::running(&paths.run)?.into_iter().map(|s| s.domain).collect();
    let relays = ilot_net::proxy::known(&paths.run)?;
    let relays: BTreeSet<(&str, &str)> = relays
        .iter()
        .filter(|(_, runs)| *runs)
        .map(|(relay, _)| (relay.machine.as_str(), relay.device.as_str()))
        .collect();
    let ipv6 = network::host_ipv6();
    let mut resources = Vec::new();
    if let Some(project) = &known.project {
        resources.push(firewall(native, project)?);
    }
    for domain in known.domains.values().filter(|d| d.project == name) {
        let bridge = bridges.get(&domain.bridge);
        resources.push(domain_resource(domain, bridge, ipv6, services.contains(&domain.name)));
    }
    for machine in known.machines.values().filter(|m| m.project.as_deref() == Some(name)) {
        let state = ilot_runtime::state(&paths.machine_run(&machine.name))?;
        let running = state.is_some_and(|s| matches!(s.status, Status::Running | Status::Paused));
        // A machine that does not run has no link; that it does not run is the reason that the plan gives.
        let legs = crate::devices::legs(machine).map(|(leg, ..)| ilot_net::port_name(&leg));
        let attached = !running
            || machine.domain.is_none()
            || legs.chain([ilot_net::port_name(&machine.name)]).all(|port| ports.contains(&port));
        resources.push(machine_resource(machine, running, attached, &relays));
    }
    Ok(resources)
}

fn firewall(native: &Native, project: &ProjectRecord) -> Result<Resource> {
    let ruleset = network::ruleset(&native.paths)?;
    let state =
        if ilot_net::firewall::is_installed(&native.paths.run, &ruleset)? { "installed" } else { "missing or changed" };
    let mut resource = Resource::new(Kind::Firewall, project.name.as_str()).live("table", state);
    for policy in &project.policies {
        resource = resource.live(&policy.to_string(), "allowed");
    }
    Ok(resource)
}

fn domain_resource(
    domain: &DomainRecord,
    bridge: Option<&ilot_net::BridgeState>,
    ipv6: bool,
    answers: bool,
) -> Resource {
    let gateway6 = network::gateway6(domain, ipv6);
    let gateway = ipnet::Ipv4Net::new(domain.gateway, domain.subnet.prefix_len()).ok();
    let link = match bridge {
        None => "missing",
        Some(bridge) if !bridge.up => "down",
        Some(bridge) if bridge.gateway != gateway || bridge.gateway6 != gateway6 => "without its address",
        Some(_) => "up",
    };
    let names = if answers { "answering" } else { "stopped" };
    let mut resource = Resource::new(Kind::Domain, domain.name.as_str());
    resource.protected = !domain.ephemeral;
    resource
        .restart("subnet", domain.subnet.to_string())
        .live("bridge", domain.bridge.as_str())
        .restart("trust_level", domain.trust.as_str())
        .live("description", domain.description.as_str())
        .live("ephemeral", domain.ephemeral)
        .live("ilot.egress", json!(domain.egress))
        .live("machines' ilot.egress", some(&domain.machine_egress))
        .live("ilot.ipv6", domain.ipv6)
        .live("link", link)
        .live("names", names)
}

fn machine_resource(
    machine: &MachineRecord,
    running: bool,
    attached: bool,
    relays: &BTreeSet<(&str, &str)>,
) -> Resource {
    let mut resource = Resource::new(Kind::Machine, machine.name.as_str());
    resource.domain.clone_from(&machine.domain);
    resource.protected = !machine.ephemeral;
    resource.running = Some(running);
    resource = resource
        .replace("domain", json!(machine.domain))
        .replace("type", "lxc")
        .replace("image", machine.image.as_str())
        .restart("trust_level", machine.trust.as_str())
        .restart("ip", json!(machine.ip))
        .restart("ilot.command", json!(machine.command))
        .restart("ilot.isolation", machine.isolation.as_str())
        .restart("security.nesting", machine.nested_ids.is_some())
        .replace("security.privileged", machine.privileged)
        .replace("ilot.amnesic", machine.amnesic);
    resource = limit_fields(resource, &machine.limits);
    for volume in &machine.volumes {
        resource = resource.restart(&volume.field(), volume.value());
    }
    for (name, device) in &machine.devices {
        let effect = if device.is_live() { Effect::Live } else { Effect::Restart };
        resource = resource.with(&format!("devices.{name}"), device.value(), effect);
        if matches!(device, DeviceRecord::Proxy(_)) {
            // That its machine does not run is reason enough.
            let runs = !running || relays.contains(&(machine.name.as_str(), name.as_str()));
            resource = resource.live(&format!("relay {name}"), if runs { "running" } else { "stopped" });
        }
    }
    for (key, value) in &machine.environment {
        resource = resource.restart(&format!("environment.{key}"), value.as_str());
    }
    resource
        .live("description", machine.description.as_str())
        .live("ephemeral", machine.ephemeral)
        .live("boot_autostart", machine.boot_autostart)
        .live("boot_priority", machine.boot_priority)
        .live("roles", Value::from(machine.roles.clone()))
        .live("link", if attached { "attached" } else { "missing" })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use ilot_plan::diff;
    use ilot_spec::{HostFacts, Sources};

    use super::*;
    use crate::desired;

    fn random(state: &mut u64, below: u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 33) % below
    }

    /// One of two spellings of the same settings: order, quotes, units and comments differ with `spelling`.
    struct Writer {
        state: u64,
        spelling: u64,
        text: String,
        domains: u64,
    }

    impl Writer {
        fn one_in(&mut self, n: u64) -> bool {
            random(&mut self.state, n) == 0
        }

        fn below(&mut self, n: u64) -> u64 {
            random(&mut self.state, n)
        }

        fn spelt(&self, one: impl Into<String>, other: impl Into<String>) -> String {
            if self.spelling == 0 { one.into() } else { other.into() }
        }

        /// A mapping in one line, its keys in either order.
        fn mapping(&self, mut keys: Vec<String>) -> String {
            if self.spelling == 1 {
                keys.reverse();
            }
            format!("{{{}}}", keys.join(", "))
        }

        fn config(&mut self) -> String {
            let (gib, cpus, word) = (1 + self.below(3), 1 + self.below(2), self.below(9));
            let mut keys = vec![
                format!("limits.memory: {}", self.spelt(format!("{gib}GiB"), format!("\"{}MiB\"", gib * 1024))),
                format!("limits.cpu: {}", self.spelt(cpus.to_string(), format!("\"{cpus}\""))),
            ];
            if self.one_in(4) {
                keys[1] = format!("limits.cpu: {}", self.spelt("'0-2,5'", "\"5,0,1-2\""));
            }
            if self.one_in(3) {
                keys.push(format!("limits.cpu.allowance: {}", self.spelt("25ms/100ms", "\"25ms/100ms\"")));
            }
            if self.one_in(3) {
                keys.push(format!("limits.processes: {}", self.spelt("200", "\"200\"")));
            }
            if self.one_in(2) {
                keys.push(format!("environment.WORD: w{word}"));
            }
            if self.one_in(3) {
                keys.push(format!("security.nesting: {}", self.spelt("\"true\"", "yes")));
            }
            self.mapping(keys)
        }

        fn devices(&mut self, domain: u64) -> String {
            let port = 1000 + self.below(999);
            let mut devices = Vec::new();
            if self.one_in(2) {
                let keys = [
                    "type: proxy".to_owned(),
                    format!("listen: \"tcp:127.0.0.1:{port}\""),
                    "connect: \"tcp:127.0.0.1:80\"".into(),
                ];
                devices.push(format!("p: {}", self.mapping(keys.into())));
            }
            if self.one_in(2) {
                let path = self.spelt("/data", "/data//");
                let readonly = self.spelt("true", "\"yes\"");
                let keys = [
                    "type: disk".to_owned(),
                    "source: /srv/data".into(),
                    format!("path: {path}"),
                    format!("readonly: {readonly}"),
                ];
                devices.push(format!("d: {}", self.mapping(keys.into())));
            }
            if self.one_in(3) && self.domains > 1 {
                let other = (domain + 1) % self.domains;
                let network = self.spelt(format!("d{other}"), format!("net-d{other}"));
                let rate = self.spelt("10Mbit", "10000kbit");
                devices.push(format!("eth1: {{type: nic, network: {network}, limits.egress: {rate}}}"));
            }
            self.mapping(devices)
        }

        fn machine(&mut self, domain: u64, name: &str) {
            let mut keys = vec![format!("config: {}", self.config()), format!("devices: {}", self.devices(domain))];
            if self.one_in(3) {
                keys.push(format!("boot_priority: {}", self.below(101)));
            }
            if self.one_in(3) {
                keys.push(format!("description: {}", self.spelt("words", "\"words\"")));
            }
            if self.one_in(3) {
                keys.push(format!("profiles: {}", self.spelt("[default, small]", "[\"default\", \"small\"]")));
            }
            let mut ilot = Vec::new();
            if self.one_in(4) {
                ilot.push("command: [\"/bin/sh\", \"-c\", \"sleep 1\"]".to_owned());
            }
            if self.one_in(4) {
                ilot.push(format!("egress: {}", self.spelt("none", "[none]")));
            }
            if self.one_in(6) {
                ilot.push("amnesic: true".to_owned());
            } else if self.one_in(3) {
                let readonly = self.spelt("{path: /home}", "{path: /home/, readonly: false}");
                keys.push(format!("persistent_data: {{home: {readonly}}}"));
            }
            if self.one_in(4) {
                let size = self.spelt("2GiB", "\"2048MiB\"");
                keys.push(format!("storage_volumes: {{db: {{path: /db, size: {size}}}}}"));
            }
            keys.push(format!("ilot: {}", self.mapping(ilot)));
            let (keys, comment) = (self.mapping(keys), self.spelt("", "  # its own line"));
            let _ = writeln!(self.text, "      {name}: {keys}{comment}");
        }
    }

    fn project(seed: u64, spelling: u64) -> String {
        let mut w =
            Writer { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, spelling, text: String::new(), domains: 0 };
        // The old form leaves addresses to the engine.
        let old = w.one_in(4);
        let mut global = vec!["default_os_image: busybox".to_owned()];
        if old {
            global.push("base_subnet: \"10.77\"".to_owned());
        }
        if w.one_in(3) {
            let reserve = w.spelt("{cpu: \"10%\", memory: 1GiB}", "{memory: \"1024MiB\", cpu: 10%}");
            global.push(format!("resource_policy: {{overcommit: true, host_reserve: {reserve}}}"));
        }
        let global = w.mapping(global);
        let _ = writeln!(w.text, "project_name: random\nglobal: {global}\ndomains:");
        w.domains = 1 + w.below(4);
        let mut machines = Vec::new();
        for domain in 0..w.domains {
            let trust = ["admin", "trusted", "semi-trusted", "untrusted", "disposable"][w.below(5) as usize];
            let (ephemeral, ipv6, list) = (w.one_in(2), w.one_in(4), w.one_in(3));
            let _ = writeln!(
                w.text,
                "  d{domain}:\n    trust_level: {trust}\n    ephemeral: {ephemeral}\n    subnet_id: {domain}"
            );
            if ipv6 || list {
                let mut keys = Vec::new();
                if ipv6 {
                    keys.push("ipv6: false".to_owned());
                }
                if list {
                    keys.push("egress: [\"deb.debian.org:443\", \"192.0.2.0/24:53/udp\"]".to_owned());
                }
                let keys = w.mapping(keys);
                let _ = writeln!(w.text, "    ilot: {keys}");
            }
            w.text.push_str("    profiles: {small: {config: {environment.SMALL: \"1\"}}}\n    machines:\n");
            for machine in 0..1 + w.below(4) {
                let name = format!("d{domain}-m{machine}");
                w.machine(domain, &name);
                machines.push(name);
            }
        }
        if w.one_in(3) {
            w.text.push_str("  off:\n    enabled: false\n    subnet_id: 9\n    machines: {gone: {}}\n");
        }
        w.text.push_str("network_policies:\n");
        for _ in 0..w.below(4) {
            let to = machines[w.below(machines.len() as u64) as usize].clone();
            let port = 1 + w.below(60_000);
            let ports = w.spelt(format!("[{port}, {}]", port + 1), format!("[{}, {port}, {port}]", port + 1));
            let tcp = w.spelt(", protocol: tcp", "");
            let _ = writeln!(w.text, "  - {{description: p, from: host, to: {to}, ports: {ports}{tcp}}}");
        }
        if w.one_in(3) {
            let path = w.spelt("", ", path: /shared/docs");
            let _ = writeln!(w.text, "shared_volumes: {{docs: {{consumers: {{d0: ro, {}: rw}}{path}}}}}", machines[0]);
        }
        w.text
    }

    fn parse(text: &str) -> ilot_spec::Project {
        let host = HostFacts { cpus: 8, memory: 64 << 30, ..HostFacts::default() };
        let loaded = ilot_spec::parse(&Sources::single("infra.yml", text), &host);
        loaded.project.unwrap_or_else(|| panic!("{:?}\n{text}", loaded.errors))
    }

    /// What the records of an applied project say there is, all of it up and running.
    fn applied(project: &ilot_spec::Project) -> (Known, Vec<Resource>) {
        let addresses = desired::addresses(project, &Known::default()).unwrap();
        let legs = crate::devices::choose_addresses(project, &Known::default(), &addresses).unwrap();
        let mut known = Known::default();
        let policies: Vec<crate::record::PolicyRecord> = project.policies.iter().map(Into::into).collect();
        let mut firewall = Resource::new(Kind::Firewall, project.name.as_str()).live("table", "installed");
        for policy in &policies {
            firewall = firewall.live(&policy.to_string(), "allowed");
        }
        known.project = Some(ProjectRecord { name: project.name.clone(), source: "infra.yml".into(), policies });
        let mut resources = vec![firewall];
        for domain in project.enabled_domains() {
            let hosts = legs.get(domain.name.as_str()).cloned().unwrap_or_default();
            let record = desired::domain_record(project, domain, crate::ids::FIRST, hosts);
            let bridge = ilot_net::BridgeState {
                name: record.bridge.clone(),
                owner: ilot_net::Owner { store: String::new(), project: project.name.clone() },
                domain: record.name.clone(),
                gateway: ipnet::Ipv4Net::new(record.gateway, record.subnet.prefix_len()).ok(),
                gateway6: network::gateway6(&record, true),
                mtu: 1500,
                up: true,
            };
            // What is read back is what was written.
            let record: DomainRecord = serde_json::from_value(json!(record)).unwrap();
            resources.push(domain_resource(&record, Some(&bridge), true, true));
            for machine in &domain.machines {
                let ip = addresses.get(machine.name.as_str()).copied();
                let mut record = desired::machine_record(project, domain, machine, crate::ids::FIRST, ip, None);
                if desired::is_true(machine, "security.nesting") {
                    record.nested_ids = Some((crate::ids::FIRST, crate::ids::SIZE));
                }
                let record: MachineRecord = serde_json::from_value(json!(record)).unwrap();
                let relays = record.devices.keys().map(|device| (record.name.as_str(), device.as_str())).collect();
                resources.push(machine_resource(&record, true, true, &relays));
                known.machines.insert(record.name.clone(), record.clone());
            }
            known.domains.insert(record.name.clone(), record);
        }
        (known, resources)
    }

    #[test]
    fn apply_then_plan_is_empty() {
        for seed in 1..=1000 {
            let (known, actual) = applied(&parse(&project(seed, 0)));
            for spelling in [0, 1] {
                let text = project(seed, spelling);
                let wanted = desired::resources(&parse(&text), &known).unwrap();
                let plan = diff(&wanted, &actual);
                assert!(plan.is_empty(), "seed {seed}, spelling {spelling}: {:?}\n{text}", plan.changes);
                assert_eq!(plan.unchanged, actual.len(), "seed {seed}");
            }
        }
    }
}
