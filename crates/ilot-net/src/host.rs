//! What the host has: its own subnets, its uplink, forwarding.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};

use crate::error::{Error, Result};
use crate::naming::{BRIDGE_PREFIX, Mark, PORT_PREFIX};
use crate::netlink::Socket;
use crate::rtnl;

/// The interface of the host's default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// The interface.
    pub name: String,
    /// Its MTU in bytes; what bridges and ports should have.
    pub mtu: u32,
}

/// The IPv4 subnets on the host's interfaces, loopback and the bridges of the store `exclude_store` left out.
pub fn host_subnets(exclude_store: &str) -> Result<Vec<(String, Ipv4Net)>> {
    let err = |source| Error::Kernel { operation: "list", name: "host addresses".into(), source };
    let mut socket = Socket::route().map_err(err)?;
    let links = rtnl::links(&mut socket).map_err(err)?;
    let addresses = rtnl::addresses(&mut socket).map_err(err)?;
    let ours = |link: &rtnl::Link| {
        link.alias.as_deref().and_then(Mark::parse).is_some_and(|mark| mark.owner.store == exclude_store)
    };
    let mut subnets = Vec::new();
    for address in addresses {
        let Some(link) = links.iter().find(|l| l.index == address.index) else {
            continue;
        };
        if let IpNet::V4(net) = address.net
            && !net.addr().is_loopback()
            && !ours(link)
        {
            subnets.push((link.name.clone(), net.trunc()));
        }
    }
    Ok(subnets)
}

/// Every address of this host, loopback included.
pub fn host_addresses() -> Result<Vec<std::net::IpAddr>> {
    let err = |source| Error::Kernel { operation: "list", name: "host addresses".into(), source };
    let mut socket = Socket::route().map_err(err)?;
    Ok(rtnl::addresses(&mut socket).map_err(err)?.into_iter().map(|address| address.net.addr()).collect())
}

/// The interface of the IPv4 default route with the lowest metric; `None` without such a route.
pub fn uplink() -> Result<Option<Uplink>> {
    let err = |source| Error::Kernel { operation: "find", name: "uplink".into(), source };
    let mut socket = Socket::route().map_err(err)?;
    let routes = rtnl::default_routes(&mut socket, libc::AF_INET).map_err(err)?;
    let Some(route) = routes.into_iter().min_by_key(|r| r.metric) else {
        return Ok(None);
    };
    interface(&socket, route.oif).map_err(err)
}

/// The interface of a number, if there is one.
///
/// By two requests of netdevice(7), which the kernel answers at once: a rtnetlink request waits while it takes network
/// namespaces apart, for milliseconds after the end of each container.
fn interface(socket: &Socket, index: u32) -> std::io::Result<Option<Uplink>> {
    let gone = |errno| matches!(errno, rustix::io::Errno::NODEV | rustix::io::Errno::NXIO);
    let name = match rustix::net::netdevice::index_to_name(socket.fd(), index) {
        Err(errno) if gone(errno) => return Ok(None),
        name => name?,
    };
    match mtu_of(socket, &name) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        mtu => Ok(Some(Uplink { mtu: mtu?, name })),
    }
}

