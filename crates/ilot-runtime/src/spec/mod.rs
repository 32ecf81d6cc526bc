//! The OCI runtime-spec's `config.json` for Linux, as plain serde types.
//!
//! Names and meanings are those of the specification (version 1.3); a field left out of the
//! JSON is its type's empty value here and is left out again when written. Types that only
//! Windows, Solaris or VM bundles use are not modelled and are ignored on reading.

mod defaults;
mod linux;
mod resources;
mod seccomp;

pub use defaults::{
    MASKED_PATHS, READONLY_PATHS, SPEC_VERSION, capabilities_for_image_init, default_capabilities, machine_default,
    machine_mounts,
};
pub use linux::*;
pub use resources::*;
pub use seccomp::*;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Reads JSON that another program wrote: a member that is `null` counts as left out, which is how Go's encoders write an
/// empty list or map.
///
/// # Errors
/// Text that is no JSON, or has other members or values than the type.
pub fn from_json<T: serde::de::DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    let error = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(text) else { return Err(error) };
    if forget_nulls(&mut value) { serde_json::from_value(value) } else { Err(error) }
}

/// Removes members that are `null`; whether there was one.
fn forget_nulls(value: &mut serde_json::Value) -> bool {
    match value {
        serde_json::Value::Object(members) => {
            let before = members.len();
            members.retain(|_, member| !member.is_null());
            let mut found = members.len() < before;
            members.values_mut().for_each(|member| found |= forget_nulls(member));
            found
        }
        serde_json::Value::Array(items) => {
            let mut found = false;
            items.iter_mut().for_each(|item| found |= forget_nulls(item));
            found
        }
        _ => false,
    }
}

/// True for the empty value of a type: such fields are left out of the JSON.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A container: the whole `config.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the runtime-spec that the file follows (`config.md`, "Specification version").
    pub oci_version: String,
    /// The process to run; absent is allowed for `create` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The root file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Host name, set in the container's UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// NIS domain name, set in the container's UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Further mounts, made in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Commands run at fixed points of the container's life.
    #[serde(skip_serializing_if = "is_default")]
    pub hooks: Hooks,
    /// Free labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Everything that is specific to Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
}

/// The process of a container, or one that joins it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Whether a terminal is attached.
    #[serde(skip_serializing_if = "is_default")]
    pub terminal: bool,
    /// Size of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// User and groups.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// The five capability sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Whether `execve` can gain privileges.
    #[serde(skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// Value for `/proc/self/oom_score_adj`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// SELinux label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
    /// I/O priority.
    #[serde(rename = "ioPriority", skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// Scheduler policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// CPUs for processes that join with `exec`.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<ExecCpuAffinity>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// User and groups of a process, as numbers inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// Name, for platforms without numbers; on Linux ilot looks it up inside the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// Capability sets by name (`CAP_CHOWN`, …).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Bounding set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effective: Vec<String>,
    /// Inheritable set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// Permitted set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permitted: Vec<String>,
    /// Ambient set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// One resource limit, `setrlimit(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Name, `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// I/O priority, `ioprio_set(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE`, `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// Priority inside the class, 0 to 7.
    pub priority: i32,
}

/// Scheduler attributes, `sched_setattr(2)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER`, `SCHED_FIFO`, …
    pub policy: String,
    /// Nice value.
    #[serde(skip_serializing_if = "is_default")]
    pub nice: i32,
    /// Static priority.
    #[serde(skip_serializing_if = "is_default")]
    pub priority: i32,
    /// `SCHED_FLAG_…`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Nanoseconds, `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_default")]
    pub runtime: u64,
    /// Nanoseconds, `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_default")]
    pub deadline: u64,
    /// Nanoseconds, `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "is_default")]
    pub period: u64,
}

/// CPUs of a joining process before and after it enters the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecCpuAffinity {
    /// List (`0-3,7`) while the runtime still works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// List for the process itself.
    #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// The root file system of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Path, absolute or relative to the bundle.
    pub path: PathBuf,
    /// Whether the container sees it read-only.
    #[serde(skip_serializing_if = "is_default")]
    pub readonly: bool,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Where in the container, absolute.
    pub destination: String,
    /// File system type, `bind` for bind mounts.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Device, or host path of a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Options as in fstab, and the specification's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Id maps of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Id maps of an idmapped mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

impl Mount {
    /// Whether it is of control groups.
    #[must_use]
    pub fn is_cgroup(&self) -> bool {
        matches!(self.kind.as_deref(), Some("cgroup" | "cgroup2"))
    }
}

/// Commands at fixed points of the container's life (`config.md`, "POSIX-platform Hooks").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated: after the namespaces stand, in the runtime's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// During create, in the runtime's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// During create, in the container's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// During start, in the container's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// After start, in the runtime's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// After delete, in the runtime's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Program, absolute.
    pub path: PathBuf,
    /// Arguments, the first being the program's name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds until the hook is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_left_out() {
        let text = r#"{"ociVersion":"1.3.0","hooks":null,"process":{"args":["a"],"env":null,"cwd":"/","rlimits":null},
            "linux":{"namespaces":null,"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],
            "action":"SCMP_ACT_ERRNO","args":null}]}}}"#;
        let spec: Spec = from_json(text.as_bytes()).unwrap();
        assert_eq!(spec.process.unwrap().args, ["a"]);
        assert!(spec.linux.unwrap().seccomp.unwrap().syscalls[0].args.is_empty());
        let error = from_json::<Spec>(br#"{"ociVersion":"1.3.0","process":{"args":[null]}}"#).unwrap_err();
        assert!(error.line() == 1 && error.column() > 0, "{error}");
    }

    /// What the specification calls required is not made up.
    #[test]
    fn required_members() {
        for text in [
            r#"{"linux":{"seccomp":{}}}"#,
            r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"]}]}}}"#,
            r#"{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_LOG"}]}}}"#,
            r#"{"linux":{"namespaces":[{"path":"/x"}]}}"#,
            r#"{"process":{"rlimits":[{"type":"RLIMIT_CORE","soft":1}]}}"#,
        ] {
            assert!(from_json::<Spec>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
