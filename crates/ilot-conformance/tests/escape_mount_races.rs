//! CVE-2021-30465 and CVE-2024-45310: somebody who shares a volume with the new container swaps a directory of it with a
//! link to the host while the runtime resolves mount destinations below it.
//!
//! A runtime that has the bug checks a path and then uses it by name: the mount lands outside (it is missing in the
//! container's own list), or missing directories and files are made on the host (they show in `outside`).

use ilot_conformance::{Bundle, attacker::Exchange, conform, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// How often each race is run. runc 1.0.0-rc94, which has CVE-2021-30465, lost within 50 rounds.
const ROUNDS: u32 = 100;

/// A volume with `place`, swapped with a link to `outside`, which the host has and the container has not.
struct Trap {
    /// First, so that it ends before the directory is removed.
    swap: Exchange,
    bundle: Bundle,
    volume: PathBuf,
    outside: PathBuf,
}

fn trap() -> Trap {
    let bundle = Bundle::new();
    let (volume, outside) = (bundle.dir().join("volume"), bundle.dir().join("outside"));
    std::fs::create_dir_all(volume.join("place/inner")).unwrap();
    std::fs::create_dir_all(outside.join("inner")).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let swap = Exchange::start(&volume.join("place"), &volume.join("link"));
    Trap { bundle, volume, outside, swap }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn mount_through_a_swapped_directory() {
    conform(|| {
        let trap = trap();
        let mut started = 0;
        for round in 0..ROUNDS {
            let mut c = Bundle::sh("grep -c 'tmpfs the-mount ' /proc/self/mountinfo");
            c.mount(
                json!({"destination": "/vol", "type": "bind", "source": trap.volume.to_str(), "options": ["rbind"]}),
            );
            c.mount(json!({"destination": "/vol/place/inner", "type": "tmpfs", "source": "the-mount"}));
            let output = c.run();
            if output.code == 0 || !output.out.is_empty() {
                started += 1;
                assert_eq!(output.out, "1\n", "round {round}: the mount is not in the container: {output:?}");
            }
            assert_eq!(entries(&trap.outside), ["inner"], "round {round}");
            assert!(entries(&trap.outside.join("inner")).is_empty(), "round {round}");
        }
        assert!(trap.swap.rounds() > 200, "the attacker must have had its turns");
        eprintln!("{started} of {ROUNDS} started, {} swaps, in {}", trap.swap.rounds(), trap.bundle.id);
    });
}

/// The destination is missing and must be made: never on the host.
#[test]
fn making_a_destination_below_a_swapped_directory() {
    conform(|| {
        let trap = trap();
        let file = trap.bundle.dir().join("file");
        std::fs::write(&file, "").unwrap();
        for round in 0..ROUNDS / 2 {
            let mut c = Bundle::new();
            c.mount(
                json!({"destination": "/vol", "type": "bind", "source": trap.volume.to_str(), "options": ["rbind"]}),
            );
            if round % 2 == 0 {
                let target = format!("/vol/place/made-{round}/deep");
                c.mount(json!({"destination": target, "type": "tmpfs", "source": "tmpfs"}));
            } else {
                let target = format!("/vol/place/made-{round}/file");
                c.mount(json!({"destination": target, "type": "bind", "source": file.to_str(), "options": ["bind"]}));
            }
            c.run();
            assert_eq!(entries(&trap.outside), ["inner"], "round {round}: made on the host");
        }
    });
}

/// The same with the root file system itself shared and swapped: a bind of a file over a link.
#[test]
fn links_in_the_image() {
    conform(|| {
        let mut c = Bundle::new();
        let outside = c.dir().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("victim"), "host").unwrap();
        std::fs::write(c.dir().join("content"), "volume").unwrap();
        symlink(outside.join("victim"), c.rootfs().join("etc/config")).unwrap();
        symlink(outside.join("new"), c.rootfs().join("etc/dangling")).unwrap();
        for target in ["/etc/config", "/etc/dangling"] {
            let source = c.dir().join("content");
            c.mount(json!({"destination": target, "type": "bind", "source": source.to_str(), "options": ["bind"]}));
        }
        c.run();
        assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "host");
        assert_eq!(entries(&outside), ["victim"]);
    });
}

/// A shared mount of the host, bound without a propagation option: the container's mounts must not come back.
#[test]
fn mounts_in_a_shared_volume_stay_inside() {
    conform(|| {
        use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
        let mut c = Bundle::sh("mount -t tmpfs tmpfs /mnt/below && touch /mnt/below/mark && echo up; sleep 1000");
        c.all_capabilities();
        let dir = c.dir().join("shared");
        std::fs::create_dir_all(dir.join("below")).unwrap();
        mount_bind(&dir, &dir).unwrap();
        mount_change(&dir, MountPropagationFlags::SHARED).unwrap();
        c.mount(json!({"destination": "/mnt", "type": "bind", "source": dir.to_str(), "options": ["rbind"]}));
        c.up();
        assert!(!dir.join("below/mark").exists(), "the container's mount shows on the host");
        let mounts = ilot_conformance::host::read("/proc/thread-self/mountinfo");
        assert!(!mounts.contains("shared/below"), "{mounts}");
    });
}
