//! Egress by name: what the name service answers is open, nothing else is, and only for its time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, Ns, OUTSIDE, World, tcp, udp};
use ilot_net::firewall::{Egress, EgressEntry, EgressTo, Ports, Protocol};
use ilot_net::names::{self, NamesConfig, Others};
use ipnet::Ipv4Net;

const REFUSED: u8 = 5;
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);

fn use_built_program() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_ilot-names"));
        // SAFETY: every test calls this first; nothing reads the environment before.
        unsafe { std::env::set_var("ILOT_LIBEXEC", program.parent().unwrap()) };
    });
}

struct Services(std::path::PathBuf);

impl Drop for Services {
    fn drop(&mut self) {
        for service in names::running(&self.0).unwrap_or_default() {
            let _ = names::stop(&self.0, &service.domain);
        }
    }
}

fn name(text: &str, ports: &[u16], protocol: Option<Protocol>) -> EgressEntry {
    let ports = if ports.is_empty() { Ports::All } else { Ports::List(ports.to_vec()) };
    EgressEntry { to: EgressTo::Name(text.into()), ports, protocol }
}

/// Tells filter and name service of domain `pro` what the world's rules say.
fn apply(world: &World) {
    world.install();
    let domain = &world.rules.domains[0];
    let mut config = NamesConfig::new("pro", Ipv4Net::new(domain.gateway, 24).unwrap());
    config.bridge.clone_from(&domain.bridge);
    config.hosts = domain.ports.iter().map(|p| (p.machine.clone(), p.ip)).collect();
    config.others = Others::of(&domain.egress);
    let own = domain.ports.iter().filter_map(|p| Some((p.ip, Others::of(p.egress.as_ref()?))));
    config.own = own.collect();
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

/// The answer's code and how many records it has.
fn ask(ns: &Ns, server: Ipv4Addr, name: &str, kind: u16) -> (u8, u8) {
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.send_to(&query(name, kind), (server, 53)).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(length >= 12);
    (buffer[3] & 15, buffer[7])
}

/// Answers every question with one address, good for `ttl` seconds, while `f` runs: names that begin with `b` are
/// [`OTHER`], all others [`OUTSIDE`].
fn with_upstream<T>(world: &World, ttl: u8, f: impl FnOnce() -> T) -> T {
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
                answer[7] = 1;
                let address = if answer[13] == b'b' { OTHER } else { OUTSIDE };
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4]);
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

fn world() -> World {
    use_built_program();
    let world = World::new(&[("pro", &["dev", "web"]), ("perso", &["desk"])]);
    world.outside.sh(&format!("ip addr add {OTHER}/24 dev up1"));
    world
}

fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

#[test]
fn what_the_name_service_answered_is_open() {
    let mut world = world();
    world.rules.domains[0].egress =
        Egress::List(vec![name("a.example.org", &[443], Some(Protocol::Tcp)), name("*.example.net", &[], None)]);
    apply(&world);
    let _services = Services(world.run_dir.path().to_owned());
    let (dev, web, gateway) = (world.ns("dev"), world.ns("web"), world.gateway("pro"));
    let outside = &world.outside;
    assert_eq!(tcp(dev, outside, at(OUTSIDE, 443)), None, "nobody looked it up");
    with_upstream(&world, 60, || {
        assert_eq!(ask(dev, gateway, "a.example.com", 1), (REFUSED, 0));
        assert_eq!(ask(dev, gateway, "example.net", 1), (REFUSED, 0));
        assert_eq!(ask(dev, gateway, "a.example.org", 28), (0, 0), "no IPv6 addresses");
        assert_eq!(tcp(dev, outside, at(OUTSIDE, 443)), None);
        assert_eq!(ask(dev, gateway, "A.Example.ORG", 1), (0, 1));
    });
    // It is open when the answer is there, for the whole domain, at the port of the list.
    assert!(tcp(dev, outside, at(OUTSIDE, 443)).is_some());
    assert!(tcp(web, outside, at(OUTSIDE, 443)).is_some());
    assert_eq!(tcp(dev, outside, at(OUTSIDE, 80)), None);
    assert_eq!(udp(dev, outside, at(OUTSIDE, 443)), None);
    assert_eq!(tcp(dev, outside, at(OTHER, 443)), None);
    with_upstream(&world, 60, || assert_eq!(ask(web, gateway, "b.example.net", 1), (0, 1)));
    assert!(tcp(web, outside, at(OTHER, 80)).is_some() && tcp(dev, outside, at(OTHER, 9)).is_some());
    assert!(world.is_installed(), "what is open by name is no edit of the rules");

    // New rules leave it open as long as the name stays in the list.
    world.rules.domains[1].egress = Egress::None;
    apply(&world);
    assert!(tcp(world.ns("dev"), &world.outside, at(OUTSIDE, 443)).is_some());
    world.rules.domains[0].egress = Egress::List(vec![name("*.example.net", &[], None)]);
    apply(&world);
    assert_eq!(tcp(world.ns("dev"), &world.outside, at(OUTSIDE, 443)), None);
    assert!(tcp(world.ns("web"), &world.outside, at(OTHER, 80)).is_some());
    // The service was told of the new list.
    with_upstream(&world, 60, || {
        assert_eq!(ask(world.ns("dev"), world.gateway("pro"), "a.example.org", 1), (REFUSED, 0));
        assert_eq!(ask(world.ns("dev"), world.gateway("pro"), "a.example.net", 1), (0, 1));
    });
    assert!(tcp(world.ns("dev"), &world.outside, at(OUTSIDE, 25)).is_some());

    let refused = names::refusals(world.run_dir.path(), "pro").unwrap();
    let list: Vec<_> = refused.iter().map(|r| (r.name.as_str(), r.kind.as_str(), r.client)).collect();
    let dev = world.ip("dev");
    assert_eq!(list, [("a.example.com", "A", dev), ("example.net", "A", dev), ("a.example.org", "A", dev)]);
}

