//! The life of a container: create, start, states, end, removal.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can};
use ilot_runtime::{Status, delete, signal, start, state, wait};

#[test]
fn runs_and_exits() {
    if !host_can() {
        return;
    }
    let machine = Machine::shell("echo hello; echo oops >&2; exit 7");
    let created = machine.create().unwrap();
    assert_eq!(machine.status(), Some(Status::Created));
    assert!(created.pid > 1 && created.keeper_pid > 1);
    start(&machine.run_dir()).unwrap();
    let exit = wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    let state = state(&machine.run_dir()).unwrap().unwrap();
    assert_eq!((state.status, state.pid), (Status::Stopped, None));
    assert_eq!(state.exit, Some(exit));
    assert!(state.started_at.unwrap() >= state.created_at);
    let log = std::fs::read_to_string(machine.dir.path().join("log")).unwrap();
    assert!(log.contains(" stdout F hello\n") && log.contains(" stderr F oops\n"), "{log}");
    delete(&machine.run_dir(), false).unwrap();
    assert_eq!(machine.status(), None);
    assert!(!machine.run_dir().exists());
}

#[test]
fn sees_only_itself() {
    if !host_can() {
        return;
    }
    let machine =
        Machine::shell("hostname; id -u; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; ls /; cat /proc/mounts");
    let (exit, text) = machine.run();
    assert_eq!(exit.code, 0, "{text}");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("inside"), "{text}");
    assert_eq!(lines.next(), Some("0"), "{text}");
    let processes: u32 = lines.next().unwrap().parse().unwrap();
    assert!(processes <= 4, "{text}");
    assert_eq!(lines.next(), Some("ilot-init"), "{text}");
    assert!(!text.contains(machine.dir.path().to_str().unwrap()), "host path shown: {text}");
}

#[test]
fn a_machine_without_command_waits_for_the_word() {
    if !host_can() {
        return;
    }
    for word in [libc::SIGTERM, libc::SIGPWR, libc::SIGRTMIN() + 3] {
        let machine = Machine::new(&[]);
        machine.up();
        assert_eq!(machine.status(), Some(Status::Running));
        signal(&machine.run_dir(), word).unwrap();
        let exit = wait(&machine.run_dir(), Some(LIMIT)).unwrap().expect("it did not end");
        assert_eq!(exit.code, 0);
    }
}
