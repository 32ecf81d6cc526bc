//! What the kernel lets through is what the model says, for random rules: every pair, inside and outside of the ports,
//! both protocols, by real connections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use common::{HOST_OUTSIDE, HOST_OUTSIDE6, Ns, OUTSIDE, OUTSIDE6, World};
use ilot_net::firewall::{Egress, Family, FwRule, Packet, Party, Ports, Protocol, Ruleset, Side, verdict};
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const PORTS: [u16; 3] = [80, 443, 5000];
const DOMAINS: [(&str, &[&str]); 3] = [("a", &["a1", "a2"]), ("b", &["b1", "b2"]), ("c", &["c1"])];

fn side() -> impl Strategy<Value = Side> {
    let names = DOMAINS.iter().flat_map(|(d, ms)| {
        let machines = ms.iter().map(|m| Side::Machine((*m).to_owned()));
        [Side::Domain((*d).to_owned())].into_iter().chain(machines)
    });
    let mut all: Vec<_> = names.collect();
    all.extend([Side::Host, Side::Internet, Side::Domain("gone".into()), Side::Machine("gone".into())]);
    proptest::sample::select(all)
}

fn ports() -> impl Strategy<Value = Ports> {
    let list = proptest::sample::subsequence(PORTS.to_vec(), 1..=PORTS.len()).prop_map(Ports::List);
    prop_oneof![1 => Just(Ports::All), 3 => list]
}

fn rule() -> impl Strategy<Value = FwRule> {
    let protocol = proptest::sample::select(vec![None, Some(Protocol::Tcp), Some(Protocol::Udp)]);
    (side(), side(), ports(), protocol, any::<bool>()).prop_map(|(from, to, ports, protocol, bidirectional)| FwRule {
        from,
        to,
        ports,
        protocol,
        bidirectional,
        comment: String::new(),
    })
}

fn egress() -> impl Strategy<Value = Egress> {
    let net = proptest::sample::select(vec![
        "203.0.113.0/24",
        "203.0.113.2/32",
        "198.51.100.0/24",
        "0.0.0.0/0",
        "2001:db8::/64",
        "2001:db8::2/128",
        "2001:db8:7::/48",
        "::/0",
    ]);
    let entry = (net.prop_map(|n| n.parse::<IpNet>().unwrap()), ports());
    let list = proptest::collection::vec(entry, 0..4).prop_map(Egress::nets);
    prop_oneof![Just(Egress::All), Just(Egress::None), list]
}

/// One end that connections are tried from and to.
struct End<'a> {
    party: Party,
    ns: &'a Ns,
    address: IpAddr,
}

/// One connection that is tried.
struct Try {
    from: usize,
    to: usize,
    protocol: Protocol,
    port: u16,
    socket: OwnedFd,
}

/// Which of all connections get through, as `(from, to, protocol, port)`.
fn reality(ends: &[End<'_>]) -> BTreeSet<(usize, usize, Protocol, u16)> {
    let mut listeners = Vec::new();
    let mut receivers = Vec::new();
    for (number, end) in ends.iter().enumerate() {
        for port in PORTS.into_iter().chain([81]) {
            let (tcp, udp) = end.ns.run(|| {
                (TcpListener::bind((end.address, port)).unwrap(), UdpSocket::bind((end.address, port)).unwrap())
            });
            udp.set_nonblocking(true).unwrap();
            listeners.push(tcp);
            receivers.push((number, port, udp));
        }
    }
    let mut tries = Vec::new();
    for (from, source) in ends.iter().enumerate() {
        source.ns.run(|| {
            let same = |target: &End<'_>| target.address.is_ipv4() == source.address.is_ipv4();
            for (to, target) in ends.iter().enumerate().filter(|(to, target)| *to != from && same(target)) {
                for port in PORTS.into_iter().chain([81]) {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        let socket = begin(protocol, SocketAddr::new(target.address, port), from);
                        tries.push(Try { from, to, protocol, port, socket });
                    }
                }
            }
        });
    }
    // Whatever is let through arrives at once here; what is dropped never does.
    let mut through = BTreeSet::new();
    let deadline = Instant::now() + Duration::from_millis(400);
    while Instant::now() < deadline {
        for (to, port, udp) in &receivers {
            let mut from = [0; 8];
            while udp.recv(&mut from).is_ok() {
                through.insert((usize::from(from[0]), *to, Protocol::Udp, *port));
            }
        }
        let waiting: Vec<_> = tries
            .iter()
            .filter(|t| t.protocol == Protocol::Tcp && !through.contains(&(t.from, t.to, t.protocol, t.port)))
            .collect();
        let mut fds: Vec<_> = waiting.iter().map(|t| PollFd::new(&t.socket, PollFlags::OUT)).collect();
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
        let done: Vec<_> = fds.iter().map(|fd| fd.revents() == PollFlags::OUT).collect();
        for (t, _) in waiting.iter().zip(done).filter(|(_, done)| *done) {
            through.insert((t.from, t.to, t.protocol, t.port));
        }
    }
    through
}

