//! Network cards: a leg on another domain's bridge, a macvlan on an interface of the host, and how much may pass them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ilot_net::firewall::Rates;
use ilot_spec::{Device, Machine, Project};
use serde::{Deserialize, Serialize};

use super::{DeviceRecord, boolean, legs, only};
use crate::desired::{self, Known};
use crate::error::{Error, Result};
use crate::record::MachineRecord;
use crate::{Native, network};

/// A further network card, or what its own is limited to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// Its name inside.
    pub name: String,
    /// Where it leads.
    pub to: Leg,
    /// How much may pass.
    #[serde(default, skip_serializing_if = "is_unlimited")]
    pub rates: Rates,
}

fn is_unlimited(rates: &Rates) -> bool {
    *rates == Rates::default()
}

/// Where a network card leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leg {
    /// Its own domain: the port that it has anyway.
    Own,
    /// A domain of the same project.
    Domain {
        /// Its name.
        domain: String,
        /// The address that the file gives; the engine chooses one otherwise.
        ip: Option<Ipv4Addr>,
    },
    /// An interface of the host, past bridges and rules.
    Macvlan {
        /// The interface.
        parent: String,
        /// The hardware address that the file gives.
        hwaddr: Option<String>,
    },
}

/// The name under which a leg has its port, its rules and its record in the domain that it leads to.
pub(crate) fn leg_name(machine: &str, nic: &str) -> String {
    format!("{machine}.{nic}")
}

/// The cards of a machine that have a rate, by the name of their port.
pub(crate) fn rates(machine: &str, devices: &BTreeMap<String, DeviceRecord>) -> Vec<(String, Rates)> {
    let of = |device: &DeviceRecord| match device {
        DeviceRecord::Nic(nic) if !is_unlimited(&nic.rates) => match &nic.to {
            Leg::Own => Some((machine.to_owned(), nic.rates)),
            Leg::Domain { .. } => Some((leg_name(machine, &nic.name), nic.rates)),
            Leg::Macvlan { .. } => None,
        },
        _ => None,
    };
    devices.values().filter_map(of).collect()
}

/// `limits.ingress`, `limits.egress`, and `limits.max` for both.
fn read_rates(device: &Device) -> Result<Rates, String> {
    let rate = |key: &str| {
        let Some(text) = device.get(key).filter(|text| !text.is_empty()) else { return Ok(None) };
        match bytes_per_second(text) {
            Some(rate) => Ok(Some(rate)),
            None => Err(format!("`{key}: {text}` is not a rate of at least 8kbit, such as `10Mbit`")),
        }
    };
    let both = rate("limits.max")?;
    Ok(Rates { ingress: rate("limits.ingress")?.or(both), egress: rate("limits.egress")?.or(both) })
}

/// A rate in bits per second as Incus has it: a number, and `bit`, `kbit`, `Mbit`, `Gbit`, `Kibit`, `Mibit`, `Gibit`.
fn bytes_per_second(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    let unit: u64 = match text[end..].trim() {
        "" | "bit" => 1,
        "kbit" => 1000,
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        "Tbit" => 1_000_000_000_000,
        "Kibit" => 1 << 10,
        "Mibit" => 1 << 20,
        "Gibit" => 1 << 30,
        "Tibit" => 1 << 40,
        _ => return None,
    };
    let bytes = number.checked_mul(unit)? / 8;
    (1000..=u64::from(u32::MAX) * 1000).contains(&bytes).then_some(bytes)
}

/// In domains addresses are always checked, on a macvlan never: a key may say so, and not the contrary.
fn filtering(device: &Device) -> Result<(), String> {
    let macvlan = device.get("nictype").is_some_and(|kind| kind == "macvlan");
    for key in ["security.mac_filtering", "security.ipv4_filtering", "security.ipv6_filtering"] {
        match boolean(device, key, !macvlan)? {
            true if macvlan => return Err(format!("what passes a macvlan passes ilot by: remove `{key}`")),
            false if !macvlan => return Err(format!("`{key}: false`: addresses in domains are always checked")),
            _ => {}
        }
    }
    Ok(())
}

