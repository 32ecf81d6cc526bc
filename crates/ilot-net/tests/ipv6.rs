//! IPv6 between, within and out of domains, by real connections and forged frames.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::net::{Ipv6Addr, SocketAddr};

use common::frames::{Tap, ethernet, send_frame};
use common::{HOST_OUTSIDE6, Ns, OUTSIDE6, World, bridge_spec, ipv6, mac, net6, port_spec, tcp_any, udp_any};
use ilot_net::firewall::{self, Egress, FwRule, Ports, Protocol, Side};
use ilot_net::mac_for;
use ipnet::{IpNet, Ipv4Net};

fn at(ip: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

fn tcp(from: &Ns, to: &Ns, address: SocketAddr) -> Option<Ipv6Addr> {
    tcp_any(from, to, address).map(|seen| seen.to_string().parse().unwrap())
}

fn udp(from: &Ns, to: &Ns, address: SocketAddr) -> Option<Ipv6Addr> {
    udp_any(from, to, address).map(|seen| seen.to_string().parse().unwrap())
}

fn rule(from: Side, to: Side, ports: &[u16], protocol: Option<Protocol>) -> FwRule {
    let ports = if ports.is_empty() { Ports::All } else { Ports::List(ports.to_vec()) };
    FwRule { from, to, ports, protocol, bidirectional: false, comment: "a test".into() }
}

fn two_domains() -> World {
    World::new(&[("pro", &["pro-dev", "pro-web"]), ("perso", &["desk", "game"])])
}

#[test]
fn without_policies_domains_are_islands() {
    let world = two_domains();
    let (dev, web, desk) = (world.ns("pro-dev"), world.ns("pro-web"), world.ns("desk"));
    assert_eq!(tcp(dev, web, at(world.ip6("pro-web"), 80)), Some(world.ip6("pro-dev")));
    assert_eq!(udp(dev, web, at(world.ip6("pro-web"), 5000)), Some(world.ip6("pro-dev")));
    dev.sh(&format!("ping -6 -c1 -W2 {}", world.ip6("pro-web")));
    dev.sh(&format!("ping -6 -c1 -W2 -I eth0 {}", mac_for("pro-web").link_local()));
    // Another domain: nothing, nor its gateway.
    assert_eq!(tcp(dev, desk, at(world.ip6("desk"), 80)), None);
    assert_eq!(udp(dev, desk, at(world.ip6("desk"), 5000)), None);
    assert_eq!(tcp(dev, &world.host, at(world.gateway6("perso"), 53)), None);
    // The host: the name service at the own gateway only, and nothing at its link-local address.
    assert_eq!(tcp(dev, &world.host, at(world.gateway6("pro"), 53)), Some(world.ip6("pro-dev")));
    assert_eq!(udp(dev, &world.host, at(world.gateway6("pro"), 53)), Some(world.ip6("pro-dev")));
    assert_eq!(tcp(dev, &world.host, at(world.gateway6("pro"), 22)), None);
    assert_eq!(udp(dev, &world.host, at(world.gateway6("pro"), 123)), None);
    assert_eq!(tcp(dev, &world.host, at(HOST_OUTSIDE6, 53)), None);
    assert!(!dev.sh("ping -6 -c1 -W0.3 -I eth0 fe80::fe || true").contains("1 received"));
    // The host begins what it likes.
    assert_eq!(tcp(&world.host, dev, at(world.ip6("pro-dev"), 22)), Some(world.gateway6("pro")));
    // The outside is reached as the host, and reaches nothing.
    assert_eq!(tcp(dev, &world.outside, at(OUTSIDE6, 443)), Some(HOST_OUTSIDE6));
    assert_eq!(udp(dev, &world.outside, at(OUTSIDE6, 443)), Some(HOST_OUTSIDE6));
    assert_eq!(tcp(&world.outside, dev, at(world.ip6("pro-dev"), 80)), None);
    assert_eq!(udp(&world.outside, dev, at(world.ip6("pro-dev"), 80)), None);
    assert_eq!(tcp(&world.outside, &world.host, at(HOST_OUTSIDE6, 22)), Some(OUTSIDE6));
    // What every system sends by itself is not taken for an attack.
    assert!(world.host.sh("nft list counter bridge ilot forged").contains("packets 0 "), "quiet");
}

#[test]
fn policies_mean_both_versions() {
    let mut world = two_domains();
    world.rules.domains[1].egress = Egress::nets(vec![
        ("2001:db8::/64".parse::<IpNet>().unwrap(), Ports::List(vec![80])),
        ("203.0.113.0/24".parse().unwrap(), Ports::All),
    ]);
    world.rules.domains[0].ports[0].egress = Some(Egress::None);
    world.rules.rules = vec![
        rule(Side::Domain("pro".into()), Side::Domain("perso".into()), &[80], Some(Protocol::Tcp)),
        rule(Side::Machine("pro-dev".into()), Side::Machine("desk".into()), &[5000], Some(Protocol::Udp)),
        rule(Side::Domain("perso".into()), Side::Host, &[8080], None),
        rule(Side::Machine("game".into()), Side::Internet, &[443], Some(Protocol::Tcp)),
    ];
    world.install();
    assert!(world.is_installed());
    let [dev, web, desk, game] = ["pro-dev", "pro-web", "desk", "game"].map(|name| (world.ns(name), world.ip6(name)));
    assert_eq!(tcp(dev.0, desk.0, at(desk.1, 80)), Some(dev.1));
    assert_eq!(tcp(web.0, game.0, at(game.1, 80)), Some(web.1));
    assert_eq!(tcp(desk.0, dev.0, at(dev.1, 80)), None);
    assert_eq!(udp(dev.0, desk.0, at(desk.1, 80)), None);
    assert_eq!(udp(dev.0, desk.0, at(desk.1, 5000)), Some(dev.1));
    assert_eq!(udp(web.0, desk.0, at(desk.1, 5000)), None);
    assert!(tcp(desk.0, &world.host, at(world.gateway6("perso"), 8080)).is_some());
    assert!(tcp(desk.0, &world.host, at(HOST_OUTSIDE6, 8080)).is_some());
    assert_eq!(tcp(desk.0, &world.host, at(world.gateway6("pro"), 8080)), None);
    // Egress: the list of the domain, a policy, a machine's own list.
    assert_eq!(tcp(desk.0, &world.outside, at(OUTSIDE6, 80)), Some(HOST_OUTSIDE6));
    assert_eq!(tcp(desk.0, &world.outside, at(OUTSIDE6, 443)), None);
    assert_eq!(tcp(game.0, &world.outside, at(OUTSIDE6, 443)), Some(HOST_OUTSIDE6));
    assert_eq!(tcp(dev.0, &world.outside, at(OUTSIDE6, 443)), None);
    assert_eq!(tcp(web.0, &world.outside, at(OUTSIDE6, 443)), Some(HOST_OUTSIDE6));
}

#[test]
fn connections_that_are_no_longer_allowed_end() {
    use std::io::{Read, Write};
    let mut world = two_domains();
    world.rules.rules = vec![rule(Side::Domain("pro".into()), Side::Domain("perso".into()), &[80], None)];
    world.install();
    let listener = world.ns("desk").run(|| std::net::TcpListener::bind("[::]:80")).unwrap();
    let mut client = world.ns("pro-dev").run(|| std::net::TcpStream::connect(at(world.ip6("desk"), 80))).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(common::LONG)).unwrap();
    world.install();
    client.write_all(b"a").unwrap();
    server.read_exact(&mut [0]).unwrap();
    world.rules.rules.clear();
    world.install();
    server.set_read_timeout(Some(common::SHORT)).unwrap();
    client.write_all(b"b").unwrap();
    assert!(server.read_exact(&mut [0]).is_err());
}

