//! Native layers: EROFS images that hold what unpacking the same archives gives, never shared, checked, collected.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use common::{Place, Tar, is_root, names, pax_body, skip};
use ilot_image::{Silent, Store};

/// Runs with mounts of its own, where the kernel mounts EROFS from a file.
fn apart(test: impl FnOnce() + Send) {
    if !is_root() {
        return skip("needs root");
    }
    std::thread::scope(|scope| {
        let run = || {
            use rustix::mount::{MountPropagationFlags, mount_change};
            // SAFETY: this thread alone gets another view of the mounts, and ends with the closure.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            test();
        };
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn mount(file: &Path, place: &Path) -> rustix::io::Result<()> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", file)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mount =
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    std::fs::create_dir_all(place).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, place, flags)
}

fn unmount(place: &Path) {
    rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()).unwrap();
}

/// Everything of a tree that a machine can see of it. Folders that no entry named, and whiteouts, have the time of their making: left out.
fn look(root: &Path, dated: bool) -> BTreeMap<PathBuf, String> {
    let (mut all, mut left, mut first) = (BTreeMap::new(), vec![root.to_owned()], HashMap::new());
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let mut content = String::new();
        if kind.is_file() {
            content = if meta.len() < 1 << 20 {
                format!("{:?}", std::fs::read(&path).unwrap())
            } else {
                format!("{:?}", pieces(&path))
            };
        } else if kind.is_symlink() {
            content = format!("{:?}", std::fs::read_link(&path).unwrap());
        } else if kind.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        }
        let mut list = vec![0u8; 64 << 10];
        let length = rustix::fs::llistxattr(&path, &mut list).unwrap_or(0);
        let mut attributes: Vec<String> = Vec::new();
        for name in list[..length].split(|&b| b == 0).filter(|n| !n.is_empty()) {
            let mut value = vec![0u8; 64 << 10];
            let n = rustix::fs::lgetxattr(&path, name, &mut value).unwrap();
            // What the host's security module says of its own files.
            if name != b"security.selinux" {
                attributes.push(format!("{}={}", name.escape_ascii(), value[..n].escape_ascii()));
            }
        }
        attributes.sort();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let time =
            if dated && !kind.is_dir() && !kind.is_char_device() { (meta.mtime(), meta.mtime_nsec()) } else { (0, 0) };
        let size = if kind.is_dir() { 0 } else { meta.size() };
        let text = format!(
            "{:o} {}:{} {} {size} {time:?} {} {attributes:?} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if kind.is_dir() { 0 } else { meta.nlink() },
            if kind.is_char_device() { meta.rdev() } else { 0 },
        );
        all.insert(relative.clone(), text);
        if meta.nlink() > 1 && !kind.is_dir() {
            first.entry(meta.ino()).or_insert_with(Vec::new).push(relative);
        }
    }
    for mut same in first.into_values() {
        same.sort();
        all.insert(PathBuf::from(format!("same as {}", same[0].display())), format!("{same:?}"));
    }
    all
}

/// Data of a large file without its holes' zeroes.
fn pieces(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = std::fs::File::open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let (mut all, mut at) = (Vec::new(), 0);
    while at < size {
        let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap().min(start + (4 << 20));
        let mut buffer = vec![0; usize::try_from(end - start).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut buffer, start).unwrap();
        for (i, block) in buffer.chunks(4096).enumerate().filter(|(_, b)| b.iter().any(|&x| x != 0)) {
            all.push((start + 4096 * i as u64, block.to_vec()));
        }
        at = end;
    }
    all
}

fn assert_same(name: &str, native: &BTreeMap<PathBuf, String>, folder: &BTreeMap<PathBuf, String>) {
    let short = |text: Option<&String>| text.map(|t| t.chars().take(300).collect::<String>());
    for path in native.keys().chain(folder.keys()) {
        let (one, two) = (native.get(path), folder.get(path));
        assert!(one == two, "{name}: {}: native {:?}, unpacked {:?}", path.display(), short(one), short(two));
    }
}

