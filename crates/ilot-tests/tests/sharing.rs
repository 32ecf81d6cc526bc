//! What machines see of the host: shared volumes, disk devices, data that outlives its machine, and their part of its CPUs
//! and memory.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ilot_tests::{World, in_world, sh};

fn inspect(world: &World, machine: &str) -> serde_json::Value {
    let info = world.ilot(["inspect", machine, "--json"]).ok().json();
    if info.is_array() { info[0].clone() } else { info }
}

fn pid(world: &World, machine: &str) -> i64 {
    inspect(world, machine)["pid"].as_i64().expect("it runs")
}

fn apply(world: &World, text: &str) {
    world.write("infra.yml", text);
    world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).ok();
    let plan = world.ilot(["plan", "-f", "infra.yml", "--json"]).ok().json();
    assert_eq!(plan["changes"], serde_json::json!([]));
}

/// What `ilot check` warns about, a line each.
fn warnings(world: &World) -> String {
    let check = world.ilot(["check", "-f", "infra.yml", "--json"]).ok().json();
    let messages = check["warnings"].as_array().unwrap().iter().map(|w| w["message"].as_str().unwrap().to_owned());
    messages.collect::<Vec<_>>().join("\n")
}

fn succeeds(world: &World, machine: &str, shell: &str) -> bool {
    world.exec(machine, shell).status.success()
}

fn project(world: &World, devices: &str) -> String {
    format!(
        r#"
project_name: sharing
global:
  addressing: {{base_octet: 10, zone_base: 150, zone_step: 10}}
  default_os_image: busybox
  shared_volumes_base: {shares}
domains:
  pro:
    ephemeral: true
    machines: {{pro-a: {{}}, pro-b: {{}}}}
  lab:
    ephemeral: true
    machines:
      lab-a:
        devices:
          root: {{type: disk, path: /, pool: default}}
{devices}
shared_volumes:
  docs: {{source: {docs}, path: /shared/docs, consumers: {{pro: ro, pro-a: rw}}}}
  notes: {{consumers: {{lab: rw}}}}
"#,
        shares = world.path("shares").display(),
        docs = world.path("docs").display(),
    )
}

/// A directory with a file and, mounted below it, a file system that anybody may write to.
fn documents(world: &World) -> PathBuf {
    let docs = world.path("docs");
    fs::create_dir_all(docs.join("below")).unwrap();
    fs::write(docs.join("a"), "content").unwrap();
    sh(&format!("mount -t tmpfs -o mode=1777 below {0}/below; echo deep > {0}/below/file", docs.display()));
    docs
}

#[test]
fn volumes_are_shared_as_the_file_says() {
    in_world(|world| {
        let docs = documents(world);
        let text = project(world, "");
        apply(world, &text);
        // A domain's consumers read, the one machine with its own word writes; owners are those inside.
        let wrote = world
            .exec("pro-a", "echo new > /shared/docs/new && chown 7:8 /shared/docs/new; stat -c %u:%g /shared/docs/a");
        assert_eq!(wrote.stdout, "0:0\n", "{wrote}");
        let meta = fs::metadata(docs.join("new")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (7, 8));
        let read = world.exec("pro-b", "cat /shared/docs/new; stat -c %u:%g /shared/docs/new");
        assert_eq!(read.stdout, "new\n7:8\n", "{read}");
        for refused in ["touch /shared/docs/x", "mount -o remount,rw /shared/docs", "rm /shared/docs/a"] {
            assert!(!succeeds(world, "pro-b", refused), "{refused}");
        }
        assert!(!succeeds(world, "lab-a", "test -e /shared/docs"), "it is no consumer");
        let mounts = world.exec("pro-a", "grep ' /shared/docs ' /proc/self/mountinfo").stdout;
        assert!(mounts.contains("nosuid") && mounts.contains("nodev"), "{mounts}");
        // One without a source has its place below the base, made by us.
        assert!(succeeds(world, "lab-a", "echo kept > /shared/notes/file"));
        assert_eq!(fs::read_to_string(world.path("shares/notes/file")).unwrap(), "kept\n");
        // Another mode for one machine is a restart of that machine.
        let before = pid(world, "pro-a");
        let more = text.replace("pro-a: rw}", "pro-a: rw, pro-b: rw}");
        world.write("infra.yml", &more);
        let plan = world.ilot(["plan", "-f", "infra.yml", "--json"]).ok().json();
        let changes = plan["changes"].as_array().unwrap();
        assert_eq!((changes.len(), &changes[0]["name"]), (1, &"pro-b".into()), "{plan}");
        assert_eq!(changes[0]["reasons"][0]["field"], "volume /shared/docs", "{plan}");
        apply(world, &more);
        assert!(succeeds(world, "pro-b", "touch /shared/docs/x") && pid(world, "pro-a") == before);
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        assert_eq!(fs::read_to_string(world.path("shares/notes/file")).unwrap(), "kept\n");
        assert_eq!(fs::read_to_string(docs.join("new")).unwrap(), "new\n");
        sh(&format!("umount {}/below", docs.display()));
        world.assert_clean();
    });
}

