//! What passes between domains, by real connections.

use std::net::SocketAddr;

use ilot_tests::{Servers, World, in_netns_of, in_world, tcp_answers, udp_answers};

const PROJECT: &str = r#"
project_name: policies
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  red:
    subnet_id: 1
    machines:
      red-a: {}
      red-b: {}
  green:
    subnet_id: 2
    machines:
      green-a: {}
      green-b: {}
  blue:
    subnet_id: 3
    machines:
      blue-a: {}
network_policies:
  - {description: a domain to a domain, from: red, to: green, ports: [8080, 8081], protocol: tcp}
  - {description: a machine to a machine, from: blue-a, to: red-a, ports: [5000], protocol: udp}
  - {description: both ways, from: green-a, to: blue-a, ports: [6000], protocol: tcp, bidirectional: true}
  - {description: to this host, from: red-a, to: host, ports: [7000], protocol: tcp}
"#;

const PORTS: &[u16] = &[5000, 6000, 7000, 8080, 8081, 9000];

#[derive(Clone)]
struct Machine {
    name: &'static str,
    domain: &'static str,
    pid: i64,
    ip: String,
}

fn machines(world: &World) -> Vec<Machine> {
    [("red-a", "red"), ("red-b", "red"), ("green-a", "green"), ("green-b", "green"), ("blue-a", "blue")]
        .into_iter()
        .map(|(name, domain)| {
            let info = world.ilot(["inspect", name, "--json"]).ok().json();
            let info = if info.is_array() { info[0].clone() } else { info };
            Machine {
                name,
                domain,
                pid: info["pid"].as_i64().expect("a pid"),
                ip: info["ip"].as_str().expect("an address").to_owned(),
            }
        })
        .collect()
}

/// What the file says, read by hand.
fn allowed(from: &Machine, to: &Machine, port: u16, tcp: bool) -> bool {
    let both = |a: &str, b: &str| (from.name == a && to.name == b) || (from.name == b && to.name == a);
    from.domain == to.domain
        || (from.domain == "red" && to.domain == "green" && tcp && [8080, 8081].contains(&port))
        || (from.name == "blue-a" && to.name == "red-a" && !tcp && port == 5000)
        || (both("green-a", "blue-a") && tcp && port == 6000)
}

#[test]
fn exactly_what_the_file_says() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let machines = machines(world);
        let servers: Vec<Servers> = machines.iter().map(|m| Servers::start(Some(m.pid), PORTS)).collect();
        let mut wrong = Vec::new();
        for from in &machines {
            for to in machines.iter().filter(|to| to.name != from.name) {
                let got = in_netns_of(from.pid, || {
                    std::thread::scope(|scope| {
                        let mut tries = Vec::new();
                        for port in PORTS {
                            for tcp in [true, false] {
                                let address: SocketAddr = format!("{}:{port}", to.ip).parse().unwrap();
                                let try_it = move || if tcp { tcp_answers(address) } else { udp_answers(address) };
                                tries.push((*port, tcp, scope.spawn(try_it)));
                            }
                        }
                        tries.into_iter().map(|(p, t, h)| (p, t, h.join().unwrap())).collect::<Vec<_>>()
                    })
                });
                for (port, tcp, answered) in got {
                    if answered != allowed(from, to, port, tcp) {
                        let protocol = if tcp { "tcp" } else { "udp" };
                        wrong.push(format!("{} -> {} {port}/{protocol}: {answered}", from.name, to.name));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "not as the file says:\n{}", wrong.join("\n"));
        drop(servers);
        host(&machines);
        changed(world, &machines);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// This host: the policy's port from the policy's machine, nothing else, on no address of it.
fn host(machines: &[Machine]) {
    let _servers = Servers::start(None, PORTS);
    for from in machines {
        let gateways = ["10.200.1.254", "10.200.2.254", "10.200.3.254", ilot_tests::UPLINK];
        for gateway in gateways {
            for port in PORTS {
                let address: SocketAddr = format!("{gateway}:{port}").parse().unwrap();
                let (tcp, udp) = in_netns_of(from.pid, || {
                    std::thread::scope(|scope| {
                        let tcp = scope.spawn(move || tcp_answers(address));
                        let udp = scope.spawn(move || udp_answers(address));
                        (tcp.join().unwrap(), udp.join().unwrap())
                    })
                });
                let open = from.name == "red-a" && *port == 7000;
                // On which of its addresses a permitted machine reaches the host is the engine's choice; its own gateway
                // must be one.
                if open {
                    assert!(tcp || gateway != "10.200.1.254", "{} -> host {gateway}:{port} is closed", from.name);
                } else {
                    assert!(!tcp, "{} -> host {gateway}:{port}/tcp is open", from.name);
                }
                assert!(!udp, "{} -> host {gateway}:{port}/udp is open", from.name);
            }
        }
    }
}

/// A policy that is taken out of the file closes, one that is put in opens, without a restart.
fn changed(world: &World, machines: &[Machine]) {
    let text = PROJECT
        .replace("ports: [8080, 8081], protocol: tcp", "ports: [9000], protocol: udp")
        .replace("description: a domain to a domain", "description: changed");
    let file = world.write("infra.yml", &text);
    let plan = world.ilot(["plan", "-f", file.to_str().unwrap(), "--json"]).ok().json();
    let changes = plan["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{plan}");
    assert_eq!(changes[0]["kind"], "firewall", "{plan}");
    world.ilot(["apply", "-f", file.to_str().unwrap(), "--yes"]).ok();
    let (red, green) = (&machines[0], &machines[2]);
    let _servers = Servers::start(Some(green.pid), PORTS);
    let reach = |port: u16, tcp: bool| {
        let address: SocketAddr = format!("{}:{port}", green.ip).parse().unwrap();
        in_netns_of(red.pid, || if tcp { tcp_answers(address) } else { udp_answers(address) })
    };
    assert!(!reach(8080, true), "a closed port still answers");
    assert!(reach(9000, false), "an opened port does not answer");
}

#[test]
fn a_machine_cannot_take_anothers_address() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let machines = machines(world);
        let (red_a, red_b) = (&machines[0], &machines[1]);
        let _servers = Servers::start(Some(red_b.pid), &[9000]);
        let address: SocketAddr = format!("{}:9000", red_b.ip).parse().unwrap();
        assert!(in_netns_of(red_a.pid, || tcp_answers(address)), "its own address works");
        // The namespace's owner takes another address: what leaves with it is dropped at the port.
        in_netns_of(red_a.pid, || {
            ilot_tests::sh("ip addr flush dev eth0; ip addr add 10.200.1.77/24 dev eth0");
            let has = ilot_tests::sh("ip -o -4 addr show dev eth0");
            assert!(has.contains("10.200.1.77/24"), "the forged address is there: {has}");
            assert!(!udp_answers(address), "a forged IPv4 address passes");
            assert!(!tcp_answers(address), "a forged IPv4 address passes");
        });
        in_netns_of(red_a.pid, || {
            ilot_tests::sh(&format!("ip addr flush dev eth0; ip addr add {}/24 dev eth0", red_a.ip));
            assert!(tcp_answers(address), "its own address works again");
            ilot_tests::sh("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up");
            assert!(!tcp_answers(address), "a forged hardware address passes");
        });
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
