//! The packet filter, by real connections between network namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::net::SocketAddr;
use std::time::Instant;

use common::frames::{Tap, ethernet, ipv4_udp, send_frame};
use common::{HOST_OUTSIDE, Ns, OUTSIDE, World, mac, many, rule, tcp, udp};
use ilot_net::firewall::{self, Egress, FwPort, Ports, Protocol, Rates, Side};
use ilot_net::{mac_for, port_name};

fn at(ip: std::net::Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

fn domain(name: &str) -> Side {
    Side::Domain(name.into())
}

fn machine(name: &str) -> Side {
    Side::Machine(name.into())
}

fn two_domains() -> World {
    World::new(&[("pro", &["pro-dev", "pro-web"]), ("perso", &["desk", "game"])])
}

#[test]
fn without_policies_domains_are_islands() {
    let world = two_domains();
    let (dev, web, desk) = (world.ns("pro-dev"), world.ns("pro-web"), world.ns("desk"));
    // The same domain: everything, and nobody translates.
    assert_eq!(tcp(dev, web, at(world.ip("pro-web"), 80)), Some(world.ip("pro-dev")));
    assert_eq!(udp(dev, web, at(world.ip("pro-web"), 5000)), Some(world.ip("pro-dev")));
    dev.sh("ping -c1 -W2 10.120.1.2");
    // Another domain: nothing, nor its gateway.
    assert_eq!(tcp(dev, desk, at(world.ip("desk"), 80)), None);
    assert_eq!(udp(dev, desk, at(world.ip("desk"), 5000)), None);
    assert_eq!(tcp(dev, &world.host, at(world.gateway("perso"), 53)), None);
    assert_eq!(udp(dev, &world.host, at(world.gateway("perso"), 53)), None);
    // The host: the name service at the own gateway only.
    assert_eq!(tcp(dev, &world.host, at(world.gateway("pro"), 53)), Some(world.ip("pro-dev")));
    assert_eq!(udp(dev, &world.host, at(world.gateway("pro"), 53)), Some(world.ip("pro-dev")));
    assert_eq!(tcp(dev, &world.host, at(world.gateway("pro"), 22)), None);
    assert_eq!(udp(dev, &world.host, at(world.gateway("pro"), 123)), None);
    assert_eq!(tcp(dev, &world.host, at(HOST_OUTSIDE, 53)), None);
    // The host begins what it likes.
    assert_eq!(tcp(&world.host, dev, at(world.ip("pro-dev"), 22)), Some(world.gateway("pro")));
    // The outside is reached as the host, and reaches nothing.
    assert_eq!(tcp(dev, &world.outside, at(OUTSIDE, 443)), Some(HOST_OUTSIDE));
    assert_eq!(udp(dev, &world.outside, at(OUTSIDE, 443)), Some(HOST_OUTSIDE));
    assert_eq!(tcp(&world.outside, dev, at(world.ip("pro-dev"), 80)), None);
    assert_eq!(udp(&world.outside, dev, at(world.ip("pro-dev"), 80)), None);
    // What is not ours is not touched: the outside still reaches the host itself.
    assert_eq!(tcp(&world.outside, &world.host, at(HOST_OUTSIDE, 22)), Some(OUTSIDE));
}

#[test]
fn policies_open_what_they_say() {
    let mut world = two_domains();
    world.rules.rules = vec![
        rule(domain("pro"), domain("perso"), &[80, 443], Some(Protocol::Tcp)),
        rule(machine("pro-dev"), machine("desk"), &[5000], Some(Protocol::Udp)),
        rule(domain("perso"), machine("pro-web"), &[9000], None),
        rule(machine("game"), domain("pro"), &[], Some(Protocol::Tcp)),
    ];
    world.install();
    let [dev, web, desk, game] = ["pro-dev", "pro-web", "desk", "game"].map(|name| (world.ns(name), world.ip(name)));
    type End<'a> = (&'a Ns, std::net::Ipv4Addr);
    let tcp = |a: End<'_>, b: End<'_>, port| tcp(a.0, b.0, at(b.1, port)) == Some(a.1);
    let udp = |a: End<'_>, b: End<'_>, port| udp(a.0, b.0, at(b.1, port)) == Some(a.1);
    // Domain to domain.
    assert!(tcp(dev, desk, 80) && tcp(web, game, 443));
    assert!(!tcp(dev, desk, 81) && !udp(dev, desk, 80));
    assert!(!tcp(desk, dev, 80), "not the other way");
    // Machine to machine.
    assert!(udp(dev, desk, 5000));
    assert!(!udp(dev, game, 5000) && !udp(web, desk, 5000) && !tcp(dev, desk, 5000) && !udp(desk, dev, 5000));
    // Domain to machine, both protocols.
    assert!(tcp(desk, web, 9000) && udp(game, web, 9000));
    assert!(!tcp(desk, dev, 9000) && !tcp(desk, web, 9001));
    // Machine to domain, every TCP port.
    assert!(tcp(game, dev, 1234) && !udp(game, dev, 1234) && !tcp(desk, dev, 1234));
    // Both ways.
    world.rules.rules = vec![rule(domain("pro"), machine("desk"), &[80], Some(Protocol::Tcp))];
    world.rules.rules[0].bidirectional = true;
    world.install();
    let [dev, web, desk, game] = ["pro-dev", "pro-web", "desk", "game"].map(|name| (world.ns(name), world.ip(name)));
    assert!(tcp(dev, desk, 80) && tcp(desk, dev, 80) && tcp(desk, web, 80));
    assert!(!tcp(game, dev, 80) && !tcp(dev, game, 80) && !tcp(desk, dev, 81));
    // Everything, ICMP too.
    world.rules.rules = vec![rule(domain("pro"), domain("perso"), &[], None)];
    world.install();
    world.ns("pro-dev").sh("ping -c1 -W2 10.120.2.1");
    assert!(!world.ns("desk").sh("ping -c1 -W0.2 10.120.1.1 || true").contains("1 received"));
}

