//! What must be signed, and by whom: `policy.json` (containers-policy.json(5)) and the store's `trust.json`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::Value;

use super::key::PublicKey;
use super::signature::Found;
use crate::error::{Error, Result};
use crate::reference::RegistryName;
use crate::types::Digest;

/// One thing that an image must fulfil.
#[derive(Debug)]
enum Requirement {
    Accept,
    Refuse(String),
    Signed { keys: Vec<PublicKey>, identity: Identity },
}

/// Under which names an image may be signed.
#[derive(Debug)]
enum Identity {
    /// The name that is pulled; its repository where a digest is pulled.
    RepoDigestOrExact,
    Exact,
    Repository,
    ExactReference(String),
    ExactRepository(String),
    Remapped {
        prefix: String,
        signed_prefix: String,
    },
}

#[derive(Debug, Deserialize)]
struct File {
    default: Vec<Value>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Value>>>,
}

/// A line of `trust.json`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Trust {
    Word(String),
    Keys(Vec<String>),
}

/// Both policies as they are now. An image must fulfil both.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    containers: Option<(PathBuf, File)>,
    own: Option<(PathBuf, BTreeMap<String, Trust>)>,
}

impl Policy {
    /// `given`, or the file that ILOT_SIGNATURE_POLICY names, or the first of `~/.config/containers/policy.json` and `/etc/containers/policy.json`; and the store's own.
    pub(crate) fn load(root: &Path, given: Option<&Path>) -> Result<Self> {
        let named = std::env::var_os("ILOT_SIGNATURE_POLICY").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".config/containers/policy.json"));
        let usual = home.into_iter().chain([PathBuf::from("/etc/containers/policy.json")]);
        let containers = match given {
            // One that is named must be there.
            Some(path) => Some(path.to_owned()),
            None if named.is_some() => named,
            None => usual.into_iter().find(|path| path.exists()),
        };
        let own = root.join("trust.json");
        Ok(Self {
            containers: containers.map(|path| read(&path).map(|file| (path, file))).transpose()?,
            own: if own.exists() { Some((own.clone(), read(&own)?)) } else { None },
        })
    }

    /// Whether an image of a registry may come in. `chain` is the index that was asked for, where it was one, and the
    /// manifest: a signature of either will do. `find` gets the signatures of one.
    pub(crate) fn check(
        &self,
        name: &RegistryName,
        chain: &[Digest],
        find: impl Fn(&Digest) -> Result<Vec<Found>>,
    ) -> Result<()> {
        let refused = |reason: String| Error::Refused { reference: name.to_string(), reason };
        let mut known: Option<Vec<(Digest, Vec<Found>)>> = None;
        for (file, requirement) in self.requirements(name)? {
            let (keys, identity) = match requirement {
                Requirement::Accept => continue,
                Requirement::Refuse(why) => return Err(refused(format!("{why} ({})", file.display()))),
                Requirement::Signed { keys, identity } => (keys, identity),
            };
            let all = match &mut known {
                Some(all) => all,
                None => known.insert(chain.iter().map(|d| Ok((d.clone(), find(d)?))).collect::<Result<_>>()?),
            };
            let mut why = "is not signed".to_owned();
            let is_fulfilled = all.iter().flat_map(|(digest, found)| found.iter().map(move |f| (digest, f))).any(
                |(digest, f)| match f.verified(&keys, digest) {
                    Ok(verified) if identity.allows(name, &verified.identity) => true,
                    Ok(verified) => {
                        why = format!("is signed under another name, `{}`", verified.identity);
                        false
                    }
                    Err(reason) => {
                        why = reason;
                        false
                    }
                },
            );
            if !is_fulfilled {
                return Err(refused(format!("{why}, and {} wants a signature", file.display())));
            }
        }
        Ok(())
    }

    /// Whether an image that is not from a registry may come in: there are no signatures beside such.
    pub(crate) fn check_other(&self, transport: &str, name: &str) -> Result<()> {
        let Some((path, file)) = &self.containers else { return Ok(()) };
        let wanted = file.transports.get(transport).and_then(|scopes| scopes.get("")).unwrap_or(&file.default);
        for value in wanted {
            let why = match requirement(value, path)? {
                Requirement::Accept => continue,
                Requirement::Refuse(why) => why,
                Requirement::Signed { .. } => format!("wants a signature, and images by `{transport}:` have none"),
            };
            let reason = format!("{why} ({})", path.display());
            return Err(Error::Refused { reference: name.to_owned(), reason });
        }
        Ok(())
    }

    fn requirements(&self, name: &RegistryName) -> Result<Vec<(&Path, Requirement)>> {
        let mut all = Vec::new();
        if let Some((path, file)) = &self.containers {
            let docker = file.transports.get("docker");
            let values = docker.and_then(|scopes| scopes_of(name).iter().find_map(|scope| scopes.get(scope)));
            let values = values.unwrap_or(&file.default);
            if values.is_empty() {
                return Err(Error::Damaged {
                    path: path.clone(),
                    reason: "a scope without any requirement".to_owned(),
                });
            }
            for value in values {
                all.push((path.as_path(), requirement(value, path)?));
            }
        }
        if let Some((path, scopes)) = &self.own {
            let found = scopes_of(name).iter().find_map(|scope| scopes.get(scope)).or_else(|| scopes.get("*"));
            let requirement = match found {
                None => Requirement::Accept,
                Some(Trust::Word(word)) if word == "accept" => Requirement::Accept,
                Some(Trust::Word(word)) if word == "reject" => {
                    Requirement::Refuse("is of a registry that is not trusted".to_owned())
                }
                Some(Trust::Word(word)) => {
                    let reason = format!("`{word}`: neither `accept` nor `reject`, nor a list of keys");
                    return Err(Error::Damaged { path: path.clone(), reason });
                }
                Some(Trust::Keys(files)) => {
                    let folder = path.parent().unwrap_or(Path::new("/"));
                    let keys = files.iter().map(|file| PublicKey::read(&folder.join(file))).collect::<Result<_>>()?;
                    Requirement::Signed { keys, identity: Identity::Repository }
                }
            };
            all.push((path.as_path(), requirement));
        }
        Ok(all)
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e: io::Error| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::Damaged { path: path.to_owned(), reason: format!("no policy: {e}") })
}

