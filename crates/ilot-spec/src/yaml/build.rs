//! From parser events to the tree: anchors, merge keys, duplicate keys, limits.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as EventSpan, Tag};

use super::scalar::resolve_plain;
use super::{Entry, Error, Kind, MAX_BYTES, MAX_DEPTH, MAX_NODES, Node, Parsed, Scalar, Span, Value};

/// Reads one file's text. `file` is its index in the sources, kept in each span.
#[must_use]
pub fn parse(text: &str, file: u32) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::new(file);
    if text.len() > MAX_BYTES {
        builder.fail(
            format!("the file is larger than {} MiB", MAX_BYTES >> 20),
            "split it: one file per domain under `infra/domains/`",
            Span::start_of(file),
        );
        return builder.finish();
    }
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => {
                if builder.event(event, span).is_err() {
                    break;
                }
            }
            Err(error) => {
                builder.syntax(&error);
                break;
            }
        }
    }
    builder.finish()
}

/// The reading cannot go on; the reason is already recorded.
struct Stop;

/// A container whose end has not been seen.
enum Open {
    Sequence { span: Span, items: Vec<Node>, anchor: usize },
    Mapping { span: Span, entries: Vec<Entry>, merges: Vec<Vec<Entry>>, key: Option<Key>, anchor: usize },
}

struct Key {
    text: String,
    span: Span,
    merge: bool,
}

/// What an anchor stands for, and what one expansion of it costs.
struct Anchored {
    node: Node,
    nodes: usize,
    depth: usize,
}

struct Builder {
    file: u32,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    errors: Vec<Error>,
    broken: bool,
}

impl Builder {
    fn new(file: u32) -> Self {
        Self {
            file,
            open: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            documents: 0,
            nodes: 0,
            errors: Vec::new(),
            broken: false,
        }
    }

    fn finish(self) -> Parsed {
        Parsed { root: if self.broken { None } else { self.root }, errors: self.errors, broken: self.broken }
    }

