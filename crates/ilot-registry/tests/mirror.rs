//! A mirror: what it keeps, when it asks again, what it does when nobody answers, and what it never believes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{INDEX, MANIFEST, Registry, sha256};
use ilot_image::{Remote, Timeouts};
use ilot_registry::{Source, SourceManifest, Transport};
use serde_json::{Value, json};

/// Another registry, whose answers are counted, and which can be away, slow or a liar.
#[derive(Debug)]
struct Upstream {
    remote: Remote,
    away: AtomicBool,
    lies: AtomicBool,
    blobs: AtomicU64,
    manifests: AtomicU64,
}

impl Upstream {
    fn new(registry: &Registry) -> Arc<Self> {
        let quick = Timeouts { retries: 0, ..Timeouts::default() };
        let remote = Remote::new(&registry.address().to_string(), quick, false).unwrap();
        let no = || AtomicBool::new(false);
        Arc::new(Self { remote, away: no(), lies: no(), blobs: AtomicU64::new(0), manifests: AtomicU64::new(0) })
    }

    fn there(&self) -> Result<(), String> {
        if self.away.load(Ordering::SeqCst) { Err("no connection".to_owned()) } else { Ok(()) }
    }
}

impl Source for Upstream {
    fn name(&self) -> String {
        "upstream".to_owned()
    }

    fn digest(&self, repository: &str, reference: &str) -> Result<Option<String>, String> {
        self.there()?;
        Source::digest(&self.remote, repository, reference)
    }

    fn manifest(&self, repository: &str, reference: &str) -> Result<Option<SourceManifest>, String> {
        self.there()?;
        self.manifests.fetch_add(1, Ordering::SeqCst);
        Source::manifest(&self.remote, repository, reference)
    }

    fn blob_size(&self, repository: &str, digest: &str) -> Result<Option<u64>, String> {
        self.there()?;
        Source::blob_size(&self.remote, repository, digest)
    }

    fn blob(
        &self,
        repository: &str,
        digest: &str,
        to: &Path,
        size: Option<u64>,
        told: &dyn Fn(u64, Option<u64>),
    ) -> Result<(), String> {
        self.there()?;
        self.blobs.fetch_add(1, Ordering::SeqCst);
        if self.lies.load(Ordering::SeqCst) {
            // All of it comes, and only then is it seen that it is something else.
            std::fs::write(to, vec![0; usize::try_from(size.unwrap()).unwrap()]).unwrap();
            told(size.unwrap(), size);
            return Err("its digest is another one".to_owned());
        }
        Source::blob(&self.remote, repository, digest, to, size, told)
    }

    fn tags(&self, repository: &str) -> Result<Option<Vec<String>>, String> {
        self.there()?;
        Source::tags(&self.remote, repository)
    }

    fn referrers(&self, repository: &str, digest: &str) -> Result<Vec<Value>, String> {
        self.there()?;
        Source::referrers(&self.remote, repository, digest)
    }
}

fn mirror(upstream: &Arc<Upstream>) -> Registry {
    let source = upstream.clone();
    Registry::new(|o| o.source = Some(source))
}

