//! Names, addresses and marks of what we make in the kernel.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The longest interface name (`IFNAMSIZ` less its zero).
pub const MAX_IFNAME: usize = 15;
/// What every bridge of ours starts with.
pub const BRIDGE_PREFIX: &str = "il-";
/// What every host end of a machine's veth starts with; the packet filter drops what comes from an unknown one.
pub const PORT_PREFIX: &str = "iv-";

/// Who made an interface; carried in its alias as `ilot:<store>:<project>:<domain>[:<machine>]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// [`store_id`] of the store.
    pub store: String,
    /// The project.
    pub project: String,
}

/// A short stable name for a store: the first 8 hex digits of its path's SHA-256.
#[must_use]
pub fn store_id(root: &Path) -> String {
    hex(root.as_os_str().as_encoded_bytes(), 8)
}

/// The bridge of a domain: `il-<domain>` if that fits 15 bytes, else `il-<first 6>-<5 hex digits of its hash>`.
#[must_use]
pub fn bridge_name(domain: &str) -> String {
    interface_name(BRIDGE_PREFIX, domain)
}

/// The host end of a machine's veth: `iv-<machine>`, shortened like [`bridge_name`].
#[must_use]
pub fn port_name(machine: &str) -> String {
    interface_name(PORT_PREFIX, machine)
}

fn interface_name(prefix: &str, name: &str) -> String {
    if prefix.len() + name.len() <= MAX_IFNAME {
        return format!("{prefix}{name}");
    }
    let head: String = name.chars().take(6).collect();
    format!("{prefix}{head}-{}", hex(name.as_bytes(), 5))
}

/// A machine's hardware address: locally administered, unicast, always the same for the same name.
#[must_use]
pub fn mac_for(machine: &str) -> Mac {
    let hash = Sha256::digest(format!("ilot mac {machine}").as_bytes());
    Mac([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

fn hex(bytes: &[u8], digits: usize) -> String {
    let mut out = String::with_capacity(digits + 1);
    for byte in Sha256::digest(bytes) {
        if out.len() >= digits {
            break;
        }
        out.push_str(&format!("{byte:02x}"));
    }
    out.truncate(digits);
    out
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The link-local IPv6 address that follows from it (RFC 4291, appendix A).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not six hexadecimal bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a hardware address: six hexadecimal bytes, `02:00:5e:10:00:01`")]
pub struct InvalidMac(pub String);

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> std::result::Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An interface's alias, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub owner: Owner,
    pub domain: String,
    pub machine: Option<String>,
}

impl Mark {
    pub fn render(owner: &Owner, domain: &str, machine: Option<&str>) -> String {
        // A project's name is free text: the separator and the escape itself are escaped. The kernel takes 255 bytes.
        let project: String = owner.project.replace('%', "%25").replace(':', "%3a").chars().take(96).collect();
        let mut text = format!("ilot:{}:{project}:{domain}", owner.store);
        if let Some(machine) = machine {
            text.push(':');
            text.push_str(machine);
        }
        text
    }

    pub fn parse(alias: &str) -> Option<Self> {
        let mut parts = alias.split(':');
        if parts.next() != Some("ilot") {
            return None;
        }
        let store = parts.next()?.to_owned();
        let project = parts.next()?.replace("%3a", ":").replace("%25", "%");
        let domain = parts.next()?.to_owned();
        let machine = parts.next().map(str::to_owned);
        Some(Self { owner: Owner { store, project }, domain, machine })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(bridge_name("pro"), "il-pro");
        assert_eq!(bridge_name("twelve-chars"), "il-twelve-chars");
        let a = bridge_name("student-workshop-01");
        let b = bridge_name("student-workshop-02");
        assert_eq!(a.len(), MAX_IFNAME);
        assert_ne!(a, b);
        assert!(a.starts_with("il-studen-"));
        assert_eq!(port_name("s01-client"), "iv-s01-client");
    }

    #[test]
    fn macs_are_local_unicast_and_stable() {
        let mac = mac_for("pro-dev");
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_eq!(mac, mac_for("pro-dev"));
        assert_ne!(mac, mac_for("pro-web"));
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        for bad in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:00", "0200:0:00:00:00:00"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn marks_survive_any_project_name() {
        for project in ["lab", "a:b", "100%3a", "été"] {
            let owner = Owner { store: "0a1b2c3d".into(), project: project.into() };
            let text = Mark::render(&owner, "pro", Some("pro-dev"));
            let mark = Mark::parse(&text).unwrap();
            assert_eq!(mark, Mark { owner, domain: "pro".into(), machine: Some("pro-dev".into()) });
        }
        assert_eq!(Mark::parse("uplink"), None);
        assert_eq!(Mark::parse("ilot:x"), None);
    }
}
