//! `ilot image sync` and `search`: registries, layouts and folders, both ways, with what belongs to an image.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command};

use ilot_tests::{World, in_world, sh};
use serde_json::{Value, json};

/// A registry on loopback, with a store of its own.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(world: &World, name: &str) -> Self {
        let root = world.path(name).display().to_string();
        let mut child = world.ilot(["registry", "serve", "--json", "--listen", "127.0.0.1:0", "--root", &root]).spawn();
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

fn sync(world: &World, from: &str, to: &str, more: &[&str]) -> Value {
    let args = ["image", "sync", from, to, "--tls-verify=false", "--json"];
    world.ilot(args.iter().chain(more).copied()).ok().json()
}

/// How many images of a report have a result.
fn count(report: &Value, result: &str) -> usize {
    report["images"].as_array().unwrap().iter().filter(|one| one["result"] == result).count()
}

fn blobs(report: &Value) -> u64 {
    report["images"].as_array().unwrap().iter().map(|one| one["blobs"].as_u64().unwrap()).sum()
}

/// What a registry has behind a name: its digest, as curl sees it.
fn head(registry: &Registry, path: &str) -> Option<String> {
    let accept = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let url = format!("http://{}/v2/{path}", registry.address);
    let output = Command::new("curl").args(["-fsSI", "-H", accept, &url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    text.lines().find_map(|line| line.strip_prefix("docker-content-digest: ")).map(|d| d.trim().to_owned())
}

/// Two repositories with an image each under two tags, an index, a signature and a list of packages.
fn publish(world: &World, registry: &Registry) {
    world.ilot(["image", "pull", "-q", "busybox"]).ok();
    let push = |name: &str| {
        let name = format!("{}/{name}", registry.address);
        world.ilot(["image", "push", "-q", "busybox", &name, "--tls-verify=false"]).ok();
        name
    };
    push("team/tool:1.0");
    let signed = push("team/tool:1.1");
    push("other:1");
    let key = world.path("key").display().to_string();
    world.ilot(["image", "sign", "--generate-key", &key]).env("COSIGN_PASSWORD", "").ok();
    let sign = ["image", "sign", "--key", &format!("{key}.private"), &signed, "--tls-verify=false"];
    world.ilot(sign).env("COSIGN_PASSWORD", "").ok();
    world.ilot(["image", "tag", "busybox", &signed]).ok();
    world.ilot(["image", "sbom", "--attach", &signed, "--tls-verify=false"]).ok();
    let digest = head(registry, "team/tool/manifests/1.1").unwrap();
    let size = sh(&format!("curl -fsS http://{}/v2/team/tool/manifests/{digest} | wc -c", registry.address));
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
            "size": size.trim().parse::<u64>().unwrap(), "platform": { "os": "linux", "architecture": "amd64" } }] });
    let file = world.write("index.json", &index.to_string());
    sh(&format!(
        "curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @{} http://{}/v2/team/tool/manifests/all",
        file.display(),
        registry.address
    ));
}

#[test]
fn by_a_folder_from_one_registry_to_another() {
    in_world(|world| {
        let (one, two) = (Registry::start(world, "one"), Registry::start(world, "two"));
        publish(world, &one);
        let stick = format!("oci:{}", world.path("stick").display());
        let plan = sync(world, &one.address, &stick, &["--dry-run"]);
        assert!(count(&plan, "would_copy") >= 4 && count(&plan, "copied") == 0, "{plan}");
        assert!(!world.path("stick").exists(), "nothing is written");
        let there = sync(world, &one.address, &stick, &[]);
        assert_eq!(count(&there, "failed"), 0, "{there}");
        let again = sync(world, &one.address, &stick, &[]);
        assert_eq!((count(&again, "copied"), blobs(&again)), (0, 0), "{again}");
        // Into another registry, below a path.
        let to = format!("{}/copy", two.address);
        let on = sync(world, &stick, &to, &[]);
        assert_eq!(count(&on, "failed"), 0, "{on}");
        for name in
            ["team/tool/manifests/1.0", "team/tool/manifests/1.1", "team/tool/manifests/all", "other/manifests/1"]
        {
            let (before, after) = (head(&one, name), head(&two, &format!("copy/{name}")));
            assert!(before.is_some() && before == after, "{name}: {before:?} {after:?}");
        }
        // The signature holds there, and the list of packages refers to the image.
        let copied = format!("{}/copy/team/tool:1.1", two.address);
        let public = world.path("key.pub").display().to_string();
        world.ilot(["image", "verify", "--key", &public, &copied, "--tls-verify=false"]).ok();
        let digest = head(&one, "team/tool/manifests/1.1").unwrap();
        let list = sh(&format!("curl -fsS http://{}/v2/copy/team/tool/referrers/{digest}", two.address));
        assert!(list.contains("application/spdx+json"), "{list}");
        // A copy that broke off goes on: what is there is not sent again.
        sh(&format!("curl -fsS -X DELETE http://{}/v2/copy/team/tool/manifests/1.0", two.address));
        let resumed = sync(world, &stick, &to, &[]);
        assert_eq!((count(&resumed, "copied"), blobs(&resumed)), (1, 0), "{resumed}");
        // By rules.
        let three = Registry::start(world, "three");
        let some = sync(world, &one.address, &three.address, &["--name", "team/*", "--tag", "1.*"]);
        assert!(head(&three, "team/tool/manifests/1.0").is_some(), "{some}");
        assert!(head(&three, "other/manifests/1").is_none() && head(&three, "team/tool/manifests/all").is_none());
        let new = sync(world, &one.address, &three.address, &["--name", "other", "--since", "2990-01-01"]);
        assert_eq!((count(&new, "copied"), head(&three, "other/manifests/1")), (0, None), "{new}");
        // One repository, one tag.
        let single = format!("{}/other:1", one.address);
        assert_eq!(count(&sync(world, &single, &format!("{}/single", three.address), &[]), "copied"), 1);
        assert!(head(&three, "single/other/manifests/1").is_some());
    });
}

