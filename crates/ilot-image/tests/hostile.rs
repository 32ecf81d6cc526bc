//! Archives that mean harm: each is refused, or lands inside its own tree; nothing outside is ever touched.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

mod common;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use common::{Place, Tar, is_root, names, pax_body, skip};

enum Outcome {
    /// The reason contains this.
    Refused(&'static str),
    /// The tree looks like this.
    Harmless(fn(&Path)),
}
use Outcome::{Harmless, Refused};

struct Case {
    name: &'static str,
    archive: Vec<u8>,
    outcome: Outcome,
}

/// A folder beside the store that the archives aim at; its real path goes into them.
const AIM: &str = "outside";

fn read(tree: &Path, path: &str) -> String {
    std::fs::read_to_string(tree.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn case(name: &'static str, archive: Tar, outcome: Outcome) -> Case {
    Case { name, archive: archive.end(), outcome }
}

fn ways_out(outside: &str) -> Vec<Case> {
    let up = "../".repeat(20) + outside.trim_start_matches('/');
    let leaf = format!("{outside}/planted");
    let inside = outside.trim_start_matches('/').to_owned();
    // Absolute names mean the tree's own root, wherever they come from.
    let landed: fn(&Path) = |tree| assert!(find(tree, "planted"), "lost");
    vec![
        case("a name with ..", Tar::new().file(&format!("{up}/planted"), "x"), Refused("`..` in a path")),
        case("a name with .. in its middle", Tar::new().folder("a").file("a/../../planted", "x"), Refused("`..`")),
        case("a folder named ..", Tar::new().folder(".."), Refused("`..`")),
        case("an absolute name", Tar::new().file(&leaf, "x"), Harmless(landed)),
        case("an absolute name with many slashes", Tar::new().file(&format!("///{leaf}"), "x"), Harmless(landed)),
        case(
            "a long name with ..",
            Tar::new().long(b'L', format!("{up}/planted").as_bytes()).file("a", "x"),
            Refused("`..`"),
        ),
        case(
            "a PAX path with ..",
            Tar::new().pax(&[("path", format!("{up}/planted").as_bytes())]).file("a", "x"),
            Refused("`..`"),
        ),
        case(
            "a file through an absolute link",
            Tar::new().folder(&inside).symlink("l", outside).file("l/planted", "x"),
            Harmless(landed),
        ),
        case(
            "a file through a link to nowhere inside",
            Tar::new().symlink("l", outside).file("l/planted", "x"),
            Refused("nowhere"),
        ),
        case(
            "a file through a relative link up",
            Tar::new().folder(&inside).symlink("l", &up).file("l/planted", "x"),
            Harmless(landed),
        ),
        case(
            "a file through two links",
            Tar::new().folder(&inside).symlink("a", outside).symlink("b", "a").file("b/planted", "x"),
            Harmless(landed),
        ),
        case(
            "a folder through a link",
            Tar::new().folder(&inside).symlink("l", outside).folder("l/planted").file("l/planted/x", "x"),
            Harmless(landed),
        ),
        case(
            "a file in a link's place",
            Tar::new().symlink("x", &format!("{outside}/canary")).file("x", "overwritten"),
            Harmless(|tree| assert_eq!(read(tree, "x"), "overwritten")),
        ),
        case(
            "a folder in a link's place",
            Tar::new().symlink("x", outside).folder("x").file("x/planted", "x"),
            Harmless(|tree| assert!(tree.join("x").symlink_metadata().unwrap().is_dir())),
        ),
        case(
            "a hard link to an absolute name",
            Tar::new().hardlink("h", &format!("{outside}/canary")),
            Refused("did not bring"),
        ),
        case("a hard link with ..", Tar::new().hardlink("h", &format!("{up}/canary")), Refused("`..`")),
        case(
            "a hard link through a link",
            Tar::new().symlink("l", outside).hardlink("h", "l/canary").file("h", "overwritten"),
            Refused("did not bring"),
        ),
        case(
            "a hard link to a link, then written to",
            Tar::new().symlink("l", &format!("{outside}/canary")).hardlink("h", "l").file("h", "overwritten"),
            Harmless(|tree| assert_eq!(read(tree, "h"), "overwritten")),
        ),
        case("a hard link to the root", Tar::new().hardlink("h", "/"), Refused("hard link to the root")),
        case("a hard link to a folder", Tar::new().folder("d").hardlink("h", "d"), Refused("hard link")),
        case("a whiteout of ..", Tar::new().folder("a").file("a/.wh...", ""), Refused("whiteout of no name")),
        case("a whiteout of nothing", Tar::new().file(".wh.", ""), Refused("whiteout of no name")),
        case(
            "an opaque mark through a link",
            Tar::new().folder(&inside).symlink("l", outside).file("l/.wh..wh..opq", ""),
            Harmless(|_| {}),
        ),
    ]
}

fn tricks() -> Vec<Case> {
    let deep = "d/".repeat(1900) + "f";
    let wide = "d/".repeat(2100) + "f";
    vec![
        case("links in a circle", Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"), Refused("circle")),
        case("a link to itself", Tar::new().symlink("a", "a").file("a/x", "x"), Refused("circle")),
        case("a file through a file", Tar::new().file("a", "x").file("a/b", "x"), Refused("no folder")),
        case("the root as a file", Tar::new().file(".", "x"), Refused("not a folder")),
        case("the root as a link", Tar::new().symlink(".", "/etc"), Refused("not a folder")),
        case("a name with a NUL", Tar::new().pax(&[("path", b"a\0b")]).file("a", "x"), Refused("NUL")),
        case(
            "a folder 1900 deep",
            Tar::new().long(b'L', deep.as_bytes()).file("a", "x"),
            Harmless(|tree| assert!(tree.join("d").is_dir())),
        ),
        case(
            "a path longer than any",
            Tar::new().long(b'L', wide.as_bytes()).file("a", "x"),
            Refused("a path of 4201 bytes"),
        ),
        case(
            "a component longer than any",
            Tar::new().long(b'L', "x".repeat(300).as_bytes()).file("a", "x"),
            Refused("name too long"),
        ),
        case(
            "device nodes",
            Tar::new().device("sda", b'4', 8, 0).device("mem", b'3', 1, 1).hardlink("mem2", "mem").file("f", "x"),
            Harmless(|tree| assert_eq!(names(tree), ["f"])),
        ),
        case(
            "a whiteout as overlayfs has it",
            Tar::new().device("gone", b'3', 0, 0),
            Harmless(|tree| {
                let meta = tree.join("gone").symlink_metadata().unwrap();
                assert!(meta.file_type().is_char_device() && meta.rdev() == 0);
            }),
        ),
        case(
            "the same file twice",
            Tar::new().file("f", "first").file("f", "second"),
            Harmless(|tree| assert_eq!(read(tree, "f"), "second")),
        ),
        case(
            "a full folder, then a file of its name",
            Tar::new().folder("d").file("d/a", "x").file("d", "file"),
            Harmless(|tree| assert_eq!(read(tree, "d"), "file")),
        ),
        case(
            "a folder twice keeps what is in it",
            Tar::new().folder("d").file("d/a", "x").folder("d"),
            Harmless(|tree| assert_eq!(names(&tree.join("d")), ["a"])),
        ),
        case(
            "a hard link to its own name",
            Tar::new().file("f", "x").hardlink("f", "./f"),
            Harmless(|tree| assert_eq!(read(tree, "f"), "x")),
        ),
        case(
            "a hard link to its own file by another way",
            Tar::new().folder("d").file("d/f", "x").symlink("e", "d").hardlink("e/f", "d/f"),
            Harmless(|tree| {
                assert_eq!(read(tree, "d/f"), "x");
                assert_eq!(names(&tree.join("d")), ["f"]);
            }),
        ),
        case(
            "a hard link over a file",
            Tar::new().file("a", "a").file("b", "b").hardlink("b", "a"),
            Harmless(|tree| {
                assert_eq!(read(tree, "b"), "a");
                assert_eq!(names(tree), ["a", "b"]);
            }),
        ),
        case(
            "a hard link over a full folder",
            Tar::new().file("a", "a").folder("b").file("b/x", "x").hardlink("b", "a"),
            Harmless(|tree| assert_eq!(read(tree, "b"), "a")),
        ),
        case("a hard link to what comes later", Tar::new().hardlink("a", "b").file("b", "x"), Refused("did not bring")),
        case(
            "overlayfs' orders in attributes",
            Tar::new()
                .pax(&[
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
                    ("SCHILY.xattr.security.selinux", b"system_u:x"),
                    ("SCHILY.xattr.user.fine", b"yes"),
                ])
                .folder("d"),
            Harmless(|tree| {
                let get = |name: &str| {
                    let mut value = [0; 64];
                    rustix::fs::lgetxattr(tree.join("d"), name, &mut value).map(|n| value[..n].to_vec())
                };
                assert!(get("trusted.overlay.redirect").is_err());
                assert!(get("user.overlay.redirect").is_err());
                assert!(get("security.selinux").is_err());
                if let Ok(value) = get("user.fine") {
                    assert_eq!(value, b"yes");
                }
            }),
        ),
        case(
            "owners beyond the range",
            Tar::new().pax(&[("uid", b"100000"), ("gid", b"4294967295")]).file("f", "x"),
            Harmless(|tree| {
                let meta = tree.join("f").metadata().unwrap();
                assert_eq!((meta.uid(), meta.gid()), (65534, 65534));
            }),
        ),
        case(
            "set-id bits stay, in a folder that nobody enters",
            Tar::new().mode("su", b'0', 0o4755, 0, 0, "x"),
            Harmless(|tree| {
                assert_eq!(tree.join("su").metadata().unwrap().mode() & 0o7777, 0o4755);
                let level = tree.parent().unwrap().metadata().unwrap();
                assert_eq!(level.permissions().mode() & 0o777, 0o700);
            }),
        ),
    ]
}

fn lies() -> Vec<Case> {
    let huge = |h: &mut [u8; 512]| h[124..136].copy_from_slice(b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff");
    let eight_gib = |h: &mut [u8; 512]| h[124..136].copy_from_slice(b"77777777777\0");
    let sparse = |records: &[(&str, &[u8])], content: &str| Tar::new().pax(records).file("s", content);
    let one_zero: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")];
    let with = |size: &'static [u8]| {
        [one_zero[0], one_zero[1], ("GNU.sparse.name", b"s".as_slice()), ("GNU.sparse.realsize", size)]
    };
    vec![
        case(
            "a size that is no number",
            Tar::new().raw(b"f", b'0', b"", b"x", |h| h[124..136].copy_from_slice(b"zzzzzzzzzzz\0")),
            Refused("size"),
        ),
        case("a size of 2^70", Tar::new().raw(b"f", b'0', b"", b"x", huge), Refused("")),
        case(
            "a size of 8 GiB, and no data",
            Tar::new().raw(b"f", b'0', b"", b"x", eight_gib),
            Refused("ends in the middle"),
        ),
        case(
            "a PAX size beyond the archive",
            Tar::new().pax(&[("size", b"1000000000000")]).file("f", "x"),
            Refused("ends in the middle"),
        ),
        case("a PAX size that is no number", Tar::new().pax(&[("size", b"-5")]).file("f", "x"), Refused("no number")),
        case(
            "a long name of 8 GiB",
            Tar::new().raw(b"././@LongLink", b'L', b"", b"x", eight_gib),
            Refused("an extended header of"),
        ),
        case(
            "a PAX header of 8 GiB",
            Tar::new().raw(b"PaxHeader", b'x', b"", b"x", eight_gib),
            Refused("an extended header of"),
        ),
        case(
            "a broken PAX record",
            Tar::new().raw(b"PaxHeader", b'x', b"", b"99 a=b\n", |_| {}).file("f", "x"),
            Refused("broken record"),
        ),
        case(
            "extended headers without end",
            (0..100).fold(Tar::new(), |t, _| t.pax(&[("comment", b"x")])).file("f", "x"),
            Refused("more than 64"),
        ),
        case("an unknown kind of entry", Tar::new().raw(b"f", b'Z', b"", b"", |_| {}), Refused("unknown kind")),
        case(
            "a wrong checksum",
            {
                let mut t = Tar::new().file("f", "x").file("g", "x");
                t.0[1024 + 3] ^= 1;
                t
            },
            Refused("checksum"),
        ),
        case("a sparse map beyond its file", sparse(&with(b"100"), "1\n50\n100\n"), Refused("beyond its end")),
        case(
            "a sparse map that overflows",
            sparse(&with(b"100"), "1\n18446744073709551615\n2\n"),
            Refused("beyond its end"),
        ),
        case("a sparse map out of order", sparse(&with(b"100"), "2\n50\n1\n10\n1\n"), Refused("out of order")),
        case("a sparse map of a million pieces", sparse(&with(b"100"), "1000000\n"), Refused("too many pieces")),
        case("a sparse map of letters", sparse(&with(b"100"), "abc\n"), Refused("broken map")),
        case(
            "a sparse map of more than there is",
            sparse(&with(b"100000"), "1\n0\n100000\n"),
            Refused("more than the archive holds"),
        ),
        case("a sparse file of 8 EiB", sparse(&with(b"9223372036854775807"), "0\n"), Refused("larger than a file")),
        case(
            "hard links with data as GNU tar skips none",
            Tar::new()
                .file("a", "x")
                .raw(b"b", b'1', b"a", b"", |h| h[124..136].copy_from_slice(b"00000001000\0"))
                .file("c", "x"),
            Harmless(|tree| assert_eq!(names(tree), ["a", "b", "c"])),
        ),
        case(
            "PAX and ustar disagree on the size",
            Tar(Tar::new()
                .pax(&[("size", b"3")])
                .raw(b"f", b'0', b"", b"abc", |h| h[124..136].copy_from_slice(b"00000000000\0"))
                .0)
            .file("g", "y"),
            Harmless(|tree| {
                assert_eq!(read(tree, "f"), "abc");
                assert_eq!(read(tree, "g"), "y");
            }),
        ),
        Case { name: "nothing", archive: Tar::new().end(), outcome: Refused("no entries") },
        Case {
            name: "cut inside a file",
            archive: Tar::new().file("f", &"x".repeat(5000)).0[..3000].to_vec(),
            outcome: Refused("ends in the middle"),
        },
        Case {
            name: "cut inside a header",
            archive: Tar::new().file("f", "x").file("g", "x").0[..1300].to_vec(),
            outcome: Refused("ends in the middle"),
        },
        Case {
            name: "a PAX path in a global header",
            archive: Tar::new()
                .raw(b"g", b'g', b"", &pax_body(&[("path", b"../../planted")]), |_| {})
                .file("f", "x")
                .end(),
            outcome: Refused("`..`"),
        },
    ]
}

/// Whether a name is somewhere below a folder.
fn find(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name() == name || e.file_type().is_ok_and(|t| t.is_dir()) && find(&e.path(), name))
    })
}

#[test]
fn no_archive_leaves_its_folder() {
    if !is_root() {
        return skip("unpacking keeps owners, which needs root");
    }
    let place = Place::new();
    let outside = place.path(AIM);
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "sings").unwrap();
    let before = outside.metadata().unwrap();
    let mut cases = ways_out(&outside.display().to_string());
    cases.extend(tricks());
    cases.extend(lies());
    assert!(cases.len() >= 60, "{}", cases.len());
    for Case { name, archive, outcome } in cases {
        let result = place.unpack("hostile.tar", &archive);
        match (outcome, result) {
            (Refused(reason), Err(error)) => {
                assert!(error.to_string().to_lowercase().contains(&reason.to_lowercase()), "{name}: {error}");
            }
            (Refused(_), Ok((_, tree))) => panic!("{name}: accepted, {:?}", names(&tree)),
            (Harmless(check), Ok((_, tree))) => check(&tree),
            (Harmless(_), Err(error)) => panic!("{name}: {error}"),
        }
        assert_eq!(names(&outside), ["canary"], "{name}");
        assert_eq!(std::fs::read_to_string(outside.join("canary")).unwrap(), "sings", "{name}");
        let after = outside.metadata().unwrap();
        assert_eq!(
            (after.mode(), after.uid(), after.mtime_nsec()),
            (before.mode(), before.uid(), before.mtime_nsec()),
            "{name}"
        );
        assert_eq!(outside.join("canary").metadata().unwrap().nlink(), 1, "{name}: linked into the tree");
        place.assert_clean();
        assert_eq!(names(place.dir.path()), ["hostile.tar", AIM, "store"], "{name}");
    }
}
