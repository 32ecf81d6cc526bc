//! What lies beyond the host's uplink: another network namespace with servers in it.
//!
//! Addresses are from the documentation ranges (RFC 5737, RFC 3849), names end in `.example` (RFC 2606).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sh;

/// The outside's address.
pub const OUTSIDE: &str = "198.51.100.2";
/// The host's address on the uplink: what the outside must see of machines.
pub const UPLINK: &str = "198.51.100.1";
/// Both over IPv6.
pub const OUTSIDE6: &str = "2001:db8::2";
/// See [`OUTSIDE6`].
pub const UPLINK6: &str = "2001:db8::1";
/// A name that the outside's name server knows as [`OUTSIDE`].
pub const OUTSIDE_NAME: &str = "www.outside.example";

const TCP_PORT: u16 = 80;
const UDP_PORT: u16 = 7;
const POLL: Duration = Duration::from_millis(50);

/// The namespace beyond the uplink, with a web server on port 80, an echo on UDP port 7, and a name server.
pub struct Outside {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Mutex<BTreeSet<String>>>,
    /// The thread that holds the namespace, for `ip netns`-like tools.
    pub tid: u32,
}

impl Outside {
    pub(crate) fn new(dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let (tid_sender, tid_receiver) = mpsc::channel();
        let (go_sender, go_receiver) = mpsc::channel::<()>();
        let (up_sender, up_receiver) = mpsc::channel::<()>();
        let (thread_stop, thread_seen) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            // SAFETY: a network namespace is this thread's alone; nothing shared is touched.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a network namespace");
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            tid_sender.send(u32::try_from(tid).expect("a thread id")).expect("tell the thread id");
            if go_receiver.recv().is_err() {
                return;
            }
            sh(&format!(
                "ip link set lo up; ip addr add {OUTSIDE}/24 dev out0; ip link set out0 up; \
                 ip addr add {OUTSIDE6}/64 dev out0 nodad"
            ));
            serve(&thread_stop, &thread_seen, &up_sender);
        });
        let tid = tid_receiver.recv().expect("the outside's thread");
        sh(&format!(
            "ip link add up0 type veth peer name out0 netns {tid}; ip addr add {UPLINK}/24 dev up0; ip link set up0 up; \
             ip addr add {UPLINK6}/64 dev up0 nodad"
        ));
        go_sender.send(()).expect("start the outside");
        up_receiver.recv().expect("the outside's servers");
        sh(&format!("ip route add default via {OUTSIDE}; ip -6 route add default via {OUTSIDE6}"));
        let resolv = dir.join("resolv.conf");
        std::fs::write(&resolv, format!("nameserver {OUTSIDE}\n")).expect("write resolv.conf");
        rustix::mount::mount_bind(&resolv, "/etc/resolv.conf").expect("bind resolv.conf");
        Self { stop, thread: Some(thread), seen, tid }
    }

    /// The addresses from which the outside's web server was asked.
    ///
    /// # Panics
    /// When a server thread panicked.
    #[must_use]
    pub fn seen(&self) -> BTreeSet<String> {
        self.seen.lock().expect("not poisoned").clone()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stop: &AtomicBool, seen: &Mutex<BTreeSet<String>>, up: &mpsc::Sender<()>) {
    let web = TcpListener::bind(("0.0.0.0", TCP_PORT)).expect("bind the web server");
    web.set_nonblocking(true).expect("nonblocking");
    let echo = UdpSocket::bind(("0.0.0.0", UDP_PORT)).expect("bind the echo server");
    let names = UdpSocket::bind(("0.0.0.0", 53)).expect("bind the name server");
    // The threads inherit this thread's namespace; they end with the scope.
    std::thread::scope(|scope| {
        scope.spawn(|| until(stop, &echo, |packet| Some(packet.to_vec())));
        scope.spawn(|| until(stop, &names, answer));
        up.send(()).expect("tell that servers are up");
        while !stop.load(Ordering::Relaxed) {
            match web.accept() {
                Ok((mut stream, peer)) => {
                    seen.lock().expect("not poisoned").insert(peer.ip().to_string());
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request);
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\noutside\n");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

fn until(stop: &AtomicBool, socket: &UdpSocket, mut reply: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    socket.set_read_timeout(Some(POLL)).expect("a timeout");
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer)
            && let Some(reply) = reply(&buffer[..length])
        {
            let _ = socket.send_to(&reply, peer);
        }
    }
}

/// A name server that knows one name (RFC 1035): an address for it, NXDOMAIN for the rest.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    if query.len() < 17 || query[2] & 0x80 != 0 {
        return None;
    }
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let question = query.get(12..at + 4)?;
    let known = labels.join(".") == OUTSIDE_NAME;
    let answers = u8::from(known && kind == 1);
    let mut reply = Vec::from(&query[..2]);
    reply.extend([0x81, if known { 0x80 } else { 0x83 }, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(question);
    if answers == 1 {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        let ip: std::net::Ipv4Addr = OUTSIDE.parse().ok()?;
        reply.extend(ip.octets());
    }
    Some(reply)
}
