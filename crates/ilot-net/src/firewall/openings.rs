//! Rules as elements of sets: which set an opening belongs to, and its key.
//!
//! A verdict costs one look-up per kind of opening that occurs, however many openings there are. Domains are matched by
//! their bridge and machines by their address, so every set is a plain hash set.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::model::{Family, FwDomain, FwPort, FwRule, Ports, Protocol, Ruleset, Side};

/// Where an opening leads; each is asked in a chain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    Between,
    Host,
    Internet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Domain,
    Machine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Everything,
    Protocol,
    Port,
}

/// One set: what its key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub place: Where,
    from: Party,
    /// `None` for host and internet.
    to: Option<Party>,
    what: What,
    /// Of machines, which are matched by their addresses; bridges have no version.
    family: Family,
}

impl Kind {
    /// The set's name, which says what it opens: `domain_to_machine_port`.
    pub fn set(self) -> String {
        let party = |p| if p == Party::Domain { "domain" } else { "machine" };
        let to = match (self.place, self.to) {
            (Where::Host, _) => "host",
            (Where::Internet, _) => "internet",
            (Where::Between, to) => to.map_or("", party),
        };
        let what = match self.what {
            What::Everything => "",
            What::Protocol => "_protocol",
            What::Port => "_port",
        };
        let family = if self.family == Family::V4 { "" } else { "6" };
        format!("{}_to_{to}{what}{family}", party(self.from))
    }

    /// The type of the set's keys.
    pub fn key_type(self) -> String {
        let address = if self.family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        let party = |p| if p == Party::Domain { "ifname" } else { address };
        self.fields(party, party, "inet_proto", "inet_service")
    }

    /// The expression that is looked up.
    pub fn expression(self) -> String {
        let (source, destination) =
            if self.family == Family::V4 { ("ip saddr", "ip daddr") } else { ("ip6 saddr", "ip6 daddr") };
        let from = |p| if p == Party::Domain { "iifname" } else { source };
        let to = |p| if p == Party::Domain { "oifname" } else { destination };
        self.fields(from, to, "meta l4proto", "th dport")
    }

    fn fields(
        self,
        from: impl Fn(Party) -> &'static str,
        to: impl Fn(Party) -> &'static str,
        protocol: &str,
        port: &str,
    ) -> String {
        let mut text = from(self.from).to_owned();
        if let Some(party) = self.to {
            let _ = write!(text, " . {}", to(party));
        }
        if self.what != What::Everything {
            let _ = write!(text, " . {protocol}");
        }
        if self.what == What::Port {
            let _ = write!(text, " . {port}");
        }
        text
    }
}

/// Every set that is needed, its keys, and what to write beside each.
pub type Openings = BTreeMap<Kind, BTreeMap<String, String>>;

/// Sorts the rules into sets.
pub fn openings(rules: &Ruleset) -> Openings {
    let index = Index::new(rules);
    let mut openings = Openings::new();
    for rule in &rules.rules {
        // The outside never begins; the host needs no opening to.
        if rule.from == Side::Internet {
            continue;
        }
        for family in Family::BOTH {
            index.add(&mut openings, rule, family, &rule.from, &rule.to);
            if rule.bidirectional {
                index.add(&mut openings, rule, family, &rule.to, &rule.from);
            }
        }
    }
    openings
}

struct Index<'a> {
    domains: BTreeMap<&'a str, &'a FwDomain>,
    machines: BTreeMap<&'a str, (&'a FwDomain, &'a FwPort)>,
}

impl<'a> Index<'a> {
    fn new(rules: &'a Ruleset) -> Self {
        let domains = rules.domains.iter().map(|d| (d.name.as_str(), d)).collect();
        let ports = rules.domains.iter().flat_map(|d| d.ports.iter().map(move |p| (p.machine.as_str(), (d, p))));
        Self { domains, machines: ports.collect() }
    }

    /// The domain of a side, how it is matched, and its part of the key with the interface or address.
    fn party(&self, side: &Side, family: Family) -> Option<(&'a str, Party, String)> {
        match side {
            Side::Domain(name) => {
                let domain = self.domains.get(name.as_str())?;
                Some((&domain.name, Party::Domain, super::render::quote(&domain.bridge)))
            }
            Side::Machine(name) => {
                let (domain, port) = self.machines.get(name.as_str())?;
                Some((&domain.name, Party::Machine, port.ip_of(family)?.to_string()))
            }
            Side::Host | Side::Internet => None,
        }
    }

    fn add(&self, openings: &mut Openings, rule: &FwRule, family: Family, from: &Side, to: &Side) {
        let Some((domain, from, mut key)) = self.party(from, family) else {
            return;
        };
        let (place, to) = match to {
            Side::Host => (Where::Host, None),
            Side::Internet => (Where::Internet, None),
            side => match self.party(side, family) {
                // Within a domain everything passes already.
                Some((other, party, part)) if other != domain => {
                    let _ = write!(key, " . {part}");
                    (Where::Between, Some(party))
                }
                _ => return,
            },
        };
        // Bridges alone mean both versions at once.
        if family == Family::V6 && from == Party::Domain && to != Some(Party::Machine) {
            return;
        }
        let mut insert = |what, key: String| {
            let comments = openings.entry(Kind { place, from, to, what, family }).or_default();
            comments.entry(key).or_insert_with(|| rule.comment.clone());
        };
        match (&rule.ports, rule.protocol) {
            (Ports::All, None) => insert(What::Everything, key),
            (Ports::All, Some(protocol)) => insert(What::Protocol, format!("{key} . {}", text(protocol))),
            (Ports::List(ports), protocol) => {
                for protocol in protocol.map_or(vec![Protocol::Tcp, Protocol::Udp], |p| vec![p]) {
                    for port in ports {
                        insert(What::Port, format!("{key} . {} . {port}", text(protocol)));
                    }
                }
            }
        }
    }
}

pub fn text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
