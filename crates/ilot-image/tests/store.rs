//! The store: names, digests, trust levels, collection, and everything that can interrupt it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead as _, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Place, Recorder, Tar, is_root, names, skip};
use ilot_image::{Error, Progress, Silent, Store};

fn has_busybox() -> bool {
    ["/bin/busybox", "/usr/bin/busybox"].iter().any(|p| Path::new(p).exists())
}

fn archive(word: &str) -> Vec<u8> {
    Tar::new().folder("./").folder("./bin").file("./bin/sh", "#!").file("./word", word).end()
}

/// An archive of so many files, in no compression's reach.
fn large(files: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut tar = Tar::new().folder("./");
    for i in 0..files {
        let content: String = (0..16 << 10)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
            })
            .collect();
        tar = tar.file(&format!("./f{i}"), &content);
    }
    tar.end()
}

#[test]
fn busybox_is_made_quickly_and_always_the_same() {
    if !has_busybox() || !is_root() {
        return skip("needs a static busybox and root");
    }
    let (one, two) = (Place::new(), Place::new());
    let start = Instant::now();
    let image = one.store.obtain("busybox", &Silent).unwrap();
    let tree = one.store.materialize(&image, "a").unwrap().remove(0);
    let took = start.elapsed();
    println!("busybox: made and unpacked in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(two.store.obtain("busybox", &Silent).unwrap().digest, image.digest);
    assert_eq!(image.init, None);
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(tree.join("tmp").metadata().unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read_link(tree.join("bin/sh")).unwrap(), Path::new("/bin/busybox"));
    for path in ["srv", "root", "proc", "sys", "dev", "etc/passwd", "etc/group", "etc/hosts"] {
        assert!(tree.join(path).exists(), "{path}");
    }
    // It runs, with nothing of the host's around it.
    let output = Command::new("chroot").arg(&tree).args(["/bin/sh", "-c", "id -un; ls / | wc -l"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().next(), Some("root"), "{output:?}");
}

#[test]
fn a_busybox_that_needs_libraries_is_refused_with_the_cure() {
    let place = Place::new();
    let said = run(&place, "obtain", "busybox", &[("ILOT_BUSYBOX", "/bin/sh")]);
    assert!(said.contains("/bin/sh: needs shared libraries"), "{said}");
    assert!(said.contains("apt install busybox-static"), "{said}");
    let said = run(&place, "obtain", "busybox", &[("ILOT_BUSYBOX", "/nonexistent/busybox")]);
    assert!(said.contains("/nonexistent/busybox"), "{said}");
}

#[test]
fn no_two_trust_levels_share_an_inode() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    let (image, tree) = place.unpack("x.tar", &archive("x")).unwrap();
    let other = place.store.materialize(&image, "untrusted").unwrap().remove(0);
    assert_ne!(tree, other);
    for path in ["", "word", "bin", "bin/sh"] {
        let (a, b) = (tree.join(path).metadata().unwrap(), other.join(path).metadata().unwrap());
        assert_ne!((a.dev(), a.ino()), (b.dev(), b.ino()), "{path}");
    }
    // Within one level it is one copy, whatever image it belongs to.
    assert_eq!(place.store.materialize(&image, "test").unwrap(), [tree]);
    for trust in ["", "A", "../x", "a/b", "a b", &"x".repeat(65)] {
        assert!(matches!(place.store.materialize(&image, trust), Err(Error::BadTrust { .. })), "{trust}");
    }
}

#[test]
fn the_layout_is_one_that_other_programs_read() {
    let place = Place::new();
    let path = place.write("x.tar", &archive("x"));
    let image = place.store.obtain(path.to_str().unwrap(), &Silent).unwrap();
    let root = place.store.root();
    let json = |path: &Path| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    assert_eq!(json(&root.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&root.join("index.json"));
    assert_eq!(index["schemaVersion"], 2);
    let entry = &index["manifests"][0];
    assert_eq!(entry["digest"], image.digest.to_string());
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], image.reference);
    let blob = |digest: &serde_json::Value| root.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let manifest = json(&blob(&entry["digest"]));
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(std::fs::metadata(blob(&entry["digest"])).unwrap().len(), entry["size"]);
    let layer = &manifest["layers"][0];
    assert_eq!(std::fs::metadata(blob(&layer["digest"])).unwrap().len(), layer["size"]);
    let config = json(&blob(&manifest["config"]["digest"]));
    assert_eq!(config["os"], "linux");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    assert_eq!(root.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // What was found out is found out again.
    let facts = root.join("images").join(format!("{}.json", image.digest.hex()));
    std::fs::remove_file(&facts).unwrap();
    assert_eq!(place.store.resolve(&image.reference).unwrap().unwrap(), image);
    assert!(facts.exists());
    if Path::new("/usr/bin/skopeo").exists() {
        let source = format!("oci:{}", root.display());
        let output = Command::new("skopeo").args(["inspect", "--raw", &source]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        skip("skopeo is not installed (the files were checked by hand)");
    }
}

#[test]
fn names_digests_and_prefixes_find_the_image() {
    let place = Place::new();
    let path = place.write("x.tar", &archive("x"));
    let name = path.to_str().unwrap();
    assert_eq!(place.store.resolve(name).unwrap(), None);
    let image = place.store.obtain(name, &Silent).unwrap();
    assert_eq!(image.reference, format!("tar:{name}"));
    let full = image.digest.to_string();
    for text in [name, &format!("tar:{name}"), &full, &full[..20], &full[7..19]] {
        let found = place.store.resolve(text).unwrap().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(found.digest, image.digest);
    }
    assert_eq!(place.store.resolve("sha256:000000000000").unwrap(), None);
    let error = place.store.obtain("sha256:000000000000", &Silent).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = place.store.obtain("/nonexistent/x.tar", &Silent).unwrap_err();
    assert!(error.to_string().contains("no such file or folder"), "{error}");
}

#[test]
fn a_changed_archive_is_another_image() {
    let place = Place::new();
    let path = place.write("x.tar", &archive("one"));
    let name = path.to_str().unwrap();
    let one = place.store.obtain(name, &Silent).unwrap();
    place.write("x.tar", &archive("another"));
    assert_eq!(place.store.resolve(name).unwrap(), None, "stale");
    let two = place.store.obtain(name, &Silent).unwrap();
    assert_ne!(one.digest, two.digest);
    assert_eq!(place.store.list().unwrap(), std::slice::from_ref(&two));
    // The old one lost its name, and is there as long as nothing collects it.
    assert_eq!(place.store.resolve(&one.digest.to_string()).unwrap().unwrap().digest, one.digest);
    let in_use = BTreeSet::from([one.digest.clone()]);
    place.store.gc(&in_use).unwrap();
    assert!(place.store.resolve(&one.digest.to_string()).unwrap().is_some());
    place.store.gc(&BTreeSet::new()).unwrap();
    assert!(place.store.resolve(&one.digest.to_string()).unwrap().is_none());
    assert!(place.store.resolve(&two.digest.to_string()).unwrap().is_some());
    // The archive may go: its image stays.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(place.store.resolve(name).unwrap().unwrap().digest, two.digest);
}

#[test]
fn removing_and_collecting() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    let (image, tree) = place.unpack("x.tar", &archive("x")).unwrap();
    let (kept, kept_tree) = place.unpack("y.tar", &archive("y")).unwrap();
    let in_use = BTreeSet::from([image.digest.clone()]);
    let error = place.store.remove(&image.reference, &in_use).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(place.store.remove(&image.reference, &BTreeSet::new()).unwrap().digest, image.digest);
    assert!(matches!(place.store.remove(&image.reference, &BTreeSet::new()), Err(Error::NotFound { .. })));
    let collected = place.store.gc(&in_use).unwrap();
    assert_eq!((collected.blobs, collected.layers), (0, 0), "a machine runs from it");
    assert!(tree.exists());
    let collected = place.store.gc(&BTreeSet::new()).unwrap();
    assert_eq!((collected.blobs, collected.layers), (3, 1));
    assert!(collected.bytes > 0 && !tree.exists() && kept_tree.exists());
    assert_eq!(names(&place.store.root().join("images")), [".locks", ".tmp", &format!("{}.json", kept.digest.hex())]);
    place.assert_clean();
    let (again, tree) = place.unpack("x.tar", &archive("x")).unwrap();
    assert_eq!(again.digest, image.digest);
    assert!(tree.exists());
}

#[test]
fn collecting_holds_up_nobody() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    std::thread::scope(|scope| {
        let (done, told) = mpsc::channel::<()>();
        let store = place.store.clone();
        let collector = scope.spawn(move || {
            let mut rounds = 0;
            while told.try_recv() == Err(mpsc::TryRecvError::Empty) {
                store.gc(&BTreeSet::new()).unwrap();
                rounds += 1;
            }
            rounds
        });
        for i in 0..20 {
            let (_, tree) = place.unpack(&format!("{i}.tar"), &archive(&format!("{i}"))).unwrap();
            assert_eq!(std::fs::read_to_string(tree.join("word")).unwrap(), format!("{i}"));
        }
        drop(done);
        assert!(collector.join().unwrap() > 0);
    });
    assert_eq!(place.store.list().unwrap().len(), 20);
}

