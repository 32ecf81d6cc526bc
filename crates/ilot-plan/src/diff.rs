//! Desired against actual.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::model::{Action, Change, Effect, How, Kept, Kind, Plan, Reason, Resource};
use crate::select::Selection;

/// What a comparison is limited to and what it may do.
#[derive(Debug, Clone, Default)]
pub struct DiffOptions {
    /// Only these; `None` is everything.
    pub only: Option<Selection>,
    /// Delete and replace protected resources too.
    pub force: bool,
    /// Leave alone what can only be changed by stopping something that runs, and say so: changes by a restart or by a
    /// replacement. What else differs of the same resource is changed all the same.
    pub uninterrupted: bool,
}

/// Compares what should be with what is.
///
/// ```
/// use ilot_plan::{Kind, Resource, diff};
///
/// let machine = |memory: u64| Resource::new(Kind::Machine, "web").in_domain("pro").live("limits.memory", memory);
/// assert!(diff(&[machine(1 << 30)], &[machine(1 << 30)]).is_empty());
/// let plan = diff(&[machine(2 << 30)], &[machine(1 << 30)]);
/// assert_eq!(plan.changes[0].to_string(), "update machine web");
/// ```
#[must_use]
pub fn diff(desired: &[Resource], actual: &[Resource]) -> Plan {
    diff_with(desired, actual, &DiffOptions::default())
}

/// Compares what should be with what is, within limits.
///
/// The order of the changes is one in which they can be carried out: what goes first (machines, then domains), so
/// that names and addresses are free again; then the firewall, so that nothing runs unfiltered; then domains; then
/// machines, in the order of `desired`. A firewall that is no longer needed goes last.
#[must_use]
pub fn diff_with(desired: &[Resource], actual: &[Resource], options: &DiffOptions) -> Plan {
    let mut plan = Plan::default();
    removals(&mut plan, desired, actual, options);
    let existing: HashMap<Key<'_>, &Resource> = actual.iter().map(|r| (key(r), r)).collect();
    let removed: HashSet<Key<'_>> = (plan.changes.iter()).map(|c| (c.kind, c.name.as_str())).collect();
    let held: HashSet<Key<'_>> = plan.kept.iter().map(|k| (k.kind, k.name.as_str())).collect();
    let mut wanted: Vec<(&Resource, Option<&Resource>)> = Vec::with_capacity(desired.len());
    for kind in [Kind::Firewall, Kind::Domain, Kind::Machine] {
        let chosen = |r: &&Resource| options.only.as_ref().is_none_or(|only| only.includes(r));
        for resource in desired.iter().filter(|r| r.kind == kind).filter(chosen) {
            let key = key(resource);
            if !held.contains(&key) {
                let existing = existing.get(&key).filter(|_| !removed.contains(&key));
                wanted.push((resource, existing.copied()));
            }
        }
    }
    let busy: HashSet<&str> =
        actual.iter().filter(|r| r.running == Some(true)).filter_map(|r| r.domain.as_deref()).collect();
    let standing = Standing { taken: taken_subnets(&wanted, options, &busy), busy };
    for (wanted, existing) in wanted {
        compare(&mut plan, wanted, existing, options, &standing);
    }
    // The filter outlives everything that it filters.
    let (last, mut changes): (Vec<_>, Vec<_>) =
        plan.changes.into_iter().partition(|change| change.action == Action::Delete && change.kind == Kind::Firewall);
    changes.extend(last);
    plan.changes = changes;
    plan
}

/// What stands in the way of changes that interrupt nothing.
struct Standing<'a> {
    /// Domains in which a machine runs.
    busy: HashSet<&'a str>,
    /// Domains that want the subnet of one that keeps it until a restart is allowed, and that one.
    taken: HashMap<&'a str, &'a str>,
}

/// Domains that must wait because another one keeps the subnet that they are to have. Who waits keeps its own, for which
/// others may wait in turn.
fn taken_subnets<'a>(
    wanted: &[(&'a Resource, Option<&'a Resource>)],
    options: &DiffOptions,
    busy: &HashSet<&str>,
) -> HashMap<&'a str, &'a str> {
    let subnet = |domain: &'a Resource| domain.fields.get("subnet").map(|field| &field.value);
    let mut taken = HashMap::new();
    if !options.uninterrupted {
        return taken;
    }
    let domains: Vec<_> = wanted.iter().filter(|(wanted, _)| wanted.kind == Kind::Domain).collect();
    let moves = |(wanted, existing): &&&(&'a Resource, Option<&'a Resource>)| {
        existing.is_some_and(|existing| subnet(existing) != subnet(wanted))
    };
    let mut keepers: Vec<&Resource> =
        domains.iter().filter(moves).filter_map(|d| d.1).filter(|d| busy.contains(d.name.as_str())).collect();
    while let Some(keeper) = keepers.pop() {
        for (wanted, existing) in &domains {
            let waits = wanted.name != keeper.name && subnet(wanted).is_some() && subnet(wanted) == subnet(keeper);
            if waits && !taken.contains_key(wanted.name.as_str()) {
                taken.insert(wanted.name.as_str(), keeper.name.as_str());
                keepers.extend(existing.iter());
            }
        }
    }
    taken
}

