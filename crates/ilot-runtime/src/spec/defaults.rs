//! Safe defaults: what a machine gets when nothing else is asked for.

use super::{Capabilities, IdMapping, Linux, Mount, Namespace, NamespaceKind, Process, Spec};

/// Version of the runtime-spec that is written.
pub const SPEC_VERSION: &str = "1.3.0";

/// Paths that a container cannot read: they tell about, or act on, the whole host.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/tracing",
];

/// Paths that a container can read only.
pub const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Capabilities of an ordinary container: what daemons that drop privileges need, and no more.
const BASE: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What an image's own init needs beside, all of it inside its own user namespace only.
const INIT: &[&str] = &[
    "CAP_SYS_ADMIN",
    "CAP_NET_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TTY_CONFIG",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_OWNER",
    "CAP_IPC_LOCK",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BROADCAST",
    "CAP_AUDIT_CONTROL",
];

fn sets(names: impl Iterator<Item = &'static &'static str>) -> Capabilities {
    let list: Vec<String> = names.map(|s| (*s).to_owned()).collect();
    Capabilities { bounding: list.clone(), effective: list.clone(), permitted: list, ..Default::default() }
}

/// The short capability list of ordinary containers.
pub fn default_capabilities() -> Capabilities {
    sets(BASE.iter())
}

/// The list for a container whose pid 1 is the image's own init (systemd and others).
pub fn capabilities_for_image_init() -> Capabilities {
    sets(BASE.iter().chain(INIT))
}

/// The mounts of a machine: `/proc`, `/sys`, `/dev` with what belongs in it, `/run`; for an
/// image's own init also the control groups.
pub fn machine_mounts(image_init: bool) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        options: options.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=50%"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
    ];
    if image_init {
        mounts.push(mount("/sys/fs/cgroup", "cgroup2", &["nosuid", "noexec", "nodev"]));
    }
    mounts
}

/// A safe container to start from: own namespaces of every kind, the given range of host ids,
/// the short capability list, `no_new_privs`, masked and read-only paths, the default seccomp
/// filter. The caller sets `process.args`, `hostname`, `linux.cgroups_path` and limits.
///
/// `image_init` is for a container that boots its image's own init: it may mount and has more
/// capabilities, all of them inside its own user namespace.
pub fn machine_default(ids: IdMapping, image_init: bool) -> Spec {
    use crate::seccomp::{DefaultKind, default_profile};
    let namespaces = [
        NamespaceKind::User,
        NamespaceKind::Mount,
        NamespaceKind::Pid,
        NamespaceKind::Network,
        NamespaceKind::Uts,
        NamespaceKind::Ipc,
        NamespaceKind::Cgroup,
    ];
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let mut env =
        vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(), "TERM=xterm".to_owned()];
    if image_init {
        env.push("container=ilot".to_owned());
    }
    Spec {
        oci_version: SPEC_VERSION.to_owned(),
        process: Some(Process {
            cwd: "/".to_owned(),
            env,
            capabilities: Some(if image_init { capabilities_for_image_init() } else { default_capabilities() }),
            // An init of the image runs programs with file capabilities and set-user-id bits
            // (sudo, su, ping): what they gain stays inside the user namespace.
            no_new_privileges: !image_init,
            ..Default::default()
        }),
        mounts: machine_mounts(image_init),
        linux: Some(Linux {
            uid_mappings: vec![ids],
            gid_mappings: vec![ids],
            namespaces: namespaces.into_iter().map(|kind| Namespace { kind, path: None }).collect(),
            sysctl: [("net.ipv4.ping_group_range", "0 65535")]
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            seccomp: Some(default_profile(if image_init { DefaultKind::Init } else { DefaultKind::Machine })),
            masked_paths: own(MASKED_PATHS),
            readonly_paths: own(READONLY_PATHS),
            ..Default::default()
        }),
        ..Default::default()
    }
}
