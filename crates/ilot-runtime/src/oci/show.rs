//! `state`, `list`, `ps`, `events`, `features`, `spec`.

use super::Global;
use super::args::{Parsed, switch, value};
use crate::cgroup::{Cgroup, Details, Stats};
use crate::container::cgroup_error;
use crate::record::Record;
use crate::seccomp::{DefaultKind, portable_profile};
use crate::spec::{self, IdMapping, Namespace, NamespaceKind, Process, Root, Spec};
use crate::{Error, Result, State, control, hooks, keeper, record};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn print(value: &Value) {
    println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
}

fn time(nanoseconds: u64) -> String {
    let mut stamp = [0; 30];
    keeper::log::format_time(nanoseconds, &mut stamp);
    String::from_utf8_lossy(&stamp).into_owned()
}

/// A container's state, the specification's members first.
fn state_of(record: &Record, state: &State) -> Value {
    let bundle = record.bundle.clone().unwrap_or_default();
    let mut value = hooks::state_json(
        &record.id,
        &state.status.to_string(),
        Some(state.pid.unwrap_or(0)),
        &bundle,
        &record.annotations,
    );
    value["created"] = time(state.created_at).into();
    value
}

/// `state`
pub fn state(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let id = Parsed::new(args, &[], false)?.id()?;
    let (_, record, state) = global.find(&id)?;
    print(&state_of(&record, &state));
    Ok(0)
}

/// `list`
pub fn list(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let parsed = Parsed::new(args, &[value("format", Some('f')), switch("quiet", Some('q'))], false)?;
    let json = is_json(&parsed)?;
    let mut all = Vec::new();
    if let Ok(entries) = fs::read_dir(&global.root) {
        for entry in entries.flatten() {
            let dir = entry.path();
            let Some(record) = record::read_record(&dir)? else { continue };
            let Some(state) = control::state(&dir)? else { continue };
            let owner = fs::metadata(&dir).map_or(0, |m| m.uid());
            all.push((record, state, owner));
        }
    }
    all.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    if parsed.has("quiet") {
        all.iter().for_each(|(record, ..)| println!("{}", record.id));
    } else if json {
        let with_owner = |(record, state, owner): &(Record, State, u32)| {
            let mut value = state_of(record, state);
            value["owner"] = owner.to_string().into();
            value
        };
        print(&all.iter().map(with_owner).collect());
    } else {
        println!("{:<24} {:<8} {:<8} {:<40} {:<31} OWNER", "ID", "PID", "STATUS", "BUNDLE PATH", "CREATED");
        for (record, state, owner) in &all {
            let bundle = record.bundle.as_deref().unwrap_or(Path::new("")).display().to_string();
            let (pid, status) = (state.pid.unwrap_or(0), state.status.to_string());
            println!("{:<24} {pid:<8} {status:<8} {bundle:<40} {:<31} {owner}", record.id, time(state.created_at));
        }
    }
    Ok(0)
}

/// `ps`
pub fn ps(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut parsed = Parsed::new(args, &[value("format", Some('f'))], true)?;
    let id = parsed.id()?;
    let pids = control::processes(&global.find(&id)?.1)?;
    if is_json(&parsed)? {
        println!("{}", json!(pids));
        return Ok(0);
    }
    let options: Vec<String> = match parsed.rest.is_empty() {
        true => vec!["-ef".to_owned()],
        false => parsed.rest.into_iter().collect(),
    };
    // The host's own `ps` knows the columns that are asked for.
    let table = Command::new("ps").args(&options).output();
    match table.ok().filter(|t| t.status.success()) {
        Some(table) => print_rows(&String::from_utf8_lossy(&table.stdout), &pids)?,
        None => {
            println!("PID");
            pids.iter().for_each(|pid| println!("{pid}"));
        }
    }
    Ok(0)
}

/// Whether `--format` asks for JSON.
fn is_json(parsed: &Parsed) -> Result<bool> {
    match parsed.get("format") {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(Error::invalid("option `--format`", format!("`{other}` is neither table nor json"))),
    }
}

fn print_rows(table: &str, pids: &[i32]) -> Result<()> {
    let mut lines = table.lines();
    let head = lines.next().unwrap_or_default();
    let column = head
        .split_whitespace()
        .position(|c| c == "PID")
        .ok_or_else(|| Error::invalid("output of `ps`", "it has no column PID"))?;
    println!("{head}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|p| p.parse::<i32>().ok());
        if pid.is_some_and(|p| pids.contains(&p)) {
            println!("{line}");
        }
    }
    Ok(())
}