#[test]
fn disks_are_what_their_options_say() {
    in_world(|world| {
        let docs = documents(world);
        let at = docs.display();
        let devices = format!(
            r#"
          look: {{type: disk, source: {at}, path: /look, readonly: "yes"}}
          deep: {{type: disk, source: {at}, path: /deep, recursive: true, readonly: true, shift: false}}
          open: {{type: disk, source: {at}, path: /open, recursive: "1", shift: "0"}}
          file: {{type: disk, source: {at}/a, path: /etc/a}}
          gone: {{type: disk, source: {at}/nowhere, path: /gone, required: false}}
"#
        );
        apply(world, &project(world, &devices));
        let denied = world.exec("lab-a", "touch /look/x; ls -A /look/below; cat /look/a");
        assert_eq!(denied.stdout, "content", "what is mounted below stays outside: {denied}");
        assert!(denied.stderr.contains("Read-only"), "{denied}");
        // Of what comes with it everything is as the device says: read-only, and not to be set-user-id.
        let deep = world.exec("lab-a", "cat /deep/below/file; touch /deep/below/x; stat -c %u /deep/a");
        assert_eq!(deep.stdout, "deep\n65534\n", "not shifted: {deep}");
        assert!(deep.stderr.contains("Read-only"), "{deep}");
        assert!(succeeds(world, "lab-a", "touch /open/below/x"), "anybody may write there");
        let mounts = world.exec("lab-a", "grep -E ' /(open|deep)(/below)? ' /proc/self/mountinfo").stdout;
        assert_eq!(mounts.lines().filter(|l| l.contains("nosuid") && l.contains("nodev")).count(), 4, "{mounts}");
        assert!(succeeds(world, "lab-a", "echo changed > /etc/a") && !succeeds(world, "lab-a", "test -e /gone"));
        assert_eq!(fs::read_to_string(docs.join("a")).unwrap(), "changed\n");

        for (device, says) in [
            ("source: DOCS, path: /x, limits.read: 10MB", "limits.read"),
            ("source: DOCS, path: /x, raw.mount.options: user_xattr", "raw.mount.options"),
            ("source: DOCS, path: /x, propagation: rshared", "reach back"),
            ("source: data, path: /x, pool: default", "no pools"),
            ("path: /, pool: default, size: 10GiB", "no disk size"),
        ] {
            let device = format!("          thing: {{type: disk, {}}}", device.replace("DOCS", docs.to_str().unwrap()));
            world.write("infra.yml", &project(world, &device));
            // Check and plan say it before apply does.
            let check = warnings(world);
            let plan = world.ilot(["plan", "-f", "infra.yml"]).ok();
            for said in [&check, &plan.stderr] {
                assert!(
                    said.contains("`ilot apply` will refuse machine `lab-a`") && said.contains(says),
                    "{device}: {said}"
                );
            }
            let refused = world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).fails();
            assert!(refused.stderr.contains(says) && refused.stderr.contains("thing"), "{device}: {refused}");
        }
        let missing = format!("          thing: {{type: disk, source: {at}/nowhere, path: /x}}");
        world.write("infra.yml", &project(world, &missing));
        let refused = world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).fails();
        assert!(refused.stderr.contains("mkdir -p"), "{refused}");
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        sh(&format!("umount {at}/below"));
        world.assert_clean();
    });
}

