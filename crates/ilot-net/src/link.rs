//! Bridges and ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Error, Result};
use crate::host::set_sysctl;
use crate::naming::{BRIDGE_PREFIX, Mac, Mark, Owner, PORT_PREFIX, mac_for};
use crate::netlink::Socket;
use crate::rtnl::{self, Address, Link, LinkChange};
use crate::shortcut;

/// A domain's bridge as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec {
    /// The interface, from [`crate::bridge_name`].
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// The domain.
    pub domain: String,
    /// The gateway's address with the subnet's length.
    pub gateway: Ipv4Net,
    /// The same over IPv6; `None`: the bridge has no IPv6 at all.
    pub gateway6: Option<Ipv6Net>,
    /// Bytes; the uplink's ([`crate::uplink`]).
    pub mtu: u32,
}

/// A bridge of ours as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeState {
    /// The interface.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// The domain.
    pub domain: String,
    /// Its first IPv4 address.
    pub gateway: Option<Ipv4Net>,
    /// Its first IPv6 address that is not link-local.
    pub gateway6: Option<Ipv6Net>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// A machine's port as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// The bridge that it belongs to; must exist.
    pub bridge: String,
    /// Whose it is.
    pub owner: Owner,
    /// The domain.
    pub domain: String,
    /// The machine.
    pub machine: String,
    /// The host end, from [`crate::port_name`].
    pub host_if: String,
    /// The machine's end, `eth0`.
    pub guest_if: String,
    /// The machine's hardware address, from [`crate::mac_for`].
    pub mac: Mac,
    /// The machine's address with the subnet's length.
    pub address: Ipv4Net,
    /// Its default route.
    pub gateway: Ipv4Addr,
    /// Its IPv6 address with the subnet's length, and its IPv6 default route; `None`: it has none.
    pub ipv6: Option<(Ipv6Net, Ipv6Addr)>,
    /// Bytes, of both ends.
    pub mtu: u32,
}

/// The host end of a port of ours as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortState {
    /// The host end.
    pub host_if: String,
    /// Whose it is.
    pub owner: Owner,
    /// The domain.
    pub domain: String,
    /// The machine.
    pub machine: String,
    /// The bridge, if it still has one.
    pub bridge: Option<String>,
    /// Administratively up.
    pub up: bool,
}

/// Makes the bridge as `spec` says, or repairs what differs. True if it changed anything.
///
/// Besides the addresses it sets what keeps islands apart: no IPv6 on the bridge but what `spec` gives it, strict reverse path
/// filter, the host answers ARP only for the bridge's own address, no redirects; and the bridge's own hardware address, so
/// that it does not follow its ports'.
pub fn ensure_bridge(spec: &BridgeSpec) -> Result<bool> {
    const WHAT: &str = "set up bridge";
    let err = |source| Error::Kernel { operation: WHAT, name: spec.name.clone(), source };
    let mut socket = Socket::route().map_err(err)?;
    let alias = Mark::render(&spec.owner, &spec.domain, None);
    let mac = mac_for(&format!("bridge {}", spec.domain));
    let mut changed = false;

    let mut found = rtnl::link(&mut socket, &spec.name).map_err(err)?;
    if let Some(link) = &found {
        refuse_foreign(WHAT, link, "bridge", &spec.owner, &spec.domain, None)?;
    } else {
        rtnl::create_bridge(&mut socket, &spec.name, mac, spec.mtu).map_err(err)?;
        changed = true;
        found = rtnl::link(&mut socket, &spec.name).map_err(err)?;
    }
    let Some(link) = found else {
        return Err(Error::Missing { operation: WHAT, name: spec.name.clone() });
    };
    if link.bridge != rtnl::BridgeOptions::default() {
        rtnl::reset_bridge(&mut socket, link.index).map_err(err)?;
        changed = true;
    }
    // Before it is up: the kernel makes no link-local address then.
    changed |= bridge_sysctls(&spec.name, spec.gateway6.is_some())?;
    // Before it has an address: one with an address and no mark, left by a killed command, would pass for the host's own.
    if link.alias.as_deref() != Some(&alias) {
        let mark = LinkChange { alias: Some(&alias), ..LinkChange::default() };
        rtnl::set_link(&mut socket, link.index, &mark).map_err(err)?;
        changed = true;
    }
    let mut wanted = vec![IpNet::V4(spec.gateway)];
    if let Some(gateway) = spec.gateway6 {
        // Without a link-local address the host could not ask who has the address of a packet that it forwards.
        wanted.extend([gateway.into(), link_local(BRIDGE_LINK_LOCAL)]);
    }
    changed |= only_addresses(&mut socket, &link, &wanted).map_err(err)?;
    let mut change = LinkChange { up: true, ..LinkChange::default() };
    change.mac = (link.mac != Some(mac)).then_some(mac);
    change.mtu = (link.mtu != spec.mtu).then_some(spec.mtu);
    if !link.up || change.mac.is_some() || change.mtu.is_some() {
        rtnl::set_link(&mut socket, link.index, &change).map_err(err)?;
        changed = true;
    }
    Ok(changed)
}

