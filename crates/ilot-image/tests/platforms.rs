//! Images for other machines than this one, and digests of another kind than ilot's own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::collections::BTreeSet;

use common::{Place, Tar};
use ilot_image::{Image, Platform, Silent, Store};
use serde_json::json;
use server::{Answer, Server};
use sha2::Digest as _;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&sha2::Sha256::digest(bytes)))
}

fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&sha2::Sha512::digest(bytes)))
}

/// Publishes an image of one layer that says for whom it is; its manifest's digest.
fn image(server: &Server, platform: &Platform, digest: fn(&[u8]) -> String) -> (String, usize) {
    let layer = Tar::new().file("platform", &platform.to_string()).end();
    let mut config = json!({ "architecture": platform.architecture, "os": platform.os,
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] } });
    if let Some(variant) = &platform.variant {
        config["variant"] = json!(variant);
    }
    let config = config.to_string().into_bytes();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len() }] });
    let manifest = manifest.to_string().into_bytes();
    let (name, size) = (digest(&manifest), manifest.len());
    for blob in [layer, config] {
        server.set(&format!("/v2/team/tool/blobs/{}", digest(&blob)), Answer::Body(blob));
    }
    server.set(&format!("/v2/team/tool/manifests/{name}"), Answer::Typed(MANIFEST.to_owned(), manifest));
    (name, size)
}

fn publish(server: &Server, platforms: &[&str]) {
    let entry = |text: &&str| {
        let platform: Platform = text.parse().unwrap();
        let (digest, size) = image(server, &platform, sha256);
        let mut said = json!({ "os": platform.os, "architecture": platform.architecture });
        // Those that people publish say the usual variant too.
        if let Some(variant) = text.split('/').nth(2) {
            said["variant"] = json!(variant);
        }
        json!({ "mediaType": MANIFEST, "digest": digest, "size": size, "platform": said })
    };
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": platforms.iter().map(entry).collect::<Vec<_>>() });
    server.set("/v2/team/tool/manifests/1", Answer::Typed(INDEX.to_owned(), index.to_string().into_bytes()));
}

fn content(store: &Store, image: &Image) -> String {
    let lowers = store.materialize(image, "trusted").unwrap();
    std::fs::read_to_string(lowers[0].join("platform")).unwrap()
}

#[test]
fn one_image_for_each_platform_side_by_side() {
    let (server, place) = (Server::start(), Place::new());
    let host = Platform { variant: None, ..Platform::host() }.to_string();
    let other = if host == "linux/arm64" { "linux/s390x" } else { "linux/arm64/v8" };
    publish(&server, &["linux/arm/v5", "linux/arm/v7", other, &host, "windows/amd64", "linux/arm/v6"]);
    let name = format!("docker://{}/team/tool:1", server.address);
    let store = place.store.clone().without_tls_verification();
    let own = store.obtain(&name, &Silent).unwrap();
    assert_eq!((own.platform.to_string(), content(&store, &own)), (host.clone(), host.clone()));
    let see = |platform: &str| store.clone().with_platform(platform.parse().unwrap());
    // Asked for a variant, the best that it runs; each under the same name.
    for (asked, got) in [(other, other), ("linux/arm/v6", "linux/arm/v6"), ("armhf", "linux/arm/v7")] {
        let image = see(asked).obtain(&name, &Silent).unwrap();
        assert_eq!(content(&store, &image), got.parse::<Platform>().unwrap().to_string(), "{asked}");
        assert_eq!(see(asked).require(&name).unwrap().digest, image.digest);
        assert_ne!(image.digest, own.digest);
    }
    assert_eq!(store.require(&name).unwrap().digest, own.digest, "the name alone is this host's");
    assert_eq!(store.list().unwrap().len(), 4);
    let error = see("linux/riscv64").obtain(&name, &Silent).unwrap_err().to_string();
    assert!(error.contains("has no image for linux/riscv64, only for") && error.contains("linux/arm/v7"), "{error}");
    // A refresh of one leaves the others; so does its removal.
    see(other).refresh(&name, &Silent).unwrap();
    assert_eq!(store.list().unwrap().len(), 4);
    let foreign = see(other).require(&name).unwrap();
    assert!(see(other).remove(&name, &[foreign.digest].into()).is_err(), "in use");
    see(other).remove(&name, &BTreeSet::new()).unwrap();
    assert!(see(other).resolve(&name).unwrap().is_none());
    assert_eq!(store.list().unwrap().len(), 3);
    store.remove(&name, &BTreeSet::new()).unwrap();
    assert_eq!(store.list().unwrap().len(), 0, "without a platform, all of them");
    store.gc(&BTreeSet::new()).unwrap();
    assert_eq!(common::names(&store.root().join("blobs/sha256")), Vec::<String>::new());
}