#[test]
fn policies_to_the_host_and_the_internet() {
    let mut world = two_domains();
    world.rules.domains[1].egress = Egress::None;
    world.rules.rules = vec![
        rule(domain("pro"), Side::Host, &[8080], Some(Protocol::Tcp)),
        rule(Side::Host, machine("game"), &[25], Some(Protocol::Tcp)),
        rule(machine("desk"), Side::Internet, &[443], Some(Protocol::Tcp)),
    ];
    world.rules.rules[1].bidirectional = true;
    world.install();
    let (dev, desk, game) = (world.ns("pro-dev"), world.ns("desk"), world.ns("game"));
    let host = &world.host;
    assert!(tcp(dev, host, at(world.gateway("pro"), 8080)).is_some());
    assert!(tcp(dev, host, at(HOST_OUTSIDE, 8080)).is_some(), "the host is all of its own addresses");
    assert!(tcp(dev, host, at(world.gateway("perso"), 8080)).is_none(), "but no other domain's gateway");
    assert!(tcp(dev, host, at(world.gateway("pro"), 8081)).is_none());
    assert!(udp(dev, host, at(world.gateway("pro"), 8080)).is_none());
    assert!(tcp(game, host, at(world.gateway("perso"), 25)).is_some());
    assert!(tcp(desk, host, at(world.gateway("perso"), 25)).is_none());
    // Closed egress, with one opening.
    assert_eq!(tcp(desk, &world.outside, at(OUTSIDE, 443)), Some(HOST_OUTSIDE));
    assert_eq!(tcp(desk, &world.outside, at(OUTSIDE, 80)), None);
    assert_eq!(tcp(game, &world.outside, at(OUTSIDE, 443)), None);
    // Egress by networks and ports, overlapping ones among them.
    let net = |text: &str| text.parse().unwrap();
    world.rules.domains[1].egress = Egress::nets(vec![
        (net("203.0.113.0/24"), Ports::List(vec![80, 53])),
        (net("203.0.113.2/32"), Ports::List(vec![80])),
        (net("198.51.100.0/24"), Ports::All),
        (net("198.51.100.7/32"), Ports::All),
    ]);
    world.rules.rules.clear();
    world.install();
    world.outside.sh("ip addr add 198.51.100.7/32 dev lo");
    let desk = world.ns("desk");
    assert!(tcp(desk, &world.outside, at(OUTSIDE, 80)).is_some());
    assert!(udp(desk, &world.outside, at(OUTSIDE, 53)).is_some());
    assert!(tcp(desk, &world.outside, at(OUTSIDE, 81)).is_none());
    assert!(tcp(desk, &world.outside, at([198, 51, 100, 7].into(), 1234)).is_some());
    world.rules.domains[1].egress = Egress::nets(vec![(net("0.0.0.0/0"), Ports::List(vec![443]))]);
    world.install();
    let desk = world.ns("desk");
    assert!(tcp(desk, &world.outside, at(OUTSIDE, 443)).is_some());
    assert!(tcp(desk, &world.outside, at(OUTSIDE, 80)).is_none());
}

