//! Images from a simplestreams server, as Incus and LXD read it (`streams/v1/index.json`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use serde::Deserialize;

use super::archive::{import_part, import_stream};
use super::{Found, Order};
use crate::error::{Error, Result};
use crate::http::{Open, Watch};
use crate::oci::debian_architecture;
use crate::types::Digest;

/// The largest list of products that is read (linuxcontainers.org has about 3 MB).
const LIST_LIMIT: u64 = 128 << 20;

#[derive(Deserialize)]
struct Index {
    index: BTreeMap<String, Stream>,
}

#[derive(Deserialize)]
struct Stream {
    #[serde(default)]
    datatype: String,
    path: String,
}

#[derive(Deserialize)]
struct Products {
    products: BTreeMap<String, Product>,
}

#[derive(Deserialize)]
struct Product {
    #[serde(default)]
    aliases: String,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    versions: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    items: BTreeMap<String, Item>,
}

#[derive(Debug, Clone, Deserialize)]
struct Item {
    #[serde(default)]
    ftype: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    sha256: Option<String>,
}

/// The newest version of an alias for this host's processor.
pub(super) fn fetch(order: &Order<'_>, server: &str, alias: &str) -> Result<Found> {
    order.stage(&format!("ask {server}"));
    let url = format!("{server}/streams/v1/index.json");
    let index: Index = parse(&url, &order.http.get(&url, LIST_LIMIT, None)?)?;
    let mut offered = Vec::new();
    for stream in index.index.values().filter(|s| s.datatype == "image-downloads") {
        order.wanted()?;
        let url = format!("{server}/{}", safe(server, &stream.path)?);
        let products: Products = parse(&url, &order.http.get(&url, LIST_LIMIT, None)?)?;
        if let Some((version, items)) = pick(&products, alias) {
            return take(order, server, version, items);
        }
        let here = products.products.into_values().filter(|p| p.arch == debian_architecture());
        offered.extend(here.flat_map(|p| p.aliases.split(',').map(|a| a.trim().to_owned()).collect::<Vec<_>>()));
    }
    let reason = format!("has no `{alias}` for {}{}", debian_architecture(), near(alias, &offered));
    Err(Error::Http { url: server.to_owned(), reason, unreachable: false })
}

fn parse<T: for<'a> Deserialize<'a>>(url: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Http {
        url: url.to_owned(),
        reason: format!("not what a simplestreams server says: {e}"),
        unreachable: false,
    })
}

/// A path that the server names, which must lie below its own address.
fn safe<'a>(server: &str, path: &'a str) -> Result<&'a str> {
    let path = path.trim_start_matches('/');
    if path.is_empty() || path.contains("://") || path.split('/').any(|part| part == "..") {
        let reason = format!("names a file outside of itself: `{path}`");
        return Err(Error::Http { url: server.to_owned(), reason, unreachable: false });
    }
    Ok(path)
}

/// The newest version that has files; versions are dates and sort as text.
fn pick<'a>(products: &'a Products, alias: &str) -> Option<(&'a str, &'a BTreeMap<String, Item>)> {
    products
        .products
        .values()
        .filter(|p| p.arch == debian_architecture() && p.aliases.split(',').any(|a| a.trim() == alias))
        .flat_map(|p| &p.versions)
        .filter(|(_, version)| !version.items.is_empty())
        .max_by(|a, b| a.0.cmp(b.0))
        .map(|(name, version)| (name.as_str(), &version.items))
}

