//! The model: what a project means once it was read, checked and addressed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use indexmap::IndexMap;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks the name against `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$` and a length of 1 to 63 bytes (RFC 1123).
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                if is_valid_name(&name) { Ok(Self(name)) } else { Err(InvalidName(name)) }
            }

            /// Stands where a name is wrong and the error was told: never part of a valid project.
            pub(crate) fn placeholder() -> Self {
                Self("unnamed".to_owned())
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// A domain's name, unique in its project.
    DomainName
}
name_type! {
    /// A machine's name, unique in its project (the project directory layout prefixes it with the domain).
    MachineName
}

/// A name that is not `^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a name: use lower-case letters, digits and inner hyphens, 63 at most")]
pub struct InvalidName(pub String);

fn is_valid_name(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && ok(bytes[0])
        && ok(bytes[bytes.len() - 1])
        && bytes.iter().all(|&c| ok(c) || c == b'-')
}

/// A place in a file: 1-based line and column (in characters).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The file, as the user named it (relative stays relative).
    pub file: PathBuf,
    /// 1-based line.
    pub line: u32,
    /// 1-based column, in characters.
    pub column: u32,
}

/// How the files were laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One `infra.yml`.
    SingleFile,
    /// `infra/base.yml`, `infra/domains/*.yml`, `infra/policies.yml`.
    SplitDirectory,
    /// `anklume.yml`, `domains/<name>.yml`, `policies.yml`.
    ProjectDirectory,
}

/// A whole project: valid, addressed, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Project {
    /// `project_name`.
    pub name: String,
    /// The layout that it was read from (for messages and `convert`; it never changes a meaning).
    pub layout: Layout,
    /// The file or directory that was read.
    pub source: PathBuf,
    /// Project-wide settings.
    pub global: Global,
    /// Domains in the order of the files, disabled ones included.
    pub domains: IndexMap<DomainName, Domain>,
    /// What may pass between domains.
    pub policies: Vec<Policy>,
    /// Volumes that several machines share.
    pub shared_volumes: Vec<SharedVolume>,
    /// `schema_version` of a project directory.
    pub schema_version: Option<u32>,
    /// What `nesting_prefix` put before the name of each domain and machine: empty, or `001-` and so on.
    pub name_prefix: String,
    /// The machine that filters between domains: with `firewall_mode: vm` only.
    pub firewall: Option<MachineName>,
    /// Keys kept as written for what reads them later (`network_passthrough`, `requires_anklume`).
    pub extra: IndexMap<String, serde_json::Value>,
}

impl Project {
    /// The domains that are enabled.
    pub fn enabled_domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.values().filter(|d| d.enabled)
    }

    /// Every machine of every enabled domain.
    pub fn enabled_machines(&self) -> impl Iterator<Item = &Machine> {
        self.enabled_domains().flat_map(|d| d.machines.iter())
    }
}

/// `global:` (or `anklume.yml`), with defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "each field is the key of the same name in docs/infra.md")]
pub struct Global {
    pub addressing: Addressing,
    pub default_os_image: String,
    pub default_user: Option<String>,
    pub default_connection: Option<String>,
    pub gpu_policy: GpuPolicy,
    pub firewall_mode: FirewallMode,
    pub ai_access_policy: AiAccessPolicy,
    pub ai_access_default: Option<DomainName>,
    pub ai_vram_flush: bool,
    pub nesting_prefix: bool,
    pub shared_volumes_base: PathBuf,
    pub persistent_data_base: PathBuf,
    pub resource_policy: Option<ResourcePolicy>,
}

