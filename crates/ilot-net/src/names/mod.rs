//! The name service: one `ilot-names` process per domain, on its gateway's address.
//!
//! `<run_dir>/names/<domain>/` holds `config.json` and `pid`; the process has that directory as its root.

mod answer;
mod config;
#[doc(hidden)]
pub mod daemon;
mod opener;
pub(crate) mod process;
mod refused;
mod sandbox;
mod server;
mod stream;
mod wire;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use rustix::process::Signal;

pub use config::{NamesConfig, Others};
pub use refused::Refusal;

use crate::error::{Error, Result};

/// How long a living service may take to read its configuration again.
const RELOAD: Duration = Duration::from_secs(2);
/// The program's name.
const PROGRAM: &str = "ilot-names";

/// A name service that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The domain.
    pub domain: String,
    /// The process.
    pub pid: i32,
}

fn directory(run_dir: &Path, domain: &str) -> PathBuf {
    run_dir.join("names").join(domain)
}

/// Makes the domain's name service run with this configuration: starts it, restarts a dead one, tells a living one to read
/// its configuration again. True if it did any of that. Returns when queries are answered.
pub fn ensure(run_dir: &Path, config: &NamesConfig) -> Result<bool> {
    make_run(run_dir, config, true)
}

/// The same without waiting until a living service has read it: for a name that is gone.
pub fn ensure_soon(run_dir: &Path, config: &NamesConfig) -> Result<bool> {
    make_run(run_dir, config, false)
}

fn make_run(run_dir: &Path, config: &NamesConfig, wait: bool) -> Result<bool> {
    let directory = directory(run_dir, &config.domain);
    let file = directory.join("config.json");
    let old: Option<NamesConfig> = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let alive = process::alive(&directory).is_some();
    // While it is there, the process may not know yet what the file says.
    let untold = directory.join("untold");
    if alive && old.as_ref() == Some(config) && !untold.exists() {
        return Ok(false);
    }
    write_config(&directory, &file, &untold, config)?;
    // Its sockets and its privileged half are there from its start.
    let same = old.is_some_and(|old| {
        old.listen == config.listen
            && old.listen6 == config.listen6
            && old.bridge == config.bridge
            && old.opens() == config.opens()
    });
    let told = alive && same && process::signal(&directory, Signal::HUP);
    if told && !wait {
        // `untold` stays: whether it was heard is for the next one to find out.
        return Ok(true);
    }
    if !(told && took(config)) {
        if alive {
            end(&directory, &config.domain)?;
        }
        let started = start(&directory, &config.domain);
        if started.is_err() && process::end_strays(&directory, PROGRAM).unwrap_or(false) {
            start(&directory, &config.domain)?;
        } else {
            started?;
        }
    }
    fs::remove_file(&untold).map_err(|source| Error::File { operation: "remove", path: untold, source })?;
    Ok(true)
}

fn write_config(directory: &Path, file: &Path, untold: &Path, config: &NamesConfig) -> Result<()> {
    let write = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        // The process reads it as nobody, whatever the umask is.
        let readable =
            |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode));
        readable(directory, 0o755)?;
        fs::write(untold, "")?;
        let aside = directory.join("config.new");
        fs::write(&aside, serde_json::to_vec(config)?)?;
        readable(&aside, 0o644)?;
        fs::rename(&aside, file)
    };
    write().map_err(|source| Error::File { operation: "write", path: file.to_owned(), source })
}

/// Whether the service says, in time, that this configuration is in force.
fn took(config: &NamesConfig) -> bool {
    let wanted = config.digest();
    let deadline = Instant::now() + RELOAD;
    let mut patience = Duration::from_millis(5);
    while Instant::now() < deadline {
        if config_in_force(config, patience).is_ok_and(|found| found == wanted) {
            return true;
        }
        patience = (patience * 2).min(Duration::from_millis(200));
    }
    false
}

