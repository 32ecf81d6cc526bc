//! The databases of packages: dpkg's, apk's, rpm's, and what languages leave in an image.

use serde_json::Value;

use super::{Bill, Files, Package, rpm};

/// Reads a file of packages, which is at a path.
type Read = fn(&[u8], &str) -> Vec<Package>;

/// Whether a file names packages.
pub(super) fn is_wanted(path: &[u8]) -> bool {
    let known: [&[u8]; 5] = [
        b"var/lib/dpkg/status",
        b"lib/apk/db/installed",
        b"usr/lib/apk/db/installed",
        b"etc/os-release",
        b"usr/lib/os-release",
    ];
    known.contains(&path) || is_distroless(path) || rpm::is_database(path) || language(path).is_some()
}

/// Databases that are there and are not read.
pub(super) fn is_unread(path: &[u8]) -> bool {
    rpm::is_old(path)
}

/// One file for each package, as images without dpkg have it.
fn is_distroless(path: &[u8]) -> bool {
    path.strip_prefix(b"var/lib/dpkg/status.d/")
        .is_some_and(|name| !name.contains(&b'/') && !name.ends_with(b".md5sums"))
}

/// What reads a file of a language's packages.
fn language(path: &[u8]) -> Option<Read> {
    let mut parts = path.rsplit(|b| *b == b'/');
    let (name, folder) = (parts.next()?, parts.next().unwrap_or_default());
    match name {
        b"METADATA" if folder.ends_with(b".dist-info") => Some(python),
        b"PKG-INFO" if folder.ends_with(b".egg-info") => Some(python),
        b"package.json" if path.windows(13).any(|w| w == b"node_modules/") => Some(node),
        b"package-lock.json" if !path.windows(13).any(|w| w == b"node_modules/") => Some(node_lock),
        b"Cargo.lock" => Some(cargo_lock),
        b"poetry.lock" | b"uv.lock" => Some(python_lock),
        b"composer.lock" => Some(composer_lock),
        b"Gemfile.lock" => Some(gem_lock),
        b"go.mod" => Some(go_mod),
        _ => None,
    }
}

pub(super) fn read(files: &Files, notes: Vec<String>) -> Bill {
    let mut bill = Bill { notes, ..Bill::default() };
    for path in [&b"etc/os-release"[..], b"usr/lib/os-release"] {
        let Some(content) = files.get(path) else { continue };
        bill.distribution = bill.distribution.or_else(|| setting(content, "ID"));
        bill.version = bill.version.or_else(|| setting(content, "VERSION_ID"));
    }
    for (path, content) in files {
        let shown = String::from_utf8_lossy(path).into_owned();
        let found = match path.as_slice() {
            b"var/lib/dpkg/status" => dpkg(content, &shown, true),
            path if is_distroless(path) => dpkg(content, &shown, false),
            path if path.ends_with(b"apk/db/installed") => apk(content, &shown),
            path if rpm::is_database(path) => rpm::read(content, &shown),
            path => language(path).map(|read| read(content, &shown)).unwrap_or_default(),
        };
        bill.packages.extend(found);
    }
    bill.packages.retain(|p| !p.name.is_empty() && !p.version.is_empty());
    bill.packages.sort();
    bill.packages.dedup_by(|a, b| {
        a.kind == b.kind && a.name == b.name && a.version == b.version && a.architecture == b.architecture
    });
    if bill.packages.is_empty() {
        bill.notes.push("no database of packages was found: what is in the image came without one".to_owned());
    }
    bill
}

/// The same bytes as each database and lock file.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    for path in [
        "var/lib/dpkg/status",
        "var/lib/dpkg/status.d/x",
        "lib/apk/db/installed",
        "etc/os-release",
        "var/lib/rpm/rpmdb.sqlite",
        "x.dist-info/METADATA",
        "node_modules/x/package.json",
        "package-lock.json",
        "Cargo.lock",
        "composer.lock",
        "Gemfile.lock",
        "go.mod",
    ] {
        let _ = read(&[(path.as_bytes().to_vec(), bytes.to_vec())].into(), Vec::new());
    }
}

/// `ID="debian"` of os-release(5).
fn setting(content: &[u8], key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned()).filter(|value| !value.is_empty())
}

/// The fields of stanzas (deb-control(5)); a line that goes on is of no interest here.
fn stanzas(content: &[u8]) -> Vec<Vec<(String, String)>> {
    let text = String::from_utf8_lossy(content);
    let mut all = vec![Vec::new()];
    for line in text.lines() {
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if !line.starts_with([' ', '\t'])
            && let (Some((key, value)), Some(last)) = (line.split_once(':'), all.last_mut())
        {
            last.push((key.to_owned(), value.trim().to_owned()));
        }
    }
    all.retain(|stanza| !stanza.is_empty());
    all
}

fn field<'a>(stanza: &'a [(String, String)], key: &str) -> Option<&'a str> {
    stanza.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
}

