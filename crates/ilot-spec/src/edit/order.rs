//! The order of keys that this format knows: that of the reference. Names that the user chose keep their order, which
//! decides addresses.

use std::collections::HashSet;

use super::{Body, Document, Item, Node};
use crate::model::Layout;
use crate::problem::Role;
use crate::read::keys;

/// What a mapping is, as far as its keys are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Infra,
    Anklume,
    PoliciesFile,
    IlotFile,
    Global,
    Addressing,
    ProjectAddressing,
    Resources,
    Reserve,
    Defaults,
    Domains,
    Domain,
    Profiles,
    Profile,
    Devices,
    Device,
    Machines,
    Machine,
    Persistents,
    Persistent,
    Services,
    Service,
    Policies,
    Policy,
    Volumes,
    Volume,
    IlotProject,
    IlotDomains,
    IlotDomain,
    IlotMachines,
    IlotMachine,
    Health,
    /// Whatever the user put there.
    Other,
}

/// Puts the known keys of a file in order.
pub(crate) fn order(document: &mut Document, layout: Layout, role: Role) {
    let place = match (role, layout) {
        (Role::Main, Layout::ProjectDirectory) => Place::Anklume,
        (Role::Main, _) => Place::Infra,
        (Role::Domains, Layout::ProjectDirectory) => Place::Domain,
        (Role::Domains, _) => Place::Domains,
        (Role::Policies, _) => Place::PoliciesFile,
        (Role::Ilot, _) => Place::IlotFile,
    };
    let Some(root) = &mut document.root else { return };
    let first = root.collection_mut().and_then(|all| all.items.first_mut());
    let first = first.map(|item| (item.name().to_owned(), std::mem::take(&mut item.lead)));
    visit(root, place);
    if let (Some((name, mut lead)), Some(all)) = (first, root.collection_mut()) {
        // What stands at the top of a file is more likely about the file than about a key that does not stay there.
        let stays = all.items.first().is_some_and(|item| item.name() == name) || !document.header.is_empty();
        match all.items.iter_mut().find(|item| item.name() == name) {
            Some(item) if stays => item.lead = lead,
            _ => document.header.append(&mut lead),
        }
    }
}

fn visit(node: &mut Node, place: Place) {
    let Some(all) = node.collection_mut() else { return };
    for item in &mut all.items {
        let child = child(place, item.key.as_ref().map_or("", |key| &key.text));
        visit(&mut item.node, child);
    }
    if let (Some(known), Body::Map(all)) = (known(place), &mut node.body) {
        sort(&mut all.items, known);
    }
}

/// The keys of a mapping in their order; `None` where the user's order stays.
fn known(place: Place) -> Option<&'static [&'static str]> {
    Some(match place {
        Place::Infra => keys::FILE,
        Place::Anklume => keys::PROJECT,
        Place::PoliciesFile => &[],
        Place::IlotFile | Place::IlotProject => keys::ILOT_PROJECT,
        Place::Global => keys::GLOBAL,
        Place::Addressing => keys::ADDRESSING,
        Place::ProjectAddressing => &["base", "zone_step"],
        Place::Resources => keys::RESOURCES,
        Place::Reserve => &["cpu", "memory"],
        Place::Defaults => &["os_image", "trust_level"],
        Place::Domain => keys::DOMAIN,
        Place::Profile => keys::PROFILE,
        Place::Device => &["type"],
        Place::Machine => keys::MACHINE,
        Place::Persistent => keys::PERSISTENT,
        Place::Service => keys::SERVICE,
        Place::Policy => keys::POLICY,
        Place::Volume => keys::VOLUME,
        Place::IlotDomain => keys::ILOT_DOMAIN,
        Place::IlotMachine => keys::ILOT_MACHINE,
        Place::Health => keys::HEALTH,
        _ => return None,
    })
}

