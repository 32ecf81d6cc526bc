//! What its host wants of a registry: who may come in, how much it holds, what it cleans up.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{MANIFEST, Registry, sha256};
use ilot_registry::{Error, Server};

#[test]
fn only_users_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("users");
    fs::write(&file, format!("u:{}\n", bcrypt::hash("p", 4).unwrap())).unwrap();
    let r = Registry::new(|o| o.htpasswd = Some(file));
    let good = [("Authorization", "Basic dTpw")];
    let answer = r.get("/v2/").refused(401, "UNAUTHORIZED");
    assert!(answer.header("www-authenticate").starts_with("Basic realm=\""), "{answer:?}");
    for bad in ["Basic dTpx", "Basic djpw", "Basic dTpwcA==", "Bearer dTpw", "nonsense"] {
        r.ask("GET", "/v2/", &[("Authorization", bad)], b"").refused(401, "UNAUTHORIZED");
    }
    r.ask("GET", "/v2/", &good, b"").expect(200);
    r.ask("POST", "/v2/a/blobs/uploads/", &[], b"").refused(401, "UNAUTHORIZED");
    r.ask("POST", "/v2/a/blobs/uploads/", &good, b"").expect(202);
    r.delete("/v2/a/manifests/1").refused(401, "UNAUTHORIZED");
}

#[test]
fn read_only_takes_and_removes_nothing() {
    let mut r = Registry::new(|_| {});
    let (digest, _) = r.image("a", "1", b"layer");
    r.restart(|o| o.read_only = true);
    r.get("/v2/a/manifests/1").expect(200);
    r.head("/v2/a/manifests/1").expect(200);
    r.ask("POST", "/v2/a/blobs/uploads/", &[], b"").refused(405, "UNSUPPORTED");
    r.ask("PUT", "/v2/a/manifests/2", &[], b"{}").refused(405, "UNSUPPORTED");
    r.delete("/v2/a/manifests/1").refused(405, "UNSUPPORTED");
    r.delete(&format!("/v2/a/blobs/{digest}")).refused(405, "UNSUPPORTED");
    r.get(&format!("/v2/a/manifests/{digest}")).expect(200);
}

#[test]
fn a_full_registry_says_so_and_recovers() {
    let r = Registry::new(|o| {
        o.quota = Some(2000);
        o.grace = Duration::ZERO;
    });
    let large = vec![7; 800];
    let digest = r.blob("a", &large);
    // The same again takes room for the time of its upload only.
    r.blob("b", &large);
    let more = vec![8; 1300];
    let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(&more));
    r.ask("POST", &path, &[], &more).refused(403, "DENIED");
    assert_eq!(fs::read_dir(r.store().join("uploads")).unwrap().count(), 0);
    r.blob("a", &[9; 100]);
    for name in ["a", "b"] {
        r.delete(&format!("/v2/{name}/blobs/{digest}")).expect(202);
    }
    assert!(r.server().collect().unwrap().bytes >= 800);
    r.ask("POST", &path, &[], &more).expect(201);
}

#[test]
fn one_server_per_store() {
    let r = Registry::new(|_| {});
    match Server::start(&r.options) {
        Err(Error::Busy { .. }) => {}
        other => panic!("{:?}", other.map(|s| s.address())),
    }
    let mut elsewhere = r.options.clone();
    elsewhere.root = r.dir.path().join("other");
    elsewhere.listen = r.address();
    match Server::start(&elsewhere) {
        Err(error @ Error::Listen { .. }) => assert!(error.help().is_some()),
        other => panic!("{:?}", other.map(|s| s.address())),
    }
}

#[test]
fn everything_survives_a_restart() {
    let mut r = Registry::new(|_| {});
    let (one, _) = r.image("a/b", "1", b"one");
    r.image("a/b", "2", b"two");
    let loose = r.blob("a/b", b"loose");
    let before = r.get("/v2/a/b/tags/list").expect(200).body;
    r.restart(|_| {});
    assert_eq!(r.get("/v2/a/b/tags/list").expect(200).body, before);
    assert_eq!(r.head("/v2/a/b/manifests/1").expect(200).header("docker-content-digest"), one);
    r.head(&format!("/v2/a/b/blobs/{loose}")).expect(200);
    // Each repository can be read as an OCI layout.
    let layout = r.store().join("repositories/a+b");
    assert!(layout.join("oci-layout").is_file() && layout.join("blobs/sha256").is_dir());
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
}

