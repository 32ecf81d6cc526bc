//! Network namespaces for tests: a host, an outside, machines. Nothing of it is seen from the real host, and all of it is
//! gone with the last descriptor.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::expect_used, reason = "a panic is the failure report; clippy only knows that of files with tests")]

pub mod frames;

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use ilot_net::firewall::{self, Egress, FwDomain, FwPort, FwRule, Ports, Protocol, Rates, Ruleset, Side};
use ilot_net::{BridgeSpec, Mac, Owner, PortSpec, bridge_name, mac_for, port_name};
use ipnet::{Ipv4Net, Ipv6Net};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// How long a connection that must work may take.
pub const LONG: Duration = Duration::from_secs(5);
/// How long to wait for what must not come.
pub const SHORT: Duration = Duration::from_millis(250);

/// A network namespace.
pub struct Ns(OwnedFd);

impl Ns {
    pub fn new() -> Self {
        let fd = std::thread::spawn(|| {
            // SAFETY: only the network namespace of this thread changes; no memory or descriptor table is involved.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare: tests run as root");
            File::open("/proc/thread-self/ns/net").expect("own namespace").into()
        });
        Self(fd.join().expect("thread"))
    }

    /// Runs `f` inside; sockets that it returns stay inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs a program inside and returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").args(["-ec", script]).output().expect("sh");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        })
    }
}

/// A host namespace with an uplink to an outside one.
pub struct World {
    pub host: Ns,
    pub outside: Ns,
    pub run_dir: tempfile::TempDir,
    pub machines: Vec<(String, Ns)>,
    pub rules: Ruleset,
}

pub const HOST_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const HOST_OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The IPv6 address beside an IPv4 address of a domain.
pub fn ipv6(ip: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = ip.octets();
    Ipv6Addr::new(0xfd69, 0x6c6f, 0x7400 | u16::from(a), u16::from_be_bytes([b, c]), 0, 0, 0, d.into())
}

pub fn net6(ip: Ipv6Addr) -> Ipv6Net {
    Ipv6Net::new(ip, 64).expect("net")
}

impl World {
    /// Domains with their machines, in subnets 10.120.1.0/24, 10.120.2.0/24, …; machines from .1 on; and IPv6.
    pub fn new(domains: &[(&str, &[&str])]) -> Self {
        Self::with_ipv6(domains, true)
    }

    /// The same, with IPv6 in the domains or without.
    pub fn with_ipv6(domains: &[(&str, &[&str])], on: bool) -> Self {
        let host = Ns::new();
        let outside = Ns::new();
        // The outside knows the way to the domains: only the filter keeps it out.
        let peer = outside.fd();
        let peer = std::os::fd::AsRawFd::as_raw_fd(&peer);
        host.sh(&format!(
            "ip link set lo up
             ip link add up0 type veth peer name up1 netns /proc/{}/fd/{peer}
             ip addr add {HOST_OUTSIDE}/24 dev up0
             ip link set up0 up
             ip route add default via {OUTSIDE}
             ip addr add {HOST_OUTSIDE6}/64 dev up0 nodad
             ip -6 route add default via {OUTSIDE6}",
            std::process::id()
        ));
        outside.sh(&format!(
            "ip link set lo up
             ip addr add {OUTSIDE}/24 dev up1
             ip link set up1 up
             ip route add 10.0.0.0/8 via {HOST_OUTSIDE}
             ip addr add {OUTSIDE6}/64 dev up1 nodad
             ip -6 route add fd69:6c6f:7400::/40 via {HOST_OUTSIDE6}"
        ));
        let run_dir = tempfile::tempdir().expect("run dir");
        let mut world = Self { host, outside, run_dir, machines: Vec::new(), rules: Ruleset::default() };
        for (number, (domain, machines)) in (1u8..).zip(domains) {
            let gateway: Ipv4Net = format!("10.120.{number}.254/24").parse().expect("net");
            let mut spec = bridge_spec(domain, gateway);
            spec.gateway6 = on.then(|| net6(ipv6(gateway.addr())));
            let ports = (1u8..).zip(*machines).map(|(host, machine)| FwPort {
                ifname: port_name(machine),
                machine: (*machine).to_owned(),
                ip: Ipv4Addr::new(10, 120, number, host),
                ip6: on.then(|| ipv6(Ipv4Addr::new(10, 120, number, host))),
                mac: mac_for(machine),
                egress: None,
                rates: Rates::default(),
            });
            world.host.run(|| ilot_net::ensure_bridge(&spec)).expect("bridge");
            world.rules.domains.push(FwDomain {
                name: (*domain).to_owned(),
                bridge: spec.name,
                subnet: gateway.trunc(),
                gateway: gateway.addr(),
                subnet6: spec.gateway6.map(|net| net.trunc()),
                gateway6: spec.gateway6.map(|net| net.addr()),
                egress: Egress::All,
                ports: ports.collect(),
            });
        }
        world.host.run(|| ilot_net::enable_forwarding(world.run_dir.path())).expect("forwarding");
        if on {
            world.host.run(|| ilot_net::enable_forwarding6(world.run_dir.path())).expect("forwarding of IPv6");
        }
        world.install();
        for domain in world.rules.domains.clone() {
            for port in &domain.ports {
                let ns = Ns::new();
                world.attach(&domain, port, &ns);
                world.machines.push((port.machine.clone(), ns));
            }
        }
        world.settle();
        world
    }

