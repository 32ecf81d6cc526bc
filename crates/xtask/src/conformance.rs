//! The conformance suite against one runtime: `cargo xtask conformance [RUNTIME]`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What a test said.
#[derive(Default)]
struct Area {
    passed: usize,
    failed: Vec<String>,
    differs: Vec<String>,
    skipped: Vec<String>,
}

/// Runs the suite against `runtime` (a name or a path; ilot's own without) and prints a table of its areas.
pub fn run(runtime: Option<&str>) -> Result<(), String> {
    let runtime = runtime.map(str::to_owned).or_else(|| std::env::var("RUNTIME").ok().filter(|name| !name.is_empty()));
    let results = std::env::temp_dir().join(format!("ilot-conformance-{}", std::process::id()));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["test", "--quiet", "--package", "ilot-conformance", "--no-fail-fast", "--tests"]);
    command.env("ILOT_CONFORMANCE_RESULTS", &results);
    match &runtime {
        Some(runtime) => command.env("RUNTIME", absolute(runtime)),
        None => command.env_remove("RUNTIME"),
    };
    let status = command.status().map_err(|e| format!("cannot start cargo: {e}"))?;
    let text = std::fs::read_to_string(&results).unwrap_or_default();
    let _ = std::fs::remove_file(&results);
    let areas = read(&text);
    if areas.is_empty() {
        return Err("no test has run: see the messages above".to_owned());
    }
    print(runtime.as_deref().unwrap_or("ilot-oci"), &areas);
    if status.success() { Ok(()) } else { Err("some tests failed".to_owned()) }
}

/// A path as the tests see it, which run in the directory of their package; a bare name stays one.
fn absolute(runtime: &str) -> String {
    if !runtime.contains('/') {
        return runtime.to_owned();
    }
    Path::new(runtime).canonicalize().map_or_else(|_| runtime.to_owned(), |path| path.display().to_string())
}

/// Lines of `area::test`, verdict and note, with tabs between.
fn read(text: &str) -> BTreeMap<String, Area> {
    let mut areas: BTreeMap<String, Area> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(3, '\t');
        let (Some(name), Some(verdict), note) = (words.next(), words.next(), words.next().unwrap_or("")) else {
            continue;
        };
        let area = areas.entry(name.split("::").next().unwrap_or(name).to_owned()).or_default();
        match verdict {
            "pass" => area.passed += 1,
            "differs" => area.differs.push(format!("{name}: {note}")),
            "skip" => area.skipped.push(format!("{name}: {note}")),
            _ => area.failed.push(name.to_owned()),
        }
    }
    areas
}

fn print(runtime: &str, areas: &BTreeMap<String, Area>) {
    println!("\n{runtime}\n\n| area | pass | FAIL | differs | skipped |\n| --- | ---: | ---: | ---: | ---: |");
    let mut sum = [0; 4];
    for (name, area) in areas {
        let row = [area.passed, area.failed.len(), area.differs.len(), area.skipped.len()];
        println!("| {name} | {} | {} | {} | {} |", row[0], row[1], row[2], row[3]);
        sum.iter_mut().zip(row).for_each(|(total, n)| *total += n);
    }
    println!("| **all** | {} | {} | {} | {} |", sum[0], sum[1], sum[2], sum[3]);
    type Pick = fn(&Area) -> &[String];
    let lists: [(&str, Pick); 3] =
        [("failed", |a| &a.failed), ("differ, as known", |a| &a.differs), ("skipped", |a| &a.skipped)];
    for (title, pick) in lists {
        let entries: Vec<&String> = areas.values().flat_map(pick).collect();
        if !entries.is_empty() {
            println!("\n{title}:");
            entries.iter().for_each(|entry| println!("  {entry}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let areas = read("a::one\tpass\t\na::two\tskip\tneeds root\nb::three\tdiffers\tconfig.md\nb::four\tFAIL\t\n");
        assert_eq!((areas["a"].passed, areas["a"].skipped.len()), (1, 1));
        assert_eq!(areas["b"].failed, ["b::four"]);
        assert_eq!(areas["b"].differs, ["b::three: config.md"]);
    }
}
