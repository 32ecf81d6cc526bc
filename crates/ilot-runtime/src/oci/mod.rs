//! `ilot-oci`: the runtime for those who know one by the OCI command line (Podman, containerd,
//! Docker, CRI-O). No keeper: whoever calls it watches the container.

mod args;
mod change;
pub(crate) mod check;
mod checkpoint;
mod create;
mod exec;
mod restore;
mod show;

use crate::notice::{self, Level, Log};
use crate::record::{self, Record, Request};
use crate::{Error, Result, State, control};
use args::{Parsed, switch, value};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Options before the command.
struct Global {
    root: PathBuf,
    /// CRIU's program, if it is not the one in `PATH`.
    criu: Option<String>,
    /// Whether systemd makes the cgroups.
    systemd: bool,
}

/// Entry point of the program; the result is its exit status.
pub fn main() -> i32 {
    let mut args: VecDeque<String> = std::env::args().skip(1).collect();
    let global = match global(&mut args) {
        Ok(Some(global)) => global,
        Ok(None) => return 0,
        Err(error) => {
            eprintln!("ilot-oci: {error}");
            return 1;
        }
    };
    match dispatch(&global, &mut args) {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            1
        }
    }
}

const USAGE: &str = "usage: ilot-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug]
                [--cgroup-manager cgroupfs|systemd] [--criu FILE] COMMAND …

containers  create, start, run, kill, delete, pause, resume, update, exec, checkpoint, restore
questions   state, list, ps, events, stats, features, spec

each command takes the options that runc and crun know";

/// Options before the command; `None` if all is said already.
fn global(args: &mut VecDeque<String>) -> Result<Option<Global>> {
    let flags = [
        value("root", None),
        value("log", None),
        value("log-format", None),
        value("log-level", None),
        value("cgroup-manager", None),
        value("rootless", None),
        value("criu", None),
        switch("systemd-cgroup", None),
        switch("debug", None),
        switch("version", Some('v')),
        switch("help", Some('h')),
    ];
    let parsed = Parsed::new(args, &flags, true)?;
    if parsed.has("version") {
        println!("ilot-oci version {}\nspec: {}", env!("CARGO_PKG_VERSION"), crate::spec::SPEC_VERSION);
        return Ok(None);
    }
    if parsed.has("help") || parsed.rest.is_empty() {
        println!("{USAGE}");
        return Ok(None);
    }
    begin_log(&parsed)?;
    let systemd = match parsed.get("cgroup-manager") {
        None => parsed.has("systemd-cgroup"),
        Some("systemd") => true,
        Some("cgroupfs") => false,
        Some(other) => {
            return Err(Error::invalid(
                "option `--cgroup-manager`",
                format!("`{other}` is neither systemd nor cgroupfs"),
            ));
        }
    };
    // Whether this is an ordinary user's is known without being told; the option is for callers that give it to every runtime.
    if let Some(other) = parsed.get("rootless").filter(|v| !matches!(*v, "true" | "false" | "auto" | "1" | "0")) {
        return Err(Error::invalid("option `--rootless`", format!("`{other}` is none of true, false, auto")));
    }
    let root = parsed.get("root").map_or_else(default_root, PathBuf::from);
    let root = std::path::absolute(&root).map_err(|e| Error::path("find", &root, e))?;
    *args = parsed.rest.clone();
    Ok(Some(Global { root, criu: parsed.get("criu").map(ToOwned::to_owned), systemd }))
}

fn default_root() -> PathBuf {
    // SAFETY: no arguments, no failure.
    let user = unsafe { libc::geteuid() };
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if user != 0 => Path::new(&dir).join("ilot-oci"),
        _ => PathBuf::from("/run/ilot-oci"),
    }
}

fn dispatch(global: &Global, args: &mut VecDeque<String>) -> Result<i32> {
    let command = args.pop_front().unwrap_or_default();
    match command.as_str() {
        "create" => create::create(global, args),
        "run" => create::run(global, args),
        "start" => create::start(global, args),
        "exec" => exec::exec(global, args),
        "kill" => change::kill(global, args),
        "delete" => change::delete(global, args),
        "pause" => change::pause(global, args),
        "resume" => change::resume(global, args),
        "update" => change::update(global, args),
        "state" => show::state(global, args),
        "list" => show::list(global, args),
        "ps" => show::ps(global, args),
        "events" => show::events(global, args, false),
        "stats" => show::events(global, args, true),
        "features" => show::features(global),
        "spec" => show::spec(args),
        "checkpoint" => checkpoint::checkpoint(global, args),
        "restore" => restore::restore(global, args),
        other => Err(Error::invalid(format!("command `{other}`"), "unknown; `ilot-oci --help` lists them")),
    }
}

/// Says what went wrong: on standard error, and to the caller's log in the form it wants.
fn report(error: &Error) {
    notice::error(&match error.help() {
        Some(help) => format!("{error}; {help}"),
        None => error.to_string(),
    });
}

/// Where warnings, steps and errors of this command go.
fn begin_log(parsed: &Parsed) -> Result<()> {
    let json = match parsed.get("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => {
            return Err(Error::invalid("option `--log-format`", format!("`{other}` is neither text nor json")));
        }
    };
    let level = match parsed.get("log-level") {
        _ if parsed.has("debug") => Level::Debug,
        None | Some("warning" | "warn" | "info") => Level::Warning,
        Some("error" | "fatal" | "panic") => Level::Error,
        Some("debug" | "trace") => Level::Debug,
        Some(other) => {
            return Err(Error::invalid("option `--log-level`", format!("`{other}` is none of error, warning, debug")));
        }
    };
    let open = |path: &str| {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.map_err(|e| Error::path("open log", Path::new(path), e))
    };
    let path = parsed.get("log").map(|log| log.strip_prefix("file:").unwrap_or(log)).filter(|log| !log.is_empty());
    if let Some(other) = path.filter(|log| log.starts_with("journald:") || log.starts_with("syslog:")) {
        return Err(Error::invalid(
            "option `--log`",
            format!("`{other}`: only files are written to, `file:PATH` or a path"),
        ));
    }
    notice::begin(Log { file: path.map(open).transpose()?, json, level });
    Ok(())
}

impl Global {
    /// The live files of a container.
    fn dir(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// State and record of a container that must be there.
    fn find(&self, id: &str) -> Result<(PathBuf, Record, State)> {
        let dir = self.dir(id);
        let missing = || Error::Missing(format!("`{}` (container `{id}` does not exist)", dir.display()));
        let record = record::read_record(&dir)?.ok_or_else(missing)?;
        let state = control::state(&dir)?.ok_or_else(missing)?;
        Ok((dir, record, state))
    }

    /// What a container was made from.
    fn config(&self, id: &str) -> Result<Request> {
        let path = self.dir(id).join(record::CONFIG);
        record::read_json(&path)?.ok_or_else(|| Error::Missing(format!("`{}`", path.display())))
    }
}