fn arp(operation: u8, sender: [u8; 6], ip: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender);
    packet.extend(ip);
    packet.extend([0; 6]);
    packet.extend(target);
    packet
}

#[test]
fn a_machine_cannot_take_anothers_address() {
    let world = World::new(&[("pro", &["pro-dev", "pro-web"])]);
    let (dev, web) = (world.ns("pro-dev"), world.ns("pro-web"));
    let tap = Tap::new(web, "eth0");
    let (own, other, foreign) = (mac_for("pro-dev").0, mac_for("pro-web").0, mac("02:00:00:00:00:99").0);
    let (ip, web_ip, gateway) = ([10, 120, 1, 1], [10, 120, 1, 2], [10, 120, 1, 254]);
    let everyone = [0xff; 6];
    let mut number = 0u16;
    let mut passes = |frame: &dyn Fn(&[u8]) -> Vec<u8>| {
        number += 1;
        let mark = [b"mark-of-the-test", &number.to_be_bytes()[..]].concat();
        send_frame(dev, &frame(&mark));
        tap.sees(&mark)
    };
    let ipv4 = [8, 0];
    let arp_kind = [8, 6];
    // Its own.
    assert!(passes(&|m| ethernet(other, own, &ipv4, &ipv4_udp(ip, web_ip, m), m)));
    assert!(passes(&|m| ethernet(everyone, own, &arp_kind, &arp(1, own, ip, web_ip), m)));
    assert!(passes(&|m| ethernet(everyone, own, &arp_kind, &arp(1, own, [0; 4], ip), m)), "an address probe");
    // Other addresses, or other hardware addresses.
    assert!(!passes(&|m| ethernet(other, own, &ipv4, &ipv4_udp([10, 120, 1, 7], web_ip, m), m)));
    assert!(!passes(&|m| ethernet(other, own, &ipv4, &ipv4_udp(gateway, web_ip, m), m)));
    assert!(!passes(&|m| ethernet(other, foreign, &ipv4, &ipv4_udp(ip, web_ip, m), m)));
    assert!(!passes(&|m| ethernet(other, other, &ipv4, &ipv4_udp(web_ip, web_ip, m), m)));
    // ARP: another's address, another's hardware address within, the gateway's.
    assert!(!passes(&|m| ethernet(everyone, own, &arp_kind, &arp(2, own, gateway, web_ip), m)));
    assert!(!passes(&|m| ethernet(everyone, own, &arp_kind, &arp(2, foreign, ip, web_ip), m)));
    assert!(!passes(&|m| ethernet(everyone, foreign, &arp_kind, &arp(2, foreign, ip, web_ip), m)));
    assert!(!passes(&|m| ethernet(everyone, own, &arp_kind, &arp(1, own, [10, 120, 1, 7], web_ip), m)));
    // Everything else: IPv6, VLAN tags (also around an honest packet), service tags, LLDP, 802.3.
    let honest = |m: &[u8]| ipv4_udp(ip, web_ip, m);
    assert!(!passes(&|m| ethernet(everyone, own, &[0x86, 0xdd], &[0x60, 0, 0, 0, 0, 0, 59, 64], m)));
    assert!(!passes(&|m| ethernet(other, own, &[0x81, 0, 0, 5, 8, 0], &honest(m), m)));
    assert!(!passes(&|m| ethernet(other, own, &[0x81, 0, 0, 0, 8, 0], &honest(m), m)));
    assert!(!passes(&|m| ethernet(other, own, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 5, 8, 0], &honest(m), m)));
    assert!(!passes(&|m| ethernet(everyone, own, &[0x88, 0xcc], &[0; 50], m)));
    assert!(!passes(&|m| ethernet(everyone, own, &[0, 64], &[0; 64], m)));
    // And by its own configuration.
    dev.sh("ip addr add 10.120.1.9/24 dev eth0");
    assert!(!dev.sh("ping -c1 -W0.2 -I 10.120.1.9 10.120.1.2 || true").contains("1 received"));
    dev.sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up");
    assert!(!dev.sh("ping -c1 -W0.2 10.120.1.2 || true").contains("1 received"));
}

