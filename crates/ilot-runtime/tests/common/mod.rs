//! Real containers for tests: a busybox tree, ranges of ids of their own, everything removed at
//! the end, whatever happened.
#![allow(dead_code)]

pub mod bundle;

use ilot_runtime::spec::{IdMapping, Resources, Spec, machine_default};
use ilot_runtime::{
    CreateRequest, Created, ExecRequest, Exit, Init, InsideFile, Rootfs, Stdio, create, delete, start, state, wait,
};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// First host id of all test containers.
pub const BASE: u32 = 0x4000_0000;
/// How long anything may take before a test fails.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Whether this host can run containers at all; says why not.
pub fn host_can() -> bool {
    // SAFETY: no arguments, no failure.
    let root = unsafe { libc::geteuid() } == 0;
    let busybox = Path::new("/bin/busybox").exists();
    if !root || !busybox {
        eprintln!("SKIPPED: needs root ({root}) and a static /bin/busybox ({busybox})");
    }
    root && busybox
}

/// The folder with the static keeper: `$ILOT_LIBEXEC`, else built once.
pub fn libexec() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::var_os("ILOT_LIBEXEC").map_or_else(build_static, PathBuf::from);
        // SAFETY: called before anything else of the tests reads the environment.
        unsafe { std::env::set_var("ILOT_LIBEXEC", &dir) };
        dir
    })
}

fn build_static() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    // …/debug/deps/test → …/static-helpers
    let target = exe.ancestors().nth(3).unwrap().join("static-helpers");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "ilot-runtime", "--bins", "--target", &triple])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "the static helper programs do not build");
    target.join(triple).join("debug")
}

/// Which part of the id ranges is this process's: test processes run side by side, and one would take another's processes
/// for its own leftovers. A name that only one process can bind tells them apart, and is free again when it ends.
fn own_part() -> u32 {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    static PART: std::sync::OnceLock<(u32, UnixListener)> = std::sync::OnceLock::new();
    let part = PART.get_or_init(|| {
        (0..128)
            .find_map(|part| {
                let name = SocketAddr::from_abstract_name(format!("ilot-test-ids-{part}")).unwrap();
                UnixListener::bind_addr(&name).ok().map(|listener| (part, listener))
            })
            .expect("fewer than 128 test processes at once")
    });
    part.0
}

/// Waits for a condition.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// A container under test.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: Spec,
    pub rootfs: Rootfs,
    pub init: Init,
    pub stdio: Stdio,
    pub files: Vec<InsideFile>,
    pub base: u32,
}

impl Machine {
    /// A busybox container with its own layers; nothing runs yet.
    pub fn new(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        libexec();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = BASE + (own_part() * 32 + n % 32) * 65536;
        let dir = tempfile::Builder::new().prefix("ilot-test-").tempdir().unwrap();
        let id = format!("t{}-{n}", std::process::id());
        busybox_tree(&dir.path().join("lower"));
        let ids = IdMapping { container_id: 0, host_id: base, size: 65536 };
        let mut spec = machine_default(ids, false);
        let process = spec.process.as_mut().unwrap();
        process.args = args.iter().map(|s| (*s).to_owned()).collect();
        let linux = spec.linux.as_mut().unwrap();
        linux.cgroups_path = Some(format!("ilot-test/{id}"));
        linux.resources = Some(Resources::default());
        spec.hostname = Some("inside".to_owned());
        Self {
            rootfs: Rootfs::Overlay {
                lowers: vec![dir.path().join("lower")],
                upper: dir.path().join("upper"),
                work: dir.path().join("work"),
                volatile: true,
            },
            stdio: Stdio::Log { path: dir.path().join("log"), max_bytes: 0 },
            init: Init::Builtin,
            files: Vec::new(),
            dir,
            id,
            spec,
            base,
        }
    }

