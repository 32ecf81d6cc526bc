//! IPv6 of a project: addresses, rules explained, tried and watched, switched on and off, and hosts without it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ilot_tests::{OUTSIDE6, World, in_netns_of, in_world, sh};

/// How long a connection is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

const PROJECT: &str = r#"
project_name: six
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  red:
    subnet_id: 1
    ephemeral: true
    machines: {red-a: {}, red-b: {}}
  green:
    subnet_id: 2
    ephemeral: true
    ilot: {egress: ["198.51.100.0/24:80", "[2001:db8::]/64:443"]}
    machines: {green-a: {}}
  blue:
    subnet_id: 3
    ephemeral: true
    ilot: {ipv6: false}
    machines: {blue-a: {}}
network_policies:
  - {description: pages, from: red, to: green-a, ports: [8080], protocol: tcp}
  - {description: all of it, from: red, to: blue, ports: all}
"#;

fn pid(world: &World, machine: &str) -> i64 {
    world.ilot(["inspect", machine]).ok().json()[0]["pid"].as_i64().expect("a pid")
}

fn plan_is_empty(world: &World) {
    let plan = world.ilot(["plan", "-f", "infra.yml", "--json"]).ok().json();
    assert_eq!(plan["changes"], serde_json::json!([]), "{plan}");
}

fn destroy(world: &World) {
    world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
    world.assert_clean();
}

