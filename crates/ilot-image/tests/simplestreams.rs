//! Images from a simplestreams server, honest and otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Place, Recorder, Tar, is_root, names, skip};
use ilot_image::{Error, Progress as _, Silent, Store, Timeouts};
use server::{Answer, Server};
use sha2::Digest as _;

const QUICK: Timeouts = Timeouts {
    connect: Duration::from_millis(500),
    stall: Duration::from_millis(300),
    retries: 2,
    back_off: Duration::from_millis(1),
};

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that no compression makes smaller.
fn noise(length: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'!' + u8::try_from(state % 90).unwrap())
        })
        .collect()
}

fn rootfs(word: &str) -> Vec<u8> {
    Tar::new()
        .folder("./")
        .folder("./etc")
        .file("./etc/issue", word)
        .folder("./bin")
        .file("./bin/sh", &noise(200_000))
        .end()
}

/// Puts a tree with one product on a server; `versions` are (name, file's type, file as announced, file as served).
fn publish(server: &Server, aliases: &str, versions: &[(&str, &str, Vec<u8>, Answer)]) {
    let mut all = Vec::new();
    for (version, kind, announced, served) in versions {
        let path = format!("images/x/{version}/{kind}");
        server.set(&format!("/{path}"), served.clone());
        all.push(format!(
            r#""{version}": {{"items": {{"m": {{"ftype": "lxd.tar.xz", "path": "images/x/{version}/lxd.tar.xz", "size": 1, "sha256": "00"}},
            "r": {{"ftype": "{kind}", "path": "{path}", "size": {}, "sha256": "{}"}}}}}}"#,
            announced.len(),
            sha256(announced)
        ));
    }
    let other = r#""debian:trixie:s390y:default": {"aliases": "debian/13", "arch": "s390y", "versions": {"20990101_00:00": {"items": {"r": {}}}}}"#;
    let products = format!(
        r#"{{"format": "products:1.0", "products": {{{other}, "x": {{"aliases": "{aliases}", "arch": "{}", "os": "X", "versions": {{{}}}}}}}}}"#,
        arch(),
        all.join(",")
    );
    server.set("/streams/v1/images.json", Answer::Body(products.into_bytes()));
    let index = r#"{"format": "index:1.0", "index": {
        "aws": {"datatype": "image-ids", "path": "streams/v1/aws.json"},
        "images": {"datatype": "image-downloads", "path": "streams/v1/images.json", "products": ["x"]}}}"#;
    server.set("/streams/v1/index.json", Answer::Body(index.as_bytes().to_vec()));
}

/// A store whose remotes are on loopback.
fn place(server: &Server) -> Place {
    let mut place = Place::new();
    place.store = place.store.with_timeouts(QUICK);
    remotes(&place, &server.url());
    place
}

fn remotes(place: &Place, url: &str) {
    std::fs::write(place.store.root().join("remotes.json"), format!(r#"{{"test": "{url}", "images": "{url}/"}}"#))
        .unwrap();
}

fn one(server: &Server, served: Answer, announced: Vec<u8>) {
    publish(server, "thing,thing/1", &[("20250101_00:00", "root.tar.xz", announced, served)]);
}

/// Nothing of a failed call is in the store.
fn assert_nothing(place: &Place) {
    place.assert_clean();
    assert_eq!(names(&place.store.root().join("blobs/sha256")), Vec::<String>::new());
    assert_eq!(place.store.list().unwrap(), []);
}

#[test]
fn the_newest_version_is_fetched_once() {
    let server = Server::start();
    let (old, new) = (xz(&rootfs("old")), xz(&rootfs("new")));
    publish(
        &server,
        "debian/13/default, debian/13, debian/trixie",
        &[
            ("20250101_05:24", "root.tar.xz", old.clone(), Answer::Body(old)),
            ("20250203_05:24", "root.tar.xz", new.clone(), Answer::Body(new)),
        ],
    );
    let place = place(&server);
    let progress = Recorder::default();
    let image = place.store.obtain("images:debian/13", &progress).unwrap();
    assert_eq!(image.reference, "images:debian/13");
    assert_eq!(image.source, server.url());
    assert_eq!(image.created.unwrap().to_string(), "2025-02-03T05:24:00Z");
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert!(progress.stages().contains(&format!("images:debian/13: ask {}", server.url())), "{}", progress.stages());
    assert_eq!(progress.notes(), "");
    place.assert_clean();
    if is_root() {
        let tree = place.store.materialize(&image, "a").unwrap().remove(0);
        assert_eq!(std::fs::read_to_string(tree.join("etc/issue")).unwrap(), "new");
    } else {
        skip("unpacking needs root");
    }
    server.forget_requests();
    assert_eq!(place.store.obtain("images:debian/13", &Silent).unwrap(), image);
    assert_eq!(server.requests(), Vec::<String>::new());
    // The layer is one that other programs understand, whatever the server's compression was.
    assert_eq!(place.store.refresh("images:debian/13", &Silent).unwrap().digest, image.digest);
    assert!(!server.requests().is_empty());
}

#[test]
fn a_combined_archive_gives_its_rootfs() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let server = Server::start();
    let combined = gz(&Tar::new()
        .file("metadata.yaml", "architecture: x86_64\n")
        .folder("rootfs")
        .folder("rootfs/etc")
        .mode("rootfs/etc/issue", b'0', 0o640, 7, 8, "combined")
        .hardlink("rootfs/etc/issue2", "rootfs/etc/issue")
        .folder("templates")
        .file("templates/hostname.tpl", "{{ x }}")
        .end());
    publish(&server, "thing", &[("20250101", "lxd_combined.tar.gz", combined.clone(), Answer::Body(combined))]);
    let place = place(&server);
    let (_, tree) = place.unpack_reference("test:thing").unwrap();
    assert_eq!(names(&tree), ["etc"]);
    assert_eq!(std::fs::read_to_string(tree.join("etc/issue2")).unwrap(), "combined");
    let meta = tree.join("etc/issue").metadata().unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.nlink()), (7, 8, 0o640, 2));
    place.assert_clean();
}

