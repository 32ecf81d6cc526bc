//! The seam between the plan and whatever makes machines.

use std::error::Error;
use std::fmt;

use ilot_spec::Project;

use crate::model::{Change, Plan, Resource};

/// Something that makes a project real: `native`, `incus`, `freebsd`.
pub trait Engine: Sync {
    /// The name that files use in `backend:`.
    fn name(&self) -> &'static str;

    /// What the project should be. Machines come in the order in which they should be started.
    fn desired(&self, project: &Project) -> Result<Vec<Resource>, EngineError>;

    /// What there is of this project, and only of this project: nothing that it does not own.
    fn actual(&self, project: &Project) -> Result<Vec<Resource>, EngineError>;

    /// Called once before the first change is performed, with the whole plan: the place to say what will not be done
    /// and to obtain what several changes need. An error ends the run before anything was changed.
    fn prepare(&self, _project: &Project, _plan: &Plan, _events: &dyn Events) -> Result<(), EngineError> {
        Ok(())
    }

    /// Performs one change. Called from several threads at once, never for two changes of which one depends on the
    /// other. It must leave either the old or the new state when it fails.
    fn perform(&self, project: &Project, change: &Change, events: &dyn Events) -> Result<(), EngineError>;
}

/// Why an engine could not do something.
#[derive(Debug)]
pub struct EngineError {
    message: String,
    help: Option<String>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl EngineError {
    /// An error with its message: `what on what: why`.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, source: None }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to do about it, where there is a cure.
    #[must_use]
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The message with the messages of all causes, `a: b: c`, none twice.
    #[must_use]
    pub fn full_message(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.ends_with(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// How a change ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was made.
    Done,
    /// It could not be made.
    Failed(EngineError),
    /// It was not tried; why.
    Skipped(String),
}

/// Who watches a plan being carried out. Calls come from several threads.
pub trait Events: Sync {
    /// A change begins.
    fn started(&self, _change: &Change) {}

    /// What a change is busy with, and how far (`done` of `total`, in whatever unit the text names).
    fn progress(&self, _change: &Change, _text: &str, _done: Option<(u64, u64)>) {}

    /// A change ended, or was skipped without having begun.
    fn finished(&self, _change: &Change, _outcome: &Outcome) {}

    /// Something that the user should know and that belongs to no change.
    fn note(&self, _text: &str) {}

    /// Whether the user no longer wants to wait: asked often by what takes long and can be begun again (a download).
    fn cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Events for Silent {}
