//! From a text to a document: the parser's events say what there is, the text between them how it is written.

use std::iter::Peekable;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::lex::Cursor;
use super::{Body, Collection, Comment, Document, Item, Key, Node, Scalar, Unsupported};

type Found<T> = Result<T, Unsupported>;

/// Reads a text that [`crate::yaml::parse`] accepts.
pub(crate) fn read(text: &str) -> Found<Document> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut reader = Reader {
        cursor: Cursor::new(&text),
        events: Parser::new_from_str(&text).peekable(),
        key_column: None,
        brackets: 0,
    };
    reader.document()
}

struct Reader<'t> {
    cursor: Cursor,
    events: Peekable<Parser<'t, StrInput<'t>>>,
    /// Where the key of the value that comes next stands.
    key_column: Option<usize>,
    /// How many brackets are open.
    brackets: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Found<(Event<'t>, Span)> {
        match self.events.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(Unsupported { line: error.marker().line(), what: error.info().to_owned() }),
            None => Err(self.cursor.unsupported("the end of the file")),
        }
    }

    fn peek(&mut self) -> Option<&Event<'t>> {
        self.events.peek().and_then(|event| event.as_ref().ok()).map(|(event, _)| event)
    }

    fn document(&mut self) -> Found<Document> {
        let mut document = Document::default();
        self.prolog(&mut document);
        while matches!(self.peek(), Some(Event::StreamStart | Event::DocumentStart(_))) {
            self.next()?;
        }
        if !matches!(self.peek(), Some(Event::StreamEnd) | None) {
            let (event, span) = self.next()?;
            let (props, flow) = self.properties(&event)?;
            let block = !flow && matches!(event, Event::MappingStart(..) | Event::SequenceStart(..));
            if !block {
                document.header = std::mem::take(&mut self.cursor.own);
            }
            document.header.extend(std::mem::take(&mut self.cursor.eol).into_iter().map(Comment::new));
            let mut node = self.node(event, span, props, flow)?;
            self.cursor.gap();
            document.tail.extend(std::mem::take(&mut self.cursor.eol).into_iter().map(Comment::new));
            if block && let Some(first) = node.collection_mut().and_then(|all| all.items.first_mut()) {
                document.header.extend(header(first));
            }
            document.root = Some(node);
        }
        self.cursor.gap();
        if self.cursor.marker() == Some("...") {
            self.cursor.token(3);
            self.cursor.gap();
        }
        let rest = self.cursor.eol.drain(..).map(Comment::new);
        document.tail.extend(rest);
        document.tail.append(&mut self.cursor.own);
        if self.cursor.peek().is_some() {
            return Err(self.cursor.unsupported("something behind the end of the document"));
        }
        Ok(document)
    }

    /// Directives and `---`.
    fn prolog(&mut self, document: &mut Document) {
        self.cursor.gap();
        while self.cursor.peek() == Some('%') && self.cursor.column() == 0 {
            document.prolog.extend(self.cursor.own.drain(..).map(|comment| comment.text));
            let directive = self.cursor.rest_of_line();
            document.prolog.push(directive);
            self.cursor.gap();
        }
        if self.cursor.marker() == Some("---") {
            document.prolog.extend(self.cursor.own.drain(..).map(|comment| comment.text));
            self.cursor.token(3);
            self.cursor.gap();
            let comment: String = self.cursor.eol.drain(..).map(|text| format!(" {text}")).collect();
            document.prolog.push(format!("---{comment}"));
        }
    }

    /// Takes the anchor and the tag of an event; says whether a bracket follows.
    fn properties(&mut self, event: &Event<'t>) -> Found<(Vec<String>, bool)> {
        let count = |anchor: &usize, tag: bool| usize::from(*anchor != 0) + usize::from(tag);
        let has = |tag: &Option<std::borrow::Cow<'_, Tag>>| tag.is_some();
        let count = match event {
            Event::Scalar(_, _, anchor, tag) | Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                count(anchor, has(tag))
            }
            _ => 0,
        };
        let mut props = Vec::with_capacity(count);
        for _ in 0..count {
            self.cursor.gap();
            if !matches!(self.cursor.peek(), Some('&' | '!')) {
                return Err(self.cursor.unsupported("an anchor or a tag that does not stand before its value"));
            }
            props.push(self.cursor.word());
        }
        self.cursor.gap();
        Ok((props, matches!(self.cursor.peek(), Some('{' | '['))))
    }

    fn node(&mut self, event: Event<'t>, span: Span, props: Vec<String>, flow: bool) -> Found<Node> {
        let body = match event {
            Event::Scalar(text, style, ..) => self.scalar(&text, style, span)?,
            Event::Alias(_) => Body::Alias(self.cursor.word()),
            Event::MappingStart(..) if flow => Body::Map(self.flow('}')?),
            Event::SequenceStart(..) if flow => Body::Seq(self.flow(']')?),
            Event::MappingStart(..) => Body::Map(self.block(false)?),
            Event::SequenceStart(..) => Body::Seq(self.block(true)?),
            other => return Err(self.cursor.unsupported(format!("{other:?}"))),
        };
        Ok(Node { props, body })
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) -> Found<Body> {
        let start = self.cursor.at;
        let raw = match style {
            ScalarStyle::Plain if text.is_empty() => return Ok(Body::Null),
            // The parser takes it for text; YAML does not, and outside of brackets nobody does.
            ScalarStyle::Plain if self.brackets > 0 && text.starts_with(['|', '>']) => {
                return Err(self.cursor.unsupported("a text in brackets that begins with `|` or `>`, without quotes"));
            }
            ScalarStyle::Plain => {
                let raw = self.cursor.slice(start, span.end.index()).trim_end().to_owned();
                self.cursor.token(raw.chars().count());
                raw
            }
            ScalarStyle::SingleQuoted => self.cursor.quoted('\''),
            ScalarStyle::DoubleQuoted => self.cursor.quoted('"'),
            ScalarStyle::Literal | ScalarStyle::Folded => return self.cursor.block(text).map(Body::Block),
        };
        let mut lines: Vec<String> = raw.split('\n').map(str::to_owned).collect();
        for line in lines.iter_mut().skip(1) {
            *line = line.trim_start_matches([' ', '\t']).to_owned();
        }
        let plain = style == ScalarStyle::Plain;
        Ok(Body::Scalar(Scalar { lines, text: text.to_owned(), plain }))
    }

    fn key(&mut self) -> Found<Key> {
        let (event, span) = self.next()?;
        let (props, _) = self.properties(&event)?;
        let line = self.cursor.line;
        let node = self.node(event, span, props, false)?;
        match node.body {
            Body::Scalar(Scalar { mut lines, text, .. }) if lines.len() == 1 => {
                Ok(Key { props: node.props, raw: lines.remove(0), text })
            }
            Body::Alias(raw) => Ok(Key { props: node.props, raw, text: String::new() }),
            _ => Err(Unsupported { line, what: "a key that does not stand on one line".into() }),
        }
    }

    /// The items of a mapping or sequence without brackets.
    fn block(&mut self, sequence: bool) -> Found<Collection> {
        let mut all = Collection::default();
        let indent = self.cursor.column();
        // A sequence at the column of its key: what stands there behind it belongs to the key's mapping.
        let outer = usize::from(sequence && self.key_column.take() == Some(indent));
        while !matches!(self.peek(), Some(Event::MappingEnd | Event::SequenceEnd) | None) {
            self.cursor.gap();
            let column = self.cursor.column();
            let blank = self.cursor.blank_above();
            let lead = std::mem::take(&mut self.cursor.own);
            let mut item = Item { blank, lead, ..Item::default() };
            if sequence {
                if !self.cursor.block_indicator('-') {
                    return Err(self.cursor.unsupported("an item without its `-`"));
                }
            } else {
                if self.cursor.block_indicator('?') {
                    self.cursor.gap();
                }
                item.key = Some(self.key()?);
                self.cursor.gap();
                self.cursor.indicator(':');
            }
            self.key_column = Some(column).filter(|_| !sequence);
            self.value(&mut item)?;
            if matches!(item.node.body, Body::Null) {
                item.inner = self.comments_within(column + 1);
            }
            all.items.push(item);
        }
        self.next()?;
        all.tail = self.comments_within(indent + outer);
        Ok(all)
    }

    /// The comments from here that are indented enough to belong to a block that ends here.
    fn comments_within(&mut self, indent: usize) -> Vec<Comment> {
        let next = self.cursor.next_column();
        let own = &mut self.cursor.own;
        let count = own.iter().take_while(|c| c.column >= indent && next.is_none_or(|next| c.column > next)).count();
        own.drain(..count).collect()
    }

    /// The value of an item, with the comments that belong to its line.
    fn value(&mut self, item: &mut Item) -> Found<()> {
        let (event, span) = self.next()?;
        let empty = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, 0, None) if text.is_empty());
        let (props, flow) = if empty {
            self.cursor.gap();
            (Vec::new(), false)
        } else {
            self.properties(&event)?
        };
        let block = !flow && matches!(event, Event::MappingStart(..) | Event::SequenceStart(..));
        let mut eol = std::mem::take(&mut self.cursor.eol);
        if !block && !empty {
            item.lead.append(&mut self.cursor.own);
        }
        item.node = self.node(event, span, props, flow)?;
        if !block {
            if !empty {
                // What an empty pair of brackets held.
                item.lead.append(&mut self.cursor.own);
            }
            self.cursor.gap();
            eol.append(&mut self.cursor.eol);
        }
        item.eol = eol.pop();
        item.lead.extend(eol.into_iter().map(Comment::new));
        Ok(())
    }

    /// The items of a mapping or sequence in brackets.
    fn flow(&mut self, close: char) -> Found<Collection> {
        let mut all = Collection { flow: true, ..Collection::default() };
        let mut above = std::mem::take(&mut self.cursor.own);
        self.cursor.token(1);
        self.brackets += 1;
        self.cursor.gap();
        above.extend(std::mem::take(&mut self.cursor.eol).into_iter().map(Comment::new));
        while !matches!(self.peek(), Some(Event::MappingEnd | Event::SequenceEnd) | None) {
            self.cursor.gap();
            let blank = self.cursor.blank_above() && !all.items.is_empty();
            above.append(&mut self.cursor.own);
            let mut item = Item { blank, lead: std::mem::take(&mut above), ..Item::default() };
            if close == '}' {
                self.pair(&mut item)?;
            } else if self.is_pair() {
                self.next()?;
                let mut pair = Item::default();
                self.pair(&mut pair)?;
                self.next()?;
                item.lead.append(&mut pair.lead);
                item.eol = pair.eol.take();
                item.node.body = Body::Map(Collection { items: vec![pair], flow: true, ..Collection::default() });
            } else {
                self.value(&mut item)?;
            }
            self.cursor.gap();
            self.cursor.indicator(',');
            self.cursor.gap();
            if let Some(eol) = self.cursor.eol.pop() {
                item.lead.extend(item.eol.replace(eol).map(Comment::new));
            }
            item.lead.extend(self.cursor.eol.drain(..).map(Comment::new));
            all.items.push(item);
        }
        self.next()?;
        self.cursor.gap();
        above.append(&mut self.cursor.own);
        if !self.cursor.indicator(close) {
            return Err(self.cursor.unsupported(format!("something other than `{close}`")));
        }
        self.brackets -= 1;
        if all.items.is_empty() {
            self.cursor.own = above;
        } else {
            all.tail = above;
        }
        Ok(all)
    }

    /// Whether a mapping of one pair without brackets follows, as in `[a: b]`.
    fn is_pair(&mut self) -> bool {
        matches!(self.peek(), Some(Event::MappingStart(0, None))) && self.cursor.peek() != Some('{')
    }

    /// A key and its value in brackets.
    fn pair(&mut self, item: &mut Item) -> Found<()> {
        if self.cursor.block_indicator('?') {
            self.cursor.gap();
        }
        item.key = Some(self.key()?);
        self.cursor.gap();
        self.cursor.indicator(':');
        self.value(item)
    }
}

/// The comments above the first key that are about the whole file: those with a blank line below them.
fn header(first: &mut Item) -> Vec<Comment> {
    let cut = if first.blank {
        first.lead.len()
    } else {
        first.lead.iter().rposition(|comment| comment.blank).unwrap_or_default()
    };
    let for_editors =
        first.lead.iter().take_while(|comment| comment.text.starts_with("# yaml-language-server")).count();
    let cut = cut.max(for_editors);
    first.blank = false;
    let mut rest = first.lead.split_off(cut);
    if let Some(comment) = rest.first_mut() {
        comment.blank = false;
    }
    std::mem::replace(&mut first.lead, rest)
}
