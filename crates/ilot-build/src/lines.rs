//! From a Containerfile's text to its logical lines: comments, continuations, directives and heredocs taken care of.

use crate::error::{Error, Place, Result};
use crate::words;

/// A Containerfile's text.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// Its name, for messages.
    pub(crate) name: String,
    pub(crate) lines: Vec<String>,
    /// What joins lines and quotes characters: `\`, or what `# escape=` says.
    pub(crate) escape: char,
}

/// One instruction, its lines joined.
#[derive(Debug, Clone)]
pub(crate) struct Logical {
    pub(crate) text: String,
    /// From where in `text` on it stands at which line and column (both from 0).
    origins: Vec<(usize, usize, usize)>,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// A text in the file itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heredoc {
    /// Its name: that of the file it makes.
    pub(crate) name: String,
    /// Whether variables in it are replaced.
    pub(crate) expand: bool,
    pub(crate) content: String,
}

impl Text {
    pub(crate) fn new(name: &str, text: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
        let mut this = Self { name: name.to_owned(), lines, escape: '\\' };
        this.escape = this.directives()?;
        Ok(this)
    }

    /// A place in the text, both numbers from 0.
    pub(crate) fn place(&self, line: usize, column: usize, length: usize) -> Place {
        Place {
            file: self.name.clone(),
            line: line + 1,
            column: column + 1,
            length,
            text: self.lines.get(line).cloned().unwrap_or_default(),
        }
    }

    /// `# key=value` before anything else. `syntax` names a frontend to download and is not followed; `check` is about
    /// warnings.
    fn directives(&self) -> Result<char> {
        let mut escape = '\\';
        let mut seen: Vec<String> = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            let Some((key, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
            if !matches!(key.as_str(), "escape" | "syntax" | "check") {
                break;
            }
            let wrong = |message: String, help: &str| Error::At {
                place: Box::new(self.place(number, 0, line.chars().count())),
                message,
                help: Some(help.to_owned()),
            };
            if seen.contains(&key) {
                return Err(wrong(format!("directive `{key}` is there twice"), "take one of them away"));
            }
            if key == "escape" {
                escape = match value {
                    "\\" => '\\',
                    "`" => '`',
                    _ => return Err(wrong(format!("`{value}` cannot be the escape"), "it is `\\` or a backtick")),
                };
            }
            seen.push(key);
        }
        Ok(escape)
    }

    /// Every instruction of the text.
    pub(crate) fn logical(&self) -> Result<Vec<Logical>> {
        let mut all = Vec::new();
        let mut at = 0;
        while at < self.lines.len() {
            let line = self.lines[at].trim_start();
            if line.is_empty() || line.starts_with('#') {
                at += 1;
                continue;
            }
            let mut one = self.join(&mut at);
            self.heredocs(&mut one, &mut at)?;
            all.push(one);
        }
        Ok(all)
    }

    /// Joins the lines from `at` on that belong together. Comments between them go, and so do empty lines.
    fn join(&self, at: &mut usize) -> Logical {
        let mut one = Logical { text: String::new(), origins: Vec::new(), heredocs: Vec::new() };
        let first = *at;
        while let Some(line) = self.lines.get(*at) {
            let number = *at;
            *at += 1;
            let trimmed = line.trim_start();
            if number > first && (trimmed.is_empty() || trimmed.starts_with('#')) {
                continue;
            }
            let skipped = if number == first { line.chars().count() - trimmed.chars().count() } else { 0 };
            one.origins.push((one.text.len(), number, skipped));
            let own = if number == first { trimmed } else { line };
            match self.continued(own) {
                Some(part) => one.text.push_str(part),
                None => {
                    one.text.push_str(own);
                    break;
                }
            }
        }
        one
    }

    /// A line that ends with the escape, without it; two of them are one that is meant.
    fn continued<'a>(&self, line: &'a str) -> Option<&'a str> {
        let part = line.trim_end_matches([' ', '\t']).strip_suffix(self.escape)?;
        (!part.ends_with(self.escape)).then_some(part)
    }

    /// Takes the texts that an instruction announces from the lines after it.
    fn heredocs(&self, one: &mut Logical, at: &mut usize) -> Result<()> {
        let keyword = one.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        let mut rest = one.text.as_str();
        if keyword == "ONBUILD" {
            rest = rest.trim_start().get("ONBUILD".len()..).unwrap_or_default().trim_start();
        }
        let inner = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        if !matches!(inner.as_str(), "RUN" | "COPY" | "ADD") || !rest.contains("<<") {
            return Ok(());
        }
        for (offset, word) in words::split(&one.text, self.escape) {
            let Some((name, chomp, expand)) = announced(word) else { continue };
            let mut content = String::new();
            loop {
                let Some(line) = self.lines.get(*at) else {
                    return Err(Error::At {
                        place: Box::new(one.place(self, offset, word.chars().count())),
                        message: format!("heredoc `{name}` has no end"),
                        help: Some(format!("write `{name}` alone on the line after its text")),
                    });
                };
                *at += 1;
                let line = if chomp { line.trim_start_matches('\t') } else { line };
                if line == name {
                    break;
                }
                content.push_str(line);
                content.push('\n');
            }
            one.heredocs.push(Heredoc { name, expand, content });
        }
        Ok(())
    }
}

