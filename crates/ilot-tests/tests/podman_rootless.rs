//! Podman of an ordinary user with `ilot-oci` as its runtime.

mod engines;

use engines::{Output, World, run, wait_for, with};
use ilot_tests::skip;
use rustix::mount::{mount_bind, mount_change};
use std::path::Path;
use std::process::Command;

/// Nobody's number on the host, another one in each test process.
fn number() -> u32 {
    54_000 + std::process::id() % 1000
}

/// First of the user's further numbers.
fn range() -> u32 {
    1_400_000_000 + std::process::id() % 1000 * 65536
}

/// An ordinary user who exists in this test's namespaces only.
struct User<'a> {
    world: &'a World,
}

impl<'a> User<'a> {
    fn new(world: &'a World) -> Self {
        let (id, range) = (number(), range());
        let base = world.path("base");
        std::fs::create_dir(&base).expect("make a folder");
        let add = |file: &str, line: &str| {
            let old = std::fs::read_to_string(file).unwrap_or_default();
            let new = base.join(Path::new(file).file_name().expect("a name"));
            std::fs::write(&new, format!("{old}{line}\n")).expect("write");
            mount_bind(&new, file).expect("cover a file");
        };
        let home = world.path("home");
        add("/etc/passwd", &format!("ilot-test:x:{id}:{id}::{}:/bin/sh", home.display()));
        add("/etc/group", &format!("ilot-test:x:{id}:"));
        for file in ["/etc/subuid", "/etc/subgid"] {
            add(file, &format!("ilot-test:{range}:65536"));
        }
        for dir in [&home, &world.path("xdg")] {
            std::fs::create_dir(dir).expect("make a folder");
            std::os::unix::fs::chown(dir, Some(id), Some(id)).expect("give it away");
            std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("close it");
        }
        // Where it was built may be root's own.
        std::fs::copy(&world.runtime, world.path("ilot-oci")).expect("copy the runtime");
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\n";
        std::fs::write(world.path("containers.conf"), conf).expect("write containers.conf");
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        std::fs::write("/etc/containers/policy.json", policy).expect("write policy.json");
        // Podman warns where the root is private, and means it.
        let shared = rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC;
        mount_change("/", shared).expect("share the mounts of this namespace");
        let user = Self { world };
        user.podman(&["import", world.image().to_str().expect("UTF-8"), "bb:1"]).ok();
        user
    }

    fn podman(&self, args: &[&str]) -> Output {
        let id = number().to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--init-groups", "--inh-caps=-all", "podman"]);
        for (flag, dir) in [("--root", "home/r"), ("--runroot", "xdg/n"), ("--tmpdir", "xdg/t")] {
            command.arg(flag).arg(self.world.path(dir));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(self.world.path("ilot-oci")).args(args);
        command.env("CONTAINERS_CONF", self.world.path("containers.conf")).current_dir(self.world.path("home"));
        command.env("HOME", self.world.path("home")).env("XDG_RUNTIME_DIR", self.world.path("xdg"));
        run(&mut command)
    }

    fn sh(&self, flags: &[&str], script: &str) -> Output {
        let mut words = vec!["run", "--rm", "--network=none"];
        words.extend(flags);
        words.extend(["bb:1", "/bin/sh", "-c", script]);
        self.podman(&words)
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.podman(&["rm", "--all", "--force", "--time=0"]);
        // Its files belong to numbers that only its namespace can remove.
        self.podman(&["unshare", "rm", "-rf", self.world.path("home/r").to_str().expect("UTF-8")]);
        // The process that keeps its namespace.
        self.podman(&["system", "migrate"]);
        let id = number().to_string();
        let gone = || (run(Command::new("pgrep").args(["--uid", &id])).code == 1).then_some(());
        if !std::thread::panicking() {
            wait_for("the end of the user's processes", gone);
        }
    }
}

fn rootless(test: impl FnOnce(&User<'_>) + Send) {
    with(&["podman", "conmon", "busybox", "tar", "setpriv", "pgrep", "newuidmap", "newgidmap"], |world| {
        if ["/etc/subuid", "/etc/subgid"].iter().any(|file| !Path::new(file).exists()) {
            return skip("needs /etc/subuid and /etc/subgid");
        }
        test(&User::new(&world));
    });
}

#[test]
fn an_ordinary_user_runs_containers() {
    rootless(|user| {
        let own = user.sh(&[], "cat /proc/self/uid_map; id -u; touch /made && stat -c %u /made; exit 5");
        own.fails(5);
        let words: Vec<&str> = own.out.split_whitespace().collect();
        let (id, range) = (number().to_string(), range().to_string());
        assert_eq!(words, ["0", &id, "1", "1", &range, "65536", "0", "0"]);
        assert_eq!(user.sh(&["--userns=keep-id"], "id -u").ok(), id);
        assert_eq!(user.sh(&["--user=1000"], "id -u").ok(), "1000");
        let confined =
            user.sh(&["--read-only", "--cap-drop=all"], "touch /x 2>/dev/null || grep CapEff /proc/self/status");
        assert!(confined.ok().ends_with("0000000000000000"));
        let volume = user.world.path("home/volume");
        user.podman(&["unshare", "mkdir", volume.to_str().expect("UTF-8")]).ok();
        user.sh(&[&format!("--volume={}:/data", volume.display())], "echo content >/data/file").ok();
        assert_eq!(std::fs::read_to_string(volume.join("file")).expect("read"), "content\n");
    });
}

#[test]
fn an_ordinary_user_keeps_and_joins_containers() {
    rootless(|user| {
        let script = "trap 'echo bye; exit 3' TERM; echo started; while :; do sleep 1000 & wait $!; done";
        user.podman(&["run", "--detach", "--name=c", "--network=none", "bb:1", "/bin/sh", "-c", script]).ok();
        wait_for("the first line", || user.podman(&["logs", "c"]).out.contains("started").then_some(()));
        let exec = user.podman(&["exec", "--user=1000", "c", "/bin/sh", "-c", "id -u; exit 4"]);
        assert_eq!((exec.code, exec.out.as_str()), (4, "1000\n"));
        let terminal = user.podman(&["exec", "--tty", "c", "tty"]).ok();
        assert!(terminal.starts_with("/dev/pts/"), "{terminal}");
        user.podman(&["kill", "--signal=TERM", "c"]).ok();
        assert_eq!(user.podman(&["wait", "c"]).ok(), "3");
        assert_eq!(user.podman(&["logs", "c"]).ok(), "started\nbye");
        // Checkpoints are root's.
        user.podman(&["start", "c"]).ok();
        assert_ne!(user.podman(&["container", "checkpoint", "c"]).code, 0);
    });
}