#[test]
fn a_port_that_the_rules_do_not_know_is_closed() {
    let world = World::new(&[("pro", &["pro-dev"])]);
    let stranger = Ns::new();
    let port = FwPort {
        ifname: port_name("late"),
        machine: "late".into(),
        ip: [10, 120, 1, 9].into(),
        ip6: None,
        mac: mac_for("late"),
        egress: None,
        rates: Rates::default(),
    };
    world.attach(&world.rules.domains[0], &port, &stranger);
    assert_eq!(tcp(&stranger, world.ns("pro-dev"), at(world.ip("pro-dev"), 80)), None);
    // It is let in without replacing the tables, and taken out again.
    let mut with = world.rules.clone();
    with.domains[0].ports.push(port.clone());
    let run = world.run_dir.path();
    world.host.run(|| firewall::add_port(run, &with, &port.ifname)).unwrap();
    assert!(world.host.run(|| firewall::is_installed(run, &with)).unwrap());
    assert!(!world.is_installed());
    // Its kernel would ask again only a second after the question that was dropped.
    stranger.sh("ip neigh flush all; ip neigh del 10.120.1.1 dev eth0 2>/dev/null || true");
    assert!(tcp(&stranger, world.ns("pro-dev"), at(world.ip("pro-dev"), 80)).is_some());
    assert_eq!(tcp(&stranger, &world.outside, at(OUTSIDE, 80)), Some(HOST_OUTSIDE));
    world.host.run(|| firewall::add_port(run, &with, &port.ifname)).unwrap();
    world.host.run(|| firewall::remove_port(run, &with, &port.ifname)).unwrap();
    assert!(world.is_installed());
    // Rules that were never installed are not taken for standing because a port was added to them.
    let mut more = with.clone();
    more.rules.push(rule(domain("pro"), Side::Host, &[22], None));
    world.host.run(|| firewall::add_port(run, &more, &port.ifname)).unwrap();
    assert!(!world.host.run(|| firewall::is_installed(run, &more)).unwrap());
    world.host.run(|| firewall::remove_port(run, &with, &port.ifname)).unwrap();
    world.host.run(|| firewall::remove_port(run, &with, &port.ifname)).unwrap();
    world.install();
    assert!(world.is_installed());
    // Nor are edited ones.
    world.host.sh("nft insert rule inet ilot forward accept");
    world.host.run(|| firewall::add_port(run, &with, &port.ifname)).unwrap();
    assert!(!world.host.run(|| firewall::is_installed(run, &with)).unwrap());
    world.install();
    assert_eq!(tcp(&stranger, world.ns("pro-dev"), at(world.ip("pro-dev"), 81)), None);
}

