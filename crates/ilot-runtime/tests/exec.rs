//! Commands in running containers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can, until};
use ilot_runtime::{ExecRequest, Status, pause, resume};

fn request(args: &[&str]) -> ExecRequest {
    ExecRequest { args: args.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() }
}

#[test]
fn joins_every_namespace() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let text = machine
        .inside("for n in user mnt pid net uts ipc cgroup; do readlink /proc/1/ns/$n; readlink /proc/self/ns/$n; done");
    let links: Vec<&str> = text.lines().collect();
    assert_eq!(links.len(), 14, "{text}");
    for pair in links.chunks(2) {
        assert_eq!(pair[0], pair[1]);
        let name = pair[0].split(':').next().unwrap();
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(host.to_str(), Some(pair[0]));
    }
    let groups = machine.inside("cat /proc/self/cgroup");
    assert!(
        groups.lines().filter(|l| l.starts_with("0::") || l.contains("memory")).all(|l| l.ends_with(":/")),
        "{groups}"
    );
}

#[test]
fn status_signal_and_missing_program() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    assert_eq!(machine.exec(&["/bin/sh", "-c", "exit 42"]).0, 42);
    assert_eq!(machine.exec(&["/bin/sh", "-c", "kill -KILL $$"]).0, 128 + libc::SIGKILL);
    let (code, text) = machine.exec(&["no-such-program"]);
    assert_eq!(code, 255);
    assert!(text.contains("execute `no-such-program` in the container") && text.contains("No such file"), "{text}");
    let (_, text) = machine.exec(&["/etc/passwd"]);
    assert!(text.contains("Permission denied"), "{text}");
    until("no zombie in the container", || machine.inside("ps | grep -c Z || true").trim() != "2");
}

#[test]
fn user_directory_and_environment() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let script = "id -u; id -g; id -G; pwd; echo $HOME; echo $X";
    let (code, text) = machine.exec_with(&ExecRequest {
        user: Some("ann".to_owned()),
        cwd: Some("/home/ann".to_owned()),
        env: vec!["X=one=two".to_owned()],
        ..request(&["/bin/sh", "-c", script])
    });
    assert_eq!(code, 0, "{text}");
    assert_eq!(text, "1000\n1000\n1000 10\n/home/ann\n/home/ann\none=two\n");
    let (_, text) = machine.exec_with(&ExecRequest { user: Some("7:wheel".to_owned()), ..request(&["id"]) });
    assert!(text.contains("uid=7 gid=10(wheel)"), "{text}");
    let (code, text) = machine.exec_with(&ExecRequest { user: Some("eve".to_owned()), ..request(&["id"]) });
    assert_eq!(code, 255);
    assert!(text.contains("user `eve`"), "{text}");
    // The user has no capabilities, even without a set-user-id program.
    let (_, text) = machine.exec_with(&ExecRequest {
        user: Some("ann".to_owned()),
        ..request(&["grep", "CapEff\\|NoNewPrivs\\|Seccomp:", "/proc/self/status"])
    });
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
}

#[test]
fn no_descriptor_of_the_host_leaks() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let (_, text) = machine.exec(&["ls", "-l", "/proc/self/fd"]);
    // 0, 1, 2; the directory that `ls` reads itself is closed when it looks at it.
    assert_eq!(text.lines().filter(|l| l.contains("->")).count(), 3, "{text}");
    let text = machine.inside("ls -l /proc/1/fd");
    assert_eq!(text.lines().filter(|l| l.contains("->")).count(), 3, "{text}");
    assert!(text.lines().filter(|l| l.contains("->")).all(|l| l.ends_with("/dev/null")), "{text}");
}

#[test]
fn refused_while_paused_or_ended() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    pause(&machine.run_dir()).unwrap();
    assert_eq!(machine.status(), Some(Status::Paused));
    let error = ilot_runtime::exec(&machine.run_dir(), &request(&["true"])).unwrap_err();
    assert!(error.to_string().contains("it is paused, not running"), "{error}");
    resume(&machine.run_dir()).unwrap();
    assert_eq!(machine.exec(&["true"]).0, 0);
    ilot_runtime::signal(&machine.run_dir(), libc::SIGKILL).unwrap();
    ilot_runtime::wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap();
    let error = ilot_runtime::exec(&machine.run_dir(), &request(&["true"])).unwrap_err();
    assert!(error.to_string().contains("it is stopped, not running"), "{error}");
}

#[test]
fn detached_command_stays() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let (code, text) = machine.exec_with(&ExecRequest {
        detach: true,
        ..request(&["/bin/sh", "-c", "echo there > /tmp/mark; exec sleep 1000"])
    });
    assert_eq!(code, 0, "{text}");
    until("the mark", || machine.exec(&["cat", "/tmp/mark"]).1 == "there\n");
    assert!(machine.inside("ps").contains("sleep 1000"));
}
