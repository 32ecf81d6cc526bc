//! What the rules mean: a verdict for one new connection, worked out from the model and never from the rendered text, so
//! that tests can hold the one against the other.

use std::fmt;
use std::net::IpAddr;

use super::model::{Egress, EgressTo, Family, FwDomain, FwPort, FwRule, Ports, Protocol, Ruleset, Side, name_matches};

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The version of IP.
    pub family: Family,
    /// Who begins.
    pub from: Party,
    /// With whom.
    pub to: Party,
    /// TCP, UDP, or anything else (ICMP).
    pub protocol: Option<Protocol>,
    /// The destination port; 0 where there is none.
    pub port: u16,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Party {
    /// The host, at an address that is no domain's gateway.
    Host,
    /// The host, at the gateway address of a domain.
    Gateway(String),
    /// Something that is neither host nor machine.
    Outside(IpAddr),
    /// An outside address that the name service gave for this name and that is still good.
    Name(String),
    /// A machine.
    Machine(String),
}

/// Whether a connection may begin, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may.
    pub accept: bool,
    /// Why.
    pub reason: Reason,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Both are machines of one domain.
    SameDomain,
    /// This entry of [`Ruleset::rules`].
    Rule(usize),
    /// DNS to the gateway of the own domain.
    NameService,
    /// The egress of the machine or of its domain: everything, or this entry of its list.
    Egress(Option<usize>),
    /// What the host itself begins is not filtered.
    FromHost,
    /// No machine takes part: not ours to judge.
    NotOurs,
    /// Nothing opens the way from one domain to the other.
    BetweenDomains,
    /// Nothing opens this port of the host's.
    HostClosed,
    /// The gateway of another domain is never reachable.
    OtherGateway,
    /// The machine may not reach this outside.
    EgressClosed,
    /// Nothing from outside begins a connection to a machine.
    FromOutside,
    /// No domain has a machine of this name.
    Unknown,
    /// One of the two has no IPv6.
    NoIpv6,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameDomain => "both are in the same domain",
            Self::Rule(number) => return write!(f, "policy {} opens it", number + 1),
            Self::NameService => "the domain's name service",
            Self::Egress(_) => "the egress allows it",
            Self::FromHost => "what the host begins is not filtered",
            Self::NotOurs => "no machine takes part",
            Self::BetweenDomains => "no policy opens it between these domains",
            Self::HostClosed => "no policy opens it on the host",
            Self::OtherGateway => "the gateway of another domain is never reachable",
            Self::EgressClosed => "the egress does not allow it",
            Self::FromOutside => "nothing outside may begin a connection to a machine",
            Self::Unknown => "no domain has a machine of this name",
            Self::NoIpv6 => "one of the two has no IPv6",
        })
    }
}

/// Whether the connection that `packet` would begin is let through. Answers to it always are, and a machine that forges an
/// address never gets this far.
#[must_use]
pub fn verdict(rules: &Ruleset, packet: &Packet) -> Verdict {
    let accept = |reason| Verdict { accept: true, reason };
    let refuse = |reason| Verdict { accept: false, reason };
    if packet.family == Family::V6 && [&packet.from, &packet.to].into_iter().any(|party| lacks_ipv6(rules, party)) {
        return refuse(Reason::NoIpv6);
    }
    let from = match &packet.from {
        Party::Host | Party::Gateway(_) => return accept(Reason::FromHost),
        Party::Outside(_) | Party::Name(_) => {
            let to_machine = matches!(packet.to, Party::Machine(_));
            return if to_machine { refuse(Reason::FromOutside) } else { accept(Reason::NotOurs) };
        }
        Party::Machine(name) => match find(rules, name) {
            Some(found) => found,
            None => return refuse(Reason::Unknown),
        },
    };
    let opened = |to: Target<'_>| {
        rules.rules.iter().position(|rule| opens(rule, from, to, packet)).map(|number| accept(Reason::Rule(number)))
    };
    match &packet.to {
        Party::Machine(name) => {
            let Some(to) = find(rules, name) else {
                return refuse(Reason::Unknown);
            };
            if to.0.name == from.0.name {
                return accept(Reason::SameDomain);
            }
            opened(Target::Machine(to)).unwrap_or(refuse(Reason::BetweenDomains))
        }
        Party::Gateway(domain) if *domain != from.0.name => refuse(Reason::OtherGateway),
        Party::Gateway(_) if packet.protocol.is_some() && packet.port == 53 => accept(Reason::NameService),
        Party::Gateway(_) | Party::Host => opened(Target::Host).unwrap_or(refuse(Reason::HostClosed)),
        Party::Outside(_) | Party::Name(_) => {
            let egress = from.1.egress.as_ref().unwrap_or(&from.0.egress);
            let entry = |to: &EgressTo| match (to, &packet.to) {
                (EgressTo::Net(net), Party::Outside(address)) => net.contains(address),
                (EgressTo::Name(pattern), Party::Name(name)) => name_matches(pattern, name),
                _ => false,
            };
            match egress_entry(egress, packet, entry) {
                Some(reason) => accept(reason),
                None => opened(Target::Internet).unwrap_or(refuse(Reason::EgressClosed)),
            }
        }
    }
}