    pub fn attach(&self, domain: &FwDomain, port: &FwPort, ns: &Ns) {
        let spec = port_spec(domain, port);
        self.host.run(|| ilot_net::attach(&spec, ns.fd())).expect("attach");
    }

    pub fn install(&self) {
        self.host.run(|| firewall::install(self.run_dir.path(), &self.rules)).expect("install");
        self.settle();
    }

    /// As after every command: frames within domains pass from port to port.
    pub fn settle(&self) -> bool {
        self.host.run(|| ilot_net::shortcut::settle(&self.rules)).expect("settle")
    }

    pub fn is_installed(&self) -> bool {
        self.host.run(|| firewall::is_installed(self.run_dir.path(), &self.rules)).expect("is_installed")
    }

    pub fn ns(&self, machine: &str) -> &Ns {
        &self.machines.iter().find(|(name, _)| name == machine).expect("machine").1
    }

    pub fn ip(&self, machine: &str) -> Ipv4Addr {
        let mut ports = self.rules.domains.iter().flat_map(|d| &d.ports);
        ports.find(|p| p.machine == machine).expect("machine").ip
    }

    pub fn ip6(&self, machine: &str) -> Ipv6Addr {
        ipv6(self.ip(machine))
    }

    pub fn gateway6(&self, domain: &str) -> Ipv6Addr {
        ipv6(self.gateway(domain))
    }

    pub fn gateway(&self, domain: &str) -> Ipv4Addr {
        self.rules.domains.iter().find(|d| d.name == domain).expect("domain").gateway
    }
}

pub fn owner() -> Owner {
    Owner { store: "0a1b2c3d".into(), project: "test".into() }
}

pub fn bridge_spec(domain: &str, gateway: Ipv4Net) -> BridgeSpec {
    BridgeSpec { name: bridge_name(domain), owner: owner(), domain: domain.into(), gateway, gateway6: None, mtu: 1500 }
}

pub fn port_spec(domain: &FwDomain, port: &FwPort) -> PortSpec {
    PortSpec {
        bridge: domain.bridge.clone(),
        owner: owner(),
        domain: domain.name.clone(),
        machine: port.machine.clone(),
        host_if: port.ifname.clone(),
        guest_if: "eth0".into(),
        mac: port.mac,
        address: Ipv4Net::new(port.ip, 24).expect("net"),
        gateway: domain.gateway,
        ipv6: port.ip6.zip(domain.gateway6).map(|(ip, gateway)| (net6(ip), gateway)),
        mtu: 1500,
    }
}

/// Who the other side saw, if a connection from `from` to `to` carried a byte there and back.
pub fn tcp(from: &Ns, to: &Ns, address: SocketAddr) -> Option<Ipv4Addr> {
    ipv4_of(tcp_any(from, to, address))
}

fn ipv4_of(address: Option<IpAddr>) -> Option<Ipv4Addr> {
    match address {
        Some(IpAddr::V4(address)) => Some(address),
        _ => None,
    }
}