#[test]
fn what_was_asked_for_once_is_kept_and_served_without_the_upstream() {
    let origin = Registry::new(|_| {});
    let layer: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let (digest, manifest) = origin.image("team/tool", "1", &layer);
    let upstream = Upstream::new(&origin);
    let mut m = mirror(&upstream);
    let layer_path = format!("/v2/team/tool/blobs/{}", manifest["layers"][0]["digest"].as_str().unwrap());
    let config_path = format!("/v2/team/tool/blobs/{}", manifest["config"]["digest"].as_str().unwrap());
    let head = m.head("/v2/team/tool/manifests/1").expect(200);
    assert_eq!(head.header("docker-content-digest"), digest);
    assert_eq!(m.head(&layer_path).expect(200).header("content-length"), "3000000");
    let got = m.get(&layer_path).expect(200);
    assert_eq!((got.body.len(), sha256(&got.body)), (layer.len(), sha256(&layer)));
    m.get(&config_path).expect(200);
    assert_eq!(m.get("/v2/team/tool/tags/list").expect(200).json()["tags"], json!(["1"]));
    // Again: neither manifest nor blob is sent by the upstream; only asked whether the tag is still that image.
    for _ in 0..3 {
        m.get("/v2/team/tool/manifests/1").expect(200);
        m.get(&layer_path).expect(200);
    }
    assert_eq!((upstream.manifests.load(Ordering::SeqCst), upstream.blobs.load(Ordering::SeqCst)), (1, 2));
    // Gone, after a restart too: what is here is served, and said to be perhaps old.
    upstream.away.store(true, Ordering::SeqCst);
    m.restart(|_| {});
    let stale = m.get("/v2/team/tool/manifests/1").expect(200);
    assert!(stale.header("warning").starts_with("110"), "{stale:?}");
    assert_eq!(m.get(&format!("/v2/team/tool/manifests/{digest}")).expect(200).header("warning"), "");
    assert_eq!(m.ask("GET", &layer_path, &[("Range", "bytes=10-19")], b"").expect(206).body, layer[10..20]);
    assert_eq!(m.get("/v2/team/tool/tags/list").expect(200).json()["tags"], json!(["1"]));
    // What is not here cannot be had, which is not the same as not being there.
    let refused = m.get("/v2/team/tool/manifests/2").refused(502, "UNKNOWN");
    assert!(String::from_utf8_lossy(&refused.body).contains("upstream: no connection"), "{refused:?}");
    m.get(&format!("/v2/team/tool/blobs/{}", sha256(b"other"))).refused(502, "UNKNOWN");
}

#[test]
fn tags_that_move_or_go_do_so_here() {
    let origin = Registry::new(|_| {});
    let (first, _) = origin.image("a", "1", b"first");
    let upstream = Upstream::new(&origin);
    let mut m = mirror(&upstream);
    let shown = |m: &Registry| m.get("/v2/a/manifests/1").expect(200).header("docker-content-digest").to_owned();
    assert_eq!(shown(&m), first);
    let (second, _) = origin.image("a", "1", b"second");
    assert_eq!(shown(&m), second);
    m.get(&format!("/v2/a/manifests/{first}")).expect(200);
    // Believed for a while, it is not asked for.
    m.restart(|o| o.revalidate = Duration::from_secs(600));
    assert_eq!(shown(&m), second);
    origin.image("a", "1", b"third");
    assert_eq!(shown(&m), second);
    m.restart(|o| o.revalidate = Duration::ZERO);
    origin.delete("/v2/a/manifests/1").expect(202);
    m.get("/v2/a/manifests/1").refused(404, "MANIFEST_UNKNOWN");
    m.get(&format!("/v2/a/manifests/{second}")).expect(200);
    m.get("/v2/nobody/manifests/1").refused(404, "MANIFEST_UNKNOWN");
    m.get("/v2/nobody/tags/list").refused(404, "NAME_UNKNOWN");
    m.get(&format!("/v2/a/blobs/{}", sha256(b"nothing"))).refused(404, "BLOB_UNKNOWN");
    m.get("/v2/a/manifests/sha256:short").refused(400, "DIGEST_INVALID");
    // Nothing is pushed to it, and nothing deleted.
    m.ask("POST", "/v2/a/blobs/uploads/", &[], b"").refused(405, "UNSUPPORTED");
    m.delete(&format!("/v2/a/manifests/{second}")).refused(405, "UNSUPPORTED");
}

