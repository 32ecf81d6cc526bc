//! The name service: real queries from machines, real upstreams in the test's own namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{LONG, Ns, OUTSIDE, World};
use ilot_net::names::{self, NamesConfig};
use ipnet::Ipv4Net;

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

fn use_built_program() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_ilot-names"));
        // SAFETY: every test calls this first; nothing reads the environment before.
        unsafe { std::env::set_var("ILOT_LIBEXEC", program.parent().unwrap()) };
    });
}

/// Stops the services of a world even when a test fails.
struct Services<'a>(&'a World);

impl Drop for Services<'_> {
    fn drop(&mut self) {
        for service in names::running(self.0.run_dir.path()).unwrap_or_default() {
            let _ = names::stop(self.0.run_dir.path(), &service.domain);
        }
    }
}

fn config(world: &World, domain: &str, upstreams: &[SocketAddr]) -> NamesConfig {
    let found = world.rules.domains.iter().find(|d| d.name == domain).unwrap();
    let mut config = NamesConfig::new(domain, Ipv4Net::new(found.gateway, 24).unwrap());
    config.hosts = found.ports.iter().map(|p| (p.machine.clone(), p.ip)).collect();
    config.upstreams = upstreams.to_vec();
    config
}

fn ensure(world: &World, config: &NamesConfig) -> bool {
    world.host.run(|| names::ensure(world.run_dir.path(), config)).unwrap()
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

/// An answer: its code, whether it was cut short, how many records it has, and its last four bytes.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    code: u8,
    truncated: bool,
    records: u16,
    last: [u8; 4],
    length: usize,
}

fn read(bytes: &[u8], asked: &[u8]) -> Answer {
    assert_eq!(bytes[..2], asked[..2], "our number");
    assert_eq!(bytes[2] & 0x80, 0x80, "an answer");
    Answer {
        code: bytes[3] & 15,
        truncated: bytes[2] & 2 != 0,
        records: u16::from_be_bytes([bytes[6], bytes[7]]),
        last: bytes[bytes.len() - 4..].try_into().unwrap(),
        length: bytes.len(),
    }
}

fn ask_udp(ns: &Ns, server: Ipv4Addr, name: &str, kind: u16) -> Answer {
    let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(LONG * 2)).unwrap();
    let asked = query(name, kind);
    socket.send_to(&asked, (server, 53)).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{name}: {e}"));
    read(&buffer[..length], &asked)
}

fn ask_tcp(stream: &mut TcpStream, name: &str, kind: u16) -> Answer {
    let asked = query(name, kind);
    stream.write_all(&(asked.len() as u16).to_be_bytes()).unwrap();
    stream.write_all(&asked).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    read(&answer, &asked)
}

fn connect(ns: &Ns, server: Ipv4Addr) -> TcpStream {
    let stream = ns.run(|| TcpStream::connect_timeout(&(server, 53).into(), LONG)).unwrap();
    stream.set_read_timeout(Some(LONG * 2)).unwrap();
    stream
}

/// What an upstream says: `web.example` is 198.51.100.7, `big.example` is cut short over UDP, everything else is unknown.
fn upstream_answer(asked: &[u8], tcp: bool) -> Vec<u8> {
    let mut answer = asked.to_vec();
    answer[2] |= 0x80;
    answer[3] |= 0x80;
    let has = |name: &[u8]| asked.windows(name.len()).any(|w| w == name);
    let record = |last: u8| [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &[198, 51, 100, last]].concat();
    if has(b"\x03web\x07example") {
        answer[7] = 1;
        answer.extend(record(7));
    } else if has(b"\x03big\x07example") && tcp {
        answer[6..8].copy_from_slice(&1000u16.to_be_bytes());
        (0..1000).for_each(|_| answer.extend(record(8)));
    } else if has(b"\x03big\x07example") {
        answer[2] |= 2;
    } else {
        answer[3] |= NXDOMAIN;
    }
    answer
}