/// Many pushes and deletes, and a collection at every moment: no push is told that what it just sent is not there.
#[test]
fn collections_and_pushes_side_by_side() {
    let r = Registry::new(|o| o.grace = Duration::from_secs(60));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                r.server().collect().unwrap();
            }
        });
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let r = &r;
                scope.spawn(move || {
                    for round in 0..15 {
                        // The same layer again and again: the one that another worker's delete lets go.
                        let (digest, manifest) =
                            r.image("shared", &format!("w{worker}"), format!("layer {}", round % 3).as_bytes());
                        let layer = manifest["layers"][0]["digest"].as_str().unwrap();
                        r.head(&format!("/v2/shared/blobs/{layer}")).expect(200);
                        let gone = r.delete(&format!("/v2/shared/manifests/{digest}"));
                        assert!(matches!(gone.status, 202 | 404), "{gone:?}");
                        // Told that it is there, the client does not send it again.
                        let again = manifest.to_string();
                        r.ask("PUT", "/v2/shared/manifests/again", &[("Content-Type", MANIFEST)], again.as_bytes())
                            .expect(201);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let manifest = r.get("/v2/shared/manifests/again").expect(200).json();
    for blob in [&manifest["config"], &manifest["layers"][0]] {
        let digest = blob["digest"].as_str().unwrap();
        let content = r.get(&format!("/v2/shared/blobs/{digest}")).expect(200).body;
        assert_eq!(sha256(&content), digest);
    }
}

#[test]
fn abandoned_uploads_go() {
    let r = Registry::new(|o| o.grace = Duration::ZERO);
    let location = r.begin("a");
    r.ask("PATCH", &location, &[], b"half of it").expect(202);
    let freed = r.server().collect().unwrap();
    assert_eq!((freed.uploads, freed.bytes), (1, 10), "{freed:?}");
    r.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
}

/// Users `u` and `v`, with the password `p`.
fn users(dir: &std::path::Path) -> std::path::PathBuf {
    let file = dir.join("users");
    let hash = bcrypt::hash("p", 4).unwrap();
    fs::write(&file, format!("u:{hash}\nv:{hash}\n")).unwrap();
    file
}

const U: (&str, &str) = ("Authorization", "Basic dTpw");
const V: (&str, &str) = ("Authorization", "Basic djpw");

#[test]
fn rules_say_who_may_do_what() {
    let dir = tempfile::tempdir().unwrap();
    let (file, access) = (users(dir.path()), dir.path().join("access"));
    fs::write(&access, "* public/** pull\nu ** pull,push,delete\nv team/* pull,push\n").unwrap();
    let r = Registry::new(|o| {
        o.htpasswd = Some(file);
        o.access = Some(access);
    });
    let upload = |name: &str, who: &[(&str, &str)]| {
        let digest = sha256(b"x");
        r.ask("POST", &format!("/v2/{name}/blobs/uploads/?digest={digest}"), who, b"x").status
    };
    assert_eq!((upload("public/a", &[U]), upload("public/a", &[V]), upload("public/a", &[])), (201, 403, 401));
    assert_eq!((upload("team/a", &[V]), upload("team/a/b", &[V])), (201, 403));
    assert_eq!(upload("secret/a", &[U]), 201);
    let path = |name: &str| format!("/v2/{name}/blobs/{}", sha256(b"x"));
    r.get(&path("public/a")).expect(200);
    r.get(&path("team/a")).refused(401, "UNAUTHORIZED");
    r.ask("GET", &path("secret/a"), &[V], b"").refused(403, "DENIED");
    r.ask("DELETE", &path("team/a"), &[V], b"").refused(403, "DENIED");
    // A blob of somewhere that one may not read cannot be had by mounting it.
    let secret = "only here";
    let digest = sha256(secret.as_bytes());
    r.ask("POST", &format!("/v2/secret/a/blobs/uploads/?digest={digest}"), &[U], secret.as_bytes()).expect(201);
    for from in ["&from=secret/a", ""] {
        let path = format!("/v2/team/a/blobs/uploads/?mount={digest}{from}");
        r.ask("POST", &path, &[V], b"").expect(202);
    }
    let mount = format!("/v2/team/b/blobs/uploads/?mount={digest}&from=secret/a");
    r.ask("POST", &mount, &[U], b"").expect(201);
    r.ask("DELETE", &path("team/a"), &[U], b"").expect(202);
    // What somebody may not read is not on his lists.
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{}","size":1}},"layers":[]}}"#,
        sha256(b"x")
    );
    for name in ["public/a", "secret/a"] {
        r.ask("PUT", &format!("/v2/{name}/manifests/1"), &[U, ("Content-Type", MANIFEST)], text.as_bytes()).expect(201);
    }
    let names =
        |who: &[(&str, &str)]| r.ask("GET", "/v2/_catalog", who, b"").expect(200).json()["repositories"].clone();
    assert_eq!(names(&[U]), serde_json::json!(["public/a", "secret/a"]));
    assert_eq!((names(&[V]), names(&[])), (serde_json::json!(["public/a"]), serde_json::json!(["public/a"])));
    r.get("/v2/").refused(401, "UNAUTHORIZED");
}

#[test]
fn tokens_stand_for_logins() {
    let dir = tempfile::tempdir().unwrap();
    let (file, access) = (users(dir.path()), dir.path().join("access"));
    fs::write(&access, "* public/** pull\nu ** pull,push,delete\nv team/* pull\n").unwrap();
    let r = Registry::new(|o| {
        o.htpasswd = Some(file);
        o.access = Some(access);
        o.tokens = true;
    });
    let answer = r.ask("POST", "/v2/team/a/blobs/uploads/", &[], b"").refused(401, "UNAUTHORIZED");
    let challenge = answer.header("www-authenticate");
    let wanted = format!(
        r#"Bearer realm="http://{}/token",service="ilot registry",scope="repository:team/a:pull,push""#,
        r.address()
    );
    assert_eq!(challenge, wanted);
    let token = |who: &[(&str, &str)], scope: &str| {
        r.ask("GET", &format!("/token?service=ilot+registry&scope={scope}&account=x"), who, b"")
    };
    let bearer = |answer: common::Answer| format!("Bearer {}", answer.expect(200).json()["token"].as_str().unwrap());
    let of_u = bearer(token(&[U], "repository:team/a:pull,push"));
    let by = |token: &str, method: &str, path: &str| r.ask(method, path, &[("Authorization", token)], b"");
    by(&of_u, "GET", "/v2/").expect(200);
    by(&of_u, "POST", "/v2/team/a/blobs/uploads/").expect(202);
    // Another repository, or more than was asked for: the challenge says what is missing.
    let other = by(&of_u, "POST", "/v2/team/b/blobs/uploads/").refused(401, "UNAUTHORIZED");
    assert!(other.header("www-authenticate").contains("repository:team/b:pull,push"), "{other:?}");
    by(&of_u, "DELETE", "/v2/team/a/manifests/1").refused(401, "UNAUTHORIZED");
    // Two scopes at once, as for a mount.
    let both = bearer(token(&[U], "repository:team/a:pull&scope=repository%3Ateam%2Fb%3Apull%2Cpush"));
    by(&both, "POST", "/v2/team/b/blobs/uploads/").expect(202);
    // No more than the user may.
    let of_v = bearer(token(&[V], "repository:team/a:pull,push"));
    by(&of_v, "POST", "/v2/team/a/blobs/uploads/").refused(401, "UNAUTHORIZED");
    by(&of_v, "GET", "/v2/team/a/tags/list").expect(200);
    // Nobody in particular, for what is for everybody; a wrong password is nobody's.
    let anybody = bearer(token(&[], "repository:public/x:pull,push"));
    by(&anybody, "GET", "/v2/public/x/tags/list").refused(404, "NAME_UNKNOWN");
    token(&[], "repository:team/a:pull").refused(401, "UNAUTHORIZED");
    token(&[("Authorization", "Basic dTpx")], "repository:public/x:pull").refused(401, "UNAUTHORIZED");
    for forged in ["Bearer ", "Bearer x.y", &format!("{of_u}x"), &of_u.replace('.', "")] {
        by(forged, "GET", "/v2/").refused(401, "UNAUTHORIZED");
    }
    r.ask("POST", "/token", &[U], b"").refused(405, "UNSUPPORTED");
    // Passwords do too.
    r.ask("POST", "/v2/team/a/blobs/uploads/", &[U], b"").expect(202);
    // A host that is none does not get into the challenge.
    let odd = r.ask("GET", "/v2/", &[("Host", "a\"b")], b"");
    assert!(!odd.header("www-authenticate").contains("a\"b"), "{odd:?}");
}

#[test]
fn search_finds_names_and_descriptions() {
    let r = Registry::new(|_| {});
    r.image("team/webserver", "1", b"1");
    r.image("other/thing", "1", b"2");
    let mut manifest = r.manifest_of("described", b"3");
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.description": "A fast WEB cache" });
    let text = manifest.to_string();
    r.ask("PUT", "/v2/described/manifests/latest", &[("Content-Type", MANIFEST)], text.as_bytes()).expect(201);
    let search = |query: &str| {
        let json = r.get(&format!("/v1/search?{query}")).expect(200).json();
        let names: Vec<_> =
            json["results"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect();
        (json["num_results"].as_u64().unwrap(), names)
    };
    assert_eq!(search("q=web"), (2, vec!["team/webserver".to_owned(), "described".to_owned()]));
    assert_eq!(search("q=web+cache"), (1, vec!["described".to_owned()]));
    assert_eq!(search("q=WEBs&n=1"), (1, vec!["team/webserver".to_owned()]));
    assert_eq!(search("q=&n=1&page=2"), (3, vec!["other/thing".to_owned()]));
    assert_eq!(search("q=nothing"), (0, vec![]));
    assert_eq!(search("q=web&page=9"), (2, vec![]));
    r.get("/v1/search?q=x&n=many").refused(400, "PAGINATION_NUMBER_INVALID");
    r.ask("POST", "/v1/search", &[], b"").refused(405, "UNSUPPORTED");
}
