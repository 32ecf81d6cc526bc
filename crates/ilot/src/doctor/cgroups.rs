//! Control groups: which layout, which controllers, and whether groups can be made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Findings;

/// Without these no limit of a file can be applied.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

pub(super) fn examine(findings: &mut Findings) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let layout = Layout::read(&mounts);
    let what = match (&layout.unified, layout.v1.is_empty()) {
        (None, true) => {
            return findings.missing(
                "cgroup layout",
                "no cgroup hierarchy is mounted",
                "mount one: `mount -t cgroup2 none /sys/fs/cgroup`",
            );
        }
        (Some(_), true) => "v2",
        (Some(_), false) => "hybrid: v1 controllers beside v2",
        (None, false) => "v1",
    };
    findings.ok("cgroup layout", what);
    let found: Vec<&str> =
        layout.v1.keys().map(String::as_str).chain(layout.controllers.iter().map(String::as_str)).collect();
    let lacking: Vec<&str> = NEEDED.into_iter().filter(|needed| !found.contains(needed)).collect();
    if lacking.is_empty() {
        findings.ok("cgroup controllers", found.join(", "));
    } else {
        findings.missing(
            "cgroup controllers",
            format!("no {}", lacking.join(", no ")),
            "boot with `cgroup_enable=memory systemd.unified_cgroup_hierarchy=1`, or delegate the controllers to this container",
        );
    }
    writable(findings, &layout);
}

/// Makes a group of its own where limits are set, and removes it.
fn writable(findings: &mut Findings, layout: &Layout) {
    let place = layout.v1.get("memory").or(layout.unified.as_ref());
    let Some(place) = place else { return };
    let group = place.join(format!("ilot-doctor-{}", std::process::id()));
    let made = fs::create_dir(&group).and_then(|()| fs::remove_dir(&group));
    findings.tried(
        "cgroup groups",
        made.map(|()| format!("can be made in {}", place.display())),
        super::Level::Missing,
        "run as root, and with cgroups mounted read-write",
    );
}

/// Where hierarchies are mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    /// Each v1 controller and its mount point.
    v1: BTreeMap<String, PathBuf>,
    /// The v2 hierarchy.
    unified: Option<PathBuf>,
    /// Its controllers.
    controllers: Vec<String>,
}

impl Layout {
    fn read(mountinfo: &str) -> Self {
        let mut layout = Self::parse(mountinfo);
        if let Some(unified) = &layout.unified {
            let text = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
            layout.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        layout
    }

    /// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(point) = before.split(' ').nth(4) else { continue };
            let mut after = after.split(' ');
            match after.next() {
                Some("cgroup2") => layout.unified = Some(PathBuf::from(point)),
                Some("cgroup") => {
                    let options = after.nth(1).unwrap_or_default();
                    for option in options.split(',') {
                        if !matches!(option, "rw" | "ro" | "xattr" | "clone_children")
                            && !option.starts_with("name=")
                            && !option.starts_with("release_agent")
                        {
                            layout.v1.entry(option.to_owned()).or_insert_with(|| Path::new(point).to_owned());
                        }
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_hybrid_layout() {
        let layout = Layout::parse(
            "30 1 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
             31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
             32 1 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
             33 1 0:29 / / rw - ext4 /dev/vda rw\n",
        );
        assert_eq!(layout.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(layout.v1.keys().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
        assert_eq!(layout.v1["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }
}