#[test]
fn without_ipv6_nothing_of_it_passes() {
    let world = World::with_ipv6(&[("pro", &["pro-dev", "pro-web"]), ("perso", &["desk"])], false);
    let (dev, web) = (world.ns("pro-dev"), world.ns("pro-web"));
    // Even between machines that give themselves addresses.
    for (ns, name) in [(dev, "pro-dev"), (web, "pro-web")] {
        assert!(!ns.sh("ip -6 addr show dev eth0").contains("inet6"));
        ns.sh(&format!("ip addr add {}/64 dev eth0 nodad", world.ip6(name)));
    }
    assert_eq!(tcp(dev, web, at(world.ip6("pro-web"), 80)), None);
    assert_eq!(tcp(dev, &world.outside, at(OUTSIDE6, 80)), None);
    assert_eq!(tcp(&world.outside, web, at(world.ip6("pro-web"), 80)), None);
}

#[test]
fn a_domain_with_ipv6_beside_one_without() {
    let mut world = two_domains();
    let domain = &mut world.rules.domains[1];
    (domain.subnet6, domain.gateway6) = (None, None);
    domain.ports.iter_mut().for_each(|port| port.ip6 = None);
    world.rules.rules = vec![rule(Side::Domain("pro".into()), Side::Domain("perso".into()), &[], None)];
    world.rules.rules[0].bidirectional = true;
    world.install();
    let (dev, desk, game) = (world.ns("pro-dev"), world.ns("desk"), world.ns("game"));
    // Its machines still have what they had; it is nobody's now.
    assert_eq!(tcp(desk, game, at(world.ip6("game"), 80)), None);
    assert_eq!(tcp(desk, dev, at(world.ip6("pro-dev"), 80)), None);
    assert_eq!(tcp(desk, &world.outside, at(OUTSIDE6, 80)), None);
    assert_eq!(tcp(dev, world.ns("pro-web"), at(world.ip6("pro-web"), 80)), Some(world.ip6("pro-dev")));
    // The bridge and the ports lose it when they are looked at the next time, and get it back.
    let gateway = Ipv4Net::new(world.gateway("perso"), 24).unwrap();
    let with = |on: bool| {
        let mut spec = bridge_spec("perso", gateway);
        spec.gateway6 = on.then(|| net6(world.gateway6("perso")));
        spec
    };
    let mut port = port_spec(&world.rules.domains[1], &world.rules.domains[1].ports[0]);
    assert!(world.host.run(|| ilot_net::ensure_bridge(&with(false))).unwrap());
    assert!(!world.host.run(|| ilot_net::ensure_bridge(&with(false))).unwrap());
    assert!(!world.host.sh("ip addr show dev il-perso").contains("inet6"));
    assert!(world.host.run(|| ilot_net::attach(&port, desk.fd())).unwrap());
    assert!(!world.host.run(|| ilot_net::attach(&port, desk.fd())).unwrap());
    assert!(!desk.sh("ip addr show dev eth0").contains("inet6"));
    port.ipv6 = Some((net6(world.ip6("desk")), world.gateway6("perso")));
    assert!(world.host.run(|| ilot_net::ensure_bridge(&with(true))).unwrap());
    assert!(!world.host.run(|| ilot_net::ensure_bridge(&with(true))).unwrap());
    assert!(world.host.run(|| ilot_net::attach(&port, desk.fd())).unwrap());
    assert!(!world.host.run(|| ilot_net::attach(&port, desk.fd())).unwrap());
    let found = world.host.run(|| ilot_net::bridges("0a1b2c3d")).unwrap();
    assert_eq!(found.iter().find(|b| b.domain == "perso").unwrap().gateway6, Some(net6(world.gateway6("perso"))));
}

