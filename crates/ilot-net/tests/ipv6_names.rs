//! The name service and egress by name over IPv6.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{HOST_OUTSIDE6, LONG, Ns, OUTSIDE, OUTSIDE6, World, tcp_any};
use ilot_net::firewall::{Egress, EgressEntry, EgressTo, Ports, Protocol};
use ilot_net::names::{self, NamesConfig, Others};
use ipnet::Ipv4Net;

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const REFUSED: u8 = 5;
/// Another address of the outside's.
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

fn use_built_program() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_ilot-names"));
        // SAFETY: every test calls this first; nothing reads the environment before.
        unsafe { std::env::set_var("ILOT_LIBEXEC", program.parent().unwrap()) };
    });
}

/// Stops the services of a world even when a test fails.
struct Services(std::path::PathBuf);

impl Drop for Services {
    fn drop(&mut self) {
        for service in names::running(&self.0).unwrap_or_default() {
            let _ = names::stop(&self.0, &service.domain);
        }
    }
}

fn world() -> (World, Services) {
    use_built_program();
    let world = World::new(&[("pro", &["dev", "web"]), ("perso", &["desk"])]);
    world.outside.sh(&format!("ip addr add {OTHER}/64 dev up1 nodad"));
    let services = Services(world.run_dir.path().to_owned());
    (world, services)
}

/// Tells filter and name service of domain `pro` what the world's rules say.
fn apply(world: &World) {
    world.install();
    let domain = &world.rules.domains[0];
    let mut config = NamesConfig::new("pro", Ipv4Net::new(domain.gateway, 24).unwrap());
    config.bridge.clone_from(&domain.bridge);
    config.listen6 = domain.gateway6;
    config.hosts = domain.ports.iter().map(|p| (p.machine.clone(), p.ip)).collect();
    config.hosts6 = domain.ports.iter().filter_map(|p| Some((p.machine.clone(), p.ip6?))).collect();
    config.others = Others::of(&domain.egress);
    config.own = domain.ports.iter().filter_map(|p| Some((p.ip, Others::of(p.egress.as_ref()?)))).collect();
    config.upstreams = vec![SocketAddr::new(OUTSIDE.into(), 53)];
    world.host.run(|| names::ensure(world.run_dir.path(), &config)).unwrap();
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// The answer's code, how many records it has, and all of it.
fn ask(ns: &Ns, server: IpAddr, name: &str, kind: u16) -> (u8, u8, Vec<u8>) {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = ns.run(|| UdpSocket::bind(any)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.send_to(&query(name, kind), (server, 53)).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{name} from {server}: {e}"));
    (buffer[3] & 15, buffer[7], buffer[..length].to_vec())
}

fn code(ns: &Ns, server: Ipv6Addr, name: &str, kind: u16) -> (u8, u8) {
    let (code, records, _) = ask(ns, server.into(), name, kind);
    (code, records)
}

/// Answers questions for AAAA while `f` runs: names that begin with `b` are [`OTHER`], all others [`OUTSIDE6`]; an address of
/// IPv4 comes along that nobody asked for.
fn with_upstream<T>(world: &World, f: impl FnOnce() -> T) -> T {
    let socket = world.outside.run(|| UdpSocket::bind((OUTSIDE, 53))).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let mut buffer = [0; 512];
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let mut answer = buffer[..length].to_vec();
                answer[2] |= 0x80;
                answer[7] = 2;
                let address = if answer[13] == b'b' { OTHER } else { OUTSIDE6 };
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(OUTSIDE.octets());
                answer.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
                answer.extend(address.octets());
                socket.send_to(&answer, from).unwrap();
            }
        });
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&done);
        f()
    })
}

fn reaches(world: &World, machine: &str, address: impl Into<IpAddr>, port: u16) -> bool {
    tcp_any(world.ns(machine), &world.outside, SocketAddr::new(address.into(), port)).is_some()
}