/// Somebody near: has something else, breaks off, or has nothing.
#[derive(Debug)]
struct Neighbour(&'static str);

impl Transport for Neighbour {
    fn name(&self) -> String {
        self.0.to_owned()
    }

    fn blob(&self, _repository: &str, _digest: &str, to: &Path, size: u64) -> Result<bool, String> {
        let size = usize::try_from(size).unwrap();
        match self.0 {
            "liar" => std::fs::write(to, vec![1; size]).map(|()| true).map_err(|e| e.to_string()),
            "half" => std::fs::write(to, vec![1; size / 2]).map(|()| true).map_err(|e| e.to_string()),
            "broken" => {
                std::fs::write(to, b"some").unwrap();
                Err("it broke off".to_owned())
            }
            _ => Ok(false),
        }
    }
}

#[test]
fn blobs_come_by_whoever_has_them_and_are_believed_by_their_digest() {
    let (origin, peer) = (Registry::new(|_| {}), Registry::new(|_| {}));
    let layer: Vec<u8> = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    let (_, manifest) = origin.image("team/tool", "1", &layer);
    let near = peer.blob("team/tool", &layer);
    let upstream = Upstream::new(&origin);
    let source = upstream.clone();
    let quick = Timeouts { retries: 0, ..Timeouts::default() };
    let remote = Remote::new(&peer.address().to_string(), quick, false).unwrap();
    let m = Registry::new(|o| {
        o.source = Some(source);
        o.transports =
            ["nobody", "liar", "half", "broken"].map(|n| Arc::new(Neighbour(n)) as Arc<dyn Transport>).into();
        o.transports.push(Arc::new(remote));
    });
    let path = |digest: &str| format!("/v2/team/tool/blobs/{digest}");
    // The layer is a peer's, and comes from there; the configuration is the source's alone.
    assert_eq!(m.get(&path(&near)).expect(200).body, layer);
    assert_eq!(upstream.blobs.load(Ordering::SeqCst), 0);
    let config = manifest["config"]["digest"].as_str().unwrap();
    assert_eq!(sha256(&m.get(&path(config)).expect(200).body), config);
    assert_eq!(upstream.blobs.load(Ordering::SeqCst), 1);
    // What the source does not know is nobody's, whoever has it.
    let other = peer.blob("team/tool", b"of the peer alone");
    m.get(&path(&other)).refused(404, "BLOB_UNKNOWN");
    let left = std::fs::read_dir(m.store().join("uploads")).unwrap().count();
    assert_eq!(left, 0, "nothing half-done stays");
}

#[test]
fn many_at_once_are_one_download() {
    let origin = Registry::new(|_| {});
    let layer: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
    let (_, manifest) = origin.image("a", "1", &layer);
    let upstream = Upstream::new(&origin);
    let m = mirror(&upstream);
    let path = format!("/v2/a/blobs/{}", manifest["layers"][0]["digest"].as_str().unwrap());
    m.get("/v2/a/manifests/1").expect(200);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(sha256(&m.get(&path).expect(200).body), sha256(&layer)));
        }
    });
    assert_eq!(upstream.blobs.load(Ordering::SeqCst), 1);
    assert_eq!(std::fs::read_dir(m.store().join("uploads")).unwrap().count(), 0);
}

#[test]
fn a_liar_is_not_believed_and_nobody_gets_a_whole_lie() {
    let origin = Registry::new(|_| {});
    let layer = vec![7; 400_000];
    let (_, manifest) = origin.image("a", "1", &layer);
    let upstream = Upstream::new(&origin);
    let m = mirror(&upstream);
    m.get("/v2/a/manifests/1").expect(200);
    upstream.lies.store(true, Ordering::SeqCst);
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let answer = m.get(&format!("/v2/a/blobs/{digest}"));
    assert!(answer.status == 502 || answer.body.len() < layer.len(), "{} bytes", answer.body.len());
    assert!(!m.store().join("blobs/sha256").join(digest.trim_start_matches("sha256:")).exists());
    assert_eq!(std::fs::read_dir(m.store().join("uploads")).unwrap().count(), 0);
    upstream.lies.store(false, Ordering::SeqCst);
    assert_eq!(m.get(&format!("/v2/a/blobs/{digest}")).expect(200).body, layer);
}

