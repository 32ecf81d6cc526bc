//! `ilot net`: the rules read, explained, tried and watched, against what the kernel does.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use ilot_tests::{World, in_netns_of, in_world, sh};

/// How long a dropped packet is waited for.
const PATIENCE: Duration = Duration::from_millis(400);

const PROJECT: &str = r#"
project_name: net
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  red:
    subnet_id: 1
    ilot: {egress: [www.outside.example:80/tcp]}
    machines:
      red-a: {}
      red-b: {}
  green:
    subnet_id: 2
    ilot: {egress: none}
    machines:
      green-a: {}
      green-b:
        ilot: {egress: [198.51.100.0/24:80]}
network_policies:
  - {description: pages, from: red, to: green-a, ports: [8080], protocol: tcp}
  - {description: to this host, from: red-a, to: host, ports: [7000], protocol: tcp}
"#;

fn apply(world: &World) -> String {
    let file = world.write("infra.yml", PROJECT);
    world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
    file.to_str().unwrap().to_owned()
}

fn pid(world: &World, machine: &str) -> i64 {
    world.ilot(["inspect", machine]).ok().json()[0]["pid"].as_i64().expect("a pid")
}

#[test]
fn explained_from_the_file_alone() {
    in_world(|world| {
        world.write("infra.yml", PROJECT);
        let explain = |args: &str| world.ilot(["net", "explain"].into_iter().chain(args.split(' '))).ok().stdout;
        let line = |needle: &str| 1 + PROJECT.lines().position(|line| line.contains(needle)).expect("in the file");
        let pages = format!("infra.yml:{}", line("pages"));
        assert_eq!(
            explain("red-a green-a 8080/tcp"),
            format!("red-a → green-a 8080/tcp: allowed\n  policy `pages`, {pages}\n")
        );
        assert_eq!(
            explain("green-a red-a 8080"),
            "green-a → red-a 8080/tcp, 8080/udp: dropped\n  no policy from `green` to `red` opens it\n"
        );
        let both = explain("red green-a");
        assert!(both.starts_with("red → green-a 8080/tcp: allowed\n"), "{both}");
        assert!(both.contains("red → green-a everything else: dropped"), "{both}");
        assert_eq!(explain("red-a red-b"), "red-a → red-b everything: allowed\n  both are in the same domain\n");
        let egress = format!("infra.yml:{}", line("egress: [www"));
        let name = explain("red-b www.outside.example 80/tcp");
        assert!(name.contains("allowed") && name.contains(&egress), "{name}");
        let other = explain("red-b other.example 80/tcp");
        assert!(other.contains("dropped") && other.contains(&egress), "{other}");
        let own = explain("green-b 198.51.100.2 80/udp");
        assert!(own.contains("allowed") && own.contains(&format!("infra.yml:{}", line("198.51"))), "{own}");
        assert!(explain("green-a 198.51.100.2 80/udp").contains("dropped"));
        let host = explain("red-a host");
        assert!(host.contains("53/tcp, 53/udp: allowed") && host.contains("7000/tcp: allowed"), "{host}");
        assert!(
            explain("host red-a 22/tcp").contains("allowed") && explain("internet red-a 22/tcp").contains("dropped")
        );
        let wrong = world.ilot(["net", "explain", "redd", "green"]).fails();
        assert!(wrong.stderr.contains("did you mean `red`"), "{wrong}");

        let rules = world.ilot(["net", "rules"]).ok();
        assert!(rules.stdout.contains(&pages) && rules.stdout.contains("8080/tcp"), "{rules}");
        assert!(rules.stdout.contains("198.51.100.0/24:80"), "{rules}");
        let json = world.ilot(["net", "rules", "--json"]).ok().json();
        assert_eq!(json["rules"][0]["at"]["line"], line("pages"), "{json}");
        let nft = world.ilot(["net", "rules", "--nft"]).ok();
        assert!(nft.stdout.contains("table inet ilot {"), "{nft}");
        assert!(!world.root().exists() || !world.root().join("domains/red.json").exists(), "nothing was made");
    });
}

