//! `ilot net test`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ilot_native::{MachineState, Native};
use ilot_net::firewall::{Family, FwDomain, FwPort, Packet, Party, Ports, Protocol, Side, verdict};
use ilot_net::probe::{self, End, Probe, Seen};
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::json;

use super::explain::concerns;
use super::{From, Known, Outcome, Why, line, protocol};
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Ports of one policy that are tried, without `--all`.
const PORTS: usize = 8;

/// Try the rules: open real connections between running machines, and compare with what the rules say
///
/// For each policy the ports that it opens, one that it does not open, and the other direction; between each two domains, to
/// the host and to other domains' gateways, a sample of what must be closed. Small servers are opened in the machines'
/// network namespaces for it; nothing of it stays. The outside is not tried.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net test
  ilot net test --all                 every pair of machines, every port of every policy

Exit codes: 0 as the rules say, 1 something is not")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) from: From,

    /// Every pair of machines, not one of each two domains
    #[arg(long)]
    all: bool,

    /// How long to wait for what must not come, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 500)]
    patience: u64,
}

/// How long a connection that must be open may take when it is tried again.
const SECOND_LOOK: Duration = Duration::from_secs(3);

/// One connection that was tried.
#[derive(Debug, Serialize)]
struct Line {
    from: String,
    to: String,
    service: String,
    /// The version of IP.
    family: String,
    /// What the rules say.
    open: bool,
    /// What the kernel does; `None`: it cannot be told.
    seen: Option<bool>,
    /// Why it cannot be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    #[serde(flatten)]
    why: Why,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let known = Known::read(&args.from, context)?;
    let engine = context.engine()?;
    let plan = Trial::new(&known, &engine, args.all)?;
    if plan.tries.is_empty() {
        return Err(
            CommandError::new("no machine of these rules runs: nothing can be tried").hint("`ilot apply` starts them")
        );
    }
    let tries: Vec<Probe> = plan.tries.iter().copied().collect();
    let seen = probe::run(&plan.ends, &tries, Duration::from_millis(args.patience));
    let mut lines: Vec<Line> = tries.iter().zip(seen).map(|(probe, seen)| plan.line(probe, seen)).collect();
    look_again(&plan, &tries, &mut lines);
    let wrong = lines.iter().filter(|line| line.seen.is_some_and(|seen| seen != line.open)).count();
    let untold = lines.iter().filter(|line| line.seen.is_none()).count();
    if context.json {
        ui::print_json(&json!({ "tried": lines.len(), "wrong": wrong, "unknown": untold, "lines": lines }));
    } else {
        for line in &lines {
            let right = line.seen == Some(line.open);
            if !right || !context.quiet {
                ui::write_out(&show(line));
            }
        }
        let open = lines.iter().filter(|line| line.open).count();
        let summary = format!(
            "{}: {open} that must be open, {} that must be closed; {wrong} not as the rules say, {untold} cannot be told",
            ui::count(lines.len(), "connection"),
            lines.len() - open,
        );
        ui::print(&summary);
    }
    Ok(u8::from(wrong > 0))
}

/// A first packet may be lost on its way (a neighbour that is not known yet, a busy host), and TCP sends it again after a
/// second: what must be open and did not answer gets a second, longer look before it counts as closed.
fn look_again(plan: &Trial<'_>, tries: &[Probe], lines: &mut [Line]) {
    let silent: Vec<usize> =
        (0..lines.len()).filter(|&index| lines[index].open && lines[index].seen == Some(false)).collect();
    let probes: Vec<Probe> = silent.iter().map(|&index| tries[index]).collect();
    for (index, seen) in silent.into_iter().zip(probe::run(&plan.ends, &probes, SECOND_LOOK)) {
        lines[index] = plan.line(&tries[index], seen);
    }
}

fn show(line: &Line) -> String {
    let word = match line.seen {
        Some(seen) if seen == line.open => if seen { "open" } else { "closed" }.green().to_string(),
        Some(true) => "OPEN, must be closed".red().bold().to_string(),
        Some(false) => "CLOSED, must be open".red().bold().to_string(),
        None => "unknown".yellow().to_string(),
    };
    let at = line.why.at.as_ref().map_or(String::new(), |at| format!(", {}", self::line(at)));
    let unknown = line.unknown.as_ref().map_or(String::new(), |why| format!("; {why}"));
    let over = if line.family == Family::V6.to_string() { " over IPv6" } else { "" };
    format!("{} → {} {}{over}: {word} ({}{at}{unknown})\n", line.from, line.to, line.service, line.why.reason)
}

/// What is tried.
struct Trial<'a> {
    known: &'a Known,
    ends: Vec<End>,
    parties: Vec<(String, Party)>,
    /// Ends by machine, of the version of IP that is looked at; the host's by domain.
    machines: BTreeMap<String, usize>,
    gateways: BTreeMap<String, usize>,
    tries: BTreeSet<Probe>,
}

impl<'a> Trial<'a> {
    fn new(known: &'a Known, engine: &Native, all: bool) -> Result<Self, CommandError> {
        let mut trial = Self {
            known,
            ends: Vec::new(),
            parties: Vec::new(),
            machines: BTreeMap::new(),
            gateways: BTreeMap::new(),
            tries: BTreeSet::new(),
        };
        for family in Family::BOTH {
            trial.find_ends(engine, family)?;
            trial.try_policies(all);
            trial.try_walls(all);
        }
        Ok(trial)
    }