#[test]
fn it_closes_when_its_time_is_over() {
    let mut world = world();
    world.rules.domains[0].egress = Egress::List(vec![name("a.example.org", &[80], None)]);
    apply(&world);
    let _services = Services(world.run_dir.path().to_owned());
    let (dev, gateway) = (world.ns("dev"), world.gateway("pro"));
    let left = || {
        let text = world.host.sh("nft list set inet ilot egress_name_ports");
        text.matches("expires").count()
    };
    with_upstream(&world, 1, || assert_eq!(ask(dev, gateway, "a.example.org", 1), (0, 1)));
    assert!(tcp(dev, &world.outside, at(OUTSIDE, 80)).is_some());
    assert_eq!(left(), 2);
    // Asked again before its end, it stays for longer; the kernel counts seconds, so does this.
    with_upstream(&world, 2, || assert_eq!(ask(dev, gateway, "a.example.org", 1), (0, 1)));
    assert_eq!(left(), 2);
    let deadline = Instant::now() + Duration::from_secs(20);
    while left() > 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(tcp(dev, &world.outside, at(OUTSIDE, 80)), None);
}

#[test]
fn a_machine_may_have_a_list_of_its_own() {
    let mut world = world();
    world.rules.domains[0].egress = Egress::None;
    world.rules.domains[0].ports[0].egress = Some(Egress::List(vec![name("a.example.org", &[443], None)]));
    world.rules.domains[1].ports[0].egress =
        Some(Egress::nets(vec![("203.0.113.2/32".parse().unwrap(), Ports::List(vec![80]))]));
    apply(&world);
    let _services = Services(world.run_dir.path().to_owned());
    let (dev, web, desk, gateway) = (world.ns("dev"), world.ns("web"), world.ns("desk"), world.gateway("pro"));
    with_upstream(&world, 60, || {
        assert_eq!(ask(web, gateway, "a.example.org", 1), (REFUSED, 0));
        assert_eq!(ask(dev, gateway, "a.example.org", 1), (0, 1));
    });
    assert!(tcp(dev, &world.outside, at(OUTSIDE, 443)).is_some());
    assert_eq!(tcp(web, &world.outside, at(OUTSIDE, 443)), None);
    assert!(tcp(desk, &world.outside, at(OUTSIDE, 80)).is_some());
    assert_eq!(tcp(desk, &world.outside, at(OUTSIDE, 443)), None, "its own list, not its domain's `all`");
}

/// The half with the right to open has that right alone, and both halves go together.
#[test]
fn the_privileged_half() {
    let mut world = world();
    world.rules.domains[0].egress = Egress::List(vec![name("a.example.org", &[], None)]);
    apply(&world);
    let _services = Services(world.run_dir.path().to_owned());
    let service = names::running(world.run_dir.path()).unwrap()[0].pid;
    let children = || std::fs::read_to_string(format!("/proc/{service}/task/{service}/children")).unwrap_or_default();
    let opener: i32 = children().trim().parse().expect("one child");
    let status = std::fs::read_to_string(format!("/proc/{opener}/status")).unwrap();
    let line = |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
    assert_eq!(line("Uid:").split_whitespace().nth(1), Some("65534"));
    for set in ["CapEff:", "CapPrm:"] {
        assert!(line(set).ends_with("0000000000001000"), "CAP_NET_ADMIN alone: {}", line(set));
    }
    assert!(line("NoNewPrivs:").ends_with('1') && line("Seccomp:").ends_with('2'), "{status}");
    let descriptors = std::fs::read_dir(format!("/proc/{opener}/fd")).unwrap().count();
    assert_eq!(descriptors, 5, "the standard three, its socket to the service, its socket to the kernel");
    let service_status = std::fs::read_to_string(format!("/proc/{service}/status")).unwrap();
    assert!(service_status.contains("Seccomp:\t2"));
    // Without the domain's list of names there is no such half.
    world.rules.domains[0].egress = Egress::All;
    apply(&world);
    let gone = |pid: i32| {
        let deadline = Instant::now() + LONG;
        while std::path::Path::new(&format!("/proc/{pid}/fd")).read_dir().is_ok_and(|d| d.count() > 0) {
            assert!(Instant::now() < deadline, "{pid} stays");
            std::thread::yield_now();
        }
    };
    gone(opener);
    let service = names::running(world.run_dir.path()).unwrap()[0].pid;
    assert_eq!(std::fs::read_to_string(format!("/proc/{service}/task/{service}/children")).unwrap(), "");
}