/// Sets what `/proc/sys/net` has for a bridge. True if anything differed.
fn bridge_sysctls(name: &str, ipv6: bool) -> Result<bool> {
    let mut changed = false;
    for (setting, value) in [
        // No address of the kernel's own making (IN6_ADDR_GEN_MODE_NONE).
        ("ipv6/conf/{}/addr_gen_mode", "1"),
        ("ipv6/conf/{}/accept_ra", "0"),
        ("ipv6/conf/{}/accept_redirects", "0"),
        ("ipv6/conf/{}/disable_ipv6", if ipv6 { "0" } else { "1" }),
        // Whatever the host's switch says of interfaces to come: what a bridge of ours carries is forwarded.
        ("ipv4/conf/{}/forwarding", "1"),
        ("ipv4/conf/{}/rp_filter", "1"),
        ("ipv4/conf/{}/arp_ignore", "1"),
        ("ipv4/conf/{}/arp_announce", "2"),
        ("ipv4/conf/{}/accept_redirects", "0"),
        ("ipv4/conf/{}/send_redirects", "0"),
        ("ipv4/conf/{}/accept_source_route", "0"),
    ] {
        changed |= set_sysctl(&setting.replace("{}", name), value)?;
    }
    Ok(changed)
}

/// The bridge's link-local address: its gateway's last byte.
const BRIDGE_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);

/// A link-local address with its subnet's length.
fn link_local(address: Ipv6Addr) -> IpNet {
    // 64 is a valid prefix length, so there is nothing to fail.
    IpNet::V6(Ipv6Net::new(address, 64).unwrap_or_default())
}

/// Leaves exactly these addresses on the interface. True if anything differed.
fn only_addresses(socket: &mut Socket, link: &Link, wanted: &[IpNet]) -> std::io::Result<bool> {
    let (present, other): (Vec<_>, Vec<_>) = rtnl::addresses(socket)?
        .into_iter()
        .filter(|address| address.index == link.index)
        .partition(|address| wanted.contains(&address.net));
    for address in &other {
        match rtnl::delete_address(socket, address) {
            // What the kernel made by itself goes with what it belongs to.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            done => done?,
        }
    }
    let missing: Vec<_> = wanted.iter().filter(|net| present.iter().all(|address| address.net != **net)).collect();
    for net in &missing {
        rtnl::add_address(socket, &Address { index: link.index, net: **net })?;
    }
    Ok(!other.is_empty() || !missing.is_empty())
}

/// An interface of the wanted name must be ours: same kind, and our mark, or no mark but our name (what a command that was
/// killed between two requests leaves behind).
fn refuse_foreign(
    operation: &'static str,
    link: &Link,
    kind: &str,
    owner: &Owner,
    domain: &str,
    machine: Option<&str>,
) -> Result<()> {
    let foreign = |detail: String| Err(Error::Foreign { operation, name: link.name.clone(), detail });
    if link.kind != kind {
        return foreign(format!("it is no {kind}"));
    }
    let Some(alias) = &link.alias else {
        return Ok(());
    };
    match Mark::parse(alias) {
        None => foreign(format!("its alias is `{alias}`")),
        Some(mark) if mark.owner.store != owner.store => foreign("it belongs to another store".into()),
        Some(mark) if mark.domain != domain || mark.machine.as_deref() != machine => {
            foreign(format!("it is `{alias}`"))
        }
        Some(mark) if mark.owner.project != owner.project => {
            foreign(format!("it belongs to project `{}`", mark.owner.project))
        }
        Some(_) => Ok(()),
    }
}

