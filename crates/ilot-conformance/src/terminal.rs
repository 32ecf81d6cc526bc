//! The receiving end of `--console-socket`, and of other sockets that carry a descriptor.

use crate::wait_for;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket on which one message with a descriptor comes.
pub struct Receiver {
    /// Where it listens.
    pub path: PathBuf,
    listener: UnixListener,
}

impl Receiver {
    /// Listens in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("s");
        let listener = UnixListener::bind(&path).expect("listen");
        listener.set_nonblocking(true).expect("nonblocking");
        Self { path, listener }
    }

    /// The path as text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.path.to_str().expect("UTF-8")
    }

    /// Waits for the message: its text, its descriptors.
    #[track_caller]
    pub fn receive(&self) -> (String, Vec<OwnedFd>) {
        let stream = wait_for("a connection", || self.listener.accept().ok()).0;
        stream.set_nonblocking(false).expect("blocking");
        receive_from(&stream)
    }
}

/// Receives one message.
fn receive_from(stream: &UnixStream) -> (String, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0u8; 4096];
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).expect("receive");
    let fds = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => rights.collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    (String::from_utf8_lossy(&text[..received.bytes]).into_owned(), fds)
}

/// The master of a terminal.
pub struct Master(std::fs::File, String);

impl Master {
    /// Takes a terminal.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        rustix::io::ioctl_fionbio(&fd, true).expect("nonblocking");
        Self(fd.into(), String::new())
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("type");
    }

    /// Reads until `word` has come; gives everything read so far.
    #[track_caller]
    pub fn read_until(&mut self, word: &str) -> String {
        wait_for(&format!("`{word}` on the terminal"), || {
            let mut text = [0u8; 4096];
            if let Ok(n) = self.0.read(&mut text) {
                self.1.push_str(&String::from_utf8_lossy(&text[..n]));
            }
            self.1.contains(word).then(|| self.1.clone())
        })
    }
}
