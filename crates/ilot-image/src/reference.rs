//! The names of images.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::types::Digest;

/// A parsed image name. [`fmt::Display`] gives its normal form, which parses to the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// An alias on a simplestreams server: `images:debian/13`, `ubuntu:24.04`.
    Remote {
        /// The server's name in the store's remotes.
        remote: String,
        /// The name there.
        alias: String,
    },
    /// Made from the host's static busybox.
    Busybox,
    /// Installed from the distribution's package mirror: `bootstrap:debian/trixie`.
    Bootstrap {
        /// Which distribution.
        distribution: Distribution,
        /// Its suite's code name.
        suite: String,
        /// With cloud-init.
        cloud: bool,
    },
    /// A tar archive of a root file system: `tar:FILE`, `./x.tar.gz`.
    Tar(PathBuf),
    /// A root file system's folder: `dir:PATH`, `./rootfs`.
    Dir(PathBuf),
    /// An image of an OCI layout or of an archive: `oci:DIR`, `oci-archive:FILE:v1`, `docker-archive:FILE`.
    Layout {
        /// Which of them.
        kind: LayoutKind,
        /// The folder or file.
        path: PathBuf,
        /// The image's name in it, where it has several.
        name: Option<String>,
    },
    /// An image of a registry: `docker://debian:13`, `ghcr.io/owner/tool@sha256:…`.
    Registry(RegistryName),
    /// A name given on this host, by `tag` or `commit`: `local:golden`, `local:golden:2`. Only the store has it.
    Local(String),
    /// An image of the store by its digest, or by the start of it.
    Digest(String),
}

/// The parts of a registry image's name (the grammar of Docker's names).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryName {
    /// Host, and port where there is one: `docker.io`, `localhost:5000`.
    pub host: String,
    /// Path below it: `library/debian`.
    pub repository: String,
    /// `latest` where neither tag nor digest is given.
    pub tag: Option<String>,
    /// The manifest or index that must be behind the name.
    pub digest: Option<Digest>,
}

impl RegistryName {
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, &'static str> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(
                    digest
                        .parse::<Digest>()
                        .map_err(|_| "behind `@` stands a whole `sha256:` digest, or a `sha512:` one")?,
                ),
            ),
            None => (text, None),
        };
        // A colon before the last slash belongs to the host's port.
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        let is_host = |h: &str| h == "localhost" || h.contains(['.', ':']);
        let (host, repository) = match path.split_once('/') {
            Some((host, repository)) if is_host(host) => (host, repository.to_owned()),
            _ if path.contains('/') => ("docker.io", path.to_owned()),
            _ => ("docker.io", format!("library/{path}")),
        };
        let is_tag = |t: &str| {
            (1..=128).contains(&t.len())
                && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
                && !t.starts_with(['.', '-'])
        };
        let is_part = |p: &str| {
            !p.is_empty()
                && p.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
                && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        };
        if !repository.split('/').all(is_part) {
            return Err("a repository's name has lower-case letters, digits, `.`, `_`, `-` and `/`");
        }
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']')) {
            return Err("not a host's name");
        }
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err("a tag has letters, digits, `_`, `.` and `-`");
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }

    /// A name without a host, as Docker Hub has it: `debian:13`, `owner/tool`.
    pub(crate) fn parse_short(text: &str) -> std::result::Result<Self, &'static str> {
        if is_registry(text) || is_path(text) {
            return Err("it has a host");
        }
        // What would be taken for a host and its port.
        match Self::parse(text)? {
            name if name.host == "docker.io" && !text.starts_with("docker.io/") => Ok(name),
            _ => Err("it has a host"),
        }
    }

    /// The path as it was written, and what stands behind it.
    pub(crate) fn split(&self) -> (String, String) {
        let path = self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned();
        let behind = match (&self.tag, &self.digest) {
            (_, Some(digest)) => format!("@{digest}"),
            (Some(tag), None) if tag != "latest" => format!(":{tag}"),
            _ => String::new(),
        };
        (path, behind)
    }

    /// The same image at a mirror: `HOST[:PORT]`, with a path that stands before the repository or without.
    pub(crate) fn on_mirror(&self, mirror: &str) -> std::result::Result<Self, &'static str> {
        let mirror = mirror.trim_end_matches('/');
        let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
        let slash = if path.is_empty() { "" } else { "/" };
        let parsed = Self::parse(&format!("{host}/{path}{slash}{}", self.repository))?;
        if parsed.host != host {
            return Err("a mirror is `HOST` or `HOST:PORT`, with a path behind it or without");
        }
        Ok(Self { tag: self.tag.clone(), digest: self.digest.clone(), ..parsed })
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// How several blobs make an image in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayoutKind {
    /// A folder in the OCI image layout.
    Oci,
    /// A tar archive of such a folder.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

