//! The teacher's lab: 31 domains and 61 machines, up, applied again, gone; and what they weigh.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::{Report, Series, Stand, Table, checked, rounds, timed};
use crate::bench_incus;
use crate::bench_peers::installed;
use crate::build::root;

pub fn run(stand: &Stand) -> Result<Report, String> {
    let file = root().join("examples/teacher-lab").to_string_lossy().into_owned();
    let mut report = Report::default();
    // The image is at hand, as the promise says.
    checked(&mut stand.ilot(&["run", "--rm", "--net", "none", "busybox", "true"]))?;
    let names = ["up", "apply again, nothing to do", "plan, nothing to do", "destroy"];
    let mut series = names.map(Series::new);
    let mut cpu = Duration::ZERO;
    let rounds = rounds(5);
    for round in 0..rounds {
        let result = (|| {
            let before = children_cpu();
            series[0].samples.push(timed(&mut stand.ilot(&["apply", "-f", &file, "--yes"]))?);
            cpu += children_cpu().saturating_sub(before);
            for _ in 0..5 {
                series[1].samples.push(timed(&mut stand.ilot(&["apply", "-f", &file, "--yes"]))?);
                series[2].samples.push(timed(&mut stand.ilot(&["plan", "-f", &file]))?);
            }
            if round == 0 {
                report.notes.extend(weight(&stand.run_dir()));
            }
            Ok::<(), String>(())
        })();
        let gone = timed(&mut stand.ilot(&["destroy", "-f", &file, "--yes", "--force"]));
        result?;
        series[3].samples.push(gone?);
    }
    report.notes.push(format!(
        "up: {:.2} s of CPU in `ilot` itself per run (user and system; keepers and name services come on top)",
        cpu.as_secs_f64() / f64::from(u32::try_from(rounds).unwrap_or(1))
    ));
    let mut series = Vec::from(series);
    // After ilot, not in turns with it: its daemon would take part of the CPU that ilot is measured on.
    match bench_incus::run(stand, &file, rounds.min(3)) {
        Ok((peer, note)) => {
            series.extend(peer);
            report.notes.push(note);
        }
        Err(why) => report.notes.push(format!("Incus skipped: {why}")),
    }
    report.tables.push(Table { title: "teacher-lab, 31 domains, 61 machines".to_owned(), base: None, series });
    report.notes.extend(calls(stand, &file)?);
    Ok(report)
}

/// CPU time of this process's children that have ended (proc(5), `cutime` and `cstime` of `stat`, in 1/100 s).
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(13).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Memory of the processes that stay: proportional set sizes of keepers and name services.
pub fn weight(run_dir: &Path) -> Vec<String> {
    let Ok(machines) = fs::read_dir(run_dir.join("machines")) else { return Vec::new() };
    let mut keepers = Vec::new();
    for machine in machines.flatten() {
        let state = fs::read_to_string(machine.path().join("state.json")).unwrap_or_default();
        let state: Value = serde_json::from_str(&state).unwrap_or_default();
        keepers.extend(state["keeper"]["pid"].as_u64().and_then(memory));
    }
    let services: Vec<(u64, u64)> = pids_of("ilot-names", run_dir).into_iter().filter_map(memory).collect();
    [("keepers", keepers), ("name services", services)]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(what, list)| {
            let count = list.len() as u64;
            let (pss, private) = list.iter().fold((0, 0), |sum, m| (sum.0 + m.0, sum.1 + m.1));
            format!("{count} {what}: {} kB PSS and {} kB private memory each", pss / count, private / count)
        })
        .collect()
}

/// Proportional and private memory of a process, in kB.
fn memory(pid: u64) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let value = |key: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    Some((value("Pss:"), value("Private_Clean:") + value("Private_Dirty:")))
}

/// Processes of that program that were told of this run directory.
fn pids_of(program: &str, run_dir: &Path) -> Vec<u64> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let run_dir = run_dir.to_string_lossy();
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u64| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.split('\0').next().is_some_and(|first| first.ends_with(program)) && line.contains(&*run_dir)
        })
        .collect()
}

/// Where the time goes: system calls of one `apply`, by the time spent in them.
fn calls(stand: &Stand, file: &str) -> Result<Vec<String>, String> {
    let Some(strace) = installed("strace") else {
        return Ok(vec!["system calls not counted: strace is not installed".to_owned()]);
    };
    let output = stand.dir.join("strace");
    let done = stand.dir.join("applied");
    let apply = stand.ilot(&["apply", "-f", file, "--yes", "-q"]);
    // strace follows the processes that stay, too: it is told when to stop.
    let mut command = Command::new(strace);
    command.args(["-f", "-c", "-w", "-I", "2", "-S", "time", "-o"]).arg(&output);
    command.args(["sh", "-c", "\"$@\"; : >\"$DONE\"", "sh"]).arg(apply.get_program()).args(apply.get_args());
    command.envs(apply.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("DONE", &done);
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let traced = wait_for(&done).and_then(|()| checked(Command::new("kill").args(["-INT", &child.id().to_string()])));
    if traced.is_err() {
        // It is waited for in any case.
        let _ = child.kill();
    }
    let ended = child.wait();
    checked(&mut stand.ilot(&["destroy", "-f", file, "--yes", "--force"]))?;
    traced?;
    ended.map_err(|e| format!("cannot wait for strace: {e}"))?;
    let text = fs::read_to_string(&output).map_err(|e| format!("cannot read {}: {e}", output.display()))?;
    let mut notes =
        vec!["system calls of `up`, all threads and processes together, traced (slower than untraced):".to_owned()];
    notes.extend(text.lines().take(14).map(|line| format!("  {line}")));
    Ok(notes)
}

fn wait_for(file: &Path) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(120);
    while !file.exists() {
        if Instant::now() > end {
            return Err("`ilot apply` under strace did not end within two minutes".to_owned());
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}
