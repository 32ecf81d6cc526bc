//! From logical lines to instructions. Nothing is read, run or replaced here; every mistake of form is found before
//! anything is done.

use crate::error::{Error, Place, Result};
use crate::lines::{Heredoc, Logical, Text, announced};
use crate::words;

/// A Containerfile.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) escape: char,
    pub(crate) instructions: Vec<Instruction>,
}

/// One instruction.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) place: Place,
    /// As it is written, lines joined.
    pub(crate) text: String,
    pub(crate) kind: Kind,
}

/// What is run: as it is, or by the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Exec(Vec<String>),
    Shell(String),
}

/// `--name=value`, or `--name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

/// What COPY and ADD take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Path(String),
    Heredoc(Heredoc),
}

/// COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) is_add: bool,
    pub(crate) flags: Vec<Flag>,
    pub(crate) sources: Vec<Source>,
    pub(crate) destination: String,
}

/// HEALTHCHECK, all times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// None: `HEALTHCHECK NONE`.
    pub(crate) command: Option<Command>,
    pub(crate) times: Vec<(&'static str, u64)>,
    pub(crate) retries: Option<u32>,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    From { image: String, platform: Option<String>, name: Option<String> },
    Arg(Vec<(String, Option<String>)>),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Run { flags: Vec<Flag>, command: Command, heredocs: Vec<Heredoc> },
    Copy(Copy),
    Workdir(String),
    User(String),
    Entrypoint(Command),
    Cmd(Command),
    Expose(String),
    Volume(Vec<String>),
    Shell(Vec<String>),
    Stopsignal(String),
    Healthcheck(Health),
    Onbuild(String),
    Maintainer(String),
}

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads a whole Containerfile.
pub(crate) fn parse(name: &str, text: &str) -> Result<File> {
    let text = Text::new(name, text)?;
    let mut instructions = Vec::new();
    let mut staged = false;
    for logical in text.logical()? {
        let instruction = Parser { text: &text, line: &logical }.instruction()?;
        match instruction.kind {
            Kind::From { .. } => staged = true,
            Kind::Arg(_) => {}
            _ if !staged => {
                let word = instruction.text.split_whitespace().next().unwrap_or_default();
                return Err(Error::At {
                    message: format!("`{word}` before the first FROM"),
                    help: Some("begin with `FROM image` or `FROM scratch`; only ARG may stand before it".to_owned()),
                    place: Box::new(instruction.place),
                });
            }
            _ => {}
        }
        instructions.push(instruction);
    }
    if !staged {
        return Err(Error::At {
            place: Box::new(text.place(0, 0, 1)),
            message: "no FROM".to_owned(),
            help: Some("begin with `FROM image` or `FROM scratch`".to_owned()),
        });
    }
    Ok(File { escape: text.escape, instructions })
}

/// Reads what a base image's ONBUILD says.
pub(crate) fn parse_trigger(text: &str, escape: char) -> Result<Instruction> {
    let mut all = Text::new("ONBUILD of the base image", text)?;
    all.escape = escape;
    let logical = match all.logical() {
        Ok(mut lines) if lines.len() == 1 => lines.remove(0),
        Ok(_) => return Err(Error::invalid(format!("`{text}` is no single instruction"), "build the base image anew")),
        Err(error) => return Err(error),
    };
    Parser { text: &all, line: &logical }.instruction()
}

struct Parser<'a> {
    text: &'a Text,
    line: &'a Logical,
}

