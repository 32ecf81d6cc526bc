//! `network_policies` and `shared_volumes`.

use std::path::PathBuf;

use super::machine::volume_name_ok;
use crate::cx::{At, Cx, Path};
use crate::model::{Ports, Protocol};
use crate::yaml::{Entry, Kind, Node, Span, Value};

pub(crate) const POLICY_KEYS: &[&str] = &["description", "from", "to", "ports", "protocol", "bidirectional"];
pub(crate) const VOLUME_KEYS: &[&str] = &["description", "source", "path", "shift", "propagate", "consumers"];

/// A policy as read; its sides are not resolved.
#[derive(Debug, Clone)]
pub(crate) struct RawPolicy {
    pub(crate) span: Span,
    pub(crate) index: usize,
    pub(crate) description: String,
    pub(crate) from: Option<At<String>>,
    pub(crate) to: Option<At<String>>,
    pub(crate) ports: Ports,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) bidirectional: Option<At<bool>>,
}

/// A shared volume as read; its consumers are not resolved.
#[derive(Debug, Clone)]
pub(crate) struct RawVolume {
    pub(crate) name: String,
    pub(crate) span: Span,
    pub(crate) source: Option<PathBuf>,
    pub(crate) path: At<PathBuf>,
    pub(crate) shift: bool,
    pub(crate) propagate: bool,
    /// Names, and whether they may write.
    pub(crate) consumers: Vec<(At<String>, bool)>,
}

/// Reads a list of policies.
pub(crate) fn read_policies(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Vec<RawPolicy> {
    let items = cx.list(node, path).unwrap_or_default();
    let mut policies = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let own = path.index(index);
        match cx.map(item, &own) {
            Some(entries) => policies.push(read_policy(cx, item, entries, &own, index)),
            None if item.is_null() => {
                cx.error(item.span, &own, "an empty policy")
                    .help("remove the item, or write `{from: …, to: …, ports: […]}`");
            }
            None => {}
        }
    }
    policies
}

fn read_policy(cx: &mut Cx<'_>, node: &Node, entries: &[Entry], path: &Path<'_>, index: usize) -> RawPolicy {
    let mut policy = RawPolicy {
        span: node.span,
        index,
        description: String::new(),
        from: None,
        to: None,
        ports: Ports::All,
        protocol: None,
        bidirectional: None,
    };
    let (mut ports, mut protocol) = (None, None);
    let mut sides = [false; 2];
    for entry in entries {
        let (value, own) = (&entry.value, path.key(&entry.key));
        match &*entry.key {
            "description" => policy.description = cx.text(value, &own).unwrap_or_default().to_owned(),
            "from" => {
                sides[0] = !value.is_null();
                policy.from = cx.filled_text(value, &own).map(|t| At { value: t.to_owned(), span: value.span });
            }
            "to" => {
                sides[1] = !value.is_null();
                policy.to = cx.filled_text(value, &own).map(|t| At { value: t.to_owned(), span: value.span });
            }
            "ports" => ports = read_ports(cx, value, &own),
            "protocol" => {
                let found = cx.choice(value, &own, Protocol::parse, Protocol::CHOICES);
                protocol = found.map(|found| At { value: found, span: value.span });
            }
            "bidirectional" => {
                policy.bidirectional = cx.boolean(value, &own).map(|b| At { value: b, span: value.span });
            }
            _ => cx.unknown_key(entry, path, POLICY_KEYS),
        }
    }
    for (given, side) in sides.into_iter().zip(["from", "to"]) {
        if !given {
            cx.error(node.span, path, format!("a policy without `{side}`")).help(format!(
                "add `{side}:` with a domain, a machine{}",
                if side == "to" { ", `host` or `internet`" } else { " or `host`" }
            ));
        }
    }
    let listed = entries.iter().any(|e| &*e.key == "ports" && !e.value.is_null());
    if !listed {
        cx.warning(node.span, path, "a policy without `ports` opens every port and protocol")
            .help("list what is needed, or write `ports: all`");
    }
    match ports {
        Some(Ports::List(list)) => {
            policy.protocol = Some(protocol.map_or(Protocol::Tcp, |p| p.value));
            policy.ports = Ports::List(list);
        }
        _ => {
            if let Some(protocol) = protocol {
                let message =
                    format!("`protocol: {}` does not narrow `ports: all`, which is every protocol", protocol.value);
                cx.warning(protocol.span, &path.key("protocol"), message).help("list the ports, or remove `protocol`");
            }
        }
    }
    policy
}

