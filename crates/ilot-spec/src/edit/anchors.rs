//! Anchors and aliases, when parts move to files of their own or come together in one.

use std::collections::{HashMap, HashSet};

use super::{Body, Collection, Document, Item, Node, Scalar};

/// What each anchor stands for at the place that was reached, and in which part it stands.
#[derive(Default)]
pub(crate) struct Anchors {
    known: HashMap<String, (usize, Node)>,
}

impl Anchors {
    /// Writes out the aliases of an item whose anchors stand in another part. Items are to be visited in the order of
    /// their files.
    pub(crate) fn localize(&mut self, part: usize, item: &mut Item) {
        if let Some(key) = &mut item.key {
            if let Some(Scalar { lines, text, .. }) = key.raw.strip_prefix('*').and_then(|name| self.scalar(name, part))
            {
                key.raw = lines.concat();
                key.text = text;
            }
            let text = Scalar { lines: vec![key.raw.clone()], text: key.text.clone(), plain: false };
            let node = Node { props: Vec::new(), body: Body::Scalar(text) };
            self.define(part, &key.props, &node);
        }
        self.node(part, &mut item.node);
    }

    pub(crate) fn node(&mut self, part: usize, node: &mut Node) {
        if let Body::Alias(raw) = &node.body
            && let Some((home, value)) = raw.strip_prefix('*').and_then(|name| self.known.get(name))
        {
            if *home != part {
                *node = value.clone();
            }
            return;
        }
        for item in node.collection_mut().into_iter().flat_map(|all| &mut all.items) {
            self.localize(part, item);
        }
        let props = node.props.clone();
        self.define(part, &props, node);
    }

    fn scalar(&self, name: &str, part: usize) -> Option<Scalar> {
        match self.known.get(name) {
            Some((home, Node { body: Body::Scalar(scalar), .. })) if *home != part => Some(scalar.clone()),
            _ => None,
        }
    }

    fn define(&mut self, part: usize, props: &[String], node: &Node) {
        let Some(name) = props.iter().find_map(|prop| prop.strip_prefix('&')) else { return };
        let value = self.expanded(node);
        self.known.insert(name.to_owned(), (part, value));
    }

    /// The value alone: no anchors, no aliases, no comments.
    fn expanded(&self, node: &Node) -> Node {
        let props = node.props.iter().filter(|prop| !prop.starts_with('&')).cloned().collect();
        let all = |all: &Collection| Collection {
            items: all.items.iter().map(|item| self.expanded_item(item)).collect(),
            tail: Vec::new(),
            flow: all.flow,
        };
        let body = match &node.body {
            Body::Alias(raw) => match raw.strip_prefix('*').and_then(|name| self.known.get(name)) {
                Some((_, value)) => return value.clone(),
                None => Body::Null,
            },
            Body::Scalar(scalar) => Body::Scalar(fit_for_brackets(scalar)),
            Body::Map(items) => Body::Map(all(items)),
            Body::Seq(items) => Body::Seq(all(items)),
            Body::Block(block) => Body::Block(super::Block { comment: None, ..block.clone() }),
            Body::Null => Body::Null,
        };
        Node { props, body }
    }

    fn expanded_item(&self, item: &Item) -> Item {
        let key = item.key.clone().map(|mut key| {
            key.props.retain(|prop| !prop.starts_with('&'));
            if let Some(scalar) = key.raw.strip_prefix('*').and_then(|name| self.scalar(name, usize::MAX)) {
                key.raw = scalar.lines.concat();
                key.text = scalar.text;
            }
            key
        });
        Item { key, node: self.expanded(&item.node), ..Item::default() }
    }
}

/// What may stand without quotes outside of brackets may not inside.
fn fit_for_brackets(scalar: &Scalar) -> Scalar {
    if !scalar.plain || !scalar.text.contains([',', '[', ']', '{', '}']) {
        return scalar.clone();
    }
    let quoted = serde_json::Value::String(scalar.text.clone()).to_string();
    Scalar { lines: vec![quoted], text: scalar.text.clone(), plain: false }
}

/// Gives the anchors of a document names that are not taken yet.
pub(crate) fn rename(document: &mut Document, taken: &mut HashSet<String>) {
    let mut own = HashSet::new();
    let Some(root) = &mut document.root else { return };
    names(root, &mut |name| {
        if let Some(name) = name.strip_prefix('&') {
            own.insert(name.to_owned());
        }
    });
    let mut new: HashMap<String, String> = HashMap::new();
    for name in &own {
        let mut free = name.clone();
        let mut number = 1;
        while taken.contains(&free) || free != *name && own.contains(&free) {
            number += 1;
            free = format!("{name}-{number}");
        }
        taken.insert(free.clone());
        new.insert(name.clone(), free);
    }
    names(root, &mut |name| {
        if let Some(free) = name.get(1..).and_then(|old| new.get(old)) {
            let mark = if name.starts_with('&') { '&' } else { '*' };
            *name = format!("{mark}{free}");
        }
    });
}

/// Visits each anchor and alias with its mark.
fn names(node: &mut Node, visit: &mut impl FnMut(&mut String)) {
    node.props.iter_mut().filter(|prop| prop.starts_with('&')).for_each(&mut *visit);
    if let Body::Alias(raw) = &mut node.body {
        visit(raw);
    }
    for item in node.collection_mut().into_iter().flat_map(|all| &mut all.items) {
        if let Some(key) = &mut item.key {
            key.props.iter_mut().filter(|prop| prop.starts_with('&')).for_each(&mut *visit);
            if key.raw.starts_with('*') {
                visit(&mut key.raw);
            }
        }
        names(&mut item.node, visit);
    }
}
