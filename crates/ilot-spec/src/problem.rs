//! What is wrong with a project's files, where, and what to do about it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::model::{Layout, Position, Project};
use crate::yaml::Span;

/// An error or a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong, on what, why; lower case.
    pub message: String,
    /// The cure.
    pub help: Option<String>,
    /// Where; `None` when no file is to blame.
    pub at: Option<Position>,
    /// The value's place in the model: `domains.pro.machines.pro-dev.ip`.
    pub path: String,
    /// How many characters of the line are meant.
    pub length: usize,
    /// Other places that belong to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

/// Another place that belongs to a problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Related {
    /// What is there.
    pub message: String,
    /// Where.
    pub at: Position,
    /// How many characters of the line are meant.
    pub length: usize,
}

impl Problem {
    /// A problem that no line of a file is to blame for.
    pub(crate) fn without_place(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
            at: None,
            path: String::new(),
            length: 0,
            related: Vec::new(),
        }
    }

    pub(crate) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "{}:{}:{}: ", at.file.display(), at.line, at.column)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// What a file is to its project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// `infra.yml`, `base.yml` or `anklume.yml`.
    Main,
    /// A file of `domains/`.
    Domains,
    /// `policies.yml`.
    Policies,
    /// `ilot.yml`.
    Ilot,
}

/// One file of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// The path, as the user named it.
    pub path: PathBuf,
    /// What it is to the project.
    pub role: Role,
    /// Its text.
    #[serde(skip)]
    pub text: String,
}

/// Every file of a project, read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sources {
    /// How they are laid out.
    pub layout: Layout,
    /// The file or directory that the user named.
    pub root: PathBuf,
    /// The name of the directory that holds a project directory: its project's name when none is written.
    pub directory: Option<String>,
    /// The files in the order in which they are read; the main file is the first.
    pub files: Vec<SourceFile>,
    /// Files that could not be read.
    pub unreadable: Vec<Problem>,
}

impl Sources {
    /// One file's text as a project of the single-file layout.
    #[must_use]
    pub fn single(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let path = path.into();
        Self {
            layout: Layout::SingleFile,
            root: path.clone(),
            directory: None,
            files: vec![SourceFile { path, role: Role::Main, text: text.into() }],
            unreadable: Vec::new(),
        }
    }

    /// The text of a file, to show the line of a [`Position`].
    #[must_use]
    pub fn text(&self, file: &Path) -> Option<&str> {
        self.files.iter().find(|f| f.path == file).map(|f| f.text.as_str())
    }

    /// The line that a position names, without its end.
    #[must_use]
    pub fn line(&self, at: &Position) -> Option<&str> {
        self.text(&at.file)?.lines().nth(at.line.checked_sub(1)? as usize)
    }

    pub(crate) fn position(&self, span: Span) -> Position {
        let file = self.files.get(span.file as usize).map(|f| f.path.clone()).unwrap_or_default();
        Position { file, line: span.line, column: span.column }
    }
}

/// What came of reading a project.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The project; present when there is no error.
    pub project: Option<Project>,
    /// Every error, in the order of the files.
    pub errors: Vec<Problem>,
    /// Every warning, in the order of the files.
    pub warnings: Vec<Problem>,
    /// The files' texts.
    pub sources: Sources,
}
