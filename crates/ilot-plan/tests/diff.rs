//! What a plan says about small, exact differences.

use std::time::{Duration, Instant};

use ilot_plan::{Action, DiffOptions, How, Kind, Plan, Resource, Selection, diff, diff_with};
use serde_json::{Value, json};

fn firewall() -> Resource {
    Resource::new(Kind::Firewall, "firewall").live("rules", "a")
}

fn domain(name: &str) -> Resource {
    Resource::new(Kind::Domain, name).restart("subnet", "10.120.0.0/24")
}

fn machine(name: &str, domain: &str, running: bool) -> Resource {
    let mut machine = Resource::new(Kind::Machine, name)
        .in_domain(domain)
        .replace("image", "images:debian/13")
        .restart("ip", "10.120.0.1")
        .live("limits.memory", 1 << 30);
    machine.running = Some(running);
    machine
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.changes.iter().map(ToString::to_string).collect()
}

fn set(resource: &mut Resource, field: &str, value: impl Into<Value>) {
    resource.fields[field].value = value.into();
}

#[test]
fn nothing_to_do_is_an_empty_plan() {
    let world = [firewall(), domain("pro"), machine("web", "pro", true)];
    let plan = diff(&world, &world);
    assert!(plan.is_empty());
    assert_eq!(plan.summary().unchanged, 3);
}

#[test]
fn creation_goes_firewall_domain_machine_and_names_every_field() {
    let plan = diff(&[machine("web", "pro", true), domain("pro"), firewall()], &[]);
    assert_eq!(steps(&plan), ["create firewall", "create domain pro", "create machine web"]);
    let fields: Vec<_> = plan.changes[2].reasons.iter().map(|r| r.field.as_str()).collect();
    assert_eq!(fields, ["image", "ip", "limits.memory"]);
    assert!(plan.changes[2].reasons.iter().all(|r| r.from.is_null()));
}

#[test]
fn removal_goes_machine_domain_firewall() {
    let plan = diff(&[], &[firewall(), domain("pro"), machine("web", "pro", true)]);
    assert_eq!(steps(&plan), ["delete machine web", "delete domain pro", "delete firewall"]);
}

#[test]
fn the_strongest_effect_decides() {
    let actual = machine("web", "pro", true);
    let mut desired = actual.clone();
    let one =
        |desired: &Resource| diff(std::slice::from_ref(desired), std::slice::from_ref(&actual)).changes[0].clone();
    set(&mut desired, "limits.memory", 2);
    assert_eq!((one(&desired).action, one(&desired).how), (Action::Update, Some(How::Live)));
    set(&mut desired, "ip", "10.120.0.2");
    assert_eq!((one(&desired).action, one(&desired).how), (Action::Restart, Some(How::Restart)));
    set(&mut desired, "image", "busybox");
    assert_eq!((one(&desired).action, one(&desired).how), (Action::Replace, Some(How::Replacement)));
    assert_eq!(one(&desired).reasons.len(), 3);
}

#[test]
fn a_stopped_machine_that_should_run_is_started_with_what_changed() {
    let actual = machine("web", "pro", false);
    let mut desired = machine("web", "pro", true);
    assert_eq!(steps(&diff(&[desired.clone()], std::slice::from_ref(&actual))), ["start machine web"]);
    set(&mut desired, "ip", "10.120.0.2");
    let plan = diff(&[desired.clone()], std::slice::from_ref(&actual));
    assert_eq!(steps(&plan), ["start machine web"]);
    assert_eq!(plan.changes[0].reasons[0].field, "ip");
    desired.running = None;
    assert_eq!(steps(&diff(&[desired], &[actual])), ["update machine web"]);
}

#[test]
fn what_a_file_no_longer_sets_is_a_change() {
    let actual = machine("web", "pro", true);
    let mut desired = actual.clone();
    desired.fields.shift_remove("limits.memory");
    let plan = diff(&[desired.clone()], std::slice::from_ref(&actual));
    assert_eq!(plan.changes[0].reasons[0].to, Value::Null);
    // Null and absent are the same.
    desired = desired.live("limits.processes", Value::Null).live("limits.memory", 1 << 30);
    assert!(diff(&[desired], &[actual]).is_empty());
}

