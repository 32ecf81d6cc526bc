//! `restore`: a container from what `checkpoint` wrote down.

use super::Global;
use super::args::{Flag, Parsed, switch, value};
use super::checkpoint::{Folders, help, mount_message, namespace_key, need_root};
use super::create::{self, Wanted, connect, send_console};
use crate::cgroup::Cgroup;
use crate::container::{self, Plan, cgroup_error};
use crate::criu::mounts;
use crate::criu::proto::Message;
use crate::criu::{Criu, FIRST, KNOWS_NO_NEW_PRIVS, Kind, Notice, Setup, log, stdio};
use crate::exec::signals::Forwarded;
use crate::mounts::{attach, clone_tree, rootfs};
use crate::record::{self, ProcessRef, Request};
use crate::spec::{Namespace, NamespaceKind};
use crate::systemd::{self, Unit};
use crate::wire::{self, Tag};
use crate::{Error, Result, Rootfs, hooks, sys};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const FLAGS: [Flag; 21] = [
    value("bundle", Some('b')),
    value("config", Some('f')),
    value("image-path", None),
    value("work-path", None),
    value("console-socket", None),
    value("pid-file", None),
    switch("detach", Some('d')),
    switch("keep", None),
    switch("no-subreaper", None),
    switch("no-pivot", None),
    switch("tcp-established", None),
    switch("tcp-close", None),
    switch("ext-unix-sk", None),
    switch("shell-job", None),
    switch("file-locks", None),
    switch("lazy-pages", None),
    switch("auto-dedup", None),
    value("manage-cgroups-mode", None),
    value("empty-ns", None),
    value("network-lock", None),
    switch("help", Some('h')),
];

/// Labels that a security module gives the restored processes and mounts, in CRIU's numbers.
const LABELS: [(&str, u32); 2] = [("lsm-profile", 53), ("lsm-mount-context", 63)];

/// Where the tree is in the worker's mounts: CRIU wants a mount that nothing covers.
const ROOT: &str = "criu-root";
/// What images are seen through by processes in a user namespace.
const COVER: &str = "criu-images";

/// `restore`
pub fn restore(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let mut flags = FLAGS.to_vec();
    flags.extend(LABELS.map(|(name, _)| value(name, None)));
    let mut parsed = Parsed::new(args, &flags, false)?;
    if help("restore", &parsed, &flags) {
        return Ok(0);
    }
    let id = parsed.id()?;
    need_root("restore")?;
    if global.systemd {
        systemd::check()?;
    }
    let wanted = Wanted::of(&parsed, id)?;
    let criu = Criu::open(global.criu.as_deref())?;
    // Before the working directory changes.
    let folders = Folders::open(&parsed, "restore.log", false)?;
    let names = stdio::read(&folders.images)?;
    let (request, filter) = create::configure(global, &wanted)?;
    if request.spec.linux.as_ref().is_some_and(|l| l.intel_rdt.is_some()) {
        return Err(Error::Unsupported {
            what: "restoring into a class of `linux.intelRdt`".to_owned(),
            why: "CRIU does not know it".to_owned(),
            cure: "leave it out of the configuration",
        });
    }
    create::make_dir(&global.root, &request.run_dir, &wanted.id)?;
    let forwarded = if wanted.detach { None } else { Forwarded::begin() };
    let mut back = Restored { request, systemd: global.systemd, cgroup: None, unit: None, pid: None, terminal: None };
    let done = (|| {
        let text = serde_json::to_vec(&back.request).map_err(|e| Error::invalid("configuration", e.to_string()))?;
        record::write_config(&back.request, &text, filter.as_ref())?;
        let linux = back.request.spec.linux.clone().unwrap_or_default();
        if !back.systemd {
            back.cgroup = container::make_cgroup(&Plan::new(&back.request), &linux)?;
        }
        back.bring(&criu, &folders, &parsed, &names, &wanted)?;
        back.publish(&wanted)
    })();
    if let Err(error) = done {
        back.undo();
        return Err(error);
    }
    let Some((pid, pidfd)) = back.pid.as_ref().filter(|_| !wanted.detach) else { return Ok(0) };
    let status = create::attend(&wanted.id, *pid, pidfd.as_fd(), back.terminal.as_ref(), forwarded.as_ref())?;
    if !wanted.keep {
        super::change::remove_ended(&back.request, &back.groups(), &wanted.bundle)?;
    }
    Ok(sys::decode_status(status).0)
}

