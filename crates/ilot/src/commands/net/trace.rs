//! `ilot net trace`.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ilot_net::firewall::{Family, FwPort, Packet, Party, Ruleset, verdict};
use ilot_net::trace::{Dropped, Trace};
use jiff::Zoned;
use owo_colors::OwoColorize;
use serde_json::json;

use super::{Outcome, protocol};
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Show the packets of a machine or a domain that are dropped, as it happens
///
/// What it sends and what is sent to it, whichever rule drops it, ours or somebody else's. Ends with Ctrl-C; nothing of it
/// stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net trace web
  ilot net trace pro --for 10")]
pub(crate) struct Args {
    /// A machine or a domain
    #[arg(value_name = "NAME")]
    name: String,

    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,

    /// End after so many drops
    #[arg(long, value_name = "N")]
    count: Option<usize>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let rules = engine.ruleset()?;
    let ports: Vec<&FwPort> = rules
        .domains
        .iter()
        .flat_map(|d| d.ports.iter().filter(|p| d.name == args.name || p.machine == args.name))
        .collect();
    if ports.is_empty() {
        return Err(ilot_native::Error::NoSuchName(args.name.clone()).into());
    }
    let mut trace = Trace::start(&ports).map_err(|e| CommandError::from(ilot_native::Error::from(e)))?;
    context.note(&format!("watching {}; Ctrl-C ends it", args.name));
    let end = args.seconds.map(|seconds| std::time::Instant::now() + Duration::from_secs(seconds));
    let mut told = 0;
    loop {
        let left = end.map(|end| end.saturating_duration_since(std::time::Instant::now()));
        if left == Some(Duration::ZERO) || args.count.is_some_and(|count| told >= count) {
            return Ok(0);
        }
        let patience = left.unwrap_or(Duration::from_secs(60));
        let dropped =
            trace.next(patience).map_err(|e: io::Error| CommandError::new(format!("the trace ended: {e}")))?;
        for packet in dropped {
            told += 1;
            tell(&packet, &rules, context);
        }
    }
}

fn tell(packet: &Dropped, rules: &Ruleset, context: &Context) {
    let who = Names::new(rules);
    let now = Zoned::now();
    let why = why(packet, rules);
    let (from, to) = packet.addresses.map_or((None, None), |(from, to)| (Some(from), Some(to)));
    let name = |address: Option<IpAddr>| address.map_or_else(|| "?".to_owned(), |address| who.name(address));
    let service = match (packet.transport(), packet.port, packet.protocol) {
        (Some(p), Some(port), _) => format!("{port}/{}", protocol(p)),
        (_, _, Some(1 | 58)) => "icmp".to_owned(),
        (_, _, Some(number)) => format!("protocol {number}"),
        _ => "not IP".to_owned(),
    };
    if context.json {
        ui::print_json_line(&json!({
            "time": now.timestamp(), "from": from, "to": to, "from_name": name(from), "to_name": name(to),
            "service": service, "table": packet.table, "chain": packet.chain, "reason": why,
        }));
        return;
    }
    let time = now.strftime("%H:%M:%S%.3f").to_string();
    ui::print(&format!("{} {} → {} {}: {why}", time.dimmed(), name(from), name(to), service.bold()));
}

/// Why it was dropped: what the rules say of such a packet, else the chain that did it.
fn why(packet: &Dropped, rules: &Ruleset) -> String {
    let by = format!("{} {}", packet.table, packet.chain);
    match packet.table.as_str() {
        "bridge ilot" => "a forged address, or neither IP nor ARP (table bridge ilot)".to_owned(),
        "inet ilot" | "ip ilot" | "ip6 ilot" => {
            let Some((from, to)) = packet.addresses else { return format!("not IP ({by})") };
            let who = Names::new(rules);
            let packet = Packet {
                family: Family::of(from),
                from: who.party(from),
                to: who.party(to),
                protocol: packet.transport(),
                port: packet.port.unwrap_or(0),
            };
            let verdict = verdict(rules, &packet);
            if verdict.accept { format!("belongs to no connection ({by})") } else { verdict.reason.to_string() }
        }
        _ => format!("by a rule that is not ours ({by})"),
    }
}

/// Whose address is whose.
struct Names<'a> {
    machines: BTreeMap<IpAddr, &'a str>,
    gateways: BTreeMap<IpAddr, &'a str>,
}

impl<'a> Names<'a> {
    fn new(rules: &'a Ruleset) -> Self {
        let mut names = Self { machines: BTreeMap::new(), gateways: BTreeMap::new() };
        for domain in &rules.domains {
            for family in Family::BOTH {
                names.gateways.extend(domain.gateway_of(family).map(|ip| (ip, domain.name.as_str())));
                let machines = domain.ports.iter().filter_map(|p| Some((p.ip_of(family)?, p.machine.as_str())));
                names.machines.extend(machines);
            }
        }
        names
    }

    fn name(&self, address: IpAddr) -> String {
        match (self.machines.get(&address), self.gateways.get(&address)) {
            (Some(machine), _) => (*machine).to_owned(),
            (_, Some(domain)) => format!("host ({domain}'s gateway)"),
            _ => address.to_string(),
        }
    }

    fn party(&self, address: IpAddr) -> Party {
        match (self.machines.get(&address), self.gateways.get(&address)) {
            (Some(machine), _) => Party::Machine((*machine).to_owned()),
            (_, Some(domain)) => Party::Gateway((*domain).to_owned()),
            _ if ilot_net::host_addresses().unwrap_or_default().contains(&address) => Party::Host,
            _ => Party::Outside(address),
        }
    }
}
