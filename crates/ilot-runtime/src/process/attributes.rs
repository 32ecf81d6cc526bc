//! Rarer attributes of a process: scheduler, I/O priority, labels of security modules.

use crate::paths;
use crate::spec::{MemoryPolicy, Process};
use crate::{Error, Result};
use rustix::fs::OFlags;
use std::io;
use std::os::fd::BorrowedFd;

/// Sets what the configuration asks for.
pub fn set(process: &Process) -> Result<()> {
    if let Some(priority) = &process.io_priority {
        let class = match priority.class.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => return Err(Error::invalid("process.ioPriority", format!("class `{other}` is unknown"))),
        };
        let Some(level) = u16::try_from(priority.priority).ok().filter(|level| *level < 8) else {
            return Err(Error::invalid("process.ioPriority", format!("priority {} is not 0 to 7", priority.priority)));
        };
        let value = class << 13 | i32::from(level);
        // SAFETY: numbers only: this process (1 is IOPRIO_WHO_PROCESS).
        if unsafe { libc::syscall(libc::SYS_ioprio_set, 1, 0, value) } != 0 {
            return Err(Error::system("set", "the I/O priority", io::Error::last_os_error()));
        }
    }
    set_scheduler(process)
}

/// Binds this process to a list of CPUs, `0-3,7`.
pub fn set_affinity(list: &str) -> Result<()> {
    let cpus = numbers(list, libc::CPU_SETSIZE as usize)
        .ok_or_else(|| Error::invalid("process.execCPUAffinity", format!("`{list}` is no list of CPUs")))?;
    // SAFETY: an all-zero set is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: checked to be within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: a set and its size; 0 is this process.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        return Err(Error::system("bind", format!("the command to CPUs `{list}`"), io::Error::last_os_error()));
    }
    Ok(())
}

/// The numbers of a list like `0-3,7`, all below `limit`.
fn numbers(list: &str, limit: usize) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= limit {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Memory policies by name (linux/mempolicy.h).
pub const POLICIES: [(&str, libc::c_long); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// Their flags.
pub const POLICY_FLAGS: [(&str, libc::c_long); 3] =
    [("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];

/// Sets where this process and what it becomes get their memory from, `set_mempolicy(2)`.
pub fn set_memory_policy(wanted: &MemoryPolicy) -> Result<()> {
    const NODES: usize = 1024;
    let value = |list: &[(&str, libc::c_long)], name: &str| {
        let found = list.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        found.ok_or_else(|| Error::invalid("linux.memoryPolicy", format!("`{name}` is unknown")))
    };
    let mut mode = value(&POLICIES, &wanted.mode)?;
    for flag in &wanted.flags {
        mode |= value(&POLICY_FLAGS, flag)?;
    }
    let mut mask = [0u64; NODES / 64];
    let nodes = numbers(&wanted.nodes, NODES)
        .ok_or_else(|| Error::invalid("linux.memoryPolicy", format!("`{}` is no list of nodes", wanted.nodes)))?;
    nodes.iter().for_each(|node| mask[node / 64] |= 1 << (node % 64));
    // The kernel looks at one bit less than it is told.
    let (bits, place) = if nodes.is_empty() { (0, std::ptr::null()) } else { (NODES + 1, mask.as_ptr()) };
    // SAFETY: a mask and the number of its bits, or none.
    if unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, place, bits) } != 0 {
        return Err(Error::system("set", "the memory policy", io::Error::last_os_error()));
    }
    Ok(())
}

/// `struct sched_attr`, `sched_setattr(2)`
#[repr(C)]
#[derive(Default)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn set_scheduler(process: &Process) -> Result<()> {
    let Some(wanted) = &process.scheduler else { return Ok(()) };
    let bad = |what: &str| Error::invalid("process.scheduler", format!("`{what}` is unknown"));
    let policy = match wanted.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(bad(other)),
    };
    let mut flags = 0;
    for flag in &wanted.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(bad(other)),
        };
    }
    let attributes = SchedulerAttributes {
        size: size_of::<SchedulerAttributes>() as u32,
        policy,
        flags,
        nice: wanted.nice,
        priority: u32::try_from(wanted.priority)
            .map_err(|_| Error::invalid("process.scheduler", format!("priority {} is negative", wanted.priority)))?,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    // SAFETY: a structure of the size that it names.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(&attributes), 0) } != 0 {
        return Err(Error::system("set", "the scheduler", io::Error::last_os_error()));
    }
    Ok(())
}

/// Sets the execution domain of this process and its children.
pub fn set_personality(domain: &str) -> Result<()> {
    let value = match domain {
        "LINUX" => 0,
        "LINUX32" => 0x0008,
        other => return Err(Error::invalid("linux.personality", format!("domain `{other}` is unknown"))),
    };
    // SAFETY: numbers only.
    if unsafe { libc::personality(value) } < 0 {
        return Err(Error::system("set", "the personality", io::Error::last_os_error()));
    }
    Ok(())
}

/// Sets the labels that `execve` takes over, in a procfs that is certainly one: a write that lands
/// elsewhere would leave the process unconfined (CVE-2019-16884).
pub fn set_labels(process: &Process, proc: Option<BorrowedFd<'_>>) -> Result<()> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    let apparmor = process.apparmor_profile.as_deref().filter(|p| !p.is_empty() && *p != "unconfined");
    let selinux = process.selinux_label.as_deref().filter(|l| !l.is_empty());
    let wanted = [
        (apparmor.map(|p| format!("exec {p}")), "attr/apparmor/exec", "AppArmor profile"),
        (selinux.map(str::to_owned), "attr/exec", "SELinux label"),
    ];
    for (value, file, what) in wanted {
        let Some(value) = value else { continue };
        let fail = |e: rustix::io::Errno| Error::system("set", format!("the {what} `{value}`"), e);
        let proc = proc.ok_or_else(|| Error::invalid(what, "it needs a procfs in the container"))?;
        if rustix::fs::fstatfs(proc).map_err(fail)?.f_type != PROC_SUPER_MAGIC {
            return Err(Error::invalid(what, "/proc of the container is not a procfs"));
        }
        let path = format!("{}/{file}", std::process::id());
        let fd = paths::open_beneath(proc, &path, OFlags::WRONLY).map_err(fail)?;
        rustix::io::write(&fd, value.as_bytes()).map_err(fail)?;
    }
    Ok(())
}
