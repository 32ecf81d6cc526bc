//! `ilot destroy`.

use ilot_plan::{DiffOptions, Engine, Kind, diff_with};

use super::{Outcome, apply, orphans, plan};
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project::{self, Warnings};

/// Remove what this project made, and only that
///
/// Machines with everything in them, bridges, rules and name services. Refuses as a whole when a protected machine
/// (`ephemeral: false`) is among them, and names it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ilot destroy                       show what goes, ask, remove it
  sudo ilot destroy --only lab --yes      one domain with its machines
  sudo ilot destroy --force --yes         protected machines too
  sudo ilot destroy --project lab         when its file is gone

Exit codes: 0 it is gone, 1 it is not, or it was refused.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,

    /// Only this domain with its machines, or this machine; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// A project of this store by its name, whether or not its file can still be read
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    project: Option<String>,

    /// Remove protected machines too
    #[arg(long)]
    force: bool,

    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let project = match &args.project {
        None => project::require(context, Warnings::Left)?,
        Some(name) => {
            let known: Vec<String> = engine.projects()?.into_iter().map(|p| p.name).collect();
            if !known.contains(name) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(
                    CommandError::new(format!("no project `{name}` on this host")).hint(format!("there are: {known}"))
                );
            }
            orphans::nameless(name)?
        }
    };
    let _session = engine.begin(&apply::waiting(context))?;
    let actual = engine.actual(&project)?;
    // A name that the file has and that was never made is no mistake: it is gone already.
    let declared = if args.project.is_some() { Vec::new() } else { engine.desired(&project)? };
    let only = plan::selection(&args.only, actual.iter().chain(&declared))?;
    let plan = diff_with(&[], &actual, &DiffOptions { only, force: args.force, uninterrupted: false });
    let protected: Vec<String> =
        plan.kept.iter().filter(|kept| kept.kind == Kind::Machine).map(|kept| format!("`{}`", kept.name)).collect();
    if !protected.is_empty() {
        let (noun, verb) = if protected.len() == 1 { ("machine", "is") } else { ("machines", "are") };
        return Err(CommandError::new(format!(
            "{noun} {} {verb} protected (`ephemeral: false`): nothing was removed",
            protected.join(", ")
        ))
        .hint("`--force` removes protected machines with everything in them")
        .hint("`--only NAME` removes the others"));
    }
    if !apply::agreed(context, &plan, args.yes, "destroy")? {
        return Ok(1);
    }
    apply::carry_out(context, &engine, &project, &plan, 0)
}
