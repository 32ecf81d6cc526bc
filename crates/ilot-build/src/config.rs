//! An image's configuration while it is built: what the instructions that make no layer change.

use serde_json::{Map, Value, json};

use crate::parse::{Command, Health};
use crate::platform::Platform;

/// The search path where an image says none.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What an image starts with, as its configuration has it (image-spec, and Docker's keys beside it).
#[derive(Debug, Clone)]
pub(crate) struct Config {
    whole: Value,
    /// Whether CMD was said in this stage: ENTRYPOINT forgets one that came with the base.
    has_own_cmd: bool,
}

impl Config {
    /// Of an image that is nothing.
    pub(crate) fn scratch(platform: &Platform) -> Self {
        let mut whole = json!({ "architecture": platform.architecture, "os": platform.os });
        if let Some(variant) = &platform.variant {
            whole["variant"] = json!(variant);
        }
        whole["config"] = json!({ "Env": [format!("PATH={PATH}")] });
        Self { whole, has_own_cmd: false }
    }

    /// Of another image. What only says how that one was made stays out.
    pub(crate) fn of(base: &Value) -> Self {
        let mut whole = Map::new();
        for key in
            ["created", "author", "architecture", "variant", "os", "os.version", "os.features", "config", "history"]
        {
            if let Some(value) = base.get(key).filter(|value| !value.is_null()) {
                whole.insert(key.to_owned(), value.clone());
            }
        }
        let mut config = Map::new();
        if let Some(base) = base.get("config").and_then(Value::as_object) {
            // The host name and the like of the container that Docker made it in.
            let dropped = ["Hostname", "Domainname", "Image", "AttachStdin", "AttachStdout", "AttachStderr", "Tty"];
            let kept = base.iter().filter(|(key, value)| !dropped.contains(&key.as_str()) && !value.is_null());
            config.extend(kept.map(|(key, value)| (key.clone(), value.clone())));
        }
        whole.insert("config".to_owned(), Value::Object(config));
        Self { whole: Value::Object(whole), has_own_cmd: false }
    }

    /// A stage's own, for one that begins with it.
    pub(crate) fn inherited(&self) -> Self {
        Self { whole: self.whole.clone(), has_own_cmd: false }
    }

    pub(crate) fn whole(&self) -> &Value {
        &self.whole
    }

    pub(crate) fn architecture(&self) -> &str {
        self.whole["architecture"].as_str().unwrap_or_default()
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.whole["config"].get(key)
    }

    fn set(&mut self, key: &str, value: Value) {
        self.whole["config"][key] = value;
    }

    fn map(&mut self, key: &str) -> Option<&mut Map<String, Value>> {
        let slot = &mut self.whole["config"][key];
        if !slot.is_object() {
            *slot = json!({});
        }
        slot.as_object_mut()
    }

    fn list(&self, key: &str) -> Vec<String> {
        let list = self.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    }

