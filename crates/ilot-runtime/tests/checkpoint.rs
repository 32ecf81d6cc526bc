//! `ilot-oci checkpoint` and `restore`, with real containers and a real CRIU. `RUNTIME=runc` runs the same tests on another
//! runtime.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::bundle::Bundle;
use common::{host_can, until};
use serde_json::json;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether CRIU is there and works with this kernel; says why not.
fn criu_can() -> bool {
    let said = match Command::new("criu").arg("check").output() {
        Ok(output) if output.status.success() => {
            // Before, it can hold the network still by iptables only.
            let iptables = Command::new("iptables-restore").arg("--version").output();
            if criu_version() >= (4, 1) || iptables.is_ok_and(|o| o.status.success()) {
                return host_can();
            }
            "CRIU before 4.1 needs `iptables`".to_owned()
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let text = text.lines().find(|l| l.contains("Error")).unwrap_or("it says no").to_owned();
            format!("`criu check`: {text}")
        }
        Err(error) => format!("needs `criu`: {error}"),
    };
    eprintln!("SKIPPED: {said}");
    false
}

fn criu_version() -> (u32, u32) {
    let version = Command::new("criu").arg("--version").output().unwrap();
    numbers(String::from_utf8_lossy(&version.stdout).trim_start_matches("Version: "))
}

/// CRIU before 4.2 knows nothing of what Linux 6.16 says about sockets.
fn sockets_can() -> bool {
    let version = criu_version();
    let kernel = numbers(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap());
    let can = version >= (4, 2) || kernel < (6, 16);
    if !can {
        eprintln!("SKIPPED in part: CRIU {version:?} cannot write down sockets of Linux {kernel:?}");
    }
    can
}

fn numbers(text: &str) -> (u32, u32) {
    let mut parts = text.trim().split('.').map(|p| p.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// The program that runs inside, built when it has changed.
fn guest() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/helpers/guest.rs");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    let time = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    if time(&program).is_none_or(|built| Some(built) < time(&source)) {
        let aside = program.with_extension(std::process::id().to_string());
        let status = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "-C", "target-feature=+crt-static", "-o"])
            .args([&aside, &source])
            .env_remove("RUSTFLAGS")
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::rename(aside, &program).unwrap();
    }
    program
}

/// A container with a folder of the host's at `/data`, and the program as its process.
struct Guest {
    bundle: Bundle,
}

impl Guest {
    fn new(args: &[&str]) -> Self {
        let mut words = vec!["/bin/guest"];
        words.extend(args);
        let mut bundle = Bundle::new(&words);
        std::fs::copy(guest(), bundle.rootfs().join("bin/guest")).unwrap();
        let data = bundle.dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]}));
        Self { bundle }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bundle.dir.path().join(name)
    }

    fn number(&self, name: &str) -> u64 {
        std::fs::read_to_string(self.path(name)).ok().and_then(|t| t.parse().ok()).unwrap_or(0)
    }

    /// Runs, and has counted a while.
    fn up(&self, name: &str) {
        self.bundle.up();
        until("it counts", || self.number(name) > 5);
    }

    fn checkpoint(&self, flags: &[&str]) -> Vec<String> {
        let mut words = vec!["checkpoint", "--image-path", "images", "--work-path", "work"];
        words.extend(flags);
        words.push(&self.bundle.id);
        words.into_iter().map(ToOwned::to_owned).collect()
    }

    fn restore(&self, flags: &[&str]) -> Vec<String> {
        let mut words = vec!["restore", "--detach", "--image-path", "images", "--work-path", "work"];
        words.extend(flags);
        words.push(&self.bundle.id);
        words.into_iter().map(ToOwned::to_owned).collect()
    }

    fn ok(&self, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.bundle.ok(&words);
    }

    fn fails(&self, words: &[String]) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.bundle.fails(&words)
    }

    /// Down, and back; the number goes on from where it was.
    fn round(&self, name: &str, down: &[&str], back: &[&str]) {
        self.ok(&self.checkpoint(down));
        let before = self.number(name);
        self.bundle.fails(&["state", &self.bundle.id]);
        self.ok(&self.restore(back));
        until("it goes on", || self.number(name) > before + 5);
        assert_eq!(self.bundle.state()["status"], "running");
    }
}

