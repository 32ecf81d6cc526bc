//! Ranges of 65536 host ids: one per domain, and one per container of `ilot run` that has no domain.
//!
//! The ranges start at 0x7000_0000: above what `useradd`, systemd (`systemd.io/UIDS-GIDS`) and the usual subordinate
//! ids take, below 2^31, which old tools cannot hold. Who holds which is a directory of symbolic links, `ids/<number>` →
//! holder: making one is atomic, needs no lock, and has no content that a crash could lose half of.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{fs, io};

use crate::error::{Error, Result};
use crate::paths::{Paths, remove_file};

/// The first id of the first range.
pub const FIRST: u32 = 0x7000_0000;
/// Ids in a range.
pub const SIZE: u32 = 65_536;
/// How many ranges there are.
pub const RANGES: u32 = 4_095;

/// The range of `holder`, given to it now if it has none.
pub(crate) fn allocate(paths: &Paths, holder: &str) -> Result<u32> {
    for (number, other) in claims(paths)? {
        if other.as_deref() == Some(holder) {
            return Ok(FIRST + number * SIZE);
        }
    }
    claim(paths, holder)
}

/// A range for a holder that surely has none yet.
pub(crate) fn claim(paths: &Paths, holder: &str) -> Result<u32> {
    let taken: BTreeSet<u32> = numbers(paths)?;
    let (foreign, mapped) = (foreign_ranges(), mapped_ranges());
    for number in (0..RANGES).filter(|n| !taken.contains(n)) {
        if !is_usable(number, &foreign, &mapped) {
            continue;
        }
        let link = dir(paths).join(number.to_string());
        match std::os::unix::fs::symlink(holder, &link) {
            Ok(()) => return Ok(FIRST + number * SIZE),
            // Somebody else was quicker.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::file("make", link)(e)),
        }
    }
    Err(Error::Exhausted(format!("all {RANGES} id ranges are taken; remove domains that are not needed")))
}

/// Ranges one after the other, as many of `count` as there are, at least one: the first id, and how many ids.
pub(crate) fn claim_block(paths: &Paths, holder: &str, count: u32) -> Result<(u32, u32)> {
    let mapped = mapped_ranges();
    let foreign = foreign_ranges();
    let free = |taken: &BTreeSet<u32>, number: u32| {
        number < RANGES && !taken.contains(&number) && is_usable(number, &foreign, &mapped)
    };
    let mut count = count;
    while count > 0 {
        let taken = numbers(paths)?;
        // From the top: single ranges are given from the bottom.
        let start = (0..=RANGES - count).rev().find(|&n| (n..n + count).all(|n| free(&taken, n)));
        let Some(start) = start else {
            count /= 2;
            continue;
        };
        let mut made = Vec::new();
        for number in start..start + count {
            let link = dir(paths).join(number.to_string());
            match std::os::unix::fs::symlink(holder, &link) {
                Ok(()) => made.push(link),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => break,
                Err(e) => return Err(Error::file("make", link)(e)),
            }
        }
        if made.len() == count as usize {
            return Ok((FIRST + start * SIZE, count * SIZE));
        }
        // Somebody else was quicker: look again.
        made.iter().try_for_each(|link| remove_file(link))?;
    }
    Err(Error::Exhausted(format!("all {RANGES} id ranges are taken; remove domains that are not needed")))
}

/// Whether a range is nobody else's, and exists here at all: in a user namespace only some ids do.
fn is_usable(number: u32, foreign: &[(u64, u64)], mapped: &[(u64, u64)]) -> bool {
    let first = u64::from(FIRST + number * SIZE);
    let end = first + u64::from(SIZE);
    !foreign.iter().any(|(start, len)| *start < end && first < start + len)
        && mapped.iter().any(|(start, len)| *start <= first && end <= start + len)
}

