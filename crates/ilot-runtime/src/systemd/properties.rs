//! Resources of the specification as properties of a unit (systemd.resource-control(5); the names and types are those of the
//! bus, org.freedesktop.systemd1(5)).
//!
//! systemd gets what it has a property for, so that it shows it and does not undo it; every value is written to the group as
//! well, also what there is no property for.

use super::message::Value;
use crate::cgroup::weight_from_shares;
use crate::spec::{Cpu, DeviceRule, Memory, Resources};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// "No limit".
const INFINITY: u64 = u64::MAX;
/// systemd counts quotas in whole hundredths of a CPU.
const QUOTA_STEP_US: u64 = 10_000;

/// A list under construction; a later value of a name takes the place of an earlier one.
type List = Vec<(String, Value)>;

fn set(list: &mut List, name: &str, value: Value) {
    list.retain(|(n, _)| n != name);
    list.push((name.to_owned(), value));
}

/// Properties for limits. `devices`: whether device rules are the manager's to have (not the user's).
pub fn of_resources(resources: &Resources, devices: bool) -> Result<List> {
    let mut list = List::new();
    if let Some(memory) = &resources.memory {
        of_memory(memory, &mut list);
    }
    if let Some(cpu) = &resources.cpu {
        of_cpu(cpu, &mut list)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|p| p.limit) {
        // systemd knows no 0; see `cgroup::settings`.
        let limit = u64::try_from(limit).map_or(INFINITY, |l| l.max(1));
        set(&mut list, "TasksMax", Value::U64(limit));
    }
    if let Some(weight) = resources.block_io.as_ref().and_then(|b| b.weight).filter(|w| *w != 0) {
        set(&mut list, "IOWeight", Value::U64(crate::cgroup::io_weight_from_blkio(weight)));
    }
    of_unified(&resources.unified, &mut list)?;
    if devices && !resources.devices.is_empty() {
        of_devices(&resources.devices, &mut list);
    }
    Ok(list)
}

fn bytes(value: i64) -> Value {
    Value::U64(u64::try_from(value).unwrap_or(INFINITY))
}

fn of_memory(memory: &Memory, list: &mut List) {
    if let Some(limit) = memory.limit.filter(|l| *l != 0) {
        set(list, "MemoryMax", bytes(limit));
    }
    if let Some(low) = memory.reservation.filter(|l| *l != 0) {
        set(list, "MemoryLow", bytes(low));
    }
    match (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0)) {
        (_, 0) => {}
        (_, swap) if swap < 0 => set(list, "MemorySwapMax", bytes(-1)),
        // Both together in the specification. What contradicts itself is refused where it is written.
        (limit, swap) if limit > 0 && swap >= limit => set(list, "MemorySwapMax", bytes(swap - limit)),
        _ => {}
    }
}

fn of_cpu(cpu: &Cpu, list: &mut List) -> Result<()> {
    if cpu.idle == Some(1) {
        // 0 means idle, since systemd 252.
        set(list, "CPUWeight", Value::U64(0));
    } else if let Some(shares) = cpu.shares.filter(|s| *s != 0) {
        set(list, "CPUWeight", Value::U64(weight_from_shares(shares)));
    }
    if let Some(period) = cpu.period.filter(|p| *p != 0) {
        set(list, "CPUQuotaPeriodUSec", Value::U64(period));
    }
    if let Some(quota) = cpu.quota.filter(|q| *q != 0) {
        let period = cpu.period.filter(|p| *p != 0).unwrap_or(crate::cgroup::CPU_PERIOD_US);
        set(list, "CPUQuotaPerSecUSec", Value::U64(per_second(quota, period)));
    }
    for (text, name, what) in [(&cpu.cpus, "AllowedCPUs", "cpu.cpus"), (&cpu.mems, "AllowedMemoryNodes", "cpu.mems")] {
        if let Some(text) = text.as_ref().filter(|t| !t.is_empty()) {
            let mask = mask(text).ok_or_else(|| Error::invalid(what, format!("`{text}` is no list as 0-3,7")))?;
            set(list, name, Value::Bytes(mask));
        }
    }
    Ok(())
}

