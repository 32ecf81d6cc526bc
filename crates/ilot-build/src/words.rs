//! Words as a Containerfile has them: quotes, escapes and variables.
//!
//! The rules are those of the Dockerfile reference ("Environment replacement"): `$a`, `${a}`, `${a:-x}`, `${a-x}`,
//! `${a:+x}`, `${a+x}`, `${a:?x}`, `${a?x}`, `${a#x}`, `${a##x}`, `${a%x}`, `${a%%x}`, `${a/x/y}`, `${a//x/y}`. Nothing
//! is replaced in single quotes, and a variable that is not set is empty.

use std::iter::Peekable;
use std::str::Chars;

use crate::glob;

/// What a variable is, if it is set.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One word: quotes removed, variables replaced.
pub(crate) fn word(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let mut lexer = Lexer { chars: text.chars().peekable(), escape, lookup, depth: 0 };
    let mut out = Words::default();
    lexer.until(None, &mut out)?;
    Ok(out.whole)
}

/// The words of a text, split at blanks outside quotes after variables were replaced.
pub(crate) fn words(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, String> {
    let mut lexer = Lexer { chars: text.chars().peekable(), escape, lookup, depth: 0 };
    let mut out = Words::default();
    lexer.until(None, &mut out)?;
    out.end();
    Ok(out.words)
}

/// A text in which quotes mean nothing: variables are replaced, the escape keeps a `$` and itself.
pub(crate) fn heredoc(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    let mut lexer = Lexer { chars: text.chars().peekable(), escape, lookup, depth: 0 };
    let mut out = String::new();
    while let Some(c) = lexer.chars.next() {
        match c {
            '$' => out.push_str(&lexer.dollar()?),
            c if c == escape => match lexer.chars.next_if(|next| *next == '$' || *next == escape) {
                Some(next) => out.push(next),
                None => out.push(c),
            },
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Splits at blanks outside quotes and keeps everything else as it is, with where each word begins (in bytes).
pub(crate) fn split(text: &str, escape: char) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if quote.is_none() && !escaped && c.is_whitespace() {
            if let Some(from) = start.take() {
                words.push((from, &text[from..at]));
            }
            continue;
        }
        start.get_or_insert(at);
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, c) if c == escape => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    if let Some(from) = start {
        words.push((from, &text[from..]));
    }
    words
}

/// What is read, as one text and as words.
#[derive(Default)]
struct Words {
    whole: String,
    words: Vec<String>,
    current: Option<String>,
}

impl Words {
    fn plain(&mut self, c: char) {
        self.whole.push(c);
        if c.is_whitespace() { self.end() } else { self.current.get_or_insert_default().push(c) }
    }

    fn quoted(&mut self, text: &str) {
        self.whole.push_str(text);
        self.current.get_or_insert_default().push_str(text);
    }

    fn end(&mut self) {
        self.words.extend(self.current.take());
    }
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    depth: usize,
}

/// How deep `${a:-${b:-…}}` may go.
const DEPTH: usize = 32;

impl Lexer<'_> {
    fn until(&mut self, stop: Option<char>, out: &mut Words) -> Result<(), String> {
        while let Some(c) = self.chars.next() {
            match c {
                c if Some(c) == stop => return Ok(()),
                '\'' => self.single(out)?,
                '"' => self.double(out)?,
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| out.plain(c));
                }
                c if c == self.escape => match self.chars.next() {
                    Some(c) => out.quoted(c.encode_utf8(&mut [0; 4])),
                    None => return Ok(()),
                },
                c => out.plain(c),
            }
        }
        match stop {
            None => Ok(()),
            Some(stop) => Err(format!("`{stop}` is missing")),
        }
    }

    fn single(&mut self, out: &mut Words) -> Result<(), String> {
        let mut text = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                out.quoted(&text);
                return Ok(());
            }
            text.push(c);
        }
        Err("the closing `'` is missing".to_owned())
    }

    fn double(&mut self, out: &mut Words) -> Result<(), String> {
        let mut text = String::new();
        while let Some(c) = self.chars.next() {
            match c {
                '"' => {
                    out.quoted(&text);
                    return Ok(());
                }
                '$' => text.push_str(&self.dollar()?),
                c if c == self.escape => match self.chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => text.push(next),
                    Some(next) => text.extend([c, next]),
                    None => text.push(c),
                },
                c => text.push(c),
            }
        }
        Err("the closing `\"` is missing".to_owned())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        if let Some(c) = self.chars.next_if(|c| matches!(c, '@' | '*' | '#' | '?')) {
            return c.to_string();
        }
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            // `$1x` is `$1` and an `x`.
            if name.len() == 1 && c.is_ascii_digit() {
                break;
            }
        }
        name
    }

    fn dollar(&mut self) -> Result<String, String> {
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { (self.lookup)(&name).unwrap_or_default() });
        }
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("too many `${` in one another".to_owned());
        }
        let name = self.name();
        if name.is_empty() {
            return Err("`${` has no name after it".to_owned());
        }
        let value = (self.lookup)(&name);
        let result = match self.chars.next() {
            Some('}') => Ok(value.unwrap_or_default()),
            Some(':') => {
                let value = value.filter(|v| !v.is_empty());
                match self.chars.next() {
                    Some(c @ ('-' | '+' | '?')) => self.modified(&name, value, c),
                    Some(c) => Err(format!("`${{{name}:{c}` is no modifier; there are `:-`, `:+` and `:?`")),
                    None => Err(format!("`}}` is missing after `${{{name}`")),
                }
            }
            Some(c @ ('-' | '+' | '?')) => self.modified(&name, value, c),
            Some(c @ ('#' | '%')) => {
                let longest = self.chars.next_if_eq(&c).is_some();
                let pattern = self.inner()?;
                Ok(strip(&value.unwrap_or_default(), &pattern, c == '#', longest))
            }
            Some('/') => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let mut pattern = Words::default();
                self.until(Some('/'), &mut pattern)?;
                let with = self.inner()?;
                Ok(replace(&value.unwrap_or_default(), &pattern.whole, &with, all))
            }
            Some(c) => Err(format!("`${{{name}{c}` is no modifier; there are `-`, `+`, `?`, `#`, `%` and `/`")),
            None => Err(format!("`}}` is missing after `${{{name}`")),
        };
        self.depth -= 1;
        result
    }

    fn inner(&mut self) -> Result<String, String> {
        let mut out = Words::default();
        self.until(Some('}'), &mut out)?;
        Ok(out.whole)
    }

    fn modified(&mut self, name: &str, value: Option<String>, modifier: char) -> Result<String, String> {
        let text = self.inner()?;
        match (modifier, value) {
            ('-', Some(value)) | ('?', Some(value)) => Ok(value),
            ('-', None) | ('+', Some(_)) => Ok(text),
            ('?', None) if text.is_empty() => Err(format!("`{name}` is not set")),
            ('?', None) => Err(format!("`{name}`: {text}")),
            _ => Ok(String::new()),
        }
    }
}