#[test]
fn folders_are_those_of_skopeo() {
    in_world(|world| {
        let (one, two) = (Registry::start(world, "one"), Registry::start(world, "two"));
        publish(world, &one);
        let folder = world.path("folder");
        let place = format!("dir:{}", folder.display());
        let there = sync(world, &one.address, &place, &[]);
        assert_eq!(count(&there, "failed"), 0, "{there}");
        assert!(folder.join("team/tool:1.1/version").is_file() && !folder.join(".coming").exists());
        let on = sync(world, &place, &two.address, &[]);
        assert_eq!(count(&on, "failed"), 0, "{on}");
        assert_eq!(head(&one, "team/tool/manifests/all"), head(&two, "team/tool/manifests/all"));
        let signed = format!("{}/team/tool:1.1", two.address);
        let public = world.path("key.pub").display().to_string();
        world.ilot(["image", "verify", "--key", &public, &signed, "--tls-verify=false"]).ok();
        // A damaged file is not passed on.
        let image = folder.join("other:1");
        let blob = std::fs::read_dir(&image).unwrap().flatten().map(|e| e.path());
        let blob = blob.max_by_key(|p| std::fs::metadata(p).unwrap().len()).unwrap();
        std::fs::write(&blob, "damaged").unwrap();
        let third = Registry::start(world, "three");
        let args = ["image", "sync", &place, &third.address, "--tls-verify=false", "--name", "other", "--json"];
        let bad = world.ilot(args).fails();
        assert!(bad.stdout.contains("its content is sha256:"), "{bad}");
        assert!(head(&third, "other/manifests/1").is_none());
        if Command::new("skopeo").arg("--version").output().is_err() {
            return ilot_tests::skip("needs `skopeo` for the rest of it");
        }
        sh(&format!("skopeo inspect dir:{}/team/tool:1.1", folder.display()));
        let layouts = format!("oci:{}", world.path("layouts").display());
        sync(world, &one.address, &layouts, &[]);
        sh(&format!("skopeo inspect {layouts}/team/tool:1.1"));
        // What skopeo writes is read.
        let theirs = world.path("theirs");
        sh(&format!(
            "skopeo --insecure-policy sync --scoped --src docker --dest dir --src-tls-verify=false {}/other {}",
            one.address,
            theirs.display()
        ));
        let back = sync(world, &format!("dir:{}", theirs.display()), &format!("{}/back", two.address), &[]);
        assert_eq!((count(&back, "copied"), count(&back, "failed")), (1, 0), "{back}");
    });
}

#[test]
fn wrong_places_and_searches() {
    in_world(|world| {
        let one = Registry::start(world, "one");
        publish(world, &one);
        for place in ["nowhere", "oci:", "https://x.y", "a.b/UPPER"] {
            let wrong = world.ilot(["image", "sync", place, &one.address]).fails();
            assert!(wrong.stderr.contains("oci:DIR"), "{wrong}");
        }
        let away = world.ilot(["image", "sync", "127.0.0.1:1", &one.address, "--tls-verify=false"]).fails();
        assert_eq!(away.code(), 1, "{away}");
        let search = |text: &str| {
            world.ilot(["image", "search", "--registry", &one.address, "--tls-verify=false", text, "--json"])
        };
        let found = search("tool").ok().json();
        assert_eq!((found.as_array().unwrap().len(), found[0]["name"].as_str()), (1, Some("team/tool")), "{found}");
        assert_eq!(search("nothing").fails().code(), 1);
    });
}
