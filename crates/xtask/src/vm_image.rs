//! The virtual machine that tests boot where the host's kernel lacks something: Debian 12 with its own kernel, made once by
//! mmdebstrap and kept under `target/vm`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::checked;
use crate::build::target_dir;

/// The release in the machine, whatever the host's is: tests must not depend on it.
const SUITE: &str = "bookworm";

/// What the machine has beside the essential packages: systemd with a bus and user managers, tools of the tests, and the
/// runtimes that results can be compared with.
const PACKAGES: &str = "systemd-sysv,dbus,dbus-user-session,libpam-systemd,busybox-static,iproute2,uidmap,procps,kmod,crun,runc,criu,iptables";

/// Runs after the installation, `$1` is the tree: the kernel without what its package installs for booting from a disk
/// of its own, and an ordinary user with subordinate ids.
const HOOK: &str = r#"set -e
chroot "$1" sh -ec '
  cd /var/tmp
  kernel=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n "s/^ *Depends: //p" | head -n 1)
  apt-get download --quiet "$kernel"
  mkdir k && dpkg-deb -x ./linux-image-*.deb k
  mv k/boot/vmlinuz-* /boot/vmlinuz
  mv k/lib/modules /usr/lib/modules
  rm -rf k ./linux-image-*.deb
  depmod "$(ls /usr/lib/modules)"
  useradd --create-home --uid 1000 ann
  grep -q ann: /etc/subuid || echo ann:100000:65536 | tee /etc/subuid >/etc/subgid
  ln -s ../ilot-tests.service /etc/systemd/system/multi-user.target.wants/ilot-tests.service
  echo uninitialized >/etc/machine-id
  systemctl --quiet mask getty.target systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer
'
"#;

/// The service that runs the tests where systemd is process 1.
const SERVICE: &str = "[Unit]
Description=Tests
ConditionPathExists=/ilot/tests.sh
After=dbus.service systemd-logind.service
Wants=dbus.service systemd-logind.service

[Service]
Type=oneshot
ExecStart=/ilot/tests.sh systemd
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
TasksMax=infinity
";

/// Modules by which the root file system is reached, for the initramfs.
const MODULES: [&str; 6] =
    ["virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk"];

/// Programs of the host, and their packages on Debian.
const PROGRAMS: [(&str, &str); 4] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("tar", "tar")];

/// Files to boot.
pub struct Image {
    /// Linux.
    pub kernel: PathBuf,
    /// Its first root, with [`MODULES`].
    pub initramfs: PathBuf,
    /// An ext4 file system; never written to.
    pub disk: PathBuf,
}

/// The image, made if it is not there or made by another recipe.
pub fn image() -> Result<Image, String> {
    missing()?;
    let dir = target_dir().join("vm");
    let fail = |e: std::io::Error| format!("cannot write in {}: {e}", dir.display());
    fs::create_dir_all(&dir).map_err(fail)?;
    let image = Image { kernel: dir.join("vmlinuz"), initramfs: dir.join("initramfs"), disk: dir.join("root.ext4") };
    let recipe = format!("{SUITE}\n{PACKAGES}\n{HOOK}\n{SERVICE}\n{}", include_str!("../guest/initramfs.sh"));
    let stamp = dir.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) {
        return Ok(image);
    }
    let _ = fs::remove_file(&stamp);
    println!("making the machine's root file system (once; about a minute)");
    let tree = dir.join("tree");
    let made = make(&image, &tree);
    made.and(remove(&tree))?;
    fs::write(&stamp, recipe).map_err(fail)?;
    Ok(image)
}

/// What this host lacks for it, all at once.
fn missing() -> Result<(), String> {
    let mut text = String::new();
    if std::env::consts::ARCH != "x86_64" {
        text.push_str("\n  a processor of the kind x86_64 (the programs run in the machine too)");
    }
    if !is_root() && !is_program("sudo") {
        text.push_str("\n  root, or sudo: the machine's files belong to root");
    }
    for (program, package) in PROGRAMS {
        if !is_program(program) {
            let _ = write!(text, "\n  the program {program}: apt-get install --no-install-recommends {package}");
        }
    }
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        text.push_str("\n  Debian's keys: apt-get install debian-archive-keyring");
    }
    if text.is_empty() { Ok(()) } else { Err(format!("a virtual machine cannot be made; missing here:{text}")) }
}