#[test]
fn a_lie_about_the_digest_is_found() {
    let server = Server::start();
    let (told, sent) = (xz(&rootfs("told")), xz(&rootfs("sent")));
    let padded = [sent, vec![0; 1000]].concat()[..told.len()].to_vec();
    one(&server, Answer::Body(padded), told);
    let place = place(&server);
    let error = place.store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("digest is sha256:"), "{error}");
    assert_nothing(&place);
}

#[test]
fn more_than_was_announced_is_not_read() {
    let server = Server::start();
    let told = xz(&rootfs("x"));
    one(&server, Answer::Body([told.clone(), vec![0; 100_000]].concat()), told);
    let place = place(&server);
    let error = place.store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("more than it announced"), "{error}");
    assert_nothing(&place);
}

#[test]
fn a_cut_is_resumed_where_it_was() {
    for ranges in [true, false] {
        let server = Server::start();
        let file = xz(&rootfs("x"));
        one(&server, Answer::CutOnce(file.len() / 2, ranges, file.clone()), file.clone());
        let place = place(&server);
        place.store.obtain("test:thing", &Silent).unwrap();
        let tail = server.requests().pop().unwrap();
        assert_eq!(tail, format!("/images/x/20250101_00:00/root.tar.xz {}", file.len() / 2), "ranges: {ranges}");
        place.assert_clean();
    }
}

#[test]
fn what_never_comes_whole_fails_with_its_reason() {
    let file = xz(&rootfs("x"));
    for (answer, reason, tries) in [
        (Answer::Cut(1000, file.clone()), "cut", 3),
        (Answer::Stall(1000, file.clone()), "the server stopped sending", 3),
        (Answer::Status(500), "the server answers 500", 3),
        (Answer::Status(429), "the server answers 429", 3),
        (Answer::Status(404), "not there (404)", 1),
        (Answer::Status(403), "not allowed (403)", 1),
    ] {
        let server = Server::start();
        one(&server, answer, file.clone());
        let place = place(&server);
        let error = place.store.obtain("test:thing", &Silent).unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        let asked = server.requests().iter().filter(|r| r.contains("root.tar.xz")).count();
        assert_eq!(asked, tries, "{reason}: {:?}", server.requests());
        assert_nothing(&place);
    }
}

#[test]
fn a_server_that_recovers_is_forgiven() {
    let server = Server::start();
    let file = xz(&rootfs("x"));
    one(&server, Answer::After(2, 503, file.clone()), file);
    let place = place(&server);
    place.store.obtain("test:thing", &Silent).unwrap();
}

#[test]
fn redirects_are_followed() {
    let server = Server::start();
    let file = xz(&rootfs("x"));
    server.set("/cdn/file", Answer::Body(file.clone()));
    one(&server, Answer::Redirect(format!("{}/cdn/file", server.url())), file);
    place(&server).store.obtain("test:thing", &Silent).unwrap();
}

#[test]
fn an_unknown_alias_is_answered_with_near_ones() {
    let server = Server::start();
    let file = xz(&rootfs("x"));
    one(&server, Answer::Body(file.clone()), file);
    let place = place(&server);
    let error = place.store.obtain("test:thing/2", &Silent).unwrap_err();
    assert!(error.to_string().contains("has no `thing/2`"), "{error}");
    assert!(error.to_string().contains("`thing/1`"), "{error}");
    // A word that is no server's may be a registry's; nobody is to be asked here.
    std::fs::write(place.store.root().join("short-names.json"), r#"{"search": []}"#).unwrap();
    let error = place.store.obtain("nowhere:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("no server is named `nowhere`"), "{error}");
    let help = error.help().unwrap();
    assert!(help.contains("test") && help.contains("docker://nowhere:thing"), "{help}");
}

#[test]
fn a_product_without_a_tar_archive_says_what_it_has() {
    let server = Server::start();
    publish(&server, "thing", &[("20250101", "squashfs", b"hsqs".to_vec(), Answer::Status(404))]);
    let error = place(&server).store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("no root file system as a tar archive, only lxd.tar.xz, squashfs"), "{error}");
}

#[test]
fn nonsense_is_not_believed() {
    let server = Server::start();
    server.set("/streams/v1/index.json", Answer::Body(b"<html>".to_vec()));
    let error = place(&server).store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("not what a simplestreams server says"), "{error}");
    let up = r#"{"index": {"a": {"datatype": "image-downloads", "path": "../../etc/passwd"}}}"#;
    server.set("/streams/v1/index.json", Answer::Body(up.as_bytes().to_vec()));
    let error = place(&server).store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("outside of itself"), "{error}");
}

