//! As much of Markdown as a link check needs: headings with their anchors, and links, both outside of code.

use std::collections::{BTreeSet, HashMap};

/// A link's target as written, and its line (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub line: usize,
    pub target: String,
}

/// What a page has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub links: Vec<Link>,
    /// What `#…` can name.
    pub anchors: BTreeSet<String>,
    /// Levels of the headings, in order.
    pub outline: Vec<usize>,
}

/// Reads a page.
pub fn parse(text: &str) -> Page {
    let mut page = Page::default();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut fence: Option<&str> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let marker = ["```", "~~~"].into_iter().find(|marker| trimmed.starts_with(marker));
        match (fence, marker) {
            (Some(open), Some(found)) if open == found => fence = None,
            (None, Some(found)) => fence = Some(found),
            (Some(_), _) => {}
            (None, None) => {
                if let Some((level, title)) = heading(line) {
                    page.outline.push(level);
                    let slug = slug(title);
                    let count = seen.entry(slug.clone()).or_insert(0);
                    page.anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
                    *count += 1;
                }
                let line = without_code(line);
                page.links.extend(targets(&line).into_iter().map(|target| Link { line: index + 1, target }));
                page.anchors.extend(named_anchors(&line));
            }
        }
    }
    page
}

/// The anchor that a heading gets on the usual forges: lower case, letters, digits, `-` and `_` kept, spaces to `-`.
pub fn slug(title: &str) -> String {
    let mut text = String::new();
    let mut rest = title;
    // Of a link only its text counts.
    while let Some(open) = rest.find('[') {
        let (before, after) = rest.split_at(open);
        text.push_str(before);
        match after.find("](").and_then(|mid| after[mid..].find(')').map(|end| (mid, mid + end))) {
            Some((mid, end)) => {
                text.push_str(&after[1..mid]);
                rest = &after[end + 1..];
            }
            None => {
                text.push('[');
                rest = &after[1..];
            }
        }
    }
    text.push_str(rest);
    text.trim()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c if c.is_alphanumeric() => Some(c),
            _ => None,
        })
        .flat_map(char::to_lowercase)
        .collect()
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let level = line.bytes().take_while(|b| *b == b'#').count();
    let title = line.get(level..)?.strip_prefix(' ')?;
    ((1..=6).contains(&level)).then(|| (level, title.trim_end_matches('#').trim()))
}

/// The line with its inline code blanked out.
fn without_code(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        let ticks = rest[start..].bytes().take_while(|b| *b == b'`').count();
        let after = start + ticks;
        out.push_str(&rest[..start]);
        match rest[after..].find(&"`".repeat(ticks)) {
            Some(end) => rest = &rest[after + end + ticks..],
            None => {
                out.push_str(&rest[start..]);
                return out;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Targets of `[text](target "title")` and `[label]: target`.
fn targets(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find("](") {
        rest = &rest[at + 2..];
        let Some(end) = rest.find(')') else { break };
        push_target(&mut found, &rest[..end]);
        rest = &rest[end + 1..];
    }
    if let Some((label, target)) = line.strip_prefix('[').and_then(|l| l.split_once("]: "))
        && !label.contains(']')
    {
        push_target(&mut found, target);
    }
    found
}

fn push_target(found: &mut Vec<String>, raw: &str) {
    let target = raw.split_whitespace().next().unwrap_or_default();
    found.push(target.trim_start_matches('<').trim_end_matches('>').to_owned());
}

/// `<a id="x">` and `<a name="x">`.
fn named_anchors(line: &str) -> Vec<String> {
    ["<a id=\"", "<a name=\""]
        .into_iter()
        .flat_map(|open| line.split(open).skip(1))
        .filter_map(|rest| rest.split_once('"').map(|(name, _)| name.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_those_of_the_forges() {
        for (title, expected) in [
            ("The two commands", "the-two-commands"),
            ("`ilot run` and `--rm`", "ilot-run-and---rm"),
            ("What is *not* there?", "what-is-not-there"),
            ("Élèves & îlots", "élèves--îlots"),
            ("See [the guide](guide.md)", "see-the-guide"),
            ("snake_case, 1.2", "snake_case-12"),
        ] {
            assert_eq!(slug(title), expected, "{title}");
        }
    }

    #[test]
    fn links_in_code_are_none() {
        let page = parse("# A\n[a](b.md) `[c](d.md)` ![e](f.png \"t\")\n```\n[g](h.md)\n# B\n```\n[i]: j.md#k\n");
        let targets: Vec<&str> = page.links.iter().map(|l| l.target.as_str()).collect();
        assert_eq!(targets, ["b.md", "f.png", "j.md#k"]);
        assert_eq!(page.links[2].line, 7);
        assert_eq!(page.outline, [1]);
    }

    #[test]
    fn a_heading_twice_has_two_anchors() {
        let page = parse("## Use\n## Use\n<a id=\"old\"></a>\n");
        assert_eq!(page.anchors.into_iter().collect::<Vec<_>>(), ["old", "use", "use-1"]);
    }
}
