//! How a plan is carried out: order, failures, interruption.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use ilot_plan::{
    Change, Engine, EngineError, Events, ExecuteOptions, Kind, Outcome, Plan, Report, Resource, Silent, diff, execute,
};
use ilot_spec::{HostFacts, Project, Sources};

fn project() -> Project {
    let text = "project_name: lab\nglobal: {addressing: {base_octet: 10}}\ndomains: {}\n";
    let loaded = ilot_spec::parse(&Sources::single("infra.yml", text), &HostFacts::default());
    assert_eq!(loaded.errors, []);
    loaded.project.unwrap()
}

/// Carries nothing out but notes the order; fails and panics where it is told to.
#[derive(Default)]
struct Model {
    fails: HashSet<&'static str>,
    panics: HashSet<&'static str>,
    performed: Mutex<Vec<String>>,
}

impl Engine for Model {
    fn name(&self) -> &'static str {
        "model"
    }

    fn desired(&self, _: &Project) -> Result<Vec<Resource>, EngineError> {
        Ok(Vec::new())
    }

    fn actual(&self, _: &Project) -> Result<Vec<Resource>, EngineError> {
        Ok(Vec::new())
    }

    fn perform(&self, _: &Project, change: &Change, _: &dyn Events) -> Result<(), EngineError> {
        self.performed.lock().unwrap().push(change.to_string());
        assert!(!self.panics.contains(change.name.as_str()), "out of cheese");
        if self.fails.contains(change.name.as_str()) {
            return Err(EngineError::new("no space").with_help("make some"));
        }
        Ok(())
    }
}

fn two_domains() -> Vec<Resource> {
    let machine = |name: &str, domain: &str| Resource::new(Kind::Machine, name).in_domain(domain);
    vec![
        Resource::new(Kind::Firewall, "firewall"),
        Resource::new(Kind::Domain, "a"),
        Resource::new(Kind::Domain, "b"),
        machine("a1", "a"),
        machine("a2", "a"),
        machine("b1", "b"),
    ]
}

fn run(engine: &Model, plan: &Plan, workers: usize) -> Report {
    execute(engine, &project(), plan, &Silent, ExecuteOptions { workers, cancelled: None }).unwrap()
}

fn told(plan: &Plan, report: &Report) -> Vec<String> {
    let tell = |(change, outcome): (&Change, &Outcome)| match outcome {
        Outcome::Done => format!("{}: done", change.name),
        Outcome::Failed(error) => format!("{}: {}", change.name, error.full_message()),
        Outcome::Skipped(because) => format!("{}: skipped, {because}", change.name),
    };
    plan.changes.iter().zip(&report.outcomes).map(tell).collect()
}

#[test]
fn everything_is_done_in_order() {
    for workers in [1, 2, 8, 0] {
        let plan = diff(&two_domains(), &[]);
        let engine = Model::default();
        let report = run(&engine, &plan, workers);
        assert!(report.is_success());
        let performed = engine.performed.into_inner().unwrap();
        let at = |what: &str| performed.iter().position(|p| p == what).unwrap();
        assert_eq!(performed.len(), 6);
        assert_eq!(at("create firewall"), 0);
        assert!(at("create domain a") < at("create machine a1"));
        assert!(at("create domain b") < at("create machine b1"));
    }
}

#[test]
fn a_failed_domain_leaves_the_other_one_converged() {
    let plan = diff(&two_domains(), &[]);
    let engine = Model { fails: ["a"].into(), ..Model::default() };
    let report = run(&engine, &plan, 4);
    assert_eq!(
        told(&plan, &report),
        [
            "firewall: done",
            "a: no space",
            "b: done",
            "a1: skipped, domain `a` failed",
            "a2: skipped, domain `a` failed",
            "b1: done",
        ]
    );
    assert_eq!(report.counts(), (3, 1, 2));
    assert_eq!(report.failures(&plan).next().unwrap().1.help(), Some("make some"));
}

