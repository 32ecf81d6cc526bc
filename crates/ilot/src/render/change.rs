//! A plan as text: what happens to what, and why, field by field.

use ilot_plan::{Action, Change, How, Kept, Kind, Plan, Reason};
use indexmap::IndexMap;
use owo_colors::{OwoColorize, Style};
use serde_json::Value;

use crate::ui;

/// Fields that say that something stands, which a creation says anyway.
const EVIDENT: [&str; 4] = ["domain", "link", "names", "table"];

/// The whole plan with its summary, domain by domain; one line when there is nothing to do.
///
/// A creation shows what is not at its default; `all` shows the rest as well.
pub(crate) fn plan(plan: &Plan, all: bool) -> String {
    let mut groups: IndexMap<Option<&str>, String> = IndexMap::new();
    for change in &plan.changes {
        groups.entry(change.belongs_to()).or_default().push_str(&one(change, all));
    }
    let mut blocks: Vec<String> = groups.into_values().collect();
    if !plan.kept.is_empty() {
        blocks.push(plan.kept.iter().map(left_alone).collect());
    }
    blocks.push(format!("{}\n", summary(plan)));
    blocks.join("\n")
}

/// `+ ~ -/+ -` and the colour of an action.
pub(crate) fn sign(action: Action) -> (&'static str, Style) {
    let style = Style::new();
    match action {
        Action::Create => ("+", style.green()),
        Action::Start => (">", style.green()),
        Action::Update => ("~", style.yellow()),
        Action::Restart => ("~", style.yellow().bold()),
        Action::Replace => ("-/+", style.red()),
        Action::Delete => ("-", style.red()),
    }
}

/// `machine web`, or `firewall`.
pub(crate) fn subject(change: &Change) -> String {
    match change.kind {
        Kind::Firewall => "firewall".to_owned(),
        kind => format!("{kind} {}", change.name),
    }
}

fn one(change: &Change, all: bool) -> String {
    let (sign, style) = sign(change.action);
    let how = match (change.action, change.how) {
        (Action::Create | Action::Delete, _) => String::new(),
        (Action::Start, _) => "is stopped and is started".to_owned(),
        (_, Some(How::Live)) => "changes live".to_owned(),
        (_, Some(How::Restart)) => "changes by a restart".to_owned(),
        (_, Some(How::Replacement)) => "is replaced: its files are made anew; address and MAC stay".to_owned(),
        (_, None) => String::new(),
    };
    let domain = match (change.kind, &change.domain) {
        (Kind::Machine, Some(domain)) => format!(" in {domain}"),
        _ => String::new(),
    };
    let why = match change.action {
        Action::Delete if change.kind == Kind::Firewall => "nothing needs it any more",
        Action::Delete => "no longer declared",
        _ => &how,
    };
    let space = " ".repeat(3 - sign.len());
    let mut text = format!("{space}{} {}{}", sign.style(style), subject(change).bold(), domain.dimmed());
    if !why.is_empty() {
        text.push_str(&format!(" {}", format!("({why})").dimmed()));
    }
    text.push('\n');
    let shown = |reason: &&Reason| all || change.action != Action::Create || !is_evident(reason);
    let reasons: Vec<&Reason> = change.reasons.iter().filter(shown).collect();
    text.push_str(&fields(change.action, &reasons));
    text
}

/// Whether a created thing's field says no more than its default.
fn is_evident(reason: &Reason) -> bool {
    EVIDENT.contains(&reason.field.as_str())
        || match &reason.to {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_u64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        }
}

