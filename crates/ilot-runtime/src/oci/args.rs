//! Command lines as runc and crun have them, without a library's weight.

use crate::{Error, Result};
use std::collections::VecDeque;

/// One option that a command knows.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Name after `--`.
    pub long: &'static str,
    /// Letter after `-`.
    pub short: Option<char>,
    /// Whether a value follows.
    pub value: bool,
}

/// An option without a value.
pub const fn switch(long: &'static str, short: Option<char>) -> Flag {
    Flag { long, short, value: false }
}

/// An option with a value.
pub const fn value(long: &'static str, short: Option<char>) -> Flag {
    Flag { long, short, value: true }
}

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    options: Vec<(&'static str, String)>,
    /// What is no option.
    pub rest: VecDeque<String>,
}

impl Parsed {
    /// Takes options off a command line: all of them, or with `until_word` those before the first
    /// word that is none.
    pub fn new(args: &mut VecDeque<String>, flags: &[Flag], until_word: bool) -> Result<Self> {
        let mut parsed = Self::default();
        while let Some(arg) = args.pop_front() {
            if arg == "--" {
                break;
            } else if let Some(name) = arg.strip_prefix("--") {
                parsed.long(name, args, flags)?;
            } else if let Some(name) = arg.strip_prefix('-').filter(|name| is_long(name, flags)) {
                // As Go's programs take it: containerd asks for `-no-subreaper`.
                parsed.long(name, args, flags)?;
            } else if arg.len() > 1 && arg.starts_with('-') {
                parsed.short(&arg[1..], args, flags)?;
            } else if until_word {
                args.push_front(arg);
                break;
            } else {
                parsed.rest.push_back(arg);
            }
        }
        parsed.rest.append(args);
        Ok(parsed)
    }

    fn long(&mut self, name: &str, args: &mut VecDeque<String>, flags: &[Flag]) -> Result<()> {
        if name == "help" && !is_long(name, flags) {
            show_help(flags);
        }
        let (name, given) = match name.split_once('=') {
            Some((name, given)) => (name, Some(given.to_owned())),
            None => (name, None),
        };
        let flag = flags
            .iter()
            .find(|f| f.long == name)
            .ok_or_else(|| Error::invalid(format!("option `--{name}`"), "unknown"))?;
        let text = match (flag.value, given) {
            (_, Some(given)) => given,
            (false, None) => "true".to_owned(),
            (true, None) => args.pop_front().ok_or_else(|| missing(&format!("--{name}")))?,
        };
        self.options.push((flag.long, text));
        Ok(())
    }

    fn short(&mut self, letters: &str, args: &mut VecDeque<String>, flags: &[Flag]) -> Result<()> {
        let mut letters = letters.chars();
        while let Some(letter) = letters.next() {
            if letter == 'h' && flags.iter().all(|f| f.short != Some('h')) {
                show_help(flags);
            }
            let flag = flags
                .iter()
                .find(|f| f.short == Some(letter))
                .ok_or_else(|| Error::invalid(format!("option `-{letter}`"), "unknown"))?;
            if !flag.value {
                self.options.push((flag.long, "true".to_owned()));
                continue;
            }
            let joined = letters.as_str().trim_start_matches('=').to_owned();
            let text = if joined.is_empty() {
                args.pop_front().ok_or_else(|| missing(&format!("-{letter}")))?
            } else {
                joined
            };
            self.options.push((flag.long, text));
            break;
        }
        Ok(())
    }

    /// The last value of an option.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// All values of an option.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Whether a switch is on.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| v != "false")
    }

    /// An option as a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.get(name)
            .map(|v| v.parse().map_err(|_| Error::invalid(format!("option `--{name}`"), format!("`{v}` is no number"))))
            .transpose()
    }

    /// The container's name, which comes first.
    pub fn id(&mut self) -> Result<String> {
        let id = self.rest.pop_front().ok_or_else(|| Error::invalid("container", "its name is missing"))?;
        check_id(&id)?;
        Ok(id)
    }
}

/// Answers `--help` of a command, and ends.
fn show_help(flags: &[Flag]) -> ! {
    println!("usage: ilot-oci [GLOBAL OPTION…] COMMAND [OPTION…] ID …\n\noptions of this command:");
    for flag in flags {
        let short = flag.short.map_or_else(|| "    ".to_owned(), |letter| format!("-{letter}, "));
        println!("  {short}--{}{}", flag.long, if flag.value { " VALUE" } else { "" });
    }
    std::process::exit(0)
}

/// Whether this is an option's whole name.
fn is_long(name: &str, flags: &[Flag]) -> bool {
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    name.len() > 1 && flags.iter().any(|f| f.long == name)
}

/// In runc's words too: Podman looks for them.
fn missing(name: &str) -> Error {
    Error::invalid(format!("option `{name}`"), "its value is missing (flag needs an argument)")
}

/// A name becomes a folder's name: nothing but letters, digits, `_`, `+`, `-` and `.`.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || id.len() > 255 || !id.chars().all(plain) {
        return Err(Error::invalid(format!("container name `{id}`"), "use letters, digits and `_+-.` only"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] = [value("bundle", Some('b')), switch("detach", Some('d')), value("env", Some('e'))];

    fn parse(line: &str, until_word: bool) -> Result<Parsed> {
        let mut args = line.split_whitespace().map(ToOwned::to_owned).collect();
        Parsed::new(&mut args, &FLAGS, until_word)
    }

    #[test]
    fn every_way_to_write_an_option() {
        for line in [
            "--bundle x -d id",
            "--bundle=x --detach id",
            "-bx -d id",
            "-b x --detach=true id",
            "-db x id",
            "id -db x",
            "-bundle x -detach id",
        ] {
            let mut parsed = parse(line, false).unwrap();
            assert_eq!(parsed.get("bundle"), Some("x"), "{line}");
            assert!(parsed.has("detach"), "{line}");
            assert_eq!(parsed.id().unwrap(), "id", "{line}");
        }
        assert!(!parse("--detach=false", false).unwrap().has("detach"));
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let parsed = parse("-e A=1 -e B=2 id sh -c -d", true).unwrap();
        assert_eq!(parsed.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parsed.rest, ["id", "sh", "-c", "-d"]);
        assert!(!parsed.has("detach"));
        assert_eq!(parse("id -- -x", false).unwrap().rest, ["id", "-x"]);
    }

    #[test]
    fn errors() {
        assert!(parse("--nonsense", false).is_err());
        assert!(parse("--bundle", false).is_err());
        for id in ["", "..", "a/b", "a b", "ä"] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
