//! What may leave: the sets and chains of `egress`, for domains and for machines that have a list of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::lease::Lease;
use super::model::{Egress, EgressTo, Family, Ports, Protocol, Ruleset};
use super::openings::text as protocol_text;
use super::render::{lines, quote, set_with};

/// The sets that the name services fill: without ports and with; of domains and of machines; over IPv4 and over IPv6.
pub const LEASE_SETS: [&str; 8] = [
    "egress_names",
    "egress_name_ports",
    "machine_egress_names",
    "machine_egress_name_ports",
    "egress_names6",
    "egress_name_ports6",
    "machine_egress_names6",
    "machine_egress_name_ports6",
];
/// How many addresses may be open by name at a time in each set.
const LEASES: u32 = 65_536;

/// The set that an address is an element of when it is open by name.
pub fn lease_set(family: Family, machine: bool, port: bool) -> &'static str {
    let number = usize::from(port) + 2 * usize::from(machine) + 4 * usize::from(family == Family::V6);
    LEASE_SETS[number]
}

/// Who has a list: matched by its bridge, or by its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder<'a> {
    Domain(&'a str),
    Machine(IpAddr),
}

impl Holder<'_> {
    fn key(self) -> String {
        match self {
            Self::Domain(bridge) => quote(bridge),
            Self::Machine(ip) => ip.to_string(),
        }
    }
}

/// Every list with its holder: the domains' first.
fn holders(rules: &Ruleset, family: Family) -> [Vec<(Holder<'_>, &Egress)>; 2] {
    let domains = rules.domains.iter().map(|d| (Holder::Domain(&d.bridge), &d.egress)).collect();
    let ports = rules.domains.iter().flat_map(|d| &d.ports);
    let machines = ports.filter_map(|p| Some((Holder::Machine(p.ip_of(family)?), p.egress.as_ref()?))).collect();
    [domains, machines]
}

/// What rules and sets of a version of IP are called, and how they name addresses.
struct Words {
    suffix: &'static str,
    source: &'static str,
    destination: &'static str,
    address: &'static str,
}

fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words { suffix: "", source: "ip saddr", destination: "ip daddr", address: "ipv4_addr" },
        Family::V6 => Words { suffix: "6", source: "ip6 saddr", destination: "ip6 daddr", address: "ipv6_addr" },
    }
}

/// The versions that there are rules for.
fn families(rules: &Ruleset) -> &'static [Family] {
    if rules.has_ipv6() { &Family::BOTH } else { &[Family::V4] }
}

/// The chains, each before those that use it.
pub fn chains(rules: &Ruleset, policies: &[String]) -> Vec<(&'static str, Vec<String>)> {
    let [_, machines] = holders(rules, Family::V4);
    let families = families(rules);
    let mut outside = Vec::new();
    let mut chains = Vec::new();
    if !machines.is_empty() {
        let mut own = Vec::new();
        for family in families {
            let Words { suffix, source, .. } = words(*family);
            own.push(format!("{source} @machine_egress_all{suffix} accept"));
            own.extend(questions("machine_", source, *family));
            outside.push(format!("{source} @own_egress{suffix} goto outside_own"));
        }
        own.extend_from_slice(policies);
        chains.push(("outside_own", own));
    }
    outside.push("iifname @egress_all accept".to_owned());
    families.iter().for_each(|family| outside.extend(questions("", "iifname", *family)));
    outside.extend_from_slice(policies);
    chains.push(("outside", outside));
    chains
}

fn questions(prefix: &str, holder: &str, family: Family) -> Vec<String> {
    let Words { suffix, destination, .. } = words(family);
    lines(&format!(
        "{holder} . {destination} @{prefix}egress_nets{suffix} accept
         {holder} . {destination} . meta l4proto . th dport @{prefix}egress_ports{suffix} accept
         {holder} . {destination} @{prefix}egress_names{suffix} accept
         {holder} . {destination} . meta l4proto . th dport @{prefix}egress_name_ports{suffix} accept"
    ))
}