impl Logical {
    /// The place of a byte of the joined text.
    pub(crate) fn place(&self, text: &Text, offset: usize, length: usize) -> Place {
        let (start, line, column) =
            self.origins.iter().rev().find(|(start, ..)| *start <= offset).copied().unwrap_or_default();
        let ahead = self.text.get(start..offset).map_or(0, |part| part.chars().count());
        text.place(line, column + ahead, length)
    }
}

/// `<<NAME`, `<<-NAME`, `<<"NAME"`, `3<<NAME`: the name, whether tabs go, whether variables are replaced.
pub(crate) fn announced(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    if rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
    let plain = name.len() == rest.len();
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(fits)).then_some((name, chomp, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logical(text: &str) -> Vec<Logical> {
        Text::new("Containerfile", text).unwrap().logical().unwrap()
    }

    #[test]
    fn lines_are_joined_and_comments_go() {
        let all = logical("# comment\nFROM x\n\nRUN a \\\n  # in between\n\n  b \\  \n c\nRUN d \\\\\nRUN e");
        let texts: Vec<&str> = all.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["FROM x", "RUN a   b  c", "RUN d \\\\", "RUN e"]);
        let text = Text::new("f", "FROM x\nRUN a \\\n  bcd").unwrap();
        let place = text.logical().unwrap()[1].place(&text, "RUN a   ".len(), 3);
        assert_eq!((place.line, place.column), (3, 3));
        assert_eq!(place.excerpt(), " 3 |   bcd\n   |   ^^^");
    }

    #[test]
    fn directives_change_the_escape() {
        let text = Text::new("f", "# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\n b\nRUN c:\\").unwrap();
        assert_eq!(text.escape, '`');
        assert_eq!(text.logical().unwrap().len(), 2);
        assert!(Text::new("f", "# escape=x\n").is_err());
        assert!(Text::new("f", "# escape=`\n# escape=`\n").is_err());
        assert_eq!(Text::new("f", "FROM x\n# escape=`\n").unwrap().escape, '\\');
    }

    #[test]
    fn heredocs_are_taken() {
        let all = logical("RUN <<EOF cat > x && <<-'B' cat\na $b\n# no comment\nEOF\n\tc\n\tB\nRUN y");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].heredocs[0].content, "a $b\n# no comment\n");
        assert!(all[0].heredocs[0].expand && !all[0].heredocs[1].expand);
        assert_eq!(all[0].heredocs[1].content, "c\n");
        let text = Text::new("f", "FROM x\nCOPY <<EOF /a\nx").unwrap();
        let error = text.logical().unwrap_err().to_string();
        assert!(error.starts_with("f:2:6: heredoc `EOF` has no end"), "{error}");
        assert!(logical("CMD echo <<EOF")[0].heredocs.is_empty());
        assert_eq!(announced("<<<x"), None);
        assert_eq!(announced("<<"), None);
    }
}
