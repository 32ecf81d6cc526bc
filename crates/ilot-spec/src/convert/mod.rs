//! From one layout to another: the same project in other files, comments kept where there is a place for them.

mod keys;
mod parts;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::edit::{self, Comment, Document, Item, Node, Unsupported};
use crate::fmt::meaning;
use crate::model::{HostFacts, Layout, Project};
use crate::problem::{Role, SourceFile, Sources};
use parts::Parts;

/// A project in another layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// Paths below the directory of the project, and their texts.
    pub files: Vec<(PathBuf, String)>,
    /// What has no place in the new layout, in words.
    pub notes: Vec<String>,
}

/// Why a project cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// It has errors.
    #[error("the files have {0} errors")]
    Invalid(usize),
    /// It has that layout.
    #[error("the project has this layout already")]
    Same,
    /// Something is written in a way that cannot be moved.
    #[error("cannot convert `{}`, line {line}: {what}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// 1-based.
        line: usize,
        /// What stands there.
        what: String,
    },
    /// Names that a project directory cannot have.
    #[error("a project directory names its machines `<domain>-<machine>`, and {} would change", list(.0))]
    Names(Vec<String>),
    /// A setting that the layout does not have.
    #[error("a project directory cannot say this: {0}")]
    NoPlace(String),
    /// The result would not mean the same; what differs.
    #[error("the result would not mean the same: `{0}` differs")]
    Meaning(String),
}

impl ConvertError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "`ilot check` shows them",
            Self::Same => "`ilot fmt` writes it anew",
            Self::Unsupported { .. } => {
                "write it more simply: keys on one line, machines and settings without merge keys"
            }
            Self::Names(_) => "rename them (a new name is a new machine), or convert to `split`",
            Self::NoPlace(_) => "change it, or convert to `split`",
            Self::Meaning(_) => "this is a mistake of ilot's: please report it with the files; nothing was written",
        }
    }
}

fn list(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|name| format!("`{name}`")).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Writes a project in another layout. Aliases whose anchors go to another file are written out. What the result means
/// is compared with what the project meant.
///
/// # Errors
///
/// Files with errors, and what the other layout has no place for: see [`ConvertError`].
pub fn convert(sources: &Sources, host: &HostFacts, target: Layout) -> Result<Converted, ConvertError> {
    let (project, errors, _) = crate::judge(sources, host);
    let Some(project) = project else { return Err(ConvertError::Invalid(errors.len())) };
    if sources.layout == target {
        return Err(ConvertError::Same);
    }
    let mut parts = Parts::read(sources, target)?;
    match (sources.layout, target) {
        (Layout::ProjectDirectory, _) => keys::from_project(&mut parts, &project)?,
        (_, Layout::ProjectDirectory) => keys::to_project(&mut parts, &project)?,
        _ => {}
    }
    let notes = std::mem::take(&mut parts.notes);
    let files: Vec<SourceFile> = documents(parts, target)
        .into_iter()
        .map(|(path, role, mut document)| {
            edit::order::order(&mut document, target, role);
            SourceFile { path, role, text: document.print() }
        })
        .collect();
    let result = Sources { layout: target, root: sources.root.clone(), directory: None, files, unreadable: Vec::new() };
    let (after, errors, _) = crate::judge(&result, host);
    if let Some(error) = errors.first() {
        return Err(ConvertError::Meaning(format!("{}: {}", error.path, error.message)));
    }
    if let Some(place) = after.and_then(|after| difference(&project, &after)) {
        return Err(ConvertError::Meaning(place));
    }
    Ok(Converted { files: result.files.into_iter().map(|file| (file.path, file.text)).collect(), notes })
}

/// The files of a layout, the main one first.
fn documents(parts: Parts, target: Layout) -> Vec<(PathBuf, Role, Document)> {
    let Parts { header, mut main, domains, policies, ilot, mut tail, mut about_domains, .. } = parts;
    let dir = if target == Layout::SplitDirectory { Path::new("infra") } else { Path::new("") };
    let name = match target {
        Layout::SingleFile => "infra.yml",
        Layout::SplitDirectory => "base.yml",
        Layout::ProjectDirectory => "anklume.yml",
    };
    let mut files = Vec::new();
    if target == Layout::SingleFile || target == Layout::SplitDirectory && domains.is_empty() {
        let all = if domains.is_empty() { flow_map() } else { Node::map(domains) };
        main.push(Item { lead: about_domains, ..Item::new("domains", all) });
        main.extend(policies);
    } else {
        for domain in domains {
            let path = dir.join("domains").join(format!("{}.yml", domain.name()));
            files.push((path, Role::Domains, domain_file(domain, target)));
        }
        if let Some(mut policies) = policies {
            if target == Layout::ProjectDirectory {
                policies.key = Some(edit::Key::new("policies"));
            }
            files.push((dir.join("policies.yml"), Role::Policies, file(Vec::new(), vec![policies])));
        }
        tail.append(&mut about_domains);
    }
    if let Some(ilot) = ilot {
        files.push((dir.join("ilot.yml"), Role::Ilot, ilot));
    }
    let document = Document { tail, ..file(header, main) };
    files.insert(0, (dir.join(name), Role::Main, document));
    files
}

fn file(header: Vec<Comment>, items: Vec<Item>) -> Document {
    Document { header, root: Some(Node::map(items)), ..Document::default() }
}

fn flow_map() -> Node {
    let mut node = Node::map(Vec::new());
    if let Some(all) = node.collection_mut() {
        all.flow = true;
    }
    node
}

/// A domain in a file of its own: by its name in a split directory, as the whole file in a project directory.
fn domain_file(mut domain: Item, target: Layout) -> Document {
    if target == Layout::SplitDirectory {
        return file(Vec::new(), vec![domain]);
    }
    let mut header = std::mem::take(&mut domain.lead);
    header.extend(domain.eol.take().map(Comment::new));
    header.append(&mut domain.inner);
    if domain.node.collection().is_none_or(|all| all.items.is_empty()) {
        domain.node = flow_map();
    } else if let Some(all) = domain.node.collection_mut() {
        // A file of one line is no place for what comes next.
        all.flow = false;
    }
    Document { header, root: Some(domain.node), ..Document::default() }
}

/// The first thing in which two projects differ, what belongs to a layout put aside.
fn difference(before: &Project, after: &Project) -> Option<String> {
    let plain = |project: &Project| {
        let mut value = meaning(project)?;
        let fields = value.as_object_mut()?;
        for key in ["layout", "source", "schema_version", "extra"] {
            fields.shift_remove(key);
        }
        for domain in fields.get_mut("domains")?.as_object_mut()?.values_mut() {
            for machine in domain.get_mut("machines")?.as_array_mut()? {
                machine.as_object_mut()?.shift_remove("declared_name");
            }
        }
        Some(value)
    };
    match (plain(before), plain(after)) {
        (Some(before), Some(after)) => differs(&before, &after, String::new()),
        _ => Some("project".into()),
    }
}

fn differs(a: &Value, b: &Value, path: String) -> Option<String> {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let key = a.keys().chain(b.keys()).find(|key| a.get(*key) != b.get(*key))?;
            differs(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), below(key))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            let at = x.iter().zip(y).position(|(x, y)| x != y)?;
            differs(&x[at], &y[at], below(&at.to_string()))
        }
        (a, b) => (a != b).then_some(path),
    }
}

impl ConvertError {
    fn unsupported(file: &Path, Unsupported { line, what }: Unsupported) -> Self {
        Self::Unsupported { file: file.into(), line, what }
    }
}