/// The scopes that a name belongs to, the narrowest first (containers-policy.json(5), "docker:").
fn scopes_of(name: &RegistryName) -> Vec<String> {
    let mut all = Vec::new();
    let repository = format!("{}/{}", name.host, name.repository);
    if let Some(digest) = &name.digest {
        all.push(format!("{repository}@{digest}"));
    }
    if let Some(tag) = &name.tag {
        all.push(format!("{repository}:{tag}"));
    }
    let mut rest = repository.as_str();
    loop {
        all.push(rest.to_owned());
        match rest.rsplit_once('/') {
            Some((before, _)) => rest = before,
            None => break,
        }
    }
    let mut domain = name.host.as_str();
    while let Some((_, parent)) = domain.split_once('.') {
        all.push(format!("*.{parent}"));
        domain = parent;
    }
    all.push(String::new());
    all
}

fn requirement(value: &Value, path: &Path) -> Result<Requirement> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let text = |key: &str| value[key].as_str();
    Ok(match text("type") {
        Some("insecureAcceptAnything") => Requirement::Accept,
        Some("reject") => Requirement::Refuse("is refused by the policy".to_owned()),
        Some("signedBy") => {
            Requirement::Refuse("would have to be signed with GnuPG, which ilot does not verify".to_owned())
        }
        Some("sigstoreSigned") => {
            for other in [
                "fulcio",
                "rekorPublicKeyPath",
                "rekorPublicKeyData",
                "rekorPublicKeyPaths",
                "rekorPublicKeyDatas",
                "pki",
            ] {
                if !value[other].is_null() {
                    return Ok(Requirement::Refuse(format!(
                        "would have to be checked by `{other}`, which ilot does not do"
                    )));
                }
            }
            let mut keys = Vec::new();
            let list = |one: &str, many: &str| {
                let many = value[many].as_array().into_iter().flatten().filter_map(Value::as_str);
                text(one).into_iter().chain(many).map(str::to_owned).collect::<Vec<_>>()
            };
            for file in list("keyPath", "keyPaths") {
                keys.push(PublicKey::read(Path::new(&file))?);
            }
            for data in list("keyData", "keyDatas") {
                let pem = BASE64.decode(&data).map_err(|e| damaged(format!("`keyData`: {e}")))?;
                keys.push(PublicKey::parse(&pem, "keyData").map_err(|e| damaged(format!("`keyData`: {e}")))?);
            }
            if keys.is_empty() {
                return Err(damaged("`sigstoreSigned` without a key".to_owned()));
            }
            Requirement::Signed { keys, identity: identity(&value["signedIdentity"]).map_err(damaged)? }
        }
        other => return Err(damaged(format!("no such requirement: {other:?}"))),
    })
}

fn identity(value: &Value) -> std::result::Result<Identity, String> {
    let text =
        |key: &str| value[key].as_str().map(str::to_owned).ok_or_else(|| format!("`signedIdentity` without `{key}`"));
    Ok(match value["type"].as_str() {
        None if value.is_null() => Identity::RepoDigestOrExact,
        Some("matchRepoDigestOrExact") => Identity::RepoDigestOrExact,
        Some("matchExact") => Identity::Exact,
        Some("matchRepository") => Identity::Repository,
        Some("exactReference") => Identity::ExactReference(text("dockerReference")?),
        Some("exactRepository") => Identity::ExactRepository(text("dockerRepository")?),
        Some("remapIdentity") => Identity::Remapped { prefix: text("prefix")?, signed_prefix: text("signedPrefix")? },
        other => return Err(format!("no such `signedIdentity`: {other:?}")),
    })
}

