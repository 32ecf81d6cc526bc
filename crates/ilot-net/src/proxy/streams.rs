//! Connections: two flows of bytes each, until both have ended.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// Bytes read at once; kept only while the other side does not take them.
const CHUNK: usize = 64 * 1024;
/// Connections at once.
const MOST: usize = 1500;

/// Every connection of a relay.
#[derive(Default)]
pub struct Streams {
    open: Vec<Pair>,
}

struct Pair {
    client: OwnedFd,
    server: OwnedFd,
    /// The server's connection is not there yet.
    connecting: bool,
    /// From the client to the server, and back.
    flows: [Flow; 2],
}

/// What was read and not yet written.
#[derive(Default)]
struct Flow {
    waiting: Vec<u8>,
    written: usize,
    /// Nothing more will be read.
    ended: bool,
    /// And that was told to the other side.
    told: bool,
}

/// The connection is over.
struct Over;

impl Flow {
    fn is_empty(&self) -> bool {
        self.written == self.waiting.len()
    }

    fn write(&mut self, to: &OwnedFd) -> Result<(), Over> {
        while !self.is_empty() {
            match rustix::net::send(to, &self.waiting[self.written..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(_) => return Err(Over),
            }
        }
        // Memory is for those that wait.
        self.waiting = Vec::new();
        self.written = 0;
        if self.ended && !self.told {
            self.told = true;
            // The other side may have gone meanwhile; its own flow will say so.
            let _ = rustix::net::shutdown(to, Shutdown::Write);
        }
        Ok(())
    }

    fn read(&mut self, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> Result<(), Over> {
        // One that never pauses comes back after the others had their turn.
        for _ in 0..8 {
            if !self.is_empty() || self.ended {
                break;
            }
            match rustix::net::recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.ended = true,
                Ok((count, _)) => self.waiting = buffer[..count].to_vec(),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Over),
            }
            self.write(to)?;
        }
        Ok(())
    }
}

impl Pair {
    /// What to wait for on (client, server).
    fn wanted(&self) -> (PollFlags, PollFlags) {
        let [up, down] = &self.flows;
        let mut client = PollFlags::empty();
        let mut server = PollFlags::empty();
        client.set(PollFlags::IN, up.is_empty() && !up.ended && !self.connecting);
        client.set(PollFlags::OUT, !down.is_empty());
        server.set(PollFlags::IN, down.is_empty() && !down.ended && !self.connecting);
        server.set(PollFlags::OUT, !up.is_empty() || self.connecting);
        (client, server)
    }

    fn progress(&mut self, client: PollFlags, server: PollFlags, buffer: &mut [u8]) -> Result<(), Over> {
        if self.connecting {
            if server.is_empty() {
                return if client.intersects(PollFlags::ERR) { Err(Over) } else { Ok(()) };
            }
            match rustix::net::sockopt::socket_error(&self.server) {
                Ok(Ok(())) if server.contains(PollFlags::OUT) => self.connecting = false,
                Ok(Ok(())) => return Ok(()),
                _ => return Err(Over),
            }
        }
        let [up, down] = &mut self.flows;
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        up.write(&self.server)?;
        down.write(&self.client)?;
        if client.intersects(readable) {
            up.read(&self.client, &self.server, buffer)?;
        }
        if server.intersects(readable) {
            down.read(&self.server, &self.client, buffer)?;
        }
        if up.told && down.told { Err(Over) } else { Ok(()) }
    }
}

impl Streams {
    /// Whether one more connection may come.
    pub fn has_room(&self) -> bool {
        self.open.len() < MOST
    }

    /// One more connection.
    pub fn add(&mut self, client: OwnedFd, server: OwnedFd) {
        self.open.push(Pair { client, server, connecting: true, flows: Default::default() });
    }

    /// What is waited for, two for each connection.
    pub fn poll_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for pair in &self.open {
            let (client, server) = pair.wanted();
            fds.push(PollFd::new(&pair.client, client));
            fds.push(PollFd::new(&pair.server, server));
        }
    }

    /// Goes on with what was seen, in the order of [`Self::poll_fds`].
    pub fn progress(&mut self, seen: &[PollFlags]) {
        let mut buffer = vec![0; CHUNK];
        let mut seen = seen.chunks_exact(2);
        self.open.retain_mut(|pair| match seen.next() {
            Some([client, server]) if !client.is_empty() || !server.is_empty() => {
                pair.progress(*client, *server, &mut buffer).is_ok()
            }
            _ => true,
        });
    }
}