/// Runs an upstream at `address` while `f` runs; says how many questions it was asked.
fn with_upstream<T>(ns: &Ns, address: SocketAddr, f: impl FnOnce() -> T) -> (T, usize) {
    let udp = ns.run(|| UdpSocket::bind(address)).unwrap();
    let tcp = ns.run(|| TcpListener::bind(address)).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                let mut buffer = [0; 4096];
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    asked += 1;
                    udp.send_to(&upstream_answer(&buffer[..length], false), from).unwrap();
                }
                if let Ok((mut stream, _)) = tcp.accept() {
                    asked += 1;
                    stream.set_nonblocking(false).unwrap();
                    stream.read_exact(&mut buffer[..2]).unwrap();
                    let length = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
                    stream.read_exact(&mut buffer[..length]).unwrap();
                    let answer = upstream_answer(&buffer[..length], true);
                    stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            }
            asked
        });
        let stop = StopOnDrop(&done);
        let result = f();
        drop(stop);
        (result, server.join().unwrap())
    })
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn two_domains() -> World {
    use_built_program();
    World::new(&[("pro", &["pro-dev", "pro-web"]), ("perso", &["desk"])])
}

#[test]
fn machines_find_their_own_and_the_outside() {
    let world = two_domains();
    let _services = Services(&world);
    let upstream = SocketAddr::new(OUTSIDE.into(), 53);
    for domain in ["pro", "perso"] {
        assert!(ensure(&world, &config(&world, domain, &[upstream])));
        assert!(!ensure(&world, &config(&world, domain, &[upstream])), "nothing to do the second time");
    }
    let running = names::running(world.run_dir.path()).unwrap();
    assert_eq!(running.iter().map(|r| r.domain.as_str()).collect::<Vec<_>>(), ["perso", "pro"]);
    let (dev, gateway) = (world.ns("pro-dev"), world.gateway("pro"));
    let web = world.ip("pro-web").octets();
    for name in ["pro-web", "pro-web.pro", "pro-web.pro.ilot", "PRO-Web"] {
        let answer = ask_udp(dev, gateway, name, A);
        assert_eq!((answer.code, answer.records, answer.last), (0, 1, web), "{name}");
    }
    let answer = ask_udp(dev, gateway, "pro-web", AAAA);
    assert_eq!((answer.code, answer.records), (0, 0));
    assert_eq!(ask_udp(dev, gateway, "2.1.120.10.in-addr.arpa", PTR).records, 1);
    let (_, asked) = with_upstream(&world.outside, upstream, || {
        for name in ["desk", "desk.perso.ilot", "nothing", "nothing.pro.ilot"] {
            assert_eq!(ask_udp(dev, gateway, name, A).code, NXDOMAIN, "{name}");
        }
    });
    assert_eq!(asked, 0, "names without a dot and names in .ilot are nobody else's business");
    let (answer, asked) = with_upstream(&world.outside, upstream, || ask_udp(dev, gateway, "web.example", A));
    assert_eq!((answer.code, answer.records, answer.last, asked), (0, 1, [198, 51, 100, 7], 1));
    // Cut short over UDP, whole over TCP, and the connection serves on.
    let ((short, long, own), _) = with_upstream(&world.outside, upstream, || {
        let short = ask_udp(dev, gateway, "big.example", A);
        let mut stream = connect(dev, gateway);
        (short, ask_tcp(&mut stream, "big.example", A), ask_tcp(&mut stream, "pro-web", A))
    });
    assert!(short.truncated);
    assert_eq!((long.records, long.length), (1000, 12 + 17 + 16_000));
    assert_eq!(own.last, web);
}

#[test]
fn the_c_library_resolves() {
    let world = two_domains();
    let _services = Services(&world);
    let upstream = SocketAddr::new(OUTSIDE.into(), 53);
    ensure(&world, &config(&world, "pro", &[upstream]));
    let resolv = world.run_dir.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {}\nsearch pro.ilot\n", world.gateway("pro"))).unwrap();
    // In a mount namespace of its own: the host's file stays what it is.
    let lookup = |name: &str| {
        let script = format!("mount --bind {} /etc/resolv.conf; getent ahosts {name} || true", resolv.display());
        world.ns("pro-dev").sh(&format!("unshare -m sh -ec '{script}'"))
    };
    let ((own, long, outside, other), _) = with_upstream(&world.outside, upstream, || {
        (lookup("pro-web"), lookup("pro-web.pro.ilot"), lookup("web.example"), lookup("desk"))
    });
    assert!(own.starts_with("10.120.1.2 ") && long.starts_with("10.120.1.2 "), "{own}{long}");
    assert!(outside.starts_with("198.51.100.7 "), "{outside}");
    assert_eq!(other, "");
}

