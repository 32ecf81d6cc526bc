//! Archives that mean to exhaust, to be read differently by different programs, or to misuse whiteouts. Whatever they
//! do, a tree of witnesses beside the store stays as it is, to the inode.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Place, Tar, is_root, names, pax_body, skip};
use ilot_image::{Limits, Silent};

/// Everything of a tree that a program could have changed.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let m = path.symlink_metadata().unwrap();
        let mut names = [0u8; 512];
        let attributes = rustix::fs::llistxattr(&path, &mut names).map_or(0, |n| n);
        let content = match m.file_type() {
            t if t.is_file() => format!("{:?}", std::fs::read(&path).unwrap()),
            t if t.is_symlink() => format!("{:?}", std::fs::read_link(&path).unwrap()),
            t if t.is_dir() => {
                left.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                String::new()
            }
            _ => String::new(),
        };
        let look = format!(
            "{} {:o} {}:{} {} {}.{} {}.{} {} {content}",
            m.ino(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.nlink(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
            names[..attributes].escape_ascii(),
        );
        all.insert(path, look);
    }
    all
}

/// A store, and beside it what the archives would like to reach.
struct Host {
    place: Place,
    before: BTreeMap<PathBuf, String>,
}

impl Host {
    fn new() -> Self {
        let place = Place::new();
        let witness = place.path("witness");
        std::fs::create_dir_all(witness.join("etc/cron.d")).unwrap();
        std::fs::write(witness.join("etc/shadow"), "root:*").unwrap();
        std::fs::write(witness.join("su"), "set-id").unwrap();
        std::fs::set_permissions(witness.join("su"), std::fs::Permissions::from_mode(0o4755)).unwrap();
        std::os::unix::fs::symlink("etc", witness.join("link")).unwrap();
        let _ = rustix::fs::setxattr(witness.join("su"), "user.mark", b"1", rustix::fs::XattrFlags::empty());
        let before = snapshot(&witness);
        Self { place, before }
    }

    fn witness(&self) -> String {
        self.place.path("witness").display().to_string()
    }

    /// Imports and unpacks; nothing else has changed then, and nothing of it is in progress.
    fn take(&self, name: &str, archive: &[u8], limits: Limits) -> Result<PathBuf, String> {
        let path = self.place.write("hostile", archive);
        let store = self.place.store.clone().with_limits(limits);
        let result = store
            .obtain(&format!("tar:{}", path.display()), &Silent)
            .and_then(|image| store.materialize(&image, "test"))
            .map(|mut lowers| lowers.remove(0))
            .map_err(|e| e.to_string());
        assert_eq!(snapshot(&self.place.path("witness")), self.before, "{name}");
        assert_eq!(names(self.place.dir.path()), ["hostile", "store", "witness"], "{name}");
        self.place.assert_clean();
        result
    }

    fn refused(&self, name: &str, archive: &[u8], limits: Limits, reason: &str) {
        match self.take(name, archive, limits) {
            Err(error) => assert!(error.contains(reason), "{name}: {error}"),
            Ok(tree) => panic!("{name}: accepted, {:?}", names(&tree)),
        }
    }