/// A container on its way back.
struct Restored {
    request: Request,
    /// Whether systemd makes the group.
    systemd: bool,
    cgroup: Option<Cgroup>,
    unit: Option<Unit>,
    pid: Option<(i32, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

impl Restored {
    /// Where its processes are held.
    fn groups(&self) -> record::Groups<'_> {
        record::Groups { cgroup: self.cgroup.as_ref(), unit: self.unit.as_ref(), rdt: None }
    }

    /// Lets CRIU make the processes.
    fn bring(
        &mut self,
        criu: &Criu,
        folders: &Folders,
        parsed: &Parsed,
        names: &[String],
        wanted: &Wanted,
    ) -> Result<()> {
        let Rootfs::Dir { path: source, .. } = self.request.rootfs.clone() else {
            return Err(Error::invalid("rootfs", "it is no directory"));
        };
        let place = self.request.run_dir.join(ROOT);
        fs::create_dir(&place).map_err(|e| Error::path("make directory", &place, e))?;
        let place = place.canonicalize().map_err(|e| Error::path("find", &place, e))?;
        let mut options = folders.options(criu, parsed, &self.request)?;
        options.flag(26, true).flag(6, true).text(13, &place.to_string_lossy());
        options.flag(52, parsed.has("tcp-close"));
        for (name, field) in LABELS {
            if let Some(label) = parsed.get(name) {
                options.text(field, label);
            }
        }
        let groups = container::shown_on_host(self.cgroup.as_ref())?;
        for mount in mounts::on_host(&self.request.spec, crate::paths::open_host_dir(&source)?.as_fd(), &groups)? {
            options.message(23, &mount_message(&mount));
        }
        let mut fds = streams(&mut options, names)?;
        self.namespaces(&mut options, &mut fds)?;
        let joiner = self.cgroup.as_ref().map(|c| c.joiner(false)).transpose().map_err(cgroup_error)?;
        let cover = self.cover(parsed)?;
        let setup = Setup {
            fds: fds.iter().map(AsFd::as_fd).collect(),
            input: parsed.has("shell-job").then(|| fds[0].as_fd()),
            cover: cover.as_deref(),
            ..Setup::new([&folders.images, &folders.work])
        };
        let spec = self.request.spec.clone();
        let forgets = criu.version < KNOWS_NO_NEW_PRIVS;
        let worker = criu.start(&setup, || {
            mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
                .map_err(|e| Error::system("set propagation of", "the mounts", e))?;
            prepare_tree(&spec, &source, &place)?;
            if forgets && spec.process.as_ref().is_some_and(|p| p.no_new_privileges) {
                // What the worker has, all processes that it makes have too.
                sys::set_no_new_privs().map_err(|e| Error::system("set no_new_privs", "CRIU", e))?;
            }
            joiner.map_or(Ok(()), |j| j.join()).map_err(cgroup_error)
        })?;
        if self.systemd {
            // A scope begins with a process: CRIU's, whose children the container's are.
            let (unit, cgroup) = systemd::start(&self.request.spec, &self.request.id, worker.pid(), false)?;
            (self.unit, self.cgroup) = (Some(unit), Some(cgroup));
        }
        // The groups can have other names than they had.
        for (controllers, path) in worker.cgroups()?.iter().filter(|_| self.cgroup.is_some()) {
            let mut root = Message::default();
            root.text(1, controllers).text(2, path);
            options.message(25, &root);
        }
        let result = worker.run(Kind::Restore, &options, &mut |notice| self.notice(notice, wanted));
        drop(worker);
        cover.iter().chain([&place]).for_each(|dir| drop(fs::remove_dir(dir)));
        result.map_err(|error| log::explain(&wanted.id, &error, &folders.log))
    }

    /// What images are seen through by processes in a user namespace.
    fn cover(&self, parsed: &Parsed) -> Result<Option<PathBuf>> {
        let walls = self.request.spec.linux.as_ref().is_some_and(|l| l.has_namespace(NamespaceKind::User));
        // What is brought back is taken out of the images: they have to be the real ones.
        if !walls || parsed.has("auto-dedup") {
            return Ok(None);
        }
        let path = self.request.run_dir.join(COVER);
        fs::DirBuilder::new().create(&path).map_err(|e| Error::path("make directory", &path, e))?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, open).map_err(|e| Error::path("set permissions of", &path, e))?;
        Ok(Some(path))
    }

