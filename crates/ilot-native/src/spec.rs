//! What the runtime is told about a machine: process, limits, files inside.

use ilot_image::{Image, InitKind};
use ilot_runtime::cgroup::{self, Layout};
use ilot_runtime::spec::{self, IdMapping, Resources, Spec};
use ilot_runtime::{Init, InsideFile, When};
use ilot_spec::{CpuAllowance, CpuLimit, Limits, MemoryEnforce};

use crate::error::Result;
use crate::ids;
use crate::paths::Paths;
use crate::record::{DomainRecord, MachineRecord};

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;
/// What asks systemd to shut down (systemd(1), "Signals"): SIGRTMIN+3, glibc's SIGRTMIN being 34.
const SIGRTMIN_3: i32 = 37;
/// The oldest systemd that refuses cgroup v1 (NEWS of 256).
const SYSTEMD_WITHOUT_V1: u32 = 256;

/// The mappings of a machine: ids 0 to 65535 inside are its range on the host; where machines are nested in it, the ids
/// that an ilot inside gives to them are those that the host set aside.
///
/// A privileged machine has none, and no user namespace.
pub(crate) fn mappings(record: &MachineRecord) -> Vec<IdMapping> {
    if record.privileged {
        return Vec::new();
    }
    let mut mappings = vec![IdMapping { container_id: 0, host_id: record.id_base, size: ids::SIZE }];
    if let Some((first, count)) = record.nested_ids {
        mappings.push(IdMapping { container_id: ids::FIRST, host_id: first, size: count });
    }
    mappings
}

/// The runtime-spec of a machine and who is its process 1.
pub(crate) fn build(
    paths: &Paths,
    record: &MachineRecord,
    image: &Image,
    domain: Option<&DomainRecord>,
) -> Result<(Spec, Init)> {
    let layout = Layout::detect()?;
    let own_init = boots_own_init(record, image);
    let mappings = mappings(record);
    let whole = IdMapping { container_id: 0, host_id: record.id_base, size: ids::SIZE };
    let mut spec = spec::machine_default(whole, own_init.is_some());
    if record.nested_ids.is_some() {
        crate::nesting::grant(&mut spec, own_init.is_some());
    }
    spec.hostname = Some(record.name.clone());
    if let Some(domain) = domain {
        spec.domainname = Some(format!("{}.ilot", domain.name));
    }
    if let Some(process) = &mut spec.process {
        let command =
            own_init.clone().or_else(|| record.command.clone()).unwrap_or_else(|| image_command(record, image));
        process.args = command;
        process.env = merge_env(&process.env, &environment(record, &image.config.env));
        process.terminal = record.terminal;
        if let Some(cwd) = record.cwd.clone().or_else(|| non_empty(&image.config.working_dir)) {
            process.cwd = cwd;
        }
        if own_init.is_none() {
            process.user.username = record.user.clone().or_else(|| non_empty(&image.config.user));
        }
    }
    spec.mounts.extend(record.volumes.iter().filter(|v| v.is_there()).map(|volume| volume.mount(paths, record)));
    if let Some(linux) = &mut spec.linux {
        linux.cgroups_path = Some(layout.suggest_path(&format!("{}/{}", paths.cgroup_parent(), record.name)));
        // "No limit" is a value too, and one that cannot be set where nothing counts: inside another machine.
        let counted = layout.v1_of("memory").is_some() || controls(&layout, "memory");
        let limited = counted || record.limits != Limits::default();
        linux.resources = limited.then(|| resources(&layout, &record.limits));
        linux.uid_mappings.clone_from(&mappings);
        linux.gid_mappings = mappings;
        if record.privileged {
            linux.namespaces.retain(|namespace| namespace.kind != spec::NamespaceKind::User);
        }
    }
    let init = if own_init.is_some() || record.command_is_init { Init::Image } else { Init::Builtin };
    Ok((spec, init))
}

/// Whether the v2 hierarchy has a controller.
fn controls(layout: &Layout, controller: &str) -> bool {
    layout.v2.as_ref().is_some_and(|v2| v2.controllers.iter().any(|c| c == controller))
}

