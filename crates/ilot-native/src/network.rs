//! The records, and a project's file, as ilot-net wants them: one ruleset for the whole store, one name service per domain.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ilot_net::firewall::{Egress, EgressEntry, EgressTo, FwDomain, FwPort, FwRule, Ports, Protocol, Rates, Ruleset};
use ilot_net::names::{NamesConfig, Others};
use ilot_net::{BridgeSpec, Owner, PortSpec};
use ilot_spec::{EgressRule, EgressTarget, Project};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::actual::{domain_records, machine_records, project_records};
use crate::error::{Error, Result};
use crate::paths::{Paths, write_json};
use crate::record::{DomainRecord, MachineRecord, PolicyRecord, Side};
use crate::{Native, desired, devices};

/// The rules of every project of the store. Two calls on the same records give equal rulesets.
pub(crate) fn ruleset(paths: &Paths) -> Result<Ruleset> {
    let mut domains = Vec::new();
    let machines = machine_records(paths)?;
    let rates = rates(&machines);
    let host_ipv6 = host_ipv6();
    for domain in domain_records(paths)?.into_values() {
        let mut hosts: BTreeMap<String, Ipv4Addr> = domain.hosts.clone();
        // Containers of `ilot run` are in no file.
        hosts.extend(run_by_hand(&machines, &domain.name));
        let ipv6 = host_ipv6 && domain.ipv6;
        let mut ports = Vec::new();
        for (machine, ip) in hosts {
            let own = domain.machine_egress.get(&machine).map(|list| egress(Some(list))).transpose()?;
            let rates = rates.get(&machine).copied().unwrap_or_default();
            ports.push(port(machine, ip, ipv6, own, rates));
        }
        domains.push(FwDomain {
            egress: egress(domain.egress.as_deref())?,
            subnet6: ipv6.then(|| domain.subnet6()),
            gateway6: ipv6.then(|| domain.gateway6()),
            name: domain.name,
            bridge: domain.bridge,
            subnet: domain.subnet,
            gateway: domain.gateway,
            ports,
        });
    }
    let mut rules = Vec::new();
    for project in project_records(paths)?.into_values() {
        rules.extend(project.policies.iter().map(rule));
    }
    Ok(Ruleset { domains, rules })
}

/// The containers of `ilot run` in a domain. What a project's machines are to have is the domain's to say: their own
/// records say what they had when they were started last.
fn run_by_hand(machines: &BTreeMap<String, MachineRecord>, domain: &str) -> BTreeMap<String, Ipv4Addr> {
    let here = machines.values().filter(|m| m.project.is_none() && m.domain.as_deref() == Some(domain));
    here.filter_map(|m| Some((m.name.clone(), m.ip?))).collect()
}

/// The rules that a project's file asks for, by themselves: [`Ruleset::rules`] are its policies, in their order. Machines
/// whose address the engine chooses are there only once `known` has them.
fn ruleset_of(project: &Project, known: &desired::Known) -> Result<Ruleset> {
    let addresses = desired::addresses(project, known)?;
    let legs = devices::choose_addresses(project, known, &addresses)?;
    let mut rates = BTreeMap::new();
    for machine in project.enabled_machines() {
        // What the engine refuses is refused where the machine is made.
        rates.extend(devices::rates(machine.name.as_str(), &devices::of(project, machine).unwrap_or_default()));
    }
    let rate = |name: &str| rates.get(name).copied().unwrap_or_default();
    let host_ipv6 = host_ipv6();
    let mut domains = Vec::new();
    for domain in project.enabled_domains() {
        let ipv6 = host_ipv6 && domain.ipv6;
        let mut ports = Vec::new();
        for machine in &domain.machines {
            let own = machine.egress.as_deref().map(|list| egress(Some(list))).transpose()?;
            if let Some(ip) = addresses.get(machine.name.as_str()) {
                ports.push(port(machine.name.to_string(), *ip, ipv6, own, rate(machine.name.as_str())));
            }
        }
        for (leg, ip) in legs.get(domain.name.as_str()).into_iter().flatten() {
            ports.push(port(leg.clone(), *ip, ipv6, None, rate(leg)));
        }
        domains.push(FwDomain {
            name: domain.name.to_string(),
            bridge: ilot_net::bridge_name(domain.name.as_str()),
            subnet: domain.subnet,
            gateway: domain.gateway,
            subnet6: domain.subnet6().filter(|_| host_ipv6),
            gateway6: domain.gateway6().filter(|_| host_ipv6),
            egress: egress(domain.egress.as_deref())?,
            ports,
        });
    }
    let rules = project.policies.iter().map(|policy| rule(&PolicyRecord::from(policy))).collect();
    Ok(Ruleset { domains, rules })
}