    /// Existing namespaces that the container goes back to.
    fn namespaces(&self, options: &mut Message, fds: &mut Vec<OwnedFd>) -> Result<()> {
        for namespace in self.request.spec.linux.iter().flat_map(|l| &l.namespaces) {
            let Some(path) = &namespace.path else { continue };
            let (_, name) = container::flag_and_name(namespace.kind);
            match (namespace_key(namespace.kind), namespace.kind) {
                (Some(key), _) => {
                    options.message(27, &inherited(key, fds.len()));
                    fds.push(container::open_path(path)?);
                }
                (None, NamespaceKind::Cgroup) => {
                    return Err(Error::Unsupported {
                        what: format!("restore into the cgroup namespace `{}`", path.display()),
                        why: "CRIU cannot join one".to_owned(),
                        cure: "leave its path out of the configuration",
                    });
                }
                (None, _) => {
                    let mut join = Message::default();
                    join.text(1, name).text(2, &path.to_string_lossy());
                    options.message(39, &join);
                }
            }
        }
        Ok(())
    }

    /// What CRIU asks or says on its way.
    fn notice(&mut self, notice: &mut Notice<'_>, wanted: &Wanted) -> Result<()> {
        match notice.script {
            "setup-namespaces" => {
                let hooks = &self.request.spec.hooks;
                let annotations = &self.request.spec.annotations;
                let state = hooks::state_json(&wanted.id, "creating", notice.pid, &wanted.bundle, annotations);
                hooks::run("prestart", &hooks.prestart, &state)?;
                hooks::run("createRuntime", &hooks.create_runtime, &state)
            }
            "orphan-pts-master" => {
                let Some(master) = notice.fd.take() else { return Ok(()) };
                match &wanted.console_socket {
                    Some(path) => send_console(&connect(path)?, &master),
                    None => {
                        self.terminal = Some(master);
                        Ok(())
                    }
                }
            }
            // Everything is there, nothing runs yet.
            "post-restore" => {
                let lost = || Error::invalid("answer of CRIU", "the restored process is missing");
                let pid = notice.pid.ok_or_else(lost)?;
                let pidfd = ProcessRef::of(pid)?.open().ok_or_else(lost)?;
                let (_, pidfd) = self.pid.insert((pid, pidfd));
                if matches!(self.request.rootfs, Rootfs::Dir { readonly: true, .. }) {
                    set_root_readonly(pidfd.as_fd())?;
                }
                self.note_time_namespace(pid)?;
                let bundle = Some(wanted.bundle.clone());
                record::write_state(&self.request, pid, &self.groups(), None, bundle)?;
                record::write_file(&self.request.run_dir.join(record::STARTED), &[])
            }
            _ => Ok(()),
        }
    }