impl Parser<'_> {
    fn wrong(&self, offset: usize, length: usize, message: impl Into<String>, help: impl Into<String>) -> Error {
        Error::At {
            place: Box::new(self.line.place(self.text, offset, length)),
            message: message.into(),
            help: Some(help.into()),
        }
    }

    fn instruction(&self) -> Result<Instruction> {
        let text = self.line.text.as_str();
        let word = text.split_whitespace().next().unwrap_or_default();
        let keyword = word.to_ascii_uppercase();
        let after = text.find(word).unwrap_or(0) + word.len();
        let rest = text[after..].trim_start();
        let offset = text.len() - rest.len();
        let rest = rest.trim_end();
        if !KEYWORDS.contains(&keyword.as_str()) {
            let close = KEYWORDS.iter().map(|k| (strsim::damerau_levenshtein(k, &keyword), k)).min();
            let help = match close {
                Some((distance, known)) if distance <= 2 => format!("is `{known}` meant?"),
                _ => format!("there are {}", KEYWORDS.join(", ")),
            };
            return Err(self.wrong(0, word.chars().count(), format!("unknown instruction `{word}`"), help));
        }
        if rest.is_empty() {
            let message = format!("{keyword} says nothing");
            return Err(self.wrong(0, word.chars().count(), message, example(&keyword)));
        }
        let kind = self.kind(&keyword, rest, offset)?;
        let place = self.line.place(self.text, 0, word.chars().count());
        Ok(Instruction { place, text: text.trim_end().to_owned(), kind })
    }

    fn kind(&self, keyword: &str, rest: &str, offset: usize) -> Result<Kind> {
        let (flags, rest, offset) = match keyword {
            "ADD" | "COPY" | "RUN" | "FROM" | "HEALTHCHECK" => self.flags(keyword, rest, offset)?,
            _ => (Vec::new(), rest, offset),
        };
        if rest.is_empty() {
            return Err(self.wrong(0, keyword.len(), format!("{keyword} has options only"), example(keyword)));
        }
        let single = |what: &str| -> Result<String> {
            match words::split(rest, self.text.escape).len() {
                1 => Ok(rest.to_owned()),
                _ => Err(self.wrong(
                    offset,
                    rest.chars().count(),
                    format!("{keyword} takes one {what}"),
                    example(keyword),
                )),
            }
        };
        Ok(match keyword {
            "FROM" => self.from(flags, rest, offset)?,
            "ARG" => Kind::Arg(self.arguments(rest, offset)?),
            "ENV" => Kind::Env(self.pairs(keyword, rest, offset)?),
            "LABEL" => Kind::Label(self.pairs(keyword, rest, offset)?),
            "RUN" => Kind::Run { flags, command: command(rest), heredocs: self.line.heredocs.clone() },
            "ADD" | "COPY" => Kind::Copy(self.copy(keyword == "ADD", flags, rest, offset)?),
            "WORKDIR" => Kind::Workdir(rest.to_owned()),
            "USER" => Kind::User(single("user")?),
            "ENTRYPOINT" => Kind::Entrypoint(command(rest)),
            "CMD" => Kind::Cmd(command(rest)),
            "EXPOSE" => Kind::Expose(rest.to_owned()),
            "VOLUME" => Kind::Volume(match json(rest) {
                Some(list) => list,
                None => words::split(rest, self.text.escape).into_iter().map(|(_, w)| w.to_owned()).collect(),
            }),
            "SHELL" => match json(rest) {
                Some(list) if !list.is_empty() => Kind::Shell(list),
                _ => {
                    let help = example(keyword);
                    return Err(self.wrong(offset, rest.chars().count(), "SHELL takes a JSON list of words", help));
                }
            },
            "STOPSIGNAL" => Kind::Stopsignal(single("signal")?),
            "HEALTHCHECK" => Kind::Healthcheck(self.health(&flags, rest, offset)?),
            "ONBUILD" => self.onbuild(rest, offset)?,
            _ => Kind::Maintainer(rest.to_owned()),
        })
    }

    /// `--name=value` at the front.
    fn flags<'t>(&self, keyword: &str, rest: &'t str, offset: usize) -> Result<(Vec<Flag>, &'t str, usize)> {
        let known: &[&str] = match keyword {
            "ADD" => &["checksum", "chmod", "chown", "exclude", "keep-git-dir", "link", "unpack"],
            "COPY" => &["chmod", "chown", "exclude", "from", "link", "parents"],
            "RUN" => &["mount", "network", "security"],
            "FROM" => &["platform"],
            _ => &["interval", "retries", "start-interval", "start-period", "timeout"],
        };
        let mut flags = Vec::new();
        for (at, word) in words::split(rest, self.text.escape) {
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                return Ok((flags, &rest[at..], offset + at));
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(unquoted(value))),
                None => (flag, None),
            };
            if !known.contains(&name) {
                let close = known.iter().find(|k| strsim::damerau_levenshtein(k, name) <= 2);
                let help = close.map_or_else(
                    || format!("there are {}", known.iter().map(|k| format!("`--{k}`")).collect::<Vec<_>>().join(", ")),
                    |close| format!("is `--{close}` meant?"),
                );
                let message = format!("{keyword} has no option `--{name}`");
                return Err(self.wrong(offset + at, word.chars().count(), message, help));
            }
            let switch = matches!(name, "keep-git-dir" | "link" | "parents" | "unpack");
            if value.is_none() && !switch {
                let help = format!("write `--{name}=VALUE`");
                return Err(self.wrong(offset + at, word.chars().count(), format!("`--{name}` has no value"), help));
            }
            flags.push(Flag { name: name.to_owned(), value });
        }
        Ok((flags, "", offset + rest.len()))
    }

    fn from(&self, flags: Vec<Flag>, rest: &str, offset: usize) -> Result<Kind> {
        let words: Vec<(usize, &str)> = words::split(rest, self.text.escape);
        let platform = flags.into_iter().find_map(|flag| flag.value);
        let name = match words[..] {
            [_] => None,
            [_, (_, middle), (at, name)] if middle.eq_ignore_ascii_case("as") => {
                let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(fits) {
                    let help = "letters, digits, `-`, `_` and `.`, a letter first";
                    let message = format!("`{name}` cannot be the name of a stage");
                    return Err(self.wrong(offset + at, name.chars().count(), message, help));
                }
                Some(name.to_ascii_lowercase())
            }
            _ => {
                return Err(self.wrong(
                    offset,
                    rest.chars().count(),
                    "FROM takes an image and a name",
                    example("FROM"),
                ));
            }
        };
        Ok(Kind::From { image: words[0].1.to_owned(), platform, name })
    }

    fn arguments(&self, rest: &str, offset: usize) -> Result<Vec<(String, Option<String>)>> {
        let mut list = Vec::new();
        for (at, word) in words::split(rest, self.text.escape) {
            let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            if !is_name(name) {
                let message = format!("`{name}` cannot be the name of an argument");
                return Err(self.wrong(offset + at, word.chars().count(), message, example("ARG")));
            }
            list.push((name.to_owned(), value.map(str::to_owned)));
        }
        Ok(list)
    }

    /// `a=b c="d e"`, or the old `a b c d`.
    fn pairs(&self, keyword: &str, rest: &str, offset: usize) -> Result<Vec<(String, String)>> {
        let words = words::split(rest, self.text.escape);
        let first = words.first().map_or("", |(_, word)| word);
        if !first.contains('=') {
            let value = rest.get(first.len()..).unwrap_or_default().trim_start();
            if value.is_empty() {
                let message = format!("`{first}` has no value");
                return Err(self.wrong(offset, first.chars().count(), message, example(keyword)));
            }
            return Ok(vec![(first.to_owned(), value.to_owned())]);
        }
        let mut pairs = Vec::new();
        for (at, word) in words {
            match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => pairs.push((name.to_owned(), value.to_owned())),
                _ => {
                    let message = format!("`{word}` is not `name=value`");
                    let help = "put a value with blanks in it into quotes";
                    return Err(self.wrong(offset + at, word.chars().count(), message, help));
                }
            }
        }
        Ok(pairs)
    }

    fn copy(&self, is_add: bool, flags: Vec<Flag>, rest: &str, offset: usize) -> Result<Copy> {
        let words: Vec<String> = match json(rest) {
            Some(list) => list,
            None => words::split(rest, self.text.escape).into_iter().map(|(_, w)| w.to_owned()).collect(),
        };
        let keyword = if is_add { "ADD" } else { "COPY" };
        let Some((destination, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            let message = format!("{keyword} takes something to copy, and where to");
            return Err(self.wrong(offset, rest.chars().count(), message, example(keyword)));
        };
        let mut heredocs = self.line.heredocs.iter();
        let source = |word: &String| match announced(word) {
            Some(_) => heredocs.next().map(|h| Source::Heredoc(h.clone())),
            None => Some(Source::Path(word.clone())),
        };
        let sources: Option<Vec<Source>> = sources.iter().map(source).collect();
        let sources = sources
            .ok_or_else(|| self.wrong(offset, rest.chars().count(), "a heredoc without its text", example(keyword)))?;
        Ok(Copy { is_add, flags, sources, destination: destination.clone() })
    }

    fn health(&self, flags: &[Flag], rest: &str, offset: usize) -> Result<Health> {
        let first = rest.split_whitespace().next().unwrap_or_default();
        let mut health = Health::default();
        match first.to_ascii_uppercase().as_str() {
            "NONE" if rest == first => return Ok(health),
            "CMD" if rest != first => health.command = Some(command(rest[first.len()..].trim())),
            _ => {
                let help = example("HEALTHCHECK");
                return Err(self.wrong(offset, first.chars().count(), "HEALTHCHECK takes CMD or NONE", help));
            }
        }
        for flag in flags {
            let value = flag.value.as_deref().unwrap_or_default();
            let wrong = |help: &str| self.wrong(0, 11, format!("`--{}={value}` makes no sense", flag.name), help);
            let key = match flag.name.as_str() {
                "interval" => "Interval",
                "timeout" => "Timeout",
                "start-period" => "StartPeriod",
                "start-interval" => "StartInterval",
                _ => {
                    health.retries = Some(value.parse().map_err(|_| wrong("it is a number"))?);
                    continue;
                }
            };
            health.times.push((key, duration(value).ok_or_else(|| wrong("it is a time like `30s` or `1m30s`"))?));
        }
        Ok(health)
    }

    fn onbuild(&self, rest: &str, offset: usize) -> Result<Kind> {
        let word = rest.split_whitespace().next().unwrap_or_default();
        let keyword = word.to_ascii_uppercase();
        if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") || !KEYWORDS.contains(&keyword.as_str()) {
            let message = format!("`{word}` cannot follow ONBUILD");
            return Err(self.wrong(offset, word.chars().count(), message, example("ONBUILD")));
        }
        let inner = rest[word.len()..].trim_start();
        // Its own form is checked now, where it is written.
        self.kind(&keyword, inner, offset + rest.len() - inner.len())?;
        let mut text = rest.to_owned();
        for heredoc in &self.line.heredocs {
            text.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
        }
        Ok(Kind::Onbuild(text))
    }
}

