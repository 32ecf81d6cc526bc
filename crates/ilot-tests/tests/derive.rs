//! `ilot image mount`, `derive` and `push --all`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Child;

use ilot_tests::{World, in_world, sh};
use serde_json::Value;

#[test]
fn images_are_mounted_to_be_looked_at() {
    in_world(|world| {
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let motd = world.write("motd", "hello");
        let copy = format!("{}:/etc/motd", motd.display());
        world.ilot(["image", "derive", "--copy", &copy, "--env", "A=b", "busybox", "mine"]).ok();
        let out = world.ilot(["run", "--rm", "mine", "sh", "-c", "cat /etc/motd; echo $A"]).ok();
        assert_eq!(out.stdout, "hellob\n");
        let at = world.path("mnt");
        let mounted = world.ilot(["image", "mount", "mine", at.to_str().unwrap()]).ok();
        assert_eq!(mounted.stdout.trim(), at.to_str().unwrap());
        assert_eq!(fs::read_to_string(at.join("etc/motd")).unwrap(), "hello");
        assert!(at.join("bin/busybox").is_file());
        let refused = fs::write(at.join("etc/motd"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let options = sh(&format!("grep ' {} ' /proc/self/mountinfo", at.display()));
        assert!(options.contains("ro,nosuid,nodev") && !options.contains("shared:"), "{options}");
        // Twice at one place, or over something, it is not done.
        assert!(world.ilot(["image", "mount", "busybox", at.to_str().unwrap()]).fails().stderr.contains("mount"));
        let full = world.write("full/file", "x").parent().unwrap().display().to_string();
        assert!(world.ilot(["image", "mount", "busybox", &full]).fails().stderr.contains("not empty"));
        // Elsewhere it is, in a place that ilot makes.
        let usual = world.ilot(["image", "mount", "busybox"]).ok().stdout.trim().to_owned();
        let list = world.ilot(["image", "mount", "--json"]).ok().json();
        assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
        // What is mounted is not removed, and neither are its layers.
        let kept = world.ilot(["image", "rm", "mine"]).fails();
        assert!(kept.stderr.contains("in use"), "{kept}");
        world.ilot(["image", "prune", "--all"]).ok();
        assert_eq!(fs::read_to_string(at.join("etc/motd")).unwrap(), "hello");
        // Somebody in it is not thrown out.
        let open = fs::File::open(at.join("etc/motd")).unwrap();
        let busy = world.ilot(["image", "unmount", "mine"]).fails();
        assert!(busy.stderr.contains("somebody is in it") && busy.stderr.contains("fuser"), "{busy}");
        drop(open);
        world.ilot(["image", "unmount", "mine"]).ok();
        assert!(at.is_dir() && fs::read_dir(&at).unwrap().next().is_none(), "a folder that was named stays");
        world.ilot(["image", "unmount", "--all"]).ok();
        assert!(!std::path::Path::new(&usual).exists(), "one that was made goes");
        assert_eq!(world.ilot(["image", "mount", "--json"]).ok().json(), serde_json::json!([]));
        assert!(world.ilot(["image", "unmount", at.to_str().unwrap()]).fails().stderr.contains("neither"));
        world.ilot(["image", "rm", "mine"]).ok();
    });
}

/// A registry on loopback, without TLS.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(world: &World) -> Self {
        let mut child = world.ilot(["registry", "serve", "--json", "--listen", "127.0.0.1:0"]).spawn();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
        Self { child, address: event["address"].as_str().unwrap().to_owned() }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_name_for_all_platforms() {
    in_world(|world| {
        let registry = Registry::start(world);
        let root = world.path("root");
        for (platform, text) in [("linux/amd64", "here"), ("linux/s390x", "there"), ("linux/arm/v7", "small")] {
            fs::create_dir_all(&root).unwrap();
            fs::write(root.join("text"), text).unwrap();
            let folder = root.display().to_string();
            world.ilot(["image", "import", "-q", "--platform", platform, &folder, "many"]).ok();
        }
        let names = world.ilot(["image", "ls", "--json"]).ok().json();
        let many = names.as_array().unwrap().iter().filter(|i| i["reference"] == "local:many").count();
        assert_eq!(many, 3, "{names}");
        let name = format!("{}/team/many:1", registry.address);
        let pushed =
            world.ilot(["image", "push", "--all", "local:many", &name, "--tls-verify=false", "--json"]).ok().json();
        let index = sh(&format!("curl -fsS http://{}/v2/team/many/manifests/1", registry.address));
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 3, "{index} {pushed}");
        assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm", "{index}");
        let pull = world.ilot(["image", "pull", "-q", "--platform", "linux/s390x", &name, "--tls-verify=false"]).ok();
        let there = names.as_array().unwrap().iter().find(|i| i["platform"] == "linux/s390x").unwrap();
        assert_eq!(pull.stdout.trim(), there["digest"].as_str().unwrap());
        world.ilot(["image", "rm", "--platform", "linux/s390x", "local:many"]).ok();
        world.ilot(["image", "inspect", "--platform", "linux/arm/v7", "local:many"]).ok();
        world.ilot(["image", "inspect", "--platform", "linux/s390x", "local:many"]).fails();
    });
}