#[test]
fn what_is_made_of_the_host_is_for_the_host() {
    let place = Place::new();
    let arm = place.store.clone().with_platform("linux/s390x".parse().unwrap());
    let error = arm.obtain("busybox", &Silent).unwrap_err();
    assert!(error.to_string().contains("cannot be had for linux/s390x"), "{error}");
    // An archive is for whom it is said to be.
    let file = place.write("root.tar", &Tar::new().file("x", "y").end());
    let image = arm.obtain(file.to_str().unwrap(), &Silent).unwrap();
    assert_eq!(image.platform.to_string(), "linux/s390x");
    assert!(place.store.resolve(file.to_str().unwrap()).unwrap().is_none());
}

#[test]
fn sha512_is_checked_and_kept() {
    let (server, place) = (Server::start(), Place::new());
    let platform = Platform { variant: None, ..Platform::host() };
    let (digest, _) = image(&server, &platform, sha512);
    let name = format!("docker://{}/team/tool@{digest}", server.address);
    let store = place.store.clone().without_tls_verification();
    let got = store.obtain(&name, &Silent).unwrap();
    assert_eq!((got.digest.to_string(), content(&store, &got)), (digest.clone(), platform.to_string()));
    assert_eq!(store.require(&digest).unwrap().digest, got.digest);
    assert_eq!(common::names(&store.root().join("blobs/sha512")).len(), 3);
    assert!(store.verify(&got, &Silent).unwrap().is_empty());
    // Into a layout and back.
    let layout = place.path("layout");
    store.export(&got, ilot_image::LayoutKind::Oci, &layout, "x").unwrap();
    store.export(&got, ilot_image::LayoutKind::OciArchive, &place.path("x.tar"), "x").unwrap();
    let again = Place::new();
    for source in [layout.display().to_string(), place.path("x.tar").display().to_string()] {
        assert_eq!(again.store.import(&source, None, &Silent).unwrap().digest, got.digest, "{source}");
    }
    // Damaged, it is seen; collected, it goes.
    let blob = store.root().join("blobs/sha512").join(&common::names(&store.root().join("blobs/sha512"))[0]);
    std::fs::write(&blob, "x").unwrap();
    assert!(!store.verify(&got, &Silent).unwrap().is_empty());
    store.refresh(&name, &Silent).unwrap();
    assert!(store.verify(&got, &Silent).unwrap().is_empty());
    store.remove(&name, &BTreeSet::new()).unwrap();
    store.gc(&BTreeSet::new()).unwrap();
    assert_eq!(common::names(&store.root().join("blobs/sha512")), Vec::<String>::new());
    // A lie is told by either kind.
    let lie = Tar::new().file("platform", "lie").end();
    let layer = Tar::new().file("platform", &platform.to_string()).end();
    server.set(&format!("/v2/team/tool/blobs/{}", sha512(&layer)), Answer::Body(lie));
    let error = store.refresh(&name, &Silent).unwrap_err().to_string();
    assert!(error.contains("digest is sha512:"), "{error}");
    place.assert_clean();
}
