//! Bundles for `ilot-oci`, or for the runtime that `RUNTIME` names.

use super::{busybox_tree, libexec};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A bundle under test, with its own root for the runtime's state.
pub struct Bundle {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

impl Bundle {
    pub fn new(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("oci-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("ilot-oci-").tempdir().unwrap();
        busybox_tree(&dir.path().join("rootfs"));
        let caps = json!([
            "CAP_KILL",
            "CAP_NET_BIND_SERVICE",
            "CAP_CHOWN",
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_SYS_CHROOT",
            "CAP_DAC_OVERRIDE"
        ]);
        let mount = |d: &str, t: &str, o: &[&str]| json!({"destination": d, "type": t, "source": t, "options": o});
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                "env": ["PATH=/bin", "A=b"], "noNewPrivileges": true,
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs"},
            "hostname": "bundle",
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
                "cgroupsPath": format!("/ilot-oci-test/{id}"),
                "resources": {"memory": {"limit": 64 << 20}},
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/acpi"],
                "readonlyPaths": ["/proc/sys", "/proc/bus"],
            },
        });
        Self { dir, id, config }
    }

    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// The runtime with a command, ready to run in the bundle.
    pub fn command(&self, args: &[&str]) -> Command {
        std::fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        let program = std::env::var_os("RUNTIME").map_or_else(|| libexec().join("ilot-oci"), PathBuf::from);
        let mut command = Command::new(program);
        command.arg("--root").arg(self.dir.path().join("state")).args(args).current_dir(self.dir.path());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        // In files: a pipe that the container inherits would never end.
        let out = self.dir.path().join("out");
        let file = std::fs::File::create(&out).unwrap();
        let err = std::fs::File::create(self.dir.path().join("err")).unwrap();
        let status = self.command(args).stdin(Stdio::null()).stdout(file).stderr(err).status().unwrap();
        Output {
            status,
            stdout: std::fs::read(&out).unwrap(),
            stderr: std::fs::read(self.dir.path().join("err")).unwrap(),
        }
    }

    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {:?} {error}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn run(&self) -> String {
        self.ok(&["run", &self.id])
    }

    pub fn up(&self) {
        self.ok(&["create", &self.id]);
        self.ok(&["start", &self.id]);
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).unwrap()
    }

    pub fn exec(&self, script: &str) -> String {
        self.ok(&["exec", &self.id, "/bin/sh", "-c", script])
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.output(&["delete", "--force", &self.id]);
        if !std::thread::panicking() {
            for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let path = hierarchy.path().join("ilot-oci-test").join(&self.id);
                assert!(!path.exists(), "left behind: {}", path.display());
            }
        }
    }
}
