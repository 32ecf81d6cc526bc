//! Drops as they happen.
//!
//! A table of our own marks the first packets of some machines for the kernel's tracing; what any rule then does with them,
//! ours or somebody else's, comes over netlink. The table belongs to an `nft` process that ends with us, however we end: the
//! kernel removes it with its owner's socket (`flags owner`, Linux 5.12), so nothing has to be cleaned up.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::firewall::{Family, FwPort, Protocol};
use crate::netlink::{Message, Socket, attributes, text_of};

/// `NFNLGRP_NFTRACE`, and `NFTA_TRACE_*` of `linux/netfilter/nf_tables.h`.
const GROUP: u32 = 9;
const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const MESSAGE: u16 = NFTABLES | libc::NFT_MSG_TRACE as u16;
const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const NETWORK_HEADER: u16 = 8;
const TRANSPORT_HEADER: u16 = 9;
const INTERFACE_IN: u16 = 10;
const INTERFACE_OUT: u16 = 12;
const FAMILY: u16 = 15;
const POLICY: u16 = 16;
const VERDICT_CODE: u16 = 1;
const TYPE_POLICY: u32 = 1;
const TYPE_RULE: u32 = 3;
/// Packets whose headers are kept until their end is known.
const KEPT: usize = 4096;
/// How long `nft` may take to make the table.
const START: Duration = Duration::from_secs(5);

/// A packet that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Sender and receiver.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The number of the protocol above IP.
    pub protocol: Option<u8>,
    /// The receiver's port, of TCP and UDP.
    pub port: Option<u16>,
    /// Where it came in, by index.
    pub interface_in: Option<u32>,
    /// Where it would have gone out, by index.
    pub interface_out: Option<u32>,
    /// The table that dropped it, the packet's family before it: `ip ilot` is also what `inet ilot` drops of IPv4.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl Dropped {
    /// The transport that has ports.
    #[must_use]
    pub fn transport(&self) -> Option<Protocol> {
        match i32::from(self.protocol?) {
            libc::IPPROTO_TCP => Some(Protocol::Tcp),
            libc::IPPROTO_UDP => Some(Protocol::Udp),
            _ => None,
        }
    }
}

/// A running trace.
#[allow(missing_debug_implementations, reason = "a socket and a process")]
pub struct Trace {
    socket: Socket,
    packets: HashMap<u32, Dropped>,
    owner: Child,
    /// Its end is the table's.
    _commands: ChildStdin,
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.owner.kill();
        let _ = self.owner.wait();
    }
}