/// Both forms of an archive are the same, or both are refused.
fn same(place: &Place, name: &str, archive: &[u8]) {
    let path = place.write("archive", archive);
    let image = match place.store.refresh(&format!("tar:{}", path.display()), &Silent) {
        Ok(image) => image,
        // Refused before it was unpacked.
        Err(_) => return,
    };
    let unpacked = place.store.materialize(&image, "folder");
    let native = place.store.native(&image, "native", &Silent);
    match (unpacked, native) {
        (Ok(trees), Ok(layers)) => {
            let at = place.path("mounted");
            mount(&layers[0].file, &at).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_same(name, &look(&at, true), &look(&trees[0], true));
            unmount(&at);
        }
        (Err(one), Err(two)) => assert_eq!(one.to_string(), two.to_string(), "{name}"),
        (Ok(_), Err(error)) => panic!("{name}: not made native: {error}"),
        (Err(error), Ok(_)) => panic!("{name}: not unpacked: {error}"),
    }
    place.assert_clean();
    for level in ["folder", "native"] {
        for entry in std::fs::read_dir(place.store.root().join("layers").join(level)).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }
}

/// Whether this kernel can do it at all.
fn can_mount(place: &Place) -> bool {
    let path = place.write("probe", &Tar::new().file("f", "x").end());
    let image = place.store.obtain(&format!("tar:{}", path.display()), &Silent).unwrap();
    let layer = place.store.native(&image, "probe", &Silent).unwrap().remove(0);
    let at = place.path("probe-mount");
    let result = mount(&layer.file, &at);
    if let Err(error) = result {
        skip(&format!("this kernel mounts no EROFS from a file: {error}"));
        return false;
    }
    unmount(&at);
    true
}