fn begin(protocol: Protocol, to: SocketAddr, from: usize) -> OwnedFd {
    let kind = if protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::NONBLOCK, None).unwrap();
    let connected = rustix::net::connect(&socket, &to);
    assert!(matches!(connected, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{connected:?}");
    if protocol == Protocol::Udp {
        rustix::io::write(&socket, &[from as u8]).unwrap();
    }
    socket
}

#[test]
fn the_kernel_does_what_the_model_says() {
    let mut world = World::new(&DOMAINS);
    world.outside.sh("ip addr add 198.51.100.7/32 dev lo; ip addr add 2001:db8:7::7/128 dev lo");
    let cases = std::env::var("ILOT_VERDICT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let mut runner = TestRunner::new(Config::default());
    let rules = (proptest::collection::vec(rule(), 0..8), proptest::collection::vec(egress(), DOMAINS.len()));
    let (mut compared, mut open) = (0, 0);
    for _ in 0..cases {
        let (rules, egress) = rules.new_tree(&mut runner).unwrap().current();
        for (domain, egress) in world.rules.domains.iter_mut().zip(egress) {
            domain.egress = egress;
        }
        world.rules.rules = rules;
        world.install();
        let (c, o) = compare(&world, &world.rules);
        compared += c;
        open += o;
    }
    println!("{cases} random rule sets, {compared} connections compared, {open} of them open");
    assert!(open > 0 && open < compared);
}

fn compare(world: &World, rules: &Ruleset) -> (usize, usize) {
    let mut ends = Vec::new();
    for family in Family::BOTH {
        for domain in &rules.domains {
            let address = domain.gateway_of(family).unwrap();
            ends.push(End { party: Party::Gateway(domain.name.clone()), ns: &world.host, address });
            for port in &domain.ports {
                ends.push(End {
                    party: Party::Machine(port.machine.clone()),
                    ns: world.ns(&port.machine),
                    address: port.ip_of(family).unwrap(),
                });
            }
        }
    }
    for address in [IpAddr::from(HOST_OUTSIDE), HOST_OUTSIDE6.into()] {
        ends.push(End { party: Party::Host, ns: &world.host, address });
    }
    for address in [OUTSIDE.into(), [198, 51, 100, 7].into(), OUTSIDE6.into(), "2001:db8:7::7".parse().unwrap()] {
        ends.push(End { party: Party::Outside(address), ns: &world.outside, address });
    }
    let through = reality(&ends);
    let (mut compared, mut open) = (0, 0);
    for (from, source) in ends.iter().enumerate() {
        for (to, target) in ends.iter().enumerate() {
            // Within one namespace nothing is filtered, and the host's way out does not pass the rules.
            if std::ptr::eq(source.ns, target.ns) || source.address.is_ipv4() != target.address.is_ipv4() {
                continue;
            }
            for port in PORTS.into_iter().chain([81]) {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let (from_party, to_party) = (source.party.clone(), target.party.clone());
                    let packet = Packet {
                        family: Family::of(target.address),
                        from: from_party,
                        to: to_party,
                        protocol: Some(protocol),
                        port,
                    };
                    let expected = verdict(rules, &packet);
                    let seen = through.contains(&(from, to, protocol, port));
                    assert_eq!(expected.accept, seen, "{packet:?}: {}\n{rules:#?}", expected.reason);
                    compared += 1;
                    open += usize::from(seen);
                }
            }
        }
    }
    (compared, open)
}
