//! CVE-2025-31133, CVE-2025-62161, CVE-2025-62596: files are masked by binding the container's `/dev/null` over them; where
//! that is a link or another file of the image, the mask shows and lets write what the link points to.
//!
//! A runtime that has the bug binds whatever `/dev/null` is: the masked path then gives the content of the link's target,
//! and `/proc/sys/kernel/core_pattern` is writable under a name that no read-only path covers. One that has it not checks
//! that it binds the real null device, and refuses or makes it.

use ilot_conformance::{Bundle, conform, json};

/// An image whose `/dev` stays visible.
fn with_own_dev(c: &mut Bundle) {
    c.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| !m["destination"].as_str().is_some_and(|d| d.starts_with("/dev")));
}

/// Runs a script whose output goes to a file: with such a `/dev/null` even standard output may be lost.
fn report(c: &mut Bundle, script: &str) -> (ilot_conformance::Output, String) {
    c.args(&["/bin/sh", "-c", &format!("exec >/report 2>&1; {script}; echo end")]);
    let output = c.run();
    (output, ilot_conformance::host::read(c.rootfs().join("report")))
}

#[test]
fn dev_null_is_a_link() {
    conform(|| {
        // A kernel parameter that is the container's own: the test must not harm a host whose runtime has the bug.
        for target in ["/proc/sys/kernel/domainname", "/etc/image-file"] {
            let mut c = Bundle::new();
            with_own_dev(&mut c);
            std::fs::write(c.rootfs().join("etc/masked"), "").unwrap();
            std::fs::write(c.rootfs().join("etc/image-file"), "image\n").unwrap();
            std::os::unix::fs::symlink(target, c.rootfs().join("dev/null")).unwrap();
            c.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
            let script = "cat /etc/masked; grep -c 'domainname\\|image-file' /proc/self/mountinfo;
                (echo x >>/etc/masked) 2>/errors; cat /etc/image-file";
            let (output, text) = report(&mut c, script);
            if text.is_empty() {
                assert!(output.code != 0, "{output:?}");
            } else {
                assert_eq!(text, "0\nimage\nend\n", "{target}: {output:?}");
            }
        }
    });
}

#[test]
fn dev_null_is_another_file() {
    conform(|| {
        let mut c = Bundle::new();
        with_own_dev(&mut c);
        std::fs::write(c.rootfs().join("etc/masked"), "hidden\n").unwrap();
        std::fs::write(c.rootfs().join("dev/null"), "of the image\n").unwrap();
        c.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
        let (output, text) = report(&mut c, "cat /etc/masked");
        assert!((output.code != 0 && text.is_empty()) || text == "end\n", "{output:?} {text}");
    });
}

/// The mask itself must not be lifted by a link on the masked path: what it points to is masked.
#[test]
fn masked_path_is_a_link() {
    conform(|| {
        let mut c = Bundle::sh("cat /etc/real; echo end");
        std::fs::write(c.rootfs().join("etc/real"), "hidden\n").unwrap();
        std::os::unix::fs::symlink("/etc/real", c.rootfs().join("etc/masked")).unwrap();
        c.config["linux"]["maskedPaths"] = json!(["/etc/masked"]);
        let output = c.run();
        assert!(output.code != 0 || !output.out.contains("hidden"), "{output:?}");
    });
}
