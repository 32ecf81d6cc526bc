//! From the runtime-spec's resources to values for control files, without touching any file.

use super::error::{CgroupError, Result};
use super::values::{Setting, io_weight_from_blkio, or_max, page_size, v2_swap, weight_from_shares};
use crate::spec::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// Where the controllers are: v1 for those with a hierarchy of their own, else v2.
pub(super) trait Place {
    /// Whether the controller is on v1.
    fn on_v1(&self, controller: &str) -> bool;
    /// The present content of a v2 file of the group (for values that are half given).
    fn v2_now(&self, file: &str) -> Option<String>;
}

/// The controllers that these resources cannot do without.
pub(super) fn needed(res: &Resources) -> Vec<&'static str> {
    let mut out = Vec::new();
    let mut add = |name, yes: bool| {
        if yes && !out.contains(&name) {
            out.push(name);
        }
    };
    add("memory", res.memory.as_ref().is_some_and(|m| *m != Memory::default()));
    let time = |c: &Cpu| {
        c.shares.is_some()
            || c.quota.is_some()
            || c.period.is_some()
            || c.burst.is_some()
            || c.idle.is_some()
            || c.realtime_period.is_some()
            || c.realtime_runtime.is_some()
    };
    let text = |t: &Option<String>| t.as_ref().is_some_and(|t| !t.is_empty());
    add("cpu", res.cpu.as_ref().is_some_and(time));
    add("cpuset", res.cpu.as_ref().is_some_and(|c| text(&c.cpus) || text(&c.mems)));
    add("pids", res.pids.as_ref().is_some_and(|p| p.limit.is_some()));
    add("blkio", res.block_io.as_ref().is_some_and(|b| *b != BlockIo::default()));
    add("hugetlb", !res.hugepage_limits.is_empty());
    let net = res.network.as_ref();
    add("net_cls", net.is_some_and(|n| n.class_id.is_some_and(|c| c != 0)));
    add("net_prio", net.is_some_and(|n| !n.priorities.is_empty()));
    add("rdma", !res.rdma.is_empty());
    add("devices", !res.devices.is_empty());
    out
}

/// The v2 name of a v1 controller.
pub(super) fn v2_name(controller: &str) -> &str {
    if controller == "blkio" { "io" } else { controller }
}

/// Every value to be written, in order. Memory on v1 and devices have their own code: their order depends on the
/// present values.
pub(super) fn settings(res: &Resources, place: &dyn Place, group: &str) -> Result<Vec<Setting>> {
    let mut out = Vec::new();
    if let Some(memory) = &res.memory
        && !place.on_v1("memory")
    {
        memory_v2(memory, group, &mut out)?;
    }
    if let Some(cpu) = &res.cpu {
        cpu_settings(cpu, place, group, &mut out)?;
    }
    if let Some(limit) = res.pids.as_ref().and_then(|p| p.limit) {
        // Of none at all the kernel would not even let the first process in, nor does systemd know it (runc does the same).
        out.push(Setting::new("pids", "pids.max", or_max(if limit == 0 { 1 } else { limit }), "pids.limit"));
    }
    if let Some(io) = &res.block_io {
        if place.on_v1("blkio") { blkio_v1(io, &mut out) } else { io_v2(io, group, &mut out)? }
    }
    for page in &res.hugepage_limits {
        let size = page_size(&page.page_size)?;
        let last = if place.on_v1("hugetlb") { "limit_in_bytes" } else { "max" };
        let what = "hugepageLimits";
        out.push(Setting::new("hugetlb", format!("hugetlb.{size}.{last}"), page.limit, what));
        // Reservations are counted apart since Linux 5.7; before, the limit alone does it.
        let reserved = format!("hugetlb.{size}.rsvd.{last}");
        out.push(Setting::new("hugetlb", reserved, page.limit, what).optional());
    }
    if let Some(net) = &res.network {
        if let Some(class) = net.class_id.filter(|c| *c != 0) {
            out.push(Setting::new("net_cls", "net_cls.classid", class, "network.classID"));
        }
        for p in &net.priorities {
            let value = format!("{} {}", p.name, p.priority);
            out.push(Setting::new("net_prio", "net_prio.ifpriomap", value, "network.priorities"));
        }
    }
    for (device, limit) in &res.rdma {
        let mut value = device.clone();
        for (key, n) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(n) = n {
                value.push_str(&format!(" {key}={n}"));
            }
        }
        out.push(Setting::new("rdma", "rdma.max", value, "rdma"));
    }
    unified(res, place, group, &mut out)?;
    Ok(out)
}

