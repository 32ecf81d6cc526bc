//! What is Linux's alone in a configuration, through `ilot-oci`: groups, devices, filters that ask, ordinary users.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::bundle::Bundle;
use common::{busybox_tree, host_can, libexec, until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn ps_shows_the_containers_processes_alone() {
    if !host_can() {
        return;
    }
    let bundle = Bundle::shell("sleep 1000 & sleep 1000 & wait");
    bundle.up();
    until("its children run", || {
        let list: Vec<i64> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
        list.len() == 3
    });
    let list: Vec<i64> = serde_json::from_str(&bundle.ok(&["ps", "-f", "json", &bundle.id])).unwrap();
    assert!(list.contains(&bundle.state()["pid"].as_i64().unwrap()), "{list:?}");
    let mine = std::fs::read_link("/proc/self/ns/pid").unwrap();
    for pid in &list {
        assert_ne!(std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap(), mine, "{pid} is the host's");
    }
    for options in [&["-ef"][..], &["-o", "user,pid,args"], &[]] {
        let mut args = vec!["ps", bundle.id.as_str()];
        args.extend(options);
        let table = bundle.ok(&args);
        let column = table.lines().next().unwrap().split_whitespace().position(|c| c == "PID").unwrap();
        for line in table.lines().skip(1) {
            let pid: i64 = line.split_whitespace().nth(column).unwrap().parse().unwrap();
            assert!(list.contains(&pid), "{line}");
        }
        assert!(options.contains(&"-o") || table.lines().count() == 4, "{table}");
    }
}

/// The container's group in the v2 hierarchy, if the host has one.
fn v2_group(bundle: &Bundle) -> Option<std::path::PathBuf> {
    let table = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.state()["pid"])).unwrap();
    let v2 = table.lines().find_map(|l| l.strip_prefix("0::")).unwrap_or_default().to_owned();
    let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().map(Path::new);
    let found = mounts.map(|m| m.join(v2.trim_start_matches('/'))).find(|g| g.join("cgroup.procs").exists());
    if found.is_none() {
        eprintln!("SKIPPED: no v2 hierarchy where it is looked for");
    }
    found
}

/// A group that shares out controllers takes no process: the command is in a child of it from its first step on.
#[test]
fn a_command_where_an_init_shares_out_controllers() {
    if !host_can() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.up();
    let Some(group) = v2_group(&bundle) else { return };
    let controllers = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap();
    let Some(controller) = controllers.split_whitespace().next() else {
        eprintln!("SKIPPED: the v2 hierarchy has no controllers here");
        return;
    };
    std::fs::create_dir(group.join("init.scope")).unwrap();
    std::fs::write(group.join("init.scope/cgroup.procs"), bundle.state()["pid"].to_string()).unwrap();
    std::fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    for _ in 0..5 {
        let said = bundle.exec("cat /proc/self/cgroup");
        assert!(said.lines().any(|l| l == "0::/init.scope"), "{said}");
    }
}

#[test]
fn a_command_in_a_group_below_the_containers() {
    if !host_can() {
        return;
    }
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.up();
    assert!(bundle.fails(&["exec", "--cgroup", "inner", &bundle.id, "true"]).contains("inner"));
    let Some(group) = v2_group(&bundle) else { return };
    std::fs::create_dir(group.join("inner")).unwrap();
    for path in ["inner", "/inner", ":inner"] {
        let said = bundle.ok(&["exec", "--cgroup", path, &bundle.id, "cat", "/proc/self/cgroup"]);
        assert!(said.lines().any(|l| l == "0::/inner"), "{path}: {said}");
    }
    assert!(bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]).lines().any(|l| l == "0::/"));
    for path in ["../x", "inner/..", "nonsense:inner"] {
        assert!(!bundle.fails(&["exec", "--cgroup", path, &bundle.id, "true"]).is_empty(), "{path}");
    }
}

#[test]
fn network_devices_move_in() {
    if !host_can() {
        return;
    }
    // Everything in a network namespace of the test's own.
    let mut bundle = Bundle::shell("ip addr show; ip link show");
    bundle.config["linux"]["netDevices"] = json!({"ilt0": {"name": "eth7"}, "ilt1": {"name": "net%d"}});
    let config = bundle.command(&["run", &bundle.id]);
    let run = |prepare: &str| {
        let script = format!(
            "ip link add ilt0 type veth peer name ilt1 && ip addr add 10.9.8.7/24 dev ilt0 && ip link set ilt0 mtu 1400 \
             address 02:00:00:00:00:07 && {prepare} exec \"$0\" \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "/bin/sh", "-c", &script]).arg(config.get_program()).args(config.get_args());
        let output = command.current_dir(bundle.dir.path()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), format!("{out}{err}"))
    };
    let (good, said) = run("");
    assert!(good, "{said}");
    for part in ["eth7", "net0", "10.9.8.7/24", "mtu 1400", "02:00:00:00:00:07", "UP"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (good, said) = run("ip link set ilt1 name other &&");
    assert!(!good && said.contains("ilt1"), "{said}");
}

/// Takes what a runtime sends to a seccomp listener: the state, and the listener itself.
fn receive_listener(socket: &std::os::unix::net::UnixListener) -> (Value, std::os::fd::OwnedFd) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = socket.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; 65536];
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let got = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let fd = control.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut list) => list.next(),
        _ => None,
    });
    (serde_json::from_slice(&text[..got]).unwrap(), fd.unwrap())
}

