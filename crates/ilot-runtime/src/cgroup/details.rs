//! What only `events` tells: counters by device and by kind, and the kernel's word that memory ran out.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, inotify};

use super::dir::{Dir, io_error};
use super::error::Result;
use super::{Cgroup, Group};

/// Counters of a container beside those of [`super::Stats`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// `memory.stat`, whole.
    pub memory: BTreeMap<String, u64>,
    /// How often the memory limit was hit.
    pub memory_hits: Option<u64>,
    /// Periods of the CPU quota.
    pub cpu_periods: Option<u64>,
    /// Huge pages by size: in use, the most that was, refused; bytes but for the last.
    pub huge_pages: BTreeMap<String, [u64; 3]>,
    /// Bytes by device (major, minor) and operation.
    pub io: Vec<(u64, u64, String, u64)>,
}

impl Cgroup {
    /// The rarer counters.
    ///
    /// # Errors
    /// If the groups cannot be read.
    pub fn details(&self) -> Result<Details> {
        let mut details = Details::default();
        if let Some(g) = self.group_of("memory") {
            details.memory = flat(&g.dir.read("memory.stat")?.unwrap_or_default());
            details.memory_hits = match g.v2 {
                true => g.dir.read_key("memory.events", "max")?,
                false => g.dir.read_number("memory.failcnt")?,
            };
        }
        if let Some(g) = self.group_of("cpu") {
            details.cpu_periods = g.dir.read_key("cpu.stat", "nr_periods")?;
        }
        if let Some(g) = self.group_of("hugetlb") {
            details.huge_pages = huge_pages(g)?;
        }
        if let Some(g) = self.group_of("blkio").or_else(|| self.group_of("io")) {
            let file = if g.v2 { "io.stat" } else { "blkio.throttle.io_service_bytes_recursive" };
            let text = g.dir.read(file)?.unwrap_or_default();
            details.io = if g.v2 { io_v2(&text) } else { io_v1(&text) };
        }
        Ok(details)
    }

    /// Something that can be read when memory ran out, or is about to; `None` without a memory group.
    ///
    /// # Errors
    /// If the kernel cannot be asked to tell.
    pub fn watch_memory(&self) -> Result<Option<Watch>> {
        let Some(g) = self.group_of("memory") else { return Ok(None) };
        let watch = if g.v2 { watch_v2(&g.dir) } else { watch_v1(&g.dir) };
        watch.map(Some).map_err(|e| io_error("watch", &g.dir.path().join("memory.events"), e))
    }

    /// Whether the group that bounds memory is (still) there.
    #[must_use]
    pub fn bounds_memory(&self) -> bool {
        self.group_of("memory").is_some_and(|g| g.dir.has("cgroup.procs"))
    }
}

/// The kernel's word that memory ran out.
#[derive(Debug)]
pub struct Watch {
    /// Readable when there is news.
    pub fd: OwnedFd,
    /// v1 needs its file held open.
    control: Option<OwnedFd>,
}

impl Watch {
    /// Takes the news away; whether there was any.
    #[must_use]
    pub fn drain(&self) -> bool {
        rustix::io::read(&self.fd, &mut [0u8; 4096]).is_ok_and(|n| n > 0)
    }

    /// Whether news are of nothing but memory that ran out (or a group that went). v1 tells that before it kills and counts
    /// (`mem_cgroup_oom_notify`), so that the counters may not say it yet; v2 tells of each event after it has counted it.
    #[must_use]
    pub fn speaks_of_memory_alone(&self) -> bool {
        self.control.is_some()
    }
}

/// `memory.events` is "modified" with each event (cgroup-v2.rst).
fn watch_v2(dir: &Dir) -> rustix::io::Result<Watch> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, dir.path().join("memory.events"), inotify::WatchFlags::MODIFY)?;
    Ok(Watch { fd, control: None })
}

/// An eventfd, registered by `cgroup.event_control` (cgroup-v1/memory.rst, "OOM Control").
fn watch_v1(dir: &Dir) -> rustix::io::Result<Watch> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = dir.open("memory.oom_control", OFlags::RDONLY)?;
    dir.try_write("cgroup.event_control", &format!("{} {}", fd.as_raw_fd(), control.as_raw_fd()))?;
    Ok(Watch { fd, control: Some(control) })
}

fn flat(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

fn huge_pages(group: &Group) -> Result<BTreeMap<String, [u64; 3]>> {
    let mut sizes = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let kb = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let Some(size) = kb.map(page_name) else { continue };
        let number = |file: String| group.dir.read_number(&file).map(Option::unwrap_or_default);
        let counters = match group.v2 {
            true => [
                number(format!("hugetlb.{size}.current"))?,
                0,
                group.dir.read_key(&format!("hugetlb.{size}.events"), "max")?.unwrap_or(0),
            ],
            false => [
                number(format!("hugetlb.{size}.usage_in_bytes"))?,
                number(format!("hugetlb.{size}.max_usage_in_bytes"))?,
                number(format!("hugetlb.{size}.failcnt"))?,
            ],
        };
        sizes.insert(size, counters);
    }
    Ok(sizes)
}

/// `2MB`, as control files name sizes.
fn page_name(kb: u64) -> String {
    match kb {
        kb if kb >= 1 << 20 => format!("{}GB", kb >> 20),
        kb if kb >= 1 << 10 => format!("{}MB", kb >> 10),
        kb => format!("{kb}KB"),
    }
}

fn numbers(device: &str) -> Option<(u64, u64)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 rbytes=1 wbytes=2 …`
fn io_v2(text: &str) -> Vec<(u64, u64, String, u64)> {
    let mut list = Vec::new();
    for line in text.lines() {
        let Some((device, rest)) = line.split_once(' ') else { continue };
        let Some((major, minor)) = numbers(device) else { continue };
        for (key, operation) in [("rbytes=", "Read"), ("wbytes=", "Write"), ("dbytes=", "Discard")] {
            if let Some(n) = rest.split(' ').find_map(|w| w.strip_prefix(key)?.parse().ok()) {
                list.push((major, minor, operation.to_owned(), n));
            }
        }
    }
    list
}

/// `8:0 Read 1`
fn io_v1(text: &str) -> Vec<(u64, u64, String, u64)> {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = numbers(words.next()?)?;
        Some((major, minor, words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        assert_eq!(flat("cache 5\nrss 7\nbroken\n"), BTreeMap::from([("cache".to_owned(), 5), ("rss".to_owned(), 7)]));
        assert_eq!(
            io_v2("8:0 rbytes=10 wbytes=20 rios=1\n"),
            [(8, 0, "Read".to_owned(), 10), (8, 0, "Write".to_owned(), 20)]
        );
        assert_eq!(io_v1("8:0 Read 10\nTotal 5\n"), [(8, 0, "Read".to_owned(), 10)]);
        assert_eq!([64, 2048, 1 << 20].map(page_name), ["64KB", "2MB", "1GB"]);
    }
}
