//! `ilot net explain`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ilot_net::firewall::{Family, Packet, Party, Ports, Protocol, Reason, Side, verdict};
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::json;

use super::{From, Known, Outcome, Why, line, protocol};
use crate::context::Context;
use crate::error::CommandError;
use crate::ui;

/// Say whether a connection may be made: allowed or dropped, by what, and by which line of the file
///
/// Nothing is tried and nothing needs to run: the answer comes from the rules. Without a port, every port is told that the
/// rules treat in a way of its own, and what happens to all others. IPv4 and IPv6 are told apart only where they differ.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot net explain pro-dev ai-llm 3000/tcp
  ilot net explain pro perso              what is open between two domains
  ilot net explain pro-dev host 22        TCP and UDP
  ilot net explain web deb.debian.org 443/tcp
  ilot net explain web 192.0.2.7 icmp
  ilot net explain web 2001:db8::7 443")]
pub(crate) struct Args {
    /// Who begins: a machine, a domain, `host`, `internet` or an address
    #[arg(value_name = "FROM")]
    begins: String,

    /// With whom: a machine, a domain, `host`, `internet`, an address or a host name outside
    #[arg(value_name = "TO")]
    to: String,

    /// `443/tcp`, `443` (TCP and UDP) or `icmp`
    #[arg(value_name = "PORT/PROTO", value_parser = service)]
    service: Option<Services>,

    #[command(flatten)]
    pub(super) from: From,
}

/// What the third argument means.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Services(Vec<Service>);

/// What is asked for; no protocol: ICMP and its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    protocol: Option<Protocol>,
    /// `None`: a port that no rule names.
    port: Option<u16>,
}

/// What no rule names.
const REST: [&str; 3] = ["other/tcp", "other/udp", "icmp"];

/// The answer for one pair and one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Answer {
    from: String,
    to: String,
    service: String,
    /// Where it is true of one version of IP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    allowed: bool,
    #[serde(flatten)]
    why: Why,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let known = Known::read(&args.from, context)?;
    let address = |text: &str| text.parse::<IpAddr>().ok().map(Family::of);
    let answers = match (address(&args.begins), address(&args.to)) {
        (Some(from), Some(to)) if from != to => {
            return Err(CommandError::new(format!("`{}` is {from}, and `{}` is {to}", args.begins, args.to))
                .hint("a connection has one version of IP at both ends"));
        }
        (None, None) => both(known.answers(args, Family::V4)?, known.answers(args, Family::V6)?),
        (from, to) => {
            let family = from.or(to).unwrap_or(Family::V4);
            known.answers(args, family)?.into_iter().map(|(answer, _)| answer).collect()
        }
    };
    if context.json {
        ui::print_json(&json!({ "from": args.begins, "to": args.to, "answers": answers }));
        return Ok(0);
    }
    for answer in &answers {
        ui::write_out(&show(answer));
    }
    Ok(0)
}

/// The answers for IPv4 and for IPv6 as one list: what both have is said once. That somebody has no IPv6 is no answer to a
/// question that did not ask for it.
fn both(ipv4: Vec<(Answer, bool)>, ipv6: Vec<(Answer, bool)>) -> Vec<Answer> {
    let ipv6: Vec<Answer> = ipv6.into_iter().filter(|(_, none)| !none).map(|(answer, _)| answer).collect();
    let ipv4: Vec<Answer> = ipv4.into_iter().map(|(answer, _)| answer).collect();
    if ipv6.is_empty() {
        return ipv4;
    }
    let mark = |answer: &Answer, family: Family, others: &[Answer]| {
        let family = (!others.contains(answer)).then(|| family.to_string());
        Answer { family, ..answer.clone() }
    };
    let mut all: Vec<Answer> = ipv4.iter().map(|answer| mark(answer, Family::V4, &ipv6)).collect();
    let only6 = ipv6.iter().map(|answer| mark(answer, Family::V6, &ipv4));
    all.extend(only6.filter(|answer| answer.family.is_some()));
    all
}

