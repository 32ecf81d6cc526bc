//! Frames within a domain pass from port to port, and only those that may pass at all.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use common::frames::{Tap, ethernet, ipv4_udp, send_frame};
use common::{LONG, Ns, World, tcp_any, udp_any};
use ilot_net::firewall::Rates;
use ilot_net::{mac_for, shortcut};

/// Counts what comes to the host's bridges of TCP and UDP, before `br_netfilter` takes it.
fn count(world: &World) {
    world.host.sh(
        "nft 'table bridge watch { chain arrived { type filter hook prerouting priority -200; policy accept; }; }'
         nft add rule bridge watch arrived ether type ip meta l4proto { tcp, udp } counter
         nft add rule bridge watch arrived ether type ip6 meta l4proto { tcp, udp } counter",
    );
}

/// How many were counted so far.
fn counted(world: &World) -> u64 {
    let json: serde_json::Value = serde_json::from_str(&world.host.sh("nft -j list table bridge watch")).unwrap();
    let rules = json["nftables"].as_array().unwrap().iter().filter_map(|entry| entry["rule"]["expr"].as_array());
    rules.flatten().filter_map(|expression| expression["counter"]["packets"].as_u64()).sum()
}

/// What came to the bridges while this was done.
fn arrived(world: &World, what: impl FnOnce()) -> u64 {
    let before = counted(world);
    what();
    counted(world) - before
}

/// A connection each way is more packets than that.
fn by_the_bridge(packets: u64) {
    assert!(packets > 8, "{packets} packets came to the bridge");
}

/// A connection and a datagram, of both versions of IP.
fn talk(world: &World, from: &Ns, to: (&str, &Ns)) {
    for ip in [world.ip(to.0).into(), world.ip6(to.0).into()] {
        // Neighbours that are looked for on a busy host take longer than one try.
        let end = Instant::now() + LONG;
        let works = |once: fn(&Ns, &Ns, SocketAddr) -> Option<IpAddr>| {
            (8080..)
                .take_while(|_| Instant::now() < end)
                .any(|port| once(from, to.1, SocketAddr::new(ip, port)).is_some())
        };
        assert!(works(tcp_any), "TCP to {ip}");
        assert!(works(udp_any), "UDP to {ip}");
    }
}

#[test]
fn frames_within_a_domain_pass_no_bridge() {
    let world = World::new(&[("pro", &["dev", "web"]), ("perso", &["desk"])]);
    count(&world);
    let pair = |from: &str, to: &str| arrived(&world, || talk(&world, world.ns(from), (to, world.ns(to))));
    assert_eq!(pair("dev", "web"), 0);
    assert_eq!(pair("web", "dev"), 0);
    assert!(!world.settle(), "nothing changed");
    assert!(world.host.run(shortcut::remove).unwrap());
    assert!(!world.host.run(shortcut::remove).unwrap());
    by_the_bridge(pair("dev", "web"));
    assert!(world.settle());
    assert_eq!(pair("dev", "web"), 0);
    // New rules bring it along, and what is removed takes it along.
    world.host.run(|| {
        shortcut::remove().unwrap();
        ilot_net::firewall::install(world.run_dir.path(), &world.rules).unwrap();
    });
    assert!(!world.settle(), "it came with the rules");
    assert_eq!(pair("web", "dev"), 0);
    assert!(world.host.run(|| ilot_net::firewall::remove(world.run_dir.path())).unwrap());
    assert!(!world.host.sh("nft list tables").contains("ilot"));
}

#[test]
fn a_machine_that_starts_again_is_reached_at_once() {
    let mut world = World::new(&[("pro", &["dev", "web", "db"])]);
    count(&world);
    let domain = world.rules.domains[0].clone();
    let port = domain.ports.iter().find(|port| port.machine == "web").unwrap().clone();
    for round in 0..3 {
        // Its namespace ends, and with it its port; or the port alone is removed first.
        if round == 1 {
            assert!(world.host.run(|| ilot_net::detach(&port.ifname)).unwrap());
        }
        let again = Ns::new();
        world.attach(&domain, &port, &again);
        world.machines.retain(|(name, _)| name != "web");
        world.machines.push(("web".to_owned(), again));
        let (dev, web) = (world.ns("dev"), world.ns("web"));
        talk(&world, dev, ("web", web));
        talk(&world, web, ("dev", dev));
        assert_eq!(arrived(&world, || talk(&world, dev, ("db", world.ns("db")))), 0, "the others are not disturbed");
        assert!(world.settle());
        assert_eq!(arrived(&world, || talk(&world, dev, ("web", web))), 0);
        assert_eq!(arrived(&world, || talk(&world, web, ("dev", dev))), 0);
    }
    // Whoever flushes all rules takes the shortcut too, and nothing stands in the way.
    world.host.sh("nft flush ruleset");
    talk(&world, world.ns("dev"), ("web", world.ns("web")));
}

#[test]
fn ports_with_a_rate_and_ports_that_come_later_take_the_bridge() {
    let mut world = World::new(&[("pro", &["dev", "web", "slow"])]);
    world.rules.domains[0].ports[2].rates = Rates { ingress: Some(10_000_000), egress: Some(10_000_000) };
    world.install();
    count(&world);
    let pair = |from: &str, to: &str| arrived(&world, || talk(&world, world.ns(from), (to, world.ns(to))));
    by_the_bridge(pair("dev", "slow"));
    by_the_bridge(pair("slow", "dev"));
    assert_eq!(pair("dev", "web"), 0);
}

#[test]
fn nothing_leaves_a_domain_by_a_hardware_address() {
    let world = World::new(&[("pro", &["dev", "web"]), ("perso", &["desk", "phone"])]);
    let (tap, other) = (Tap::new(world.ns("desk"), "eth0"), Tap::new(world.ns("web"), "eth0"));
    let udp = |mark: &[u8]| ipv4_udp(world.ip("dev").octets(), world.ip("desk").octets(), mark);
    let send = |to: &str, mark: &[u8]| {
        send_frame(world.ns("dev"), &ethernet(mac_for(to).0, mac_for("dev").0, &[8, 0], &udp(mark), mark));
    };
    send("desk", b"to-a-neighbour-domain");
    assert!(!tap.sees(b"to-a-neighbour-domain"));
    // The same bytes to a machine of its own domain arrive: it is the address of the port that counts.
    send("web", b"to-its-own-domain");
    assert!(other.sees(b"to-its-own-domain"));
}
