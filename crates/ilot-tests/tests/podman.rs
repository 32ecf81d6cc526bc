//! Podman and containerd of the distribution with `ilot-oci` as their runtime.

mod engines;

use engines::{Podman, on_path, podman, run, wait_for, with};
use ilot_tests::skip;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn run_and_logs() {
    podman(|p| {
        assert_eq!(p.sh(&[], "echo out; exit 5").code, 5);
        assert_eq!(p.sh(&["--env=A=b", "--user=1000", "--workdir=/tmp"], "echo $A; id -u; pwd").ok(), "b\n1000\n/tmp");
        let missing = p.run(&["--rm"], &["/no/such/program"]);
        // Podman makes these codes of the runtime's message.
        missing.fails(127);
        p.run(&["--rm"], &["/etc"]).fails(126);
        p.up(&[]);
        assert_eq!(p.call(&["logs", "c"]).ok(), "started");
    });
}

#[test]
fn exec() {
    podman(|p| {
        p.up(&[]);
        let output = p.call(&["exec", "--env=X=1", "--user=1000", "c", "/bin/sh", "-c", "echo $X; id -u; exit 4"]);
        assert_eq!((output.code, output.out.as_str()), (4, "1\n1000\n"));
        assert_eq!(p.call(&["exec", "c", "/no/such/program"]).code, 127);
        p.call(&["exec", "--detach", "c", "/bin/touch", "/mark"]).ok();
        wait_for("the detached command", || (p.call(&["exec", "c", "test", "-e", "/mark"]).code == 0).then_some(()));
        let top = p.call(&["top", "c"]).ok();
        assert!(top.contains("sleep 1000"), "{top}");
    });
}

#[test]
fn kill_stop_and_wait() {
    podman(|p| {
        p.up(&[]);
        p.call(&["kill", "--signal=TERM", "c"]).ok();
        assert_eq!(p.call(&["wait", "c"]).ok(), "3");
        assert_eq!(p.call(&["logs", "c"]).ok(), "started\nbye");
        p.call(&["start", "c"]).ok();
        p.call(&["stop", "--time=10", "c"]).ok();
        p.call(&["rm", "c"]).ok();
        assert_eq!(p.call(&["ps", "--all", "--quiet"]).ok(), "");
    });
}

#[test]
fn pause_and_unpause() {
    podman(|p| {
        p.up(&[]);
        p.call(&["pause", "c"]).ok();
        assert_eq!(p.call(&["inspect", "--format={{.State.Status}}", "c"]).ok(), "paused");
        p.call(&["unpause", "c"]).ok();
        assert_eq!(p.call(&["exec", "c", "echo", "awake"]).ok(), "awake");
    });
}

#[test]
fn limits_and_update() {
    podman(|p| {
        if !Path::new("/sys/fs/cgroup/memory/tasks").exists() {
            return skip("needs the v1 memory controller");
        }
        p.up(&["--memory=64m", "--pids-limit=50"]);
        let id = p.call(&["inspect", "--format={{.Id}}", "c"]).ok();
        let limit = format!("/sys/fs/cgroup/memory{}/libpod-{id}/memory.limit_in_bytes", p.group());
        assert_eq!(std::fs::read_to_string(&limit).expect("the limit").trim(), (64 << 20).to_string());
        p.call(&["update", "--memory=48m", "c"]).ok();
        assert_eq!(std::fs::read_to_string(&limit).expect("the limit").trim(), (48 << 20).to_string());
        let stats = p.call(&["stats", "--no-stream", "--format={{.MemUsage}} {{.PIDS}}", "c"]).ok();
        assert!(stats.contains("kB /"), "{stats}");
    });
}

#[test]
fn health_check() {
    podman(|p| {
        p.up(&["--health-cmd=test -e /healthy", "--health-interval=disable", "--health-retries=1"]);
        assert_eq!(p.call(&["healthcheck", "run", "c"]).code, 1);
        p.call(&["exec", "c", "touch", "/healthy"]).ok();
        assert_eq!(p.call(&["healthcheck", "run", "c"]).code, 0);
    });
}

