//! The `ilot:` block: what only ilot has.

use indexmap::IndexMap;

use crate::cx::{At, Cx, Path};
use crate::egress::EgressRule;
use crate::model::{Backend, Isolation, MachineKind};
use crate::yaml::{Entry, Kind, Node, Value};

/// Where a block stands, which decides its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Project,
    Domain,
    Machine,
}

pub(crate) const PROJECT_KEYS: &[&str] =
    &["backend", "isolation", "image", "restart", "egress", "amnesic", "ipv6", "domains", "machines"];
pub(crate) const DOMAIN_KEYS: &[&str] =
    &["backend", "isolation", "kind", "image", "restart", "egress", "amnesic", "preload", "ipv6"];
pub(crate) const MACHINE_KEYS: &[&str] =
    &["backend", "isolation", "kind", "image", "command", "restart", "health", "egress", "amnesic", "preload"];
pub(crate) const HEALTH_KEYS: &[&str] = &["command", "http", "tcp", "interval", "timeout", "retries", "start_period"];

/// What one block says; each level fills in what the level below it leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct IlotBlock {
    pub(crate) backend: Option<At<Backend>>,
    pub(crate) isolation: Option<At<Isolation>>,
    pub(crate) kind: Option<At<MachineKind>>,
    pub(crate) image: Option<At<String>>,
    pub(crate) command: Option<At<Vec<String>>>,
    pub(crate) restart: Option<At<String>>,
    pub(crate) health: Option<At<serde_json::Value>>,
    pub(crate) egress: Option<At<Vec<String>>>,
    pub(crate) amnesic: Option<At<bool>>,
    pub(crate) preload: Option<At<u32>>,
    pub(crate) ipv6: Option<At<bool>>,
}

/// The block of the project, and what it says of single domains and machines.
#[derive(Debug, Clone, Default)]
pub(crate) struct IlotProject {
    pub(crate) block: IlotBlock,
    pub(crate) domains: IndexMap<String, At<IlotBlock>>,
    pub(crate) machines: IndexMap<String, At<IlotBlock>>,
}

impl IlotBlock {
    /// Fills in from `ilot.yml` or the project's block; a key that both give is a warning, and this one's wins.
    pub(crate) fn overlay(&mut self, cx: &mut Cx<'_>, other: IlotBlock, path: &Path<'_>) {
        macro_rules! fill {
            ($($field:ident),+) => {$(
                match (&self.$field, other.$field) {
                    (Some(own), Some(theirs)) => {
                        let name = stringify!($field);
                        let own = cx.position(own.span);
                        let place = format!("{}:{}", own.file.display(), own.line);
                        cx.warning(theirs.span, &path.key(name), format!("`{name}` is also given at {place}, which counts"))
                            .help("keep one of the two");
                    }
                    (None, theirs @ Some(_)) => self.$field = theirs,
                    (_, None) => {}
                }
            )+};
        }
        fill!(backend, isolation, kind, image, command, restart, health, egress, amnesic, preload, ipv6);
    }
}

/// Reads the project's block: `ilot:` of the main file and `ilot.yml` together.
pub(crate) fn read_project(cx: &mut Cx<'_>, entries: &[&Entry], path: &Path<'_>) -> IlotProject {
    let mut project = IlotProject::default();
    for (i, &entry) in entries.iter().enumerate() {
        if let Some(first) = entries[..i].iter().find(|e| e.key == entry.key) {
            let message = format!("`{}` is given twice: in the `ilot:` block and in `ilot.yml`", entry.key);
            cx.clash(entry.key_span, &path.key(&entry.key), message, first.key_span, "first here")
                .help("keep one of them");
            continue;
        }
        match &*entry.key {
            "domains" => project.domains = read_named(cx, entry, &path.key("domains"), Level::Domain),
            "machines" => project.machines = read_named(cx, entry, &path.key("machines"), Level::Machine),
            _ => read_entry(cx, &mut project.block, entry, path, Level::Project),
        }
    }
    project
}

fn read_named(cx: &mut Cx<'_>, entry: &Entry, path: &Path<'_>, level: Level) -> IndexMap<String, At<IlotBlock>> {
    let mut named = IndexMap::new();
    for item in cx.map(&entry.value, path).unwrap_or_default() {
        let block = read_block(cx, &item.value, &path.key(&item.key), level);
        named.insert(item.key.to_string(), At { value: block, span: item.key_span });
    }
    named
}

/// Reads the block of a domain or machine.
pub(crate) fn read_block(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>, level: Level) -> IlotBlock {
    let mut block = IlotBlock::default();
    for entry in cx.map(node, path).unwrap_or_default() {
        read_entry(cx, &mut block, entry, path, level);
    }
    block
}

