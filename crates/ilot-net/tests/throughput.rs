//! Throughput between two machines of a domain with the rules of 200 domains and 2000 policies in place, beside a bare
//! bridge with two veth pairs in the same run. A measurement: `cargo test -p ilot-net --test throughput --release -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{Ns, World};

struct Server(Child);

impl Server {
    fn new(ns: &Ns) -> Self {
        Self(ns.run(|| Command::new("iperf3").args(["-s", "-f", "m"]).stdout(Stdio::null()).spawn()).expect("iperf3"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bits per second of one TCP stream.
fn measure(from: &Ns, address: &str) -> f64 {
    for _ in 0..50 {
        let run = || Command::new("iperf3").args(["-c", address, "-t", "1", "-J"]).output().expect("iperf3");
        let output = from.run(run);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        // Until the server listens, there is an error instead.
        if let Some(rate) = json["end"]["sum_received"]["bits_per_second"].as_f64() {
            return rate;
        }
    }
    panic!("no measurement from {address}")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement of a minute"]
fn rules_cost_next_to_nothing_within_a_domain() {
    if Command::new("iperf3").arg("--version").output().is_err() {
        println!("skipped: iperf3 is not installed");
        return;
    }
    let mut world = World::new(&[("pro", &["dev", "web"]), ("perso", &["desk"])]);
    let load = common::many(198, 5, 2000);
    world.rules.domains.extend(load.domains);
    world.rules.rules.extend(load.rules);
    let start = std::time::Instant::now();
    world.install();
    println!(
        "{} domains, {} policies installed in {:?}",
        world.rules.domains.len(),
        world.rules.rules.len(),
        start.elapsed()
    );
    let (bare, left, right) = (Ns::new(), Ns::new(), Ns::new());
    bare.sh("ip link add br0 type bridge; ip link set br0 up");
    for (number, ns) in [(1, &left), (2, &right)] {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&ns.fd());
        bare.sh(&format!(
            "ip link add v{number} type veth peer name eth0 netns /proc/{}/fd/{fd}
             ip link set v{number} master br0 up",
            std::process::id()
        ));
        ns.sh(&format!("ip link set lo up; ip addr add 10.9.0.{number}/24 dev eth0; ip link set eth0 up"));
    }
    let _servers = [Server::new(world.ns("web")), Server::new(&right), Server::new(world.ns("desk"))];
    for calls in [0, 1] {
        for ns in [&world.host, &bare] {
            ns.sh(&format!("! [ -e /proc/sys/net/bridge ] || sysctl -qw net.bridge.bridge-nf-call-iptables={calls}"));
        }
        // Pairs side by side in time, because other work on this machine slows both.
        let pairs: Vec<_> = (0..15)
            .map(|_| (measure(&left, "10.9.0.2"), measure(world.ns("dev"), &world.ip("web").to_string())))
            .collect();
        let bare = median(pairs.iter().map(|(bare, _)| bare / 1e9));
        let domain = median(pairs.iter().map(|(_, domain)| domain / 1e9));
        let ratio = median(pairs.iter().map(|(bare, domain)| domain / bare));
        println!("br_netfilter {calls}: bare bridge {bare:.1} Gbit/s, domain {domain:.1} Gbit/s, ratio {ratio:.3}");
    }
}
