//! Images that other programs packed, and images for them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Place, Tar, is_root, names, skip};
use ilot_image::{Image, LayoutKind, Silent};
use sha2::Digest as _;

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

/// Writes a layout by hand, as another program would.
struct Made<'a> {
    root: &'a Path,
    entries: Vec<String>,
}

impl<'a> Made<'a> {
    fn new(root: &'a Path) -> Self {
        std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        std::fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { root, entries: Vec::new() }
    }

    fn blob(&self, bytes: &[u8]) -> (String, usize) {
        std::fs::write(self.root.join("blobs/sha256").join(sha256(bytes)), bytes).unwrap();
        (format!("sha256:{}", sha256(bytes)), bytes.len())
    }

    /// An image of gzipped layers; its digest.
    fn image(&mut self, arch: &str, annotations: &str, layers: &[Vec<u8>]) -> String {
        use std::io::Write as _;
        let (mut ids, mut descriptors) = (Vec::new(), Vec::new());
        for layer in layers {
            ids.push(format!(r#""sha256:{}""#, sha256(layer)));
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(layer).unwrap();
            let (digest, size) = self.blob(&gz.finish().unwrap());
            let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
            descriptors.push(format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}"#));
        }
        let config = format!(
            r#"{{"architecture":"{arch}","os":"linux","created":"2024-05-06T07:08:09Z","config":{{"Env":["A=b"],"Entrypoint":["/entry"],
            "Cmd":["x"],"User":"7:8","WorkingDir":"/srv","StopSignal":"SIGINT","Labels":{{"a":"b"}}}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let (config, size) = self.blob(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":
            {{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[{}]}}"#,
            descriptors.join(",")
        );
        let (digest, size) = self.blob(manifest.as_bytes());
        self.entries.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}{annotations}}}"#
        ));
        digest
    }

    fn finish(&self) {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, self.entries.join(","));
        std::fs::write(self.root.join("index.json"), index).unwrap();
    }
}

fn named(name: &str) -> String {
    format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#)
}

fn base() -> Vec<u8> {
    Tar::new().folder("etc").file("etc/kept", "1").file("etc/gone", "1").folder("full").file("full/a", "1").end()
}

fn top() -> Vec<u8> {
    Tar::new()
        .folder("etc")
        .file("etc/.wh.gone", "")
        .file("etc/kept", "2")
        .folder("full")
        .file("full/.wh..wh..opq", "")
        .file("full/b", "2")
        .end()
}

#[test]
fn a_layout_keeps_its_digests_and_its_layers_make_one_tree() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    let root = place.path("layout");
    let mut made = Made::new(&root);
    let digest = made.image(arch(), "", &[base(), top()]);
    made.finish();
    let image = place.store.obtain(&format!("oci:{}", root.display()), &Silent).unwrap();
    assert_eq!(image.digest.to_string(), digest);
    assert_eq!(image.config.entrypoint, ["/entry"]);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/srv"));
    assert_eq!(image.config.stop_signal, "SIGINT");
    let lowers = place.store.materialize(&image, "a").unwrap();
    assert_eq!(lowers.len(), 2);
    assert_eq!(std::fs::read_to_string(lowers[0].join("etc/kept")).unwrap(), "2", "top first");
    // The kernel sees what the layers mean together.
    let seen = std::thread::scope(|scope| scope.spawn(|| overlay(&lowers, &place.path("merged"))).join().unwrap());
    match seen {
        Ok(seen) => assert_eq!(seen, ["etc: kept", "full: b"]),
        Err(reason) => skip(&format!("no overlay here: {reason}")),
    }
    place.assert_clean();
    assert_eq!(place.store.gc(&BTreeSet::new()).unwrap().blobs, 0);
}