impl Known {
    /// What is true of one version of IP; with each answer, whether it is that there is no IPv6.
    fn answers(&self, args: &Args, family: Family) -> Result<Vec<(Answer, bool)>, CommandError> {
        let known = self;
        let from = known.parties(&args.begins, false, family)?;
        let to = known.parties(&args.to, true, family)?;
        let mut answers: Vec<Answer> = Vec::new();
        let mut none = Vec::new();
        for (from_name, from) in &from {
            for (to_name, to) in to.iter().filter(|(name, _)| name != from_name || to.len() == 1) {
                // A machine meets the host at its own gateway.
                let to = match (to, from) {
                    (Party::Host, Party::Machine(machine)) => {
                        known.domain_of(machine).map_or(Party::Host, |domain| Party::Gateway(domain.name.clone()))
                    }
                    _ => to.clone(),
                };
                let services = args.service.as_ref().map_or_else(|| known.services(), |services| services.0.clone());
                for service in services {
                    let port = service.port.unwrap_or_else(|| known.unnamed_port());
                    let packet =
                        Packet { family, from: from.clone(), to: to.clone(), protocol: service.protocol, port };
                    let verdict = verdict(&known.rules, &packet);
                    let why = known.why(verdict.reason, from_name, to_name);
                    if verdict.reason == Reason::NoIpv6 {
                        none.push(why.clone());
                    }
                    let (from, to) = (from_name.clone(), to_name.clone());
                    answers.push(Answer {
                        from,
                        to,
                        service: text(service),
                        family: None,
                        allowed: verdict.accept,
                        why,
                    });
                }
            }
        }
        let answers = join(answers, &args.begins, &args.to, from.len(), to.len());
        Ok(answers
            .into_iter()
            .map(|answer| {
                let no = none.contains(&answer.why);
                (answer, no)
            })
            .collect())
    }
}

fn show(answer: &Answer) -> String {
    let Answer { from, to, service, family, allowed, why } = answer;
    let word = if *allowed { "allowed".green().to_string() } else { "dropped".red().to_string() };
    let at = why.at.as_ref().map_or(String::new(), |at| format!(", {}", line(at)));
    let family = family.as_ref().map_or(String::new(), |family| format!(" over {family}"));
    format!("{from} → {to} {}{family}: {word}\n  {}{at}\n", service.bold(), why.reason)
}

/// Puts together what has one answer: services of a pair, then pairs when every pair of the two sides has it.
fn join(answers: Vec<Answer>, from: &str, to: &str, froms: usize, tos: usize) -> Vec<Answer> {
    let mut joined: Vec<Answer> = Vec::new();
    for answer in answers {
        let same = |other: &&mut Answer| {
            other.from == answer.from
                && other.to == answer.to
                && other.allowed == answer.allowed
                && other.why == answer.why
        };
        match joined.iter_mut().find(same) {
            Some(other) => other.service = format!("{}, {}", other.service, answer.service),
            None => joined.push(answer),
        }
    }
    for number in 0..joined.len() {
        let answer = &joined[number];
        if !REST.iter().all(|rest| answer.service.split(", ").any(|service| service == *rest)) {
            continue;
        }
        let alone = joined.iter().filter(|other| other.from == answer.from && other.to == answer.to).count() == 1;
        joined[number].service = if alone { "everything" } else { "everything else" }.to_owned();
    }
    // What is left over comes last.
    joined.sort_by_key(|answer| answer.service.starts_with("everything"));
    let pairs = if from == to { froms * tos.saturating_sub(1) } else { froms * tos };
    if pairs < 2 {
        return joined;
    }
    let mut whole: Vec<Answer> = Vec::new();
    for answer in &joined {
        let like = |other: &&Answer| {
            other.service == answer.service && other.allowed == answer.allowed && other.why == answer.why
        };
        let everyone = joined.iter().filter(like).count() == pairs;
        let answer =
            if everyone { Answer { from: from.into(), to: to.into(), ..answer.clone() } } else { answer.clone() };
        if !whole.contains(&answer) {
            whole.push(answer);
        }
    }
    whole
}

fn text(service: Service) -> String {
    match (service.protocol, service.port) {
        (None, _) => "icmp".to_owned(),
        (Some(p), Some(port)) => format!("{port}/{}", protocol(p)),
        (Some(p), None) => format!("other/{}", protocol(p)),
    }
}

/// Reads the third argument.
fn service(text: &str) -> Result<Services, String> {
    const WANTED: &str = "write it as `443/tcp`, `53/udp`, `443` or `icmp`";
    if text == "icmp" {
        return Ok(Services(vec![Service { protocol: None, port: None }]));
    }
    let (port, protocols) = match text.split_once('/') {
        None => (text, vec![Protocol::Tcp, Protocol::Udp]),
        Some((port, "tcp")) => (port, vec![Protocol::Tcp]),
        Some((port, "udp")) => (port, vec![Protocol::Udp]),
        Some(_) => return Err(WANTED.to_owned()),
    };
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(WANTED)?;
    Ok(Services(protocols.into_iter().map(|p| Service { protocol: Some(p), port: Some(port) }).collect()))
}

