//! Real connections between network namespaces: does the kernel let through what the rules say?
//!
//! Small servers are opened where a connection leads, then every connection is begun, then what arrived is counted. Nothing
//! is left behind: sockets stay in the namespace that they were made in and go with this process's descriptors.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::firewall::Protocol;

/// Connections that are tried side by side; each has two descriptors at most.
const TOGETHER: usize = 200;
/// What our servers answer.
const HELLO: &[u8] = b"ilot";

/// Where connections begin and end.
#[derive(Debug)]
pub struct End {
    /// The network namespace; `None` is the caller's.
    pub netns: Option<OwnedFd>,
    /// The address, as others reach it.
    pub address: IpAddr,
}

/// One connection to try: from an end to an end, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Probe {
    /// Who begins.
    pub from: usize,
    /// With whom.
    pub to: usize,
    /// How.
    pub protocol: Protocol,
    /// The port of `to`.
    pub port: u16,
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It was made, and an answer came back.
    Through,
    /// Nothing came back in time.
    Nothing,
    /// It cannot be told: why not.
    Unknown(String),
}

enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// The machine itself listens there: a TCP connection will do.
    Taken,
    Failed(String),
}

enum Client {
    Tcp(OwnedFd),
    Udp(UdpSocket),
    Failed(String),
}

/// Tries every connection, some hundred at a time; each batch waits `patience` for what does not come.
#[must_use]
pub fn run(ends: &[End], probes: &[Probe], patience: Duration) -> Vec<Seen> {
    probes.chunks(TOGETHER).flat_map(|batch| try_batch(ends, batch, patience)).collect()
}

fn try_batch(ends: &[End], probes: &[Probe], patience: Duration) -> Vec<Seen> {
    let mut wanted: BTreeMap<usize, Vec<(Protocol, u16)>> = BTreeMap::new();
    for probe in probes {
        let list = wanted.entry(probe.to).or_default();
        if !list.contains(&(probe.protocol, probe.port)) {
            list.push((probe.protocol, probe.port));
        }
    }
    let mut servers = BTreeMap::new();
    for (end, list) in wanted {
        let opened = inside(&ends[end], || list.iter().map(|(p, port)| serve(ends[end].address, *p, *port)).collect());
        let opened: Vec<Server> = opened.unwrap_or_else(|error: io::Error| {
            list.iter().map(|_| Server::Failed(format!("cannot enter its namespace: {error}"))).collect()
        });
        servers.extend(list.into_iter().map(|(protocol, port)| (end, protocol, port)).zip(opened));
    }
    let mut clients: Vec<Client> = Vec::with_capacity(probes.len());
    let mut start = 0;
    while start < probes.len() {
        let from = probes[start].from;
        let length = probes[start..].iter().take_while(|probe| probe.from == from).count();
        let run = &probes[start..start + length];
        let begin_all = || run.iter().map(|probe| begin(probe.protocol, ends[probe.to].address, probe.port)).collect();
        match inside(&ends[from], begin_all) {
            Ok(begun) => clients.extend::<Vec<Client>>(begun),
            Err(error) => {
                let failed = |_: &Probe| Client::Failed(format!("cannot enter its namespace: {error}"));
                clients.extend(run.iter().map(failed));
            }
        }
        start += length;
    }
    let mut seen: Vec<Option<Seen>> = probes
        .iter()
        .zip(&clients)
        .map(|(probe, client)| before_waiting(client, &servers[&(probe.to, probe.protocol, probe.port)], probe))
        .collect();
    wait(&servers, &clients, &mut seen, patience);
    seen.into_iter().map(|seen| seen.unwrap_or(Seen::Nothing)).collect()
}

/// What is known without waiting.
fn before_waiting(client: &Client, server: &Server, probe: &Probe) -> Option<Seen> {
    match (client, server) {
        (_, Server::Failed(why)) | (Client::Failed(why), _) => Some(Seen::Unknown(why.clone())),
        (Client::Udp(_), Server::Taken) => {
            Some(Seen::Unknown(format!("port {}/udp is in use there, and its owner need not answer", probe.port)))
        }
        _ => None,
    }
}