impl LayoutKind {
    fn named(scheme: &str) -> Option<Self> {
        match scheme {
            "oci" => Some(Self::Oci),
            "oci-archive" => Some(Self::OciArchive),
            "docker-archive" => Some(Self::DockerArchive),
            _ => None,
        }
    }
}

impl fmt::Display for LayoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        })
    }
}

/// A distribution that can be installed from its package mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// Debian.
    Debian,
    /// Ubuntu.
    Ubuntu,
}

/// Version and code name of each release that has one (distro-info-data).
const DEBIAN: [(&str, &str); 6] =
    [("11", "bullseye"), ("12", "bookworm"), ("13", "trixie"), ("14", "forky"), ("sid", "sid"), ("testing", "testing")];
const UBUNTU: [(&str, &str); 8] = [
    ("20.04", "focal"),
    ("22.04", "jammy"),
    ("24.04", "noble"),
    ("24.10", "oracular"),
    ("25.04", "plucky"),
    ("25.10", "questing"),
    ("26.04", "resolute"),
    ("lts", "noble"),
];

/// Forms that a mistyped name is compared with.
const KNOWN: [&str; 9] = [
    "images:debian/13",
    "images:debian/12",
    "images:ubuntu/24.04",
    "images:ubuntu/22.04",
    "images:alpine/3.20",
    "ubuntu:24.04",
    "bootstrap:debian/trixie",
    "bootstrap:ubuntu/noble",
    "busybox",
];

/// Endings of archives that need no `tar:` in front.
const ARCHIVES: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tar.zstd"];

impl Distribution {
    /// The suite that a version or code name means.
    #[must_use]
    pub fn suite(self, text: &str) -> Option<&'static str> {
        self.suites().iter().find(|(version, suite)| *version == text || *suite == text).map(|(_, suite)| *suite)
    }

    fn suites(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Debian => &DEBIAN,
            Self::Ubuntu => &UBUNTU,
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "debian" => Some(Self::Debian),
            "ubuntu" => Some(Self::Ubuntu),
            _ => None,
        }
    }
}

