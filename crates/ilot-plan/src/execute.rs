//! Carrying a plan out: as much side by side as the dependencies allow, and on after a failure.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ilot_spec::Project;

use crate::engine::{Engine, EngineError, Events, Outcome};
use crate::model::{Action, Change, Kind, Plan};

/// How a plan is carried out.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecuteOptions<'a> {
    /// Changes performed at once; 0 chooses by the number of CPUs.
    pub workers: usize,
    /// Once true, no further change is begun; those that run are waited for.
    pub cancelled: Option<&'a AtomicBool>,
}

/// How each change of a plan ended.
#[derive(Debug, Default)]
pub struct Report {
    /// One outcome per change, in the order of the plan.
    pub outcomes: Vec<Outcome>,
    /// What each change took, in the order of the plan; zero for what was skipped.
    pub durations: Vec<Duration>,
    /// Wall time of the whole.
    pub elapsed: Duration,
}

impl Report {
    /// Whether every change was made.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done))
    }

    /// How many changes were made, failed and were skipped.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for outcome in &self.outcomes {
            match outcome {
                Outcome::Done => counts.0 += 1,
                Outcome::Failed(_) => counts.1 += 1,
                Outcome::Skipped(_) => counts.2 += 1,
            }
        }
        counts
    }

    /// The changes that failed, in the order of the plan.
    pub fn failures<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = (&'a Change, &'a EngineError)> {
        plan.changes.iter().zip(&self.outcomes).filter_map(|(change, outcome)| match outcome {
            Outcome::Failed(error) => Some((change, error)),
            _ => None,
        })
    }
}

/// Carries a plan out.
///
/// Removals go first, then the firewall, then domains, then machines: each change waits for what it needs and for
/// nothing else, so domains proceed independently. When a change fails, what needs it is skipped and everything else
/// goes on.
///
/// # Errors
///
/// Only when [`Engine::prepare`] fails; nothing was changed then. What changes run into is in the report.
pub fn execute(
    engine: &dyn Engine,
    project: &Project,
    plan: &Plan,
    events: &dyn Events,
    options: ExecuteOptions<'_>,
) -> Result<Report, EngineError> {
    let begin = Instant::now();
    engine.prepare(project, plan, events)?;
    let graph = Graph::new(&plan.changes);
    let run = Run {
        engine,
        project,
        plan,
        events,
        cancelled: options.cancelled,
        graph: &graph,
        state: Mutex::new(State::new(&graph, plan.changes.len())),
        wake: Condvar::new(),
    };
    let workers = workers(options.workers).min(plan.changes.len());
    match workers {
        0 => {}
        1 => run.work(),
        _ => thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| run.work());
            }
        }),
    }
    let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unreached = || Outcome::Skipped("it was never reached".to_owned());
    Ok(Report {
        outcomes: state.outcomes.into_iter().map(|o| o.unwrap_or_else(unreached)).collect(),
        durations: state.durations,
        elapsed: begin.elapsed(),
    })
}

/// Starting a machine waits for the kernel (grace periods, fsync) more than it computes, so there are more workers
/// than CPUs.
fn workers(asked: usize) -> usize {
    match asked {
        0 => (thread::available_parallelism().map_or(1, NonZero::get) * 4).clamp(4, 32),
        n => n,
    }
}

/// What depends on what. Nodes beyond the changes are meeting points that do nothing.
struct Graph {
    /// For each node, the nodes that wait for it, and whether they are skipped when it fails.
    followers: Vec<Vec<(usize, bool)>>,
    /// For each node, how many nodes it waits for.
    waits_for: Vec<usize>,
}

impl Graph {
    fn new(changes: &[Change]) -> Self {
        let mut graph = Self { followers: vec![Vec::new(); changes.len() + 1], waits_for: vec![0; changes.len() + 1] };
        let removed = changes.len();
        let is = |change: &Change, kind: Kind, deletes: bool| {
            change.kind == kind && (change.action == Action::Delete) == deletes
        };
        let firewall = changes.iter().position(|c| is(c, Kind::Firewall, false));
        let mut domains: HashMap<&str, usize> = HashMap::new();
        let mut gone: HashMap<&str, usize> = HashMap::new();
        for (node, change) in changes.iter().enumerate().filter(|(_, c)| c.kind == Kind::Domain) {
            let map = if change.action == Action::Delete { &mut gone } else { &mut domains };
            map.insert(&change.name, node);
        }
        for (node, change) in changes.iter().enumerate() {
            match (change.kind, change.action) {
                (Kind::Machine, Action::Delete) => {
                    if let Some(&domain) = change.domain.as_deref().and_then(|d| gone.get(d)) {
                        graph.edge(node, domain, true);
                    }
                    graph.edge(node, removed, false);
                }
                (Kind::Domain, Action::Delete) => graph.edge(node, removed, false),
                (Kind::Firewall, Action::Delete) => {
                    // Every removal, and each of them: the filter outlives what it filters.
                    let others = changes.iter().enumerate().filter(|(_, c)| c.kind != Kind::Firewall);
                    for (other, _) in others {
                        graph.edge(other, node, true);
                    }
                }
                (Kind::Firewall, _) => graph.edge(removed, node, false),
                (Kind::Domain, _) => graph.follow(node, firewall, removed),
                (Kind::Machine, _) => {
                    let domain = change.domain.as_deref().and_then(|d| domains.get(d)).copied();
                    graph.follow(node, domain.or(firewall), removed);
                }
            }
        }
        graph
    }

