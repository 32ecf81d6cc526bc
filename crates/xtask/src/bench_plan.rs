//! Reading, checking, addressing and planning 100 domains with 1000 machines.

use std::fmt::Write;
use std::fs;

use crate::bench::{Report, Series, Stand, Table, rounds, timed};

const DOMAINS: usize = 100;
const MACHINES: usize = 10;
const LEVELS: [&str; 3] = ["admin", "trusted", "semi-trusted"];

pub fn run(stand: &Stand) -> Result<Report, String> {
    let path = stand.dir.join("plan.yml");
    let text = project();
    fs::write(&path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    let file = path.to_string_lossy().into_owned();
    let mut series = [("ilot check", "check"), ("ilot plan, nothing there yet", "plan")]
        .map(|(name, word)| (Series::new(name), word));
    for _ in 0..rounds(20) {
        for (series, word) in &mut series {
            series.samples.push(timed(&mut stand.ilot(&[word, "-f", &file]))?);
        }
    }
    let title = format!("{DOMAINS} domains, {} machines", DOMAINS * MACHINES);
    let mut series: Vec<Series> = series.map(|(series, _)| series).into();
    series.push(both(&series));
    let parts = Table { title: "parts of that plan".to_owned(), base: None, series: phases(stand, &file)? };
    Ok(Report {
        tables: vec![Table { title, base: None, series }, parts],
        notes: vec![format!("the file has {} lines and {} kB", text.lines().count(), text.len() / 1024)],
    })
}

/// One after the other, as the promise has them.
fn both(series: &[Series]) -> Series {
    let mut sum = Series::new("check, then plan");
    for round in 0..series.iter().map(|s| s.samples.len()).min().unwrap_or(0) {
        sum.samples.push(series.iter().map(|s| s.samples[round]).sum());
    }
    sum
}

/// What the program itself says of its phases, in their order.
fn phases(stand: &Stand, file: &str) -> Result<Vec<Series>, String> {
    let mut all: Vec<Series> = Vec::new();
    for _ in 0..rounds(20) {
        let mut command = stand.ilot(&["plan", "-f", file]);
        let output = command
            .env("ILOT_LOG", "ilot::phase=debug")
            .output()
            .map_err(|e| format!("cannot run {command:?}: {e}"))?;
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let Some((_, said)) = line.split_once("DEBUG ") else { continue };
            let Some((name, micros)) = said.split_once(" micros=") else { continue };
            let Ok(micros) = micros.trim().parse() else { continue };
            let at = all.iter().position(|s| s.name == name).unwrap_or_else(|| {
                all.push(Series::new(name));
                all.len() - 1
            });
            all[at].samples.push(std::time::Duration::from_micros(micros));
        }
    }
    if all.is_empty() { Err("the plan told none of its phases".to_owned()) } else { Ok(all) }
}

/// A file with a bit of everything that costs: limits, explicit and given addresses, policies.
fn project() -> String {
    let mut text = String::from(
        "project_name: bench-plan\nglobal:\n  addressing: {base_octet: 10, zone_base: 100, zone_step: 10}\n  \
         default_os_image: busybox\ndomains:\n",
    );
    let mut policies = String::from("network_policies:\n");
    for domain in 0..DOMAINS {
        let level = LEVELS[domain % LEVELS.len()];
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  d{domain:03}:\n    description: Domain {domain}\n    trust_level: {level}\n    machines:"
        );
        for machine in 0..MACHINES {
            let _ = writeln!(
                text,
                "      d{domain:03}-m{machine}:\n        description: Machine {machine}\n        type: lxc\n        \
                 config:\n          limits.cpu: \"1\"\n          limits.memory: 64MiB\n        roles: [base_system]"
            );
        }
        let next = (domain + 1) % DOMAINS;
        let _ = writeln!(
            policies,
            "  - {{description: To the next, from: d{domain:03}, to: d{next:03}-m0, ports: [80, 443]}}"
        );
    }
    text + &policies
}