/// The sets.
pub fn sets(text: &mut String, rules: &Ruleset, leases: &[Lease]) {
    let own_lists = !holders(rules, Family::V4)[1].is_empty();
    for family in families(rules) {
        let [domains, machines] = holders(rules, *family);
        let Words { suffix, address, .. } = words(*family);
        if *family == Family::V4 {
            everything(text, "egress_all", "ifname", &domains);
        }
        lists(text, "", "ifname", *family, &domains, leases);
        if own_lists {
            let own: Vec<String> = machines.iter().map(|(holder, _)| holder.key()).collect();
            set_with(text, &format!("own_egress{suffix}"), address, "", &own);
            everything(text, &format!("machine_egress_all{suffix}"), address, &machines);
            lists(text, "machine_", address, *family, &machines, leases);
        }
    }
}

/// Who may reach everything.
fn everything(text: &mut String, name: &str, key: &str, holders: &[(Holder<'_>, &Egress)]) {
    let all = holders.iter().filter(|(_, egress)| **egress == Egress::All).map(|(holder, _)| holder.key());
    set_with(text, name, key, "", &all.collect::<Vec<_>>());
}

fn lists(
    text: &mut String,
    prefix: &str,
    key: &str,
    family: Family,
    holders: &[(Holder<'_>, &Egress)],
    leases: &[Lease],
) {
    let (mut nets, mut ports) = (Vec::new(), Vec::new());
    for (holder, egress) in holders {
        let holder = holder.key();
        let (every_port, by_port) = networks(egress, family);
        nets.extend(every_port.iter().map(|net| format!("{holder} . {}", interval(net))));
        for ((protocol, port), list) in by_port {
            let protocol = protocol_text(protocol);
            ports.extend(list.iter().map(|net| format!("{holder} . {} . {protocol} . {port}", interval(net))));
        }
    }
    let Words { suffix, address, .. } = words(family);
    let name = |what: &str| format!("{prefix}{what}{suffix}");
    set_with(text, &name("egress_nets"), &format!("{key} . {address}"), "flags interval", &nets);
    let with_port = format!("{key} . {address} . inet_proto . inet_service");
    set_with(text, &name("egress_ports"), &with_port, "flags interval", &ports);
    let lease_options = format!("size {LEASES}\n\t\tflags timeout");
    for (what, key) in [("egress_names", format!("{key} . {address}")), ("egress_name_ports", with_port)] {
        let name = name(what);
        let elements: Vec<String> = leases.iter().filter(|l| l.set == name).map(Lease::element).collect();
        set_with(text, &name, &key, &lease_options, &elements);
    }
}

type ByPort = BTreeMap<(Protocol, u16), Vec<IpNet>>;

/// A list's networks at every port, and at single ones. Intervals of one set must not overlap: they are merged.
fn networks(egress: &Egress, family: Family) -> (Vec<IpNet>, ByPort) {
    let mut every_port = Vec::new();
    let mut by_port = ByPort::new();
    for entry in egress.entries() {
        let EgressTo::Net(net) = entry.to else { continue };
        if Family::of(net.addr()) != family {
            continue;
        }
        match &entry.ports {
            Ports::All => every_port.push(net),
            Ports::List(list) => {
                for protocol in protocols(entry.protocol) {
                    list.iter().for_each(|port| by_port.entry((*protocol, *port)).or_default().push(net));
                }
            }
        }
    }
    by_port.values_mut().for_each(|list| *list = IpNet::aggregate(list));
    (IpNet::aggregate(&every_port), by_port)
}

/// The protocols that an entry with ports means.
pub fn protocols(protocol: Option<Protocol>) -> &'static [Protocol] {
    match protocol {
        None => &[Protocol::Tcp, Protocol::Udp],
        Some(Protocol::Tcp) => &[Protocol::Tcp],
        Some(Protocol::Udp) => &[Protocol::Udp],
    }
}

/// A network as nft takes it inside a concatenation: everything only as a range.
fn interval(net: &IpNet) -> String {
    match (net, net.prefix_len()) {
        (IpNet::V4(_), 0) => "0.0.0.0-255.255.255.255".to_owned(),
        (IpNet::V6(_), 0) => "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".to_owned(),
        (_, length) if length == net.max_prefix_len() => net.addr().to_string(),
        _ => net.trunc().to_string(),
    }
}