#[test]
fn protection_holds_deletions_and_replacements_back() {
    let mut web = machine("web", "pro", true);
    web.protected = true;
    let world = [firewall(), domain("pro"), web.clone(), machine("db", "pro", true)];
    let plan = diff(&[], &world);
    assert_eq!(steps(&plan), ["delete machine db"]);
    let kept: Vec<_> = plan.kept.iter().map(|k| (k.name.as_str(), k.because.as_str())).collect();
    assert_eq!(
        kept,
        [
            ("web", "it is protected (`ephemeral: false`)"),
            ("pro", "machine `web` in it is kept"),
            ("firewall", "domain `pro` still needs it"),
        ]
    );
    let forced = DiffOptions { force: true, ..DiffOptions::default() };
    assert_eq!(diff_with(&[], &world, &forced).changes.len(), 4);

    let mut desired = web.clone();
    set(&mut desired, "image", "busybox");
    set(&mut desired, "limits.memory", 5);
    let plan = diff(&[desired.clone()], &[web.clone()]);
    assert_eq!(steps(&plan), ["update machine web"]);
    assert_eq!((plan.kept[0].action, plan.kept[0].reasons[0].field.as_str()), (Action::Replace, "image"));
    desired.protected = false;
    let plan = diff(&[desired], &[web]);
    assert_eq!(steps(&plan), ["replace machine web"]);
    assert!(plan.changes[0].reasons.iter().any(|r| r.field == "ephemeral" && r.to == json!(true)));
}

#[test]
fn a_machine_that_moves_is_removed_first_and_made_anew() {
    let actual = [domain("old"), machine("web", "old", true)];
    let desired = [domain("new"), machine("web", "new", true)];
    let plan = diff(&desired, &actual);
    assert_eq!(steps(&plan), ["delete machine web", "delete domain old", "create domain new", "create machine web"]);
    let mut protected = actual.clone();
    protected[1].protected = true;
    let plan = diff(&desired, &protected);
    assert_eq!(steps(&plan), ["create domain new"]);
    assert_eq!(plan.kept.len(), 2);
}

#[test]
fn only_takes_a_machine_with_what_it_needs() {
    let desired = [
        firewall(),
        domain("pro"),
        domain("perso"),
        machine("web", "pro", true),
        machine("db", "pro", true),
        machine("tv", "perso", true),
    ];
    let only = |names: &[&str], actual: &[Resource], desired: &[Resource]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let only = Some(Selection::new(&names, desired.iter().chain(actual)).unwrap());
        steps(&diff_with(desired, actual, &DiffOptions { only, ..DiffOptions::default() }))
    };
    assert_eq!(only(&["web"], &[], &desired), ["create firewall", "create domain pro", "create machine web"]);
    assert_eq!(only(&["perso"], &[], &desired).len(), 3);
    assert_eq!(only(&["web"], &desired, &[]), ["delete machine web"]);
    assert_eq!(only(&["pro"], &desired, &[]).len(), 3);
    assert_eq!(only(&["pro", "perso"], &desired, &[]).last().unwrap(), "delete firewall");

    let error = Selection::new(&["pr".to_owned(), "web".to_owned()], &desired).unwrap_err();
    assert_eq!(error.to_string(), "`pr` is neither a domain nor a machine of this project");
    assert_eq!(error.help().unwrap(), "did you mean `pro`?");
}

#[test]
fn json_has_the_documented_shape() {
    let mut desired = machine("web", "pro", true);
    set(&mut desired, "limits.memory", 2);
    let plan = diff(&[desired], &[machine("web", "pro", true)]);
    let expected = json!({
        "changes": [{
            "action": "update", "kind": "machine", "name": "web", "domain": "pro", "how": "live",
            "reasons": [{"field": "limits.memory", "from": 1 << 30, "to": 2, "effect": "live"}],
        }],
        "kept": [],
        "summary": {
            "create": 0, "update": 1, "restart": 0, "replace": 0, "start": 0, "delete": 0, "kept": 0, "held": 0, "unchanged": 0,
        },
    });
    assert_eq!(serde_json::to_value(&plan).unwrap(), expected);
}

