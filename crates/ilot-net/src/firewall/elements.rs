//! The elements of one port in the sets of both tables, as the kernel takes them.
//!
//! A container of `ilot run` comes and goes: starting `nft` for it twice would take longer than making its interface. What is
//! written here is what [`super::render()`] writes as text for all ports at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::lease::{DELETE_ELEMENTS, IFNAME, NEW_ELEMENTS, element, push};
use super::model::{FwDomain, FwPort};
use crate::naming::Mac;
use crate::netlink::{Message, Socket};

/// An element: its table's family, its set, its key.
struct Element(i32, &'static str, Vec<u8>);

/// Adds the elements of a port, or removes them. Either may be done again.
pub fn change(socket: &mut Socket, domain: &FwDomain, port: &FwPort, remove: bool) -> io::Result<()> {
    let mut changes: Vec<Message> = Vec::new();
    for Element(family, set, key) in of(domain, port) {
        // Adding first makes removing never fail.
        changes.push(element(NEW_ELEMENTS, libc::NLM_F_CREATE, family, set, &key, |_| {}));
        if remove {
            changes.push(element(DELETE_ELEMENTS, 0, family, set, &key, |_| {}));
        }
    }
    socket.transaction(libc::NFNL_SUBSYS_NFTABLES as u8, changes)
}

fn of(domain: &FwDomain, port: &FwPort) -> Vec<Element> {
    const INET: i32 = libc::NFPROTO_INET;
    const BRIDGE: i32 = libc::NFPROTO_BRIDGE;
    let (bridge, own) = (|| Key::default().name(&domain.bridge), || Key::default().name(&port.ifname));
    let sender = |ip: Ipv4Addr| own().mac(port.mac).mac(port.mac).ip(ip).0;
    let mut elements = vec![
        Element(INET, "hosts", bridge().ip(port.ip).0),
        Element(INET, "machines", Key::default().ip(port.ip).0),
        Element(BRIDGE, "addresses", own().mac(port.mac).ip(port.ip).0),
        Element(BRIDGE, "senders", sender(port.ip)),
        // None yet (an ARP probe, RFC 5227).
        Element(BRIDGE, "senders", sender(Ipv4Addr::UNSPECIFIED)),
    ];
    if let Some(ip) = port.ip6 {
        elements.push(Element(INET, "hosts6", bridge().ip(ip).0));
        elements.push(Element(INET, "machines6", Key::default().ip(ip).0));
        let link_local = port.mac.link_local();
        for ip in [ip, link_local, Ipv6Addr::UNSPECIFIED] {
            elements.push(Element(BRIDGE, "addresses6", own().mac(port.mac).ip(ip).0));
        }
        for ip in [ip, link_local] {
            elements.push(Element(BRIDGE, "claims", own().ip(ip).0));
        }
        elements.push(Element(BRIDGE, "macs", own().mac(port.mac).0));
    }
    elements
}

/// A key: its parts one after the other, each filled up to four bytes.
#[derive(Default)]
struct Key(Vec<u8>);

impl Key {
    fn name(mut self, interface: &str) -> Self {
        let end = self.0.len() + IFNAME;
        self.0.extend_from_slice(interface.as_bytes());
        self.0.resize(end, 0);
        self
    }

    fn mac(mut self, mac: Mac) -> Self {
        self.0.extend_from_slice(&mac.0);
        self.0.extend_from_slice(&[0; 2]);
        self
    }

    fn ip(mut self, ip: impl Into<IpAddr>) -> Self {
        push(&mut self.0, ip.into());
        self
    }
}