    fn event(&mut self, event: Event<'_>, at: EventSpan) -> Result<(), Stop> {
        let span = self.span(at);
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.stop(
                        "the file holds more than one document",
                        "keep one document: remove the `---` here and what follows, or move it to a file of its own",
                        span,
                    );
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let kind = self.kind(&text, style, tag.as_deref(), span);
                // An empty value has no characters; point at where it should have stood.
                let span = Span { length: span.length.max(1), ..span };
                let merge = style == ScalarStyle::Plain && &*text == "<<";
                self.count(1, span)?;
                let node = Node { span, value: Value::Scalar(Scalar { text: text.into_owned(), kind }) };
                self.value(node, anchor, merge)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.container_tag(tag.as_deref(), "seq", span);
                self.enter(span)?;
                self.open.push(Open::Sequence { span, items: Vec::new(), anchor });
            }
            Event::MappingStart(anchor, tag) => {
                self.container_tag(tag.as_deref(), "map", span);
                self.enter(span)?;
                let (entries, merges) = (Vec::new(), Vec::new());
                self.open.push(Open::Mapping { span, entries, merges, key: None, anchor });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Alias(id) => self.alias(id, span)?,
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn enter(&mut self, span: Span) -> Result<(), Stop> {
        self.count(1, span)?;
        if self.open.len() >= MAX_DEPTH {
            return self.stop(
                format!("nested deeper than {MAX_DEPTH} levels"),
                "no infrastructure file needs that depth; flatten it",
                span,
            );
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Stop> {
        let (node, anchor) = match self.open.pop() {
            Some(Open::Sequence { span, items, anchor }) => (Node { span, value: Value::Sequence(items) }, anchor),
            Some(Open::Mapping { span, entries, merges, anchor, .. }) => {
                self.duplicates(&entries);
                let entries = if merges.is_empty() { entries } else { merge(merges, entries) };
                (Node { span, value: Value::Mapping(entries) }, anchor)
            }
            None => return Ok(()),
        };
        self.value(node, anchor, false)
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<(), Stop> {
        let Some(anchored) = self.anchors.get(&id) else {
            return self.stop(
                "an alias inside the value that its own anchor names",
                "write the value out, or move the anchor to a value that ends before",
                span,
            );
        };
        let (node, nodes, depth) = (anchored.node.clone(), anchored.nodes, anchored.depth);
        self.count(nodes, span)?;
        if self.open.len() + depth > MAX_DEPTH {
            return self.stop(
                format!("this alias nests deeper than {MAX_DEPTH} levels"),
                "no infrastructure file needs that depth; flatten it",
                span,
            );
        }
        self.value(node, 0, false)
    }

    /// A finished value goes to the container around it, or is the document.
    fn value(&mut self, node: Node, anchor: usize, merge: bool) -> Result<(), Stop> {
        if anchor != 0 {
            let (nodes, depth) = measure(&node);
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, depth });
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { key: key @ None, .. }) => {
                let Value::Scalar(scalar) = node.value else {
                    return self.stop("a key must be text, not a list or a mapping", "give the key a name", node.span);
                };
                if scalar.kind == Kind::Null && scalar.text.is_empty() {
                    return self.stop("a value without a key", "write `key: value`", node.span);
                }
                *key = Some(Key { text: scalar.text, span: node.span, merge });
            }
            Some(Open::Mapping { entries, merges, key, .. }) => {
                let Some(Key { text, span, merge }) = key.take() else { return Ok(()) };
                if merge {
                    match merge_sources(node) {
                        Ok(sources) => merges.extend(sources),
                        Err(span) => self.errors.push(Error {
                            message: "`<<` must be followed by a mapping or a list of mappings".into(),
                            help: Some("name an anchor that stands for a mapping: `<<: *name`".into()),
                            span,
                            related: None,
                        }),
                    }
                } else {
                    entries.push(Entry { key: text, key_span: span, value: node });
                }
            }
        }
        Ok(())
    }

    /// Each key that stands twice in one mapping is an error that names both places.
    fn duplicates(&mut self, entries: &[Entry]) {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by(|&a, &b| entries[a].key.cmp(&entries[b].key).then(a.cmp(&b)));
        for pair in order.windows(2) {
            let (first, second) = (&entries[pair[0]], &entries[pair[1]]);
            if first.key == second.key {
                self.errors.push(Error {
                    message: format!("the key `{}` stands twice in one mapping", second.key),
                    help: Some(format!("keep one of them; the other is on line {}", first.key_span.line)),
                    span: second.key_span,
                    related: Some(("first here".into(), first.key_span)),
                });
            }
        }
    }

    fn kind(&mut self, text: &str, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Kind {
        let plain = style == ScalarStyle::Plain;
        let untagged = if plain { resolve_plain(text) } else { Kind::Text { plain: false } };
        let Some(tag) = tag else { return untagged };
        if tag.handle == "!" && tag.suffix.is_empty() {
            return Kind::Text { plain: false };
        }
        if !tag.is_yaml_core_schema() {
            self.bad_tag(tag, span);
            return untagged;
        }
        let typed = resolve_plain(text);
        match (tag.suffix.as_str(), typed) {
            ("str", _) => Kind::Text { plain: false },
            ("int", Kind::Int(_)) | ("bool", Kind::Bool(_)) | ("null", Kind::Null) | ("float", Kind::Float(_)) => typed,
            #[allow(clippy::cast_precision_loss, reason = "the file asked for a float")]
            ("float", Kind::Int(i)) => Kind::Float(i as f64),
            _ => {
                self.errors.push(Error {
                    message: format!("`{text}` is not of the type that its tag `!!{}` says", tag.suffix),
                    help: Some("remove the tag; the type follows from how the value is written".into()),
                    span,
                    related: None,
                });
                untagged
            }
        }
    }

    fn container_tag(&mut self, tag: Option<&Tag>, expected: &str, span: Span) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == expected)
        {
            self.bad_tag(tag, span);
        }
    }

