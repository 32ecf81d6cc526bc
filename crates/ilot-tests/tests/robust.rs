//! What goes wrong: two at once, a full disk, a missing tool, an image that is not there.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use ilot_tests::{eventually, in_world};

const PROJECT: &str = "\
project_name: robust
global: {addressing: {base_octet: 10, zone_base: 180, zone_step: 10}, default_os_image: busybox}
domains:
  good: {machines: {good-a: {}, good-b: {}}}
  bad: {machines: {bad-a: {}}}
";

#[test]
fn two_applies_at_once() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        let first = world.ilot(["apply", "-f", file, "--yes"]).spawn();
        let second = world.ilot(["apply", "-f", file, "--yes"]).spawn();
        for child in [first, second] {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
        assert!(plan.status.success(), "{plan}");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn the_second_says_whom_it_waits_for() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["plan", "-f", file]).ok();
        // Somebody else at work, as the second one sees it.
        let lock = world.run_dir().join("locks/apply.lock");
        std::fs::write(&lock, "process 4711 (`ilot apply -f other.yml`)\n").unwrap();
        let held = std::fs::File::open(&lock).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut second = world.ilot(["apply", "-f", file, "--yes"]).spawn();
        let mut said = String::new();
        BufReader::new(second.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "note: waiting for process 4711 (`ilot apply -f other.yml`)\n");
        assert!(second.try_wait().unwrap().is_none(), "it waits");
        drop(held);
        assert!(second.wait().unwrap().success());
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_failure_in_one_domain_leaves_the_others() {
    in_world(|world| {
        let text = PROJECT.replace("bad-a: {}", "bad-a: {ilot: {image: \"tar:/no/such/archive.tar\"}}");
        let file = world.write("infra.yml", &text);
        let file = file.to_str().unwrap();
        let failed = world.ilot(["apply", "-f", file, "--yes"]).fails();
        assert_eq!(failed.code(), 1, "{failed}");
        assert!(failed.stderr.contains("bad-a") && failed.stderr.contains("archive.tar"), "{failed}");
        assert!(world.exec("good-a", "ping -c 1 -W 2 good-b").status.success(), "the good domain runs");
        world.write("infra.yml", PROJECT);
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        assert!(world.exec("bad-a", "true").status.success(), "the next apply goes on from there");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    in_world(|world| {
        let store = world.root();
        std::fs::create_dir_all(&store).unwrap();
        ilot_tests::sh(&format!("mount -t tmpfs none {}", store.display()));
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        // Full while the image is made, while it is unpacked, and as late as while the machines are made.
        let mut succeeded = false;
        for kib in [64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16_384, 102_400] {
            ilot_tests::sh(&format!("mount -o remount,size={kib}k {}", store.display()));
            let got = world.ilot(["apply", "-f", file, "--yes"]).run();
            succeeded = got.status.success();
            if succeeded {
                break;
            }
            assert!(got.stderr.to_lowercase().contains("space"), "{kib} KiB: {got}");
        }
        assert!(succeeded);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        ilot_tests::sh(&format!("mount -o remount,size=100m {}", store.display()));
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        ilot_tests::sh(&format!("umount {}", store.display()));
        world.assert_clean();
    });
}

#[test]
fn a_missing_tool_is_named() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        // In this world's own mount namespace there is no nft any more, wherever it is looked for.
        let nft = ilot_tests::sh("readlink -f $(command -v nft)");
        ilot_tests::sh(&format!("mount --bind /dev/null {nft}"));
        let failed = world.ilot(["apply", "-f", file, "--yes"]).fails();
        ilot_tests::sh(&format!("umount {nft}"));
        assert!(failed.stderr.contains("nft"), "{failed}");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn what_somebody_removed_comes_back() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        for damage in ["nft delete table inet ilot", "ip link del il-good", "ip link del iv-bad-a"] {
            ilot_tests::sh(damage);
            let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
            assert_eq!(plan.code(), 2, "`{damage}` is not seen: {plan}");
            world.ilot(["apply", "-f", file, "--yes"]).ok();
            let answer = world.exec("good-a", "ping -c 1 -W 2 good-b");
            assert!(answer.status.success(), "after `{damage}`: {answer}");
            let plan = world.ilot(["plan", "-f", file, "--detailed-exitcode"]).run();
            assert!(plan.status.success(), "after `{damage}`: {plan}");
        }
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn a_directory_without_a_machine_is_no_obstacle_unless_it_holds_something() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        let empty = world.root().join("machines/good-a");
        std::fs::create_dir_all(empty.join("work/work")).unwrap();
        std::fs::create_dir(empty.join("upper")).unwrap();
        let full = world.root().join("machines/good-b");
        std::fs::create_dir_all(full.join("upper")).unwrap();
        std::fs::write(full.join("upper/thesis"), "years").unwrap();
        let output = world.ilot(["apply", "-f", file, "--yes"]).fails();
        assert!(output.stderr.contains("machines/good-b` is in the way"), "{output}");
        assert!(output.stderr.contains("move or remove it"), "{output}");
        assert!(output.stderr.contains("created machine good-a"), "{output}");
        assert_eq!(std::fs::read_to_string(full.join("upper/thesis")).unwrap(), "years");
        std::fs::remove_dir_all(&full).unwrap();
        world.ilot(["apply", "-f", file, "--yes"]).ok();
        // What is in there belongs to the machine's users, set-user-id programs too: nobody else goes in.
        assert_eq!(std::fs::metadata(&full).unwrap().mode() & 0o777, 0o700);
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}

#[test]
fn interrupted_by_the_user() {
    in_world(|world| {
        let file = world.write("infra.yml", PROJECT);
        let file = file.to_str().unwrap();
        let mut child = world.ilot(["apply", "-f", file, "--yes"]).spawn();
        std::thread::sleep(Duration::from_millis(60));
        let pid = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        assert!(eventually(Duration::from_secs(20), || child.try_wait().unwrap().is_some()), "it ends");
        world.ilot(["destroy", "-f", file, "--yes", "--force"]).ok();
        world.assert_clean();
    });
}