/// `events`, and `stats`: the same once.
pub fn events(global: &Global, args: &mut VecDeque<String>, once: bool) -> Result<i32> {
    let mut parsed = Parsed::new(args, &[switch("stats", None), value("interval", None)], false)?;
    let id = parsed.id()?;
    let interval = Duration::from_secs(interval(parsed.get("interval").unwrap_or("5s"))?);
    let once = once || parsed.has("stats");
    let (dir, record, _) = global.find(&id)?;
    let cgroup = Cgroup::open(&record.cgroup).map_err(cgroup_error)?;
    let tell = |kind: &str, data: Value| println!("{}", json!({ "type": kind, "id": id, "data": data }));
    let stats = || -> Result<()> {
        tell("stats", data(&control::stats(&dir)?, &cgroup.details().map_err(cgroup_error)?));
        Ok(())
    };
    if once {
        return stats().map(|()| 0);
    }
    // Before anything is said: whoever hears of us may count on hearing all that comes.
    let process = record.init.open();
    let watch = cgroup.watch_memory().map_err(cgroup_error)?;
    let mut killed = control::stats(&dir)?.oom_kills;
    stats()?;
    let Some(process) = process else { return Ok(0) };
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let fds: Vec<_> = [Some(process.as_fd()), watch.as_ref().map(|w| w.fd.as_fd())].into_iter().flatten().collect();
        control::wait_any(&fds, Some(left));
        if let Some(watch) = &watch {
            let news = watch.drain();
            let now = cgroup.stats().map_err(cgroup_error)?.oom_kills;
            let ran_out = if watch.speaks_of_memory_alone() { news && cgroup.bounds_memory() } else { now > killed };
            if ran_out {
                tell("oom", Value::Null);
            }
            killed = now;
        }
        if crate::sys::has_ended(process.as_fd()) {
            return Ok(0);
        }
        if Instant::now() >= next {
            stats()?;
            next = Instant::now() + interval;
        }
    }
}

fn interval(text: &str) -> Result<u64> {
    let number = text.trim_end_matches('s').parse::<u64>().ok().filter(|n| (1..=86400).contains(n));
    number.ok_or_else(|| Error::invalid("option `--interval`", format!("`{text}` is no number of seconds")))
}

/// The statistics by runc's names.
fn data(stats: &Stats, details: &Details) -> Value {
    let nanoseconds = |usec: Option<u64>| usec.map(|n| n * 1000);
    let io = details
        .io
        .iter()
        .map(|(major, minor, op, value)| json!({"major": major, "minor": minor, "op": op, "value": value}));
    let pages = |(size, [usage, max, refused]): (&String, &[u64; 3])| {
        (size.clone(), json!({"usage": usage, "max": max, "failcnt": refused}))
    };
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(stats.cpu_usec),
                "user": nanoseconds(stats.cpu_user_usec),
                "kernel": nanoseconds(stats.cpu_system_usec),
            },
            "throttling": {
                "periods": details.cpu_periods,
                "throttledPeriods": stats.cpu_throttled,
                "throttledTime": nanoseconds(stats.cpu_throttled_usec),
            },
        },
        "memory": {
            "cache": stats.memory_cache,
            "usage": {
                "usage": stats.memory, "max": stats.memory_peak, "limit": stats.memory_limit, "failcnt": details.memory_hits,
            },
            "swap": { "usage": stats.swap },
            "raw": details.memory,
        },
        "pids": { "current": stats.pids, "limit": stats.pids_limit },
        "blkio": {
            "readBytes": stats.io_read_bytes, "writeBytes": stats.io_write_bytes,
            "ioServiceBytesRecursive": io.collect::<Vec<_>>(),
        },
        "hugetlb": details.huge_pages.iter().map(pages).collect::<serde_json::Map<_, _>>(),
    })
}

