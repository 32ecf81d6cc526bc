//! Terminals: commands and containers with one, through a real terminal of the caller.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can, until};
use ilot_runtime::{ExecRequest, Status, Stdio, attach, exec, start};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

/// A caller in a terminal of its own, in a process of its own.
struct Caller {
    master: OwnedFd,
    pid: i32,
    seen: String,
}

impl Caller {
    /// Runs `work` with a new terminal as its standard streams; its result is the exit status.
    fn begin(work: impl FnOnce() -> i32) -> Self {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let size =
            |rows, columns| rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size(24, 80)).unwrap();
        // SAFETY: the child uses the library and leaves by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            rustix::process::setsid().unwrap();
            rustix::process::ioctl_tiocsctty(&slave).unwrap();
            for n in 0..3 {
                // SAFETY: own descriptors.
                unsafe { libc::dup2(slave.as_raw_fd(), n) };
            }
            drop((master, slave));
            let code = work();
            // SAFETY: ends the copy of the test process.
            unsafe { libc::_exit(code) };
        }
        rustix::fs::fcntl_setfl(&master, rustix::fs::OFlags::NONBLOCK).unwrap();
        Self { master, pid, seen: String::new() }
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        if let Ok(n) = rustix::io::read(&self.master, &mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }

    fn expect(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.seen.contains(text) {
            assert!(Instant::now() < end, "`{text}` is not in: {}", self.seen);
            self.read();
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn say(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).unwrap();
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.master.as_fd(), size).unwrap();
    }

    fn end(mut self) -> i32 {
        let mut status = 0;
        until("the caller ends", || {
            self.read();
            // SAFETY: our own child.
            unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) == self.pid }
        });
        libc::WEXITSTATUS(status)
    }
}

#[test]
fn a_shell_by_exec() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let request = ExecRequest { args: vec!["/bin/sh".to_owned()], terminal: true, stdin: true, ..Default::default() };
    let mut caller = Caller::begin(|| exec(&machine.run_dir(), &request).map_or(255, |e| e.code));
    caller.say("tty; stty size\n");
    caller.expect("/dev/pts/0");
    caller.expect("24 80");
    caller.resize(50, 132);
    caller.say("while test \"$(stty size)\" != '50 132'; do true; done; echo resized$((1))\n");
    caller.expect("resized1");
    // Ctrl-C ends the command in the foreground, not the shell and not the caller.
    // Not by its short name: some shells sleep by themselves.
    caller.say("/bin/busybox sleep 1000; echo code $?\n");
    until("sleep runs", || machine.inside("ps").contains("sleep 1000"));
    caller.say("\x03");
    until("sleep ends", || !machine.inside("ps").contains("sleep 1000"));
    caller.say("echo still$((1))here\n");
    caller.expect("still1here");
    caller.say("exit 9\n");
    assert_eq!(caller.end(), 9);
}

#[test]
fn end_of_file_ends_a_shell() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let request = ExecRequest {
        args: vec!["/bin/sh".to_owned()],
        terminal: true,
        stdin: true,
        user: Some("ann".to_owned()),
        ..Default::default()
    };
    let mut caller = Caller::begin(|| exec(&machine.run_dir(), &request).map_or(255, |e| e.code));
    caller.say("stat -c %u $(tty)\n");
    caller.expect("1000\r\n");
    // At its prompt the shell reads keys; before, a Ctrl-D would be lost.
    caller.expect("$ ");
    caller.say("\x04");
    assert_eq!(caller.end(), 0);
}

#[test]
fn a_container_with_a_terminal() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::shell("tty; stat -c %t:%T /dev/console; stty size; read x; echo got $x; exit 5");
    machine.stdio = Stdio::Terminal { log: Some(machine.dir.path().join("log")) };
    let mut caller = Caller::begin(|| {
        let created = machine.create().unwrap();
        start(&machine.run_dir()).unwrap();
        attach(&machine.run_dir(), &created).map_or(255, |e| e.code)
    });
    caller.expect("/dev/pts/0");
    caller.expect("88:0");
    caller.say("word\n");
    caller.expect("got word");
    assert_eq!(caller.end(), 5);
    let log = machine.output();
    assert!(log.contains("/dev/pts/0") && log.contains("got word"), "{log}");
}

#[test]
fn a_container_outlives_its_terminal() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::shell("while true; do echo line; done");
    machine.stdio = Stdio::Terminal { log: None };
    let mut caller = Caller::begin(|| {
        let created = machine.create().unwrap();
        start(&machine.run_dir()).unwrap();
        attach(&machine.run_dir(), &created).map_or(255, |e| e.code)
    });
    caller.expect("line");
    // SAFETY: our own child.
    unsafe { libc::kill(caller.pid, libc::SIGKILL) };
    caller.end();
    // It goes on printing, with nobody to read it but the keeper.
    assert_eq!(machine.status(), Some(Status::Running));
    let used = || ilot_runtime::stats(&machine.run_dir()).unwrap().cpu_usec.unwrap();
    let before = used();
    until("it goes on", || used() > before + 20_000);
}