/// Reads a `nic`. `None`: it is the machine's own port, which it has anyway, without a limit.
pub(super) fn read(
    project: &Project,
    machine: &Machine,
    key: &str,
    device: &Device,
) -> Result<Option<NicRecord>, String> {
    only(
        device,
        &[
            "hwaddr",
            "ipv4.address",
            "limits.egress",
            "limits.ingress",
            "limits.max",
            "name",
            "network",
            "nictype",
            "parent",
            "security.ipv4_filtering",
            "security.ipv6_filtering",
            "security.mac_filtering",
        ],
    )?;
    filtering(device)?;
    let rates = read_rates(device)?;
    let get = |key: &str| device.get(key).map(String::as_str);
    let name = get("name").unwrap_or(key).to_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > 15 || !name.chars().all(fits) || name == "lo" {
        return Err(format!("`{name}` cannot be an interface's name"));
    }
    let ip: Option<Ipv4Addr> = match get("ipv4.address") {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| format!("`ipv4.address: {text}` is not an address"))?),
    };
    let nictype = get("nictype").unwrap_or("bridged");
    match (nictype, get("network").or(get("parent"))) {
        (_, None) => Err("it says neither `network` nor `parent`".to_owned()),
        ("bridged", Some(network)) => {
            let domain = find_domain(project, network).ok_or_else(|| {
                format!("`{network}` is no domain of this project; a `bridged` nic leads to one, by its name")
            })?;
            let own = domain.name == machine.domain;
            if name == "eth0" {
                let same = own && ip.is_none_or(|ip| machine.ip == Some(ip));
                let why = "`eth0` is the machine's port in its own domain; give this one another `name`";
                if !same {
                    return Err(why.to_owned());
                }
                return Ok((!is_unlimited(&rates)).then_some(NicRecord { name, to: Leg::Own, rates }));
            }
            if own {
                return Err(format!("the machine has its port in `{}` already", domain.name));
            }
            if !domain.enabled {
                return Err(format!("domain `{}` is disabled", domain.name));
            }
            if get("hwaddr").is_some() {
                return Err("hardware addresses in domains are ilot's: remove `hwaddr`".to_owned());
            }
            if let Some(ip) = ip.filter(|ip| !domain.subnet.contains(ip) || *ip == domain.gateway) {
                return Err(format!("`ipv4.address: {ip}` is none for a machine in {}", domain.subnet));
            }
            Ok(Some(NicRecord { name, to: Leg::Domain { domain: domain.name.to_string(), ip }, rates }))
        }
        ("macvlan", Some(parent)) => {
            if ip.is_some() {
                return Err("addresses on a macvlan are the machine's own to set: remove `ipv4.address`".to_owned());
            }
            if !is_unlimited(&rates) {
                return Err("what passes a macvlan passes ilot by: remove its `limits`".to_owned());
            }
            if name == "eth0" {
                return Err("`eth0` is the machine's port in its domain; give this one another `name`".to_owned());
            }
            let hwaddr = get("hwaddr").map(str::to_owned);
            if hwaddr.as_deref().is_some_and(|text| text.parse::<ilot_net::Mac>().is_err()) {
                return Err("`hwaddr` is not of the form 02:00:00:00:00:01".to_owned());
            }
            Ok(Some(NicRecord { name, to: Leg::Macvlan { parent: parent.to_owned(), hwaddr }, rates }))
        }
        (other, _) => Err(format!("the native engine knows `bridged` and `macvlan`, not `nictype: {other}`")),
    }
}

/// A domain by its name, by that of its network (`net-<domain>`), or by its bridge.
fn find_domain<'a>(project: &'a Project, network: &str) -> Option<&'a ilot_spec::Domain> {
    let bare = network.strip_prefix("net-").unwrap_or(network);
    project.domains.values().find(|d| {
        let name = d.name.as_str();
        name == network
            || name == bare
            || name.strip_prefix(&*project.name_prefix) == Some(bare)
            || ilot_net::bridge_name(name) == network
    })
}

impl Native {
    /// Gives a machine that stands its further network cards.
    pub(crate) fn attach_nics(&self, record: &MachineRecord) -> Result<()> {
        use std::os::fd::AsFd;
        let netns = ilot_runtime::netns(&self.paths.machine_run(&record.name))?;
        for (leg, domain, name) in legs(record) {
            let domain = self.domain(domain)?;
            self.ensure_domain(&domain)?;
            if let Some(port) = network::leg_spec(&self.paths, record, &leg, name, &domain)? {
                ilot_net::attach_leg(&port, netns.as_fd())?;
            }
        }
        for device in record.devices.values() {
            let DeviceRecord::Nic(NicRecord { name, to: Leg::Macvlan { parent, hwaddr }, .. }) = device else {
                continue;
            };
            let mac = match hwaddr {
                Some(text) => text.parse().map_err(|_| Error::Invalid {
                    message: format!("machine `{}`: `{text}` is no hardware address", record.name),
                    help: None,
                })?,
                None => ilot_net::mac_for(&leg_name(&record.name, name)),
            };
            ilot_net::attach_macvlan(parent, name, mac, netns.as_fd())?;
        }
        Ok(())
    }
}

