//! `ilot-oci` alone beside crun, runc and youki: each step of a container's life, many containers, memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::{Report, Series, Stand, Table, checked, rounds, said};
use crate::bench_apply::weight;
use crate::bench_floor::Floor;
use crate::bench_peers::{PROFILE, bundle, busybox_rootfs, docker_filter, installed};
use crate::build::{dist, target_dir};

/// Containers whose keepers are weighed.
const KEPT: usize = 200;
/// Containers at once, for time and memory of the host.
const MANY: usize = 1000;
/// How long the host has nothing to do before an idle start.
const IDLE: Duration = Duration::from_millis(100);

pub fn run(stand: &Stand) -> Result<Report, String> {
    let mut report = Report::default();
    report.notes.push(hide_unified()?);
    let rootfs = busybox_rootfs(&stand.dir)?;
    let filter = docker_filter();
    report.notes.push(match &filter {
        Some(_) => format!("all with the same configuration and Docker's filter ({PROFILE})"),
        None => format!("all with the same configuration, without a filter: {PROFILE} is not there"),
    });
    let mut runtimes = Vec::new();
    for name in ["ilot-oci", "crun", "runc", "youki"] {
        match Runtime::new(stand, name, &rootfs, filter.as_ref()) {
            Ok(runtime) => {
                report.notes.push(said(&runtime.program.to_string_lossy(), &["--version"]));
                runtimes.push(runtime);
            }
            Err(why) => report.notes.push(format!("{name} skipped: {why}")),
        }
    }
    // What the kernel alone takes for the same work.
    let floor =
        match runtimes.iter().find(|r| r.name == "ilot-oci").map(|ilot| Floor::new(stand, &rootfs, |id| ilot.kept(id)))
        {
            Some(Ok(floor)) => Some(floor),
            Some(Err(why)) => {
                report.notes.push(format!("the floor skipped: {why}"));
                None
            }
            None => None,
        };
    steps(&mut runtimes, floor.as_ref(), &mut report)?;
    idle(&runtimes, floor.as_ref(), &mut report)?;
    // What has been measured is worth telling whatever comes after.
    let told = |result: Result<String, String>| result.unwrap_or_else(|why| format!("failed: {why}"));
    for runtime in runtimes.iter().filter(|r| ["ilot-oci", "crun"].contains(&r.name)) {
        report.notes.push(told(many(runtime)));
    }
    for runtime in &runtimes {
        report.notes.push(told(tiny(runtime)));
    }
    report.notes.push(told(keepers(stand)));
    Ok(report)
}

/// Leaves one layout that every runtime understands, in this mount namespace: crun and runc refuse the hybrid one.
fn hide_unified() -> Result<String, String> {
    if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        checked(Command::new("umount").arg("/sys/fs/cgroup/unified"))?;
        return Ok("cgroup v1 for all: the unified hierarchy beside it is hidden".to_owned());
    }
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Ok(format!("cgroup {}", if v2 { "v2" } else { "v1" }))
}

/// One runtime with two bundles: `true`, and one that waits.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    state: PathBuf,
    short: PathBuf,
    long: PathBuf,
    /// The largest memory of its own process in each step.
    peak_kb: i64,
}

/// What one command took.
struct Sample {
    clock: Duration,
    /// User and system, of the process and those that it has waited for.
    cpu: Duration,
    peak_kb: i64,
}

impl Runtime {
    fn new(stand: &Stand, name: &'static str, rootfs: &Path, filter: Option<&Value>) -> Result<Self, String> {
        let program = match name {
            "ilot-oci" => Some(dist().join("libexec/ilot/ilot-oci")).filter(|path| path.is_file()),
            "youki" => Some(youki()?),
            name => installed(name),
        };
        let program = program.ok_or("not installed")?;
        // One author of the configuration for all, so that all do the same.
        let author = installed("runc").or_else(|| installed("crun")).unwrap_or_else(|| program.clone());
        let dir = |part: &str| stand.dir.join(format!("oci-{name}-{part}"));
        let runtime = Self { name, program, state: dir("state"), short: dir("short"), long: dir("long"), peak_kb: 0 };
        bundle(&author, &runtime.short, rootfs, &["/bin/true"], filter)?;
        bundle(&author, &runtime.long, rootfs, &["/bin/sleep", "86400"], filter)?;
        // Does it run at all?
        sample(&mut runtime.run(&runtime.id("try"), &runtime.short))?;
        Ok(runtime)
    }

    fn id(&self, kind: &str) -> String {
        format!("ilot-bench-{}-{kind}-{}", self.name, std::process::id())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).args(args);
        command
    }

    fn run(&self, id: &str, bundle: &Path) -> Command {
        let mut command = self.command(&["run", "--bundle"]);
        command.arg(bundle).arg(id);
        command
    }

    fn create(&self, id: &str) -> Command {
        let mut command = self.command(&["create", "--bundle"]);
        command.arg(&self.long).arg(id);
        command
    }

    fn delete(&self, id: &str) -> Command {
        self.command(&["delete", "--force", id])
    }

    /// The filter that a container of this runtime keeps (ilot-oci's only).
    fn kept(&self, id: &str) -> Result<Vec<u8>, String> {
        sample(&mut self.create(id))?;
        let path = self.state.join(id).join("seccomp.bpf");
        let kept = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()));
        sample(&mut self.delete(id))?;
        kept
    }
}