#[test]
fn what_stands_is_known() {
    let world = two_domains();
    let host = &world.host;
    assert!(world.is_installed());
    // Others come and go.
    host.sh("nft add table inet theirs; nft add chain inet theirs x; nft add rule inet theirs x drop");
    assert!(world.is_installed());
    let theirs = host.sh("nft list table inet theirs");
    // Our counters count.
    let _ = tcp(world.ns("pro-dev"), world.ns("desk"), at(world.ip("desk"), 80));
    assert!(host.sh("nft list counters table inet ilot").contains("packets 1"));
    host.sh("nft add table inet theirs2");
    assert!(world.is_installed());
    for edit in [
        "nft insert rule inet ilot forward accept",
        "nft flush chain inet ilot between",
        "nft delete rule inet ilot input handle $(nft -a list chain inet ilot input | sed -n 's/.*handle //p' | tail -1)",
        "nft delete element inet ilot bridges '{ il-pro }'",
        "nft add element inet ilot same '{ il-pro . il-perso }'",
        "nft flush set bridge ilot addresses",
        "nft add chain inet ilot forward '{ policy drop; }'",
        "nft delete table bridge ilot",
        "nft delete table inet ilot",
        "nft flush ruleset",
    ] {
        host.sh(edit);
        assert!(!world.is_installed(), "notices `{edit}`");
        world.install();
        assert!(world.is_installed());
        if edit != "nft flush ruleset" {
            assert_eq!(host.sh("nft list table inet theirs"), theirs, "after `{edit}`");
        }
    }
    let mut other = world.rules.clone();
    other.rules.push(rule(domain("pro"), domain("perso"), &[80], None));
    assert!(!host.run(|| firewall::is_installed(world.run_dir.path(), &other)).unwrap());
    assert!(host.run(|| firewall::remove(world.run_dir.path())).unwrap());
    assert!(!host.run(|| firewall::remove(world.run_dir.path())).unwrap());
    assert!(!world.is_installed());
    assert!(!host.sh("nft list tables").contains("ilot"));
}

#[test]
fn there_is_no_moment_without_rules() {
    let world = two_domains();
    let (dev, desk) = (world.ns("pro-dev"), world.ns("desk"));
    let server = desk.run(|| std::net::UdpSocket::bind("0.0.0.0:5000")).unwrap();
    server.set_nonblocking(true).unwrap();
    let client = dev.run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let address = at(world.ip("desk"), 5000);
    let mut sent = 0u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                world.install();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = client.send_to(b"x", address);
            sent += 1;
        }
    });
    assert!(server.recv(&mut [0; 8]).is_err(), "one of {sent} datagrams slipped through");
    assert!(sent > 1000, "{sent}");
}

