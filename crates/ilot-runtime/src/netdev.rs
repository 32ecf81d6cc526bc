//! Network devices of the host that move into a container (`config-linux.md`, "Network Devices"), by rtnetlink.

use crate::spec::NetDevice;
use crate::{Error, Result, sys};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `IFLA_IFNAME`, `IFLA_NET_NS_FD` (linux/if_link.h)
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
/// `IFA_FLAGS` (linux/if_addr.h): the flags in full width
const IFA_FLAGS: u16 = 8;
/// Attributes of an address that go along: `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_BROADCAST`, `IFA_RT_PRIORITY`.
const IFA_KEPT: [u16; 4] = [1, 2, 4, 9];
/// `IFA_F_PERMANENT`
const PERMANENT: u32 = 0x80;
/// Sizes of `nlmsghdr`, `ifinfomsg` and `ifaddrmsg`
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// Moves devices into a network namespace: each keeps its permanent addresses and is up there.
pub fn move_all(devices: &BTreeMap<String, NetDevice>, netns: BorrowedFd<'_>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let fail = |e: io::Error| Error::system("open", "the container's network", e);
    let host = Socket::open().map_err(fail)?;
    let inside = socket_in(netns).map_err(fail)?;
    for (name, device) in devices {
        let new = device.name.as_deref().filter(|n| !n.is_empty()).unwrap_or(name);
        move_one(&host, &inside, netns, name, new)
            .map_err(|e| Error::system("move network device", format!("`{name}` into the container as `{new}`"), e))?;
    }
    Ok(())
}

fn move_one(host: &Socket, inside: &Socket, netns: BorrowedFd<'_>, name: &str, new: &str) -> io::Result<()> {
    if new.len() > 15 || new.contains('/') || new == "." || new == ".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let links = host.links()?;
    let index = links.iter().find(|(_, n)| n == name).map(|(i, _)| *i);
    let index = index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    let addresses = host.addresses(index)?;
    let before = inside.links()?;
    let mut request = Message::link(libc::RTM_NEWLINK, index, 0);
    request.attribute(IFLA_NET_NS_FD, &(netns.as_raw_fd() as u32).to_ne_bytes());
    // A name that ends in `%d` is a template, which the kernel fills.
    request.attribute(IFLA_IFNAME, &[new.as_bytes(), b"\0"].concat());
    host.ask(request)?;
    // Neither the number nor, with a template, the name need be those of before.
    let after = inside.links()?;
    let index = after.iter().map(|(i, _)| *i).find(|i| before.iter().all(|(old, _)| old != i));
    let index = index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    for address in addresses {
        inside.ask(address.message(index))?;
    }
    inside.ask(Message::link(libc::RTM_NEWLINK, index, libc::IFF_UP as u32))
}

/// A socket of another network namespace: this thread, the only one, goes there and comes back.
fn socket_in(netns: BorrowedFd<'_>) -> io::Result<Socket> {
    let own = rustix::fs::open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    sys::setns(netns, libc::CLONE_NEWNET)?;
    let socket = Socket::open();
    sys::setns(own.as_fd(), libc::CLONE_NEWNET)?;
    socket
}

/// A permanent address as the kernel told it.
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// `None` for one that is not of this device, not permanent, or not global.
    fn parse(body: &[u8], index: u32) -> Option<Self> {
        let head = body.get(..ADDRESS)?;
        let all: Vec<(u16, Vec<u8>)> = attributes(body.get(ADDRESS..)?).map(|(k, v)| (k, v.to_vec())).collect();
        let wide = all.iter().find(|(k, _)| *k == IFA_FLAGS).and_then(|(_, v)| number(v));
        let flags = wide.unwrap_or(head[2].into());
        let global = head[3] == libc::RT_SCOPE_UNIVERSE;
        if number(&head[4..]) != Some(index) || flags & PERMANENT == 0 || !global {
            return None;
        }
        let attributes = all.into_iter().filter(|(k, _)| IFA_KEPT.contains(k)).collect();
        Some(Self { family: head[0], prefix: head[1], attributes })
    }

    fn message(&self, index: u32) -> Message {
        let mut head = vec![self.family, self.prefix, 0, libc::RT_SCOPE_UNIVERSE];
        head.extend(index.to_ne_bytes());
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &head);
        for (kind, value) in &self.attributes {
            message.attribute(*kind, value);
        }
        message
    }
}

/// One request under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: libc::c_int, head: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend(head);
        Self(bytes)
    }

    /// About a device; `up`: flags that are to be set.
    fn link(kind: u16, index: u32, up: u32) -> Self {
        let mut head = [0; LINK];
        head[4..8].copy_from_slice(&index.to_ne_bytes());
        head[8..12].copy_from_slice(&up.to_ne_bytes());
        head[12..16].copy_from_slice(&up.to_ne_bytes());
        Self::new(kind, 0, &head)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

struct Socket(OwnedFd);

impl Socket {
    fn open() -> io::Result<Self> {
        // Protocol 0 is `NETLINK_ROUTE`.
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self(fd))
    }

    fn send(&self, mut message: Message, flags: libc::c_int) -> io::Result<()> {
        let bytes = &mut message.0;
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let old = u16::from_ne_bytes([bytes[6], bytes[7]]);
        bytes[6..8].copy_from_slice(&(old | flags as u16).to_ne_bytes());
        rustix::net::send(&self.0, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Sends a request and waits for the kernel's word.
    fn ask(&self, message: Message) -> io::Result<()> {
        self.send(message, libc::NLM_F_ACK)?;
        self.answers(|_, _| {})
    }

    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0u8; 65536];
        loop {
            let got = match rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?.0,
            };
            let mut rest = &buffer[..got];
            while let Some(head) = rest.get(..HEADER) {
                let length = number(head).unwrap_or(0) as usize;
                let Some(body) = rest.get(HEADER..length) else { break };
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        let code = number(body).unwrap_or(0) as i32;
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(kind, body),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// Numbers and names of all devices.
    fn links(&self) -> io::Result<Vec<(u32, String)>> {
        self.send(Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &[0; LINK]), 0)?;
        let mut list = Vec::new();
        self.answers(|_, body| {
            let Some(rest) = body.get(LINK..) else { return };
            let name = attributes(rest).find(|(k, _)| *k == IFLA_IFNAME).map(|(_, v)| v);
            if let (Some(index), Some(name)) = (number(&body[4..]), name) {
                list.push((index, String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
            }
        })?;
        Ok(list)
    }

    fn addresses(&self, index: u32) -> io::Result<Vec<Address>> {
        self.send(Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; ADDRESS]), 0)?;
        let mut list = Vec::new();
        self.answers(|_, body| list.extend(Address::parse(body, index)))?;
        Ok(list)
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The attributes of a message: kind, value. A broken one ends them.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<4>()?;
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([head[2], head[3]]) & 0x3fff, value))
    })
}
