//! CVE-2019-5736: the runtime's own program, reached through `/proc/PID/exe` of a runtime process that has entered the
//! container, is opened for writing once it is no longer busy.
//!
//! A runtime that has the bug runs its own file while a process of the container can look at it: either its child before
//! `execve`, or the child that was told to execute `/proc/self/exe`. Then the attacker's `open(O_WRONLY)` succeeds after
//! that process has ended, and the copy of the runtime used here changes. One that runs from a sealed memory file, a
//! read-only mount, or cannot be looked at, keeps it.

use ilot_conformance::{Bundle, Kind, Runtime, conform, json, skip, wait_for};
use std::path::PathBuf;

/// A runtime that may be destroyed, and what its files hold.
fn expendable(c: &mut Bundle) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = c.dir().join("copy");
    std::fs::create_dir(&dir).unwrap();
    let original = c.runtime.path.clone();
    let mut files = vec![original.clone()];
    if c.runtime.kind == Kind::Ilot {
        files = std::fs::read_dir(original.parent().unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    }
    let mut copies = Vec::new();
    for file in files.iter().filter(|f| f.is_file()) {
        let copy = dir.join(file.file_name().unwrap());
        std::fs::copy(file, &copy).unwrap();
        copies.push((copy.clone(), std::fs::read(&copy).unwrap()));
    }
    c.runtime = Runtime { path: dir.join(original.file_name().unwrap()), kind: c.runtime.kind };
    copies
}

fn assert_whole(copies: &[(PathBuf, Vec<u8>)], attacker: &Bundle) {
    std::fs::write(attacker.rootfs().join("stop"), "").unwrap();
    let report = wait_for("the attacker's report", || Some(attacker.log()).filter(|log| log.contains("hits")));
    for (copy, content) in copies {
        assert!(std::fs::read(copy).unwrap() == *content, "{} was overwritten: {report}", copy.display());
    }
}

fn attacker() -> Bundle {
    let mut c = Bundle::new();
    c.need_probe();
    c.args(&["/bin/probe", "overwrite"]);
    c
}

fn start(c: &Bundle) {
    c.create().ok();
    c.start();
    wait_for("the attacker", || c.log().contains("ready").then_some(()));
}

/// Somebody execs into the attacker's container.
fn exec_into(mut c: Bundle) {
    let copies = expendable(&mut c);
    std::fs::write(c.rootfs().join("bin/script"), "#!/proc/self/exe --version\n").unwrap();
    std::fs::set_permissions(c.rootfs().join("bin/script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    start(&c);
    for _ in 0..12 {
        c.exec(&[], &["/bin/true"]);
        c.exec(&[], &["/proc/self/exe", "--version"]);
        c.exec(&[], &["/bin/script"]);
    }
    assert_whole(&copies, &c);
}

#[test]
fn exec() {
    conform(|| exec_into(attacker()));
}

/// The same attacker with `CAP_SYS_PTRACE`, whom a process that cannot be dumped does not stop.
#[test]
fn exec_beside_a_tracer() {
    conform(|| {
        let mut c = attacker();
        c.all_capabilities();
        exec_into(c);
    });
}

/// That the attack works at all: `nsenter` enters as a runtime without protection would, and is overwritten.
#[test]
fn the_attack_works_on_a_naive_program() {
    conform(|| {
        let mut c = attacker();
        c.all_capabilities();
        let Some(original) =
            ["/usr/bin/nsenter", "/bin/nsenter"].into_iter().find(|p| std::path::Path::new(p).exists())
        else {
            skip("needs nsenter")
        };
        let copy = c.dir().join("nsenter");
        std::fs::copy(original, &copy).unwrap();
        let content = std::fs::read(&copy).unwrap();
        start(&c);
        let pid = c.pid().to_string();
        wait_for("the naive program to be overwritten", || {
            let mut command = std::process::Command::new(&copy);
            command.args(["--target", &pid, "--pid", "--mount", "/bin/sleep", "0.01"]);
            // A program that begins with `#!PWNED` cannot be started any more.
            let ended = command.status();
            (ended.is_err() || std::fs::read(&copy).unwrap() != content).then_some(())
        });
        std::fs::write(c.rootfs().join("stop"), "").unwrap();
    });
}

/// A container is started beside the attacker, as in a pod with one process namespace.
#[test]
fn run() {
    conform(|| {
        let mut c = attacker();
        let copies = expendable(&mut c);
        start(&c);
        let namespace = format!("/proc/{}/ns/pid", c.pid());
        for args in [["/proc/self/exe", "--version"], ["/bin/sleep", "0"]] {
            for _ in 0..8 {
                let mut victim = Bundle::new();
                victim.runtime = c.runtime.clone();
                victim.namespace("pid", Some(json!({"type": "pid", "path": namespace})));
                victim.args(&args);
                victim.run();
            }
        }
        assert_whole(&copies, &c);
    });
}
