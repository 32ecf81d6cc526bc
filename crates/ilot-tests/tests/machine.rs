//! One machine's life: exec, logs, stop and start, copies, limits that change while it runs.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use ilot_tests::{World, eventually, in_world};
use rustix::process::{Pid, Signal};

const PROJECT: &str = r#"
project_name: one
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  one:
    machines:
      box:
        config: {limits.memory: 64MiB, limits.processes: "50", environment.COLOUR: green}
        ilot: {command: ["/bin/sh", "-c", "echo it starts; echo and complains >&2; trap 'echo asked to stop; exit 0' TERM; trap 'echo followed' USR1; while :; do sleep 1 & wait; done"]}
      idle: {}
"#;

fn up(world: &World) -> String {
    let file = world.write("infra.yml", PROJECT);
    let file = file.to_str().unwrap().to_owned();
    world.ilot(["apply", "-f", &file, "--yes"]).ok();
    file
}

fn down(world: &World, file: &str) {
    world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
    world.assert_clean();
}

#[test]
fn exec_passes_status_signals_and_streams() {
    in_world(|world| {
        let file = up(world);
        let got = world.exec("box", "echo out; echo err >&2; exit 42");
        assert_eq!((got.code(), got.stdout.as_str(), got.stderr.as_str()), (42, "out\n", "err\n"), "{got}");
        assert_eq!(world.exec("box", "kill -9 $$").code(), 137);
        assert_eq!(world.exec("box", "echo $COLOUR").stdout, "green\n");
        let got = world.ilot(["exec", "-e", "A=b c", "-w", "/tmp", "box", "--", "/bin/sh", "-c", "echo $A; pwd"]).ok();
        assert_eq!(got.stdout, "b c\n/tmp\n");
        assert_eq!(world.ilot(["exec", "-u", "1234:5678", "box", "id", "-u"]).ok().stdout, "1234\n");
        assert_eq!(world.ilot(["exec", "box", "no-such-program"]).run().code(), 127);
        assert_eq!(world.ilot(["exec", "box", "/etc/hosts"]).run().code(), 126);
        let got = world.ilot(["exec", "-i", "box", "cat"]).run_with_input(b"through\n");
        assert_eq!(got.stdout, "through\n", "{got}");
        let missing = world.ilot(["exec", "nobody", "true"]).fails();
        assert!(missing.stderr.contains("nobody"), "{missing}");
        down(world, &file);
    });
}

/// A line of a child's output, once it comes.
fn line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

#[test]
fn signals_pass_through() {
    in_world(|world| {
        let file = up(world);
        let script =
            "trap 'echo hung up; exit 3' HUP; trap 'echo asked; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
        for (command, signal, said, code) in [
            (vec!["exec", "box", "--"], Signal::HUP, "hung up\n", 3),
            (vec!["exec", "box", "--"], Signal::TERM, "asked\n", 4),
            (vec!["run", "--rm", "busybox"], Signal::TERM, "asked\n", 4),
        ] {
            let mut child = world.ilot(command.iter().chain(&["/bin/sh", "-c", script])).spawn();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            assert_eq!(line(&mut output), "ready\n", "{command:?}");
            rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
            assert_eq!(line(&mut output), said, "{command:?}");
            assert_eq!(child.wait().unwrap().code(), Some(code), "{command:?}");
        }
        // One that nothing listens to ends the command as anywhere, and the status says so.
        let mut child = world.ilot(["exec", "box", "--", "/bin/sh", "-c", "echo ready; exec sleep 1000"]).spawn();
        assert_eq!(line(&mut BufReader::new(child.stdout.take().unwrap())), "ready\n");
        rustix::process::kill_process(Pid::from_child(&child), Signal::USR1).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(138));
        down(world, &file);
    });
}

#[test]
fn is_isolated_from_the_host() {
    in_world(|world| {
        let file = up(world);
        let status = world.exec("idle", "cat /proc/1/status /proc/self/status /proc/self/uid_map");
        assert!(status.stdout.contains("Seccomp:\t2"), "{status}");
        assert!(status.stdout.contains("NoNewPrivs:\t1"), "{status}");
        let info = world.ilot(["inspect", "idle", "--json"]).ok().json();
        let info = if info.is_array() { info[0].clone() } else { info };
        let pid = info["pid"].as_i64().unwrap();
        let owner = std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
        assert!(owner >= 0x7000_0000, "root inside is {owner} outside");
        for denied in [
            "mount -t tmpfs none /mnt",
            "mknod /dev/sda b 8 0",
            "echo 1 > /proc/sys/kernel/panic",
            "echo b > /proc/sysrq-trigger",
            "cat /proc/kcore",
            "reboot -f",
            "hostname evil",
        ] {
            let got = world.exec("idle", denied);
            assert!(!got.status.success() || got.stdout.is_empty(), "`{denied}` works: {got}");
        }
        assert!(world.exec("idle", "true").status.success(), "still alive");
        let processes = world.exec("idle", "ls /proc | grep -c '^[0-9]'").stdout;
        assert!(processes.trim().parse::<u32>().unwrap() < 8, "sees {processes} processes");
        down(world, &file);
    });
}

