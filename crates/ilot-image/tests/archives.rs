//! Archives as the programs of the world write them, and folders.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use common::{Place, Recorder, Tar, is_root, skip};

/// What is compared of one entry.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    link: Option<Vec<u8>>,
    content: Option<Vec<u8>>,
    device: u64,
    xattr: Option<Vec<u8>>,
    /// The first name of the same file.
    same_as: Option<Vec<u8>>,
}

fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let meta = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        if meta.is_dir() {
            let mut inner: Vec<_> = std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
            inner.sort();
            inner.reverse();
            left.extend(inner);
        }
        let same_as =
            (meta.nlink() > 1 && !meta.is_dir()).then(|| first.entry(meta.ino()).or_insert(name.clone()).clone());
        let mut value = [0; 100];
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if meta.is_file() { meta.len() } else { 0 },
            link: meta.is_symlink().then(|| std::fs::read_link(&path).unwrap().into_os_string().into_vec()),
            content: meta.is_file().then(|| std::fs::read(&path).unwrap()),
            device: if meta.file_type().is_char_device() { meta.rdev() } else { 0 },
            xattr: rustix::fs::lgetxattr(&path, "user.note", &mut value).ok().map(|n| value[..n].to_vec()),
            same_as,
        };
        all.insert(name, seen);
    }
    all
}

