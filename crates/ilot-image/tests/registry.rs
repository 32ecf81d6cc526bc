//! Pulling from a registry on loopback, honest and otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use common::{Place, Recorder, Tar, names};
use ilot_image::{Store, Timeouts};
use server::{Answer, Server};
use sha2::Digest as _;

const QUICK: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    stall: Duration::from_millis(500),
    retries: 2,
    back_off: Duration::from_millis(1),
};
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An image of two layers behind an index, as it is on a registry.
struct Published {
    /// Of the image's manifest.
    digest: String,
    index: String,
    /// Path and content of each layer.
    layers: Vec<(String, Vec<u8>)>,
}

fn blob(digest: &str) -> String {
    format!("/v2/team/tool/blobs/sha256:{digest}")
}

/// Puts it on a server; `guard` wraps each answer.
fn publish(server: &Server, guard: impl Fn(Answer) -> Answer) -> Published {
    let set = |path: &str, answer: Answer| server.set(path, guard(answer));
    let (mut ids, mut descriptors, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..2 {
        let plain = Tar::new().folder("etc").file(&format!("etc/{i}"), &format!("layer {i} ").repeat(20_000)).end();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gz.write_all(&plain).unwrap();
        let gz = gz.finish().unwrap();
        ids.push(format!(r#""sha256:{}""#, sha256(&plain)));
        let (digest, size) = (sha256(&gz), gz.len());
        descriptors.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:{digest}","size":{size}}}"#
        ));
        set(&blob(&digest), Answer::Body(gz.clone()));
        layers.push((blob(&digest), gz));
    }
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/tool"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        arch(),
        ids.join(",")
    );
    set(&blob(&sha256(config.as_bytes())), Answer::Body(config.clone().into_bytes()));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{}","size":{}}},"layers":[{}]}}"#,
        sha256(config.as_bytes()),
        config.len(),
        descriptors.join(",")
    );
    let digest = sha256(manifest.as_bytes());
    let entry = |arch: &str, digest: &str| {
        format!(
            r#"{{"mediaType":"{MANIFEST}","digest":"sha256:{digest}","size":{},"platform":{{"os":"linux","architecture":"{arch}"}}}}"#,
            manifest.len()
        )
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{},{}]}}"#,
        entry("s390y", &"0".repeat(64)),
        entry(arch(), &digest)
    );
    set(&format!("/v2/team/tool/manifests/sha256:{digest}"), Answer::Typed(MANIFEST.to_owned(), manifest.into_bytes()));
    set("/v2/team/tool/manifests/1", Answer::Typed(INDEX.to_owned(), index.clone().into_bytes()));
    Published { digest: format!("sha256:{digest}"), index, layers }
}

/// The part of a test that runs in a process of its own, with an environment of its own.
#[test]
fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var("TEST_STORE"), std::env::var("TEST_REFERENCE")) else { return };
    let store = Store::open(root.as_ref()).unwrap().with_timeouts(QUICK);
    match store.refresh(&reference, &Recorder::default()) {
        Ok(image) => println!("GOT {} {:?}", image.digest, image.config.cmd),
        Err(error) => println!("FAILED {error}"),
    }
}

