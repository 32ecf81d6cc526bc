//! Registries that stall, lie, flood, send elsewhere, or go away: a pull is bounded, and loses nothing that was there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::time::{Duration, Instant};

use common::{Place, Recorder, Tar, names};
use ilot_image::{Image, Platform, Silent, Store, Timeouts};
use serde_json::json;
use server::{Answer, Server};
use sha2::Digest as _;

const QUICK: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    stall: Duration::from_millis(700),
    retries: 2,
    back_off: Duration::from_millis(1),
};
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn sha256(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// Paths of an image's parts on a server, and its layer.
struct Published {
    manifest: String,
    config: String,
    layer: String,
    content: Vec<u8>,
}

fn publish(server: &Server, text: &str) -> Published {
    let host = Platform::host();
    let content = Tar::new().file("text", &text.repeat(50_000)).end();
    let config = json!({ "architecture": host.architecture, "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [sha256(&content)] } })
    .to_string();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(config.as_bytes()),
            "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(&content),
            "size": content.len() }] })
    .to_string();
    let blob = |bytes: &[u8]| format!("/v2/t/blobs/{}", sha256(bytes));
    let published = Published {
        manifest: "/v2/t/manifests/1".to_owned(),
        config: blob(config.as_bytes()),
        layer: blob(&content),
        content: content.clone(),
    };
    server.set(&published.config, Answer::Body(config.into_bytes()));
    server.set(&published.layer, Answer::Body(content));
    server.set(&published.manifest, Answer::Typed(MANIFEST.to_owned(), manifest.into_bytes()));
    published
}

fn store(place: &Place) -> Store {
    place.store.clone().with_timeouts(QUICK).without_tls_verification()
}

/// The image that was there before is there still, whole.
fn assert_kept(store: &Store, before: &Image) {
    assert_eq!(store.require(&before.reference).unwrap().digest, before.digest);
    assert!(store.verify(before, &Silent).unwrap().is_empty());
}

/// Bytes that this process has in memory at most (VmHWM).
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn whatever_a_server_does_ends_soon_and_loses_nothing() {
    let place = Place::new();
    let store = store(&place);
    let server = Server::start();
    publish(&server, "before ");
    let name = format!("docker://{}/t:1", server.address);
    let before = store.obtain(&name, &Silent).unwrap();
    let blobs = names(&store.root().join("blobs/sha256"));
    let new = publish(&server, "after ");
    let giant = format!("{{\"schemaVersion\":2,\"x\":\"{}\"}}", "x".repeat(6 << 20)).into_bytes();
    let many = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "a/b", "digest": sha256(b""), "size": 0 },
        "layers": vec![json!({ "mediaType": "a/b", "digest": sha256(b""), "size": u64::MAX }); 10_000] })
    .to_string()
    .into_bytes();
    let at = |path: &str| format!("{}{path}", server.url());
    server.set("/loop", Answer::Redirect(at("/loop")));
    for (what, path, answer, wanted) in [
        ("a giant manifest", &new.manifest, Answer::Typed(MANIFEST.to_owned(), giant), "larger than"),
        ("a manifest without end", &new.manifest, Answer::Endless, "larger than"),
        ("a manifest of countless layers", &new.manifest, Answer::Typed(MANIFEST.to_owned(), many), ""),
        ("a manifest that stalls", &new.manifest, Answer::Stall(10, vec![b' '; 1000]), "stopped sending"),
        ("a configuration without end", &new.config, Answer::Endless, "larger than"),
        ("a layer without end", &new.layer, Answer::Endless, "more than it announced"),
        ("a layer longer than said", &new.layer, Answer::Longer(new.content.clone(), 5000), "more than it announced"),
        ("a layer that stalls", &new.layer, Answer::Stall(1000, new.content.clone()), "stopped sending"),
        ("a layer cut each time", &new.layer, Answer::Cut(1000, new.content.clone()), "cut"),
        ("another layer of the same size", &new.layer, Answer::Body(vec![7; new.content.len()]), "digest is"),
        ("an empty layer", &new.layer, Answer::Body(Vec::new()), "ends after"),
        ("a redirect to itself", &new.layer, Answer::Redirect(at("/loop")), "redirect"),
        ("a redirect to nowhere", &new.layer, Answer::Redirect("http://127.0.0.1:1/x".to_owned()), ""),
        ("500 each time", &new.layer, Answer::Status(500), "500"),
        ("429 each time", &new.layer, Answer::Status(429), "429"),
        ("a status of no sense", &new.manifest, Answer::Status(599), "599"),
    ] {
        publish(&server, "after ");
        server.set(path, answer);
        let began = Instant::now();
        let error = store.clone().with_timeouts(QUICK).without_tls_verification().refresh(&name, &Recorder::default());
        let error = error.expect_err(what).to_string();
        assert!(error.contains(wanted), "{what}: {error}");
        assert!(began.elapsed() < Duration::from_secs(15), "{what}: {:?}", began.elapsed());
        assert_kept(&store, &before);
        assert_eq!(names(&store.root().join("blobs/sha256")), blobs, "{what}");
        place.assert_clean();
    }
    assert!(peak_memory() < 512 << 20, "{} MiB", peak_memory() >> 20);
    // The same server, honest again.
    publish(&server, "after ");
    let after = store.refresh(&name, &Silent).unwrap();
    assert_ne!(after.digest, before.digest);
}