fn dpkg(content: &[u8], path: &str, has_states: bool) -> Vec<Package> {
    let installed =
        |s: &[(String, String)]| !has_states || field(s, "Status").is_some_and(|s| s.ends_with(" installed"));
    let package = |s: &Vec<(String, String)>| {
        Some(Package {
            kind: "deb",
            name: field(s, "Package")?.to_owned(),
            version: field(s, "Version")?.to_owned(),
            architecture: field(s, "Architecture").map(str::to_owned),
            license: None,
            found_in: path.to_owned(),
        })
    };
    stanzas(content).iter().filter(|s| installed(s)).filter_map(package).collect()
}

/// apk's `installed`: stanzas of one-letter fields, case significant.
fn apk(content: &[u8], path: &str) -> Vec<Package> {
    let package = |s: &Vec<(String, String)>| {
        let exact = |key: &str| s.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        Some(Package {
            kind: "apk",
            name: exact("P")?,
            version: exact("V")?,
            architecture: exact("A"),
            license: exact("L"),
            found_in: path.to_owned(),
        })
    };
    stanzas(content).iter().filter_map(package).collect()
}

/// The header of a distribution's metadata (Python's core metadata).
fn python(content: &[u8], path: &str) -> Vec<Package> {
    let all = stanzas(content);
    let Some(header) = all.first() else { return Vec::new() };
    let license = field(header, "License-Expression").or_else(|| field(header, "License"));
    let package = |name: &str, version: &str| Package {
        kind: "pypi",
        // As the index names it (PEP 503).
        name: name.to_lowercase().replace(['_', '.'], "-"),
        version: version.to_owned(),
        architecture: None,
        license: license.filter(|l| *l != "UNKNOWN").map(str::to_owned),
        found_in: path.to_owned(),
    };
    field(header, "Name").zip(field(header, "Version")).map(|(n, v)| package(n, v)).into_iter().collect()
}

fn npm(name: &str, version: Option<&str>, license: Option<&str>, path: &str) -> Option<Package> {
    Some(Package {
        kind: "npm",
        name: name.to_owned(),
        version: version?.to_owned(),
        architecture: None,
        license: license.map(str::to_owned),
        found_in: path.to_owned(),
    })
}

fn node(content: &[u8], path: &str) -> Vec<Package> {
    let json: Value = serde_json::from_slice(content).unwrap_or_default();
    let Some(name) = json["name"].as_str() else { return Vec::new() };
    npm(name, json["version"].as_str(), json["license"].as_str(), path).into_iter().collect()
}

fn node_lock(content: &[u8], path: &str) -> Vec<Package> {
    let json: Value = serde_json::from_slice(content).unwrap_or_default();
    let text = |v: &Value, key: &str| v[key].as_str().map(str::to_owned);
    // Version 2 and 3 list paths below node_modules, version 1 names.
    let by_path = json["packages"].as_object().into_iter().flatten();
    let by_path = by_path.filter_map(|(at, v)| Some((at.rsplit_once("node_modules/")?.1.to_owned(), v)));
    let by_name = json["dependencies"].as_object().into_iter().flatten().map(|(name, v)| (name.clone(), v));
    let list: Vec<_> = if json["packages"].is_object() { by_path.collect() } else { by_name.collect() };
    list.into_iter()
        .filter_map(|(name, v)| npm(&name, text(v, "version").as_deref(), text(v, "license").as_deref(), path))
        .collect()
}

/// `[[package]]` tables with `name = "…"` and `version = "…"`, as Cargo, Poetry and uv write them.
fn tables(content: &[u8], path: &str, kind: &'static str) -> Vec<Package> {
    let text = String::from_utf8_lossy(content);
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|v| v.trim().trim_matches('"').to_owned())
    };
    let package = |block: &str| Some(plain(kind, &value(block, "name")?, &value(block, "version")?, path));
    text.split("[[package]]").skip(1).filter_map(package).collect()
}

fn plain(kind: &'static str, name: &str, version: &str, path: &str) -> Package {
    let (name, version, found_in) = (name.to_owned(), version.to_owned(), path.to_owned());
    Package { kind, name, version, architecture: None, license: None, found_in }
}

fn cargo_lock(content: &[u8], path: &str) -> Vec<Package> {
    tables(content, path, "cargo")
}

fn python_lock(content: &[u8], path: &str) -> Vec<Package> {
    tables(content, path, "pypi")
}

/// PHP's: a list each for use and for work on it.
fn composer_lock(content: &[u8], path: &str) -> Vec<Package> {
    let json: Value = serde_json::from_slice(content).unwrap_or_default();
    let lists = ["packages", "packages-dev"].map(|list| json[list].as_array().cloned().unwrap_or_default());
    let package = |v: &Value| {
        let license = v["license"].as_array().and_then(|all| all.first()).and_then(Value::as_str).map(str::to_owned);
        let version = v["version"].as_str()?;
        let version =
            version.strip_prefix('v').filter(|v| v.starts_with(|c: char| c.is_ascii_digit())).unwrap_or(version);
        Some(Package { license, ..plain("composer", v["name"].as_str()?, version, path) })
    };
    lists.iter().flatten().filter_map(package).collect()
}