fn port(machine: String, ip: Ipv4Addr, ipv6: bool, egress: Option<Egress>, rates: Rates) -> FwPort {
    FwPort {
        ifname: ilot_net::port_name(&machine),
        mac: ilot_net::mac_for(&machine),
        machine,
        ip,
        ip6: ipv6.then(|| ilot_spec::ipv6_of(ip)),
        egress,
        rates,
    }
}

/// Whether domains can have IPv6 on this host: it has it, and its uplink's frames, which are theirs too, are long enough.
pub(crate) fn host_ipv6() -> bool {
    ilot_net::has_ipv6() && mtu().is_ok_and(|mtu| mtu >= ilot_net::IPV6_MTU)
}

/// The IPv6 address of a domain's bridge, if it has one on a host where there is IPv6 or not.
pub(crate) fn gateway6(domain: &DomainRecord, host_ipv6: bool) -> Option<Ipv6Net> {
    (host_ipv6 && domain.ipv6).then(|| with_prefix6(domain.gateway6(), domain))
}

fn with_prefix6(ip: Ipv6Addr, domain: &DomainRecord) -> Ipv6Net {
    // The length of a subnet that exists.
    Ipv6Net::new(ip, domain.subnet6().prefix_len()).unwrap_or_default()
}

/// How frames reach a domain's machines: their length, and whether IPv6 is among them.
fn wire(domain: &DomainRecord) -> Result<(u32, bool)> {
    let mtu = mtu()?;
    Ok((mtu, domain.ipv6 && ilot_net::has_ipv6() && mtu >= ilot_net::IPV6_MTU))
}

/// A port's IPv6 address and default route.
fn port_ipv6(ip: Ipv4Addr, domain: &DomainRecord) -> (Ipv6Net, Ipv6Addr) {
    (with_prefix6(ilot_spec::ipv6_of(ip), domain), domain.gateway6())
}

/// The rules as they were before the store forgot a container of `ilot run`; `None` when it had no port in them.
pub(crate) fn with_port_of(rules: &Ruleset, record: &MachineRecord) -> Option<Ruleset> {
    let mut rules = rules.clone();
    let domain = rules.domains.iter_mut().find(|domain| Some(&domain.name) == record.domain.as_ref())?;
    let rates = devices::rates(&record.name, &record.devices).into_iter().find(|(name, _)| *name == record.name);
    let rates = rates.map(|(_, rates)| rates).unwrap_or_default();
    let port = port(record.name.clone(), record.ip?, domain.subnet6.is_some(), None, rates);
    if domain.ports.iter().any(|other| other.machine == port.machine) {
        return None;
    }
    // In the order of names, as the rules of the records are: equal rules have equal digests.
    let at = domain.ports.partition_point(|other| other.machine < port.machine);
    domain.ports.insert(at, port);
    Some(rules)
}

/// The rates of every network card that has some, by the name of its port.
fn rates(machines: &BTreeMap<String, MachineRecord>) -> BTreeMap<String, Rates> {
    machines.values().flat_map(|machine| devices::rates(&machine.name, &machine.devices)).collect()
}

fn rule(policy: &PolicyRecord) -> FwRule {
    FwRule {
        from: side(&policy.from),
        to: side(&policy.to),
        ports: policy.ports.clone().map_or(Ports::All, Ports::List),
        protocol: policy.protocol.map(protocol),
        bidirectional: policy.bidirectional,
        comment: if policy.description.is_empty() { policy.to_string() } else { policy.description.clone() },
    }
}

fn protocol(protocol: ilot_spec::Protocol) -> Protocol {
    match protocol {
        ilot_spec::Protocol::Tcp => Protocol::Tcp,
        ilot_spec::Protocol::Udp => Protocol::Udp,
    }
}

