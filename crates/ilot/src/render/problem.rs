//! Errors and warnings of a project's files: the place, the line with a caret, and the cure.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ilot_spec::{Loaded, Position, Problem};
use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents, Severity,
    SourceCode, SourceSpan, SpanContents, ThemeCharacters, ThemeStyles,
};
use serde_json::{Value, json};

/// How a problem is drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// With colours.
    pub color: bool,
    /// Columns of the terminal.
    pub width: usize,
}

/// Every error and warning as text, errors last: they are what the user has to see.
pub(crate) fn report(loaded: &Loaded, look: Look) -> String {
    let styles = if look.color { ThemeStyles::ansi() } else { ThemeStyles::none() };
    let theme = GraphicalTheme { characters: ThemeCharacters::unicode(), styles };
    let handler =
        GraphicalReportHandler::new_themed(theme).with_width(look.width).with_links(false).with_context_lines(1);
    let mut files: HashMap<PathBuf, Arc<Lines>> = HashMap::new();
    let mut text = String::new();
    let problems = loaded.warnings.iter().map(|p| (Severity::Warning, p));
    for (severity, problem) in problems.chain(loaded.errors.iter().map(|p| (Severity::Error, p))) {
        let source = problem.at.as_ref().and_then(|at| lines(loaded, &mut files, &at.file));
        let shown = Shown::new(problem, severity, source);
        // Writing to a string cannot fail.
        let _ = handler.render_report(&mut text, &shown);
        text.push('\n');
    }
    text
}

/// A problem as `--json` shows it.
pub(crate) fn as_json(problem: &Problem) -> Value {
    let at = problem.at.as_ref();
    json!({
        "message": problem.message,
        "file": at.map(|at| at.file.display().to_string()),
        "line": at.map(|at| at.line),
        "column": at.map(|at| at.column),
        "path": problem.path,
        "help": problem.help,
    })
}

fn lines(loaded: &Loaded, files: &mut HashMap<PathBuf, Arc<Lines>>, file: &Path) -> Option<Arc<Lines>> {
    if let Some(lines) = files.get(file) {
        return Some(Arc::clone(lines));
    }
    let lines = Arc::new(Lines::new(file, loaded.sources.text(file)?));
    files.insert(file.to_owned(), Arc::clone(&lines));
    Some(lines)
}

/// A file whose lines are found without reading it from the start each time.
#[derive(Debug)]
struct Lines {
    name: String,
    text: String,
    /// Where each line begins, in bytes.
    starts: Vec<usize>,
}

impl Lines {
    fn new(file: &Path, text: &str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: file.display().to_string(), text: text.to_owned(), starts }
    }

    /// The bytes of one line, its end included.
    fn line(&self, index: usize) -> &str {
        let end = self.starts.get(index + 1).copied().unwrap_or(self.text.len());
        self.starts.get(index).and_then(|&start| self.text.get(start..end)).unwrap_or_default()
    }

    /// `length` characters from a position, ending with its line.
    fn span(&self, at: &Position, length: usize) -> SourceSpan {
        let index = (at.line.saturating_sub(1) as usize).min(self.starts.len() - 1);
        let line = self.line(index).trim_end_matches(['\n', '\r']);
        let byte = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(byte, _)| byte);
        let column = at.column.saturating_sub(1) as usize;
        let (from, to) = (byte(column), byte(column + length.max(1)));
        SourceSpan::from((self.starts[index] + from, to - from))
    }
}

impl SourceCode for Lines {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let line_of = |offset: usize| self.starts.partition_point(|&start| start <= offset) - 1;
        let (first, last) = (line_of(span.offset()), line_of(span.offset() + span.len()));
        let top = first.saturating_sub(before);
        let bottom = (last + after).min(self.starts.len() - 1);
        let (start, column) = if before == 0 {
            let ahead = self.text.get(self.starts[first]..span.offset()).ok_or(MietteError::OutOfBounds)?;
            (span.offset(), ahead.chars().count())
        } else {
            (self.starts[top], 0)
        };
        let end = self.starts[bottom] + self.line(bottom).len();
        let data = self.text.as_bytes().get(start..end).ok_or(MietteError::OutOfBounds)?;
        let whole = SourceSpan::from((start, end - start));
        let name = self.name.clone();
        Ok(Box::new(MietteSpanContents::new_named(name, data, whole, top, column, bottom - top + 1)))
    }
}

/// A problem in miette's terms.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    severity: Severity,
    source: Option<Arc<Lines>>,
    labels: Vec<LabeledSpan>,
    /// Places in other files, as text.
    elsewhere: String,
}

impl<'a> Shown<'a> {
    fn new(problem: &'a Problem, severity: Severity, source: Option<Arc<Lines>>) -> Self {
        let mut labels = Vec::new();
        let mut elsewhere = String::new();
        if let (Some(lines), Some(at)) = (&source, &problem.at) {
            labels.push(LabeledSpan::new_primary_with_span(None, lines.span(at, problem.length)));
            for other in &problem.related {
                if other.at.file == at.file {
                    let span = lines.span(&other.at, other.length);
                    labels.push(LabeledSpan::new_with_span(Some(other.message.clone()), span));
                } else {
                    let place = format!("{}:{}:{}", other.at.file.display(), other.at.line, other.at.column);
                    elsewhere.push_str(&format!(" ({}: {place})", other.message));
                }
            }
        }
        Self { problem, severity, source, labels, elsewhere }
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.problem.message, self.elsewhere)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'h>(&'h self) -> Option<Box<dyn fmt::Display + 'h>> {
        self.problem.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as _)
    }
}