#[test]
fn a_damaged_blob_is_noticed() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    let path = place.write("x.tar", &large(20));
    let image = place.store.obtain(path.to_str().unwrap(), &Silent).unwrap();
    let blobs = place.store.root().join("blobs/sha256");
    let layer = names(&blobs).into_iter().max_by_key(|n| blobs.join(n).metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(blobs.join(&layer)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(blobs.join(&layer), &bytes).unwrap();
    let error = place.store.materialize(&image, "a").unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    place.assert_clean();
    assert_eq!(names(&place.store.root().join("layers/a")), Vec::<String>::new());
    // So is a manifest.
    std::fs::write(blobs.join(image.digest.hex()), "{}").unwrap();
    assert!(matches!(place.store.resolve(&image.reference), Err(Error::Damaged { .. })));
    assert_eq!(place.store.list().unwrap()[0].digest, image.digest);
    // Obtained again, both are whole; so it is after a removal.
    let progress = Recorder::default();
    assert_eq!(place.store.obtain(&image.reference, &progress).unwrap(), image);
    assert!(progress.notes().contains("obtaining it again"), "{}", progress.notes());
    assert_eq!(names(&place.store.materialize(&image, "a").unwrap()[0]).len(), 20);
    std::fs::write(blobs.join(image.digest.hex()), "{}").unwrap();
    place.store.remove(&image.reference, &BTreeSet::new()).unwrap();
    place.store.gc(&BTreeSet::new()).unwrap();
    assert_eq!(place.store.obtain(&image.reference, &Silent).unwrap(), image);
}

/// Holds an import open until it is told to go on.
struct Gate {
    reached: mpsc::Sender<()>,
    go: std::sync::Mutex<mpsc::Receiver<()>>,
}

impl Progress for Gate {
    fn stage(&self, _text: &str) {
        self.reached.send(()).unwrap();
        let _ = self.go.lock().unwrap().recv();
    }
    fn bytes(&self, _done: u64, _total: Option<u64>) {}
    fn note(&self, _text: &str) {}
    fn finished(&self) {}
}

#[test]
fn two_that_want_the_same_do_the_work_once() {
    let place = Place::new();
    let path = place.write("x.tar", &archive("x"));
    let name = path.to_str().unwrap();
    let (reached, is_reached) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let gate = Gate { reached, go: wait.into() };
        let first = scope.spawn(move || Store::open(place.store.root()).unwrap().obtain(name, &gate).unwrap());
        is_reached.recv().unwrap();
        // Another process, which finds the lock held and says by whom.
        let mut child = start("obtain", Path::new(name).parent().unwrap(), name, &[]);
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let note = lines.find(|l| l.as_ref().is_ok_and(|l| l.contains("NOTE"))).unwrap().unwrap();
        assert!(note.contains(&format!("being obtained by process {}; waiting", std::process::id())), "{note}");
        drop(go);
        let image = first.join().unwrap();
        let rest: Vec<_> = lines.map(Result::unwrap).collect();
        assert!(rest.contains(&format!("GOT {}", image.digest)), "{rest:?}");
        assert!(!rest.iter().any(|l| l.contains("STAGE")), "did the work again: {rest:?}");
        child.wait().unwrap();
    });
}

