//! What runs in containers that are written down: `guest count FILE`, `guest tcp FILE`, `guest lock FILE`,
//! `guest try FILE`. Compiled by the test with `rustc` alone, static.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

unsafe extern "C" {
    fn flock(fd: i32, operation: i32) -> i32;
}

/// Whoever reads sees the whole number or the one before.
fn note(path: &str, number: u64) {
    let aside = format!("{path}.new");
    std::fs::write(&aside, number.to_string()).unwrap();
    std::fs::rename(&aside, path).unwrap();
}

fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// The number is nowhere but in this process's memory.
fn count(path: &str) {
    for number in 0.. {
        note(path, number);
        pause();
    }
}

/// The same, sent to itself over an established connection.
fn tcp(path: &str) {
    let listener = TcpListener::bind("127.0.0.1:4000").unwrap();
    let mut client = TcpStream::connect("127.0.0.1:4000").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    for number in 0u64.. {
        client.write_all(&number.to_le_bytes()).unwrap();
        let mut received = [0; 8];
        server.read_exact(&mut received).unwrap();
        note(path, u64::from_le_bytes(received));
        pause();
    }
}

fn lock(path: &str, operation: i32) -> bool {
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(path).unwrap();
    // SAFETY: numbers, and a descriptor that is open.
    let locked = unsafe { flock(file.as_raw_fd(), operation) } == 0;
    std::mem::forget(file);
    locked
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let path = args[2].as_str();
    match args[1].as_str() {
        "count" => count(path),
        "tcp" => tcp(path),
        // LOCK_EX
        "lock" => {
            assert!(lock(path, 2));
            count(&format!("{path}.n"));
        }
        // LOCK_EX | LOCK_NB
        "try" => println!("{}", if lock(path, 6) { "free" } else { "held" }),
        other => panic!("{other}"),
    }
}