/// `value` without what matches at its start or end.
fn strip(value: &str, pattern: &str, start: bool, longest: bool) -> String {
    let mut ends: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
    if start == longest {
        ends.reverse();
    }
    for at in ends {
        let (left, right) = value.split_at(at);
        let (taken, rest) = if start { (left, right) } else { (right, left) };
        if glob::matches_text(pattern, taken) {
            return rest.to_owned();
        }
    }
    value.to_owned()
}

/// `value` with the first or every match (the longest at each place) replaced.
fn replace(value: &str, pattern: &str, with: &str, all: bool) -> String {
    let mut out = String::new();
    let mut rest = value;
    let mut done = pattern.is_empty();
    while let Some(c) = rest.chars().next() {
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
        let found = if done { None } else { ends.into_iter().find(|&end| glob::matches_text(pattern, &rest[..end])) };
        match found {
            Some(end) => {
                out.push_str(with);
                rest = &rest[end..];
                done = !all;
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(name: &str) -> Option<String> {
        match name {
            "a" => Some("alpha".to_owned()),
            "b" => Some("be ta".to_owned()),
            "empty" => Some(String::new()),
            "path" => Some("/x/y/z.tar.gz".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced() {
        let cases = [
            ("$a", "alpha"),
            ("${a}b", "alphab"),
            ("$a$b", "alphabe ta"),
            ("'$a'", "$a"),
            ("\"$a\"", "alpha"),
            (r"\$a", "$a"),
            (r#""\$a""#, "$a"),
            (r#""\n""#, r"\n"),
            (r"\n", "n"),
            ("${none:-x}", "x"),
            ("${empty:-x}", "x"),
            ("${empty-x}", ""),
            ("${none-x}", "x"),
            ("${none:-$a}", "alpha"),
            ("${none:-${none2:-deep}}", "deep"),
            ("${a:+x}", "x"),
            ("${empty:+x}", ""),
            ("${empty+x}", "x"),
            ("${none+x}", ""),
            ("${a:?no}", "alpha"),
            ("${path#*/}", "x/y/z.tar.gz"),
            ("${path##*/}", "z.tar.gz"),
            ("${path%.*}", "/x/y/z.tar"),
            ("${path%%.*}", "/x/y/z"),
            ("${a/l/L}", "aLpha"),
            ("${a//a/A}", "AlphA"),
            ("$", "$"),
            ("$-", "$-"),
            ("$none", ""),
            ("$1a", "a"),
            ("it''s", "its"),
        ];
        for (text, wanted) in cases {
            assert_eq!(word(text, '\\', &vars).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["'x", "\"x", "${", "${}", "${a", "${a:", "${a:=x}", "${a!}", "${none:?gone}", "${none?}"] {
            assert!(word(text, '\\', &vars).is_err(), "{text}");
        }
        assert_eq!(word("${none:?gone}", '\\', &vars), Err("`none`: gone".to_owned()));
        assert!(word(&"${a:-".repeat(100), '\\', &vars).is_err());
    }

    #[test]
    fn words_split_outside_quotes() {
        assert_eq!(words(r#"x "y z" $b '$b' e\ f"#, '\\', &vars).unwrap(), ["x", "y z", "be", "ta", "$b", "e f"]);
        assert_eq!(words("a`b", '`', &vars).unwrap(), ["ab"]);
        let split: Vec<&str> = split(r#"a="b c" d\ e 'f g'h"#, '\\').into_iter().map(|(_, w)| w).collect();
        assert_eq!(split, [r#"a="b c""#, r"d\ e", "'f g'h"]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".{0,60}") {
            let _ = word(&text, '\\', &vars);
            let _ = words(&text, '`', &vars);
            let _ = split(&text, '\\');
        }

        #[test]
        fn what_looks_like_variables_neither(text in r#"[$\{\}:\-+?#%/a'"\\ ]{0,24}"#) {
            let _ = words(&text, '\\', &vars);
        }
    }
}
