//! YAML with positions: every key and every value knows its line, column and length.
//!
//! The text is read with `saphyr-parser` and resolved by the YAML 1.2 core schema, so that a quoted `"true"` is text
//! and `0 2 * * *` is too. Hostile files are bounded: size, depth, and the nodes that aliases and merge keys expand to.

mod build;
mod scalar;

pub use build::parse;
pub(crate) use scalar::yaml_1_1_bool;

/// A file larger than this is refused, in bytes.
pub const MAX_BYTES: usize = 4 << 20;
/// Deeper nesting than this is refused.
pub const MAX_DEPTH: usize = 64;
/// More nodes than this in one file, aliases expanded, are refused.
pub const MAX_NODES: usize = 250_000;

/// Where something stands: a file of the sources, and 1-based line and column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Index of the file in [`crate::Sources::files`].
    pub file: u32,
    /// 1-based line.
    pub line: u32,
    /// 1-based column, in characters.
    pub column: u32,
    /// Length on that line, in characters.
    pub length: u32,
}

impl Span {
    /// The first character of a file.
    #[must_use]
    pub fn start_of(file: u32) -> Self {
        Self { file, line: 1, column: 1, length: 1 }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its place: for an alias, that of the anchor's value.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A single value.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values in their order, merge keys already resolved; no key twice.
    Mapping(Vec<Entry>),
}

/// A single value: its text as written (quotes removed), and its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    /// The text.
    pub text: String,
    /// The type by the YAML 1.2 core schema.
    pub kind: Kind,
}

/// The type of a scalar by the YAML 1.2 core schema.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// Text; `plain` when it was written without quotes.
    Text {
        /// Written without quotes.
        plain: bool,
    },
}

/// One key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key's text.
    pub key: String,
    /// The key's place.
    pub key_span: Span,
    /// The value.
    pub value: Node,
}

/// Why a text is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What is wrong, lower case.
    pub message: String,
    /// The cure.
    pub help: Option<String>,
    /// Where.
    pub span: Span,
    /// Another place that belongs to it, and what is there.
    pub related: Option<(String, Span)>,
}

/// What a text contained.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// The document; `None` for an empty file, or when a syntax error hides it.
    pub root: Option<Node>,
    /// What is wrong with the text.
    pub errors: Vec<Error>,
    /// A syntax error or a limit stopped the reading.
    pub broken: bool,
}

impl Node {
    /// Whether it is `null`, `~` or nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.kind == Kind::Null)
    }

    /// The same value as JSON; mapping order is kept, not-a-number and infinities become text.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.value {
            Value::Scalar(s) => match s.kind {
                Kind::Null => Json::Null,
                Kind::Bool(b) => Json::Bool(b),
                Kind::Int(i) => Json::from(i),
                Kind::Float(f) => {
                    serde_json::Number::from_f64(f).map_or_else(|| Json::String(s.text.to_string()), Json::Number)
                }
                Kind::Text { .. } => Json::String(s.text.to_string()),
            },
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => {
                Json::Object(entries.iter().map(|e| (e.key.to_string(), e.value.to_json())).collect())
            }
        }
    }

    /// What kind of thing it is, with its article, for messages.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        match &self.value {
            Value::Scalar(s) => match s.kind {
                Kind::Null => "nothing",
                Kind::Bool(_) => "a boolean",
                Kind::Int(_) | Kind::Float(_) => "a number",
                Kind::Text { .. } => "text",
            },
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}
