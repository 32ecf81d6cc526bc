//! A project taken apart: settings, domains, policies, whatever the files were.

use std::collections::HashSet;
use std::path::PathBuf;

use super::ConvertError;
use crate::edit::anchors::{self, Anchors};
use crate::edit::{self, Body, Comment, Document, Item, Key, Node};
use crate::model::Layout;
use crate::problem::{Role, Sources};

/// The parts of a project.
#[derive(Default)]
pub(super) struct Parts {
    /// The main file, for messages.
    pub(super) file: PathBuf,
    /// The comments at the top of the main file.
    pub(super) header: Vec<Comment>,
    /// The entries of the main file that are no domains and no policies.
    pub(super) main: Vec<Item>,
    /// The comments of the key `domains`.
    pub(super) about_domains: Vec<Comment>,
    /// Domains by their names.
    pub(super) domains: Vec<Item>,
    /// `network_policies`.
    pub(super) policies: Option<Item>,
    /// `ilot.yml`, which is the same everywhere.
    pub(super) ilot: Option<Document>,
    /// Comments that lost their place.
    pub(super) tail: Vec<Comment>,
    /// What else lost its place, in words.
    pub(super) notes: Vec<String>,
}

impl Parts {
    /// Takes the files apart. Aliases are written out where their anchor goes to another file.
    pub(super) fn read(sources: &Sources, target: Layout) -> Result<Self, ConvertError> {
        let mut parts = Self { file: sources.files[0].path.clone(), ..Self::default() };
        let mut taken = HashSet::new();
        for source in &sources.files {
            let mut document = edit::read(&source.text).map_err(|why| ConvertError::unsupported(&source.path, why))?;
            if target == Layout::SingleFile && source.role != Role::Ilot {
                anchors::rename(&mut document, &mut taken);
            }
            // One file each in the other layouts.
            let mut scope = Scope { anchors: Anchors::default(), apart: target != Layout::SingleFile };
            match (source.role, sources.layout) {
                (Role::Ilot, _) => parts.ilot = Some(document),
                (Role::Main, _) => parts.main_file(document, &mut scope)?,
                (Role::Policies, _) => parts.policies_file(document, &mut scope),
                (Role::Domains, Layout::ProjectDirectory) => {
                    let name = source.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
                    parts.domain_file(&name.unwrap_or_default(), document);
                }
                (Role::Domains, _) => parts.domains_file(document, &mut scope),
            }
        }
        Ok(parts)
    }

    fn main_file(&mut self, document: Document, scope: &mut Scope) -> Result<(), ConvertError> {
        self.header.extend(document.header);
        let (items, tail) = entries(document.root);
        for mut item in items {
            match item.name() {
                "domains" => {
                    let line = || ConvertError::Unsupported {
                        file: self.file.clone(),
                        line: 1,
                        what: "`domains` is an alias, or has merge keys".into(),
                    };
                    if matches!(item.node.body, Body::Alias(_)) {
                        return Err(line());
                    }
                    self.about_domains.append(&mut item.lead);
                    self.about_domains.extend(item.eol.take().map(Comment::new));
                    self.about_domains.append(&mut item.inner);
                    let (domains, tail) = entries(Some(item.node));
                    for mut domain in domains {
                        if domain.name().is_empty() || domain.name() == "<<" {
                            return Err(line());
                        }
                        let part = 2 + self.domains.len();
                        scope.localize(part, &mut domain);
                        self.domains.push(domain);
                    }
                    self.comments_behind(tail);
                }
                "network_policies" => {
                    scope.localize(1, &mut item);
                    self.set_policies(item);
                }
                _ => {
                    scope.localize(0, &mut item);
                    self.main.push(item);
                }
            }
        }
        self.tail.extend(tail);
        self.tail.extend(document.tail);
        Ok(())
    }

    /// `policies.yml` counts instead of what the main file says.
    fn set_policies(&mut self, policies: Item) {
        if let Some(old) = self.policies.replace(policies) {
            self.notes
                .push("the policies of the main file, which those of `policies.yml` replace, are left out".into());
            comments_of(old, &mut self.tail);
        }
    }

