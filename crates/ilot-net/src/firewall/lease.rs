//! What is open by name: elements of sets that the name services add and that the kernel removes when their time is over.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::egress::{LEASE_SETS, lease_set, protocols};
use super::kernel::{comment_of, elements};
use super::model::{EgressEntry, EgressTo, Family, Ports, Protocol, Ruleset};
use super::openings::text as protocol_text;
use super::render::{TABLE, quote};
use crate::netlink::{Message, NESTED, Socket, attributes};

/// Requests and attributes of `linux/netfilter/nf_tables.h`.
const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
pub const NEW_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_NEWSETELEM as u16;
const GET_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_GETSETELEM as u16;
pub const DELETE_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_DELSETELEM as u16;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const KEY: u16 = 1;
const TIMEOUT: u16 = 4;
const EXPIRATION: u16 = 5;
const USERDATA: u16 = 6;
const DATA_VALUE: u16 = 1;
/// Length of an interface name in a key.
pub const IFNAME: usize = 16;
const INET: [u8; 4] = [libc::NFPROTO_INET as u8, 0, 0, 0];

/// For whom something is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Every machine behind this bridge.
    Bridge(String),
    /// The machine of this address, which is of the opened one's version.
    Machine(IpAddr),
}

/// One address that is open by name, at one port or at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The set that it is an element of.
    pub set: &'static str,
    /// For whom.
    pub who: Who,
    /// The address.
    pub address: IpAddr,
    /// Its port; `None`: every one and every protocol.
    pub port: Option<(Protocol, u16)>,
    /// The list's entry: a name, or `*.` and a name.
    pub name: String,
    /// How much longer.
    pub left: Duration,
}

impl Lease {
    /// Every element that an entry needs for an address.
    pub fn of_entry(who: &Who, entry: &EgressEntry, address: IpAddr, left: Duration) -> Vec<Self> {
        let EgressTo::Name(name) = &entry.to else { return Vec::new() };
        let lease = |port: Option<(Protocol, u16)>| {
            let set = lease_set(Family::of(address), matches!(who, Who::Machine(_)), port.is_some());
            Self { set, who: who.clone(), address, port, name: name.clone(), left }
        };
        match &entry.ports {
            Ports::All => vec![lease(None)],
            Ports::List(ports) => {
                let each = |protocol: &Protocol| ports.iter().map(|port| lease(Some((*protocol, *port)))).collect();
                protocols(entry.protocol)
                    .iter()
                    .flat_map(|protocol: &Protocol| -> Vec<Self> { each(protocol) })
                    .collect()
            }
        }
    }

    /// As `nft` takes it.
    pub fn element(&self) -> String {
        let who = match &self.who {
            Who::Bridge(name) => quote(name),
            Who::Machine(ip) => ip.to_string(),
        };
        let port = self.port.map_or(String::new(), |(p, port)| format!(" . {} . {port}", protocol_text(p)));
        let left = self.left.as_secs().max(1);
        format!("{who} . {}{port} timeout {left}s comment {}", self.address, quote(&self.name))
    }

    /// As the kernel takes it: each part of the key filled up to four bytes.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(IFNAME + 24);
        match &self.who {
            Who::Bridge(name) => {
                key.extend_from_slice(name.as_bytes());
                key.resize(IFNAME, 0);
            }
            Who::Machine(ip) => push(&mut key, *ip),
        }
        push(&mut key, self.address);
        if let Some((protocol, port)) = self.port {
            key.extend_from_slice(&[number(protocol), 0, 0, 0]);
            key.extend_from_slice(&port.to_be_bytes());
            key.extend_from_slice(&[0, 0]);
        }
        key
    }

    /// The element that a dump shows.
    fn parse(set: &'static str, element: &[u8]) -> Option<Self> {
        let find = |wanted| attributes(element).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let (_, key) = attributes(find(KEY)?).find(|(kind, _)| *kind == DATA_VALUE)?;
        let ipv6 = set.ends_with('6');
        let (who, rest) = if set.starts_with("machine_") {
            let (ip, rest) = split(key, ipv6)?;
            (Who::Machine(ip), rest)
        } else {
            let (name, rest) = key.split_first_chunk::<IFNAME>()?;
            (Who::Bridge(crate::netlink::text_of(name)), rest)
        };
        let (address, rest) = split(rest, ipv6)?;
        let port = match rest {
            [6, _, _, _, high, low, ..] => Some((Protocol::Tcp, u16::from_be_bytes([*high, *low]))),
            [17, _, _, _, high, low, ..] => Some((Protocol::Udp, u16::from_be_bytes([*high, *low]))),
            _ => None,
        };
        let left = u64::from_be_bytes(find(EXPIRATION)?.try_into().ok()?);
        Some(Self {
            set,
            who,
            address,
            port,
            name: find(USERDATA).and_then(comment_of).unwrap_or_default(),
            left: Duration::from_millis(left),
        })
    }
}

