//! The words of the two generations: `global` of the single file, the top level of `anklume.yml`.

use super::ConvertError;
use super::parts::{Parts, comments_of, entries};
use crate::edit::{Body, Comment, Item, Key, Node};
use crate::model::{AiAccessPolicy, Project, TrustLevel};

/// Settings with the same name at both places.
const SAME: &[&str] = &[
    "resource_policy",
    "gpu_policy",
    "firewall_mode",
    "ai_access_policy",
    "ai_access_default",
    "ai_vram_flush",
    "default_user",
    "default_connection",
    "shared_volumes_base",
    "persistent_data_base",
];

/// From `infra.yml` to `anklume.yml`.
pub(super) fn to_project(parts: &mut Parts, project: &Project) -> Result<(), ConvertError> {
    if let crate::model::Addressing::BaseSubnet { .. } = project.global.addressing {
        return Err(ConvertError::NoPlace("addresses by `base_subnet`".into()));
    }
    short_names(parts)?;
    let mut settings = vec![Item::scalar("schema_version", "1")];
    settings.extend(parts.take("project_name"));
    if let Some(mut global) = parts.take("global") {
        let mut lead = std::mem::take(&mut global.lead);
        lead.extend(global.eol.take().map(Comment::new));
        lead.append(&mut global.inner);
        let node = plain(parts, global.node, "global")?;
        let (items, tail) = entries(Some(node));
        for mut item in items {
            prepend(&mut item, &mut lead);
            let name = item.name().to_owned();
            match name.as_str() {
                "addressing" => settings.push(addressing_to_project(parts, item)?),
                "base_subnet" => {
                    parts.notes.push("`base_subnet`, which `addressing` replaces, is left out".into());
                    comments_of(item, &mut parts.tail);
                }
                "default_os_image" => settings.push(wrapped("defaults", "os_image", item)),
                "nesting_prefix" => settings.push(wrapped("nesting", "prefix", item)),
                _ => settings.push(item),
            }
        }
        parts.tail.append(&mut lead);
        parts.tail.extend(tail);
    }
    settings.append(&mut parts.main);
    parts.main = settings;
    Ok(())
}

/// From `anklume.yml` to `infra.yml`.
pub(super) fn from_project(parts: &mut Parts, project: &Project) -> Result<(), ConvertError> {
    long_names(parts)?;
    let (mut global, mut others) = (Vec::new(), Vec::new());
    let mut lead = Vec::new();
    for mut item in std::mem::take(&mut parts.main) {
        prepend(&mut item, &mut lead);
        let name = item.name().to_owned();
        match name.as_str() {
            "schema_version" => {
                lead = std::mem::take(&mut item.lead);
                lead.extend(item.eol.take().map(Comment::new));
            }
            "network_passthrough" | "requires_anklume" => {
                parts.notes.push(format!("`{name}` is left out: only a project directory has it"));
                comments_of(item, &mut parts.tail);
            }
            "defaults" => defaults(parts, item, project, &mut global)?,
            "addressing" => global.push(addressing_from_project(parts, item)?),
            "nesting" => unwrapped(parts, item, &[("prefix", "nesting_prefix")], &mut global)?,
            name if SAME.contains(&name) => global.push(item),
            _ => others.push(item),
        }
    }
    parts.tail.append(&mut lead);
    if !others.iter().any(|item| item.name() == "project_name") {
        let name = serde_json::Value::String(project.name.clone()).to_string();
        others.insert(0, Item::scalar("project_name", &name));
    }
    let access = &project.global;
    if access.ai_access_policy == AiAccessPolicy::Exclusive
        && !global.iter().any(|item| item.name() == "ai_access_default")
        && let Some(domain) = &access.ai_access_default
    {
        let name = domain.as_str().strip_prefix(&*project.name_prefix).unwrap_or(domain.as_str());
        global.push(Item::scalar("ai_access_default", name));
    }
    let mut node = Node::map(global);
    if let Some(all) = node.collection_mut() {
        all.flow = all.items.is_empty();
    }
    others.push(Item::new("global", node));
    parts.main = others;
    Ok(())
}

/// Comments in front of those that an item has.
fn prepend(item: &mut Item, comments: &mut Vec<Comment>) {
    comments.append(&mut item.lead);
    item.lead = std::mem::take(comments);
}

/// `KEY: VALUE` as `OUTER: {INNER: VALUE}`.
fn wrapped(outer: &str, inner: &str, mut item: Item) -> Item {
    let lead = std::mem::take(&mut item.lead);
    item.key = Some(Key::new(inner));
    Item { lead, ..Item::new(outer, Node::map(vec![item])) }
}

/// `OUTER: {INNER: VALUE}` as `KEY: VALUE`; inner keys without a name of their own are left out.
fn unwrapped(
    parts: &mut Parts,
    mut item: Item,
    names: &[(&str, &str)],
    into: &mut Vec<Item>,
) -> Result<(), ConvertError> {
    let mut lead = std::mem::take(&mut item.lead);
    lead.extend(item.eol.take().map(Comment::new));
    lead.append(&mut item.inner);
    let outer = item.name().to_owned();
    let (items, tail) = entries(Some(plain(parts, item.node, &outer)?));
    for mut item in items {
        prepend(&mut item, &mut lead);
        match names.iter().find(|(inner, _)| *inner == item.name()) {
            Some((_, name)) => {
                item.key = Some(Key::new(name));
                into.push(item);
            }
            None => comments_of(item, &mut parts.tail),
        }
    }
    parts.tail.append(&mut lead);
    parts.tail.extend(tail);
    Ok(())
}

