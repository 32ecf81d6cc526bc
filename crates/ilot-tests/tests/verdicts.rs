//! What the kernel lets through is what the rules say: every pair of machines, the host and the outside, at ports in and out
//! of the lists, TCP and UDP, both directions, over IPv4 and over IPv6, by real connections after a real `ilot apply`.
//!
//! `ILOT_VERDICT_PROJECTS` says how many random projects are tried, 12 by default.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::IpAddr;
use std::time::Duration;

use ilot_net::firewall::{Family, Packet, Party, Protocol, Ruleset, verdict};
use ilot_net::probe::{self, End, Probe, Seen};
use ilot_tests::{OUTSIDE, OUTSIDE6, UPLINK, UPLINK6, World, in_world, sh};

/// How long what is dropped is waited for, first and when something looks wrong.
const PATIENCE: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(3)];
/// So many ends are a class room.
const ROOM: usize = 100;
/// No policy of any project here has it.
const UNNAMED: u16 = 40_000;

/// Machines, gateways, the host's uplink and the outside.
struct Everyone {
    ends: Vec<End>,
    parties: Vec<Party>,
}

impl Everyone {
    fn new(world: &World, rules: &Ruleset) -> Self {
        let mut everyone = Self { ends: Vec::new(), parties: Vec::new() };
        for domain in &rules.domains {
            for port in &domain.ports {
                let info = world.ilot(["inspect", port.machine.as_str()]).ok().json();
                let pid = info[0]["pid"].as_i64().expect("it runs");
                for family in Family::BOTH {
                    let netns = File::open(format!("/proc/{pid}/ns/net")).expect("its namespace");
                    let address = port.ip_of(family).expect("both have addresses");
                    everyone.add(Some(netns), address, Party::Machine(port.machine.clone()));
                }
            }
            for family in Family::BOTH {
                let address = domain.gateway_of(family).expect("both have addresses");
                everyone.add(None, address, Party::Gateway(domain.name.clone()));
            }
        }
        let netns = format!("/proc/self/task/{}/ns/net", world.outside.tid);
        // The outside knows the way to the machines: only the rules keep it out.
        sh(&format!(
            "nsenter --net=/proc/{}/task/{}/ns/net sh -c 'ip route replace 10.0.0.0/8 via {UPLINK}; \
             ip -6 route replace fd69:6c6f:7400::/40 via {UPLINK6}'",
            std::process::id(),
            world.outside.tid
        ));
        for (uplink, outside) in [(UPLINK, OUTSIDE), (UPLINK6, OUTSIDE6)] {
            everyone.add(None, uplink.parse().unwrap(), Party::Host);
            let outside: IpAddr = outside.parse().unwrap();
            let netns = File::open(&netns).expect("the outside's namespace");
            everyone.add(Some(netns), outside, Party::Outside(outside));
        }
        everyone
    }

    fn add(&mut self, netns: Option<File>, address: IpAddr, party: Party) {
        self.ends.push(End { netns: netns.map(Into::into), address });
        self.parties.push(party);
    }

    fn packet(&self, probe: &Probe) -> Packet {
        let (from, to) = (self.parties[probe.from].clone(), self.parties[probe.to].clone());
        let family = Family::of(self.ends[probe.to].address);
        Packet { family, from, to, protocol: Some(probe.protocol), port: probe.port }
    }

    /// Every connection that begins or ends at a machine.
    fn probes(&self, ports: &[u16]) -> Vec<Probe> {
        let machine = |end: usize| matches!(self.parties[end], Party::Machine(_));
        let mut probes = Vec::new();
        let family = |end: usize| Family::of(self.ends[end].address);
        for from in 0..self.ends.len() {
            let fits = |to: &usize| *to != from && family(*to) == family(from) && (machine(from) || machine(*to));
            for to in (0..self.ends.len()).filter(fits) {
                for port in ports {
                    for (number, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
                        // Of a whole class room over IPv6, every fourth pair, by one of the two.
                        let room = self.ends.len() > ROOM && family(from) == Family::V6;
                        if room && (from / 2 + to / 2) % 8 != number {
                            continue;
                        }
                        probes.push(Probe { from, to, protocol, port: *port });
                    }
                }
            }
        }
        probes
    }
}