/// How subnets are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "form", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the keys of the same names")]
pub enum Addressing {
    /// `10.<zone_base + offset of the trust level>.<seq>.0/24`.
    Zones { base_octet: u8, zone_base: u8, zone_step: u8 },
    /// The old form: `<base>.<subnet_id>.0/24`, `base` being the first two octets.
    BaseSubnet { base: [u8; 2] },
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value as it is written in a file.
            pub const CHOICES: &'static [&'static str] = &[$($text),+];

            /// Reads the text of a file.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }

            /// The text as a file has it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// How far a domain is trusted; decides its address zone.
    TrustLevel {
        /// Manages the host.
        Admin = "admin",
        /// Own work.
        Trusted = "trusted",
        /// The default.
        SemiTrusted = "semi-trusted",
        /// Software of others.
        Untrusted = "untrusted",
        /// Thrown away after use.
        Disposable = "disposable",
    }
}
choice! {
    /// What a machine is.
    MachineType {
        /// A system container.
        Lxc = "lxc",
        /// A virtual machine.
        Vm = "vm",
    }
}
choice! {
    /// Whether machines may share a GPU.
    GpuPolicy {
        /// One machine at most.
        Exclusive = "exclusive",
        /// Several, with a warning.
        Shared = "shared",
    }
}
choice! {
    /// Who filters between domains.
    FirewallMode {
        /// nftables on this host.
        Host = "host",
        /// A virtual machine with a leg in every domain.
        Vm = "vm",
    }
}
choice! {
    /// Who reaches the `ai-tools` domain.
    AiAccessPolicy {
        /// Whom the policies name.
        Open = "open",
        /// One domain at a time.
        Exclusive = "exclusive",
    }
}
choice! {
    /// Where a domain's AI requests go.
    AiProvider {
        /// This host.
        Local = "local",
        /// A provider outside.
        Cloud = "cloud",
        /// This host first.
        LocalFirst = "local-first",
    }
}
choice! {
    /// Whether AI requests are cleaned of personal data.
    AiSanitize {
        /// Never.
        No = "false",
        /// When they leave the host.
        Yes = "true",
        /// Always.
        Always = "always",
    }
}
choice! {
    /// How a resource pool is shared out.
    ShareMode {
        /// By `weight`.
        Proportional = "proportional",
        /// The same to each.
        Equal = "equal",
    }
}
choice! {
    /// In what CPU shares are given.
    CpuMode {
        /// A percentage of the host's time.
        Allowance = "allowance",
        /// Whole cores.
        Count = "count",
    }
}
choice! {
    /// Whether a memory limit may be exceeded while the host has room.
    MemoryEnforce {
        /// It may (`memory.high`, v1 soft limit).
        Soft = "soft",
        /// It may not.
        Hard = "hard",
    }
}
choice! {
    /// Who runs a machine.
    Backend {
        /// ilot itself.
        Native = "native",
        /// Incus.
        Incus = "incus",
        /// FreeBSD jails and bhyve.
        Freebsd = "freebsd",
    }
}
choice! {
    /// How strongly a machine is set apart.
    Isolation {
        /// Namespaces and the default filters.
        Basic = "basic",
        /// Stricter filters and limits.
        Enhanced = "enhanced",
        /// A micro-VM.
        Hardware = "hardware",
        /// A micro-VM with measured boot and encrypted memory where there is any.
        Cryptographic = "cryptographic",
    }
}
choice! {
    /// What a machine is for.
    MachineKind {
        /// An application.
        App = "app",
        /// An AI workload.
        Ai = "ai",
        /// A service.
        Service = "service",
        /// A place for what is not trusted.
        Sandbox = "sandbox",
        /// Development.
        Dev = "dev",
    }
}
choice! {
    /// The transport of a policy.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// `resource_policy`, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct ResourcePolicy {
    /// `20%`, or a number of cores.
    pub host_reserve_cpu: Reserve,
    /// `20%`, or bytes.
    pub host_reserve_memory: Reserve,
    pub mode: ShareMode,
    pub cpu_mode: CpuMode,
    pub memory_enforce: MemoryEnforce,
    pub overcommit: bool,
}

/// What the host keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reserve {
    /// Percent of the host.
    Percent(f64),
    /// Cores, or bytes.
    Amount(u64),
}

/// One domain: an island with its bridge, its subnet and its machines.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct Domain {
    pub name: DomainName,
    pub at: Position,
    pub description: String,
    /// `false`: nothing is made, but its addresses stay reserved.
    pub enabled: bool,
    pub trust_level: TrustLevel,
    pub subnet: Ipv4Net,
    /// Always `.254`.
    pub gateway: Ipv4Addr,
    /// `false` protects it from destroy without `--force`.
    pub ephemeral: bool,
    pub ai_provider: Option<AiProvider>,
    pub ai_sanitize: Option<AiSanitize>,
    pub profiles: IndexMap<String, Profile>,
    pub machines: Vec<Machine>,
    /// `ilot: {egress: …}`; `None` means everything may leave.
    pub egress: Option<Vec<String>>,
    /// `ilot: {amnesic: true}`.
    pub amnesic: bool,
    /// `ilot: {ipv6: …}`: whether it has IPv6 beside IPv4.
    pub ipv6: bool,
}

impl Domain {
    /// Its IPv6 subnet; `None` with `ipv6: false`.
    #[must_use]
    pub fn subnet6(&self) -> Option<Ipv6Net> {
        self.ipv6.then(|| crate::address::ipv6_subnet(self.subnet))
    }

    /// Its gateway's IPv6 address.
    #[must_use]
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then(|| crate::address::ipv6_of(self.gateway))
    }

    /// The IPv6 address of one of its machines; `None` also where the engine chooses the IPv4 address.
    #[must_use]
    pub fn ip6(&self, machine: &Machine) -> Option<Ipv6Addr> {
        machine.ip.filter(|_| self.ipv6).map(crate::address::ipv6_of)
    }
}

/// A profile: config and devices by Incus's names.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct Profile {
    pub config: IndexMap<String, String>,
    pub devices: IndexMap<String, Device>,
}

/// A device's options, `type` included.
pub type Device = IndexMap<String, String>;