/// An address to listen at, and to begin from.
fn anywhere(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The same of either version of IP.
pub fn tcp_any(from: &Ns, to: &Ns, address: SocketAddr) -> Option<IpAddr> {
    let listener = to.run(|| TcpListener::bind((anywhere(address), address.port()))).expect("listen");
    listener.set_nonblocking(true).expect("nonblocking");
    let stream = from.run(|| TcpStream::connect_timeout(&address, SHORT)).ok()?;
    // The other end learns of it a moment later.
    let end = Instant::now() + LONG;
    let (mut other, seen) = loop {
        match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => std::thread::yield_now(),
            accepted => break accepted.expect("accept"),
        }
    };
    other.set_nonblocking(false).expect("blocking");
    exchange(stream, &mut other);
    Some(seen.ip())
}

fn exchange(mut stream: TcpStream, other: &mut TcpStream) {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    other.set_read_timeout(Some(LONG)).expect("timeout");
    let mut byte = [0];
    stream.write_all(b"?").expect("write");
    other.read_exact(&mut byte).expect("read");
    other.write_all(b"!").expect("write");
    stream.read_exact(&mut byte).expect("read");
    assert_eq!(&byte, b"!");
}

/// Who the other side saw, if a datagram from `from` reached `to` and the answer came back.
pub fn udp(from: &Ns, to: &Ns, address: SocketAddr) -> Option<Ipv4Addr> {
    ipv4_of(udp_any(from, to, address))
}

/// The same of either version of IP.
pub fn udp_any(from: &Ns, to: &Ns, address: SocketAddr) -> Option<IpAddr> {
    let server = to.run(|| UdpSocket::bind((anywhere(address), address.port()))).expect("bind");
    let client = from.run(|| UdpSocket::bind((anywhere(address), 0))).expect("bind");
    client.send_to(b"?", address).ok()?;
    server.set_read_timeout(Some(SHORT)).expect("timeout");
    let mut buffer = [0; 16];
    let (_, seen) = server.recv_from(&mut buffer).ok()?;
    server.send_to(b"!", seen).expect("answer");
    client.set_read_timeout(Some(LONG)).expect("timeout");
    client.recv_from(&mut buffer).expect("the answer of what arrived");
    Some(seen.ip())
}

pub fn mac(text: &str) -> Mac {
    text.parse().expect("mac")
}

pub fn rule(from: Side, to: Side, ports: &[u16], protocol: Option<Protocol>) -> FwRule {
    let ports = if ports.is_empty() { Ports::All } else { Ports::List(ports.to_vec()) };
    FwRule { from, to, ports, protocol, bidirectional: false, comment: "a \"test\"".into() }
}

/// Rules of many domains that are nowhere but in the rules, in 10.150.0.0/16 and on.
pub fn many(domains: u16, machines: u8, policies: u16) -> Ruleset {
    let name = |number: u16| format!("d{number:03}");
    let domain = |number: u16| {
        let gateway: Ipv4Net = format!("10.{}.{}.254/24", 150 + number / 250, number % 250).parse().expect("net");
        let [a, b, c, _] = gateway.addr().octets();
        let ports = (1..=machines).map(|host| {
            let machine = format!("{}-{host}", name(number));
            FwPort {
                ifname: port_name(&machine),
                mac: mac_for(&machine),
                egress: None,
                rates: Rates::default(),
                machine,
                ip: [a, b, c, host].into(),
                ip6: Some(ipv6([a, b, c, host].into())),
            }
        });
        FwDomain {
            name: name(number),
            bridge: bridge_spec(&name(number), gateway).name,
            subnet: gateway.trunc(),
            gateway: gateway.addr(),
            subnet6: Some(net6(ipv6(gateway.addr())).trunc()),
            gateway6: Some(ipv6(gateway.addr())),
            egress: Egress::All,
            ports: ports.collect(),
        }
    };
    let policy = |number: u16| {
        let mut rule = rule(
            Side::Domain(name(number % domains)),
            Side::Machine(format!("{}-1", name((number * 7 + 1) % domains))),
            &[80, 443, 1000 + number],
            Some(Protocol::Tcp),
        );
        rule.bidirectional = number.is_multiple_of(2);
        rule
    };
    Ruleset { domains: (0..domains).map(domain).collect(), rules: (0..policies).map(policy).collect() }
}