#[test]
fn pod() {
    podman(|p| {
        let parent = format!("--cgroup-parent={}", p.group());
        let words = [
            "pod",
            "create",
            "--name=pod",
            "--network=none",
            "--share=pid,ipc,uts,net",
            "--infra-image=bb:1",
            "--infra-command=/bin/sleep 1000",
            &parent,
        ];
        p.call(&words).ok();
        p.call(&["run", "--detach", "--pod=pod", "--name=one", "bb:1", "sleep", "1000"]).ok();
        let script =
            "readlink() { ls -l $1 | grep -o '[a-z]*:.[0-9]*.$'; }; readlink /proc/self/ns/ipc; cat /proc/1/cmdline";
        let seen = p.call(&["run", "--rm", "--pod=pod", "bb:1", "/bin/sh", "-c", script]).ok();
        assert!(seen.contains("sleep"), "{seen}");
        let ipc = p.call(&["exec", "one", "/bin/sh", "-c", "ls -l /proc/self/ns/ipc | grep -o 'ipc:.[0-9]*.$'"]).ok();
        assert!(seen.contains(&ipc), "one IPC namespace: {seen} {ipc}");
    });
}

#[test]
fn terminal() {
    podman(|p| {
        let output = p.sh(&["--tty"], "tty; test -c /dev/console && echo console").ok();
        assert!(output.starts_with("/dev/pts/0") && output.contains("console"), "{output}");
        p.up(&[]);
        let output = p.call(&["exec", "--tty", "c", "tty"]).ok();
        assert!(output.starts_with("/dev/pts/"), "{output}");
    });
}

#[test]
fn volumes_and_read_only_root() {
    podman(|p| {
        let volume = p.world.path("volume");
        std::fs::create_dir(&volume).expect("make a volume");
        let flag = format!("--volume={}:/data", volume.display());
        p.sh(&[&flag], "echo content >/data/file").ok();
        assert_eq!(std::fs::read_to_string(volume.join("file")).expect("read"), "content\n");
        assert_eq!(p.sh(&[&format!("{flag}:ro")], "touch /data/new 2>/dev/null || echo refused").ok(), "refused");
        assert_eq!(
            p.sh(&["--read-only"], "touch /new 2>/dev/null || echo refused; touch /tmp/x && echo tmp").ok(),
            "refused\ntmp"
        );
        p.call(&["volume", "create", "named"]).ok();
        p.sh(&["--volume=named:/data"], "echo kept >/data/file").ok();
        assert_eq!(p.sh(&["--volume=named:/data"], "cat /data/file").ok(), "kept");
        assert_eq!(p.sh(&["--tmpfs=/data:size=1m"], "grep -c ' /data tmpfs .*size=1024k' /proc/mounts").ok(), "1");
    });
}

#[test]
fn user_namespaces() {
    podman(|p| {
        let map = p.sh(&["--uidmap=0:200000:65536"], "cat /proc/self/uid_map; touch /made && stat -c %u /made").ok();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536", "0"]);
        // Podman's own word for the host's: no user namespace.
        let host = p.sh(&["--userns=host"], "cat /proc/self/uid_map").ok();
        assert!(host.contains("4294967295"), "{host}");
    });
}

#[test]
fn security_options() {
    podman(|p| {
        let none = p.sh(&["--cap-drop=all"], "grep CapEff /proc/self/status").ok();
        assert!(none.ends_with("0000000000000000"), "{none}");
        let one = p.sh(&["--cap-drop=all", "--cap-add=CHOWN"], "grep CapEff /proc/self/status").ok();
        assert!(one.ends_with("0000000000000001"), "{one}");
        let no_new = p.sh(&["--security-opt=no-new-privileges"], "grep NoNewPrivs /proc/self/status").ok();
        assert!(no_new.ends_with('1'), "{no_new}");
        let mode = |flags: &[&str]| p.sh(flags, "grep '^Seccomp:' /proc/self/status").ok();
        assert!(mode(&["--security-opt=seccomp=unconfined"]).ends_with('0'));
        let profile = p.world.path("profile.json");
        let text =
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}"#;
        std::fs::write(&profile, text).expect("write a profile");
        assert!(mode(&[&format!("--security-opt=seccomp={}", profile.display())]).ends_with('2'));
    });
}