    /// CRIU gives a container a time namespace, so that its clocks go on: `exec` has to know of it.
    fn note_time_namespace(&mut self, pid: i32) -> Result<()> {
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
        let linux = self.request.spec.linux.get_or_insert_default();
        if linux.has_namespace(NamespaceKind::Time) || link(&pid.to_string()) == link("self") {
            return Ok(());
        }
        linux.namespaces.push(Namespace { kind: NamespaceKind::Time, path: None });
        record::write_json(&self.request.run_dir.join(record::CONFIG), &self.request)
    }

    /// What callers wait for.
    fn publish(&mut self, wanted: &Wanted) -> Result<()> {
        let Some((pid, _)) = &self.pid else {
            return Err(Error::invalid("answer of CRIU", "the restored process is missing"));
        };
        match &wanted.pid_file {
            Some(path) => record::write_file(path, pid.to_string().as_bytes()),
            None => Ok(()),
        }
    }

    /// Leaves nothing behind.
    fn undo(&self) {
        if let Some((pid, pidfd)) = &self.pid {
            let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = sys::waitpid(*pid, 0);
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill_all();
            let _ = systemd::release(self.unit.as_ref());
            let _ = cgroup.delete();
        }
        let _ = fs::remove_dir_all(&self.request.run_dir);
    }
}

/// Makes the root read-only, which CRIU before 4.2 forgets: from inside, where alone it can be done.
fn set_root_readonly(process: BorrowedFd<'_>) -> Result<()> {
    let fail = |e: std::io::Error| Error::system("make read-only", "the root of the restored container", e);
    let (told, tell) = UnixStream::pair().map_err(fail)?;
    // SAFETY: this program has one thread.
    let cloned = unsafe { sys::clone_process(0, None) }.map_err(fail)?;
    let Some(child) = cloned else {
        sys::set_undumpable();
        let set = || {
            sys::setns(process, libc::CLONE_NEWNS).map_err(fail)?;
            rootfs::set_readonly(crate::process::open_root()?.as_fd())
        };
        match set() {
            Ok(()) => drop(wire::send(&tell, Tag::Done, &[], &[])),
            Err(error) => wire::send_error(&tell, &error),
        }
        // SAFETY: ends this copy of the program.
        unsafe { libc::_exit(0) };
    };
    drop(tell);
    let answer = wire::expect(&told, Tag::Done, "restore", "the process for its root ended early");
    let _ = sys::waitpid(child.pid, 0);
    answer.map(drop)
}

/// Our own standard streams, connected to what was named so.
fn streams(options: &mut Message, names: &[String]) -> Result<Vec<OwnedFd>> {
    let mut fds = Vec::from(create::own_streams()?);
    for (i, name) in names.iter().take(fds.len()).enumerate().filter(|(_, n)| stdio::is_inherited(n)) {
        if !stdio::fits(name, i, fds[i].as_fd())? {
            fds[i] = container::open_path(Path::new("/dev/null"))?;
        }
        options.message(27, &inherited(stdio::key(name), i));
    }
    Ok(fds)
}

/// `inherit_fd`: what CRIU knows by `key` is the worker's descriptor number `index` after the first.
fn inherited(key: &str, index: usize) -> Message {
    let mut message = Message::default();
    message.text(1, key).number(2, (FIRST + index) as i64);
    message
}

/// In the worker's mount namespace: makes the places for mounts, then the tree without any of them where CRIU wants it.
fn prepare_tree(spec: &crate::spec::Spec, source: &Path, place: &Path) -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::path("mount", place, e);
    let show = || -> Result<OwnedFd> {
        let tree = clone_tree(source, true)?;
        let dir = crate::paths::open_host_dir(place)?;
        attach(tree.as_fd(), dir.as_fd()).map_err(fail)?;
        Ok(tree)
    };
    let tree = show()?;
    mounts::make_places(spec, tree.as_fd())?;
    drop(tree);
    unmount(place, UnmountFlags::DETACH).map_err(fail)?;
    show().map(drop)
}
