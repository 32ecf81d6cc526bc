//! Which package mirror to use: the host's own where it has one of that distribution.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::oci::debian_architecture;
use crate::reference::Distribution;

/// The mirrors of a distribution for one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// Of the suite itself and of its updates.
    pub(super) main: String,
    /// Of its security updates; the same mirror on Ubuntu.
    pub(super) security: String,
    pub(super) components: &'static str,
    /// Suites on `main`, then on `security`.
    pub(super) suites: (Vec<String>, Vec<String>),
}

impl Mirror {
    /// As `environment` says, else as the host's apt sources say (`etc` is `/etc/apt`), else the public one.
    pub(super) fn find(distribution: Distribution, suite: &str, etc: &Path, environment: Option<String>) -> Self {
        let public = public(distribution);
        let (main, security) = match environment {
            Some(uri) => (
                uri.clone(),
                match distribution {
                    // The usual layout beside each other: `…/debian` and `…/debian-security`.
                    Distribution::Debian => format!("{}-security", uri.trim_end_matches('/')),
                    Distribution::Ubuntu => uri,
                },
            ),
            None => {
                let host = host(distribution, &sources(etc));
                (host.0.unwrap_or(public.0), host.1.unwrap_or(public.1))
            }
        };
        let clean = |uri: String| uri.trim_end_matches('/').to_owned();
        Self {
            main: clean(main),
            security: clean(security),
            components: match distribution {
                Distribution::Debian => "main",
                Distribution::Ubuntu => "main universe",
            },
            suites: suites(distribution, suite),
        }
    }

    /// A deb822 file (sources.list(5)) of these mirrors.
    pub(super) fn sources(&self, keyring: &str) -> String {
        let paragraph = |uri: &str, suites: &[String]| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: {}\nSigned-By: {keyring}\n",
                suites.join(" "),
                self.components
            )
        };
        let main = paragraph(&self.main, &self.suites.0);
        if self.suites.1.is_empty() { main } else { format!("{main}\n{}", paragraph(&self.security, &self.suites.1)) }
    }
}

fn suites(distribution: Distribution, suite: &str) -> (Vec<String>, Vec<String>) {
    let with = |ends: &[&str]| ends.iter().map(|end| format!("{suite}{end}")).collect();
    match (distribution, suite) {
        (Distribution::Debian, "sid") => (with(&[""]), Vec::new()),
        (Distribution::Debian, _) => (with(&["", "-updates"]), with(&["-security"])),
        (Distribution::Ubuntu, _) => (with(&["", "-updates"]), with(&["-security"])),
    }
}

fn public(distribution: Distribution) -> (String, String) {
    let (main, security) = match distribution {
        Distribution::Debian => ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security"),
        Distribution::Ubuntu if matches!(debian_architecture(), "amd64" | "i386") => {
            ("http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu")
        }
        Distribution::Ubuntu => ("http://ports.ubuntu.com/ubuntu-ports", "http://ports.ubuntu.com/ubuntu-ports"),
    };
    (main.to_owned(), security.to_owned())
}

/// The host's mirrors of that distribution: the first of its main suites, and the first of a `-security` suite.
fn host(distribution: Distribution, sources: &[(String, String)]) -> (Option<String>, Option<String>) {
    let names = |suite: &str| {
        let base = suite.split('-').next().unwrap_or(suite);
        distribution.suite(base).is_some()
            || distribution == Distribution::Debian && matches!(base, "stable" | "oldstable" | "unstable")
    };
    // Other vendors publish for a suite's name too, but not under these paths.
    let ours = |uri: &str| {
        let last = uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match distribution {
            Distribution::Debian => matches!(last, "debian" | "debian-security"),
            Distribution::Ubuntu => matches!(last, "ubuntu" | "ubuntu-ports"),
        }
    };
    // An address with a password would tell it to every machine of the image.
    let open = |uri: &str| !uri.contains('@');
    let mut fitting = sources.iter().filter(|(uri, suite)| names(suite) && ours(uri) && open(uri));
    let is_security = |suite: &str| suite.ends_with("-security") || suite.ends_with("/updates");
    let main = fitting.clone().find(|(_, suite)| !suite.contains(['-', '/'])).map(|(uri, _)| uri.clone());
    let security = fitting.find(|(_, suite)| is_security(suite)).map(|(uri, _)| uri.clone());
    (main, security)
}

/// Each address and suite of the host's sources, in both of apt's formats.
fn sources(etc: &Path) -> Vec<(String, String)> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        let mut more: Vec<_> = entries.flatten().map(|e| e.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut all = Vec::new();
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => all.extend(one_line(&text)),
            Some("sources") => all.extend(deb822(&text)),
            _ => {}
        }
    }
    all
}

