//! Bridges and ports, against the kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::time::Instant;

use common::{Ns, bridge_spec, owner};
use ilot_net::{Error, Owner, PortSpec, mac_for, port_name};
use ipnet::Ipv4Net;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn spec(bridge: &str, machine: &str, address: &str) -> PortSpec {
    PortSpec {
        bridge: bridge.into(),
        owner: owner(),
        domain: "pro".into(),
        machine: machine.into(),
        host_if: port_name(machine),
        guest_if: "eth0".into(),
        mac: mac_for(machine),
        address: net(address),
        gateway: "10.120.3.254".parse().unwrap(),
        ipv6: None,
        mtu: 1500,
    }
}

#[test]
fn a_bridge_is_made_once_and_repaired() {
    let host = Ns::new();
    let spec = bridge_spec("pro", net("10.120.3.254/24"));
    assert!(host.run(|| ilot_net::ensure_bridge(&spec)).unwrap());
    assert!(!host.run(|| ilot_net::ensure_bridge(&spec)).unwrap(), "the second time changes nothing");
    let shown = host.sh("ip -d addr show il-pro");
    for wanted in ["UP", "10.120.3.254/24", "alias ilot:0a1b2c3d:test:pro", "nf_call_iptables 0", "mcast_snooping 0"] {
        assert!(shown.contains(wanted), "{wanted} in {shown}");
    }
    assert!(!shown.contains("inet6"), "{shown}");
    for drift in [
        "ip link set il-pro down",
        "ip addr del 10.120.3.254/24 dev il-pro",
        "ip addr add 10.9.9.9/24 dev il-pro",
        "ip link set il-pro address 02:00:00:00:00:09",
        "ip link set il-pro mtu 1400",
        "ip link set il-pro type bridge stp_state 1",
        "sysctl -qw net.ipv6.conf.il-pro.disable_ipv6=0",
        "sysctl -qw net.ipv4.conf.il-pro.arp_ignore=0",
    ] {
        host.sh(drift);
        assert!(host.run(|| ilot_net::ensure_bridge(&spec)).unwrap(), "repairs `{drift}`");
        assert!(!host.run(|| ilot_net::ensure_bridge(&spec)).unwrap(), "repaired `{drift}`");
    }
    let found = host.run(|| ilot_net::bridges("0a1b2c3d")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].gateway, Some(net("10.120.3.254/24")));
    assert_eq!((found[0].domain.as_str(), found[0].up), ("pro", true));
    assert!(host.run(|| ilot_net::bridges("ffffffff")).unwrap().is_empty());
    assert!(host.run(|| ilot_net::remove_bridge("il-pro")).unwrap());
    assert!(!host.run(|| ilot_net::remove_bridge("il-pro")).unwrap());
}

#[test]
fn what_others_made_stays() {
    let host = Ns::new();
    host.sh(
        "ip link add il-pro type bridge; ip link set il-pro alias theirs; ip link add iv-web type veth peer name x",
    );
    host.sh("ip link set iv-web alias theirs; ip link add il-dev type veth peer name y");
    for name in ["pro", "dev"] {
        let spec = bridge_spec(name, net("10.120.3.254/24"));
        let error = host.run(|| ilot_net::ensure_bridge(&spec)).unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(error.help().is_some());
    }
    assert!(host.run(|| ilot_net::remove_bridge("il-pro")).is_err());
    assert!(host.run(|| ilot_net::detach("iv-web")).is_err());
    // Another project's bridge of the same name is theirs too.
    let mut other = bridge_spec("lab", net("10.120.4.254/24"));
    host.run(|| ilot_net::ensure_bridge(&other)).unwrap();
    other.owner = Owner { project: "second".into(), ..owner() };
    let error = host.run(|| ilot_net::ensure_bridge(&other)).unwrap_err();
    assert!(error.to_string().contains("project `test`"), "{error}");
}

