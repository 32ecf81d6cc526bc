//! From a document to a text: two spaces per level, one blank line at most, comments at one column in adjacent lines.

use super::{Body, Collection, Comment, Document, Item, Node, Scalar};

/// Brackets that would make a line longer than this are written without brackets, in columns.
const WIDTH: usize = 120;
/// Comments behind lines longer than this are not put at one column with others.
const ALIGNED: usize = 80;
const STEP: usize = 2;

pub(super) fn print(document: &Document) -> String {
    let mut printer = Printer::default();
    for line in &document.prolog {
        printer.line(0, line.clone());
    }
    printer.comments(0, &document.header, false);
    if !document.header.is_empty() && document.root.is_some() {
        printer.blank();
    }
    if let Some(root) = &document.root {
        printer.root(root);
    }
    printer.comments(0, &document.tail, false);
    printer.finish()
}

#[derive(Default)]
struct Printer {
    lines: Vec<Line>,
    /// A blank line here would be part of a text.
    open: bool,
}

#[derive(Default)]
struct Line {
    text: String,
    comment: Option<String>,
}

impl Printer {
    fn line(&mut self, indent: usize, text: impl AsRef<str>) {
        self.open = false;
        let text = format!("{}{}", " ".repeat(indent), text.as_ref());
        self.lines.push(Line { text, comment: None });
    }

    fn blank(&mut self) {
        if !self.open && self.lines.last().is_some_and(|line| !line.text.is_empty()) {
            self.lines.push(Line::default());
        }
    }

    /// Comments with a line of their own; `first` keeps blank lines from the start of a block.
    fn comments(&mut self, indent: usize, comments: &[Comment], first: bool) {
        for (i, comment) in comments.iter().enumerate() {
            if comment.blank && !(first && i == 0) {
                self.blank();
            }
            self.line(indent, &comment.text);
        }
    }

    /// A comment behind the last line.
    fn eol(&mut self, comment: Option<&String>) {
        if let (Some(line), Some(comment)) = (self.lines.last_mut(), comment) {
            line.comment = Some(comment.clone());
        }
    }

    fn root(&mut self, root: &Node) {
        match &root.body {
            Body::Map(all) | Body::Seq(all) => {
                let line = inline(root).filter(|line| !all.items.is_empty() && line.chars().count() <= WIDTH);
                if all.items.is_empty() || line.is_some() {
                    let line = line.unwrap_or_else(|| with_props(&root.props, empty(root)));
                    self.line(0, line);
                    self.comments(0, &all.tail, false);
                    return;
                }
                if !root.props.is_empty() {
                    self.line(0, root.props.join(" "));
                }
                self.block(0, all, matches!(root.body, Body::Seq(_)));
            }
            _ => self.value(0, "", root, None),
        }
    }

    fn block(&mut self, indent: usize, all: &Collection, sequence: bool) {
        for (i, item) in all.items.iter().enumerate() {
            self.above(indent, item, i == 0);
            self.item(indent, item, sequence);
        }
        self.comments(indent, &all.tail, false);
    }

    /// What stands above an item.
    fn above(&mut self, indent: usize, item: &Item, first: bool) {
        self.comments(indent, &item.lead, first);
        if item.blank && !(first && item.lead.is_empty()) {
            self.blank();
        }
    }

    fn item(&mut self, indent: usize, item: &Item, sequence: bool) {
        if sequence {
            self.dash(indent, item);
            return;
        }
        let mut text = String::new();
        if let Some(key) = &item.key {
            text.push_str(&with_props(&key.props, &key.raw));
            // An alias would take the colon for a part of its name.
            text.push_str(if key.raw.starts_with('*') { " :" } else { ":" });
        }
        self.value(indent, &text, &item.node, item.eol.as_ref());
        self.comments(indent + STEP, &item.inner, true);
    }

    fn dash(&mut self, indent: usize, item: &Item) {
        let node = &item.node;
        let compact = item.eol.is_none() && node.props.is_empty() && fits(indent, 1, node).is_none();
        if let (true, Body::Map(all) | Body::Seq(all)) = (compact, &node.body)
            && let Some((first, others)) = all.items.split_first()
            && first.lead.is_empty()
        {
            let sequence = matches!(node.body, Body::Seq(_));
            self.item_after_dash(indent, first, sequence);
            for other in others {
                self.above(indent + STEP, other, false);
                self.item(indent + STEP, other, sequence);
            }
            self.comments(indent + STEP, &all.tail, false);
            return;
        }
        self.value(indent, "-", node, item.eol.as_ref());
        self.comments(indent + STEP, &item.inner, true);
    }

    /// The first item of a block, on the line of the dash before it.
    fn item_after_dash(&mut self, indent: usize, item: &Item, sequence: bool) {
        let start = self.lines.len();
        self.item(indent + STEP, item, sequence);
        if let Some(line) = self.lines.get_mut(start) {
            let text = line.text.trim_start().to_owned();
            line.text = format!("{}- {text}", " ".repeat(indent));
        }
    }