/// What the value of a key is.
fn child(place: Place, key: &str) -> Place {
    match (place, key) {
        (Place::Infra, "global") => Place::Global,
        (Place::Infra, "domains") => Place::Domains,
        (Place::Infra | Place::Anklume | Place::PoliciesFile, "network_policies" | "policies") => Place::Policies,
        (Place::Infra | Place::Anklume, "shared_volumes") => Place::Volumes,
        (Place::Infra | Place::Anklume | Place::IlotFile, "ilot") => Place::IlotProject,
        (Place::Anklume, "defaults") => Place::Defaults,
        (Place::Anklume, "addressing") => Place::ProjectAddressing,
        (Place::Anklume | Place::Global, "resource_policy") => Place::Resources,
        (Place::Global, "addressing") => Place::Addressing,
        (Place::Resources, "host_reserve") => Place::Reserve,
        (Place::Domains, key) if !key.starts_with("x-") => Place::Domain,
        (Place::Domain, "profiles") => Place::Profiles,
        (Place::Domain, "machines") => Place::Machines,
        (Place::Domain, "ilot") | (Place::IlotDomains, _) => Place::IlotDomain,
        (Place::Profiles, _) => Place::Profile,
        (Place::Profile | Place::Machine, "devices") => Place::Devices,
        (Place::Devices, _) => Place::Device,
        (Place::Machines, _) => Place::Machine,
        (Place::Machine, "persistent_data") => Place::Persistents,
        (Place::Machine, "services") => Place::Services,
        (Place::Machine, "ilot") | (Place::IlotMachines, _) => Place::IlotMachine,
        (Place::Persistents, _) => Place::Persistent,
        (Place::Services, _) => Place::Service,
        (Place::Policies, _) => Place::Policy,
        (Place::Volumes, _) => Place::Volume,
        (Place::IlotFile | Place::IlotProject, "domains") => Place::IlotDomains,
        (Place::IlotFile | Place::IlotProject, "machines") => Place::IlotMachines,
        (Place::IlotMachine, "health") => Place::Health,
        _ => Place::Other,
    }
}

/// Sorts entries: the file's own names first, then merged keys and anchors, then what is known, then the rest as it was.
fn sort(items: &mut Vec<Item>, known: &[&str]) {
    let rank = |item: &Item| match item.name() {
        "schema_version" | "project_name" => (0, known.iter().position(|k| *k == item.name()).unwrap_or_default()),
        "<<" => (1, 0),
        name if name.starts_with("x-") => (1, 1),
        name => known.iter().position(|k| *k == name).map_or((3, 0), |at| (2, at)),
    };
    let mut sequence: Vec<usize> = (0..items.len()).collect();
    sequence.sort_by_key(|&i| rank(&items[i]));
    if sequence.is_sorted() || crosses(items, &sequence) {
        return;
    }
    let mut taken: Vec<Option<Item>> = std::mem::take(items).into_iter().map(Some).collect();
    items.extend(sequence.into_iter().filter_map(|i| taken[i].take()));
}

/// Whether an alias would come before its anchor, or behind another of that name.
fn crosses(items: &[Item], sequence: &[usize]) -> bool {
    let names: Vec<Names> = items.iter().map(Names::of).collect();
    if names.iter().all(|names| names.anchors.is_empty()) {
        return false;
    }
    sequence.iter().enumerate().any(|(at, &later)| {
        // Pairs whose order would turn round.
        sequence[at + 1..].iter().any(|&earlier| earlier < later && names[earlier].meets(&names[later]))
    })
}

#[derive(Default)]
struct Names {
    anchors: HashSet<String>,
    aliases: HashSet<String>,
}

impl Names {
    fn of(item: &Item) -> Self {
        let mut names = Self::default();
        names.item(item);
        names
    }

    fn item(&mut self, item: &Item) {
        if let Some(key) = &item.key {
            self.props(&key.props);
            self.aliases.extend(key.raw.strip_prefix('*').map(str::to_owned));
        }
        self.props(&item.node.props);
        if let Body::Alias(raw) = &item.node.body {
            self.aliases.extend(raw.strip_prefix('*').map(str::to_owned));
        }
        for item in item.node.collection().into_iter().flat_map(|all| &all.items) {
            self.item(item);
        }
    }

    fn props(&mut self, props: &[String]) {
        self.anchors.extend(props.iter().filter_map(|prop| prop.strip_prefix('&')).map(str::to_owned));
    }

    fn meets(&self, other: &Self) -> bool {
        let crossed = |a: &Self, b: &Self| !a.anchors.is_disjoint(&b.anchors) || !a.anchors.is_disjoint(&b.aliases);
        crossed(self, other) || crossed(other, self)
    }
}