#[test]
fn connections_live_as_long_as_they_are_allowed() {
    use std::io::{Read, Write};
    let mut world = two_domains();
    world.rules.rules = vec![rule(domain("pro"), domain("perso"), &[80], Some(Protocol::Tcp))];
    world.install();
    let listener = world.ns("desk").run(|| std::net::TcpListener::bind("0.0.0.0:80")).unwrap();
    let address = at(world.ip("desk"), 80);
    let mut client = world.ns("pro-dev").run(|| std::net::TcpStream::connect(address)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let others = world.outside.run(|| std::net::TcpListener::bind((OUTSIDE, 80))).unwrap();
    let mut outwards = world.ns("pro-dev").run(|| std::net::TcpStream::connect(at(OUTSIDE, 80))).unwrap();
    let (mut outside, _) = others.accept().unwrap();
    world.install();
    for (from, to) in [(&mut client, &mut server), (&mut outwards, &mut outside)] {
        to.set_read_timeout(Some(common::LONG)).unwrap();
        from.write_all(b"a").unwrap();
        to.read_exact(&mut [0]).unwrap();
    }
    // One that is no longer allowed ends at once, in both directions; the other one goes on.
    world.rules.rules.clear();
    world.install();
    for (from, to) in [(&mut client, &mut server), (&mut outwards, &mut outside)] {
        to.set_read_timeout(Some(common::SHORT)).unwrap();
        from.write_all(b"b").unwrap();
        to.write_all(b"c").unwrap();
        from.set_read_timeout(Some(common::SHORT)).unwrap();
    }
    assert!(server.read_exact(&mut [0]).is_err());
    assert!(client.read_exact(&mut [0]).is_err());
    outside.read_exact(&mut [0]).unwrap();
    outwards.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_class_room_is_installed_quickly() {
    let host = Ns::new();
    let run_dir = tempfile::tempdir().unwrap();
    let rules = many(31, 2, 0);
    let timed = |what: &str, f: &(dyn Fn() + Sync)| {
        let start = Instant::now();
        host.run(f);
        println!("{what}: {:?}", start.elapsed());
        start.elapsed()
    };
    timed("install, 31 domains, 62 ports", &|| firewall::install(run_dir.path(), &rules).unwrap());
    timed("install again", &|| firewall::install(run_dir.path(), &rules).unwrap());
    timed("is_installed", &|| assert!(firewall::is_installed(run_dir.path(), &rules).unwrap()));
    host.sh("nft add table inet theirs");
    timed("is_installed after a foreign change", &|| {
        assert!(firewall::is_installed(run_dir.path(), &rules).unwrap());
    });
    let rules = many(200, 5, 2000);
    let big = timed("install, 200 domains, 1000 ports, 2000 policies", &|| {
        firewall::install(run_dir.path(), &rules).unwrap();
    });
    timed("is_installed", &|| assert!(firewall::is_installed(run_dir.path(), &rules).unwrap()));
    assert!(big.as_secs_f64() < 5.0, "the promise is 1 s on an idle machine");
}

/// How many seconds a TCP connection takes to carry bytes from `from` to `to`.
fn carry(from: &Ns, to: &Ns, address: SocketAddr, bytes: usize) -> f64 {
    use std::io::{Read, Write};
    let listener = to.run(|| std::net::TcpListener::bind(address)).unwrap();
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut buffer, mut all) = (vec![0; 65_536], 0);
            let start = Instant::now();
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                all += length;
            }
            assert_eq!(all, bytes);
            start.elapsed().as_secs_f64()
        });
        let mut stream = from.run(|| std::net::TcpStream::connect(address)).unwrap();
        stream.write_all(&vec![0; bytes]).unwrap();
        drop(stream);
        sink.join().unwrap()
    })
}

#[test]
fn rates_bound_what_a_machine_sends_and_receives() {
    let mut world = two_domains();
    let limit = 4_000_000;
    world.rules.domains[0].ports[0].rates = Rates { egress: Some(limit), ingress: None };
    world.rules.domains[1].ports[0].rates = Rates { egress: None, ingress: Some(limit) };
    world.install();
    assert!(world.is_installed());
    let (dev, web, desk, game) = (world.ns("pro-dev"), world.ns("pro-web"), world.ns("desk"), world.ns("game"));
    let bytes = 10_000_000;
    let out = carry(dev, web, at(world.ip("pro-web"), 80), bytes);
    let back = carry(web, dev, at(world.ip("pro-dev"), 80), bytes);
    let into = carry(game, desk, at(world.ip("desk"), 80), bytes);
    println!("10 MB at 4 MB/s: out {out:.1} s, in {into:.1} s; not limited {back:.3} s");
    // One second's worth and the burst go at once.
    let least = (bytes as f64 - limit as f64 * 1.1) / limit as f64;
    for took in [out, into] {
        assert!(took > least * 0.9 && took < least * 10.0, "{took} s");
    }
    assert!(back < least, "{back} s");
}