#[test]
fn who_is_answered() {
    let world = two_domains();
    let _services = Services(&world);
    ensure(&world, &config(&world, "pro", &[]));
    let (dev, gateway) = (world.ns("pro-dev"), world.gateway("pro"));
    assert_eq!(ask_udp(dev, gateway, "web.example", A).code, REFUSED, "no egress, no outside names");
    assert_eq!(ask_udp(dev, gateway, "pro-web", A).code, 0);
    // The outside reaches the address (the host's other ports are the host's business) and gets no answer.
    let socket = world.outside.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_read_timeout(Some(common::SHORT)).unwrap();
    socket.send_to(&query("pro-web", A), (gateway, 53)).unwrap();
    assert!(socket.recv(&mut [0; 64]).is_err());
}

#[test]
fn garbage_is_survived() {
    let world = two_domains();
    let _services = Services(&world);
    ensure(&world, &config(&world, "pro", &[]));
    let (dev, gateway) = (world.ns("pro-dev"), world.gateway("pro"));
    let socket = dev.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..3000 {
        let length = (random() % 300) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if random() % 2 == 0 && length > 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        let _ = socket.send_to(&bytes, (gateway, 53));
    }
    let mut good = query("pro-web", A);
    for at in 0..good.len() {
        let kept = good[at];
        good[at] = random() as u8;
        let _ = socket.send_to(&good, (gateway, 53));
        good[at] = kept;
    }
    // Over TCP: lies about lengths, half queries, many connections that say nothing.
    let _silent: Vec<_> = (0..20).map(|_| connect(dev, gateway)).collect();
    for lie in [&[0, 0][..], &[0xff, 0xff, 1, 2], &[0, 3, 1, 2, 3], &[0]] {
        let mut stream = connect(world.ns("pro-web"), gateway);
        stream.write_all(lie).unwrap();
    }
    assert_eq!(ask_udp(dev, gateway, "pro-web", A).code, 0);
    let answer = ask_tcp(&mut connect(world.ns("pro-web"), gateway), "pro-dev", A);
    assert_eq!((answer.code, answer.records), (0, 1), "another machine's connections do not fill the table");
}

#[test]
fn upstreams_fail_over() {
    let world = two_domains();
    let _services = Services(&world);
    world.outside.sh("ip addr add 203.0.113.3/24 dev up1; ip addr add 203.0.113.4/24 dev up1");
    let at = |last: u8| SocketAddr::new([203, 0, 113, last].into(), 53);
    // The first one refuses (nobody listens), the second one is silent, the third one answers.
    ensure(&world, &config(&world, "pro", &[at(2), at(3), at(4)]));
    let (dev, gateway) = (world.ns("pro-dev"), world.gateway("pro"));
    let silent = world.outside.run(|| UdpSocket::bind(at(3))).unwrap();
    let ((first, second, whole), _) = with_upstream(&world.outside, at(4), || {
        let start = Instant::now();
        let first = ask_udp(dev, gateway, "web.example", A);
        let took = start.elapsed();
        let start = Instant::now();
        let second = ask_udp(dev, gateway, "web.example", A);
        assert!(start.elapsed() < took, "the one that answered is asked first from then on");
        (first, second, ask_tcp(&mut connect(dev, gateway), "big.example", A))
    });
    assert_eq!((first.records, second.records, whole.records), (1, 1, 1000));
    drop(silent);
    // Nobody is left.
    assert_eq!(ask_udp(dev, gateway, "web.example", A).code, SERVFAIL);
    assert_eq!(ask_tcp(&mut connect(dev, gateway), "web.example", A).code, SERVFAIL);
}

#[test]
fn forged_answers_are_not_believed() {
    let world = two_domains();
    let _services = Services(&world);
    let upstream = SocketAddr::new(OUTSIDE.into(), 53);
    ensure(&world, &config(&world, "pro", &[upstream]));
    let (dev, gateway) = (world.ns("pro-dev"), world.gateway("pro"));
    let server = world.outside.run(|| UdpSocket::bind(upstream)).unwrap();
    server.set_read_timeout(Some(LONG)).unwrap();
    let liar = world.outside.run(|| UdpSocket::bind((OUTSIDE, 5353))).unwrap();
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 512];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            let right = upstream_answer(&buffer[..length], false);
            let mut wrong = right.clone();
            *wrong.last_mut().unwrap() = 66;
            // From another port; with another number; to another question; then the right one.
            liar.send_to(&wrong, from).unwrap();
            wrong[0] ^= 1;
            server.send_to(&wrong, from).unwrap();
            wrong[0] ^= 1;
            wrong[13] ^= 1;
            server.send_to(&wrong, from).unwrap();
            server.send_to(&right, from).unwrap();
        });
        ask_udp(dev, gateway, "web.example", A)
    });
    assert_eq!(answer.last, [198, 51, 100, 7]);
}

