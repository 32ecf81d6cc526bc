//! Machines in machines: what `security.nesting` grants, and what a machine is told of where it stands.
//!
//! Everything granted is a right inside the machine's own user namespace. The kernel lets a namespace mount a fresh procfs
//! or sysfs only where one without anything over it is visible already: the machine gets such ones below `/dev/.ilot`, where
//! programs do not look.

use std::fs;
use std::path::Path;

use ilot_runtime::seccomp::{DefaultKind, default_profile};
use ilot_runtime::spec::{Mount, Spec, capabilities_for_image_init};
use ilot_runtime::{InsideFile, When};

use crate::error::Result;
use crate::ids;
use crate::paths::Paths;

/// Ranges of ids that a machine has for those in it, where there are as many.
const RANGES: u32 = 32;

/// Below `/proc/sys`, what is not of a network namespace.
const NOT_ITS_OWN: &[&str] = &["abi", "crypto", "debug", "dev", "fs", "kernel", "sunrpc", "user", "vm"];

fn holder(machine: &str) -> String {
    format!("nested:{machine}")
}

/// Ids of the host for what is nested in a machine: the first, and how many.
pub(crate) fn allocate(paths: &Paths, machine: &str) -> Result<(u32, u32)> {
    // What a killed command left.
    release(paths, machine)?;
    ids::claim_block(paths, &holder(machine), RANGES)
}

/// Gives them back.
pub(crate) fn release(paths: &Paths, machine: &str) -> Result<()> {
    ids::release(paths, &holder(machine))
}

/// Lets a container make namespaces, mounts and networks of its own, inside its user namespace.
pub(crate) fn grant(spec: &mut Spec, image_init: bool) {
    if let Some(process) = &mut spec.process {
        process.capabilities = Some(capabilities_for_image_init());
        process.no_new_privileges = false;
    }
    if let Some(linux) = &mut spec.linux {
        linux.seccomp = Some(default_profile(DefaultKind::Init));
        // Runtimes inside set up networks. What is below belongs to the machine's network namespace, or is read-only for it.
        linux.readonly_paths.retain(|path| path != "/proc/sys");
        linux.readonly_paths.extend(NOT_ITS_OWN.iter().map(|path| format!("/proc/sys/{path}")));
    }
    let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
        destination: destination.to_owned(),
        kind: Some(kind.to_owned()),
        source: Some(kind.to_owned()),
        options: options.iter().map(|s| (*s).to_owned()).collect(),
        ..Mount::default()
    };
    let quiet = ["nosuid", "noexec", "nodev"];
    spec.mounts.push(mount("/dev/.ilot/proc", "proc", &quiet));
    spec.mounts.push(mount("/dev/.ilot/sys", "sysfs", &quiet));
    if !image_init {
        spec.mounts.push(mount("/sys/fs/cgroup", "cgroup2", &quiet));
    }
}

/// `/etc/anklume/*` of a machine: how deep it stands, by what this host itself was told (`dir`). A container adds a level
/// and no VM.
pub(crate) fn context_files(dir: &Path) -> Vec<InsideFile> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).map(|text| text.trim().to_owned()).unwrap_or_default();
    let level = |name: &str| read(name).parse::<u32>().unwrap_or(0).saturating_add(1);
    let vm = matches!(read("vm_nested").to_ascii_lowercase().as_str(), "true" | "1" | "yes");
    [
        ("absolute_level", level("absolute_level").to_string()),
        ("relative_level", level("relative_level").to_string()),
        ("vm_nested", vm.to_string()),
    ]
    .into_iter()
    .map(|(name, text)| InsideFile {
        path: format!("/etc/anklume/{name}"),
        mode: 0o644,
        content: format!("{text}\n").into_bytes(),
        when: When::Always,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_count_from_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let told = || {
            let content = |file: InsideFile| String::from_utf8(file.content).unwrap().trim().to_owned();
            context_files(dir.path()).into_iter().map(content).collect::<Vec<_>>()
        };
        assert_eq!(told(), ["1", "1", "false"]);
        fs::write(dir.path().join("absolute_level"), "2\n").unwrap();
        fs::write(dir.path().join("relative_level"), "0\n").unwrap();
        fs::write(dir.path().join("vm_nested"), "True\n").unwrap();
        assert_eq!(told(), ["3", "1", "true"]);
    }
}