impl Native {
    /// Tells the name services that run in a project's domains whom they have now. The rest is told all the same when one
    /// cannot be.
    pub(crate) fn tell_names(&self, project: &str) -> Result<()> {
        let machines = machine_records(&self.paths)?;
        let domains = domain_records(&self.paths)?;
        let tell = |domain: &DomainRecord| -> Result<()> {
            ilot_net::names::ensure(&self.paths.run, &names_config_of(&machines, domain)?)?;
            Ok(())
        };
        let running = ilot_net::names::running(&self.paths.run)?;
        let told =
            running.into_iter().filter_map(|s| domains.get(&s.domain)).filter(|d| d.project == project).map(tell);
        told.fold(Ok(()), Result::and)
    }

    /// Takes what is gone out of the records of a project's domains: a machine that was removed has no name and no address.
    pub(crate) fn forget_hosts(
        &self,
        project: &str,
        domains: &BTreeMap<String, DomainRecord>,
        machines: &BTreeMap<String, MachineRecord>,
    ) -> Result<()> {
        for domain in domains.values().filter(|d| d.project == project) {
            let here = |machine: &MachineRecord| machine.domain.as_deref() == Some(domain.name.as_str());
            let leg = |host: &str| {
                machines.values().flat_map(devices::legs).any(|(leg, to, _)| leg == host && to == domain.name)
            };
            let mut kept = domain.clone();
            kept.hosts.retain(|host, _| machines.get(host).is_some_and(here) || leg(host));
            if kept != *domain {
                write_json(&self.paths.domain_record(&domain.name), &kept)?;
            }
        }
        Ok(())
    }

    /// The rules that the store's records ask for: those in force, unless somebody changed them by hand.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn ruleset(&self) -> Result<Ruleset> {
        ruleset(&self.paths)
    }

    /// Whether the kernel has exactly those rules.
    ///
    /// # Errors
    /// When the kernel or the records cannot be read.
    pub fn rules_installed(&self) -> Result<bool> {
        Ok(ilot_net::firewall::is_installed(&self.paths.run, &self.ruleset()?)?)
    }

    /// The rules that a project asks for, with the addresses that this store gave to its machines.
    ///
    /// # Errors
    /// When the records cannot be read, or the project asks for what the engine cannot do.
    pub fn project_ruleset(&self, project: &Project) -> Result<Ruleset> {
        ruleset_of(project, &crate::actual::known(&self.paths, &project.name)?)
    }
}

/// The rules that a project asks for on a host that has nothing of it yet.
///
/// # Errors
/// When the project asks for what the engine cannot do.
pub fn project_ruleset(project: &Project) -> Result<Ruleset> {
    ruleset_of(project, &desired::Known::default())
}

fn side(side: &Side) -> ilot_net::firewall::Side {
    match side {
        Side::Host => ilot_net::firewall::Side::Host,
        Side::Internet => ilot_net::firewall::Side::Internet,
        Side::Domain(name) => ilot_net::firewall::Side::Domain(name.clone()),
        Side::Machine(name) => ilot_net::firewall::Side::Machine(name.clone()),
    }
}

/// `egress:` as the firewall has it.
fn egress(list: Option<&[String]>) -> Result<Egress> {
    let Some(list) = list else { return Ok(Egress::All) };
    let mut open = Vec::new();
    for text in list {
        let rule: EgressRule = text.parse().map_err(|e: ilot_spec::egress::InvalidEgress| Error::Invalid {
            message: e.to_string(),
            help: Some("write it as `example.org:443` or `192.0.2.0/24:443,80`".to_owned()),
        })?;
        let to = match rule.target {
            EgressTarget::All => return Ok(Egress::All),
            EgressTarget::None => continue,
            EgressTarget::Host(name) => EgressTo::Name(name),
            EgressTarget::Net(net) => EgressTo::Net(net),
        };
        let ports = if rule.ports.is_empty() { Ports::All } else { Ports::List(rule.ports) };
        open.push(EgressEntry { to, ports, protocol: rule.protocol.map(protocol) });
    }
    Ok(if open.is_empty() { Egress::None } else { Egress::List(open) })
}

pub(crate) fn owner(paths: &Paths, project: &str) -> Owner {
    Owner { store: paths.store_id.clone(), project: project.to_owned() }
}

