//! Real connections from and to machines: sockets opened in their network namespaces.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long a dropped packet is waited for. A passed one takes well under a millisecond.
const PATIENCE: Duration = Duration::from_millis(400);
const POLL: Duration = Duration::from_millis(50);

/// Runs `work` in the network namespace of a process.
///
/// # Panics
/// When there is no such process.
pub fn in_netns_of<T: Send>(pid: i64, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("open the machine's namespace");
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                use std::os::fd::AsFd;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the machine's namespace");
                work()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// TCP and UDP servers in a namespace, which say who they are.
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Listens on the ports, both protocols, in the namespace of a process; `None` is this thread's own.
    ///
    /// # Panics
    /// When a port is taken.
    #[must_use]
    pub fn start(pid: Option<i64>, ports: &[u16]) -> Self {
        let open = || {
            ports
                .iter()
                .map(|port| {
                    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port));
                    let tcp = TcpListener::bind(any).expect("bind TCP");
                    tcp.set_nonblocking(true).expect("nonblocking");
                    let udp = UdpSocket::bind(any).expect("bind UDP");
                    udp.set_read_timeout(Some(POLL)).expect("a timeout");
                    (tcp, udp)
                })
                .collect::<Vec<_>>()
        };
        let sockets = match pid {
            Some(pid) => in_netns_of(pid, open),
            None => open(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (tcp, udp) in sockets {
            let ended = stop.clone();
            threads.push(std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(b"hello");
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            }));
            let ended = stop.clone();
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !ended.load(Ordering::Relaxed) {
                    if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(b"hello", peer);
                    }
                }
            }));
        }
        Self { stop, threads }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Whether a TCP connection from this thread's namespace is made and answered.
#[must_use]
pub fn tcp_answers(to: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, PATIENCE) else { return false };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).is_ok() && &buffer == b"hello"
}

/// Whether a UDP packet from this thread's namespace is answered.
#[must_use]
pub fn udp_answers(to: SocketAddr) -> bool {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { return false };
    let _ = socket.set_read_timeout(Some(PATIENCE));
    if socket.send_to(b"?", to).is_err() {
        return false;
    }
    let mut buffer = [0; 16];
    socket.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"hello")
}
