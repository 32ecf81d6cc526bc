//! One client's TCP connection, and the upstream connection of the question that it waits for.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use super::server::{Attempt, Local, Server, failure, random_id};
use super::wire;

/// How long a client may be idle, and an upstream take, for one step.
const IDLE: Duration = Duration::from_secs(10);
const UPSTREAM_TIME: Duration = Duration::from_secs(3);
/// The largest query; answers may have 65535 bytes.
const MAX_QUERY: usize = 4096;

/// A connection.
pub struct Stream {
    socket: OwnedFd,
    pub client: Ipv4Addr,
    pub deadline: Instant,
    state: State,
}

enum State {
    /// Reading a query with its length before it.
    Query(Vec<u8>),
    /// Asking an upstream.
    Upstream(Box<Upstream>),
    /// Writing an answer with its length before it; how much is written.
    Answer(Vec<u8>, usize),
}

struct Upstream {
    socket: OwnedFd,
    attempt: Attempt,
    client_id: [u8; 2],
    /// The query with its length before it, our own number in it; how much is written.
    query: Vec<u8>,
    end: usize,
    written: usize,
    answer: Vec<u8>,
}

/// How a step ended.
enum Step {
    /// Nothing more can be done now.
    Wait,
    /// Another state: go on.
    Go,
    /// The connection is over.
    Over,
}

impl Stream {
    pub fn new(socket: OwnedFd, client: Ipv4Addr) -> Self {
        Self { socket, client, deadline: Instant::now() + IDLE, state: State::Query(Vec::new()) }
    }

    pub fn poll_fd(&self) -> PollFd<'_> {
        match &self.state {
            State::Query(_) => PollFd::new(&self.socket, PollFlags::IN),
            State::Upstream(up) if up.written < up.query.len() => PollFd::new(&up.socket, PollFlags::OUT),
            State::Upstream(up) => PollFd::new(&up.socket, PollFlags::IN),
            State::Answer(..) => PollFd::new(&self.socket, PollFlags::OUT),
        }
    }

    /// Goes on as far as it can. False ends the connection.
    pub fn progress(&mut self, server: &mut Server) -> bool {
        // A client that keeps the line full comes back after the others had their turn.
        for _ in 0..16 {
            match self.step(server) {
                Step::Wait => return true,
                Step::Go => {}
                Step::Over => return false,
            }
        }
        true
    }

    /// The deadline has passed: an upstream is replaced by the next, a client given up.
    pub fn late(&mut self, server: &mut Server) -> bool {
        match &self.state {
            State::Upstream(_) => {
                self.next_upstream(server);
                self.progress(server)
            }
            State::Query(_) | State::Answer(..) => false,
        }
    }

    fn step(&mut self, server: &mut Server) -> Step {
        match &mut self.state {
            State::Query(bytes) => match read_message(&self.socket, bytes, MAX_QUERY) {
                Ok(true) => {
                    let query = bytes.split_off(2);
                    self.consider(&query, server)
                }
                Ok(false) => Step::Wait,
                Err(_) => Step::Over,
            },
            State::Upstream(up) => match up.step() {
                Ok(true) => {
                    let answer = std::mem::take(&mut up.answer);
                    self.answered(answer, server)
                }
                Ok(false) => Step::Wait,
                Err(_) => self.next_upstream(server),
            },
            State::Answer(bytes, written) => match write_some(&self.socket, bytes, written) {
                Ok(true) => {
                    self.enter(State::Query(Vec::new()), IDLE);
                    Step::Go
                }
                Ok(false) => Step::Wait,
                Err(_) => Step::Over,
            },
        }
    }

    fn enter(&mut self, state: State, time: Duration) {
        self.state = state;
        self.deadline = Instant::now() + time;
    }

    fn consider(&mut self, query: &[u8], server: &mut Server) -> Step {
        match server.local(query, self.client) {
            None => Step::Over,
            Some(Local::Answer(answer)) => {
                self.enter(State::Answer(framed(&answer), 0), IDLE);
                Step::Go
            }
            Some(Local::Forward(parsed)) => {
                let attempt = Attempt::new(server.preferred);
                self.ask(framed(query), parsed.end, [query[0], query[1]], attempt, server)
            }
        }
    }

    fn next_upstream(&mut self, server: &mut Server) -> Step {
        let State::Upstream(up) = &mut self.state else {
            return Step::Wait;
        };
        let (query, end, client_id, attempt) = (std::mem::take(&mut up.query), up.end, up.client_id, up.attempt);
        self.ask(query, end, client_id, attempt.next(), server)
    }

    fn ask(
        &mut self,
        mut query: Vec<u8>,
        end: usize,
        client_id: [u8; 2],
        mut attempt: Attempt,
        server: &Server,
    ) -> Step {
        while let Some((_, address)) = attempt.upstream(&server.config.upstreams) {
            if let (Ok(id), Ok(socket)) = (random_id(), connect(address)) {
                query[2..4].copy_from_slice(&id);
                let up = Upstream { socket, attempt, client_id, query, end, written: 0, answer: Vec::new() };
                self.enter(State::Upstream(Box::new(up)), UPSTREAM_TIME);
                return Step::Wait;
            }
            attempt = attempt.next();
        }
        self.enter(State::Answer(framed(&failure(&query[2..], client_id)), 0), IDLE);
        Step::Go
    }

    fn answered(&mut self, answer: Vec<u8>, server: &mut Server) -> Step {
        let State::Upstream(up) = &self.state else {
            return Step::Wait;
        };
        if !wire::answers(&answer[2..], &up.query[2..], up.end) {
            return self.next_upstream(server);
        }
        if let Some((index, _)) = up.attempt.upstream(&server.config.upstreams) {
            server.preferred = index;
        }
        let mut answer = answer;
        answer[2..4].copy_from_slice(&up.client_id);
        let mut query = up.query[2..].to_vec();
        query[..2].copy_from_slice(&up.client_id);
        if let Some(instead) = server.admit(&query, &answer[2..], self.client) {
            answer = framed(&instead);
        }
        self.enter(State::Answer(answer, 0), IDLE);
        Step::Go
    }
}

impl Upstream {
    /// Writes the query, then reads the answer; true once it is whole.
    fn step(&mut self) -> io::Result<bool> {
        if self.written < self.query.len() && !write_some(&self.socket, &self.query, &mut self.written)? {
            return Ok(false);
        }
        read_message(&self.socket, &mut self.answer, usize::from(u16::MAX))
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 2);
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// Reads a message and its length, never beyond its end. True once it is whole.
fn read_message(socket: &OwnedFd, bytes: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    loop {
        let wanted = match bytes.get(..2) {
            None => 2 - bytes.len(),
            Some(length) => {
                let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
                if length < wire::HEADER || length > most {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if bytes.len() >= 2 + length {
                    return Ok(true);
                }
                2 + length - bytes.len()
            }
        };
        let mut part = [0u8; 2048];
        let wanted = wanted.min(part.len());
        match rustix::io::read(socket, &mut part[..wanted]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => bytes.extend_from_slice(&part[..length]),
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes what is left. True once everything is written.
fn write_some(socket: &OwnedFd, bytes: &[u8], written: &mut usize) -> io::Result<bool> {
    while *written < bytes.len() {
        match rustix::net::send(socket.as_fd(), &bytes[*written..], SendFlags::NOSIGNAL) {
            Ok(length) => *written += length,
            // Not connected yet counts as not yet.
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
