//! Places where a container, or who shares a directory with it, could turn the runtime's own steps against the host.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Machine, busybox_tree, host_can, libexec};
use serde_json::json;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A bundle without a user namespace in `dir`.
fn bundle(dir: &Path, id: &str, script: &str) -> serde_json::Value {
    busybox_tree(&dir.join("rootfs"));
    let mount = |d: &str, t: &str| json!({"destination": d, "type": t, "source": t});
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]},
        "root": {"path": "rootfs"},
        "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs")],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}],
            "cgroupsPath": format!("ilot-hard-test/{id}"),
        },
    })
}

/// Runs a bundle, started through `sh -c PREPARE` in a mount namespace of its own: success and what was said.
fn run_in(dir: &Path, id: &str, prepare: &str) -> (bool, String) {
    let out = std::fs::File::create(dir.join("out")).unwrap();
    let command = format!("set -e; {prepare}; exec \"$0\" --root \"$1/state\" run \"$2\"");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", &command])
        .arg(libexec().join("ilot-oci"))
        .arg(dir)
        .arg(id)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    (status.success(), std::fs::read_to_string(dir.join("out")).unwrap())
}

fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

#[test]
fn links_where_procfs_and_sysfs_go() {
    if !host_can() {
        return;
    }
    for (place, target) in [("proc", "tmp"), ("sys", "/tmp"), ("proc", "nowhere")] {
        let machine = Machine::new(&["true"]);
        std::fs::remove_dir(machine.lower().join(place)).unwrap();
        symlink(target, machine.lower().join(place)).unwrap();
        let error = machine.create().unwrap_err().to_string();
        assert!(error.contains(&format!("`/{place}`")), "{place}: {error}");
    }
}

#[test]
fn devices_get_their_mode_and_links_are_left_alone() {
    if !host_can() {
        return;
    }
    let (dir, id) = (tempfile::tempdir().unwrap(), unique("node"));
    let mut config = bundle(dir.path(), &id, "stat -c '%a %u %g %t:%T' /nodes/zero /nodes/pipe /dev/null");
    config["linux"]["devices"] = json!([
        {"type": "c", "path": "/nodes/zero", "major": 1, "minor": 5, "fileMode": 0o622, "uid": 7, "gid": 8},
        {"type": "p", "path": "/nodes/pipe", "fileMode": 0o604},
    ]);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    // The second time all of it is there already, with another mode.
    for umask in ["077", "022; chmod 600 rootfs/nodes/zero"] {
        let (good, said) = run_in(dir.path(), &id, &format!("umask {umask}"));
        assert!(good && said == "622 7 8 1:5\n604 0 0 0:0\n666 0 0 1:3\n", "{said}");
    }

    let victim = dir.path().join("rootfs/tmp/victim");
    std::fs::write(&victim, "").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(dir.path().join("rootfs/nodes/zero")).unwrap();
    symlink("../tmp/victim", dir.path().join("rootfs/nodes/zero")).unwrap();
    let (good, said) = run_in(dir.path(), &id, "true");
    assert!(!good && said.contains("/nodes/zero"), "{said}");
    let meta = std::fs::metadata(&victim).unwrap();
    assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, 0));
}

#[test]
fn what_a_recursive_bind_brings_along_is_not_shared() {
    if !host_can() {
        return;
    }
    // A tree of shared mounts, made by the test in a mount namespace of its own.
    let prepare = "mount -t tmpfs t tree && mount --make-shared tree && mkdir tree/below \
                   && mount -t tmpfs t tree/below && mount --make-shared tree/below";
    let script = "grep -c ' /bind.*shared:' /proc/self/mountinfo; grep -c ' /bind.*master:' /proc/self/mountinfo";
    for (option, expected) in
        [("private", "0\n0\n"), ("slave", "0\n2\n"), ("unbindable", "0\n0\n"), ("rslave", "0\n2\n")]
    {
        let (dir, id) = (tempfile::tempdir().unwrap(), unique(option));
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        let mut config = bundle(dir.path(), &id, &format!("{script}; true"));
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/bind", "type": "bind", "source": "tree", "options": ["rbind", option]}));
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let (good, said) = run_in(dir.path(), &id, prepare);
        assert!(good && said == expected, "{option}: {said}");
    }
}

/// Without a user namespace the program that waits in the container must not be the host's own file.
#[test]
fn the_keepers_program_cannot_be_written_from_inside() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::new(&["sleep", "1000"]);
    let linux = machine.spec.linux.as_mut().unwrap();
    linux.namespaces.retain(|n| n.kind != ilot_runtime::spec::NamespaceKind::User);
    linux.uid_mappings.clear();
    linux.gid_mappings.clear();
    let created = machine.create().unwrap();
    // While it runs, "text file busy" hides that it could be written to later.
    let mount = rustix::fs::statvfs(format!("/proc/{}/exe", created.pid)).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    ilot_runtime::start(&machine.run_dir()).unwrap();
    assert_eq!(machine.inside("echo in").trim(), "in");
}

#[test]
fn a_writable_layer_is_made_in_its_directory_or_not_at_all() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::new(&["true"]);
    let parent = machine.dir.path().join("removed");
    let ilot_runtime::Rootfs::Overlay { upper, work, .. } = &mut machine.rootfs else { unreachable!() };
    (*upper, *work) = (parent.join("upper"), parent.join("work"));
    let error = machine.create().unwrap_err().to_string();
    assert!(error.contains("removed/upper"), "{error}");
    assert!(!parent.exists());
    std::fs::create_dir(&parent).unwrap();
    assert_eq!(machine.run().0.code, 0);
    assert!(parent.join("upper").exists());
}

#[test]
fn programs_of_different_builds_say_so() {
    if !host_can() {
        return;
    }
    for version in [&["0.0.0/0"][..], &[]] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(libexec().join("ilot-keeper"));
        command.arg("create").args(version).stdin(Stdio::null());
        // SAFETY: one system call between fork and exec; the socket is above 3 or it.
        unsafe {
            command
                .pre_exec(move || if libc::dup2(fd, 3) == 3 { Ok(()) } else { Err(std::io::Error::last_os_error()) });
        }
        assert_eq!(command.status().unwrap().code(), Some(1));
        drop(theirs);
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut (&ours), &mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("started by an ilot of version"), "{said}");
    }
}
