//! `checkpoint`: a container's processes, written down by CRIU.

use super::Global;
use super::args::{Flag, Parsed, switch, value};
use crate::criu::mounts::{self, External, Mounts};
use crate::criu::proto::Message;
use crate::criu::{self, Criu, Kind, Setup, log, stdio};
use crate::record::{Record, Request};
use crate::spec::NamespaceKind;
use crate::{Error, Result, Status};
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// CRIU's own configuration file for containers, as runc and crun have it: for what has no option here.
const CRIU_CONFIG: &str = "/etc/criu/runc.conf";
/// The annotation that names another one, or none.
const CRIU_CONFIG_ANNOTATION: &str = "org.criu.config";

const FLAGS: [Flag; 20] = [
    value("image-path", None),
    value("work-path", None),
    value("parent-path", None),
    switch("leave-running", None),
    switch("tcp-established", None),
    switch("tcp-skip-in-flight", None),
    switch("link-remap", None),
    switch("ext-unix-sk", None),
    switch("shell-job", None),
    switch("lazy-pages", None),
    value("status-fd", None),
    value("page-server", None),
    switch("file-locks", None),
    switch("pre-dump", None),
    value("manage-cgroups-mode", None),
    value("empty-ns", None),
    switch("auto-dedup", None),
    value("network-lock", None),
    switch("no-subreaper", None),
    switch("help", Some('h')),
];

/// `checkpoint`
pub fn checkpoint(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut parsed = Parsed::new(args, &FLAGS, false)?;
    if help("checkpoint", &parsed, &FLAGS) {
        return Ok(0);
    }
    let id = parsed.id()?;
    need_root("checkpoint")?;
    let (dir, record, state) = global.find(&id)?;
    if !matches!(state.status, Status::Running | Status::Paused) {
        return Err(Error::Status { what: "checkpoint", id, status: state.status, wanted: "running" });
    }
    let criu = Criu::open(global.criu.as_deref())?;
    check_user_namespace(&parsed, &record)?;
    check_features(&criu, &parsed)?;
    let folders = Folders::open(&parsed, "dump.log", true)?;
    let options = dump_options(&criu, &parsed, &record, &global.config(&id)?, &folders)?;
    let mut status = status_fd(&parsed)?;
    let pre_dump = parsed.has("pre-dump");
    let kind = if pre_dump { Kind::PreDump } else { Kind::Dump };
    let worker = criu.start(&Setup::new([&folders.images, &folders.work]), || {
        if record.uid_mappings.is_empty() {
            return Ok(());
        }
        // The container's processes, which are not the host's root, will have to read the images; their folder protects them.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        Ok(())
    })?;
    worker
        .run(kind, &options, &mut |notice| {
            if notice.script == "status-ready"
                && let Some(fd) = status.take()
            {
                tell_ready(fd);
            }
            Ok(())
        })
        .map_err(|error| log::explain(&id, &error, &folders.log))?;
    drop(worker);
    if !pre_dump && !parsed.has("leave-running") {
        super::change::remove(&dir, &id)?;
    }
    Ok(0)
}

/// What CRIU is told before it writes a container down; the names of what is outside are kept beside the images.
fn dump_options(criu: &Criu, parsed: &Parsed, record: &Record, config: &Request, folders: &Folders) -> Result<Message> {
    let mut options = folders.options(criu, parsed, record)?;
    options.number(2, record.init.pid.into()).flag(3, parsed.has("leave-running"));
    options.flag(18, parsed.has("link-remap")).flag(46, parsed.has("tcp-skip-in-flight"));
    if let Some(path) = rootfs(config) {
        options.text(13, &path.to_string_lossy());
    }
    if let Some(path) = freezer(record) {
        options.text(44, &path);
    }
    if let Some(server) = parsed.get("page-server") {
        options.message(11, &page_server(server)?);
    }
    if let Some(parent) = parsed.get("parent-path") {
        options.text(14, parent_images(folders, parent)?);
    }
    options.flag(15, parsed.has("pre-dump") || parsed.get("parent-path").is_some());
    external_namespaces(&mut options, config)?;
    if !parsed.has("pre-dump") {
        externals(&mut options, record, config, &folders.images)?;
    }
    Ok(options)
}

/// Answers `--help`, by which callers find out whether there are checkpoints at all.
pub fn help(command: &str, parsed: &Parsed, flags: &[Flag]) -> bool {
    if !parsed.has("help") {
        return false;
    }
    println!("usage: ilot-oci {command} [OPTION…] ID\n");
    for flag in flags {
        println!("  --{}{}", flag.long, if flag.value { " VALUE" } else { "" });
    }
    true
}

/// CRIU works for root only.
pub fn need_root(command: &str) -> Result<()> {
    // SAFETY: no arguments, no failure.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("command `{command}`"),
        why: "CRIU needs root's rights".to_owned(),
        cure: "run it as root",
    })
}

