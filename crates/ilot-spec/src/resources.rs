//! `resource_policy`: what the host can give, shared out to the machines that do not say what they need.

use crate::cx::{Cx, Path};
use crate::model::{
    CpuAllowance, CpuLimit, CpuMode, Domain, HostFacts, Layout, Limits, MemoryEnforce, Reserve, ShareMode,
};
use crate::read::RawResourcePolicy;
use crate::units::set_cpus;

/// The least memory that a share is, in bytes.
const MIN_MEMORY: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// Fills in the limits of every enabled machine and compares the totals with what the host can give.
///
/// A machine's own limits come off the pool first; what is left goes to the others.
pub(crate) fn share(cx: &mut Cx<'_>, policy: &RawResourcePolicy, domains: &mut [Domain], host: &HostFacts) {
    let root = Path::Root;
    let global = root.key("global");
    let base = if cx.sources.layout == Layout::ProjectDirectory { root } else { global };
    let path = base.key("resource_policy");
    if host.cpus == 0 || host.memory == 0 {
        cx.warning(policy.span, &path, "`resource_policy` is not applied: this host's CPUs and memory are not known")
            .help("give each machine its own `limits.cpu` and `limits.memory`");
        return;
    }
    let cpus = f64::from(host.cpus);
    let pool_cpu = cpus - reserved_cpu(policy.reserve_cpu, cpus);
    let pool_memory = host.memory.saturating_sub(reserved_memory(policy.reserve_memory, host.memory));
    if pool_cpu <= 0.0 || pool_memory == 0 {
        cx.error(policy.span, &path, "the reserve for the host leaves nothing for the machines").help(format!(
            "reserve less: the host has {} CPUs and {} MiB",
            host.cpus,
            host.memory / MIB
        ));
        return;
    }
    let mut machines: Vec<(u32, &mut Limits)> = domains
        .iter_mut()
        .filter(|d| d.enabled)
        .flat_map(|d| d.machines.iter_mut())
        .map(|m| (if policy.mode == ShareMode::Equal { 1 } else { m.weight }, &mut m.limits))
        .collect();
    let used_cpu = share_cpu(&mut machines, pool_cpu, cpus, policy.cpu_mode);
    let used_memory = share_memory(&mut machines, pool_memory, policy.memory_enforce);

    let mut over = Vec::new();
    if used_cpu > pool_cpu * 1.001 {
        over.push(format!("{used_cpu:.2} CPUs of the {pool_cpu:.2} that the host can give"));
    }
    if used_memory > pool_memory {
        over.push(format!("{} MiB of the {} MiB that it can give", used_memory / MIB, pool_memory / MIB));
    }
    if over.is_empty() {
        return;
    }
    let message = format!("the machines take {}", over.join(", and "));
    if policy.overcommit {
        cx.warning(policy.span, &path, message).help("lower some limits if that is not wanted");
    } else {
        cx.error(policy.span, &path, message)
            .help("lower limits, disable domains, reserve less, or set `overcommit: true`");
    }
}

fn reserved_cpu(reserve: Reserve, cpus: f64) -> f64 {
    match reserve {
        Reserve::Percent(percent) => cpus * percent / 100.0,
        #[allow(clippy::cast_precision_loss, reason = "a number of cores")]
        Reserve::Amount(cores) => cores as f64,
    }
}

fn reserved_memory(reserve: Reserve, memory: u64) -> u64 {
    match reserve {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a size below 2^53, from 0 to 100 percent"
        )]
        Reserve::Percent(percent) => (memory as f64 * percent / 100.0) as u64,
        Reserve::Amount(bytes) => bytes,
    }
}

/// CPUs' worth of a machine's limits; `None` without any.
fn own_cpus(limits: &Limits, cpus: f64) -> Option<f64> {
    match (&limits.cpu, limits.cpu_allowance) {
        (Some(CpuLimit::Count(count)), _) => Some(f64::from(*count)),
        (Some(CpuLimit::Set(set)), _) => Some(f64::from(set_cpus(set).0)),
        (None, Some(CpuAllowance::Percent(percent))) => Some(cpus * f64::from(percent) / 100.0),
        #[allow(clippy::cast_precision_loss, reason = "microseconds of at most a second")]
        (None, Some(CpuAllowance::Quota { quota, period })) => Some(quota as f64 / period as f64),
        (None, None) => None,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares are positive and below 2^32")]
fn share_cpu(machines: &mut [(u32, &mut Limits)], pool: f64, cpus: f64, mode: CpuMode) -> f64 {
    let (mut used, mut weights) = (0.0, 0.0);
    for (weight, limits) in machines.iter() {
        match own_cpus(limits, cpus) {
            Some(own) => used += own,
            None => weights += f64::from(*weight),
        }
    }
    let left = (pool - used).max(0.0);
    for (weight, limits) in machines.iter_mut() {
        if own_cpus(limits, cpus).is_some() {
            continue;
        }
        let share = left * f64::from(*weight) / weights;
        match mode {
            CpuMode::Count => {
                let count = (share as u32).max(1);
                limits.cpu = Some(CpuLimit::Count(count));
                used += f64::from(count);
            }
            CpuMode::Allowance => {
                let percent = ((share / cpus * 100.0) as u32).max(1);
                limits.cpu_allowance = Some(CpuAllowance::Percent(percent));
                used += cpus * f64::from(percent) / 100.0;
            }
        }
    }
    used
}

fn share_memory(machines: &mut [(u32, &mut Limits)], pool: u64, enforce: MemoryEnforce) -> u64 {
    let (mut used, mut weights) = (0_u64, 0_u128);
    for (weight, limits) in machines.iter() {
        match limits.memory {
            Some(own) => used = used.saturating_add(own),
            None => weights += u128::from(*weight),
        }
    }
    let left = pool.saturating_sub(used);
    for (weight, limits) in machines.iter_mut() {
        limits.memory_enforce.get_or_insert(enforce);
        if limits.memory.is_some() {
            continue;
        }
        let share = u128::from(left) * u128::from(*weight) / weights.max(1);
        // Whole MiB, so that the same share is the same text everywhere.
        let share = (u64::try_from(share).unwrap_or(left) / MIB * MIB).max(MIN_MEMORY);
        limits.memory = Some(share);
        used = used.saturating_add(share);
    }
    used
}