/// Removes a bridge of ours. True if there was one.
pub fn remove_bridge(name: &str) -> Result<bool> {
    remove_link("remove bridge", name, "bridge", BRIDGE_PREFIX)
}

/// Removes a port of ours (both ends). True if there was one.
pub fn detach(host_if: &str) -> Result<bool> {
    remove_link("remove port", host_if, "veth", PORT_PREFIX)
}

fn remove_link(operation: &'static str, name: &str, kind: &str, prefix: &str) -> Result<bool> {
    let err = |source| Error::Kernel { operation, name: name.to_owned(), source };
    let mut socket = Socket::route().map_err(err)?;
    let Some(link) = rtnl::link(&mut socket, name).map_err(err)? else {
        return Ok(false);
    };
    let marked = link.alias.as_deref().is_some_and(|a| Mark::parse(a).is_some());
    let unmarked = link.alias.is_none() && name.starts_with(prefix);
    if link.kind != kind || !(marked || unmarked) {
        let detail = link.alias.unwrap_or_else(|| format!("a {} without our mark", link.kind));
        return Err(Error::Foreign { operation, name: name.to_owned(), detail });
    }
    rtnl::delete_link(&mut socket, name).map_err(err)
}

/// The bridges that the store made.
pub fn bridges(store: &str) -> Result<Vec<BridgeState>> {
    let err = |source| Error::Kernel { operation: "list", name: "bridges".into(), source };
    let mut socket = Socket::route().map_err(err)?;
    let links = rtnl::links(&mut socket).map_err(err)?;
    let addresses = rtnl::addresses(&mut socket).map_err(err)?;
    let on = |link: &Link| {
        let index = link.index;
        addresses.iter().filter(move |a| a.index == index).map(|a| a.net)
    };
    let state = |link: Link| {
        let mark = Mark::parse(link.alias.as_deref()?).filter(|m| m.owner.store == store)?;
        (link.kind == "bridge" && mark.machine.is_none()).then(|| BridgeState {
            gateway: on(&link).find_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None }),
            gateway6: on(&link).find_map(|net| match net {
                IpNet::V6(net) if !net.addr().is_unicast_link_local() => Some(net),
                _ => None,
            }),
            name: link.name,
            owner: mark.owner,
            domain: mark.domain,
            mtu: link.mtu,
            up: link.up,
        })
    };
    Ok(links.into_iter().filter_map(state).collect())
}

/// The ports that the store made.
///
/// One that a killed command left without its mark is listed too, as long as it is a port of a bridge of the store's: its
/// `machine` is empty then.
pub fn ports(store: &str) -> Result<Vec<PortState>> {
    let err = |source| Error::Kernel { operation: "list", name: "ports".into(), source };
    let mut socket = Socket::route().map_err(err)?;
    let links = rtnl::links(&mut socket).map_err(err)?;
    let mut bridges = BTreeMap::new();
    for link in links.iter().filter(|l| l.kind == "bridge") {
        let mark = link.alias.as_deref().and_then(Mark::parse).filter(|m| m.owner.store == store);
        bridges.insert(link.index, (link.name.clone(), mark));
    }
    let state = |link: Link| {
        let master = bridges.get(&link.master);
        let mark = match link.alias.as_deref() {
            Some(alias) => Mark::parse(alias).filter(|m| m.owner.store == store)?,
            None if link.name.starts_with(PORT_PREFIX) => master?.1.clone()?,
            None => return None,
        };
        (link.kind == "veth").then(|| PortState {
            host_if: link.name,
            owner: mark.owner,
            domain: mark.domain,
            machine: mark.machine.unwrap_or_default(),
            bridge: master.map(|(name, _)| name.clone()),
            up: link.up,
        })
    };
    Ok(links.into_iter().filter_map(state).collect())
}

/// Joins the network namespace to the bridge: both ends up, address, default route, loopback up. True if it changed anything.
///
/// What else the machine did to its own side (more addresses, more routes) is left alone.
pub fn attach(spec: &PortSpec, netns: BorrowedFd<'_>) -> Result<bool> {
    attach_port(spec, netns, true)
}

