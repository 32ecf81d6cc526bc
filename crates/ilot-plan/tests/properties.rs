//! What holds for every pair of worlds.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

use std::collections::{BTreeMap, BTreeSet};

use ilot_plan::{Action, Change, Effect, Kind, Plan, Resource, diff};
use proptest::prelude::*;

/// A world: the firewall perhaps, some of five domains, some of twelve machines in the domains that are there.
fn world() -> impl Strategy<Value = Vec<Resource>> {
    let value = || prop_oneof![Just(serde_json::Value::Null), (0..3u8).prop_map(Into::into)];
    let domains = proptest::collection::vec(proptest::option::of((value(), any::<bool>())), 5);
    let machine = (0..5usize, value(), value(), value(), any::<bool>(), proptest::option::of(any::<bool>()));
    let machines = proptest::collection::vec(proptest::option::of(machine), 12);
    (domains, machines, value()).prop_map(|(domains, machines, rules)| {
        let mut world = Vec::new();
        for (index, domain) in domains.iter().enumerate() {
            if let Some((subnet, protected)) = domain {
                let mut domain = Resource::new(Kind::Domain, format!("d{index}")).restart("subnet", subnet.clone());
                domain.protected = *protected;
                world.push(domain);
            }
        }
        for (index, machine) in machines.iter().enumerate() {
            let Some((domain, image, ip, memory, protected, running)) = machine else {
                continue;
            };
            if domains[*domain].is_none() {
                continue;
            }
            let mut machine = Resource::new(Kind::Machine, format!("m{index}"))
                .in_domain(format!("d{domain}"))
                .replace("image", image.clone())
                .restart("ip", ip.clone())
                .live("memory", memory.clone());
            machine.protected = *protected;
            machine.running = *running;
            world.push(machine);
        }
        if !world.is_empty() {
            world.push(Resource::new(Kind::Firewall, "firewall").live("rules", rules));
        }
        world
    })
}

/// A world as an engine reports it: whether machines run is always known.
fn actual_world() -> impl Strategy<Value = Vec<Resource>> {
    world().prop_map(|mut world| {
        for resource in world.iter_mut().filter(|r| r.kind == Kind::Machine) {
            resource.running = Some(resource.running.unwrap_or(false));
        }
        world
    })
}

type World = BTreeMap<(Kind, String), Resource>;

fn index(world: &[Resource]) -> World {
    world.iter().map(|r| ((r.kind, r.name.clone()), r.clone())).collect()
}

/// Does to a model world what an engine would do, refusing what is out of order.
fn apply(world: &mut World, desired: &World, change: &Change) {
    let key = (change.kind, change.name.clone());
    match change.action {
        Action::Delete => {
            let gone = world.remove(&key).unwrap();
            match gone.kind {
                Kind::Machine => {}
                Kind::Domain => assert!(
                    !world.values().any(|r| r.domain.as_ref() == Some(&gone.name)),
                    "{change} while machines are in it"
                ),
                Kind::Firewall => assert!(world.is_empty(), "{change} while something needs it"),
            }
            return;
        }
        Action::Create => assert!(!world.contains_key(&key), "{change}: it exists"),
        _ => assert!(world.contains_key(&key), "{change}: it does not exist"),
    }
    if change.kind != Kind::Firewall {
        assert!(world.contains_key(&(Kind::Firewall, "firewall".into())), "{change} without a firewall");
    }
    if let (Kind::Machine, Some(domain)) = (change.kind, &change.domain) {
        assert!(world.contains_key(&(Kind::Domain, domain.clone())), "{change} without its domain");
    }
    let wanted = &desired[&key];
    let before = world.get(&key).cloned();
    let mut made = before.clone().unwrap_or_else(|| wanted.clone());
    made.protected = wanted.protected;
    for reason in &change.reasons {
        if let Some(field) = wanted.fields.get(&reason.field) {
            made.fields.insert(reason.field.clone(), field.clone());
        }
    }
    if made.kind == Kind::Machine {
        let was = before.and_then(|r| r.running).unwrap_or(false);
        made.running = Some(was || wanted.running == Some(true));
    }
    world.insert(key, made);
}

fn carry_out(plan: &Plan, desired: &[Resource], actual: &[Resource]) -> Vec<Resource> {
    let mut world = index(actual);
    let desired = index(desired);
    for change in &plan.changes {
        apply(&mut world, &desired, change);
    }
    world.into_values().collect()
}

proptest! {
    #[test]
    fn a_world_does_not_differ_from_itself(world in actual_world()) {
        let plan = diff(&world, &world);
        prop_assert!(plan.is_empty() && plan.kept.is_empty());
    }

    #[test]
    fn after_a_plan_there_is_nothing_left_to_do(desired in world(), actual in actual_world()) {
        let plan = diff(&desired, &actual);
        let after = carry_out(&plan, &desired, &actual);
        let again = diff(&desired, &after);
        prop_assert!(again.is_empty(), "{:#?}", again.changes);
        prop_assert_eq!(again.kept.len(), plan.kept.len());
    }

    #[test]
    fn what_is_protected_survives(desired in world(), actual in actual_world()) {
        let plan = diff(&desired, &actual);
        let deleted: BTreeSet<_> =
            plan.changes.iter().filter(|c| c.action == Action::Delete).map(|c| (c.kind, c.name.as_str())).collect();
        for machine in actual.iter().filter(|r| r.protected && r.kind == Kind::Machine) {
            prop_assert!(!deleted.contains(&(machine.kind, machine.name.as_str())));
        }
        for change in &plan.changes {
            let replaces = change.reasons.iter().any(|r| r.effect == Effect::Replace);
            prop_assert!(change.action == Action::Create || !(change.protected && replaces));
        }
    }

    #[test]
    fn key_order_is_no_difference(world in actual_world()) {
        let mut turned = world.clone();
        turned.reverse();
        for resource in &mut turned {
            resource.fields.reverse();
        }
        prop_assert!(diff(&turned, &world).is_empty());
    }
}
