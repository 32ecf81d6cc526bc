//! CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2019-16884: `/proc` or `/sys` of the image is a link, or is covered
//! by a volume, so that what the runtime believes to be procfs is a directory of the image's, and labels, masks and
//! kernel parameters are written to files that do nothing.
//!
//! A runtime that has the bug follows the link (or accepts the volume) and starts the container; then `/proc/sys` is
//! not read-only where a second procfs shows it, or the parameter was never set. One that has it not refuses to start.

use ilot_conformance::{Bundle, attacker::Exchange, conform, host, json};
use std::os::unix::fs::symlink;

fn link_instead(c: &Bundle, name: &str, target: &str) {
    std::fs::remove_dir(c.rootfs().join(name)).unwrap();
    std::fs::create_dir_all(c.rootfs().join("fake/self/attr")).unwrap();
    symlink(target, c.rootfs().join(name)).unwrap();
}

/// `/proc` is a link: CVE-2019-19921 and CVE-2023-28642.
#[test]
fn proc_is_a_link() {
    conform(|| {
        for target in ["/fake", "fake", "./../fake"] {
            let c = Bundle::sh("echo started");
            link_instead(&c, "proc", target);
            let output = c.run();
            assert!(output.code != 0 && !output.out.contains("started"), "{target}: {output:?}");
        }
    });
}

/// `/sys` is one.
#[test]
fn sys_is_a_link() {
    conform(|| {
        let c = Bundle::sh("echo started");
        link_instead(&c, "sys", "/fake");
        let output = c.run();
        assert!(output.code != 0 && !output.out.contains("started"), "{output:?}");
    });
}

/// CVE-2019-16884: a volume over `/proc` that is no procfs.
#[test]
fn volume_over_proc() {
    conform(|| {
        let mut c = Bundle::sh("echo started");
        let fake = c.dir().join("fake");
        std::fs::create_dir_all(fake.join("self/attr")).unwrap();
        c.mount(json!({"destination": "/proc", "type": "bind", "source": fake.to_str(), "options": ["rbind"]}));
        let output = c.run();
        assert!(output.code != 0 && !output.out.contains("started"), "{output:?}");
    });
}

/// CVE-2025-52881's simplest form: a mount inside procfs answers instead of the kernel.
#[test]
fn mount_inside_proc() {
    conform(|| {
        for target in ["/proc/sys/kernel", "/proc/self/attr", "/proc/1/attr", "/proc/sys"] {
            let mut c = Bundle::sh("echo started");
            c.mount(json!({"destination": target, "type": "tmpfs", "source": "tmpfs"}));
            let output = c.run();
            assert!(output.code != 0 && !output.out.contains("started"), "{target}: {output:?}");
        }
    });
}

/// CVE-2023-27561: the link is in a volume that another container swaps while this one is made; CVE-2025-52881: what the
/// runtime writes to procfs lands on the attacker's mount. In every round the container either does not start, or its
/// kernel parameter has the value asked for and nothing of the volume lies over procfs.
#[test]
fn swapped_while_the_runtime_works() {
    conform(|| {
        let volume = Bundle::new();
        let dir = volume.dir().join("volume");
        std::fs::create_dir_all(dir.join("place")).unwrap();
        symlink("/proc/sys/kernel", dir.join("link")).unwrap();
        let swap = Exchange::start(&dir.join("place"), &dir.join("link"));
        for round in 0..30 {
            let mut c = Bundle::sh("cat /proc/sys/kernel/msgmax; cut -d' ' -f5 /proc/self/mountinfo");
            c.config["linux"]["sysctl"] = json!({"kernel.msgmax": "4321"});
            c.mount(json!({"destination": "/vol", "type": "bind", "source": dir.to_str(), "options": ["rbind"]}));
            c.mount(json!({"destination": "/vol/place", "type": "tmpfs", "source": "trap"}));
            let output = c.run();
            if output.code == 0 {
                assert!(output.out.starts_with("4321\n"), "round {round}: {output:?}");
                assert!(!output.out.contains("/proc/sys/kernel\n"), "round {round}: {output:?}");
            }
        }
        assert!(swap.rounds() > 100, "the attacker must have had its turns");
        drop(swap);
    });
}

/// A parameter's name may not climb out of the branch that it is allowed for.
#[test]
fn parameter_names_that_climb() {
    conform(|| {
        let before = host::read("/proc/sys/kernel/core_pattern");
        // The value is the one that is set: a runtime that has the bug succeeds, and changes nothing.
        for key in [
            "net/../kernel/core_pattern",
            "net.../kernel.core_pattern",
            "net/ipv4/../../kernel/core_pattern",
            "/kernel/core_pattern",
        ] {
            let mut c = Bundle::new();
            c.config["linux"]["sysctl"] = json!({key: before.trim()});
            assert!(c.run().code != 0, "{key}");
            assert_eq!(host::read("/proc/sys/kernel/core_pattern"), before);
        }
    });
}