fn take(order: &Order<'_>, server: &str, version: &str, items: &BTreeMap<String, Item>) -> Result<Found> {
    let of = |names: &[&str]| items.values().find(|i| names.contains(&i.ftype.as_str()));
    let split = of(&["root.tar.xz", "root.tar.gz", "root.tar.zst"]);
    let combined =
        of(&["incus_combined.tar.gz", "lxd_combined.tar.gz", "incus_combined.tar.xz", "lxd_combined.tar.xz"]);
    let Some(item) = split.or(combined) else {
        let kinds: Vec<_> = items.values().map(|i| i.ftype.as_str()).collect();
        let reason = format!("version {version} has no root file system as a tar archive, only {}", kinds.join(", "));
        return Err(Error::Http { url: server.to_owned(), reason, unreachable: false });
    };
    let url = format!("{server}/{}", safe(server, &item.path)?);
    let Some(expected) = item.sha256.as_deref().and_then(|d| d.to_ascii_lowercase().parse::<Digest>().ok()) else {
        let reason = "the server does not say its digest".to_owned();
        return Err(Error::Http { url, reason, unreachable: false });
    };
    order.stage(&format!("download {url}"));
    let file = order.aside.path().join("download");
    let watch =
        Watch { bytes: &|done, total| order.progress.bytes(done, total), cancelled: &|| order.progress.cancelled() };
    order.http.download(&url, &file, &expected, item.size, &Open, &watch)?;
    order.stage(&format!("unpack version {version}"));
    let archive = std::fs::File::open(&file).map_err(|e| Error::io("open", &file, e))?;
    let size = archive.metadata().ok().map(|m| m.len());
    let layer = match split {
        Some(_) => import_stream(order, &url, archive, size)?,
        None => import_part(order, &url, archive, b"rootfs")?,
    };
    std::fs::remove_file(&file).map_err(|e| Error::io("remove", &file, e))?;
    let mut found = Found::new(layer, server.to_owned(), "simplestreams");
    found.created = date(version);
    Ok(found)
}

/// `20250101_05:24`, `20250101.1` or `20250101` as a time.
fn date(version: &str) -> Option<Timestamp> {
    if !version.is_ascii() {
        return None;
    }
    let day = version.get(..8)?;
    let minute = version.get(9..14).filter(|_| version.as_bytes()[8] == b'_').unwrap_or("00:00");
    let text = format!("{}-{}-{}T{minute}:00", &day[..4], &day[4..6], &day[6..8]);
    let time: DateTime = text.parse().ok()?;
    time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|z| z.timestamp())
}

/// What the server has that looks like what was asked for.
fn near(alias: &str, offered: &[String]) -> String {
    let mut scored: Vec<_> =
        offered.iter().map(|o| (strsim::jaro_winkler(alias, o), o)).filter(|(s, _)| *s > 0.8).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.truncate(3);
    if scored.is_empty() {
        return String::new();
    }
    format!("; it has {}", scored.iter().map(|(_, o)| format!("`{o}`")).collect::<Vec<_>>().join(", "))
}

/// Whatever a server may say.
#[cfg(fuzzing)]
pub(crate) fn fuzz_streams(bytes: &[u8]) {
    if let Ok(index) = parse::<Index>("fuzz", bytes) {
        for stream in index.index.values() {
            if let Ok(path) = safe("https://server", &stream.path) {
                assert!(!path.split('/').any(|part| part == "..") && !path.starts_with('/'));
            }
        }
    }
    let Ok(products) = parse::<Products>("fuzz", bytes) else { return };
    for product in products.products.values() {
        let aliases: Vec<String> = product.aliases.split(',').map(|a| a.trim().to_owned()).collect();
        let _ = near("debian/13", &aliases);
        if let Some((version, items)) = pick(&products, aliases.first().map_or("", String::as_str)) {
            let _ = date(version);
            assert!(!items.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_dates() {
        assert_eq!(date("20250131_05:24").unwrap().to_string(), "2025-01-31T05:24:00Z");
        assert_eq!(date("20250131").unwrap().to_string(), "2025-01-31T00:00:00Z");
        assert_eq!(date("20250131.1").unwrap().to_string(), "2025-01-31T00:00:00Z");
        assert_eq!(date("latest"), None);
        assert_eq!(date("ööööö"), None);
    }

    #[test]
    fn a_server_names_only_its_own_files() {
        assert_eq!(safe("https://a", "/images/x").unwrap(), "images/x");
        for path in ["", "../x", "a/../../x", "https://b/x"] {
            assert!(safe("https://a", path).is_err(), "{path}");
        }
    }
}
