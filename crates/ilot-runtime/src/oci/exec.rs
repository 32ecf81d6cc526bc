//! `exec`: a further process in a container.

use super::Global;
use super::args::{Parsed, switch, value};
use super::create::{connect, send_console};
use crate::control;
use crate::exec::inside::Inside;
use crate::exec::relay::{self, Ends};
use crate::exec::signals::Forwarded;
use crate::record;
use crate::spec::{Process, User};
use crate::{Error, Result, caps, notice, sys};
use rustix::fs::{Mode, OFlags};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::Path;

/// `exec`
pub fn exec(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    crate::spawn::protect_program()?;
    let flags = [
        value("process", Some('p')),
        value("cwd", None),
        value("env", Some('e')),
        value("user", Some('u')),
        value("cap", Some('c')),
        value("apparmor", None),
        value("process-label", None),
        value("pid-file", None),
        value("console-socket", None),
        value("preserve-fds", None),
        value("additional-gids", Some('g')),
        value("cgroup", None),
        switch("tty", Some('t')),
        switch("detach", Some('d')),
        switch("no-new-privs", None),
        switch("ignore-paused", None),
    ];
    let mut parsed = Parsed::new(args, &flags, true)?;
    let id = parsed.id()?;
    let dir = global.dir(&id);
    let (record, _) = control::running("execute a command", &dir)?;
    let config = global.config(&id)?;
    let mut process = process(&parsed, config.spec.process.clone().unwrap_or_default())?;
    if let Some(sets) = &mut process.capabilities {
        let own = config.spec.linux.as_ref().is_some_and(|l| l.has_namespace(crate::spec::NamespaceKind::User));
        caps::leave_out(sets, own);
    }
    let detach = parsed.has("detach");
    let forwarded = if detach { None } else { Forwarded::begin() };
    let size = process.console_size.map_or_else(relay::own_size, |s| (s.height, s.width));
    let entered = Inside {
        record: &record,
        config: &config,
        process: &process,
        terminal: process.terminal,
        size: if process.terminal { size } else { (0, 0) },
        // As the child of this program; when it ends, of whoever collects orphans for it.
        detach: true,
        preserve_fds: parsed.number("preserve-fds")?.unwrap_or(0),
        cgroup: parsed.get("cgroup"),
    };
    // Paths of the caller's world are used before that world is left.
    let pid_file = parsed.get("pid-file").map(PidFile::open).transpose()?;
    let console = parsed.get("console-socket").map(|path| connect(Path::new(path))).transpose()?;
    let entered = entered.enter()?;
    notice::debug(|| format!("process {} runs in container `{id}`", entered.pid));
    if let Some(file) = pid_file {
        file.write(entered.pid)?;
    }
    let mut master = entered.master;
    if let Some(console) = &console
        && let Some(master) = master.take()
    {
        send_console(console, &master)?;
    }
    if detach {
        return Ok(0);
    }
    let master = master.as_ref().map(AsFd::as_fd);
    let ends = Ends { process: entered.pidfd.as_fd(), input: master, output: master, stdin: true };
    relay::run(&ends, forwarded.as_ref());
    let (_, status) =
        sys::waitpid(entered.pid, 0).map_err(|e| Error::system("wait for", "the command", e))?.unwrap_or_default();
    Ok(sys::decode_status(status).0)
}

/// A file for a number that is known only when its path means something else already.
struct PidFile {
    dir: std::os::fd::OwnedFd,
    name: std::ffi::OsString,
}

impl PidFile {
    fn open(path: &str) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| Error::path("find", Path::new(path), e))?;
        let dir = crate::paths::open_host_dir(path.parent().unwrap_or(Path::new("/")))?;
        Ok(Self { dir, name: path.file_name().unwrap_or_default().to_owned() })
    }

    fn write(&self, pid: i32) -> Result<()> {
        let fail = |e: rustix::io::Errno| Error::path("write", Path::new(&self.name), e);
        let mut aside = self.name.clone();
        aside.push(".new");
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, &aside, flags, Mode::from_raw_mode(0o644)).map_err(fail)?;
        rustix::io::write(&file, pid.to_string().as_bytes()).map_err(fail)?;
        rustix::fs::renameat(&self.dir, &aside, &self.dir, &self.name).map_err(fail)
    }
}

/// The process to run: a file's, or the container's with what the options change.
fn process(parsed: &Parsed, base: Process) -> Result<Process> {
    let mut process = match parsed.get("process") {
        Some(path) => {
            let path = Path::new(path);
            let missing = || Error::invalid(format!("process file `{}`", path.display()), "there is none");
            record::read_json(path)?.ok_or_else(missing)?
        }
        None => Process {
            args: parsed.rest.iter().cloned().collect(),
            terminal: parsed.has("tty"),
            console_size: None,
            ..base
        },
    };
    for new in parsed.all("env") {
        let name = new.split_once('=').map_or(new, |(name, _)| name);
        process.env.retain(|old| old.split_once('=').is_none_or(|(n, _)| n != name));
        process.env.push(new.to_owned());
    }
    if let Some(cwd) = parsed.get("cwd") {
        cwd.clone_into(&mut process.cwd);
    }
    if let Some(user) = parsed.get("user") {
        let umask = process.user.umask;
        process.user = User { username: Some(user.to_owned()), umask, ..Default::default() };
    }
    for gid in parsed.all("additional-gids") {
        let gid =
            gid.parse().map_err(|_| Error::invalid("option `--additional-gids`", format!("`{gid}` is no number")))?;
        process.user.additional_gids.push(gid);
    }
    for cap in parsed.all("cap") {
        if caps::bit(cap).is_none() {
            return Err(Error::invalid("option `--cap`", format!("`{cap}` is not a capability")));
        }
        let sets = process.capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            if !set.iter().any(|c| c == cap) {
                set.push(cap.to_owned());
            }
        }
    }
    if let Some(profile) = parsed.get("apparmor") {
        process.apparmor_profile = Some(profile.to_owned());
    }
    if let Some(label) = parsed.get("process-label") {
        process.selinux_label = Some(label.to_owned());
    }
    process.no_new_privileges |= parsed.has("no-new-privs");
    if process.args.is_empty() {
        return Err(Error::invalid("command", "there is none to execute"));
    }
    Ok(process)
}