/// The reasons, lined up; a creation shows only what it sets.
fn fields(action: Action, reasons: &[&Reason]) -> String {
    let width = reasons.iter().map(|reason| reason.field.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for reason in reasons {
        let to = value(&reason.field, &reason.to);
        let shown = match action {
            Action::Create => to.green().to_string(),
            _ => format!("{} → {}", value(&reason.field, &reason.from).red(), to.green()),
        };
        let effect = match (action, reason.effect) {
            (Action::Restart | Action::Replace, ilot_plan::Effect::Restart) => " (needs a restart)",
            (Action::Replace, ilot_plan::Effect::Replace) => " (needs a replacement)",
            _ => "",
        };
        text.push_str(&format!("      {:width$}  {shown}{}\n", reason.field, effect.dimmed()));
    }
    text
}

fn left_alone(kept: &Kept) -> String {
    let subject = match kept.kind {
        Kind::Firewall => "firewall".to_owned(),
        kind => format!("{kind} {}", kept.name),
    };
    let what = match kept.action {
        Action::Replace => "not replaced",
        Action::Restart => "not restarted",
        Action::Create => "not created",
        _ => "kept",
    };
    let mut text = format!("  {} {} {what}: {}\n", "!".yellow(), subject.bold(), kept.because);
    text.push_str(&fields(kept.action, &kept.reasons.iter().collect::<Vec<_>>()));
    text
}

/// `plan: 2 to create, 1 to change live`, or that there is nothing to do.
pub(crate) fn summary(plan: &Plan) -> String {
    let summary = plan.summary();
    let parts: Vec<String> = [
        (summary.create, "to create"),
        (summary.start, "to start"),
        (summary.update, "to change live"),
        (summary.restart, "to restart"),
        (summary.replace, "to replace"),
        (summary.delete, "to delete"),
        (summary.kept, "protected and left alone"),
        (summary.held, "held back"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    if plan.is_empty() {
        let kept = if parts.is_empty() { String::new() } else { format!("; {}", parts.join(", ")) };
        let checked = ui::count(summary.unchanged, "object");
        return format!("nothing to do: {checked} as declared{kept}");
    }
    format!("{} {}", "plan:".bold(), parts.join(", "))
}

/// A value for people: bytes with their unit where the field counts bytes, text without quotes.
pub(crate) fn value(field: &str, value: &Value) -> String {
    match value {
        Value::Null => "(none)".to_owned(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if field.ends_with("memory") => {
            number.as_u64().map_or_else(|| number.to_string(), ui::bytes)
        }
        Value::Array(items) if items.is_empty() => "(none)".to_owned(),
        Value::Array(items) if items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            let items: Vec<String> = items.iter().map(|item| self::value(field, item)).collect();
            items.join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use ilot_plan::{Resource, diff};

    use super::*;

    fn web(image: &str, ip: &str, memory: u64) -> Resource {
        let mut web = Resource::new(Kind::Machine, "web").in_domain("pro");
        web.running = Some(true);
        web.replace("image", image)
            .restart("ip", ip)
            .live("limits.memory", memory)
            .live("roles", Vec::<String>::new())
            .live("boot_autostart", false)
    }

    fn shown(desired: &[Resource], actual: &[Resource]) -> String {
        anstream::adapter::strip_str(&plan(&diff(desired, actual), false)).to_string()
    }

    #[test]
    fn creation_shows_what_is_not_at_its_default() {
        let pro = Resource::new(Kind::Domain, "pro").live("subnet", "10.120.0.0/24").live("link", "up");
        let firewall = Resource::new(Kind::Firewall, "lab").live("pro → host tcp 22", "allowed");
        let text = shown(&[web("busybox", "10.120.0.1", 512 << 20), pro, firewall], &[]);
        insta::assert_snapshot!(text, @r"
          + firewall
              pro → host tcp 22  allowed

          + domain pro
              subnet  10.120.0.0/24
          + machine web in pro
              image          busybox
              ip             10.120.0.1
              limits.memory  512 MiB

        plan: 3 to create
        ");
    }

    #[test]
    fn a_change_says_how_and_from_what_to_what() {
        let before = web("busybox", "10.120.0.1", 512 << 20);
        let live = web("busybox", "10.120.0.1", 1 << 30);
        insta::assert_snapshot!(shown(&[live], std::slice::from_ref(&before)), @r"
          ~ machine web in pro (changes live)
              limits.memory  512 MiB → 1 GiB

        plan: 1 to change live
        ");
        let restart = web("busybox", "10.120.0.2", 1 << 30);
        insta::assert_snapshot!(shown(&[restart], std::slice::from_ref(&before)), @r"
          ~ machine web in pro (changes by a restart)
              ip             10.120.0.1 → 10.120.0.2 (needs a restart)
              limits.memory  512 MiB → 1 GiB

        plan: 1 to restart
        ");
        let replace = web("images:debian/13", "10.120.0.1", 512 << 20);
        insta::assert_snapshot!(shown(&[replace], &[before]), @r"
        -/+ machine web in pro (is replaced: its files are made anew; address and MAC stay)
              image  busybox → images:debian/13 (needs a replacement)

        plan: 1 to replace
        ");
    }

    #[test]
    fn what_is_protected_is_said() {
        let mut kept = web("busybox", "10.120.0.1", 1);
        kept.protected = true;
        let other = Resource::new(Kind::Machine, "db").in_domain("pro");
        insta::assert_snapshot!(shown(&[], &[kept.clone(), other]), @r"
          - machine db in pro (no longer declared)

          ! machine web kept: it is protected (`ephemeral: false`)

        plan: 1 to delete, 1 protected and left alone
        ");
        let mut wanted = web("images:debian/13", "10.120.0.1", 1);
        wanted.protected = true;
        insta::assert_snapshot!(shown(&[wanted], &[kept]), @r"
          ! machine web not replaced: it is protected (`ephemeral: false`)
              image  busybox → images:debian/13 (needs a replacement)

        nothing to do: 0 objects as declared; 1 protected and left alone
        ");
    }

    #[test]
    fn nothing_to_do_is_one_line() {
        let world = [web("busybox", "10.120.0.1", 1)];
        assert_eq!(shown(&world, &world), "nothing to do: 1 object as declared\n");
    }
}
