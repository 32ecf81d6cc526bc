//! Storage volumes: a machine's own, kept when it is replaced, with a size that holds.

use ilot_tests::{World, in_world, sh, skip};

fn project(image: &str, volumes: &str) -> String {
    format!(
        "project_name: stores
global: {{default_os_image: {image}}}
domains:
  keep:
    ephemeral: true
    machines:
      keeper:
        storage_volumes: {{{volumes}}}
"
    )
}

fn apply(world: &World, text: &str) {
    world.write("infra.yml", text);
    world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).ok();
    let plan = world.ilot(["plan", "-f", "infra.yml", "--json"]).ok().json();
    assert_eq!(plan["changes"], serde_json::json!([]));
}

/// Loop devices of the world's store.
fn loops(world: &World) -> usize {
    sh("losetup --noheadings --output BACK-FILE")
        .lines()
        .filter(|line| line.trim().starts_with(world.root().to_str().unwrap()))
        .count()
}

#[test]
fn volumes_outlive_the_machines_root() {
    in_world(|world| {
        let volumes = "data: {pool: default, path: /data}, look: {path: /look, readonly: true}";
        apply(world, &project("busybox", volumes));
        let written =
            world.exec("keeper", "echo kept > /data/file; echo gone > /root/file; ! touch /look/x; stat -c %u /data");
        assert_eq!((written.status.success(), written.stdout.as_str()), (true, "0\n"), "{written}");
        // Another image: another root, the same volumes.
        world.ilot(["image", "tag", "busybox", "golden:1"]).ok();
        apply(world, &project("golden:1", volumes));
        let kept = world.exec("keeper", "cat /data/file; cat /root/file");
        assert_eq!(kept.stdout, "kept\n", "{kept}");
        for (volumes, wanted) in [
            ("data: {path: /data, pool: fast}", "one pool"),
            ("data: {path: data}", "absolute"),
            ("data: {path: /data, size: 64MiB}", "without a size"),
        ] {
            world.write("infra.yml", &project("golden:1", volumes));
            let refused = world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).fails();
            assert!(refused.stderr.contains(wanted), "{refused}");
        }
        apply(world, &project("golden:1", volumes));
        assert_eq!(world.exec("keeper", "cat /data/file").stdout, "kept\n");
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        assert!(!world.root().join("volumes/keeper").exists());
        world.assert_clean();
    });
}

#[test]
fn a_size_is_a_limit() {
    in_world(|world| {
        if !["/dev/loop-control"].iter().all(|path| std::path::Path::new(path).exists())
            || std::process::Command::new("mkfs.ext4").arg("-V").output().is_err()
        {
            skip("volumes with a size need loop devices and mkfs.ext4");
            return;
        }
        apply(world, &project("busybox", "data: {path: /data, size: 16MiB}"));
        let full = world.exec("keeper", "echo kept > /data/file; dd if=/dev/zero of=/data/big bs=1M count=30");
        assert!(!full.status.success() && full.stderr.contains("No space left"), "{full}");
        assert!(world.exec("keeper", "rm /data/big; chown 1000:1000 /data/file").status.success());
        assert_eq!(loops(world), 1);
        let seen = sh("cat /proc/self/mountinfo");
        assert!(
            !seen.contains(world.run_dir().join("volumes").to_str().unwrap()),
            "mounted for the host to see: {seen}"
        );
        world.ilot(["restart", "-t", "0", "keeper"]).ok();
        assert_eq!(world.exec("keeper", "cat /data/file; stat -c %u:%g /data/file").stdout, "kept\n1000:1000\n");
        // It grows, and does not shrink.
        apply(world, &project("busybox", "data: {path: /data, size: 64MiB}"));
        let more = world.exec("keeper", "dd if=/dev/zero of=/data/big bs=1M count=30 2>/dev/null && cat /data/file");
        assert_eq!(more.stdout, "kept\n", "{more}");
        world.write("infra.yml", &project("busybox", "data: {path: /data, size: 16MiB}"));
        let refused = world.ilot(["apply", "-f", "infra.yml", "--yes", "--allow-restart"]).fails();
        assert!(refused.stderr.contains("cannot shrink"), "{refused}");
        world.ilot(["destroy", "-f", "infra.yml", "--yes"]).ok();
        assert!(
            ilot_tests::eventually(std::time::Duration::from_secs(5), || loops(world) == 0),
            "a loop device is left"
        );
        assert!(!world.root().join("volumes/keeper").exists());
        world.assert_clean();
    });
}
