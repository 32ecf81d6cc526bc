//! What a container cannot see, do or reach.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Machine, host_can};
use ilot_runtime::{InsideFile, Rootfs, When, start};
use std::os::unix::fs::{MetadataExt, symlink};

#[test]
fn masked_and_read_only_paths() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    assert_eq!(machine.inside("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c").trim(), "0");
    assert_eq!(machine.inside("ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | wc -w").trim(), "0");
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
    ] {
        let (code, text) = machine.exec(&["/bin/sh", "-c", &format!("echo x > {path}")]);
        assert_ne!(code, 0, "{path} can be written: {text}");
    }
    let (code, _) = machine.exec(&["touch", "/sys/x"]);
    assert_ne!(code, 0);
    // What is the container's own can be set from outside.
    assert_eq!(machine.inside("cat /proc/sys/net/ipv4/ping_group_range"), "0\t65535\n");
}

#[test]
fn capabilities_are_few() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["cat", "/proc/self/status"]);
    let (_, text) = machine.run();
    let value = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    // The list of `default_capabilities`, as numbers of capability.h.
    let expected = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31].iter().fold(0u64, |m, c| m | 1 << c);
    assert_eq!(value("CapBnd:"), expected, "{text}");
    assert_eq!((value("CapPrm:"), value("CapEff:")), (expected, expected));
    assert_eq!((value("CapInh:"), value("CapAmb:")), (0, 0));
    assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), (1, 2));
}

#[test]
fn init_has_next_to_nothing() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    let created = machine.up();
    let status = std::fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("CapEff:"), "CapEff:\t0000000000000020");
    assert_eq!(line("CapBnd:"), "CapBnd:\t0000000000000020");
    assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
    assert_eq!(line("Seccomp:"), "Seccomp:\t2");
    // Its program cannot be written from inside, by any way to it.
    let text = machine.inside("(echo x > /proc/1/exe) 2>&1 || true");
    assert!(
        text.contains("Read-only file system") || text.contains("Permission denied") || text.contains("Text file busy"),
        "{text}"
    );
}

#[test]
fn devices_are_real_and_few() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    assert_eq!(machine.inside("ls /dev | tr '\\n' ' ' 2>/dev/null || ls /dev").split_whitespace().count(), 14);
    assert_eq!(
        machine.inside("stat -c '%t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty"),
        "1:3\n1:5\n1:7\n1:8\n1:9\n5:0\n"
    );
    assert_eq!(machine.inside("head -c 4 /dev/zero | wc -c").trim(), "4");
    assert_ne!(machine.exec(&["mknod", "/tmp/sda", "b", "8", "0"]).0, 0);
    assert_eq!(machine.inside("readlink /dev/ptmx; readlink /dev/fd"), "pts/ptmx\n/proc/self/fd\n");
}

#[test]
fn layers_are_shared_and_ids_shifted() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&[]);
    machine.up();
    machine.inside("touch /made; chown ann /home/ann/x 2>/dev/null || touch /home/ann/x; chown 1000:1000 /home/ann/x");
    assert_eq!(machine.inside("stat -c '%u' / /bin/busybox /home/ann /made"), "0\n0\n1000\n0\n");
    let made = std::fs::metadata(machine.upper().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (machine.base, machine.base));
    assert_eq!(std::fs::metadata(machine.upper().join("home/ann/x")).unwrap().uid(), machine.base + 1000);
    // The layer itself is untouched.
    assert!(!machine.lower().join("made").exists());
    assert_eq!(std::fs::metadata(machine.lower().join("bin/busybox")).unwrap().uid(), 0);
    assert_eq!(std::fs::metadata(machine.upper()).unwrap().uid(), machine.base);
}

#[test]
fn the_hosts_mount_table_stays_the_same() {
    if !host_can() {
        return;
    }
    // Of other tests' containers nothing must show either, so this can run beside them.
    let machine = Machine::new(&[]);
    machine.up();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("ilot-test-") && !table.contains(" ilot "), "{table}");
    // And from inside, nothing of the host shows.
    let inside = machine.inside("cat /proc/self/mountinfo");
    assert!(!inside.contains(machine.dir.path().to_str().unwrap()), "{inside}");
}

#[test]
fn attacks_by_links_in_the_tree() {
    if !host_can() {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("hostname"), "host").unwrap();
    let evil = [
        ("proc", "/etc"),
        ("sys", "/etc"),
        ("dev", host.path().to_str().unwrap()),
        ("run", "/../../../../../../etc"),
        ("etc", host.path().to_str().unwrap()),
    ];
    for (name, target) in evil {
        let mut machine = Machine::new(&["true"]);
        let place = machine.lower().join(name);
        std::fs::remove_dir_all(&place).unwrap();
        symlink(target, &place).unwrap();
        machine.files = vec![InsideFile {
            path: "/etc/hostname".to_owned(),
            mode: 0o644,
            content: b"written\n".to_vec(),
            when: When::Always,
        }];
        // Refused or kept inside the tree; never on the host.
        let result = machine.create().and_then(|_| start(&machine.run_dir()));
        let text = format!("{name} → {target}: {result:?}");
        assert_eq!(std::fs::read_to_string(host.path().join("hostname")).unwrap(), "host", "{text}");
        assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 1, "{text}");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(host.path().to_str().unwrap()), "{text}");
    }
}

