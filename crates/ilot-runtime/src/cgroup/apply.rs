//! Writing the limits of a group.

use rustix::io::Errno;

use super::error::{CgroupError, Result};
use super::settings::{self, Place};
use super::values::{Missing, Setting};
use super::{Cgroup, create, devices, memory};
use crate::spec::Resources;

/// Needs of these resources, those of the `unified` map included.
pub(super) fn needed(resources: &Resources) -> Vec<&str> {
    let mut out: Vec<&str> = settings::needed(resources);
    for file in resources.unified.keys() {
        let controller = file.split('.').next().unwrap_or_default();
        if !controller.is_empty() && !out.contains(&controller) {
            out.push(controller);
        }
    }
    out
}

/// Where the controllers of a group are.
struct Here<'a>(&'a Cgroup);

impl Place for Here<'_> {
    fn on_v1(&self, controller: &str) -> bool {
        self.0.groups.iter().any(|g| g.has(controller))
    }

    fn v2_now(&self, file: &str) -> Option<String> {
        self.0.v2().and_then(|g| g.dir.read(file).ok().flatten())
    }
}

impl Cgroup {
    /// Writes every value; one that the kernel finds invalid is tried again after the others, because some (CPU
    /// period, quota and burst) are checked against each other.
    pub(super) fn apply(&self, resources: &Resources) -> Result<()> {
        if let (Some(memory), Some(g)) = (&resources.memory, self.group_of("memory")) {
            memory::check(&g.dir, g.v2, memory)?;
            if !g.v2 {
                memory::apply_v1(&g.dir, memory)?;
            }
        }
        let name = self.groups.first().map(|g| g.rel.display().to_string()).unwrap_or_default();
        let settings = settings::settings(resources, &Here(self), &name)?;
        let mut again = Vec::new();
        for s in &settings {
            match self.set(s) {
                Err(CgroupError::Write { source, .. })
                    if source.raw_os_error() == Some(libc::EINVAL) && s.controller == "cpu" =>
                {
                    again.push(s);
                }
                other => other?,
            }
        }
        for s in again {
            self.set(s)?;
        }
        if !resources.devices.is_empty() {
            self.apply_devices(resources)?;
        }
        Ok(())
    }

    fn set(&self, s: &Setting) -> Result<()> {
        let Some(g) = self.group_of(&s.controller) else {
            return Err(CgroupError::NoController {
                what: s.what.into(),
                controller: s.controller.clone(),
                group: self.common_path(),
            });
        };
        let mut written = g.dir.try_write(&s.file, &s.value);
        if written == Err(Errno::NOENT) && g.v2 {
            create::wait_for_files(&g.dir);
            written = g.dir.try_write(&s.file, &s.value);
        }
        match written {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => {
                if let Some((file, value)) = &s.or_file
                    && g.dir.has(file)
                {
                    return g.dir.write(file, value);
                }
                if s.missing == Missing::Skip {
                    return Ok(());
                }
                // v2: the file is missing because the controller is not shared out to this group.
                if g.v2 && !create::v2_controllers(&g.dir)?.contains(&s.controller) {
                    return Err(CgroupError::NoController {
                        what: s.what.into(),
                        controller: s.controller.clone(),
                        group: g.rel.display().to_string(),
                    });
                }
                Err(g.dir.write_error(&s.file, &s.value, Errno::NOENT))
            }
            Err(e) => Err(g.dir.write_error(&s.file, &s.value, e)),
        }
    }

    fn apply_devices(&self, resources: &Resources) -> Result<()> {
        if let Some(g) = self.groups.iter().find(|g| g.has("devices")) {
            return devices::apply_v1(&g.dir, &resources.devices);
        }
        match self.v2() {
            Some(g) => devices::apply_v2(&g.dir, &resources.devices),
            None => Err(CgroupError::NoController {
                what: "devices".into(),
                controller: "devices".into(),
                group: self.common_path(),
            }),
        }
    }
}

/// v2 with controllers, on plain files in place of a kernel that has them.
#[cfg(test)]
mod tests {
    use super::super::create::Group;
    use super::super::dir::Dir;
    use super::*;
    use std::fs;

