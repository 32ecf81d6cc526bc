//! Memory limits on v1, where the order of the writes depends on the present values.

use rustix::io::Errno;

use super::dir::Dir;
use super::error::{CgroupError, Result};
use crate::notice;
use crate::spec::Memory;

const LIMIT: &str = "memory.limit_in_bytes";
const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";

/// Refuses a limit below the present use where the caller asked for that (`checkBeforeUpdate`).
pub(super) fn check(dir: &Dir, v2: bool, memory: &Memory) -> Result<()> {
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let (file, now) = if v2 { ("memory.max", "memory.current") } else { (LIMIT, "memory.usage_in_bytes") };
    if let (Some(limit), Some(usage)) = (memory.limit, dir.read_number(now)?)
        && u64::try_from(limit).is_ok_and(|l| l != 0 && l < usage)
    {
        return Err(CgroupError::InUse { file: dir.path().join(file), value: limit.to_string(), usage });
    }
    Ok(())
}

/// Sets what a v1 memory group has. `kernel` is left out: the kernel ignores it since 5.16 and it was broken before.
pub(super) fn apply_v1(dir: &Dir, memory: &Memory) -> Result<()> {
    if memory.kernel.is_some_and(|l| l > 0) {
        notice::warn(
            "memory.kernel has no effect: Linux counts the kernel's memory with the rest, within `memory.limit`",
        );
    }
    if memory.use_hierarchy == Some(true) && dir.read_number("memory.use_hierarchy")? != Some(1) {
        dir.write("memory.use_hierarchy", "1")?;
    }
    limits_v1(dir, memory)?;
    for (value, file) in [
        (memory.reservation.filter(|v| *v != 0), "memory.soft_limit_in_bytes"),
        (memory.kernel_tcp.filter(|v| *v != 0), "memory.kmem.tcp.limit_in_bytes"),
    ] {
        if let Some(value) = value {
            dir.write(file, &value.max(-1).to_string())?;
        }
    }
    if let Some(swappiness) = memory.swappiness {
        if swappiness > 100 {
            return Err(CgroupError::BadValue {
                what: "memory.swappiness".into(),
                value: swappiness.to_string(),
                why: "it must be 0 to 100".into(),
            });
        }
        dir.write("memory.swappiness", &swappiness.to_string())?;
    }
    if let Some(disable) = memory.disable_oom_killer {
        dir.write("memory.oom_control", if disable { "1" } else { "0" })?;
    }
    Ok(())
}

/// The limit with swap must never be below the one without: raise the outer first, lower the inner first.
fn limits_v1(dir: &Dir, memory: &Memory) -> Result<()> {
    let limit = memory.limit.filter(|l| *l != 0);
    let asked = memory.swap.filter(|s| *s != 0);
    // No limit on memory means none on both together, unless told otherwise.
    let swap = asked.or(limit.filter(|l| *l < 0));
    if let (Some(l), Some(s)) = (limit, asked)
        && s > 0
        && (l < 0 || s < l)
    {
        return Err(CgroupError::BadValue {
            what: "memory.swap".into(),
            value: s.to_string(),
            why: "it counts memory and swap together, so it must be at least memory.limit".into(),
        });
    }
    let now = dir.read_number(WITH_SWAP)?;
    let raise = swap.is_some_and(|s| s < 0 || now.is_none_or(|n| u64::try_from(s).is_ok_and(|s| s > n)));
    let write_swap = || match swap {
        // A kernel without swap accounting: nothing to set when nothing was asked for.
        Some(s) if now.is_none() && s < 0 => Ok(()),
        Some(s) => write_limit(dir, WITH_SWAP, s),
        None => Ok(()),
    };
    if raise {
        write_swap()?;
    }
    if let Some(l) = limit {
        write_limit(dir, LIMIT, l)?;
    }
    if raise { Ok(()) } else { write_swap() }
}

fn write_limit(dir: &Dir, file: &str, value: i64) -> Result<()> {
    let text = value.max(-1).to_string();
    match dir.try_write(file, &text) {
        Ok(()) => Ok(()),
        // The kernel tried to make room and could not.
        Err(Errno::BUSY) => Err(CgroupError::InUse {
            file: dir.path().join(file),
            value: text,
            usage: dir.read_number("memory.usage_in_bytes")?.unwrap_or(0),
        }),
        Err(e) => Err(dir.write_error(file, &text, e)),
    }
}
