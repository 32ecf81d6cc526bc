//! Finding machines, domains and the networks that policies name.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::model::{Domain, Endpoint, Machine, Project};

/// A project's machines and domains by name: made once, then each look-up is constant.
#[derive(Debug, Clone)]
pub struct Index<'p> {
    project: &'p Project,
    machines: HashMap<&'p str, (&'p Domain, &'p Machine)>,
}

/// What one side of a policy is in the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Side<'p> {
    /// This host.
    Host,
    /// What is neither this host nor a domain.
    Internet,
    /// Every machine of a domain.
    Domain(&'p Domain),
    /// One machine of a domain.
    Machine(&'p Domain, &'p Machine),
}

impl<'p> Side<'p> {
    /// Its domain, if it is in one.
    #[must_use]
    pub fn domain(&self) -> Option<&'p Domain> {
        match self {
            Side::Domain(domain) | Side::Machine(domain, _) => Some(domain),
            Side::Host | Side::Internet => None,
        }
    }

    /// Its addresses: a domain's subnet, or a machine's one address (`None` while it is dynamic).
    #[must_use]
    pub fn network(&self) -> Option<Ipv4Net> {
        match self {
            Side::Domain(domain) => Some(domain.subnet),
            Side::Machine(_, machine) => machine.ip.map(Ipv4Net::from),
            Side::Host | Side::Internet => None,
        }
    }
}

impl Project {
    /// Makes the index of machines and domains.
    #[must_use]
    pub fn index(&self) -> Index<'_> {
        let machines =
            self.domains.values().flat_map(|d| d.machines.iter().map(move |m| (m.name.as_str(), (d, m)))).collect();
        Index { project: self, machines }
    }

    /// A machine by its name, with or without the nesting prefix; reads the machines one by one.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        let all = || self.domains.values().flat_map(|d| &d.machines);
        all().find(|m| m.name.as_str() == name).or_else(|| {
            let prefix = Some(&*self.name_prefix).filter(|p| !p.is_empty())?;
            all().find(|m| m.name.as_str().strip_prefix(prefix) == Some(name))
        })
    }

    /// A domain by its name, with or without the nesting prefix.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name).or_else(|| self.domains.get(format!("{}{name}", self.name_prefix).as_str()))
    }
}

impl<'p> Index<'p> {
    /// A machine and its domain.
    #[must_use]
    pub fn machine(&self, name: &str) -> Option<(&'p Domain, &'p Machine)> {
        self.machines.get(name).copied()
    }

    /// What one side of a policy is. `None` only for a name that the project does not have.
    #[must_use]
    pub fn side(&self, endpoint: &Endpoint) -> Option<Side<'p>> {
        match endpoint {
            Endpoint::Host => Some(Side::Host),
            Endpoint::Internet => Some(Side::Internet),
            Endpoint::Domain(name) => self.project.domains.get(name).map(Side::Domain),
            Endpoint::Machine(name) => self.machine(name.as_str()).map(|(d, m)| Side::Machine(d, m)),
        }
    }

    /// The addresses behind one side of a policy: see [`Side::network`].
    #[must_use]
    pub fn network_of(&self, endpoint: &Endpoint) -> Option<Ipv4Net> {
        self.side(endpoint)?.network()
    }

    /// The machine that has an address.
    #[must_use]
    pub fn machine_at(&self, address: Ipv4Addr) -> Option<&'p Machine> {
        let domain = self.project.domains.values().find(|d| d.subnet.contains(&address))?;
        domain.machines.iter().find(|m| m.ip == Some(address))
    }
}
