//! Known escapes from containers, one test each, against `ilot-oci` as its callers use it
//! (`RUNTIME=…` tries another runtime). Each fails on a runtime that has the hole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{busybox_tree, host_can, libexec};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A container without a user namespace, as Docker makes it: what goes wrong here goes wrong as root.
struct Victim {
    dir: tempfile::TempDir,
    id: String,
    config: Value,
}

impl Victim {
    fn new(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("esc-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("ilot-esc-").tempdir().unwrap();
        busybox_tree(&dir.path().join("rootfs"));
        std::fs::create_dir(dir.path().join("host")).unwrap();
        std::fs::write(dir.path().join("host/secret"), "host\n").unwrap();
        let caps = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_KILL",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SYS_CHROOT"
        ]);
        let mount = |d: &str, t: &str| json!({"destination": d, "type": t, "source": t});
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            },
            "root": {"path": "rootfs"},
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/dev/pts", "devpts"), mount("/sys", "sysfs")],
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "cgroup"}
                ],
                "cgroupsPath": format!("/ilot-esc-test/{id}"),
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq"],
            },
        });
        Self { dir, id, config }
    }

    fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn host(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    fn call(&self, args: &[&str]) -> Output {
        std::fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        let out = self.dir.path().join("out");
        let file = std::fs::File::create(&out).unwrap();
        let status = Command::new(program())
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .status()
            .unwrap();
        Output { status, stdout: std::fs::read(out).unwrap(), stderr: Vec::new() }
    }

    fn run(&self) -> (bool, String) {
        let output = self.call(&["run", &self.id]);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn exec(&self, args: &[&str]) -> (bool, String) {
        let mut all = vec!["exec", self.id.as_str()];
        all.extend(args);
        let output = self.call(&all);
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn up(&self) {
        assert!(self.call(&["create", &self.id]).status.success());
        assert!(self.call(&["start", &self.id]).status.success());
    }

    /// Nothing on the host has changed.
    fn untouched(&self, said: &str) {
        assert_eq!(std::fs::read_to_string(self.host().join("secret")).unwrap(), "host\n", "{said}");
        assert_eq!(std::fs::read_dir(self.host()).unwrap().count(), 1, "{said}");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(self.host().to_str().unwrap()), "mounted on the host: {said}");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", &self.id]);
    }
}

fn program() -> PathBuf {
    std::env::var_os("RUNTIME").map_or_else(|| libexec().join("ilot-oci"), PathBuf::from)
}

/// The runtime's own program, by `/proc/self/exe`, by a script's first line, by init's descriptor.
#[test]
fn cve_2019_5736_overwriting_the_runtime() {
    if !host_can() {
        return;
    }
    let digest = |path: &Path| std::fs::read(path).unwrap();
    let before = digest(&program());
    // Asked to execute the runtime itself, it runs inside; a helper then tries to write to it.
    let attack = "for i in $(seq 1 400); do for p in /proc/[0-9]*; do \
                  (printf x >> $p/exe) 2>/dev/null && echo WRITTEN $p $(readlink $p/exe); done; done";
    let victim = Victim::new(&["/bin/sh", "-c", attack]);
    std::fs::write(victim.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    let path = std::ffi::CString::new(victim.rootfs().join("bin/script").to_str().unwrap()).unwrap();
    // SAFETY: a valid path.
    unsafe { libc::chmod(path.as_ptr(), 0o755) };
    victim.up();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                victim.exec(&["/proc/self/exe", "--version"]);
                victim.exec(&["/bin/script"]);
                victim.exec(&["true"]);
            }
            done.store(true, Ordering::SeqCst);
        });
    });
    assert!(done.load(Ordering::SeqCst));
    assert!(before == digest(&program()), "the runtime's program was changed");
}

/// `/proc` of the image is a link or covered: labels and sysctls must not land elsewhere.
#[test]
fn cve_2019_19921_and_2023_28642_proc_is_a_link() {
    if !host_can() {
        return;
    }
    for (name, target) in [("proc", "../host"), ("proc", "/etc"), ("sys", "/etc")] {
        let mut victim = Victim::new(&["true"]);
        let place = victim.rootfs().join(name);
        std::fs::remove_dir(&place).unwrap();
        symlink(target, &place).unwrap();
        victim.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        let (_, text) = victim.run();
        victim.untouched(&text);
        // Nothing of procfs or sysfs was mounted through the link.
        assert!(!victim.rootfs().join("etc/self").exists());
    }
}

/// A mount inside procfs answers for the kernel.
#[test]
fn cve_2025_52881_mounts_over_procfs() {
    if !host_can() {
        return;
    }
    for target in ["/proc/self/attr", "/proc/sys/net", "/proc/1", "/proc/sys"] {
        let mut victim = Victim::new(&["true"]);
        victim.mount(json!({"destination": target, "type": "tmpfs", "source": "tmpfs"}));
        let (ok, text) = victim.run();
        assert!(!ok, "{target} was mounted over: {text}");
        let mut victim = Victim::new(&["true"]);
        victim.mount(json!({"destination": target, "source": "host", "options": ["rbind"]}));
        let (ok, text) = victim.run();
        assert!(!ok, "{target} was mounted over: {text}");
    }
}

