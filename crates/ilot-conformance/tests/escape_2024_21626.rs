//! CVE-2024-21626: a descriptor of the host, left open in the runtime's child, becomes the working directory through
//! `/proc/self/fd/N`; from there `..` leads to the host's root.
//!
//! A runtime that has the bug enters the directory before it closes its descriptors and does not look where it is: the
//! script then reads a file of the host that has no path in the container.

use ilot_conformance::{Bundle, conform, json, need, wait_for};

/// A secret beside the bundle, and paths that climb to it.
fn secret(c: &Bundle) -> String {
    std::fs::write(c.dir().join("secret"), "the host's secret").unwrap();
    format!("../../../../../../../..{}/secret", c.dir().display())
}

#[test]
fn run_in_a_descriptor() {
    conform(|| {
        for fd in 3..24 {
            let mut c = Bundle::new();
            let path = secret(&c);
            c.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
            c.args(&["/bin/cat", &path]);
            let output = c.run();
            assert!(!output.out.contains("secret"), "descriptor {fd}: {output:?}");
        }
    });
}

#[test]
fn exec_in_a_descriptor() {
    conform(|| {
        let c = Bundle::sleeper();
        let path = secret(&c);
        std::os::unix::fs::symlink("/proc/self/fd/7", c.rootfs().join("seven")).unwrap();
        c.up();
        for fd in 3..24 {
            let output = c.exec(&["--cwd", &format!("/proc/self/fd/{fd}")], &["/bin/cat", &path]);
            assert!(!output.out.contains("secret"), "descriptor {fd}: {output:?}");
        }
        let output = c.exec(&["--cwd", "/seven"], &["/bin/cat", &path]);
        assert!(!output.out.contains("secret"), "{output:?}");
    });
}

/// That climbing works at all: a program that enters the container with a directory of the host as its own.
#[test]
fn climbing_works_on_a_naive_program() {
    conform(|| {
        need(std::path::Path::new("/usr/bin/nsenter").exists(), "needs nsenter");
        let c = Bundle::sleeper();
        let path = secret(&c);
        c.up();
        let mut command = std::process::Command::new("/usr/bin/nsenter");
        command.args(["--target", &c.pid().to_string(), "--pid", "--mount"]);
        command.arg(format!("--wd={}", c.dir().display())).args(["/bin/cat", &path]);
        assert!(ilot_conformance::runtime::run(command).out.contains("the host's secret"));
    });
}

/// A container that looks into `/proc/PID/cwd` of all that comes.
fn looking(tracer: bool) -> Bundle {
    let mut c = Bundle::new();
    c.need_probe();
    if tracer {
        c.all_capabilities();
    }
    let path = secret(&c);
    c.args(&["/bin/probe", "through-cwd", &path]);
    c.create().ok();
    c.start();
    wait_for("the attacker", || c.log().contains("ready").then_some(()));
    c
}

/// The third form: a process of the container looks at what is being started in it; `CAP_SYS_PTRACE` lets it look at more.
#[test]
fn looking_at_the_runtimes_child() {
    conform(|| {
        for tracer in [false, true] {
            let c = looking(tracer);
            for _ in 0..20 {
                let mut command = c.command(&["exec", &c.id, "/bin/true"]);
                command.current_dir(c.dir());
                ilot_conformance::runtime::run(command).ok();
            }
            std::fs::write(c.rootfs().join("stop"), "").unwrap();
            let report =
                wait_for("the report", || Some(c.log()).filter(|l| l.contains("kept in") || l.contains("ESCAPED")));
            assert!(!report.contains("ESCAPED"), "tracer {tracer}: {report}");
        }
    });
}

/// That looking works at all: a program that enters the process namespace and stays outside otherwise.
#[test]
fn looking_works_on_a_naive_program() {
    conform(|| {
        need(std::path::Path::new("/usr/bin/nsenter").exists(), "needs nsenter");
        let c = looking(true);
        let pid = c.pid().to_string();
        wait_for("the escape", || {
            let mut command = std::process::Command::new("/usr/bin/nsenter");
            command.args(["--target", &pid, "--pid", "/bin/sleep", "0.05"]).status().unwrap();
            c.log().contains("ESCAPED").then_some(())
        });
    });
}

/// No descriptor of the runtime is left: neither for the program nor for what it starts.
#[test]
fn no_descriptor_leaks() {
    conform(|| {
        let mut c = Bundle::new();
        c.need_probe();
        c.args(&["/bin/probe", "fds"]);
        // Descriptors without close-on-exec that the runtime itself was given.
        c.save();
        let run = c.bundle_command("run", &[]);
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "exec 5</ 6</etc 9</proc; exec \"$@\"", "sh"]).arg(run.get_program()).args(run.get_args());
        for (key, value) in run.get_envs() {
            shell.env(key, value.unwrap_or_default());
        }
        let text = ilot_conformance::runtime::run(shell).ok();
        assert!(text.lines().all(|l| l.split(' ').next().unwrap().parse::<u32>().unwrap() < 3), "{text}");
    });
}