/// With everything that a layer can have.
fn everything() -> Vec<u8> {
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    let mut tar = Tar::new()
        .mode("./", b'5', 0o755, 0, 0, "")
        .mode("bin/", b'5', 0o755, 0, 0, "")
        .mode("bin/su", b'0', 0o4755, 0, 0, "set-id")
        .mode("tmp/", b'5', 0o1777, 0, 0, "")
        .mode("home/u", b'0', 0o640, 1000, 1001, "owned")
        .hardlink("home/v", "home/u")
        .hardlink("bin/w", "home/u")
        .symlink("l", "home/u")
        .symlink("long", &"x/".repeat(45))
        .raw(b"pipe", b'6', b"", b"", |_| {})
        .device("sda", b'4', 8, 0)
        .file(".wh.gone", "")
        .file("opaque/new", "x")
        .file("opaque/.wh..wh..opq", "")
        .pax(&[("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"\0\xff"), ("SCHILY.xattr.user.empty", b"")])
        .file("attributes", "x")
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("capable", "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", acl)])
        .folder("acl")
        .raw(b"\xff\xfe", b'0', b"", b"not UTF-8", |_| {})
        .file("empty", "")
        .file("block", &"b".repeat(4096))
        .file("more", &"m".repeat(4097))
        .file("large", &"0123456789abcdef".repeat(20_000));
    for i in 0..700 {
        tar = tar.file(&format!("many/a-name-that-fills-a-block-{i:05}"), &i.to_string());
    }
    for length in [1, 3900, 3950, 3967, 3968, 3969, 4000, 4031, 4032, 4033, 4095] {
        tar = tar.long(b'K', "t".repeat(length).as_bytes()).symlink(&format!("target-{length}"), "x");
    }
    for i in 0..40 {
        tar = tar.long(b'L', format!("{}{i}", "n".repeat(250)).as_bytes()).file("x", "long name");
        tar = tar.long(b'L', format!("folders/{}{i}/", "f".repeat(6 * i)).as_bytes()).folder("x");
    }
    tar.end()
}

#[test]
fn a_native_layer_is_what_unpacking_gives() {
    apart(|| {
        let place = Place::new();
        if !can_mount(&place) {
            return;
        }
        same(&place, "everything", &everything());
        for (name, tar) in [
            ("through an absolute link", Tar::new().folder("a").symlink("l", "/a").file("l/f", "x").file("l/d/e", "x")),
            ("through a link up", Tar::new().folder("a/b").symlink("a/b/l", "../../../..").file("a/b/l/f", "x")),
            (
                "through a link of links",
                Tar::new().folder("a").symlink("b", "a").symlink("c", "./b/.").file("c/f", "x"),
            ),
            ("through a circle", Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x")),
            ("to nowhere", Tar::new().symlink("l", "/nowhere").file("l/x", "x")),
            ("through a file", Tar::new().file("a", "x").file("a/b", "x")),
            ("a file for a folder", Tar::new().folder("d").file("d/a", "x").file("d", "y").hardlink("e", "d")),
            ("a folder for a link", Tar::new().symlink("x", "/etc").folder("x").file("x/f", "x")),
            ("a link for a folder", Tar::new().folder("x/y").symlink("x", "z").folder("z").file("x/f", "x")),
            ("a hard link to a link", Tar::new().symlink("l", "t").hardlink("h", "l").file("t", "x")),
            (
                "a hard link over another",
                Tar::new().file("a", "a").file("b", "b").hardlink("b", "a").hardlink("c", "b"),
            ),
            ("a hard link over a folder with its file", Tar::new().file("b/x", "x").hardlink("b", "b/x")),
            ("a hard link to a folder", Tar::new().folder("d").hardlink("h", "d")),
            (
                "a hard link through a link",
                Tar::new().file("d/f", "x").symlink("e", "d").hardlink("h", "e/f").hardlink("e/f", "d/f"),
            ),
            (
                "a hard link to a device",
                Tar::new().device("n", b'3', 1, 3).hardlink("m", "n").hardlink("o", "m").file("f", "x"),
            ),
            ("a name of 256 bytes", Tar::new().long(b'L', "x".repeat(256).as_bytes()).file("a", "x")),
            (
                "a folder of 256 bytes",
                Tar::new().long(b'L', format!("{}/f", "x".repeat(256)).as_bytes()).file("a", "x"),
            ),
            (
                "the same folder twice",
                Tar::new().mode("d", b'5', 0o700, 1, 1, "").file("d/a", "x").mode("d", b'5', 0o755, 2, 2, ""),
            ),
            (
                "whiteouts behind",
                Tar::new().folder("d").file("d/n", "x").file(".wh.d", "").file("a", "x").file(".wh.a", ""),
            ),
            ("whiteouts before", Tar::new().file(".wh.d", "").file("d/n", "x").file(".wh.a", "").file("a", "x")),
            (
                "the kernel's whiteouts",
                Tar::new().device("d", b'3', 0, 0).folder("d").device("x", b'3', 0, 0).hardlink("y", "x"),
            ),
            ("an opaque root", Tar::new().file(".wh..wh..opq", "").file("a", "x")),
            (
                "orders in attributes",
                Tar::new()
                    .pax(&[
                        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                        ("SCHILY.xattr.user.overlay.opaque", b"y"),
                    ])
                    .folder("d")
                    .file("d/f", ""),
            ),
            (
                "broken attributes",
                Tar::new()
                    .pax(&[
                        ("SCHILY.xattr.system.posix_acl_access", b"x"),
                        ("SCHILY.xattr.security.capability", b"x"),
                        ("SCHILY.xattr.user.", b"x"),
                    ])
                    .file("f", ""),
            ),
            ("owners beyond the range", Tar::new().pax(&[("uid", b"100000"), ("gid", b"4294967295")]).file("f", "x")),
            (
                "a path in a global header",
                Tar::new().raw(b"g", b'g', b"", &pax_body(&[("path", b"moved")]), |_| {}).file("f", "x"),
            ),
        ] {
            same(&place, name, &tar.end());
        }
    });
}

#[test]
fn holes_stay_holes() {
    apart(|| {
        let place = Place::new();
        if !can_mount(&place) {
            return;
        }
        let sparse = |size: u64, pieces: &[(u64, &str)]| {
            let mut map = format!("{}\n", pieces.len());
            pieces.iter().for_each(|(at, data)| map.push_str(&format!("{at}\n{}\n", data.len())));
            let mut content = map.into_bytes();
            content.resize(content.len().next_multiple_of(512), 0);
            pieces.iter().for_each(|(_, data)| content.extend_from_slice(data.as_bytes()));
            let size = size.to_string();
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"s"),
                    ("GNU.sparse.realsize", size.as_bytes()),
                ])
                .raw(b"x", b'0', b"", &content, |_| {})
                .file("behind", "it")
                .end()
        };
        let long = "d".repeat(10_000);
        for (name, size, pieces) in [
            ("nothing but a hole", 100_000, &[][..]),
            ("no byte at all", 0, &[]),
            ("at its start", 100_000, &[(0, "start")]),
            ("at its end", 100_000, &[(99_995, "end..")]),
            ("several in one block", 10_000, &[(1, "a"), (3, "b"), (4090, "across the end")]),
            ("side by side", 50_000, &[(0, &*long), (10_000, &*long), (40_000, &*long)]),
            ("in each other block", 40_960, &[(0, "a"), (8192, "b"), (16_384, "c"), (40_959, "d")]),
            ("8 GiB", 8 << 30, &[(0, "first"), (1 << 20, &*long), (4 << 30, "middle"), ((8 << 30) - 4, "last")]),
            ("1 TiB", 1 << 40, &[(12_345_678, "one"), (1 << 39, "two"), ((1 << 39) + 70_000, "three")]),
        ] {
            same(&place, name, &sparse(size, pieces));
        }
        let path = place.write("archive", &sparse(8 << 30, &[(0, "first"), (4 << 30, "middle")]));
        let image = place.store.obtain(&format!("tar:{}", path.display()), &Silent).unwrap();
        let layer = place.store.native(&image, "a", &Silent).unwrap().remove(0);
        assert!(layer.file.metadata().unwrap().len() < 8 << 20, "its holes are not in the file");
    });
}