fn read_entry(cx: &mut Cx<'_>, block: &mut IlotBlock, entry: &Entry, parent: &Path<'_>, level: Level) {
    let keys = match level {
        Level::Project => PROJECT_KEYS,
        Level::Domain => DOMAIN_KEYS,
        Level::Machine => MACHINE_KEYS,
    };
    let (node, path, span) = (&entry.value, &parent.key(&entry.key), entry.value.span);
    if !keys.contains(&&*entry.key) {
        if entry.key == "ipv6" {
            cx.warning(entry.key_span, path, "`ipv6` has no meaning here")
                .help("give it in the `ilot:` block of the domain, or of the project");
        } else if MACHINE_KEYS.contains(&&*entry.key) {
            cx.warning(entry.key_span, path, format!("`{}` has no meaning here", entry.key))
                .help("give it in the `ilot:` block of each machine that it is meant for");
        } else {
            cx.unknown_key(entry, parent, keys);
        }
        return;
    }
    let at = |value| At { value, span };
    match &*entry.key {
        "backend" => {
            block.backend = cx.choice(node, path, Backend::parse, Backend::CHOICES).map(|value| At { value, span });
        }
        "isolation" => {
            block.isolation =
                cx.choice(node, path, Isolation::parse, Isolation::CHOICES).map(|value| At { value, span });
        }
        "kind" => {
            block.kind =
                cx.choice(node, path, MachineKind::parse, MachineKind::CHOICES).map(|value| At { value, span });
        }
        "image" => block.image = cx.filled_text(node, path).map(|t| at(t.to_owned())),
        "command" => block.command = read_command(cx, node, path).map(|value| At { value, span }),
        "restart" => block.restart = read_restart(cx, node, path).map(at),
        "health" => block.health = read_health(cx, node, path).map(|value| At { value, span }),
        "egress" => block.egress = read_egress(cx, node, path).map(|value| At { value, span }),
        "amnesic" => block.amnesic = cx.boolean(node, path).map(|value| At { value, span }),
        "ipv6" => block.ipv6 = cx.boolean(node, path).map(|value| At { value, span }),
        "preload" => {
            block.preload =
                cx.integer(node, path, 0..=1000).and_then(|n| u32::try_from(n).ok()).map(|value| At { value, span });
        }
        _ => {}
    }
}

fn read_command(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<Vec<String>> {
    if let Value::Scalar(s) = &node.value
        && matches!(s.kind, Kind::Text { .. })
    {
        cx.error(node.span, path, "`command` must be a list, not text")
            .help("write each word as an item, or `[\"/bin/sh\", \"-c\", \"…\"]`");
        return None;
    }
    let words: Vec<String> = cx.text_list(node, path)?.into_iter().map(|w| w.value).collect();
    if words.first().is_none_or(String::is_empty) {
        cx.error(node.span, path, "`command` names no program")
            .help("write the program first: `[\"/bin/httpd\", \"-f\"]`");
        return None;
    }
    Some(words)
}

fn read_restart(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<String> {
    const CHOICES: &[&str] = &["no", "on-failure", "on-failure:N", "always", "unless-stopped"];
    if let Value::Scalar(s) = &node.value
        && s.kind == Kind::Bool(false)
    {
        return Some("no".into());
    }
    let text = cx.text(node, path)?;
    let limited = text.strip_prefix("on-failure:").is_some_and(|n| n.parse::<u32>().is_ok_and(|n| n > 0));
    if limited || (CHOICES.contains(&text) && text != "on-failure:N") {
        return Some(text.to_owned());
    }
    cx.unknown_choice(node.span, path, text, CHOICES);
    None
}

fn read_health(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<serde_json::Value> {
    let entries = cx.map(node, path)?;
    let mut checks = 0;
    for entry in entries {
        let (value, own) = (&entry.value, path.key(&entry.key));
        match &*entry.key {
            "command" => {
                checks += 1;
                read_command(cx, value, &own);
            }
            "http" | "tcp" => {
                checks += 1;
                cx.value_text(value, &own);
            }
            "interval" | "timeout" | "start_period" => {
                let text = cx.text(value, &own);
                if let Some(text) = text
                    && !is_duration(text)
                {
                    cx.error(value.span, &own, format!("`{text}` is not a time")).help("write `10s`, `500ms` or `2m`");
                }
            }
            "retries" => drop(cx.integer(value, &own, 1..=1000)),
            _ => cx.unknown_key(entry, path, HEALTH_KEYS),
        }
    }
    if checks != 1 {
        cx.error(node.span, path, "`health` needs exactly one of `command`, `http` and `tcp`")
            .help("for example `health: {tcp: 80, interval: 10s}`");
        return None;
    }
    Some(node.to_json())
}

fn is_duration(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    digits > 0 && matches!(&text[digits..], "ms" | "s" | "m" | "h")
}

fn read_egress(cx: &mut Cx<'_>, node: &Node, path: &Path<'_>) -> Option<Vec<String>> {
    const CURE: &str = "write `none`, `all`, host names or networks: `[deb.debian.org:443, 10.0.0.0/8:53/udp]`";
    let items = if let Value::Scalar(s) = &node.value
        && matches!(&*s.text, "none" | "all")
    {
        vec![At { value: s.text.to_string(), span: node.span }]
    } else {
        cx.text_list(node, path)?
    };
    if items.is_empty() {
        cx.error(node.span, path, "`egress` lists nothing")
            .help("write `none` if nothing may leave, or remove the key");
        return None;
    }
    let mut good = Vec::with_capacity(items.len());
    let several = items.len() > 1;
    for (i, item) in items.into_iter().enumerate() {
        let path = path.index(i);
        match item.value.parse::<EgressRule>() {
            Err(error) => drop(cx.error(item.span, &path, error.to_string()).help(CURE)),
            Ok(_) if several && matches!(&*item.value, "none" | "all") => {
                let message = format!("`{}` stands alone or not at all", item.value);
                cx.error(item.span, &path, message).help("remove it, or the other entries");
            }
            Ok(_) => good.push(item.value),
        }
    }
    Some(good)
}
