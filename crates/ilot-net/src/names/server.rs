//! The loop of `ilot-names`: one thread, one `poll`, tables of bounded size.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::answer::{Decision, decide};
use super::config::{NamesConfig, Others};
use super::opener::Opener;
use super::refused::Refused;
use super::stream::Stream;
use super::wire::{self, Bad, Code, Query};

/// How many questions may be under way upstream, and how many of them for one machine.
const MAX_PENDING: usize = 256;
const MAX_PENDING_EACH: usize = 64;
/// How many TCP connections may be open, and how many of them from one machine.
const MAX_STREAMS: usize = 32;
const MAX_STREAMS_EACH: usize = 8;
/// How long one upstream has to answer.
const UPSTREAM_TIME: Duration = Duration::from_millis(1500);
/// How often each upstream is asked.
const ROUNDS: usize = 2;
/// The largest query taken over UDP; real ones have less than a hundred bytes.
const MAX_QUERY: usize = 4096;

/// A name service with its sockets bound.
pub struct Server {
    pub(super) config: NamesConfig,
    pub(super) digest: String,
    /// One per version of IP.
    listeners: Vec<Listener>,
    pending: Vec<Pending>,
    streams: Vec<Stream>,
    /// The upstream that answered last.
    pub(super) preferred: usize,
    buffer: Vec<u8>,
    /// Where refusals are written down.
    pub refused: Refused,
    /// Who opens what is answered, where names are what egress lists have.
    pub opener: Option<Opener>,
}

/// The sockets of an address of the gateway's.
struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Listener {
    fn bind(address: IpAddr) -> io::Result<Self> {
        let udp = UdpSocket::bind((address, 53))?;
        udp.set_nonblocking(true)?;
        let tcp = TcpListener::bind((address, 53))?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp, tcp })
    }
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Client {
    /// Which of [`Server::listeners`] heard it.
    listener: usize,
    /// Where to answer.
    address: SocketAddr,
    /// By what the configuration knows it.
    ip: Ipv4Addr,
}

/// A question that an upstream was asked over UDP, from a socket (so from a random port) of its own.
struct Pending {
    socket: OwnedFd,
    client: Client,
    client_id: [u8; 2],
    /// With our own number.
    query: Vec<u8>,
    end: usize,
    attempt: Attempt,
    deadline: Instant,
}

/// Which upstream is being asked, and how many were before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attempt {
    first: usize,
    number: usize,
}

impl Attempt {
    pub fn new(preferred: usize) -> Self {
        Self { first: preferred, number: 0 }
    }

    /// The upstream to ask now; `None` when all were asked often enough.
    pub fn upstream(self, all: &[SocketAddr]) -> Option<(usize, SocketAddr)> {
        if all.is_empty() || self.number >= all.len() * ROUNDS {
            return None;
        }
        let index = (self.first + self.number) % all.len();
        Some((index, all[index]))
    }

    pub fn next(self) -> Self {
        Self { number: self.number + 1, ..self }
    }

    /// Whether some upstream was not asked even once.
    pub fn untried(self, all: &[SocketAddr]) -> bool {
        self.number + 1 < all.len()
    }
}

impl Server {
    /// Binds to port 53 of the configuration's addresses.
    pub fn bind(config: NamesConfig) -> io::Result<Self> {
        let addresses = [Some(IpAddr::V4(config.listen)), config.listen6.map(IpAddr::V6)];
        let bind = |address| {
            let failed =
                |error: io::Error| io::Error::new(error.kind(), format!("listen on {address} port 53: {error}"));
            Listener::bind(address).map_err(failed)
        };
        let listeners = addresses.into_iter().flatten().map(bind).collect::<io::Result<Vec<_>>>()?;
        let digest = config.digest();
        let (pending, streams) = (Vec::new(), Vec::new());
        Ok(Self {
            config,
            digest,
            listeners,
            pending,
            streams,
            preferred: 0,
            buffer: vec![0; 65_535],
            refused: Refused::default(),
            opener: None,
        })
    }