/// Ruby's: below `specs:`, four blanks, a name, and a version in brackets.
fn gem_lock(content: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(content);
    let package = |line: &str| {
        let line = line.strip_prefix("    ").filter(|line| !line.starts_with(' '))?;
        let (name, version) = line.strip_suffix(')')?.split_once(" (")?;
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| plain("gem", name, version, path))
    };
    text.lines().filter_map(package).collect()
}

/// Go's: what a module requires; of indirect ones too, which are written down since Go 1.17.
fn go_mod(content: &[u8], path: &str) -> Vec<Package> {
    let text = String::from_utf8_lossy(content);
    let (mut packages, mut inside) = (Vec::new(), false);
    for line in text.lines().map(|line| line.split("//").next().unwrap_or_default().trim()) {
        let module = match line {
            "require (" => {
                inside = true;
                continue;
            }
            ")" => {
                inside = false;
                continue;
            }
            line if inside => Some(line),
            line => line.strip_prefix("require "),
        };
        if let Some((name, version)) = module.and_then(|module| module.trim().split_once(' ')) {
            packages.push(plain("golang", name, version.trim(), path));
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(packages: &[Package]) -> Vec<String> {
        packages.iter().map(|p| format!("{}/{}@{}", p.kind, p.name, p.version)).collect()
    }

    #[test]
    fn databases() {
        let files: Files = [
            (
                "var/lib/dpkg/status",
                "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: shell\n more: of it\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nno field\n",
            ),
            ("var/lib/dpkg/status.d/tzdata", "Package: tzdata\nVersion: 2025a\n"),
            ("lib/apk/db/installed", "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\na:not the processor\n\nP:broken\n"),
            ("etc/os-release", "NAME=x\nID=debian\nVERSION_ID=\"13\"\n"),
            ("usr/lib/python3/dist-packages/My_Lib-1.0.dist-info/METADATA", "Name: My_Lib\nVersion: 1.0\nLicense: UNKNOWN\n\nName: in the text\nVersion: 9\n"),
            ("app/node_modules/@a/b/package.json", r#"{"name":"@a/b","version":"2.0.0","license":"ISC"}"#),
            ("app/package-lock.json", r#"{"packages":{"":{"name":"app"},"node_modules/c":{"version":"3.0.0"}}}"#),
            ("srv/Cargo.lock", "version = 3\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.1\"\n"),
            ("broken/package-lock.json", "{"),
            ("srv/uv.lock", "[[package]]\nname = \"flask\"\nversion = \"3.0.0\"\n"),
            ("srv/poetry.lock", "[[package]]\nname = \"django\"\nversion = \"5.0\"\n"),
            ("srv/composer.lock", r#"{"packages":[{"name":"a/b","version":"v1.2.0","license":["MIT"]}],"packages-dev":[{"name":"c/d","version":"dev-main"}]}"#),
            ("srv/Gemfile.lock", "GEM\n  remote: x\n  specs:\n    rails (7.1.0)\n      rack (>= 2)\n\nDEPENDENCIES\n  rails (~> 7)\n"),
            ("srv/go.mod", "module me\n\ngo 1.22\n\nrequire x.org/one v1.0.0\nrequire (\n\tx.org/two v2.1.0 // indirect\n)\nreplace x => y\n"),
        ]
        .into_iter()
        .map(|(path, content)| (path.as_bytes().to_vec(), content.as_bytes().to_vec()))
        .collect();
        assert!(files.keys().all(|path| is_wanted(path)), "all of them are looked for");
        let bill = read(&files, Vec::new());
        assert_eq!(
            names(&bill.packages),
            [
                "apk/musl@1.2.5-r0",
                "cargo/serde@1.0.1",
                "composer/a/b@1.2.0",
                "composer/c/d@dev-main",
                "deb/bash@5.2-1",
                "deb/tzdata@2025a",
                "gem/rails@7.1.0",
                "golang/x.org/one@v1.0.0",
                "golang/x.org/two@v2.1.0",
                "npm/@a/b@2.0.0",
                "npm/c@3.0.0",
                "pypi/django@5.0",
                "pypi/flask@3.0.0",
                "pypi/my-lib@1.0"
            ]
        );
        assert_eq!((bill.distribution.as_deref(), bill.version.as_deref()), (Some("debian"), Some("13")));
        assert_eq!(bill.packages[0].architecture.as_deref(), Some("x86_64"), "case is significant");
        assert!(!is_wanted(b"var/lib/dpkg/status.d/x.md5sums") && !is_wanted(b"etc/passwd"));
        assert!(is_wanted(b"usr/lib/sysimage/rpm/rpmdb.sqlite") && is_wanted(b"var/lib/rpm/Packages.db"));
        assert!(!is_wanted(b"home/rpmdb.sqlite") && is_unread(b"var/lib/rpm/Packages") && !is_unread(b"srv/Packages"));
        assert_eq!(read(&Files::new(), Vec::new()).notes.len(), 1);
    }
}
