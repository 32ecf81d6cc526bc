//! `ilot fmt`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ilot_spec::{FormatError, Formatted};
use owo_colors::OwoColorize;
use serde_json::json;
use tempfile::NamedTempFile;

use super::Outcome;
use crate::context::Context;
use crate::error::CommandError;
use crate::project;
use crate::render::diff::unified;
use crate::render::problem::report;
use crate::ui;

/// Write a project's files in the one usual way
///
/// Keys stand in the order of the reference, each level is indented by two spaces, long brackets become lines. Comments,
/// anchors, quotes, and the order of domains, machines and policies stay; so does what the files mean, which is checked.
/// Files with errors are not touched.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot fmt                 the project in this directory
  ilot fmt lab/infra.yml
  ilot fmt --diff          show what would change, change nothing
  ilot fmt --check         for scripts: exit code 1 if something would change")]
pub(crate) struct Args {
    /// The project's file or directory [default: infra.yml, infra/ or anklume.yml here]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,

    /// Change nothing; list what is not written that way, and end with 1 if something is
    #[arg(long)]
    check: bool,

    /// Change nothing; show the difference
    #[arg(long)]
    diff: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => project::locate(context)?,
    };
    let files = formatted(&path, context)?;
    let changed: Vec<&Formatted> = files.iter().filter(|file| file.changed()).collect();
    let dry = args.check || args.diff;
    if !dry {
        write(&changed)?;
    }
    if context.json {
        let list: Vec<_> = files
            .iter()
            .map(|file| {
                let diff = args.diff.then(|| anstream::adapter::strip_str(&difference(file)).to_string());
                json!({ "file": file.path, "changed": file.changed(), "diff": diff })
            })
            .collect();
        ui::print_json(&json!({ "written": !dry, "files": list }));
    } else {
        for file in &changed {
            if args.diff {
                ui::write_out(&difference(file));
            } else if args.check {
                ui::print(&file.path.display().to_string());
            } else if !context.quiet {
                ui::print(&format!("{} {}", "formatted".green(), file.path.display()));
            }
        }
    }
    Ok(u8::from(args.check && !changed.is_empty()))
}

fn difference(file: &Formatted) -> String {
    unified(&file.path.display().to_string(), &file.before, &file.after)
}

fn formatted(path: &Path, context: &Context) -> Result<Vec<Formatted>, CommandError> {
    let host = project::host_facts(context);
    let sources = ilot_spec::read(path);
    ilot_spec::format(&sources, &host).map_err(|error| {
        if let FormatError::Invalid(count) = error {
            let mut loaded = ilot_spec::parse(&sources, &host);
            loaded.warnings.clear();
            ui::complain(report(&loaded, project::look_of_stderr()).trim_end());
            let count = ui::count(count, "error");
            return CommandError::new(format!("`{}` has {count}: nothing was changed", path.display()))
                .hint("`ilot check` shows them again, `ilot check --json` for programs");
        }
        let help = error.help();
        CommandError::new(error).hint(help)
    })
}

/// Writes all files aside before the first is replaced, so that a full disk changes none.
fn write(files: &[&Formatted]) -> Result<(), CommandError> {
    let fail = |file: &Formatted, error: io::Error| {
        CommandError::new(format!("cannot write `{}`: {error}", file.path.display())).hint("no file is half-written")
    };
    let mut ready = Vec::with_capacity(files.len());
    for file in files {
        ready.push((file, aside(&file.path, &file.after).map_err(|error| fail(file, error))?));
    }
    for (file, (target, temporary)) in ready {
        replace(&target, temporary).map_err(|error| fail(file, error))?;
    }
    Ok(())
}

/// The text in a new file beside the old one, with its mode and owner. A link stays a link: its target is meant.
fn aside(path: &Path, text: &str) -> io::Result<(PathBuf, NamedTempFile)> {
    let target = fs::canonicalize(path)?;
    let directory = target.parent().unwrap_or(Path::new("/"));
    let old = fs::metadata(&target)?;
    let mut file = tempfile::Builder::new().prefix(".ilot-").tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(old.permissions())?;
    if let Err(error) = same_owner(file.as_file(), &old)
        && rustix::process::geteuid().is_root()
    {
        return Err(error);
    }
    file.as_file().sync_all()?;
    Ok((target, file))
}

fn same_owner(file: &fs::File, old: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    fchown(file, Some(old.uid()), Some(old.gid()))
}

fn replace(target: &Path, temporary: NamedTempFile) -> io::Result<()> {
    temporary.persist(target).map_err(|error| error.error)?;
    match target.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