struct Telling;

impl Progress for Telling {
    fn stage(&self, text: &str) {
        println!("STAGE {text}");
    }
    fn bytes(&self, done: u64, _total: Option<u64>) {
        println!("BYTES {done}");
    }
    fn note(&self, text: &str) {
        println!("NOTE {text}");
    }
    fn finished(&self) {}
}

/// The part of a test that runs in a process of its own.
#[test]
fn child() {
    let (Ok(what), Ok(root), Ok(reference)) =
        (std::env::var("TEST_DO"), std::env::var("TEST_STORE"), std::env::var("TEST_REFERENCE"))
    else {
        return;
    };
    let store = Store::open(root.as_ref()).unwrap();
    let result = store.obtain(&reference, &Telling).and_then(|image| {
        if what == "unpack" {
            store.materialize_with(&image, "test", &Telling)?;
        }
        Ok(image)
    });
    match result {
        Ok(image) => println!("GOT {}", image.digest),
        Err(error) => println!("FAILED {error}\nHELP {}", error.help().unwrap_or_default()),
    }
}

/// `folder` holds the store as `store`.
fn start(what: &str, folder: &Path, reference: &str, environment: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TEST_DO", what)
        .env("TEST_STORE", folder.join("store"))
        .env("TEST_REFERENCE", reference)
        .envs(environment.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn run(place: &Place, what: &str, reference: &str, environment: &[(&str, &str)]) -> String {
    let mut child = start(what, place.dir.path(), reference, environment);
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said
}

#[test]
fn killed_at_any_moment_the_next_call_repairs() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let place = Place::new();
    // Long enough in an unoptimised build for the kills to meet every part of it.
    let path = place.write("x.tar", &large(600));
    let name = path.to_str().unwrap();
    let mut seen = BTreeSet::new();
    for after in [0, 1, 2, 4, 7, 11, 14, 18, 22] {
        let mut child = start("unpack", place.dir.path(), name, &[]);
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // The kill comes after so many lines of its progress, wherever that is.
        let last = lines.by_ref().filter(|l| ["STAGE", "BYTES", "GOT"].iter().any(|w| l.contains(w))).nth(after);
        child.kill().unwrap();
        child.wait().unwrap();
        seen.insert(last.unwrap_or_default().split(' ').next().unwrap_or_default().to_owned());
        // Whatever has a name in the store is whole.
        if let Some(image) = place.store.resolve(name).unwrap() {
            for tree in names(&place.store.root().join("layers/test")) {
                let tree = place.store.root().join("layers/test").join(tree);
                assert_eq!(names(&tree).len(), 600, "{:?}", image.digest);
            }
            // Begin again, so that the next kill meets the import too.
            if after < 12 {
                place.store.remove(name, &BTreeSet::new()).unwrap();
                place.store.gc(&BTreeSet::new()).unwrap();
            }
        }
        let store = Store::open(place.store.root()).unwrap();
        assert_eq!(names(&store.root().join("images/.tmp")), Vec::<String>::new(), "after {after}");
    }
    println!("killed at: {seen:?}");
    let (image, tree) = place.unpack_reference(name).unwrap();
    assert_eq!(names(&tree).len(), 600);
    place.store.gc(&BTreeSet::from([image.digest])).unwrap();
    assert_eq!(names(&place.store.root().join("blobs/sha256")).len(), 3, "blobs of nobody");
    place.assert_clean();
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !is_root() {
        return skip("mounting needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("small");
    std::fs::create_dir(&root).unwrap();
    let archive = dir.path().join("x.tar");
    std::fs::write(&archive, large(300)).unwrap();
    // The mount is in a namespace of this thread's own, and goes with it.
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| -> Result<(), String> {
                // SAFETY: only this thread's view of the mounts changes, and it ends with this closure.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
                    .map_err(|e| e.to_string())?;
                let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).map_err(|e| e.to_string())?;
                let size = |bytes: &str| std::ffi::CString::new(format!("size={bytes}")).unwrap();
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("none", &root, "tmpfs", flags, Some(&*size("1m"))).map_err(|e| e.to_string())?;
                let store = Store::open(&root.join("store")).unwrap();
                let name = archive.to_str().unwrap();
                let left = |store: &Store| {
                    (names(&store.root().join("images/.tmp")), names(&store.root().join("blobs/sha256")))
                };
                // Too small for the blob.
                let error = store.obtain(name, &Silent).unwrap_err();
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                assert!(error.help().unwrap().contains("--root"));
                assert_eq!(left(&store), (vec![], vec![]));
                // Large enough for the blob, too small for the tree.
                let remount = |bytes: &str| rustix::mount::mount_remount(&root, flags, &*size(bytes));
                remount("7m").map_err(|e| e.to_string())?;
                let image = store.obtain(name, &Silent).unwrap();
                let error = store.materialize(&image, "a").unwrap_err();
                assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                assert_eq!(left(&store).0, Vec::<String>::new());
                assert_eq!(names(&store.root().join("layers/a")), Vec::<String>::new());
                // With room, all is well.
                remount("64m").map_err(|e| e.to_string())?;
                assert_eq!(names(&store.materialize(&image, "a").unwrap()[0]).len(), 300);
                Ok(())
            })
            .join()
            .unwrap()
    });
    if let Err(reason) = result {
        skip(&format!("no private mount here: {reason}"));
    }
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let place = Place::new();
    let path = place.write("x.tar", &large(400));
    let progress = Recorder::default();
    *progress.cancel_after.lock().unwrap() = Some(1);
    let error = place.store.obtain(path.to_str().unwrap(), &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    place.assert_clean();
    assert_eq!(names(&place.store.root().join("blobs/sha256")), Vec::<String>::new());
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("not an OCI image layout of version 1.0.0"), "{error}");
    assert_eq!(names(dir.path()), ["oci-layout"]);
}

#[test]
fn many_open_a_new_store_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(|| Store::open(&root).unwrap().list().unwrap())).collect();
        for opened in all {
            assert_eq!(opened.join().unwrap(), []);
        }
    });
}
