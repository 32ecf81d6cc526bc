//! Packets: one socket towards the server for each client, for as long as it speaks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, SendFlags};

/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(60);
/// Clients at once; the one that is silent for longest gives way.
const MOST: usize = 1000;
/// The longest packet.
const LONGEST: usize = 65_535;

/// Every client of a relay.
pub struct Packets {
    /// A handle of each listening socket, to answer from.
    answers: Vec<Option<OwnedFd>>,
    clients: HashMap<(usize, SocketAddr), Client>,
    /// The clients in the order in which they are polled.
    order: Vec<(usize, SocketAddr)>,
}

struct Client {
    server: OwnedFd,
    last: Instant,
}

impl Packets {
    pub fn new(listeners: usize) -> Self {
        Self { answers: (0..listeners).map(|_| None).collect(), clients: HashMap::new(), order: Vec::new() }
    }

    /// How long to wait until a client may be forgotten.
    pub fn timeout(&self) -> Option<Timespec> {
        let oldest = self.clients.values().map(|c| c.last).min()?;
        let left = (oldest + IDLE).saturating_duration_since(Instant::now()) + Duration::from_millis(10);
        Timespec::try_from(left).ok()
    }

    /// Forgets the silent; comes before each [`Self::poll_fds`].
    pub fn prepare(&mut self) {
        let now = Instant::now();
        self.clients.retain(|_, client| now.duration_since(client.last) < IDLE);
        self.order = self.clients.keys().copied().collect();
    }

    /// What is waited for, one for each client.
    pub fn poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.extend(self.order.iter().map(|key| PollFd::new(&self.clients[key].server, PollFlags::IN)));
    }

    /// Hands answers on, in the order of [`Self::poll_fds`].
    pub fn progress(&mut self, seen: &[PollFlags]) {
        let mut buffer = vec![0; LONGEST];
        let order = std::mem::take(&mut self.order);
        for (key, _) in order.iter().zip(seen).filter(|(_, seen)| !seen.is_empty()) {
            let Some(client) = self.clients.get_mut(key) else { continue };
            let Some(Some(listener)) = self.answers.get(key.0) else { continue };
            // A refusal of the server's host is an error here: the client hears nothing, as from a host that is gone.
            while let Ok((count, _)) = rustix::net::recv(&client.server, &mut *buffer, RecvFlags::DONTWAIT) {
                client.last = Instant::now();
                let _ = rustix::net::sendto(listener, &buffer[..count], SendFlags::DONTWAIT, &key.1);
            }
        }
    }

    /// Takes what clients sent and hands it on.
    pub fn receive(&mut self, number: usize, listener: &OwnedFd, connect: &dyn Fn(usize) -> std::io::Result<OwnedFd>) {
        if self.answers[number].is_none() {
            self.answers[number] = rustix::io::fcntl_dupfd_cloexec(listener.as_fd(), 3).ok();
        }
        let mut buffer = vec![0; LONGEST];
        for _ in 0..64 {
            let Ok((count, _, Some(from))) = rustix::net::recvfrom(listener, &mut *buffer, RecvFlags::DONTWAIT) else {
                return;
            };
            let Ok(from) = SocketAddr::try_from(from) else { continue };
            let key = (number, from);
            if !self.clients.contains_key(&key) {
                let Ok(server) = connect(number) else { continue };
                self.make_room();
                self.clients.insert(key, Client { server, last: Instant::now() });
            }
            if let Some(client) = self.clients.get_mut(&key) {
                client.last = Instant::now();
                let _ = rustix::net::send(&client.server, &buffer[..count], SendFlags::DONTWAIT);
            }
        }
    }

    fn make_room(&mut self) {
        if self.clients.len() >= MOST
            && let Some(oldest) = self.clients.iter().min_by_key(|(_, c)| c.last).map(|(key, _)| *key)
        {
            self.clients.remove(&oldest);
        }
    }
}