#[test]
fn it_goes_on_from_where_it_was() {
    if !criu_can() {
        return;
    }
    let guest = Guest::new(&["count", "/data/n"]);
    guest.up("data/n");
    let limit = "/sys/fs/cgroup/memory";
    let before = guest.bundle.state()["pid"].clone();
    guest.round("data/n", &[], &["--pid-file", "pid"]);
    let state = guest.bundle.state();
    assert_eq!(std::fs::read_to_string(guest.path("pid")).unwrap(), state["pid"].to_string());
    assert_ne!(before, state["pid"]);
    assert!(guest.path("work/dump.log").is_file() && guest.path("work/restore.log").is_file());
    // All commands work on it, and it is as confined as it was.
    assert_eq!(guest.bundle.exec("cat /proc/1/comm; hostname").trim(), "guest\nbundle");
    assert_eq!(guest.bundle.exec("wc -c </proc/keys").trim(), "0");
    assert_eq!(guest.bundle.exec("touch /proc/sys/x 2>/dev/null || echo refused").trim(), "refused");
    assert_eq!(guest.bundle.exec("grep NoNewPrivs /proc/1/status").split_whitespace().last(), Some("1"));
    let group = PathBuf::from(limit).join("ilot-oci-test").join(&guest.bundle.id);
    if group.is_dir() {
        assert_eq!(
            std::fs::read_to_string(group.join("memory.limit_in_bytes")).unwrap().trim(),
            (64 << 20).to_string()
        );
        assert!(std::fs::read_to_string(group.join("cgroup.procs")).unwrap().contains(&state["pid"].to_string()));
    }
    guest.bundle.ok(&["pause", &guest.bundle.id]);
    assert_eq!(guest.bundle.state()["status"], "paused");
    guest.bundle.ok(&["resume", &guest.bundle.id]);
    // What came back can go again.
    guest.round("data/n", &[], &[]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("criu-root"), "{mounts}");
    guest.bundle.ok(&["kill", &guest.bundle.id, "KILL"]);
    until("it stops", || guest.bundle.state()["status"] == "stopped");
    guest.bundle.ok(&["delete", &guest.bundle.id]);
}

#[test]
fn a_paused_one_and_one_that_is_left_running() {
    if !criu_can() {
        return;
    }
    let guest = Guest::new(&["count", "/data/n"]);
    guest.up("data/n");
    let pid = guest.bundle.state()["pid"].clone();
    guest.ok(&guest.checkpoint(&["--leave-running"]));
    let before = guest.number("data/n");
    until("it goes on", || guest.number("data/n") > before + 5);
    assert_eq!(guest.bundle.state()["pid"], pid);
    assert!(guest.fails(&guest.restore(&[])).contains("already exists"));
    // The copy takes over from the moment of the checkpoint, so from an earlier number.
    let late = guest.number("data/n");
    guest.bundle.ok(&["delete", "--force", &guest.bundle.id]);
    assert!(late > before);
    guest.ok(&guest.restore(&[]));
    until("it counts", || guest.number("data/n") > late);
    guest.bundle.ok(&["pause", &guest.bundle.id]);
    guest.round("data/n", &[], &[]);
}

#[test]
fn in_the_foreground_with_pipes_and_an_exit_status() {
    if !criu_can() {
        return;
    }
    let mut bundle = Bundle::shell("echo first; read x; echo got $x; read x; echo got $x; exit 7");
    bundle.config["process"]["cwd"] = json!("/tmp");
    let mut command = bundle.command(&["run", "--keep", &bundle.id]);
    let errors = std::fs::File::create(bundle.dir.path().join("errors")).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    input.write_all(b"one\n").unwrap();
    let mut text = [0; 14];
    output.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"first\ngot one\n");
    // Its program can be faster than whoever started it.
    until("it is known to run", || bundle.state()["status"] == "running");
    bundle.ok(&["checkpoint", "--image-path", "images", &bundle.id]);
    child.wait().unwrap();
    let names: Vec<String> =
        serde_json::from_slice(&std::fs::read(bundle.dir.path().join("images/descriptors.json")).unwrap()).unwrap();
    assert!(
        names[2].starts_with("file[") && names[0].starts_with("pipe:[") && names[1].starts_with("pipe:["),
        "{names:?}"
    );
    let mut command = bundle.command(&["restore", "--image-path", "images", &bundle.id]);
    // Its errors went to a file, so they cannot go to one now.
    let refused = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("standard error") && error.contains("permissions 644"),
        "{error}"
    );
    let mut command = bundle.command(&["restore", "--image-path", "images", &bundle.id]);
    let errors = std::fs::File::create(bundle.dir.path().join("other-errors")).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"two\n").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "got two\n");
    assert_eq!(child.wait().unwrap().code(), Some(7));
    bundle.fails(&["state", &bundle.id]);
}

