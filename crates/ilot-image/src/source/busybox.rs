//! The image `busybox`: the host's static busybox and the few files that make a system of it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tar::EntryType;

use super::{Found, Order, look};
use crate::archive::writer::{Meta, finish, header, pad};
use crate::blob::{self, Codec, Import};
use crate::error::{Error, Result};

/// Where distributions put it; `busybox.static` is Alpine's.
const PLACES: [&str; 5] =
    ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/bin/busybox-static", "/usr/local/bin/busybox"];
const CURE: &str =
    "`apt install busybox-static`, or the package of your distribution that has it; ILOT_BUSYBOX names another file";

/// Changes when the image's other content does.
const EDITION: &str = "1";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    bin:x:2:2:bin:/bin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";
const SHADOW: &str = "root:*:::::::\ndaemon:*:::::::\nbin:*:::::::\nwww-data:*:::::::\nnobody:*:::::::\n";
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";
const PROFILE: &str =
    "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n";

/// Folders and their modes, parents first.
const FOLDERS: [(&str, u32); 22] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/share", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("var/www", 0o755),
];

pub(super) fn stamp() -> Option<String> {
    let path = find()?;
    Some(format!("{EDITION}-{}", look(&path)?))
}

fn find() -> Option<PathBuf> {
    match std::env::var_os("ILOT_BUSYBOX") {
        Some(path) => Some(PathBuf::from(path)),
        None => PLACES.iter().map(PathBuf::from).find(|p| p.is_file()),
    }
}

pub(super) fn make(order: &Order<'_>) -> Result<Found> {
    order.stage("make from the host's busybox");
    let stamp = stamp();
    let missing =
        |what: String, reason: &str| Error::Host { what, reason: reason.to_owned(), help: Some(CURE.to_owned()) };
    let path = find().ok_or_else(|| missing("busybox".to_owned(), "not installed on this host"))?;
    let binary = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    match is_static(&binary) {
        Some(true) => {}
        Some(false) => {
            return Err(missing(path.display().to_string(), "needs shared libraries, which the image would not have"));
        }
        None => return Err(missing(path.display().to_string(), "no 64-bit ELF program of this host")),
    }
    let applets = applets(&path)?;
    let mut tree = Vec::with_capacity(binary.len() + (512 << 10));
    write(&mut tree, &binary, &applets).map_err(|e| Error::io("pack", &path, e))?;
    let each = |_| order.wanted();
    let import = Import { what: "busybox", aside: order.aside, codec: Codec::Plain, limits: order.limits, each: &each };
    let layer = blob::import(tree.as_slice(), &import)?;
    let mut found = Found::new(layer, path.display().to_string(), "busybox of the host");
    found.config.cmd = vec!["/bin/sh".to_owned()];
    found.stamp = stamp;
    Ok(found)
}

/// Whether an ELF program asks for an interpreter (elf(5), `PT_INTERP`); `None` when it is no program that ilot's own
/// build could execute.
fn is_static(elf: &[u8]) -> Option<bool> {
    let u16_at = |at: usize| elf.get(at..at + 2).and_then(|b| Some(u16::from_le_bytes(b.try_into().ok()?)));
    let u32_at = |at: usize| elf.get(at..at + 4).and_then(|b| Some(u32::from_le_bytes(b.try_into().ok()?)));
    let u64_at = |at: usize| elf.get(at..at + 8).and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    // 64 bits, little-endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (offset, size, count) = (u64_at(32)?, u16_at(54)?, u16_at(56)?);
    for i in 0..usize::from(count) {
        let at = usize::try_from(offset).ok()?.checked_add(i * usize::from(size))?;
        if u32_at(at)? == 3 {
            return Some(false);
        }
    }
    Some(true)
}

/// The links that this busybox wants, as it says itself: `usr/bin/env`.
fn applets(path: &Path) -> Result<Vec<String>> {
    let failed = |reason: String| Error::Host {
        what: format!("{} --list-full", path.display()),
        reason,
        help: Some(CURE.to_owned()),
    };
    let output = Command::new(path)
        .arg("--list-full")
        // Called under another name, a busybox is that applet.
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all: Vec<String> = text
        .lines()
        .map(|l| l.trim_start_matches('/').to_owned())
        .filter(|l| !l.is_empty() && l != "bin/busybox" && crate::archive::components(l.as_bytes()).is_ok())
        .collect();
    all.sort_unstable();
    all.dedup();
    if !output.status.success() || all.is_empty() {
        return Err(failed(format!("{}, no list of applets", output.status)));
    }
    Ok(all)
}

/// The whole archive; nothing in it but the binary differs from host to host.
fn write(out: &mut Vec<u8>, binary: &[u8], applets: &[String]) -> io::Result<()> {
    let mut folders: Vec<(String, u32)> = FOLDERS.map(|(path, mode)| (path.to_owned(), mode)).into();
    for applet in applets {
        let parent = Path::new(applet).parent().map(Path::as_os_str).unwrap_or_default();
        let parent = String::from_utf8_lossy(parent.as_bytes()).into_owned();
        if !parent.is_empty() && !folders.iter().any(|(p, _)| *p == parent) {
            folders.push((parent, 0o755));
        }
    }
    header(out, &Meta::new(b"./", EntryType::Directory, 0o755))?;
    for (path, mode) in &folders {
        header(out, &Meta::new(format!("{path}/").as_bytes(), EntryType::Directory, *mode))?;
    }
    file(out, "bin/busybox", 0o755, binary)?;
    for (path, mode, text) in [
        ("etc/passwd", 0o644, PASSWD),
        ("etc/group", 0o644, GROUP),
        ("etc/shadow", 0o640, SHADOW),
        ("etc/hosts", 0o644, HOSTS),
        ("etc/hostname", 0o644, ""),
        ("etc/resolv.conf", 0o644, ""),
        ("etc/nsswitch.conf", 0o644, NSSWITCH),
        ("etc/profile", 0o644, PROFILE),
        ("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
    ] {
        file(out, path, mode, text.as_bytes())?;
    }
    for applet in applets {
        let name = applet.as_bytes();
        if folders.iter().any(|(path, _)| path == applet) || OsStr::from_bytes(name).is_empty() {
            continue;
        }
        let mut link = Meta::new(name, EntryType::Symlink, 0o777);
        link.link = b"/bin/busybox";
        header(out, &link)?;
    }
    finish(out)
}

fn file(out: &mut impl Write, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut meta = Meta::new(path.as_bytes(), EntryType::Regular, mode);
    meta.size = content.len() as u64;
    header(out, &meta)?;
    out.write_all(content)?;
    pad(out, meta.size)
}