impl Reference {
    /// Parses a name; relative paths stay relative (see [`Reference::absolute`]). Looks at the file system only to tell
    /// a folder from an archive.
    ///
    /// # Errors
    /// [`Error::BadReference`] with the nearest known form.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let bad = |reason: &str, help: Option<String>| {
            Err(Error::BadReference { text: text.to_owned(), reason: reason.to_owned(), help })
        };
        if text.is_empty() {
            return bad("empty name", Some("for example `images:debian/13`".to_owned()));
        }
        if text == "busybox" {
            return Ok(Self::Busybox);
        }
        if let Some(hex) = text.strip_prefix("sha256:") {
            if hex.len() < 6 || hex.len() > 64 || !is_hex(hex) {
                return bad("a digest is `sha256:` and 6 to 64 digits of 0-9 and a-f", None);
            }
            return Ok(Self::Digest(hex.to_owned()));
        }
        if text.starts_with("sha512:") {
            return match text.parse::<Digest>() {
                Ok(digest) => Ok(Self::Digest(digest.hex().to_owned())),
                Err(_) => bad("a digest is `sha512:` and 128 digits of 0-9 and a-f", None),
            };
        }
        if is_path(text) {
            let path = PathBuf::from(text);
            return Ok(if path.is_dir() { Self::Dir(path) } else { Self::Tar(path) });
        }
        if let Some(name) = text.strip_prefix("docker://").or_else(|| is_registry(text).then_some(text)) {
            return match RegistryName::parse(name) {
                Ok(name) => Ok(Self::Registry(name)),
                Err(reason) => {
                    bad(reason, Some("for example `docker://debian:13` or `ghcr.io/owner/tool:1`".to_owned()))
                }
            };
        }
        if text.contains("://") {
            return bad("not a known image name", nearest(text));
        }
        if let Some((scheme, rest)) = text.split_once(':') {
            return Self::with_scheme(text, scheme, rest);
        }
        if ((7..=64).contains(&text.len()) || text.len() == 128) && is_hex(text) {
            return Ok(Self::Digest(text.to_owned()));
        }
        let forms = || "a name is like `images:debian/13`, `docker://debian:13` or `busybox`".to_owned();
        bad("not a known image name", nearest(text).or_else(|| Some(forms())))
    }

    fn with_scheme(text: &str, scheme: &str, rest: &str) -> Result<Self> {
        let bad =
            |reason: String, help: Option<String>| Err(Error::BadReference { text: text.to_owned(), reason, help });
        if rest.is_empty() {
            return bad(format!("nothing behind `{scheme}:`"), nearest(text));
        }
        match scheme {
            "tar" => Ok(Self::Tar(PathBuf::from(rest))),
            "dir" => Ok(Self::Dir(PathBuf::from(rest))),
            "local" if is_local(rest) => Ok(Self::Local(rest.to_owned())),
            "local" => bad(
                "a local name has lower-case letters, digits, `.`, `_`, `-`, `/`, and a tag behind `:`".to_owned(),
                Some("for example `local:golden` or `local:golden:2`".to_owned()),
            ),
            "oci" | "oci-archive" | "docker-archive" => {
                let kind = LayoutKind::named(scheme).unwrap_or(LayoutKind::Oci);
                // As skopeo reads it: the path ends at the first colon.
                let (path, name) = rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name)));
                if path.is_empty() || name == Some("") {
                    return bad(format!("of the form `{scheme}:PATH` or `{scheme}:PATH:NAME`"), None);
                }
                Ok(Self::Layout { kind, path: PathBuf::from(path), name: name.map(str::to_owned) })
            }
            "bootstrap" => {
                let mut parts = rest.split('/');
                let distribution = parts.next().and_then(Distribution::named);
                let Some(distribution) = distribution else {
                    return bad("only debian and ubuntu can be bootstrapped".to_owned(), nearest(text));
                };
                let asked = parts.next().unwrap_or_default();
                let Some(suite) = distribution.suite(asked) else {
                    let known: Vec<_> = distribution.suites().iter().map(|(_, suite)| *suite).collect();
                    return bad(
                        format!("{distribution} has no suite `{asked}` that ilot knows"),
                        Some(format!("one of {}", known.join(", "))),
                    );
                };
                match (parts.next(), parts.next()) {
                    (None, _) => Ok(Self::Bootstrap { distribution, suite: suite.to_owned(), cloud: false }),
                    (Some("cloud"), None) => Ok(Self::Bootstrap { distribution, suite: suite.to_owned(), cloud: true }),
                    _ => bad("the only variant is `/cloud`".to_owned(), nearest(text)),
                }
            }
            _ if !is_word(scheme) => bad("not a known image name".to_owned(), nearest(text)),
            _ if rest.bytes().any(|b| b <= b' ' || b == b'\\') => {
                bad("an alias has no spaces and no backslash".to_owned(), nearest(text))
            }
            _ => Ok(Self::Remote { remote: scheme.to_owned(), alias: rest.trim_matches('/').to_owned() }),
        }
    }

    /// Makes a path in it absolute, seen from `base` (the folder of the file that names the image).
    #[must_use]
    pub fn absolute(self, base: &Path) -> Self {
        // Looked at again: what is a folder from there may be none from here.
        match self {
            Self::Tar(path) => {
                let path = base.join(path);
                if path.is_dir() { Self::Dir(clean(&path)) } else { Self::Tar(clean(&path)) }
            }
            Self::Dir(path) => Self::Dir(clean(&base.join(path))),
            Self::Layout { kind, path, name } => Self::Layout { kind, path: clean(&base.join(path)), name },
            other => other,
        }
    }

    /// What can be installed from a package mirror instead of this: the Debians and Ubuntus of the built-in remotes.
    pub(crate) fn bootstrap(&self) -> Option<(Distribution, String, bool)> {
        match self {
            Self::Bootstrap { distribution, suite, cloud } => Some((*distribution, suite.clone(), *cloud)),
            Self::Remote { remote, alias } => {
                let mut parts = alias.split('/');
                let distribution = match remote.as_str() {
                    "images" => Distribution::named(parts.next()?)?,
                    "ubuntu" => Distribution::Ubuntu,
                    _ => return None,
                };
                let suite = distribution.suite(parts.next()?)?;
                let cloud = match (parts.next(), parts.next()) {
                    (None | Some("default"), None) => false,
                    (Some("cloud"), None) => true,
                    _ => return None,
                };
                Some((distribution, suite.to_owned(), cloud))
            }
            _ => None,
        }
    }
}

