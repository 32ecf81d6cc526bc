//! `ilot sync`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ilot_spec::{Layout, Project};
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use super::Outcome;
use crate::cli::FileArg;
use crate::context::Context;
use crate::error::CommandError;
use crate::project::{self, Warnings};
use crate::ui;

const BEGIN: &str = "# BEGIN written by ilot: what is between the marks is replaced by `ilot sync`";
const END: &str = "# END written by ilot";

/// Write the Ansible tree of the project: inventory, variables, site
///
/// `inventory/hosts.yml`, `group_vars/DOMAIN.yml`, `host_vars/MACHINE.yml` and `site.yml` in the project's directory. Only what is between
/// ilot's marks is ever replaced: what stands outside of them stays as it is. Files of domains and machines that the
/// project no longer has are listed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot sync
  ilot sync --dry-run            what would be written
  ilot sync --clean-orphans      and remove ilot's part of files that nothing needs

Exit codes: 0 done, 1 it failed.")]
pub(crate) struct Args {
    #[command(flatten)]
    pub file: FileArg,

    /// Write nothing, say what would be
    #[arg(long)]
    dry_run: bool,

    /// Remove ilot's part of files of domains and machines that are gone, and files that are then empty
    #[arg(long)]
    clean_orphans: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let project = project::require(context, Warnings::Counted)?;
    let base = base(&project);
    let wanted = tree(&project);
    let mut report = Vec::new();
    for (name, block) in &wanted {
        let path = base.join(name);
        let old = read(&path)?;
        let new = with_block(old.as_deref(), block).ok_or_else(|| damaged(&path))?;
        let what = match &old {
            Some(old) if *old == new => continue,
            Some(_) => "changed",
            None => "created",
        };
        if !args.dry_run {
            write(&path, &new)?;
        }
        report.push((what, name.clone()));
    }
    for name in orphans(&base, &wanted)? {
        let path = base.join(&name);
        if !args.clean_orphans {
            report.push(("orphan", name));
            continue;
        }
        let rest = read(&path)?.and_then(|text| without_block(&text)).ok_or_else(|| damaged(&path))?;
        if !args.dry_run {
            if rest.trim().trim_start_matches("---").trim().is_empty() {
                fs::remove_file(&path).map_err(|e| failed("remove", &path, &e))?;
            } else {
                write(&path, &rest)?;
            }
        }
        report.push(("cleaned", name));
    }
    if context.json {
        let files: Vec<Value> = report.iter().map(|(what, name)| json!({ "file": name, "result": what })).collect();
        ui::print_json(&json!({ "dry_run": args.dry_run, "files": files }));
    } else if !context.quiet {
        for (what, name) in &report {
            ui::print(&format!("{:<8} {}", what.bold(), name.display()));
        }
        if report.is_empty() {
            ui::print("nothing to do");
        }
    }
    Ok(0)
}

/// Where the tree stands: in the project's directory. That of a split directory is the one that holds `infra/`.
fn base(project: &Project) -> PathBuf {
    let source = &project.source;
    let parent = |path: &Path| match path.parent() {
        Some(parent) if path.file_name().is_some() => parent.to_owned(),
        _ => path.join(".."),
    };
    let directory = if source.is_dir() { source.clone() } else { parent(source) };
    let is_infra = fs::canonicalize(&directory).is_ok_and(|path| path.file_name().is_some_and(|name| name == "infra"));
    if project.layout == Layout::SplitDirectory && is_infra { parent(&directory) } else { directory }
}

fn failed(operation: &str, path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::new(format!("cannot {operation} `{}`: {error}", path.display()))
}

fn damaged(path: &Path) -> CommandError {
    CommandError::new(format!("`{}` has one of ilot's marks and not the other", path.display()))
        .hint(format!("restore `{END}`, or remove the marks with what is between them"))
}

fn read(path: &Path) -> Result<Option<String>, CommandError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path, &error)),
    }
}

/// Aside, then renamed: the old file or the new one, never a part. A link stays a link.
fn write(path: &Path, text: &str) -> Result<(), CommandError> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let aside = path.with_extension("yml.new");
    let work = || -> std::io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(&aside, text)?;
        fs::rename(&aside, &path)
    };
    work().map_err(|error| failed("write", &path, &error))
}