impl Native {
    /// Lets what is above the rates of a machine's cards wait. Without this the firewall's rules only drop it.
    pub(crate) fn shape_nics(&self, record: &MachineRecord) -> Result<()> {
        use std::os::fd::AsFd;
        let netns = ilot_runtime::netns(&self.paths.machine_run(&record.name))?;
        for device in record.devices.values() {
            let DeviceRecord::Nic(nic) = device else { continue };
            let port = match &nic.to {
                Leg::Own => record.name.clone(),
                Leg::Domain { .. } => leg_name(&record.name, &nic.name),
                Leg::Macvlan { .. } => continue,
            };
            if is_unlimited(&nic.rates) {
                continue;
            }
            let guest = if nic.to == Leg::Own { "eth0" } else { nic.name.as_str() };
            if !ilot_net::shape(&ilot_net::port_name(&port), guest, netns.as_fd(), nic.rates)? {
                tracing::info!(machine = record.name, "no sch_tbf in this kernel: what is above the rate is dropped");
            }
        }
        Ok(())
    }
}

/// The address of each leg, by domain and [`leg_name`]: from the file, else the one it has, else the lowest free dynamic
/// one. `given` are the addresses of the machines.
pub(crate) fn choose_addresses(
    project: &Project,
    known: &Known,
    given: &BTreeMap<String, Ipv4Addr>,
) -> Result<BTreeMap<String, BTreeMap<String, Ipv4Addr>>> {
    let mut wanted: BTreeMap<String, Vec<(String, Option<Ipv4Addr>)>> = BTreeMap::new();
    for machine in project.enabled_machines().filter(|m| !m.devices.is_empty()) {
        // What is refused is refused where the machine is made.
        for nic in super::of(project, machine).unwrap_or_default().into_values() {
            if let DeviceRecord::Nic(NicRecord { name, to: Leg::Domain { domain, ip }, .. }) = nic {
                wanted.entry(domain).or_default().push((leg_name(machine.name.as_str(), &name), ip));
            }
        }
    }
    let mut chosen = BTreeMap::new();
    for (name, legs) in wanted {
        let Some(domain) = project.enabled_domains().find(|d| d.name.as_str() == name) else { continue };
        let record = known.domains.get(&name);
        let mut taken: BTreeSet<Ipv4Addr> =
            domain.machines.iter().filter_map(|m| given.get(m.name.as_str()).copied()).collect();
        taken.extend(legs.iter().filter_map(|(_, ip)| *ip));
        let runs = known.machines.values().filter(|m| m.project.is_none() && m.domain.as_deref() == Some(&*name));
        taken.extend(runs.filter_map(|m| m.ip));
        let mut addresses = BTreeMap::new();
        for (leg, ip) in legs {
            let kept = || record.and_then(|r| r.hosts.get(&leg)).copied().filter(|ip| domain.subnet.contains(ip));
            let ip = ip
                .or_else(|| kept().filter(|ip| !taken.contains(ip)))
                .or_else(|| desired::free_dynamic(domain.subnet, &taken))
                .ok_or_else(|| desired::no_address(&leg, &name))?;
            taken.insert(ip);
            addresses.insert(leg, ip);
        }
        chosen.insert(name, addresses);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_incus_writes_them() {
        let rates =
            [("10Mbit", 1_250_000), ("100kbit", 12_500), ("1Gbit", 125_000_000), ("8000", 1000), ("1Mibit", 131_072)];
        for (text, bytes) in rates {
            assert_eq!(bytes_per_second(text), Some(bytes), "{text}");
        }
        for text in ["", "Mbit", "10MB", "-1Mbit", "7999", "99999999999Tbit", "1.5Mbit"] {
            assert_eq!(bytes_per_second(text), None, "{text}");
        }
    }
}
