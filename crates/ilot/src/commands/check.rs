//! `ilot check`.

use ilot_spec::{Endpoint, Loaded, Ports, Problem, Project};
use owo_colors::{OwoColorize, Style};
use serde_json::{Map, Value, json};

use super::Outcome;
use crate::cli::FileArg;
use crate::context::Context;
use crate::project;
use crate::render::problem::{as_json, report};
use crate::render::table::{Cell, Table};
use crate::ui;

/// Read a project, validate it, and show its addresses
///
/// Every problem is shown at once, each with its file, line and column, the line itself, and what to do about it.
/// Nothing is changed, and root is not needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot check                      the project in this directory
  ilot check -f lab/infra.yml     another one
  ilot check --json | jq .errors  for programs

Exit codes: 0 no error (warnings do not count), 1 at least one error.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,
}

pub(crate) fn run(_args: &Args, context: &Context) -> Outcome {
    let mut loaded = project::load(context)?;
    if let Some(project) = &loaded.project {
        let collisions = collisions(context, project);
        if !collisions.is_empty() {
            loaded.errors.extend(collisions);
            loaded.project = None;
        }
    }
    if let Some(project) = &loaded.project {
        loaded.warnings.extend(refused(project));
    }
    let ok = loaded.project.is_some();
    if context.json {
        ui::print_json(&to_json(&loaded));
        return Ok(u8::from(!ok));
    }
    let problems = report(&loaded, project::look_of_stderr());
    if !problems.is_empty() {
        ui::complain(problems.trim_end_matches('\n'));
        ui::complain("");
    }
    let file = loaded.sources.root.display().to_string();
    let counts = match (loaded.errors.len(), loaded.warnings.len()) {
        (0, 0) => None,
        (0, warnings) => Some(ui::count(warnings, "warning")),
        (errors, 0) => Some(ui::count(errors, "error")),
        (errors, warnings) => Some(format!("{}, {}", ui::count(errors, "error"), ui::count(warnings, "warning"))),
    };
    match (&loaded.project, counts) {
        (Some(project), counts) => {
            if !context.quiet {
                let counts = counts.map_or(String::new(), |counts| format!(" ({counts})"));
                ui::print(&format!("{file}: {}{counts}: {}\n", "ok".green().bold(), extent(project)));
                ui::write_out(&addresses(project).render());
            }
            Ok(0)
        }
        (None, counts) => {
            ui::complain(&format!("{file}: {}", counts.unwrap_or_else(|| "no project".to_owned()).red().bold()));
            Ok(1)
        }
    }
}

/// What another project of this host's store has already: names and subnets. Without a store, or without the right to read
/// it, there is nothing to collide with that could be known.
fn collisions(context: &Context, project: &Project) -> Vec<Problem> {
    if !rustix::process::geteuid().is_root() || !context.root.join("domains").exists() {
        return Vec::new();
    }
    let taken = context.engine().map(|engine| engine.collisions(project).unwrap_or_default()).unwrap_or_default();
    let problem = |c: ilot_native::Collision| Problem {
        message: c.message,
        help: Some(c.help),
        at: Some(c.at),
        path: c.path,
        length: c.length,
        related: Vec::new(),
    };
    taken.into_iter().map(problem).collect()
}

/// What is right in the file and refused when it is applied.
fn refused(project: &Project) -> Vec<Problem> {
    let problem = |r: ilot_native::Refusal| Problem {
        message: format!("`ilot apply` will refuse {}", r.message),
        help: Some(r.help.unwrap_or_else(|| "the other machines are made all the same".to_owned())),
        at: Some(r.at),
        path: r.path,
        length: r.length,
        related: Vec::new(),
    };
    ilot_native::refusals(project).into_iter().map(problem).collect()
}

fn extent(project: &Project) -> String {
    let machines: usize = project.domains.values().map(|domain| domain.machines.len()).sum();
    let policies = match project.policies.len() {
        0 => "no policy".to_owned(),
        1 => "1 policy".to_owned(),
        many => format!("{many} policies"),
    };
    format!("{}, {}, {policies}", ui::count(project.domains.len(), "domain"), ui::count(machines, "machine"))
}

/// Domains with their subnets, machines with their addresses.
fn addresses(project: &Project) -> Table {
    let mut table = Table::plain(2);
    for domain in project.domains.values() {
        let state = if domain.enabled { "" } else { "disabled: its addresses stay reserved" };
        table.row([
            Cell::new(domain.name.as_str(), Style::new().bold()),
            Cell::from(domain.subnet.to_string()),
            Cell::new(domain.trust_level.as_str(), Style::new().dimmed()),
            Cell::new(state, Style::new().yellow()),
        ]);
        for machine in &domain.machines {
            table.row([
                Cell::from(format!("  {}", machine.name)),
                Cell::from(machine.ip.map_or_else(|| "dynamic".to_owned(), |ip| ip.to_string())),
                Cell::new(machine.machine_type.as_str(), Style::new().dimmed()),
                Cell::new(machine.image.as_str(), Style::new().dimmed()),
            ]);
        }
    }
    table
}

/// The shape that docs/json.md documents.
fn to_json(loaded: &Loaded) -> Value {
    let mut domains = Map::new();
    let mut machines = Map::new();
    let mut policies = Vec::new();
    if let Some(project) = &loaded.project {
        for domain in project.domains.values() {
            let name = domain.name.to_string();
            domains.insert(
                name.clone(),
                json!({
                    "subnet": domain.subnet,
                    "gateway": domain.gateway,
                    "subnet6": domain.subnet6(),
                    "gateway6": domain.gateway6(),
                    "bridge": ilot_net::bridge_name(&name),
                    "trust_level": domain.trust_level,
                    "enabled": domain.enabled,
                    "ephemeral": domain.ephemeral,
                    "description": domain.description,
                }),
            );
            for machine in &domain.machines {
                machines.insert(machine.name.to_string(), machine_json(domain, machine));
            }
        }
        policies = project.policies.iter().map(policy_json).collect();
    }
    json!({
        "ok": loaded.project.is_some(),
        "project": loaded.project.as_ref().map(|project| &project.name),
        "errors": loaded.errors.iter().map(as_json).collect::<Vec<_>>(),
        "warnings": loaded.warnings.iter().map(as_json).collect::<Vec<_>>(),
        "domains": domains,
        "machines": machines,
        "policies": policies,
    })
}

/// Everything that the model knows of a machine but its name (the key) and the place in the file.
fn machine_json(domain: &ilot_spec::Domain, machine: &ilot_spec::Machine) -> Value {
    match serde_json::to_value(machine) {
        Ok(Value::Object(mut fields)) => {
            fields.shift_remove("name");
            fields.shift_remove("at");
            fields.insert("ip6".into(), json!(domain.ip6(machine)));
            Value::Object(fields)
        }
        // A struct of plain data always is an object.
        other => other.unwrap_or_default(),
    }
}

fn policy_json(policy: &ilot_spec::Policy) -> Value {
    let side = |endpoint: &Endpoint| match endpoint {
        Endpoint::Host => "host".to_owned(),
        Endpoint::Internet => "internet".to_owned(),
        Endpoint::Domain(name) => name.to_string(),
        Endpoint::Machine(name) => name.to_string(),
    };
    json!({
        "description": policy.description,
        "from": side(&policy.from),
        "to": side(&policy.to),
        "ports": match &policy.ports {
            Ports::All => json!("all"),
            Ports::List(ports) => json!(ports),
        },
        "protocol": policy.protocol,
        "bidirectional": policy.bidirectional,
    })
}