/// Waits for an answer: a bridge lets a port forward a moment after its carrier came back.
fn answers(from: &Ns, address: Ipv6Addr) {
    from.sh(&format!("for n in 1 2 3 4 5; do ping -6 -c1 -W1 {address} && exit 0; done; exit 1"));
}

#[test]
fn what_drifts_is_repaired() {
    let host = Ns::new();
    let guest = Ns::new();
    host.sh("ip link set lo up");
    let gateway: Ipv4Net = "10.120.3.254/24".parse().unwrap();
    let mut bridge = bridge_spec("pro", gateway);
    bridge.gateway6 = Some(net6(ipv6(gateway.addr())));
    let port = ilot_net::PortSpec {
        bridge: bridge.name.clone(),
        owner: common::owner(),
        domain: "pro".into(),
        machine: "dev".into(),
        host_if: ilot_net::port_name("dev"),
        guest_if: "eth0".into(),
        mac: mac_for("dev"),
        address: "10.120.3.1/24".parse().unwrap(),
        gateway: gateway.addr(),
        ipv6: Some((net6(ipv6([10, 120, 3, 1].into())), ipv6(gateway.addr()))),
        mtu: 1500,
    };
    let ensure = || host.run(|| ilot_net::ensure_bridge(&bridge)).unwrap();
    let attach = || host.run(|| ilot_net::attach(&port, guest.fd())).unwrap();
    assert!(ensure() && attach());
    assert!(!ensure() && !attach());
    for drift in [
        "ip link set il-pro down",
        "ip -6 addr flush dev il-pro",
        "ip addr del fe80::fe/64 dev il-pro",
        "ip addr add fd00:9::9/64 dev il-pro",
        "sysctl -qw net.ipv6.conf.il-pro.disable_ipv6=1",
        "sysctl -qw net.ipv6.conf.il-pro.accept_ra=2",
        "sysctl -qw net.ipv6.conf.il-pro.addr_gen_mode=0",
    ] {
        host.sh(drift);
        assert!(ensure(), "repairs `{drift}`");
        assert!(!ensure(), "repaired `{drift}`");
        answers(&host, ipv6([10, 120, 3, 1].into()));
    }
    for drift in [
        "ip link set eth0 down",
        "ip -6 addr flush dev eth0",
        "ip -6 route del default",
        "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
    ] {
        guest.sh(drift);
        assert!(attach(), "repairs `{drift}`");
        assert!(!attach(), "repaired `{drift}`");
        answers(&guest, ipv6(gateway.addr()));
    }
    // What the machine added by itself stays.
    guest.sh("ip addr add fd00:7::7/64 dev eth0 nodad");
    assert!(!attach());
    assert!(guest.sh("ip addr show dev eth0").contains("fd00:7::7/64"));
}