/// What the image runs by itself. A bare shell is for a person at a terminal: as a machine's only process it would end
/// at once, so a machine of a project then just stands there for `exec` and `shell`.
fn image_command(record: &MachineRecord, image: &Image) -> Vec<String> {
    const SHELLS: &[&str] = &["ash", "bash", "dash", "fish", "sh", "zsh"];
    let command: Vec<String> = image.config.entrypoint.iter().chain(&image.config.cmd).cloned().collect();
    let is_shell = match command.as_slice() {
        [only] => std::path::Path::new(only).file_name().is_some_and(|n| SHELLS.iter().any(|s| *s == n)),
        _ => false,
    };
    if is_shell && record.project.is_some() { Vec::new() } else { command }
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The image's own init, when the machine should boot it and this host can run it.
fn boots_own_init(record: &MachineRecord, image: &Image) -> Option<Vec<String>> {
    if record.command.is_some() || record.command_is_init {
        return None;
    }
    let init = image.init.as_ref()?;
    let v2 = Layout::detect().is_ok_and(|layout| layout.mode() == cgroup::Mode::V2);
    let runs = match init.kind {
        InitKind::Systemd { version: Some(version) } => v2 || version < SYSTEMD_WITHOUT_V1,
        InitKind::Systemd { version: None } => v2,
        InitKind::Other => true,
    };
    runs.then(|| vec![init.path.to_string_lossy().into_owned()])
}

/// The signal that asks the machine to end.
pub(crate) fn stop_signal(record: &MachineRecord, image: &Image) -> i32 {
    if boots_own_init(record, image).is_some() {
        return match image.init.as_ref().map(|i| &i.kind) {
            Some(InitKind::Systemd { .. }) => SIGRTMIN_3,
            // SIGUSR2 is busybox init's "power off", SIGPWR what sysvinit and OpenRC's init listen to.
            _ => 30,
        };
    }
    signal_number(&image.config.stop_signal).unwrap_or(SIGTERM)
}

/// The number of `TERM`, `SIGTERM`, `15` or `SIGRTMIN+3`, on Linux (signal(7)).
#[must_use]
pub fn signal_number(text: &str) -> Option<i32> {
    const NAMES: &[(&str, i32)] = &[
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { Some(0) } else { rest.strip_prefix('+').and_then(|n| n.parse().ok()) };
        return offset.map(|n: i32| 34 + n).filter(|n| (34..=64).contains(n));
    }
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, number)| *number)
}

/// `NAME=value` of the machine's own processes: the image's, then the file's.
pub(crate) fn environment(record: &MachineRecord, image: &[String]) -> Vec<String> {
    let mut env = image.to_vec();
    env.extend(record.environment.iter().map(|(k, v)| format!("{k}={v}")));
    env
}

/// Later values win; the order of first appearance stays.
fn merge_env(base: &[String], over: &[String]) -> Vec<String> {
    let mut merged: indexmap::IndexMap<&str, &str> = indexmap::IndexMap::new();
    for line in base.iter().chain(over) {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        merged.insert(key, value);
    }
    merged.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

/// Limits as the runtime-spec has them; Incus's meaning of them is [`ilot_runtime::cgroup::Limits`]'s to know.
fn resources(layout: &Layout, limits: &Limits) -> Resources {
    let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
    cgroup::Limits {
        cpu: limits.cpu.clone().map(|cpu| match cpu {
            CpuLimit::Count(count) => cgroup::CpuLimit::Count(count),
            CpuLimit::Set(set) => cgroup::CpuLimit::Set(set),
        }),
        allowance: limits.cpu_allowance.map(|allowance| match allowance {
            CpuAllowance::Percent(percent) => cgroup::Allowance::Percent(percent),
            CpuAllowance::Quota { quota, period } => cgroup::Allowance::Quota { quota, period },
        }),
        memory: limits.memory,
        memory_soft: limits.memory_enforce == Some(MemoryEnforce::Soft),
        processes: limits.processes,
    }
    .resources(layout, cpus)
}

/// The same for a running machine that had the limits `before`.
pub(crate) fn resources_live(limits: &Limits, before: Option<&Limits>) -> Result<Resources> {
    let layout = Layout::detect()?;
    let mut resources = resources(&layout, limits);
    let was_set = before.is_some_and(|b| matches!(b.cpu, Some(CpuLimit::Set(_))));
    if was_set && let Some(cpu) = &mut resources.cpu {
        // There is no "no set": every CPU is the widest.
        let online = || std::fs::read_to_string("/sys/devices/system/cpu/online").ok().map(|t| t.trim().to_owned());
        cpu.cpus = cpu.cpus.take().or_else(online);
    }
    Ok(resources)
}

/// Files that ilot writes in a machine at each start.
pub(crate) fn files(record: &MachineRecord, domain: Option<&DomainRecord>) -> Vec<InsideFile> {
    let name = &record.name;
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let address = record.ip.map_or_else(|| "127.0.1.1".to_owned(), |ip| ip.to_string());
    let mut files = vec![("/etc/hostname", format!("{name}\n"))];
    match domain {
        Some(domain) => {
            hosts.push_str(&format!("{address}\t{name}.{0}.ilot {name}\n", domain.name));
            files.push((
                "/etc/resolv.conf",
                format!(
                    "# written by ilot at each start\nnameserver {}\nsearch {}.ilot\n",
                    domain.gateway, domain.name
                ),
            ));
        }
        None => hosts.push_str(&format!("{address}\t{name}\n")),
    }
    files.push(("/etc/hosts", hosts));
    files
        .into_iter()
        .map(|(path, content)| InsideFile {
            path: path.to_owned(),
            mode: 0o644,
            content: content.into_bytes(),
            when: When::Always,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_environment_wins() {
        let base = vec!["PATH=/bin".to_owned(), "TERM=xterm".to_owned()];
        let over = vec!["PATH=/usr/bin".to_owned(), "X=1".to_owned()];
        assert_eq!(merge_env(&base, &over), ["PATH=/usr/bin", "TERM=xterm", "X=1"]);
    }
}
