//! Reads the project that the first argument names and prints what came of it, as JSON.

use std::path::Path;

fn main() -> std::process::ExitCode {
    let path = std::env::args_os().nth(1).unwrap_or_else(|| "infra.yml".into());
    let host = ilot_spec::HostFacts { cpus: 8, memory: 16 << 30, ..Default::default() };
    let loaded = ilot_spec::load(Path::new(&path), &host);
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    for error in &loaded.errors {
        eprintln!("error: {error}");
    }
    match loaded.project.map(|p| serde_json::to_string_pretty(&p)) {
        Some(Ok(json)) => println!("{json}"),
        _ => return std::process::ExitCode::FAILURE,
    }
    std::process::ExitCode::SUCCESS
}
