//! `ilot doctor`.

use owo_colors::{OwoColorize, Style};
use serde_json::json;

use super::Outcome;
use crate::context::Context;
use crate::doctor::{Finding, Level, examine};
use crate::ui;

/// Find out what this host offers and lacks, with the cure for each lack
///
/// Everything is really tried, in namespaces of its own; the host is not changed. Run it as root: most of what is
/// tried needs it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo ilot doctor
  sudo ilot doctor --json | jq '.findings[] | select(.level != \"ok\")'

Exit codes: 0 machines can run here (warnings do not count), 1 something that they need is missing.")]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args, context: &Context) -> Outcome {
    let findings = examine(&context.root);
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (missing, warnings) = (count(Level::Missing), count(Level::Warn));
    if context.json {
        ui::print_json(&json!({ "ok": missing == 0, "findings": findings }));
    } else {
        show(&findings, context.quiet);
        let verdict = match (missing, warnings) {
            (0, 0) => "everything is there".green().bold().to_string(),
            (0, _) => format!("{}, {}", "machines can run here".green().bold(), ui::count(warnings, "warning")),
            _ => format!("{}, {}", format!("{missing} missing").red().bold(), ui::count(warnings, "warning")),
        };
        ui::print(&verdict);
    }
    Ok(u8::from(missing > 0))
}

/// One line per finding under its group's heading; quietly, only what is not well.
fn show(findings: &[Finding], quiet: bool) {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut group = "";
    for finding in findings.iter().filter(|finding| !quiet || finding.level != Level::Ok) {
        if finding.group != group {
            group = finding.group;
            ui::print(&group.bold().to_string());
        }
        let (word, style) = match finding.level {
            Level::Ok => ("ok", Style::new().green()),
            Level::Warn => ("warn", Style::new().yellow()),
            Level::Missing => ("missing", Style::new().red().bold()),
        };
        let space = " ".repeat("missing".len() - word.len());
        ui::print(&format!("  {}{space}  {:width$}  {}", word.style(style), finding.name, finding.detail));
        if let Some(cure) = &finding.cure {
            ui::print(&format!("  {:9}{:width$}  {} {cure}", "", "", "→".cyan()));
        }
    }
    if !findings.is_empty() {
        ui::print("");
    }
}
