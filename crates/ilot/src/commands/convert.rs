//! `ilot convert`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use ilot_spec::{ConvertError, Converted};
use owo_colors::OwoColorize;
use serde_json::json;

use super::Outcome;
use super::schema::Layout;
use crate::context::Context;
use crate::error::CommandError;
use crate::project;
use crate::render::problem::report;
use crate::ui;

/// Write a project in another layout
///
/// The result has the same domains, machines and addresses, which is checked before anything is written. Comments are
/// kept where there is a place for them; aliases whose anchors go to another file are written out. The project stays as
/// it is, and no file is ever overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot convert --to split lab          lab/infra/base.yml, lab/infra/domains/*.yml, lab/infra/policies.yml
  ilot convert --to project lab        lab/anklume.yml, lab/domains/*.yml, lab/policies.yml
  ilot convert --to single lab old/    lab/infra.yml, from the project in old/

A project directory names its machines by their domain: `dev` of `pro` is `pro-dev`. A project with other names cannot
be one, and is refused.")]
pub(crate) struct Args {
    /// The layout to write
    #[arg(long, value_enum)]
    to: Layout,

    /// The directory to write to, made when it is not there; `NAME.yml` with `--to single`
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// The project's file or directory [default: infra.yml, infra/ or anklume.yml here]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let path = match &args.path {
        Some(path) => path.clone(),
        None => project::locate(context)?,
    };
    let converted = converted(&path, args, context)?;
    let files = targets(args, &converted);
    refuse_company(&files)?;
    write_all(&files)?;
    if context.json {
        let paths: Vec<&PathBuf> = files.iter().map(|(path, _)| path).collect();
        ui::print_json(&json!({ "files": paths, "notes": converted.notes }));
        return Ok(0);
    }
    if !context.quiet {
        for (path, _) in &files {
            ui::print(&format!("{} {}", "made".green(), path.display()));
        }
    }
    for note in &converted.notes {
        context.note(&format!("{} {note}", "note:".cyan()));
    }
    Ok(0)
}

fn converted(path: &Path, args: &Args, context: &Context) -> Result<Converted, CommandError> {
    let layout = match args.to {
        Layout::Single => ilot_spec::Layout::SingleFile,
        Layout::Split => ilot_spec::Layout::SplitDirectory,
        Layout::Project => ilot_spec::Layout::ProjectDirectory,
    };
    let host = project::host_facts(context);
    let sources = ilot_spec::read(path);
    ilot_spec::convert(&sources, &host, layout).map_err(|error| {
        if let ConvertError::Invalid(count) = error {
            let mut loaded = ilot_spec::parse(&sources, &host);
            loaded.warnings.clear();
            ui::complain(report(&loaded, project::look_of_stderr()).trim_end());
            let count = ui::count(count, "error");
            return CommandError::new(format!("`{}` has {count}: nothing was written", path.display()))
                .hint("`ilot check` shows them again, `ilot check --json` for programs");
        }
        let help = error.help();
        CommandError::new(error).hint(help)
    })
}

/// Where each file goes.
fn targets<'c>(args: &Args, converted: &'c Converted) -> Vec<(PathBuf, &'c str)> {
    let out = &args.out;
    let named = args.to == Layout::Single && out.extension().is_some_and(|end| end == "yml" || end == "yaml");
    // `infra` itself may be named, as everywhere else.
    let inside = args.to == Layout::Split && out.file_name() == Some(OsStr::new("infra"));
    let place = |path: &Path| {
        if named && path == Path::new("infra.yml") {
            return out.clone();
        }
        let dir = if named { out.parent().unwrap_or(Path::new("")) } else { out };
        let path = if inside { path.strip_prefix("infra").unwrap_or(path) } else { path };
        if dir == Path::new(".") { path.to_owned() } else { dir.join(path) }
    };
    converted.files.iter().map(|(path, text)| (place(path), text.as_str())).collect()
}

/// Files that are there already would be overwritten, or read as a part of the new project.
fn refuse_company(files: &[(PathBuf, &str)]) -> Result<(), CommandError> {
    let refused = |path: &Path| {
        Err(CommandError::new(format!("`{}` is there already: nothing was written", path.display()))
            .hint("name another directory, or move it away"))
    };
    let Some((main, _)) = files.first() else { return Ok(()) };
    let dir = main.parent().unwrap_or(Path::new(""));
    let layout = main.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let split = matches!(layout, "base.yml" | "anklume.yml");
    for (path, _) in files {
        if path.symlink_metadata().is_ok() {
            return refused(path);
        }
    }
    let beside: &[&str] = if split { &["ilot.yml", "policies.yml"] } else { &["ilot.yml"] };
    if let Some(path) = beside.iter().map(|name| dir.join(name)).find(|path| path.symlink_metadata().is_ok()) {
        return refused(&path);
    }
    let others = if split { fs::read_dir(dir.join("domains")).ok() } else { None };
    if let Some(Ok(entry)) = others.and_then(|mut entries| entries.next()) {
        return refused(&entry.path());
    }
    Ok(())
}

/// Writes all files, or none: what was made is removed when one cannot be.
fn write_all(files: &[(PathBuf, &str)]) -> Result<(), CommandError> {
    let mut made: Vec<PathBuf> = Vec::new();
    for (path, text) in files {
        if let Err(error) = write(path, text, &mut made) {
            for path in made.iter().rev() {
                // What is not empty any more is somebody else's.
                let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            }
            let why = CommandError::new(format!("cannot write `{}`: {error}", path.display()));
            return Err(why.hint("nothing was left behind"));
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_directory(dir, made)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    made.push(path.to_owned());
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

fn make_directory(dir: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => made.push(dir.to_owned()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Err(error) };
            make_directory(parent, made)?;
            fs::create_dir(dir)?;
            made.push(dir.to_owned());
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
