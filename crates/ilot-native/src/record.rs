//! What the store remembers of machines, domains and projects.
//!
//! A record is what was applied last; the kernel is what is. The plan compares both with the file.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ilot_spec::{Isolation, Limits, Policy, TrustLevel};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// The machine of a project, or of `ilot run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its name, unique in the store.
    pub name: String,
    /// Its project; `None` for `ilot run`.
    pub project: Option<String>,
    /// Its domain; `None` without a network.
    pub domain: Option<String>,
    /// Free text.
    pub description: String,
    /// The image as the file names it.
    pub image: String,
    /// The digest that the name meant when the machine was made.
    pub image_digest: String,
    /// Whose unpacked layers it stands on: never shared between trust levels.
    pub trust: TrustLevel,
    /// First host id of its range of 65536.
    pub id_base: u32,
    /// Its address.
    pub ip: Option<Ipv4Addr>,
    /// Its hardware address.
    pub mac: Option<String>,
    /// Limits in force.
    pub limits: Limits,
    /// Environment of everything it runs.
    pub environment: BTreeMap<String, String>,
    /// What it runs instead of an init.
    pub command: Option<Vec<String>>,
    /// User of that command.
    pub user: Option<String>,
    /// Working directory of that command.
    pub cwd: Option<String>,
    /// `false` protects it.
    pub ephemeral: bool,
    /// Start it with the host.
    pub boot_autostart: bool,
    /// Higher starts first.
    pub boot_priority: u8,
    /// Roles that the file names.
    pub roles: Vec<String>,
    /// What it sees of the host's file system.
    #[serde(default)]
    pub volumes: Vec<crate::volumes::VolumeRecord>,
    /// Devices by name.
    #[serde(default)]
    pub devices: BTreeMap<String, crate::devices::DeviceRecord>,
    /// How strongly it is set apart.
    pub isolation: Isolation,
    /// Root inside is root outside: no user namespace, and the host's own ids.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Everything it writes is in memory.
    #[serde(default)]
    pub amnesic: bool,
    /// Host ids for what is nested in it (`security.nesting`): the first, and how many.
    #[serde(default)]
    pub nested_ids: Option<(u32, u32)>,
    /// Removed when it ends (`ilot run --rm`).
    #[serde(default)]
    pub remove_on_exit: bool,
    /// A terminal is its standard input and output.
    #[serde(default)]
    pub terminal: bool,
    /// The command itself is process 1 (`ilot run`), not a child of ilot's init.
    #[serde(default)]
    pub command_is_init: bool,
    /// When it was made.
    pub created_at: jiff::Timestamp,
}

impl MachineRecord {
    /// Keeps what this change does not reach: what only a new machine gets, and what only a restart gives.
    pub(crate) fn keep_of(&mut self, existing: &Self, action: ilot_plan::Action) {
        use ilot_plan::Action;
        if matches!(action, Action::Create | Action::Replace) {
            return;
        }
        self.image.clone_from(&existing.image);
        self.amnesic = existing.amnesic;
        self.privileged = existing.privileged;
        self.id_base = existing.id_base;
        if action == Action::Update {
            self.trust = existing.trust;
            self.ip = existing.ip;
            self.command.clone_from(&existing.command);
            self.environment.clone_from(&existing.environment);
            self.volumes.clone_from(&existing.volumes);
            // Relays come and go; nodes and cards are there from start to end.
            self.devices.retain(|_, device| device.is_live());
            let stay = existing.devices.iter().filter(|(_, device)| !device.is_live());
            self.devices.extend(stay.map(|(name, device)| (name.clone(), device.clone())));
            self.isolation = existing.isolation;
            self.nested_ids = existing.nested_ids;
        }
    }
}

/// A domain on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainRecord {
    /// Its name, unique in the store.
    pub name: String,
    /// Its project.
    pub project: String,
    /// Free text.
    pub description: String,
    /// Its trust level.
    pub trust: TrustLevel,
    /// Its bridge.
    pub bridge: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// First host id of its range of 65536.
    pub id_base: u32,
    /// `false` protects it.
    pub ephemeral: bool,
    /// What may leave; `None`: everything.
    #[serde(default)]
    pub egress: Option<Vec<String>>,
    /// The same of machines that have a list of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub machine_egress: BTreeMap<String, Vec<String>>,
    /// The addresses and hardware addresses that the project's file gives to its machines.
    #[serde(default)]
    pub hosts: BTreeMap<String, Ipv4Addr>,
    /// Whether it has IPv6 as well, on a host that has.
    #[serde(default)]
    pub ipv6: bool,
}

impl DomainRecord {
    /// Its IPv6 subnet.
    pub(crate) fn subnet6(&self) -> Ipv6Net {
        ilot_spec::ipv6_subnet(self.subnet)
    }

    /// The bridge's IPv6 address.
    pub(crate) fn gateway6(&self) -> Ipv6Addr {
        ilot_spec::ipv6_of(self.gateway)
    }
}

/// A project on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// Its name.
    pub name: String,
    /// The file or directory applied last.
    pub source: std::path::PathBuf,
    /// The policies in force.
    pub policies: Vec<PolicyRecord>,
}

/// A policy as the store keeps it: what it opens, without where the file says so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Free text.
    pub description: String,
    /// From whom.
    pub from: Side,
    /// To whom.
    pub to: Side,
    /// Which ports; `None`: every port and protocol.
    pub ports: Option<Vec<u16>>,
    /// `tcp` or `udp`.
    pub protocol: Option<ilot_spec::Protocol>,
    /// Both directions.
    pub bidirectional: bool,
}

/// One side of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// This host.
    Host,
    /// Outside.
    Internet,
    /// A domain.
    Domain(String),
    /// A machine.
    Machine(String),
}

impl From<&ilot_spec::Endpoint> for Side {
    fn from(endpoint: &ilot_spec::Endpoint) -> Self {
        match endpoint {
            ilot_spec::Endpoint::Host => Self::Host,
            ilot_spec::Endpoint::Internet => Self::Internet,
            ilot_spec::Endpoint::Domain(name) => Self::Domain(name.to_string()),
            ilot_spec::Endpoint::Machine(name) => Self::Machine(name.to_string()),
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Internet => f.write_str("internet"),
            Self::Domain(name) | Self::Machine(name) => f.write_str(name),
        }
    }
}

impl From<&Policy> for PolicyRecord {
    fn from(policy: &Policy) -> Self {
        Self {
            description: policy.description.clone(),
            from: (&policy.from).into(),
            to: (&policy.to).into(),
            ports: match &policy.ports {
                ilot_spec::Ports::All => None,
                ilot_spec::Ports::List(ports) => Some(ports.clone()),
            },
            protocol: policy.protocol,
            bidirectional: policy.bidirectional,
        }
    }
}

impl std::fmt::Display for PolicyRecord {
    /// `pro → ai-tools tcp 3000,8080`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.from, if self.bidirectional { "↔" } else { "→" }, self.to)?;
        match &self.ports {
            None => write!(f, " all"),
            Some(ports) => {
                let list: Vec<String> = ports.iter().map(u16::to_string).collect();
                write!(f, " {} {}", self.protocol.map_or("tcp", |p| p.as_str()), list.join(","))
            }
        }
    }
}
