//! A machine that boots its image's own init. Needs a Debian tree with systemd: its path in
//! `ILOT_TEST_SYSTEMD` (`mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus bookworm DIR`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{LIMIT, Machine, host_can, until};
use ilot_runtime::spec::{IdMapping, machine_default};
use ilot_runtime::{Init, Rootfs, Stdio, signal, wait};

fn machine() -> Option<Machine> {
    let Some(tree) = std::env::var_os("ILOT_TEST_SYSTEMD") else {
        eprintln!("SKIPPED: ILOT_TEST_SYSTEMD names no tree with systemd");
        return None;
    };
    if !host_can() {
        return None;
    }
    let mut machine = Machine::new(&[]);
    let ids = IdMapping { container_id: 0, host_id: machine.base, size: 65536 };
    let mut spec = machine_default(ids, true);
    spec.hostname = Some("boots".to_owned());
    let process = spec.process.as_mut().unwrap();
    process.args = vec!["/sbin/init".to_owned()];
    let linux = spec.linux.as_mut().unwrap();
    linux.cgroups_path = Some(format!("/ilot-test/{}", machine.id));
    machine.spec = spec;
    machine.init = Init::Image;
    machine.rootfs = Rootfs::Overlay {
        lowers: vec![tree.into()],
        upper: machine.upper(),
        work: machine.dir.path().join("work"),
        volatile: true,
    };
    Some(machine)
}

#[test]
fn systemd_boots_and_stops() {
    let Some(machine) = machine() else { return };
    machine.up();
    // `is-system-running --wait` cannot be asked before the bus is there.
    let running = || machine.exec(&["systemctl", "is-system-running", "--wait"]).1;
    until("systemd answers", || matches!(running().trim(), "running" | "degraded"));
    let failed = machine.exec(&["systemctl", "--failed", "--no-legend", "--plain"]).1;
    let state = running();
    assert_eq!(
        state.trim(),
        "running",
        "failed units: {failed}\n{}",
        machine.exec(&["journalctl", "-b", "--no-pager", "-p", "warning"]).1
    );
    let groups = machine.exec(&["cat", "/proc/1/cgroup"]).1;
    assert!(groups.contains("0::/init.scope"), "{groups}");
    // A command of ours lands in the machine, though systemd has divided its group.
    let (code, text) = machine.exec(&["cat", "/proc/self/cgroup"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(machine.exec(&["systemctl", "is-active", "dbus"]).1, "active\n");
    signal(&machine.run_dir(), libc::SIGRTMIN() + 3).unwrap();
    let exit = wait(&machine.run_dir(), Some(LIMIT)).unwrap().expect("it did not stop");
    assert!(matches!(exit.code, 0 | 130), "{exit:?}");
}

#[test]
fn systemd_on_a_terminal() {
    let Some(mut machine) = machine() else { return };
    machine.stdio = Stdio::Terminal { log: Some(machine.dir.path().join("log")) };
    machine.up();
    // Newer ones shorten their lines in the middle.
    until("the boot is logged", || machine.output().contains("Reached target"));
}

#[test]
fn tools_of_a_distribution_work() {
    let Some(machine) = machine() else { return };
    machine.up();
    until("systemd answers", || machine.exec(&["systemctl", "is-system-running", "--wait"]).1.trim() == "running");
    let text = machine.inside(
        "getcap /usr/bin/ping 2>&1; ls -l /usr/bin/ping; ping -c1 -W2 127.0.0.1 2>&1; useradd -m bob 2>&1; \
         su bob -c 'id -un; ping -c1 -W2 127.0.0.1 2>&1' 2>&1; sudo -u bob id -un 2>&1; mount -t tmpfs x /mnt && echo mounted; \
         hostnamectl --static 2>&1; journalctl -b --no-pager | tail -5; cat /proc/1/cgroup; systemd-detect-virt 2>&1; \
         systemd-run --wait --pipe echo from-a-unit 2>&1; loginctl 2>&1 | tail -3",
    );
    println!("{text}");
    assert!(text.contains("mounted") && text.contains("from-a-unit"), "{text}");
}
