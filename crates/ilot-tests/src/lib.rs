//! A world for one test: network and mount namespaces of its own, a store of its own, an outside to talk to.
//!
//! Everything that a test starts is a child of a thread that left the host's namespaces, so nothing that it makes can be
//! seen by, or collide with, the host or another test. [`World::drop`] removes what is left and [`World::assert_clean`]
//! says what should not have been.

mod leaks;
mod outside;
mod program;
mod sockets;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use leaks::Snapshot;
pub use outside::{OUTSIDE, OUTSIDE_NAME, OUTSIDE6, Outside, UPLINK, UPLINK6};
pub use program::{Output, Program};
pub use sockets::{Servers, in_netns_of, tcp_answers, udp_answers};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A host of the test's own.
pub struct World {
    /// Everything that the test writes.
    pub dir: tempfile::TempDir,
    /// What lies beyond the uplink.
    pub outside: Outside,
    program: PathBuf,
    before: Snapshot,
}

/// Runs `test` in a world of its own. A panic in it is the test's failure.
pub fn in_world(test: impl FnOnce(&World) + Send) {
    if let Some(why) = cannot_run() {
        skip(&why);
        return;
    }
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            leave_host();
            let world = World::new();
            test(&world);
        });
        if let Err(panic) = handle.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Says that a test did not run, and why, where a summary finds it.
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    if let Some(file) = std::env::var_os("ILOT_TEST_SKIPS") {
        use std::io::Write;
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let opened = fs::OpenOptions::new().create(true).append(true).open(file);
        if let Ok(mut file) = opened {
            let _ = writeln!(file, "{name}: {why}");
        }
    }
}

fn cannot_run() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root (namespaces, bridges, cgroups)".to_owned());
    }
    for tool in ["nft", "ip"] {
        let found =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(tool).exists());
        if !found {
            return Some(format!("needs `{tool}`"));
        }
    }
    None
}

/// Leaves the host's network and mount namespaces, this thread and its children only.
fn leave_host() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: neither flag touches memory or descriptors that other threads share; the mount namespace implies a file
    // system context (cwd, root, umask) of this thread's own.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }
        .expect("leave the host's namespaces");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("make mounts private");
    sh("ip link set lo up");
}

impl World {
    fn new() -> Self {
        let program = find_program();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix(&format!("ilot-test-{}-{number}-", std::process::id()))
            .tempdir()
            .expect("a temporary directory");
        let outside = Outside::new(dir.path());
        let mut world = Self { dir, outside, program, before: Snapshot::default() };
        world.before = Snapshot::take(&world);
        world
    }

    /// The store.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// The live state.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A path of the test's own.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the test's own and says where.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make the parent");
        fs::write(&path, content).expect("write a file");
        path
    }

    /// `ilot ARGS…` on this world's store.
    #[must_use]
    pub fn ilot<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Program {
        let mut command = Command::new(&self.program);
        command.args(args);
        self.prepared(command)
    }

    /// The same, started by another program (`nsenter`, `strace`) with options of its own.
    #[must_use]
    pub fn ilot_under(&self, wrapper: &str, options: &[&str], args: &[String]) -> Program {
        let mut command = Command::new(wrapper);
        command.args(options).arg(&self.program).args(args);
        self.prepared(command)
    }

    fn prepared(&self, mut command: Command) -> Program {
        command
            .env("ILOT_ROOT", self.root())
            .env("ILOT_RUN", self.run_dir())
            .env("ILOT_LIBEXEC", libexec(&self.program))
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .current_dir(self.dir.path());
        Program::new(command)
    }

    /// Runs a command line in a machine; splits at spaces unless it is one word of a shell.
    #[must_use]
    pub fn exec(&self, machine: &str, shell: &str) -> Output {
        self.ilot(["exec", machine, "--", "/bin/sh", "-c", shell]).run()
    }

    /// The project's examples.
    #[must_use]
    pub fn example(&self, name: &str) -> PathBuf {
        source_dir().join("examples").join(name).join("infra.yml")
    }

    /// Nothing of ilot's is left in the kernel or running.
    ///
    /// # Panics
    /// With the list of what is left.
    pub fn assert_clean(&self) {
        // Layers stay mounted for a while after the last machine; this is what takes them away at once.
        if self.run_dir().join("layers").is_dir() {
            self.ilot(["image", "prune", "-q"]).ok();
        }
        // A keeper that has just ended may still be a zombie of its reaper for a moment.
        let clean = eventually(Duration::from_secs(5), || Snapshot::take(self).minus(&self.before).is_empty());
        if !clean {
            let left = Snapshot::take(self).minus(&self.before);
            panic!("left behind:\n{}", left.join("\n"));
        }
        let ranges: Vec<String> = fs::read_dir(self.root().join("ids"))
            .map(|dir| dir.flatten().map(|e| format!("{:?}", fs::read_link(e.path()))).collect())
            .unwrap_or_default();
        assert!(ranges.is_empty(), "id ranges left: {}", ranges.join(", "));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        leaks::remove_everything(self);
    }
}

/// Runs a shell command line that must succeed; its output.
///
/// # Panics
/// When it fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("run sh");
    assert!(
        output.status.success(),
        "`{script}`: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition, looking often; whether it came true in time.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The project's directory.
#[must_use]
pub fn source_dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn find_program() -> PathBuf {
    let program = match std::env::var_os("ILOT_BIN") {
        Some(program) => PathBuf::from(program),
        None => {
            let target =
                std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source_dir().join("target"), PathBuf::from);
            target.join("dist/bin/ilot")
        }
    };
    assert!(program.exists(), "{} is not there: `cargo xtask build` first, or set ILOT_BIN", program.display());
    program
}

fn libexec(program: &Path) -> PathBuf {
    std::env::var_os("ILOT_LIBEXEC").map_or_else(
        || program.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("libexec/ilot"),
        PathBuf::from,
    )
}

/// This thread's network namespace.
#[must_use]
pub fn own_netns() -> OwnedFd {
    fs::File::open("/proc/thread-self/ns/net").expect("open the network namespace").into()
}