    fn find_ends(&mut self, engine: &Native, family: Family) -> Result<(), CommandError> {
        self.machines.clear();
        self.gateways.clear();
        let running: BTreeMap<String, i32> = engine
            .machines()?
            .into_iter()
            .filter(|machine| machine.state == MachineState::Running)
            .filter_map(|machine| Some((machine.record.name, machine.pid?)))
            .collect();
        for domain in &self.known.rules.domains {
            let mut any = false;
            for port in &domain.ports {
                let (Some(pid), Some(ip)) = (running.get(&port.machine), port.ip_of(family)) else { continue };
                // It may have ended since.
                let Ok(netns) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
                any = true;
                self.machines.insert(port.machine.clone(), self.ends.len());
                self.add(Some(netns.into()), ip, &port.machine, Party::Machine(port.machine.clone()));
            }
            if let Some(gateway) = domain.gateway_of(family).filter(|_| any) {
                self.gateways.insert(domain.name.clone(), self.ends.len());
                let name = format!("host ({}'s gateway)", domain.name);
                self.add(None, gateway, &name, Party::Gateway(domain.name.clone()));
            }
        }
        Ok(())
    }

    fn add(&mut self, netns: Option<OwnedFd>, address: IpAddr, name: &str, party: Party) {
        self.ends.push(End { netns, address });
        self.parties.push((name.to_owned(), party));
    }

    /// Running machines of one side of a policy; all of them, or the first of each domain.
    fn side(&self, side: &Side, all: bool) -> Vec<(usize, &'a FwDomain)> {
        let mut found = Vec::new();
        for domain in &self.known.rules.domains {
            let of_side = |port: &&FwPort| concerns(side, &port.machine, &domain.name);
            let ends = domain.ports.iter().filter(of_side).filter_map(|p| self.machines.get(&p.machine));
            found.extend(ends.take(if all { usize::MAX } else { 1 }).map(|end| (*end, domain)));
        }
        found
    }

    fn try_policies(&mut self, all: bool) {
        let known = self.known;
        let unnamed = known.unnamed_port();
        for rule in &known.rules.rules {
            let mut ports = match &rule.ports {
                Ports::All => Vec::new(),
                Ports::List(list) => list.iter().copied().take(if all { usize::MAX } else { PORTS }).collect(),
            };
            // One more: open if the policy opens all, else closed.
            ports.push(unnamed);
            for (from, from_domain) in self.side(&rule.from, all) {
                let to = match rule.to {
                    Side::Host => self.gateways.get(&from_domain.name).map(|end| vec![*end]).unwrap_or_default(),
                    _ => self.side(&rule.to, all).into_iter().map(|(end, _)| end).collect(),
                };
                for to in to.into_iter().filter(|to| *to != from) {
                    self.both_ways(from, to, &ports);
                }
            }
        }
    }

    /// Every port there, and back; nothing that the host begins is filtered.
    fn both_ways(&mut self, from: usize, to: usize, ports: &[u16]) {
        for port in ports {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                self.tries.insert(Probe { from, to, protocol, port: *port });
                if matches!(self.parties[to].1, Party::Machine(_)) {
                    self.tries.insert(Probe { from: to, to: from, protocol, port: *port });
                }
            }
        }
    }

    /// A port that nobody opens, between machines, to the host, and to the gateways of others.
    fn try_walls(&mut self, all: bool) {
        let port = self.known.unnamed_port();
        let mut firsts: Vec<(usize, &str)> = Vec::new();
        for domain in &self.known.rules.domains {
            let machines = domain.ports.iter().filter_map(|p| self.machines.get(&p.machine));
            // Two of each domain, so that its own machines are tried too.
            firsts.extend(machines.take(if all { usize::MAX } else { 2 }).map(|end| (*end, domain.name.as_str())));
        }
        let mut seen = BTreeSet::new();
        for (from, domain) in &firsts {
            let first = seen.insert(*domain);
            for (to, other) in &firsts {
                // The second one only within its domain, unless every pair is wanted.
                let wanted = from != to && (all || other == domain || (first && self.is_first(&firsts, *to)));
                if wanted {
                    for protocol in [Protocol::Tcp, Protocol::Udp] {
                        self.tries.insert(Probe { from: *from, to: *to, protocol, port });
                    }
                }
            }
            if all || first {
                for (name, to) in &self.gateways {
                    let protocol = Protocol::Tcp;
                    self.tries.insert(Probe { from: *from, to: *to, protocol, port: 53 });
                    if name == domain {
                        self.tries.insert(Probe { from: *from, to: *to, protocol, port });
                        self.tries.insert(Probe { from: *from, to: *to, protocol: Protocol::Udp, port });
                    }
                }
            }
        }
    }

    fn is_first(&self, firsts: &[(usize, &str)], end: usize) -> bool {
        let domain = firsts.iter().find(|(other, _)| *other == end).map(|(_, domain)| *domain);
        firsts.iter().find(|(_, other)| Some(*other) == domain).map(|(first, _)| *first) == Some(end)
    }

    fn line(&self, probe: &Probe, seen: Seen) -> Line {
        let (from_name, from) = &self.parties[probe.from];
        let (to_name, to) = &self.parties[probe.to];
        let family = Family::of(self.ends[probe.to].address);
        let protocol_of = Some(probe.protocol);
        let packet = Packet { family, from: from.clone(), to: to.clone(), protocol: protocol_of, port: probe.port };
        let verdict = verdict(&self.known.rules, &packet);
        let (seen, unknown) = match seen {
            Seen::Through => (Some(true), None),
            Seen::Nothing => (Some(false), None),
            Seen::Unknown(why) => (None, Some(why)),
        };
        Line {
            from: from_name.clone(),
            to: to_name.clone(),
            service: format!("{}/{}", probe.port, protocol(probe.protocol)),
            family: family.to_string(),
            open: verdict.accept,
            seen,
            unknown,
            why: self.known.why(verdict.reason, from_name, to_name),
        }
    }
}