/// An address as a part of a key.
pub fn push(key: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => key.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => key.extend_from_slice(&address.octets()),
    }
}

/// The address that a key begins with, and the rest of it.
fn split(key: &[u8], ipv6: bool) -> Option<(IpAddr, &[u8])> {
    if ipv6 {
        let (address, rest) = key.split_first_chunk::<16>()?;
        return Some(((*address).into(), rest));
    }
    let (address, rest) = key.split_first_chunk::<4>()?;
    Some(((*address).into(), rest))
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// What is open by name now, as far as `rules` have its name for its holder still.
pub fn standing(socket: &mut Socket, rules: &Ruleset) -> io::Result<Vec<Lease>> {
    let mut found = all(socket)?;
    found.retain(|lease| wanted(rules, lease));
    Ok(found)
}

/// What is open by name now.
pub fn all(socket: &mut Socket) -> io::Result<Vec<Lease>> {
    let mut found = Vec::new();
    for set in LEASE_SETS {
        let list = match elements(socket, libc::NFPROTO_INET as u8, set) {
            // No table of ours, or one without machines' own lists or without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            other => other?,
        };
        found.extend(list.iter().filter_map(|element| Lease::parse(set, element)));
    }
    Ok(found)
}

fn wanted(rules: &Ruleset, lease: &Lease) -> bool {
    let mut ports = rules.domains.iter().flat_map(|d| &d.ports);
    let egress = match &lease.who {
        Who::Bridge(name) => rules.domains.iter().find(|d| d.bridge == *name).map(|d| &d.egress),
        Who::Machine(ip) => ports.find(|p| p.ip_of(Family::of(*ip)) == Some(*ip)).and_then(|p| p.egress.as_ref()),
    };
    let Some(egress) = egress else { return false };
    egress.names().any(|(name, entry)| {
        let port = match (&entry.ports, lease.port) {
            (Ports::All, None) => true,
            (Ports::List(list), Some((protocol, port))) => {
                list.contains(&port) && protocols(entry.protocol).contains(&protocol)
            }
            _ => false,
        };
        name == lease.name && port
    })
}

/// Opens, or keeps open for longer. One that is open for longer already stays so.
pub fn open(socket: &mut Socket, leases: &[Lease]) -> io::Result<()> {
    let mut changes = Vec::new();
    for lease in leases {
        if left(socket, lease)?.is_some_and(|left| left >= lease.left) {
            continue;
        }
        // The time of an element that is there does not change by adding it again, and one that is not there cannot be
        // removed: so it is added, removed and added, within one transaction.
        let create = libc::NLM_F_CREATE;
        changes.push(message(NEW_ELEMENTS, create, lease, true));
        changes.push(message(DELETE_ELEMENTS, 0, lease, false));
        changes.push(message(NEW_ELEMENTS, create, lease, true));
    }
    if changes.is_empty() { Ok(()) } else { socket.transaction(libc::NFNL_SUBSYS_NFTABLES as u8, changes) }
}

/// How much longer the element stays; `None` if it is not there.
fn left(socket: &mut Socket, lease: &Lease) -> io::Result<Option<Duration>> {
    socket.get(message(GET_ELEMENTS, 0, lease, false), |payload| {
        let (_, list) = attributes(payload.get(INET.len()..)?).find(|(kind, _)| *kind == LIST_ELEMENTS)?;
        attributes(list).find_map(|(_, element)| Lease::parse(lease.set, element)).map(|found| found.left)
    })
}

fn message(kind: u16, flags: i32, lease: &Lease, whole: bool) -> Message {
    element(kind, flags, libc::NFPROTO_INET, lease.set, &lease.key(), |m| {
        if whole {
            m.attr(TIMEOUT, &(lease.left.as_millis() as u64).to_be_bytes());
            // A comment as nft writes it: its kind, its length, its text with the closing zero.
            let mut comment = vec![0, lease.name.len().min(126) as u8 + 1];
            comment.extend(lease.name.bytes().take(126));
            comment.push(0);
            m.attr(USERDATA, &comment);
        }
    })
}

/// A request about one element of a set of ours; `rest` says more of it than its key.
pub fn element(kind: u16, flags: i32, family: i32, set: &str, key: &[u8], rest: impl FnOnce(&mut Message)) -> Message {
    let mut message = Message::new(kind, flags, &[family as u8, 0, 0, 0]);
    message.text(LIST_TABLE, TABLE).text(LIST_SET, set);
    message.nest(LIST_ELEMENTS | NESTED, |m| {
        m.nest(LIST_ELEMENT | NESTED, |m| {
            m.nest(KEY | NESTED, |m| {
                m.attr(DATA_VALUE, key);
            });
            rest(m);
        });
    });
    message
}