#[test]
fn a_full_mirror_forgets_what_was_used_least() {
    let origin = Registry::new(|_| {});
    let images: Vec<_> = (0..4u8).map(|i| origin.image("a", &i.to_string(), &vec![i; 300_000])).collect();
    let upstream = Upstream::new(&origin);
    let source = upstream.clone();
    let m = Registry::new(|o| {
        o.source = Some(source);
        o.quota = Some(800_000);
    });
    let pull = |i: usize| {
        m.get(&format!("/v2/a/manifests/{i}")).expect(200);
        let digest = images[i].1["layers"][0]["digest"].as_str().unwrap();
        assert_eq!(m.get(&format!("/v2/a/blobs/{digest}")).expect(200).body.len(), 300_000, "{i}");
        m.store().join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    };
    // Times of use, as they would be written with hours between.
    let used = |i: usize, hours: u64| {
        let file = m.store().join("blobs/sha256").join(images[i].0.trim_start_matches("sha256:"));
        let time = std::time::SystemTime::now() - Duration::from_secs(3600 * hours);
        std::fs::File::open(file).unwrap().set_modified(time).unwrap();
    };
    let (zero, one) = (pull(0), pull(1));
    used(0, 5);
    used(1, 9);
    let two = pull(2);
    assert!(zero.exists() && !one.exists() && two.exists(), "the oldest went");
    used(2, 1);
    pull(0);
    let three = pull(3);
    assert!(zero.exists() && !two.exists() && three.exists(), "what was asked for again stays");
    // One that has no room at all is handed on, and costs nobody his place.
    let large = vec![9; 900_000];
    let (_, manifest) = origin.image("a", "large", &large);
    m.get("/v2/a/manifests/large").expect(200);
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    assert_eq!(m.get(&format!("/v2/a/blobs/{digest}")).expect(200).body.len(), 900_000);
    assert!(zero.exists() && three.exists());
}

#[test]
fn indexes_and_what_refers_to_an_image_pass() {
    let origin = Registry::new(|_| {});
    let (one, manifest) = origin.image("a", "one", b"1");
    let entry = json!({ "mediaType": MANIFEST, "digest": one, "size": manifest.to_string().len(),
        "platform": { "architecture": "amd64", "os": "linux" } });
    // An index is asked for before what it names.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    origin.ask("PUT", "/v2/a/manifests/all", &[("Content-Type", INDEX)], index.as_bytes()).expect(201);
    let empty = origin.blob("a", b"{}");
    let artifact = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/sbom",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 }, "layers": [],
        "subject": { "mediaType": MANIFEST, "digest": one, "size": manifest.to_string().len() } })
    .to_string();
    let by = sha256(artifact.as_bytes());
    origin.ask("PUT", &format!("/v2/a/manifests/{by}"), &[("Content-Type", MANIFEST)], artifact.as_bytes()).expect(201);
    let upstream = Upstream::new(&origin);
    let m = mirror(&upstream);
    assert_eq!(m.get("/v2/a/manifests/all").expect(200).body, index.as_bytes());
    m.get(&format!("/v2/a/manifests/{one}")).expect(200);
    let list = m.get(&format!("/v2/a/referrers/{one}?artifactType=text%2Fsbom")).expect(200);
    assert_eq!(
        (list.json()["manifests"][0]["digest"].as_str(), list.header("oci-filters-applied")),
        (Some(by.as_str()), "artifactType")
    );
    let none = m.get(&format!("/v2/a/referrers/{one}?artifactType=x")).expect(200);
    assert_eq!(none.json()["manifests"], json!([]));
    m.get(&format!("/v2/a/manifests/{by}")).expect(200);
    upstream.away.store(true, Ordering::SeqCst);
    let offline = m.get(&format!("/v2/a/referrers/{one}")).expect(200).json();
    assert_eq!(offline["manifests"].as_array().unwrap().len(), 1, "{offline}");
}
