//! Engines of the distribution with `ilot-oci` as their runtime: storage, state and configuration are the test's own, and so
//! are the mount and network namespaces, so that engines of the host never see any of it. Images are made of busybox; nothing is
//! fetched.
#![allow(dead_code)]

use ilot_tests::skip;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a command did.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    #[track_caller]
    pub fn fails(&self, code: i32) {
        assert!(self.code == code, "exit code {}: {}{}", self.code, self.out, self.err);
    }

    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{self:?}");
        self.out.trim_end().to_owned()
    }
}

pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code().unwrap_or(128), out: text(&output.stdout), err: text(&output.stderr) }
}

pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn on_path(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
}

/// `ilot-oci` of the build.
fn runtime() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist/libexec/ilot");
    let dirs = std::env::var_os("ILOT_LIBEXEC").map(PathBuf::from).into_iter().chain([own]);
    dirs.map(|dir| dir.join("ilot-oci")).find(|path| path.is_file()).and_then(|path| path.canonicalize().ok())
}

/// An engine's world: directories and namespaces.
pub struct World {
    pub dir: tempfile::TempDir,
    pub runtime: PathBuf,
}

/// Runs a test where the host has the programs.
pub fn with(programs: &[&str], test: impl FnOnce(World) + Send) {
    let Some(runtime) = runtime() else { return skip("needs `ilot-oci` (`cargo xtask build`)") };
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    if let Some(missing) = programs.iter().find(|name| !on_path(name)) {
        return skip(&format!("needs `{missing}` (packages podman, conmon, containerd, busybox-static, uidmap)"));
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            leave_host();
            // A short name: sockets are made below it.
            let dir = tempfile::Builder::new().prefix("ie-").tempdir().expect("a temporary directory");
            std::os::unix::fs::chown(dir.path(), Some(0), Some(0)).expect("own it");
            std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open it");
            test(World { dir, runtime });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Namespaces of this thread's own, and empty directories where engines keep what has no option.
fn leave_host() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: neither flag touches memory or descriptors that other threads share.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }
        .expect("leave the host's namespaces");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("make mounts private");
    for dir in ["/run", "/var/lib/containers", "/var/lib/cni", "/etc/cni", "/etc/containers"] {
        if Path::new(dir).is_dir() {
            mount("tmpfs", dir, "tmpfs", MountFlags::empty(), None).expect("cover a directory of the engines");
        }
    }
}

impl World {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A root file system in a tar file.
    pub fn image(&self) -> PathBuf {
        let (root, tar) = (self.path("image"), self.path("image.tar"));
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
            std::fs::create_dir_all(root.join(dir)).expect("make the tree");
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.expect("busybox"), root.join("bin/busybox")).expect("copy busybox");
        for name in [
            "sh", "cat", "echo", "sleep", "id", "stat", "touch", "grep", "tty", "ls", "test", "hostname", "stty",
            "env", "head", "wc", "mount",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("link");
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
            .expect("write");
        std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n").expect("write");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&tar).arg(".")).ok();
        tar
    }
}

/// Podman on its own storage; dropped, its containers, pods and control groups are gone.
pub struct Podman {
    pub world: World,
}

impl Podman {
    pub fn new(world: World) -> Self {
        // Podman's own limits may be above what this host can give.
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\n";
        std::fs::write(world.path("containers.conf"), conf).expect("write containers.conf");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        std::fs::write("/etc/containers/policy.json", policy).expect("write policy.json");
        let podman = Self { world };
        let tar = podman.world.image();
        podman.call(&["import", tar.to_str().expect("UTF-8"), "bb:1"]).ok();
        podman
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        for (flag, dir) in [("--root", "r"), ("--runroot", "n"), ("--tmpdir", "t")] {
            command.arg(flag).arg(self.world.path(dir));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(&self.world.runtime);
        command.env("CONTAINERS_CONF", self.world.path("containers.conf"));
        command
    }

    pub fn call(&self, args: &[&str]) -> Output {
        run(self.command().args(args))
    }

    pub fn group(&self) -> String {
        format!("/ilot-{}", self.world.dir.path().file_name().expect("a name").display())
    }

    /// `podman run` with flags.
    pub fn run(&self, flags: &[&str], args: &[&str]) -> Output {
        let parent = format!("--cgroup-parent={}", self.group());
        let mut words = vec!["run", "--network=none", parent.as_str()];
        words.extend(flags);
        words.push("bb:1");
        words.extend(args);
        self.call(&words)
    }

    pub fn sh(&self, flags: &[&str], script: &str) -> Output {
        let mut all = vec!["--rm"];
        all.extend(flags);
        self.run(&all, &["/bin/sh", "-c", script])
    }

    /// A container `c` that waits.
    pub fn up(&self, flags: &[&str]) {
        let mut all = vec!["--detach", "--name=c"];
        all.extend(flags);
        let script = "trap 'echo bye; exit 3' TERM; echo started; while :; do sleep 1000 & wait $!; done";
        self.run(&all, &["/bin/sh", "-c", script]).ok();
        wait_for("the container's first line", || self.call(&["logs", "c"]).out.contains("started").then_some(()));
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["pod", "rm", "--all", "--force", "--time=0"]);
        self.call(&["rm", "--all", "--force", "--time=0"]);
        let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for parent in groups.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let group = parent.join(self.group().trim_start_matches('/'));
            let deadline = Instant::now() + Duration::from_secs(10);
            // What watched the containers may still be ending.
            while group.exists() && Instant::now() < deadline {
                for below in std::fs::read_dir(&group).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_dir(below.path());
                }
                if std::fs::remove_dir(&group).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

pub fn podman(test: impl FnOnce(&Podman) + Send) {
    with(&["podman", "conmon", "busybox", "tar"], |world| test(&Podman::new(world)));
}
