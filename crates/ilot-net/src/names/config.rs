//! What a domain's name service knows.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::firewall::{Egress, EgressEntry, EgressTo, name_matches};

/// The configuration of one domain's name service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesConfig {
    /// The domain.
    pub domain: String,
    /// The address to listen on: the domain's gateway. Port 53.
    pub listen: Ipv4Addr,
    /// Whom to answer.
    pub subnet: Ipv4Net,
    /// The domain's machines.
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// The gateway's IPv6 address, to listen on as well; `None` in a domain without IPv6.
    #[serde(default)]
    pub listen6: Option<Ipv6Addr>,
    /// The machines' IPv6 addresses. Whoever asks over IPv6 must have one of them.
    #[serde(default)]
    pub hosts6: BTreeMap<String, Ipv6Addr>,
    /// Whom to ask for other names; none: such names are refused (a domain without egress).
    pub upstreams: Vec<SocketAddr>,
    /// What may follow a machine's name, besides nothing: `<domain>.ilot` and `<domain>`. The first one is what `search` in
    /// a machine's `resolv.conf` should say, and what reverse look-ups answer.
    pub search: Vec<String>,
    /// The domain's bridge: whom an address is opened for.
    #[serde(default)]
    pub bridge: String,
    /// Which other names its machines may ask for.
    #[serde(default)]
    pub others: Others,
    /// The same for machines with a list of their own.
    #[serde(default)]
    pub own: BTreeMap<Ipv4Addr, Others>,
}

/// Which names that are not ours may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Others {
    /// Every name.
    #[default]
    All,
    /// None.
    None,
    /// What these entries name; the addresses of an answer are opened as its entries say.
    Names(Vec<EgressEntry>),
}

impl Others {
    /// What an egress list means for names: a list of networks alone forbids no name, one with names allows only those.
    #[must_use]
    pub fn of(egress: &Egress) -> Self {
        let names: Vec<EgressEntry> = egress.names().map(|(_, entry)| entry.clone()).collect();
        match egress {
            Egress::None => Self::None,
            _ if names.is_empty() => Self::All,
            _ => Self::Names(names),
        }
    }

    /// Whether the name may be asked for.
    pub(super) fn allow(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Names(_) => self.entries(name).next().is_some(),
        }
    }

    /// The entries that mean a name.
    pub(super) fn entries<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a EgressEntry> {
        let list = if let Self::Names(list) = self { list.as_slice() } else { &[] };
        list.iter().filter(move |entry| matches!(&entry.to, EgressTo::Name(pattern) if name_matches(pattern, name)))
    }
}

impl NamesConfig {
    /// A domain without machines yet; `gateway` is the bridge's address with the subnet's length.
    #[must_use]
    pub fn new(domain: &str, gateway: Ipv4Net) -> Self {
        Self {
            domain: domain.to_owned(),
            listen: gateway.addr(),
            subnet: gateway.trunc(),
            hosts: BTreeMap::new(),
            listen6: None,
            hosts6: BTreeMap::new(),
            upstreams: Vec::new(),
            search: vec![format!("{domain}.ilot"), domain.to_owned()],
            bridge: String::new(),
            others: Others::All,
            own: BTreeMap::new(),
        }
    }

    /// The IPv4 address of whoever asks from an address: a machine is known by that. `None`: nobody to be answered.
    pub(super) fn client(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => self.subnet.contains(&address).then_some(address),
            IpAddr::V6(address) if self.listen6 == Some(address) => Some(self.listen),
            IpAddr::V6(address) => {
                let (machine, _) = self.hosts6.iter().find(|(_, ip)| **ip == address)?;
                self.hosts.get(machine).copied()
            }
        }
    }

    /// The IPv6 address of the machine that has an IPv4 address.
    pub(super) fn ipv6_of(&self, client: Ipv4Addr) -> Option<Ipv6Addr> {
        let (machine, _) = self.hosts.iter().find(|(_, ip)| **ip == client)?;
        self.hosts6.get(machine).copied()
    }

    /// Which names a machine may ask for.
    pub(super) fn others_of(&self, client: Ipv4Addr) -> &Others {
        self.own.get(&client).unwrap_or(&self.others)
    }

    /// Whether anybody may ask for any other name.
    #[must_use]
    pub fn asks_upstreams(&self) -> bool {
        self.every_list().any(|others| *others != Others::None)
    }

    /// Whether answers open addresses.
    pub(super) fn opens(&self) -> bool {
        self.every_list().any(|others| matches!(others, Others::Names(_)))
    }

    fn every_list(&self) -> impl Iterator<Item = &Others> {
        std::iter::once(&self.others).chain(self.own.values())
    }

    /// A short text that differs for different configurations.
    pub(super) fn digest(&self) -> String {
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(&bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}
