//! The characters between the parser's events: white space, comments, indicators, the names of anchors.

use super::{Block, Comment, Unsupported};

/// A place in a text.
pub(super) struct Cursor {
    chars: Vec<char>,
    pub(super) at: usize,
    pub(super) line: usize,
    line_start: usize,
    /// The line of the last token's end.
    token_line: usize,
    /// The same, or that of a comment further down.
    last_line: usize,
    /// Comments with a line of their own that nobody took yet.
    pub(super) own: Vec<Comment>,
    /// Comments behind a token that nobody took yet.
    pub(super) eol: Vec<String>,
}

impl Cursor {
    pub(super) fn new(text: &str) -> Self {
        Self {
            chars: text.chars().collect(),
            at: 0,
            line: 1,
            line_start: 0,
            token_line: 0,
            last_line: 0,
            own: Vec::new(),
            eol: Vec::new(),
        }
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    pub(super) fn char_at(&self, at: usize) -> Option<char> {
        self.chars.get(at).copied()
    }

    pub(super) fn column(&self) -> usize {
        self.at - self.line_start
    }

    /// The column of what comes next; `None` at the end of the document.
    pub(super) fn next_column(&self) -> Option<usize> {
        self.peek().filter(|_| self.marker().is_none()).map(|_| self.column())
    }

    /// A blank line stands above this place.
    pub(super) fn blank_above(&self) -> bool {
        self.last_line > 0 && self.line > self.last_line + 1
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> Unsupported {
        Unsupported { line: self.line, what: what.into() }
    }

    fn bump(&mut self) {
        if self.peek() == Some('\n') {
            self.line += 1;
            self.line_start = self.at + 1;
        }
        self.at += 1;
    }

    /// Moves over characters that are part of a token.
    pub(super) fn token(&mut self, count: usize) {
        for _ in 0..count {
            self.bump();
        }
        self.token_line = self.line;
        self.last_line = self.line;
    }

    /// Moves over white space and comments, which it keeps.
    pub(super) fn gap(&mut self) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' | '\n' => self.bump(),
                '#' => {
                    let column = self.column();
                    let text = self.rest_of_line();
                    if self.line == self.token_line {
                        self.eol.push(text);
                    } else {
                        self.own.push(Comment { text, blank: self.blank_above(), column });
                    }
                    self.last_line = self.line;
                }
                _ => break,
            }
        }
    }

    /// The rest of this line, without spaces at its end.
    pub(super) fn rest_of_line(&mut self) -> String {
        let start = self.at;
        while self.peek().is_some_and(|c| c != '\n') {
            self.at += 1;
        }
        self.slice(start, self.at).trim_end().to_owned()
    }

    pub(super) fn slice(&self, from: usize, to: usize) -> String {
        self.chars[from.min(self.chars.len())..to.min(self.chars.len())].iter().collect()
    }

    /// `---` or `...` at the start of this line.
    pub(super) fn marker(&self) -> Option<&'static str> {
        if self.column() != 0 {
            return None;
        }
        let ends = self.char_at(self.at + 3).is_none_or(|c| matches!(c, ' ' | '\t' | '\n'));
        ["---", "..."]
            .into_iter()
            .find(|marker| ends && marker.chars().enumerate().all(|(i, c)| self.char_at(self.at + i) == Some(c)))
    }

    /// Takes an indicator such as `:`, if it stands here.
    pub(super) fn indicator(&mut self, indicator: char) -> bool {
        let found = self.peek() == Some(indicator);
        if found {
            self.token(1);
        }
        found
    }

    /// Takes `-` or `?` with white space behind it, if it stands here.
    pub(super) fn block_indicator(&mut self, indicator: char) -> bool {
        let spaced = self.char_at(self.at + 1).is_none_or(|c| matches!(c, ' ' | '\t' | '\n'));
        spaced && self.indicator(indicator)
    }

    /// An anchor, a tag or an alias.
    pub(super) fn word(&mut self) -> String {
        let start = self.at;
        let mut end = start;
        if self.char_at(start) == Some('!') && self.char_at(start + 1) == Some('<') {
            while self.char_at(end).is_some_and(|c| c != '>') {
                end += 1;
            }
            end += 1;
        }
        while self.char_at(end).is_some_and(|c| !matches!(c, ' ' | '\t' | '\n' | ',' | '[' | ']' | '{' | '}')) {
            end += 1;
        }
        self.token(end - start);
        self.slice(start, end)
    }

    /// A quoted scalar, with its quotes.
    pub(super) fn quoted(&mut self, quote: char) -> String {
        let start = self.at;
        let mut end = start + 1;
        while let Some(c) = self.char_at(end) {
            if c == '\\' && quote == '"' {
                end += 1;
            } else if c == quote {
                if quote != '\'' || self.char_at(end + 1) != Some('\'') {
                    break;
                }
                end += 1;
            }
            end += 1;
        }
        self.token(end + 1 - start);
        self.slice(start, end + 1)
    }

    /// A literal or folded block whose value is known.
    pub(super) fn block(&mut self, value: &str) -> Result<Block, Unsupported> {
        let Some(style) = self.peek() else { return Err(self.unsupported("the end of the file")) };
        let (mut chomping, mut explicit) = (None, false);
        self.token(1);
        while let Some(c) = self.peek().filter(|c| matches!(c, '+' | '-' | '0'..='9')) {
            if c.is_ascii_digit() {
                explicit = true;
            } else {
                chomping = Some(c);
            }
            self.token(1);
        }
        let header = self.rest_of_line();
        let comment = Some(header.trim()).filter(|text| text.starts_with('#')).map(str::to_owned);
        let mut raw: Vec<String> = Vec::new();
        let lead = |line: &str| line.chars().take_while(|&c| c == ' ').count();
        let mut indent = None;
        let value_lead = value.lines().find(|line| !line.trim_matches(' ').is_empty()).map(lead);
        let mut at = self.at + 1;
        // Where the block's last line that counts ends.
        let mut end = self.at;
        while at < self.chars.len() {
            let mut stop = at;
            while self.char_at(stop).is_some_and(|c| c != '\n') {
                stop += 1;
            }
            let line = self.slice(at, stop);
            let blank = line.chars().all(|c| c == ' ');
            if !blank {
                let Some(value_lead) = value_lead else { break };
                let indent = *indent.get_or_insert_with(|| lead(&line).saturating_sub(value_lead));
                if lead(&line) < indent {
                    break;
                }
            }
            raw.push(line);
            if !blank || chomping == Some('+') {
                end = stop;
            }
            at = stop + 1;
        }
        let indent = indent.unwrap_or(0);
        let mut lines: Vec<String> = raw.iter().map(|line| line.chars().skip(indent).collect()).collect();
        if chomping != Some('+') {
            while lines.last().is_some_and(String::is_empty) {
                lines.pop();
            }
            if lines.last().is_some_and(|line| line.chars().all(|c| c == ' ')) {
                return Err(self.unsupported("a block of text that ends in a line of spaces"));
            }
        }
        if !value.is_empty() && !value.ends_with('\n') {
            chomping = Some('-');
        }
        if value.is_empty() {
            lines.clear();
        }
        // A first line with spaces in front of it needs the number.
        explicit |= lines.first().is_some_and(|line| line.starts_with(' '));
        let block = Block { style, chomping, explicit, comment, lines };
        if !means(&block, value) {
            return Err(self.unsupported("a block of text with an unusual end"));
        }
        self.token(end - self.at);
        Ok(block)
    }
}

/// Whether a block means a text where something follows it, which is how it is printed.
fn means(block: &Block, value: &str) -> bool {
    let mut text = format!("a: {}\n", block.header());
    for line in &block.lines {
        if !line.is_empty() {
            text.push_str("  ");
            text.push_str(line);
        }
        text.push('\n');
    }
    text.push_str("b: 1\n");
    let root = crate::yaml::parse(&text, 0).root.map(|root| root.to_json());
    root.is_some_and(|root| root["a"] == value && root["b"] == 1)
}