/// Processes in a user namespace read images through a mount of one folder: the folder of an earlier step is not in it.
fn check_user_namespace(parsed: &Parsed, record: &Record) -> Result<()> {
    if record.uid_mappings.is_empty() || !(parsed.has("pre-dump") || parsed.get("parent-path").is_some()) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "option `--pre-dump` or `--parent-path`".to_owned(),
        why: "the container has a user namespace, and could not be restored from several folders".to_owned(),
        cure: "make the checkpoint in one step, without these options",
    })
}

/// What is asked for and this kernel cannot is an error before anything is stopped.
fn check_features(criu: &Criu, parsed: &Parsed) -> Result<()> {
    let (track, lazy) = (parsed.has("pre-dump") || parsed.get("parent-path").is_some(), parsed.has("lazy-pages"));
    if !track && !lazy {
        return Ok(());
    }
    let can = criu.features()?;
    if track && !can.mem_track {
        return Err(Error::Unsupported {
            what: "option `--pre-dump` or `--parent-path`".to_owned(),
            why: "this kernel does not tell which pages were written (CONFIG_MEM_SOFT_DIRTY)".to_owned(),
            cure: "make the checkpoint in one step, without these options",
        });
    }
    if lazy && !can.lazy_pages {
        return Err(Error::Unsupported {
            what: "option `--lazy-pages`".to_owned(),
            why: "this kernel or this CRIU has no userfaultfd that can do it".to_owned(),
            cure: "leave it out",
        });
    }
    Ok(())
}

/// Where images and logs are.
pub struct Folders {
    /// The images.
    pub images: PathBuf,
    /// Where CRIU works.
    pub work: PathBuf,
    /// CRIU's log.
    pub log: PathBuf,
    name: &'static str,
}

impl Folders {
    /// The folders that the options name, made if `make`.
    pub fn open(parsed: &Parsed, name: &'static str, make: bool) -> Result<Self> {
        let absolute = |path: &str| std::path::absolute(path).map_err(|e| Error::path("find", Path::new(path), e));
        let images = absolute(parsed.get("image-path").unwrap_or("checkpoint"))?;
        criu::open_folder(&images, make)?;
        let work = parsed.get("work-path").map(absolute).transpose()?;
        if let Some(work) = &work {
            criu::open_folder(work, true)?;
        }
        let work = work.unwrap_or_else(|| images.clone());
        Ok(Self { log: work.join(name), images, work, name })
    }

    /// The options that both directions have in common (`criu_opts` of CRIU's `images/rpc.proto`).
    pub fn options(&self, criu: &Criu, parsed: &Parsed, labels: &impl Labels) -> Result<Message> {
        let mut options = Message::default();
        options.number(1, criu::IMAGES).number(17, criu::WORK);
        options.number(9, 4).text(10, self.name);
        for (field, name) in [
            (4, "ext-unix-sk"),
            (5, "tcp-established"),
            (7, "shell-job"),
            (8, "file-locks"),
            (16, "auto-dedup"),
            (48, "lazy-pages"),
        ] {
            options.flag(field, parsed.has(name));
        }
        // Questions on the way, and the masters of terminals that nobody has inside.
        options.flag(12, true).flag(50, true);
        options.number(34, cgroup_mode(parsed)?);
        options.number(38, empty_namespaces(parsed)?);
        match parsed.get("network-lock") {
            Some(method) => {
                options.number(64, network_lock(method)?);
            }
            // CRIU would call a program that is not there; the other way it has built in.
            None if criu.version >= criu::KNOWS_NFTABLES && criu::find(Some("iptables-restore")).is_none() => {
                options.number(64, network_lock("nftables")?);
            }
            None => {}
        }
        match labels.labels(CRIU_CONFIG_ANNOTATION) {
            Some("") => {}
            path => {
                options.text(51, path.unwrap_or(CRIU_CONFIG));
            }
        }
        Ok(options)
    }
}

/// Who has annotations.
pub trait Labels {
    /// The value of one.
    fn labels(&self, name: &str) -> Option<&str>;
}

impl Labels for Record {
    fn labels(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(String::as_str)
    }
}

impl Labels for Request {
    fn labels(&self, name: &str) -> Option<&str> {
        self.spec.annotations.get(name).map(String::as_str)
    }
}

/// `criu_cg_mode`
fn cgroup_mode(parsed: &Parsed) -> Result<i64> {
    match parsed.get("manage-cgroups-mode").unwrap_or("soft") {
        "ignore" => Ok(0),
        "" | "soft" => Ok(3),
        "full" => Ok(4),
        "strict" => Ok(5),
        other => Err(Error::invalid(
            "option `--manage-cgroups-mode`",
            format!("`{other}` is none of soft, full, strict, ignore"),
        )),
    }
}

