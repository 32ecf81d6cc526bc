//! Whom the start is compared with, and the process that takes the samples.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::checked;

/// A contender: a command line that a process of its own runs and times, one sample for each line that it reads.
pub struct Contender {
    pub name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Contender {
    /// Runs `command` once to see that it works. With `v1_only` it does not see the unified hierarchy of a hybrid host,
    /// which crun and runc do not understand.
    pub fn new(name: &str, command: &Command, v1_only: bool) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let mut worker = Command::new("unshare");
        worker.args(["--mount", "--propagation", "private", "--"]).arg(program).arg("bench-worker");
        worker.arg(if v1_only { "v1" } else { "all" }).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                worker.env(key, value);
            }
        }
        let mut child = worker
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start the timing process: {e}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the timing process has no pipes".to_owned());
        };
        let mut contender = Self { name: name.to_owned(), child, stdin, stdout: BufReader::new(stdout) };
        contender.sample()?;
        Ok(contender)
    }

    /// One run of the whole command.
    pub fn sample(&mut self) -> Result<Duration, String> {
        let fail = |e: std::io::Error| format!("{}: the timing process is gone: {e}", self.name);
        self.stdin.write_all(b"\n").map_err(fail)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).map_err(fail)?;
        line.trim().parse().map(Duration::from_nanos).map_err(|_| format!("{}: {}", self.name, line.trim()))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a peer's command that leaves a container behind, in the view of the host that crun and runc understand. The
/// container keeps what it is given open, so it is given nothing.
pub fn once(command: &Command) -> Result<(), String> {
    let script = "! [ -e /sys/fs/cgroup/unified/cgroup.procs ] || umount /sys/fs/cgroup/unified; exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| format!("cannot run unshare: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

/// `bench-worker v1|all PROGRAM ARGS…`: the process behind a [`Contender`].
pub fn worker(args: &[&str]) -> Result<(), String> {
    let [view, program, args @ ..] = args else { return Err("bench-worker: no command".to_owned()) };
    if *view == "v1" && Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        checked(Command::new("umount").arg("/sys/fs/cgroup/unified"))?;
    }
    for line in std::io::stdin().lines() {
        line.map_err(|e| format!("bench-worker: {e}"))?;
        println!("{}", sample(program, args));
    }
    Ok(())
}

/// Nanoseconds, or one line that says what went wrong.
fn sample(program: &str, args: &[&str]) -> String {
    let start = Instant::now();
    let spawned =
        Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let output = spawned.and_then(Child::wait_with_output);
    let took = start.elapsed();
    match output {
        Ok(output) if output.status.success() => took.as_nanos().to_string(),
        Ok(output) => {
            format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
        }
        Err(e) => format!("cannot run {program}: {e}"),
    }
}

/// The full path of a program; `None` when it is not installed.
pub fn installed(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// A root file system of the host's static busybox.
pub fn busybox_rootfs(dir: &Path) -> Result<PathBuf, String> {
    let rootfs = dir.join("rootfs");
    let bin = rootfs.join("bin");
    let busybox = installed("busybox").ok_or("busybox is not installed (package busybox-static)")?;
    for part in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
        let part = rootfs.join(part);
        fs::create_dir_all(&part).map_err(|e| format!("cannot make {}: {e}", part.display()))?;
    }
    fs::copy(&busybox, bin.join("busybox")).map_err(|e| format!("cannot copy busybox: {e}"))?;
    for link in ["true", "sleep"] {
        let link = bin.join(link);
        std::os::unix::fs::symlink("busybox", &link).map_err(|e| format!("cannot link {}: {e}", link.display()))?;
    }
    Ok(rootfs)
}

/// Where the distribution keeps Docker's default profile (package golang-github-containers-common).
pub const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// Docker's default filter as the runtime-spec has it, for a container without extra capabilities.
pub fn docker_filter() -> Option<Value> {
    let profile: Value = serde_json::from_str(&fs::read_to_string(PROFILE).ok()?).ok()?;
    let rules: Vec<Value> = profile["syscalls"].as_array()?.iter().filter_map(plain_rule).collect();
    Some(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }))
}

/// A rule of the profile that holds here, without the conditions that only the profile knows.
fn plain_rule(rule: &Value) -> Option<Value> {
    let (includes, arches) = (&rule["includes"], &rule["includes"]["arches"]);
    let here = arches.as_array().is_none_or(|list| list.iter().any(|arch| arch == "amd64"));
    if !includes["caps"].is_null() || !here {
        return None;
    }
    let mut plain = json!({"names": rule["names"], "action": rule["action"]});
    for key in ["args", "errnoRet"] {
        if !rule[key].is_null() {
            plain[key] = rule[key].clone();
        }
    }
    Some(plain)
}

/// A bundle of the runtime's own default specification on that root file system, with a filter and a memory limit.
pub fn bundle(runtime: &Path, dir: &Path, rootfs: &Path, args: &[&str], filter: Option<&Value>) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    let path = dir.join("config.json");
    // An older one is not overwritten by `spec`.
    let _ = fs::remove_file(&path);
    checked(Command::new(runtime).arg("spec").current_dir(dir))?;
    let fail = |e: String| format!("{}: {e}", path.display());
    let text = fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
    let mut spec: Value = serde_json::from_str(&text).map_err(|e| fail(e.to_string()))?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(args);
    spec["root"] = json!({"path": rootfs, "readonly": true});
    spec["linux"]["resources"]["memory"] = json!({"limit": 512 << 20});
    if let Some(filter) = filter {
        spec["linux"]["seccomp"] = filter.clone();
    }
    fs::write(&path, spec.to_string()).map_err(|e| fail(e.to_string()))
}