#[test]
fn without_a_firewall_nothing_is_started() {
    let plan = diff(&two_domains(), &[]);
    let engine = Model { fails: ["firewall"].into(), ..Model::default() };
    let report = run(&engine, &plan, 4);
    assert_eq!(report.counts(), (0, 1, 5));
    assert_eq!(told(&plan, &report)[5], "b1: skipped, the firewall failed");
}

#[test]
fn the_firewall_stays_when_a_removal_fails() {
    let plan = diff(&[], &two_domains());
    let engine = Model { fails: ["a1"].into(), ..Model::default() };
    let report = run(&engine, &plan, 4);
    assert_eq!(
        told(&plan, &report),
        [
            "a1: no space",
            "a2: done",
            "b1: done",
            "a: skipped, machine `a1` failed",
            "b: done",
            "firewall: skipped, machine `a1` failed",
        ]
    );
}

#[test]
fn a_failed_removal_does_not_hold_new_things_up() {
    let old = [Resource::new(Kind::Machine, "old").in_domain("a")];
    let plan = diff(&two_domains(), &old);
    let engine = Model { fails: ["old"].into(), ..Model::default() };
    let report = run(&engine, &plan, 4);
    assert_eq!(report.counts(), (6, 1, 0));
    assert_eq!(engine.performed.into_inner().unwrap()[0], "delete machine old");
}

#[test]
fn a_panic_is_one_failure_among_others() {
    let plan = diff(&two_domains(), &[]);
    let engine = Model { panics: ["a1"].into(), ..Model::default() };
    let report = run(&engine, &plan, 2);
    assert_eq!(told(&plan, &report)[3], "a1: create machine a1: internal error: out of cheese");
    assert_eq!(report.counts(), (5, 1, 0));
}

/// Raises the flag as soon as the firewall stands.
struct Interrupt<'a>(&'a AtomicBool);

impl Events for Interrupt<'_> {
    fn finished(&self, _: &Change, _: &Outcome) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_interruption_begins_nothing_more() {
    let plan = diff(&two_domains(), &[]);
    let flag = AtomicBool::new(false);
    let options = ExecuteOptions { workers: 4, cancelled: Some(&flag) };
    let report = execute(&Model::default(), &project(), &plan, &Interrupt(&flag), options).unwrap();
    assert_eq!(report.counts(), (1, 0, 5));
    assert_eq!(told(&plan, &report)[1], "a: skipped, the run was interrupted");
}

/// Every machine waits until all of them are being worked on.
struct Meeting(Barrier, AtomicUsize);

impl Engine for Meeting {
    fn name(&self) -> &'static str {
        "meeting"
    }

    fn desired(&self, _: &Project) -> Result<Vec<Resource>, EngineError> {
        Ok(Vec::new())
    }

    fn actual(&self, _: &Project) -> Result<Vec<Resource>, EngineError> {
        Ok(Vec::new())
    }

    fn perform(&self, _: &Project, change: &Change, _: &dyn Events) -> Result<(), EngineError> {
        if change.kind == Kind::Machine {
            self.0.wait();
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn machines_are_worked_on_side_by_side() {
    let plan = diff(&two_domains(), &[]);
    let engine = Meeting(Barrier::new(3), AtomicUsize::new(0));
    let options = ExecuteOptions { workers: 3, cancelled: None };
    assert!(execute(&engine, &project(), &plan, &Silent, options).unwrap().is_success());
    assert_eq!(engine.1.into_inner(), 3);
}

#[test]
fn ten_thousand_changes_on_many_workers() {
    let mut world = vec![Resource::new(Kind::Firewall, "firewall")];
    for d in 0..100 {
        world.push(Resource::new(Kind::Domain, format!("d{d}")));
        world.extend((0..100).map(|m| Resource::new(Kind::Machine, format!("d{d}-m{m}")).in_domain(format!("d{d}"))));
    }
    let plan = diff(&world, &[]);
    let report = run(&Model::default(), &plan, 8);
    assert_eq!(report.counts(), (10_101, 0, 0));
}
