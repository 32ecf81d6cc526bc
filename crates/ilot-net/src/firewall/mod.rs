//! The packet filter: `table inet ilot` between domains, host and outside, `table bridge ilot` against forged addresses.
//!
//! Both tables are replaced together in one transaction, so that there is never a moment without rules; what is open is
//! matched in hash sets. Rules of others are neither read nor written. See `docs/network.md` for what is open and closed.

mod conntrack;
mod egress;
mod elements;
pub(crate) mod kernel;
pub(crate) mod lease;
mod model;
mod openings;
mod render;
mod verdict;

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, thread};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

pub use model::{
    Egress, EgressEntry, EgressTo, Family, FwDomain, FwPort, FwRule, Ports, Protocol, Rates, Ruleset, Side,
    name_matches,
};
pub use render::render;
pub(crate) use render::{quote, sha256};
pub use verdict::{Packet, Party, Reason, Verdict, verdict};

use crate::error::{Error, Result};
use crate::netlink::Socket;
use crate::shortcut;

/// What was installed, in `<run_dir>/firewall.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    /// The boot and the network namespace that it was installed in.
    place: String,
    /// The tables' comment.
    comment: String,
    /// [`render::digest`] of the rules, ports that came and went since included.
    digest: String,
    /// The last transaction after which the tables were seen to be right.
    generation: u32,
    /// [`kernel::fingerprint`] of the tables.
    fingerprint: String,
}

impl Memory {
    /// Whether these rules were installed, here and since the host was started.
    fn is_of(&self, rules: &Ruleset) -> bool {
        self.digest == render::digest(rules) && self.place == place()
    }
}

/// Replaces both tables in one transaction, and that of [`shortcut`] with them, then ends the connections that these rules
/// would not let begin. `run_dir` remembers what was installed.
pub fn install(run_dir: &Path, rules: &Ruleset) -> Result<()> {
    // What the name services opened stays open for its time, where the new lists still have the name.
    let leases = Socket::netfilter().and_then(|mut socket| lease::standing(&mut socket, rules)).unwrap_or_default();
    let text = render::render_with(rules, &leases);
    let (with, without) = shortcut::replacement(rules)?;
    match nft("install", &format!("{with}{text}")) {
        // A port that is gone since it was looked at, or a kernel that cannot do it.
        Err(_) if with != without => nft("install", &format!("{without}{text}"))?,
        done => done?,
    }
    // A port that was made anew meanwhile was taken out of the table that this one replaced.
    shortcut::settle(rules)?;
    match conntrack::cut(rules) {
        Ok(0) => {}
        Ok(ended) => tracing::info!(ended, "connections that are no longer allowed were ended"),
        // A kernel without its netlink interface: they end when they end.
        Err(error) => tracing::warn!(%error, "connections that began under older rules could not be looked through"),
    }
    remember(run_dir, &mut open()?, render::digest(rules), render::comment(rules))
}

/// Whether exactly these rules stand in the kernel, unedited.
///
/// Usually that is a comparison of numbers. Only when somebody changed any nftables rule of this network namespace since,
/// our tables are read again and compared with how they were.
pub fn is_installed(run_dir: &Path, rules: &Ruleset) -> Result<bool> {
    let Some(memory) = recall(run_dir).filter(|memory| memory.is_of(rules)) else {
        return Ok(false);
    };
    stands(run_dir, memory, &mut open()?).map_err(unreadable)
}

/// Whether what is remembered still stands.
fn stands(run_dir: &Path, mut memory: Memory, socket: &mut Socket) -> io::Result<bool> {
    let generation = kernel::generation(socket)?;
    let comments = kernel::comments(socket)?;
    if comments.iter().any(|found| found.as_ref() != Some(&memory.comment)) {
        return Ok(false);
    }
    if generation == memory.generation {
        return Ok(true);
    }
    if kernel::fingerprint(socket)? != memory.fingerprint {
        return Ok(false);
    }
    memory.generation = generation;
    // Only a saving of work: a reader without the right to write checks again the next time.
    let _ = write_memory(run_dir, &memory);
    Ok(true)
}

fn open() -> Result<Socket> {
    Socket::netfilter().map_err(unreadable)
}

fn unreadable(source: io::Error) -> Error {
    Error::Kernel { operation: "read table", name: render::TABLE.into(), source }
}

/// Removes both tables. True if there were any.
pub fn remove(run_dir: &Path) -> Result<bool> {
    shortcut::remove()?;
    let stood = kernel::comments(&mut open()?).map_err(unreadable)?.iter().any(Option::is_some);
    if stood {
        nft("remove", "table inet ilot\ndelete table inet ilot\ntable bridge ilot\ndelete table bridge ilot\n")?;
    }
    match fs::remove_file(memory_path(run_dir)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::File { operation: "remove", path: memory_path(run_dir), source: error })
        }
        _ => Ok(stood),
    }
}

/// Lets one more machine in, without replacing the tables. `rules` is what stands, with the port already in it. True if
/// exactly they stand now, as [`is_installed`] would say.
///
/// Rules that name the machine need [`install`]; so does everything else that `rules` says and that did not stand before.
pub fn add_port(run_dir: &Path, rules: &Ruleset, port: &str) -> Result<bool> {
    change_port(run_dir, rules, port, false)
}