/// "If the conversion is not possible the runtime MUST generate an error" (`config-linux.md`, "Unified").
fn only_v1(what: &str, group: &str, why: &str) -> CgroupError {
    CgroupError::Unsupported { what: what.into(), group: group.into(), why: why.into() }
}

fn memory_v2(memory: &Memory, group: &str, out: &mut Vec<Setting>) -> Result<()> {
    for (what, asked, why) in [
        ("memory.kernel", memory.kernel.is_some_and(|l| l > 0), "cgroup v2 counts the kernel's memory with the rest"),
        ("memory.kernelTCP", memory.kernel_tcp.is_some_and(|l| l > 0), "cgroup v2 counts it with the rest"),
        ("memory.swappiness", memory.swappiness.is_some(), "cgroup v2 has none for a group"),
        ("memory.disableOOMKiller", memory.disable_oom_killer == Some(true), "cgroup v2 cannot keep it away"),
        ("memory.useHierarchy", memory.use_hierarchy == Some(false), "cgroup v2 always counts children as well"),
    ] {
        if asked {
            return Err(only_v1(what, group, why));
        }
    }
    // The swap limit first: it must never be looser than asked for beside a tighter memory limit.
    if let Some(value) = v2_swap(memory.limit, memory.swap)? {
        let mut s = Setting::new("memory", "memory.swap.max", value, "memory.swap");
        // A kernel without swap accounting cannot swap the group's memory out beyond a limit of "max" either.
        if s.value == "max" || s.value == "0" {
            s = s.optional();
        }
        out.push(s);
    }
    if let Some(limit) = memory.limit.filter(|l| *l != 0) {
        out.push(Setting::new("memory", "memory.max", or_max(limit), "memory.limit"));
    }
    if let Some(low) = memory.reservation.filter(|l| *l != 0) {
        out.push(Setting::new("memory", "memory.low", or_max(low), "memory.reservation"));
    }
    Ok(())
}

fn cpu_settings(cpu: &Cpu, place: &dyn Place, group: &str, out: &mut Vec<Setting>) -> Result<()> {
    if place.on_v1("cpu") {
        cpu_v1(cpu, out);
    } else {
        cpu_v2(cpu, place, group, out)?;
    }
    for (value, file, what) in [(&cpu.mems, "cpuset.mems", "cpu.mems"), (&cpu.cpus, "cpuset.cpus", "cpu.cpus")] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            out.push(Setting::new("cpuset", file, value, what));
        }
    }
    Ok(())
}

fn cpu_v1(cpu: &Cpu, out: &mut Vec<Setting>) {
    let mut add = |file, value: Option<i64>, what| {
        if let Some(value) = value {
            out.push(Setting::new("cpu", file, value, what));
        }
    };
    let signed = |v: Option<u64>| v.filter(|v| *v != 0).map(|v| i64::try_from(v).unwrap_or(i64::MAX));
    add("cpu.idle", cpu.idle, "cpu.idle");
    // An idle group has no weight of its own: the kernel refuses one.
    let shares = cpu.shares.filter(|_| cpu.idle != Some(1));
    add("cpu.shares", signed(shares), "cpu.shares");
    add("cpu.rt_period_us", signed(cpu.realtime_period), "cpu.realtimePeriod");
    add("cpu.rt_runtime_us", cpu.realtime_runtime.filter(|v| *v != 0), "cpu.realtimeRuntime");
    add("cpu.cfs_period_us", signed(cpu.period), "cpu.period");
    let quota = cpu.quota.filter(|q| *q != 0).map(|q| q.max(-1));
    add("cpu.cfs_quota_us", quota, "cpu.quota");
    add("cpu.cfs_burst_us", cpu.burst.map(|b| i64::try_from(b).unwrap_or(i64::MAX)), "cpu.burst");
}