/// The same for a further port of a machine: without a default route.
pub fn attach_leg(spec: &PortSpec, netns: BorrowedFd<'_>) -> Result<bool> {
    attach_port(spec, netns, false)
}

/// Gives the network namespace a macvlan on an interface of the host, up and without an address. True if it was not there.
pub fn attach_macvlan(parent: &str, guest_if: &str, mac: Mac, netns: BorrowedFd<'_>) -> Result<bool> {
    const WHAT: &str = "attach macvlan";
    let err = |source| Error::Kernel { operation: WHAT, name: format!("{guest_if} on {parent}"), source };
    let mut socket = Socket::route().map_err(err)?;
    let mut guest = socket_in(netns).map_err(err)?;
    let host = rtnl::link(&mut socket, parent)
        .map_err(err)?
        .ok_or_else(|| Error::Missing { operation: WHAT, name: parent.to_owned() })?;
    let made = rtnl::link(&mut guest, guest_if).map_err(err)?.is_none();
    if made {
        rtnl::create_macvlan(&mut socket, host.index, guest_if, mac, netns).map_err(err)?;
    }
    let link = rtnl::link(&mut guest, guest_if)
        .map_err(err)?
        .ok_or_else(|| Error::Missing { operation: WHAT, name: guest_if.to_owned() })?;
    if !link.up {
        rtnl::set_link(&mut guest, link.index, &LinkChange { up: true, ..LinkChange::default() }).map_err(err)?;
    }
    Ok(made || !link.up)
}

fn attach_port(spec: &PortSpec, netns: BorrowedFd<'_>, default_route: bool) -> Result<bool> {
    const WHAT: &str = "attach port";
    let err = |source| Error::Kernel { operation: WHAT, name: spec.host_if.clone(), source };
    let mut socket = Socket::route().map_err(err)?;
    let mut guest = socket_in(netns).map_err(err)?;
    let bridge = rtnl::link(&mut socket, &spec.bridge)
        .map_err(err)?
        .ok_or_else(|| Error::Missing { operation: WHAT, name: spec.bridge.clone() })?;

    let mut changed = false;
    let mut found = rtnl::link(&mut socket, &spec.host_if).map_err(err)?;
    if let Some(link) = &found {
        refuse_foreign(WHAT, link, "veth", &spec.owner, &spec.domain, Some(&spec.machine))?;
        let inside = rtnl::link(&mut guest, &spec.guest_if).map_err(err)?;
        if inside.is_none_or(|inside| inside.kind != "veth" || inside.index != link.peer || inside.peer != link.index) {
            // Its other end is in a namespace that died or dies.
            rtnl::delete_link(&mut socket, &spec.host_if).map_err(err)?;
            found = None;
        }
    }
    if found.is_none() {
        let veth = rtnl::Veth {
            host_if: &spec.host_if,
            guest_if: &spec.guest_if,
            mac: spec.mac,
            mtu: spec.mtu,
            master: bridge.index,
        };
        rtnl::create_veth(&mut socket, &veth, netns).map_err(err)?;
        shortcut::forget(&spec.bridge, spec.mac)?;
        changed = true;
        found = rtnl::link(&mut socket, &spec.host_if).map_err(err)?;
    }
    let Some(link) = found else {
        return Err(Error::Missing { operation: WHAT, name: spec.host_if.clone() });
    };
    changed |= host_end(&mut socket, spec, &link, &bridge).map_err(err)?;
    changed |= guest_end(&mut guest, spec, default_route, netns).map_err(err)?;
    Ok(changed)
}

/// A netlink socket of another network namespace. It stays in that namespace; only the short-lived thread enters it.
pub(crate) fn socket_in(netns: BorrowedFd<'_>) -> std::io::Result<Socket> {
    inside(netns, Socket::route)
}

fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    let enter = || {
        rustix::thread::move_into_link_name_space(netns, Some(rustix::thread::LinkNameSpaceType::Network))?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, enter)?;
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that enters the namespace died")))
    })
}

