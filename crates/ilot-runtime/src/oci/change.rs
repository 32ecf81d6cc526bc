//! `kill`, `delete`, `pause`, `resume`, `update`.

use super::Global;
use super::args::{Flag, Parsed, switch, value};
use crate::cgroup::Cgroup;
use crate::container::cgroup_error;
use crate::record::{self, Groups, Request};
use crate::spec::{BlockIo, Cpu, Memory, NamespaceKind, Pids, Resources};
use crate::{Error, Result, Status, control, hooks, notice, rdt, sys};
use std::collections::VecDeque;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// How long a killed container may take to go.
const KILL_TIME: Duration = Duration::from_secs(10);

/// `kill`
pub fn kill(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut parsed = Parsed::new(args, &[switch("all", Some('a'))], false)?;
    let id = parsed.id()?;
    let name = parsed.rest.pop_front().unwrap_or_else(|| "SIGTERM".to_owned());
    let number = signal_number(&name)
        .ok_or_else(|| Error::invalid(format!("signal `{name}`"), "there is none of that name or number"))?;
    let (dir, record, state) = global.find(&id)?;
    if parsed.has("all") {
        for pid in control::processes(&record)? {
            // SAFETY: numbers only; processes of this container.
            unsafe { libc::kill(pid, number) };
        }
        return Ok(0);
    }
    if state.status == Status::Stopped {
        return Err(Error::Status { what: "signal", id, status: state.status, wanted: "running" });
    }
    // Looked up first: a `run` in the foreground deletes the container as soon as it has ended.
    let others = number == libc::SIGKILL && {
        let config = global.config(&id)?;
        let own = config.spec.linux.is_some_and(|l| l.makes(NamespaceKind::Pid));
        // Without a pid namespace of its own, the end of the first process is not that of the others.
        !own || state.status == Status::Paused
    };
    control::signal(&dir, number)?;
    if others {
        match control::kill_all(&dir) {
            Err(_) if !record.cgroup.iter().any(|path| path.exists()) => {}
            result => result?,
        }
    }
    Ok(0)
}

/// A signal by number, name, or name without `SIG`.
fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (0..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Some(i) = NAMES.iter().position(|n| *n == short) {
        return Some(i as i32 + 1);
    }
    let offset = |text: &str| text.parse::<i32>().ok();
    match short {
        "IOT" => Some(libc::SIGABRT),
        "POLL" => Some(libc::SIGIO),
        "RTMIN" => Some(34),
        "RTMAX" => Some(64),
        _ => short
            .strip_prefix("RTMIN+")
            .and_then(offset)
            .map(|n| 34 + n)
            .or_else(|| short.strip_prefix("RTMAX-").and_then(offset).map(|n| 64 - n))
            .filter(|n| (34..=64).contains(n)),
    }
}

/// `delete`
pub fn delete(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut parsed = Parsed::new(args, &[switch("force", Some('f'))], false)?;
    let id = parsed.id()?;
    let force = parsed.has("force");
    let dir = global.dir(&id);
    let Some(state) = control::state(&dir)? else {
        // A folder without a state is what a command left that was killed half-way.
        if dir.is_dir() {
            return fs::remove_dir_all(&dir).map(|()| 0).map_err(|e| Error::path("remove", &dir, e));
        }
        if force {
            return Ok(0);
        }
        return Err(Error::Missing(format!("`{}` (container `{id}` does not exist)", dir.display())));
    };
    if !force && !matches!(state.status, Status::Stopped | Status::Created) {
        return Err(Error::Status { what: "delete", id, status: state.status, wanted: "stopped" });
    }
    remove(&dir, &id)?;
    Ok(0)
}

/// Kills what is left of a container, removes it, and runs the hooks of that moment.
pub fn remove(dir: &Path, id: &str) -> Result<()> {
    let record = record::need_record(dir)?;
    let process = record.init.open();
    control::kill_all(dir)?;
    if let Some(process) = process
        && !sys::poll_readable(process.as_fd(), KILL_TIME.as_millis() as i32).unwrap_or(true)
    {
        return Err(Error::Container { id: id.to_owned(), message: "its process does not end".to_owned(), errno: 0 });
    }
    notice::debug(|| format!("container `{id}` has ended"));
    told(crate::systemd::release(record.unit.as_ref()));
    if let Some(placed) = &record.rdt {
        rdt::release(placed);
    }
    if record.cgroup.iter().any(|p| p.exists()) {
        let cgroup = Cgroup::open(&record.cgroup).map_err(cgroup_error)?;
        cgroup.delete().map_err(cgroup_error)?;
    }
    let config: Option<Request> = record::read_json(&dir.join(record::CONFIG))?;
    fs::remove_dir_all(dir).map_err(|e| Error::path("remove", dir, e))?;
    if let Some(config) = config {
        poststop(&config, &record.bundle.unwrap_or_default());
    }
    Ok(())
}

/// Removes a container whose end this process has seen.
pub fn remove_ended(request: &Request, groups: &Groups<'_>, bundle: &Path) -> Result<()> {
    if let Some(placed) = groups.rdt {
        rdt::release(placed);
    }
    if let Some(cgroup) = groups.cgroup {
        let own = request.spec.linux.as_ref().is_some_and(|l| l.makes(NamespaceKind::Pid));
        // With the first process of a pid namespace all others have ended.
        if !own {
            cgroup.kill_all().map_err(cgroup_error)?;
        }
        told(crate::systemd::release(groups.unit));
        cgroup.delete().map_err(cgroup_error)?;
    }
    record::remove_files(&request.run_dir)?;
    poststop(request, bundle);
    Ok(())
}

/// A manager that cannot be asked any more must not keep a container from being removed: its group is removed all the same.
fn told(result: Result<()>) {
    if let Err(error) = result {
        notice::warn(error);
    }
}

