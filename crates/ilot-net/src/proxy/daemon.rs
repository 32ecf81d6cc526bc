//! The process `ilot-proxy`: enters the namespace in which it connects, gives up its rights, moves bytes.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit};

use super::packets::Packets;
use super::streams::Streams;
use super::{Address, Bind, FIRST_FD, FIRST_LISTENER, ProxyConfig, Transport};
use crate::names::process::start_time;

/// `ilot-proxy DIRECTORY`: relays what `DIRECTORY/config.json` says, on the descriptors that it was given. Returns, in the
/// background's parent, once it listens.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    if let Ok(name) = CString::new("ilot-proxy") {
        let _ = rustix::thread::set_name(&name);
    }
    let directory = arguments.nth(1).map(PathBuf::from);
    let (Some(directory), None) = (directory, arguments.next()) else {
        eprintln!("usage: ilot-proxy DIRECTORY (with a config.json; started by ilot, one per proxy device)");
        return ExitCode::from(2);
    };
    match start(&directory) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What the process was started with.
struct Given {
    config: ProxyConfig,
    life: OwnedFd,
    root: OwnedFd,
    listeners: Vec<OwnedFd>,
}

fn start(directory: &Path) -> io::Result<ExitCode> {
    let bytes = fs::read(directory.join("config.json"))?;
    let config: ProxyConfig = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
    let take = |number: i32| {
        rustix::io::fcntl_setfd(
            // SAFETY: borrowed for one call; a number that is no descriptor is an error of it.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(number) },
            rustix::io::FdFlags::CLOEXEC,
        )?;
        // SAFETY: it is open, as the call above has seen, and whoever started this process gave it to nobody else.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(number) })
    };
    let (life, netns, root) = (take(FIRST_FD)?, take(FIRST_FD + 1)?, take(FIRST_FD + 2)?);
    let mut listeners = Vec::new();
    for number in (FIRST_LISTENER..).take(config.pairs.len()) {
        listeners.push(take(number)?);
    }
    let rest = FIRST_LISTENER + listeners.len() as i32;
    // SAFETY: nothing else was opened yet; what the caller left open beyond is not ours to keep.
    unsafe { libc::syscall(libc::SYS_close_range, rest as u32, u32::MAX, 0u32) };
    if config.bind == Bind::Host {
        rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
    }
    drop(netns);
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(ready);
            let result =
                retreat(directory, &config, &tell).and_then(|()| relay(&Given { config, life, root, listeners }, tell));
            if let Err(error) = &result {
                eprintln!("{error}");
            }
            std::process::exit(i32::from(result.is_err()))
        }
        _ => {
            drop(tell);
            let listens = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut [0u8]))? == 1;
            Ok(if listens { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Leaves the caller's session and rights behind.
fn retreat(directory: &Path, config: &ProxyConfig, _tell: &OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let begin = start_time(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let aside = directory.join("pid.new");
    fs::write(&aside, format!("{pid} {begin}\n"))?;
    fs::rename(&aside, directory.join("pid"))?;
    rustix::process::chdir("/")?;
    for (resource, most) in [(Resource::Core, 0), (Resource::Nofile, 4096)] {
        // Lowering only; a host where that is refused already has less.
        let _ = rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
    let (user, group) = config.user;
    // SAFETY: setgroups with an empty list reads nothing; the other calls take numbers. One thread, so the raw calls are the
    // whole process's.
    unsafe {
        if libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(group, group, group) != 0
            || libc::setresuid(user, user, user) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    // Whom the host calls root keeps no right but to own what is root's.
    let none = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn relay(given: &Given, tell: OwnedFd) -> io::Result<()> {
    let packets = given.config.pairs.iter().any(|(listen, _)| listen.transport() == Transport::Packets);
    for listener in &given.listeners {
        rustix::io::ioctl_fionbio(listener, true)?;
    }
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::io::write(&tell, b"!")?;
    drop(tell);
    rustix::stdio::dup2_stderr(&null)?;
    let connect = |number: usize| connect(&given.config.pairs[number].1, given);
    let mut streams = Streams::default();
    let mut datagrams = Packets::new(given.listeners.len());
    loop {
        datagrams.prepare();
        let mut fds = vec![PollFd::new(&given.life, PollFlags::IN)];
        let accepts = packets || streams.has_room();
        let listen = if accepts { PollFlags::IN } else { PollFlags::empty() };
        fds.extend(given.listeners.iter().map(|listener| PollFd::new(listener, listen)));
        let mine = fds.len();
        if packets {
            datagrams.poll_fds(&mut fds);
        } else {
            streams.poll_fds(&mut fds);
        }
        let timeout = if packets { datagrams.timeout() } else { None };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        // The machine has ended.
        if !seen[0].is_empty() {
            return Ok(());
        }
        if packets {
            datagrams.progress(&seen[mine..]);
        } else {
            streams.progress(&seen[mine..]);
        }
        for (number, _) in seen[1..mine].iter().enumerate().filter(|(_, seen)| !seen.is_empty()) {
            let listener = &given.listeners[number];
            if packets {
                datagrams.receive(number, listener, &connect);
            } else if let Ok(client) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            {
                // Whoever cannot be connected to is told by the end of the connection.
                if let Ok(server) = connect(number) {
                    streams.add(client, server);
                }
            }
        }
    }
}

/// A connection to what stands behind an address; a stream may still be under way.
fn connect(address: &Address, given: &Given) -> io::Result<OwnedFd> {
    match address {
        Address::Tcp(address) => {
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            match rustix::net::connect(&socket, address) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
                Err(error) => return Err(error.into()),
            }
            let stream = TcpStream::from(socket);
            stream.set_nodelay(true)?;
            Ok(stream.into())
        }
        Address::Udp(address) => {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
        Address::Path(path) => {
            let stream = match given.config.bind {
                Bind::Instance => UnixStream::connect(path)?,
                Bind::Host => {
                    // The machine controls every link below its root.
                    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                    let flags = OFlags::PATH | OFlags::CLOEXEC;
                    let file = rustix::fs::openat2(&given.root, path, flags, Mode::empty(), resolve)?;
                    UnixStream::connect(format!("/proc/self/fd/{}", file.as_raw_fd()))?
                }
            };
            stream.set_nonblocking(true)?;
            Ok(stream.into())
        }
        Address::Abstract(name) => {
            let name = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            let stream = UnixStream::connect_addr(&name)?;
            stream.set_nonblocking(true)?;
            Ok(stream.into())
        }
    }
}