#[test]
fn a_terminal_comes_back() {
    if !criu_can() {
        return;
    }
    let mut bundle = Bundle::shell("while read x; do echo got $x; tty; done");
    bundle.config["process"]["terminal"] = json!(true);
    let path = bundle.dir.path().join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    bundle.ok(&["create", "--console-socket", "console", &bundle.id]);
    let mut first = receive_terminal(&listener);
    bundle.ok(&["start", &bundle.id]);
    first.write_all(b"one\n").unwrap();
    wait_for_text(&mut first, "/dev/pts/0");
    bundle.ok(&["checkpoint", "--image-path", "images", &bundle.id]);
    drop(first);
    bundle.ok(&["restore", "--detach", "--console-socket", "console", "--image-path", "images", &bundle.id]);
    let mut second = receive_terminal(&listener);
    second.write_all(b"two\n").unwrap();
    let text = wait_for_text(&mut second, "/dev/pts/0");
    assert!(text.contains("got two") && !text.contains("one"), "{text}");
}

fn receive_terminal(listener: &std::os::unix::net::UnixListener) -> std::fs::File {
    let (socket, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(&socket, &mut slices, &mut control, rustix::net::RecvFlags::CMSG_CLOEXEC).unwrap();
    let Some(rustix::net::RecvAncillaryMessage::ScmRights(mut fds)) = control.drain().next() else {
        panic!("no descriptor")
    };
    std::fs::File::from(fds.next().unwrap())
}

fn wait_for_text(terminal: &mut std::fs::File, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    while !text.contains(wanted) {
        let fd = terminal.as_fd();
        let mut list = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        assert!(rustix::event::poll(&mut list, Some(&limit)).unwrap() > 0, "waited for {wanted}: {text}");
        let n = terminal.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    text
}

#[test]
fn established_connections() {
    if !criu_can() || !sockets_can() {
        return;
    }
    let guest = Guest::new(&["tcp", "/data/n"]);
    guest.up("data/n");
    let error = guest.fails(&guest.checkpoint(&[]));
    assert!(error.contains("use `--tcp-established`") && error.contains("work/dump.log"), "{error}");
    // It was not harmed.
    let before = guest.number("data/n");
    until("it goes on", || guest.number("data/n") > before + 5);
    guest.round("data/n", &["--tcp-established"], &["--tcp-established"]);
}

#[test]
fn file_locks() {
    if !criu_can() {
        return;
    }
    let guest = Guest::new(&["lock", "/data/lock"]);
    guest.up("data/lock.n");
    let error = guest.fails(&guest.checkpoint(&[]));
    assert!(error.contains("use `--file-locks`"), "{error}");
    guest.round("data/lock.n", &["--file-locks"], &["--file-locks"]);
    assert_eq!(guest.bundle.exec("guest try /data/lock").trim(), "held");
}

#[test]
fn pre_dump_or_a_clear_word() {
    if !criu_can() {
        return;
    }
    let guest = Guest::new(&["count", "/data/n"]);
    guest.up("data/n");
    let words = ["checkpoint", "--pre-dump", "--image-path", "first", &guest.bundle.id];
    let checked = Command::new("criu").args(["check", "--feature", "mem_dirty_track"]).output().unwrap();
    if checked.status.success() {
        guest.bundle.ok(&words);
        assert_eq!(guest.bundle.state()["status"], "running");
        guest.round("data/n", &["--parent-path", "../first"], &[]);
    } else {
        let error = guest.bundle.fails(&words);
        assert!(error.contains("CONFIG_MEM_SOFT_DIRTY") && error.contains("in one step"), "{error}");
        let before = guest.number("data/n");
        until("it goes on", || guest.number("data/n") > before + 5);
    }
}

#[test]
fn mounts_by_name() {
    if !criu_can() {
        return;
    }
    let mut guest = Guest::new(&["count", "/data/n"]);
    let outside = guest.path("outside");
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    std::fs::write(outside.join("file"), "of the host").unwrap();
    std::os::unix::fs::symlink("/tmp/real", guest.bundle.rootfs().join("link")).unwrap();
    std::fs::create_dir(guest.bundle.rootfs().join("tmp/real")).unwrap();
    let mounts = guest.bundle.config["mounts"].as_array_mut().unwrap();
    mounts.extend([
        json!({"destination": "/ro", "type": "bind", "source": outside, "options": ["bind", "ro"]}),
        json!({"destination": "/link", "type": "bind", "source": outside, "options": ["bind"]}),
        json!({"destination": "/etc/one", "type": "bind", "source": outside.join("file"), "options": ["bind", "ro"]}),
        json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}),
        json!({"destination": "/scratch/in", "type": "bind", "source": outside, "options": ["bind"]}),
    ]);
    guest.bundle.config["root"]["readonly"] = json!(true);
    guest.up("data/n");
    guest.bundle.exec("echo kept >/scratch/file");
    let look = "cat /ro/file /link/file /etc/one /scratch/in/file /scratch/file; cat /tmp/real/file
        for p in /ro /etc/one /; do touch $p 2>/dev/null && echo $p is writable; done; touch /link/new; echo done";
    let before = guest.bundle.exec(look);
    assert!(before.ends_with("done\n") && before.contains("kept") && !before.contains("writable"), "{before}");
    guest.round("data/n", &[], &[]);
    assert_eq!(guest.bundle.exec(look), before);
}

