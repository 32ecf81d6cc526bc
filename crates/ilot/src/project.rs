//! Finding, reading and checking the project that a command is about.

use std::fs;
use std::path::{Path, PathBuf};

use ilot_spec::{HostFacts, Loaded, Nesting, Project};
use owo_colors::OwoColorize;

use crate::context::{Context, phase};
use crate::error::CommandError;
use crate::render::problem::{Look, report};
use crate::ui;

/// Where the project is: `-f`, or what the current directory has.
pub(crate) fn locate(context: &Context) -> Result<PathBuf, CommandError> {
    if let Some(file) = &context.file {
        return Ok(file.clone());
    }
    ilot_spec::find(Path::new(".")).ok_or_else(|| {
        CommandError::new("no project here: no `infra.yml`, no `infra/` and no `anklume.yml` in this directory")
            .hint("name one with `-f PATH`")
            .hint("make one with `ilot init`")
    })
}

/// Reads and checks the project, whatever comes of it.
pub(crate) fn load(context: &Context) -> Result<Loaded, CommandError> {
    let path = locate(context)?;
    tracing::info!(path = %path.display(), "read the project");
    let host = phase("look at the host", || host_facts(context));
    let sources = phase("read the files", || ilot_spec::read(&path));
    Ok(phase("parse and check", || ilot_spec::parse(&sources, &host)))
}

/// Whether a command says that there are warnings; what they are is `check`'s to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warnings {
    /// In one line: the command acts on what the file says.
    Counted,
    /// Not at all.
    Left,
}

/// Reads the project for a command that needs a valid one: shows its errors instead of going on.
pub(crate) fn require(context: &Context, warnings: Warnings) -> Result<Project, CommandError> {
    let mut loaded = load(context)?;
    if warnings == Warnings::Counted && !loaded.warnings.is_empty() && !context.json {
        let warnings = ui::count(loaded.warnings.len(), "warning");
        context.note(&format!("{} {warnings} about the file: `ilot check` shows what", "note:".cyan()));
    }
    loaded.warnings.clear();
    let errors = loaded.errors.len();
    if errors > 0 {
        ui::complain(report(&loaded, look_of_stderr()).trim_end());
    }
    loaded.project.ok_or_else(|| {
        let file = loaded.sources.root.display();
        CommandError::new(format!("`{file}` has {}: nothing was changed", ui::count(errors, "error")))
            .hint("`ilot check` shows them again, `ilot check --json` for programs")
    })
}

/// How problems are drawn on standard error.
pub(crate) fn look_of_stderr() -> Look {
    Look { color: ui::stderr_has_color(), width: terminal_width() }
}

/// Columns of the terminal; 100 where there is none, so that output to a file does not depend on chance.
pub(crate) fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stderr())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|&columns| columns >= 40)
        .map_or(100, |columns| columns.min(120))
}

/// What checking needs to know of this host.
pub(crate) fn host_facts(context: &Context) -> HostFacts {
    let store = fs::canonicalize(&context.root).unwrap_or_else(|_| context.root.clone());
    let subnets = ilot_net::host_subnets(&ilot_net::store_id(&store)).unwrap_or_else(|error| {
        tracing::warn!("cannot read the host's networks, so collisions with them are not checked: {error}");
        Vec::new()
    });
    HostFacts {
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory: memory().unwrap_or(0),
        subnets,
        nesting: nesting(Path::new("/etc/anklume")),
    }
}

/// Bytes of memory of this host (`/proc/meminfo`).
pub(crate) fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The files that a parent ilot or anklume writes; `None` when this host is nobody's machine.
fn nesting(dir: &Path) -> Option<Nesting> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok().map(|text| text.trim().to_owned());
    let absolute = read("absolute_level");
    let relative = read("relative_level");
    let vm = read("vm_nested");
    if absolute.is_none() && relative.is_none() && vm.is_none() {
        return None;
    }
    let level = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    Some(Nesting {
        absolute_level: level(absolute),
        relative_level: level(relative),
        vm_nested: vm.is_some_and(|text| matches!(text.to_ascii_lowercase().as_str(), "true" | "1" | "yes")),
    })
}