#[test]
fn data_outlives_destroy_and_rebuild() {
    in_world(|world| {
        let text = format!(
            "project_name: data
global: {{addressing: {{base_octet: 10, zone_base: 150, zone_step: 10}}, default_os_image: busybox, persistent_data_base: {}}}
domains:
  early: {{ephemeral: true, machines: {{first: {{}}}}}}
  keep:
    ephemeral: true
    machines:
      box:
        persistent_data: {{home: {{path: /home/user}}, look: {{path: /look, readonly: true}}}}
        persistent: {{state: /var/state}}
",
            world.path("data").display()
        );
        apply(world, &text);
        assert!(succeeds(
            world,
            "box",
            "echo kept > /home/user/file && chown 1000:1001 /home/user/file && chmod 640 /home/user/file && echo s > /var/state/x"
        ));
        assert!(!succeeds(world, "box", "touch /look/x"), "read-only");
        let kept = world.path("data/keep/box/home/file");
        let meta = fs::metadata(&kept).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o777), (1000, 1001, 0o640));
        let range = |world: &World| world.exec("box", "cat /proc/self/uid_map").stdout;
        let before = range(world);
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        assert_eq!(fs::read_to_string(&kept).unwrap(), "kept\n");
        // Made again, with another range of ids: the same owners inside.
        apply(world, &text.replace("  early: {ephemeral: true, machines: {first: {}}}\n", ""));
        apply(world, &text);
        let after = world.exec("box", "cat /home/user/file /var/state/x; stat -c %u:%g:%a /home/user/file");
        assert_eq!(after.stdout, "kept\ns\n1000:1001:640\n", "{after}");
        println!("ids before: {before}ids after: {}", range(world));
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        world.assert_clean();
    });
}