impl Known {
    /// What a name of the command line means: one party, or every machine of a domain.
    fn parties(&self, name: &str, receiver: bool, family: Family) -> Result<Vec<(String, Party)>, CommandError> {
        let one = |party| Ok(vec![(name.to_owned(), party)]);
        match name {
            "host" => return one(Party::Host),
            // An address that no list names: what is true of it is true of the outside as such.
            "internet" => {
                return one(Party::Outside(match family {
                    Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
                    Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
                }));
            }
            _ => {}
        }
        if let Some(domain) = self.rules.domains.iter().find(|d| d.name == name) {
            let machines = domain.ports.iter().map(|p| (p.machine.clone(), Party::Machine(p.machine.clone())));
            return Ok(machines.collect());
        }
        if self.domain_of(name).is_some() {
            return one(Party::Machine(name.to_owned()));
        }
        if let Ok(address) = name.parse::<IpAddr>() {
            return one(self.at_address(address));
        }
        if receiver && name.contains('.') {
            return one(Party::Name(name.trim_end_matches('.').to_ascii_lowercase()));
        }
        let known = self
            .rules
            .domains
            .iter()
            .flat_map(|d| std::iter::once(d.name.as_str()).chain(d.ports.iter().map(|p| p.machine.as_str())));
        let near = ilot_spec::nearest(name, known.chain(["host", "internet"]));
        Err(CommandError::new(format!("no machine or domain `{name}` in these rules"))
            .maybe_hint(near.map(|near| format!("did you mean `{near}`?")))
            .hint("a machine, a domain, `host`, `internet` or an address; a host name only as the second"))
    }

    fn at_address(&self, address: IpAddr) -> Party {
        let family = Family::of(address);
        for domain in &self.rules.domains {
            if domain.gateway_of(family) == Some(address) {
                return Party::Gateway(domain.name.clone());
            }
            if let Some(port) = domain.ports.iter().find(|p| p.ip_of(family) == Some(address)) {
                return Party::Machine(port.machine.clone());
            }
        }
        Party::Outside(address)
    }

    /// Every service that some rule treats in a way of its own, then any other, then ICMP.
    fn services(&self) -> Vec<Service> {
        let mut services = vec![53];
        for rule in &self.rules.rules {
            if let Ports::List(list) = &rule.ports {
                services.extend(list);
            }
        }
        for domain in &self.rules.domains {
            let own = domain.ports.iter().filter_map(|p| p.egress.as_ref());
            for entry in own.chain([&domain.egress]).flat_map(ilot_net::firewall::Egress::entries) {
                if let Ports::List(list) = &entry.ports {
                    services.extend(list);
                }
            }
        }
        services.sort_unstable();
        services.dedup();
        let both = [Protocol::Tcp, Protocol::Udp];
        let with = |port| both.map(|protocol| Service { protocol: Some(protocol), port });
        let mut all: Vec<Service> = services.into_iter().flat_map(|port| with(Some(port))).collect();
        all.extend(with(None));
        all.push(Service { protocol: None, port: None });
        all
    }

    /// A port that no rule names.
    pub(super) fn unnamed_port(&self) -> u16 {
        let named: Vec<u16> = self.services().iter().filter_map(|service| service.port).collect();
        (40_000..=u16::MAX).find(|port| !named.contains(port)).unwrap_or(9)
    }
}

/// Whether the side of a rule can be this machine's.
pub(super) fn concerns(side: &Side, machine: &str, domain: &str) -> bool {
    match side {
        Side::Domain(name) => name == domain,
        Side::Machine(name) => name == machine,
        Side::Host | Side::Internet => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read() {
        let one = |protocol, port| Service { protocol, port };
        assert_eq!(service("443/tcp"), Ok(Services(vec![one(Some(Protocol::Tcp), Some(443))])));
        assert_eq!(service("53").unwrap().0.len(), 2);
        assert_eq!(service("icmp"), Ok(Services(vec![one(None, None)])));
        for bad in ["0", "70000", "443/sctp", "x", ""] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }
}