fn cpu_v2(cpu: &Cpu, place: &dyn Place, group: &str, out: &mut Vec<Setting>) -> Result<()> {
    if cpu.realtime_runtime.is_some_and(|v| v != 0) || cpu.realtime_period.is_some_and(|v| v != 0) {
        return Err(CgroupError::Unsupported {
            what: "cpu.realtimeRuntime or cpu.realtimePeriod".into(),
            group: group.into(),
            why: "cgroup v2 has no real-time group scheduling".into(),
        });
    }
    if let Some(idle) = cpu.idle {
        out.push(Setting::new("cpu", "cpu.idle", idle, "cpu.idle"));
    }
    if let Some(shares) = cpu.shares.filter(|s| *s != 0 && cpu.idle != Some(1)) {
        out.push(Setting::new("cpu", "cpu.weight", weight_from_shares(shares), "cpu.shares"));
    }
    let quota = cpu.quota.filter(|q| *q != 0);
    let period = cpu.period.filter(|p| *p != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(q) => or_max(q),
            None => {
                let now = place.v2_now("cpu.max").unwrap_or_default();
                now.split_whitespace().next().unwrap_or("max").into()
            }
        };
        // Without a period the kernel keeps the present one.
        let value = period.map_or(quota.clone(), |p| format!("{quota} {p}"));
        out.push(Setting::new("cpu", "cpu.max", value, "cpu.quota"));
    }
    if let Some(burst) = cpu.burst {
        out.push(Setting::new("cpu", "cpu.max.burst", burst, "cpu.burst"));
    }
    Ok(())
}

fn blkio_v1(io: &BlockIo, out: &mut Vec<Setting>) {
    // The weights belong to the scheduler: CFQ's name until 5.0, BFQ's since.
    if let Some(w) = io.weight.filter(|w| *w != 0) {
        out.push(Setting::new("blkio", "blkio.weight", w, "blockIO.weight").or("blkio.bfq.weight", w));
    }
    if let Some(w) = io.leaf_weight.filter(|w| *w != 0) {
        out.push(Setting::new("blkio", "blkio.leaf_weight", w, "blockIO.leafWeight"));
    }
    for d in &io.weight_device {
        if let Some(w) = d.weight {
            let value = format!("{}:{} {w}", d.major, d.minor);
            out.push(
                Setting::new("blkio", "blkio.weight_device", &value, "blockIO.weightDevice")
                    .or("blkio.bfq.weight_device", &value),
            );
        }
        if let Some(w) = d.leaf_weight {
            let value = format!("{}:{} {w}", d.major, d.minor);
            let file = "blkio.leaf_weight_device";
            out.push(Setting::new("blkio", file, value, "blockIO.weightDevice"));
        }
    }
    for (list, name) in throttles(io) {
        for d in list {
            let file = format!("blkio.throttle.{}_device", name.1);
            let value = format!("{}:{} {}", d.major, d.minor, d.rate);
            out.push(Setting::new("blkio", file, value, name.2));
        }
    }
}

