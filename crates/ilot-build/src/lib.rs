//! Images from a Containerfile.
//!
//! ```text
//! text ─ lines ─ parse ─ plan ─┬─ stage ─ step_run, step_copy ─┬─ image
//!                              └─ stage …                      └─ cache
//! ```
//!
//! Every mistake of form is found before anything is done. Stages that need nothing of one another are built side by
//! side. A step is looked up in the cache by its inputs (the layers it stands on, its words, its environment, the content
//! of what it copies), so that equal inputs give equal layers in whichever file they stand. Steps run in containers of the
//! native engine, and nothing of a build is in the store before it is whole.

mod config;
mod context;
mod copy;
mod error;
mod fetch;
mod glob;
mod ignore;
mod lines;
mod mode;
mod mounts;
mod options;
mod parse;
mod plan;
mod platform;
mod stage;
mod step_copy;
mod step_run;
mod tree;
mod words;
mod work;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ilot_image::{Image, Named, Progress};
use ilot_native::Native;
use serde_json::{Map, Value, json};

pub use error::{Error, Place, Result};
pub use options::{Built, Context, Events, FileAt, Options, Pull, Secret, StepEnd, StepInfo};

use plan::{Base, Given, Plan};
use platform::Platform;
use stage::{Finished, Others};
use work::Work;

/// Arguments that are no mistake when no ARG has them.
const WELL_KNOWN: [&str; 1] = ["SOURCE_DATE_EPOCH"];

/// Builds an image.
///
/// # Errors
/// For a mistake in the file, with its place; when a step fails; and whatever store, engine and network give. Nothing of
/// the image is in the store then, but layers of finished steps are in the cache.
pub fn build(native: &Native, options: &Options, events: &dyn Events, progress: &dyn Progress) -> Result<Built> {
    let platform = options.platform.as_deref().map_or_else(|| Ok(Platform::host()), Platform::parse)?;
    let workshop = native.images().workshop()?;
    let found = context::open(options, &workshop, progress, &|| events.cancelled())?;
    let file = parse::parse(&found.name, &found.text)?;
    let given = Given { arguments: &options.arguments, target: options.target.as_deref(), platform: &platform };
    let plan = plan::plan(file, &given)?;
    for name in unused(&plan, options) {
        events.note(&format!("no ARG takes the build argument `{name}`"));
    }
    let builder = native.begin_build(options.net.clone(), options.jobs)?;
    let work = Work::new(&builder, &workshop, options, events, progress, &found.tree);
    let total: usize = plan.needed.iter().map(|stage| plan.stages[*stage].instructions.len() + 1).sum();
    work.total.store(total, Ordering::Relaxed);
    let finished = all_stages(&work, &plan)?;
    commit(&work, finished, options)
}

fn unused<'o>(plan: &Plan, options: &'o Options) -> Vec<&'o String> {
    let proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
    let known = |name: &&String| {
        plan.declared.contains(name.as_str())
            || plan.automatic.contains_key(name.as_str())
            || WELL_KNOWN.contains(&name.as_str())
            || proxy(name)
    };
    options.arguments.keys().filter(|name| !known(name)).collect()
}

/// What came of the stages so far.
#[derive(Default)]
struct Board {
    finished: Mutex<BTreeMap<usize, Finished>>,
    changed: Condvar,
    error: Mutex<Option<Error>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stage's view of the others.
struct View<'a> {
    board: &'a Board,
    work: &'a Work<'a>,
}

impl Others for View<'_> {
    fn stage(&self, index: usize) -> Option<Finished> {
        let mut finished = held(&self.board.finished);
        loop {
            if let Some(stage) = finished.get(&index) {
                return Some(stage.clone());
            }
            if self.work.cancelled() {
                return None;
            }
            let wait = std::time::Duration::from_millis(100);
            finished = self.board.changed.wait_timeout(finished, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Builds every stage that is needed: each in a thread of its own, which waits for those that it needs.
fn all_stages(work: &Work<'_>, plan: &Plan) -> Result<Finished> {
    let board = Board::default();
    std::thread::scope(|scope| {
        for index in &plan.needed {
            let (stage, board) = (&plan.stages[*index], &board);
            scope.spawn(move || {
                match stage::build(work, plan, stage, &View { board, work }) {
                    Ok(finished) => {
                        held(&board.finished).insert(stage.index, finished);
                    }
                    Err(error) => {
                        let mut first = held(&board.error);
                        // What ended because another stage failed is not why the build did.
                        if first.as_ref().is_none_or(|e| matches!(e, Error::Cancelled)) {
                            *first = Some(error);
                        }
                        work.failed.store(true, Ordering::Relaxed);
                    }
                }
                board.changed.notify_all();
            });
        }
    });
    if let Some(error) = held(&board.error).take() {
        return Err(error);
    }
    held(&board.finished).remove(&plan.target).ok_or(Error::Cancelled)
}

fn commit(work: &Work<'_>, finished: Finished, options: &Options) -> Result<Built> {
    let mut config = finished.config;
    for (name, value) in &options.labels {
        config.set_label(name, value);
    }
    let newest = finished.layers.iter().filter_map(|layer| layer.created).max();
    let created = match options.epoch.or(newest) {
        Some(seconds) => jiff::Timestamp::from_second(seconds).ok(),
        None => config.created(),
    };
    config.set_created(created);
    let mut annotations: Map<String, Value> = Map::new();
    if let Some((name, digest)) = &finished.base {
        annotations.insert("org.opencontainers.image.base.digest".to_owned(), json!(digest));
        annotations.insert("org.opencontainers.image.base.name".to_owned(), json!(name));
    }
    for (name, value) in &options.annotations {
        annotations.insert(name.clone(), json!(value));
    }
    let image: Image = work.workshop.commit(&Named {
        names: &options.names,
        layers: &finished.layers,
        configuration: config.whole(),
        annotations: &annotations,
        source: "ilot image build",
    })?;
    let steps = (work.begun.load(Ordering::Relaxed), work.hits.load(Ordering::Relaxed));
    Ok(Built { image, steps })
}

/// Says which base images a Containerfile names, without building it.
///
/// # Errors
/// For a mistake in the file.
pub fn bases(name: &str, text: &str, arguments: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let given = Given { arguments, target: None, platform: &Platform::host() };
    let plan = plan::plan(parse::parse(name, text)?, &given)?;
    let name = |stage: &plan::Stage| match &stage.base {
        Base::Image(name) => Some(name.clone()),
        _ => None,
    };
    Ok(plan.stages.iter().filter_map(name).collect())
}
