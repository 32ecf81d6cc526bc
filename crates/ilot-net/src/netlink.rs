//! A synchronous netlink socket and just enough of its encoding.
//!
//! Written by hand, because only a dozen attributes are needed: a dump of a thousand interfaces is read without building
//! each one's hundred attributes, and an attribute that a newer kernel adds can never make a dump unreadable.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `NLMSG_HDRLEN`.
const HEADER: usize = 16;
/// What one answer of the kernel fits in: dumps come in pieces of 32 KiB at most.
const BUFFER: usize = 64 * 1024;

/// Sets the nesting bit of an attribute's type.
pub const NESTED: u16 = libc::NLA_F_NESTED as u16;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// A request under construction.
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a type, with flags besides `NLM_F_REQUEST`, and its fixed header.
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags as u16 | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    /// Appends bytes that are no attribute (the fixed header within a nest).
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a text with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends a number in the host's byte order.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind, &[]);
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// A netlink socket in the network namespace of the thread that opened it, wherever it is used later.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket to rtnetlink.
    pub fn route() -> io::Result<Self> {
        // NETLINK_ROUTE is 0, which is the family's default.
        Self::open(None)
    }

    /// Opens a socket to nfnetlink.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { fd, sequence: 0, buffer: Vec::new() })
    }

    /// Sends a change and waits for the kernel's verdict.
    pub fn change(&mut self, message: Message) -> io::Result<()> {
        self.send(message, ACK)?;
        self.receive(|_| {})
    }

    /// Asks for one object; `None` if the kernel knows none.
    pub fn get<T>(&mut self, message: Message, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        self.send(message, ACK)?;
        let mut found = None;
        match self.receive(|payload| found = parse(payload)) {
            Ok(()) => Ok(found),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for every object; what `parse` answers `None` to is left out.
    pub fn dump<T>(&mut self, message: Message, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        self.send(message, DUMP)?;
        let mut found = Vec::new();
        self.receive(|payload| found.extend(parse(payload)))?;
        Ok(found)
    }

    /// Sends the changes as one nfnetlink transaction of a subsystem: all of them happen, or none.
    pub fn transaction(&mut self, subsystem: u8, changes: Vec<Message>) -> io::Result<()> {
        let header = [0, 0, 0, subsystem];
        let first = self.sequence + 1;
        let last = changes.len();
        let mut bytes = self.finish(Message::new(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &header), 0);
        for (number, change) in (1..).zip(changes) {
            bytes.extend(self.finish(change, if number == last { ACK } else { 0 }));
        }
        let wanted = self.sequence;
        bytes.extend(self.finish(Message::new(libc::NFNL_MSG_BATCH_END as u16, 0, &header), 0));
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &bytes, SendFlags::empty()))?;
        self.fill_buffer();
        loop {
            let (length, _) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC))?;
            let mut rest = &self.buffer[..length.min(self.buffer.len())];
            while let Some((kind, sequence, payload, next)) = split_message(rest) {
                rest = next;
                if i32::from(kind) != libc::NLMSG_ERROR || sequence < first {
                    continue;
                }
                status(payload)?;
                if sequence == wanted {
                    return Ok(());
                }
            }
        }
    }

    /// Joins a multicast group; from now on [`Socket::listen`] hears it.
    pub fn join(&self, group: u32) -> io::Result<()> {
        // Without a number of its own, a socket is taken for the kernel's and hears nothing.
        rustix::net::bind(&self.fd, &rustix::net::netlink::SocketAddrNetlink::new(0, 0))?;
        let (level, option) = (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP);
        // SAFETY: the option takes an int, which lives until the call returns.
        let code = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&self.fd),
                level,
                option,
                (&raw const group).cast(),
                size_of::<u32>() as u32,
            )
        };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The descriptor, to wait for.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.fd)
    }

    /// Reads what came to the groups that were joined: each message's type and payload. What did not fit the queue is lost
    /// without an error.
    pub fn listen(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.fill_buffer();
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()));
        let length = match received {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::NOBUFS) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &self.buffer[..length];
        while let Some((kind, _, payload, next)) = split_message(rest) {
            rest = next;
            each(kind, payload);
        }
        Ok(())
    }

    /// Closes the socket without waiting for it.
    ///
    /// The kernel frees what a transaction of nftables removed after a grace period, and whoever closes a socket of
    /// nfnetlink meanwhile, or ends with one open, waits for that: ten milliseconds and more, as long as the rest of a
    /// container's end. So it is sent to a pair of sockets that hold each other, which nobody has any more: those are
    /// collected by the kernel by itself (since Linux 6.10; before, the wait is ours all the same).
    pub fn let_go(self) {
        // What cannot be sent is closed here, and waited for.
        let _ = send_to_nobody(&self.fd);
    }

    /// The message's bytes with its length, flags and a number of its own.
    fn finish(&mut self, message: Message, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut bytes = message.bytes;
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        let bytes = self.finish(message, flags);
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &bytes, SendFlags::empty()))?;
        Ok(())
    }

    fn fill_buffer(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER];
        }
    }

    /// Reads answers until the acknowledgement, the end of the dump or an error.
    fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.fill_buffer();
        loop {
            let (length, full) =
                rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC))?;
            if full > length {
                return Err(io::Error::other("a netlink answer larger than the buffer"));
            }
            let mut rest = &self.buffer[..length];
            while let Some((kind, sequence, payload, next)) = split_message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return status(payload),
                    _ => each(payload),
                }
            }
        }
    }
}

/// Puts a descriptor where only the kernel's own collector of sockets finds it (unix(7), `SCM_RIGHTS`).
fn send_to_nobody(fd: &OwnedFd) -> rustix::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg, socketpair};
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let (fd, other_end) = (std::os::fd::AsFd::as_fd(fd), std::os::fd::AsFd::as_fd(&other));
    let held = [fd, other_end];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&held));
    sendmsg(&one, &[io::IoSlice::new(b"x")], &mut control, SendFlags::empty()).map(drop)
}

fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let payload = bytes.get(HEADER..length)?;
    let next = bytes.get(align(length)..).unwrap_or(&[]);
    Some((kind, sequence, payload, next))
}

fn status(payload: &[u8]) -> io::Result<()> {
    match number_of(payload.get(0..4).unwrap_or(&[])) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error((code as i32).wrapping_neg())),
        None => Err(io::Error::other("a netlink error without a number")),
    }
}

const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// The attributes behind a fixed header: their types without the nesting and byte order bits, and their values.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A number in the host's byte order.
pub fn number_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A text up to its closing zero.
pub fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nests_and_pads() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.nest(18 | NESTED, |m| {
            m.text(1, "veth");
        });
        let found: Vec<_> = attributes(&message.bytes[32..]).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 18);
        let inner: Vec<_> = attributes(found[0].1).collect();
        assert_eq!(inner, vec![(1, &b"veth\0"[..])]);
        assert_eq!(message.bytes.len() % 4, 0);
    }

    #[test]
    fn broken_attributes_end_the_walk() {
        assert_eq!(attributes(&[255, 255, 1, 0]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1]).count(), 0);
    }
}