/// `a/./b` and `a/b/` as `a/b`; `..` stays, because it means something else behind a link.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Words between slashes, and perhaps a tag.
pub(crate) fn is_local(text: &str) -> bool {
    let (path, tag) = text.split_once(':').unwrap_or((text, "x"));
    let is_part = |p: &str, upper: bool| {
        (1..=128).contains(&p.len())
            && !p.starts_with(['.', '-'])
            && p.bytes().all(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || matches!(b, b'.' | b'_' | b'-')
                    || upper && b.is_ascii_uppercase()
            })
    };
    path.split('/').all(|p| is_part(p, false)) && is_part(tag, true)
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

fn is_path(text: &str) -> bool {
    let is_name = || !text.contains(':') && ARCHIVES.iter().any(|end| text.ends_with(end));
    matches!(text, "." | "..") || ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || is_name()
}

/// `ghcr.io/x/y`, `localhost:5000/x`: the part before the first slash is a host (the rule of Docker's names).
fn is_registry(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, _)| {
        host == "localhost"
            || host.contains('.') && !host.contains(':')
            || host.rsplit_once(':').is_some_and(|(name, port)| {
                !port.is_empty()
                    && port.bytes().all(|b| b.is_ascii_digit())
                    && (name == "localhost" || name.contains('.'))
            })
    })
}