/// Asks the service which configuration is in force. An answer with the old one counts as none: the next question waits in
/// line behind the signal.
fn config_in_force(config: &NamesConfig, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind((config.listen, 0))?;
    socket.connect((config.listen, 53))?;
    socket.set_read_timeout(Some(patience))?;
    let mut query = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in answer::CONFIG_NAME.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.push(0);
    query.extend_from_slice(&wire::kind::TXT.to_be_bytes());
    query.extend_from_slice(&wire::class::CHAOS.to_be_bytes());
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    // The text is the last thing in the answer, behind twelve bytes of record and one of length.
    let text = answer.get(query.len() + 13..length).ok_or(ErrorKind::InvalidData)?;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn start(directory: &Path, domain: &str) -> Result<()> {
    let program = program();
    let failed = |source| Error::Program { program: PROGRAM.into(), source };
    // It returns when its child answers; the child belongs to nobody by then.
    let mut command = Command::new(&program);
    command.arg(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env_clear();
    let output = command.output().map_err(failed)?;
    if output.status.success() && process::alive(directory).is_some() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().next().unwrap_or("it ended without a word").to_owned();
    Err(Error::Names { domain: domain.to_owned(), message })
}

/// `$ILOT_LIBEXEC`, else beside this program, else `../libexec/ilot` from there.
fn program() -> PathBuf {
    if let Some(directory) = env::var_os("ILOT_LIBEXEC") {
        return Path::new(&directory).join(PROGRAM);
    }
    let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
    let here = beside.join(PROGRAM);
    if here.exists() { here } else { beside.join("../libexec/ilot").join(PROGRAM) }
}

fn end(directory: &Path, domain: &str) -> Result<bool> {
    process::end(directory).map_err(|source| unended(domain, source))
}

fn unended(domain: &str, source: io::Error) -> Error {
    Error::Kernel { operation: "end the name service of", name: domain.to_owned(), source }
}

/// Ends the domain's name service and removes its directory. True if there was one.
pub fn stop(run_dir: &Path, domain: &str) -> Result<bool> {
    let directory = directory(run_dir, domain);
    let ended = end(&directory, domain)?;
    match fs::remove_dir_all(&directory) {
        // Started by a command that was killed, it may just have found its directory, and nobody finds it there now.
        Ok(()) if !ended => {
            process::end_strays(&directory, PROGRAM).map(|_| true).map_err(|source| unended(domain, source))
        }
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(ended),
        Err(source) => Err(Error::File { operation: "remove", path: directory, source }),
    }
}

/// What a domain's name service refused lately, the oldest first.
pub fn refusals(run_dir: &Path, domain: &str) -> Result<Vec<Refusal>> {
    let directory = directory(run_dir, domain);
    refused::read(&directory).map_err(|source| Error::File {
        operation: "read",
        path: directory.join(refused::FILE),
        source,
    })
}

/// The name services that run.
pub fn running(run_dir: &Path) -> Result<Vec<Running>> {
    let path = run_dir.join("names");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { operation: "list", path, source }),
    };
    let service = |entry: fs::DirEntry| {
        let pid = process::alive(&entry.path())?;
        Some(Running { domain: entry.file_name().into_string().ok()?, pid })
    };
    let mut found: Vec<_> = entries.flatten().filter_map(service).collect();
    found.sort_by(|a, b| a.domain.cmp(&b.domain));
    Ok(found)
}

/// The name servers that the host itself uses (behind systemd-resolved's stub: the ones that it asks).
#[must_use]
pub fn host_upstreams() -> Vec<SocketAddr> {
    let read = |path| fs::read_to_string(path).map(|text| name_servers(&text)).unwrap_or_default();
    let own = read("/etc/resolv.conf");
    let stub = |server: &SocketAddr| server.ip().to_string().starts_with("127.0.0.5");
    if own.iter().all(stub) {
        let behind = read("/run/systemd/resolve/resolv.conf");
        if behind.iter().any(|server| !server.ip().is_loopback()) {
            return behind;
        }
    }
    own
}

/// The `nameserver` lines of resolv.conf(5); an address with an interface behind it cannot be asked from here.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<IpAddr> {
        let mut words = line.split_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        words.next()?.parse().ok()
    };
    text.lines().filter_map(address).map(|ip| SocketAddr::new(ip, 53)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.53\nnameserver\t2001:db8::53 # x\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n";
        let found = name_servers(text);
        assert_eq!(found, ["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()]);
    }
}