fn host_end(socket: &mut Socket, spec: &PortSpec, link: &Link, bridge: &Link) -> std::io::Result<bool> {
    let alias = Mark::render(&spec.owner, &spec.domain, Some(&spec.machine));
    let change = LinkChange {
        alias: (link.alias.as_deref() != Some(&alias)).then_some(alias.as_str()),
        mtu: (link.mtu != spec.mtu).then_some(spec.mtu),
        master: (link.master != bridge.index).then_some(bridge.index),
        no_ipv6_address: !link.up,
        up: true,
        mac: None,
    };
    if link.up && change.alias.is_none() && change.mtu.is_none() && change.master.is_none() {
        return Ok(false);
    }
    if !link.up {
        // A port hands every frame to its bridge and needs no IPv6 of its own.
        let _ = set_sysctl(&format!("ipv6/conf/{}/disable_ipv6", spec.host_if), "1");
    }
    rtnl::set_link(socket, link.index, &change)?;
    Ok(true)
}

fn guest_end(guest: &mut Socket, spec: &PortSpec, default_route: bool, netns: BorrowedFd<'_>) -> std::io::Result<bool> {
    let mut changed = false;
    if let Some(lo) = rtnl::link(guest, "lo")?.filter(|lo| !lo.up) {
        rtnl::set_link(guest, lo.index, &LinkChange { up: true, ..LinkChange::default() })?;
        changed = true;
    }
    let link = rtnl::link(guest, &spec.guest_if)?.ok_or(std::io::ErrorKind::NotFound)?;
    let change = LinkChange {
        mac: (link.mac != Some(spec.mac)).then_some(spec.mac),
        mtu: (link.mtu != spec.mtu).then_some(spec.mtu),
        // Its addresses are given, the link-local one too: nothing to wait for, nothing to announce.
        no_ipv6_address: !link.up,
        up: true,
        ..LinkChange::default()
    };
    if !link.up || change.mac.is_some() || change.mtu.is_some() {
        rtnl::set_link(guest, link.index, &change)?;
        changed = true;
    }
    let present: Vec<IpNet> =
        rtnl::addresses(guest)?.into_iter().filter(|a| a.index == link.index).map(|a| a.net).collect();
    let address = IpNet::V4(spec.address);
    if !present.contains(&address) {
        rtnl::add_address(guest, &Address { index: link.index, net: address })?;
        changed = true;
    }
    match spec.ipv6 {
        Some((address, _)) => {
            for net in [link_local(spec.mac.link_local()), address.into()] {
                if !present.contains(&net) {
                    add_ipv6(guest, &Address { index: link.index, net }, &spec.guest_if, netns)?;
                    changed = true;
                }
            }
        }
        // What it had before: the port lets nothing of it through, and its programs would wait for answers.
        None if present.iter().any(|net| net.addr().is_ipv6()) => {
            changed |= switch_ipv6(&spec.guest_if, false, netns)?;
        }
        None => {}
    }
    if default_route {
        for gateway in
            [Some(IpAddr::V4(spec.gateway)), spec.ipv6.map(|(_, gateway)| gateway.into())].into_iter().flatten()
        {
            let routed = |route: &rtnl::DefaultRoute| route.gateway == Some(gateway) && route.oif == link.index;
            let family = if gateway.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            if !rtnl::default_routes(guest, family)?.iter().any(routed) {
                rtnl::set_default_route(guest, link.index, gateway)?;
                changed = true;
            }
        }
    }
    Ok(changed)
}

/// Adds an IPv6 address in the machine, where its interface may have been without IPv6 so far.
fn add_ipv6(guest: &mut Socket, address: &Address, guest_if: &str, netns: BorrowedFd<'_>) -> std::io::Result<()> {
    match rtnl::add_address(guest, address) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            switch_ipv6(guest_if, true, netns)?;
            rtnl::add_address(guest, address)
        }
        done => done,
    }
}

/// Switches a machine's interface. True if that changed anything.
fn switch_ipv6(guest_if: &str, on: bool, netns: BorrowedFd<'_>) -> std::io::Result<bool> {
    let setting = format!("ipv6/conf/{guest_if}/disable_ipv6");
    inside(netns, || set_sysctl(&setting, if on { "0" } else { "1" }).map_err(std::io::Error::other))
}