const PROTECTED: &str = "it is protected (`ephemeral: false`)";
const NEEDS_RESTART: &str = "it needs a restart, which was not allowed";
const NEEDS_REPLACEMENT: &str = "it has to be made anew, which was not allowed";
const STOPS_MACHINES: &str = "its machines would have to be restarted, which was not allowed";

type Key<'a> = (Kind, &'a str);

fn key(resource: &Resource) -> Key<'_> {
    (resource.kind, &resource.name)
}

/// Plans the removal of what is no longer declared: machines, then domains, then the firewall. A machine that is now
/// declared in another domain goes too, and is made anew there.
fn removals(plan: &mut Plan, desired: &[Resource], actual: &[Resource], options: &DiffOptions) {
    let declared: HashMap<Key<'_>, &Resource> = desired.iter().map(|r| (key(r), r)).collect();
    let chosen = |r: &Resource| match (&options.only, declared.get(&key(r))) {
        (None, _) => true,
        (Some(only), Some(moved)) => only.includes(moved) || only.includes_removal(r),
        (Some(only), None) => only.includes_removal(r),
    };
    let gone = |kind: Kind| {
        actual
            .iter()
            .filter(move |r| r.kind == kind)
            .filter(|r| declared.get(&key(r)).is_none_or(|wanted| wanted.domain != r.domain))
            .filter(|r| chosen(r))
    };
    let mut deleted: HashSet<Key<'_>> = HashSet::new();
    for machine in gone(Kind::Machine) {
        if machine.protected && !options.force {
            plan.kept.push(kept(machine, Action::Delete, PROTECTED));
        } else {
            deleted.insert(key(machine));
            plan.changes.push(removal(machine));
        }
    }
    let mut held: HashMap<&str, &str> = HashMap::new();
    for machine in actual.iter().filter(|r| r.kind == Kind::Machine && !deleted.contains(&key(r))) {
        if let Some(domain) = &machine.domain {
            held.entry(domain).or_insert(&machine.name);
        }
    }
    for domain in gone(Kind::Domain) {
        if let Some(machine) = held.get(domain.name.as_str()) {
            let because = format!("machine `{machine}` in it is kept");
            plan.kept.push(kept(domain, Action::Delete, &because));
        } else {
            deleted.insert(key(domain));
            plan.changes.push(removal(domain));
        }
    }
    let rest = actual.iter().find(|r| r.kind != Kind::Firewall && !deleted.contains(&key(r)));
    for firewall in gone(Kind::Firewall) {
        match rest {
            None => plan.changes.push(removal(firewall)),
            Some(rest) => {
                let because = format!("{} `{}` still needs it", rest.kind, rest.name);
                plan.kept.push(kept(firewall, Action::Delete, &because));
            }
        }
    }
}

/// Plans what brings one declared resource to its desired state.
fn compare(
    plan: &mut Plan,
    wanted: &Resource,
    existing: Option<&Resource>,
    options: &DiffOptions,
    standing: &Standing<'_>,
) {
    let Some(existing) = existing else {
        create(plan, wanted, standing);
        return;
    };
    let kept_before = plan.kept.len();
    let reasons = hold(plan, wanted, existing, options, standing);
    let stopped = existing.running == Some(false);
    let strongest = reasons.iter().map(|reason| reason.effect).max();
    let (action, how) = match strongest {
        Some(Effect::Replace) => (Action::Replace, Some(How::Replacement)),
        _ if stopped && wanted.running == Some(true) => (Action::Start, None),
        Some(Effect::Restart) if !stopped => (Action::Restart, Some(How::Restart)),
        Some(_) => (Action::Update, Some(How::Live)),
        None => {
            plan.unchanged += usize::from(plan.kept.len() == kept_before);
            return;
        }
    };
    plan.changes.push(Change {
        action,
        kind: wanted.kind,
        name: wanted.name.clone(),
        domain: wanted.domain.clone(),
        how,
        protected: wanted.protected,
        reasons,
    });
}

