//! The privileged half of a name service whose domain opens the outside by name.
//!
//! `ilot-names` parses what strangers send, so it has no rights. Beside it stands this process, which keeps one: changing
//! the network's configuration. It understands two requests of fixed form, has its own copy of the configuration, and adds
//! elements to the sets of names of its own domain only, at the ports of the list only, for a bounded time only.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::CapabilitySet;

use super::config::{NamesConfig, Others};
use super::daemon::{become_nobody, read_config_inside};
use crate::firewall::lease::{self, Lease, Who};
use crate::netlink::Socket;

/// Addresses of one answer that are opened at most.
const ADDRESSES: usize = 16;
/// A request: what is asked for, how many addresses, the length of the name; for whom; for each address its time and itself
/// (one of IPv4 as ::ffff:0:0/96 has it); the name.
const HEAD: usize = 8;
const SLOT: usize = 20;
const NAME: usize = HEAD + ADDRESSES * SLOT;
const REQUEST: usize = NAME + 255;
const OPEN: u8 = 1;
const RELOAD: u8 = 2;
/// How long the unprivileged half waits.
const PATIENCE: Duration = Duration::from_millis(500);
/// How much longer than an answer is good its addresses stay open: who looked it up at its last moment still connects.
const GRACE: Duration = Duration::from_secs(5);
/// The longest time, in seconds (RFC 8767, 4).
const LONGEST: u32 = 7 * 24 * 3600;

/// The unprivileged end.
#[derive(Debug)]
pub struct Opener(OwnedFd);

impl Opener {
    /// Starts the privileged half, a child of this process that ends with it. Call it as root, in the directory that is the
    /// root directory by then, before rights are dropped.
    pub fn start(config: &NamesConfig) -> io::Result<Self> {
        let (near, far) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let socket = Socket::netfilter()?;
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(near);
                std::process::exit(i32::from(serve(config.clone(), socket, &far).is_err()));
            }
            _ => {
                drop(far);
                rustix::net::sockopt::set_socket_timeout(&near, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
                let mut ready = [0];
                match rustix::net::recv(&near, &mut ready[..], RecvFlags::empty())? {
                    (1, _) => Ok(Self(near)),
                    _ => Err(io::Error::other("the half that opens addresses by name did not start")),
                }
            }
        }
    }

    /// Opens addresses to a client; each with the seconds that it is good for. True once they are open.
    pub fn open(&mut self, client: Ipv4Addr, name: &str, addresses: &[(IpAddr, u32)]) -> bool {
        let mut request = vec![0; NAME];
        let addresses = &addresses[..addresses.len().min(ADDRESSES)];
        request[0] = OPEN;
        request[1] = addresses.len() as u8;
        request[2] = name.len().min(255) as u8;
        request[4..8].copy_from_slice(&client.octets());
        for (slot, (address, ttl)) in request[HEAD..].chunks_exact_mut(SLOT).zip(addresses) {
            slot[..4].copy_from_slice(&ttl.to_ne_bytes());
            slot[4..].copy_from_slice(&as_ipv6(*address).octets());
        }
        request.extend_from_slice(&name.as_bytes()[..name.len().min(255)]);
        self.ask(&request)
    }

    /// Makes the privileged half read the configuration again.
    pub fn reload(&mut self) -> bool {
        let mut request = vec![0; NAME];
        request[0] = RELOAD;
        self.ask(&request)
    }

    fn ask(&self, request: &[u8]) -> bool {
        let mut answer = [0];
        let asked = rustix::net::send(&self.0, request, SendFlags::NOSIGNAL);
        let mut heard =
            || rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut answer[..], RecvFlags::empty()));
        if asked != Ok(request.len()) || heard().map(|(length, _)| length) != Ok(1) {
            // Gone, or an answer may come late and be taken for another's. Without it nothing can be opened any more: the
            // next command starts both anew.
            std::process::exit(1);
        }
        answer[0] == 1
    }
}