fn io_v2(io: &BlockIo, group: &str, out: &mut Vec<Setting>) -> Result<()> {
    let leaf = |w: &Option<u16>| w.is_some_and(|w| w != 0);
    if leaf(&io.leaf_weight) || io.weight_device.iter().any(|d| leaf(&d.leaf_weight)) {
        return Err(only_v1("blockIO.leafWeight", group, "cgroup v2 has no weights of leaves"));
    }
    let what = "blockIO.weight";
    if let Some(w) = io.weight.filter(|w| *w != 0) {
        out.push(Setting::new("io", "io.bfq.weight", w, what).or("io.weight", io_weight_from_blkio(w)));
    }
    for d in &io.weight_device {
        if let Some(w) = d.weight {
            let (major, minor) = (d.major, d.minor);
            let line = |w: u64| format!("{major}:{minor} {w}");
            out.push(
                Setting::new("io", "io.bfq.weight", line(w.into()), "blockIO.weightDevice")
                    .or("io.weight", line(io_weight_from_blkio(w))),
            );
        }
    }
    for (list, name) in throttles(io) {
        for d in list {
            let rate = if d.rate == 0 { "max".into() } else { d.rate.to_string() };
            let value = format!("{}:{} {}={rate}", d.major, d.minor, name.0);
            out.push(Setting::new("io", "io.max", value, name.2));
        }
    }
    Ok(())
}