fn read_ports(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<Ports> {
    if let Value::Scalar(s) = &node.value {
        match s.kind {
            Kind::Text { .. } if &*s.text == "all" => return Some(Ports::All),
            Kind::Null => return None,
            _ => {
                let help = if s.text.parse::<u16>().is_ok() {
                    format!("write `[{}]`", s.text)
                } else {
                    "write a list such as `[80, 443]`, or `all`".into()
                };
                let message = format!("`ports` must be a list or `all`, not `{}`", crate::cx::shorten(&s.text));
                cx.error(node.span, path, message).help(help);
                return None;
            }
        }
    }
    let items = cx.list(node, path)?;
    let mut ports = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let own = path.index(i);
        match &item.value {
            Value::Scalar(s) => match s.kind {
                Kind::Int(n) => match u16::try_from(n) {
                    Ok(port) if port > 0 => ports.push(port),
                    _ => {
                        cx.error(item.span, &own, format!("{n} is not a port")).help("ports go from 1 to 65535");
                    }
                },
                _ => {
                    let message = format!("`{}` is not a port: it must be a number", crate::cx::shorten(&s.text));
                    let help = if s.text.parse::<u16>().is_ok() {
                        format!("write {} without quotes", s.text)
                    } else {
                        "write each port as a number from 1 to 65535".into()
                    };
                    cx.error(item.span, &own, message).help(help);
                }
            },
            _ => {
                let message = format!("a port must be a number, not {}", item.describe());
                cx.error(item.span, &own, message).help("write each port as a number from 1 to 65535");
            }
        }
    }
    if items.is_empty() {
        cx.warning(node.span, path, "an empty list of ports opens nothing")
            .help("list the ports, or remove the policy");
    }
    ports.sort_unstable();
    ports.dedup();
    Some(Ports::List(ports))
}

/// Reads `shared_volumes`.
pub(crate) fn read_volumes(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Vec<RawVolume> {
    let mut volumes = Vec::new();
    for entry in cx.map(node, path).unwrap_or_default() {
        let own = path.key(&entry.key);
        let named = volume_name_ok(cx, entry, &own);
        let options = cx.map(&entry.value, &own).unwrap_or_default();
        if let Some(volume) = read_volume(cx, entry, options, &own)
            && named
        {
            volumes.push(volume);
        }
    }
    volumes
}

fn read_volume(cx: &mut Cx<'_>, entry: &Entry, options: &[Entry], path: &Path<'_>) -> Option<RawVolume> {
    let default = At { value: PathBuf::from(format!("/shared/{}", entry.key)), span: entry.key_span };
    let mut volume = RawVolume {
        name: entry.key.to_string(),
        span: entry.key_span,
        source: None,
        path: default,
        shift: true,
        propagate: false,
        consumers: Vec::new(),
    };
    let mut whole = true;
    let mut consumers = false;
    for option in options {
        let (value, own) = (&option.value, path.key(&option.key));
        match &*option.key {
            "description" => drop(cx.text(value, &own)),
            "source" => {
                volume.source = cx.absolute_path(value, &own);
                whole &= volume.source.is_some() || value.is_null();
            }
            "path" => match cx.absolute_path(value, &own) {
                Some(found) => volume.path = At { value: found, span: value.span },
                None => whole &= value.is_null(),
            },
            "shift" => volume.shift = cx.boolean(value, &own).unwrap_or(true),
            "propagate" => volume.propagate = cx.boolean(value, &own).unwrap_or(false),
            "consumers" => {
                let list = cx.map(value, &own);
                consumers = list.is_some_and(|l| !l.is_empty()) || matches!(value.value, Value::Sequence(_));
                for consumer in list.unwrap_or_default() {
                    let mode = read_mode(cx, consumer, &own.key(&consumer.key));
                    let name = At { value: consumer.key.to_string(), span: consumer.key_span };
                    volume.consumers.extend(mode.map(|write| (name, write)));
                }
            }
            _ => cx.unknown_key(option, path, VOLUME_KEYS),
        }
    }
    if !consumers && !matches!(entry.value.value, Value::Sequence(_)) {
        cx.error(entry.key_span, path, format!("the shared volume `{}` has no consumers", entry.key))
            .help("add `consumers:` with domains or machines, each `ro` or `rw`");
    }
    whole.then_some(volume)
}

fn read_mode(cx: &mut Cx<'_>, consumer: &Entry, path: &Path<'_>) -> Option<bool> {
    match &consumer.value.value {
        Value::Scalar(s) if &*s.text == "ro" => Some(false),
        Value::Scalar(s) if &*s.text == "rw" => Some(true),
        Value::Scalar(s) => {
            let message = format!("`{}` is not a mode of access", crate::cx::shorten(&s.text));
            cx.error(consumer.value.span, path, message).help("write `ro` or `rw`");
            None
        }
        _ => {
            cx.error(consumer.value.span, path, format!("the access of `{}` must be `ro` or `rw`", consumer.key))
                .help("write `ro` or `rw`");
            None
        }
    }
}
