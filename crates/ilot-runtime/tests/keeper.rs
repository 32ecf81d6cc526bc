//! The keeper: output, exit status, what happens when somebody is killed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can, processes_of, until};
use ilot_runtime::{CreateRequest, ExitCommand, Status, Stdio, create, delete, signal, start, state, wait};
use std::time::Duration;

fn kill(pid: i32, signal: i32) {
    // SAFETY: a process that this test has made.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn logs_rotate() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::shell("seq 1 2000; echo end");
    machine.stdio = Stdio::Log { path: machine.dir.path().join("log"), max_bytes: 20_000 };
    machine.run();
    let size = |name: &str| std::fs::metadata(machine.dir.path().join(name)).unwrap().len();
    assert!(size("log") <= 20_100 && size("log.1") <= 20_100 && size("log.1") > 19_000);
    assert!(machine.output().ends_with("2000\nend\n"));
}

/// Creates a container from a process that is killed before it starts it.
fn create_and_die(machine: &Machine) -> Vec<std::path::PathBuf> {
    let (read, mut write) = std::io::pipe().unwrap();
    // SAFETY: the child only uses the library and its pipe.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        use std::io::Write;
        let created = machine.create().unwrap();
        write.write_all(&created.keeper_pid.to_le_bytes()).unwrap();
        loop {
            // SAFETY: waits to be killed.
            unsafe { libc::pause() };
        }
    }
    drop(write);
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut &read, &mut bytes).unwrap();
    let known = state(&machine.run_dir()).unwrap().unwrap();
    assert_eq!(known.status, Status::Created);
    assert!(known.cgroup.iter().all(|p| p.exists()));
    kill(pid, libc::SIGKILL);
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    known.cgroup
}

#[test]
fn creator_killed_before_start() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["sleep", "1000"]);
    let groups = create_and_die(&machine);
    until("everything gone", || {
        state(&machine.run_dir()).unwrap().is_none()
            && !groups.iter().any(|p| p.exists())
            && processes_of(machine.base).is_empty()
    });
}

#[test]
fn deleted_while_its_keeper_removes_it() {
    if !host_can() {
        return;
    }
    for round in 0..30 {
        let machine = Machine::new(&["sleep", "1000"]);
        let groups = create_and_die(&machine);
        // The keeper is told of its creator's end at any moment now.
        std::thread::sleep(Duration::from_micros(100 * round));
        delete(&machine.run_dir(), true).unwrap();
        assert!(state(&machine.run_dir()).unwrap().is_none());
        assert!(processes_of(machine.base).is_empty() && !groups.iter().any(|p| p.exists()), "round {round}");
    }
}

#[test]
fn delete_waits_for_a_keeper_that_is_still_at_work() {
    let dir = tempfile::Builder::new().prefix("ilot-test-").tempdir().unwrap();
    let run_dir = dir.path().join("run");
    delete(&run_dir, true).unwrap();
    std::fs::create_dir(&run_dir).unwrap();
    delete(&run_dir, true).unwrap();
    // As a keeper holds it that has not written yet what it makes.
    let keeper = std::fs::File::open(&run_dir).unwrap();
    rustix::fs::flock(&keeper, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (done, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(delete(&run_dir, true)).unwrap());
        assert!(told.recv_timeout(Duration::from_millis(200)).is_err(), "it does not wait");
        drop(keeper);
        told.recv_timeout(LIMIT).unwrap().unwrap();
    });
}

#[test]
fn keeper_killed() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    let created = machine.up();
    kill(created.keeper_pid, libc::SIGKILL);
    until("the keeper's end to be seen", || state(&machine.run_dir()).unwrap().unwrap().keeper_pid.is_none());
    let now = state(&machine.run_dir()).unwrap().unwrap();
    assert_eq!((now.status, now.pid), (Status::Running, Some(created.pid)));
    assert_eq!(machine.exec(&["true"]).0, 0);
    let error = delete(&machine.run_dir(), false).unwrap_err();
    assert!(error.to_string().contains("running"), "{error}");
    signal(&machine.run_dir(), libc::SIGKILL).unwrap();
    let error = wait(&machine.run_dir(), Some(LIMIT)).unwrap_err();
    assert!(error.to_string().contains("keeper was killed"), "{error}");
    delete(&machine.run_dir(), true).unwrap();
    assert!(now.cgroup.iter().all(|p| !p.exists()));
    assert!(processes_of(machine.base).is_empty());
}

#[test]
fn waiting_ends_in_time() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    assert_eq!(wait(&machine.run_dir(), Some(Duration::from_millis(50))).unwrap(), None);
    delete(&machine.run_dir(), true).unwrap();
    assert_eq!(machine.status(), None);
}

#[test]
fn a_missing_program_fails_the_start_and_leaves_nothing() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["no-such-program"]);
    machine.create().unwrap();
    let cgroups = state(&machine.run_dir()).unwrap().unwrap().cgroup;
    let error = start(&machine.run_dir()).unwrap_err();
    assert!(error.to_string().contains("execute `no-such-program` in the container"), "{error}");
    until("everything gone", || machine.status().is_none() && !cgroups.iter().any(|p| p.exists()));
}

