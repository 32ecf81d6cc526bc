//! `cargo xtask test --cgroup2`: the tests of control groups, in a virtual machine whose only hierarchy is v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::bench::checked;
use crate::build::{self, STATIC_FLAGS, cargo, dist, host_triple, target_dir};
use crate::vm::{Boot, boot};
use crate::vm_image;

/// Tests of what a v2 hierarchy decides: package and test program.
const PLAIN: [(&str, &str); 10] = [
    ("ilot-runtime", "cgroup"),
    ("ilot-runtime", "limits"),
    ("ilot-runtime", "lifecycle"),
    ("ilot-runtime", "oci"),
    ("ilot-runtime", "oci_linux"),
    ("ilot-conformance", "cgroup2"),
    ("ilot-conformance", "devices"),
    ("ilot-conformance", "lifecycle"),
    ("ilot-conformance", "namespaces"),
    ("ilot-conformance", "resources"),
];

/// Tests of what only systemd as process 1 can show.
const SYSTEMD: [(&str, &str); 1] = [("ilot-runtime", "systemd")];

const SCRIPTS: [(&str, &str); 2] =
    [("plain.sh", include_str!("../guest/plain.sh")), ("tests.sh", include_str!("../guest/tests.sh"))];

/// What is asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Unoptimised programs.
    debug: bool,
    /// One of the two boots; both without.
    only: Option<&'static str>,
    /// Names of tests; all without.
    filter: Vec<String>,
}

impl Options {
    /// Reads the words after `test`.
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut cgroup2 = false;
        for word in words {
            match *word {
                "--cgroup2" => cgroup2 = true,
                "--debug" => options.debug = true,
                "--plain" => options.only = Some("plain"),
                "--systemd" => options.only = Some("systemd"),
                word if word.starts_with('-') => return Err(format!("option `{word}` of `test` is unknown")),
                // They go through a shell of the machine.
                word if !word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') => {
                    return Err(format!("`{word}` cannot be a part of a test's name"));
                }
                word => options.filter.push(word.to_owned()),
            }
        }
        if cgroup2 { Ok(options) } else { Err("`test` needs to be told where: `--cgroup2`".to_owned()) }
    }
}

/// Builds, boots, and tells the results.
pub fn run(options: &Options) -> Result<(), String> {
    let image = vm_image::image()?;
    build::static_programs(!options.debug)?;
    let dir = target_dir().join("vm");
    let payload = payload(&dir, &options.filter)?;
    let limit = std::env::var("ILOT_TEST_VM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(900);
    let mut tally = Tally::default();
    for (name, init) in [("plain", "/ilot/plain.sh"), ("systemd", "/usr/lib/systemd/systemd")] {
        // Another runtime has no tests with systemd.
        if options.only.is_some_and(|only| only != name) || (name == "systemd" && !runtime().is_empty()) {
            continue;
        }
        println!("booting a machine with cgroup v2, {name} (emulated, so patience)");
        let dir = dir.join(name);
        let limit = Duration::from_secs(limit);
        tally.read(&boot(&image, &Boot { name, init, payload: &payload, dir: &dir, limit })?)?;
    }
    tally.print();
    tally.verdict(options.filter.is_empty())
}

/// What the machine gets: programs, tests, scripts; as a tar archive.
fn payload(dir: &Path, filter: &[String]) -> Result<PathBuf, String> {
    let tree = dir.join("payload");
    let fail = |e: std::io::Error| format!("cannot write {}: {e}", tree.display());
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(fail)?;
    }
    for part in ["libexec", "plain", "systemd"] {
        fs::create_dir_all(tree.join(part)).map_err(fail)?;
    }
    for program in ["ilot-oci", "ilot-keeper"] {
        fs::copy(dist().join("libexec/ilot").join(program), tree.join("libexec").join(program)).map_err(fail)?;
    }
    // Tests of the library and of ilot's own words have nothing to say about another runtime.
    let wanted = PLAIN.into_iter().filter(|(package, _)| runtime().is_empty() || *package == "ilot-conformance");
    for (name, path) in tests(&wanted.chain(SYSTEMD).collect::<Vec<_>>())? {
        let kind = if name == "runtime-systemd" { "systemd" } else { "plain" };
        fs::copy(path, tree.join(kind).join(name)).map_err(fail)?;
    }
    for (name, text) in SCRIPTS {
        use std::os::unix::fs::PermissionsExt;
        fs::write(tree.join(name), text).map_err(fail)?;
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o755)).map_err(fail)?;
    }
    fs::write(tree.join("filter"), format!("{}\n", filter.join(" "))).map_err(fail)?;
    fs::write(tree.join("runtime"), format!("{}\n", runtime())).map_err(fail)?;
    let archive = dir.join("payload.tar");
    checked(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg("."))?;
    fs::remove_dir_all(&tree).map_err(fail)?;
    Ok(archive)
}

/// The runtime to try instead of ours, a name in the machine: `RUNTIME=crun`.
fn runtime() -> String {
    std::env::var("RUNTIME").unwrap_or_default()
}

