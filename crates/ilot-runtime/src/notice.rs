//! What a command says beside its result: warnings (runtime-spec, `runtime.md`, "Warnings"), and with `--debug` its
//! steps. Both go to standard error and, where `--log` names one, to the caller's log.

use crate::keeper::log::format_time;
use crate::sys;
use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

/// Where notices go. Opened before anything is done: later the same path may be a container's.
#[derive(Debug, Default)]
pub struct Log {
    /// The caller's log.
    pub file: Option<File>,
    /// One JSON object per line, else `key="value"` pairs.
    pub json: bool,
    /// What is told.
    pub level: Level,
}

/// How much is told; each level with those before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Why a command has failed.
    Error,
    /// What its user should know.
    #[default]
    Warning,
    /// Every step.
    Debug,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Decides where the notices of this process go; the first call counts.
pub fn begin(log: Log) {
    let _ = LOG.set(log);
}

/// Tells something that does not stop the command but that its user should know.
pub fn warn(message: impl Display) {
    if LOG.get().is_none_or(|log| log.level >= Level::Warning) {
        tell("warning", &format!("warning: {message}"), &message.to_string());
    }
}

/// Tells a step, if somebody wants to know.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.level >= Level::Debug) {
        let message = message();
        tell("debug", &message, &message);
    }
}

/// Tells why a command has failed.
pub fn error(message: &str) {
    tell("error", message, message);
}

fn tell(level: &str, shown: &str, message: &str) {
    let log = LOG.get();
    eprintln!("{}{shown}", if log.is_some() { "ilot-oci: " } else { "" });
    let Some((mut file, log)) = log.and_then(|log| Some((log.file.as_ref()?, log))) else { return };
    let mut stamp = [0; 30];
    format_time(sys::now(), &mut stamp);
    let _ = file.write_all(line(level, message, &String::from_utf8_lossy(&stamp), log.json).as_bytes());
}

/// One line as runc and crun write it, which engines parse; in one write, since others may append to the same file.
fn line(level: &str, message: &str, time: &str, json: bool) -> String {
    if json {
        return serde_json::json!({ "level": level, "msg": message, "time": time }).to_string() + "\n";
    }
    format!("time=\"{time}\" level={level} msg={message:?}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("error", "a \"b\"", "now", false), "time=\"now\" level=error msg=\"a \\\"b\\\"\"\n");
        let json: serde_json::Value = serde_json::from_str(&line("warning", "a\nb", "now", true)).unwrap();
        assert_eq!((json["level"].as_str(), json["msg"].as_str()), (Some("warning"), Some("a\nb")));
    }
}