/// A folder of everything that a root file system can have.
fn everything(root: &Path) {
    use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
    let path = |name: &str| root.join(name);
    for folder in ["usr", "usr/bin", "etc", "tmp", "var", "empty"] {
        std::fs::create_dir(path(folder)).unwrap();
    }
    std::fs::write(path("usr/bin/su"), "set-id").unwrap();
    chown(path("usr/bin/su"), Some(0), Some(42)).unwrap();
    std::fs::set_permissions(path("usr/bin/su"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    std::fs::set_permissions(path("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::write(path("etc/secret"), "secret").unwrap();
    std::fs::set_permissions(path("etc/secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    chown(path("etc/secret"), Some(65534), Some(65535)).unwrap();
    symlink("usr/bin", path("bin")).unwrap();
    symlink("/etc/does not exist", path("dangling")).unwrap();
    lchown(path("dangling"), Some(7), Some(8)).unwrap();
    std::fs::hard_link(path("usr/bin/su"), path("usr/bin/sudo")).unwrap();
    std::fs::hard_link(path("etc/secret"), path("var/secret2")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("var/fifo"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    std::fs::set_permissions(path("var/fifo"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(root.join(OsStr::from_bytes(b"etc/no utf-8 \xff\xfe \n")), "x").unwrap();
    std::fs::write(path(&format!("etc/{}", "long".repeat(60))), "x").unwrap();
    let deep = format!("var/{}", "folder/".repeat(40));
    std::fs::create_dir_all(path(&deep)).unwrap();
    std::fs::write(path(&format!("{deep}file")), "deep").unwrap();
    symlink("x".repeat(300), path("long link")).unwrap();
    let sparse = std::fs::File::create(path("var/sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 20 << 20).unwrap();
    sparse.write_all_at(b"and near the end", (40 << 20) - 5000).unwrap();
    drop(sparse);
    let hollow = std::fs::File::create(path("var/hollow")).unwrap();
    hollow.set_len(1 << 20).unwrap();
    drop(hollow);
    std::fs::write(path("etc/noted"), "x").unwrap();
    let _ = rustix::fs::setxattr(path("etc/noted"), "user.note", b"\x00=\n", rustix::fs::XattrFlags::empty());
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    std::fs::File::open(path("empty")).unwrap().set_modified(old).unwrap();
    std::fs::File::open(path("usr/bin/su")).unwrap().set_modified(old).unwrap();
}

fn assert_same(wanted: &Path, got: &Path, whole_seconds: bool, what: &str) {
    let (wanted, got) = (look(wanted), look(got));
    assert_eq!(wanted.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{what}");
    for (name, wanted) in &wanted {
        let got = &got[name];
        let name = name.escape_ascii();
        assert_eq!(
            (wanted.mode, wanted.owner, wanted.size, wanted.device),
            (got.mode, got.owner, got.size, got.device),
            "{what}: {name}"
        );
        assert_eq!(
            (&wanted.link, &wanted.same_as, &wanted.xattr),
            (&got.link, &got.same_as, &got.xattr),
            "{what}: {name}"
        );
        assert!(wanted.content == got.content, "{what}: {name}: another content");
        assert_eq!(wanted.mtime.0, got.mtime.0, "{what}: {name}");
        assert!(whole_seconds || wanted.mtime.1 == got.mtime.1, "{what}: {name}: {} {}", wanted.mtime.1, got.mtime.1);
    }
}

#[test]
fn a_folder_comes_out_as_it_went_in() {
    if !is_root() {
        return skip("needs root");
    }
    let place = Place::new();
    let rootfs = place.path("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    everything(&rootfs);
    std::os::unix::net::UnixListener::bind(rootfs.join("tmp/socket")).unwrap();
    let progress = Recorder::default();
    let image = place.store.obtain(rootfs.to_str().unwrap(), &progress).unwrap();
    assert_eq!(image.reference, format!("dir:{}", rootfs.display()));
    let tree = place.store.materialize(&image, "a").unwrap().remove(0);
    assert_eq!(place.store.resolve(rootfs.to_str().unwrap()).unwrap().as_ref(), Some(&image));
    std::fs::remove_file(rootfs.join("tmp/socket")).unwrap();
    // The socket's going changed the folder's time.
    let time = tree.join("tmp").metadata().unwrap().modified().unwrap();
    std::fs::File::open(rootfs.join("tmp")).unwrap().set_modified(time).unwrap();
    assert_same(&rootfs, &tree, false, "folder");
    let sparse = tree.join("var/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "holes were filled: {} blocks", sparse.blocks());
    assert!(image.size < 1 << 20, "{}", image.size);
    // The same folder is the same image, in any store; a changed one is another.
    let other = Place::new();
    assert_eq!(other.store.obtain(rootfs.to_str().unwrap(), &progress).unwrap().digest, image.digest);
    std::fs::write(rootfs.join("etc/new"), "x").unwrap();
    assert_eq!(place.store.resolve(rootfs.to_str().unwrap()).unwrap(), None);
    place.assert_clean();
}

#[test]
fn gnu_tars_archives_in_each_format_and_compression() {
    if !is_root() || Command::new("tar").arg("--version").output().is_ok_and(|o| !o.stdout.starts_with(b"tar (GNU")) {
        return skip("needs root and GNU tar");
    }
    let place = Place::new();
    let rootfs = place.path("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    everything(&rootfs);
    let variants: [(&str, &[&str]); 8] = [
        ("gnu", &["--format=gnu"]),
        ("old gnu sparse", &["--format=gnu", "--sparse"]),
        ("pax", &["--format=pax", "--xattrs"]),
        ("pax sparse 1.0", &["--format=pax", "--xattrs", "--sparse", "--sparse-version=1.0"]),
        ("pax sparse 0.1", &["--format=pax", "--xattrs", "--sparse", "--sparse-version=0.1"]),
        ("pax sparse 0.0", &["--format=pax", "--xattrs", "--sparse", "--sparse-version=0.0"]),
        ("gzip", &["--format=pax", "--xattrs", "--sparse", "--gzip"]),
        ("xz", &["--format=pax", "--xattrs", "--sparse", "--xz"]),
    ];
    for (what, options) in variants {
        let archive = place.path("x.tar");
        let output = Command::new("tar")
            .args(["-C", rootfs.to_str().unwrap(), "--numeric-owner"])
            .args(options)
            .args(["-cf", archive.to_str().unwrap(), "."])
            .output()
            .unwrap();
        if !output.status.success() {
            skip(&format!("{what}: {}", String::from_utf8_lossy(&output.stderr)));
            continue;
        }
        let (_, tree) = place.unpack_reference(archive.to_str().unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
        if what.contains("gnu") {
            // These formats have no attributes.
            let _ =
                rustix::fs::setxattr(tree.join("etc/noted"), "user.note", b"\x00=\n", rustix::fs::XattrFlags::empty());
        }
        assert_same(&rootfs, &tree, what.contains("gnu"), what);
        std::fs::remove_dir_all(tree).unwrap();
    }
}

#[test]
fn what_we_pack_gnu_tar_unpacks() {
    if !is_root() || !Path::new("/usr/bin/zstd").exists() {
        return skip("needs root, GNU tar and zstd");
    }
    let place = Place::new();
    let (rootfs, out) = (place.path("rootfs"), place.path("out"));
    std::fs::create_dir(&rootfs).unwrap();
    std::fs::create_dir(&out).unwrap();
    everything(&rootfs);
    place.store.obtain(rootfs.to_str().unwrap(), &ilot_image::Silent).unwrap();
    let blobs = place.store.root().join("blobs/sha256");
    let layer = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|e| e.unwrap().path())
        .max_by_key(|p| p.metadata().unwrap().len())
        .unwrap();
    let output = Command::new("tar")
        .args(["-C", out.to_str().unwrap(), "--zstd", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(layer)
        .output()
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_same(&rootfs, &out, false, "GNU tar");
}

#[test]
fn compressions_that_are_not_known_say_so() {
    let place = Place::new();
    for (name, bytes, reason) in [
        ("x.tar", &b"BZh91AY&SY"[..], "bzip2"),
        ("x.tar.gz", b"hsqs\0\0\0\0", "squashfs"),
        ("y.tar", b"not an archive", "neither a tar archive"),
        ("z.tar", b"", "empty"),
    ] {
        let error = place.unpack(name, bytes).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    place.assert_clean();
}

#[test]
fn compressed_archives_that_are_damaged_are_refused() {
    let place = Place::new();
    let plain = Tar::new().file("f", &"content ".repeat(50_000)).end();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(plain.as_slice(), 3).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let xz = xz.finish().unwrap();
    for (name, bytes) in [("gz", gz), ("zst", zst), ("xz", xz)] {
        let error = place.unpack(name, &bytes[..bytes.len() - 20]).unwrap_err();
        assert!(error.to_string().contains("archive"), "{name}: {error}");
        let mut broken = bytes.clone();
        let middle = broken.len() / 2;
        broken[middle] ^= 0x55;
        if is_root() && name != "zst" {
            assert!(place.unpack(name, &broken).is_err(), "{name}: damage in the middle passed");
        }
    }
    place.assert_clean();
}

#[test]
fn a_mount_below_a_folder_is_left_out_and_said() {
    if !is_root() || Path::new("/proc").metadata().unwrap().dev() == Path::new("/").metadata().unwrap().dev() {
        return skip("needs root and a mounted /proc");
    }
    let place = Place::new();
    let rootfs = place.path("rootfs");
    std::fs::create_dir_all(rootfs.join("proc")).unwrap();
    std::fs::write(rootfs.join("file"), "x").unwrap();
    let progress = Recorder::default();
    let (name, store) = (rootfs.to_str().unwrap().to_owned(), place.store.clone());
    let image = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: only this thread's view of the mounts changes, and it ends with this closure. The packing
                // thread is started by this one and shares the view.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.ok()?;
                let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).ok()?;
                let flags = rustix::mount::MountFlags::empty();
                rustix::mount::mount("none", rootfs.join("proc"), "tmpfs", flags, None).ok()?;
                std::fs::write(rootfs.join("proc/planted"), "x").ok()?;
                Some(store.obtain(&name, &progress).unwrap())
            })
            .join()
            .unwrap()
    });
    let Some(image) = image else { return skip("no private mount here") };
    let tree = place.store.materialize(&image, "a").unwrap().remove(0);
    assert!(tree.join("proc").is_dir() && !tree.join("proc/planted").exists() && tree.join("file").exists());
    assert!(progress.notes().contains("1 mounts below it were left out"), "{}", progress.notes());
}