/// Flags of the namespaces that are brought back empty; CRIU can do that with one kind.
fn empty_namespaces(parsed: &Parsed) -> Result<i64> {
    parsed.all("empty-ns").try_fold(0, |flags, name| match name {
        "network" => Ok(flags | i64::from(libc::CLONE_NEWNET)),
        other => Err(Error::invalid("option `--empty-ns`", format!("`{other}`: only `network` can be left empty"))),
    })
}

/// `criu_network_lock_method`
fn network_lock(method: &str) -> Result<i64> {
    match method {
        "iptables" => Ok(1),
        "nftables" => Ok(2),
        "skip" => Ok(3),
        other => {
            Err(Error::invalid("option `--network-lock`", format!("`{other}` is none of iptables, nftables, skip")))
        }
    }
}

fn page_server(text: &str) -> Result<Message> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) = parts
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| Error::invalid("option `--page-server`", format!("`{text}` is not ADDRESS:PORT")))?;
    let mut server = Message::default();
    server.text(1, host.trim_start_matches('[').trim_end_matches(']')).number(2, port.into());
    Ok(server)
}

/// The images of an earlier step, by their path from the new ones: so they can be moved together.
fn parent_images<'a>(folders: &Folders, parent: &'a str) -> Result<&'a str> {
    if Path::new(parent).is_absolute() {
        return Err(Error::invalid("option `--parent-path`", "give it relative to `--image-path`, as `../first`"));
    }
    let path = folders.images.join(parent);
    if !path.is_dir() {
        return Err(Error::invalid("option `--parent-path`", format!("`{}` is no directory", path.display())));
    }
    Ok(parent)
}

fn rootfs(config: &Request) -> Option<&Path> {
    match &config.rootfs {
        crate::Rootfs::Dir { path, .. } => Some(path),
        crate::Rootfs::Overlay { .. } => None,
    }
}

/// The group by which CRIU stops all processes at once.
fn freezer(record: &Record) -> Option<String> {
    let has = |path: &&PathBuf| ["freezer.state", "cgroup.freeze"].iter().any(|f| path.join(f).exists());
    record.cgroup.iter().find(has).map(|path| path.to_string_lossy().into_owned())
}

/// The name by which CRIU knows a namespace that is not the container's own.
pub fn namespace_key(kind: NamespaceKind) -> Option<&'static str> {
    match kind {
        NamespaceKind::Network => Some("extRootNetNS"),
        NamespaceKind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// Namespaces that were there before the container stay out of its images.
fn external_namespaces(options: &mut Message, config: &Request) -> Result<()> {
    for namespace in config.spec.linux.iter().flat_map(|l| &l.namespaces) {
        let (Some(path), Some(key)) = (&namespace.path, namespace_key(namespace.kind)) else { continue };
        let meta = std::fs::metadata(path).map_err(|e| Error::path("open namespace", path, e))?;
        let (_, name) = crate::container::flag_and_name(namespace.kind);
        options.text(37, &format!("{name}[{}]:{key}", meta.ino()));
    }
    Ok(())
}

/// Mounts and standard streams from outside, and their names for `restore`.
fn externals(options: &mut Message, record: &Record, config: &Request, images: &Path) -> Result<()> {
    let init = record.init.pid;
    let table = Mounts::of(&init.to_string())?;
    for mount in mounts::of_container(init, &config.spec, &table)? {
        options.message(23, &mount_message(&mount));
    }
    let pids = match record.cgroup.is_empty() {
        true => vec![init],
        false => crate::cgroup::Cgroup::open(&record.cgroup)
            .and_then(|c| c.pids())
            .map_err(crate::container::cgroup_error)?,
    };
    let names = stdio::names(init, &pids, &table);
    for name in names.iter().filter(|n| stdio::is_external(n)) {
        options.text(37, stdio::key(name));
    }
    stdio::write(images, &names)
}

/// `ext_mount_map`
pub fn mount_message(mount: &External) -> Message {
    let mut message = Message::default();
    message.text(1, &mount.key).text(2, &mount.value);
    message
}

/// The descriptor for that, if there is one to be told; a negative number is none.
fn status_fd(parsed: &Parsed) -> Result<Option<i32>> {
    let Some(fd) = parsed.number::<i32>("status-fd")?.filter(|fd| *fd >= 0 && parsed.has("lazy-pages")) else {
        return Ok(None);
    };
    // SAFETY: only looked at, and an error if it is closed.
    match rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }) {
        Ok(_) => Ok(Some(fd)),
        Err(e) => Err(Error::system("use", format!("descriptor {fd} of `--status-fd`"), e)),
    }
}

/// Says to whoever waits for it that pages can be fetched now (as runc does: one zero byte, and the end).
fn tell_ready(fd: i32) {
    // SAFETY: the caller gave this descriptor to this program for exactly this.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    let _ = rustix::io::write(&fd, &[0]);
}