#[test]
fn a_user_namespace() {
    if !criu_can() {
        return;
    }
    let mut guest = Guest::new(&["count", "/data/n"]);
    let linux = &mut guest.bundle.config["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
    (linux["uidMappings"], linux["gidMappings"]) = (map.clone(), map);
    for path in [guest.bundle.dir.path().to_owned(), guest.path("data"), guest.bundle.rootfs()] {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    // Its output is opened anew, by its own root.
    let quiet = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = guest.bundle.command(&words);
        assert!(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    };
    quiet(&["create".to_owned(), guest.bundle.id.clone()]);
    guest.bundle.ok(&["start", &guest.bundle.id]);
    until("it counts", || guest.number("data/n") > 5);
    guest.ok(&guest.checkpoint(&[]));
    let before = guest.number("data/n");
    let mode = std::os::unix::fs::PermissionsExt::mode(&guest.path("images").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    quiet(&guest.restore(&[]));
    until("it goes on", || guest.number("data/n") > before + 5);
    assert!(
        guest.bundle.exec("cat /proc/self/uid_map; echo x >/dev/null; head -c1 /dev/zero | wc -c").contains("300000")
    );
}

#[test]
fn a_network_namespace_of_others() {
    if !criu_can() || !sockets_can() {
        return;
    }
    let mut guest = Guest::new(&["tcp", "/data/n"]);
    // A process that holds it.
    let mut holder = Command::new("unshare");
    holder.args(["--net", "sh", "-c", "echo; exec sleep 1000"]);
    let mut holder = holder.stdout(Stdio::piped()).spawn().unwrap();
    holder.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let up = Command::new("nsenter").arg(format!("--net={path}")).args(["ip", "link", "set", "lo", "up"]).status();
    assert!(up.unwrap().success());
    let namespaces = guest.bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|n| n["type"] != "network");
    namespaces.push(json!({"type": "network", "path": path}));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        guest.up("data/n");
        guest.round("data/n", &["--tcp-established"], &["--tcp-established"]);
        let pid = guest.bundle.state()["pid"].to_string();
        let link = |path: &str| std::fs::read_link(path).unwrap();
        assert_eq!(link(&format!("/proc/{pid}/ns/net")), link(&path));
        guest.bundle.ok(&["delete", "--force", &guest.bundle.id]);
    }));
    holder.kill().unwrap();
    holder.wait().unwrap();
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn under_another_name_with_hooks() {
    if !criu_can() {
        return;
    }
    let mut guest = Guest::new(&["count", "/data/n"]);
    guest.up("data/n");
    guest.ok(&guest.checkpoint(&[]));
    let before = guest.number("data/n");
    let old = std::mem::take(&mut guest.bundle.id);
    guest.bundle.id = format!("{old}-b");
    guest.bundle.config["linux"]["cgroupsPath"] = json!(format!("/ilot-oci-test/{}", guest.bundle.id));
    let script = format!("cat >{}", guest.path("hook").display());
    guest.bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    guest.ok(&guest.restore(&[]));
    until("it goes on", || guest.number("data/n") > before + 5);
    let pid = guest.bundle.state()["pid"].to_string();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.contains(&guest.bundle.id) && !groups.lines().any(|l| l.ends_with(&old)), "{groups}");
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(guest.path("hook")).unwrap()).unwrap();
    assert_eq!((state["id"].as_str(), state["pid"].to_string()), (Some(guest.bundle.id.as_str()), pid));
    // A hook that fails ends it, and nothing stays.
    guest.bundle.ok(&["kill", &guest.bundle.id, "KILL"]);
    until("it stops", || guest.bundle.state()["status"] == "stopped");
    guest.bundle.ok(&["delete", &guest.bundle.id]);
    guest.bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    let error = guest.fails(&guest.restore(&[]));
    assert!(error.contains("/bin/false") && error.contains("createRuntime"), "{error}");
    guest.bundle.fails(&["state", &guest.bundle.id]);
}