impl Trace {
    /// Begins to watch machines: what they send, and what is sent to them.
    ///
    /// # Errors
    /// When `nft` cannot be run, or the kernel takes no tables with an owner.
    pub fn start(ports: &[&FwPort]) -> Result<Self> {
        let err = |source| Error::Kernel { operation: "trace", name: "packets".into(), source };
        let mut socket = Socket::netfilter().map_err(err)?;
        let listener = Socket::netfilter().map_err(err)?;
        listener.join(GROUP).map_err(err)?;
        let failed = |source| Error::Program { program: "nft".into(), source };
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let Some(mut commands) = owner.stdin.take() else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let table = format!("ilot_trace_{}", std::process::id());
        let written = commands.write_all(script(&table, ports).as_bytes()).and_then(|()| commands.flush());
        // From here on dropping it ends the process.
        let trace = Self { socket: listener, packets: HashMap::new(), owner, _commands: commands };
        written.map_err(failed)?;
        let deadline = Instant::now() + START;
        while !stands(&mut socket, &table).map_err(err)? {
            if Instant::now() >= deadline {
                let message = "it made no table with an owner; that needs Linux 5.12 and nft 0.9.9".to_owned();
                return Err(Error::Nft { operation: "trace", message });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(trace)
    }

    /// Waits for drops, at most this long.
    ///
    /// # Errors
    /// When the kernel ends the trace.
    pub fn next(&mut self, patience: Duration) -> io::Result<Vec<Dropped>> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec::try_from(patience).ok();
        let ready = match poll(&mut [PollFd::from_borrowed_fd(self.socket.fd(), PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut dropped = Vec::new();
        if ready > 0 {
            let packets = &mut self.packets;
            self.socket.listen(|kind, payload| {
                if kind == MESSAGE {
                    dropped.extend(hear(packets, payload));
                }
            })?;
        }
        Ok(dropped)
    }
}

/// The tables, each in one line as the interactive `nft` wants it.
fn script(table: &str, ports: &[&FwPort]) -> String {
    let mut watched = String::new();
    for (family, ip) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let addresses: Vec<String> = ports.iter().filter_map(|p| Some(p.ip_of(family)?.to_string())).collect();
        let addresses = addresses.join(", ");
        if !addresses.is_empty() {
            watched.push_str(&format!(
                "{ip} saddr {{ {addresses} }} meta nftrace set 1; {ip} daddr {{ {addresses} }} meta nftrace set 1; "
            ));
        }
    }
    // Behind conntrack: what belongs to a known connection is not looked at, so a trace costs the others little.
    let mut text = format!(
        "table inet {table} {{ flags owner; chain watch {{ type filter hook prerouting priority -150; policy accept; \
         ct state established,related return; {watched}}}; }}\n"
    );
    let mut rules = String::new();
    for port in ports {
        // Frames that are as they should be are the other table's to look at.
        let FwPort { ifname, mac, ip, .. } = port;
        rules.push_str(&format!(
            "iifname \"{ifname}\" ether saddr {mac} ip saddr {ip} return; \
             iifname \"{ifname}\" ether saddr {mac} arp saddr ip {{ {ip}, 0.0.0.0 }} return; \
             {}iifname \"{ifname}\" meta nftrace set 1; ",
            port.ip6.map_or_else(String::new, |ip| quiet6(port, ip))
        ));
    }
    text.push_str(&format!(
        "table bridge {table} {{ flags owner; chain watch {{ type filter hook prerouting priority -310; policy accept; \
         {rules} }}; }}\n"
    ));
    text
}

/// What of IPv6 is as it should be, and what every system sends by itself and nobody needs; neighbour discovery is watched.
fn quiet6(port: &FwPort, ip: Ipv6Addr) -> String {
    let FwPort { ifname, mac, .. } = port;
    format!(
        "iifname \"{ifname}\" icmpv6 type {{ 130, 131, 132, 133, 143 }} return; \
         iifname \"{ifname}\" ether saddr {mac} ip6 saddr {{ {ip}, {} }} meta l4proto != ipv6-icmp return; \
         iifname \"{ifname}\" ether saddr {mac} ip6 saddr {{ {ip}, {} }} icmpv6 type != {{ 134-137 }} return; ",
        mac.link_local(),
        mac.link_local()
    )
}

/// Whether both tables are there.
fn stands(socket: &mut Socket, table: &str) -> io::Result<bool> {
    for family in [libc::NFPROTO_INET as u8, libc::NFPROTO_BRIDGE as u8] {
        let mut message = Message::new(GET_TABLE, 0, &[family, 0, 0, 0]);
        message.text(TABLE, table);
        if socket.get(message, |_| Some(()))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes one message in; the packet, if that was its end.
fn hear(packets: &mut HashMap<u32, Dropped>, payload: &[u8]) -> Option<Dropped> {
    let body = payload.get(4..)?;
    let find = |wanted| attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let number = |wanted| find(wanted).and_then(|v| <[u8; 4]>::try_from(v).ok()).map(u32::from_be_bytes);
    let id = number(ID)?;
    if packets.len() >= KEPT {
        packets.clear();
    }
    let packet = packets.entry(id).or_default();
    if let Some(header) = find(NETWORK_HEADER) {
        read_header(packet, header, find(TRANSPORT_HEADER).unwrap_or(&[]));
    }
    packet.interface_in = number(INTERFACE_IN).or(packet.interface_in);
    packet.interface_out = number(INTERFACE_OUT).or(packet.interface_out);
    let code = find(VERDICT).and_then(|verdict| {
        let (_, code) = attributes(verdict).find(|(kind, _)| *kind == VERDICT_CODE)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    });
    let drop = libc::NF_DROP as u32;
    let dropped = match number(TYPE)? {
        TYPE_RULE => code == Some(drop),
        TYPE_POLICY => number(POLICY) == Some(drop),
        _ => false,
    };
    if !dropped {
        return None;
    }
    let mut packet = packets.remove(&id)?;
    let family = match number(FAMILY).and_then(|family| i32::try_from(family).ok()) {
        Some(libc::NFPROTO_INET) => "inet",
        Some(libc::NFPROTO_IPV4) => "ip",
        Some(libc::NFPROTO_IPV6) => "ip6",
        Some(libc::NFPROTO_BRIDGE) => "bridge",
        Some(libc::NFPROTO_ARP) => "arp",
        Some(libc::NFPROTO_NETDEV) => "netdev",
        _ => "?",
    };
    packet.table = format!("{family} {}", find(TABLE).map(text_of).unwrap_or_default());
    packet.chain = find(CHAIN).map(text_of).unwrap_or_default();
    Some(packet)
}

fn read_header(packet: &mut Dropped, network: &[u8], transport: &[u8]) {
    let address = |at: usize| network.get(at..at + 4).and_then(|o| <[u8; 4]>::try_from(o).ok()).map(Ipv4Addr::from);
    let address6 = |at: usize| network.get(at..at + 16).and_then(|o| <[u8; 16]>::try_from(o).ok()).map(Ipv6Addr::from);
    match network.first().map(|first| first >> 4) {
        Some(4) => {
            packet.addresses = address(12).map(IpAddr::V4).zip(address(16).map(IpAddr::V4));
            packet.protocol = network.get(9).copied();
        }
        Some(6) => {
            packet.addresses = address6(8).map(IpAddr::V6).zip(address6(24).map(IpAddr::V6));
            packet.protocol = network.get(6).copied();
        }
        _ => return,
    }
    if packet.transport().is_some() {
        packet.port = transport.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    }
}
