//! Frames within a domain, handed from port to port.
//!
//! What a bridge carries passes the hooks of `bridge` and, where `br_netfilter` is on (the host's switch, which Docker and
//! Kubernetes need), those of `inet` and conntrack too. Within a domain everything is open, so that is work for nothing.
//! `table netdev ilot` looks at IP packets as they come in from a port: what `table bridge ilot` would let in, and the bridge
//! would send to another port of the domain, it hands there at once.
//!
//! It shortens ways that are open and opens none. What it does not know goes through the bridge as ever: ARP and ICMPv6, what
//! is for everybody, ports with a rate, machines that came since. Ports are known by index, so an entry that
//! outlived its port fits no other one.

use std::fmt::Write as _;
use std::io;

use crate::error::{Error, Result};
use crate::firewall::lease::{DELETE_ELEMENTS, element};
use crate::firewall::{FwDomain, FwPort, Rates, Ruleset, kernel, nft, quote, sha256};
use crate::naming::Mac;
use crate::netlink::Socket;
use crate::rtnl::{self, Link};

/// The table of family `netdev`.
const TABLE: &str = "ilot";
/// Removes the table, whether it stands or not.
const REMOVE: &str = "table netdev ilot\ndelete table netdev ilot\n";
const NETDEV: u8 = libc::NFPROTO_NETDEV as u8;
/// How often ports may come and go while the table is made.
const TRIES: usize = 3;

/// Makes the table as the rules and the ports that stand now want it. True if it changed anything.
///
/// Not having it is no error: a kernel without `fwd` (`nft_fwd_netdev`) carries every frame through the bridge.
///
/// # Errors
/// When the interfaces cannot be listed.
pub fn settle(rules: &Ruleset) -> Result<bool> {
    let unreadable = |source| Error::Kernel { operation: "list", name: "interfaces".to_owned(), source };
    let mut route = Socket::route().map_err(unreadable)?;
    let mut changed = false;
    let mut refused = None;
    for _ in 0..TRIES {
        let body = body(rules, &rtnl::links(&mut route).map_err(unreadable)?);
        let Some(body) = body else { return Ok(remove()? || changed) };
        if refused.as_ref() == Some(&body) || standing().map_err(unreadable_table)? == Some(comment(&body)) {
            return Ok(changed);
        }
        // A port that is gone since fails it; what came since is seen by looking again.
        match nft("install", &table(&body)) {
            Ok(()) => changed = true,
            Err(error) => {
                tracing::debug!(%error, "frames within domains take the way through their bridges");
                refused = Some(body);
            }
        }
    }
    Ok(changed)
}

/// The table for the transaction of new rules, so that none made for older ones outlives them; and what to say instead where
/// that is refused.
pub(crate) fn replacement(rules: &Ruleset) -> Result<(String, String)> {
    let unreadable = |source| Error::Kernel { operation: "list", name: "interfaces".to_owned(), source };
    let links = Socket::route().and_then(|mut route| rtnl::links(&mut route)).map_err(unreadable)?;
    let stands = standing().map_err(unreadable_table)?.is_some();
    let without = if stands { REMOVE.to_owned() } else { String::new() };
    let with = body(rules, &links).map_or_else(|| without.clone(), |body| table(&body));
    Ok((with, without))
}

/// What replaces the table, or makes it, in one transaction: the kernel's switch for such hooks stays on meanwhile.
fn table(body: &str) -> String {
    format!("{REMOVE}table netdev {TABLE} {{\n\tcomment \"{}\"\n{body}}}\n", comment(body))
}

/// Removes the table. True if there was one.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn remove() -> Result<bool> {
    if standing().map_err(unreadable_table)?.is_none() {
        return Ok(false);
    }
    let done = Socket::netfilter().and_then(|mut socket| kernel::delete_table(&mut socket, NETDEV));
    let name = format!("table netdev {TABLE}");
    done.map(|()| true).map_err(|source| Error::Kernel { operation: "remove", name, source })
}