#[test]
fn logs_have_times_and_streams() {
    in_world(|world| {
        let file = up(world);
        assert!(eventually(Duration::from_secs(5), || world
            .ilot(["logs", "box"])
            .ok()
            .stdout
            .contains("and complains")));
        let logs = world.ilot(["logs", "box", "--json"]).ok();
        let first: serde_json::Value = serde_json::from_str(logs.stdout.lines().next().unwrap()).unwrap();
        assert_eq!(first["text"], "it starts", "{logs}");
        assert_eq!(first["stream"], "stdout", "{logs}");
        assert_eq!(world.ilot(["logs", "-n", "1", "box"]).ok().stdout.lines().count(), 1);
        // What comes while it is followed; only that, and its end ends the following.
        let mut following = world.ilot(["logs", "-f", "-n", "0", "--no-times", "box"]).spawn();
        let mut followed = BufReader::new(following.stdout.take().unwrap());
        // It may not have begun to follow at the first line: printed again and again, one is seen.
        let printing = world.exec("box", "(while [ ! -e /seen ]; do kill -USR1 2; sleep 0.05; done) >/dev/null 2>&1 &");
        assert!(printing.status.success(), "{printing}");
        assert_eq!(line(&mut followed), "followed\n");
        assert!(world.exec("box", "touch /seen").status.success());
        let moment = world.ilot(["logs", "-n", "1", "--json", "box"]).ok().stdout;
        let moment: serde_json::Value = serde_json::from_str(moment.lines().next().unwrap()).unwrap();
        let moment = moment["time"].as_str().unwrap();
        let since = world.ilot(["logs", "--since", moment, "--no-times", "box"]).ok();
        assert!(since.stdout.contains("followed") && !since.stdout.contains("it starts"), "{since}");
        assert!(!world.ilot(["logs", "--since", "1h", "box"]).ok().stdout.is_empty());
        world.ilot(["logs", "--since", "the other day", "box"]).fails();
        world.ilot(["stop", "box"]).ok();
        assert!(world.ilot(["logs", "box"]).ok().stdout.contains("asked to stop"), "stop asks politely");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut followed, &mut rest).unwrap();
        assert!(rest.ends_with("asked to stop\n"), "{rest}");
        assert!(following.wait().unwrap().success());
        down(world, &file);
    });
}

#[test]
fn stop_start_pause_resume() {
    in_world(|world| {
        let file = up(world);
        assert!(world.exec("box", "echo kept > /root/file").status.success());
        let state = |name: &str| {
            let info = world.ilot(["inspect", name, "--json"]).ok().json();
            let info = if info.is_array() { info[0].clone() } else { info };
            info["state"].as_str().unwrap().to_owned()
        };
        world.ilot(["stop", "box"]).ok();
        assert_eq!(state("box"), "stopped");
        let refused = world.ilot(["exec", "box", "true"]).fails();
        assert!(refused.stderr.contains("not running"), "{refused}");
        let plan = world.ilot(["plan", "-f", &file, "--json"]).ok().json();
        assert_eq!(plan["changes"][0]["action"], "start", "{plan}");
        world.ilot(["start", "box"]).ok();
        assert_eq!(world.exec("box", "cat /root/file").stdout, "kept\n");
        assert!(world.exec("box", "ping -c 1 -W 2 idle").status.success(), "the network is back");
        world.ilot(["pause", "one"]).ok();
        assert_eq!((state("box"), state("idle")), ("paused".into(), "paused".into()));
        let frozen = world.ilot(["exec", "box", "true"]).fails();
        assert!(frozen.stderr.contains("ilot resume"), "{frozen}");
        world.ilot(["resume", "one"]).ok();
        assert_eq!(state("box"), "running");
        world.ilot(["restart", "--timeout", "1", "idle"]).ok();
        assert_eq!(state("idle"), "running");
        down(world, &file);
    });
}

