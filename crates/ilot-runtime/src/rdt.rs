//! Intel RDT and its like: shares of cache and memory bandwidth, by the kernel's `resctrl` file system
//! (`config-linux.md`, "IntelRdt"; Documentation/arch/x86/resctrl.rst of Linux).

use crate::spec::IntelRdt;
use crate::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `RDTGROUP_SUPER_MAGIC` of linux/magic.h.
const MAGIC: u64 = 0x0765_5821;

/// Where a container's processes are, relative to the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Groups whose `tasks` every process of the container is written to; the class first.
    pub groups: Vec<PathBuf>,
    /// Those that were made for this container alone, in the order in which they are removed.
    pub made: Vec<PathBuf>,
}

/// The mounted file system.
struct Resctrl {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

/// What can be said of a configuration without a look at the host.
///
/// # Errors
/// A class that is no directory's name; lines that the specification forbids.
pub fn check(rdt: &IntelRdt) -> Result<()> {
    if let Some(id) = rdt.clos_id.as_deref().filter(|id| *id != "/")
        && (id.is_empty() || id == "." || id == ".." || id.contains(['/', '\n', '\0']) || is_kernels(id))
    {
        return Err(Error::invalid("linux.intelRdt.closID", format!("`{id}` cannot be a class's directory")));
    }
    let memory = rdt.mem_bw_schema.as_deref();
    if memory.is_some_and(|line| !line.starts_with("MB:") || line.contains('\n')) {
        return Err(Error::invalid("linux.intelRdt.memBwSchema", "it must be one line that starts with `MB:`"));
    }
    if rdt.schemata.iter().any(|line| line.contains('\n')) {
        return Err(Error::invalid("linux.intelRdt.schemata", "each entry is one line"));
    }
    Ok(())
}

/// Directories that the kernel keeps for itself.
fn is_kernels(name: &str) -> bool {
    matches!(name, "info" | "mon_groups" | "mon_data")
}

/// Puts a process, which is not running yet, into its class; on failure what was made is gone again.
///
/// # Errors
/// If no `resctrl` is mounted, the class does not fit, or the kernel refuses.
pub fn enter(rdt: &IntelRdt, id: &str, pid: i32) -> Result<Placed> {
    check(rdt)?;
    Resctrl::mounted()?.enter(rdt, id, pid)
}

/// Puts the calling process, a further command of a container, where the container's are.
///
/// # Errors
/// If the file system or a group is gone.
pub fn join(placed: &Placed) -> Result<()> {
    let resctrl = Resctrl::mounted()?;
    placed.groups.iter().try_for_each(|group| resctrl.write(&group.join("tasks"), &std::process::id().to_string()))
}

/// Changes the schemata of a container's class: that of the cache, that of memory bandwidth.
///
/// # Errors
/// If the container has no class, or the kernel refuses.
pub fn update(placed: Option<&Placed>, [cache, memory]: [Option<&str>; 2]) -> Result<()> {
    let wanted = IntelRdt {
        l3_cache_schema: cache.map(ToOwned::to_owned),
        mem_bw_schema: memory.map(ToOwned::to_owned),
        ..Default::default()
    };
    check(&wanted)?;
    let Some(class) = placed.and_then(|placed| placed.groups.first()) else {
        return Err(Error::invalid(
            "linux.intelRdt",
            "the container was made without a class, which cannot be added later",
        ));
    };
    Resctrl::mounted()?.write_schemata(class, &self::wanted(&wanted))
}

/// Removes what was made for a container.
pub fn release(placed: &Placed) {
    if let Ok(resctrl) = Resctrl::mounted() {
        resctrl.remove(&placed.made);
    }
}

impl Resctrl {
    fn mounted() -> Result<Self> {
        let none = |why: &str| Error::Unsupported {
            what: "linux.intelRdt".to_owned(),
            why: why.to_owned(),
            cure: "`mount -t resctrl resctrl /sys/fs/resctrl` on a kernel and processor that have it, or leave it out of \
                   the configuration",
        };
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(path) = mount_point(&table) else {
            let kernel = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
            return Err(none(if kernel.lines().any(|l| l.split_whitespace().last() == Some("resctrl")) {
                "no `resctrl` file system is mounted"
            } else {
                "this kernel or this processor has no resource control (`resctrl`)"
            }));
        };
        let fail = |e: Errno| Error::path("open", &path, e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(fail)?;
        if rustix::fs::fstatfs(&fd).map_err(fail)?.f_type as u64 != MAGIC {
            return Err(none("what is mounted at its place is another file system"));
        }
        Ok(Self { fd, path })
    }

    fn enter(&self, rdt: &IntelRdt, id: &str, pid: i32) -> Result<Placed> {
        let wanted = wanted(rdt);
        let class = match rdt.clos_id.as_deref() {
            Some("/") => PathBuf::new(),
            Some(class) => class.into(),
            None => id.into(),
        };
        let mut placed = Placed { groups: vec![class.clone()], made: Vec::new() };
        let done = self.make_class(rdt, &class, &wanted, &mut placed).and_then(|()| {
            if rdt.enable_monitoring || rdt.enable_cmt || rdt.enable_mbm {
                let group = class.join("mon_groups").join(id);
                self.make(&group)?;
                placed.made.insert(0, group.clone());
                placed.groups.push(group);
            }
            placed.groups.iter().try_for_each(|group| self.write(&group.join("tasks"), &pid.to_string()))
        });
        match done {
            Ok(()) => Ok(placed),
            Err(error) => {
                self.remove(&placed.made);
                Err(error)
            }
        }
    }

    /// The class: made, compared with what is there, or only looked for, as the specification says.
    fn make_class(&self, rdt: &IntelRdt, class: &Path, wanted: &[String], placed: &mut Placed) -> Result<()> {
        let there = class.as_os_str().is_empty() || self.has(class);
        let name = class.display();
        match (&rdt.clos_id, there) {
            (Some(_), false) if wanted.is_empty() => Err(Error::invalid(
                "linux.intelRdt.closID",
                format!("there is no class `{name}`, and no schema to make one with"),
            )),
            (Some(_), true) => {
                let now = self.read(&class.join("schemata"))?;
                match wanted.iter().flat_map(|text| text.lines()).find(|line| !agrees(&now, line)) {
                    None => Ok(()),
                    Some(line) => Err(Error::invalid(
                        "linux.intelRdt",
                        format!("the class `{name}` is there, and its schemata do not agree with `{line}`"),
                    )),
                }
            }
            (None, true) => Err(Error::invalid("linux.intelRdt", format!("there is a class `{name}` already"))),
            (clos_id, false) => {
                self.make(class)?;
                // A named class can be others' too: it stays.
                if clos_id.is_none() {
                    placed.made.push(class.to_owned());
                }
                let written = self.write_schemata(class, wanted);
                if written.is_err() && clos_id.is_some() {
                    self.remove(&[class.to_owned()]);
                }
                written
            }
        }
    }

    fn write_schemata(&self, class: &Path, wanted: &[String]) -> Result<()> {
        wanted.iter().try_for_each(|text| self.write(&class.join("schemata"), &format!("{text}\n")))
    }

    fn make(&self, group: &Path) -> Result<()> {
        rustix::fs::mkdirat(&self.fd, group, Mode::from(0o755)).map_err(|e| match e {
            Errno::NOSPC => Error::Unsupported {
                what: format!("class `{}` of resource control", group.display()),
                why: "the processor has no further one".to_owned(),
                cure: "remove one below /sys/fs/resctrl that is not used, or name one that is there (`closID`)",
            },
            e => Error::path("make", &self.path.join(group), e),
        })
    }

    fn remove(&self, groups: &[PathBuf]) {
        for group in groups {
            let _ = rustix::fs::unlinkat(&self.fd, group, AtFlags::REMOVEDIR);
        }
    }

    fn open(&self, file: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        rustix::fs::openat2(&self.fd, file, flags | OFlags::CLOEXEC, Mode::empty(), beneath)
    }

    fn has(&self, group: &Path) -> bool {
        self.open(group, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    fn read(&self, file: &Path) -> Result<String> {
        let fail = |e: std::io::Error| Error::path("read", &self.path.join(file), e);
        let fd = self.open(file, OFlags::RDONLY).map_err(|e| fail(e.into()))?;
        std::io::read_to_string(std::fs::File::from(fd)).map_err(fail)
    }

    /// One write for a value; the kernel says in a file of its own why it refuses one.
    fn write(&self, file: &Path, text: &str) -> Result<()> {
        let done = self.open(file, OFlags::WRONLY).and_then(|fd| rustix::io::write(&fd, text.as_bytes()));
        let path = self.path.join(file);
        match done {
            Ok(n) if n == text.len() => Ok(()),
            Ok(_) => Err(Error::path("write", &path, Errno::IO)),
            Err(error) => match self.read(Path::new("info/last_cmd_status")) {
                Ok(why) if error == Errno::INVAL && why.trim() != "ok" => Err(Error::invalid(
                    format!("write `{}` to `{}`", text.trim(), path.display()),
                    why.trim().to_owned(),
                )),
                _ => Err(Error::path("write", &path, error)),
            },
        }
    }
}

fn mount_point(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == "resctrl").then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// What is written to `schemata`, in order: the two old fields together, then the lines of the new one.
fn wanted(rdt: &IntelRdt) -> Vec<String> {
    let text = |t: &Option<String>| t.as_deref().filter(|t| !t.is_empty()).map(str::to_owned);
    let cache = text(&rdt.l3_cache_schema).map(|cache| match &rdt.mem_bw_schema {
        // The bandwidth of the field that is named for it.
        Some(_) => cache.lines().filter(|l| !l.trim_start().starts_with("MB:")).collect::<Vec<_>>().join("\n"),
        None => cache.trim_end().to_owned(),
    });
    let both: Vec<String> = cache.into_iter().chain(text(&rdt.mem_bw_schema)).filter(|t| !t.is_empty()).collect();
    let mut list = Vec::new();
    if !both.is_empty() {
        list.push(both.join("\n"));
    }
    if !rdt.schemata.is_empty() {
        list.push(rdt.schemata.join("\n"));
    }
    list
}

/// Whether a `schemata` file has every value of a line, as `L3:0=7f;1=f`; it pads names and numbers.
fn agrees(file: &str, line: &str) -> bool {
    let values = |line: &str| -> Option<(String, BTreeMap<String, String>)> {
        let (name, rest) = line.split_once(':')?;
        let plain = |v: &str| v.trim().trim_start_matches('0').to_ascii_lowercase();
        let pairs = rest.split(';').filter(|p| !p.trim().is_empty());
        let map = pairs.map(|p| p.split_once('=').map(|(d, v)| (plain(d), plain(v)))).collect::<Option<_>>()?;
        Some((name.trim().to_owned(), map))
    };
    let Some((name, wanted)) = values(line) else { return line.trim().is_empty() };
    file.lines()
        .filter_map(values)
        .find(|(n, _)| *n == name)
        .is_some_and(|(_, now)| wanted.iter().all(|(domain, value)| now.get(domain) == Some(value)))
}

/// On plain files in place of a processor that has it.
#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn rdt(json: &str) -> IntelRdt {
        serde_json::from_str(json).unwrap()
    }

    /// A tree with a class `gold`, whose files the "kernel" has made.
    fn tree() -> (tempfile::TempDir, Resctrl) {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["info", "gold/mon_groups"] {
            fs::create_dir_all(tmp.path().join(dir)).unwrap();
        }
        for (file, text) in [
            ("tasks", ""),
            ("schemata", "    L3:0=7ff;1=7ff\n"),
            ("gold/tasks", ""),
            ("gold/schemata", "    MB:0= 20;1= 70\n    L3:0=07f;1=01f\n"),
            ("info/last_cmd_status", "ok\n"),
        ] {
            fs::write(tmp.path().join(file), text).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(tmp.path(), flags, Mode::empty()).unwrap();
        let resctrl = Resctrl { fd, path: tmp.path().into() };
        (tmp, resctrl)
    }

    #[test]
    fn what_is_written() {
        let of = |json: &str| wanted(&rdt(json));
        assert!(of("{}").is_empty());
        assert_eq!(of(r#"{"l3CacheSchema":"L3:0=f"}"#), ["L3:0=f"]);
        assert_eq!(of(r#"{"l3CacheSchema":"L3:0=f\nMB:0=10","memBwSchema":"MB:0=20"}"#), ["L3:0=f\nMB:0=20"]);
        assert_eq!(of(r#"{"memBwSchema":"MB:0=20","schemata":["L2:0=f","L2:1=3"]}"#), ["MB:0=20", "L2:0=f\nL2:1=3"]);
    }

    #[test]
    fn a_class_that_is_there() {
        let (tmp, resctrl) = tree();
        let good = rdt(r#"{"closID":"gold","l3CacheSchema":"L3:0=7f;1=1F","memBwSchema":"MB:1=70"}"#);
        let placed = resctrl.enter(&good, "web", 77).unwrap();
        assert_eq!((placed.groups.as_slice(), placed.made.len()), (&[PathBuf::from("gold")][..], 0));
        assert_eq!(fs::read_to_string(tmp.path().join("gold/tasks")).unwrap(), "77");
        assert!(fs::read_to_string(tmp.path().join("gold/schemata")).unwrap().contains("07f"), "not written");
        let other = rdt(r#"{"closID":"gold","l3CacheSchema":"L3:0=ff"}"#);
        assert!(resctrl.enter(&other, "web", 77).unwrap_err().to_string().contains("L3:0=ff"));
        // Without a schema it is only entered; a monitoring group is the container's own.
        fs::create_dir_all(tmp.path().join("gold/mon_groups")).unwrap();
        let error = resctrl.enter(&rdt(r#"{"closID":"gold","enableMonitoring":true}"#), "web", 78).unwrap_err();
        // No kernel makes `tasks` in here; what was made is gone again.
        assert!(error.to_string().contains("mon_groups/web/tasks"), "{error}");
        assert!(!tmp.path().join("gold/mon_groups/web").exists());
        assert!(resctrl.enter(&rdt(r#"{"closID":"silver"}"#), "web", 77).unwrap_err().to_string().contains("silver"));
        resctrl.enter(&rdt(r#"{"closID":"/"}"#), "web", 79).unwrap();
        assert_eq!(fs::read_to_string(tmp.path().join("tasks")).unwrap(), "79");
    }

    #[test]
    fn new_schemata_for_a_class() {
        let (tmp, resctrl) = tree();
        resctrl.write_schemata(Path::new("gold"), &["L3:0=3\nMB:0=10".to_owned()]).unwrap();
        assert!(fs::read_to_string(tmp.path().join("gold/schemata")).unwrap().starts_with("L3:0=3\nMB:0=10\n"));
    }

    #[test]
    fn a_failed_class_leaves_nothing() {
        let (tmp, resctrl) = tree();
        for json in [r#"{"l3CacheSchema":"L3:0=f"}"#, r#"{"closID":"new","l3CacheSchema":"L3:0=f"}"#, "{}"] {
            // The files of a new directory come from the kernel only: writing fails here.
            assert!(resctrl.enter(&rdt(json), "web", 77).is_err(), "{json}");
            assert!(!tmp.path().join("web").exists() && !tmp.path().join("new").exists(), "{json}");
        }
    }

    #[test]
    fn names_and_lines() {
        for id in ["", ".", "..", "a/b", "info", "mon_groups", "a\nb"] {
            let bad = IntelRdt { clos_id: Some(id.into()), ..IntelRdt::default() };
            assert!(check(&bad).is_err(), "{id:?}");
        }
        assert!(check(&rdt(r#"{"closID":"/"}"#)).is_ok() && check(&rdt(r#"{"closID":"gold"}"#)).is_ok());
        assert!(check(&rdt(r#"{"memBwSchema":"L3:0=f"}"#)).is_err());
        assert!(check(&rdt(r#"{"schemata":["L3:0=f\nMB:0=10"]}"#)).is_err());
        assert!(update(None, [Some("L3:0=f"), None]).is_err());
        let table = "31 23 0:28 / /sys/fs/resctrl rw,relatime shared:9 - resctrl resctrl rw\n";
        assert_eq!(mount_point(table), Some("/sys/fs/resctrl".into()));
        assert_eq!(mount_point("31 23 0:28 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