fn mtu_of(socket: &Socket, name: &str) -> std::io::Result<u32> {
    use std::os::fd::AsRawFd;
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the closing zero.
    let places = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name[..places].iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    // SAFETY: the request is one of the kind that the call takes, and lives until it returns.
    let code = unsafe { libc::ioctl(socket.fd().as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if code < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: what this call fills in.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// The smallest MTU that the kernel gives IPv6 to an interface with (RFC 8200, 5).
pub const IPV6_MTU: u32 = 1280;

/// Whether this host has IPv6 at all: it may have been left out of the kernel, or switched off (`ipv6.disable=1`,
/// `net.ipv6.conf.all.disable_ipv6 = 1`).
#[must_use]
pub fn has_ipv6() -> bool {
    fs::read_to_string(sysctl_path("ipv6/conf/all/disable_ipv6")).is_ok_and(|text| text.trim() == "0")
}

const FORWARDING: &str = "ipv4/ip_forward";
const FORWARDING6: &str = "ipv6/conf/all/forwarding";
/// What the switches were, below the run directory.
const MEMORY: &str = "ip_forward";
const MEMORY6: &str = "ip6_forward";

/// Switches IPv4 forwarding on, remembering in `<run_dir>/ip_forward` what it was. True if it was off.
///
/// It is the host's global switch: once it is on, the host also forwards between interfaces that are none of ours, unless
/// the host's own rules forbid it.
pub fn enable_forwarding(run_dir: &Path) -> Result<bool> {
    if read_sysctl(FORWARDING)? == "1" && forwards_at_all()? {
        return Ok(false);
    }
    let _lock = forwarding_lock(run_dir)?;
    let old = read_sysctl(FORWARDING)?;
    if old == "1" {
        return if forwards_at_all()? { Ok(false) } else { switch_again() };
    }
    // First the memory, then the change: a crash in between restores what still stands.
    write_memory(run_dir, MEMORY, &old)?;
    set_sysctl(FORWARDING, "1")
}

/// Whether the switch, which says 1, ever reached an interface, or reaches those to come (`default`).
///
/// A network namespace gets its settings from the host's first one, each by itself and without the lock under which they
/// change together (`devinet_init_net` in `net/ipv4/devinet.c`). Made in the moment in which somebody switches forwarding
/// on out there, it has a switch that says 1, a default that says 0, and interfaces that do not forward.
fn forwards_at_all() -> Result<bool> {
    let path = sysctl_path("ipv4/conf");
    let failed = |source| Error::File { operation: "list", path: path.clone(), source };
    for entry in fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
        // Bridges of ours are told one by one, and say nothing about the rest. An interface may go while it is looked at.
        let counts = name != "all" && !name.starts_with(BRIDGE_PREFIX);
        if counts && read_sysctl(&format!("ipv4/conf/{name}/forwarding")).is_ok_and(|value| value == "1") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes the switch so that it reaches every interface: no one forwards, so no choice of anybody's is lost.
fn switch_again() -> Result<bool> {
    set_sysctl(FORWARDING, "0")?;
    set_sysctl(FORWARDING, "1")
}

/// The same for IPv6, in `<run_dir>/ip6_forward`. True if it was off.
///
/// A host that forwards no longer listens to router advertisements, from which its own address and default route may come,
/// and the kernel forgets the routes that it learned so at that moment. Interfaces that listen (`accept_ra` is 1) are
/// therefore told to go on before (2), those to come too (`default`).
pub fn enable_forwarding6(run_dir: &Path) -> Result<bool> {
    if read_sysctl(FORWARDING6)? == "1" {
        return Ok(false);
    }
    let _lock = forwarding_lock(run_dir)?;
    let old = read_sysctl(FORWARDING6)?;
    if old == "1" {
        return Ok(false);
    }
    let listening: Vec<String> =
        ipv6_interfaces()?.into_iter().filter(|name| read_sysctl(&accept_ra(name)).is_ok_and(|v| v == "1")).collect();
    write_memory(run_dir, MEMORY6, &format!("{old}\n{}\n", listening.join("\n")))?;
    for name in &listening {
        set_sysctl(&accept_ra(name), "2")?;
    }
    set_sysctl(FORWARDING6, "1")
}

fn accept_ra(interface: &str) -> String {
    format!("ipv6/conf/{interface}/accept_ra")
}

/// Interfaces with IPv6 settings, and `default`; bridges and ports of ours never listen.
fn ipv6_interfaces() -> Result<Vec<String>> {
    let path = sysctl_path("ipv6/conf");
    let failed = |source| Error::File { operation: "list", path: path.clone(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
        if name != "all" && !name.is_empty() && !name.starts_with(BRIDGE_PREFIX) && !name.starts_with(PORT_PREFIX) {
            names.push(name);
        }
    }
    Ok(names)
}

fn write_memory(run_dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = run_dir.join(name);
    fs::write(&path, text).map_err(|source| Error::File { operation: "write", path, source })
}

/// Held while a switch is written.
///
/// The kernel changes the value, and takes it back to try again when it does not get the lock under which it tells the
/// interfaces (`devinet_sysctl_forward` in `net/ipv4/devinet.c`). Of two writers the second can find the value of the first
/// there, take that for "nothing to do" and write it once more after the first took it back; the first then finds nothing
/// to do either. The switch says 1 from then on, and no interface forwards.
fn forwarding_lock(run_dir: &Path) -> Result<fs::File> {
    let path = run_dir.join("ip_forward.lock");
    let open = || {
        fs::create_dir_all(run_dir)?;
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    };
    open().map_err(|source| Error::File { operation: "lock", path: path.clone(), source })
}

/// Puts back what [`enable_forwarding`] and [`enable_forwarding6`] found; call it when the last bridge is gone. True if that
/// changed anything.
pub fn disable_forwarding(run_dir: &Path) -> Result<bool> {
    let ipv4 = put_back(run_dir, MEMORY, |memory| set_sysctl(FORWARDING, memory.trim()))?;
    let ipv6 = put_back(run_dir, MEMORY6, |memory| {
        let mut lines = memory.lines();
        let changed = set_sysctl(FORWARDING6, lines.next().unwrap_or("0"))?;
        for name in lines.filter(|name| !name.is_empty()) {
            // What somebody else chose since stays, and so does an interface that is gone.
            if read_sysctl(&accept_ra(name)).is_ok_and(|value| value == "2") {
                set_sysctl(&accept_ra(name), "1")?;
            }
        }
        Ok(changed)
    })?;
    Ok(ipv4 || ipv6)
}

/// Reads what a switch was, puts it back and forgets it. False without such a memory.
fn put_back(run_dir: &Path, name: &str, restore: impl FnOnce(&str) -> Result<bool>) -> Result<bool> {
    let memory = run_dir.join(name);
    if !memory.exists() {
        return Ok(false);
    }
    let _lock = forwarding_lock(run_dir)?;
    let old = match fs::read_to_string(&memory) {
        Ok(old) => old,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(Error::File { operation: "read", path: memory, source });
        }
    };
    let changed = restore(&old)?;
    fs::remove_file(&memory).map_err(|source| Error::File { operation: "remove", path: memory, source })?;
    Ok(changed)
}

fn sysctl_path(setting: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(setting)
}

fn read_sysctl(setting: &str) -> Result<String> {
    let path = sysctl_path(setting);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(Error::File { operation: "read", path, source }),
    }
}

/// Sets a setting below `/proc/sys/net` of this thread's network namespace. True if it had another value; one that this
/// kernel does not have (IPv6 left out) counts as set.
pub(crate) fn set_sysctl(setting: &str, value: &str) -> Result<bool> {
    let path = sysctl_path(setting);
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == value => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(Error::File { operation: "read", path, source });
        }
    }
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::File { operation: "set", path, source })?;
    Ok(true)
}