#[test]
fn trust_levels_share_no_file_and_damage_is_found() {
    if !is_root() {
        return skip("needs root");
    }
    let place = Place::new();
    let path = place.write("archive", &everything());
    let image = place.store.obtain(&format!("tar:{}", path.display()), &Silent).unwrap();
    let of = |trust: &str| place.store.native(&image, trust, &Silent).unwrap().remove(0);
    let (a, b) = (of("a"), of("b"));
    assert_ne!(a.file.metadata().unwrap().ino(), b.file.metadata().unwrap().ino());
    assert_eq!(std::fs::metadata(&a.file).unwrap().nlink(), 1);
    assert_eq!(a.digest, b.digest, "the same layer gives the same bytes");
    assert_eq!(of("a"), a, "made once");
    assert_eq!(place.store.trust_levels(&image).unwrap(), ["a", "b"]);
    assert!(place.store.verify(&image, &Silent).unwrap().is_empty());
    // One byte, anywhere.
    let mut bytes = std::fs::read(&a.file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&a.file, &bytes).unwrap();
    let found = place.store.verify(&image, &Silent).unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].path == a.file && found[0].reason.contains("its content is"), "{found:?}");
    // As a crash of the host leaves one that was not on the disk yet: made anew.
    let text = String::from_utf8_lossy(&bytes[bytes.len() - 4096..]).into_owned();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    let record = bytes.len() - 4096;
    let other = text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    bytes[record..].copy_from_slice(other.as_bytes());
    std::fs::write(&a.file, &bytes).unwrap();
    assert_eq!(of("a"), a);
    assert!(place.store.verify(&image, &Silent).unwrap().is_empty());
    // One that was whole is kept.
    let mut whole = std::fs::read(&b.file).unwrap();
    whole[record..].copy_from_slice(other.as_bytes());
    std::fs::write(&b.file, &whole).unwrap();
    let inode = b.file.metadata().unwrap().ino();
    assert_eq!(of("b"), b);
    assert_eq!(b.file.metadata().unwrap().ino(), inode);
    assert!(!String::from_utf8_lossy(&std::fs::read(&b.file).unwrap()[record..]).contains("00000000-0000"));
    // Cut, or of another layer: made anew.
    for damage in [&bytes[..record], &bytes[..1000], b"", &[0; 8192]] {
        std::fs::write(&a.file, damage).unwrap();
        assert_eq!(of("a"), a);
    }
    // Removed with its image.
    place.store.gc(&BTreeSet::new()).unwrap();
    assert!(a.file.exists());
    place.store.remove(&image.reference, &BTreeSet::new()).unwrap();
    place.store.gc(&BTreeSet::new()).unwrap();
    for level in ["a", "b"] {
        assert_eq!(names(&place.store.root().join("layers").join(level)), Vec::<String>::new());
    }
    place.assert_clean();
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    if !is_root() {
        return skip("needs root");
    }
    let place = Place::new();
    let path = place.write("archive", &Tar::new().file("f", &"x".repeat(8 << 20)).end());
    let image = place.store.obtain(&format!("tar:{}", path.display()), &Silent).unwrap();
    let progress = common::Recorder::default();
    *progress.cancel_after.lock().unwrap() = Some(1 << 20);
    *progress.bytes.lock().unwrap() = 1 << 20;
    let error = place.store.native(&image, "a", &progress).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(names(&place.store.root().join("layers/a")), Vec::<String>::new());
    place.assert_clean();
    // As one that was killed: what it left is swept by the next.
    let dead = place.store.root().join("images/.tmp/.tmp-1-1");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("erofs"), "half").unwrap();
    Store::open(place.store.root()).unwrap().native(&image, "a", &Silent).unwrap();
    place.assert_clean();
    assert_eq!(names(&place.store.root().join("layers/a")).len(), 1);
}