impl Identity {
    /// Whether an image that is asked for by one name may be signed under another.
    fn allows(&self, asked: &RegistryName, signed: &str) -> bool {
        let Ok(signed) = RegistryName::parse(signed) else { return false };
        let repository = |n: &RegistryName| format!("{}/{}", n.host, n.repository);
        let exactly = |asked: &RegistryName| repository(asked) == repository(&signed) && asked.tag == signed.tag;
        let digest_or_exactly = |asked: &RegistryName| match asked.digest {
            Some(_) => repository(asked) == repository(&signed),
            None => exactly(asked),
        };
        match self {
            Self::RepoDigestOrExact => digest_or_exactly(asked),
            Self::Exact => asked.tag.is_some() && exactly(asked),
            Self::Repository => repository(asked) == repository(&signed),
            Self::ExactReference(wanted) => RegistryName::parse(wanted).is_ok_and(|w| exactly(&w)),
            Self::ExactRepository(wanted) => {
                RegistryName::parse(wanted).is_ok_and(|w| repository(&w) == repository(&signed))
            }
            Self::Remapped { prefix, signed_prefix } => {
                let full = repository(asked);
                let remapped = match full.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                        match RegistryName::parse(&format!("{signed_prefix}{rest}")) {
                            Ok(name) => RegistryName { tag: asked.tag.clone(), digest: asked.digest.clone(), ..name },
                            Err(_) => return false,
                        }
                    }
                    _ => asked.clone(),
                };
                digest_or_exactly(&remapped)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RegistryName {
        RegistryName::parse(text).unwrap()
    }

    #[test]
    fn scopes_are_tried_from_the_narrowest() {
        assert_eq!(
            scopes_of(&name("reg.example.org:5000/a/b:1")),
            [
                "reg.example.org:5000/a/b:1",
                "reg.example.org:5000/a/b",
                "reg.example.org:5000/a",
                "reg.example.org:5000",
                "*.example.org:5000",
                "*.org:5000",
                ""
            ]
        );
    }

    #[test]
    fn identities() {
        let remapped =
            || Identity::Remapped { prefix: "mirror.x/hub".to_owned(), signed_prefix: "docker.io".to_owned() };
        let digest = format!("r.x/a@sha256:{}", "0".repeat(64));
        for (identity, asked, signed, wanted) in [
            (Identity::RepoDigestOrExact, "r.x/a:1", "r.x/a:1", true),
            (Identity::RepoDigestOrExact, "r.x/a:1", "r.x/a:2", false),
            (Identity::RepoDigestOrExact, "r.x/a:1", "r.x/a", false),
            (Identity::RepoDigestOrExact, digest.as_str(), "r.x/a:7", true),
            (Identity::RepoDigestOrExact, digest.as_str(), "r.x/b:7", false),
            (Identity::Exact, digest.as_str(), "r.x/a:7", false),
            (Identity::Repository, "r.x/a:1", "r.x/a", true),
            (Identity::Repository, "r.x/a:1", "r.x/ab", false),
            (Identity::ExactReference("r.x/z:3".to_owned()), "r.x/a:1", "r.x/z:3", true),
            (Identity::ExactRepository("r.x/z".to_owned()), "r.x/a:1", "r.x/z:3", true),
            (Identity::ExactRepository("r.x/z".to_owned()), "r.x/a:1", "r.x/a:1", false),
            (remapped(), "mirror.x/hub/library/debian:13", "docker.io/library/debian:13", true),
            (remapped(), "mirror.x/hubble/debian:13", "docker.io/ble/debian:13", false),
            (remapped(), "r.x/a:1", "r.x/a:1", true),
            (Identity::Repository, "r.x/a:1", "no name!", false),
        ] {
            assert_eq!(identity.allows(&name(asked), signed), wanted, "{identity:?} {asked} {signed}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_never_passed_over() {
        let path = Path::new("/policy.json");
        let of = |text: &str| requirement(&serde_json::from_str(text).unwrap(), path);
        for refused in [
            r#"{"type":"reject"}"#,
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}"#,
            r#"{"type":"sigstoreSigned","fulcio":{}}"#,
            r#"{"type":"sigstoreSigned","keyPath":"/x","rekorPublicKeyPath":"/y"}"#,
        ] {
            assert!(matches!(of(refused), Ok(Requirement::Refuse(_))), "{refused}");
        }
        for wrong in [
            r#"{"type":"sigstoreSigned"}"#,
            r#"{"type":"news"}"#,
            "{}",
            r#"{"type":"sigstoreSigned","keyPath":"/no/such"}"#,
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(of(r#"{"type":"insecureAcceptAnything"}"#), Ok(Requirement::Accept)));
    }
}