#[test]
fn tried_by_real_connections() {
    in_world(|world| {
        apply(world);
        let good = world.ilot(["net", "test"]).ok();
        assert!(good.stdout.contains("red-a → green-a 8080/tcp: open"), "{good}");
        assert!(good.stdout.contains("red-a → host (red's gateway) 7000/tcp: open"), "{good}");
        assert!(good.stdout.contains("; 0 not as the rules say, 0 cannot be told"), "{good}");
        let all = world.ilot(["net", "test", "--all", "--installed", "--json"]).ok().json();
        assert_eq!((&all["wrong"], &all["unknown"]), (&0.into(), &0.into()), "{all}");
        assert!(all["tried"].as_u64().unwrap() > 40, "{all}");
        // Somebody opens a hole by hand, and closes what is open.
        sh("nft insert rule inet ilot from_domain ip saddr 10.200.2.1 accept");
        let hole = world.ilot(["net", "test", "-q"]).run();
        assert_eq!(hole.code(), 1, "{hole}");
        assert!(hole.stdout.contains("green-a → red-a") && hole.stdout.contains("OPEN, must be closed"), "{hole}");
        sh("nft insert rule inet ilot from_domain tcp dport 8080 drop");
        let shut = world.ilot(["net", "test", "-q"]).run();
        assert!(shut.stdout.contains("red-a → green-a 8080/tcp: CLOSED, must be open"), "{shut}");
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        world.ilot(["net", "test", "-q"]).ok();
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn drops_are_watched_as_they_happen() {
    in_world(|world| {
        apply(world);
        let tables = || sh("nft list tables");
        let before = tables();
        let mut trace = world.ilot(["net", "trace", "red", "--count", "3", "--for", "20"]).spawn();
        let mut notes = BufReader::new(trace.stderr.take().unwrap());
        let mut line = String::new();
        notes.read_line(&mut line).unwrap();
        assert!(line.contains("watching red"), "{line}");
        let send = |machine: &str, to: &str| {
            in_netns_of(pid(world, machine), || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                let _ = socket.send_to(b"?", to.parse::<SocketAddr>().unwrap());
            });
        };
        send("red-a", "10.200.2.1:9");
        send("red-b", "10.200.1.254:123");
        // What passes is not told.
        send("red-a", "10.200.1.2:9");
        in_netns_of(pid(world, "red-a"), || sh("ip addr flush dev eth0; ip addr add 10.200.1.77/24 dev eth0"));
        send("red-a", "10.200.1.2:9");
        let mut lines = BufReader::new(trace.stdout.take().unwrap()).lines();
        let mut told = || lines.next().map_or_else(String::new, |line| line.expect("text"));
        let (first, second, third) = (told(), told(), told());
        assert!(first.contains("red-a → green-a 9/udp: no policy opens it"), "{first}");
        assert!(second.contains("red-b → host (red's gateway) 123/udp: no policy opens it on the host"), "{second}");
        assert!(third.contains("forged"), "{third}");
        assert!(trace.wait().unwrap().success());
        // A trace that is killed leaves nothing either.
        let mut trace = world.ilot(["net", "trace", "red"]).spawn();
        let mut notes = BufReader::new(trace.stderr.take().unwrap());
        notes.read_line(&mut line).unwrap();
        assert_ne!(tables(), before);
        trace.kill().unwrap();
        trace.wait().unwrap();
        assert!(ilot_tests::eventually(Duration::from_secs(5), || tables() == before), "{}", tables());
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn the_outside_is_open_by_name() {
    in_world(|world| {
        apply(world);
        let outside: SocketAddr = format!("{}:80", ilot_tests::OUTSIDE).parse().unwrap();
        let reaches =
            |machine: &str| in_netns_of(pid(world, machine), || TcpStream::connect_timeout(&outside, PATIENCE).is_ok());
        assert!(!reaches("red-a"), "nobody looked it up");
        assert!(reaches("green-b") && !reaches("green-a"), "a list of its own");
        let looked = world.exec("red-b", "nslookup www.outside.example");
        assert!(looked.stdout.contains(ilot_tests::OUTSIDE), "{looked}");
        assert!(reaches("red-a") && reaches("red-b"));
        let refused = world.exec("red-a", "nslookup elsewhere.example");
        assert!(!refused.status.success(), "{refused}");
        let log = world.ilot(["net", "log", "red"]).ok();
        assert!(log.stdout.contains("red-a elsewhere.example"), "{log}");
        // Still as the file says, and nothing to do.
        let plan = world.ilot(["plan", "-f", "infra.yml", "--detailed-exitcode"]).run();
        assert_eq!(plan.code(), 0, "{plan}");
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn network_cards_have_limits() {
    in_world(|world| {
        let limit = "devices: {eth0: {type: nic, network: red, limits.egress: 8Mbit, limits.ingress: 80Mbit}}";
        let text = PROJECT.replace("      red-a: {}", &format!("      red-a:\n        {limit}"));
        assert_ne!(text, PROJECT);
        world.write("infra.yml", &text);
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        let rules = || sh("nft list table bridge ilot");
        let found = rules();
        let port = |side: &str, rate: &str| {
            let rule = |line: &str| line.contains(&format!("{side} \"iv-red-a\" limit rate over {rate}"));
            found.lines().any(rule)
        };
        assert!(port("iifname", "1000000 bytes/second") && port("oifname", "10000000 bytes/second"), "{found}");
        let plan = world.ilot(["plan", "-f", "infra.yml", "--detailed-exitcode"]).run();
        assert_eq!(plan.code(), 0, "{plan}");
        world.ilot(["net", "test", "-q"]).ok();
        // What is more waits at its sender: hardly anything is sent twice, where a bare limit drops hundreds of segments.
        let served = world.exec("red-a", "mkdir /www; head -c 3000000 /dev/zero > /www/big; httpd -p 8080 -h /www");
        assert!(served.status.success(), "{served}");
        let got = world.exec("red-b", "timeout 60 wget -q -O - http://red-a:8080/big | wc -c");
        assert_eq!(got.stdout.trim(), "3000000", "{got}");
        let again: u32 = world
            .exec("red-a", "awk '/^Tcp:/ && $2 ~ /^[0-9]/ {print $13}' /proc/net/snmp")
            .stdout
            .trim()
            .parse()
            .expect("RetransSegs");
        assert!(again < 30, "{again} segments were sent twice");
        world.write("infra.yml", &text.replace("8Mbit", "fast"));
        let wrong = world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).fails();
        assert!(wrong.stderr.contains("`limits.egress: fast` is not a rate"), "{wrong}");
        world.write("infra.yml", PROJECT);
        world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).ok();
        assert!(!rules().contains("limit rate"), "{}", rules());
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// The machines of a domain that hand each other frames without the bridge.
fn short_ways(bridge: &str) -> Vec<String> {
    let listed = sh(&format!("nft list map netdev ilot to_{bridge} 2>/dev/null || true"));
    let mut ports: Vec<String> =
        listed.split(['"', ' ', ',']).filter(|w| w.starts_with("iv-")).map(str::to_owned).collect();
    ports.sort();
    ports
}

#[test]
fn machines_of_a_domain_keep_the_short_way_through_their_lives() {
    in_world(|world| {
        apply(world);
        let all = ["iv-green-a", "iv-green-b"];
        assert_eq!(short_ways("il-green"), all);
        let reach = |from: &str, to: &str| {
            let ping = world.exec(from, &format!("ping -c 1 -W 2 {to}"));
            assert!(ping.status.success(), "{ping}");
        };
        world.ilot(["restart", "-t", "0", "green-a"]).ok();
        assert_eq!(short_ways("il-green"), all);
        reach("green-a", "green-b");
        reach("green-b", "green-a");
        world.ilot(["stop", "-t", "0", "green-a"]).ok();
        world.ilot(["start", "green-a"]).ok();
        assert_eq!(short_ways("il-green"), all);
        reach("green-b", "green-a");
        // One that `ilot run` puts beside them is reached all the same.
        let beside =
            world.ilot(["run", "--rm", "--net", "green", "busybox", "ping", "-c", "1", "-W", "2", "green-a"]).run();
        assert!(beside.status.success(), "{beside}");
        // Somebody's careless hand, and the next command that changes anything.
        sh("nft flush ruleset");
        reach("green-a", "green-b");
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        assert_eq!(short_ways("il-green"), all);
        reach("green-a", "green-b");
        let plan = world.ilot(["plan", "-f", "infra.yml", "--detailed-exitcode"]).run();
        assert!(plan.status.success(), "{plan}");
        world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
