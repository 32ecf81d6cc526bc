//! Hooks (`config.md`, "POSIX-platform Hooks"): programs that get the container's state on their
//! standard input.

use crate::spec::Hook;
use crate::{Error, Result, notice, sys};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The state as the specification shows it (`runtime.md`, "State").
pub fn state_json(
    id: &str,
    status: &str,
    pid: Option<i32>,
    bundle: &Path,
    annotations: &BTreeMap<String, String>,
) -> Value {
    let mut state = json!({
        "ociVersion": crate::spec::SPEC_VERSION,
        "id": id,
        "status": status,
        "bundle": bundle,
    });
    if let Some(pid) = pid {
        state["pid"] = pid.into();
    }
    if !annotations.is_empty() {
        state["annotations"] = json!(annotations);
    }
    state
}

/// Runs hooks in order; the first that fails ends it.
pub fn run(kind: &'static str, hooks: &[Hook], state: &Value) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = state.to_string();
    hooks.iter().try_for_each(|hook| run_one(kind, hook, &text))
}

fn run_one(kind: &'static str, hook: &Hook, state: &str) -> Result<()> {
    let fail = |e: std::io::Error| Error::system("run hook", format!("`{}` ({kind})", hook.path.display()), e);
    if !hook.path.is_absolute() {
        return Err(Error::invalid(format!("hook `{}` ({kind})", hook.path.display()), "its path must be absolute"));
    }
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    command.envs(hook.env.iter().filter_map(|e| e.split_once('=')));
    notice::debug(|| format!("hook `{}` ({kind})", hook.path.display()));
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(fail)?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its state is none the worse.
        let _ = input.write_all(state.as_bytes());
    }
    if let Some(seconds) = hook.timeout {
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| fail(e.into()))?;
        let limit = i32::try_from(seconds.saturating_mul(1000)).unwrap_or(i32::MAX);
        if !sys::poll_readable(handle.as_fd(), limit).map_err(fail)? {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Error::invalid(
                format!("hook `{}` ({kind})", hook.path.display()),
                format!("it took longer than {seconds} s and was killed"),
            ));
        }
    }
    let status = child.wait().map_err(fail)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::invalid(format!("hook `{}` ({kind})", hook.path.display()), status.to_string()))
}