fn serve(mut config: NamesConfig, mut socket: Socket, far: &OwnedFd) -> io::Result<()> {
    keep_only(&[far.as_raw_fd(), socket.fd().as_raw_fd()]);
    rustix::thread::set_keep_capabilities(true)?;
    become_nobody()?;
    let right = CapabilitySet::NET_ADMIN;
    let sets =
        rustix::thread::CapabilitySets { effective: right, permitted: right, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    // Whoever started us waits for the end of this pipe.
    rustix::stdio::dup2_stderr(rustix::stdio::stdin())?;
    super::sandbox::opener();
    rustix::net::send(far, &[1], SendFlags::NOSIGNAL)?;
    let mut request = [0; REQUEST + 1];
    loop {
        let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(far, &mut request[..], RecvFlags::empty()))?;
        if length == 0 {
            return Ok(());
        }
        let done = match request[0] {
            OPEN => leases(&config, &request[..length]).is_some_and(|list| lease::open(&mut socket, &list).is_ok()),
            RELOAD => match read_config_inside() {
                Ok(new) if new.bridge == config.bridge && new.listen == config.listen => {
                    config = new;
                    true
                }
                _ => false,
            },
            _ => false,
        };
        rustix::net::send(far, &[u8::from(done)], SendFlags::NOSIGNAL)?;
    }
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// Nobody's, or everybody's, or a neighbour's: never a host outside.
fn is_no_host(address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    special || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

/// Closes every descriptor but the standard three and these.
fn keep_only(kept: &[i32]) {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([i32::MAX]) {
        if first < fd {
            // SAFETY: what is closed belongs to the unprivileged half, whose values of it are never used in this process.
            unsafe { libc::syscall(libc::SYS_close_range, first as u32, fd as u32 - 1, 0u32) };
        }
        first = fd.saturating_add(1);
    }
}

/// What a request opens; `None` if it asks for anything that the configuration does not have.
fn leases(config: &NamesConfig, request: &[u8]) -> Option<Vec<Lease>> {
    let (count, name_length) = (usize::from(*request.get(1)?), usize::from(*request.get(2)?));
    let name = std::str::from_utf8(request.get(NAME..)?).ok()?;
    if count > ADDRESSES || name.len() != name_length {
        return None;
    }
    let client = Ipv4Addr::from(<[u8; 4]>::try_from(&request[4..8]).ok()?);
    if !config.subnet.contains(&client) {
        return None;
    }
    let own = config.own.contains_key(&client);
    let others = config.others_of(client);
    if !matches!(others, Others::Names(_)) || !others.allow(name) {
        return None;
    }
    let mut list = Vec::new();
    for slot in request[HEAD..NAME].chunks_exact(SLOT).take(count) {
        let ttl = u32::from_ne_bytes(slot[..4].try_into().ok()?).min(LONGEST);
        let address = IpAddr::from(<[u8; 16]>::try_from(&slot[4..]).ok()?).to_canonical();
        // They stay closed, whatever a name server says; IPv6 where there is none as well.
        if is_no_host(address) || (address.is_ipv6() && config.listen6.is_none()) {
            continue;
        }
        let who = match (own, address) {
            (false, _) => Who::Bridge(config.bridge.clone()),
            (true, IpAddr::V4(_)) => Who::Machine(client.into()),
            (true, IpAddr::V6(_)) => match config.ipv6_of(client) {
                Some(client) => Who::Machine(client.into()),
                None => continue,
            },
        };
        let left = Duration::from_secs(ttl.into()) + GRACE;
        list.extend(others.entries(name).flat_map(|entry| Lease::of_entry(&who, entry, address, left)));
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Egress, EgressEntry, EgressTo, Ports, Protocol};

    fn config() -> NamesConfig {
        let entry = |name: &str, ports| EgressEntry { to: EgressTo::Name(name.into()), ports, protocol: None };
        let list = vec![entry("deb.example.org", Ports::List(vec![80, 443])), entry("*.example.net", Ports::All)];
        let mut config = NamesConfig::new("pro", "10.120.3.254/24".parse().unwrap());
        config.bridge = "il-pro".into();
        config.others = Others::of(&Egress::List(list));
        config
    }

    fn request<A: Into<IpAddr> + Copy>(client: [u8; 4], name: &str, addresses: &[(A, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; NAME];
        bytes[..3].copy_from_slice(&[OPEN, addresses.len() as u8, name.len() as u8]);
        bytes[4..8].copy_from_slice(&client);
        for (slot, (address, ttl)) in bytes[HEAD..].chunks_exact_mut(SLOT).zip(addresses) {
            slot[..4].copy_from_slice(&ttl.to_ne_bytes());
            slot[4..].copy_from_slice(&as_ipv6((*address).into()).octets());
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes
    }

    #[test]
    fn opens_what_the_list_has_and_nothing_else() {
        let client = [10, 120, 3, 1];
        let address = [192, 0, 2, 7];
        let found = leases(&config(), &request(client, "deb.example.org", &[(address, 60)])).unwrap();
        assert_eq!(found.len(), 4, "two ports, two protocols");
        assert!(found.iter().all(|l| l.who == Who::Bridge("il-pro".into()) && l.left == Duration::from_secs(65)));
        assert!(found.iter().any(|l| l.port == Some((Protocol::Udp, 443))));
        let found = leases(&config(), &request(client, "a.example.net", &[(address, u32::MAX)])).unwrap();
        assert_eq!((found.len(), found[0].port), (1, None));
        assert_eq!(found[0].left, Duration::from_secs(u64::from(LONGEST)) + GRACE);
        // Another name, another subnet, no address of a host.
        assert_eq!(leases(&config(), &request(client, "example.org", &[(address, 60)])), None);
        assert_eq!(leases(&config(), &request([10, 120, 4, 1], "deb.example.org", &[(address, 60)])), None);
        let nobody = [([0, 0, 0, 0], 9), ([127, 0, 0, 1], 9), ([224, 0, 0, 1], 9), ([255, 255, 255, 255], 9)];
        assert_eq!(leases(&config(), &request(client, "deb.example.org", &nobody)), Some(Vec::new()));
        // IPv6, where there is any, and for a machine with a list of its own by its IPv6 address.
        let six = "2001:db8::7".parse::<Ipv6Addr>().unwrap();
        let asked = request(client, "a.example.net", &[(six, 60), ("fe80::1".parse().unwrap(), 60)]);
        assert_eq!(leases(&config(), &asked), Some(Vec::new()));
        let mut with = config();
        with.listen6 = Some("fd00::fe".parse().unwrap());
        with.hosts.insert("dev".into(), client.into());
        with.hosts6.insert("dev".into(), "fd00::1".parse().unwrap());
        let found = leases(&with, &asked).unwrap();
        assert_eq!((found.len(), found[0].set, found[0].address), (1, "egress_names6", six.into()));
        with.own.insert(client.into(), with.others.clone());
        let found = leases(&with, &asked).unwrap();
        assert_eq!((found[0].set, &found[0].who), ("machine_egress_names6", &Who::Machine("fd00::1".parse().unwrap())));
        // A name that is longer than it says, too many addresses, half a request.
        let mut bad = request(client, "deb.example.org", &[(address, 60)]);
        bad[2] -= 1;
        assert_eq!(leases(&config(), &bad), None);
        bad[2] += 1;
        bad[1] = 200;
        assert_eq!(leases(&config(), &bad), None);
        assert_eq!(leases(&config(), &bad[..20]), None);
        assert_eq!(leases(&config(), &[]), None);
    }
}