#[test]
fn the_service_is_restarted_and_told() {
    let world = two_domains();
    let _services = Services(&world);
    let mut wanted = config(&world, "pro", &[]);
    ensure(&world, &wanted);
    let run_dir = world.run_dir.path();
    let pid = || names::running(run_dir).unwrap().first().map(|r| r.pid);
    let first = pid().unwrap();
    // A machine comes: the same process knows it when `ensure` returns.
    wanted.hosts.insert("late".into(), [10, 120, 1, 9].into());
    let start = Instant::now();
    assert!(ensure(&world, &wanted));
    println!("told in {:?}", start.elapsed());
    assert_eq!(pid(), Some(first));
    let answer = ask_udp(world.ns("pro-dev"), world.gateway("pro"), "late", A);
    assert_eq!(answer.last, [10, 120, 1, 9]);
    // A command was killed after writing the file and before telling: the next one tells.
    let directory = run_dir.join("names/pro");
    wanted.hosts.insert("later".into(), [10, 120, 1, 10].into());
    std::fs::write(directory.join("untold"), "").unwrap();
    std::fs::write(directory.join("config.json"), serde_json::to_vec(&wanted).unwrap()).unwrap();
    assert!(ensure(&world, &wanted));
    assert!(!ensure(&world, &wanted));
    assert_eq!(ask_udp(world.ns("pro-dev"), world.gateway("pro"), "later", A).code, 0);
    // It is nobody, sees nothing and may nothing.
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let line = |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
    assert_eq!(line("Uid:").split_whitespace().nth(1), Some("65534"));
    assert_eq!(line("Groups:").split_whitespace().count(), 1);
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert!(line(set).ends_with("0000000000000000"), "{}", line(set));
    }
    assert!(line("NoNewPrivs:").ends_with('1'));
    let root = std::fs::read_link(format!("/proc/{first}/root")).unwrap();
    assert_eq!(root, run_dir.join("names/pro"));
    // It dies: it is started again.
    // SAFETY: a signal to a process that this test started, which is nobody's child that waits.
    unsafe { libc::kill(first, libc::SIGKILL) };
    let deadline = Instant::now() + LONG;
    while pid().is_some() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(ensure(&world, &wanted));
    assert_ne!(pid(), Some(first));
    assert_eq!(ask_udp(world.ns("pro-dev"), world.gateway("pro"), "late", A).code, 0);
    assert!(names::stop(run_dir, "pro").unwrap());
    assert!(!names::stop(run_dir, "pro").unwrap());
    assert_eq!(pid(), None);
    assert!(!run_dir.join("names/pro").exists());
}

#[test]
fn a_taken_port_is_an_error_with_a_cure() {
    let world = two_domains();
    let _services = Services(&world);
    let gateway = world.gateway("pro");
    let _taken = world.host.run(|| UdpSocket::bind((gateway, 53))).unwrap();
    let wanted = config(&world, "pro", &[]);
    let error = world.host.run(|| names::ensure(world.run_dir.path(), &wanted)).unwrap_err();
    assert!(error.to_string().contains("10.120.1.254 port 53"), "{error}");
    assert!(error.help().is_some());
    assert!(names::running(world.run_dir.path()).unwrap().is_empty());
}

#[test]
fn a_service_whose_directory_was_lost_is_replaced() {
    let world = two_domains();
    let _services = Services(&world);
    let wanted = config(&world, "pro", &[]);
    ensure(&world, &wanted);
    let run_dir = world.run_dir.path();
    let first = names::running(run_dir).unwrap()[0].pid;
    std::fs::remove_dir_all(run_dir.join("names")).unwrap();
    assert!(names::running(run_dir).unwrap().is_empty());
    assert!(ensure(&world, &wanted));
    assert_ne!(names::running(run_dir).unwrap()[0].pid, first);
    assert!(!std::path::Path::new(&format!("/proc/{first}/ns/net")).exists(), "the old one is gone");
    assert_eq!(ask_udp(world.ns("pro-dev"), world.gateway("pro"), "pro-web", A).code, 0);
}