/// Whether it is somebody of whom the rules know that there is no IPv6.
fn lacks_ipv6(rules: &Ruleset, party: &Party) -> bool {
    match party {
        Party::Machine(name) => find(rules, name).is_some_and(|(_, port)| port.ip6.is_none()),
        Party::Gateway(domain) => rules.domains.iter().any(|d| d.name == *domain && d.gateway6.is_none()),
        Party::Outside(address) => address.is_ipv4(),
        Party::Host | Party::Name(_) => false,
    }
}

/// As [`verdict`], but what an entry with a name opens may be any address: which ones it means only the name service knew.
pub(super) fn may_go_on(rules: &Ruleset, packet: &Packet) -> bool {
    if verdict(rules, packet).accept {
        return true;
    }
    let (Party::Machine(name), Party::Outside(_)) = (&packet.from, &packet.to) else {
        return false;
    };
    find(rules, name).is_some_and(|(domain, port)| {
        let egress = port.egress.as_ref().unwrap_or(&domain.egress);
        egress_entry(egress, packet, |to| matches!(to, EgressTo::Name(_))).is_some()
    })
}

type Found<'a> = (&'a FwDomain, &'a FwPort);

#[derive(Clone, Copy)]
enum Target<'a> {
    Host,
    Internet,
    Machine(Found<'a>),
}

fn find<'a>(rules: &'a Ruleset, machine: &str) -> Option<Found<'a>> {
    rules.domains.iter().find_map(|d| d.ports.iter().find(|p| p.machine == machine).map(|p| (d, p)))
}

fn opens(rule: &FwRule, from: Found<'_>, to: Target<'_>, packet: &Packet) -> bool {
    let forwards = is(&rule.from, Target::Machine(from)) && is(&rule.to, to);
    let backwards = rule.bidirectional && is(&rule.to, Target::Machine(from)) && is(&rule.from, to);
    // The outside never begins: a rule's `from: internet` means nothing, its other direction neither.
    transport(&rule.ports, rule.protocol, packet) && rule.from != Side::Internet && (forwards || backwards)
}

fn transport(ports: &Ports, protocol: Option<Protocol>, packet: &Packet) -> bool {
    match (ports, protocol) {
        (Ports::All, None) => true,
        (Ports::All, Some(protocol)) => packet.protocol == Some(protocol),
        (Ports::List(list), protocol) => {
            let right = packet.protocol.is_some_and(|p| protocol.is_none_or(|wanted| wanted == p));
            right && list.contains(&packet.port)
        }
    }
}

fn is(side: &Side, target: Target<'_>) -> bool {
    match (side, target) {
        (Side::Host, Target::Host) | (Side::Internet, Target::Internet) => true,
        (Side::Domain(name), Target::Machine((domain, _))) => domain.name == *name,
        (Side::Machine(name), Target::Machine((_, port))) => port.machine == *name,
        _ => false,
    }
}

fn egress_entry(egress: &Egress, packet: &Packet, means: impl Fn(&EgressTo) -> bool) -> Option<Reason> {
    if *egress == Egress::All {
        return Some(Reason::Egress(None));
    }
    let fits = |entry: &super::model::EgressEntry| means(&entry.to) && transport(&entry.ports, entry.protocol, packet);
    egress.entries().iter().position(fits).map(|number| Reason::Egress(Some(number)))
}