/// Whether a program can be run by its name. Those for root are not on everybody's `PATH`.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|dir| dir.join(name).is_file())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// A command that owns what it makes as root does.
fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn remove(tree: &Path) -> Result<(), String> {
    checked(as_root("rm").args(["-rf", "--one-file-system"]).arg(tree)).map(drop)
}

fn make(image: &Image, tree: &Path) -> Result<(), String> {
    remove(tree)?;
    let dir = tree.parent().unwrap_or(Path::new("/"));
    let hook = dir.join("hook.sh");
    fs::write(&hook, format!("#!/bin/sh\n{HOOK}"))
        .and_then(|()| fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)))
        .map_err(|e| format!("cannot write {}: {e}", hook.display()))?;
    checked(
        as_root("mmdebstrap")
            .args(["--variant=minbase", "--skip=cleanup/apt,cleanup/reproducible"])
            .arg(format!("--include={PACKAGES}"))
            .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
            .arg(format!("--customize-hook={}", hook.display()))
            .arg("--customize-hook=rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/*")
            .arg(SUITE)
            .arg(tree)
            .arg(mirror()),
    )?;
    let service = dir.join("ilot-tests.service");
    fs::write(&service, SERVICE).map_err(|e| format!("cannot write {}: {e}", service.display()))?;
    checked(as_root("cp").arg(&service).arg(tree.join("etc/systemd/system")))?;
    fs::copy(tree.join("boot/vmlinuz"), &image.kernel).map_err(|e| format!("cannot take the kernel: {e}"))?;
    fs::write(&image.initramfs, initramfs(tree)?)
        .map_err(|e| format!("cannot write {}: {e}", image.initramfs.display()))?;
    let _ = fs::remove_file(&image.disk);
    checked(
        as_root("mke2fs")
            .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"])
            .arg(tree)
            .arg(&image.disk)
            .arg("2G"),
    )?;
    checked(as_root("chmod").arg("0644").arg(&image.disk)).map(drop)
}

/// Where packages come from: `$ILOT_MIRROR_DEBIAN`, what the host itself uses for Debian, or Debian's own server.
fn mirror() -> String {
    let given = std::env::var("ILOT_MIRROR_DEBIAN").ok().filter(|uri| !uri.is_empty());
    given.or_else(host_mirror).unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

fn host_mirror() -> Option<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts).find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let mut lines = text.lines().filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
        lines.find_map(|line| line.split_whitespace().find(|word| is_debian(word)).map(str::to_owned))
    })
}

fn is_debian(uri: &str) -> bool {
    uri.starts_with("http") && !uri.contains('@') && uri.trim_end_matches('/').ends_with("/debian")
}

/// The first root: busybox, the script that is process 1, modules.
fn initramfs(tree: &Path) -> Result<Vec<u8>, String> {
    let read = |path: &Path| fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let mut archive = Cpio::default();
    for dir in ["bin", "modules", "proc", "sys", "dev", "root"] {
        archive.add(dir, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &read(&tree.join("bin/busybox"))?);
    archive.add("init", 0o100_755, include_bytes!("../guest/initramfs.sh"));
    let modules = checked(Command::new("find").arg(tree.join("usr/lib/modules")).args(["-name", "virtio*.ko"]))?;
    for name in MODULES {
        let file = format!("{name}.ko");
        let path = modules
            .lines()
            .find(|path| Path::new(path).file_name().is_some_and(|name| name == file.as_str()))
            .ok_or_else(|| format!("the kernel package has no module {name}"))?;
        archive.add(&format!("modules/{file}"), 0o100_644, &read(Path::new(path))?);
    }
    Ok(archive.finish())
}

/// An archive in the form `newc` (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(0);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(0);
        // inode, mode, user, group, links, time, size, the file's and its node's device numbers, length of name, sum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_as_the_kernel_reads_it() {
        let mut archive = Cpio::default();
        archive.add("init", 0o100_755, b"#!");
        let bytes = archive.finish();
        // Header of 110 bytes, name with its end to 116, two bytes padded to four.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[54..62], b"00000002");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..120], b"init\0\0#!\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn mirrors() {
        assert!(is_debian("http://deb.debian.org/debian/") && is_debian("https://x.example/debian"));
        for other in ["http://deb.debian.org/debian-security", "main", "http://a:b@x.example/debian", "ftp://x/debian"]
        {
            assert!(!is_debian(other), "{other}");
        }
    }
}