#[test]
fn a_server_that_asks_for_patience_gets_it() {
    let (place, server) = (Place::new(), Server::start());
    let new = publish(&server, "x");
    server.set(&new.layer, Answer::Later(1, Box::new(Answer::Body(new.content.clone()))));
    let began = Instant::now();
    store(&place).obtain(&format!("docker://{}/t:1", server.address), &Silent).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}: it came back too early", began.elapsed());
}

#[test]
fn a_slow_server_can_be_given_up() {
    struct Impatient(Instant);
    impl ilot_image::Progress for Impatient {
        fn stage(&self, _: &str) {}
        fn bytes(&self, _: u64, _: Option<u64>) {}
        fn note(&self, _: &str) {}
        fn finished(&self) {}
        fn cancelled(&self) -> bool {
            self.0.elapsed() > Duration::from_secs(1)
        }
    }
    let (place, server) = (Place::new(), Server::start());
    let new = publish(&server, "x");
    server.set(&new.layer, Answer::Trickle(new.content.clone()));
    let began = Instant::now();
    let error = store(&place).obtain(&format!("docker://{}/t:1", server.address), &Impatient(began)).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    place.assert_clean();
}

/// A file system with no more room than this, in a mount namespace of this thread's.
fn small_disk(bytes: u64) -> Option<tempfile::TempDir> {
    if !common::is_root() {
        common::skip("needs root for a mount of its own");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let thread = rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS;
    // SAFETY: only this test's thread leaves the namespace, and no descriptor is shared with it.
    unsafe { rustix::thread::unshare_unsafe(thread) }.unwrap();
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).unwrap();
    Some(dir)
}

#[test]
fn a_full_disk_is_told_and_nothing_that_was_there_is_lost() {
    let Some(disk) = small_disk(3 << 20) else { return };
    let server = Server::start();
    publish(&server, "small");
    let name = format!("docker://{}/t:1", server.address);
    let store = Store::open(&disk.path().join("store")).unwrap().with_timeouts(QUICK).without_tls_verification();
    let before = store.obtain(&name, &Silent).unwrap();
    let blobs = names(&store.root().join("blobs/sha256"));
    publish(&server, &"much larger than the disk, by far ".repeat(4));
    let error = store.refresh(&name, &Silent).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(error.help().is_some());
    assert_kept(&store, &before);
    assert_eq!(names(&store.root().join("blobs/sha256")), blobs);
    assert_eq!(names(&store.root().join("images/.tmp")), Vec::<String>::new());
    // With something smaller it goes on.
    publish(&server, "tiny");
    store.refresh(&name, &Silent).unwrap();
    drop(store);
    rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}
