//! Limits on a real container: memory, processes, CPU, pause, live changes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can, until};
use ilot_runtime::spec::{Cpu, Memory, Pids, Resources};
use ilot_runtime::{Status, pause, resume, stats, update, wait};

#[test]
fn out_of_memory() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::shell("head -c 200000000 /dev/zero | tail | wc -c");
    machine.spec.linux.as_mut().unwrap().resources = Some(Resources {
        memory: Some(Memory { limit: Some(32 << 20), swap: Some(32 << 20), ..Default::default() }),
        ..Default::default()
    });
    machine.up();
    let exit = wait(&machine.run_dir(), Some(LIMIT)).unwrap().unwrap();
    assert!(exit.oom_killed, "{exit:?}");
}

#[test]
fn a_tiny_memory_limit_starts() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::new(&["true"]);
    machine.spec.linux.as_mut().unwrap().resources =
        Some(Resources { memory: Some(Memory { limit: Some(512 << 10), ..Default::default() }), ..Default::default() });
    assert_eq!(machine.run().0.code, 0);
}

#[test]
fn processes_are_counted() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::new(&[]);
    machine.spec.linux.as_mut().unwrap().resources =
        Some(Resources { pids: Some(Pids { limit: Some(8) }), ..Default::default() });
    machine.up();
    let (_, text) = machine.exec(&["/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done"]);
    assert!(text.contains("fork"), "{text}");
    assert!(stats(&machine.run_dir()).unwrap().pids.unwrap() <= 8);
}

#[test]
fn changed_while_it_runs() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    update(
        &machine.run_dir(),
        &Resources {
            memory: Some(Memory { limit: Some(64 << 20), ..Default::default() }),
            pids: Some(Pids { limit: Some(50) }),
            cpu: Some(Cpu { quota: Some(50_000), period: Some(100_000), ..Default::default() }),
            ..Default::default()
        },
    )
    .unwrap();
    let now = stats(&machine.run_dir()).unwrap();
    assert_eq!((now.memory_limit, now.pids_limit), (Some(64 << 20), Some(50)));
    assert!(now.memory.is_some() && now.cpu_usec.is_some(), "{now:?}");
}

#[test]
fn paused_means_paused() {
    if !host_can() {
        return;
    }
    let machine = Machine::shell("i=0; while true; do i=$((i+1)); echo $i > /tmp/n; done");
    machine.up();
    let count = || {
        let text = std::fs::read_to_string(machine.upper().join("tmp/n")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    until("it counts", || count() > 0);
    pause(&machine.run_dir()).unwrap();
    assert_eq!(machine.status(), Some(Status::Paused));
    let before = count();
    let used = stats(&machine.run_dir()).unwrap().cpu_usec.unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_millis(50);
    while std::time::Instant::now() < end {
        assert_eq!(count(), before);
    }
    // What was used before may be added up a little later.
    assert!(stats(&machine.run_dir()).unwrap().cpu_usec.unwrap() < used + 5000);
    assert!(pause(&machine.run_dir()).unwrap_err().to_string().contains("it is paused"));
    resume(&machine.run_dir()).unwrap();
    assert!(resume(&machine.run_dir()).unwrap_err().to_string().contains("it is running"));
    until("it counts again", || count() > before);
    // A paused one can be deleted.
    pause(&machine.run_dir()).unwrap();
}