    const FILES: &[&str] = &[
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.swap.max",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpuset.cpus",
        "cpuset.mems",
        "pids.max",
        "io.weight",
        "io.max",
        "hugetlb.2MB.max",
    ];

    fn fake(files: &[&str], controllers: &str) -> (tempfile::TempDir, Cgroup) {
        let tmp = tempfile::tempdir().unwrap();
        for file in files {
            fs::write(tmp.path().join(file), "").unwrap();
        }
        fs::write(tmp.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(tmp.path().join("cgroup.procs"), "").unwrap();
        let group = Group {
            controllers: Vec::new(),
            v2: true,
            mount: tmp.path().into(),
            rel: "ilot/web".into(),
            dir: Dir::plain(tmp.path()),
        };
        (tmp, Cgroup { groups: vec![group] })
    }

    fn resources(json: &str) -> Resources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn v2_files() {
        let (tmp, group) = fake(FILES, "cpuset cpu io memory hugetlb pids\n");
        group
            .apply(&resources(
                r#"{"memory":{"limit":1000,"swap":3000,"reservation":500},
                    "cpu":{"shares":1024,"quota":5000,"period":10000,"burst":7,"cpus":"0-1","mems":"0"},
                    "pids":{"limit":9},"blockIO":{"weight":1000,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]},
                    "hugepageLimits":[{"pageSize":"2MB","limit":2097152}],"unified":{"memory.high":"900"}}"#,
            ))
            .unwrap();
        for (file, value) in [
            ("memory.max", "1000"),
            ("memory.swap.max", "2000"),
            ("memory.low", "500"),
            ("memory.high", "900"),
            ("cpu.weight", "100"),
            ("cpu.max", "5000 10000"),
            ("cpu.max.burst", "7"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("pids.max", "9"),
            // No BFQ: the general file, with its own scale.
            ("io.weight", "10000"),
            ("io.max", "8:0 rbps=5"),
            ("hugetlb.2MB.max", "2097152"),
        ] {
            assert_eq!(fs::read_to_string(tmp.path().join(file)).unwrap(), value, "{file}");
        }
    }

    #[test]
    fn v2_errors_name_what_is_missing() {
        let (_tmp, group) = fake(&["cpu.weight"], "cpu memory\n");
        // Swap accounting is off: no limit is no error, a limit is.
        group.apply(&resources(r#"{"memory":{"swap":-1}}"#)).unwrap();
        let error = group.apply(&resources(r#"{"memory":{"limit":5,"swap":9}}"#)).unwrap_err();
        assert!(error.to_string().contains("memory.swap.max"), "{error}");
        let error = group.apply(&resources(r#"{"pids":{"limit":5}}"#)).unwrap_err();
        assert!(matches!(&error, CgroupError::NoController { controller, .. } if controller == "pids"), "{error}");
        assert!(error.help().unwrap().contains("Delegate=pids"));
        let error = group.apply(&resources(r#"{"network":{"classID":7}}"#)).unwrap_err();
        assert!(matches!(&error, CgroupError::NoController { controller, .. } if controller == "net_cls"), "{error}");
    }

    #[test]
    fn v2_stats() {
        let (tmp, group) = fake(&[], "cpu io memory pids\n");
        for (file, text) in [
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "12\n"),
            ("memory.stat", "anon 5\ninactive_file 100\n"),
            ("memory.events", "low 0\noom 3\noom_kill 2\n"),
            ("cpu.stat", "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_throttled 4\nthrottled_usec 5\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2\n"),
        ] {
            fs::write(tmp.path().join(file), text).unwrap();
        }
        let s = group.stats().unwrap();
        assert_eq!((s.memory, s.memory_peak, s.memory_limit, s.swap), (Some(4096), Some(8192), None, Some(12)));
        assert_eq!((s.memory_cache, s.oom_kills), (Some(100), Some(2)));
        assert_eq!((s.cpu_usec, s.cpu_throttled, s.cpu_throttled_usec), (Some(30), Some(4), Some(5)));
        assert_eq!((s.pids, s.pids_limit), (Some(3), Some(10)));
        assert_eq!((s.io_read_bytes, s.io_write_bytes), (Some(1), Some(2)));
        assert!(group.oom_killed().unwrap());
    }
}
