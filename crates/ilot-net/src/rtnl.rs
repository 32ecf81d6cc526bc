//! The rtnetlink requests that bridges and ports need.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;

use crate::naming::Mac;
use crate::netlink::{Message, NESTED, Socket, attributes, number_of, text_of};

/// `IFF_UP`.
const UP: u32 = libc::IFF_UP as u32;
/// `VETH_INFO_PEER` of `linux/veth.h`.
/// `IFLA_MACVLAN_MODE` and `MACVLAN_MODE_BRIDGE` (linux/if_link.h).
const MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE` and `IN6_ADDR_GEN_MODE_NONE` of `linux/if_link.h`.
const INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
/// `IFLA_BR_*` of `linux/if_link.h`.
const BR_FORWARD_DELAY: u16 = 1;
const BR_STP_STATE: u16 = 5;
const BR_MCAST_SNOOPING: u16 = 23;
const BR_NF_CALL_IPTABLES: u16 = 36;
const BR_NF_CALL_IP6TABLES: u16 = 37;
const BR_NF_CALL_ARPTABLES: u16 = 38;

/// What we look at in an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub up: bool,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub master: u32,
    /// The peer's index, in its own namespace.
    pub peer: u32,
    pub alias: Option<String>,
    pub kind: String,
    /// Bridges only.
    pub bridge: BridgeOptions,
}

/// The options of a bridge that we set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgeOptions {
    pub stp: bool,
    pub mcast_snooping: bool,
    /// `nf_call_iptables`, `nf_call_ip6tables` or `nf_call_arptables`.
    pub nf_call: bool,
}

/// An address on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub index: u32,
    pub net: IpNet,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    pub oif: u32,
    pub gateway: Option<IpAddr>,
    pub metric: u32,
}

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let index = number_of(payload.get(4..8)?)?;
    let flags = number_of(payload.get(8..12)?)?;
    let mut link = Link { index, up: flags & UP != 0, ..Link::default() };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text_of(value),
            libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            libc::IFLA_MTU => link.mtu = number_of(value)?,
            libc::IFLA_MASTER => link.master = number_of(value)?,
            libc::IFLA_LINK => link.peer = number_of(value)?,
            libc::IFLA_IFALIAS => link.alias = Some(text_of(value)),
            libc::IFLA_LINKINFO => parse_link_info(value, &mut link),
            _ => {}
        }
    }
    Some(link)
}

fn parse_link_info(value: &[u8], link: &mut Link) {
    for (kind, value) in attributes(value) {
        match kind {
            libc::IFLA_INFO_KIND => link.kind = text_of(value),
            libc::IFLA_INFO_DATA if link.kind == "bridge" => {
                for (kind, value) in attributes(value) {
                    let set = value.iter().any(|&b| b != 0);
                    match kind {
                        BR_STP_STATE => link.bridge.stp = set,
                        BR_MCAST_SNOOPING => link.bridge.mcast_snooping = set,
                        BR_NF_CALL_IPTABLES | BR_NF_CALL_IP6TABLES | BR_NF_CALL_ARPTABLES => {
                            link.bridge.nf_call |= set;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// The interface of a name, if there is one.
pub fn link(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut message = Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    socket.get(message, parse_link)
}

/// Every interface.
pub fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    socket.dump(Message::new(libc::RTM_GETLINK, 0, &ifinfo(0, 0, 0)), parse_link)
}

/// Makes a bridge, down: no spanning tree, no multicast snooping, no detour through `inet` rules.
pub fn create_bridge(socket: &mut Socket, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    message.attr(libc::IFLA_ADDRESS, &mac.0);
    message.number(libc::IFLA_MTU, mtu);
    message.nest(libc::IFLA_LINKINFO | NESTED, |m| bridge_info(m, true));
    socket.change(message)
}

fn bridge_info(message: &mut Message, new: bool) {
    message.text(libc::IFLA_INFO_KIND, "bridge");
    message.nest(libc::IFLA_INFO_DATA | NESTED, |m| {
        if new {
            // Refused while the spanning tree is still on.
            m.number(BR_FORWARD_DELAY, 0);
        }
        m.number(BR_STP_STATE, 0);
        for option in [BR_MCAST_SNOOPING, BR_NF_CALL_IPTABLES, BR_NF_CALL_IP6TABLES, BR_NF_CALL_ARPTABLES] {
            m.attr(option, &[0]);
        }
    });
}

/// Puts a bridge's options back to what [`create_bridge`] sets.
pub fn reset_bridge(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, 0, &ifinfo(index, 0, 0));
    message.nest(libc::IFLA_LINKINFO | NESTED, |m| bridge_info(m, false));
    socket.change(message)
}

/// What [`set_link`] changes; `None` stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    pub alias: Option<&'a str>,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub master: Option<u32>,
    /// No IPv6 address is ever made up for it.
    pub no_ipv6_address: bool,
    pub up: bool,
}

/// Changes an interface in one request.
pub fn set_link(socket: &mut Socket, index: u32, change: &LinkChange<'_>) -> io::Result<()> {
    let flags = if change.up { UP } else { 0 };
    let mut message = Message::new(libc::RTM_SETLINK, 0, &ifinfo(index, flags, flags));
    if let Some(alias) = change.alias {
        message.attr(libc::IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(mac) = change.mac {
        message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = change.mtu {
        message.number(libc::IFLA_MTU, mtu);
    }
    if let Some(master) = change.master {
        message.number(libc::IFLA_MASTER, master);
    }
    if change.no_ipv6_address {
        message.nest(libc::IFLA_AF_SPEC | NESTED, |m| {
            m.nest(libc::AF_INET6 as u16 | NESTED, |m| {
                m.attr(INET6_ADDR_GEN_MODE, &[ADDR_GEN_NONE]);
            });
        });
    }
    socket.change(message)
}

/// A veth pair to make.
#[derive(Debug)]
pub struct Veth<'a> {
    pub host_if: &'a str,
    pub guest_if: &'a str,
    /// The guest end's address.
    pub mac: Mac,
    pub mtu: u32,
    /// The bridge that the host end is a port of.
    pub master: u32,
}

/// Makes a veth pair in one request: the host end a port of the bridge, the guest end in `netns` with its name and address.
pub fn create_veth(socket: &mut Socket, veth: &Veth<'_>, netns: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, veth.host_if);
    message.number(libc::IFLA_MTU, veth.mtu);
    message.number(libc::IFLA_MASTER, veth.master);
    message.nest(libc::IFLA_LINKINFO | NESTED, |m| {
        m.text(libc::IFLA_INFO_KIND, "veth");
        m.nest(libc::IFLA_INFO_DATA | NESTED, |m| {
            m.nest(VETH_INFO_PEER | NESTED, |m| {
                m.raw(&ifinfo(0, 0, 0));
                m.text(libc::IFLA_IFNAME, veth.guest_if);
                m.attr(libc::IFLA_ADDRESS, &veth.mac.0);
                m.number(libc::IFLA_MTU, veth.mtu);
                m.number(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
            });
        });
    });
    socket.change(message)
}

/// Makes a macvlan (bridge mode) on an interface, in `netns` from the first moment.
pub fn create_macvlan(socket: &mut Socket, parent: u32, name: &str, mac: Mac, netns: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    message.number(libc::IFLA_LINK, parent);
    message.attr(libc::IFLA_ADDRESS, &mac.0);
    message.number(libc::IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    message.nest(libc::IFLA_LINKINFO | NESTED, |m| {
        m.text(libc::IFLA_INFO_KIND, "macvlan");
        m.nest(libc::IFLA_INFO_DATA | NESTED, |m| {
            m.number(MACVLAN_MODE, MACVLAN_MODE_BRIDGE);
        });
    });
    socket.change(message)
}

/// Removes an interface (and its veth peer). False if there was none.
pub fn delete_link(socket: &mut Socket, name: &str) -> io::Result<bool> {
    let mut message = Message::new(libc::RTM_DELLINK, 0, &ifinfo(0, 0, 0));
    message.text(libc::IFLA_IFNAME, name);
    match socket.change(message) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The bytes of an address.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Every address, of both families.
pub fn addresses(socket: &mut Socket) -> io::Result<Vec<Address>> {
    let message = Message::new(libc::RTM_GETADDR, 0, &[libc::AF_UNSPEC as u8, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump(message, |payload| {
        if !matches!(i32::from(*payload.first()?), libc::AF_INET | libc::AF_INET6) {
            return None;
        }
        let prefix = *payload.get(1)?;
        let index = number_of(payload.get(4..8)?)?;
        let mut net = None;
        for (kind, value) in attributes(payload.get(8..)?) {
            // On a point-to-point interface IFA_ADDRESS is the other side's.
            if kind == libc::IFA_LOCAL || (kind == libc::IFA_ADDRESS && net.is_none()) {
                net = Some(IpNet::new(address_of(value)?, prefix).ok()?);
            }
        }
        Some(Address { index, net: net? })
    })
}

fn address_message(kind: u16, flags: i32, address: &Address) -> Message {
    let octets = octets(address.net.addr());
    let mut header = [family(address.net.addr()), address.net.prefix_len(), 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&address.index.to_ne_bytes());
    if address.net.addr().is_ipv6() {
        // Nobody else can have it: no second of waiting until the kernel believes that.
        header[2] = libc::IFA_F_NODAD as u8;
    }
    let mut message = Message::new(kind, flags, &header);
    message.attr(libc::IFA_LOCAL, &octets).attr(libc::IFA_ADDRESS, &octets);
    if let (libc::RTM_NEWADDR, IpNet::V4(net)) = (kind, address.net) {
        message.attr(libc::IFA_BROADCAST, &net.broadcast().octets());
    }
    message
}

/// Adds an address; one that is there already is fine.
pub fn add_address(socket: &mut Socket, address: &Address) -> io::Result<()> {
    socket.change(address_message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, address))
}

/// Removes an address.
pub fn delete_address(socket: &mut Socket, address: &Address) -> io::Result<()> {
    socket.change(address_message(libc::RTM_DELADDR, 0, address))
}

fn rtmsg(family: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = libc::RTPROT_STATIC;
    header[6] = libc::RT_SCOPE_UNIVERSE;
    header[7] = libc::RTN_UNICAST;
    header
}

/// Makes the default route of the gateway's family lead to it, whatever it was.
pub fn set_default_route(socket: &mut Socket, index: u32, gateway: IpAddr) -> io::Result<()> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut message = Message::new(libc::RTM_NEWROUTE, flags, &rtmsg(family(gateway)));
    message.attr(libc::RTA_GATEWAY, &octets(gateway)).number(libc::RTA_OIF, index);
    socket.change(message)
}

/// The default routes of the main table; `family` is `AF_INET` or `AF_INET6`.
pub fn default_routes(socket: &mut Socket, family: i32) -> io::Result<Vec<DefaultRoute>> {
    let mut header = [0; 12];
    header[0] = family as u8;
    socket.dump(Message::new(libc::RTM_GETROUTE, 0, &header), |payload| {
        let to_everything = *payload.get(1)? == 0;
        let main = *payload.get(4)? == libc::RT_TABLE_MAIN;
        let unicast = *payload.get(7)? == libc::RTN_UNICAST;
        if !(to_everything && main && unicast) {
            return None;
        }
        let mut route = DefaultRoute { oif: 0, gateway: None, metric: 0 };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                libc::RTA_OIF => route.oif = number_of(value)?,
                libc::RTA_PRIORITY => route.metric = number_of(value)?,
                libc::RTA_GATEWAY => route.gateway = Some(address_of(value)?),
                _ => {}
            }
        }
        // A multipath route names its interfaces elsewhere; the first hop is not worth more code.
        (route.oif != 0).then_some(route)
    })
}
