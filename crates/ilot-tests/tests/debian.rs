//! A real distribution: bootstrapped from its package mirror, applied, used.

use std::process::Command;

use ilot_tests::{World, in_world, skip};

/// Obtains an image outside of the world, where the package mirror can be reached. No network of ilot's is made for it.
fn obtain(world: &World, image: &str) -> bool {
    if Command::new("mmdebstrap").arg("--version").output().is_err() {
        skip("needs `mmdebstrap`");
        return false;
    }
    // The process's first thread never left the host's network namespace.
    let host = format!("--net=/proc/{}/ns/net", std::process::id());
    let mut command = vec!["run".to_owned(), "--rm".to_owned(), "--net".to_owned(), "none".to_owned()];
    command.extend([image.to_owned(), "/bin/true".to_owned()]);
    let output = world.ilot_under("nsenter", &[&host], &command).run();
    assert!(output.status.success(), "{output}");
    true
}

#[test]
fn student_sysadmin_on_debian() {
    in_world(|world| {
        if !obtain(world, "images:debian/13") {
            return;
        }
        let example = world.example("student-sysadmin");
        let file = example.to_str().unwrap();
        let up = world.ilot(["apply", "-f", file, "--yes"]).ok();
        eprintln!("apply: {:?}", up.took);
        let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
        assert!(plan.status.success(), "{plan}");
        let machines = world.ilot(["ps", "--json"]).ok().json();
        let names: Vec<String> =
            machines.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect();
        assert!(names.len() >= 2, "{machines}");
        for name in &names {
            let got = world.exec(name, ". /etc/os-release; echo $ID $VERSION_ID; id -u; dpkg -l | grep -c ^ii");
            let mut lines = got.stdout.lines();
            assert_eq!(lines.next(), Some("debian 13"), "{got}");
            assert_eq!(lines.next(), Some("0"), "{got}");
            let got =
                world.exec(name, "getent hosts $(hostname) && ip -4 addr show dev eth0 && ping -c 1 -W 2 127.0.0.1");
            assert!(got.status.success(), "{got}");
            // What packages do to a root file system: owners, set-id bits, device nodes refused.
            let got = world.exec(
                name,
                "touch /root/x && chown 33:33 /root/x && stat -c %u /root/x && su www-data -s /bin/sh -c 'id -u'",
            );
            assert_eq!(got.stdout, "33\n33\n", "{got}");
        }
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn debian_12_boots_its_own_init() {
    in_world(|world| {
        if !obtain(world, "images:debian/12") {
            return;
        }
        let file = world.write(
            "infra.yml",
            "project_name: own\nglobal: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: \"images:debian/12\"}\ndomains: {d: {machines: {boot: {}}}}\n",
        );
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        let systemd = ilot_tests::eventually(std::time::Duration::from_secs(60), || {
            let got = world.exec("boot", "cat /proc/1/comm; systemctl is-system-running");
            got.stdout.starts_with("systemd") && (got.stdout.contains("running") || got.stdout.contains("degraded"))
        });
        let logs = world.ilot(["logs", "boot"]).run();
        assert!(
            systemd,
            "systemd does not come up: {}\n{logs}",
            world.exec("boot", "cat /proc/1/comm; systemctl --failed")
        );
        let stop = world.ilot(["stop", "--timeout", "30", "boot"]).ok();
        assert!(stop.took < std::time::Duration::from_secs(25), "systemd shuts down when asked: {:?}", stop.took);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
