//! What this host offers and lacks, found out by trying, each lack with its cure.
//!
//! A probe acts in namespaces of its own that end with it. Nothing on the host is changed.

mod cgroups;
mod child;
mod kernel;
mod network;
mod programs;
mod storage;

use std::path::Path;

use serde::Serialize;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// It works.
    Ok,
    /// It works less well, or something optional is absent.
    Warn,
    /// Without it machines do not run.
    Missing,
}

/// What one probe found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    /// The part of the report that it belongs to.
    pub group: &'static str,
    /// What was probed; stable, for programs.
    pub name: &'static str,
    /// How well it is.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub cure: Option<String>,
}

/// Collects the findings of one part of the report.
pub(crate) struct Findings {
    group: &'static str,
    is_root: bool,
    all: Vec<Finding>,
}

impl Findings {
    fn group(&mut self, group: &'static str) {
        self.group = group;
    }

    fn add(&mut self, name: &'static str, level: Level, detail: impl Into<String>, cure: Option<&str>) {
        let cure = cure.filter(|_| level != Level::Ok).map(str::to_owned);
        tracing::debug!(name, ?level, "probed");
        self.all.push(Finding { group: self.group, name, level, detail: detail.into(), cure });
    }

    fn ok(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(name, Level::Ok, detail, None);
    }

    fn warn(&mut self, name: &'static str, detail: impl Into<String>, cure: &str) {
        self.add(name, Level::Warn, detail, Some(cure));
    }

    fn missing(&mut self, name: &'static str, detail: impl Into<String>, cure: &str) {
        self.add(name, Level::Missing, detail, Some(cure));
    }

    /// A feature that was tried: works, or the reason why not at the given level.
    fn tried<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        result: Result<String, E>,
        otherwise: Level,
        cure: &str,
    ) {
        match result {
            Ok(detail) => self.ok(name, detail),
            // What fails without root says nothing about the host; that root is missing is a finding of its own.
            Err(_) if !self.is_root => self.warn(name, "cannot be tried without root", "run it with `sudo`"),
            Err(error) => self.add(name, otherwise, error.to_string(), Some(cure)),
        }
    }
}

/// Probes everything.
pub(crate) fn examine(root: &Path) -> Vec<Finding> {
    let mut findings = Findings { group: "kernel", is_root: rustix::process::geteuid().is_root(), all: Vec::new() };
    kernel::examine(&mut findings, root);
    findings.group("control groups");
    cgroups::examine(&mut findings);
    findings.group("network");
    network::examine(&mut findings);
    findings.group("storage");
    storage::examine(&mut findings, root);
    findings.group("programs");
    programs::examine(&mut findings);
    findings.all
}

/// The nearest directory above a path that exists.
fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}