    fn edge(&mut self, before: usize, after: usize, needed: bool) {
        self.followers[before].push((after, needed));
        self.waits_for[after] += 1;
    }

    /// Puts a node behind what it needs, or else behind the removals.
    fn follow(&mut self, node: usize, needs: Option<usize>, removed: usize) {
        match needs {
            Some(needed) => self.edge(needed, node, true),
            None => self.edge(removed, node, false),
        }
    }
}

/// What the workers share.
struct State {
    /// Nodes that wait for nothing any more and were not looked at yet.
    fresh: Vec<usize>,
    /// Changes that can begin, the earliest of the plan first.
    ready: BinaryHeap<Reverse<usize>>,
    /// How many nodes each node still waits for.
    waits_for: Vec<usize>,
    /// For a node of which something it needs has failed: why it is skipped.
    doomed: Vec<Option<String>>,
    outcomes: Vec<Option<Outcome>>,
    durations: Vec<Duration>,
    /// Changes without an outcome.
    open: usize,
}

impl State {
    fn new(graph: &Graph, changes: usize) -> Self {
        let nodes = graph.waits_for.len();
        Self {
            fresh: (0..nodes).filter(|&n| graph.waits_for[n] == 0).collect(),
            ready: BinaryHeap::new(),
            waits_for: graph.waits_for.clone(),
            doomed: vec![None; nodes],
            outcomes: (0..changes).map(|_| None).collect(),
            durations: vec![Duration::ZERO; changes],
            open: changes,
        }
    }

    /// Records how a node ended and releases what waited for it.
    fn finish(&mut self, graph: &Graph, node: usize, blocked: Option<&str>) {
        for &(follower, needed) in &graph.followers[node] {
            if let (Some(because), true) = (blocked, needed) {
                self.doomed[follower].get_or_insert_with(|| because.to_owned());
            }
            self.waits_for[follower] -= 1;
            if self.waits_for[follower] == 0 {
                self.fresh.push(follower);
            }
        }
    }

    fn skip(&mut self, run: &Run<'_>, node: usize, because: String) {
        self.finish(run.graph, node, Some(&because));
        let outcome = Outcome::Skipped(because);
        run.events.finished(&run.plan.changes[node], &outcome);
        self.outcomes[node] = Some(outcome);
        self.open -= 1;
    }

    /// The next change to perform, past everything that needs no work: meeting points and what is skipped.
    fn next(&mut self, run: &Run<'_>) -> Option<usize> {
        loop {
            while let Some(node) = self.fresh.pop() {
                if node >= run.plan.changes.len() {
                    self.finish(run.graph, node, None);
                } else if let Some(because) = self.doomed[node].take() {
                    self.skip(run, node, because);
                } else {
                    self.ready.push(Reverse(node));
                }
            }
            let Reverse(node) = self.ready.pop()?;
            if !run.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Some(node);
            }
            self.skip(run, node, "the run was interrupted".to_owned());
        }
    }
}

struct Run<'a> {
    engine: &'a dyn Engine,
    project: &'a Project,
    plan: &'a Plan,
    events: &'a dyn Events,
    cancelled: Option<&'a AtomicBool>,
    graph: &'a Graph,
    state: Mutex<State>,
    wake: Condvar,
}

impl Run<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker: takes what is ready until nothing is open.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(node) = state.next(self) else {
                if state.open == 0 {
                    self.wake.notify_all();
                    return;
                }
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let begin = Instant::now();
            let change = &self.plan.changes[node];
            let outcome = self.perform(change);
            self.events.finished(change, &outcome);
            state = self.lock();
            let blocked = match &outcome {
                Outcome::Done => None,
                _ => Some(format!("{} failed", subject(change))),
            };
            state.durations[node] = begin.elapsed();
            state.outcomes[node] = Some(outcome);
            state.open -= 1;
            state.finish(self.graph, node, blocked.as_deref());
            self.wake.notify_all();
        }
    }

    fn perform(&self, change: &Change) -> Outcome {
        self.events.started(change);
        // A panic in one machine's change must not take the other domains down with it.
        let performed = catch_unwind(AssertUnwindSafe(|| self.engine.perform(self.project, change, self.events)));
        match performed {
            Ok(Ok(())) => Outcome::Done,
            Ok(Err(error)) => Outcome::Failed(error),
            Err(panic) => {
                let text = (panic.downcast_ref::<&str>().copied())
                    .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                    .unwrap_or("no message");
                let message = format!("{change}: internal error: {text}");
                Outcome::Failed(EngineError::new(message).with_help("this is a defect of ilot: please report it"))
            }
        }
    }
}

fn subject(change: &Change) -> String {
    match change.kind {
        Kind::Firewall => "the firewall".to_owned(),
        kind => format!("{kind} `{}`", change.name),
    }
}
