//! The limits of an Incus-style `config` in terms of the runtime-spec.
//!
//! | key | here |
//! | --- | --- |
//! | `limits.cpu: N` | N CPUs' worth of time: quota N × period (a host with fewer CPUs gives what it has) |
//! | `limits.cpu: 0-3,7` | that set of CPUs |
//! | `limits.cpu.allowance: 50%` | a share under contention: shares 1024 × 50 / 100 (weight on v2) |
//! | `limits.cpu.allowance: 25ms/100ms` | a hard quota per period |
//! | `limits.memory` + `enforce: hard` | the hard limit (memory.max; v1 memory.limit_in_bytes) |
//! | `limits.memory` + `enforce: soft` | memory.high on v2, soft limit on v1: reclaimed first, never killed for it |
//! | `limits.processes` | pids.max |
//!
//! Incus pins `limits.cpu: N` to N CPUs that its daemon rebalances. Without a daemon a set chosen at start would
//! leave CPUs idle beside crowded ones, so N is a quota here: the same amount of time, on whichever CPUs are free.

use super::layout::{Layout, Mode};
use crate::spec::{Cpu, Memory, Pids, Resources};

/// The period of CPU quotas made from a number of CPUs, µs (the kernel's default).
pub const CPU_PERIOD_US: u64 = 100_000;

/// `limits.cpu`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuLimit {
    /// The time of so many CPUs.
    Count(u32),
    /// These CPUs, as cpuset(7) lists them: `0-3,7`.
    Set(String),
}

/// `limits.cpu.allowance`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// A share of 100 that counts only when CPUs are short.
    Percent(u32),
    /// At most `quota` of each `period`, both µs.
    Quota {
        /// Microseconds of CPU time.
        quota: u64,
        /// Microseconds of real time.
        period: u64,
    },
}

/// Limits as a machine's `config` states them. `None`: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// `limits.cpu`
    pub cpu: Option<CpuLimit>,
    /// `limits.cpu.allowance`
    pub allowance: Option<Allowance>,
    /// `limits.memory`, bytes.
    pub memory: Option<u64>,
    /// `limits.memory.enforce: soft`
    pub memory_soft: bool,
    /// `limits.processes`
    pub processes: Option<u64>,
}

impl Limits {
    /// The resources that enforce these limits on a host with this layout and `cpus` CPUs.
    ///
    /// Every limit is always stated, the absent ones as "unlimited", so that [`super::Cgroup::update`] with the result
    /// takes back what an earlier version of the file had set.
    #[must_use]
    pub fn resources(&self, layout: &Layout, cpus: u32) -> Resources {
        let (memory, unified) = self.memory(layout);
        Resources {
            cpu: Some(self.cpu(cpus)),
            memory: Some(memory),
            pids: Some(Pids { limit: Some(self.processes.map_or(-1, signed)) }),
            unified,
            ..Resources::default()
        }
    }

    fn cpu(&self, cpus: u32) -> Cpu {
        let mut cpu = Cpu { shares: Some(1024), quota: Some(-1), period: Some(CPU_PERIOD_US), ..Cpu::default() };
        match &self.cpu {
            Some(CpuLimit::Count(n)) if *n < cpus => {
                cpu.quota = Some(signed(u64::from((*n).max(1)) * CPU_PERIOD_US));
            }
            Some(CpuLimit::Count(_)) | None => {}
            Some(CpuLimit::Set(set)) => cpu.cpus = Some(set.clone()),
        }
        match self.allowance {
            Some(Allowance::Percent(p)) => cpu.shares = Some((u64::from(p) * 1024 / 100).max(2)),
            Some(Allowance::Quota { quota, period }) => {
                // Both a count and a quota: the smaller one holds.
                let scaled = |q: i64| u64::try_from(q).unwrap_or(u64::MAX).saturating_mul(period);
                let tighter = cpu.quota.is_none_or(|q| q < 0 || quota.saturating_mul(CPU_PERIOD_US) < scaled(q));
                if tighter {
                    cpu.quota = Some(signed(quota));
                    cpu.period = Some(period);
                }
            }
            None => {}
        }
        cpu
    }

    fn memory(&self, layout: &Layout) -> (Memory, std::collections::BTreeMap<String, String>) {
        let bytes = self.memory.map_or(-1, signed);
        let (hard, soft) = if self.memory_soft { (-1, bytes) } else { (bytes, -1) };
        let mut memory = Memory { limit: Some(hard), ..Memory::default() };
        let mut unified = std::collections::BTreeMap::new();
        if layout.mode() == Mode::V2 {
            let high = if soft < 0 { "max".into() } else { soft.to_string() };
            unified.insert("memory.high".into(), high);
        } else {
            memory.reservation = Some(soft);
        }
        (memory, unified)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(v2: bool) -> Layout {
        if v2 {
            Layout::parse("1 1 0:1 / /sys/fs/cgroup rw - cgroup2 c rw\n", "0::/\n").unwrap()
        } else {
            Layout::parse("1 1 0:1 / /c/memory rw - cgroup c rw,memory\n", "3:memory:/\n").unwrap()
        }
    }

    #[test]
    fn cpu_time() {
        let quota = |cpu, allowance| {
            let l = Limits { cpu, allowance, ..Limits::default() };
            let c = l.resources(&layout(true), 8).cpu.unwrap();
            (c.quota.unwrap(), c.period.unwrap(), c.shares.unwrap(), c.cpus)
        };
        let count = |n| Some(CpuLimit::Count(n));
        assert_eq!(quota(None, None), (-1, 100_000, 1024, None));
        assert_eq!(quota(count(2), None), (200_000, 100_000, 1024, None));
        assert_eq!(quota(count(8), None), (-1, 100_000, 1024, None));
        assert_eq!(quota(count(64), None).0, -1);
        assert_eq!(quota(Some(CpuLimit::Set("0-1".into())), None).3.as_deref(), Some("0-1"));
        assert_eq!(quota(None, Some(Allowance::Percent(50))).2, 512);
        assert_eq!(quota(None, Some(Allowance::Percent(0))).2, 2);
        let half = Some(Allowance::Quota { quota: 25_000, period: 50_000 });
        assert_eq!(quota(None, half), (25_000, 50_000, 1024, None));
        assert_eq!(quota(count(2), half).0, 25_000);
        let four = Some(Allowance::Quota { quota: 400_000, period: 100_000 });
        assert_eq!(quota(count(2), four), (200_000, 100_000, 1024, None));
    }

    #[test]
    fn memory() {
        let l = Limits { memory: Some(1 << 20), memory_soft: true, ..Limits::default() };
        let v1 = l.resources(&layout(false), 1);
        assert_eq!(v1.memory.as_ref().unwrap().reservation, Some(1 << 20));
        assert_eq!(v1.memory.unwrap().limit, Some(-1));
        assert!(v1.unified.is_empty());
        let v2 = l.resources(&layout(true), 1);
        assert_eq!(v2.unified["memory.high"], "1048576");
        assert_eq!(v2.memory.unwrap().reservation, None);
        let hard = Limits { memory: Some(5), ..Limits::default() }.resources(&layout(true), 1);
        assert_eq!(hard.unified["memory.high"], "max");
        assert_eq!(hard.memory.unwrap().limit, Some(5));
    }
}
