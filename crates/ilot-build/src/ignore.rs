//! `.containerignore` and `.dockerignore`: what of the context counts as not there.
//!
//! One pattern a line; `**` is any number of folders, `!` takes something back in, the last line that fits decides, and a
//! folder stands for what is in it.

use crate::glob;

/// The rules of one file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Rule {
    again: bool,
    parts: Vec<String>,
}

impl Ignore {
    pub(crate) fn parse(text: &str) -> Self {
        let mut rules = Vec::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (again, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
            let mut parts: Vec<String> = Vec::new();
            for part in pattern.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part.to_owned()),
                }
            }
            if !parts.is_empty() {
                rules.push(Rule { again, parts });
            }
        }
        Self { rules }
    }

    /// Whether a path of the context (no slash in front) counts as not there.
    pub(crate) fn hides(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut hidden = false;
        for rule in &self.rules {
            if rule.again == hidden && rule.fits(&path) {
                hidden = !rule.again;
            }
        }
        hidden
    }

    /// Whether something below a hidden folder can be taken back in.
    pub(crate) fn takes_back(&self) -> bool {
        self.rules.iter().any(|rule| rule.again)
    }
}

impl Rule {
    /// A rule fits a path when it matches it or a folder above it.
    fn fits(&self, path: &[&str]) -> bool {
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        (1..=path.len()).any(|length| glob::matches_path(&parts, &path[..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_decides() {
        let ignore = Ignore::parse("# comment\n*.md\n!README.md\n/target\n**/*.o\ndocs/*\n!docs/keep/\n");
        for (path, hidden) in [
            ("a.md", true),
            ("README.md", false),
            ("sub/a.md", false),
            ("target", true),
            ("target/x/y", true),
            ("sub/target", false),
            ("x.o", true),
            ("a/b/x.o", true),
            ("docs", false),
            ("docs/a", true),
            ("docs/keep", false),
            ("docs/keep/x", false),
        ] {
            assert_eq!(ignore.hides(path), hidden, "{path}");
        }
        assert!(ignore.takes_back());
        let all = Ignore::parse("*\n!src\n");
        assert!(all.hides("x") && !all.hides("src") && !all.hides("src/a/b"));
        assert!(Ignore::parse("**\n").hides("a/b"));
        assert!(!Ignore::parse("\n#\n").hides("a"));
    }
}