/// Far above what it takes unoptimised (0.1 s), far below what a quadratic algorithm would.
#[test]
fn ten_thousand_machines_are_no_matter() {
    let mut world = vec![firewall()];
    for d in 0..100 {
        world.push(domain(&format!("d{d}")));
        world.extend((0..100).map(|m| machine(&format!("d{d}-m{m}"), &format!("d{d}"), true)));
    }
    let begin = Instant::now();
    assert!(diff(&world, &world).is_empty());
    assert_eq!(diff(&world, &[]).changes.len(), world.len());
    assert_eq!(diff(&[], &world).changes.len(), world.len());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn what_needs_a_restart_waits_where_nothing_may_stop() {
    let calm = DiffOptions { uninterrupted: true, ..DiffOptions::default() };
    let (running, stopped) = (machine("web", "pro", true), machine("web", "pro", false));
    let mut wanted = running.clone();
    set(&mut wanted, "ip", "10.120.0.9");
    set(&mut wanted, "image", "busybox");
    set(&mut wanted, "limits.memory", 5);
    let held = |plan: &Plan| plan.kept.iter().map(|k| (k.action, k.name.clone(), k.held)).collect::<Vec<_>>();

    let plan = diff_with(std::slice::from_ref(&wanted), std::slice::from_ref(&running), &calm);
    assert_eq!(steps(&plan), ["update machine web"]);
    assert_eq!(plan.changes[0].reasons.len(), 1, "the live part alone");
    assert_eq!(held(&plan), [(Action::Replace, "web".into(), true), (Action::Restart, "web".into(), true)]);
    assert_eq!((plan.summary().kept, plan.summary().held), (0, 2));

    // Nobody is interrupted in a machine that does not run; its files are still its files.
    let plan = diff_with(std::slice::from_ref(&wanted), std::slice::from_ref(&stopped), &calm);
    assert_eq!((steps(&plan), held(&plan).len()), (vec!["start machine web".to_owned()], 1));

    // A domain that must wait keeps those in it, and those to come.
    let mut moved = domain("pro");
    set(&mut moved, "subnet", "10.120.7.0/24");
    let late = machine("late", "pro", true);
    let plan = diff_with(&[moved.clone(), wanted.clone(), late], &[domain("pro"), running], &calm);
    assert_eq!(steps(&plan), ["update machine web"]);
    let names: Vec<&str> = plan.kept.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["pro", "web", "web", "late"]);
    let plan = diff_with(&[moved, wanted], &[domain("pro"), stopped], &calm);
    assert_eq!(steps(&plan), ["restart domain pro", "start machine web"], "nothing in it runs");
}

/// Who keeps a subnet for want of a restart keeps others from it, and those keep others from theirs.
#[test]
fn a_subnet_that_is_kept_is_nobody_elses() {
    let placed = |name: &str, subnet: &str| {
        let mut domain = domain(name);
        set(&mut domain, "subnet", subnet);
        domain
    };
    let box_of = |domain: &str, running: bool| machine(&format!("{domain}-1"), domain, running);
    let actual = [
        firewall(),
        placed("bee", "0"),
        placed("dog", "2"),
        placed("elk", "5"),
        box_of("bee", true),
        box_of("dog", false),
    ];
    let wanted = [
        firewall(),
        placed("ant", "5"),
        placed("bee", "1"),
        placed("cow", "2"),
        placed("dog", "3"),
        placed("elk", "0"),
        box_of("ant", true),
        box_of("bee", true),
        box_of("dog", true),
    ];
    let plan = diff_with(&wanted, &actual, &DiffOptions { uninterrupted: true, ..DiffOptions::default() });
    // Nothing runs in `dog`, so it moves and leaves its place to `cow`.
    assert_eq!(steps(&plan), ["create domain cow", "restart domain dog", "start machine dog-1"]);
    let held: Vec<(&str, &str)> = plan.kept.iter().map(|k| (k.name.as_str(), k.because.as_str())).collect();
    assert_eq!(
        held,
        [
            ("ant", "its subnet is domain `elk`'s until a restart is allowed"),
            ("bee", "its machines would have to be restarted, which was not allowed"),
            ("elk", "its subnet is domain `bee`'s until a restart is allowed"),
            ("ant-1", "its domain waits for a restart of its machines"),
        ]
    );
    assert_eq!(diff(&wanted, &actual).kept, []);
}