    /// A shell command as the container's process.
    pub fn shell(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    pub fn upper(&self) -> PathBuf {
        self.dir.path().join("upper")
    }

    pub fn create(&self) -> ilot_runtime::Result<Created> {
        create(&CreateRequest {
            id: &self.id,
            run_dir: &self.run_dir(),
            spec: &self.spec,
            rootfs: self.rootfs.clone(),
            init: self.init,
            stdio: self.stdio.clone(),
            files: self.files.clone(),
            exit_command: None,
        })
    }

    /// Creates and starts.
    pub fn up(&self) -> Created {
        let created = self.create().unwrap();
        start(&self.run_dir()).unwrap();
        created
    }

    /// Runs to the end: the exit and what was printed, with lines joined again.
    pub fn run(&self) -> (Exit, String) {
        self.up();
        let exit = wait(&self.run_dir(), Some(LIMIT)).unwrap().expect("it did not end");
        (exit, self.output())
    }

    /// The log without times and stream names.
    pub fn output(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let mut text = String::new();
        for line in log.lines() {
            let mut fields = line.splitn(4, ' ');
            let (_, _, kind, rest) = (fields.next(), fields.next(), fields.next(), fields.next().unwrap_or(""));
            text.push_str(rest);
            if kind == Some("F") {
                text.push('\n');
            }
        }
        text
    }

    /// Runs a command inside with its output in a file, through the library's `exec` in a process
    /// of its own (this one's standard streams belong to the test).
    pub fn exec(&self, args: &[&str]) -> (i32, String) {
        self.exec_with(&ExecRequest { args: args.iter().map(|s| (*s).to_owned()).collect(), ..Default::default() })
    }

    pub fn exec_with(&self, request: &ExecRequest) -> (i32, String) {
        let out = self.dir.path().join("exec-output");
        let file = std::fs::File::create(&out).unwrap();
        // SAFETY: the child only calls `exec` of the library, which allocates; no other thread of
        // the test holds a lock of libc at this moment that it would need (glibc resets malloc's).
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            use std::os::fd::AsRawFd;
            // SAFETY: own descriptors.
            unsafe {
                libc::dup2(file.as_raw_fd(), 1);
                libc::dup2(file.as_raw_fd(), 2);
            }
            let code = match ilot_runtime::exec(&self.run_dir(), request) {
                Ok(exit) => exit.code,
                Err(error) => {
                    use std::io::Write;
                    let _ = writeln!(std::fs::File::options().append(true).open(&out).unwrap(), "{error}");
                    255
                }
            };
            // SAFETY: ends the copy of the test process.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        (libc::WEXITSTATUS(status), std::fs::read_to_string(&out).unwrap())
    }

    /// A shell script inside that must succeed; its output.
    pub fn inside(&self, script: &str) -> String {
        let (code, text) = self.exec(&["/bin/sh", "-c", script]);
        assert_eq!(code, 0, "`{script}` in the container: {text}");
        text
    }

    pub fn status(&self) -> Option<ilot_runtime::Status> {
        state(&self.run_dir()).unwrap().map(|s| s.status)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let cgroups = state(&self.run_dir()).ok().flatten().map(|s| s.cgroup).unwrap_or_default();
        if let Err(error) = delete(&self.run_dir(), true) {
            eprintln!("cleaning up {}: {error}", self.id);
        }
        if !std::thread::panicking() {
            for path in cgroups {
                assert!(!path.exists(), "left behind: {}", path.display());
            }
            assert_eq!(processes_of(self.base), Vec::<i32>::new(), "processes left behind");
        }
    }
}

/// Processes whose real user id lies in the range that begins at `base`.
pub fn processes_of(base: u32) -> Vec<i32> {
    let mut list = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let uid = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))
            .and_then(|l| l.split_whitespace().next()?.parse::<u32>().ok());
        let zombie = status.lines().any(|l| l.starts_with("State:") && l.contains('Z'));
        if uid.is_some_and(|u| u >= base && u < base + 65536) && !zombie {
            list.push(pid);
        }
    }
    list
}

/// A root file system with nothing but busybox.
pub fn busybox_tree(path: &Path) {
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "var", "home/ann"] {
        std::fs::create_dir_all(path.join(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", path.join("bin/busybox")).unwrap();
    std::fs::set_permissions(path.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    for name in [
        "sh", "true", "false", "cat", "ls", "id", "sleep", "echo", "grep", "stat", "pwd", "env", "mount", "umount",
        "touch", "hostname", "kill", "ps", "stty", "mkdir", "head", "tail", "dd", "seq", "tty", "readlink", "wc", "ip",
        "ping", "chown", "chmod", "mknod", "ln", "rm", "od", "yes", "test", "printf", "trap",
    ] {
        symlink("busybox", path.join("bin").join(name)).unwrap();
    }
    std::fs::write(path.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
        .unwrap();
    std::fs::write(path.join("etc/group"), "root:x:0:\nann:x:1000:\nwheel:x:10:ann\n").unwrap();
    std::os::unix::fs::chown(path.join("home/ann"), Some(1000), Some(1000)).unwrap();
}
