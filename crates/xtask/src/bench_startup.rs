//! From a command to the end of `true` in a container, and `exec` into one that runs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::bench::{Report, Series, Stand, Table, checked, rounds, said};
use crate::bench_peers::{Contender, PROFILE, bundle, busybox_rootfs, docker_filter, installed, once};

/// After this long without work the kernel answers some calls later (a grace period of RCU when a cgroup is joined).
const IDLE: Duration = Duration::from_millis(100);
const MACHINE: &str = "bench-exec";
/// One domain, for starts with a network.
const PROJECT: &str = "project_name: bench\nglobal: {}\ndomains:\n  bench: {ephemeral: true, machines: {}}\n";

pub fn run(stand: &Stand) -> Result<Report, String> {
    let mut report = Report::default();
    let project = stand.dir.join("startup.yml");
    fs::write(&project, PROJECT).map_err(|e| format!("cannot write {}: {e}", project.display()))?;
    let project = project.to_string_lossy().into_owned();
    // Makes the image, and the machine that `exec` goes to.
    checked(
        &mut stand
            .ilot(&["run", "-d", "--name", MACHINE, "--net", "none", "-m", "512MiB", "busybox", "sleep", "86400"]),
    )?;
    let result = measure(stand, &project, &mut report);
    checked(&mut stand.ilot(&["rm", "--force", MACHINE]))?;
    checked(&mut stand.ilot(&["destroy", "-f", &project, "--yes", "--force"]))?;
    result.map(|()| report)
}

fn measure(stand: &Stand, project: &str, report: &mut Report) -> Result<(), String> {
    let filter = docker_filter();
    report.notes.push(match &filter {
        Some(_) => format!("crun and runc run with Docker's filter ({PROFILE})"),
        None => format!("crun and runc run without a filter: {PROFILE} is not there"),
    });
    checked(&mut stand.ilot(&["apply", "-f", project, "--yes"]))?;
    let mut starts = vec![
        Contender::new("ilot run, no network", &stand.ilot(&run_args("none")), false)?,
        Contender::new("ilot run, network of a domain", &stand.ilot(&run_args("bench")), false)?,
    ];
    let mut execs = vec![Contender::new("ilot exec", &stand.ilot(&["exec", MACHINE, "--", "true"]), false)?];
    let rootfs = busybox_rootfs(&stand.dir)?;
    let mut running = Vec::new();
    for peer in ["crun", "runc"] {
        match runtime_peer(stand, peer, &rootfs, filter.as_ref()) {
            Ok((start, exec, detached)) => {
                report.notes.push(said(peer, &["--version"]));
                starts.push(start);
                execs.push(exec);
                running.push(detached);
            }
            Err(why) => report.notes.push(format!("{peer} skipped: {why}")),
        }
    }
    match podman(&rootfs) {
        Ok(peers) => starts.extend(peers),
        Err(why) => report.notes.push(format!("podman skipped: {why}")),
    }
    report.notes.push(
        "crun and runc run without a user namespace and without a network, ilot always with the first".to_owned(),
    );
    let result = (|| {
        let base = Some("crun run");
        report.tables.push(race("start to end of `true`, back to back", base, &mut starts, rounds(50), None)?);
        report.tables.push(race("the same after 100 ms of idleness", base, &mut starts, rounds(20), Some(IDLE))?);
        report.tables.push(race("exec of `true`", Some("crun exec"), &mut execs, rounds(50), None)?);
        Ok(())
    })();
    drop(running);
    result
}

fn run_args(net: &str) -> [&str; 8] {
    ["run", "--rm", "--net", net, "-m", "512MiB", "busybox", "true"]
}

/// One sample of each in turn.
fn race(
    title: &str,
    base: Option<&str>,
    contenders: &mut [Contender],
    rounds: usize,
    pause: Option<Duration>,
) -> Result<Table, String> {
    let mut series: Vec<Series> = contenders.iter().map(|c| Series::new(&c.name)).collect();
    for _ in 0..rounds {
        for (contender, series) in contenders.iter_mut().zip(&mut series) {
            if let Some(pause) = pause {
                sleep(pause);
            }
            series.samples.push(contender.sample()?);
        }
    }
    Ok(Table { title: title.to_owned(), base: base.map(str::to_owned), series })
}

/// A container of a peer that runs while `exec` is measured.
struct Detached {
    delete: Command,
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let Err(e) = checked(&mut self.delete) {
            eprintln!("{e}");
        }
    }
}

fn runtime_peer(
    stand: &Stand,
    name: &str,
    rootfs: &Path,
    filter: Option<&Value>,
) -> Result<(Contender, Contender, Detached), String> {
    let runtime = installed(name).ok_or("not installed")?;
    let state = stand.dir.join(format!("{name}-state"));
    let command = |bundle_name: &str, line: &[&str], args: &[&str]| -> Result<Command, String> {
        let dir = stand.dir.join(format!("{name}-{bundle_name}"));
        bundle(&runtime, &dir, rootfs, args, filter)?;
        let mut command = Command::new(&runtime);
        command.arg("--root").arg(&state).arg(line[0]).arg("--bundle").arg(&dir).args(&line[1..]);
        Ok(command)
    };
    let id = |kind: &str| format!("ilot-bench-{name}-{kind}-{}", std::process::id());
    let start = command("start", &["run", &id("start")], &["/bin/true"])?;
    let start = Contender::new(&format!("{name} run"), &start, true)?;
    let detached = id("exec");
    let run = command("exec", &["run", "--detach", &detached], &["/bin/sleep", "86400"])?;
    once(&run)?;
    let mut delete = Command::new(&runtime);
    delete.arg("--root").arg(&state).args(["delete", "--force", &detached]);
    let detached_guard = Detached { delete };
    let mut exec = Command::new(&runtime);
    exec.arg("--root").arg(&state).args(["exec", &detached, "/bin/true"]);
    Ok((start, Contender::new(&format!("{name} exec"), &exec, true)?, detached_guard))
}

/// podman on the same root file system; its own image store is not touched.
fn podman(rootfs: &Path) -> Result<Vec<Contender>, String> {
    let podman = installed("podman").ok_or("not installed")?;
    let mut contenders = Vec::new();
    for (name, net) in [("podman run, no network", "none"), ("podman run, network", "bridge")] {
        let mut command = Command::new(&podman);
        command.args(["run", "--rm", "--network", net, "--memory", "512m"]);
        // Its own defaults are above what a host without CAP_SYS_RESOURCE may set.
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        command.arg("--rootfs").arg(rootfs).arg("/bin/true");
        contenders.push(Contender::new(name, &command, true)?);
    }
    Ok(contenders)
}
