//! Relays of `proxy` devices: one `ilot-proxy` process per device, between this host and one machine.
//!
//! The caller opens the listening sockets where they belong; the process enters the network namespace in which it has to
//! connect, gives up every right, moves itself to the background and ends with the machine. `<run_dir>/proxies/<machine>/<device>/`
//! holds `config.json` and `pid`, and `socket` beside them names a socket file that was made on the host.

mod address;
#[doc(hidden)]
pub mod daemon;
mod listen;
mod packets;
mod streams;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

pub use address::{Address, Transport, pairs};

use crate::error::{Error, Result};
use crate::names::process;

const PROGRAM: &str = "ilot-proxy";
/// The first of the descriptors that the process is given: the machine's process, where to connect, its root; then the
/// listening sockets.
pub(crate) const FIRST_FD: RawFd = 3;
pub(crate) const FIRST_LISTENER: RawFd = FIRST_FD + 3;

/// Which side listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bind {
    /// This host; connections are made in the machine.
    Host,
    /// The machine; connections are made on this host.
    Instance,
}

/// A relay as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyConfig {
    /// The machine.
    pub machine: String,
    /// The device's name.
    pub device: String,
    /// Where it listens.
    pub bind: Bind,
    /// What is listened on and where each is connected to.
    pub pairs: Vec<(Address, Address)>,
    /// Owner and permissions of a socket file that is listened on, as ids of this host.
    pub socket: (u32, u32, u32),
    /// Whom connections are made as, as ids of this host.
    pub user: (u32, u32),
    /// The machine's process 1 as this host sees it: a machine that was restarted needs another relay.
    pub pid: i32,
}

/// A machine that runs, as a relay needs it.
#[derive(Debug)]
pub struct Inside {
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Its root directory.
    pub root: OwnedFd,
    /// The host's id of its root user.
    pub root_uid: u32,
}

/// A relay that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Running {
    /// The machine.
    pub machine: String,
    /// The device.
    pub device: String,
}

fn directory(run_dir: &Path, machine: &str, device: &str) -> PathBuf {
    run_dir.join("proxies").join(machine).join(device)
}

/// Makes the relay run with this configuration: starts it, restarts one that died or differs. True if it did.
///
/// # Errors
/// When an address cannot be listened on, or the process does not start.
pub fn ensure(run_dir: &Path, config: &ProxyConfig, inside: &Inside) -> Result<bool> {
    let dir = directory(run_dir, &config.machine, &config.device);
    let known: Option<ProxyConfig> =
        fs::read(dir.join("config.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if process::alive(&dir).is_some() && known.as_ref() == Some(config) {
        return Ok(false);
    }
    stop(run_dir, &config.machine, &config.device)?;
    let name = format!("{}.{}", config.machine, config.device);
    let failed = |operation| move |source| Error::Kernel { operation, name: name.clone(), source };
    let life = rustix::process::Pid::from_raw(config.pid)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
        .map_err(|e| failed("watch the machine of relay")(e.into()))?;
    write_config(&dir, config).map_err(|source| Error::File { operation: "write", path: dir.clone(), source })?;
    let result = listen::all(config, inside).and_then(|listeners| start(&dir, config, inside, &life, &listeners));
    if result.is_err() {
        // The error says what failed; a directory that stays is removed by the next command.
        let _ = stop(run_dir, &config.machine, &config.device);
    }
    result.map(|()| true)
}

fn write_config(dir: &Path, config: &ProxyConfig) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for (listen, _) in &config.pairs {
        if let (Bind::Host, Address::Path(path)) = (config.bind, listen) {
            fs::write(dir.join("socket"), path.as_os_str().as_encoded_bytes())?;
        }
    }
    fs::write(dir.join("config.json"), serde_json::to_vec(config)?)
}

