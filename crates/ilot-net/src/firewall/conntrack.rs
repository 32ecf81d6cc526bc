//! Connections that began under older rules.
//!
//! Replies and what follows a first packet pass because the kernel knows the connection. When the rules change, connections
//! that the new ones would not let begin are made unknown, so that closing a policy closes it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::model::{Family, Protocol, Ruleset};
use super::verdict::{Packet, Party, may_go_on};
use crate::netlink::{Message, NESTED, Socket, attributes};
use crate::rtnl;

/// `NFNL_SUBSYS_CTNETLINK` as the high byte, and its requests (`linux/netfilter/nfnetlink_conntrack.h`).
const CONNTRACK: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IPV4_SOURCE: u16 = 1;
const IPV6_SOURCE: u16 = 3;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE_PORT: u16 = 2;
/// The length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A connection as the kernel knows it.
struct Connection {
    /// Who began.
    source: IpAddr,
    /// Who answers, after any translation, and at which port.
    destination: IpAddr,
    port: u16,
    protocol: u8,
    /// What identifies it, as the kernel wrote it.
    original: Vec<u8>,
    id: Vec<u8>,
}

/// Ends what `rules` would not let begin. Returns how many connections that were.
pub fn cut(rules: &Ruleset) -> io::Result<usize> {
    let parties = Parties::new(rules)?;
    let mut socket = Socket::netfilter()?;
    let found = socket.dump(Message::new(GET, 0, &header(libc::AF_UNSPEC)), |payload| {
        let connection = parse(payload)?;
        let from = parties.source(connection.source)?;
        let to = parties.destination(connection.destination);
        let protocol = match i32::from(connection.protocol) {
            libc::IPPROTO_TCP => Some(Protocol::Tcp),
            libc::IPPROTO_UDP => Some(Protocol::Udp),
            _ => None,
        };
        let family = Family::of(connection.source);
        let packet = Packet { family, from, to, protocol, port: connection.port };
        (!may_go_on(rules, &packet)).then_some(connection)
    })?;
    let mut ended = 0;
    for connection in found {
        let family = if connection.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut message = Message::new(DELETE, 0, &header(family));
        message.attr(TUPLE_ORIGINAL | NESTED, &connection.original).attr(ID, &connection.id);
        match socket.change(message) {
            Ok(()) => ended += 1,
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn header(family: i32) -> [u8; HEADER] {
    [family as u8, 0, 0, 0]
}

fn source_of(tuple: &[u8]) -> Option<IpAddr> {
    let addresses = find(tuple, TUPLE_IP)?;
    if let Some(octets) = find(addresses, IPV4_SOURCE) {
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    <[u8; 16]>::try_from(find(addresses, IPV6_SOURCE)?).ok().map(IpAddr::from)
}

fn parse(payload: &[u8]) -> Option<Connection> {
    let body = payload.get(HEADER..)?;
    let original = find(body, TUPLE_ORIGINAL)?;
    let reply = find(body, TUPLE_REPLY)?;
    let ports = find(reply, TUPLE_PROTOCOL)?;
    let port = find(ports, PROTOCOL_SOURCE_PORT).and_then(|value| value.try_into().ok()).map_or(0, u16::from_be_bytes);
    Some(Connection {
        source: source_of(original)?,
        destination: source_of(reply)?,
        port,
        protocol: *find(ports, PROTOCOL_NUMBER)?.first()?,
        original: original.to_vec(),
        id: find(body, ID)?.to_vec(),
    })
}

/// Who has which address.
struct Parties<'a> {
    rules: &'a Ruleset,
    machines: BTreeMap<IpAddr, &'a str>,
    gateways: BTreeMap<IpAddr, &'a str>,
    host: BTreeSet<IpAddr>,
}

impl<'a> Parties<'a> {
    fn new(rules: &'a Ruleset) -> io::Result<Self> {
        let host = rtnl::addresses(&mut Socket::route()?)?;
        let mut machines = BTreeMap::new();
        let mut gateways = BTreeMap::new();
        for family in Family::BOTH {
            let ports = rules.domains.iter().flat_map(|d| &d.ports);
            machines.extend(ports.filter_map(|p| Some((p.ip_of(family)?, p.machine.as_str()))));
            gateways.extend(rules.domains.iter().filter_map(|d| Some((d.gateway_of(family)?, d.name.as_str()))));
        }
        Ok(Self { rules, machines, gateways, host: host.into_iter().map(|address| address.net.addr()).collect() })
    }

    /// Who began, if it is a machine or was one; what others began is never ours to end.
    fn source(&self, address: IpAddr) -> Option<Party> {
        if let Some(machine) = self.machines.get(&address) {
            return Some(Party::Machine((*machine).to_owned()));
        }
        let in_domain = self.rules.domains.iter().any(|d| match address {
            IpAddr::V4(address) => d.subnet.contains(&address),
            IpAddr::V6(address) => d.subnet6.is_some_and(|subnet| subnet.contains(&address)),
        });
        // An address that no machine has any more: no verdict knows it, so nothing is open to it.
        (in_domain && !self.host.contains(&address)).then(|| Party::Machine(String::new()))
    }

    fn destination(&self, address: IpAddr) -> Party {
        if let Some(machine) = self.machines.get(&address) {
            Party::Machine((*machine).to_owned())
        } else if let Some(domain) = self.gateways.get(&address) {
            Party::Gateway((*domain).to_owned())
        } else if self.host.contains(&address) {
            Party::Host
        } else {
            Party::Outside(address)
        }
    }
}
