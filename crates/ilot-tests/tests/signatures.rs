//! What lies beside an image: `ilot image sbom`, and `ilot image sign` and the policy of signatures: ours verified by skopeo, skopeo's by us, and what is refused.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command};

use ilot_tests::{World, in_world, skip};
use serde_json::{Value, json};

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

/// A policy that wants a key's signature of everything from the registry.
fn policy(world: &World, registry: &Registry, key: &str, identity: &str) -> String {
    let wanted = json!({ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": { "type": identity } });
    let policy = json!({ "default": [{ "type": "reject" }],
        "transports": { "docker": { registry.address.as_str(): [wanted] } } });
    world.write("policy.json", &policy.to_string()).display().to_string()
}

fn generate(world: &World, name: &str) -> String {
    let prefix = world.path(name).display().to_string();
    world.ilot(["image", "sign", "--generate-key", &prefix]).env("COSIGN_PASSWORD", "secret").ok();
    prefix
}

#[test]
fn what_is_not_signed_does_not_come_in() {
    in_world(|world| {
        let registry = Registry::start(world);
        let (team, other) = (generate(world, "team"), generate(world, "other"));
        let name = format!("{}/team/tool:1", registry.address);
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        world.ilot(["image", "push", "-q", "busybox", &name, "--tls-verify=false"]).ok();
        let policy = policy(world, &registry, &format!("{team}.pub"), "matchRepoDigestOrExact");
        let pull = |name: &str| {
            let pull = world.ilot(["image", "pull", "-q", name, "--tls-verify=false"]);
            pull.env("ILOT_SIGNATURE_POLICY", &policy)
        };
        let refused = pull(&name).fails();
        assert!(refused.stderr.contains("is not signed") && refused.stderr.contains("policy.json"), "{refused}");
        let sign = |key: &str, name: &str, password: &str| {
            let key = format!("{key}.private");
            world
                .ilot(["image", "sign", "--key", &key, name, "--tls-verify=false", "--json"])
                .env("COSIGN_PASSWORD", password)
        };
        let wrong = sign(&team, &name, "wrong").fails();
        assert!(wrong.stderr.contains("passphrase is another"), "{wrong}");
        // By somebody else's key; then by the right one beside it.
        sign(&other, &name, "secret").ok();
        let refused = pull(&name).fails();
        assert!(refused.stderr.contains("none of the keys"), "{refused}");
        let signed = sign(&team, &name, "secret").ok().json();
        assert_eq!((signed[0]["new"].as_bool(), signed.as_array().unwrap().len()), (Some(true), 1), "{signed}");
        assert_eq!(sign(&team, &name, "secret").ok().json()[0]["new"], false, "a second time it is the same");
        pull(&name).ok();
        let verify = |key: &str| {
            let key = format!("{key}.pub");
            world.ilot(["image", "verify", "--key", &key, &name, "--tls-verify=false", "--json"])
        };
        for key in [&team, &other] {
            let found = verify(key).ok().json();
            assert_eq!(found["images"][0]["signatures"][0]["identity"], name.as_str(), "{found}");
        }
        let third = generate(world, "third");
        verify(&third).fails();
        // The same image under another tag was not signed under that.
        let moved = format!("{}/team/tool:2", registry.address);
        world.ilot(["image", "push", "-q", "busybox", &moved, "--tls-verify=false"]).ok();
        let refused = pull(&moved).fails();
        assert!(refused.stderr.contains("is signed under another name"), "{refused}");
        // The store's own short form, beside the host's policy.
        let trust = |text: String| std::fs::write(world.root().join("trust.json"), text).unwrap();
        let address = &registry.address;
        trust(json!({ address.as_str(): "reject" }).to_string());
        assert!(pull(&name).fails().stderr.contains("trust.json"));
        let host_policy = world.write("open.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        let pull = |name: &str| {
            let pull = world.ilot(["image", "pull", "-q", name, "--tls-verify=false"]);
            pull.env("ILOT_SIGNATURE_POLICY", &host_policy)
        };
        trust(json!({ "*": "reject", format!("{address}/team"): [format!("{team}.pub")] }).to_string());
        pull(&moved).ok();
        let elsewhere = format!("{address}/else/tool:1");
        world.ilot(["image", "push", "-q", "busybox", &elsewhere, "--tls-verify=false"]).ok();
        assert!(pull(&elsewhere).fails().stderr.contains("not trusted"));
        trust("nonsense".to_owned());
        assert!(pull(&name).fails().stderr.contains("trust.json"));
        // What is not from a registry has no signature.
        std::fs::remove_file(world.root().join("trust.json")).unwrap();
        world.ilot(["image", "export", "busybox", &format!("oci-archive:{}", world.path("x.tar").display())]).ok();
        let import = world.ilot(["image", "import", world.path("x.tar").to_str().unwrap()]);
        assert!(import.env("ILOT_SIGNATURE_POLICY", &policy).fails().stderr.contains("refused by the policy"));
    });
}

#[test]
fn skopeo_verifies_ours_and_we_verify_skopeos() {
    in_world(|world| {
        let help = Command::new("skopeo").args(["copy", "--help"]).output();
        if !help.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("sign-by-sigstore-private-key")) {
            return skip("needs `skopeo` 1.9 or later");
        }
        let registry = Registry::start(world);
        let team = generate(world, "team");
        let name = |tag: &str| format!("{}/team/tool:{tag}", registry.address);
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let key = format!("{team}.private");
        let push = world.ilot([
            "image",
            "push",
            "-q",
            "busybox",
            &name("ours"),
            "--tls-verify=false",
            "--sign-by-sigstore-private-key",
            &key,
        ]);
        push.env("COSIGN_PASSWORD", "secret").ok();
        world.ilot(["image", "push", "-q", "busybox", &name("unsigned"), "--tls-verify=false"]).ok();
        let policy = policy(world, &registry, &format!("{team}.pub"), "matchRepoDigestOrExact");
        let registries = world.path("registries.d");
        std::fs::create_dir_all(&registries).unwrap();
        std::fs::write(registries.join("all.yaml"), "default-docker:\n  use-sigstore-attachments: true\n").unwrap();
        let skopeo = |policy: &str, line: &str| {
            let options = format!("--policy {policy} --registries.d {}", registries.display());
            let line = format!("skopeo {options} {line}");
            Command::new("sh").args(["-c", &line]).output().unwrap()
        };
        let copy = |tag: &str| {
            let to = world.path(format!("to-{tag}"));
            skopeo(&policy, &format!("copy --src-tls-verify=false docker://{} dir:{}", name(tag), to.display()))
        };
        let ours = copy("ours");
        if String::from_utf8_lossy(&ours.stderr).contains("sigstore disabled") {
            return skip("needs a `skopeo` whose distribution left signatures of sigstore in (Debian 12 did not)");
        }
        assert!(ours.status.success(), "{}", String::from_utf8_lossy(&ours.stderr));
        let unsigned = copy("unsigned");
        assert!(!unsigned.status.success());
        // Signed by skopeo, with the key that we made.
        let secret = world.write("secret", "secret");
        let open = world.write("open.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        let store = world.root();
        let signed = skopeo(
            &open.display().to_string(),
            &format!(
                "copy --preserve-digests --dest-tls-verify=false --sign-by-sigstore-private-key {key} --sign-passphrase-file {} oci:{}:busybox docker://{}/other/tool:1",
                secret.display(),
                store.display(),
                registry.address
            ),
        );
        assert!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        let theirs = format!("{}/other/tool:1", registry.address);
        let pull = world.ilot(["image", "pull", "-q", &theirs, "--tls-verify=false"]);
        pull.env("ILOT_SIGNATURE_POLICY", &policy).ok();
        let public = format!("{team}.pub");
        let found =
            world.ilot(["image", "verify", "--key", &public, &theirs, "--tls-verify=false", "--json"]).ok().json();
        assert_eq!(found["images"][0]["signatures"][0]["identity"], theirs.as_str(), "{found}");
        // Both signatures side by side: ours added to theirs.
        let third = generate(world, "third");
        let sign = world.ilot(["image", "sign", "--key", &format!("{third}.private"), &theirs, "--tls-verify=false"]);
        sign.env("COSIGN_PASSWORD", "secret").ok();
        let again = skopeo(
            &policy,
            &format!("copy --src-tls-verify=false docker://{theirs} dir:{}", world.path("again").display()),
        );
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    });
}

#[test]
fn a_list_of_packages_is_attached_and_found() {
    in_world(|world| {
        let registry = Registry::start(world);
        let root = world.path("root");
        std::fs::create_dir_all(root.join("var/lib/dpkg")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        let status = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n";
        std::fs::write(root.join("var/lib/dpkg/status"), status).unwrap();
        std::fs::write(root.join("etc/os-release"), "ID=debian\nVERSION_ID=13\n").unwrap();
        world.ilot(["image", "import", root.to_str().unwrap(), "mine"]).ok();
        let spdx = world.ilot(["image", "sbom", "mine"]).ok().json();
        let package = &spdx["packages"][1];
        assert_eq!(
            (package["name"].as_str(), package["versionInfo"].as_str()),
            (Some("bash"), Some("5.2-1")),
            "{spdx}"
        );
        assert_eq!(
            package["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/bash@5.2-1?arch=amd64&distro=debian-13"
        );
        let again = world.ilot(["image", "sbom", "mine"]).ok().json();
        assert_eq!(again, spdx, "the same image, the same document");
        let file = world.path("mine.cdx.json");
        world.ilot(["image", "sbom", "--format", "cyclonedx", "-o", file.to_str().unwrap(), "mine"]).ok();
        let written: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(
            (written["specVersion"].as_str(), written["components"][1]["name"].as_str()),
            (Some("1.5"), Some("bash"))
        );
        let name = format!("{}/team/mine:1", registry.address);
        world.ilot(["image", "tag", "mine", &name]).ok();
        let attach = || world.ilot(["image", "sbom", "--attach", &name, "--tls-verify=false"]);
        let early = attach().fails();
        assert!(early.stderr.contains("push it first"), "{early}");
        world.ilot(["image", "push", "-q", &name, "--tls-verify=false"]).ok();
        attach().ok();
        let digest = world.ilot(["image", "inspect", "mine"]).ok().json()[0]["digest"].as_str().unwrap().to_owned();
        let list = ilot_tests::sh(&format!("curl -fsS http://{}/v2/team/mine/referrers/{digest}", registry.address));
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["manifests"][0]["artifactType"], "application/spdx+json", "{list}");
        // One without a database says so.
        world.ilot(["image", "pull", "-q", "busybox"]).ok();
        let none = world.ilot(["image", "sbom", "busybox"]).ok();
        assert!(none.stderr.contains("no database of packages"), "{none}");
    });
}

/// A database that rpm itself wrote.
#[test]
fn packages_of_rpm_are_read() {
    in_world(|world| {
        if !std::process::Command::new("rpmbuild").arg("--version").output().is_ok_and(|o| o.status.success()) {
            return skip("needs `rpm` and `rpmbuild` (package rpm)");
        }
        let (top, root) = (world.path("top"), world.path("root"));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("var/lib/rpm")).unwrap();
        std::fs::write(root.join("etc/os-release"), "ID=fedora\nVERSION_ID=41\n").unwrap();
        for (name, version, epoch) in [("first", "1.2", ""), ("second", "3.4~rc1", "Epoch: 7\n")] {
            let spec = world.write(
                &format!("{name}.spec"),
                &format!(
                    "Name: {name}\nVersion: {version}\nRelease: 5\n{epoch}Summary: x\nLicense: MIT\nBuildArch: noarch\n\n\
                     %description\nx\n\n%files\n"
                ),
            );
            ilot_tests::sh(&format!("rpmbuild -bb --quiet --define '_topdir {}' {}", top.display(), spec.display()));
            ilot_tests::sh(&format!(
                "rpm -i --nodeps --noscripts --justdb --dbpath {}/var/lib/rpm {}/RPMS/noarch/{name}-*.rpm",
                root.display(),
                top.display()
            ));
        }
        world.ilot(["image", "import", root.to_str().unwrap(), "mine"]).ok();
        let document = world.ilot(["image", "sbom", "--format", "cyclonedx", "mine"]).ok().json();
        let components = document["components"].as_array().unwrap();
        let found: Vec<&str> = components.iter().filter_map(|c| c["purl"].as_str()).collect();
        assert_eq!(
            found,
            [
                "pkg:rpm/fedora/first@1.2-5?arch=noarch&distro=fedora-41",
                "pkg:rpm/fedora/second@3.4~rc1-5?arch=noarch&epoch=7&distro=fedora-41"
            ],
            "{document}"
        );
    });
}