#[test]
fn bad_requests_fail_and_leave_nothing() {
    if !host_can() {
        return;
    }
    type Change = fn(&mut Machine);
    let cases: [(&str, Change); 4] = [
        ("layer", |m| {
            if let ilot_runtime::Rootfs::Overlay { lowers, .. } = &mut m.rootfs {
                lowers.push("/no/such/layer".into());
            }
        }),
        ("sysctl", |m| {
            let linux = m.spec.linux.as_mut().unwrap();
            linux.sysctl.insert("vm.swappiness".to_owned(), "1".to_owned());
        }),
        ("CAP_NONSENSE", |m| {
            let process = m.spec.process.as_mut().unwrap();
            process.capabilities.as_mut().unwrap().bounding.push("CAP_NONSENSE".to_owned());
        }),
        ("intelRdt", |m| m.spec.linux.as_mut().unwrap().intel_rdt = Some(Default::default())),
    ];
    for (word, change) in cases {
        let mut machine = Machine::new(&["true"]);
        change(&mut machine);
        let error = machine.create().and_then(|_| start(&machine.run_dir())).unwrap_err();
        assert!(error.to_string().contains(word), "{word}: {error}");
        until("everything gone", || machine.status().is_none() && processes_of(machine.base).is_empty());
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join("ilot-test").join(&machine.id);
            assert!(!path.exists(), "{}", path.display());
        }
    }
}

#[test]
fn an_id_is_used_once() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    let error = machine.create().unwrap_err();
    assert!(error.to_string().contains("it is running"), "{error}");
    signal(&machine.run_dir(), libc::SIGTERM).unwrap();
    wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap();
    // An ended one makes room by itself.
    machine.up();
    assert_eq!(machine.status(), Some(Status::Running));
}

/// What `the_last_command_can_delete` runs as the last command; does nothing by itself.
#[test]
fn helper_that_deletes() {
    if let Some(dir) = std::env::var_os("ILOT_TEST_DELETE") {
        delete(std::path::Path::new(&dir), true).unwrap();
    }
}

#[test]
fn the_last_command_can_delete() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["true"]);
    let exe = std::env::current_exe().unwrap();
    let mut command: Vec<std::ffi::OsString> = vec!["env".into()];
    let mut place = std::ffi::OsString::from("ILOT_TEST_DELETE=");
    place.push(machine.run_dir());
    command.extend([place, exe.into(), "--exact".into(), "helper_that_deletes".into()]);
    create(&CreateRequest {
        id: &machine.id,
        run_dir: &machine.run_dir(),
        spec: &machine.spec,
        rootfs: machine.rootfs.clone(),
        init: machine.init,
        stdio: machine.stdio.clone(),
        files: Vec::new(),
        exit_command: Some(ExitCommand { args: command, only_if_abandoned: false }),
    })
    .unwrap();
    let begin = std::time::Instant::now();
    start(&machine.run_dir()).unwrap();
    until("the container is gone", || machine.status().is_none());
    assert!(begin.elapsed() < Duration::from_secs(8), "the last command waited for itself");
}

#[test]
fn the_last_command_runs() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["true"]);
    let mark = machine.dir.path().join("mark");
    create(&CreateRequest {
        id: &machine.id,
        run_dir: &machine.run_dir(),
        spec: &machine.spec,
        rootfs: machine.rootfs.clone(),
        init: machine.init,
        stdio: machine.stdio.clone(),
        files: Vec::new(),
        exit_command: Some(ExitCommand { args: vec!["touch".into(), mark.clone().into()], only_if_abandoned: false }),
    })
    .unwrap();
    start(&machine.run_dir()).unwrap();
    assert_eq!(wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap().code, 0);
    until("the mark", || mark.exists());
}

/// Starts a container from a process of its own, whose number it gives; the last command makes a mark.
fn start_elsewhere(machine: &Machine, mark: &std::path::Path) -> i32 {
    let (read, mut write) = std::io::pipe().unwrap();
    // SAFETY: the child only uses the library and its pipe.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        use std::io::Write;
        create(&CreateRequest {
            id: &machine.id,
            run_dir: &machine.run_dir(),
            spec: &machine.spec,
            rootfs: machine.rootfs.clone(),
            init: machine.init,
            stdio: machine.stdio.clone(),
            files: Vec::new(),
            exit_command: Some(ExitCommand {
                args: vec!["touch".into(), mark.to_owned().into()],
                only_if_abandoned: true,
            }),
        })
        .unwrap();
        start(&machine.run_dir()).unwrap();
        write.write_all(b"!").unwrap();
        loop {
            // SAFETY: waits to be killed.
            unsafe { libc::pause() };
        }
    }
    drop(write);
    std::io::Read::read_exact(&mut &read, &mut [0]).unwrap();
    pid
}

#[test]
fn the_last_command_of_an_abandoned_one() {
    if !host_can() {
        return;
    }
    for killed in [false, true] {
        let machine = Machine::new(&["sleep", "1000"]);
        let mark = machine.dir.path().join("mark");
        let creator = start_elsewhere(&machine, &mark);
        let keeper = state(&machine.run_dir()).unwrap().unwrap().keeper_pid.unwrap();
        let end_creator = || {
            kill(creator, libc::SIGKILL);
            // SAFETY: our own child.
            unsafe { libc::waitpid(creator, std::ptr::null_mut(), 0) };
        };
        assert!(ilot_runtime::is_attended(&machine.run_dir()));
        if killed {
            end_creator();
            assert!(!ilot_runtime::is_attended(&machine.run_dir()));
        }
        signal(&machine.run_dir(), libc::SIGKILL).unwrap();
        // Seen by somebody who is not its creator.
        assert_eq!(wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap().code, 137);
        if killed {
            until("the mark", || mark.exists());
        } else {
            let ended = || {
                let stat = std::fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            };
            until("the keeper's end", ended);
            assert!(!mark.exists(), "its creator is there to do it");
            end_creator();
        }
    }
}