fn start(dir: &Path, config: &ProxyConfig, inside: &Inside, life: &OwnedFd, listeners: &[OwnedFd]) -> Result<()> {
    let failed = |source| Error::Program { program: PROGRAM.into(), source };
    let null = fs::File::open("/dev/null").map_err(failed)?;
    let (netns, root): (BorrowedFd<'_>, BorrowedFd<'_>) = match config.bind {
        Bind::Host => (inside.netns.as_fd(), inside.root.as_fd()),
        Bind::Instance => (null.as_fd(), null.as_fd()),
    };
    let mut fds: Vec<RawFd> = vec![life.as_raw_fd(), netns.as_raw_fd(), root.as_raw_fd()];
    fds.extend(listeners.iter().map(AsRawFd::as_raw_fd));
    let mut command = Command::new(program());
    command.arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env_clear();
    // SAFETY: between fork and exec only dup2 is called, on numbers that were computed before.
    unsafe {
        command.pre_exec(move || hand_over(&fds));
    }
    let output = command.output().map_err(failed)?;
    if output.status.success() && process::alive(dir).is_some() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().next().unwrap_or("it ended without a word").to_owned();
    Err(failed(io::Error::other(message)))
}

/// `$ILOT_LIBEXEC`, else beside this program, else `../libexec/ilot` from there.
fn program() -> PathBuf {
    if let Some(directory) = std::env::var_os("ILOT_LIBEXEC") {
        return Path::new(&directory).join(PROGRAM);
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
    let here = beside.join(PROGRAM);
    if here.exists() { here } else { beside.join("../libexec/ilot").join(PROGRAM) }
}

/// Puts descriptors on the numbers from [`FIRST_FD`] on, in a child that is about to execute something.
fn hand_over(fds: &[RawFd]) -> io::Result<()> {
    let dup2 = |from: RawFd, to: RawFd| {
        // SAFETY: dup2 takes two numbers; what it closes belongs to this child alone.
        if unsafe { libc::dup2(from, to) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // One could stand on a number that another one is to take: all are lifted first.
    let count = RawFd::try_from(fds.len()).unwrap_or(RawFd::MAX);
    let base = 64 + fds.iter().copied().max().unwrap_or(0).max(FIRST_FD + count);
    for (number, fd) in (0..).zip(fds) {
        dup2(*fd, base + number)?;
    }
    for number in 0..count {
        dup2(base + number, FIRST_FD + number)?;
    }
    Ok(())
}

/// Ends a relay and removes what it left. True if there was one.
///
/// # Errors
/// When it does not die, or its directory cannot be removed.
pub fn stop(run_dir: &Path, machine: &str, device: &str) -> Result<bool> {
    let dir = directory(run_dir, machine, device);
    let name = || format!("{machine}.{device}");
    process::end(&dir).map_err(|source| Error::Kernel { operation: "end the relay", name: name(), source })?;
    if let Ok(path) = fs::read(dir.join("socket")) {
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(std::ffi::OsString::from_vec(path));
        listen::remove_socket(&path);
    }
    match fs::remove_dir_all(&dir) {
        Ok(()) => {
            // Not empty while the machine has other relays.
            let _ = dir.parent().map(fs::remove_dir);
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File { operation: "remove", path: dir, source }),
    }
}

/// Every relay with a directory, and whether it runs.
///
/// # Errors
/// When the directory cannot be listed.
pub fn known(run_dir: &Path) -> Result<Vec<(Running, bool)>> {
    let names = |path: &Path| -> Result<Vec<String>> {
        match fs::read_dir(path) {
            Ok(entries) => Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(Error::File { operation: "list", path: path.to_owned(), source }),
        }
    };
    let top = run_dir.join("proxies");
    let mut found = Vec::new();
    for machine in names(&top)? {
        for device in names(&top.join(&machine))? {
            let alive = process::alive(&directory(run_dir, &machine, &device)).is_some();
            found.push((Running { machine: machine.clone(), device }, alive));
        }
    }
    found.sort();
    Ok(found)
}