/// The fields that differ and may be changed; those that may not are told.
fn hold(
    plan: &mut Plan,
    wanted: &Resource,
    existing: &Resource,
    options: &DiffOptions,
    standing: &Standing<'_>,
) -> Vec<Reason> {
    let mut reasons = differences(wanted, existing);
    let domain_waits = waits(plan, wanted);
    let mut keep = |action: Action, effect: Effect, because: &str, held: bool| {
        if reasons.iter().any(|r| r.effect == effect) {
            let (kept_back, rest) = std::mem::take(&mut reasons).into_iter().partition(|r| r.effect == effect);
            reasons = rest;
            plan.kept.push(Kept { reasons: kept_back, held, ..kept(wanted, action, because) });
        }
    };
    if wanted.protected && !options.force {
        keep(Action::Replace, Effect::Replace, PROTECTED, false);
    }
    if options.uninterrupted {
        keep(Action::Replace, Effect::Replace, NEEDS_REPLACEMENT, true);
        match wanted.kind {
            // Nobody is interrupted in a domain in which nothing runs.
            Kind::Domain if standing.busy.contains(wanted.name.as_str()) => {
                keep(Action::Restart, Effect::Restart, STOPS_MACHINES, true);
            }
            Kind::Domain => {
                if let Some(because) = waits_for(standing, wanted) {
                    keep(Action::Restart, Effect::Restart, &because, true);
                }
            }
            Kind::Machine if domain_waits || existing.running != Some(false) => {
                keep(Action::Restart, Effect::Restart, NEEDS_RESTART, true);
            }
            _ => {}
        }
    }
    reasons
}

/// Whether the machine's domain is not yet what it should be, because a restart was not allowed.
fn waits(plan: &Plan, machine: &Resource) -> bool {
    plan.kept.iter().any(|k| k.held && k.kind == Kind::Domain && Some(&k.name) == machine.domain.as_ref())
}

/// Why a domain cannot have its subnet yet.
fn waits_for(standing: &Standing<'_>, domain: &Resource) -> Option<String> {
    let keeper = standing.taken.get(domain.name.as_str()).filter(|_| domain.kind == Kind::Domain)?;
    Some(format!("its subnet is domain `{keeper}`'s until a restart is allowed"))
}

/// Plans a creation, unless it is one in a domain that is not yet what it should be, or of a domain whose subnet is not
/// free yet.
fn create(plan: &mut Plan, wanted: &Resource, standing: &Standing<'_>) {
    if let Some(because) = waits_for(standing, wanted) {
        plan.kept.push(Kept { held: true, ..kept(wanted, Action::Create, &because) });
    } else if waits(plan, wanted) {
        const WAITS: &str = "its domain waits for a restart of its machines";
        plan.kept.push(Kept { held: true, ..kept(wanted, Action::Create, WAITS) });
    } else {
        plan.changes.push(creation(wanted));
    }
}

fn creation(wanted: &Resource) -> Change {
    let reasons = wanted
        .fields
        .iter()
        .filter(|(_, field)| !field.value.is_null())
        .map(|(name, field)| reason(name, &Value::Null, &field.value, field.effect));
    Change {
        action: Action::Create,
        kind: wanted.kind,
        name: wanted.name.clone(),
        domain: wanted.domain.clone(),
        how: None,
        protected: wanted.protected,
        reasons: reasons.collect(),
    }
}

/// The fields that differ, a missing one being null.
fn differences(wanted: &Resource, existing: &Resource) -> Vec<Reason> {
    let mut reasons = Vec::new();
    for (name, field) in &wanted.fields {
        let from = existing.fields.get(name).map_or(&Value::Null, |field| &field.value);
        if *from != field.value {
            reasons.push(reason(name, from, &field.value, field.effect));
        }
    }
    for (name, field) in &existing.fields {
        if !wanted.fields.contains_key(name) && !field.value.is_null() {
            reasons.push(reason(name, &field.value, &Value::Null, field.effect));
        }
    }
    // The mark of protection is the engine's to keep, whether or not it lists it among the fields.
    if wanted.protected != existing.protected && !reasons.iter().any(|reason| reason.field == "ephemeral") {
        let (from, to) = (Value::Bool(!existing.protected), Value::Bool(!wanted.protected));
        reasons.push(reason("ephemeral", &from, &to, Effect::Live));
    }
    reasons
}

fn reason(field: &str, from: &Value, to: &Value, effect: Effect) -> Reason {
    Reason { field: field.to_owned(), from: from.clone(), to: to.clone(), effect }
}

fn removal(resource: &Resource) -> Change {
    Change {
        action: Action::Delete,
        kind: resource.kind,
        name: resource.name.clone(),
        domain: resource.domain.clone(),
        how: None,
        protected: resource.protected,
        reasons: Vec::new(),
    }
}

fn kept(resource: &Resource, action: Action, because: &str) -> Kept {
    Kept {
        action,
        kind: resource.kind,
        name: resource.name.clone(),
        domain: resource.domain.clone(),
        because: because.to_owned(),
        held: false,
        reasons: Vec::new(),
    }
}