/// Compares the kernel with the model, and the model with what `by_hand` says where it says anything. How many were open,
/// closed, and could not be told.
fn compare(world: &World, ports: &[u16], by_hand: &dyn Fn(&Packet) -> Option<bool>) -> [usize; 3] {
    let json = world.ilot(["net", "rules", "--json", "-f", "infra.yml"]).ok().json();
    let rules: Ruleset = serde_json::from_value(json["ruleset"].clone()).expect("a ruleset");
    let everyone = Everyone::new(world, &rules);
    let mut probes = everyone.probes(ports);
    let (mut counts, mut wrong) = ([0; 3], Vec::new());
    for (number, patience) in PATIENCE.into_iter().enumerate() {
        wrong.clear();
        let mut again = Vec::new();
        for (probe, seen) in probes.iter().zip(probe::run(&everyone.ends, &probes, patience)) {
            let packet = everyone.packet(probe);
            let verdict = verdict(&rules, &packet);
            if let Some(said) = by_hand(&packet) {
                assert_eq!(verdict.accept, said, "the model: {packet:?}: {}", verdict.reason);
            }
            match seen {
                Seen::Unknown(_) => counts[2] += 1,
                seen if (seen == Seen::Through) == verdict.accept => counts[usize::from(!verdict.accept)] += 1,
                seen => {
                    again.push(*probe);
                    wrong.push(format!("{packet:?}: {seen:?}, but {}", verdict.reason));
                }
            }
        }
        // A slow moment of this machine is no verdict: what looks closed is tried again, and waited for.
        if again.is_empty() {
            break;
        }
        eprintln!("{} tried again (round {number})", again.len());
        probes = again;
    }
    assert!(wrong.is_empty(), "not as the rules say:\n{}", wrong.join("\n"));
    counts
}

/// Applies, and plans again: nothing is left to do.
fn apply(world: &World, text: &str) {
    world.write("infra.yml", text);
    world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).ok();
    let plan = world.ilot(["plan", "-f", "infra.yml", "--json"]).ok().json();
    assert_eq!(plan["changes"], serde_json::json!([]), "after apply:\n{text}");
}

fn destroy(world: &World) {
    world.ilot(["destroy", "-f", "infra.yml", "--yes", "--force"]).ok();
}

/// An example with small images, without what this host may lack and without directories outside of the test's own.
fn example(name: &str, ports: &[u16]) {
    in_world(|world| {
        let file = world.example(name);
        let mut text = fs::read_to_string(&file).expect("read the example").replace("images:debian/13", "busybox");
        text =
            text.replace("global:\n", &format!("global:\n  persistent_data_base: {}\n", world.path("data").display()));
        let shared = world.path("documents");
        fs::create_dir(&shared).expect("make what is shared");
        text = text.replace("/srv/documents", &shared.display().to_string());
        let kept = |line: &&str| {
            let line = line.trim_start();
            !(line.starts_with("devices: {gpu:")
                || line.starts_with("config: {security.nesting")
                || line.starts_with("roles:"))
        };
        text = text.lines().filter(kept).fold(String::new(), |text, line| text + line + "\n");
        apply(world, &text);
        let [open, closed, unknown] = compare(world, ports, &|_| None);
        println!("{name}: {open} open, {closed} closed, {unknown} cannot be told");
        assert!(open > 0 && closed > 0);
        destroy(world);
        world.assert_clean();
    });
}

#[test]
fn example_llm_supervisor() {
    example("llm-supervisor", &[11_434, 53, UNNAMED]);
}

#[test]
fn example_pro_workstation() {
    example("pro-workstation", &[22, 53, 3000, 8080, 11_434, UNNAMED]);
}

#[test]
fn example_sandbox_isolation() {
    example("sandbox-isolation", &[22, 53, 80, 443, UNNAMED]);
}

#[test]
fn example_student_sysadmin() {
    example("student-sysadmin", &[22, 53, 80, 443, UNNAMED]);
}

#[test]
fn example_teacher_lab() {
    example("teacher-lab", &[80, UNNAMED]);
}

/// Random numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

const PORTS: [u16; 4] = [53, 80, 443, 5000];

struct Policy {
    from: String,
    to: String,
    /// Empty: everything.
    ports: Vec<u16>,
    protocol: Protocol,
    both: bool,
}

/// A project, with what is needed to say by hand what it means.
struct Project {
    /// Each with its machines.
    domains: Vec<(String, Vec<String>)>,
    /// Of domains and machines: whether the outside's port 80 is open; absent: everything is.
    egress: Vec<(String, &'static str)>,
    policies: Vec<Policy>,
}

impl Project {
    fn new(random: &mut Random) -> Self {
        let domains: Vec<(String, Vec<String>)> = (0..2 + random.below(3))
            .map(|d| (format!("d{d}"), (0..1 + random.below(3)).map(|m| format!("d{d}-m{m}")).collect()))
            .collect();
        let machines: Vec<String> = domains.iter().flat_map(|(_, machines)| machines.clone()).collect();
        let mut sides: Vec<String> = domains.iter().map(|(name, _)| name.clone()).collect();
        sides.extend(machines.clone());
        let mut egress = Vec::new();
        for name in &sides {
            if random.below(3) == 0 {
                let list = [
                    "none",
                    "all",
                    "198.51.100.0/24:80",
                    "198.51.100.2/32",
                    "192.0.2.0/24",
                    "198.51.100.2:80/udp",
                    "[2001:db8::]/64:80",
                    "[2001:db8::2]",
                ];
                egress.push((name.clone(), *random.pick(&list)));
            }
        }
        let mut policies = Vec::new();
        for _ in 0..random.below(7) {
            let from = random.pick(&sides).clone();
            let to = match random.below(5) {
                0 => "host".to_owned(),
                1 => "internet".to_owned(),
                _ => random.pick(&sides).clone(),
            };
            let ports = PORTS.into_iter().filter(|_| random.below(3) == 0).collect();
            let protocol = *random.pick(&[Protocol::Tcp, Protocol::Udp]);
            let both = random.below(3) == 0 && to != "internet";
            if from != to {
                policies.push(Policy { from, to, ports, protocol, both });
            }
        }
        Self { domains, egress, policies }
    }