/// A machine's port was made anew: frames to it go through the bridge until the next [`settle`], not to the port that it had.
pub(crate) fn forget(bridge: &str, mac: Mac) -> Result<()> {
    if standing().map_err(unreadable_table)?.is_none() {
        return Ok(());
    }
    let change = element(DELETE_ELEMENTS, 0, i32::from(NETDEV), &map(bridge), &mac.0, |_| {});
    match Socket::netfilter().and_then(|mut s| s.transaction(libc::NFNL_SUBSYS_NFTABLES as u8, vec![change])) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        // The way through the bridge is always right.
        Err(_) => remove().map(drop),
    }
}

fn unreadable_table(source: io::Error) -> Error {
    Error::Kernel { operation: "read table", name: format!("netdev {TABLE}"), source }
}

/// The comment of the table that stands, if one does.
fn standing() -> io::Result<Option<String>> {
    match kernel::comment(&mut Socket::netfilter()?, NETDEV) {
        // A kernel without this family.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(None),
        other => other,
    }
}

fn comment(body: &str) -> String {
    format!("ilot:sha256:{}", sha256([body]))
}

/// A domain's map of hardware addresses to ports.
fn map(bridge: &str) -> String {
    format!("to_{bridge}")
}

/// The ports of a domain that stand, with their index.
fn present<'a>(domain: &'a FwDomain, links: &[Link]) -> Vec<(&'a FwPort, u32)> {
    let Some(bridge) = links.iter().find(|l| l.name == domain.bridge && l.kind == "bridge") else { return Vec::new() };
    let here = |port: &&FwPort| port.rates == Rates::default();
    let index = |port: &'a FwPort| {
        let link = links.iter().find(|l| l.name == port.ifname && l.kind == "veth" && l.master == bridge.index && l.up);
        link.map(|link| (port, link.index))
    };
    domain.ports.iter().filter(here).filter_map(index).collect()
}

/// What stands between the table's braces; `None` when no domain has two ports.
fn body(rules: &Ruleset, links: &[Link]) -> Option<String> {
    let domains: Vec<_> = rules.domains.iter().map(|d| (d, present(d, links))).filter(|(_, p)| p.len() > 1).collect();
    if domains.is_empty() {
        return None;
    }
    let ports = || domains.iter().flat_map(|(_, ports)| ports);
    let mut text = String::new();
    let mut set = |keyword: &str, name: &str, kind: &str, elements: Vec<String>| {
        if !elements.is_empty() {
            let elements = elements.join(",\n\t\t\t");
            let _ = writeln!(text, "\t{keyword} {name} {{\n\t\ttype {kind}\n\t\telements = {{ {elements} }}\n\t}}");
        }
    };
    let four = ports().map(|(port, index)| format!("{index} . {} . {}", port.mac, port.ip)).collect();
    set("set", "addresses", "iface_index . ether_addr . ipv4_addr", four);
    let own = |port: &FwPort| port.ip6.map(|ip| [ip, port.mac.link_local()]);
    let six: Vec<String> = ports()
        .flat_map(|(port, index)| own(port).into_iter().flatten().map(move |ip| (port, index, ip)))
        .map(|(port, index, ip)| format!("{index} . {} . {ip}", port.mac))
        .collect();
    let ipv6 = !six.is_empty();
    set("set", "addresses6", "iface_index . ether_addr . ipv6_addr", six);
    for (domain, ports) in &domains {
        let elements = ports.iter().map(|(port, index)| format!("{} : {index}", port.mac)).collect();
        set("map", &map(&domain.bridge), "ether_addr : iface_index", elements);
    }
    for (domain, ports) in &domains {
        let devices: Vec<String> = ports.iter().map(|(port, _)| quote(&port.ifname)).collect();
        let (name, map) = (&domain.bridge, map(&domain.bridge));
        let _ = writeln!(
            text,
            "\tchain from_{name} {{\n\t\ttype filter hook ingress devices = {{ {} }} priority -500; policy accept;",
            devices.join(", ")
        );
        let mut versions = vec![("ip", "addresses", "")];
        if ipv6 {
            // Of neighbour discovery the bridge's table looks at every message.
            versions.push(("ip6", "addresses6", "meta l4proto != ipv6-icmp "));
        }
        for (version, set, only) in versions {
            let _ = writeln!(
                text,
                "\t\tether type {version} {only}iif . ether saddr . {version} saddr @{set} fwd to ether daddr map @{map}"
            );
        }
        text.push_str("\t}\n");
    }
    Some(text)
}
