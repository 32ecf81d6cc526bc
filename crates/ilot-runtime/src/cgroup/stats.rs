//! What a container uses.

use serde::{Deserialize, Serialize};

use super::Cgroup;
use super::dir::flat_key;
use super::error::Result;

/// A v1 limit from here on (page counter's maximum, rounded to pages of any size) means none.
const V1_UNLIMITED: u64 = i64::MAX as u64 - 0xf_ffff;

/// Live usage of a container. `None`: this host does not count that, or there is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Memory in use, caches of files included, bytes.
    pub memory: Option<u64>,
    /// The part of `memory` that is file cache which can be dropped, bytes.
    pub memory_cache: Option<u64>,
    /// The most memory that was in use, bytes.
    pub memory_peak: Option<u64>,
    /// The memory limit, bytes.
    pub memory_limit: Option<u64>,
    /// Swap in use, bytes.
    pub swap: Option<u64>,
    /// Whether and how often the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// CPU time used, µs.
    pub cpu_usec: Option<u64>,
    /// Its part in user mode, µs.
    pub cpu_user_usec: Option<u64>,
    /// Its part in the kernel, µs.
    pub cpu_system_usec: Option<u64>,
    /// Periods in which the quota ran out.
    pub cpu_throttled: Option<u64>,
    /// Time that was lost by that, µs.
    pub cpu_throttled_usec: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The limit on them.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let mut s = Stats::default();
    memory(cgroup, &mut s)?;
    cpu(cgroup, &mut s)?;
    if let Some(g) = cgroup.group_of("pids") {
        s.pids = g.dir.read_number("pids.current")?;
        s.pids_limit = g.dir.read_number("pids.max")?;
    }
    if s.pids.is_none() {
        s.pids = Some(cgroup.pids()?.len() as u64);
    }
    io(cgroup, &mut s)?;
    Ok(s)
}

fn memory(cgroup: &Cgroup, s: &mut Stats) -> Result<()> {
    let Some(g) = cgroup.group_of("memory") else { return Ok(()) };
    let stat = g.dir.read("memory.stat")?.unwrap_or_default();
    if g.v2 {
        s.memory = g.dir.read_number("memory.current")?;
        s.memory_peak = g.dir.read_number("memory.peak")?;
        s.memory_limit = g.dir.read_number("memory.max")?;
        s.swap = g.dir.read_number("memory.swap.current")?;
        s.memory_cache = flat_key(&stat, "inactive_file");
        s.oom_kills = g.dir.read_key("memory.events", "oom_kill")?;
    } else {
        s.memory = g.dir.read_number("memory.usage_in_bytes")?;
        s.memory_peak = g.dir.read_number("memory.max_usage_in_bytes")?;
        s.memory_limit = g.dir.read_number("memory.limit_in_bytes")?.filter(|l| *l < V1_UNLIMITED);
        s.swap = flat_key(&stat, "total_swap");
        s.memory_cache = flat_key(&stat, "total_inactive_file");
        s.oom_kills = g.dir.read_key("memory.oom_control", "oom_kill")?;
    }
    Ok(())
}

fn cpu(cgroup: &Cgroup, s: &mut Stats) -> Result<()> {
    // The v2 hierarchy counts CPU time without any controller.
    if let Some(g) = cgroup.v2() {
        let stat = g.dir.read("cpu.stat")?.unwrap_or_default();
        s.cpu_usec = flat_key(&stat, "usage_usec");
        s.cpu_user_usec = flat_key(&stat, "user_usec");
        s.cpu_system_usec = flat_key(&stat, "system_usec");
        s.cpu_throttled = flat_key(&stat, "nr_throttled");
        s.cpu_throttled_usec = flat_key(&stat, "throttled_usec");
    }
    let v1 = |c| cgroup.groups.iter().find(|g| g.has(c));
    if let Some(g) = v1("cpuacct").filter(|_| s.cpu_usec.is_none()) {
        let micro = |file: &str| Ok::<_, super::CgroupError>(g.dir.read_number(file)?.map(|ns| ns / 1000));
        s.cpu_usec = micro("cpuacct.usage")?;
        s.cpu_user_usec = micro("cpuacct.usage_user")?;
        s.cpu_system_usec = micro("cpuacct.usage_sys")?;
    }
    if let Some(g) = v1("cpu") {
        let stat = g.dir.read("cpu.stat")?.unwrap_or_default();
        s.cpu_throttled = flat_key(&stat, "nr_throttled");
        s.cpu_throttled_usec = flat_key(&stat, "throttled_time").map(|ns| ns / 1000);
    }
    Ok(())
}

fn io(cgroup: &Cgroup, s: &mut Stats) -> Result<()> {
    let Some(g) = cgroup.group_of("blkio").or_else(|| cgroup.group_of("io")) else { return Ok(()) };
    let text = if g.v2 {
        g.dir.read("io.stat")?
    } else {
        match g.dir.read("blkio.throttle.io_service_bytes_recursive")? {
            None => g.dir.read("blkio.io_service_bytes_recursive")?,
            some => some,
        }
    };
    if let Some(text) = text {
        let (read, write) = if g.v2 { io_v2(&text) } else { io_v1(&text) };
        s.io_read_bytes = Some(read);
        s.io_write_bytes = Some(write);
    }
    Ok(())
}

/// `8:0 rbytes=1 wbytes=2 …` per device.
fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_whitespace().filter_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

/// `8:0 Read 1` per device and kind, and a total.
fn io_v1(text: &str) -> (u64, u64) {
    let sum = |kind: &str| {
        text.lines()
            .filter_map(|l| {
                let mut words = l.split(' ');
                let (device, k, n) = (words.next()?, words.next()?, words.next()?);
                (device.contains(':') && k == kind).then(|| n.parse::<u64>().ok())?
            })
            .sum()
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_files() {
        assert_eq!(io_v2("8:0 rbytes=10 wbytes=20 rios=1\n259:1 rbytes=5 wbytes=0\n"), (15, 20));
        assert_eq!(io_v1("8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n9:0 Read 5\nTotal 35\n"), (15, 20));
        assert_eq!(io_v1("Total 0\n"), (0, 0));
    }
}
