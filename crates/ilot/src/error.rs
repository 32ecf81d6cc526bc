//! What the user sees when a command fails, and the exit code that a script sees.

use std::error::Error;
use std::fmt;

use owo_colors::OwoColorize;
use serde_json::json;

use crate::context::Context;
use crate::ui;

/// Wrong arguments.
pub const USAGE: u8 = 2;

/// What sort of failure it was; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Exit code 1: what was asked for could not be done.
    Failure,
    /// Exit code 2: the command line makes no sense.
    Usage,
    /// Exit code 125: `run` or `exec` failed before the command was reached.
    Engine,
    /// Exit code 126: the command is there but cannot be executed.
    NotExecutable,
    /// Exit code 127: the command does not exist.
    NotFound,
    /// Exit code 1, and everything was said already.
    Reported,
}

/// A failed command: its kind, what happened, and what to do about it.
#[derive(Debug)]
pub struct CommandError {
    kind: ErrorKind,
    source: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
}

impl CommandError {
    /// A failure with its message: `what on what: why`.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: ErrorKind::Failure, source: source.into(), hints: Vec::new() }
    }

    /// Wrong arguments.
    pub fn usage(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(source).of_kind(ErrorKind::Usage)
    }

    /// A failure about which everything was said already.
    #[must_use]
    pub fn reported() -> Self {
        Self::new("already reported").of_kind(ErrorKind::Reported)
    }

    /// Sets the kind.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds what to do about it, where there is something.
    #[must_use]
    pub fn maybe_hint(mut self, hint: Option<impl Into<String>>) -> Self {
        self.hints.extend(hint.map(Into::into));
        self
    }

    /// The code with which the program ends.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Failure | ErrorKind::Reported => 1,
            ErrorKind::Usage => USAGE,
            ErrorKind::Engine => 125,
            ErrorKind::NotExecutable => 126,
            ErrorKind::NotFound => 127,
        }
    }

    /// The message with those of its causes: `a: b: c`, none twice.
    #[must_use]
    pub fn message(&self) -> String {
        let mut text = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }

    /// Tells the user: text on standard error, and with `--json` an object on standard output.
    pub(crate) fn report(&self, context: &Context) {
        if self.kind == ErrorKind::Reported {
            return;
        }
        let message = self.message();
        if context.json {
            ui::print_json(&json!({ "error": { "message": message, "hints": self.hints } }));
        }
        ui::complain(&format!("{} {message}", "error:".red().bold()));
        for hint in &self.hints {
            ui::complain(&format!(" {} {hint}", "hint:".cyan().bold()));
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl Error for CommandError {}

impl From<ilot_plan::EngineError> for CommandError {
    fn from(error: ilot_plan::EngineError) -> Self {
        let help = error.help().map(str::to_owned);
        Self::new(error).maybe_hint(help)
    }
}

impl From<ilot_native::Error> for CommandError {
    fn from(error: ilot_native::Error) -> Self {
        let help = error.help();
        Self::new(error).maybe_hint(help)
    }
}

impl From<ilot_image::Error> for CommandError {
    fn from(error: ilot_image::Error) -> Self {
        let help = error.help();
        Self::new(error).maybe_hint(help)
    }
}

impl From<ilot_build::Error> for CommandError {
    fn from(error: ilot_build::Error) -> Self {
        let help = error.help();
        Self::new(error).maybe_hint(help)
    }
}

impl From<ilot_plan::UnknownNames> for CommandError {
    fn from(error: ilot_plan::UnknownNames) -> Self {
        let help = error.help();
        Self::new(error).maybe_hint(help)
    }
}