fn poststop(request: &Request, bundle: &Path) {
    let spec = &request.spec;
    let state = hooks::state_json(&request.id, "stopped", None, bundle, &spec.annotations);
    for hook in &spec.hooks.poststop {
        // Each is run, whatever became of the others (`runtime.md`, "Lifecycle").
        if let Err(error) = hooks::run("poststop", std::slice::from_ref(hook), &state) {
            notice::warn(error);
        }
    }
}

/// `pause`
pub fn pause(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let id = Parsed::new(args, &[], false)?.id()?;
    control::pause(&global.find(&id)?.0)?;
    Ok(0)
}

/// `resume`
pub fn resume(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let id = Parsed::new(args, &[], false)?.id()?;
    control::resume(&global.find(&id)?.0)?;
    Ok(0)
}

const LIMITS: [Flag; 19] = [
    value("resources", Some('r')),
    value("blkio-weight", None),
    value("cpu-period", None),
    value("cpu-quota", None),
    value("cpu-burst", None),
    value("cpu-rt-period", None),
    value("cpu-rt-runtime", None),
    value("cpu-share", None),
    value("cpu-idle", None),
    value("cpuset-cpus", None),
    value("cpuset-mems", None),
    value("kernel-memory", None),
    value("kernel-memory-tcp", None),
    value("memory", None),
    value("memory-reservation", None),
    value("memory-swap", None),
    value("pids-limit", None),
    value("l3-cache-schema", None),
    value("mem-bw-schema", None),
];

/// `update`
pub fn update(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut parsed = Parsed::new(args, &LIMITS, false)?;
    let id = parsed.id()?;
    let (dir, record, _) = global.find(&id)?;
    let mut resources = match parsed.get("resources") {
        Some(path) => read_resources(path)?,
        None => from_options(&parsed)?,
    };
    super::check::settle_pids(&mut resources, &global.config(&id)?.spec.oci_version);
    let schemata = [parsed.get("l3-cache-schema"), parsed.get("mem-bw-schema")];
    if schemata.iter().any(Option::is_some) {
        rdt::update(record.rdt.as_ref(), schemata)?;
        if resources == Resources::default() {
            return Ok(0);
        }
    }
    // A list of devices takes the place of the one before, and with it that of what every container may use.
    if !resources.devices.is_empty() {
        resources.devices.extend(super::create::default_device_rules());
    }
    control::update(&dir, &resources)?;
    Ok(0)
}

fn read_resources(path: &str) -> Result<Resources> {
    let mut text = Vec::new();
    let read = match path {
        "-" => std::io::stdin().read_to_end(&mut text),
        path => fs::File::open(path).and_then(|mut f| f.read_to_end(&mut text)),
    };
    read.map_err(|e| Error::path("read", Path::new(path), e))?;
    crate::spec::from_json(&text).map_err(|e| Error::invalid(format!("resources in `{path}`"), e.to_string()))
}

fn from_options(parsed: &Parsed) -> Result<Resources> {
    let memory = Memory {
        limit: bytes(parsed, "memory")?,
        reservation: bytes(parsed, "memory-reservation")?,
        swap: bytes(parsed, "memory-swap")?,
        kernel: bytes(parsed, "kernel-memory")?,
        kernel_tcp: bytes(parsed, "kernel-memory-tcp")?,
        ..Default::default()
    };
    let cpu = Cpu {
        shares: parsed.number("cpu-share")?,
        quota: parsed.number("cpu-quota")?,
        burst: parsed.number("cpu-burst")?,
        period: parsed.number("cpu-period")?,
        realtime_runtime: parsed.number("cpu-rt-runtime")?,
        realtime_period: parsed.number("cpu-rt-period")?,
        idle: parsed.number("cpu-idle")?,
        cpus: parsed.get("cpuset-cpus").map(ToOwned::to_owned),
        mems: parsed.get("cpuset-mems").map(ToOwned::to_owned),
    };
    let block = BlockIo { weight: parsed.number("blkio-weight")?, ..Default::default() };
    let limit = parsed.number("pids-limit")?;
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        block_io: (block != BlockIo::default()).then_some(block),
        pids: limit.map(|limit| Pids { limit: Some(limit) }),
        ..Default::default()
    })
}

/// A number of bytes, with `k`, `m`, `g` behind it if wanted.
fn bytes(parsed: &Parsed, name: &str) -> Result<Option<i64>> {
    let Some(text) = parsed.get(name) else { return Ok(None) };
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_end_matches('b');
    let (digits, shift) = match plain.char_indices().last() {
        Some((i, 'k')) => (&plain[..i], 10),
        Some((i, 'm')) => (&plain[..i], 20),
        Some((i, 'g')) => (&plain[..i], 30),
        _ => (plain, 0),
    };
    let number = digits.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number
        .map(Some)
        .ok_or_else(|| Error::invalid(format!("option `--{name}`"), format!("`{text}` is no number of bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (name, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigterm", 15),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("CLD", 0),
            ("99", 0),
            ("0", 0),
        ] {
            let expected = if number == 0 && name != "0" { None } else { Some(number) };
            assert_eq!(signal_number(name), expected, "{name}");
        }
    }

    #[test]
    fn sizes() {
        let parse = |v: &str| {
            let mut args = VecDeque::from(["--memory".to_owned(), v.to_owned()]);
            bytes(&Parsed::new(&mut args, &LIMITS, false).unwrap(), "memory")
        };
        assert_eq!(parse("512k").unwrap(), Some(512 << 10));
        assert_eq!(parse("1Gb").unwrap(), Some(1 << 30));
        assert_eq!(parse("-1").unwrap(), Some(-1));
        assert!(parse("x").is_err());
    }
}
