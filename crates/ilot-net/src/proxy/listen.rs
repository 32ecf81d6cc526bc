//! The sockets that are listened on, opened where they belong.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};

use super::{Address, Bind, Inside, ProxyConfig};
use crate::error::{Error, Result};

/// Every listening socket of a relay, in the order of its pairs.
pub fn all(config: &ProxyConfig, inside: &Inside) -> Result<Vec<OwnedFd>> {
    let one = |address: &Address| {
        let socket = match config.bind {
            Bind::Host => on_host(address, config.socket),
            Bind::Instance => in_machine(address, config.socket, inside),
        };
        socket.map_err(|source| Error::Kernel { operation: "listen on", name: address.to_string(), source })
    };
    config.pairs.iter().map(|(listen, _)| one(listen)).collect()
}

fn on_host(address: &Address, owner: (u32, u32, u32)) -> io::Result<OwnedFd> {
    let Address::Path(path) = address else { return internet(address) };
    // What a dead relay left; a living one answers.
    if is_socket(path) && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    let socket = UnixListener::bind(path)?;
    let (user, group, mode) = owner;
    std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    Ok(socket.into())
}

fn internet(address: &Address) -> io::Result<OwnedFd> {
    Ok(match address {
        Address::Tcp(address) => tcp(*address)?,
        Address::Udp(address) => UdpSocket::bind(address)?.into(),
        Address::Abstract(name) => {
            UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?.into()
        }
        Address::Path(path) => UnixListener::bind(path)?.into(),
    })
}

fn tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    // The standard library sets SO_REUSEADDR: a relay that is restarted need not wait for old connections.
    Ok(TcpListener::bind(address)?.into())
}

/// Whether a socket stands there.
fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

/// Removes the socket file of a relay that was ended, if it is still one.
pub fn remove_socket(path: &Path) {
    if is_socket(path) && UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// Opens a socket in the machine's network namespace, a socket file below its root. Only the short-lived thread enters
/// it, as the machine's root user where files are made: the host's own is not known on its file systems.
fn in_machine(address: &Address, owner: (u32, u32, u32), inside: &Inside) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let open = || {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(inside.netns.as_fd(), Some(kind))?;
            match address {
                Address::Path(path) => below_root(inside.root.as_fd(), path, owner, inside.root_uid),
                other => internet(other),
            }
        };
        let thread = std::thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, open)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters the namespace died")))
    })
}

/// This thread's user towards file systems.
fn become_file_user(id: u32) {
    // SAFETY: both calls take a number and concern this thread alone; they cannot fail with an error that is told.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
}

fn below_root(root: BorrowedFd<'_>, path: &Path, owner: (u32, u32, u32), root_uid: u32) -> io::Result<OwnedFd> {
    become_file_user(root_uid);
    let (parent, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name());
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?;
    // Only a socket gives way.
    if let Ok(stat) = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Socket
    {
        rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
    }
    // bind(2) makes the last part and follows no link there.
    let socket = UnixListener::bind(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))?;
    // To give a file away is the host's root's right.
    become_file_user(0);
    let (user, group, mode) = owner;
    let made = rustix::fs::openat(&dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&made)?.st_mode) != FileType::Socket {
        return Err(io::Error::other("it was replaced while it was made"));
    }
    let this = format!("/proc/self/fd/{}", made.as_raw_fd());
    rustix::fs::chmod(&this, Mode::from_raw_mode(mode))?;
    if (user, group) != (rustix::fs::fstat(&made)?.st_uid, rustix::fs::fstat(&made)?.st_gid) {
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::chownat(&made, "", user, group, AtFlags::EMPTY_PATH)?;
    }
    Ok(socket.into())
}