/// The checksum of ICMPv6 (RFC 4443, 2.3).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    let bytes = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, 58], body].concat();
    let sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 255];
    packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    if protocol == 58 {
        let sum = checksum(from, to, body);
        packet[42..44].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// A message of neighbour discovery about `target`, with an option that names a hardware address.
fn neighbour(kind: u8, target: Ipv6Addr, option: Option<[u8; 6]>) -> Vec<u8> {
    let flags: u8 = if kind == 136 { 0x60 } else { 0 };
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    if let Some(mac) = option {
        body.extend([if kind == 136 { 2 } else { 1 }, 1]);
        body.extend(mac);
    }
    body
}

#[test]
fn a_machine_cannot_take_anothers_address() {
    const IPV6: [u8; 2] = [0x86, 0xdd];
    let world = World::new(&[("pro", &["pro-dev", "pro-web"])]);
    let (dev, web) = (world.ns("pro-dev"), world.ns("pro-web"));
    let tap = Tap::new(web, "eth0");
    let (own, other, foreign) = (mac_for("pro-dev").0, mac_for("pro-web").0, mac("02:00:00:00:00:99").0);
    let (ip, web_ip, gateway) = (world.ip6("pro-dev"), world.ip6("pro-web"), world.gateway6("pro"));
    let local = mac_for("pro-dev").link_local();
    let nobody = Ipv6Addr::UNSPECIFIED;
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let everyone = [0x33, 0x33, 0, 0, 0, 1];
    let mut number = 0xabc0u16;
    let mut passes = |to: [u8; 6], from: [u8; 6], packet: &[u8]| {
        number += 1;
        // The flow label, where nobody looks but us.
        let mut packet = packet.to_vec();
        packet[2..4].copy_from_slice(&number.to_be_bytes());
        send_frame(dev, &ethernet(to, from, &IPV6, &packet, &[]));
        tap.sees_one(|frame| frame.get(12..18) == Some(&[&IPV6[..], &packet[..4]].concat()[..]))
    };
    let udp = |from| packet(from, web_ip, 17, &[0x30, 0x39, 0x30, 0x39, 0, 8, 0, 0]);
    // Its own addresses, by its own hardware address.
    assert!(passes(other, own, &udp(ip)));
    assert!(passes(other, own, &udp(local)));
    for source in [world.ip6("pro-web"), gateway, ipv6([10, 120, 1, 7].into()), nobody, mac_for("pro-web").link_local()]
    {
        assert!(!passes(other, own, &udp(source)), "{source}");
    }
    assert!(!passes(other, foreign, &udp(ip)));
    assert!(!passes(other, other, &udp(web_ip)));
    assert!(!passes(other, own, &udp("fe80::fe".parse().unwrap())));
    // Solicitations: for anybody, of itself; and for its own address before it has it.
    let (solicit, advertise) = (135, 136);
    let discovery = |from, kind, target, option| packet(from, all_nodes, 58, &neighbour(kind, target, option));
    assert!(passes(everyone, own, &discovery(ip, solicit, web_ip, Some(own))));
    assert!(passes(everyone, own, &discovery(local, solicit, web_ip, None)));
    assert!(passes(everyone, own, &discovery(nobody, solicit, ip, None)));
    assert!(!passes(everyone, own, &discovery(nobody, solicit, web_ip, None)), "keeps nobody from its address");
    assert!(!passes(everyone, own, &discovery(ip, solicit, web_ip, Some(foreign))));
    assert!(!passes(everyone, own, &discovery(web_ip, solicit, gateway, Some(own))));
    // Advertisements: of its own addresses with its own hardware address.
    assert!(passes(everyone, own, &discovery(ip, advertise, ip, Some(own))));
    assert!(passes(everyone, own, &discovery(ip, advertise, local, Some(own))));
    assert!(passes(everyone, own, &discovery(ip, advertise, ip, None)));
    assert!(!passes(everyone, own, &discovery(ip, advertise, gateway, Some(own))));
    assert!(!passes(everyone, own, &discovery(ip, advertise, web_ip, None)));
    assert!(!passes(everyone, own, &discovery(ip, advertise, "fe80::fe".parse().unwrap(), Some(own))));
    assert!(!passes(everyone, own, &discovery(ip, advertise, ip, Some(foreign))));
    assert!(!passes(everyone, own, &discovery(nobody, advertise, ip, Some(own))));
    // Two options, of which the second one would count.
    let mut two = neighbour(advertise, ip, Some(own));
    two.extend([2, 1, 2, 0, 0, 0, 0, 0x99]);
    assert!(!passes(everyone, own, &packet(ip, all_nodes, 58, &two)));
    // Behind a header that nothing needs; and a gateway's within it.
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &neighbour(advertise, gateway, Some(own))].concat();
    for header in [0, 60] {
        assert!(!passes(everyone, own, &packet(ip, all_nodes, header, &hidden)), "header {header}");
    }
    // Nobody is a router: advertisements, solicitations, redirects.
    for (kind, length) in [(134, 16), (133, 8), (137, 40)] {
        let mut body = vec![0; length];
        body[0] = kind;
        assert!(!passes(everyone, own, &packet(local, all_nodes, 58, &body)), "type {kind}");
    }
    // And an honest echo request passes.
    assert!(passes(other, own, &packet(ip, web_ip, 58, &[128, 0, 0, 0, 0, 1, 0, 1])));
    // By its own configuration.
    let stolen = ipv6([10, 120, 1, 9].into());
    dev.sh(&format!("ip addr add {stolen}/64 dev eth0 nodad"));
    assert!(!dev.sh(&format!("ping -6 -c1 -W0.3 -I {stolen} {web_ip} || true")).contains("1 received"));
    // The victim's kernel still knows who is who.
    web.sh(&format!("ping -6 -c1 -W2 {ip}"));
    assert!(web.sh(&format!("ip -6 neigh show {ip}")).contains(&mac_for("pro-dev").to_string()));
}

