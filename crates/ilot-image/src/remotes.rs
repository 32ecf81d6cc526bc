//! The simplestreams servers that image names can begin with, the mirrors of registries, and what short names mean.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::reference::RegistryName;

/// The servers that need no configuration.
const BUILT_IN: [(&str, &str); 2] =
    [("images", "https://images.linuxcontainers.org"), ("ubuntu", "https://cloud-images.ubuntu.com/releases")];

/// Where an image without a host in its name is looked for, unless somebody says otherwise.
const SEARCHED: [&str; 1] = ["docker.io"];
/// The variable that says otherwise for one call.
const SHORT_NAMES: &str = "ILOT_SHORT_NAMES";

/// Name and address of each known server, and for registries the places to ask before them.
#[derive(Debug, Clone)]
pub(crate) struct Remotes {
    servers: BTreeMap<String, String>,
    mirrors: BTreeMap<String, Vec<String>>,
}

/// What a name without a host means (`short-names.json` of the store).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShortNames {
    /// Registries, perhaps with a path below them, in the order in which they are asked.
    #[serde(default = "searched")]
    search: Vec<String>,
    /// Names that stand for others: `fedora` for `registry.fedoraproject.org/fedora`.
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

fn searched() -> Vec<String> {
    SEARCHED.map(str::to_owned).into()
}

impl ShortNames {
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let path = root.join("short-names.json");
        let mut all: Self = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Damaged {
                path,
                reason: format!(
                    r#"not of the form {{"search": ["docker.io"], "aliases": {{"tool": "quay.io/x/tool"}}}}: {e}"#
                ),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Self { search: searched(), aliases: BTreeMap::new() },
            Err(e) => return Err(Error::io("read", path, e)),
        };
        if let Ok(text) = std::env::var(SHORT_NAMES) {
            all.search = text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
        }
        Ok(all)
    }

    /// What a name can mean, the first choice first; none where it has a host, or is no name of a registry's image.
    pub(crate) fn candidates(&self, text: &str) -> Result<Vec<RegistryName>> {
        let Ok(plain) = RegistryName::parse_short(text) else { return Ok(Vec::new()) };
        let bad = |host: &str, reason: &str| {
            let at = format!("{host}: {reason}");
            Error::BadReference {
                text: text.to_owned(),
                reason: at,
                help: Some("see `short-names.json` of the store".to_owned()),
            }
        };
        let (path, tag) = plain.split();
        if let Some(alias) = self.aliases.get(&path) {
            let whole = alias.strip_prefix("docker://").unwrap_or(alias);
            let named = RegistryName::parse(whole).map_err(|reason| bad(alias, reason))?;
            // What the alias says of tag and digest counts where the name says nothing.
            let named =
                if tag.is_empty() { named } else { RegistryName { tag: plain.tag, digest: plain.digest, ..named } };
            return Ok(vec![named]);
        }
        let each = |host: &String| match host.as_str() {
            "docker.io" => Ok(plain.clone()),
            host => {
                RegistryName { repository: path.clone(), ..plain.clone() }.on_mirror(host).map_err(|r| bad(host, r))
            }
        };
        self.search.iter().map(each).collect()
    }
}

impl Remotes {
    /// Built in, then `remotes.json` of the store (`{"name": "https://…"}`), then `ILOT_REMOTE_<NAME>`.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let mut all: BTreeMap<String, String> = BUILT_IN.map(|(n, u)| (n.to_owned(), u.to_owned())).into();
        all.extend(read::<String>(&root.join("remotes.json"), r#"{"name": "https://server"}"#)?);
        for (key, value) in std::env::vars() {
            if let Some(name) = key.strip_prefix("ILOT_REMOTE_") {
                all.insert(name.to_ascii_lowercase().replace('_', "-"), value);
            }
        }
        let mirrors = read(&root.join("registries.json"), r#"{"docker.io": ["mirror:5000", "cache:5000/hub"]}"#)?;
        Ok(Self { servers: all, mirrors })
    }

    /// Where a registry's images are asked for first: `HOST[:PORT]`, with a path below it or without.
    pub(crate) fn mirrors(&self, registry: &str) -> &[String] {
        self.mirrors.get(registry).map_or(&[], Vec::as_slice)
    }

    /// The address of a server, without a slash at its end.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.servers.get(name).map(|url| url.trim_end_matches('/'))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }
}

/// A file of names; one that is not there has none.
fn read<T: serde::de::DeserializeOwned>(path: &Path, form: &str) -> Result<BTreeMap<String, T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::Damaged { path: path.to_owned(), reason: format!("not of the form {form}: {e}") }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(e) => Err(Error::io("read", path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_have_an_order() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| -> Vec<String> {
            let names = ShortNames::load(dir.path()).unwrap();
            names.candidates(text).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(of("debian:13"), ["docker.io/library/debian:13"]);
        assert_eq!(of("alpine"), ["docker.io/library/alpine:latest"]);
        assert_eq!(of("owner/tool:1"), ["docker.io/owner/tool:1"]);
        let digest = format!("sha256:{}", "1".repeat(64));
        assert_eq!(of(&format!("debian@{digest}")), [format!("docker.io/library/debian@{digest}")]);
        for text in ["ghcr.io/x/y", "localhost:5000/x", "localhost/x", "Debian", "a b", "", "x:y/z", "-x", "a//b"] {
            assert_eq!(of(text), Vec::<String>::new(), "{text}");
        }
        let write = |text: &str| fs::write(dir.path().join("short-names.json"), text).unwrap();
        write(
            r#"{"search": ["quay.io", "r.example.org:5000/team", "docker.io"], "aliases": {"f": "reg.example.org/f/f", "old": "x.org/y:1"}}"#,
        );
        assert_eq!(
            of("debian:13"),
            ["quay.io/debian:13", "r.example.org:5000/team/debian:13", "docker.io/library/debian:13"]
        );
        assert_eq!(of("f"), ["reg.example.org/f/f:latest"]);
        assert_eq!(of("f:2"), ["reg.example.org/f/f:2"]);
        assert_eq!((of("old"), of("old:3")), (vec!["x.org/y:1".to_owned()], vec!["x.org/y:3".to_owned()]));
        write(r#"{"search": []}"#);
        assert_eq!(of("debian:13"), Vec::<String>::new());
        write(r#"{"search": ["no host"]}"#);
        assert!(ShortNames::load(dir.path()).unwrap().candidates("debian").is_err());
        write(r#"{"registries": []}"#);
        let error = ShortNames::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("short-names.json") && error.contains("registries"), "{error}");
    }
}
