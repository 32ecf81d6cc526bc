//! One way to write a project's files: the order of keys and the layout of the text.

use std::path::PathBuf;

use serde_json::Value;

use crate::edit::{self, Unsupported};
use crate::model::{HostFacts, Project};
use crate::problem::Sources;

/// A file as it was and as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formatted {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// Its text.
    pub before: String,
    /// The same in the one way to write it.
    pub after: String,
}

impl Formatted {
    /// Whether the file is not yet written that way.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.before != self.after
    }
}

/// Why a project cannot be written anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It has errors.
    #[error("the files have {0} errors")]
    Invalid(usize),
    /// Something in it is written in a way that cannot be moved.
    #[error("cannot format `{}`, line {line}: {what}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// 1-based.
        line: usize,
        /// What stands there.
        what: String,
    },
    /// It would not mean the same.
    #[error("cannot format `{}`: the result would not mean the same", .0.display())]
    Meaning(PathBuf),
    /// A comment or an anchor would be gone.
    #[error("cannot format `{}`: a comment or an anchor would be lost", .0.display())]
    Lost(PathBuf),
}

impl FormatError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "`ilot check` shows them",
            Self::Unsupported { .. } => "write it more simply: keys on one line, anchors before their values",
            Self::Meaning(_) | Self::Lost(_) => {
                "this is a mistake of ilot's: please report it with the file; nothing was changed"
            }
        }
    }
}

/// Writes the files of a project anew: known keys in the order of the reference, two spaces per level, comments, anchors
/// and quotes kept. That nothing is lost and that they mean the same is checked.
///
/// # Errors
///
/// Files with errors, and what cannot be rearranged: see [`FormatError`].
pub fn format(sources: &Sources, host: &HostFacts) -> Result<Vec<Formatted>, FormatError> {
    let (before, errors, _) = crate::judge(sources, host);
    let Some(before) = before else { return Err(FormatError::Invalid(errors.len())) };
    let mut after = sources.clone();
    for file in &mut after.files {
        let unsupported = |Unsupported { line, what }| FormatError::Unsupported { file: file.path.clone(), line, what };
        let mut document = edit::read(&file.text).map_err(unsupported)?;
        edit::order::order(&mut document, sources.layout, file.role);
        let text = document.print();
        if marks(&text) != marks(&file.text) {
            return Err(FormatError::Lost(file.path.clone()));
        }
        file.text = text;
    }
    let (project, ..) = crate::judge(&after, host);
    if !project.is_some_and(|project| same_model(&before, &project)) {
        return Err(FormatError::Meaning(sources.root.clone()));
    }
    let files = sources.files.iter().zip(after.files);
    Ok(files.map(|(old, new)| Formatted { path: new.path, before: old.text.clone(), after: new.text }).collect())
}

/// How many comments, anchors and aliases there can be: what is written is moved, never added or left out.
fn marks(text: &str) -> [usize; 3] {
    ['#', '&', '*'].map(|mark| text.matches(mark).count())
}

/// Whether two projects mean the same, wherever in their files it stands.
#[must_use]
pub fn same_model(a: &Project, b: &Project) -> bool {
    meaning(a) == meaning(b)
}

/// A project without its places.
pub(crate) fn meaning(project: &Project) -> Option<Value> {
    let mut value = serde_json::to_value(project).ok()?;
    forget_places(&mut value);
    Some(value)
}

fn forget_places(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let place = fields.get("at").is_some_and(|at| at.get("line").is_some() && at.get("column").is_some());
            if place {
                fields.shift_remove("at");
            }
            fields.values_mut().for_each(forget_places);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_places),
        _ => {}
    }
}