/// youki from crates.io, built once into `target/peers`.
pub fn youki() -> Result<PathBuf, String> {
    if let Some(path) = installed("youki") {
        return Ok(path);
    }
    let peers = target_dir().join("peers");
    let path = peers.join("bin/youki");
    let log = peers.join("youki.log");
    if path.is_file() {
        return Ok(path);
    }
    let failed = || format!("not installed, and `cargo install youki` fails here (see {})", log.display());
    if log.exists() {
        return Err(failed());
    }
    fs::create_dir_all(&peers).map_err(|e| format!("cannot make {}: {e}", peers.display()))?;
    println!("building youki (once)");
    let file = fs::File::create(&log).map_err(|e| format!("cannot write {}: {e}", log.display()))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Outside of the project its configuration has no say.
    command
        .args(["install", "--locked", "youki", "--features", "v1", "--root"])
        .arg(&peers)
        .current_dir("/")
        .stderr(file);
    command.arg("--target-dir").arg(peers.join("build"));
    if command.status().is_ok_and(|status| status.success()) { Ok(path) } else { Err(failed()) }
}

/// A command with what it took; its output goes nowhere, since a container may keep it.
#[allow(clippy::zombie_processes)] // `wait4` is the wait.
fn sample(command: &mut Command) -> Result<Sample, String> {
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot run {command:?}: {e}"))?;
    let mut status = 0;
    // SAFETY: all zeros are a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = libc::pid_t::try_from(child.id()).map_err(|e| e.to_string())?;
    // SAFETY: our own child, and places of our own.
    let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    let clock = start.elapsed();
    if ended != pid || status != 0 {
        return Err(format!("{command:?}: status {status}"));
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    Ok(Sample { clock, cpu: time(usage.ru_utime) + time(usage.ru_stime), peak_kb: usage.ru_maxrss })
}

/// Every step, in turns.
fn steps(runtimes: &mut [Runtime], floor: Option<&Floor>, report: &mut Report) -> Result<(), String> {
    const STEPS: [&str; 5] = ["run", "create", "start", "exec", "delete"];
    let mut series: Vec<[Vec<Series>; 2]> =
        STEPS.iter().map(|_| [(); 2].map(|()| runtimes.iter().map(|r| Series::new(r.name)).collect())).collect();
    let mut lowest = [Series::new(Floor::NAME), Series::new(Floor::NAME)];
    for _ in 0..rounds(40) {
        if let Some(floor) = floor {
            let taken = sample(&mut floor.command())?;
            lowest[0].samples.push(taken.cpu);
            lowest[1].samples.push(taken.clock);
        }
        for (i, runtime) in runtimes.iter_mut().enumerate() {
            let (short, id) = (runtime.id("run"), runtime.id("steps"));
            let commands = [
                runtime.run(&short, &runtime.short),
                runtime.create(&id),
                runtime.command(&["start", &id]),
                runtime.command(&["exec", &id, "/bin/true"]),
                runtime.delete(&id),
            ];
            for (n, mut command) in commands.into_iter().enumerate() {
                let taken = sample(&mut command).inspect_err(|_| {
                    let _ = sample(&mut runtime.delete(&id));
                })?;
                series[n][0][i].samples.push(taken.cpu);
                series[n][1][i].samples.push(taken.clock);
                runtime.peak_kb = runtime.peak_kb.max(taken.peak_kb);
            }
        }
    }
    let [cpu, clock] = lowest;
    series[0][0].push(cpu);
    series[0][1].push(clock);
    for (step, [cpu, clock]) in STEPS.iter().zip(series) {
        let base = Some("crun".to_owned());
        report.tables.push(Table { title: format!("{step}, CPU time"), base: base.clone(), series: cpu });
        report.tables.push(Table { title: format!("{step}, clock"), base, series: clock });
    }
    for runtime in runtimes {
        report.notes.push(format!("{}: at most {} kB of memory in any step", runtime.name, runtime.peak_kb));
    }
    Ok(())
}

/// `run` and `exec` after the host had nothing to do: joining a control group then waits for all processors.
fn idle(runtimes: &[Runtime], floor: Option<&Floor>, report: &mut Report) -> Result<(), String> {
    let names = runtimes.iter().map(|r| r.name);
    let mut runs: Vec<Series> = names.clone().map(Series::new).collect();
    let mut execs: Vec<Series> = names.map(Series::new).collect();
    let mut lowest = Series::new(Floor::NAME);
    let rested = |mut command: Command| {
        std::thread::sleep(IDLE);
        sample(&mut command).map(|taken| taken.clock)
    };
    for runtime in runtimes {
        sample(&mut runtime.create(&runtime.id("idle")))?;
        sample(&mut runtime.command(&["start", &runtime.id("idle")]))?;
    }
    let measured = (0..rounds(20)).try_for_each(|_| {
        for (i, runtime) in runtimes.iter().enumerate() {
            runs[i].samples.push(rested(runtime.run(&runtime.id("run"), &runtime.short))?);
            execs[i].samples.push(rested(runtime.command(&["exec", &runtime.id("idle"), "/bin/true"]))?);
        }
        if let Some(floor) = floor {
            lowest.samples.push(rested(floor.command())?);
        }
        Ok(())
    });
    for runtime in runtimes {
        let _ = sample(&mut runtime.delete(&runtime.id("idle")));
    }
    runs.push(lowest);
    let base = Some("crun".to_owned());
    report.tables.push(Table { title: "run after 100 ms idle, clock".to_owned(), base: base.clone(), series: runs });
    report.tables.push(Table { title: "exec after 100 ms idle, clock".to_owned(), base, series: execs });
    measured
}

/// Many containers, one after the other, all there at once; then all gone.
fn many(runtime: &Runtime) -> Result<String, String> {
    let count = std::env::var("ILOT_BENCH_MANY").ok().and_then(|text| text.parse().ok()).unwrap_or(MANY);
    let ids: Vec<String> = (0..count).map(|n| format!("{}-{n}", runtime.id("many"))).collect();
    let before = Memory::settled();
    let (mut cpu, mut made) = (Duration::ZERO, 0);
    let start = Instant::now();
    let result = ids.iter().try_for_each(|id| {
        let mut command = runtime.command(&["run", "--detach", "--bundle"]);
        command.arg(&runtime.long).arg(id);
        cpu += sample(&mut command)?.cpu;
        made += 1;
        Ok::<_, String>(())
    });
    let took = start.elapsed();
    let after = Memory::now();
    let own = result.is_ok().then(|| pss_of(runtime, &ids));
    let start = Instant::now();
    for id in &ids[..made] {
        sample(&mut runtime.delete(id))?;
    }
    let gone = start.elapsed();
    result?;
    let n = count as u64;
    let kernel = after.kernel.saturating_sub(before.kernel) / n;
    let all = before.available.saturating_sub(after.available) / n;
    let own = own.unwrap_or(0) / n;
    Ok(format!(
        "{}: {count} detached containers in {:.1} s ({:.1} s of CPU), deleted in {:.1} s; each {} kB: {kernel} kB of kernel \
         memory, {own} kB of its process ({all} kB less available, with what else happened on the host)",
        runtime.name,
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        gone.as_secs_f64(),
        kernel + own
    ))
}

/// Memory of the host, in kB.
struct Memory {
    available: u64,
    /// What the kernel holds for objects, stacks, tables and per processor, and cannot give back.
    kernel: u64,
}

impl Memory {
    /// After what others have left half empty was given back: who comes second must not find it for nothing.
    fn settled() -> Self {
        // Objects are freed some time after the last who could see them.
        std::thread::sleep(Duration::from_secs(2));
        // Without the right to do so (a container, another user) the numbers are only less fair.
        let _ = fs::write("/proc/sys/vm/drop_caches", "2");
        Self::now()
    }

    fn now() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let value = |key: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
        };
        let kernel = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"].iter().map(|key| value(key)).sum();
        Self { available: value("MemAvailable:"), kernel }
    }
}

