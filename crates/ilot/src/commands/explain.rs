//! `ilot explain`.

use ilot_spec::{Explained, Loaded, Origin, Project};
use owo_colors::Style;
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project;
use crate::render::problem::report;
use crate::render::table::{Cell, Table};
use crate::ui;

/// Show every effective value of a machine and where it comes from
///
/// A value comes from a line of the machine, of one of its profiles, of its domain or of the project, from a rule that
/// computes it, or it is the default because nobody says it. Nothing is changed, and root is not needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot explain web
  ilot explain web -f lab/infra.yml
  ilot explain web --set           only what is said somewhere, no defaults
  ilot explain web --json | jq '.values[] | select(.key == \"ip\")'")]
pub(crate) struct Args {
    /// The machine
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// Leave out defaults
    #[arg(long)]
    set: bool,

    #[command(flatten)]
    pub file: FileArg,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let loaded = project::load(context)?;
    let Some(project) = &loaded.project else { return Err(broken(&loaded)) };
    let Some(mut values) = ilot_spec::explain(&loaded, &args.machine) else {
        return Err(unknown(project, &args.machine));
    };
    if args.set {
        values.retain(|value| value.origin != Origin::Default);
    }
    if context.json {
        let values: Vec<Value> = values.iter().map(as_json).collect();
        ui::print_json(&json!({ "machine": args.machine, "values": values }));
        return Ok(0);
    }
    let mut table = Table::new(&["KEY", "VALUE", "FROM"]);
    for value in &values {
        let dim = if value.origin == Origin::Default { Style::new().dimmed() } else { Style::new() };
        table.row([
            Cell::from(value.key.as_str()),
            Cell::new(text(&value.value), dim),
            Cell::new(from(&value.origin), dim),
        ]);
    }
    ui::write_out(&table.render());
    Ok(0)
}

/// The file's errors, shown as `check` shows them.
fn broken(loaded: &Loaded) -> CommandError {
    let errors = ui::count(loaded.errors.len(), "error");
    let problems = report(&Loaded { warnings: Vec::new(), ..loaded.clone() }, project::look_of_stderr());
    ui::complain(problems.trim_end());
    CommandError::new(format!("`{}` has {errors}: nothing to explain", loaded.sources.root.display()))
        .hint("`ilot check` shows them again, `ilot check --json` for programs")
}

fn unknown(project: &Project, name: &str) -> CommandError {
    let error = CommandError::new(format!("`{name}` is no machine of the project `{}`", project.name));
    let machines = || project.domains.values().flat_map(|domain| &domain.machines).map(|machine| machine.name.as_str());
    match ilot_spec::nearest(name, machines()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if project.domains.keys().any(|domain| domain.as_str() == name) => {
            error.hint("it is a domain: name one of its machines")
        }
        None => error.hint("`ilot check` lists the machines"),
    }
}

fn from(origin: &Origin) -> String {
    let who = match origin {
        Origin::Machine { .. } => "machine",
        Origin::Profile { name, .. } => &format!("profile {name}"),
        Origin::Domain { .. } => "domain",
        Origin::Project { .. } => "project",
        Origin::Default => "default",
        Origin::Computed { rule, .. } => rule,
    };
    match origin.at() {
        Some(at) => format!("{who}, {}:{}", at.file.display(), at.line),
        None => who.to_owned(),
    }
}

/// A value in one line; `-` where there is none.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::String(text) if text.contains(char::is_control) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(text).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) if fields.values().all(|value| !value.is_object() && !value.is_array()) => {
            let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}={}", text(value))).collect();
            fields.join(", ")
        }
        other => other.to_string(),
    }
}

/// The shape that docs/json.md documents.
fn as_json(value: &Explained) -> Value {
    let at = value.origin.at();
    let (origin, profile, rule) = match &value.origin {
        Origin::Machine { .. } => ("machine", None, None),
        Origin::Profile { name, .. } => ("profile", Some(name), None),
        Origin::Domain { .. } => ("domain", None, None),
        Origin::Project { .. } => ("project", None, None),
        Origin::Default => ("default", None, None),
        Origin::Computed { rule, .. } => ("computed", None, Some(rule)),
    };
    json!({
        "key": value.key,
        "value": value.value,
        "origin": origin,
        "profile": profile,
        "rule": rule,
        "file": at.map(|at| at.file.display().to_string()),
        "line": at.map(|at| at.line),
        "column": at.map(|at| at.column),
    })
}
