//! What the fuzz targets call (`fuzz/`); in no ordinary build.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a panic is what the fuzzer looks for")]

use std::path::Path;

use crate::mounts::options::{Options, propagation};
use crate::record::{self, Record, Request};
use crate::seccomp::{Arch, Call, Program, interpret, simulate};
use crate::spec::{self, Resources, Seccomp, Spec};
use crate::{cgroup, container, oci, sys};

/// Any text as a bundle's `config.json`, up to the moment when something would be made of it.
pub fn config(bytes: &[u8]) {
    let _ = spec::from_json::<Resources>(bytes);
    let _ = spec::from_json::<spec::Process>(bytes);
    let Ok(spec) = spec::from_json::<Spec>(bytes) else { return };
    let again: Spec = spec::from_json(&serde_json::to_vec(&spec).unwrap()).unwrap();
    assert_eq!(again, spec, "written again it means something else");
    if oci::check::check(&spec).is_err() {
        return;
    }
    let mut settled = spec;
    oci::check::settle(&mut settled);
    assert!(settled.mounts.iter().all(|m| m.uid_mappings.is_empty() == m.gid_mappings.is_empty()));
    let Some(linux) = &settled.linux else { return };
    for mount in &settled.mounts {
        let options = Options::parse(&mount.options);
        if let Some(text) = &options.id_maps {
            let _ = container::fuzz_id_maps(text, &linux.uid_mappings, &linux.gid_mappings);
        }
    }
    if let Some(path) = &linux.cgroups_path {
        cgroup::fuzz_path(path);
    }
    if let Some(resources) = &linux.resources {
        cgroup::fuzz_settings(resources);
    }
    if let Some(profile) = &linux.seccomp {
        filter(profile, &mut [7u8; 56].into_iter());
    }
}

/// A profile: its program and its meaning say the same about the calls that follow it.
pub fn seccomp(bytes: &[u8]) {
    let end = bytes.iter().rposition(|b| *b == b'}').map_or(0, |at| at + 1);
    let (text, calls) = bytes.split_at(end);
    let Ok(profile) = spec::from_json::<Seccomp>(text) else { return };
    let mut calls = calls.iter().copied();
    for _ in 0..8 {
        filter(&profile, &mut calls);
    }
}

fn filter(profile: &Seccomp, bytes: &mut dyn Iterator<Item = u8>) {
    const ARCHES: [Arch; 5] = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm];
    let mut word = |n: usize| (0..n).fold(0u64, |all, _| all << 8 | u64::from(bytes.next().unwrap_or(0)));
    let native = ARCHES[word(1) as usize % 2 * 3];
    let Ok(program) = Program::compile_for(profile, native) else { return };
    assert_eq!(Program::from_bytes(&program.to_bytes()).as_ref(), Some(&program));
    let arch = ARCHES[word(1) as usize % 5];
    let mut call = Call { nr: word(2) as u32, arch: arch.audit(), ip: 0, args: [0; 6] };
    if arch == Arch::X32 {
        call.nr |= 1 << 30;
    }
    for arg in &mut call.args {
        *arg = if arch.wide() { word(8) } else { word(4) };
    }
    let (got, _) = simulate(program.instructions(), &call).expect("a valid program");
    assert_eq!(got, interpret(profile, native, &call).unwrap(), "{call:?}");
}

/// Mount options, one per line.
pub fn mount_options(text: &str) {
    let list: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let options = Options::parse(&list);
    assert_eq!(options, Options::parse(&[list.join(",")]), "a list and a line mean the same");
    assert_eq!(options.set & options.clear & !sys::ATTR_ATIME, 0);
    assert_eq!(options.set_recursive & options.clear_recursive & !sys::ATTR_ATIME, 0);
    for (attr, _) in options.changes() {
        assert!(attr.set & sys::ATTR_ATIME == 0 || attr.clear & sys::ATTR_ATIME == sys::ATTR_ATIME);
        assert_ne!(attr.set & sys::ATTR_ATIME, sys::ATTR_NOATIME | sys::ATTR_STRICTATIME);
    }
    assert!(options.data.iter().all(|word| !word.is_empty() && !word.contains(',') && propagation(word).is_none()));
    // Twice the same is once the same, but for what is listed.
    let twice = Options::parse(&[list.clone(), list].concat());
    assert_eq!((twice.set, twice.bind, twice.idmap), (options.set, options.bind, options.idmap));
    if let Some(maps) = &options.id_maps {
        let _ = container::fuzz_id_maps(maps, &[], &[]);
    }
}

/// The files of a run directory: state, request, exit, filter; `folder` is empty before and after.
pub fn state(bytes: &[u8], folder: &Path) {
    let _ = Program::from_bytes(bytes).map(|program| assert_eq!(program.to_bytes(), bytes));
    if let Ok(record) = serde_json::from_slice::<Record>(bytes) {
        let again = serde_json::to_vec(&record).unwrap();
        let same: Record = serde_json::from_slice(&again).unwrap();
        assert_eq!(serde_json::to_vec(&same).unwrap(), again);
    }
    let _ = serde_json::from_slice::<Request>(bytes);
    // The first line is the state, what follows the exit.
    let mut parts = bytes.splitn(2, |b| *b == b'\n');
    for name in [record::STATE, record::EXIT] {
        std::fs::write(folder.join(name), parts.next().unwrap_or_default()).unwrap();
    }
    if let Ok(Some(state)) = crate::state(folder) {
        // Another boot's, or another process's: nothing that could be signalled.
        assert!(state.pid.is_none() || state.pid == Some(1) || state.pid == Some(std::process::id() as i32));
    }
    record::remove_files(folder).unwrap();
    std::fs::create_dir_all(folder).unwrap();
}