/// Answers one question of a filter with an error number.
fn answer(listener: &std::os::fd::OwnedFd, errno: i32) {
    use std::os::fd::AsRawFd;
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    // `struct seccomp_notif` begins with the question's id, `struct seccomp_notif_resp` is id, value, error, flags.
    let mut question = [0u64; 10];
    // SAFETY: structures of the sizes that the two calls name.
    unsafe {
        assert_eq!(libc::ioctl(listener.as_raw_fd(), RECEIVE, question.as_mut_ptr()), 0);
        let mut reply = [question[0], 0, u64::from((-errno) as u32)];
        assert_eq!(libc::ioctl(listener.as_raw_fd(), SEND, reply.as_mut_ptr()), 0);
    }
}

#[test]
fn a_filter_that_asks() {
    if !host_can() {
        return;
    }
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::shell("mkdir /tmp/d; sleep 1000");
        let path = bundle.dir.path().join("agent");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "for the test",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        });
        std::thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let (state, listener) = receive_listener(&socket);
                answer(&listener, libc::EXDEV);
                let exec = receive_listener(&socket);
                answer(&exec.1, libc::EXDEV);
                (state, exec.0)
            });
            bundle.up();
            let said = bundle.fails(&["exec", &bundle.id, "mkdir", "/tmp/e"]);
            assert!(said.contains("cross-device"), "{said}");
            let (first, second) = agent.join().unwrap();
            for state in [&first, &second] {
                assert_eq!(state["fds"], json!(["seccompFd"]));
                assert_eq!((&state["metadata"], &state["state"]["id"]), (&json!("for the test"), &json!(bundle.id)));
            }
            assert_eq!(first["pid"], bundle.state()["pid"]);
            assert_ne!(second["pid"], first["pid"]);
        });
        // Nobody listens: the start fails, and nothing waits for an answer.
        bundle.ok(&["delete", "--force", &bundle.id]);
        std::fs::remove_file(&path).unwrap();
        assert!(bundle.fails(&["run", &bundle.id]).contains("listener"));
        bundle.config["linux"]["seccomp"].as_object_mut().unwrap().remove("listenerPath");
        assert!(bundle.fails(&["run", &bundle.id]).contains("listenerPath"));
    }
}

/// An ordinary user with what `spec --rootless` writes, and with subordinate ids where they can be had.
#[test]
fn an_ordinary_user_runs_containers() {
    if !host_can() || !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("SKIPPED: needs root, busybox and setpriv");
        return;
    }
    let user = 0x3fff_1234;
    let dir = tempfile::Builder::new().prefix("ilot-rootless-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    busybox_tree(&path("rootfs"));
    std::fs::copy(libexec().join("ilot-oci"), path("ilot-oci")).unwrap();
    let owned = Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(dir.path()).status().unwrap();
    assert!(owned.success());
    let call = |args: &[&str]| {
        let (out, err) = (path("out"), path("err"));
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups", "--"]);
        command.arg(path("ilot-oci")).arg("--root").arg(path("state")).args(args).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(std::fs::File::create(&out).unwrap());
        let status = command.stderr(std::fs::File::create(&err).unwrap()).status().unwrap();
        let read = |p: &Path| std::fs::read_to_string(p).unwrap();
        (status.success(), read(&out) + &read(&err))
    };
    let (good, said) = call(&["spec", "--rootless"]);
    assert!(good, "{said}");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path("config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/x; sleep 1000"]);
    config["root"]["readonly"] = json!(false);
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let (good, said) = call(&["run", "--detach", "rl"]);
    assert!(good, "{said}");
    until("it has written", || path("rootfs/tmp/x").exists());
    let (good, said) = call(&["exec", "rl", "cat", "/proc/1/comm"]);
    assert!(good && ["sh", "sleep"].contains(&said.trim()), "{said}");
    let (good, said) = call(&["delete", "--force", "rl"]);
    assert!(good, "{said}");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path("rootfs/tmp/x")).unwrap());
    assert_eq!(owner, user);
    // Ids that nobody gave to this user, then the same given to it.
    let base = 0x3ffe_0000;
    let map = |own: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": base, "size": 1000}]);
    config["linux"]["uidMappings"] = map(user);
    config["linux"]["gidMappings"] = map(user);
    config["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
    config["process"]["args"] = json!(["/bin/sh", "-c", "id -u; id -G; touch /tmp/y"]);
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let (good, said) = call(&["run", "rl"]);
    assert!(!good && (said.contains("subuid") || said.contains("newuidmap")), "{said}");
    if !["/usr/bin/newuidmap", "/etc/subuid", "/etc/subgid"].iter().all(|p| Path::new(p).exists()) {
        eprintln!("SKIPPED in part: needs newuidmap, /etc/subuid and /etc/subgid");
        return;
    }
    // In a mount namespace of the test's own, where these files are its own.
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    std::fs::write(path("passwd"), format!("{passwd}iltest:x:{user}:{user}::/:/bin/sh\n")).unwrap();
    std::fs::write(path("ids"), format!("iltest:{base}:1000\n")).unwrap();
    std::fs::set_permissions(path("rootfs/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let script = format!(
        "mount --bind passwd /etc/passwd && mount --bind ids /etc/subuid && mount --bind ids /etc/subgid && \
         exec setpriv --reuid {user} --regid {user} --clear-groups -- ./ilot-oci --root state run rl"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script]).current_dir(dir.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "7\n8 9\n");
    let made = std::fs::metadata(path("rootfs/tmp/y")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), base + 6);
}

