//! `ilot status`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ilot_native::{DomainInfo, MachineInfo, MachineState, Native};
use ilot_plan::{Action, Change, Kind, Plan};
use ilot_spec::Project;
use owo_colors::{OwoColorize, Style};
use serde_json::{Value, json};

use super::{Outcome, plan, ps};
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project::{self, Warnings};
use crate::render::table::{Cell, Table};
use crate::ui;

/// Show domains and machines as they are, and where they differ from the file
///
/// With a project (here, or by `-f`) it shows that project; without one, everything on this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot status
  ilot status lab          one domain, or one machine
  ilot status --all        everything on this host, whatever project made it

Marks: ! differs from the file (`ilot plan` says how).")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,

    /// Domains or machines [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Everything on this host, whatever project made it
    #[arg(short, long)]
    all: bool,
}

/// What is shown.
struct View {
    title: Option<String>,
    domains: Vec<DomainView>,
}

/// A domain with its machines.
struct DomainView {
    /// `-` for containers without a domain.
    name: String,
    subnet: Option<String>,
    trust: Option<String>,
    info: Option<DomainInfo>,
    drift: Option<Change>,
    machines: Vec<MachineView>,
}

/// A machine as declared, as it is, or both.
struct MachineView {
    name: String,
    address: Option<String>,
    image: String,
    info: Option<MachineInfo>,
    drift: Option<Change>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    engine.sweep()?;
    let here = args.all || (context.file.is_none() && project::locate(context).is_err());
    let mut view = if here {
        whole_host(&engine)?
    } else {
        let project = project::require(context, Warnings::Left)?;
        let plan = plan::make(&engine, &project, &[], plan::Interruptions::Planned)?;
        of_project(&engine, &project, plan)?
    };
    pick(&mut view, &args.names)?;
    if context.json {
        ui::print_json(&as_json(&view));
    } else {
        ui::write_out(&text(&view));
    }
    Ok(0)
}

fn whole_host(engine: &Native) -> Result<View, CommandError> {
    let mut machines: BTreeMap<Option<String>, Vec<MachineInfo>> = BTreeMap::new();
    for machine in engine.machines()? {
        machines.entry(machine.record.domain.clone()).or_default().push(machine);
    }
    let mut domains = Vec::new();
    for info in engine.domains()? {
        let inside = machines.remove(&Some(info.record.name.clone())).unwrap_or_default();
        domains.push(DomainView {
            name: info.record.name.clone(),
            subnet: Some(info.record.subnet.to_string()),
            trust: Some(info.record.trust.to_string()),
            info: Some(info),
            drift: None,
            machines: inside.into_iter().map(|machine| existing(machine, None)).collect(),
        });
    }
    for (name, inside) in machines {
        domains.push(DomainView {
            name: name.unwrap_or_else(|| "-".to_owned()),
            subnet: None,
            trust: None,
            info: None,
            drift: None,
            machines: inside.into_iter().map(|machine| existing(machine, None)).collect(),
        });
    }
    Ok(View { title: None, domains })
}

fn of_project(engine: &Native, project: &Project, plan: Plan) -> Result<View, CommandError> {
    let mut drift: HashMap<(Kind, String), Change> =
        plan.changes.into_iter().map(|change| ((change.kind, change.name.clone()), change)).collect();
    let mut machines: BTreeMap<String, MachineInfo> =
        engine.machines()?.into_iter().map(|machine| (machine.record.name.clone(), machine)).collect();
    let mut infos: BTreeMap<String, DomainInfo> = engine
        .domains()?
        .into_iter()
        .filter(|domain| domain.record.project == project.name)
        .map(|domain| (domain.record.name.clone(), domain))
        .collect();
    let mut domains = Vec::new();
    for domain in project.enabled_domains() {
        let name = domain.name.to_string();
        let mut inside = Vec::new();
        for machine in &domain.machines {
            let key = (Kind::Machine, machine.name.to_string());
            let drift = drift.remove(&key);
            let info = machines.remove(&key.1).filter(|m| m.record.project.as_deref() == Some(&project.name));
            inside.push(MachineView {
                address: info.as_ref().and_then(|m| m.record.ip).or(machine.ip).map(|ip| ip.to_string()),
                image: machine.image.clone(),
                name: key.1,
                info,
                drift,
            });
        }
        domains.push(DomainView {
            subnet: Some(domain.subnet.to_string()),
            trust: Some(domain.trust_level.to_string()),
            info: infos.remove(&name),
            drift: drift.remove(&(Kind::Domain, name.clone())),
            machines: inside,
            name,
        });
    }
    // What the project made and no longer declares.
    for (name, info) in infos {
        domains.push(DomainView {
            subnet: Some(info.record.subnet.to_string()),
            trust: Some(info.record.trust.to_string()),
            info: Some(info),
            drift: drift.remove(&(Kind::Domain, name.clone())),
            machines: Vec::new(),
            name,
        });
    }
    for (name, machine) in machines {
        let ours = machine.record.project.as_deref() == Some(&project.name);
        let guest = machine.record.project.is_none();
        let domain = domains.iter_mut().find(|domain| Some(&domain.name) == machine.record.domain.as_ref());
        if let (true, Some(domain)) = (ours || guest, domain) {
            domain.machines.push(existing(machine, drift.remove(&(Kind::Machine, name))));
        }
    }
    Ok(View { title: Some(format!("{} ({})", project.name, project.source.display())), domains })
}

fn existing(machine: MachineInfo, drift: Option<Change>) -> MachineView {
    MachineView {
        name: machine.record.name.clone(),
        address: machine.record.ip.map(|ip| ip.to_string()),
        image: machine.record.image.clone(),
        info: Some(machine),
        drift,
    }
}