/// (key of v2's io.max, middle of v1's file name, name in the runtime-spec)
type ThrottleNames = (&'static str, &'static str, &'static str);

fn throttles(io: &BlockIo) -> [(&[ThrottleDevice], ThrottleNames); 4] {
    [
        (&io.throttle_read_bps_device, ("rbps", "read_bps", "blockIO.throttleReadBpsDevice")),
        (&io.throttle_write_bps_device, ("wbps", "write_bps", "blockIO.throttleWriteBpsDevice")),
        (&io.throttle_read_iops_device, ("riops", "read_iops", "blockIO.throttleReadIOPSDevice")),
        (&io.throttle_write_iops_device, ("wiops", "write_iops", "blockIO.throttleWriteIOPSDevice")),
    ]
}

/// The spec's `unified` map: names of v2 files and what to write, after everything else.
fn unified(res: &Resources, place: &dyn Place, group: &str, out: &mut Vec<Setting>) -> Result<()> {
    for (file, value) in &res.unified {
        let controller = file.split('.').next().unwrap_or_default();
        let plain = file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || !file.contains('.') || file.starts_with('.') {
            return Err(CgroupError::BadValue {
                what: "unified".into(),
                value: file.clone(),
                why: "a key must be the name of a cgroup v2 file, as memory.high".into(),
            });
        }
        if place.on_v1(controller) {
            return Err(CgroupError::Unsupported {
                what: format!("unified.{file}"),
                group: group.into(),
                why: format!("the {controller} controller is on cgroup v1 here; use the plain limits"),
            });
        }
        out.push(Setting::new(controller, file, value, "unified"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::*;

    struct At(bool);
    impl Place for At {
        fn on_v1(&self, _: &str) -> bool {
            self.0
        }
        fn v2_now(&self, _: &str) -> Option<String> {
            Some("30000 100000\n".into())
        }
    }

    fn lines(res: &Resources, v1: bool) -> Vec<String> {
        let all = settings(res, &At(v1), "g").unwrap();
        all.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    fn from(json: &str) -> Resources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn cpu() {
        let r = from(r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":10,"cpus":"0","mems":"0"}}"#);
        assert_eq!(
            lines(&r, true),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpu.cfs_burst_us=10",
                "cpuset.mems=0",
                "cpuset.cpus=0"
            ]
        );
        assert_eq!(
            lines(&r, false),
            ["cpu.weight=100", "cpu.max=50000 100000", "cpu.max.burst=10", "cpuset.mems=0", "cpuset.cpus=0"]
        );
        assert_eq!(needed(&r), ["cpu", "cpuset"]);
        assert_eq!(lines(&from(r#"{"cpu":{"quota":-1}}"#), false), ["cpu.max=max"]);
        assert_eq!(lines(&from(r#"{"cpu":{"quota":-5}}"#), true), ["cpu.cfs_quota_us=-1"]);
        assert_eq!(lines(&from(r#"{"cpu":{"period":50000}}"#), false), ["cpu.max=30000 50000"]);
        assert_eq!(lines(&from(r#"{"cpu":{"idle":1,"shares":3}}"#), false), ["cpu.idle=1"]);
        let rt = from(r#"{"cpu":{"realtimeRuntime":10,"realtimePeriod":100}}"#);
        assert_eq!(lines(&rt, true), ["cpu.rt_period_us=100", "cpu.rt_runtime_us=10"]);
        assert!(settings(&rt, &At(false), "g").is_err());
    }

    #[test]
    fn memory_and_pids() {
        let r = from(r#"{"memory":{"limit":100,"swap":150,"reservation":50},"pids":{"limit":7}}"#);
        assert_eq!(lines(&r, false), ["memory.swap.max=50", "memory.max=100", "memory.low=50", "pids.max=7"]);
        assert_eq!(lines(&r, true), ["pids.max=7"]);
        assert_eq!(lines(&from(r#"{"pids":{"limit":0}}"#), true), ["pids.max=1"]);
        assert_eq!(lines(&from(r#"{"pids":{"limit":-1}}"#), false), ["pids.max=max"]);
        assert_eq!(lines(&from(r#"{"memory":{"limit":-1}}"#), false), ["memory.swap.max=max", "memory.max=max"]);
        assert!(needed(&from(r#"{"memory":{}}"#)).is_empty());
    }

    #[test]
    fn what_only_v1_has_is_an_error() {
        for json in [
            r#"{"memory":{"swappiness":0}}"#,
            r#"{"memory":{"kernel":1000}}"#,
            r#"{"memory":{"kernelTCP":1000}}"#,
            r#"{"memory":{"disableOOMKiller":true}}"#,
            r#"{"memory":{"useHierarchy":false}}"#,
            r#"{"blockIO":{"leafWeight":10}}"#,
            r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"leafWeight":10}]}}"#,
        ] {
            assert!(settings(&from(json), &At(false), "g").is_err(), "{json}");
            assert!(settings(&from(json), &At(true), "g").is_ok(), "{json}");
        }
        // What v2 does anyway, and what is no limit.
        let plain = from(r#"{"memory":{"kernel":-1,"kernelTCP":-1,"disableOOMKiller":false,"useHierarchy":true}}"#);
        assert!(lines(&plain, false).is_empty());
    }

    #[test]
    fn io_and_the_rest() {
        let r = from(
            r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
              "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":100}],
              "throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]},
              "hugepageLimits":[{"pageSize":"2MB","limit":4}],
              "network":{"classID":5,"priorities":[{"name":"eth0","priority":2}]},
              "rdma":{"mlx5_1":{"hcaHandles":3}}}"#,
        );
        assert_eq!(
            lines(&r, true),
            [
                "blkio.weight=500",
                "blkio.weight_device=8:0 10",
                "blkio.throttle.read_bps_device=8:0 100",
                "blkio.throttle.write_iops_device=8:1 0",
                "hugetlb.2MB.limit_in_bytes=4",
                "hugetlb.2MB.rsvd.limit_in_bytes=4",
                "net_cls.classid=5",
                "net_prio.ifpriomap=eth0 2",
                "rdma.max=mlx5_1 hca_handle=3"
            ]
        );
        assert_eq!(
            lines(&r, false)[..6],
            [
                "io.bfq.weight=500",
                "io.bfq.weight=8:0 10",
                "io.max=8:0 rbps=100",
                "io.max=8:1 wiops=max",
                "hugetlb.2MB.max=4",
                "hugetlb.2MB.rsvd.max=4"
            ]
        );
        assert_eq!(needed(&r), ["blkio", "hugetlb", "net_cls", "net_prio", "rdma"]);
    }

    #[test]
    fn unified_map() {
        let r = from(r#"{"unified":{"memory.high":"100","cgroup.max.depth":"3"}}"#);
        assert_eq!(lines(&r, false), ["cgroup.max.depth=3", "memory.high=100"]);
        assert!(settings(&r, &At(true), "g").is_err());
        for key in ["../x", "memory/high", "", "x", ".hidden", "a.b\n"] {
            let mut bad = Resources::default();
            bad.unified.insert(key.into(), "1".into());
            assert!(settings(&bad, &At(false), "g").is_err(), "{key}");
        }
    }
}