#[test]
fn who_is_not_there_is_asked_once() {
    let server = Server::start();
    let place = place(&server);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    remotes(&place, &format!("http://{gone}"));
    let error = place.store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    let error = place.store.obtain("test:other", &Silent).unwrap_err();
    assert!(error.to_string().contains("not asked again"), "{error}");
}

#[test]
fn a_silent_server_costs_little() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start();
    let place = place(&server);
    let mut place = place;
    place.store = place.store.with_timeouts(Timeouts { connect: Duration::from_millis(200), ..QUICK });
    // Accepts (the kernel does), and never says a word of TLS.
    remotes(&place, &format!("https://{}", listener.local_addr().unwrap()));
    let start = Instant::now();
    let error = place.store.obtain("test:thing", &Silent).unwrap_err();
    assert!(error.to_string().contains("no connection within 200ms"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn a_cancelled_download_leaves_nothing() {
    let server = Server::start();
    let file = xz(&rootfs("x"));
    one(&server, Answer::Body(file.clone()), file);
    let place = place(&server);
    let progress = Recorder::default();
    *progress.cancel_after.lock().unwrap() = Some(1);
    let error = place.store.obtain("test:thing", &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert!(progress.cancelled());
    assert_nothing(&place);
}

/// The part of a test that runs in a process of its own, with an environment of its own.
#[test]
fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var("TEST_STORE"), std::env::var("TEST_REFERENCE")) else { return };
    let store = Store::open(root.as_ref()).unwrap().with_timeouts(QUICK);
    let progress = Recorder::default();
    match store.obtain(&reference, &progress) {
        Ok(image) => println!("GOT {}", image.digest),
        Err(error) => println!("FAILED {error}\nHELP {}", error.help().unwrap_or_default()),
    }
    println!("NOTES {}", progress.notes());
}

fn run_child(place: &Place, reference: &str, environment: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_STORE", place.store.root())
        .env("TEST_REFERENCE", reference)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn tls_trusts_the_hosts_authorities_and_no_others() {
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private.into())
        .unwrap();
    let server = Server::with(Some(Arc::new(config)));
    let file = xz(&rootfs("x"));
    one(&server, Answer::Body(file.clone()), file);
    let place = place(&server);
    let bundle = place.write("ca.pem", key.cert.pem().as_bytes());
    let said = run_child(&place, "test:thing", &[("SSL_CERT_FILE", "/dev/null")]);
    assert!(said.contains("FAILED") && said.contains("TLS: invalid peer certificate"), "{said}");
    let said = run_child(&place, "test:thing", &[("SSL_CERT_FILE", bundle.to_str().unwrap())]);
    assert!(said.contains("GOT sha256:"), "{said}");
}

#[test]
fn the_environment_names_servers_and_mirrors() {
    let server = Server::start();
    let file = xz(&rootfs("x"));
    one(&server, Answer::Body(file.clone()), file);
    let place = Place::new();
    let said = run_child(&place, "mine:thing", &[("ILOT_REMOTE_MINE", &server.url())]);
    assert!(said.contains("GOT sha256:"), "{said}");
}

#[test]
fn each_source_and_its_reason_is_told() {
    let server = Server::start();
    let mirror = Server::start();
    let place = place(&server);
    let said = run_child(&place, "images:debian/13", &[("ILOT_MIRROR_DEBIAN", &mirror.url())]);
    let first = format!("{}: /streams/v1/index.json: not there (404)", server.url());
    assert!(said.contains(&first), "{said}");
    if !["/usr/bin/mmdebstrap", "/bin/mmdebstrap"].iter().any(|p| std::path::Path::new(p).exists()) {
        assert!(said.contains("HELP `apt install mmdebstrap`"), "{said}");
        return skip("mmdebstrap is not installed");
    }
    assert!(said.contains(&format!("{}/dists/trixie/InRelease: not there (404)", mirror.url())), "{said}");
    assert!(said.contains("NOTES images:debian/13: "), "{said}");
    assert!(said.contains("next the package mirror"), "{said}");
    let said = run_child(&place, "images:alpine/3.20", &[]);
    assert!(said.contains("only Debian and Ubuntu can be installed from theirs"), "{said}");
    assert_nothing(&place);
}