#[test]
fn files_replace_links() {
    if !host_can() {
        return;
    }
    let host = tempfile::tempdir().unwrap();
    let victim = host.path().join("victim");
    std::fs::write(&victim, "host").unwrap();
    let mut machine = Machine::new(&["/bin/sh", "-c", "cat /etc/hosts /etc/kept /new/dir/file; stat -c %a /etc/hosts"]);
    symlink(&victim, machine.lower().join("etc/hosts")).unwrap();
    std::fs::write(machine.lower().join("etc/kept"), "old\n").unwrap();
    let file = |path: &str, when| InsideFile { path: path.to_owned(), mode: 0o640, content: b"new\n".to_vec(), when };
    machine.files = vec![
        file("/etc/hosts", When::Always),
        file("/etc/kept", When::IfMissing),
        file("/new/dir/file", When::IfMissing),
    ];
    let (exit, text) = machine.run();
    assert_eq!((exit.code, text.as_str()), (0, "new\nold\nnew\n640\n"));
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "host");
}

#[test]
fn mounts_inside_procfs_are_refused() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::new(&["true"]);
    for target in ["/proc/self/attr", "/proc/sys", "/proc/1"] {
        machine.spec.mounts.push(ilot_runtime::spec::Mount {
            destination: target.to_owned(),
            kind: Some("tmpfs".to_owned()),
            ..Default::default()
        });
        let error = machine.create().unwrap_err();
        assert!(error.to_string().contains("procfs"), "{target}: {error}");
        machine.spec.mounts.pop();
    }
}

#[test]
fn a_working_directory_outside_is_refused() {
    if !host_can() {
        return;
    }
    for n in 3..12 {
        let mut machine = Machine::new(&["/bin/sh", "-c", "pwd; ls"]);
        machine.spec.process.as_mut().unwrap().cwd = format!("/proc/self/fd/{n}");
        let result = machine.create().and_then(|_| start(&machine.run_dir()));
        assert!(result.is_err(), "descriptor {n} became the working directory");
    }
}

#[test]
fn two_domains_do_not_reach_each_others_files() {
    if !host_can() {
        return;
    }
    // Two containers of one range share ids, one of another range does not.
    let one = Machine::new(&[]);
    let mut two = Machine::new(&[]);
    let ids = one.spec.linux.as_ref().unwrap().uid_mappings.clone();
    let linux = two.spec.linux.as_mut().unwrap();
    linux.uid_mappings.clone_from(&ids);
    linux.gid_mappings = ids;
    let (a, b) = (one.up(), two.up());
    let uid = |pid: i32| std::fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    assert_eq!((uid(a.pid), uid(b.pid)), (one.base, one.base));
    let space = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_ne!(space(a.pid), space(b.pid));
    one.inside("touch /x");
    two.inside("touch /x");
    assert_eq!(std::fs::metadata(two.upper().join("x")).unwrap().uid(), one.base);
}

#[test]
fn a_directory_as_root_read_only() {
    if !host_can() {
        return;
    }
    let mut machine = Machine::shell("stat -c %u /bin/busybox; (touch /x) 2>&1; touch /run/x && echo ok");
    machine.rootfs = Rootfs::Dir { path: machine.lower(), readonly: true, idmap: true };
    let (_, text) = machine.run();
    assert_eq!(text, "0\ntouch: /x: Read-only file system\nok\n");
}

#[test]
fn signals_are_as_new() {
    if !host_can() {
        return;
    }
    let machine = Machine::new(&["cat", "/proc/self/status"]);
    let (_, text) = machine.run();
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000")), "{name} in {text}");
    }
}

#[test]
fn volumes_are_private_and_read_only_on_demand() {
    if !host_can() {
        return;
    }
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("file"), "data\n").unwrap();
    let bind = |destination: &str, options: &[&str]| ilot_runtime::spec::Mount {
        destination: destination.to_owned(),
        kind: Some("bind".to_owned()),
        source: Some(volume.path().to_str().unwrap().to_owned()),
        options: options.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    };
    let mut machine = Machine::shell(
        "cat /one/file /two/file; stat -c %u /one/file /two/file; touch /two/x 2>&1; touch /one/y && echo made; \
         grep -c shared: /proc/self/mountinfo",
    );
    machine.spec.mounts.push(bind("/one", &["rbind", "idmap"]));
    machine.spec.mounts.push(bind("/two", &["bind", "ro"]));
    let (_, text) = machine.run();
    assert_eq!(text, "data\ndata\n0\n65534\ntouch: /two/x: Read-only file system\nmade\n0\n");
    assert_eq!(std::fs::metadata(volume.path().join("y")).unwrap().uid(), 0);
}