    fn yaml(&self) -> String {
        let mut text = String::from(
            "project_name: random\nglobal:\n  addressing: {base_octet: 10, zone_base: 180, zone_step: 10}\n  default_os_image: busybox\ndomains:\n",
        );
        let egress = |name: &str, indent: &str| match self.egress.iter().find(|(holder, _)| holder == name) {
            Some((_, list)) => format!("{indent}ilot: {{egress: [\"{list}\"]}}\n"),
            None => String::new(),
        };
        for (domain, machines) in &self.domains {
            let _ = write!(text, "  {domain}:\n    ephemeral: true\n{}    machines:\n", egress(domain, "    "));
            for machine in machines {
                let _ = write!(text, "      {machine}:\n        ephemeral: true\n{}", egress(machine, "        "));
            }
        }
        let _ = writeln!(text, "network_policies:{}", if self.policies.is_empty() { " []" } else { "" });
        for Policy { from, to, ports, protocol, both } in &self.policies {
            let protocol = if *protocol == Protocol::Tcp { "tcp" } else { "udp" };
            let what = if ports.is_empty() {
                "ports: all".to_owned()
            } else {
                format!("ports: {ports:?}, protocol: {protocol}")
            };
            let _ = writeln!(text, "  - {{description: x, from: {from}, to: {to}, {what}, bidirectional: {both}}}");
        }
        text
    }

    /// What the file means, said by hand and not by the model.
    fn allows(&self, packet: &Packet) -> Option<bool> {
        let Party::Machine(from) = &packet.from else {
            // The host begins what it likes, the outside nothing.
            return Some(!matches!(packet.from, Party::Outside(_)));
        };
        let domain = self.domain(from);
        let to = match &packet.to {
            Party::Machine(to) if self.domain(to) == domain => return Some(true),
            Party::Machine(to) => to.as_str(),
            Party::Gateway(other) if other != domain => return Some(false),
            Party::Gateway(_) if packet.port == 53 => return Some(true),
            Party::Gateway(_) | Party::Host => "host",
            Party::Outside(_) | Party::Name(_) => {
                let of = |name: &str| self.egress.iter().find(|(holder, _)| holder == name).map(|(_, list)| *list);
                let (four, six) = (packet.family == Family::V4, packet.family == Family::V6);
                let open = match of(from).or_else(|| of(domain)) {
                    None | Some("all") => true,
                    Some("198.51.100.2/32") => four,
                    Some("[2001:db8::2]") => six,
                    Some("198.51.100.0/24:80") => four && packet.port == 80,
                    Some("[2001:db8::]/64:80") => six && packet.port == 80,
                    Some("198.51.100.2:80/udp") => four && packet.port == 80 && packet.protocol == Some(Protocol::Udp),
                    Some(_) => false,
                };
                if open {
                    return Some(true);
                }
                "internet"
            }
        };
        let is = |side: &str, name: &str| {
            side == name || (name != "host" && name != "internet" && side == self.domain(name))
        };
        Some(self.policies.iter().any(|policy| {
            let there = is(&policy.from, from) && is(&policy.to, to);
            let back = policy.both && is(&policy.to, from) && is(&policy.from, to);
            let port = policy.ports.is_empty()
                || (policy.ports.contains(&packet.port) && packet.protocol == Some(policy.protocol));
            (there || back) && port
        }))
    }

    fn domain(&self, machine: &str) -> &str {
        let found = self.domains.iter().find(|(_, machines)| machines.iter().any(|m| m == machine));
        found.map_or("", |(domain, _)| domain)
    }
}

#[test]
fn random_projects() {
    let projects = std::env::var("ILOT_VERDICT_PROJECTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let first: u64 = std::env::var("ILOT_VERDICT_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    in_world(|world| {
        let mut counts = [0; 3];
        for seed in first..first + projects {
            let project = Project::new(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let text = project.yaml();
            eprintln!("seed {seed}:\n{text}");
            apply(world, &text);
            let mut ports = PORTS.to_vec();
            ports.push(UNNAMED);
            let found = compare(world, &ports, &|packet| project.allows(packet));
            counts.iter_mut().zip(found).for_each(|(all, one)| *all += one);
            destroy(world);
        }
        println!("{projects} random projects: {} open, {} closed, {} cannot be told", counts[0], counts[1], counts[2]);
        assert!(counts[0] > 0 && counts[1] > 0);
        world.assert_clean();
    });
}
