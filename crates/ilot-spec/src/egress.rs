//! What may leave a domain or a machine: the entries of `ilot: {egress: […]}`.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Serialize;

use crate::model::Protocol;

/// One entry: `none`, `all`, or a target with optional ports and protocol (`deb.debian.org:443`, `10.0.0.0/8:53/udp`,
/// `[2001:db8::]/32:443`, `*.example.org`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EgressRule {
    /// Where to.
    pub target: EgressTarget,
    /// Which ports; empty means every one.
    pub ports: Vec<u16>,
    /// Which protocol; `None` means every one.
    pub protocol: Option<Protocol>,
}

/// Where an egress rule allows to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressTarget {
    /// Nowhere.
    None,
    /// Everywhere outside.
    All,
    /// A host by name; `*.` in front means every name below it.
    Host(String),
    /// A network, or one address.
    Net(IpNet),
}

/// A text that is no egress entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an egress entry: {reason}")]
pub struct InvalidEgress {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl FromStr for EgressRule {
    type Err = InvalidEgress;

    fn from_str(text: &str) -> Result<Self, InvalidEgress> {
        let fail = |reason| InvalidEgress { text: text.into(), reason };
        let plain = |target| Ok(Self { target, ports: Vec::new(), protocol: None });
        match text {
            "none" => return plain(EgressTarget::None),
            "all" => return plain(EgressTarget::All),
            _ => {}
        }
        let (target, ports) = split(text).ok_or_else(|| fail("an IPv6 address needs brackets: `[2001:db8::]/32`"))?;
        let (ports, protocol) = match ports {
            None => (Vec::new(), None),
            Some(ports) => parse_ports(ports).map_err(fail)?,
        };
        let target = parse_target(target).map_err(fail)?;
        Ok(Self { target, ports, protocol })
    }
}

/// The target and what follows its last colon.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(end) = text.strip_prefix('[').and(text.find(']')) {
        return Some(match text[end..].find(':') {
            Some(colon) => (&text[..end + colon], Some(&text[end + colon + 1..])),
            None => (text, None),
        });
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((_, ports)) if ports.contains(':') => None,
        Some((target, ports)) => Some((target, Some(ports))),
    }
}

fn parse_ports(text: &str) -> Result<(Vec<u16>, Option<Protocol>), &'static str> {
    let (ports, protocol) = match text.split_once('/') {
        None => (text, None),
        Some((ports, protocol)) => (ports, Some(Protocol::parse(protocol).ok_or("the protocol is `tcp` or `udp`")?)),
    };
    let mut list = Vec::new();
    for port in ports.split(',') {
        match port.parse::<u16>() {
            Ok(port) if port > 0 => list.push(port),
            _ => return Err("a port is a number from 1 to 65535"),
        }
    }
    list.sort_unstable();
    list.dedup();
    Ok((list, protocol))
}

fn parse_target(text: &str) -> Result<EgressTarget, &'static str> {
    let address = text.replace(['[', ']'], "");
    if let Ok(net) = address.parse::<IpNet>() {
        return if net == net.trunc() { Ok(EgressTarget::Net(net)) } else { Err("bits are set behind the prefix") };
    }
    if let Ok(ip) = address.parse::<IpAddr>() {
        return Ok(EgressTarget::Net(ip.into()));
    }
    if text.contains('/') {
        return Err("this is not a network such as `10.0.0.0/8`");
    }
    let name = text.strip_prefix("*.").unwrap_or(text).trim_end_matches('.');
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|c| c.is_ascii_digit()));
    if name.len() <= 253 && !numeric_end && name.split('.').all(label) {
        let star = if text.starts_with("*.") { "*." } else { "" };
        return Ok(EgressTarget::Host(format!("{star}{}", name.to_ascii_lowercase())));
    }
    Err("write `none`, `all`, a host name or a network, with `:PORT` behind if only that is meant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let rule = |text: &str| text.parse::<EgressRule>();
        assert_eq!(rule("none").unwrap().target, EgressTarget::None);
        assert_eq!(rule("all").unwrap().target, EgressTarget::All);
        let r = rule("deb.Debian.org:443,80").unwrap();
        assert_eq!((r.target, r.ports, r.protocol), (EgressTarget::Host("deb.debian.org".into()), vec![80, 443], None));
        let r = rule("10.0.0.0/8:53/udp").unwrap();
        assert_eq!(r.target, EgressTarget::Net("10.0.0.0/8".parse().unwrap()));
        assert_eq!((r.ports, r.protocol), (vec![53], Some(Protocol::Udp)));
        assert_eq!(rule("1.1.1.1").unwrap().target, EgressTarget::Net("1.1.1.1/32".parse().unwrap()));
        assert_eq!(rule("*.example.org").unwrap().target, EgressTarget::Host("*.example.org".into()));
        let r = rule("[2001:db8::]/32:443").unwrap();
        assert_eq!((r.target, r.ports), (EgressTarget::Net("2001:db8::/32".parse().unwrap()), vec![443]));
        for bad in [
            "",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "2001:db8::/32",
            "a:0",
            "a:70000",
            "a:80/icmp",
            "-a.org",
            "a b",
            "1.2.3",
            "300.1.1.1",
        ] {
            assert!(rule(bad).is_err(), "{bad}");
        }
    }
}
