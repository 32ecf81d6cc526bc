//! CVE-2026-41579, CVE-2026-47766, CVE-2025-52565, and device nodes in a tree that somebody shares: `/dev`, one of its
//! parents, or `/dev/console` is a link, or becomes one.
//!
//! A runtime that has these bugs makes, removes, changes or mounts on what the link points to, by joining the root's path
//! with a name: `outside` then has new links and nodes, lost its `ptmx`, or has another mode.

use ilot_conformance::{Bundle, conform, json, terminal};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A directory of the host with a file `ptmx` in it.
fn outside(c: &Bundle) -> PathBuf {
    let dir = c.dir().join("outside");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ptmx"), "decoy").unwrap();
    dir
}

fn assert_untouched(dir: &Path, context: &str) {
    let names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["ptmx"], "{context}");
    assert_eq!(std::fs::read_to_string(dir.join("ptmx")).unwrap(), "decoy", "{context}");
}

/// With and without a tmpfs of the configuration for `/dev`.
#[test]
fn dev_is_a_link() {
    conform(|| {
        for mounted in [true, false] {
            for relative in [true, false] {
                let mut c = Bundle::new();
                let dir = outside(&c);
                std::fs::remove_dir(c.rootfs().join("dev")).unwrap();
                let target = if relative { PathBuf::from("../outside") } else { dir.clone() };
                symlink(target, c.rootfs().join("dev")).unwrap();
                if !mounted {
                    c.config["mounts"]
                        .as_array_mut()
                        .unwrap()
                        .retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
                }
                let output = c.run();
                assert_untouched(&dir, &format!("mounted {mounted}, relative {relative}: {output:?}"));
            }
        }
    });
}

/// A parent of a listed device is one.
#[test]
fn parent_of_a_device_is_a_link() {
    conform(|| {
        let mut c = Bundle::new();
        let dir = outside(&c);
        symlink(&dir, c.rootfs().join("nodes")).unwrap();
        c.config["linux"]["devices"] = json!([
            {"type": "c", "path": "/nodes/ptmx", "major": 1, "minor": 3, "fileMode": 0o666},
            {"type": "c", "path": "/nodes/deep/null", "major": 1, "minor": 3, "fileMode": 0o666}
        ]);
        let output = c.run();
        assert_untouched(&dir, &format!("{output:?}"));
    });
}

/// The node is swapped for a link between `mknod` and `chmod`.
#[test]
fn node_swapped_for_a_link() {
    conform(|| {
        let mut c = Bundle::new();
        let victim = c.dir().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::fs::set_permissions(&victim, PermissionsExt::from_mode(0o600)).unwrap();
        c.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        c.config["linux"]["devices"] = json!([{"type": "c", "path": "/nodes/node", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 1234, "gid": 1234}]);
        let nodes = c.rootfs().join("nodes");
        std::fs::create_dir(&nodes).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (stop, node, spare, victim) =
                (Arc::clone(&stop), nodes.join("node"), nodes.join("spare"), victim.clone());
            move || {
                let mut swaps = 0;
                while !stop.load(Ordering::Relaxed) {
                    let _ = symlink(&victim, &spare);
                    if std::fs::symlink_metadata(&node).is_ok_and(|m| m.file_type().is_char_device())
                        && std::fs::rename(&spare, &node).is_ok()
                    {
                        swaps += 1;
                    }
                }
                swaps
            }
        });
        let mut bad = None;
        for round in 0..40 {
            c.run();
            let found = std::fs::metadata(&victim).unwrap();
            if found.mode() & 0o777 != 0o600 || found.uid() != 0 {
                bad = Some(format!("round {round}: mode {:o}, owner {}", found.mode(), found.uid()));
                break;
            }
            let _ = std::fs::remove_file(nodes.join("node"));
        }
        stop.store(true, Ordering::Relaxed);
        let swaps = thread.join().unwrap();
        eprintln!("{swaps} swaps");
        assert_eq!(bad, None);
    });
}

/// CVE-2025-52565: the terminal is bound over `/dev/console`, which the image has as a link.
#[test]
fn console_is_a_link() {
    conform(|| {
        for target in ["/proc/sys/kernel/domainname", "/etc/target"] {
            let mut c = Bundle::sh("cut -d' ' -f5 /proc/self/mountinfo; echo end");
            let dir = outside(&c);
            c.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev");
            for name in ["pts", "shm", "mqueue"] {
                std::fs::create_dir(c.rootfs().join("dev").join(name)).unwrap();
            }
            std::fs::write(c.rootfs().join("etc/target"), "").unwrap();
            symlink(target, c.rootfs().join("dev/console")).unwrap();
            c.config["process"]["terminal"] = json!(true);
            let receiver = terminal::Receiver::new(c.dir());
            let created = c.create_with(&["--console-socket", receiver.text()]);
            if created.code == 0 {
                let mut master = terminal::Master::new(receiver.receive().1.remove(0));
                c.start();
                let text = master.read_until("end");
                assert!(!text.lines().any(|l| l.trim() == target), "{text}");
            }
            assert_untouched(&dir, target);
        }
    });
}

/// The same where the link leads to the host.
#[test]
fn console_is_a_link_to_the_host() {
    conform(|| {
        let mut c = Bundle::new();
        let dir = outside(&c);
        c.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        symlink(dir.join("new"), c.rootfs().join("dev/console")).unwrap();
        c.config["process"]["terminal"] = json!(true);
        let receiver = terminal::Receiver::new(c.dir());
        c.create_with(&["--console-socket", receiver.text()]);
        assert_untouched(&dir, "the console was made on the host");
    });
}