    /// A value behind its key or dash.
    fn value(&mut self, indent: usize, before: &str, node: &Node, eol: Option<&String>) {
        let joined = |more: &str| match (before.is_empty(), more.is_empty()) {
            (true, _) => more.to_owned(),
            (_, true) => before.to_owned(),
            _ => format!("{before} {more}"),
        };
        match &node.body {
            Body::Null => {
                self.line(indent, joined(&node.props.join(" ")));
                self.eol(eol);
            }
            Body::Alias(raw) => {
                self.line(indent, joined(raw));
                self.eol(eol);
            }
            Body::Scalar(Scalar { lines, .. }) => {
                for (i, line) in lines.iter().enumerate() {
                    if i == 0 {
                        self.line(indent, joined(&with_props(&node.props, line)));
                    } else {
                        let indent = if line.is_empty() { 0 } else { indent + STEP };
                        self.line(indent, line);
                    }
                }
                self.eol(eol);
            }
            Body::Block(block) => {
                self.line(indent, joined(&with_props(&node.props, &block.header())));
                self.eol(block.comment.as_ref().or(eol));
                for line in &block.lines {
                    let indent = if line.is_empty() { 0 } else { indent + STEP };
                    self.line(indent, line);
                }
                self.open = block.chomping == Some('+');
            }
            Body::Map(all) | Body::Seq(all) => {
                if let Some(line) = fits(indent, before.chars().count(), node) {
                    self.line(indent, joined(&line));
                    self.eol(eol);
                    self.comments(indent, &all.tail, false);
                    return;
                }
                self.line(indent, joined(&node.props.join(" ")));
                self.eol(eol);
                self.block(indent + STEP, all, matches!(node.body, Body::Seq(_)));
            }
        }
    }

    /// Puts the comments of adjacent lines at one column.
    fn finish(self) -> String {
        let width = |line: &Line| line.text.chars().count();
        let aligned = |line: &Line| line.comment.is_some() && width(line) <= ALIGNED;
        let mut text = String::new();
        let mut column = 0;
        for (i, line) in self.lines.iter().enumerate() {
            text.push_str(&line.text);
            if let Some(comment) = &line.comment {
                if !aligned(line) {
                    column = width(line);
                } else if i == 0 || !aligned(&self.lines[i - 1]) {
                    column = self.lines[i..].iter().take_while(|line| aligned(line)).map(width).max().unwrap_or(0);
                }
                text.push_str(&" ".repeat(column - width(line) + 2));
                text.push_str(comment);
            }
            text.push('\n');
        }
        text
    }
}

/// Brackets in one line, if they were brackets and there is room.
fn fits(indent: usize, before: usize, node: &Node) -> Option<String> {
    let all = node.collection()?;
    if all.items.is_empty() {
        return Some(with_props(&node.props, empty(node)));
    }
    inline(node).filter(|line| indent + before + 1 + line.chars().count() <= WIDTH)
}

fn with_props(props: &[String], rest: &str) -> String {
    let mut text = String::new();
    for prop in props {
        text.push_str(prop);
        text.push(' ');
    }
    text.push_str(rest);
    text
}

fn empty(node: &Node) -> &'static str {
    if matches!(node.body, Body::Seq(_)) { "[]" } else { "{}" }
}

/// A value in brackets in one line; `None` where something in it needs lines of its own.
fn inline(node: &Node) -> Option<String> {
    let text = match &node.body {
        Body::Null if node.props.is_empty() => "null".to_owned(),
        Body::Null => String::new(),
        Body::Alias(raw) => raw.clone(),
        Body::Scalar(Scalar { lines, .. }) if lines.len() == 1 => lines[0].clone(),
        Body::Scalar(_) | Body::Block(_) => return None,
        Body::Map(all) | Body::Seq(all) if all.items.is_empty() && all.tail.is_empty() => empty(node).to_owned(),
        Body::Map(all) | Body::Seq(all) => {
            if !all.flow || !all.tail.is_empty() {
                return None;
            }
            let items: Option<Vec<String>> = all.items.iter().map(inline_item).collect();
            let items = items?.join(", ");
            if matches!(node.body, Body::Seq(_)) { format!("[{items}]") } else { format!("{{{items}}}") }
        }
    };
    Some(with_props(&node.props, &text).trim_end().to_owned())
}

fn inline_item(item: &Item) -> Option<String> {
    if !item.lead.is_empty() || item.eol.is_some() || !item.inner.is_empty() {
        return None;
    }
    let value = inline(&item.node)?;
    let Some(key) = &item.key else { return Some(value) };
    let colon = if key.raw.starts_with('*') { " :" } else { ":" };
    Some(format!("{}{colon} {value}", with_props(&key.props, &key.raw)))
}
