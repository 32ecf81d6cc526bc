//! The store's file system, and the range of ids that machines take.

use std::fs;
use std::path::Path;

use super::child::in_child;
use super::{Findings, Level, existing_ancestor, kernel};
use crate::ui;

/// A Debian image takes about 300 MiB unpacked; less than this fills up with the first one.
const LITTLE: u64 = 2 << 30;
const TOO_LITTLE: u64 = 64 << 20;
/// The ids that domains are given ranges of.
const IDS: (u64, u64) = (0x7000_0000, 0x7FFF_FFFF);

pub(super) fn examine(findings: &mut Findings, root: &Path) {
    let place = existing_ancestor(root);
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} free for {}", ui::bytes(free), root.display());
            match free {
                0..TOO_LITTLE => {
                    findings.missing("disk space", text, "free some, or choose another store with `--root`");
                }
                TOO_LITTLE..LITTLE => {
                    findings.warn("disk space", text, "free some, or choose another store with `--root`");
                }
                _ => findings.ok("disk space", text),
            }
        }
        Err(error) => findings.missing(
            "disk space",
            format!("{}: {error}", place.display()),
            "choose another store with `--root`",
        ),
    }
    let overlay = tempfile::Builder::new().prefix(".ilot-doctor-").tempdir_in(place);
    findings.tried(
        "overlay",
        overlay
            .and_then(|dir| in_child(|| kernel::overlay(dir.path())))
            .map(|()| format!("works on the file system of {}", place.display())),
        Level::Missing,
        "keep the store on ext4, XFS, btrfs or tmpfs: `--root DIR`; `modprobe overlay`",
    );
    subordinate_ids(findings);
}

/// Ranges of `/etc/subuid` and `/etc/subgid` that reach into ours: two machines of different tools would be one user.
fn subordinate_ids(findings: &mut Findings) {
    let mut collisions = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        collisions.extend(overlapping(&text).map(|line| format!("{file}: {line}")));
    }
    if collisions.is_empty() {
        findings.ok("id ranges", "0x70000000 to 0x7fffffff are nobody else's");
    } else {
        findings.warn(
            "id ranges",
            format!("also given to others: {}", collisions.join("; ")),
            "move those ranges; ilot leaves them out as long as they are there",
        );
    }
}

fn overlapping(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| {
        let mut fields = line.trim().split(':').skip(1).map(str::parse::<u64>);
        match (fields.next(), fields.next()) {
            (Some(Ok(first)), Some(Ok(count))) => first <= IDS.1 && first.saturating_add(count) > IDS.0,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_ranges_that_reach_into_ours() {
        let text = "# comment\nuser:100000:65536\nroot:1000000:1000000000\nbig:1879000000:65536\nroot:0:1879048193\n";
        assert_eq!(overlapping(text).collect::<Vec<_>>(), ["big:1879000000:65536", "root:0:1879048193"]);
    }
}