/// Microseconds of CPU time per second, rounded up to what systemd can say.
fn per_second(quota: i64, period: u64) -> u64 {
    match u64::try_from(quota) {
        Ok(quota) => (u128::from(quota) * 1_000_000)
            .div_ceil(u128::from(period.max(1)))
            .next_multiple_of(QUOTA_STEP_US.into())
            .try_into()
            .unwrap_or(INFINITY),
        Err(_) => INFINITY,
    }
}

/// `0-3,7` as bits, the lowest first.
fn mask(text: &str) -> Option<Vec<u8>> {
    /// More CPUs than any kernel can have.
    const MOST: usize = 1 << 16;
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
        if from > to || to >= MOST {
            return None;
        }
        if mask.len() <= to / 8 {
            mask.resize(to / 8 + 1, 0);
        }
        (from..=to).for_each(|n| mask[n / 8] |= 1 << (n % 8));
    }
    (!mask.is_empty()).then_some(mask)
}

/// Files of the `unified` map that systemd has a name for; it would undo them at its next look.
fn of_unified(map: &BTreeMap<String, String>, list: &mut List) -> Result<()> {
    for (file, text) in map {
        let text = text.trim();
        let number = || match text {
            "max" => Ok(Value::U64(INFINITY)),
            text => text.parse().map(Value::U64).map_err(|_| {
                Error::invalid(format!("linux.resources.unified.{file}"), format!("`{text}` is no number"))
            }),
        };
        let cpus = || mask(text).map(Value::Bytes).ok_or_else(|| Error::invalid(file, format!("`{text}` is no list")));
        match file.as_str() {
            "memory.max" => set(list, "MemoryMax", number()?),
            "memory.high" => set(list, "MemoryHigh", number()?),
            "memory.low" => set(list, "MemoryLow", number()?),
            "memory.min" => set(list, "MemoryMin", number()?),
            "memory.swap.max" => set(list, "MemorySwapMax", number()?),
            "pids.max" => set(list, "TasksMax", number()?),
            "cpu.weight" => set(list, "CPUWeight", number()?),
            "cpuset.cpus" => set(list, "AllowedCPUs", cpus()?),
            "cpuset.mems" => set(list, "AllowedMemoryNodes", cpus()?),
            "io.weight" => {
                // `default 100`, or with a device that there is a property of another kind for.
                let plain = text.strip_prefix("default ").unwrap_or(text).trim();
                if let Ok(weight) = plain.parse() {
                    set(list, "IOWeight", Value::U64(weight));
                }
            }
            "cpu.max" => {
                let (quota, period) = text.split_once(' ').unwrap_or((text, "100000"));
                let bad =
                    || Error::invalid("linux.resources.unified.cpu.max", format!("`{text}` is no quota and period"));
                let period: u64 = period.trim().parse().map_err(|_| bad())?;
                let quota = if quota == "max" { -1 } else { quota.parse().map_err(|_| bad())? };
                set(list, "CPUQuotaPeriodUSec", Value::U64(period));
                set(list, "CPUQuotaPerSecUSec", Value::U64(per_second(quota, period)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Device rules: an allowlist, or nothing where systemd cannot say the same (the program at the group decides then alone;
/// both together decide otherwise).
fn of_devices(rules: &[DeviceRule], list: &mut List) {
    let table = std::fs::read_to_string("/proc/devices").unwrap_or_default();
    let allowed = allowlist(rules, &table);
    let policy = if allowed.is_some() { "strict" } else { "auto" };
    set(list, "DevicePolicy", Value::Text(policy.to_owned()));
    set(list, "DeviceAllow", Value::Pairs(allowed.unwrap_or_default()));
}

fn allowlist(rules: &[DeviceRule], table: &str) -> Option<Vec<(String, String)>> {
    let mut list: Vec<(String, String)> = Vec::new();
    for rule in rules {
        let kind = rule.kind.as_deref().unwrap_or("a");
        let number = |n: Option<i64>| n.filter(|n| *n >= 0);
        let (major, minor) = (number(rule.major), number(rule.minor));
        let access: String = rule.access.as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm").to_owned();
        if !rule.allow {
            // "Nothing to begin with" is what strict means; an exception from an allowance cannot be said.
            if major.is_none() && minor.is_none() && access.len() == 3 {
                list.clear();
                continue;
            }
            return None;
        }
        let name = match (kind, major, minor) {
            ("c" | "u", Some(major), Some(minor)) => format!("/dev/char/{major}:{minor}"),
            ("b", Some(major), Some(minor)) => format!("/dev/block/{major}:{minor}"),
            ("c" | "u", Some(major), None) => format!("char-{}", driver(table, "Character", major)?),
            ("b", Some(major), None) => format!("block-{}", driver(table, "Block", major)?),
            ("c" | "u", None, None) => "char-*".to_owned(),
            ("b", None, None) => "block-*".to_owned(),
            _ => return None,
        };
        list.push((name, access));
    }
    Some(list)
}

/// The name of a major number in `/proc/devices`.
fn driver<'a>(table: &'a str, kind: &str, major: i64) -> Option<&'a str> {
    let mut here = false;
    for line in table.lines() {
        if line.ends_with("devices:") {
            here = line.starts_with(kind);
        } else if here
            && let Some((number, name)) = line.trim().split_once(' ')
            && number.parse() == Ok(major)
        {
            return Some(name.trim());
        }
    }
    None
}

/// Properties that the caller asks for by annotations: `org.systemd.property.NAME` with a value of GVariant's text form
/// (CRI-O and Podman write these).
pub fn of_annotations(annotations: &BTreeMap<String, String>, list: &mut List) -> Result<()> {
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix("org.systemd.property.") else { continue };
        let value = gvariant(text.trim()).ok_or_else(|| {
            Error::invalid(
                format!("annotation `{key}`"),
                format!("`{text}` is not understood; write 'text', true, uint64 5, int32 5 or ['a', 'b']"),
            )
        })?;
        // In seconds on the command line of systemd; the bus knows microseconds only.
        match (name.strip_suffix("Sec").filter(|_| !name.ends_with("USec")), value) {
            (Some(name), Value::U64(n)) => set(list, &format!("{name}USec"), Value::U64(n.saturating_mul(1_000_000))),
            (_, value) => set(list, name, value),
        }
    }
    Ok(())
}

fn gvariant(text: &str) -> Option<Value> {
    let quoted = |t: &str| {
        let mark = t.trim().chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let inner = t.trim().strip_prefix(mark)?.strip_suffix(mark)?;
        (!inner.contains(['\\', mark])).then(|| inner.to_owned())
    };
    if let Some(list) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return list.split(',').map(quoted).collect::<Option<Vec<_>>>().map(Value::Texts);
    }
    match text.split_once(' ') {
        Some(("uint64", n)) => return n.trim().parse().ok().map(Value::U64),
        Some(("int64", n)) => return n.trim().parse().ok().map(Value::I64),
        Some(("uint32", n)) => return n.trim().parse().ok().map(Value::U32),
        Some(("int32", n)) => return n.trim().parse().ok().map(Value::I32),
        _ => {}
    }
    match text {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        _ => quoted(text).map(Value::Text).or_else(|| text.parse().ok().map(Value::I32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> BTreeMap<String, Value> {
        of_resources(&serde_json::from_str(json).unwrap(), true).unwrap().into_iter().collect()
    }

    #[test]
    fn limits() {
        let p = of(r#"{"memory":{"limit":100,"swap":150,"reservation":50},"pids":{"limit":7},
            "cpu":{"shares":1024,"quota":25000,"period":100000,"cpus":"0-1,9","mems":"0"},"blockIO":{"weight":10}}"#);
        assert_eq!(p["MemoryMax"], Value::U64(100));
        assert_eq!(p["MemorySwapMax"], Value::U64(50));
        assert_eq!(p["MemoryLow"], Value::U64(50));
        assert_eq!(p["TasksMax"], Value::U64(7));
        assert_eq!(p["CPUWeight"], Value::U64(100));
        assert_eq!(p["CPUQuotaPerSecUSec"], Value::U64(250_000));
        assert_eq!(p["CPUQuotaPeriodUSec"], Value::U64(100_000));
        assert_eq!(p["AllowedCPUs"], Value::Bytes(vec![3, 2]));
        assert_eq!(p["AllowedMemoryNodes"], Value::Bytes(vec![1]));
        assert_eq!(p["IOWeight"], Value::U64(1));
        let p = of(r#"{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1},"cpu":{"quota":-1,"idle":1,"shares":5}}"#);
        assert_eq!(p["MemoryMax"], Value::U64(INFINITY));
        assert_eq!(p["MemorySwapMax"], Value::U64(INFINITY));
        assert_eq!(p["TasksMax"], Value::U64(INFINITY));
        assert_eq!(p["CPUQuotaPerSecUSec"], Value::U64(INFINITY));
        assert_eq!(p["CPUWeight"], Value::U64(0));
        assert_eq!(of(r#"{"pids":{"limit":0}}"#)["TasksMax"], Value::U64(1));
        assert!(of("{}").is_empty());
        // 1/3 CPU is rounded up, never down.
        assert_eq!(per_second(33_333, 100_000), 340_000);
    }

    #[test]
    fn unified_map() {
        let p =
            of(r#"{"memory":{"limit":5},"unified":{"memory.max":"max","cpu.max":"5000 10000","memory.oom.group":"1",
            "io.weight":"default 200","cpuset.cpus":"1"}}"#);
        assert_eq!(p["MemoryMax"], Value::U64(INFINITY), "the map is the last word");
        assert_eq!(p["CPUQuotaPerSecUSec"], Value::U64(500_000));
        assert_eq!(p["IOWeight"], Value::U64(200));
        assert_eq!(p["AllowedCPUs"], Value::Bytes(vec![2]));
        assert_eq!(p.len(), 5);
        for bad in [r#"{"unified":{"pids.max":"x"}}"#, r#"{"cpu":{"cpus":"3-1"}}"#, r#"{"cpu":{"cpus":"99999999"}}"#] {
            assert!(of_resources(&serde_json::from_str(bad).unwrap(), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices() {
        let table = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n136 other\n";
        let list = |json: &str| allowlist(&serde_json::from_str::<Vec<DeviceRule>>(json).unwrap(), table);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            list(
                r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
                {"allow":true,"type":"c","major":136,"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":0},
                {"allow":true,"type":"c","access":"m"}]"#
            ),
            Some(vec![
                pair("/dev/char/1:3", "rw"),
                pair("char-pts", "rwm"),
                pair("/dev/block/8:0", "rwm"),
                pair("char-*", "m")
            ])
        );
        for other in [
            r#"[{"allow":true,"access":"rwm"}]"#,
            r#"[{"allow":true,"type":"c","major":77}]"#,
            r#"[{"allow":false,"type":"c","major":1,"minor":3}]"#,
        ] {
            assert_eq!(list(other), None, "{other}");
        }
    }

    #[test]
    fn annotations() {
        let read = |text: &str| gvariant(text);
        assert_eq!(read("'inactive-or-failed'"), Some(Value::Text("inactive-or-failed".into())));
        assert_eq!(read("uint64 5"), Some(Value::U64(5)));
        assert_eq!(read("37"), Some(Value::I32(37)));
        assert_eq!(read("true"), Some(Value::Bool(true)));
        assert_eq!(read("['a', 'b']"), Some(Value::Texts(vec!["a".into(), "b".into()])));
        for bad in ["", "'", "nonsense", "uint64 x", "[1]", "'a'b'"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let map = BTreeMap::from([
            ("org.systemd.property.TimeoutStopSec".to_owned(), "uint64 3".to_owned()),
            ("org.systemd.property.KillSignal".to_owned(), "37".to_owned()),
            ("other".to_owned(), "x".to_owned()),
        ]);
        let mut list = List::new();
        of_annotations(&map, &mut list).unwrap();
        assert_eq!(list, [("KillSignal".into(), Value::I32(37)), ("TimeoutStopUSec".into(), Value::U64(3_000_000))]);
    }
}
