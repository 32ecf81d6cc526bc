//! Files as text that can be rearranged: every comment, anchor, quote and order is kept until somebody changes it.
//!
//! [`crate::yaml`] says what a file means; this says how it is written. The structure comes from the same parser, what
//! the parser drops (comments, blank lines, quotes, the names of anchors) is read from the text between its events.

pub(crate) mod anchors;
mod lex;
pub(crate) mod order;
mod print;
mod read;

pub(crate) use read::read;

/// A text that means something in YAML but that cannot be rearranged without risk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsupported {
    /// 1-based line.
    pub(crate) line: usize,
    /// What stands there.
    pub(crate) what: String,
}

/// A comment that has a line of its own, with its `#`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Comment {
    pub(crate) text: String,
    /// A blank line stands above it.
    pub(crate) blank: bool,
    /// 0-based column, where it was read.
    column: usize,
}

impl Comment {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), blank: false, column: 0 }
    }
}

/// A file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document {
    /// Directives and comments above `---`, that line with its own comment, or nothing.
    pub(crate) prolog: Vec<String>,
    /// The comments at the top, which stay there.
    pub(crate) header: Vec<Comment>,
    pub(crate) root: Option<Node>,
    /// Comments at the end that belong to no block.
    pub(crate) tail: Vec<Comment>,
}

/// A value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    /// Its anchor and tag, in their order.
    pub(crate) props: Vec<String>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, Default)]
pub(crate) enum Body {
    /// Nothing is written.
    #[default]
    Null,
    /// `*name`.
    Alias(String),
    Scalar(Scalar),
    Block(Block),
    Map(Collection),
    Seq(Collection),
}

/// A plain or quoted scalar.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    /// As written, without the indentation of its further lines.
    pub(crate) lines: Vec<String>,
    /// What it means.
    pub(crate) text: String,
    /// Without quotes.
    pub(crate) plain: bool,
}

/// A literal or folded block.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// `|` or `>`.
    pub(crate) style: char,
    /// `+`, `-` or nothing.
    pub(crate) chomping: Option<char>,
    /// Its indentation is written down.
    pub(crate) explicit: bool,
    pub(crate) comment: Option<String>,
    /// Its lines without their indentation.
    pub(crate) lines: Vec<String>,
}

/// A mapping or a sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collection {
    pub(crate) items: Vec<Item>,
    /// Comments behind the last item.
    pub(crate) tail: Vec<Comment>,
    /// Written with brackets.
    pub(crate) flow: bool,
}

/// An entry of a mapping, or an item of a sequence (without a key).
#[derive(Debug, Clone, Default)]
pub(crate) struct Item {
    /// A blank line stands above it (below its comments).
    pub(crate) blank: bool,
    /// The comments above it.
    pub(crate) lead: Vec<Comment>,
    pub(crate) key: Option<Key>,
    pub(crate) node: Node,
    /// The comment behind it, on its line.
    pub(crate) eol: Option<String>,
    /// Comments that stand in for its value.
    pub(crate) inner: Vec<Comment>,
}

/// A key.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) props: Vec<String>,
    /// As written: quoted, or `*name`.
    pub(crate) raw: String,
    /// What it means; empty for an alias.
    pub(crate) text: String,
}

impl Key {
    pub(crate) fn new(text: &str) -> Self {
        Self { props: Vec::new(), raw: text.to_owned(), text: text.to_owned() }
    }
}

impl Block {
    /// The line before its text, with the indentation that is printed.
    fn header(&self) -> String {
        let mut text = String::from(self.style);
        if self.explicit {
            text.push('2');
        }
        text.extend(self.chomping);
        text
    }
}

impl Item {
    /// An entry with a value on its line, as it would be written.
    pub(crate) fn scalar(key: &str, value: &str) -> Self {
        let scalar = Scalar {
            lines: vec![value.to_owned()],
            text: value.trim_matches('"').to_owned(),
            plain: !value.starts_with('"'),
        };
        Self::new(key, Node { props: Vec::new(), body: Body::Scalar(scalar) })
    }

    pub(crate) fn new(key: &str, node: Node) -> Self {
        Self { key: Some(Key::new(key)), node, ..Self::default() }
    }

    /// What its key means.
    pub(crate) fn name(&self) -> &str {
        self.key.as_ref().map_or("", |key| key.text.as_str())
    }
}

impl Node {
    pub(crate) fn map(items: Vec<Item>) -> Self {
        Self { props: Vec::new(), body: Body::Map(Collection { items, ..Collection::default() }) }
    }

    pub(crate) fn collection(&self) -> Option<&Collection> {
        match &self.body {
            Body::Map(all) | Body::Seq(all) => Some(all),
            _ => None,
        }
    }

    pub(crate) fn collection_mut(&mut self) -> Option<&mut Collection> {
        match &mut self.body {
            Body::Map(all) | Body::Seq(all) => Some(all),
            _ => None,
        }
    }

    /// The entries, if it is a mapping.
    pub(crate) fn entries(&self) -> Option<&[Item]> {
        match &self.body {
            Body::Map(all) => Some(&all.items),
            _ => None,
        }
    }

    /// The entries, if it is a mapping.
    pub(crate) fn entries_mut(&mut self) -> Option<&mut Vec<Item>> {
        match &mut self.body {
            Body::Map(all) => Some(&mut all.items),
            _ => None,
        }
    }
}

impl Document {
    /// The text, laid out anew.
    pub(crate) fn print(&self) -> String {
        print::print(self)
    }
}