fn pull(place: &Place, server: &Server, reference: &str, environment: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_STORE", place.store.root())
        .env("TEST_REFERENCE", format!("docker://{}/{reference}", server.address))
        .env("ILOT_INSECURE_REGISTRIES", format!("other:1, {}", server.address))
        .env("REGISTRY_AUTH_FILE", "/dev/null")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_nothing(place: &Place) {
    place.assert_clean();
    assert_eq!(names(&place.store.root().join("blobs/sha256")), Vec::<String>::new());
}

#[test]
fn an_image_behind_an_index_is_pulled_and_its_layers_once() {
    let (server, place) = (Server::start(), Place::new());
    let published = publish(&server, |a| a);
    let said = pull(&place, &server, "team/tool:1", &[]);
    assert!(said.contains(&format!("GOT {} [\"/tool\"]", published.digest)), "{said}");
    place.assert_clean();
    server.forget_requests();
    let said = pull(&place, &server, "team/tool:1", &[]);
    assert!(said.contains("GOT"), "{said}");
    let requests = server.requests();
    assert!(!requests.iter().any(|r| published.layers.iter().any(|(path, _)| r == path)), "{requests:?}");
    // By digest: of the index, and of the image itself.
    for digest in [format!("sha256:{}", sha256(published.index.as_bytes())), published.digest.clone()] {
        let path = format!("/v2/team/tool/manifests/{digest}");
        if digest != published.digest {
            server.set(&path, Answer::Typed(INDEX.to_owned(), published.index.clone().into_bytes()));
        }
        let said = pull(&place, &server, &format!("team/tool@{digest}"), &[]);
        assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    }
}

#[test]
fn native_layers_are_made_of_what_comes_and_belong_to_one_level() {
    if !common::is_root() {
        return common::skip("needs root");
    }
    let (server, place) = (Server::start(), Place::new());
    let published = publish(&server, |a| a);
    let said = pull(&place, &server, "team/tool:1", &[("ILOT_LAYERS", "native")]);
    assert!(said.contains("GOT"), "{said}");
    place.assert_clean();
    let waiting = place.store.root().join("layers/.ready");
    assert_eq!(names(&waiting).len(), 2, "one for each layer");
    let inode = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&path.metadata().unwrap());
    let mut before: Vec<u64> = names(&waiting).iter().map(|name| inode(&waiting.join(name))).collect();
    let image = place.store.resolve(&published.digest).unwrap().unwrap();
    assert!(place.store.trust_levels(&image).unwrap().is_empty(), "it is nobody's yet");
    let files = |trust: &str| -> Vec<std::path::PathBuf> {
        place.store.native(&image, trust, &ilot_image::Silent).unwrap().into_iter().map(|l| l.file).collect()
    };
    let (one, two) = (files("one"), files("two"));
    let mut taken: Vec<u64> = one.iter().map(|file| inode(file)).collect();
    before.sort_unstable();
    taken.sort_unstable();
    assert_eq!(taken, before, "moved, not made again");
    assert!(two.iter().all(|file| !before.contains(&inode(file))) && names(&waiting).is_empty());
    for (a, b) in one.iter().zip(&two) {
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "made in both ways it is the same");
    }
    assert!(place.store.verify(&image, &ilot_image::Silent).unwrap().is_empty());
    // What no image needs goes, waiting or not; a layer that is not what its digest says leaves none.
    pull(&place, &server, "team/tool:1", &[("ILOT_LAYERS", "native")]);
    place.store.remove(&published.digest, &std::collections::BTreeSet::new()).unwrap();
    place.store.gc(&std::collections::BTreeSet::new()).unwrap();
    assert_eq!(names(&waiting), Vec::<String>::new());
    server.set(&published.layers[0].0, Answer::Body(b"something else".to_vec()));
    let said = pull(&place, &server, "team/tool:1", &[("ILOT_LAYERS", "native")]);
    assert!(said.contains("FAILED"), "{said}");
    place.assert_clean();
}