/// A setting of a machine's control group, by its names on v1 and v2.
fn setting(pid: i64, controller: &str, v1: &str, v2: &str) -> String {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let field = |line: &str, n: usize| line.splitn(3, ':').nth(n).unwrap_or_default().to_owned();
    let own = groups.lines().find(|line| field(line, 1).split(',').any(|c| c == controller));
    let path = match own {
        Some(line) => {
            Path::new("/sys/fs/cgroup").join(controller).join(field(line, 2).trim_start_matches('/')).join(v1)
        }
        None => {
            let line = groups.lines().find(|line| line.starts_with("0::")).expect("a group of v2");
            Path::new("/sys/fs/cgroup").join(field(line, 2).trim_start_matches('/')).join(v2)
        }
    };
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

#[test]
fn the_host_is_shared_out_by_weight() {
    in_world(|world| {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let total =
            meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        // A pool of 1 GiB, whatever the host has; 128 MiB of it are asked for, and 3 : 1 of the rest is 672 and 224.
        let reserve = total.unwrap() * 1024 - (1 << 30);
        let text = format!(
            "project_name: shares
global:
  addressing: {{base_octet: 10, zone_base: 150, zone_step: 10}}
  default_os_image: busybox
  resource_policy: {{host_reserve: {{cpu: \"20%\", memory: \"{reserve}\"}}, memory_enforce: hard}}
domains:
  one:
    ephemeral: true
    machines:
      big: {{weight: 3}}
      small: {{}}
      own: {{config: {{limits.memory: 128MiB, limits.cpu.allowance: 20%}}}}
  off: {{enabled: false, machines: {{gone: {{weight: 100}}}}}}
"
        );
        apply(world, &text);
        let memory =
            |world: &World, name: &str| setting(pid(world, name), "memory", "memory.limit_in_bytes", "memory.max");
        let cpu = |world: &World, name: &str| -> f64 {
            setting(pid(world, name), "cpu", "cpu.shares", "cpu.weight").parse().unwrap()
        };
        for (name, mib) in [("big", 672_u64), ("small", 224), ("own", 128)] {
            assert_eq!(memory(world, name), (mib << 20).to_string(), "{name}");
            assert_eq!(inspect(world, name)["limits"]["memory"], mib << 20, "{name}");
        }
        // 60 % of the host's time are left of the pool: 45 % and 15 %.
        let ratio = cpu(world, "big") / cpu(world, "small");
        assert!((2.5..3.5).contains(&ratio), "{ratio}");
        // Equal parts, soft: live, without a restart of anything.
        let before = pid(world, "big");
        apply(world, &text.replace("memory_enforce: hard", "mode: equal"));
        assert_eq!(pid(world, "big"), before);
        let soft = setting(before, "memory", "memory.soft_limit_in_bytes", "memory.high");
        assert_eq!(soft, (448_u64 << 20).to_string());
        assert_ne!(memory(world, "big"), soft, "a soft limit is no hard one");
        assert!((0.9..1.1).contains(&(cpu(world, "big") / cpu(world, "small"))));
        // Own limits beyond the pool are an error with the numbers; overcommitted they are a warning.
        let much = text.replace("128MiB", "2GiB");
        world.write("infra.yml", &much);
        let refused = world.ilot(["check", "-f", "infra.yml"]).fails();
        assert!(refused.stderr.contains("2304 MiB of the 1024 MiB"), "{refused}");
        world.write("infra.yml", &much.replace("memory_enforce: hard", "overcommit: true"));
        let warned = world.ilot(["check", "-f", "infra.yml"]).ok();
        assert!(warned.stderr.contains("2304 MiB of the 1024 MiB"), "{warned}");
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        world.assert_clean();
    });
}

/// What this engine does not do yet is said before anything is made, and nothing of it is passed over.
#[test]
fn what_is_not_there_is_refused() {
    in_world(|world| {
        let text = |keys: &str| {
            format!(
                "project_name: no\nglobal: {{default_os_image: busybox}}\ndomains:\n  one:\n    ephemeral: true\n    machines:\n      thing: {keys}\n      other: {{}}\n"
            )
        };
        for (keys, says) in [
            ("{config: {limits.memory.swap: \"false\"}}", "limits.memory.swap"),
            ("{config: {linux.sysctl.net.ipv4.ip_forward: 1}}", "linux.sysctl"),
            ("{config: {cloud-init.user-data: \"#cloud-config\"}}", "cloud-init.user-data"),
            ("{config: {nvidia.runtime: true}}", "nvidia.runtime"),
            ("{ilot: {isolation: enhanced}}", "isolation: enhanced"),
            ("{ilot: {restart: always}}", "ilot.restart"),
            ("{ilot: {health: {tcp: 80}}}", "ilot.health"),
            ("{ilot: {backend: incus}, config: {raw.lxc: x}}", "backend: incus"),
            ("{type: vm}", "type: vm"),
            ("{devices: {d: {type: unix-block, source: /dev/sda}}}", "no such device"),
        ] {
            world.write("infra.yml", &text(keys));
            let check = warnings(world);
            assert!(check.contains("`ilot apply` will refuse machine `thing`") && check.contains(says), "{check}");
            let failed = world.ilot(["apply", "-f", "infra.yml", "--yes"]).fails();
            assert!(failed.stderr.contains(says), "{keys}: {failed}");
            assert!(succeeds(world, "other", "true"), "the others are made");
            assert!(!world.root().join("machines/thing").exists());
        }
        // What asks for nothing is nothing to refuse.
        world.write("infra.yml", &text("{config: {nvidia.runtime: false, migration.stateful: \"false\", user.note: x}, ilot: {restart: \"no\"}}"));
        world.ilot(["apply", "-f", "infra.yml", "--yes"]).ok();
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        // A filter that is not there lets nothing run.
        let vm = text("{}").replace("default_os_image: busybox", "default_os_image: busybox, firewall_mode: vm");
        world.write("infra.yml", &vm.replace("domains:\n", "domains:\n  anklume: {}\n"));
        let check = warnings(world);
        assert!(check.contains("will refuse this project: `firewall_mode: vm`"), "{check}");
        for command in [["plan", "-f", "infra.yml"].as_slice(), &["apply", "-f", "infra.yml", "--yes"]] {
            let refused = world.ilot(command).fails();
            assert!(
                refused.stderr.contains("`firewall_mode: vm`") && refused.stderr.contains("firewall_mode: host"),
                "{refused}"
            );
        }
        world.assert_clean();
    });
}