    fn policies_file(&mut self, document: Document, scope: &mut Scope) {
        let (items, mut tail) = entries(document.root);
        tail.extend(document.tail);
        let mut header = Some(document.header);
        for mut item in items {
            if matches!(item.name(), "policies" | "network_policies") {
                item.key = Some(Key::new("network_policies"));
                let mut lead = header.take().unwrap_or_default();
                lead.append(&mut item.lead);
                item.lead = lead;
                scope.localize(1, &mut item);
                self.set_policies(item);
            } else {
                self.hoist(item, scope);
            }
        }
        self.tail.extend(header.unwrap_or_default());
        match self.policies.as_mut().and_then(|item| item.node.collection_mut()).filter(|all| !all.items.is_empty()) {
            Some(all) => all.tail.extend(tail),
            None => self.tail.extend(tail),
        }
    }

    /// A file of any number of domains.
    fn domains_file(&mut self, document: Document, scope: &mut Scope) {
        let mut header = document.header;
        let (items, mut tail) = entries(document.root);
        tail.extend(document.tail);
        for mut item in items {
            if item.name().starts_with("x-") {
                self.hoist(item, scope);
                continue;
            }
            let mut lead = std::mem::take(&mut header);
            lead.append(&mut item.lead);
            item.lead = lead;
            scope.localize(2 + self.domains.len(), &mut item);
            self.domains.push(item);
        }
        self.tail.append(&mut header);
        self.comments_behind(tail);
    }

    /// A file that is one domain.
    fn domain_file(&mut self, name: &str, document: Document) {
        let mut item = Item::new(name, document.root.unwrap_or_default());
        item.lead = document.header;
        self.domains.push(item);
        self.comments_behind(document.tail);
    }

    /// Values for anchors go to the main file.
    fn hoist(&mut self, mut item: Item, scope: &mut Scope) {
        let name = item.name().to_owned();
        let mut free = name.clone();
        let mut number = 1;
        while self.main.iter().any(|other| other.name() == free) {
            number += 1;
            free = format!("{name}-{number}");
        }
        if free != name {
            item.key = Some(Key::new(&free));
        }
        scope.localize(0, &mut item);
        self.main.push(item);
    }

    /// Comments behind the last domain.
    fn comments_behind(&mut self, comments: Vec<Comment>) {
        let last = self.domains.last_mut().and_then(|item| item.node.collection_mut());
        match last.filter(|all| !all.items.is_empty()) {
            Some(all) => all.tail.extend(comments),
            None => self.tail.extend(comments),
        }
    }

    /// Takes a setting out of the main file.
    pub(super) fn take(&mut self, name: &str) -> Option<Item> {
        let at = self.main.iter().position(|item| item.name() == name)?;
        Some(self.main.remove(at))
    }
}

/// Which anchors a file has, and whether its parts go to files of their own.
struct Scope {
    anchors: Anchors,
    apart: bool,
}

impl Scope {
    fn localize(&mut self, part: usize, item: &mut Item) {
        if self.apart {
            self.anchors.localize(part, item);
        }
    }
}

/// The entries of a mapping and the comments behind them.
pub(super) fn entries(node: Option<Node>) -> (Vec<Item>, Vec<Comment>) {
    match node.map(|node| node.body) {
        Some(Body::Map(all)) => (all.items, all.tail),
        _ => (Vec::new(), Vec::new()),
    }
}

/// Every comment of an item that is left out.
pub(super) fn comments_of(mut item: Item, into: &mut Vec<Comment>) {
    into.append(&mut item.lead);
    into.extend(item.eol.take().map(Comment::new));
    into.append(&mut item.inner);
    if let Body::Block(block) = &mut item.node.body {
        into.extend(block.comment.take().map(Comment::new));
    }
    if let Body::Map(all) | Body::Seq(all) = item.node.body {
        for item in all.items {
            comments_of(item, into);
        }
        into.extend(all.tail);
    }
}