#[test]
fn layers_are_made_native_on_the_way_where_the_kernel_can_and_nobody_wants_folders() {
    let server = Server::start();
    publish(&server, |a| a);
    let name = format!("docker://{}/team/tool:1", server.address);
    let waiting = |place: &Place| names(&place.store.root().join("layers/.ready")).len();
    let pull = |place: &Place, folders: bool| {
        let store = place.store.clone().with_timeouts(QUICK).without_tls_verification();
        let store = if folders { store.for_folders() } else { store };
        store.refresh(&name, &Recorder::default()).unwrap();
    };
    let place = Place::new();
    let can = place.store.mounts_native();
    println!("this kernel mounts native layers: {can}");
    pull(&place, false);
    assert_eq!(waiting(&place), if can { 2 } else { 0 });
    let place = Place::new();
    pull(&place, true);
    assert_eq!(waiting(&place), 0, "a build unpacks them");
    let place = Place::new();
    std::fs::write(place.store.root().join("layers.json"), r#"{"*": "unpacked"}"#).unwrap();
    pull(&place, false);
    assert_eq!(waiting(&place), 0, "somebody said so");
}

#[test]
fn tokens_and_passwords() {
    let (server, place) = (Server::start(), Place::new());
    let bearer = |scope: &str| format!(r#"Bearer realm="{}/token",service="reg",scope="{scope}""#, server.url());
    let guard = |a| Answer::Guarded("Bearer abc".to_owned(), bearer("repository:team/tool:pull"), Box::new(a));
    let published = publish(&server, guard);
    let token = "/token?service=reg&scope=repository:team/tool:pull";
    server.set(token, Answer::Body(br#"{"token":"abc"}"#.to_vec()));
    let said = pull(&place, &server, "team/tool:1", &[]);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    // A token server that wants a password, which an auth file has.
    let basic = Answer::Guarded(
        "Basic dTpw".to_owned(),
        "Basic realm=x".to_owned(),
        Box::new(Answer::Body(br#"{"access_token":"abc"}"#.to_vec())),
    );
    server.set(token, basic);
    let said = pull(&place, &server, "team/tool:1", &[]);
    assert!(said.contains("FAILED") && said.contains("401"), "{said}");
    let auth = format!(r#"{{"auths":{{"{0}":{{"auth":"bm86bm8="}},"{0}/team":{{"auth":"dTpw"}}}}}}"#, server.address);
    let file = place.write("auth.json", auth.as_bytes());
    let said = pull(&place, &server, "team/tool:1", &[("REGISTRY_AUTH_FILE", file.to_str().unwrap())]);
    assert!(said.contains("GOT"), "{said}");
    // A registry that wants it at once.
    publish(&server, |a| Answer::Guarded("Basic dTpw".to_owned(), "Basic realm=\"x\"".to_owned(), Box::new(a)));
    let said = pull(&place, &server, "team/tool:1", &[("REGISTRY_AUTH_FILE", file.to_str().unwrap())]);
    assert!(said.contains("GOT"), "{said}");
    let said = pull(&place, &server, "team/tool:1", &[]);
    assert!(said.contains("FAILED") && said.contains("wants to know who asks (401)"), "{said}");
}

#[test]
fn lies_cuts_and_refusals() {
    for trouble in
        ["manifest", "layer", "cut", "never whole", "no such tag", "no such platform", "error 500", "nonsense"]
    {
        let (server, place) = (Server::start(), Place::new());
        let published = publish(&server, |a| a);
        let (path, content) = published.layers[1].clone();
        let manifest = format!("/v2/team/tool/manifests/{}", published.digest);
        match trouble {
            "manifest" => server.set(&manifest, Answer::Typed(MANIFEST.to_owned(), b"{}".to_vec())),
            "layer" => server.set(&path, Answer::Body(content.iter().map(|b| b ^ 1).collect())),
            "cut" => server.set(&path, Answer::CutOnce(content.len() / 2, true, content)),
            "never whole" => server.set(&path, Answer::Cut(10, content)),
            "no such platform" => {
                let other = published.index.replace(&format!(r#""{}""#, arch()), r#""s390z""#);
                server.set("/v2/team/tool/manifests/1", Answer::Typed(INDEX.to_owned(), other.into_bytes()));
            }
            "error 500" => server.set(&path, Answer::Status(500)),
            "nonsense" => {
                server.set("/v2/team/tool/manifests/1", Answer::Typed("text/html".to_owned(), b"<html>".to_vec()));
            }
            _ => {}
        }
        let tag = if trouble == "no such tag" { "2" } else { "1" };
        let said = pull(&place, &server, &format!("team/tool:{tag}"), &[]);
        let wanted = match trouble {
            "manifest" | "layer" => "digest is sha256:",
            "cut" => "GOT",
            "never whole" => "the connection was cut",
            "no such tag" => "not there (404)",
            "no such platform" => "has no image for",
            "error 500" => "the server answers 500",
            _ => "which is no image",
        };
        assert!(said.contains(wanted), "{trouble}: {said}");
        if trouble == "cut" {
            assert!(server.requests().iter().any(|r| r.starts_with(&format!("{path} "))), "{:?}", server.requests());
        } else {
            assert_nothing(&place);
        }
    }
}

#[test]
fn a_pull_that_broke_off_is_gone_on_with_by_the_next() {
    let parts = |place: &Place| names(&place.store.root().join("images/.partial"));
    for how in ["cut", "killed", "another server's bytes", "longer than the blob", "416"] {
        let (server, place) = (Server::start(), Place::new());
        let published = publish(&server, |a| a);
        let (path, content) = published.layers[1].clone();
        let half = content.len() / 2;
        let part = place.store.root().join("images/.partial").join(path.rsplit_once(':').unwrap().1);
        match how {
            "killed" => {
                server.set(&path, Answer::Stall(half, content.clone()));
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "child", "--nocapture"])
                    .env("TEST_STORE", place.store.root())
                    .env("TEST_REFERENCE", format!("docker://{}/team/tool:1", server.address))
                    .env("ILOT_INSECURE_REGISTRIES", server.address.to_string())
                    .env("REGISTRY_AUTH_FILE", "/dev/null")
                    .stdout(std::process::Stdio::null())
                    .spawn()
                    .unwrap();
                // As soon as something of it is there.
                let end = std::time::Instant::now() + Duration::from_secs(20);
                while part.metadata().map_or(0, |m| m.len()) == 0 {
                    assert!(std::time::Instant::now() < end, "nothing came");
                    std::thread::yield_now();
                }
                child.kill().unwrap();
                child.wait().unwrap();
            }
            _ => {
                server.set(&path, Answer::Cut(half, content.clone()));
                let said = pull(&place, &server, "team/tool:1", &[]);
                assert!(said.contains("the connection was cut"), "{how}: {said}");
            }
        }
        assert!(parts(&place).len() <= 2 && part.exists(), "{how}: {:?}", parts(&place));
        match how {
            "another server's bytes" => std::fs::write(&part, vec![b'x'; half]).unwrap(),
            "longer than the blob" => std::fs::write(&part, vec![b'x'; content.len() + 1]).unwrap(),
            _ => {}
        }
        let had = part.metadata().unwrap().len();
        let is_whole = |text: &str| text.contains(&format!("GOT {}", published.digest));
        server.set(
            &path,
            if how == "416" {
                Answer::Unsatisfiable(content.clone())
            } else {
                Answer::CutOnce(0, true, content.clone())
            },
        );
        server.forget_requests();
        // The first request for it is this one.
        let said = pull(&place, &server, "team/tool:1", &[]);
        assert!(is_whole(&said), "{how}: {said}");
        let asked: Vec<String> = server.requests().into_iter().filter(|r| r.starts_with(&path)).collect();
        match how {
            "cut" | "killed" => assert_eq!(asked, [format!("{path} {had}")], "{how}"),
            "416" => assert_eq!(asked, [format!("{path} {had}"), path.clone()], "{how}"),
            // From where it was, and when that turns out to be wrong, all of it.
            "another server's bytes" => assert_eq!(asked[0], format!("{path} {had}"), "{how}"),
            _ => assert!(asked.contains(&path), "{how}: {asked:?}"),
        }
        assert_eq!(parts(&place), Vec::<String>::new(), "{how}: what is in its place is not kept twice");
        place.assert_clean();
        assert!(
            place
                .store
                .verify(&place.store.resolve(&published.digest).unwrap().unwrap(), &Recorder::default())
                .unwrap()
                .is_empty()
        );
        // Nobody went on with it for a day: a collection takes it, and not what is younger.
        for (hours, stays) in [(1, 1), (25, 0)] {
            std::fs::write(&part, "some").unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
            std::fs::File::options().write(true).open(&part).unwrap().set_modified(then).unwrap();
            place.store.gc(&std::collections::BTreeSet::new()).unwrap();
            assert_eq!(parts(&place).len(), stays, "{how}, {hours} hours");
        }
    }
}

#[test]
fn credential_helpers_are_asked() {
    use std::os::unix::fs::PermissionsExt as _;
    let (server, place) = (Server::start(), Place::new());
    publish(&server, |a| Answer::Guarded("Basic dTpw".to_owned(), "Basic realm=\"x\"".to_owned(), Box::new(a)));
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread host\n[ \"$host\" = {} ] || exit 1\necho '{{\"Username\":\"u\",\"Secret\":\"p\"}}'\n",
        server.address
    );
    let helper = place.write("docker-credential-mine", script.as_bytes());
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", place.dir.path().display(), std::env::var("PATH").unwrap());
    for (file, wanted) in [
        (format!(r#"{{"credHelpers":{{"{}":"mine"}}}}"#, server.address), "GOT"),
        (r#"{"credsStore":"mine"}"#.to_owned(), "GOT"),
        (r#"{"credsStore":"../mine"}"#.to_owned(), "401"),
        (r#"{"credsStore":"nobody"}"#.to_owned(), "401"),
        (r#"{"credHelpers":{"other:1":"mine"}}"#.to_owned(), "401"),
    ] {
        let auth = place.write("helpers.json", file.as_bytes());
        let environment = [("REGISTRY_AUTH_FILE", auth.to_str().unwrap()), ("PATH", path.as_str())];
        let said = pull(&place, &server, "team/tool:1", &environment);
        assert!(said.contains(wanted), "{file}: {said}");
    }
}

#[test]
fn mirrors_are_asked_first() {
    let (server, mirror, place) = (Server::start(), Server::start(), Place::new());
    let published = publish(&server, |a| a);
    let registries = |mirrors: &str| {
        let text = format!(r#"{{"{}": [{mirrors}]}}"#, server.address);
        std::fs::write(place.store.root().join("registries.json"), text).unwrap();
    };
    let insecure = format!("{},{}", server.address, mirror.address);
    let environment = [("ILOT_INSECURE_REGISTRIES", insecure.as_str())];
    // One that does not have it, one that is nobody, one whose name is none: the registry itself has it.
    registries(&format!(r#""{}", "127.0.0.1:1/x", "no host at all""#, mirror.address));
    let said = pull(&place, &server, "team/tool:1", &environment);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    assert!(mirror.requests().iter().any(|r| r.contains("/v2/team/tool/manifests/1")), "{:?}", mirror.requests());
    // One that has it: the registry is not asked.
    publish(&mirror, |a| a);
    server.forget_requests();
    registries(&format!(r#""{}""#, mirror.address));
    let said = pull(&place, &server, "team/tool:1", &environment);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    assert_eq!(server.requests(), Vec::<String>::new());
    registries("1");
    let said = pull(&place, &server, "team/tool:1", &environment);
    assert!(said.contains("FAILED") && said.contains("registries.json"), "{said}");
}

/// As `pull`, by a name that is passed as it is.
fn pull_named(place: &Place, name: &str, environment: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_STORE", place.store.root())
        .env("TEST_REFERENCE", name)
        .env("REGISTRY_AUTH_FILE", "/dev/null")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn short_names_are_looked_for_in_their_order() {
    let (one, two, place) = (Server::start(), Server::start(), Place::new());
    let published = publish(&two, |a| a);
    let insecure = format!("{},{}", one.address, two.address);
    let environment = [("ILOT_INSECURE_REGISTRIES", insecure.as_str())];
    let configure = |text: &str| std::fs::write(place.store.root().join("short-names.json"), text).unwrap();
    // The first has it not, and says so: the second is asked.
    configure(&format!(r#"{{"search": ["{}", "{}"]}}"#, one.address, two.address));
    let said = pull_named(&place, "team/tool:1", &environment);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    assert!(one.requests().iter().any(|r| r.contains("/v2/team/tool/manifests/1")), "{:?}", one.requests());
    // It has its whole name then, and the short one finds it without asking anybody.
    let names: Vec<String> = place.store.list().unwrap().into_iter().map(|image| image.reference).collect();
    assert_eq!(names, [format!("docker://{}/team/tool:1", two.address)]);
    one.forget_requests();
    two.forget_requests();
    let found = Store::open(place.store.root()).unwrap().resolve("team/tool:1").unwrap().unwrap();
    assert_eq!(found.digest.to_string(), published.digest);
    assert!(one.requests().is_empty() && two.requests().is_empty());
    // A name that was given here comes before.
    place
        .store
        .import(
            place.write("x.tar", &Tar::new().file("f", "x").end()).to_str().unwrap(),
            Some("team/tool:1"),
            &Recorder::default(),
        )
        .unwrap();
    assert_eq!(place.store.resolve("team/tool:1").unwrap().unwrap().reference, "local:team/tool:1");
    place.store.remove("local:team/tool:1", &std::collections::BTreeSet::new()).unwrap();
    place.store.remove(&names[0], &std::collections::BTreeSet::new()).unwrap();
    // One that cannot be asked ends the search: the second might have another image of that name.
    for trouble in ["unreachable", "busy"] {
        two.forget_requests();
        match trouble {
            "busy" => {
                one.set("/v2/team/tool/manifests/1", Answer::Status(503));
                configure(&format!(r#"{{"search": ["{}", "{}"]}}"#, one.address, two.address));
            }
            _ => configure(&format!(r#"{{"search": ["127.0.0.1:1", "{}"]}}"#, two.address)),
        }
        let said = pull_named(&place, "team/tool:1", &environment);
        assert!(said.contains("FAILED") && said.contains("team/tool:1"), "{trouble}: {said}");
        assert!(two.requests().is_empty(), "{trouble}: {:?}", two.requests());
    }
    // An alias, the variable of the call, and nobody to ask.
    configure(&format!(r#"{{"search": [], "aliases": {{"mine": "{}/team/tool"}}}}"#, two.address));
    let said = pull_named(&place, "mine:1", &environment);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    let said = pull_named(&place, "other/tool:1", &environment);
    assert!(said.contains("FAILED") && said.contains("not a known image name") | said.contains("no server"), "{said}");
    let here = [environment[0], ("ILOT_SHORT_NAMES", &*two.address.to_string())];
    let said = pull_named(&place, "team/tool:1", &here);
    assert!(said.contains(&format!("GOT {}", published.digest)), "{said}");
    // What nobody has: each that was asked is in the message.
    let here = [environment[0], ("ILOT_SHORT_NAMES", insecure.as_str())];
    let said = pull_named(&place, "team/nothing:1", &here);
    assert!(said.contains(&*one.address.to_string()) && said.contains(&*two.address.to_string()), "{said}");
}

#[test]
fn without_tls_only_when_it_is_said() {
    let (server, place) = (Server::start(), Place::new());
    publish(&server, |a| a);
    let said = pull(&place, &server, "team/tool:1", &[("ILOT_INSECURE_REGISTRIES", "")]);
    assert!(said.contains("FAILED") && said.contains("https://"), "{said}");
    assert_nothing(&place);
}