#[test]
fn masks_and_labels() {
    podman(|p| {
        let kind = "test -c /proc/keys && echo masked || echo open";
        assert_eq!(p.sh(&[], kind).ok(), "masked");
        assert_eq!(p.sh(&["--security-opt=unmask=/proc/keys"], kind).ok(), "open");
        assert_eq!(p.sh(&["--security-opt=mask=/etc"], "ls /etc | wc -l").ok(), "0");
        assert_eq!(
            p.sh(&["--security-opt=apparmor=unconfined", "--security-opt=label=disable"], "echo ran").ok(),
            "ran"
        );
    });
}

#[test]
fn rarer_options() {
    podman(|p| {
        assert_eq!(
            p.sh(&["--ulimit=nofile=100:200", "--ulimit=nproc=1024:1024"], "ulimit -Sn; ulimit -Hn").ok(),
            "100\n200"
        );
        assert_eq!(p.sh(&["--sysctl=net.ipv4.ip_default_ttl=33"], "cat /proc/sys/net/ipv4/ip_default_ttl").ok(), "33");
        assert_eq!(p.sh(&["--shm-size=1m"], "grep -c ' /dev/shm .*size=1024k' /proc/mounts").ok(), "1");
        assert_eq!(p.sh(&["--hostname=isle"], "hostname").ok(), "isle");
        assert_eq!(p.sh(&["--device=/dev/zero:/dev/mine"], "head -c 3 /dev/mine | wc -c").ok(), "3");
        assert_eq!(p.sh(&["--oom-score-adj=500"], "cat /proc/self/oom_score_adj").ok(), "500");
        assert_eq!(p.sh(&["--umask=077"], "umask").ok(), "0077");
        p.sh(&["--privileged"], "grep -q 'NoNewPrivs:.*0' /proc/self/status && mount -t tmpfs tmpfs /data").ok();
    });
}

/// Why CRIU cannot work here, if it cannot.
fn without_criu() -> Option<String> {
    if let Some(name) = ["criu", "iptables-restore"].into_iter().find(|name| !on_path(name)) {
        return Some(format!("needs `{name}` (packages criu, iptables)"));
    }
    // It looks at the kernel through its own connections.
    run(Command::new("ip").args(["link", "set", "lo", "up"])).ok();
    let checked = run(Command::new("criu").arg("check"));
    let said = checked.err.lines().find(|l| l.contains("Error")).unwrap_or("it says no");
    (checked.code != 0).then(|| format!("`criu check`: {said}"))
}

#[test]
fn checkpoint_and_restore() {
    podman(|p| {
        if let Some(why) = without_criu() {
            return skip(&why);
        }
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
        p.run(&["--detach", "--name=c", "--read-only"], &["/bin/sh", "-c", script]).ok();
        let numbers = |name: &str| -> Vec<u64> {
            p.call(&["logs", name]).out.lines().filter_map(|line| line.parse().ok()).collect()
        };
        let last = |name: &str| numbers(name).last().copied().unwrap_or(0);
        let counts = |name: &str, from: u64| wait_for("the count", || (last(name) > from).then_some(()));
        counts("c", 3);
        p.call(&["container", "checkpoint", "c"]).ok();
        let state = p.call(&["inspect", "--format={{.State.Checkpointed}} {{.State.Running}}", "c"]).ok();
        assert_eq!(state, "true false");
        let before = last("c");
        p.call(&["container", "restore", "c"]).ok();
        counts("c", before + 3);
        p.call(&["container", "checkpoint", "--leave-running", "c"]).ok();
        counts("c", last("c") + 3);
        let steady = |name: &str| {
            let all = numbers(name);
            assert!(all.windows(2).all(|w| w[1] == w[0] + 1), "without a gap: {all:?}");
        };
        steady("c");
        // On its way to another host, under another name.
        let archive = p.world.path("c.tar");
        let archive = archive.to_str().expect("UTF-8");
        p.call(&["container", "checkpoint", &format!("--export={archive}"), "c"]).ok();
        let before = last("c");
        p.call(&["rm", "c"]).ok();
        p.call(&["container", "restore", &format!("--import={archive}"), "--name=d"]).ok();
        counts("d", before + 3);
        steady("d");
        assert_eq!(p.call(&["exec", "d", "echo", "awake"]).ok(), "awake");
        p.call(&["kill", "d"]).ok();
        assert_eq!(p.call(&["wait", "d"]).ok(), "137");
        p.call(&["rm", "d"]).ok();
    });
}

