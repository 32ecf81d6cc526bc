//! Messages between the library, the keeper and the container's first process: one byte that
//! says which, a length, the content; descriptors ride along with the first byte.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use crate::{Error, Result};

/// What both sides of a socket must have in common: goes up with every change of the messages' form.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "/2");

/// Longest content that is accepted: a request with its files inside.
const MAX: usize = 64 << 20;
/// Most descriptors that go with one message (the kernel's own limit is 253).
pub const MAX_FDS: usize = 128;

/// Which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Here is the work (JSON).
    Request = b'R',
    /// It is done as far as agreed (JSON or empty).
    Done = b'D',
    /// Go on.
    Go = b'G',
    /// It failed: error number (little endian, 4 bytes), then the text.
    Failed = b'F',
}

/// One message received.
#[derive(Debug)]
pub struct Message {
    /// Which.
    pub tag: Tag,
    /// Content.
    pub body: Vec<u8>,
    /// Descriptors.
    pub fds: Vec<OwnedFd>,
}

/// Sends one message.
pub fn send(socket: &UnixStream, tag: Tag, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut head = [0u8; 5];
    head[0] = tag as u8;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    head[1..].copy_from_slice(&length.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let sent = loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(&head), IoSlice::new(body)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut stream = socket;
    if sent < head.len() {
        stream.write_all(&head[sent..])?;
        return stream.write_all(body);
    }
    stream.write_all(&body[sent - head.len()..])
}

/// Receives one message; `None` if the other side has closed.
pub fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut head = [0u8; 5];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            // A peer that was killed with unread data resets the connection.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => break other?.bytes,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            fds.extend(list);
        }
    }
    let mut stream = socket;
    stream.read_exact(&mut head[got..])?;
    let tag = match head[0] {
        b'R' => Tag::Request,
        b'D' => Tag::Done,
        b'G' => Tag::Go,
        b'F' => Tag::Failed,
        other => return Err(io::Error::other(format!("unknown message {other}"))),
    };
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX {
        return Err(io::Error::other("message too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(Message { tag, body, fds }))
}

/// Reports an error to the other side; a closed other side is no concern.
pub fn send_error(socket: &UnixStream, error: &Error) {
    let mut body = error.errno().unwrap_or(0).to_le_bytes().to_vec();
    // An error that was already reported once carries the container's name itself.
    let text = match error {
        Error::Container { message, .. } => message.clone(),
        // Over there only the words are known.
        Error::Unsupported { cure, .. } => format!("{error}; {cure}"),
        other => other.to_string(),
    };
    body.extend_from_slice(text.as_bytes());
    let _ = send(socket, Tag::Failed, &body, &[]);
}

/// Waits for `wanted`; an error of the other side becomes ours, its silence `ended`.
pub fn expect(socket: &UnixStream, wanted: Tag, id: &str, ended: &str) -> Result<Message> {
    let lost = |why: String| Error::Container { id: id.to_owned(), message: why, errno: 0 };
    match receive(socket) {
        Ok(Some(message)) if message.tag == wanted => Ok(message),
        Ok(Some(Message { tag: Tag::Failed, body, .. })) => Err(decode_error(id, &body)),
        Ok(Some(other)) => Err(lost(format!("unexpected message {:?}", other.tag))),
        Ok(None) => Err(lost(ended.to_owned())),
        Err(error) => Err(lost(format!("{ended}: {error}"))),
    }
}

/// The error in a [`Tag::Failed`] message.
pub fn decode_error(id: &str, body: &[u8]) -> Error {
    let (errno, text) = body.split_first_chunk::<4>().unwrap_or((&[0; 4], body));
    Error::Container {
        id: id.to_owned(),
        message: String::from_utf8_lossy(text).into_owned(),
        errno: i32::from_le_bytes(*errno),
    }
}