#[test]
fn limits_change_live() {
    in_world(|world| {
        let file = up(world);
        let pid = |world: &World| {
            let info = world.ilot(["inspect", "box", "--json"]).ok().json();
            if info.is_array() { info[0]["pid"].clone() } else { info["pid"].clone() }
        };
        let before = pid(world);
        // More than the limit: the kernel ends it, and only it.
        let eat = world.exec("box", "head -c 100m /dev/zero | tail -c 100m >/dev/null; echo $?");
        assert_ne!(eat.stdout.trim(), "0", "64 MiB hold 100: {eat}");
        assert_eq!(pid(world), before, "the machine survives");
        let text = PROJECT.replace("64MiB", "256MiB").replace("\"50\"", "\"12\"");
        world.write("infra.yml", &text);
        let plan = world.ilot(["plan", "-f", &file]).ok();
        assert!(plan.stdout.contains("limits.memory"), "{plan}");
        world.ilot(["apply", "-f", &file, "--yes"]).ok();
        assert_eq!(pid(world), before, "changed without a restart");
        let eat = world.exec("box", "head -c 100m /dev/zero | tail -c 100m >/dev/null; echo $?");
        assert_eq!(eat.stdout.trim(), "0", "{eat}");
        let forks = world.exec("box", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 1 & done; wait");
        assert!(!forks.status.success() || forks.stderr.contains("fork"), "twelve processes hold more: {forks}");
        world.write("infra.yml", &text.replace("limits.memory: 256MiB, ", ""));
        world.ilot(["apply", "-f", &file, "--yes"]).ok();
        assert_eq!(pid(world), before, "a limit is lifted without a restart");
        let plan = world.ilot(["plan", "-f", &file, "--detailed-exitcode"]).run();
        assert!(plan.status.success(), "nothing is left to do: {plan}");
        down(world, &file);
    });
}

#[test]
fn copies_keep_owners_and_do_not_leave() {
    in_world(|world| {
        let file = up(world);
        let tree = world.path("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/secret"), "content").unwrap();
        std::os::unix::fs::chown(tree.join("sub/secret"), Some(33), Some(34)).unwrap();
        std::fs::set_permissions(tree.join("sub/secret"), std::fs::Permissions::from_mode(0o4640)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
        let tree = tree.to_str().unwrap();
        world.ilot(["cp", tree, "box:/root"]).ok();
        let stat = world.exec("box", "stat -c '%a %u %g' /root/tree/sub/secret; readlink /root/tree/link");
        assert_eq!(stat.stdout, "4640 33 34\n/etc/passwd\n", "{stat}");
        let back = world.path("back");
        world.ilot(["cp", "box:/root/tree", back.to_str().unwrap()]).ok();
        let meta = std::fs::metadata(back.join("sub/secret")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (33, 34, 0o4640));
        // A link that the machine made to a path of the host: followed inside only, or refused.
        let host = world.path("host-dir");
        std::fs::create_dir(&host).unwrap();
        let links = format!("ln -s {} /root/out; ln -s /../../../../etc/shadow /root/shadow", host.display());
        assert!(world.exec("box", &links).status.success());
        let _ = world.ilot(["cp", tree, "box:/root/out/"]).run();
        assert_eq!(std::fs::read_dir(&host).unwrap().count(), 0, "written through a link");
        let stolen = world.path("stolen");
        let _ = world.ilot(["cp", "box:/root/shadow", stolen.to_str().unwrap()]).run();
        assert!(!stolen.exists() || stolen.is_symlink(), "read through a link");
        let missing = world.ilot(["cp", "box:/root/none", "."]).fails();
        assert!(missing.stderr.contains("`box:/root/none`"), "{missing}");
        // Nor into itself, which would have no end; within one machine is fine.
        for target in ["box:/root/tree/sub", "box:/root/tree/sub/new"] {
            let itself = world.ilot(["cp", "box:/root/tree", target]).fails();
            assert!(itself.stderr.contains("into itself"), "{itself}");
        }
        assert!(world.exec("box", "ls /root/tree/sub").stdout == "secret\n", "nothing was copied");
        world.ilot(["cp", "box:/root/tree", "box:/root/twin"]).ok();
        assert_eq!(world.exec("box", "stat -c '%a %u %g' /root/twin/sub/secret").stdout, "4640 33 34\n");
        // The same for a machine that does not run.
        world.ilot(["stop", "box"]).ok();
        world.ilot(["cp", "box:/root/twin/sub/secret", "box:/root/twin/second"]).ok();
        let again = world.path("again");
        world.ilot(["cp", "box:/root/tree/sub/secret", again.to_str().unwrap()]).ok();
        assert_eq!(std::fs::read_to_string(&again).unwrap(), "content");
        world.ilot(["cp", again.to_str().unwrap(), "box:/root/new"]).ok();
        world.ilot(["start", "box"]).ok();
        assert_eq!(world.exec("box", "stat -c %u /root/new; cat /root/new").stdout, "33\ncontent");
        assert_eq!(world.exec("box", "cat /root/twin/second").stdout, "content");
        down(world, &file);
    });
}

#[test]
fn protected_machines_stay() {
    in_world(|world| {
        let file = world.write("infra.yml", &PROJECT.replace("      idle: {}", "      idle: {ephemeral: false}"));
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let refused = world.ilot(["destroy", "-f", file, "--yes"]).fails();
        assert!(refused.stderr.contains("idle") && refused.stderr.contains("--force"), "{refused}");
        assert!(world.exec("idle", "true").status.success(), "it still runs");
        down(world, file);
    });
}