/// Builds test programs that need nothing of the machine's libraries; each with its name there.
fn tests(wanted: &[(&str, &str)]) -> Result<Vec<(String, PathBuf)>, String> {
    let mut command = cargo("test");
    // Small: they are copied into the machine. A profile of its own leaves the others' builds alone.
    command.args(["--no-run", "--quiet", "--message-format=json", "--profile", "guest", "--target", &host_triple()?]);
    for (package, test) in wanted {
        command.args(["--package", package, "--test", test]);
    }
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} {STATIC_FLAGS}").trim());
    let text = checked(&mut command)?;
    let built: Vec<(String, String, PathBuf)> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|v| {
            let package = v["manifest_path"].as_str().and_then(|p| Path::new(p).parent()?.file_name()?.to_str())?;
            let path = v["executable"].as_str()?;
            Some((package.to_owned(), v["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
        })
        .collect();
    wanted
        .iter()
        .map(|(package, test)| {
            let found = built.iter().find(|(p, t, _)| p == package && t == test);
            let (.., path) = found.ok_or_else(|| format!("cargo has not built the test {test} of {package}"))?;
            Ok((format!("{}-{test}", package.trim_start_matches("ilot-")), path.clone()))
        })
        .collect()
}

/// Results of all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    /// Program and test, and what it said.
    failed: Vec<(String, String)>,
    skipped: Vec<String>,
    /// Programs that ended in another way than by a result.
    broken: Vec<(String, String)>,
}

impl Tally {
    fn read(&mut self, results: &Path) -> Result<(), String> {
        let entries = fs::read_dir(results).map_err(|e| format!("cannot read {}: {e}", results.display()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "out")) {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = fs::read(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            let status = fs::read_to_string(file.with_extension("status")).unwrap_or_default();
            self.add(&name, &String::from_utf8_lossy(&bytes), status.trim());
        }
        let skips = fs::read_to_string(results.join("skips")).unwrap_or_default();
        self.skipped.extend(skips.lines().map(str::to_owned));
        Ok(())
    }

    /// What one program printed, in the form of Rust's test harness.
    fn add(&mut self, program: &str, text: &str, status: &str) {
        let mut ended = false;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("test ")
                && let Some((test, verdict)) = rest.rsplit_once(" ... ")
            {
                match verdict {
                    "ok" => self.passed += 1,
                    "FAILED" => self.failed.push((format!("{program}::{test}"), said(text, test))),
                    _ => {}
                }
            }
            ended |= line.starts_with("test result:");
            if let Some(why) = line.strip_prefix("SKIPPED: ").filter(|_| program.starts_with("runtime")) {
                self.skipped.push(format!("{program}: {why}"));
            }
        }
        if !ended {
            let why = if status == "124" || status == "137" { "stopped: it took too long" } else { "no result" };
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            self.broken.push((format!("{program}: {why} (status {status})"), tail.join("\n")));
        }
    }

    fn print(&self) {
        for (name, text) in self.failed.iter().chain(&self.broken) {
            println!("\n---- {name}\n{}", text.trim_end());
        }
        if !self.skipped.is_empty() {
            println!("\nskipped in the machine:");
            self.skipped.iter().for_each(|skip| println!("  {skip}"));
        }
        let failed = self.failed.len() + self.broken.len();
        println!("\ncgroup v2: {} passed, {failed} failed, {} skipped", self.passed_only(), self.skipped.len());
        self.failed.iter().chain(&self.broken).for_each(|(name, _)| println!("  FAILED {name}"));
    }

    /// A skipped test passes for the harness.
    fn passed_only(&self) -> usize {
        self.passed.saturating_sub(self.skipped.len())
    }

    fn verdict(&self, all: bool) -> Result<(), String> {
        if !self.failed.is_empty() || !self.broken.is_empty() {
            return Err("some tests failed in the machine".to_owned());
        }
        // A machine where everything skips is not a success.
        if all && self.passed_only() < self.skipped.len() {
            return Err("most tests were skipped in the machine: it is not what it should be".to_owned());
        }
        Ok(())
    }
}

/// The output of one failed test: `---- NAME stdout ----` up to the next such line.
fn said(text: &str, test: &str) -> String {
    let head = format!("---- {test} stdout ----");
    let from = text.rfind(&head).map_or(text.len(), |at| at + head.len());
    let rest = &text[from..];
    let end = rest.find("\n---- ").or_else(|| rest.find("\nfailures:\n")).unwrap_or(rest.len());
    rest[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ok\n\nsuccesses:\n\n\
        ---- c stdout ----\nSKIPPED: no fun\n\nfailures:\n\n---- b stdout ----\nb says why\n\nfailures:\n    b\n\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored\n";

    #[test]
    fn results_are_read() {
        let mut tally = Tally::default();
        tally.add("runtime-x", OUTPUT, "101");
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failed, [("runtime-x::b".to_owned(), "b says why".to_owned())]);
        assert_eq!(tally.skipped, ["runtime-x: no fun"]);
        assert!(tally.broken.is_empty() && tally.verdict(true).is_err());
    }

    #[test]
    fn no_result_is_a_failure() {
        let mut tally = Tally::default();
        tally.add("x", "running 1 test\ntest a ... ", "124");
        assert_eq!(tally.broken.len(), 1);
        assert!(tally.broken[0].0.contains("too long"));
        assert!(tally.verdict(true).is_err());
    }

    #[test]
    fn words() {
        let options = Options::parse(&["--cgroup2", "--debug", "memory"]).unwrap();
        assert!(options.debug && options.filter == ["memory"]);
        assert!(Options::parse(&[]).is_err() && Options::parse(&["--cgroup2", "$(x)"]).is_err());
    }
}