/// A mount's place is exchanged for a link to the host while the runtime looks at it.
#[test]
fn cve_2021_30465_exchange_race() {
    if !host_can() {
        return;
    }
    let stop = AtomicBool::new(false);
    let shared = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(shared.path().join("real/place")).unwrap();
    symlink("/", shared.path().join("link")).unwrap();
    let name = |n: &str| std::ffi::CString::new(shared.path().join(n).to_str().unwrap()).unwrap();
    let (real, link) = (name("real"), name("link"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: two valid paths; RENAME_EXCHANGE is 2.
                unsafe {
                    libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, real.as_ptr(), libc::AT_FDCWD, link.as_ptr(), 2);
                }
            }
        });
        for _ in 0..60 {
            let mut victim = Victim::shell("cat /proc/self/mountinfo");
            victim.mount(json!({"destination": "/v", "source": shared.path(), "options": ["rbind"]}));
            victim.mount(json!({"destination": "/v/real/tmp", "type": "tmpfs", "source": "tmpfs"}));
            let (_, text) = victim.run();
            victim.untouched(&text);
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains("ilot-esc-"), "{table}");
            // The container's own `/tmp` may be hit (the link is taken inside its root), the host's not.
            assert!(!text.contains(" /oldroot"), "{text}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Descriptors of the host as working directory, at `run` and at `exec`.
#[test]
fn cve_2024_21626_leaked_working_directory() {
    if !host_can() {
        return;
    }
    for number in 3..20 {
        let cwd = format!("/proc/self/fd/{number}");
        let mut victim = Victim::shell("cat ../../../../../../../etc/hostname; ls ..");
        victim.config["process"]["cwd"] = json!(cwd);
        let (ok, text) = victim.run();
        assert!(!ok, "descriptor {number}: {text}");
    }
    let victim = Victim::new(&["sleep", "1000"]);
    victim.up();
    for number in 3..20 {
        let cwd = format!("/proc/self/fd/{number}");
        let output = victim.call(&["exec", "--cwd", &cwd, &victim.id, "pwd"]);
        assert!(!output.status.success(), "descriptor {number}");
    }
    // By a link in the image, too.
    symlink("/proc/self/fd/8", victim.rootfs().join("link")).unwrap();
    assert!(!victim.call(&["exec", "--cwd", "/link", &victim.id, "pwd"]).status.success());
    let (_, text) = victim.exec(&["ls", "/proc/self/fd"]);
    assert_eq!(text.split_whitespace().count(), 4, "{text}");
}

/// Directories for mounts are made inside the container, never outside through a link.
#[test]
fn cve_2024_45310_directories_on_the_host() {
    if !host_can() {
        return;
    }
    let mut victim = Victim::new(&["true"]);
    let outside = victim.host().join("made");
    symlink(victim.host(), victim.rootfs().join("link")).unwrap();
    victim.mount(json!({"destination": "/link/made", "type": "tmpfs", "source": "tmpfs"}));
    victim.mount(json!({"destination": "/link/file", "source": "host/secret", "options": ["bind"]}));
    let (_, text) = victim.run();
    assert!(!outside.exists(), "{text}");
    victim.untouched(&text);
}

/// Masks: a null device that is none, a target that is a link.
#[test]
fn cve_2025_31133_and_52565_masks_and_console() {
    if !host_can() {
        return;
    }
    // `/dev` of the image is kept (no tmpfs over it), its null device and console are links to procfs.
    let mut victim =
        Victim::shell("cat /proc/timer_list | head -c 1 | wc -c; (echo x > /proc/sys/kernel/core_pattern) 2>&1");
    victim.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| m["destination"] != "/dev" && m["destination"] != "/dev/pts");
    symlink("/proc/sys/kernel/core_pattern", victim.rootfs().join("dev/null")).unwrap();
    symlink("/proc/sys/vm/drop_caches", victim.rootfs().join("dev/console")).unwrap();
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let (_, text) = victim.run();
    assert!(text.starts_with("0\n") && text.contains("Read-only file system"), "{text}");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    // A masked path that is a link to elsewhere masks inside the container only.
    let mut victim = Victim::new(&["true"]);
    symlink(victim.host(), victim.rootfs().join("mask")).unwrap();
    victim.config["linux"]["maskedPaths"] = json!(["/mask/secret", "/mask"]);
    victim.config["linux"]["readonlyPaths"] = json!(["/mask"]);
    let (_, text) = victim.run();
    victim.untouched(&text);
}

/// `/dev` or a parent of a device is a link to the host.
#[test]
fn cve_2026_47766_dev_is_a_link() {
    if !host_can() {
        return;
    }
    let mut victim = Victim::new(&["true"]);
    std::fs::remove_dir(victim.rootfs().join("dev")).unwrap();
    symlink(victim.host(), victim.rootfs().join("dev")).unwrap();
    victim.config["linux"]["devices"] = json!([
        {"path": "/dev/evil", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/deep/evil", "type": "c", "major": 1, "minor": 3}
    ]);
    let (_, text) = victim.run();
    victim.untouched(&text);
}

/// A read-only path stays read-only through a replaced parent, `release_agent` cannot be written.
#[test]
fn cve_2022_0492_release_agent() {
    if !host_can() {
        return;
    }
    let mut victim = Victim::shell(
        "mkdir /c; mount -t cgroup -o rdma c /c 2>&1; mount -t cgroup -o memory c /c 2>&1; \
         for f in $(find / -xdev -name release_agent 2>/dev/null) /sys/fs/cgroup/*/release_agent; do \
         (echo /x > $f) 2>/dev/null && echo WRITTEN $f; done; true",
    );
    victim.mount(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}));
    let (_, text) = victim.run();
    assert!(!text.contains("WRITTEN"), "{text}");
    assert!(text.contains("ermission denied") || text.contains("not permitted"), "{text}");
}
