//! `cargo xtask bench`: whole processes, medians and ratios, peers in the same run.
//!
//! The bench makes itself network and mount namespaces of its own and keeps its store under `target/`, so that it neither
//! sees nor disturbs what runs on the host. Contenders take turns, one sample each, so that noise falls on all of them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::build::{dist, root};
use crate::{bench_apply, bench_build, bench_images, bench_plan, bench_runtime, bench_startup};

/// Set in the process that is inside the namespaces.
const INSIDE: &str = "ILOT_BENCH_INSIDE";

/// Runs what is asked for, as root, after `cargo xtask build`.
pub fn run(what: &str) -> Result<(), String> {
    if !["all", "startup", "apply", "plan", "build", "images", "runtime"].contains(&what) {
        return Err(format!("no bench `{what}`: startup, apply, plan, build, images, runtime or all"));
    }
    if !dist().join("bin/ilot").exists() {
        return Err("target/dist/bin/ilot is not there: `cargo xtask build` first".to_owned());
    }
    if std::env::var_os(INSIDE).is_none() {
        if ["all", "runtime"].contains(&what) {
            // Where there is a network still; without one it is skipped.
            let _ = bench_runtime::youki();
        }
        return enter(what);
    }
    checked(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let stand = Stand::new()?;
    type Bench = fn(&Stand) -> Result<Report, String>;
    // The last hides a part of the host from itself.
    let all: [(&str, Bench); 6] = [
        ("startup", bench_startup::run),
        ("apply", bench_apply::run),
        ("plan", bench_plan::run),
        ("build", bench_build::run),
        ("images", bench_images::run),
        ("runtime", bench_runtime::run),
    ];
    for (name, bench) in all.into_iter().filter(|(name, _)| what == "all" || what == *name) {
        let report = bench(&stand)?;
        report.print(name);
        report.keep(name)?;
    }
    Ok(())
}

/// This program again, in namespaces of its own.
fn enter(what: &str) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(["bench", what])
        .env(INSIDE, "1")
        .status()
        .map_err(|e| format!("cannot run unshare: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("the bench ended with {status} (it needs root)")) }
}

/// A store of the bench's own; removed when dropped.
pub struct Stand {
    ilot: PathBuf,
    /// Everything that the bench writes, results apart.
    pub dir: PathBuf,
}

impl Stand {
    fn new() -> Result<Self, String> {
        let dir = dist().with_file_name("bench").join(std::process::id().to_string());
        fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        Ok(Self { ilot: dist().join("bin/ilot"), dir })
    }

    /// The live state.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// `ilot ARGS…` on the bench's store.
    pub fn ilot(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.ilot);
        command
            .args(args)
            .env("ILOT_ROOT", self.dir.join("store"))
            .env("ILOT_RUN", self.run_dir())
            .env("ILOT_LIBEXEC", dist().join("libexec/ilot"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        // Layers that stay mounted for the next machine.
        if self.run_dir().join("layers").exists() {
            let _ = self.ilot(&["image", "prune", "-q"]).status();
        }
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// Runs a command that must succeed; what it printed.
pub fn checked(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Runs a command that must succeed; how long it took as a whole process.
pub fn timed(command: &mut Command) -> Result<Duration, String> {
    let start = Instant::now();
    checked(command)?;
    Ok(start.elapsed())
}

/// Samples to take: `ILOT_BENCH_ROUNDS`, else `usual`.
pub fn rounds(usual: usize) -> usize {
    std::env::var("ILOT_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(usual)
}

/// Times of one thing.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub samples: Vec<Duration>,
}

impl Series {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), samples: Vec::new() }
    }

    /// The sample that `percent` of all are not above.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.samples.clone();
        sorted.sort();
        let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
        sorted.get(at).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// Series of one kind; the ratios are to the one named `base`, if it was measured.
#[derive(Debug, Default)]
pub struct Table {
    pub title: String,
    pub base: Option<String>,
    pub series: Vec<Series>,
}

/// What a bench found.
#[derive(Debug, Default)]
pub struct Report {
    pub tables: Vec<Table>,
    pub notes: Vec<String>,
}

impl Report {
    fn print(&self, name: &str) {
        println!("\n# {name}");
        for table in &self.tables {
            let base = table.base.as_ref().and_then(|base| table.series.iter().find(|s| s.name == *base));
            println!("\n{:<46} {:>10} {:>10} {:>10}  {}", table.title, "median", "fastest", "p90", against(base));
            for series in table.series.iter().filter(|s| !s.samples.is_empty()) {
                let ratio = base.map_or(String::new(), |base| {
                    format!("{:.2}", series.median().as_secs_f64() / base.median().as_secs_f64())
                });
                println!(
                    "{:<46} {:>10} {:>10} {:>10}  {ratio:>6}",
                    series.name,
                    millis(series.median()),
                    millis(series.percentile(0)),
                    millis(series.percentile(90)),
                );
            }
        }
        for note in &self.notes {
            println!("note: {note}");
        }
    }

    /// Appends the run, raw samples included, to `benches/results/<name>.jsonl`.
    fn keep(&self, name: &str) -> Result<(), String> {
        let tables: Vec<Value> = self
            .tables
            .iter()
            .map(|table| {
                let series: Vec<Value> = table
                    .series
                    .iter()
                    .map(|s| {
                        let samples: Vec<u64> = s.samples.iter().map(|d| micros(*d)).collect();
                        json!({"name": s.name, "median_us": micros(s.median()), "samples_us": samples})
                    })
                    .collect();
                json!({"title": table.title, "base": table.base, "series": series})
            })
            .collect();
        let line = json!({
            "bench": name,
            "date": said("date", &["-u", "+%FT%TZ"]),
            "commit": said("git", &["-C", &root().to_string_lossy(), "rev-parse", "--short", "HEAD"]),
            "host": host(),
            "tables": tables,
            "notes": self.notes,
        });
        let dir = root().join("benches/results");
        let path = dir.join(format!("{name}.jsonl"));
        let fail = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
        fs::create_dir_all(&dir).map_err(fail)?;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(fail)?;
        writeln!(file, "{line}").map_err(fail)
    }
}

fn against(base: Option<&Series>) -> String {
    base.map_or(String::new(), |base| format!("/ {}", base.name))
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn host() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key).map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()))
            .unwrap_or_default()
    };
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": line(&read("/proc/cpuinfo"), "model name"),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": line(&read("/proc/meminfo"), "MemTotal"),
        "load": read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        "cgroups": if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1 or hybrid" },
    })
}

/// What a program printed on one line; nothing when it cannot be asked.
pub fn said(program: &str, args: &[&str]) -> String {
    checked(Command::new(program).args(args))
        .map(|text| text.lines().next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_samples() {
        let series = |ms: &[u64]| Series {
            name: String::new(),
            samples: ms.iter().copied().map(Duration::from_millis).collect(),
        };
        assert_eq!(series(&[3, 1, 2]).median(), Duration::from_millis(2));
        assert_eq!(series(&[3, 1, 2]).percentile(0), Duration::from_millis(1));
        assert_eq!(series(&[3, 1, 2]).percentile(90), Duration::from_millis(3));
        assert_eq!(series(&[]).median(), Duration::ZERO);
    }
}