    fn taken(&self, name: &str, archive: &[u8]) -> PathBuf {
        self.take(name, archive, Limits::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

fn host() -> Option<Host> {
    if is_root() {
        return Some(Host::new());
    }
    skip("unpacking keeps owners, which needs root");
    None
}

/// Limits as small as these archives.
fn small() -> Limits {
    let mut limits = Limits::default();
    (limits.bytes, limits.entries, limits.names) = (1 << 20, 2000, 1 << 20);
    limits
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// How bytes are compressed.
type Compress = fn(&[u8]) -> Vec<u8>;

const KINDS: [(&str, Compress); 3] = [("gzip", gzip), ("zstd", zstd), ("xz", xz)];

#[test]
fn bombs_end_at_the_limit_and_write_nothing() {
    let Some(host) = host() else { return };
    let zeros = vec![0u8; 16 << 20];
    let in_a_file = Tar::new().raw(b"f", b'0', b"", &zeros, |_| {}).end();
    let behind_the_end = [Tar::new().file("f", "x").end(), zeros].concat();
    for (kind, compress) in KINDS {
        for (what, plain) in [("in a file", &in_a_file), ("behind the end", &behind_the_end)] {
            let bomb = compress(plain);
            assert!(bomb.len() < 200_000, "{kind}: no bomb: {}", bomb.len());
            host.refused(&format!("{kind} {what}"), &bomb, small(), "larger than the limit once decompressed");
        }
        assert!(host.take(kind, &compress(&in_a_file), Limits::default()).is_ok(), "{kind}: 16 MiB are no bomb");
    }
    // A bomb within a bomb stays packed.
    let tree = host.taken("gzip in gzip", &gzip(&Tar::new().raw(b"g", b'0', b"", &gzip(&in_a_file), |_| {}).end()));
    assert!(tree.join("g").metadata().unwrap().len() < 200_000);
    // A window that no decoder should give.
    let mut frame = zstd::Encoder::new(Vec::new(), 1).unwrap();
    frame.window_log(30).unwrap();
    frame.include_contentsize(false).unwrap();
    frame.write_all(&in_a_file).unwrap();
    host.refused("zstd of a GiB window", &frame.finish().unwrap(), Limits::default(), "requires too much memory");
}

#[test]
fn compressed_streams_that_are_odd_are_read_as_by_their_own_programs() {
    let Some(host) = host() else { return };
    let plain = Tar::new().file("f", &"content ".repeat(1000)).end();
    let (first, second) = plain.split_at(3000);
    for (kind, compress) in KINDS {
        let whole = compress(&plain);
        let tree = host.taken(kind, &[compress(first), compress(second)].concat());
        assert_eq!(tree.join("f").metadata().unwrap().len(), 8000, "{kind}: several members");
        for cut in [1, 8, whole.len() / 2, whole.len() - 12] {
            let name = format!("{kind} cut by {cut}");
            assert!(host.take(&name, &whole[..whole.len() - cut], Limits::default()).is_err(), "{name}");
        }
        let garbage = [whole.as_slice(), b"trailing garbage"].concat();
        assert!(host.take(kind, &garbage, Limits::default()).is_err(), "{kind}: garbage behind it passed");
        let mut damaged = whole.clone();
        let end = damaged.len() - 6;
        damaged[end] ^= 1;
        if kind != "zstd" {
            assert!(host.take(kind, &damaged, Limits::default()).is_err(), "{kind}: a wrong checksum passed");
        }
    }
    // A frame that zstd's programs skip (RFC 8878, 3.1.2), as zstd:chunked has it at its end.
    let skipped =
        [b"\x50\x2a\x4d\x18\x04\0\0\0skip".as_slice(), &zstd(&plain), b"\x5f\x2a\x4d\x18\x01\0\0\0x"].concat();
    host.taken("skippable frames", &skipped);
    host.taken("garbage behind the archive's own end", &[plain.clone(), b"garbage".repeat(500)].concat());
}

#[test]
fn entries_and_names_are_bounded() {
    let Some(host) = host() else { return };
    let entries = |count: u32| (0..count).fold(Tar::new(), |t, i| t.folder(&format!("d{i}"))).end();
    host.refused("3000 entries", &gzip(&entries(3000)), wide(small()), "more than 2000 entries");
    host.taken("2000 entries", &gzip(&entries(1999)));
    let globals = (0..3000u32).fold(Tar::new(), |t, _| t.raw(b"g", b'g', b"", b"", |_| {})).file("f", "x").end();
    host.refused("global headers without end", &globals, wide(small()), "more than 2000 entries");
    let records: Vec<(String, Vec<u8>)> = (0..300).map(|i| (format!("comment{i}"), b"x".to_vec())).collect();
    let records: Vec<(&str, &[u8])> = records.iter().map(|(k, v)| (k.as_str(), v.as_slice())).collect();
    let many = Tar::new().raw(b"g", b'g', b"", &pax_body(&records), |_| {}).file("f", "x").end();
    host.refused("300 global records", &many, small(), "more than 256 records");
    let value = vec![b'x'; 700 << 10];
    let long = Tar::new()
        .raw(b"g", b'g', b"", &pax_body(&[("a", &value)]), |_| {})
        .raw(b"g", b'g', b"", &pax_body(&[("b", &value)]), |_| {})
        .file("f", "x")
        .end();
    host.refused("global headers of much text", &long, Limits::default(), "global extended headers of more than");
    // What is remembered of an archive is bounded, whatever its names.
    let deep = "d/".repeat(1500);
    let folders = (0..600u32).fold(Tar::new(), |t, i| t.pax(&[("path", format!("{deep}{i}/").as_bytes())]).folder("x"));
    let mut limits = wide(small());
    limits.bytes = 1 << 30;
    host.refused("long names of folders", &gzip(&folders.end()), limits, "names of more than");
    let programs = (0..600u32)
        .fold(Tar::new(), |t, i| t.pax(&[("path", format!("bin/{}{i}", "x".repeat(3000)).as_bytes())]).file("x", ""));
    host.refused("long names of programs", &gzip(&programs.end()), limits, "names of more than");
}

/// Room for the names' own bytes: the other limits are what is tried.
fn wide(mut limits: Limits) -> Limits {
    limits.bytes = 64 << 20;
    limits
}

#[test]
fn a_tree_deeper_than_any_path_comes_and_goes() {
    let Some(host) = host() else { return };
    // Each link leads to the end of the last thousand folders.
    let thousand = "d/".repeat(1000);
    let mut tar = Tar::new();
    for i in 0..4 {
        tar = tar.pax(&[("path", format!("{}{thousand}", if i == 0 { "" } else { "l/" }).as_bytes())]).folder("x");
        let target = vec!["d"; 1000 * (i + 1)].join("/");
        if target.len() < 4096 {
            tar = tar.pax(&[("path", b"l"), ("linkpath", target.as_bytes())]).symlink("x", "y");
        }
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let few = rustix::process::Rlimit { current: Some(256), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let replaced = tar.clone().file("d", "now a file").end();
    let tree = host.taken("a deep tree, then a file in its place", &replaced);
    assert_eq!(std::fs::read_to_string(tree.join("d")).unwrap(), "now a file");
    host.taken("a deep tree", &tar.end());
    let none = std::collections::BTreeSet::new();
    for image in host.place.store.list().unwrap() {
        host.place.store.remove(&image.reference, &none).unwrap();
    }
    host.place.store.gc(&none).unwrap();
    let level = host.place.store.root().join("layers/test");
    assert_eq!(names(&level), Vec::<String>::new(), "the collection left a deep tree");
    host.place.assert_clean();
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    matches!(rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let Some(host) = host() else { return };
    let tree =
        host.taken("a whiteout behind what the layer brings", &Tar::new().file("a", "x").file(".wh.a", "").end());
    assert_eq!(std::fs::read_to_string(tree.join("a")).unwrap(), "x");
    let tree = host.taken("and before it", &Tar::new().file(".wh.a", "").file("a", "x").end());
    assert_eq!(std::fs::read_to_string(tree.join("a")).unwrap(), "x");
    for (what, archive) in [
        ("behind a folder", Tar::new().folder("d").file("d/new", "x").file(".wh.d", "")),
        ("before a folder", Tar::new().file(".wh.d", "").folder("d").file("d/new", "x")),
        ("before a folder without an entry", Tar::new().file(".wh.d", "").file("d/new", "x")),
        ("the kernel's form, before a folder", Tar::new().device("d", b'3', 0, 0).folder("d").file("d/new", "x")),
        ("the kernel's form, behind a folder", Tar::new().folder("d").file("d/new", "x").device("d", b'3', 0, 0)),
    ] {
        let tree = host.taken(what, &archive.end());
        assert!(is_opaque(&tree.join("d")), "{what}: shows what is below");
        assert_eq!(names(&tree.join("d")), ["new"], "{what}");
    }
    let tree = host.taken("an opaque root", &Tar::new().file(".wh..wh..opq", "").file("a", "x").end());
    assert!(is_opaque(&tree));
    let tree =
        host.taken("an opaque mark behind its content", &Tar::new().file("d/a", "x").file("d/.wh..wh..opq", "").end());
    assert!(is_opaque(&tree.join("d")) && tree.join("d/a").exists());
    let tree = host.taken("a whiteout that is a folder", &Tar::new().folder(".wh.a").folder("b/.wh..wh..opq").end());
    assert!(is_whiteout(&tree.join("a")) && is_opaque(&tree.join("b")));
    let tree = host.taken("a whiteout that is a link out", &Tar::new().symlink(".wh.a", &host.witness()).end());
    assert!(is_whiteout(&tree.join("a")));
    let tree = host.taken("a whiteout of what is below a link out", &{
        let target = host.witness();
        Tar::new().folder(target.trim_start_matches('/')).symlink("l", &target).file("l/.wh.su", "").end()
    });
    assert!(is_whiteout(&tree.join(host.witness().trim_start_matches('/')).join("su")));
    host.refused(
        "below a whiteout that is not a folder",
        &Tar::new().file("a", "x").file("a/.wh.b", "").end(),
        Limits::default(),
        "no folder",
    );
    let tree =
        host.taken("aufs' own", &Tar::new().file(".wh..wh.plnk", "").file(".wh..wh.aufs", "").file("f", "").end());
    assert_eq!(names(&tree), ["f"]);
    for name in [".wh...", ".wh..", ".wh."] {
        host.refused(name, &Tar::new().file(name, "").end(), Limits::default(), "a whiteout of no name");
    }
}

#[test]
fn attributes_that_are_orders_never_pass() {
    let Some(host) = host() else { return };
    let orders = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.whiteout",
        "trusted.overlay.origin",
        "trusted.overlay.verity",
        "trusted.overlay.overlay.opaque",
        "trusted.anything",
        "user.overlay.opaque",
        "user.overlay.redirect",
        "user.overlay.metacopy",
        "user.overlay.whiteout",
        "user.overlay.overlay.opaque",
        "security.selinux",
        "security.ima",
        "security.evm",
        "security.SMACK64",
        "system.nfs4_acl",
    ];
    let capability: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let keys: Vec<String> = orders.iter().map(|o| format!("SCHILY.xattr.{o}")).collect();
    let mut records: Vec<(&str, &[u8])> = keys.iter().map(|k| (k.as_str(), b"y".as_slice())).collect();
    records.push(("SCHILY.xattr.security.capability", capability));
    let archive = Tar::new()
        .raw(b"g", b'g', b"", &pax_body(&records[..5]), |_| {})
        .pax(&records)
        .folder("./")
        .pax(&records)
        .folder("d")
        .pax(&records)
        .file("f", "")
        .symlink("l", "f")
        .end();
    let tree = host.taken("orders", &archive);
    for path in [tree.clone(), tree.join("d"), tree.join("f"), tree.join("l")] {
        let mut names = [0u8; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let there: Vec<&[u8]> = names[..length].split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
        for order in orders {
            assert!(!there.contains(&order.as_bytes()), "{}: {order}", path.display());
        }
    }
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(tree.join("f"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..length], capability, "a file's capability is kept");
    let big = vec![b'x'; 60_000];
    let many: Vec<String> = (0..10).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|k| (k.as_str(), big.as_slice())).collect();
    // Where the file system has no room for them it is the archive's fault, not the disk's.
    if let Err(error) = host.take("large attributes", &Tar::new().pax(&many).file("f", "").end(), Limits::default()) {
        assert!(error.contains("more than the store's file system keeps"), "{error}");
    }
}

#[test]
fn what_programs_read_differently_is_read_as_by_gnu_tar() {
    let Some(host) = host() else { return };
    if !Path::new("/usr/bin/tar").exists() {
        return skip("needs GNU tar");
    }
    let hidden = Tar::new().file("hidden", "").0;
    let claims = |kind: u8| {
        Tar(Tar::new().file("x", "").raw(b"e", kind, b"x", b"", |h| h[124..136].copy_from_slice(b"00000001000\0")).0)
    };
    let with_pax = |kind: u8| Tar::new().file("x", "").pax(&[("size", b"512")]).raw(b"e", kind, b"x", b"", |_| {});
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for kind in *b"0123456" {
        for (what, tar) in [("ustar", claims(kind)), ("PAX", with_pax(kind))] {
            let name = format!("{what} says that kind {} has data", char::from(kind));
            cases.push((name, Tar([tar.0, hidden.clone()].concat()).file("last", "").end()));
        }
    }
    let sized = |size: &'static [u8; 12]| move |h: &mut [u8; 512]| h[124..136].copy_from_slice(size);
    for (name, tar) in [
        ("a file with a slash has no data", Tar::new().raw(b"e/", b'0', b"", &hidden, |_| {}).file("last", "")),
        (
            "PAX says less than ustar",
            Tar::new().pax(&[("size", b"0")]).raw(b"f", b'0', b"", &hidden, |_| {}).file("last", ""),
        ),
        (
            "PAX says more than ustar",
            Tar::new().pax(&[("size", b"1024")]).raw(b"f", b'0', b"", b"", sized(b"00000000000\0")).file("hidden", "x"),
        ),
        ("the last of two PAX sizes", {
            Tar::new().pax(&[("size", b"0"), ("size", b"512")]).raw(b"f", b'0', b"", &hidden, sized(b"00000000000\0"))
        }),
        ("two PAX headers", Tar::new().pax(&[("path", b"first")]).pax(&[("path", b"second")]).file("f", "x")),
        ("a PAX path over a long name", Tar::new().long(b'L', b"long").pax(&[("path", b"pax")]).file("f", "x")),
        ("a long name behind a PAX path", Tar::new().pax(&[("path", b"pax")]).long(b'L', b"long").file("f", "x")),
        ("an own path over a global one", {
            Tar::new().raw(b"g", b'g', b"", &pax_body(&[("mtime", b"1")]), |_| {}).pax(&[("path", b"p")]).file("f", "x")
        }),
        ("a size in base 256", {
            Tar::new().raw(b"f", b'0', b"", &hidden, sized(b"\x80\0\0\0\0\0\0\0\0\0\x02\0")).file("last", "")
        }),
        ("a size with blanks", Tar::new().raw(b"f", b'0', b"", &hidden, sized(b"       1000 ")).file("last", "")),
        ("a lone block of zeroes", Tar([Tar::new().file("a", "").0, vec![0; 512]].concat()).file("b", "")),
        ("a folder of data", Tar::new().raw(b"d/", b'5', b"", &hidden, |_| {}).file("last", "")),
        ("names that are no UTF-8", {
            Tar::new().raw(b"\xff\xfe", b'0', b"", b"", |_| {}).pax(&[("path", b"p\xc0\xaf")]).file("f", "x")
        }),
        ("names with newlines", Tar::new().file("a\nb", "").file(" ", "").file("\\n", "").file("-rf", "")),
    ] {
        cases.push((name.to_owned(), tar.end()));
    }
    for (name, archive) in cases {
        let out = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar")
            .args(["-C", out.path().to_str().unwrap(), "-xpf", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _ = tar.stdin.take().unwrap().write_all(&archive);
        let status = tar.wait().unwrap();
        match host.take(&name, &archive, Limits::default()) {
            Ok(tree) => assert_eq!(list(&tree), list(out.path()), "{name}"),
            // What GNU tar complains about may be refused whole.
            Err(error) => assert!(!status.success(), "{name}: {error}, and GNU tar takes it"),
        }
    }
}

/// Names, sizes and kinds of what is in a folder. Devices stay out: they are left out of trees.
fn list(root: &Path) -> Vec<(Vec<u8>, u64, char)> {
    let mut all: Vec<_> = std::fs::read_dir(root)
        .unwrap()
        .map(Result::unwrap)
        .filter_map(|entry| {
            let meta = entry.metadata().unwrap();
            let kind = match meta.file_type() {
                t if t.is_file() => 'f',
                t if t.is_dir() => 'd',
                t if t.is_symlink() => 'l',
                t if t.is_fifo() => 'p',
                _ => return None,
            };
            Some((entry.file_name().as_bytes().to_vec(), if kind == 'f' { meta.len() } else { 0 }, kind))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn times_and_numbers_at_their_ends_do_no_harm() {
    let Some(host) = host() else { return };
    for time in ["9223372036854775807", "-9223372036854775808", "nan", "1e99", "-0.5", "99999999999999999999", ""] {
        let archive =
            Tar::new().pax(&[("mtime", time.as_bytes())]).file("f", "x").pax(&[("mtime", time.as_bytes())]).folder("d");
        let tree = host.taken(time, &archive.end());
        assert_eq!(names(&tree), ["d", "f"], "{time}");
    }
    let tree = host.taken("mode bits beyond the mode", &Tar::new().mode("f", b'0', 0o0177_7777, 0, 0, "x").end());
    assert!(tree.join("f").metadata().unwrap().is_file());
    for image in host.place.store.list().unwrap() {
        assert_eq!(host.place.store.verify(&image, &Silent).unwrap().len(), 0);
    }
}