/// The known form that the text most likely means.
pub(crate) fn nearest(text: &str) -> Option<String> {
    let name = text.rsplit("://").next().unwrap_or(text);
    let words: Vec<&str> = name.split([':', '/']).filter(|w| !w.is_empty()).collect();
    for (i, word) in words.iter().enumerate() {
        let Some(distribution) = Distribution::named(word) else { continue };
        let wanted = words.get(i + 1).copied().unwrap_or_default().split('-').next().unwrap_or_default();
        let version = distribution
            .suites()
            .iter()
            .find(|(version, suite)| *version == wanted || *suite == wanted)
            .map_or(if distribution == Distribution::Debian { "13" } else { "24.04" }, |(version, _)| version);
        return Some(format!("did you mean `images:{distribution}/{version}`?"));
    }
    if let Some((_, version)) = words.iter().zip(words.iter().skip(1)).find(|(w, _)| **w == "alpine") {
        return Some(format!("did you mean `images:alpine/{version}`?"));
    }
    for distribution in [Distribution::Debian, Distribution::Ubuntu] {
        if let Some((version, _)) = distribution.suites().iter().find(|(_, suite)| Some(suite) == words.first()) {
            return Some(format!("did you mean `images:{distribution}/{version}`?"));
        }
    }
    KNOWN
        .iter()
        .map(|known| (strsim::jaro_winkler(text, known), known))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| format!("did you mean `{known}`?"))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { remote, alias } => write!(f, "{remote}:{alias}"),
            Self::Busybox => write!(f, "busybox"),
            Self::Bootstrap { distribution, suite, cloud } => {
                write!(f, "bootstrap:{distribution}/{suite}{}", if *cloud { "/cloud" } else { "" })
            }
            Self::Tar(path) => write!(f, "tar:{}", path.display()),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Layout { kind, path, name: None } => write!(f, "{kind}:{}", path.display()),
            Self::Layout { kind, path, name: Some(name) } => write!(f, "{kind}:{}:{name}", path.display()),
            Self::Registry(name) => write!(f, "docker://{name}"),
            Self::Digest(hex) if hex.len() == 128 => write!(f, "sha512:{hex}"),
            Self::Digest(hex) => write!(f, "sha256:{hex}"),
            Self::Local(name) => write!(f, "local:{name}"),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_normal_form() {
        for (text, normal) in [
            ("images:debian/13", "images:debian/13"),
            (" images:debian/13/cloud ", "images:debian/13/cloud"),
            ("ubuntu:24.04", "ubuntu:24.04"),
            ("corp:base/1", "corp:base/1"),
            ("busybox", "busybox"),
            ("bootstrap:debian/13", "bootstrap:debian/trixie"),
            ("bootstrap:ubuntu/noble/cloud", "bootstrap:ubuntu/noble/cloud"),
            ("tar:x.bin", "tar:x.bin"),
            ("./x.tar.gz", "tar:./x.tar.gz"),
            ("rootfs.tar.zst", "tar:rootfs.tar.zst"),
            ("/proc", "dir:/proc"),
            ("dir:rootfs", "dir:rootfs"),
            ("docker://debian", "docker://docker.io/library/debian:latest"),
            ("docker://user/tool:1", "docker://docker.io/user/tool:1"),
            ("ghcr.io/owner/tool", "docker://ghcr.io/owner/tool:latest"),
            ("localhost:5000/x:1.2", "docker://localhost:5000/x:1.2"),
            ("docker://[::1]:5000/x", "docker://[::1]:5000/x:latest"),
            (
                "quay.io/x@sha256:66abd35e81249afe7dbba6526082f18a269cfec86ad03b63c9d98be703af9851",
                "docker://quay.io/x@sha256:66abd35e81249afe7dbba6526082f18a269cfec86ad03b63c9d98be703af9851",
            ),
            ("oci:dir", "oci:dir"),
            ("oci-archive:x.tar:ghcr.io/x:1", "oci-archive:x.tar:ghcr.io/x:1"),
            ("docker-archive:/a b/x.tar", "docker-archive:/a b/x.tar"),
            ("sha256:0123456789ab", "sha256:0123456789ab"),
            ("0123456789ab", "sha256:0123456789ab"),
        ] {
            let parsed = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), normal);
            assert_eq!(Reference::parse(normal).unwrap(), parsed);
        }
    }

    #[test]
    fn mistakes_are_answered_with_the_nearest_form() {
        for (text, reason, help) in [
            ("", "empty name", "images:debian/13"),
            ("docker://Debian", "lower-case letters", "docker://debian:13"),
            ("docker://debian:a b", "a tag has", "docker://debian:13"),
            ("ghcr.io/x/y@sha256:00", "a whole `sha256:` digest", "docker://debian:13"),
            ("ftp://debian/12", "not a known image name", "images:debian/12"),
            ("debian", "not a known image name", "images:debian/13"),
            ("debian/12", "not a known image name", "images:debian/12"),
            ("ubuntu/noble", "not a known image name", "images:ubuntu/24.04"),
            ("alpine/3.19", "not a known image name", "images:alpine/3.19"),
            ("trixie", "not a known image name", "images:debian/13"),
            ("busybx", "not a known image name", "busybox"),
            ("images:", "nothing behind `images:`", ""),
            ("bootstrap:fedora/41", "only debian and ubuntu", ""),
            ("bootstrap:debian/lenny", "no suite `lenny`", "trixie"),
            ("bootstrap:debian/13/gnome", "the only variant is `/cloud`", "images:debian/13"),
            ("sha256:12", "a digest is", ""),
            ("sha256:zzzzzzzz", "a digest is", ""),
            ("oci::x", "of the form `oci:PATH`", ""),
            ("oci:x:", "of the form `oci:PATH`", ""),
            ("Images:debian/13", "not a known image name", "images:debian/13"),
            ("images:a b", "no spaces", ""),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
            let given = error.help().unwrap_or_default();
            assert!(given.contains(help), "{text}: help `{given}`, wanted `{help}`");
        }
    }

    #[test]
    fn the_mirror_stands_in_for_distributions_only() {
        let of = |text: &str| Reference::parse(text).unwrap().bootstrap();
        assert_eq!(of("images:debian/13"), Some((Distribution::Debian, "trixie".to_owned(), false)));
        assert_eq!(of("images:debian/bookworm/cloud"), Some((Distribution::Debian, "bookworm".to_owned(), true)));
        assert_eq!(of("ubuntu:24.04"), Some((Distribution::Ubuntu, "noble".to_owned(), false)));
        assert_eq!(of("images:ubuntu/24.04/desktop"), None);
        assert_eq!(of("images:alpine/3.20"), None);
        assert_eq!(of("corp:debian/13"), None);
    }

    #[test]
    fn relative_paths_are_seen_from_the_file_that_names_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        let absolute = |text: &str| Reference::parse(text).unwrap().absolute(dir.path()).to_string();
        assert_eq!(absolute("./rootfs"), format!("dir:{}/rootfs", dir.path().display()));
        assert_eq!(absolute("./x.tar"), format!("tar:{}/x.tar", dir.path().display()));
        assert_eq!(absolute("busybox"), "busybox");
    }
}