/// Keeps the named domains and machines.
fn pick(view: &mut View, names: &[String]) -> Result<(), CommandError> {
    if names.is_empty() {
        return Ok(());
    }
    let mut open: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for domain in &mut view.domains {
        if names.contains(&domain.name) {
            open.remove(domain.name.as_str());
            continue;
        }
        domain.machines.retain(|machine| names.contains(&machine.name));
        for machine in &domain.machines {
            open.remove(machine.name.as_str());
        }
    }
    view.domains.retain(|domain| names.contains(&domain.name) || !domain.machines.is_empty());
    match open.first() {
        None => Ok(()),
        Some(name) => Err(CommandError::new(format!("no machine or domain `{name}`"))
            .hint("`ilot status` without a name shows all of them")),
    }
}

/// What differs, in a few words.
fn drift(change: &Change) -> String {
    let fields: Vec<&str> = change.reasons.iter().map(|reason| reason.field.as_str()).collect();
    match change.action {
        Action::Create => "not created".to_owned(),
        Action::Delete => "no longer declared".to_owned(),
        Action::Start if fields.is_empty() => "should run".to_owned(),
        _ if fields.len() > 3 => format!("differs: {} and {} more", fields[..3].join(", "), fields.len() - 3),
        _ => format!("differs: {}", fields.join(", ")),
    }
}

fn text(view: &View) -> String {
    let mut table = Table::default();
    let last_domain = view.domains.len().saturating_sub(1);
    let dim = Style::new().dimmed();
    for (index, domain) in view.domains.iter().enumerate() {
        let (branch, stem) = if index == last_domain { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let state = match &domain.info {
            Some(info) if info.up && info.names => Cell::new("up", Style::new().green()),
            Some(info) if info.up => Cell::new("no names", Style::new().yellow()),
            Some(_) => Cell::new("down", Style::new().red()),
            None => Cell::from("-"),
        };
        table.row([
            Cell::new(format!("{branch}{}", domain.name), Style::new().bold()),
            state,
            Cell::from(domain.subnet.clone().unwrap_or_default()),
            Cell::new(domain.trust.clone().unwrap_or_default(), dim),
            Cell::from(""),
            Cell::from(""),
            mark(domain.drift.as_ref()),
        ]);
        let last = domain.machines.len().saturating_sub(1);
        for (index, machine) in domain.machines.iter().enumerate() {
            let branch = if index == last { "└─ " } else { "├─ " };
            let usage = machine.info.as_ref().and_then(|info| info.usage);
            table.row([
                Cell::from(format!("{stem}{branch}{}", machine.name)),
                machine.info.as_ref().map_or_else(|| Cell::new("absent", dim), |info| ps::state(info.state)),
                Cell::from(machine.address.clone().unwrap_or_default()),
                Cell::new(machine.image.clone(), dim),
                Cell::from(machine.info.as_ref().map(ps::uptime).filter(|up| up != "-").unwrap_or_default()),
                Cell::from(usage.map(|usage| ui::bytes(usage.memory)).unwrap_or_default()),
                mark(machine.drift.as_ref()),
            ]);
        }
    }
    let mut text = view.title.as_ref().map(|title| format!("{}\n", title.bold())).unwrap_or_default();
    text.push_str(&table.render());
    text.push_str(&summary(view));
    text
}

fn mark(change: Option<&Change>) -> Cell {
    change.map_or_else(|| Cell::from(""), |change| Cell::new(format!("! {}", drift(change)), Style::new().yellow()))
}

fn summary(view: &View) -> String {
    let machines: Vec<&MachineView> = view.domains.iter().flat_map(|domain| &domain.machines).collect();
    if view.domains.is_empty() {
        return "nothing is there; `ilot init` starts a project\n".to_owned();
    }
    let running = |m: &&&MachineView| m.info.as_ref().is_some_and(|info| info.state == MachineState::Running);
    let running = machines.iter().filter(running).count();
    let drifted = machines.iter().filter(|m| m.drift.is_some()).count()
        + view.domains.iter().filter(|d| d.drift.is_some()).count();
    let memory: u64 = machines.iter().filter_map(|m| m.info.as_ref()?.usage).map(|usage| usage.memory).sum();
    let mut text = format!("\n{}, {running} running, {}", ui::count(machines.len(), "machine"), ui::bytes(memory));
    if drifted > 0 {
        let differ = if drifted == 1 { "1 difference".to_owned() } else { format!("{drifted} differences") };
        text.push_str(&format!("; {}: `ilot plan` shows them", differ.yellow()));
    }
    text.push('\n');
    text
}

/// The shape that docs/json.md documents.
fn as_json(view: &View) -> Value {
    let change = |change: &Option<Change>| match change {
        Some(change) => json!({ "action": change.action, "reasons": change.reasons }),
        None => Value::Null,
    };
    let machine = |machine: &MachineView| {
        let info = machine.info.as_ref();
        let usage = info.and_then(|info| info.usage);
        json!({
            "name": machine.name,
            "state": info.map_or_else(|| "absent".to_owned(), |info| info.state.to_string()),
            "address": machine.address,
            "image": machine.image,
            "started_at": info.and_then(|info| info.started_at),
            "memory": usage.map(|usage| usage.memory),
            "pid": info.and_then(|info| info.pid),
            "drift": change(&machine.drift),
        })
    };
    let domains: Vec<Value> = view
        .domains
        .iter()
        .map(|domain| {
            json!({
                "name": domain.name,
                "subnet": domain.subnet,
                "trust_level": domain.trust,
                "up": domain.info.as_ref().map(|info| info.up),
                "names": domain.info.as_ref().map(|info| info.names),
                "drift": change(&domain.drift),
                "machines": domain.machines.iter().map(machine).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "domains": domains })
}
