//! Typed reading of nodes: wrong types, unknown keys and unknown values become problems with a place and a cure.

use std::fmt;
use std::path::PathBuf;

use crate::model::Position;
use crate::problem::{Problem, Related, Sources};
use crate::yaml::{Entry, Kind, Node, Scalar, Span, Value, yaml_1_1_bool};

/// "Did you mean" is answered this often at most: each answer reads all names.
const MAX_SUGGESTIONS: usize = 200;

/// The place of a value in the model, for [`Problem::path`]; costs nothing until it is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    /// The nearest key: what a message calls the value.
    pub(crate) fn name(&self) -> &str {
        match self {
            Path::Root => "the file",
            Path::Key(_, key) => key,
            Path::Index(parent, _) => parent.name(),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => f.write_str(key),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A value with the place that it was read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// Where problems are gathered.
pub(crate) struct Cx<'s> {
    pub(crate) sources: &'s Sources,
    pub(crate) errors: Vec<(Span, Problem)>,
    pub(crate) warnings: Vec<(Span, Problem)>,
    /// A file is missing or broken: what it may define must not be called unknown.
    pub(crate) incomplete: bool,
    suggestions: usize,
}

impl<'s> Cx<'s> {
    pub(crate) fn new(sources: &'s Sources) -> Self {
        Self { sources, errors: Vec::new(), warnings: Vec::new(), incomplete: false, suggestions: 0 }
    }

    pub(crate) fn error(&mut self, span: Span, path: &Path<'_>, message: impl Into<String>) -> &mut Problem {
        let problem = self.problem(span, path, message.into());
        Self::push(&mut self.errors, span, problem)
    }

    pub(crate) fn warning(&mut self, span: Span, path: &Path<'_>, message: impl Into<String>) -> &mut Problem {
        let problem = self.problem(span, path, message.into());
        Self::push(&mut self.warnings, span, problem)
    }

    /// An error about something that stands in two places.
    pub(crate) fn clash(
        &mut self,
        span: Span,
        path: &Path<'_>,
        message: String,
        first: Span,
        note: &str,
    ) -> &mut Problem {
        let related = Related { message: note.into(), at: self.position(first), length: first.length as usize };
        let problem = self.error(span, path, message);
        problem.related.push(related);
        problem
    }

    fn push(list: &mut Vec<(Span, Problem)>, span: Span, problem: Problem) -> &mut Problem {
        let at = list.len();
        list.push((span, problem));
        &mut list[at].1
    }

    fn problem(&self, span: Span, path: &Path<'_>, message: String) -> Problem {
        Problem {
            message,
            help: None,
            at: Some(self.position(span)),
            path: path.to_string(),
            length: span.length.max(1) as usize,
            related: Vec::new(),
        }
    }

    pub(crate) fn position(&self, span: Span) -> Position {
        self.sources.position(span)
    }

    /// The known word nearest to a wrong one, if it is near.
    pub(crate) fn nearest<'w>(&mut self, word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
        if self.suggestions >= MAX_SUGGESTIONS || word.len() > 100 {
            return None;
        }
        self.suggestions += 1;
        nearest(word, known)
    }

    pub(crate) fn unknown_key(&mut self, entry: &Entry, path: &Path<'_>, known: &[&str]) {
        let near = self.nearest(&entry.key, known.iter().copied());
        let place = match path {
            Path::Root => "here".to_string(),
            _ => format!("in `{path}`"),
        };
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.len() > 12 => "remove it, or see docs/infra.md for the keys there are".into(),
            None => format!("the keys there are: {}", list(known)),
        };
        self.warning(entry.key_span, &path.key(&entry.key), format!("the key `{}` is not known {place}", entry.key))
            .help(help);
    }

    fn wrong_type(&mut self, node: &Node, path: &Path<'_>, expected: &str, help: String) {
        let message = format!("`{}` must be {expected}, not {}", path.name(), node.describe());
        self.error(node.span, path, message).help(help);
    }

    /// A scalar that is not null.
    fn scalar<'n>(&mut self, node: &'n Node) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(s) => Some(s),
            _ => None,
        }
    }

    /// Text. `None` when absent (null) or, with an error, of another type.
    pub(crate) fn text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        match self.scalar(node) {
            Some(Scalar { kind: Kind::Null, .. }) => return None,
            Some(Scalar { kind: Kind::Text { .. }, text }) => {
                if text.contains('\0') {
                    let message = format!("`{}` holds a zero character", path.name());
                    self.error(node.span, path, message).help("remove it");
                    return None;
                }
                return Some(text);
            }
            Some(Scalar { text, .. }) => self.wrong_type(node, path, "text", format!("put it in quotes: `\"{text}\"`")),
            None => self.wrong_type(node, path, "text", "write a single value".into()),
        }
        None
    }

    /// Text that says something.
    pub(crate) fn filled_text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        let text = self.text(node, path)?;
        if text.trim().is_empty() {
            self.error(node.span, path, format!("`{}` is empty", path.name())).help("write a value, or remove the key");
            return None;
        }
        Some(text)
    }

    /// A boolean; `yes`, `no`, `on` and `off` of YAML 1.1 count, with a warning.
    pub(crate) fn boolean(&mut self, node: &Node, path: &Path<'_>) -> Option<bool> {
        let help = match self.scalar(node) {
            Some(Scalar { kind: Kind::Null, .. }) => return None,
            Some(Scalar { kind: Kind::Bool(value), .. }) => return Some(*value),
            Some(Scalar { kind: Kind::Text { plain: true }, text }) if yaml_1_1_bool(text).is_some() => {
                let value = yaml_1_1_bool(text)?;
                let message = format!("`{text}` is read as `{value}`: an old way to write a boolean");
                self.warning(node.span, path, message).help(format!("write `{value}`"));
                return Some(value);
            }
            Some(Scalar { kind: Kind::Text { plain: false }, text }) if matches!(&**text, "true" | "false") => {
                format!("write `{text}` without quotes")
            }
            _ => "write `true` or `false`".into(),
        };
        self.wrong_type(node, path, "a boolean", help);
        None
    }

    /// A whole number of a range.
    pub(crate) fn integer(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let (from, to) = (*range.start(), *range.end());
        let bounds = if to >= i64::from(u32::MAX) { format!("{from} or more") } else { format!("from {from} to {to}") };
        match self.scalar(node) {
            Some(Scalar { kind: Kind::Null, .. }) => None,
            Some(Scalar { kind: Kind::Int(value), .. }) if range.contains(value) => Some(*value),
            Some(Scalar { kind: Kind::Int(_) | Kind::Float(_), text }) => {
                let message = format!("`{}` is {text}, but must be a whole number {bounds}", path.name());
                self.error(node.span, path, message).help(format!("write a whole number {bounds}"));
                None
            }
            Some(Scalar { kind: Kind::Text { plain: false }, text }) if text.parse::<i64>().is_ok() => {
                self.wrong_type(node, path, "a number", format!("write `{text}` without quotes"));
                None
            }
            _ => {
                self.wrong_type(node, path, "a number", format!("write a whole number {bounds}"));
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        parse: fn(&str) -> Option<T>,
        choices: &'static [&'static str],
    ) -> Option<T> {
        if let Some(Scalar { kind: Kind::Bool(_) | Kind::Int(_) | Kind::Float(_), text }) = self.scalar(node) {
            self.unknown_choice(node.span, path, text, choices);
            return None;
        }
        let text = self.text(node, path)?;
        let value = parse(text);
        if value.is_none() {
            self.unknown_choice(node.span, path, text, choices);
        }
        value
    }

    pub(crate) fn unknown_choice(&mut self, span: Span, path: &Path<'_>, text: &str, choices: &'static [&'static str]) {
        let near = self.nearest(text, choices.iter().copied());
        let help = match near {
            Some(near) => format!("did you mean `{near}`? the choices: {}", list(choices)),
            None => format!("the choices: {}", list(choices)),
        };
        let name = path.name();
        let shown = shorten(text);
        self.error(span, path, format!("`{shown}` is not a known `{name}`")).help(help);
    }

    /// The items of a list; none when null or, with an error, of another type.
    pub(crate) fn list<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            _ if node.is_null() => None,
            Value::Scalar(s) => {
                self.wrong_type(node, path, "a list", format!("write `[{}]`", shorten(&s.text)));
                None
            }
            Value::Mapping(_) => {
                self.wrong_type(node, path, "a list", "start each item with `- `".into());
                None
            }
        }
    }

    /// A list of texts.
    pub(crate) fn text_list(&mut self, node: &Node, path: &Path<'_>) -> Option<Vec<At<String>>> {
        let items = self.list(node, path)?;
        let mut texts = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let path = path.index(i);
            if item.is_null() {
                self.wrong_type(item, &path, "text", "write a value, or remove the item".into());
            } else if let Some(text) = self.text(item, &path) {
                texts.push(At { value: text.to_owned(), span: item.span });
            }
        }
        Some(texts)
    }

    /// The entries of a mapping; none when null or, with an error, of another type.
    pub(crate) fn map<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ if node.is_null() => None,
            Value::Sequence(_) => {
                self.wrong_type(node, path, "a mapping", "write `name: …` lines instead of `- ` items".into());
                None
            }
            Value::Scalar(_) => {
                self.wrong_type(node, path, "a mapping", "write `key: value` lines below it, indented".into());
                None
            }
        }
    }

    /// An absolute path without `..`, its doubled and trailing slashes removed.
    pub(crate) fn absolute_path(&mut self, node: &Node, path: &Path<'_>) -> Option<PathBuf> {
        let text = self.text(node, path)?;
        match absolute(text) {
            Ok(clean) => Some(clean),
            Err(reason) => {
                let message = format!("`{}` of `{}` {reason}", shorten(text), path.name());
                self.error(node.span, path, message).help("write a path from `/` on, without `..`");
                None
            }
        }
    }

    /// A value that Incus keeps as text: texts, numbers and booleans are taken as they are written.
    pub(crate) fn value_text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        match self.scalar(node) {
            Some(Scalar { kind: Kind::Null, .. }) => {
                let message = format!("`{}` has no value", path.name());
                self.error(node.span, path, message).help("write a value, or remove the key");
                None
            }
            Some(Scalar { text, .. }) if text.contains('\0') => {
                self.error(node.span, path, format!("`{}` holds a zero character", path.name())).help("remove it");
                None
            }
            Some(Scalar { text, .. }) => Some(text),
            None => {
                self.wrong_type(node, path, "a single value", "write it as text".into());
                None
            }
        }
    }
}

/// Checks and cleans an absolute path.
pub(crate) fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    if !text.starts_with('/') {
        return Err("is not an absolute path");
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character");
    }
    let mut clean = PathBuf::from("/");
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("climbs with `..`"),
            part => clean.push(part),
        }
    }
    Ok(clean)
}

/// The nearest of the known words by edits, case and `-`/`_` put aside, if it is near enough to be meant.
#[must_use]
pub fn nearest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let fold = |s: &str| s.to_lowercase().replace('_', "-");
    let folded = fold(word);
    let limit = (folded.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .filter(|k| k.len().abs_diff(word.len()) <= limit + 1)
        .map(|k| (strsim::damerau_levenshtein(&folded, &fold(k)), k))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// Words in backticks with commas.
pub(crate) fn list<S: AsRef<str>>(words: &[S]) -> String {
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        text.push('`');
        text.push_str(word.as_ref());
        text.push('`');
    }
    text
}

/// Enough of a text to recognise it.
pub(crate) fn shorten(text: &str) -> std::borrow::Cow<'_, str> {
    let mut end = text.char_indices();
    match end.nth(60) {
        None => text.into(),
        Some((at, _)) => format!("{}…", &text[..at]).into(),
    }
}
