//! Shared volumes: who sees them, and that no two things are mounted at one path of one machine: shared volumes, persistent
//! data, disk devices, storage volumes.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use crate::address::with_machine_path;
use crate::cx::{At, Cx, Path};
use crate::model::{Domain, Machine, MachineName, SharedVolume};
use crate::names::Names;
use crate::read::{RawDomain, RawMachine, RawProject, RawVolume};
use crate::yaml::Span;

/// What is mounted at a path of a machine already.
type Mounts = HashMap<((usize, usize), PathBuf), (String, Span)>;

/// Resolves the consumers of every shared volume to machines.
pub(crate) fn resolve(cx: &mut Cx<'_>, raw: &RawProject, names: &Names<'_>, domains: &[Domain]) -> Vec<SharedVolume> {
    let root = Path::Root;
    let base = root.key("shared_volumes");
    let mut mounts = Mounts::new();
    let mut volumes = Vec::with_capacity(raw.volumes.len());
    for volume in &raw.volumes {
        let path = base.key(&volume.name);
        let machines = consumers(cx, raw, names, volume, &path);
        for &place in machines.keys() {
            let key = (place, volume.path.value.clone());
            if let Some((other, first)) = mounts.get(&key) {
                let machine = &raw.domains[place.0].machines[place.1];
                let message = format!(
                    "two shared volumes at `{}` of the machine `{}`: `{other}` and `{}`",
                    volume.path.value.display(),
                    machine.label(),
                    volume.name
                );
                cx.clash(volume.path.span, &path.key("path"), message, *first, "first here")
                    .help("give one of them another `path`");
                break;
            }
            mounts.insert(key, (volume.name.clone(), volume.path.span));
        }
        let consumers: BTreeMap<MachineName, bool> = machines
            .iter()
            .filter_map(|(&(d, m), &write)| Some((raw.domains[d].machines[m].name.clone()?, write)))
            .collect();
        volumes.push(SharedVolume {
            name: volume.name.clone(),
            at: cx.position(volume.span),
            source: volume.source.clone().unwrap_or_else(|| raw.global.shared_volumes_base.join(&volume.name)),
            path: volume.path.value.clone(),
            shift: volume.shift,
            propagate: volume.propagate,
            consumers,
        });
    }
    persistent(cx, raw, &mut mounts);
    own_disks(cx, raw, domains, &mut mounts);
    volumes
}

/// Domains first, then single machines, whose mode counts.
fn consumers(
    cx: &mut Cx<'_>,
    raw: &RawProject,
    names: &Names<'_>,
    volume: &RawVolume,
    path: &Path<'_>,
) -> BTreeMap<(usize, usize), bool> {
    let base = path.key("consumers");
    let mut machines = BTreeMap::new();
    let mut single = Vec::new();
    for (At { value: name, span }, write) in &volume.consumers {
        if let Some(&d) = names.domains.get(name.as_str()) {
            machines.extend((0..raw.domains[d].machines.len()).map(|m| ((d, m), *write)));
        } else if let Some(&place) = names.machines.get(name.as_str()) {
            single.push((place, *write));
        } else if !cx.incomplete {
            let help = names.unknown(cx, &raw.domains, name);
            let shown = crate::cx::shorten(name);
            cx.error(*span, &base.key(name), format!("`{shown}` is no domain and no machine of this project"))
                .help(help);
        }
    }
    machines.extend(single);
    machines
}

fn persistent(cx: &mut Cx<'_>, raw: &RawProject, mounts: &mut Mounts) {
    for (d, domain) in raw.domains.iter().enumerate() {
        for (m, machine) in domain.machines.iter().enumerate() {
            for (name, volume) in &machine.persistent {
                let place = &volume.value.path;
                let key = ((d, m), place.value.clone());
                match mounts.get(&key) {
                    Some((other, first)) => {
                        let first = *first;
                        let message = format!(
                            "the persistent volume `{name}` and the volume `{other}` are both at `{}` of the machine `{}`",
                            place.value.display(),
                            machine.label()
                        );
                        report(cx, domain, machine, name, place.span, message, first);
                    }
                    None => drop(mounts.insert(key, (name.clone(), place.span))),
                }
            }
        }
    }
}

/// Disk devices (profiles' too) and storage volumes.
fn own_disks(cx: &mut Cx<'_>, raw: &RawProject, domains: &[Domain], mounts: &mut Mounts) {
    for (d, (domain, built)) in raw.domains.iter().zip(domains).enumerate() {
        for (m, (machine, built)) in domain.machines.iter().zip(&built.machines).enumerate() {
            for (kind, name, place) in disks(built) {
                let of_profile = || built.profiles.iter().rev().find_map(|p| domain.profiles.get(p)?.devices.get(name));
                let device = machine.devices.get(name).or_else(of_profile).filter(|_| kind == "devices");
                let span = device.map_or(machine.span, |device| device.span);
                let key = ((d, m), place);
                match mounts.get(&key) {
                    Some((other, first)) => {
                        let message = format!(
                            "`{name}` and `{other}` are both at `{}` of the machine `{}`",
                            key.1.display(),
                            machine.label()
                        );
                        with_machine_path(domain, machine, kind, |path| {
                            cx.clash(span, &path.key(name).key("path"), message, *first, "first here")
                                .help("give one of them another path");
                        });
                    }
                    None => drop(mounts.insert(key, (name.to_owned(), span))),
                }
            }
        }
    }
}

/// The key that has it, its name, and where it is in the machine. The root disk is no second mount.
fn disks(machine: &Machine) -> impl Iterator<Item = (&'static str, &str, PathBuf)> {
    let devices = machine.devices.iter().filter(|(_, device)| device.get("type").is_some_and(|kind| kind == "disk"));
    let devices = devices.filter_map(|(name, device)| Some(("devices", name, device.get("path")?.as_str())));
    let volumes = machine.storage_volumes.iter();
    let volumes = volumes.filter_map(|(name, value)| Some(("storage_volumes", name, value.get("path")?.as_str()?)));
    devices
        .chain(volumes)
        .filter_map(|(kind, name, path)| Some((kind, name.as_str(), crate::cx::absolute(path).ok()?)))
        .filter(|(_, _, path)| path.as_os_str() != "/")
}

fn report(
    cx: &mut Cx<'_>,
    domain: &RawDomain,
    machine: &RawMachine,
    name: &str,
    span: Span,
    message: String,
    first: Span,
) {
    with_machine_path(domain, machine, "persistent_data", |path| {
        cx.clash(span, &path.key(name).key("path"), message, first, "first here").help("give one of them another path");
    });
}