pub(crate) fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A JSON list of words, else what the shell is given.
fn command(rest: &str) -> Command {
    json(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec)
}

fn json(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok())?
}

fn unquoted(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    value.to_owned()
}

/// A time as Go writes it, `1h2m3.5s`, in nanoseconds.
fn duration(text: &str) -> Option<u64> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let factor = match &rest[..unit] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * factor;
        rest = &rest[unit..];
    }
    (!text.is_empty() && total.is_finite() && total < 9e18).then_some(total as u64)
}

fn example(keyword: &str) -> String {
    let text = match keyword {
        "ADD" => "ADD https://example.org/x.tar.gz /opt/",
        "ARG" => "ARG VERSION=1.2",
        "CMD" => "CMD [\"program\", \"argument\"]",
        "COPY" => "COPY --chown=app src/ /app/",
        "ENTRYPOINT" => "ENTRYPOINT [\"/usr/bin/program\"]",
        "ENV" => "ENV NAME=value OTHER=\"with blanks\"",
        "EXPOSE" => "EXPOSE 80/tcp",
        "FROM" => "FROM debian:13 AS build",
        "HEALTHCHECK" => "HEALTHCHECK --interval=30s CMD curl -f http://localhost/",
        "LABEL" => "LABEL version=1.2",
        "ONBUILD" => "ONBUILD COPY . /app",
        "RUN" => "RUN make install",
        "SHELL" => "SHELL [\"/bin/bash\", \"-c\"]",
        "STOPSIGNAL" => "STOPSIGNAL SIGTERM",
        "USER" => "USER app:app",
        "VOLUME" => "VOLUME /var/lib/data",
        "WORKDIR" => "WORKDIR /app",
        _ => "MAINTAINER name",
    };
    format!("for example `{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        parse("Containerfile", text).unwrap().instructions.into_iter().map(|i| i.kind).collect()
    }

    fn wrong(text: &str) -> (String, String) {
        let error = parse("Containerfile", text).unwrap_err();
        let place = error.place().map(|p| format!("{}:{}", p.line, p.column)).unwrap_or_default();
        (place, format!("{error} / {}", error.help().unwrap_or_default()))
    }

    #[test]
    fn every_instruction_is_read() {
        let all = kinds(
            "ARG A B=1\nFROM --platform=$P a:1 AS Build\nENV a=b c=\"d e\"\nENV old one two\nLABEL x=y\n\
             RUN --mount=type=tmpfs,target=/t --network=none echo [x]\nRUN [\"a\", \"b\"]\n\
             COPY --from=build --chown=1:2 --link a b /c/\nADD [\"a b\", \"/c\"]\nWORKDIR /a b\nUSER u:g\n\
             ENTRYPOINT [\"e\"]\nCMD c d\nEXPOSE 80 81/udp\nVOLUME [\"/v\"]\nVOLUME /v /w\nSHELL [\"/bin/x\"]\n\
             STOPSIGNAL 9\nHEALTHCHECK --interval=1m30s --retries=2 CMD true\nhealthcheck NONE\nONBUILD RUN x\n\
             MAINTAINER me\nCOPY <<A <<B /d/\n1\nA\n2\nB\n",
        );
        assert_eq!(all.len(), 23);
        assert_eq!(all[0], Kind::Arg(vec![("A".into(), None), ("B".into(), Some("1".into()))]));
        assert_eq!(all[1], Kind::From { image: "a:1".into(), platform: Some("$P".into()), name: Some("build".into()) });
        assert_eq!(all[2], Kind::Env(vec![("a".into(), "b".into()), ("c".into(), "\"d e\"".into())]));
        assert_eq!(all[3], Kind::Env(vec![("old".into(), "one two".into())]));
        let Kind::Run { flags, command, .. } = &all[5] else { panic!() };
        assert_eq!((flags.len(), command), (2, &Command::Shell("echo [x]".into())));
        assert_eq!(
            all[6],
            Kind::Run { flags: vec![], command: Command::Exec(vec!["a".into(), "b".into()]), heredocs: vec![] }
        );
        let Kind::Copy(copy) = &all[7] else { panic!() };
        assert_eq!((copy.sources.len(), copy.destination.as_str(), copy.flags.len()), (2, "/c/", 3));
        let Kind::Healthcheck(health) = &all[18] else { panic!() };
        assert_eq!((health.times.as_slice(), health.retries), (&[("Interval", 90_000_000_000)][..], Some(2)));
        let Kind::Copy(copy) = &all[22] else { panic!() };
        assert!(matches!(&copy.sources[1], Source::Heredoc(h) if h.content == "2\n"));
    }

    #[test]
    fn mistakes_have_a_place_and_a_cure() {
        let cases = [
            ("FROM a\nRNU x", "2:1", "is `RUN` meant?"),
            ("RUN x\nFROM a", "1:1", "before the first FROM"),
            ("# nothing\n", "1:1", "no FROM"),
            ("FROM a\n  COPY x", "2:8", "where to"),
            ("FROM a\nCOPY --form=b x y", "2:6", "is `--from` meant?"),
            ("FROM a\nCOPY --from x y", "2:6", "--from=VALUE"),
            ("FROM a AS", "1:6", "FROM takes"),
            ("FROM a AS 1x", "1:11", "name of a stage"),
            ("FROM a\nENV a=b \\\n  c", "3:3", "is not `name=value`"),
            ("FROM a\nSHELL /bin/sh", "2:7", "JSON list"),
            ("FROM a\nONBUILD FROM b", "2:9", "cannot follow ONBUILD"),
            ("FROM a\nONBUILD COPY b", "2:14", "where to"),
            ("FROM a\nHEALTHCHECK curl", "2:13", "CMD or NONE"),
            ("FROM a\nHEALTHCHECK --interval=soon CMD x", "2:1", "30s"),
            ("FROM a\nARG 1=2", "2:5", "name of an argument"),
            ("FROM a\nEXPOSE", "2:1", "EXPOSE 80/tcp"),
            ("FROM a\nUSER a b", "2:6", "one user"),
        ];
        for (text, place, part) in cases {
            let (at, said) = wrong(text);
            assert_eq!(at, place, "{text}: {said}");
            assert!(said.contains(part), "{text}: {said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(text in r#"(FROM|RUN|COPY|ENV|ONBUILD|HEALTHCHECK|ARG|LABEL)[ -~\n\\é]{0,80}"#) {
            let _ = parse("f", &format!("FROM x\n{text}"));
        }
    }
}
