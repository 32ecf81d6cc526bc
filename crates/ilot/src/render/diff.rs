//! Two texts side by side, as `diff -u` shows them.

use std::fmt::Write as _;

use owo_colors::OwoColorize;

/// Lines around a change.
const CONTEXT: usize = 3;
/// Beyond so many pairs of lines the difference is not searched for: everything between the common ends is one change.
const PAIRS: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit<'t> {
    Keep(&'t str),
    Remove(&'t str),
    Add(&'t str),
}

/// The difference in unified form; empty where there is none.
pub(crate) fn unified(name: &str, before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let edits = edits(&old, &new);
    let changed: Vec<usize> =
        edits.iter().enumerate().filter(|(_, e)| !matches!(e, Edit::Keep(_))).map(|(i, _)| i).collect();
    let mut text = String::new();
    let mut rest = changed.as_slice();
    while let Some(&first) = rest.first() {
        let mut count = 1;
        while rest.get(count).is_some_and(|&next| next - rest[count - 1] <= 2 * CONTEXT) {
            count += 1;
        }
        let start = first.saturating_sub(CONTEXT);
        let end = (rest[count - 1] + CONTEXT + 1).min(edits.len());
        hunk(&mut text, &edits, start, end);
        rest = &rest[count..];
    }
    if text.is_empty() && before != after {
        // Only the ends of lines differ.
        text = format!("{}\n", "@@ line ends @@".cyan());
    }
    if text.is_empty() {
        text
    } else {
        format!("{}\n{}\n{text}", format!("--- {name}").bold(), format!("+++ {name}").bold())
    }
}

fn hunk(text: &mut String, edits: &[Edit<'_>], start: usize, end: usize) {
    let olds = |edits: &[Edit<'_>]| edits.iter().filter(|e| !matches!(e, Edit::Add(_))).count();
    let news = |edits: &[Edit<'_>]| edits.iter().filter(|e| !matches!(e, Edit::Remove(_))).count();
    let (above, shown) = (&edits[..start], &edits[start..end]);
    let range = |before: usize, count: usize| format!("{},{count}", if count == 0 { before } else { before + 1 });
    let (old, new) = (range(olds(above), olds(shown)), range(news(above), news(shown)));
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", format!("@@ -{old} +{new} @@").cyan());
    for edit in shown {
        let _ = match edit {
            Edit::Keep(line) => writeln!(text, " {line}"),
            Edit::Remove(line) => writeln!(text, "{}", format!("-{line}").red()),
            Edit::Add(line) => writeln!(text, "{}", format!("+{line}").green()),
        };
    }
}

/// What turns one list of lines into the other, by their longest common subsequence.
fn edits<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<Edit<'t>> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[head..], &new[head..]);
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
    let mut all: Vec<Edit<'t>> = old[..head].iter().map(|line| Edit::Keep(line)).collect();
    if a.len().saturating_mul(b.len()) > PAIRS {
        all.extend(a.iter().map(|line| Edit::Remove(line)));
        all.extend(b.iter().map(|line| Edit::Add(line)));
    } else {
        middle(a, b, &mut all);
    }
    all.extend(old[old.len() - tail..].iter().map(|line| Edit::Keep(line)));
    all
}

fn middle<'t>(a: &[&'t str], b: &[&'t str], all: &mut Vec<Edit<'t>>) {
    let columns = b.len() + 1;
    // The length of the longest common subsequence of `a[i..]` and `b[j..]`.
    let mut longest = vec![0_u32; (a.len() + 1) * columns];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * columns + j] = if a[i] == b[j] {
                longest[(i + 1) * columns + j + 1] + 1
            } else {
                longest[(i + 1) * columns + j].max(longest[i * columns + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            all.push(Edit::Keep(a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && longest[(i + 1) * columns + j] >= longest[i * columns + j + 1] {
            all.push(Edit::Remove(a[i]));
            i += 1;
        } else {
            all.push(Edit::Add(b[j]));
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_diff_shows_it() {
        let before = "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk\nl\n";
        let after = "a\nB\nc\nd\ne\nf\ng\nh\ni\nj\nl\nm\n";
        let text = anstream::adapter::strip_str(&unified("x", before, after)).to_string();
        let expected =
            "--- x\n+++ x\n@@ -1,5 +1,5 @@\n a\n-b\n+B\n c\n d\n e\n@@ -8,5 +8,5 @@\n h\n i\n j\n-k\n l\n+m\n";
        assert_eq!(text, expected);
        assert_eq!(unified("x", before, before), "");
        assert!(unified("x", "a\r\n", "a\n").contains("line ends"));
        let text = anstream::adapter::strip_str(&unified("x", "", "a\n")).to_string();
        assert_eq!(text, "--- x\n+++ x\n@@ -0,0 +1,1 @@\n+a\n");
    }
}
