//! `cargo xtask check-docs`: every link inside the project leads somewhere, and every page, crate and example is listed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::build::root;
use crate::check_markdown::{Page, parse};

/// Pages that exist in two languages and must have the same outline.
const TRANSLATED: &[(&str, &str)] = &[("README.md", "README.fr.md")];

/// Checks the project's pages.
pub fn run() -> Result<(), String> {
    let root = root();
    let pages = read_pages(&root)?;
    let mut problems = Vec::new();
    for (path, page) in &pages {
        check_links(&root, &pages, path, page, &mut problems);
    }
    check_listed(&pages, "docs/README.md", &children(&root, "docs", is_page)?, &mut problems);
    check_listed(&pages, "crates/README.md", &children(&root, "crates", is_crate)?, &mut problems);
    if root.join("examples").exists() {
        let examples = children(&root, "examples", Path::is_dir)?;
        for example in &examples {
            if !pages.contains_key(&example.join("README.md")) {
                problems.push(format!("{}: has no README.md", example.display()));
            }
        }
        check_listed(&pages, "examples/README.md", &examples, &mut problems);
    }
    for (one, other) in TRANSLATED {
        let outline = |path: &str| pages.get(Path::new(path)).map(|page| &page.outline);
        if outline(one) != outline(other) {
            problems.push(format!("{other}: its headings do not follow those of {one}"));
        }
    }
    if problems.is_empty() {
        let links: usize = pages.values().map(|page| page.links.len()).sum();
        println!("{} pages, {links} links: all lead somewhere", pages.len());
        return Ok(());
    }
    problems.sort();
    for problem in &problems {
        eprintln!("{problem}");
    }
    Err(format!("{} problem{} in the documents", problems.len(), if problems.len() == 1 { "" } else { "s" }))
}

/// Every page of the project, by its path from the root.
fn read_pages(root: &Path) -> Result<BTreeMap<PathBuf, Page>, String> {
    let mut pages = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        for child in children(root, dir.to_str().unwrap_or_default(), |_| true)? {
            let name = child.file_name().unwrap_or_default().to_string_lossy();
            let full = root.join(&child);
            if full.is_dir() && !full.is_symlink() {
                if !name.starts_with('.') && name != "target" {
                    waiting.push(child);
                }
            } else if is_page(&full) {
                let text = fs::read_to_string(&full).map_err(|e| format!("cannot read {}: {e}", child.display()))?;
                pages.insert(child, parse(&text));
            }
        }
    }
    Ok(pages)
}

/// What lies in a directory and is wanted, by its path from the root.
fn children(root: &Path, dir: &str, wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, String> {
    let full = root.join(dir);
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", full.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&full).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if wanted(&entry.path()) {
            found.push(Path::new(dir).join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "md")
}

fn is_crate(path: &Path) -> bool {
    path.join("Cargo.toml").exists()
}

fn check_links(root: &Path, pages: &BTreeMap<PathBuf, Page>, path: &Path, page: &Page, problems: &mut Vec<String>) {
    for link in &page.links {
        if link.target.contains("://") || link.target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
        let mut complain = |why: &str| {
            problems.push(format!("{}:{}: link `{}`: {why}", path.display(), link.line, link.target));
        };
        let Some(target) = resolve(path, file) else {
            complain("leaves the project");
            continue;
        };
        if !root.join(&target).exists() {
            complain("no such file");
        } else if !anchor.is_empty() && !pages.get(&target).is_some_and(|page| page.anchors.contains(anchor)) {
            complain("no such heading");
        }
    }
}

/// A link's file from the root; `None` when it leads out.
fn resolve(page: &Path, file: &str) -> Option<PathBuf> {
    if file.is_empty() {
        return Some(page.to_owned());
    }
    if file.starts_with('/') {
        return None;
    }
    let mut target = page.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(file).components() {
        match part {
            Component::Normal(name) => target.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !target.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(target)
}

/// Everything of `wanted` must be linked from the page `index`, itself or a file in it.
fn check_listed(pages: &BTreeMap<PathBuf, Page>, index: &str, wanted: &[PathBuf], problems: &mut Vec<String>) {
    let index = Path::new(index);
    let Some(page) = pages.get(index) else {
        problems.push(format!("{}: is missing", index.display()));
        return;
    };
    let linked: Vec<PathBuf> =
        page.links.iter().filter_map(|link| resolve(index, link.target.split('#').next()?)).collect();
    for path in wanted {
        if path != index && !linked.iter().any(|target| target.starts_with(path)) {
            problems.push(format!("{}: does not list {}", index.display(), path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let page = Path::new("docs/guide.md");
        assert_eq!(resolve(page, "../README.md"), Some("README.md".into()));
        assert_eq!(resolve(page, ""), Some(page.into()));
        assert_eq!(resolve(page, "../../etc/passwd"), None);
        assert_eq!(resolve(page, "/etc/passwd"), None);
    }

    #[test]
    fn what_is_not_listed_is_a_problem() {
        let pages = BTreeMap::from([(PathBuf::from("docs/README.md"), parse("[a](a.md) [b](sub/README.md#x)"))]);
        let mut problems = Vec::new();
        let wanted = ["docs/README.md", "docs/a.md", "docs/sub", "docs/c.md"].map(PathBuf::from);
        check_listed(&pages, "docs/README.md", &wanted, &mut problems);
        assert_eq!(problems, ["docs/README.md: does not list docs/c.md"]);
    }
}