/// What domains leave out is written into each of them.
fn defaults(parts: &mut Parts, item: Item, project: &Project, global: &mut Vec<Item>) -> Result<(), ConvertError> {
    unwrapped(parts, item, &[("os_image", "default_os_image"), ("trust_level", "trust_level")], global)?;
    let Some(at) = global.iter().position(|item| item.name() == "trust_level") else { return Ok(()) };
    comments_of(global.remove(at), &mut parts.tail);
    for item in &mut parts.domains {
        let name = format!("{}{}", project.name_prefix, item.name());
        let level = project.domains.iter().find(|(own, _)| own.as_str() == name).map(|(_, domain)| domain.trust_level);
        let Some(level) = level.filter(|level| *level != TrustLevel::SemiTrusted) else { continue };
        if matches!(item.node.body, Body::Null) {
            item.node = Node::map(Vec::new());
        }
        if let Some(entries) = item.node.entries_mut()
            && !entries.iter().any(|entry| entry.name() == "trust_level")
        {
            entries.push(Item::scalar("trust_level", level.as_str()));
        }
    }
    Ok(())
}

/// `{base_octet: 10, zone_base: 100, zone_step: 10}` as `{base: "10.100", zone_step: 10}`.
fn addressing_to_project(parts: &mut Parts, mut item: Item) -> Result<Item, ConvertError> {
    let mut node = plain(parts, std::mem::take(&mut item.node), "addressing")?;
    if let Some(items) = node.entries_mut() {
        let mut kept = Vec::new();
        let mut lead = Vec::new();
        for mut item in std::mem::take(items) {
            prepend(&mut item, &mut lead);
            match (item.name(), &item.node.body) {
                ("base_octet", _) => comments_of(item, &mut lead),
                ("zone_base", Body::Scalar(scalar)) => {
                    let base = match crate::yaml::parse(&scalar.text, 0).root.map(|node| node.to_json()) {
                        Some(serde_json::Value::Number(number)) => number.to_string(),
                        _ => scalar.text.clone(),
                    };
                    let new = Item::scalar("base", &format!("\"10.{base}\""));
                    kept.push(Item { key: new.key, node: new.node, ..item });
                }
                _ => kept.push(item),
            }
        }
        parts.tail.append(&mut lead);
        *items = kept;
    }
    item.node = node;
    Ok(item)
}

/// The other way round.
fn addressing_from_project(parts: &mut Parts, mut item: Item) -> Result<Item, ConvertError> {
    let mut node = plain(parts, std::mem::take(&mut item.node), "addressing")?;
    if let Some(items) = node.entries_mut() {
        for item in items.iter_mut() {
            if let ("base", Body::Scalar(scalar)) = (item.name(), &item.node.body) {
                let zone = scalar.text.rsplit('.').next().unwrap_or_default().to_owned();
                let new = Item::scalar("zone_base", &zone);
                (item.key, item.node) = (new.key, new.node);
            }
        }
        items.insert(0, Item::scalar("base_octet", "10"));
    }
    item.node = node;
    Ok(item)
}

/// A mapping whose keys stand in it: no alias, no merge key.
fn plain(parts: &Parts, node: Node, name: &str) -> Result<Node, ConvertError> {
    let merged = node.entries().is_some_and(|items| items.iter().any(|item| matches!(item.name(), "<<" | "")));
    if merged || matches!(node.body, Body::Alias(_)) {
        let what = format!("`{name}` is an alias, or has merge keys");
        return Err(ConvertError::Unsupported { file: parts.file.clone(), line: 1, what });
    }
    Ok(node)
}

/// `pro-dev` in `pro` becomes `dev`.
fn short_names(parts: &mut Parts) -> Result<(), ConvertError> {
    let mut others = Vec::new();
    rename(parts, |domain, machine| {
        let short = machine.strip_prefix(domain).and_then(|rest| rest.strip_prefix('-'));
        let short = short.filter(|short| crate::model::MachineName::new(*short).is_ok());
        if short.is_none() {
            others.push(machine.to_owned());
        }
        short.unwrap_or(machine).to_owned()
    })?;
    if others.is_empty() { Ok(()) } else { Err(ConvertError::Names(others)) }
}

/// `dev` in `pro` becomes `pro-dev`.
fn long_names(parts: &mut Parts) -> Result<(), ConvertError> {
    rename(parts, |domain, machine| format!("{domain}-{machine}"))
}

fn rename(parts: &mut Parts, mut name: impl FnMut(&str, &str) -> String) -> Result<(), ConvertError> {
    for domain in &mut parts.domains {
        let of = domain.name().to_owned();
        let refused = |what: &str| ConvertError::Unsupported {
            file: parts.file.clone(),
            line: 1,
            what: format!("{what} of the domain `{of}` is an alias, or has merge keys"),
        };
        let Some(entries) = domain.node.entries_mut() else { continue };
        for entry in entries.iter_mut() {
            if entry.name() == "<<" && merges_machines(&entry.node) {
                return Err(refused("what"));
            }
            if entry.name() != "machines" {
                continue;
            }
            if matches!(entry.node.body, Body::Alias(_)) {
                return Err(refused("`machines`"));
            }
            for machine in entry.node.entries_mut().into_iter().flatten() {
                if matches!(machine.name(), "<<" | "") {
                    return Err(refused("`machines`"));
                }
                let new = name(&of, machine.name());
                let props = machine.key.take().map(|key| key.props).unwrap_or_default();
                machine.key = Some(Key { props, ..Key::new(&new) });
            }
        }
    }
    Ok(())
}

/// Whether merged keys bring machines with them, as far as that can be seen here.
fn merges_machines(node: &Node) -> bool {
    match &node.body {
        Body::Map(all) => all.items.iter().any(|item| item.name() == "machines"),
        Body::Seq(all) => all.items.iter().any(|item| merges_machines(&item.node)),
        _ => false,
    }
}