#[test]
fn a_port_is_made_once_and_repaired() {
    let host = Ns::new();
    let guest = Ns::new();
    host.run(|| ilot_net::ensure_bridge(&bridge_spec("pro", net("10.120.3.254/24")))).unwrap();
    let spec = spec("il-pro", "pro-dev", "10.120.3.1/24");
    let attach = || host.run(|| ilot_net::attach(&spec, guest.fd())).unwrap();
    assert!(attach());
    assert!(!attach());
    guest.sh("ping -c1 -W2 10.120.3.254");
    assert!(guest.sh("ip route").contains("default via 10.120.3.254 dev eth0"));
    assert!(guest.sh("ip link show eth0").contains(&mac_for("pro-dev").to_string()));
    assert!(!host.sh("ip addr show iv-pro-dev").contains("inet6"));
    for drift in ["ip link set iv-pro-dev nomaster", "ip link set iv-pro-dev down", "ip link set iv-pro-dev mtu 1400"] {
        host.sh(drift);
        assert!(attach(), "repairs `{drift}`");
        assert!(!attach(), "repaired `{drift}`");
    }
    for drift in ["ip link set eth0 down", "ip addr flush dev eth0", "ip route del default", "ip link set lo down"] {
        guest.sh(drift);
        assert!(attach(), "repairs `{drift}`");
        assert!(!attach(), "repaired `{drift}`");
    }
    guest.sh("ping -c1 -W2 10.120.3.254");
    // The machine starts again: another namespace, the same port.
    let again = Ns::new();
    assert!(host.run(|| ilot_net::attach(&spec, again.fd())).unwrap());
    again.sh("ping -c1 -W2 10.120.3.254");
    let found = host.run(|| ilot_net::ports("0a1b2c3d")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].machine, "pro-dev");
    assert_eq!(found[0].bridge.as_deref(), Some("il-pro"));
    assert!(host.run(|| ilot_net::detach("iv-pro-dev")).unwrap());
    assert!(!host.run(|| ilot_net::detach("iv-pro-dev")).unwrap());
    assert!(host.run(|| ilot_net::ports("0a1b2c3d")).unwrap().is_empty());
}

/// A process in a user and network namespace of its own, as a machine's is.
struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_machine_has_its_own_user_namespace() {
    let host = Ns::new();
    host.run(|| ilot_net::ensure_bridge(&bridge_spec("pro", net("10.120.3.254/24")))).unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["-Un", "sh", "-c", "echo ready; exec sleep 60"]).stdout(std::process::Stdio::piped());
    let mut machine = Sleeper(command.spawn().unwrap());
    let mut line = [0; 6];
    std::io::Read::read_exact(machine.0.stdout.as_mut().unwrap(), &mut line).unwrap();
    let netns = std::fs::File::open(format!("/proc/{}/ns/net", machine.0.id())).unwrap();
    let spec = spec("il-pro", "pro-dev", "10.120.3.1/24");
    let attach = || host.run(|| ilot_net::attach(&spec, std::os::fd::AsFd::as_fd(&netns))).unwrap();
    assert!(attach());
    assert!(!attach());
    host.sh("ping -c1 -W2 10.120.3.1");
}

#[test]
fn a_port_that_a_killed_command_left_unmarked_is_found() {
    let host = Ns::new();
    host.run(|| ilot_net::ensure_bridge(&bridge_spec("pro", net("10.120.3.254/24")))).unwrap();
    host.sh("ip link add iv-pro-dev type veth peer name x; ip link set iv-pro-dev master il-pro");
    let found = host.run(|| ilot_net::ports("0a1b2c3d")).unwrap();
    assert_eq!((found.len(), found[0].machine.as_str()), (1, ""));
    let guest = Ns::new();
    let spec = spec("il-pro", "pro-dev", "10.120.3.1/24");
    assert!(host.run(|| ilot_net::attach(&spec, guest.fd())).unwrap());
    guest.sh("ping -c1 -W2 10.120.3.254");
}

#[test]
fn the_host_is_read_and_forwarding_restored() {
    let host = Ns::new();
    host.sh("ip link add up0 type veth peer name up1; ip link set up0 mtu 1400; ip addr add 203.0.113.1/24 dev up0");
    host.sh("ip link set up0 up; ip link set up1 up; ip route add default via 203.0.113.2");
    host.run(|| ilot_net::ensure_bridge(&bridge_spec("pro", net("10.120.3.254/24")))).unwrap();
    let uplink = host.run(ilot_net::uplink).unwrap().unwrap();
    assert_eq!((uplink.name.as_str(), uplink.mtu), ("up0", 1400));
    let subnets = host.run(|| ilot_net::host_subnets("0a1b2c3d")).unwrap();
    assert_eq!(subnets, vec![("up0".to_owned(), net("203.0.113.0/24"))]);
    let run_dir = tempfile::tempdir().unwrap();
    let forwarding = || host.sh("sysctl -n net.ipv4.ip_forward").trim().to_owned();
    assert_eq!(forwarding(), "0");
    assert!(host.run(|| ilot_net::enable_forwarding(run_dir.path())).unwrap());
    assert!(!host.run(|| ilot_net::enable_forwarding(run_dir.path())).unwrap());
    assert_eq!(forwarding(), "1");
    assert!(host.run(|| ilot_net::disable_forwarding(run_dir.path())).unwrap());
    assert_eq!(forwarding(), "0");
    assert!(!host.run(|| ilot_net::disable_forwarding(run_dir.path())).unwrap());
}

