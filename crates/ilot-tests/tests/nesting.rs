//! Machines that forget, machines that start with the host, and machines in machines.

use std::path::Path;
use std::time::Duration;

use ilot_tests::{World, eventually, in_world, sh, skip};

fn project(machines: &str) -> String {
    format!(
        "project_name: deep\nglobal: {{addressing: {{base_octet: 10, zone_base: 160, zone_step: 10}}, default_os_image: busybox}}\n\
         domains:\n  one:\n    ephemeral: true\n    machines:\n{machines}"
    )
}

fn inspect(world: &World, machine: &str) -> serde_json::Value {
    let info = world.ilot(["inspect", machine, "--json"]).ok().json();
    if info.is_array() { info[0].clone() } else { info }
}

/// Whether a text is in any file below a directory.
fn is_below(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            return is_below(&path, text);
        }
        std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|w| w == text.as_bytes()))
    })
}

#[test]
fn an_amnesic_machine_leaves_nothing() {
    in_world(|world| {
        let text = project(
            "      ghost: {config: {limits.memory: 64MiB}, ilot: {amnesic: true, command: [\"/bin/sh\", \"-c\", \"echo printed-$((40+2))-secret; sleep 1000\"]}}\n",
        );
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(
            world.exec("ghost", "echo written-$((40+2))-secret > /root/file; sync; cat /root/file").status.success()
        );
        // What it prints is kept where the run directory is in memory, as `/run` is, and nowhere else.
        let in_memory = sh(&format!("stat -f -c %T {}", world.run_dir().display())).trim() == "tmpfs";
        assert_eq!(is_below(&world.run_dir(), "printed-42-secret"), in_memory, "in the run directory");
        assert!(!is_below(&world.run_dir(), "written-42-secret"), "in the run directory");
        assert!(!is_below(&world.root().join("machines"), "printed-42-secret"));
        assert!(!is_below(&world.root().join("machines"), "written-42-secret"));
        assert!(!world.root().join("machines/ghost/upper").exists());
        // Its memory is a limit for its files too.
        let full = world.exec("ghost", "head -c 80m /dev/zero > /root/big");
        assert!(!full.status.success(), "80 MB in 64 MiB: {full}");
        assert!(world.exec("ghost", "rm -f /root/big; echo still-there > /root/x").status.success());
        let logs = world.ilot(["logs", "ghost"]).run();
        let wanted =
            if in_memory { logs.stdout.contains("printed-42-secret") } else { logs.stderr.contains("amnesic") };
        assert!(wanted && logs.status.success() == in_memory, "{logs}");
        world.ilot(["restart", "-t", "0", "ghost"]).ok();
        assert!(!world.exec("ghost", "cat /root/file").status.success(), "it remembers");
        let plan = world.ilot(["plan", "-f", file, "--json"]).ok().json();
        assert_eq!(plan["changes"], serde_json::json!([]));
        world.ilot(["stop", "-t", "0", "ghost"]).ok();
        let refused = world.ilot(["cp", "ghost:/root", world.path("out").to_str().unwrap()]).fails();
        assert!(refused.stderr.contains("amnesic"), "{refused}");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn machines_start_with_the_host() {
    in_world(|world| {
        let text = project(
            "      low: {boot_autostart: true, boot_priority: 1}\n      high: {boot_autostart: true, boot_priority: 9}\n      never: {}\n",
        );
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        world.ilot(["stop", "-t", "0", "one"]).ok();
        let started = world.ilot(["start", "--autostart"]).ok();
        let lines: Vec<&str> = started.stdout.lines().collect();
        assert_eq!(lines, ["started high", "started low"], "{started}");
        assert_eq!(inspect(world, "never")["state"], "stopped");
        assert!(world.exec("low", "ping -c 1 -W 2 high").status.success());
        // A machine knows how deep it stands.
        let told = world.exec("low", "cd /etc/anklume && cat absolute_level relative_level vm_nested");
        assert_eq!(told.stdout, "1\n1\nfalse\n", "{told}");
        assert_eq!(world.ilot(["start"]).run().code(), 2);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_machine_may_hold_machines() {
    in_world(|world| {
        let nest = world.path("nest");
        std::fs::create_dir_all(&nest).unwrap();
        let text = project("      outer: {config: {security.nesting: \"true\"}}\n      flat: {}\n");
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let plan = world.ilot(["plan", "-f", file, "--json"]).ok().json();
        assert_eq!(plan["changes"], serde_json::json!([]));
        let maps = world.exec("outer", "cat /proc/self/uid_map");
        assert_eq!(maps.stdout.lines().count(), 2, "{maps}");
        // Namespaces, fresh mounts of their kinds, and what it may not even so.
        for granted in [
            "unshare -m true",
            "unshare -U -r true",
            "unshare -p -f -m sh -c 'mount -t proc proc /proc && test -d /proc/1'",
            "unshare -n -m sh -c 'mount -t sysfs -o ro sysfs /sys && ip link set lo up'",
            "unshare -m sh -c 'mount -t tmpfs none /mnt && echo x > /mnt/x'",
        ] {
            let got = world.exec("outer", granted);
            assert!(got.status.success(), "`{granted}`: {got}");
            assert!(!world.exec("flat", granted).status.success(), "`{granted}` works without nesting");
        }
        for denied in [
            "echo b > /proc/sysrq-trigger",
            "echo b > /dev/.ilot/proc/sysrq-trigger",
            "echo 1 > /dev/.ilot/proc/sys/kernel/panic",
            "mknod /dev/sda b 8 0",
            "cat /dev/.ilot/proc/kcore",
        ] {
            assert!(!world.exec("outer", denied).status.success(), "`{denied}` works");
        }
        nested_ilot(world);
        world.write("infra.yml", &text.replace("security.nesting: \"true\"", ""));
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert_eq!(world.exec("outer", "cat /proc/self/uid_map").stdout.lines().count(), 1);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// Our own program in the machine: a container in the container.
fn nested_ilot(world: &World) {
    let program = std::env::var_os("CARGO_TARGET_DIR").map(|dir| Path::new(&dir).join("dist"));
    let Some(dist) = program.filter(|dist| dist.join("bin/ilot").exists()) else {
        return skip("needs the built program (CARGO_TARGET_DIR)");
    };
    // The program is linked dynamically, and busybox images have no libraries: it brings them along.
    let libraries = ilot_tests::sh(&format!("ldd {} | grep -o '/[^ ]*'", dist.join("bin/ilot").display()));
    assert!(world.exec("outer", "mkdir -p /opt/bin /opt/libexec /lib64 /lib/x86_64-linux-gnu").status.success());
    for library in libraries.lines() {
        let target = format!("outer:{library}");
        let real = std::fs::canonicalize(library).unwrap();
        world.ilot(["cp", real.to_str().unwrap(), &target]).ok();
    }
    world.ilot(["cp", dist.join("bin/ilot").to_str().unwrap(), "outer:/opt/bin/ilot"]).ok();
    world.ilot(["cp", dist.join("libexec/ilot").to_str().unwrap(), "outer:/opt/libexec/"]).ok();
    let run = "mkdir -p /tmp/store; mount -t tmpfs none /tmp/store; cd /tmp; export ILOT_ROOT=/tmp/store/root ILOT_RUN=/run/ilot; \
               /opt/bin/ilot run --rm --net none busybox true";
    let got = world.exec("outer", run);
    if !got.status.success() {
        skip(&format!("ilot in a machine does not run here: {}", got.stderr.trim()));
    }
    assert!(eventually(Duration::from_secs(5), || world.exec("outer", "true").status.success()));
}

/// Podman of this host's distribution, inside a machine, with storage and network of its own.
#[test]
fn podman_runs_in_a_machine() {
    in_world(|world| {
        if !["/usr/bin/podman", "/usr/bin/conmon", "/usr/bin/crun"].iter().all(|path| Path::new(path).exists())
            || !Path::new("/bin").is_symlink()
        {
            skip("needs podman, conmon and crun below a merged /usr");
            return;
        }
        // A root of links into this host's /usr, which the machine sees read-only.
        let root = world.path("root");
        sh(&format!(
            "mkdir -p {0}/usr {0}/etc/containers {0}/var/lib/containers {0}/var/tmp {0}/tmp {0}/root {0}/run; cd {0}
            for link in bin sbin lib lib64; do ln -s usr/$link $link; done; ln -s /run var/run
            echo root:x:0:0:root:/root:/bin/sh > etc/passwd; echo root:x:0: > etc/group
            echo '{{\"default\": [{{\"type\": \"insecureAcceptAnything\"}}]}}' > etc/containers/policy.json",
            root.display()
        ));
        let text = project(
            "      pod: {config: {security.nesting: \"true\"}, devices: {usr: {type: disk, source: /usr, path: /usr, readonly: \"true\"}}, ilot: {image: ./root, command: [/bin/sleep, \"100000\"]}}\n",
        );
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let made = world.exec(
            "pod",
            "mount -t tmpfs tmpfs /var/lib/containers && mkdir -p /tmp/bb/bin && cp $(command -v busybox) /tmp/bb/bin/ &&
            ln -s busybox /tmp/bb/bin/sh && tar -C /tmp/bb -c . | podman import - bb",
        );
        assert!(made.status.success(), "{made}");
        let ran =
            world.exec("pod", "podman run --rm --network none bb /bin/sh -c 'echo pid $$; busybox id -u; echo x > /y'");
        assert_eq!(ran.stdout, "pid 1\n0\n", "{ran}");
        let detached = world.exec(
            "pod",
            "podman run -d --name one --network none bb /bin/busybox sleep 1000 >/dev/null && podman exec one /bin/busybox ps |
            grep -c sleep && podman rm -f -t 0 one >/dev/null && podman ps -aq | wc -l",
        );
        assert_eq!(detached.stdout, "1\n0\n", "{detached}");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

/// Only where a VM stands above this host, and then with the host's own ids; its walls are the others.
#[test]
fn a_privileged_machine_below_a_vm() {
    in_world(|world| {
        let text = project(
            "      root: {config: {security.privileged: \"true\"}, devices: {shared: {type: disk, source: SHARED, path: /shared}}}\n      flat: {}\n",
        );
        let shared = world.path("shared");
        std::fs::create_dir_all(&shared).unwrap();
        let file = world.write("infra.yml", &text.replace("SHARED", shared.to_str().unwrap()));
        let file = file.to_str().unwrap();
        let refused = world.ilot(["check", "-f", file]).fails();
        assert!(refused.stderr.contains("no VM stands above this host"), "{refused}");
        // The host is told that it is in a VM; only this test sees it.
        let told = world.path("anklume");
        std::fs::create_dir_all(&told).unwrap();
        std::fs::write(told.join("vm_nested"), "true\n").unwrap();
        let at = told.display();
        if !Path::new("/etc/anklume").exists() {
            sh(&format!(
                "mkdir {at}-etc; mount -t tmpfs etc {at}-etc; cd {at}-etc; mkdir up work
                mount -t overlay -o lowerdir=/etc,upperdir=up,workdir=work etc /etc; mkdir /etc/anklume"
            ));
        }
        sh(&format!("mount --bind {at} /etc/anklume"));
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let plan = world.ilot(["plan", "-f", file, "--json"]).ok().json();
        assert_eq!(plan["changes"], serde_json::json!([]));
        let same = |machine: &str, namespace: &str| {
            let link = |pid: i64| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            let pid = inspect(world, machine)["pid"].as_i64().unwrap();
            link(pid) == link(i64::from(std::process::id()))
        };
        assert!(same("root", "user") && !same("flat", "user"));
        for namespace in ["pid", "net", "ipc", "uts", "cgroup", "mnt"] {
            assert!(!same("root", namespace), "{namespace}");
        }
        let wrote =
            world.exec("root", "echo x > /shared/file && stat -c %u /shared /shared/file && cat /proc/self/uid_map");
        let lines: Vec<String> =
            wrote.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["0", "0", "0 0 4294967295"], "{wrote}");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(shared.join("file")).unwrap().uid(), 0);
        for refused in [
            "mount -t tmpfs none /mnt",
            "mknod /tmp/sda b 254 0 && head -c 1 /tmp/sda",
            "echo 1 > /proc/sys/kernel/panic",
            "echo b > /proc/sysrq-trigger",
            "echo x > /sys/kernel/uevent_helper",
            "insmod /dev/null",
            "cat /proc/kcore | head -c 1 | grep .",
        ] {
            assert!(!world.exec("root", refused).status.success(), "{refused}");
        }
        assert!(world.exec("root", "ping -c 1 -W 2 flat").status.success());
        world.ilot(["restart", "-t", "0", "root"]).ok();
        world.ilot(["cp", shared.join("file").to_str().unwrap(), "root:/root/copied"]).ok();
        assert_eq!(world.exec("root", "stat -c %u:%g /root/copied").stdout, "0:0\n");
        // An ordinary machine again: another root, for the files' owners were others.
        let text = std::fs::read_to_string(file).unwrap().replace("\"true\"", "\"false\"");
        world.write("infra.yml", &text);
        let plan = world.ilot(["plan", "-f", file, "--json"]).ok().json();
        assert_eq!(plan["changes"][0]["action"], "replace", "{plan}");
        world.ilot(["apply", "-f", file, "--yes", "--allow-restart"]).ok();
        assert!(!same("root", "user"));
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        sh(&format!("umount /etc/anklume; if test -d {at}-etc; then umount /etc {at}-etc; fi"));
        world.assert_clean();
    });
}
