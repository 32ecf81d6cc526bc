//! Logins of registries, as `podman login` and `docker login` keep them (containers-auth.json(5)).

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::http::Logins;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    /// A program for each registry.
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    /// A program for all of them.
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<String>,
}

/// What a helper answers (docker-credential-helpers).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The `Authorization` for a registry's repository, where somebody logged in.
pub(super) fn credentials(given: &Logins, host: &str, repository: &str, is_mirror: bool) -> Option<String> {
    if let Some(login) = given.given.as_ref().filter(|_| !is_mirror) {
        return Some(format!("Basic {}", base64(login.as_bytes())));
    }
    for file in given.file.clone().map_or_else(files, |file| vec![file]) {
        let Ok(bytes) = fs::read(&file) else { continue };
        let parsed: AuthFile = match serde_json::from_slice(&bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "not an auth file");
                continue;
            }
        };
        if let Some(login) = in_file(parsed, host, repository) {
            return Some(login);
        }
    }
    None
}

fn files() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    // A file that is named is the only one that is read.
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = |path: &str| var("HOME").map(|h| h.join(path));
    let all = [
        var("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json")),
        var("XDG_CONFIG_HOME").or_else(|| home(".config")).map(|d| d.join("containers/auth.json")),
        var("DOCKER_CONFIG").or_else(|| home(".docker")).map(|d| d.join("config.json")),
    ];
    all.into_iter().flatten().collect()
}

fn in_file(file: AuthFile, host: &str, repository: &str) -> Option<String> {
    let full = format!("{host}/{repository}");
    if let Some(helper) = file.cred_helpers.get(host)
        && let Some(login) = ask(helper, host)
    {
        return Some(login);
    }
    let fits = |key: &str| {
        let key = key.trim_start_matches("https://").trim_end_matches('/');
        let key = if key == "index.docker.io/v1" { "docker.io" } else { key };
        (full == key || full.starts_with(&format!("{key}/"))).then_some(key.len())
    };
    let best = file.auths.into_iter().filter_map(|(key, auth)| Some((fits(&key)?, auth.auth?)));
    match best.max_by_key(|b| b.0).filter(|(_, auth)| !auth.is_empty()) {
        Some((_, auth)) => Some(format!("Basic {auth}")),
        None => ask(&file.creds_store?, host),
    }
}

/// Asks `docker-credential-NAME`; one that fails has none.
fn ask(helper: &str, host: &str) -> Option<String> {
    // A word, not a path: the helper is one of those that are installed.
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_word) {
        tracing::warn!(helper, "not a credential helper's name");
        return None;
    }
    // Docker Hub's login has an older name.
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|error| tracing::warn!(helper, %error, "a credential helper cannot be asked"))
        .ok()?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read is seen by its answer.
        let _ = writeln!(input, "{server}");
    }
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    let answer: Answer = serde_json::from_slice(&output.stdout).ok()?;
    Some(format!("Basic {}", base64(format!("{}:{}", answer.username, answer.secret).as_bytes())))
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let mut held = 0u32;
        for i in 0..3 {
            held = held << 8 | u32::from(group.get(i).copied().unwrap_or(0));
        }
        for i in 0..4 {
            let letter = LETTERS[(held >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64() {
        for (plain, encoded) in [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj"), ("u:p", "dTpw")] {
            assert_eq!(super::base64(plain.as_bytes()), encoded);
        }
    }
}