/// `features` (runtime-spec, `features.md`)
pub fn features(global: &Global) -> Result<i32> {
    let mount_options = [
        "async",
        "atime",
        "bind",
        "defaults",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "idmap",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "private",
        "ratime",
        "rbind",
        "rdev",
        "rdiratime",
        "relatime",
        "remount",
        "rexec",
        "ridmap",
        "rnoatime",
        "rnodev",
        "rnodiratime",
        "rnoexec",
        "rnorelatime",
        "rnostrictatime",
        "rnosuid",
        "rnosymfollow",
        "ro",
        "rprivate",
        "rrelatime",
        "rro",
        "rrw",
        "rshared",
        "rslave",
        "rstrictatime",
        "rsuid",
        "rsymfollow",
        "runbindable",
        "rw",
        "shared",
        "silent",
        "slave",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
        "tmpcopyup",
        "unbindable",
    ];
    let mut annotations = json!({ "org.ilot.version": env!("CARGO_PKG_VERSION") });
    if crate::criu::find(global.criu.as_deref()).is_some() {
        annotations["org.opencontainers.runc.checkpoint.enabled"] = "true".into();
    }
    let capabilities: Vec<String> = crate::caps::names().map(|n| format!("CAP_{n}")).collect();
    print(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": &mount_options[..],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "knownFlags": crate::seccomp::FLAGS.map(|(name, _)| name),
                "supportedFlags": crate::seccomp::FLAGS.map(|(name, _)| name),
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": { "enabled": true } },
            "memoryPolicy": {
                "modes": crate::process::attributes::POLICIES.map(|(name, _)| name),
                "flags": crate::process::attributes::POLICY_FLAGS.map(|(name, _)| name),
            },
            "netDevices": { "enabled": true },
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    }));
    Ok(0)
}

/// `spec`
pub fn spec(args: &mut VecDeque<String>) -> Result<i32> {
    let parsed = Parsed::new(args, &[switch("rootless", None), value("bundle", Some('b'))], false)?;
    let ids = IdMapping { container_id: 0, host_id: 0, size: 1 };
    let mut spec: Spec = spec::machine_default(ids, false);
    // The oldest version that has all that is in there: crun before 1.9 knows none above.
    spec.oci_version = "1.1.0".to_owned();
    spec.hostname = Some("ilot".to_owned());
    spec.root = Some(Root { path: "rootfs".into(), readonly: true });
    // `/run` is a machine's; what an application wants there it mounts itself.
    spec.mounts.retain(|m| m.destination != "/run");
    let process = spec.process.get_or_insert_with(Process::default);
    process.terminal = true;
    process.args = vec!["sh".to_owned()];
    if let Some(linux) = &mut spec.linux {
        linux.sysctl.clear();
        // The file may be another runtime's to read.
        linux.seccomp = Some(portable_profile(DefaultKind::Machine));
        linux.namespaces.retain(|n| n.kind != NamespaceKind::User);
        if parsed.has("rootless") {
            // SAFETY: no arguments, no failure.
            let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
            linux.namespaces.retain(|n| n.kind != NamespaceKind::Network);
            linux.namespaces.push(Namespace { kind: NamespaceKind::User, path: None });
            // With one id there is no group of terminals.
            spec.mounts.iter_mut().for_each(|m| m.options.retain(|o| !o.starts_with("gid=")));
            // The kernel mounts a sysfs only for the owner of the network namespace: the host's is shown.
            if let Some(sys) = spec.mounts.iter_mut().find(|m| m.destination == "/sys") {
                (sys.kind, sys.source) = (Some("bind".to_owned()), Some("/sys".to_owned()));
                sys.options = ["rbind", "nosuid", "noexec", "nodev", "rro"].map(str::to_owned).to_vec();
            }
            linux.uid_mappings = vec![IdMapping { host_id: uid, ..ids }];
            linux.gid_mappings = vec![IdMapping { host_id: gid, ..ids }];
        } else {
            linux.uid_mappings.clear();
            linux.gid_mappings.clear();
        }
    }
    let path = Path::new(parsed.get("bundle").unwrap_or(".")).join("config.json");
    if path.exists() {
        return Err(Error::invalid(format!("file `{}`", path.display()), "it is there already; remove it first"));
    }
    let text = serde_json::to_string_pretty(&spec).map_err(|e| Error::invalid("configuration", e.to_string()))?;
    fs::write(&path, text + "\n").map_err(|e| Error::path("write", &path, e))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    #[test]
    fn words_of_the_specification() {
        let words = [Status::Created, Status::Running, Status::Paused, Status::Stopped].map(|s| s.to_string());
        assert_eq!(words, ["created", "running", "paused", "stopped"]);
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("5s").unwrap(), 5);
        assert!(interval("0").is_err() && interval("x").is_err());
    }
}