#[test]
fn a_project_has_both_versions() {
    in_world(|world| {
        world.write("infra.yml", PROJECT);
        let json = world.ilot(["check", "--json"]).ok().json();
        let red_b = json["machines"]["red-b"]["ip6"].as_str().expect("an address").to_owned();
        assert_eq!(red_b, "fd69:6c6f:740a:c801::2");
        assert_eq!(json["machines"]["blue-a"]["ip6"], serde_json::Value::Null);
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        plan_is_empty(world);
        let shown = world.exec("red-a", "ip addr show dev eth0; ip -6 route; ping -6 -c1 -W2 red-b").stdout;
        for wanted in
            ["fd69:6c6f:740a:c801::1/64", "default via fd69:6c6f:740a:c801::fe", "inet6 fe80:", "0% packet loss"]
        {
            assert!(shown.contains(wanted), "{wanted} in {shown}");
        }
        let found = world.exec("red-a", "nslookup red-b; nslookup fd69:6c6f:740a:c801::2").stdout;
        assert!(found.contains(&red_b) && found.contains("red-b.red.ilot"), "{found}");
        assert!(!world.exec("blue-a", "ip addr show dev eth0").stdout.contains("inet6"));
        // The outside sees the host.
        let reaches = |machine: &str, port: u16| {
            let to = SocketAddr::new(OUTSIDE6.parse::<Ipv6Addr>().unwrap().into(), port);
            in_netns_of(pid(world, machine), || TcpStream::connect_timeout(&to, PATIENCE).map(drop))
        };
        // Nobody listens there: an answer that says so came through, silence did not.
        let refused = |machine: &str, port| {
            reaches(machine, port).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        assert!(refused("red-a", 443) && refused("green-a", 443) && !refused("green-a", 80) && !refused("blue-a", 443));
        // Of `ilot run` too.
        let run = world.ilot(["run", "--rm", "--net", "red", "busybox", "ip", "addr", "show", "dev", "eth0"]).ok();
        assert!(run.stdout.contains("inet6 fd69:6c6f:740a:c801::64/64"), "{run}");
        destroy(world);
    });
}

#[test]
fn explained_tried_and_watched() {
    in_world(|world| {
        world.write("infra.yml", PROJECT);
        let explain = |args: &str| world.ilot(["net", "explain"].into_iter().chain(args.split(' '))).ok().stdout;
        assert!(explain("red-a fd69:6c6f:740a:c802::1 8080/tcp").contains("allowed"));
        assert!(explain("fd69:6c6f:740a:c802::1 red-a 8080/tcp").contains("dropped"));
        assert_eq!(explain("red-a green-a 8080/tcp").lines().count(), 2, "both versions have one answer");
        let one = explain("green-a internet 443/tcp");
        assert!(one.contains("443/tcp over IPv4: dropped") && one.contains("443/tcp over IPv6: allowed"), "{one}");
        assert!(explain("green-a 2001:db8::7 443/tcp").contains("egress `[2001:db8::]/64:443`"));
        assert!(!explain("red-a blue-a").contains("IPv6"), "nobody asked for it");
        assert!(explain("fd69:6c6f:740a:c801::1 blue-a 80/tcp").contains("dropped\n  one of the two has no IPv6"));
        let wrong = world.ilot(["net", "explain", "10.200.1.1", "2001:db8::7"]).fails();
        assert!(wrong.stderr.contains("`10.200.1.1` is IPv4, and `2001:db8::7` is IPv6"), "{wrong}");

        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        let tried = world.ilot(["net", "test", "--all"]).ok();
        assert!(tried.stdout.contains("red-a → green-a 8080/tcp over IPv6: open"), "{tried}");
        assert!(tried.stdout.contains("green-a → red-a 8080/tcp over IPv6: closed"), "{tried}");
        assert!(tried.stdout.contains("; 0 not as the rules say, 0 cannot be told"), "{tried}");
        sh("nft insert rule inet ilot from_domain ip6 saddr fd69:6c6f:740a:c802::1 accept");
        let hole = world.ilot(["net", "test", "-q"]).run();
        assert!(hole.stdout.contains("over IPv6: OPEN, must be closed"), "{hole}");
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();

        let mut trace = world.ilot(["net", "trace", "red", "--count", "3", "--for", "20"]).spawn();
        let mut notes = BufReader::new(trace.stderr.take().unwrap());
        notes.read_line(&mut String::new()).unwrap();
        let send = |to: &str| {
            in_netns_of(pid(world, "red-a"), || {
                let socket = UdpSocket::bind("[::]:0").unwrap();
                let _ = socket.send_to(b"?", to.parse::<SocketAddr>().unwrap());
            });
        };
        send("[fd69:6c6f:740a:c802::1]:9");
        send("[fd69:6c6f:740a:c801::fe]:123");
        // What passes is not told.
        send("[fd69:6c6f:740a:c801::2]:9");
        let steal = "ip -6 addr flush dev eth0 scope global; ip addr add fd69:6c6f:740a:c801::77/64 dev eth0 nodad";
        in_netns_of(pid(world, "red-a"), || sh(steal));
        send("[fd69:6c6f:740a:c801::2]:9");
        let mut lines = BufReader::new(trace.stdout.take().unwrap()).lines();
        let mut told = || lines.next().map_or_else(String::new, |line| line.expect("text"));
        let (first, second, third) = (told(), told(), told());
        assert!(first.contains("red-a → green-a 9/udp: no policy opens it"), "{first}");
        assert!(second.contains("red-a → host (red's gateway) 123/udp: no policy opens it on the host"), "{second}");
        assert!(third.contains("forged"), "{third}");
        assert!(trace.wait().unwrap().success());
        destroy(world);
    });
}

#[test]
fn switched_while_machines_run() {
    in_world(|world| {
        world.write("infra.yml", PROJECT);
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        let pids = || ["red-a", "red-b", "blue-a"].map(|machine| pid(world, machine));
        let before = pids();
        let flipped = PROJECT.replace("ilot: {ipv6: false}", "ilot: {egress: all}").replacen(
            "ephemeral: true",
            "ephemeral: true\n    ilot: {ipv6: false}",
            1,
        );
        world.write("infra.yml", &flipped);
        let plan = world.ilot(["plan", "-f", "infra.yml"]).run();
        assert!(plan.stdout.contains("ilot.ipv6"), "{plan}");
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        plan_is_empty(world);
        assert_eq!(pids(), before, "nothing was restarted");
        assert!(!world.exec("red-a", "ip addr show dev eth0").stdout.contains("inet6"));
        let blue = world.exec("blue-a", "ip addr show dev eth0; ip -6 route").stdout;
        assert!(blue.contains("fd69:6c6f:740a:c803::1/64") && blue.contains("default via"), "{blue}");
        world.ilot(["net", "test", "-q"]).ok();
        world.write("infra.yml", PROJECT);
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        assert_eq!(pids(), before);
        let red = world.exec("red-a", "ping -6 -c1 -W2 fd69:6c6f:740a:c801::2; ip -6 route").stdout;
        assert!(red.contains("0% packet loss") && red.contains("default via"), "{red}");
        destroy(world);
    });
}

#[test]
fn a_host_without_ipv6() {
    in_world(|world| {
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        world.write("infra.yml", PROJECT);
        let applied = world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        assert!(format!("{applied}").contains("IPv6 is off on this host"), "{applied}");
        plan_is_empty(world);
        assert!(!world.exec("red-a", "ip addr show dev eth0").stdout.contains("inet6"));
        assert!(world.exec("red-a", "ping -c1 -W2 red-b").stdout.contains("0% packet loss"));
        world.ilot(["net", "test", "-q"]).ok();
        assert!(!sh("ip -6 addr").contains("fd69:"));
        // It comes back with the host's.
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        plan_is_empty(world);
        assert!(sh("ip -6 addr show dev il-red").contains("fd69:6c6f:740a:c801::fe/64"));
        assert!(world.exec("red-a", "ping -6 -c1 -W2 red-b").stdout.contains("0% packet loss"));
        destroy(world);
    });
}