#[test]
fn a_port_comes_and_goes_without_replacing_the_tables() {
    let world = World::new(&[("pro", &["pro-dev"])]);
    let stranger = Ns::new();
    let mut port = world.rules.domains[0].ports[0].clone();
    (port.machine, port.ifname, port.mac) = ("late".into(), ilot_net::port_name("late"), mac_for("late"));
    port.ip = [10, 120, 1, 9].into();
    port.ip6 = Some(ipv6(port.ip));
    world.attach(&world.rules.domains[0], &port, &stranger);
    let (dev, target) = (world.ns("pro-dev"), at(world.ip6("pro-dev"), 80));
    assert_eq!(tcp(&stranger, dev, target), None);
    let mut with = world.rules.clone();
    with.domains[0].ports.push(port.clone());
    let run = world.run_dir.path();
    world.host.run(|| firewall::add_port(run, &with, &port.ifname)).unwrap();
    assert!(world.host.run(|| firewall::is_installed(run, &with)).unwrap());
    stranger.sh("ip -6 neigh flush all");
    assert_eq!(tcp(&stranger, dev, target), port.ip6);
    assert_eq!(tcp(&stranger, &world.outside, at(OUTSIDE6, 80)), Some(HOST_OUTSIDE6));
    world.host.run(|| firewall::remove_port(run, &with, &port.ifname)).unwrap();
    assert!(world.is_installed());
    assert_eq!(tcp(&stranger, dev, target), None);
}