/// Takes a machine out, without replacing the tables. `rules` is what stands, with the port still in it. True if exactly the
/// rest of them stands now.
///
/// Rules that name the machine need [`install`], as for [`add_port`].
pub fn remove_port(run_dir: &Path, rules: &Ruleset, port: &str) -> Result<bool> {
    change_port(run_dir, rules, port, true)
}

fn change_port(run_dir: &Path, rules: &Ruleset, port: &str, remove: bool) -> Result<bool> {
    let (domain, found) = find_port(rules, port)?;
    let without = without(rules, port);
    let mut socket = open()?;
    // Either may stand: adding and removing can be done again.
    let memory = recall(run_dir);
    let comment = memory.as_ref().map_or_else(String::new, |memory| memory.comment.clone());
    let known = match memory.filter(|memory| memory.is_of(rules) || memory.is_of(&without)) {
        Some(memory) => stands(run_dir, memory, &mut socket).map_err(unreadable)?,
        None => false,
    };
    let operation = if remove { "remove a port from" } else { "add a port to" };
    elements::change(&mut socket, domain, found, remove).map_err(|source| Error::Kernel {
        operation,
        name: render::TABLE.into(),
        source,
    })?;
    // The tables keep the comment of their installation. What they say now is only known if it was known before.
    let now = if remove { &without } else { rules };
    remember(run_dir, &mut socket, if known { render::digest(now) } else { String::new() }, comment)?;
    socket.let_go();
    Ok(known)
}

/// The rules without a port.
#[must_use]
pub fn without(rules: &Ruleset, port: &str) -> Ruleset {
    let mut rules = rules.clone();
    for domain in &mut rules.domains {
        domain.ports.retain(|p| p.ifname != port);
    }
    rules
}

fn find_port<'a>(rules: &'a Ruleset, name: &str) -> Result<(&'a FwDomain, &'a FwPort)> {
    let mut ports = rules.domains.iter().flat_map(|d| d.ports.iter().map(move |p| (d, p)));
    ports
        .find(|(_, p)| p.ifname == name)
        .ok_or_else(|| Error::Missing { operation: "find in the rules port", name: name.to_owned() })
}

fn remember(run_dir: &Path, socket: &mut Socket, digest: String, comment: String) -> Result<()> {
    let mut generation = kernel::generation(socket).map_err(unreadable)?;
    loop {
        let fingerprint = match kernel::fingerprint(socket) {
            // Somebody changed rules while they were listed.
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => None,
            other => Some(other.map_err(unreadable)?),
        };
        let after = kernel::generation(socket).map_err(unreadable)?;
        if let (Some(fingerprint), true) = (fingerprint, after == generation) {
            return write_memory(run_dir, &Memory { place: place(), comment, digest, generation, fingerprint });
        }
        generation = after;
    }
}

fn memory_path(run_dir: &Path) -> PathBuf {
    run_dir.join("firewall.json")
}

fn recall(run_dir: &Path) -> Option<Memory> {
    serde_json::from_slice(&fs::read(memory_path(run_dir)).ok()?).ok()
}

fn write_memory(run_dir: &Path, memory: &Memory) -> Result<()> {
    let path = memory_path(run_dir);
    let write = || -> io::Result<()> {
        fs::create_dir_all(run_dir)?;
        static WRITERS: AtomicU32 = AtomicU32::new(0);
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_extension(format!("{}-{writer}.new", std::process::id()));
        fs::write(&aside, serde_json::to_vec(memory)?)?;
        fs::rename(aside, &path)
    };
    write().map_err(|source| Error::File { operation: "write", path: path.clone(), source })
}

/// This boot and this network namespace: a memory of another one is worth nothing.
fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::metadata("/proc/thread-self/ns/net").map(|m| m.ino()).unwrap_or_default();
    format!("{} {namespace}", boot.trim())
}

/// Gives `nft` a transaction, in the network namespace of this thread.
pub(crate) fn nft(operation: &'static str, script: &str) -> Result<()> {
    let failed = |source| Error::Program { program: "nft".into(), source };
    let mut child = spawn_nft().map_err(failed)?;
    let stdin = child.stdin.take();
    let (written, output) = thread::scope(|scope| {
        // From a thread: nft may complain before it has read everything.
        let writer = scope.spawn(move || stdin.map_or(Ok(()), |mut stdin| stdin.write_all(script.as_bytes())));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.lines().take(4).collect::<Vec<_>>().join("; ");
        return Err(Error::Nft { operation, message });
    }
    written.unwrap_or_else(|_| Err(io::Error::other("the writing thread died"))).map_err(failed)
}

/// Ends this process with its parent: rules of a command that was killed must not come after those of the next one.
fn die_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
}

fn spawn_nft() -> io::Result<std::process::Child> {
    let spawn = |program: &OsStr| {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let parent = rustix::process::getpid();
        // SAFETY: two system calls between fork and exec, which neither allocate nor lock.
        unsafe { command.pre_exec(move || die_with(parent)) };
        command.spawn()
    };
    match spawn(OsStr::new("nft")) {
        // An unprivileged user's PATH under sudo or su often lacks it.
        Err(error) if error.kind() == ErrorKind::NotFound => spawn(OsStr::new("/usr/sbin/nft")),
        other => other,
    }
}