    fn bad_tag(&mut self, tag: &Tag, span: Span) {
        self.errors.push(Error {
            message: format!("the tag `{tag}` is not known"),
            help: Some("remove the tag; infrastructure files hold plain values only".into()),
            span,
            related: None,
        });
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return self.stop(
                format!("the file expands to more than {MAX_NODES} values"),
                "use fewer aliases to aliases, or split the file",
                span,
            );
        }
        Ok(())
    }

    fn syntax(&mut self, error: &ScanError) {
        let marker = error.marker();
        let span =
            Span { file: self.file, line: small(marker.line()).max(1), column: small(marker.col()) + 1, length: 1 };
        let (message, help) = explain_syntax(error.info());
        self.fail(message, help, span);
    }

    fn fail(&mut self, message: impl Into<String>, help: impl Into<String>, span: Span) {
        self.broken = true;
        self.errors.push(Error { message: message.into(), help: Some(help.into()), span, related: None });
    }

    fn stop(&mut self, message: impl Into<String>, help: impl Into<String>, span: Span) -> Result<(), Stop> {
        self.fail(message, help, span);
        Err(Stop)
    }

    fn span(&self, at: EventSpan) -> Span {
        let one_line = at.start.line() == at.end.line();
        let length = if one_line { at.end.index().saturating_sub(at.start.index()) } else { 1 };
        Span {
            file: self.file,
            line: small(at.start.line()).max(1),
            column: small(at.start.col()) + 1,
            length: small(length),
        }
    }
}

/// Files are at most 4 MiB, so every count in them fits.
fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX - 1)
}

/// Number of nodes and depth of a tree whose depth is bounded already.
fn measure(node: &Node) -> (usize, usize) {
    let (mut nodes, mut depth) = (1, 1);
    let mut add = |child: &Node| {
        let (n, d) = measure(child);
        nodes += n;
        depth = depth.max(d + 1);
    };
    match &node.value {
        Value::Scalar(_) => {}
        Value::Sequence(items) => items.iter().for_each(&mut add),
        Value::Mapping(entries) => entries.iter().for_each(|e| add(&e.value)),
    }
    (nodes, depth)
}

/// The mappings that `<<` names, the weakest first.
fn merge_sources(node: Node) -> Result<Vec<Vec<Entry>>, Span> {
    match node.value {
        Value::Mapping(entries) => Ok(vec![entries]),
        Value::Sequence(items) => items
            .into_iter()
            .rev()
            .map(|item| match item.value {
                Value::Mapping(entries) => Ok(entries),
                _ => Err(item.span),
            })
            .collect(),
        Value::Scalar(_) => Err(node.span),
    }
}

/// Merged keys come first and own ones override them in place: the order that AnKLuMe's reader gives, which decides
/// the addresses of machines.
fn merge(merges: Vec<Vec<Entry>>, own: Vec<Entry>) -> Vec<Entry> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut result: Vec<Entry> = Vec::new();
    for entry in merges.into_iter().flatten().chain(own) {
        if let Some(&at) = places.get(&entry.key) {
            result[at] = entry;
        } else {
            places.insert(entry.key.clone(), result.len());
            result.push(entry);
        }
    }
    result
}

/// The parser's words in ours, with what to do.
fn explain_syntax(info: &str) -> (String, String) {
    let help = match info {
        _ if info.contains("tab") => "indent with spaces; YAML does not allow tabs there",
        _ if info.contains("unknown anchor") => "define the anchor with `&name` above its first use",
        _ if info.contains("quoted scalar") => "close the quotes",
        _ if info.contains("mapping values are not allowed") || info.contains("expected ':'") => {
            "check the indentation, and quote a text that contains `: `"
        }
        _ if info.contains("expected ',' or ']'") || info.contains("flow sequence") => "close the list with `]`",
        _ if info.contains("expected ',' or '}'") || info.contains("flow mapping") => "close the mapping with `}`",
        _ => "check the indentation, the colons and the quotes of this line and the one above",
    };
    (format!("this is not valid YAML: {info}"), help.into())
}