/// Domains come up side by side. The kernel loses one of two writes of the switch while interfaces come and go: it says 1,
/// and no interface forwards.
#[test]
fn forwarding_is_on_for_every_interface_whoever_asked_at_once() {
    let host = Ns::new();
    let run_dir = tempfile::tempdir().unwrap();
    let forwarding = |interface: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (host, done) = (&host, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    host.sh(&format!("ip link add br{number} type bridge; ip link del br{number}"));
                }
            });
        }
        let rounds = (0..100).map(|_| {
            let start = std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        host.run(|| {
                            start.wait();
                            ilot_net::enable_forwarding(run_dir.path()).unwrap();
                        });
                    });
                }
            });
            let seen = host.run(|| ["all", "default", "lo"].map(forwarding));
            host.run(|| ilot_net::disable_forwarding(run_dir.path())).unwrap();
            (seen, host.run(|| ["all", "default", "lo"].map(forwarding)))
        });
        let rounds: Vec<_> = rounds.collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for (on, off) in rounds {
            assert_eq!((on, off), (["1"; 3].map(str::to_owned), ["0"; 3].map(str::to_owned)));
        }
    });
}

/// What a namespace can begin with: a switch that says 1 and never reached an interface, nor those to come.
#[test]
fn a_switch_without_effect_is_switched_again() {
    let host = Ns::new();
    host.sh("ip link add up0 type veth peer name up1; sysctl -qw net.ipv4.ip_forward=1");
    let forwarding =
        |interface: &str| host.sh(&format!("sysctl -n net.ipv4.conf.{interface}.forwarding")).trim().to_owned();
    let run_dir = tempfile::tempdir().unwrap();
    let enable = || host.run(|| ilot_net::enable_forwarding(run_dir.path())).unwrap();
    // One interface that somebody chose to leave out is no such case.
    host.sh("sysctl -qw net.ipv4.conf.up1.forwarding=0");
    assert!(!enable());
    assert_eq!((forwarding("up0"), forwarding("up1")), ("1".to_owned(), "0".to_owned()));
    host.sh("for i in default lo up0 up1; do sysctl -qw net.ipv4.conf.$i.forwarding=0; done");
    assert_eq!(host.sh("sysctl -n net.ipv4.ip_forward").trim(), "1");
    assert!(enable());
    for interface in ["default", "up0", "up1"] {
        assert_eq!(forwarding(interface), "1", "{interface}");
    }
    // A bridge of ours forwards whatever is said of interfaces to come.
    host.sh("sysctl -qw net.ipv4.conf.default.forwarding=0");
    host.run(|| ilot_net::ensure_bridge(&bridge_spec("pro", net("10.120.3.254/24")))).unwrap();
    assert_eq!(forwarding("il-pro"), "1");
}

#[test]
fn a_class_room_is_quick() {
    let host = Ns::new();
    let start = Instant::now();
    host.run(|| {
        for student in 1..=31u8 {
            let gateway = Ipv4Net::new([10, 140, student, 254].into(), 24).unwrap();
            ilot_net::ensure_bridge(&bridge_spec(&format!("s{student:02}"), gateway)).unwrap();
        }
    });
    let bridges = start.elapsed();
    let guests: Vec<Ns> = (0..61).map(|_| Ns::new()).collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (number, guest) in (0u8..).zip(&guests) {
            let host = &host;
            scope.spawn(move || {
                let student = number / 2 + 1;
                let mut spec = spec(
                    &format!("il-s{student:02}"),
                    &format!("s{student:02}-{number}"),
                    &format!("10.140.{student}.{}/24", number % 2 + 1),
                );
                spec.gateway = [10, 140, student, 254].into();
                host.run(|| ilot_net::attach(&spec, guest.fd())).unwrap();
            });
        }
    });
    let ports = start.elapsed();
    println!("31 bridges in {bridges:?}, 61 ports side by side in {ports:?} ({:?} each)", ports / 61);
    assert_eq!(host.run(|| ilot_net::ports("0a1b2c3d")).unwrap().len(), 61);
}