#[test]
fn machines_find_each_other() {
    let (world, _services) = world();
    apply(&world);
    let dev = world.ns("dev");
    let web = world.ip6("web");
    for server in [world.gateway("pro").into(), IpAddr::from(world.gateway6("pro"))] {
        for name in ["web", "web.pro", "web.pro.ilot"] {
            let (code, records, answer) = ask(dev, server, name, AAAA);
            assert_eq!((code, records), (0, 1), "{name}");
            assert!(answer.ends_with(&web.octets()), "{name}");
            assert!(ask(dev, server, name, A).2.ends_with(&world.ip("web").octets()), "{name}");
        }
        let nibbles: Vec<String> = format!("{:032x}", u128::from(web)).chars().rev().map(String::from).collect();
        let (code, records, answer) = ask(dev, server, &format!("{}.ip6.arpa", nibbles.join(".")), PTR);
        assert_eq!((code, records), (0, 1));
        assert!(answer.ends_with(b"\x03web\x03pro\x04ilot\0"));
        assert_eq!(ask(dev, server, "desk", AAAA).0, 3);
    }
    // Over TCP, several on one connection.
    let mut stream = dev.run(|| TcpStream::connect((world.gateway6("pro"), 53))).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    for kind in [AAAA, A] {
        let asked = query("web", kind);
        stream.write_all(&[&(asked.len() as u16).to_be_bytes()[..], &asked].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!((answer[3] & 15, answer[7]), (0, 1));
    }
    // The C library's.
    let resolv = world.run_dir.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\nsearch pro.ilot\n", world.gateway6("pro"))).unwrap();
    let script = format!("mount --bind {} /etc/resolv.conf; getent ahosts web; getent hosts {web}", resolv.display());
    let found = dev.sh(&format!("unshare -m sh -ec '{script}'"));
    assert!(found.contains(&world.ip("web").to_string()), "{found}");
    assert!(found.contains(&web.to_string()) && found.contains("web.pro.ilot"), "{found}");
}

#[test]
fn what_was_answered_is_open() {
    let (mut world, _services) = world();
    let entry = |name: &str, ports: &[u16], protocol| {
        let ports = if ports.is_empty() { Ports::All } else { Ports::List(ports.to_vec()) };
        EgressEntry { to: EgressTo::Name(name.into()), ports, protocol }
    };
    world.rules.domains[0].egress =
        Egress::List(vec![entry("a.example.org", &[443], Some(Protocol::Tcp)), entry("*.example.net", &[], None)]);
    world.rules.domains[0].ports[1].egress = Some(Egress::List(vec![entry("c.example.org", &[80], None)]));
    apply(&world);
    let (dev, web, gateway) = (world.ns("dev"), world.ns("web"), world.gateway6("pro"));
    assert!(!reaches(&world, "dev", OUTSIDE6, 443), "nobody looked it up");
    with_upstream(&world, || {
        assert_eq!(code(dev, gateway, "a.example.com", AAAA), (REFUSED, 0));
        assert_eq!(code(dev, gateway, "a.example.org", AAAA), (0, 2));
        assert_eq!(code(web, gateway, "a.example.org", AAAA), (REFUSED, 0));
    });
    assert!(reaches(&world, "dev", OUTSIDE6, 443));
    assert!(!reaches(&world, "dev", OUTSIDE6, 80) && !reaches(&world, "dev", OTHER, 443));
    assert!(!reaches(&world, "dev", OUTSIDE, 443), "an address of the other version was not asked for");
    assert!(!reaches(&world, "web", OUTSIDE6, 443), "its own list counts");
    // A machine's own list is opened to its IPv6 address, over whichever version it asked.
    with_upstream(&world, || {
        assert_eq!(ask(web, world.gateway("pro").into(), "c.example.org", AAAA).0, 0);
        assert_eq!(code(dev, gateway, "b.example.net", AAAA), (0, 2));
    });
    assert!(reaches(&world, "web", OUTSIDE6, 80) && !reaches(&world, "dev", OUTSIDE6, 80));
    assert_eq!(
        tcp_any(dev, &world.outside, SocketAddr::new(OTHER.into(), 1234)),
        Some(HOST_OUTSIDE6.into()),
        "a name without ports"
    );
    assert!(world.is_installed(), "what is open by name is no edit of the rules");
    // New rules keep what their lists still have.
    world.rules.domains[0].egress = Egress::List(vec![entry("*.example.net", &[], None)]);
    apply(&world);
    assert!(!reaches(&world, "dev", OUTSIDE6, 443));
    assert!(reaches(&world, "dev", OTHER, 80) && reaches(&world, "web", OUTSIDE6, 80));
    // A domain without IPv6 is told no address of it, as before.
    let domain = &mut world.rules.domains[0];
    (domain.subnet6, domain.gateway6) = (None, None);
    domain.ports.iter_mut().for_each(|port| port.ip6 = None);
    apply(&world);
    with_upstream(&world, || {
        assert_eq!(ask(world.ns("dev"), world.gateway("pro").into(), "b.example.net", AAAA).1, 0);
    });
}
