//! Programs that ilot runs: its own helpers, and those of the distribution.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::child::{complaint, run};
use super::{Findings, Level};

pub(super) fn examine(findings: &mut Findings) {
    helpers(findings);
    busybox(findings);
    optional(
        findings,
        "mmdebstrap",
        "--version",
        "`apt install mmdebstrap`: makes Debian and Ubuntu images where only a package mirror is reachable",
    );
    let qemu = format!("qemu-system-{}", std::env::consts::ARCH);
    let emulator = find_program(&qemu);
    match &emulator {
        Some(path) => findings.ok("qemu", version(path, "--version")),
        None => findings.warn(
            "qemu",
            format!("{qemu} is not installed"),
            "`apt install qemu-system-x86`: runs virtual machines (`type: vm`)",
        ),
    }
    kvm(findings, emulator.as_deref());
    optional(findings, "criu", "--version", "`apt install criu`: checkpoints of running machines");
}

/// A program of the search path, which `/usr/sbin` and `/sbin` belong to here even for ordinary users.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn version(program: &Path, flag: &str) -> String {
    let output = run(Command::new(program).arg(flag), b"", Duration::from_secs(10));
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() { program.display().to_string() } else { line.to_owned() }
}

fn optional(findings: &mut Findings, name: &'static str, flag: &str, cure: &str) {
    match find_program(name) {
        Some(path) => findings.ok(name, version(&path, flag)),
        None => findings.warn(name, "not installed", cure),
    }
}

/// The helpers: in `$ILOT_LIBEXEC`, beside this program, or in `../libexec/ilot`.
fn helpers(findings: &mut Findings) {
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let places: Vec<PathBuf> = match std::env::var_os("ILOT_LIBEXEC") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => beside.iter().flat_map(|dir| [dir.clone(), dir.join("../libexec/ilot")]).collect(),
    };
    for name in ["ilot-keeper", "ilot-names"] {
        match places.iter().map(|dir| dir.join(name)).find(|file| is_executable(file)) {
            Some(file) => findings.ok(name, file.display().to_string()),
            None => findings.missing(
                name,
                "not found",
                "install it beside `ilot` (`cargo xtask install`), or name its directory in ILOT_LIBEXEC",
            ),
        }
    }
}

fn busybox(findings: &mut Findings) {
    const CURE: &str = "`apt install busybox-static`: the `busybox` image is made from it";
    match find_program("busybox") {
        Some(path) if is_static(&path) => findings.ok("busybox", format!("{} (static)", path.display())),
        Some(path) => findings.warn("busybox", format!("{} is not static", path.display()), CURE),
        None => findings.warn("busybox", "not installed", CURE),
    }
}

/// Whether an ELF program names no interpreter (elf(5): a `PT_INTERP` segment).
fn is_static(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| interpreter(&bytes) == Some(false))
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` segment; `None` when it is no such file.
fn interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let offset = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?) as usize;
    let size = u16::from_le_bytes(elf.get(54..56)?.try_into().ok()?) as usize;
    let count = u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?) as usize;
    for index in 0..count {
        let at = offset.checked_add(index.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

/// Whether KVM really works: that the device node exists, and even that it opens, says little under nested
/// virtualisation. QEMU is started with it, its CPU set up, and asked to quit.
fn kvm(findings: &mut Findings, qemu: Option<&Path>) {
    const SLOW: &str = "virtual machines are emulated, which is slower: turn virtualisation on in the firmware, or nested \
                        virtualisation on the host above, and load the module kvm";
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return findings.tried("kvm", Err(format!("/dev/kvm: {error}")), Level::Warn, SLOW);
    }
    let Some(qemu) = qemu else {
        return findings.warn(
            "kvm",
            "/dev/kvm opens; without QEMU it cannot be tried",
            "`apt install qemu-system-x86`",
        );
    };
    let mut command = Command::new(qemu);
    let machine = if cfg!(target_arch = "aarch64") { "virt" } else { "pc" };
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-machine",
        machine,
        "-m",
        "32",
        "-S",
        "-nodefaults",
        "-no-user-config",
    ]);
    command.args(["-display", "none", "-qmp", "stdio"]);
    let input = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";
    match run(&mut command, input, Duration::from_secs(5)) {
        Ok(output) if output.status.success() => findings.ok("kvm", "a virtual CPU of the host's kind can be set up"),
        Ok(output) => findings.warn("kvm", format!("opens but does not work: {}", complaint(&output)), SLOW),
        Err(error) => findings.warn("kvm", format!("opens but does not work: {error}"), SLOW),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_dynamic_programs_from_other_files() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(interpreter(&own), Some(true));
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
    }
}
