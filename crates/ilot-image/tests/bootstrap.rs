//! A real installation from the package mirror (heavy: about half a minute and 40 MB of downloads).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Recorder, is_root, names, skip};
use ilot_image::{InitKind, Progress, Silent, Store};

/// The mirror answers, and the host has what it takes.
fn ready() -> bool {
    if !is_root() {
        skip("installing needs root");
        return false;
    }
    if !["mmdebstrap", "unshare"].iter().all(|p| Path::new("/usr/bin").join(p).exists()) {
        skip("needs mmdebstrap and unshare (`apt install mmdebstrap util-linux`)");
        return false;
    }
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        skip("needs debian-archive-keyring");
        return false;
    }
    true
}

#[test]
fn debian_is_installed_from_its_mirror() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let mounts = mounts();
    let progress = Recorder::default();
    let start = Instant::now();
    let image = match place.store.obtain("bootstrap:debian/trixie", &progress) {
        Ok(image) => image,
        Err(error) if error.to_string().contains("InRelease") => return skip(&format!("no mirror: {error}")),
        Err(error) => panic!("{error}\n{}", progress.notes()),
    };
    let obtained = start.elapsed();
    let tree = place.store.materialize(&image, "a").unwrap().remove(0);
    println!(
        "debian/13: obtained in {obtained:?}, unpacked in {:?}, {} MiB, {} MiB unpacked",
        start.elapsed() - obtained,
        image.size >> 20,
        image.unpacked_size >> 20
    );
    for stage in ["download packages", "install the base", "install packages", "pack"] {
        assert!(progress.stages().contains(stage), "{}", progress.stages());
    }
    let init = image.init.as_ref().unwrap();
    assert_eq!(init.path, Path::new("/sbin/init"));
    assert!(matches!(init.kind, InitKind::Systemd { version: Some(v) } if v >= 257), "{init:?}");
    assert_eq!(image.config.cmd, ["/bin/bash"]);
    assert!(image.created.is_some());
    // Nothing of the host's, nothing that only the installation needed.
    for file in ["etc/machine-id", "etc/resolv.conf", "etc/hostname"] {
        assert_eq!(tree.join(file).metadata().unwrap().len(), 0, "{file}");
    }
    assert!(!tree.join("usr/sbin/policy-rc.d").exists());
    assert!(!tree.join("etc/apt/apt.conf.d/99mmdebstrap").exists());
    assert_eq!(names(&tree.join("etc/apt/sources.list.d")), ["debian.sources"]);
    let sources = std::fs::read_to_string(tree.join("etc/apt/sources.list.d/debian.sources")).unwrap();
    assert!(sources.contains("trixie-security") && sources.contains("Signed-By: /usr/share/keyrings/"), "{sources}");
    assert!(names(&tree.join("var/lib/apt/lists")).iter().all(|n| n == "lock" || n == "partial"));
    assert_eq!(names(&tree.join("var/cache/apt/archives")).iter().filter(|n| n.ends_with(".deb")).count(), 0);
    // It works.
    let check = "set -e; ip -V; ping -V; command -v ps nano less; dpkg --audit; /lib/systemd/systemd --version | head -n1; . /etc/os-release; echo $VERSION_ID";
    let output = Command::new("chroot")
        .arg(&tree)
        .args(["/bin/sh", "-c", check])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).trim_end().ends_with("13"), "{output:?}");
    place.assert_clean();
    assert_eq!(self::mounts(), mounts, "a mount leaked");
    assert_eq!(processes_below(place.dir.path()), Vec::<String>::new());
}

#[test]
fn what_the_mirror_does_not_have_is_said() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let error = place.store.obtain("bootstrap:ubuntu/oracular", &Silent);
    // Of an end-of-life suite; where it is still on the mirror, there is nothing to see.
    if let Err(error) = error {
        assert!(error.to_string().contains("InRelease") || error.to_string().contains("mmdebstrap"), "{error}");
    }
    place.assert_clean();
}

struct Lines;

impl Progress for Lines {
    fn stage(&self, text: &str) {
        println!("STAGE {text}");
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, text: &str) {
        println!("NOTE {text}");
    }
    fn finished(&self) {}
}

/// The part of a test that runs in a process of its own.
#[test]
fn child() {
    let Ok(root) = std::env::var("TEST_STORE") else { return };
    let _ = Store::open(root.as_ref()).unwrap().obtain("bootstrap:debian/trixie", &Lines);
}

#[test]
fn killed_in_the_middle_nothing_goes_on() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let mounts = mounts();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_STORE", place.store.root())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // dpkg is at work inside, with its mounts.
    let reached = lines.into_iter().any(|l| l.contains("install the base"));
    let at_work = processes_below(place.dir.path()).len();
    child.kill().unwrap();
    child.wait().unwrap();
    if !reached {
        return skip("the mirror does not answer");
    }
    assert!(at_work > 0, "found no process of the installation: the check below would prove nothing");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_below(place.dir.path()).is_empty() {
        assert!(Instant::now() < deadline, "still running: {:?}", processes_below(place.dir.path()));
        std::thread::yield_now();
    }
    assert_eq!(self::mounts(), mounts, "a mount leaked");
    assert_ne!(names(&place.store.root().join("images/.tmp")), Vec::<String>::new());
    let store = Store::open(place.store.root()).unwrap();
    place.assert_clean();
    assert_eq!(store.list().unwrap(), []);
}

/// The mounts of the host that an installation could have made.
fn mounts() -> usize {
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|l| ["/var/tmp", "mmdebstrap", ".tmp-"].iter().any(|w| l.contains(w))).count()
}

/// Command lines of the processes that work below a folder: by their root, working folder or arguments.
fn processes_below(folder: &Path) -> Vec<String> {
    let own = std::process::id().to_string();
    let inside = folder.to_string_lossy().into_owned();
    names(Path::new("/proc"))
        .into_iter()
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()) && *n != own)
        .filter_map(|pid| {
            let process = Path::new("/proc").join(&pid);
            let command = std::fs::read(process.join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            (command.contains(&inside) || mounts.contains(&format!("{inside}/"))).then(|| format!("{pid} {command}"))
        })
        .collect()
}