/// containerd's runc shim with another runtime (`BinaryName`), by `ctr`.
#[test]
fn containerd() {
    with(&["containerd", "ctr", "podman", "busybox", "tar"], |world| {
        let p = Podman::new(world);
        let archive = p.world.path("bb.tar");
        p.call(&["save", "--format=oci-archive", "--output", archive.to_str().expect("UTF-8"), "bb:1"]).ok();
        let socket = p.world.path("containerd.sock");
        let config = format!(
            "version = 2\nroot = '{0}/cr'\nstate = '{0}/cs'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n\
             [grpc]\naddress = '{1}'\n",
            p.world.dir.path().display(),
            socket.display()
        );
        std::fs::write(p.world.path("containerd.toml"), config).expect("write the configuration");
        let mut daemon = Command::new("containerd")
            .arg("--config")
            .arg(p.world.path("containerd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start containerd");
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("containerd", || socket.exists().then_some(()));
            drive_containerd(&p, &socket, &archive);
        }));
        let _ = daemon.kill();
        let _ = daemon.wait();
        if let Err(panic) = failure {
            std::panic::resume_unwind(panic);
        }
    });
}

fn drive_containerd(p: &Podman, socket: &Path, archive: &Path) {
    let ctr = |words: &[&str]| run(Command::new("ctr").arg("--address").arg(socket).args(words));
    wait_for("containerd's answer", || (ctr(&["version"]).code == 0).then_some(()));
    ctr(&["images", "import", "--snapshotter=native", archive.to_str().expect("UTF-8")]).ok();
    let image = ctr(&["images", "ls", "-q"]).ok();
    let binary = p.world.runtime.to_str().expect("UTF-8");
    let group = format!("{}/ctr", p.group());
    let start = |flag: &str, id: &str, args: &[&str]| {
        let mut words =
            vec!["run", flag, "--cgroup", &group, "--runc-binary", binary, "--snapshotter=native", &image, id];
        words.extend(args);
        ctr(&words)
    };
    assert_eq!(start("--rm", "one", &["echo", "hello"]).ok(), "hello");
    assert_eq!(start("--rm", "two", &["/bin/sh", "-c", "exit 6"]).code, 6);
    start("--detach", "three", &["sleep", "1000"]).ok();
    let exec = ctr(&["task", "exec", "--exec-id=e", "three", "/bin/sh", "-c", "echo in; exit 4"]);
    assert_eq!((exec.code, exec.out.as_str()), (4, "in\n"), "{exec:?}");
    let status = || ctr(&["task", "ls"]).out;
    ctr(&["task", "pause", "three"]).ok();
    assert!(status().contains("PAUSED"), "{}", status());
    ctr(&["task", "resume", "three"]).ok();
    assert!(ctr(&["task", "metrics", "three"]).ok().contains("memory"));
    ctr(&["task", "kill", "--signal=KILL", "three"]).ok();
    wait_for("the end", || status().contains("STOPPED").then_some(()));
    ctr(&["task", "rm", "three"]);
    ctr(&["container", "rm", "three"]).ok();
    if let Some(why) = without_criu() {
        return skip(&why);
    }
    let script = "i=0; while :; do i=$((i+1)); echo $i >/data/n; sleep 0.05; done";
    start("--detach", "four", &["/bin/sh", "-c", script]).ok();
    let number = |exec: &str| -> u64 {
        let flag = format!("--exec-id={exec}");
        ctr(&["task", "exec", &flag, "four", "cat", "/data/n"]).out.trim().parse().unwrap_or(0)
    };
    wait_for("the count", || (number("a") > 3).then_some(()));
    ctr(&["container", "checkpoint", "--rw", "--task", "four", "ck:1"]).ok();
    ctr(&["task", "kill", "--signal=KILL", "four"]).ok();
    wait_for("the end", || status().contains("STOPPED").then_some(()));
    ctr(&["task", "rm", "four"]);
    ctr(&["container", "rm", "four"]).ok();
    ctr(&["container", "restore", "--rw", "--live", "four", "ck:1"]).ok();
    let first = number("b");
    wait_for("the count to go on", || (number("c") > first + 2).then_some(()));
    assert!(first > 3, "from where it was: {first}");
    ctr(&["task", "kill", "--signal=KILL", "four"]).ok();
    wait_for("the end", || status().contains("STOPPED").then_some(()));
    ctr(&["task", "rm", "four"]);
    ctr(&["container", "rm", "four"]).ok();
}
