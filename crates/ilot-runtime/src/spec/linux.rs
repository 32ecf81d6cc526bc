//! `linux` of the runtime-spec (`config-linux.md`).

use super::{Resources, Seccomp, is_default};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The Linux part of a container's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// User ids inside and outside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids inside and outside.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
    /// Kernel parameters of the container's namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Where in the cgroup hierarchies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_path: Option<String>,
    /// Namespaces to make or to join.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// Device nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Network devices moved into the container, by name on the host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub net_devices: BTreeMap<String, NetDevice>,
    /// System call filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    /// `shared`, `slave`, `private`, `unbindable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_propagation: Option<String>,
    /// Paths that the container cannot read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub masked_paths: Vec<String>,
    /// Paths that the container cannot write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readonly_paths: Vec<String>,
    /// SELinux label of the mounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
    /// Intel Resource Director Technology.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<IntelRdt>,
    /// Execution domain, `personality(2)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
    /// Offsets of the time namespace by clock name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// NUMA memory policy, `set_mempolicy(2)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
}

impl Linux {
    /// Whether a new namespace of this kind is made.
    pub fn makes(&self, kind: NamespaceKind) -> bool {
        self.namespaces.iter().any(|n| n.kind == kind && n.path.is_none())
    }

    /// Whether a namespace of this kind is made or joined.
    pub fn has_namespace(&self, kind: NamespaceKind) -> bool {
        self.namespaces.iter().any(|n| n.kind == kind)
    }
}

/// One line of an id map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

impl IdMapping {
    /// The id outside for `id` inside, looked up in a map.
    pub fn to_host(map: &[Self], id: u32) -> Option<u32> {
        map.iter().find_map(|m| {
            let offset = id.checked_sub(m.container_id)?;
            (offset < m.size).then(|| m.host_id.checked_add(offset))?
        })
    }
}

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Which.
    #[serde(rename = "type")]
    pub kind: NamespaceKind,
    /// An existing one to join; a new one without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// Kinds of namespaces by the specification's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// `CLONE_NEWPID`
    Pid,
    /// `CLONE_NEWNET`
    Network,
    /// `CLONE_NEWNS`
    Mount,
    /// `CLONE_NEWIPC`
    Ipc,
    /// `CLONE_NEWUTS`
    Uts,
    /// `CLONE_NEWUSER`
    User,
    /// `CLONE_NEWCGROUP`
    Cgroup,
    /// `CLONE_NEWTIME`
    Time,
}

/// One device node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path inside.
    pub path: String,
    /// Major number.
    #[serde(skip_serializing_if = "is_default")]
    pub major: i64,
    /// Minor number.
    #[serde(skip_serializing_if = "is_default")]
    pub minor: i64,
    /// Permissions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A network device moved in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Name inside; the host's name without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Intel RDT class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IntelRdt {
    /// Class of service.
    #[serde(rename = "closID", skip_serializing_if = "Option::is_none")]
    pub clos_id: Option<String>,
    /// Lines for the `schemata` file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// L3 cache schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Whether a monitoring group is made.
    #[serde(skip_serializing_if = "is_default")]
    pub enable_monitoring: bool,
    /// The same in older versions, for the occupancy of the cache.
    #[serde(rename = "enableCMT", skip_serializing_if = "is_default")]
    pub enable_cmt: bool,
    /// The same in older versions, for the bandwidth of memory.
    #[serde(rename = "enableMBM", skip_serializing_if = "is_default")]
    pub enable_mbm: bool,
}

/// Execution domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// Flags; none is defined yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// Offset of one clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub nanosecs: u32,
}

/// NUMA memory policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    /// `MPOL_BIND`, …
    pub mode: String,
    /// List of nodes.
    #[serde(skip_serializing_if = "is_default")]
    pub nodes: String,
    /// `MPOL_F_…`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}