/// One machine with everything inherited filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct Machine {
    pub name: MachineName,
    /// The name as its file has it: without the domain's and the nesting prefix.
    pub declared_name: String,
    pub domain: DomainName,
    pub at: Position,
    pub description: String,
    #[serde(rename = "type")]
    pub machine_type: MachineType,
    /// `None` only in the old addressing form: the engine chooses from `.100`–`.199`.
    pub ip: Option<Ipv4Addr>,
    /// Its own, else the domain's; `false` protects it.
    pub ephemeral: bool,
    pub gpu: bool,
    pub profiles: Vec<String>,
    pub weight: u32,
    pub boot_autostart: bool,
    pub boot_priority: u8,
    pub snapshots_schedule: Option<String>,
    pub snapshots_expiry: Option<String>,
    /// The image: `ilot.image`, else the machine's or the project's `os_image`.
    pub image: String,
    /// Profiles' config under the machine's own, as written (text).
    pub config: BTreeMap<String, String>,
    /// The limits in `config` (and of the resource policy), parsed.
    pub limits: Limits,
    /// Profiles' devices under the machine's own.
    pub devices: IndexMap<String, Device>,
    pub storage_volumes: IndexMap<String, serde_json::Value>,
    pub persistent_data: IndexMap<String, PersistentData>,
    pub services: Vec<serde_json::Value>,
    pub roles: Vec<String>,
    /// `vars`, `gui`, `workspace`, `openclaw_server`: kept as written for what reads them later.
    pub extra: IndexMap<String, serde_json::Value>,
    pub backend: Backend,
    pub isolation: Isolation,
    pub kind: Option<MachineKind>,
    /// What to run instead of an init system.
    pub command: Option<Vec<String>>,
    pub restart: Option<String>,
    pub health: Option<serde_json::Value>,
    pub amnesic: bool,
    pub preload: u32,
    /// `ilot: {egress: …}` of the machine itself; `None` means its domain's.
    pub egress: Option<Vec<String>>,
}

/// `persistent_data` of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct PersistentData {
    /// The directory on the host: `<persistent_data_base>/<domain>/<machine>/<name>`.
    pub source: PathBuf,
    pub path: PathBuf,
    pub readonly: bool,
}

/// Parsed `limits.*`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// `limits.cpu`.
    pub cpu: Option<CpuLimit>,
    /// `limits.cpu.allowance`.
    pub cpu_allowance: Option<CpuAllowance>,
    /// `limits.memory` in bytes (a percentage is of this host's memory).
    pub memory: Option<u64>,
    /// `limits.memory.enforce`; hard when absent.
    pub memory_enforce: Option<MemoryEnforce>,
    /// `limits.processes`.
    pub processes: Option<u64>,
}

/// `limits.cpu`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuLimit {
    /// As much time as this many CPUs have.
    Count(u32),
    /// These CPUs, in the kernel's list form (`0-1,3`).
    Set(String),
}

/// `limits.cpu.allowance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuAllowance {
    /// A percentage: a share under contention (Incus's soft limit).
    Percent(u32),
    /// A hard quota: `quota` of CPU time in each `period`, both in microseconds.
    Quota {
        /// Microseconds of CPU time.
        quota: u64,
        /// Microseconds of wall time.
        period: u64,
    },
}

/// What may pass from one side to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct Policy {
    pub at: Position,
    pub description: String,
    pub from: Endpoint,
    pub to: Endpoint,
    pub ports: Ports,
    /// `None` with `ports: all`: every protocol.
    pub protocol: Option<Protocol>,
    pub bidirectional: bool,
}

/// One side of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "name")]
pub enum Endpoint {
    /// This host.
    Host,
    /// What is neither this host nor a domain.
    Internet,
    /// Every machine of a domain.
    Domain(DomainName),
    /// One machine.
    Machine(MachineName),
}

/// The ports of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ports {
    /// Every port and protocol.
    All,
    /// These, sorted, no two equal.
    List(Vec<u16>),
}

/// A volume that several machines see.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the keys of the same names")]
pub struct SharedVolume {
    pub name: String,
    pub at: Position,
    pub source: PathBuf,
    pub path: PathBuf,
    pub shift: bool,
    pub propagate: bool,
    /// Machines (domains are resolved to their machines) and whether they may write.
    pub consumers: BTreeMap<MachineName, bool>,
}

/// What validation needs to know of this host; gathered by the caller, so that this crate stays pure.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostFacts {
    /// Online CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Subnets on the host's interfaces that are not ilot's bridges: interface name and network.
    pub subnets: Vec<(String, Ipv4Net)>,
    /// What a parent ilot/anklume wrote under `/etc/anklume/`, if we are inside one.
    pub nesting: Option<Nesting>,
}

/// The context files of a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nesting {
    /// `absolute_level`: how deep we are.
    pub absolute_level: u32,
    /// `relative_level`: how deep below the nearest VM.
    pub relative_level: u32,
    /// `vm_nested`: a VM stands above this host.
    pub vm_nested: bool,
}
