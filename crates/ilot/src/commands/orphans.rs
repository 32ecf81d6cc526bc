//! `ilot orphans`.

use std::path::{Path, PathBuf};

use ilot_native::Native;
use ilot_plan::{Action, DiffOptions, Engine, Plan, diff_with};
use ilot_spec::{Project, Sources};
use owo_colors::OwoColorize;
use serde_json::json;

use super::{Outcome, apply};
use crate::context::Context;
use crate::error::CommandError;
use crate::project;
use crate::ui;

/// List what no file declares any more, and remove it
///
/// Looks at every project of the store: machines and domains that its file no longer has, and everything of a project
/// whose file is gone. A file that is there and has errors says nothing about orphans. Nothing is removed without `--clean`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ilot orphans                  what there is
  sudo ilot orphans --clean          show it, ask, remove what is not protected
  sudo ilot orphans --clean --force --yes

Exit codes: 0 done, 1 it failed.")]
pub(crate) struct Args {
    /// Remove what is found and not protected
    #[arg(long)]
    clean: bool,

    /// Remove protected machines (`ephemeral: false`) too
    #[arg(long, requires = "clean")]
    force: bool,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// The orphans of one project.
struct Found {
    project: Project,
    source: PathBuf,
    because: &'static str,
    plan: Plan,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let _session = args.clean.then(|| engine.begin(&apply::waiting(context))).transpose()?;
    let mut found = Vec::new();
    for record in engine.projects()? {
        if let Some(orphans) = orphans(context, &engine, &record.name, &record.source, args.force)? {
            found.push(orphans);
        }
    }
    if !args.clean {
        show(context, &found);
        return Ok(0);
    }
    if found.is_empty() {
        show(context, &found);
    }
    let mut code = 0;
    for orphans in &found {
        context.note(&format!("{} project {}: {}", "note:".cyan(), orphans.project.name, orphans.because));
        if !apply::agreed(context, &orphans.plan, args.yes, "orphans --clean")? {
            return Ok(1);
        }
        code |= apply::carry_out(context, &engine, &orphans.project, &orphans.plan, 0)?;
    }
    Ok(code)
}

/// What a project of the store has that its file has not.
fn orphans(
    context: &Context,
    engine: &Native,
    name: &str,
    source: &Path,
    force: bool,
) -> Result<Option<Found>, CommandError> {
    let options = DiffOptions { only: None, force, uninterrupted: false };
    let gone = !source.exists();
    let loaded = (!gone).then(|| ilot_spec::load(source, &project::host_facts(context)));
    let (project, because) = match loaded {
        None => (nameless(name)?, "its file is gone"),
        Some(loaded) => match loaded.project {
            Some(project) if project.name == name => (project, "its file no longer declares them"),
            Some(_) => (nameless(name)?, "its file is another project's now"),
            None => {
                let text = format!("`{}` has errors: its orphans are not known", source.display());
                context.note(&format!("{} {text}", "note:".cyan()));
                return Ok(None);
            }
        },
    };
    let actual = engine.actual(&project)?;
    let desired = if project.domains.is_empty() { Vec::new() } else { engine.desired(&project)? };
    let mut plan = diff_with(&desired, &actual, &options);
    plan.changes.retain(|change| change.action == Action::Delete);
    plan.kept.retain(|kept| kept.action == Action::Delete);
    let source = source.to_owned();
    Ok((!plan.changes.is_empty() || !plan.kept.is_empty()).then_some(Found { project, source, because, plan }))
}

/// A project of that name that declares nothing.
pub(super) fn nameless(name: &str) -> Result<Project, CommandError> {
    let mut text = serde_json::to_string(&json!({ "project_name": name, "global": {}, "domains": {} }))
        .map_err(|error| CommandError::new(error.to_string()))?;
    text.push('\n');
    let loaded = ilot_spec::parse(&Sources::single("-", text), &ilot_spec::HostFacts::default());
    loaded.project.ok_or_else(|| CommandError::new(format!("`{name}` is no project's name")))
}

fn show(context: &Context, found: &[Found]) {
    let mut list = Vec::new();
    for orphans in found {
        let removed = orphans.plan.changes.iter().map(|c| (c.kind, &c.name, &c.domain, false));
        let kept = orphans.plan.kept.iter().map(|k| (k.kind, &k.name, &k.domain, true));
        for (kind, name, domain, protected) in removed.chain(kept) {
            list.push(json!({
                "project": orphans.project.name,
                "source": orphans.source,
                "because": orphans.because,
                "kind": kind,
                "name": name,
                "domain": domain,
                "protected": protected,
            }));
        }
    }
    if context.json {
        ui::print_json(&json!({ "orphans": list }));
        return;
    }
    if found.is_empty() {
        ui::print("no orphans");
        return;
    }
    for orphans in found {
        let because = format!("({}: {})", orphans.because, orphans.source.display());
        ui::print(&format!("project {} {}", orphans.project.name.bold(), because.dimmed()));
        for change in &orphans.plan.changes {
            ui::print(&format!("  {} {}", change.kind, change.name));
        }
        for kept in &orphans.plan.kept {
            ui::print(&format!("  {} {} {}", kept.kind, kept.name, format!("({})", kept.because).yellow()));
        }
    }
    context.note(&format!(" {} `ilot orphans --clean` removes what is not protected", "hint:".cyan().bold()));
}