/// Proportional memory of the containers' processes together, in kB.
fn pss_of(runtime: &Runtime, ids: &[String]) -> u64 {
    ids.iter()
        .filter_map(|id| {
            let state = checked(&mut runtime.command(&["state", id])).ok()?;
            let state: Value = serde_json::from_str(&state).ok()?;
            let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", state["pid"])).ok()?;
            let line = text.lines().find(|line| line.starts_with("Pss:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum()
}

/// Whether a container of half a megabyte starts.
fn tiny(runtime: &Runtime) -> Result<String, String> {
    let path = runtime.short.join("config.json");
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut spec: Value = serde_json::from_str(&fs::read_to_string(&path).map_err(fail)?).map_err(|e| e.to_string())?;
    spec["linux"]["resources"]["memory"] = json!({"limit": 512 << 10});
    fs::write(&path, spec.to_string()).map_err(fail)?;
    let id = runtime.id("tiny");
    let tries = 5;
    let good = (0..tries).filter(|_| {
        let done = sample(&mut runtime.run(&id, &runtime.short)).is_ok();
        if !done {
            let _ = sample(&mut runtime.delete(&id));
        }
        done
    });
    Ok(format!("{}: {} of {tries} containers with a limit of 512 kB of memory run `true`", runtime.name, good.count()))
}

/// What the keepers of many containers weigh.
fn keepers(stand: &Stand) -> Result<String, String> {
    let names: Vec<String> = (0..KEPT).map(|n| format!("kept-{n}")).collect();
    let result = names.iter().try_for_each(|name| {
        checked(&mut stand.ilot(&["run", "-d", "--name", name, "--net", "none", "busybox", "sleep", "86400"])).map(drop)
    });
    let notes = weight(&stand.run_dir());
    let mut remove = stand.ilot(&["rm", "--force"]);
    remove.args(&names);
    checked(&mut remove)?;
    result.map(|()| notes.join("; "))
}