    /// Answers until `signal` (a signalfd or the like) is readable.
    pub fn run(&mut self, signal: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let timeout = self.timeout();
            let (signalled, listeners, pending, streams) = {
                let mut fds = vec![PollFd::from_borrowed_fd(signal, PollFlags::IN)];
                for listener in &self.listeners {
                    fds.push(PollFd::new(&listener.udp, PollFlags::IN));
                    fds.push(PollFd::new(&listener.tcp, PollFlags::IN));
                }
                fds.extend(self.pending.iter().map(|p| PollFd::new(&p.socket, PollFlags::IN)));
                fds.extend(self.streams.iter().map(Stream::poll_fd));
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                }
                let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
                let (listeners, rest) = ready[1..].split_at(2 * self.listeners.len());
                let (pending, streams) = rest.split_at(self.pending.len());
                (ready[0], listeners.to_vec(), pending.to_vec(), streams.to_vec())
            };
            if signalled {
                return Ok(());
            }
            self.upstream_answers(&pending);
            self.progress_streams(&streams);
            for (number, ready) in listeners.chunks_exact(2).enumerate() {
                if ready[0] {
                    self.client_queries(number);
                }
                if ready[1] {
                    self.accept(number);
                }
            }
        }
    }

    /// Takes a new configuration; its addresses must be the old ones.
    pub fn reload(&mut self, config: NamesConfig) {
        if let Some(opener) = &mut self.opener {
            opener.reload();
        }
        self.digest = config.digest();
        self.config = config;
        self.preferred = 0;
    }

    fn timeout(&self) -> Option<Timespec> {
        let deadlines = self.pending.iter().map(|p| p.deadline).chain(self.streams.iter().map(|s| s.deadline));
        let left = deadlines.min()?.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed when poll returns.
        Timespec::try_from(left + Duration::from_millis(1)).ok()
    }

    fn client_queries(&mut self, listener: usize) {
        // A bound per turn: a flood must not keep the answers of others waiting.
        for _ in 0..64 {
            let mut bytes = [0u8; MAX_QUERY];
            let Ok((length, address)) = self.listeners[listener].udp.recv_from(&mut bytes) else {
                return;
            };
            let Some(ip) = self.config.client(address.ip()) else {
                continue;
            };
            let client = Client { listener, address, ip };
            if let Some(answer) = self.consider(&bytes[..length], client) {
                self.tell(client, &answer);
            }
        }
    }

    fn tell(&self, client: Client, answer: &[u8]) {
        let _ = self.listeners[client.listener].udp.send_to(answer, client.address);
    }

    /// The answer to a query over UDP, unless it has to be asked for first.
    fn consider(&mut self, bytes: &[u8], client: Client) -> Option<Vec<u8>> {
        match self.local(bytes, client.ip)? {
            Local::Answer(answer) => Some(answer),
            Local::Forward(query) => self.forward(bytes, &query, client),
        }
    }

    /// What can be said at once; `None` is silence.
    pub(super) fn local(&mut self, bytes: &[u8], client: Ipv4Addr) -> Option<Local> {
        let query = match wire::parse(bytes) {
            Ok(query) => query,
            Err(Bad::Ignore) => return None,
            Err(Bad::Answer(code)) => return Some(Local::Answer(wire::refuse(bytes, code))),
        };
        Some(match decide(&self.config, &self.digest, &query, client) {
            Decision::Answer(code, records) => Local::Answer(wire::reply(bytes, &query, code, &records)),
            Decision::Forward => Local::Forward(query),
            Decision::Forbidden => {
                self.refused.write(client, &query.name, query.kind);
                Local::Answer(wire::reply(bytes, &query, Code::Refused, &[]))
            }
        })
    }

    /// Opens the addresses that an upstream's answer gives to a client, where it has a list of names. What is to be said
    /// instead, if that cannot be; `query` and `answer` are whole messages.
    pub(super) fn admit(&mut self, query: &[u8], answer: &[u8], client: Ipv4Addr) -> Option<Vec<u8>> {
        let others = self.config.others_of(client);
        if *others == Others::All {
            return None;
        }
        let Ok(asked) = wire::parse(query) else {
            return Some(wire::refuse(query, Code::ServFail));
        };
        // The list may have changed since the question.
        if !others.allow(&asked.name) {
            return Some(wire::reply(query, &asked, Code::Refused, &[]));
        }
        if !matches!(asked.kind, wire::kind::A | wire::kind::AAAA) {
            return None;
        }
        let found = wire::addresses(answer, &asked);
        let opened = found.is_empty() || self.opener.as_mut().is_some_and(|o| o.open(client, &asked.name, &found));
        if opened { None } else { Some(wire::reply(query, &asked, Code::ServFail, &[])) }
    }

    fn forward(&mut self, bytes: &[u8], query: &Query, client: Client) -> Option<Vec<u8>> {
        let repeated = |p: &Pending| p.client == client && p.client_id == bytes[..2];
        if self.pending.iter().any(repeated) {
            return None;
        }
        let own = self.pending.iter().filter(|p| p.client.ip == client.ip).count();
        if self.pending.len() >= MAX_PENDING || own >= MAX_PENDING_EACH {
            return Some(wire::reply(bytes, query, Code::ServFail, &[]));
        }
        let question = (bytes.to_vec(), query.end, [bytes[0], bytes[1]]);
        match self.ask(question, client, Attempt::new(self.preferred)) {
            Ok(pending) => {
                self.pending.push(pending);
                None
            }
            Err(_) => Some(wire::reply(bytes, query, Code::ServFail, &[])),
        }
    }

    /// Sends the question to the first upstream from `attempt` on that takes it.
    fn ask(
        &self,
        (mut query, end, client_id): (Vec<u8>, usize, [u8; 2]),
        client: Client,
        mut attempt: Attempt,
    ) -> io::Result<Pending> {
        while let Some((_, upstream)) = attempt.upstream(&self.config.upstreams) {
            query[..2].copy_from_slice(&random_id()?);
            match send_to(upstream, &query) {
                Ok(socket) => {
                    let deadline = Instant::now() + UPSTREAM_TIME;
                    return Ok(Pending { socket, client, client_id, query, end, attempt, deadline });
                }
                Err(_) => attempt = attempt.next(),
            }
        }
        Err(io::Error::other("no upstream can be reached"))
    }

    fn upstream_answers(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.pending);
        let mut keep = Vec::with_capacity(all.len());
        for (number, pending) in all.into_iter().enumerate() {
            let heard = ready.get(number).copied().unwrap_or(false);
            match self.turn(&pending, heard, now) {
                Turn::Wait => keep.push(pending),
                Turn::Done => {}
                Turn::Next => {
                    let Pending { query, end, client_id, client, attempt, .. } = pending;
                    let failed = failure(&query, client_id);
                    match self.ask((query, end, client_id), client, attempt.next()) {
                        Ok(again) => keep.push(again),
                        Err(_) => self.tell(client, &failed),
                    }
                }
            }
        }
        self.pending = keep;
    }

    fn turn(&mut self, pending: &Pending, heard: bool, now: Instant) -> Turn {
        if !heard {
            return if pending.deadline <= now { Turn::Next } else { Turn::Wait };
        }
        let received = rustix::net::recv(&pending.socket, &mut self.buffer[..], RecvFlags::DONTWAIT);
        let length = match received {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Turn::Wait,
            // Refused or unreachable: the next one, at once.
            Err(_) => return Turn::Next,
        };
        if !wire::answers(&self.buffer[..length], &pending.query, pending.end) {
            return Turn::Wait;
        }
        let failed = matches!(wire::code_of(&self.buffer), 2 | 4 | 5);
        if failed && pending.attempt.untried(&self.config.upstreams) {
            return Turn::Next;
        }
        if let Some((index, _)) = pending.attempt.upstream(&self.config.upstreams) {
            self.preferred = index;
        }
        self.buffer[..2].copy_from_slice(&pending.client_id);
        let mut query = pending.query.clone();
        query[..2].copy_from_slice(&pending.client_id);
        let answer = self.buffer[..length].to_vec();
        let instead = self.admit(&query, &answer, pending.client.ip);
        self.tell(pending.client, &instead.unwrap_or(answer));
        Turn::Done
    }

    fn accept(&mut self, listener: usize) {
        while let Ok((socket, address)) = self.listeners[listener].tcp.accept() {
            let Some(client) = self.config.client(address.ip()) else { continue };
            let own = self.streams.iter().filter(|s| s.client == client).count();
            let room = self.streams.len() < MAX_STREAMS && own < MAX_STREAMS_EACH;
            if room && socket.set_nonblocking(true).is_ok() {
                self.streams.push(Stream::new(socket.into(), client));
            }
        }
    }

    fn progress_streams(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut streams = std::mem::take(&mut self.streams);
        let mut number = 0;
        streams.retain_mut(|stream| {
            let heard = ready.get(number).copied().unwrap_or(false);
            number += 1;
            if heard { stream.progress(self) } else { stream.deadline > now || stream.late(self) }
        });
        self.streams = streams;
    }
}

/// What can be said about a query at once.
pub(super) enum Local {
    Answer(Vec<u8>),
    Forward(Query),
}

enum Turn {
    Wait,
    Next,
    Done,
}

/// A random number for a question, so that nobody off the path can forge its answer.
pub(super) fn random_id() -> io::Result<[u8; 2]> {
    let mut id = [0; 2];
    rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()))?;
    Ok(id)
}

/// A socket for one upstream alone: the kernel chooses its port and lets nobody else's datagrams in.
fn send_to(upstream: SocketAddr, query: &[u8]) -> io::Result<OwnedFd> {
    let family = if upstream.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &upstream)?;
    rustix::net::send(socket.as_fd(), query, SendFlags::NOSIGNAL)?;
    Ok(socket)
}

/// `SERVFAIL` for a question that carries our number.
pub(super) fn failure(query: &[u8], client_id: [u8; 2]) -> Vec<u8> {
    let mut query = query.to_vec();
    query[..2].copy_from_slice(&client_id);
    match wire::parse(&query) {
        Ok(parsed) => wire::reply(&query, &parsed, Code::ServFail, &[]),
        Err(_) => wire::refuse(&query, Code::ServFail),
    }
}