/// A group that is given to an ordinary user, and taken back in the end.
struct Delegated(std::path::PathBuf);

impl Delegated {
    fn new(user: u32, controllers: &[&str]) -> Option<Self> {
        let top = Path::new("/sys/fs/cgroup");
        let there = std::fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
        if !controllers.iter().all(|c| there.split_whitespace().any(|t| t == *c)) {
            eprintln!("SKIPPED: needs a v2 hierarchy with the controllers {controllers:?}");
            return None;
        }
        for controller in controllers {
            std::fs::write(top.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
        }
        let group = Self(top.join(format!("ilot-delegated-{}", std::process::id())));
        std::fs::create_dir(&group.0).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            std::os::unix::fs::chown(group.0.join(file), Some(user), Some(user)).unwrap();
        }
        Some(group)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        let end = std::time::Instant::now() + common::LIMIT;
        while self.0.exists() && std::time::Instant::now() < end {
            for child in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(child.path());
            }
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

/// An ordinary user whose own group is delegated has limits: the runtime steps aside and shares controllers out.
#[test]
fn an_ordinary_user_with_a_delegated_group() {
    if !host_can() || !Path::new("/usr/bin/setpriv").exists() {
        eprintln!("SKIPPED: needs root, busybox and setpriv");
        return;
    }
    let user = 0x3fff_2345;
    let Some(group) = Delegated::new(user, &["memory", "pids", "cpu"]) else { return };
    let dir = tempfile::Builder::new().prefix("ilot-delegated-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    busybox_tree(&path("rootfs"));
    std::fs::copy(libexec().join("ilot-oci"), path("ilot-oci")).unwrap();
    let owned = Command::new("chown").args(["-R", &format!("{user}:{user}")]).arg(dir.path()).status().unwrap();
    assert!(owned.success());
    // Each command in the delegated group itself, as a login shell's would be; once that is divided, where the first went.
    let call = |args: &str| {
        let script = format!(
            "{{ echo $$ >{0}/cgroup.procs || echo $$ >{0}/ilot-self/cgroup.procs; }} 2>/dev/null && exec setpriv --reuid {user} --regid {user} --clear-groups -- \
             ./ilot-oci --root state {args} >out 2>&1",
            group.0.display()
        );
        let mut command = Command::new("sh");
        let status = command.args(["-c", &script]).current_dir(dir.path()).stdin(Stdio::null()).status().unwrap();
        (status.success(), std::fs::read_to_string(path("out")).unwrap())
    };
    assert!(call("spec --rootless").0);
    let mut config: Value = serde_json::from_slice(&std::fs::read(path("config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sleep", "1000"]);
    config["linux"]["resources"] =
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 33}, "cpu": {"shares": 512}});
    std::fs::write(path("config.json"), config.to_string()).unwrap();
    let (good, said) = call("run --detach rl");
    assert!(good, "{said}");
    let own = group.0.join("ilot-oci-rl");
    let read = |file: &str| std::fs::read_to_string(own.join(file)).unwrap_or_default().trim().to_owned();
    assert_eq!((read("memory.max"), read("pids.max")), ((64 << 20).to_string(), "33".to_owned()));
    assert_ne!(read("cpu.weight"), "100");
    assert_eq!(read("cgroup.procs").lines().count(), 1);
    let (good, said) = call("update --memory 32m rl");
    assert!(good, "{said}");
    assert_eq!(read("memory.max"), (32 << 20).to_string());
    let (good, said) = call("pause rl");
    assert!(good && read("cgroup.freeze") == "1", "{said}");
    let (good, said) = call("delete --force rl");
    assert!(good, "{said}");
    assert!(!own.exists());
}

#[test]
fn what_this_host_lacks_is_named() {
    if !host_can() {
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["intelRdt"] = json!({"closID": "../x"});
    assert!(bundle.fails(&["run", &bundle.id]).contains("closID"));
    bundle.config["linux"]["intelRdt"] = json!({"closID": "x"});
    assert!(bundle.fails(&["run", &bundle.id]).contains("intelRdt"));
    bundle.config["linux"].as_object_mut().unwrap().remove("intelRdt");
    if Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("SKIPPED in part: this host has SELinux");
        return;
    }
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0:c1,c2");
    assert!(bundle.fails(&["run", &bundle.id]).contains("SELinux is not enabled"));
    bundle.config["linux"]["mountLabel"] = json!("");
    bundle.run();
}
