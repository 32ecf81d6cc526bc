//! A bundle with busybox in it, and the container made of it.

use crate::{Kind, Output, Runtime, Value, json, runtime, skip, wait_for};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The program of `probe/probe.c`.
const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));

/// Commands that the root file system has.
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "echo", "grep", "id", "stat", "mount", "umount", "mkdir", "mknod", "rm", "ln", "sleep", "true",
    "false", "touch", "readlink", "hostname", "dd", "chown", "chmod", "env", "pwd", "test", "head", "tr", "sort",
    "kill", "ps", "find", "wc", "cp", "mv", "tty", "stty", "sed", "date", "awk", "cut", "setsid", "umask", "nc", "ip",
    "sysctl",
];

/// One container: its bundle, and what the runtime knows of it. Dropped, nothing of it is left.
pub struct Bundle {
    /// The container's id.
    pub id: String,
    /// `config.json`, written before each command that reads it.
    pub config: Value,
    /// The runtime that runs it.
    pub runtime: Runtime,
    /// Global flags before the command.
    pub global: Vec<String>,
    dir: tempfile::TempDir,
}

impl Bundle {
    /// A bundle of the default configuration that runs `true`.
    #[must_use]
    pub fn new() -> Self {
        let runtime = Runtime::selected().unwrap_or_else(|error| panic!("{error}"));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("conform-{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("ilot-conform-").tempdir().expect("a directory for the bundle");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("open the directory");
        let bundle = Self { config: default_config(&id), id, runtime, global: Vec::new(), dir };
        bundle.fill_rootfs();
        bundle
    }

    /// A bundle that runs a shell script.
    #[must_use]
    pub fn sh(script: &str) -> Self {
        let mut bundle = Self::new();
        bundle.args(&["/bin/sh", "-c", script]);
        bundle
    }

    /// A bundle that waits to be killed.
    #[must_use]
    pub fn sleeper() -> Self {
        Self::sh("trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait $!; done")
    }

    fn fill_rootfs(&self) {
        let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())
        else {
            skip("needs a static busybox (package busybox-static)")
        };
        let root = self.rootfs();
        for dir in ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "mnt"] {
            fs::create_dir_all(root.join(dir)).expect("make the tree");
        }
        fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
        for applet in APPLETS {
            let _ = symlink("busybox", root.join("bin").join(applet));
        }
        if !PROBE.is_empty() {
            fs::write(root.join("bin/probe"), PROBE).expect("write the probe");
            fs::set_permissions(root.join("bin/probe"), Permissions::from_mode(0o755)).expect("probe's mode");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
            .expect("write passwd");
        fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("write group");
    }

    /// Skips the test if the probe could not be built.
    pub fn need_probe(&self) {
        crate::need(!PROBE.is_empty(), "needs a C compiler with a static libc");
    }

    /// The bundle's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The root file system's directory.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Where the runtime keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Sets the program to run.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// Adds a mount.
    pub fn mount(&mut self, mount: Value) -> &mut Self {
        self.config["mounts"].as_array_mut().expect("mounts").push(mount);
        self
    }

    /// Removes the namespace of a kind, or sets its path.
    pub fn namespace(&mut self, kind: &str, entry: Option<Value>) -> &mut Self {
        let list = self.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        list.retain(|n| n["type"] != kind);
        list.extend(entry);
        self
    }

    /// Gives the container a user namespace: ids 0 to 65535 are `base` and up on the host.
    pub fn user_namespace(&mut self, base: u32) -> &mut Self {
        self.namespace("user", Some(json!({"type": "user"})));
        let map = json!([{"containerID": 0, "hostID": base, "size": 65536}]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        chown_tree(&self.rootfs(), base);
        self
    }

    /// All capabilities that this host can give.
    pub fn all_capabilities(&mut self) -> &mut Self {
        let text = crate::host::read("/proc/self/status");
        let bits = text.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or("0").trim();
        let bits = u64::from_str_radix(bits, 16).unwrap_or(0);
        let names: Vec<String> = CAPABILITIES
            .iter()
            .enumerate()
            .filter(|(i, _)| bits >> i & 1 == 1)
            .map(|(_, name)| format!("CAP_{name}"))
            .collect();
        for set in ["bounding", "effective", "permitted"] {
            self.config["process"]["capabilities"][set] = json!(names);
        }
        self
    }

    /// Writes `config.json`.
    pub fn save(&self) {
        let text = serde_json::to_string_pretty(&self.config).expect("JSON");
        fs::write(self.dir.path().join("config.json"), text).expect("write config.json");
    }

    /// The runtime's command line up to and with `words`.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.runtime.command();
        command.arg("--root").arg(self.state_dir()).args(&self.global).args(words);
        command
    }

    /// Runs a command of the runtime.
    #[track_caller]
    pub fn call(&self, words: &[&str]) -> Output {
        runtime::run(self.command(words))
    }

    /// `run` in the foreground, to the end of the container.
    #[track_caller]
    pub fn run(&self) -> Output {
        self.run_with(&[])
    }

    /// `run` with flags.
    #[track_caller]
    pub fn run_with(&self, flags: &[&str]) -> Output {
        self.save();
        runtime::run(self.bundle_command("run", flags))
    }