fn one_line(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
        let rest = rest.strip_prefix(|c: char| c.is_ascii_whitespace())?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_ascii_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn deb822(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for paragraph in text.split("\n\n") {
        let lines: Vec<&str> = paragraph.lines().filter(|l| !l.starts_with('#')).collect();
        let field = |name: &str| -> String {
            let mut value = String::new();
            let mut inside = false;
            for line in &lines {
                if line.starts_with([' ', '\t']) {
                    if inside {
                        value.push(' ');
                        value.push_str(line.trim());
                    }
                } else if let Some((key, rest)) = line.split_once(':') {
                    inside = key.eq_ignore_ascii_case(name);
                    if inside {
                        value = rest.trim().to_owned();
                    }
                }
            }
            value
        };
        if field("Enabled").eq_ignore_ascii_case("no") || !field("Types").split_ascii_whitespace().any(|t| t == "deb") {
            continue;
        }
        for uri in field("URIs").split_ascii_whitespace() {
            all.extend(field("Suites").split_ascii_whitespace().map(|suite| (uri.to_owned(), suite.to_owned())));
        }
    }
    all
}

/// The proxies that the host's apt uses, as options and for http alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Proxies {
    /// `Acquire::http::Proxy "http://proxy:3128";`
    pub(super) options: Vec<String>,
    pub(super) http: Option<String>,
}

impl Proxies {
    pub(super) fn of_host() -> Self {
        const KEYS: [&str; 4] = [
            "Acquire::http::Proxy",
            "Acquire::https::Proxy",
            "Acquire::http::Proxy-Auto-Detect",
            "Acquire::https::CAInfo",
        ];
        let mut command = Command::new("apt-config");
        command.arg("shell");
        for (i, key) in KEYS.iter().enumerate() {
            command.args([&format!("V{i}"), *key]);
        }
        let Ok(output) = command.stdin(Stdio::null()).stderr(Stdio::null()).output() else { return Self::default() };
        let mut proxies = Self::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim_matches('\'');
            let Some(key) = name.strip_prefix('V').and_then(|i| KEYS.get(i.parse::<usize>().ok()?)) else { continue };
            if value.is_empty() || value.contains('"') {
                continue;
            }
            proxies.options.push(format!("{key} \"{value}\";"));
            if *key == KEYS[0] && value != "DIRECT" {
                proxies.http = Some(value.to_owned());
            }
        }
        proxies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn find(distribution: Distribution, suite: &str, files: &[(&str, &str)]) -> Mirror {
        Mirror::find(distribution, suite, etc(files).path(), None)
    }

    #[test]
    fn the_hosts_mirror_serves_other_suites() {
        let old = "# comment\ndeb [arch=amd64 signed-by=/x] http://mirror.example/debian/ bookworm main contrib # end\n\
            deb-src http://other.example/debian bookworm main\n\
            deb http://mirror.example/debian-security bookworm-security main\n";
        let mirror = find(Distribution::Debian, "trixie", &[("sources.list", old)]);
        assert_eq!(mirror.main, "http://mirror.example/debian");
        assert_eq!(mirror.security, "http://mirror.example/debian-security");
        insta_like(
            &mirror.sources("/k.gpg"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
             Types: deb\nURIs: http://mirror.example/debian-security\nSuites: trixie-security\nComponents: main\nSigned-By: /k.gpg\n",
        );
    }

    fn insta_like(a: &str, b: &str) {
        assert_eq!(a, b);
    }

    #[test]
    fn deb822_sources_are_read() {
        let new = "Types: deb\n# comment\nURIs: http://a.example/debian\n http://b.example/debian\nSuites: trixie\n trixie-updates\n\
            Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://c.example/debian-security\nSuites: trixie-security\n\n\
            Types: deb deb-src\nURIs: http://d.example/debian-security/\nSuites: trixie-security\n";
        let mirror = find(Distribution::Debian, "bookworm", &[("sources.list.d/debian.sources", new)]);
        assert_eq!(mirror.main, "http://a.example/debian");
        assert_eq!(mirror.security, "http://d.example/debian-security");
    }

    #[test]
    fn strangers_passwords_and_other_distributions_are_passed_over() {
        let list =
            "deb http://vendor.example/apt bookworm main\ndeb http://user:pass@mirror.example/debian bookworm main\n";
        let mirror = find(Distribution::Debian, "trixie", &[("sources.list", list)]);
        assert_eq!(mirror.main, "http://deb.debian.org/debian");
        let debian = "deb http://mirror.example/debian bookworm main\n";
        let mirror = find(Distribution::Ubuntu, "noble", &[("sources.list", debian)]);
        assert!(mirror.main.contains("ubuntu.com"), "{}", mirror.main);
        let ubuntu =
            "deb http://mirror.example/ubuntu jammy main\ndeb http://mirror.example/ubuntu jammy-security main\n";
        let mirror = find(Distribution::Ubuntu, "noble", &[("sources.list", ubuntu)]);
        assert_eq!(
            (mirror.main.as_str(), mirror.security.as_str()),
            ("http://mirror.example/ubuntu", "http://mirror.example/ubuntu")
        );
    }

    #[test]
    fn the_environment_goes_first_and_sid_has_no_security() {
        let dir = etc(&[]);
        let mirror = Mirror::find(Distribution::Debian, "sid", dir.path(), Some("http://m/debian/".to_owned()));
        assert_eq!(mirror.main, "http://m/debian");
        assert_eq!(mirror.security, "http://m/debian-security");
        assert_eq!(mirror.suites, (vec!["sid".to_owned()], vec![]));
    }
}