/// The uplink's MTU, so that no packet of a machine is too long for it; Ethernet's without an uplink.
fn mtu() -> Result<u32> {
    Ok(ilot_net::uplink()?.map_or(1500, |u| u.mtu))
}

/// The gateway's address with the subnet's prefix.
fn with_prefix(ip: Ipv4Addr, subnet: Ipv4Net) -> Result<Ipv4Net> {
    Ipv4Net::new(ip, subnet.prefix_len())
        .map_err(|e| Error::Invalid { message: format!("subnet {subnet}: {e}"), help: None })
}

pub(crate) fn bridge_spec(paths: &Paths, domain: &DomainRecord) -> Result<BridgeSpec> {
    let (mtu, ipv6) = wire(domain)?;
    Ok(BridgeSpec {
        name: domain.bridge.clone(),
        owner: owner(paths, &domain.project),
        domain: domain.name.clone(),
        gateway: with_prefix(domain.gateway, domain.subnet)?,
        gateway6: gateway6(domain, ipv6),
        mtu,
    })
}

/// The machine's port on its domain's bridge; `None` without a domain or an address.
pub(crate) fn port_spec(paths: &Paths, machine: &MachineRecord, domain: &DomainRecord) -> Result<Option<PortSpec>> {
    machine.ip.map(|ip| port_of(paths, &machine.name, ip, domain)).transpose()
}

/// The port of a machine by its name and address.
pub(crate) fn port_of(paths: &Paths, machine: &str, ip: Ipv4Addr, domain: &DomainRecord) -> Result<PortSpec> {
    let (mtu, ipv6) = wire(domain)?;
    Ok(PortSpec {
        bridge: domain.bridge.clone(),
        owner: owner(paths, &domain.project),
        domain: domain.name.clone(),
        machine: machine.to_owned(),
        host_if: ilot_net::port_name(machine),
        guest_if: "eth0".to_owned(),
        mac: ilot_net::mac_for(machine),
        address: with_prefix(ip, domain.subnet)?,
        gateway: domain.gateway,
        ipv6: ipv6.then(|| port_ipv6(ip, domain)),
        mtu,
    })
}

/// A machine's port on another domain's bridge; `None` when that domain does not know of it.
pub(crate) fn leg_spec(
    paths: &Paths,
    machine: &MachineRecord,
    leg: &str,
    guest_if: &str,
    domain: &DomainRecord,
) -> Result<Option<PortSpec>> {
    let Some(ip) = domain.hosts.get(leg) else { return Ok(None) };
    let (mtu, ipv6) = wire(domain)?;
    Ok(Some(PortSpec {
        bridge: domain.bridge.clone(),
        owner: owner(paths, &domain.project),
        domain: domain.name.clone(),
        machine: machine.name.clone(),
        host_if: ilot_net::port_name(leg),
        guest_if: guest_if.to_owned(),
        mac: ilot_net::mac_for(leg),
        address: with_prefix(*ip, domain.subnet)?,
        gateway: domain.gateway,
        ipv6: ipv6.then(|| port_ipv6(*ip, domain)),
        mtu,
    }))
}

/// What the domain's name service answers.
pub(crate) fn names_config(paths: &Paths, domain: &DomainRecord) -> Result<NamesConfig> {
    names_config_of(&machine_records(paths)?, domain)
}

fn names_config_of(machines: &BTreeMap<String, MachineRecord>, domain: &DomainRecord) -> Result<NamesConfig> {
    let mut hosts = domain.hosts.clone();
    hosts.extend(run_by_hand(machines, &domain.name));
    let mut config = NamesConfig::new(&domain.name, with_prefix(domain.gateway, domain.subnet)?);
    config.bridge.clone_from(&domain.bridge);
    for (machine, list) in &domain.machine_egress {
        if let Some(ip) = hosts.get(machine) {
            config.own.insert(*ip, Others::of(&egress(Some(list))?));
        }
    }
    if domain.ipv6 && host_ipv6() {
        config.listen6 = Some(domain.gateway6());
        config.hosts6 = hosts.iter().map(|(machine, ip)| (machine.clone(), ilot_spec::ipv6_of(*ip))).collect();
    }
    config.hosts = hosts;
    config.others = Others::of(&egress(domain.egress.as_deref())?);
    if config.asks_upstreams() {
        config.upstreams = ilot_net::names::host_upstreams();
    }
    Ok(config)
}