    /// `create` or `run` on this bundle.
    #[must_use]
    pub fn bundle_command(&self, word: &str, flags: &[&str]) -> Command {
        let mut command = self.command(&[word, "--bundle"]);
        command.arg(self.dir.path()).args(flags).arg(&self.id);
        command
    }

    /// `create`; the container's output is read with [`Bundle::log`].
    #[track_caller]
    pub fn create(&self) -> Output {
        self.create_with(&[])
    }

    /// `create` with flags.
    #[track_caller]
    pub fn create_with(&self, flags: &[&str]) -> Output {
        self.save();
        self.detached(self.bundle_command("create", flags))
    }

    /// Runs a command whose standard streams the container keeps.
    #[track_caller]
    pub fn detached(&self, mut command: Command) -> Output {
        let log = fs::File::create(self.log_path()).expect("log");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("start the runtime");
        let status = wait_for("the runtime's create", || child.try_wait().expect("wait"));
        let text = self.log();
        Output { code: status.code().unwrap_or(128), out: text.clone(), err: text }
    }

    /// Starts `run` in the background.
    #[must_use]
    pub fn spawn(&self, flags: &[&str]) -> Child {
        self.save();
        let log = fs::File::create(self.log_path()).expect("log");
        self.bundle_command("run", flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("start the runtime")
    }

    /// `create` and `start`, then waits until the container has written `up`.
    #[track_caller]
    pub fn up(&self) -> &Self {
        self.create().ok();
        self.call(&["start", &self.id]).ok();
        wait_for("the container's `up`", || self.log().contains("up").then_some(()));
        self
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What a created container has written.
    #[must_use]
    pub fn log(&self) -> String {
        crate::host::read(self.log_path())
    }

    /// `start`.
    #[track_caller]
    pub fn start(&self) {
        self.call(&["start", &self.id]).ok();
    }

    /// `state`.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.call(&["state", &self.id]).json()
    }

    /// The host's number of the container's process 1.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().expect("a pid") as i32
    }

    /// Waits for a status.
    #[track_caller]
    pub fn wait_status(&self, status: &str) {
        wait_for(&format!("status `{status}`"), || (self.state()["status"] == status).then_some(()));
    }

    /// Waits until a `run` in the background has its container running.
    #[track_caller]
    pub fn wait_for_running(&self) {
        wait_for("a running container", || {
            let output = self.call(&["state", &self.id]);
            (output.code == 0 && output.out.contains("\"running\"")).then_some(())
        });
    }

    /// Waits for the end of a container made by [`Bundle::create`].
    #[track_caller]
    pub fn wait_end(&self) {
        self.wait_status("stopped");
    }

    /// `exec` with a command.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], args: &[&str]) -> Output {
        let mut words = vec!["exec"];
        words.extend(flags);
        words.push(&self.id);
        words.extend(args);
        self.call(&words)
    }

    /// `exec` of a shell script.
    #[track_caller]
    pub fn exec_sh(&self, script: &str) -> Output {
        self.exec(&[], &["/bin/sh", "-c", script])
    }

    /// Runs a script as the container's only process and gives its output.
    #[track_caller]
    pub fn output(&mut self, script: &str) -> String {
        self.args(&["/bin/sh", "-c", script]);
        self.run().ok()
    }

    /// A control file of the container's group: in the hierarchy of a v1 controller, or the only one.
    #[must_use]
    pub fn cgroup(&self, controller: &str, file: &str) -> String {
        let controller = if crate::host::is_unified() { "." } else { controller };
        let path = format!("/sys/fs/cgroup/{controller}/{}/{file}", self.id);
        crate::host::read(path).trim().to_owned()
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.state_dir().exists() {
            let done =
                self.command(&["delete", "--force", &self.id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            drop(done);
        }
        unmount_below(self.dir.path());
        // What a failed runtime left, or one that keeps a group for its owner.
        let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for group in groups.map(|entry| entry.path().join(&self.id)).chain([Path::new("/sys/fs/cgroup").join(&self.id)])
        {
            if group.exists() {
                remove_group(&group);
            }
        }
    }
}

/// Unmounts what a test, or a runtime before it left this mount namespace, has mounted in a directory.
fn unmount_below(dir: &Path) {
    let text = crate::host::read("/proc/thread-self/mountinfo");
    for target in text.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|t| Path::new(t).starts_with(dir))
    {
        let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Ends what is in a control group, and removes it.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    for _ in 0..100 {
        for pid in crate::host::read(group.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Gives a tree to one user and group.
pub fn chown_tree(path: &Path, id: u32) {
    let _ = std::os::unix::fs::lchown(path, Some(id), Some(id));
    if path.is_symlink() {
        return;
    }
    let _ = chown(path, Some(id), Some(id));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        chown_tree(&entry.path(), id);
    }
}

/// Names by number (`capabilities(7)`).
pub const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The configuration that engines hand over by default.
fn default_config(id: &str) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    let tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "conform",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": tmpfs},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Whether the runtime under test is this one.
#[must_use]
pub fn is(kind: Kind) -> bool {
    Runtime::selected().is_ok_and(|runtime| runtime.kind == kind)
}