#[test]
fn forwarding_keeps_the_hosts_own_routes() {
    let host = Ns::new();
    let run_dir = tempfile::tempdir().unwrap();
    host.sh("ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up; ip link set lo up");
    host.sh("ip link add quiet type bridge; sysctl -qw net.ipv6.conf.quiet.accept_ra=0");
    let value = |setting: &str| host.sh(&format!("sysctl -n net.ipv6.conf.{setting}")).trim().to_owned();
    assert_eq!((value("all.forwarding"), value("up0.accept_ra")), ("0".into(), "1".into()));
    // What a router advertisement leaves behind.
    host.sh("ip -6 route add default via fe80::1 dev up0 proto ra expires 600");
    assert!(host.run(|| ilot_net::enable_forwarding6(run_dir.path())).unwrap());
    assert!(!host.run(|| ilot_net::enable_forwarding6(run_dir.path())).unwrap());
    assert_eq!((value("all.forwarding"), value("up0.forwarding")), ("1".into(), "1".into()));
    assert_eq!((value("up0.accept_ra"), value("default.accept_ra")), ("2".into(), "2".into()));
    assert_eq!(value("quiet.accept_ra"), "0", "who does not listen is left alone");
    assert!(host.sh("ip -6 route").contains("default via fe80::1"), "the host's way out is still there");
    // Somebody decides otherwise meanwhile.
    host.sh("sysctl -qw net.ipv6.conf.up1.accept_ra=0");
    assert!(host.run(|| ilot_net::disable_forwarding(run_dir.path())).unwrap());
    assert_eq!((value("all.forwarding"), value("up0.accept_ra")), ("0".into(), "1".into()));
    assert_eq!((value("up1.accept_ra"), value("default.accept_ra")), ("0".into(), "1".into()));
    assert!(!host.run(|| ilot_net::disable_forwarding(run_dir.path())).unwrap());
}

#[test]
fn a_host_without_ipv6_is_told_apart() {
    let host = Ns::new();
    assert!(host.run(ilot_net::has_ipv6));
    host.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    assert!(!host.run(ilot_net::has_ipv6));
    // Bridges of domains without IPv6 stand there as everywhere.
    let spec = bridge_spec("pro", "10.120.3.254/24".parse().unwrap());
    assert!(host.run(|| ilot_net::ensure_bridge(&spec)).unwrap());
    assert!(!host.run(|| ilot_net::ensure_bridge(&spec)).unwrap());
}