/// The ids that exist in this process's user namespace: (first, how many).
fn mapped_ranges() -> Vec<(u64, u64)> {
    let Ok(text) = fs::read_to_string("/proc/self/uid_map") else { return vec![(0, u64::from(u32::MAX))] };
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Gives the range of `holder` back.
pub(crate) fn release(paths: &Paths, holder: &str) -> Result<()> {
    for (number, other) in claims(paths)? {
        if other.as_deref() == Some(holder) {
            remove_file(&dir(paths).join(number.to_string()))?;
        }
    }
    Ok(())
}

/// Gives the range that begins with `base` back, if it is `holder`'s: what [`release`] does without looking at all.
pub(crate) fn give_back(paths: &Paths, base: u32, holder: &str) -> Result<()> {
    let link = dir(paths).join((base.saturating_sub(FIRST) / SIZE).to_string());
    match fs::read_link(&link) {
        Ok(other) if other.as_os_str() == holder => remove_file(&link),
        _ => Ok(()),
    }
}

/// Claims again what a record says: a crash of the host may have lost the link.
pub(crate) fn ensure(paths: &Paths, base: u32, holder: &str) -> Result<()> {
    let link = dir(paths).join((base.saturating_sub(FIRST) / SIZE).to_string());
    match std::os::unix::fs::symlink(holder, &link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(Error::file("make", link)(e)),
        _ => Ok(()),
    }
}

/// Who holds a range, for repair.
pub(crate) fn holders(paths: &Paths) -> Result<Vec<String>> {
    Ok(claims(paths)?.into_iter().filter_map(|(_, holder)| holder).collect())
}

fn dir(paths: &Paths) -> PathBuf {
    paths.root.join("ids")
}

fn numbers(paths: &Paths) -> Result<BTreeSet<u32>> {
    let dir = dir(paths);
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(&dir).map_err(Error::file("read", &dir))? {
        let entry = entry.map_err(Error::file("read", &dir))?;
        numbers.extend(entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Every range that is taken, and by whom; one given back between the two looks has no holder.
fn claims(paths: &Paths) -> Result<Vec<(u32, Option<String>)>> {
    let dir = dir(paths);
    Ok(numbers(paths)?
        .into_iter()
        .map(|number| {
            let holder = fs::read_link(dir.join(number.to_string())).ok();
            (number, holder.and_then(|h| h.into_os_string().into_string().ok()))
        })
        .collect())
}

/// Ranges that `/etc/subuid` and `/etc/subgid` give to users.
fn foreign_ranges() -> Vec<(u64, u64)> {
    ["/etc/subuid", "/etc/subgid"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| {
                    let mut fields = line.split(':').skip(1);
                    Some((fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
                })
                .collect::<Vec<(u64, u64)>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(&dir.path().join("root"), &dir.path().join("run")).unwrap();
        let a = allocate(&paths, "domain:a").unwrap();
        let b = claim(&paths, "machine:b").unwrap();
        assert_eq!(allocate(&paths, "domain:a").unwrap(), a);
        assert!(a.abs_diff(b) >= SIZE);
        give_back(&paths, a, "machine:b").unwrap();
        assert_eq!(holders(&paths).unwrap().len(), 2, "not b's to give back");
        give_back(&paths, b, "machine:b").unwrap();
        release(&paths, "domain:a").unwrap();
        assert!(holders(&paths).unwrap().is_empty());
        assert_eq!(claim(&paths, "machine:c").unwrap(), a.min(b));
    }

    #[test]
    fn side_by_side_no_two_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::open(&dir.path().join("root"), &dir.path().join("run")).unwrap();
        let paths = &paths;
        let all: Vec<u32> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..8)
                .map(|t| {
                    scope.spawn(move || {
                        (0..20).map(|i| claim(paths, &format!("machine:{t}-{i}")).unwrap()).collect::<Vec<_>>()
                    })
                })
                .collect();
            handles.into_iter().flat_map(|h| h.join().unwrap()).collect()
        });
        let distinct: BTreeSet<u32> = all.iter().copied().collect();
        assert_eq!(distinct.len(), 160);
    }
}
