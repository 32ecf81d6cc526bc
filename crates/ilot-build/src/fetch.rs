//! What a build takes from elsewhere: files over HTTP and repositories of git.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ilot_image::{Progress, Workshop};

use crate::error::{Error, Result};

/// A file that was downloaded.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) path: PathBuf,
    /// The last part of the address.
    pub(crate) name: String,
    /// `Last-Modified`, in seconds since 1970; 0 where the server does not say.
    pub(crate) modified: i64,
    pub(crate) sha256: String,
}

/// Whether a source of ADD is an address.
pub(crate) fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// A repository: its address, what to check out, and which folder of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    pub(crate) url: String,
    pub(crate) reference: Option<String>,
    pub(crate) folder: String,
}

/// Whether a source of ADD, or a context, is a repository: `git@host:x`, `git://`, `ssh://`, `https://….git`.
pub(crate) fn repository(text: &str) -> Option<Repository> {
    let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
    let is_git = url.starts_with("git@")
        || url.starts_with("git://")
        || url.starts_with("ssh://")
        || (is_url(url) && url.ends_with(".git"));
    if !is_git {
        return None;
    }
    let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
    let reference = (!reference.is_empty()).then(|| reference.to_owned());
    Some(Repository { url: url.to_owned(), reference, folder: folder.to_owned() })
}

/// Downloads a file into a folder.
pub(crate) fn download(workshop: &Workshop, url: &str, folder: &Path, progress: &dyn Progress) -> Result<Download> {
    let path = folder.join("download");
    let got = workshop.download(url, &path, progress).map_err(|error| match error {
        ilot_image::Error::Cancelled { .. } => Error::Cancelled,
        error @ ilot_image::Error::Http { .. } => {
            Error::invalid(error.to_string(), "check the address and the network")
        }
        other => other.into(),
    })?;
    let modified = got.modified.as_deref().and_then(http_date).unwrap_or(0);
    Ok(Download { path, name: file_name(url), modified, sha256: got.digest.hex().to_owned() })
}

/// The last part of an address' path, `%20` and the like decoded.
pub(crate) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let name = path.split_once('/').and_then(|(_, path)| path.rsplit('/').next()).unwrap_or_default();
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'%').then(|| std::str::from_utf8(after.get(..2)?).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    let name = String::from_utf8_lossy(&bytes).into_owned();
    // What was `%2F` or `..` is no name.
    if name.contains(['/', '\0']) || matches!(name.as_str(), "." | "..") { String::new() } else { name }
}

/// `Wed, 21 Oct 2015 07:28:00 GMT` (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<i64> {
    let text = text.replace("GMT", "+0000");
    jiff::fmt::rfc2822::parse(&text).ok().map(|zoned| zoned.timestamp().as_second())
}

/// Checks a repository out into an empty folder, without its submodules.
pub(crate) fn check_out(
    repository: &Repository,
    folder: &Path,
    keep: bool,
    cancelled: &dyn Fn() -> bool,
) -> Result<()> {
    let reference = repository.reference.as_deref().unwrap_or("HEAD");
    for text in [repository.url.as_str(), reference] {
        if text.starts_with('-') || text.contains(['\n', '\0']) {
            return Err(Error::invalid(
                format!("`{text}` is no repository or reference"),
                "write `URL#REFERENCE:FOLDER`",
            ));
        }
    }
    git(folder, &["init", "-q"], cancelled)?;
    let shallow = ["fetch", "-q", "--depth", "1", "--no-tags", "--", &repository.url, reference];
    let head = ["fetch", "-q", "--", &repository.url, reference];
    let mut wanted = "FETCH_HEAD";
    // Plain file servers give no part of a repository, and few give every commit by its number.
    if git(folder, &shallow, cancelled).is_err() && git(folder, &head, cancelled).is_err() {
        let (heads, tags) = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*");
        git(folder, &["fetch", "-q", "--", &repository.url, heads, tags], cancelled)?;
        wanted = reference;
    }
    git(folder, &["checkout", "-q", "--detach", wanted, "--"], cancelled)?;
    if !keep {
        let own = folder.join(".git");
        fs::remove_dir_all(&own).map_err(|e| Error::file("remove", &own, e))?;
    }
    Ok(())
}

/// Runs the host's git, which asks nobody, runs no hook and speaks no protocol that reads the host's files.
fn git(folder: &Path, args: &[&str], cancelled: &dyn Fn() -> bool) -> Result<()> {
    let mut child = Command::new("git")
        .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "advice.detachedHead=false"])
        .args(args)
        .current_dir(folder)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ALLOW_PROTOCOL", "http:https:git:ssh")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::invalid("`git` is not installed, and a repository is wanted", "install it: `apt install git`")
            }
            _ => Error::file("run", Path::new("git"), e),
        })?;
    let stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(64 << 10).read_to_string(&mut text);
        }
        text
    });
    let status = loop {
        match child.try_wait().map_err(|e| Error::file("wait for", Path::new("git"), e))? {
            Some(status) => break status,
            None if cancelled() => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Cancelled);
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = reader.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let reason = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned();
    Err(Error::invalid(format!("git {}: {reason}", args.first().unwrap_or(&"")), "check the address and the reference"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(file_name("https://x.org/a/b%20c.tar?x=/y#z"), "b c.tar");
        assert_eq!(file_name("https://x.org/"), "");
        assert_eq!(file_name("https://x.org"), "");
        assert_eq!(file_name("https://x.org/%2e%2e"), "");
        assert_eq!(file_name("https://x.org/a%2Fb"), "");
        let repo = repository("https://x.org/y.git#main:docs").unwrap();
        assert_eq!((repo.reference.as_deref(), repo.folder.as_str()), (Some("main"), "docs"));
        assert!(repository("git@x.org:y/z").is_some());
        assert!(repository("https://x.org/y.tar").is_none());
        assert!(repository("file:///y.git").is_none());
        assert_eq!(http_date("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
    }
}
