//! What may pass: the model that is rendered, and that tests and explanations reason about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::naming::Mac;

/// Everything that the packet filter knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ruleset {
    /// The domains whose bridges stand; all of them, of every project.
    pub domains: Vec<FwDomain>,
    /// What is open between them, besides what always is.
    pub rules: Vec<FwRule>,
}

/// A domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwDomain {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The host's address in it.
    pub gateway: Ipv4Addr,
    /// Its IPv6 subnet; `None`: nothing of IPv6 passes from or to it.
    #[serde(default)]
    pub subnet6: Option<Ipv6Net>,
    /// The host's IPv6 address in it.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// What may leave to the outside.
    pub egress: Egress,
    /// Its machines' ports, attached or not yet.
    pub ports: Vec<FwPort>,
}

/// The port of a machine: nothing but this address pair may come from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwPort {
    /// The host end.
    pub ifname: String,
    /// The machine.
    pub machine: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address, in a domain that has them.
    #[serde(default)]
    pub ip6: Option<Ipv6Addr>,
    /// Its hardware address.
    pub mac: Mac,
    /// What it may reach outside of this host, where that is not what its domain may.
    pub egress: Option<Egress>,
    /// How much it may send and receive.
    #[serde(default)]
    pub rates: Rates,
}

/// How much may pass a port, in bytes per second, with the frames' headers. What is above is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// To the machine.
    pub ingress: Option<u64>,
    /// From the machine.
    pub egress: Option<u64>,
}

/// What a domain or a machine may reach outside of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    /// Everything.
    #[default]
    All,
    /// Nothing but what rules to [`Side::Internet`] open.
    None,
    /// These, and what rules open.
    List(Vec<EgressEntry>),
}

impl FwDomain {
    /// The host's address in it.
    #[must_use]
    pub fn gateway_of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.gateway.into()),
            Family::V6 => self.gateway6.map(IpAddr::V6),
        }
    }
}

impl FwPort {
    /// The machine's address.
    #[must_use]
    pub fn ip_of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.ip.into()),
            Family::V6 => self.ip6.map(IpAddr::V6),
        }
    }
}

impl Ruleset {
    /// Whether any domain has IPv6.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.domains.iter().any(|domain| domain.subnet6.is_some())
    }
}

impl Egress {
    /// Networks and ports (TCP and UDP).
    #[must_use]
    pub fn nets(list: Vec<(IpNet, Ports)>) -> Self {
        let entry = |(net, ports)| EgressEntry { to: EgressTo::Net(net), ports, protocol: None };
        Self::List(list.into_iter().map(entry).collect())
    }

    /// The entries of a list.
    #[must_use]
    pub fn entries(&self) -> &[EgressEntry] {
        match self {
            Self::List(list) => list,
            Self::All | Self::None => &[],
        }
    }

    /// The names that it opens, with the entry of each.
    pub fn names(&self) -> impl Iterator<Item = (&str, &EgressEntry)> {
        self.entries().iter().filter_map(|entry| match &entry.to {
            EgressTo::Name(name) => Some((name.as_str(), entry)),
            EgressTo::Net(_) => None,
        })
    }
}

/// One entry of an egress list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressEntry {
    /// Where to.
    pub to: EgressTo,
    /// At which ports.
    pub ports: Ports,
    /// `None`: TCP and UDP for a list of ports, every protocol for all ports.
    pub protocol: Option<Protocol>,
}

/// Where an egress entry leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressTo {
    /// A network.
    Net(IpNet),
    /// The addresses that the domain's name service gave for a name, as long as it said that they are good for. `*.` in
    /// front means every name below.
    Name(String),
}

/// Whether a name (lower case, no dot at its end) is what an entry's name means.
#[must_use]
pub fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => name.strip_suffix(parent).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        None => name == pattern,
    }
}

/// Destination ports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// Every port.
    #[default]
    All,
    /// These.
    List(Vec<u16>),
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// An address's.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One side of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// This host. Nothing from the host to machines is ever filtered: as `from` it opens nothing more.
    Host,
    /// What is neither this host nor a domain; only as `to`.
    Internet,
    /// Every machine of a domain.
    Domain(String),
    /// One machine.
    Machine(String),
}

/// One opening. A side that names nothing in [`Ruleset::domains`] opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwRule {
    /// Who may begin.
    pub from: Side,
    /// With whom.
    pub to: Side,
    /// At which ports of `to`.
    pub ports: Ports,
    /// `None`: TCP and UDP for a list of ports, every protocol (ICMP too) for all ports.
    pub protocol: Option<Protocol>,
    /// Whether `to` may begin as well, at the same ports of `from`.
    pub bidirectional: bool,
    /// Where it comes from; shown by explanations.
    pub comment: String,
}