#[test]
fn pages_that_come_later() {
    if !criu_can() {
        return;
    }
    let checked = Command::new("criu").args(["check", "--feature", "uffd-noncoop"]).output().unwrap();
    if !checked.status.success() {
        eprintln!("SKIPPED: no userfaultfd for other processes");
        return;
    }
    let guest = Guest::new(&["count", "/data/n"]);
    guest.up("data/n");
    guest.ok(&guest.checkpoint(&[]));
    let before = guest.number("data/n");
    // The server of the pages, for images of this host.
    let mut server = Command::new("criu");
    server.arg("lazy-pages").arg("--images-dir").arg(guest.path("images")).arg("--work-dir").arg(guest.path("work"));
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the page server listens", || guest.path("work/lazy-pages.socket").exists());
    let words: Vec<String> = guest.restore(&["--lazy-pages"]);
    guest.ok(&words);
    until("it goes on", || guest.number("data/n") > before + 5);
    assert!(server.wait().unwrap().success());
}

#[test]
fn what_cannot_be_says_so() {
    if !host_can() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "1000"]);
    let id = bundle.id.as_str();
    bundle.ok(&["create", id]);
    assert!(bundle.fails(&["checkpoint", id]).contains("it is created, not running"));
    bundle.ok(&["start", id]);
    let checkpoint = ["--criu", "/no/such/criu", "checkpoint", id];
    let error = bundle.fails(&checkpoint);
    assert!(error.contains("`/no/such/criu`") && error.contains("install CRIU"), "{error}");
    let error = bundle.fails(&["--criu", "/bin/true", "checkpoint", id]);
    assert!(error.contains("`/bin/true`") && error.contains("ended without an answer"), "{error}");
    let features = |flag: &[&str]| -> serde_json::Value {
        let words: Vec<&str> = flag.iter().copied().chain(["features"]).collect();
        serde_json::from_str(&bundle.ok(&words)).unwrap()
    };
    let name = "org.opencontainers.runc.checkpoint.enabled";
    assert_eq!(features(&["--criu", "/no/such/criu"])["annotations"][name], serde_json::Value::Null);
    assert_eq!(features(&["--criu", "/bin/true"])["annotations"][name], "true");
    // How Podman asks whether there are checkpoints, and for pods.
    bundle.ok(&["checkpoint", "--help"]);
    assert!(bundle.fails(&["restore", "--lsm-profile"]).contains("flag needs an argument"));
    if !criu_can() {
        return;
    }
    assert!(bundle.fails(&["restore", "--image-path", "nowhere", "other"]).contains("nowhere"));
    std::fs::create_dir(bundle.dir.path().join("empty")).unwrap();
    assert!(bundle.fails(&["restore", "--image-path", "empty", "other"]).contains("there is no checkpoint in it"));
    assert!(bundle.fails(&["checkpoint", "--manage-cgroups-mode", "odd", id]).contains("`odd` is none of"));
    assert!(bundle.fails(&["checkpoint", "--empty-ns", "ipc", id]).contains("only `network`"));
    assert!(bundle.fails(&["checkpoint", "--page-server", "here", id]).contains("ADDRESS:PORT"));
}