    pub(crate) fn env(&self) -> Vec<String> {
        self.list("Env")
    }

    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let found = |line: String| line.split_once('=').filter(|(key, _)| *key == name).map(|(_, v)| v.to_owned());
        self.env().into_iter().find_map(found)
    }

    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let mut env = self.env();
        let line = format!("{name}={value}");
        match env.iter_mut().find(|line| line.split_once('=').is_some_and(|(key, _)| key == name)) {
            Some(old) => *old = line,
            None => env.push(line),
        }
        self.set("Env", json!(env));
    }

    pub(crate) fn workdir(&self) -> String {
        self.get("WorkingDir").and_then(Value::as_str).filter(|dir| !dir.is_empty()).unwrap_or("/").to_owned()
    }

    pub(crate) fn set_workdir(&mut self, path: &str) {
        self.set("WorkingDir", json!(path));
    }

    pub(crate) fn user(&self) -> String {
        self.get("User").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    pub(crate) fn set_user(&mut self, user: &str) {
        self.set("User", json!(user));
    }

    pub(crate) fn shell(&self) -> Vec<String> {
        let shell = self.list("Shell");
        if shell.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { shell }
    }

    pub(crate) fn set_shell(&mut self, shell: &[String]) {
        self.set("Shell", json!(shell));
    }

    /// The words that a command is.
    pub(crate) fn words(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(text) => self.shell().into_iter().chain([text.clone()]).collect(),
        }
    }

    pub(crate) fn set_cmd(&mut self, command: &Command) {
        let words = self.words(command);
        self.set("Cmd", json!(words));
        self.has_own_cmd = true;
    }

    pub(crate) fn set_entrypoint(&mut self, command: &Command) {
        let words = self.words(command);
        let empty = words.is_empty();
        self.set("Entrypoint", if empty { Value::Null } else { json!(words) });
        if !self.has_own_cmd
            && let Some(config) = self.whole["config"].as_object_mut()
        {
            config.shift_remove("Cmd");
        }
    }

    pub(crate) fn set_label(&mut self, name: &str, value: &str) {
        if let Some(labels) = self.map("Labels") {
            labels.insert(name.to_owned(), json!(value));
        }
    }

    /// `80`, `80/udp`, `8000-8010/tcp`; an error where it is none.
    pub(crate) fn expose(&mut self, port: &str) -> Result<(), String> {
        let wrong = || format!("`{port}` is no port; write it like `80`, `53/udp` or `8000-8010/tcp`");
        let (numbers, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let protocol = protocol.to_ascii_lowercase();
        if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
            return Err(wrong());
        }
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        if let Some(ports) = self.map("ExposedPorts") {
            for number in first..=last {
                ports.insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        Ok(())
    }

    pub(crate) fn add_volume(&mut self, path: &str) {
        if let Some(volumes) = self.map("Volumes") {
            volumes.insert(path.to_owned(), json!({}));
        }
    }

    pub(crate) fn set_stop_signal(&mut self, signal: &str) {
        self.set("StopSignal", json!(signal));
    }

    pub(crate) fn set_author(&mut self, author: &str) {
        self.whole["author"] = json!(author);
    }

    pub(crate) fn set_health(&mut self, health: &Health) {
        let mut value = json!({ "Test": match &health.command {
            None => vec!["NONE".to_owned()],
            Some(Command::Shell(text)) => vec!["CMD-SHELL".to_owned(), text.clone()],
            Some(Command::Exec(words)) => ["CMD".to_owned()].into_iter().chain(words.iter().cloned()).collect(),
        }});
        for (key, nanoseconds) in &health.times {
            value[*key] = json!(nanoseconds);
        }
        if let Some(retries) = health.retries {
            value["Retries"] = json!(retries);
        }
        self.set("Healthcheck", value);
    }

    pub(crate) fn add_trigger(&mut self, text: &str) {
        let mut triggers = self.list("OnBuild");
        triggers.push(text.to_owned());
        self.set("OnBuild", json!(triggers));
    }

    /// What the base wants done now; it is not handed on.
    pub(crate) fn take_triggers(&mut self) -> Vec<String> {
        let triggers = self.list("OnBuild");
        if let Some(config) = self.whole["config"].as_object_mut() {
            config.shift_remove("OnBuild");
        }
        triggers
    }

    /// Adds what was done, and whether a layer came of it.
    pub(crate) fn add_history(&mut self, text: &str, created: Option<jiff::Timestamp>, empty: bool) {
        let mut step = json!({});
        if let Some(created) = created {
            step["created"] = json!(created);
        }
        step["created_by"] = json!(text);
        if empty {
            step["empty_layer"] = json!(true);
        }
        let history = &mut self.whole["history"];
        if !history.is_array() {
            *history = json!([]);
        }
        if let Some(history) = history.as_array_mut() {
            history.push(step);
        }
    }

    /// One step for each layer of a base that tells less: or what comes now would be taken for an earlier layer's.
    pub(crate) fn complete_history(&mut self, layers: usize) {
        let history = self.whole["history"].as_array().cloned().unwrap_or_default();
        let told = history.iter().filter(|step| step["empty_layer"] != true).count();
        let missing = vec![json!({}); layers.saturating_sub(told)];
        self.whole["history"] = json!(history.into_iter().chain(missing).collect::<Vec<_>>());
    }

    /// `created` first, as other builders have it.
    pub(crate) fn set_created(&mut self, created: Option<jiff::Timestamp>) {
        let mut whole = Map::new();
        if let Some(created) = created {
            whole.insert("created".to_owned(), json!(created));
        }
        if let Some(old) = self.whole.as_object() {
            whole.extend(old.iter().filter(|(key, _)| *key != "created").map(|(k, v)| (k.clone(), v.clone())));
        }
        self.whole = Value::Object(whole);
    }

    pub(crate) fn created(&self) -> Option<jiff::Timestamp> {
        self.whole["created"].as_str()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrypoint_forgets_the_bases_command() {
        let base = json!({ "architecture": "amd64", "config": { "Cmd": ["sh"], "Hostname": "x", "Env": ["A=1"] } });
        let mut config = Config::of(&base);
        config.set_entrypoint(&Command::Exec(vec!["e".into()]));
        assert!(config.get("Cmd").is_none() && config.get("Hostname").is_none());
        config.set_cmd(&Command::Shell("x y".into()));
        config.set_entrypoint(&Command::Exec(vec!["f".into()]));
        assert_eq!(config.list("Cmd"), ["/bin/sh", "-c", "x y"]);
        config.set_variable("A", "2");
        config.set_variable("B", "x=y");
        assert_eq!((config.env(), config.variable("B")), (vec!["A=2".into(), "B=x=y".into()], Some("x=y".into())));
    }

    #[test]
    fn ports() {
        let mut config = Config::of(&json!({}));
        config.expose("80").unwrap();
        config.expose("8000-8002/UDP").unwrap();
        for wrong in ["x", "80/x", "9-8", "70000", ""] {
            assert!(config.expose(wrong).is_err(), "{wrong}");
        }
        let ports = config.get("ExposedPorts").unwrap().as_object().unwrap();
        assert_eq!(ports.keys().collect::<Vec<_>>(), ["80/tcp", "8000/udp", "8001/udp", "8002/udp"]);
    }
}