fn wait(
    servers: &BTreeMap<(usize, Protocol, u16), Server>,
    clients: &[Client],
    seen: &mut [Option<Seen>],
    patience: Duration,
) {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let waiting: Vec<usize> = (0..clients.len()).filter(|&number| seen[number].is_none()).collect();
        if waiting.is_empty() || left.is_zero() {
            return;
        }
        let udp: Vec<&UdpSocket> = servers
            .values()
            .filter_map(|server| if let Server::Udp(socket) = server { Some(socket) } else { None })
            .collect();
        let mut fds: Vec<PollFd<'_>> = udp.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
        for number in &waiting {
            match &clients[*number] {
                Client::Tcp(socket) => fds.push(PollFd::new(socket, PollFlags::OUT)),
                Client::Udp(socket) => fds.push(PollFd::new(socket, PollFlags::IN)),
                Client::Failed(_) => {}
            }
        }
        let timeout = Timespec::try_from(left).ok();
        if poll(&mut fds, timeout.as_ref()).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (socket, _) in udp.iter().zip(&ready).filter(|(_, ready)| **ready) {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(HELLO, peer);
            }
        }
        for (number, _) in waiting.iter().zip(&ready[udp.len()..]).filter(|(_, ready)| **ready) {
            seen[*number] = Some(result(&clients[*number]));
        }
    }
}

/// Of a client that has something to say.
fn result(client: &Client) -> Seen {
    match client {
        Client::Tcp(socket) => match rustix::net::sockopt::socket_error(socket) {
            Ok(Ok(())) => Seen::Through,
            // A rule that refuses instead of dropping, or a port that its owner has just closed.
            _ => Seen::Nothing,
        },
        Client::Udp(socket) => match socket.recv(&mut [0; 16]) {
            Ok(_) => Seen::Through,
            Err(_) => Seen::Nothing,
        },
        Client::Failed(why) => Seen::Unknown(why.clone()),
    }
}

fn serve(address: IpAddr, protocol: Protocol, port: u16) -> Server {
    let address = SocketAddr::new(address, port);
    let opened = match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(Server::Tcp),
        Protocol::Udp => UdpSocket::bind(address).and_then(|s| s.set_nonblocking(true).map(|()| Server::Udp(s))),
    };
    match opened {
        Ok(Server::Tcp(listener)) => match listener.set_nonblocking(true) {
            Ok(()) => Server::Tcp(listener),
            Err(error) => Server::Failed(error.to_string()),
        },
        Ok(server) => server,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Server::Taken,
        Err(error) => Server::Failed(format!("cannot listen on {address}: {error}")),
    }
}

fn begin(protocol: Protocol, address: IpAddr, port: u16) -> Client {
    let to = SocketAddr::new(address, port);
    let any = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let begun = match protocol {
        Protocol::Tcp => begin_tcp(to).map(Client::Tcp),
        Protocol::Udp => UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            socket.send(b"?")?;
            Ok(Client::Udp(socket))
        }),
    };
    begun.unwrap_or_else(|error| Client::Failed(format!("cannot begin: {error}")))
}

fn begin_tcp(to: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// Runs `work` in an end's namespace; the sockets that it makes stay there.
fn inside<T: Send>(end: &End, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(netns) = &end.netns else {
        return Ok(work());
    };
    let netns: BorrowedFd<'_> = netns.as_fd();
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters the namespace died")))
    })
}

/// Whether a TCP connection to an address outside can be made from an end.
#[must_use]
pub fn reaches(end: &End, to: SocketAddr, patience: Duration) -> bool {
    inside(end, || TcpStream::connect_timeout(&to, patience).is_ok()).unwrap_or(false)
}