/// Where ilot's part begins and ends, its marks included; `None` in it: there is none. `None`: one mark is missing.
fn span(text: &str) -> Option<Option<(usize, usize)>> {
    match (text.find(BEGIN), text.find(END)) {
        (None, None) => Some(None),
        (Some(begin), Some(end)) if begin < end => {
            let end = end + END.len();
            Some(Some((begin, end + usize::from(text[end..].starts_with('\n')))))
        }
        _ => None,
    }
}

/// A file's text with ilot's part in it: in its place, else before what stands there.
fn with_block(old: Option<&str>, block: &str) -> Option<String> {
    let block = format!("{BEGIN}\n{block}{END}\n");
    let Some(old) = old else { return Some(format!("---\n{block}")) };
    Some(match span(old)? {
        Some((begin, end)) => format!("{}{block}{}", &old[..begin], &old[end..]),
        None => {
            let at = document_start(old);
            format!("{}{block}{}", &old[..at], &old[at..])
        }
    })
}

/// Behind the line that begins the document, if there is one: before it, the block would be a document of its own.
fn document_start(text: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        match line.trim_end() {
            "---" => return if line.ends_with('\n') { at } else { 0 },
            line if line.is_empty() || line.starts_with('#') || line.starts_with('%') => {}
            _ => break,
        }
    }
    0
}

fn without_block(text: &str) -> Option<String> {
    let (begin, end) = span(text)??;
    Some(format!("{}{}", &text[..begin], &text[end..]))
}

/// `key: value`, a line each; JSON is YAML.
fn lines(values: &[(&str, Value)]) -> String {
    values.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// Every file and what ilot writes into it.
fn tree(project: &Project) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut inventory = String::from("all:\n  children:\n");
    let mut site = String::new();
    for domain in project.enabled_domains() {
        inventory.push_str(&format!("    {}:\n      hosts:\n", domain.name));
        let group = lines(&[
            ("domain_name", json!(domain.name)),
            ("domain_description", json!(domain.description)),
            ("domain_trust_level", json!(domain.trust_level)),
            ("domain_subnet", json!(domain.subnet)),
            ("domain_gateway", json!(domain.gateway)),
            ("domain_bridge", json!(ilot_net::bridge_name(domain.name.as_str()))),
            ("ansible_user", json!(project.global.default_user)),
        ]);
        files.insert(Path::new("group_vars").join(format!("{}.yml", domain.name)), group);
        for machine in &domain.machines {
            let host = json!({ "ansible_host": machine.ip });
            let host = if machine.ip.is_some() { host } else { json!({}) };
            inventory.push_str(&format!("        {}: {host}\n", machine.name));
            let mut host = lines(&[
                ("instance_name", json!(machine.name)),
                ("instance_type", json!(machine.machine_type)),
                ("instance_domain", json!(domain.name)),
                ("instance_description", json!(machine.description)),
                ("instance_os_image", json!(machine.image)),
                ("instance_ip", json!(machine.ip)),
                ("instance_ephemeral", json!(machine.ephemeral)),
                ("instance_roles", json!(machine.roles)),
            ]);
            if let Some(Value::Object(vars)) = machine.extra.get("vars") {
                let vars: Vec<(&str, Value)> = vars.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
                host.push_str(&lines(&vars));
            }
            files.insert(Path::new("host_vars").join(format!("{}.yml", machine.name)), host);
            if !machine.roles.is_empty() {
                site.push_str(&format!("- hosts: {}\n  roles: {}\n", machine.name, json!(machine.roles)));
            }
        }
    }
    files.insert(PathBuf::from("inventory/hosts.yml"), inventory);
    files.insert(PathBuf::from("site.yml"), site);
    files
}

/// Files with ilot's marks that it would not write.
fn orphans(base: &Path, wanted: &BTreeMap<PathBuf, String>) -> Result<Vec<PathBuf>, CommandError> {
    let mut found = Vec::new();
    for dir in ["group_vars", "host_vars"] {
        for entry in fs::read_dir(base.join(dir)).into_iter().flatten().flatten() {
            let name = Path::new(dir).join(entry.file_name());
            let is_file = name.extension().is_some_and(|e| e == "yml") && entry.path().is_file();
            if is_file && !wanted.contains_key(&name) && read(&entry.path())?.is_some_and(|t| t.contains(BEGIN)) {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}