/// What is in each folder of a read-only overlay, mounted where nobody else sees it.
fn overlay(lowers: &[std::path::PathBuf], at: &Path) -> std::io::Result<Vec<String>> {
    // SAFETY: only this thread's view of the mounts changes, and it ends with the thread.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    std::fs::create_dir_all(at)?;
    let lowers: Vec<_> = lowers.iter().map(|l| l.display().to_string()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
    rustix::mount::mount("overlay", at, "overlay", rustix::mount::MountFlags::RDONLY, Some(&*options))?;
    Ok(names(at).iter().map(|folder| format!("{folder}: {}", names(&at.join(folder)).join(" "))).collect())
}

#[test]
fn the_right_image_of_a_layout_is_chosen() {
    let place = Place::new();
    let root = place.path("layout");
    let platform = |arch: &str| format!(r#","platform":{{"os":"linux","architecture":"{arch}"}}"#);
    let mut made = Made::new(&root);
    made.image("s390y", &platform("s390y"), &[base()]);
    let wanted = made.image(arch(), &platform(arch()), &[top()]);
    made.finish();
    let layout = format!("oci:{}", root.display());
    assert_eq!(place.store.obtain(&layout, &Silent).unwrap().digest.to_string(), wanted);
    let mut made = Made::new(&root);
    let one = made.image(arch(), &named("one"), &[base()]);
    made.image(arch(), &named("ghcr.io/x/two:1"), &[top()]);
    made.finish();
    let error = place.store.obtain(&layout, &Silent).unwrap_err();
    assert!(error.to_string().contains("several images: add `:NAME`, one of `one`, `ghcr.io/x/two:1`"), "{error}");
    assert_eq!(place.store.obtain(&format!("{layout}:one"), &Silent).unwrap().digest.to_string(), one);
    place.store.obtain(&format!("{layout}:ghcr.io/x/two:1"), &Silent).unwrap();
    let error = place.store.obtain(&format!("{layout}:three"), &Silent).unwrap_err();
    assert!(error.to_string().contains("has no image `three`"), "{error}");
    let mut made = Made::new(&root);
    made.image("s390y", "", &[base()]);
    made.finish();
    let error = place.store.obtain(&layout, &Silent).unwrap_err();
    assert!(error.to_string().contains("is for linux/s390y"), "{error}");
}

#[test]
fn lies_in_a_layout_are_found() {
    for spoil in ["layer", "config", "diff id", "missing"] {
        let place = Place::new();
        let root = place.path("layout");
        let mut made = Made::new(&root);
        made.image(arch(), "", &[base()]);
        made.finish();
        let blobs = root.join("blobs/sha256");
        let find = |word: &[u8]| {
            let all = names(&blobs);
            let name =
                all.iter().find(|n| std::fs::read(blobs.join(n)).unwrap().windows(word.len()).any(|w| w == word));
            blobs.join(name.unwrap())
        };
        let layer = names(&blobs)
            .iter()
            .map(|n| blobs.join(n))
            .find(|p| std::fs::read(p).unwrap().starts_with(b"\x1f\x8b"))
            .unwrap();
        match spoil {
            "layer" => std::fs::write(&layer, Tar::new().file("x", "x").end()).unwrap(),
            "config" => std::fs::write(find(b"diff_ids"), "{}").unwrap(),
            "missing" => std::fs::remove_file(&layer).unwrap(),
            _ => {
                // Every digest is right but that of the plain layer.
                let mut made = Made::new(&root);
                let text = String::from_utf8(std::fs::read(find(b"diff_ids")).unwrap()).unwrap();
                let id = sha256(&base());
                let (config, size) = made.blob(text.replace(&id, &sha256(b"other")).as_bytes());
                let (layer, layer_size) = made.blob(&std::fs::read(&layer).unwrap());
                let (digest, length) = made.blob(format!(
                    r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":{size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer}","size":{layer_size}}}]}}"#
                ).as_bytes());
                made.entries.push(format!(
                    r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{length}}}"#
                ));
                made.finish();
            }
        }
        let error = place.store.obtain(&format!("oci:{}", root.display()), &Silent).unwrap_err();
        let wanted = if spoil == "missing" { "No such file" } else { "digest is" };
        assert!(error.to_string().contains(wanted), "{spoil}: {error}");
        place.assert_clean();
        assert_eq!(place.store.list().unwrap(), [], "{spoil}");
    }
}

#[test]
fn what_is_exported_comes_back_the_same() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    let root = place.path("layout");
    let mut made = Made::new(&root);
    made.image(arch(), "", &[base(), top()]);
    made.finish();
    let image = place.store.obtain(&format!("oci:{}", root.display()), &Silent).unwrap();
    let other: Image = place.unpack("other.tar", &Tar::new().file("etc/other", "x").end()).unwrap().0;
    let back = |reference: &str| {
        let fresh = Place::new();
        let image = fresh.store.obtain(reference, &Silent).unwrap();
        let trees = fresh.store.materialize(&image, "a").unwrap();
        fresh.assert_clean();
        (image, trees.iter().map(|t| names(t)).collect::<Vec<_>>())
    };
    let folder = place.path("exported");
    place.store.export(&image, LayoutKind::Oci, &folder, "one:1").unwrap();
    place.store.export(&other, LayoutKind::Oci, &folder, "two").unwrap();
    assert_eq!(names(&folder), ["blobs", "index.json", "oci-layout"]);
    assert_eq!(back(&format!("oci:{}:one:1", folder.display())).0.digest, image.digest);
    assert_eq!(back(&format!("oci:{}:two", folder.display())).0.digest, other.digest);
    let file = place.path("exported.tar");
    place.store.export(&image, LayoutKind::OciArchive, &file, "x").unwrap();
    assert_eq!(back(&format!("oci-archive:{}", file.display())).0.digest, image.digest);
    place.store.export(&image, LayoutKind::DockerArchive, &file, "x:latest").unwrap();
    back(&format!("docker-archive:{}:docker.io/library/x", file.display()));
    let (docker, trees) = back(&format!("docker-archive:{}:x:latest", file.display()));
    assert_eq!(docker.config, image.config);
    assert_eq!(trees, [["etc", "full"], ["etc", "full"]]);
    place.assert_clean();
    assert_eq!(names(place.dir.path()), ["exported", "exported.tar", "layout", "other.tar", "store"]);
}
