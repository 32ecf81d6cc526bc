//! Patterns of file names: `*`, `?`, `[a-z]`, `\x`, and `**` where it is wanted.

/// Whether a pattern matches a whole text; `*` matches anything. As the shell does it for `${a#…}`.
pub(crate) fn matches_text(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    wildcard(&pattern, &text)
}

/// Whether a pattern matches a path, component by component; `**` matches any number of them.
pub(crate) fn matches_path(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => {
            if rest.is_empty() {
                return true;
            }
            (0..=path.len()).any(|skip| matches_path(rest, &path[skip..]))
        }
        Some((first, rest)) => match path.split_first() {
            Some((name, below)) => matches_text(first, name) && matches_path(rest, below),
            None => false,
        },
    }
}

/// Whether a path component means more than itself.
pub(crate) fn is_pattern(part: &str) -> bool {
    part.contains(['*', '?', '[', '\\'])
}

/// Iterative, so that no pattern takes longer than its length times the text's.
fn wildcard(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` did not fit.
    let mut back: Option<(usize, usize)> = None;
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            back = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() {
            if p == pattern.len() {
                return true;
            }
        } else if p < pattern.len()
            && let Some(length) = one(&pattern[p..], text[t])
        {
            p += length;
            t += 1;
            continue;
        }
        match back {
            Some((after, from)) if from < text.len() => {
                back = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// How many characters of the pattern match one of the text; `None`: they do not.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern[0] {
        '?' => Some(1),
        '\\' if pattern.len() > 1 => (pattern[1] == c).then_some(2),
        '[' => match class(pattern, c) {
            Some((matched, length)) => matched.then_some(length),
            None => (c == '[').then_some(1),
        },
        own => (own == c).then_some(1),
    }
}

/// `[a-z]`, `[^a]`, `[!a]`: whether it has `c`, and its length; `None` without a closing bracket.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = matches!(pattern.get(1), Some('^' | '!'));
    at += usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let mut low = *pattern.get(at)?;
        if low == ']' && at > first {
            return Some((found != negated, at + 1));
        }
        if low == '\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        at += 1;
        let mut high = low;
        if pattern.get(at) == Some(&'-') && pattern.get(at + 1).is_some_and(|c| *c != ']') {
            high = pattern[at + 1];
            at += 2;
        }
        found |= (low..=high).contains(&c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let yes = [
            ("*", ""),
            ("*.rs", "a.rs"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[^a]", "b"),
            (r"\*", "*"),
            ("a*b*c", "aXbYc"),
            ("[", "["),
        ];
        let no = [
            ("*.rs", "a.rc"),
            ("a?c", "ac"),
            ("[a-c]x", "dx"),
            ("[!a]", "a"),
            (r"\*", "x"),
            ("", "x"),
            ("a*b", "aXbY"),
        ];
        for (pattern, text) in yes {
            assert!(matches_text(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in no {
            assert!(!matches_text(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn paths() {
        assert!(matches_path(&["**", "*.md"], &["a.md"]));
        assert!(matches_path(&["**", "*.md"], &["x", "y", "a.md"]));
        assert!(matches_path(&["x", "**"], &["x", "y"]));
        assert!(!matches_path(&["*.md"], &["x", "a.md"]));
        assert!(matches_path(&["x", "**", "z"], &["x", "z"]));
    }

    #[test]
    fn a_nasty_pattern_is_quick() {
        assert!(!matches_text(&"*a".repeat(40), &"a".repeat(39)));
    }
}
