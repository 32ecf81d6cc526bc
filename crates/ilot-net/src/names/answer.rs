//! Which names are ours, which are nobody's, and which somebody else is asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::{NamesConfig, Others};
use super::wire::{Code, Query, Record, class, kind};

/// The top-level name that is always ours.
const TOP: &str = "ilot";
/// Asked in class CHAOS by the host alone: which configuration is in force.
pub const CONFIG_NAME: &str = "config.ilot";

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Answer it.
    Answer(Code, Vec<Record>),
    /// Ask the upstreams.
    Forward,
    /// Not this machine, not this name: refused, and written down.
    Forbidden,
}

/// Decides; `digest` names the configuration.
pub fn decide(config: &NamesConfig, digest: &str, query: &Query, client: Ipv4Addr) -> Decision {
    if query.class == class::CHAOS && client == config.listen && query.name == CONFIG_NAME {
        return Decision::Answer(Code::NoError, vec![Record::Txt(digest.to_owned())]);
    }
    if query.class != class::IN && query.class != class::ANY {
        return Decision::Answer(Code::Refused, Vec::new());
    }
    if let Some(machine) = own_machine(config, query) {
        let asked = |wanted| query.kind == wanted || query.kind == kind::ANY;
        let mut records = Vec::new();
        records.extend(config.hosts.get(machine).filter(|_| asked(kind::A)).map(|ip| Record::A(*ip)));
        records.extend(config.hosts6.get(machine).filter(|_| asked(kind::AAAA)).map(|ip| Record::Aaaa(*ip)));
        return Decision::Answer(Code::NoError, records);
    }
    if let Some(address) = reverse(&query.name).filter(|address| is_ours(config, *address)) {
        return by_address(config, query, address);
    }
    // Names without a dot are local by nature; who is asked for them outside would only learn what is looked for here. The
    // zones' own records are what a validating resolver in a machine needs.
    let zone_record = matches!(query.kind, kind::NS | kind::SOA | kind::DS | kind::DNSKEY);
    let ours = query.name == TOP || query.name.ends_with(".ilot");
    if ours || (query.labels == 1 && !zone_record) {
        return Decision::Answer(Code::NxDomain, Vec::new());
    }
    let others = config.others_of(client);
    if config.upstreams.is_empty() || !others.allow(&query.name) {
        return Decision::Forbidden;
    }
    // Addresses that nothing opens are not told.
    let unopened = matches!(query.kind, kind::SVCB | kind::HTTPS | kind::ANY);
    let unopened6 = query.kind == kind::AAAA && config.listen6.is_none();
    if matches!(others, Others::Names(_)) && (unopened || unopened6) {
        return Decision::Answer(Code::NoError, Vec::new());
    }
    Decision::Forward
}

/// The machine of the domain that a name means.
fn own_machine<'a>(config: &'a NamesConfig, query: &'a Query) -> Option<&'a str> {
    if config.hosts.contains_key(&query.name) {
        return Some(&query.name);
    }
    config.search.iter().find_map(|suffix| {
        let machine = query.name.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
        config.hosts.contains_key(machine).then_some(machine)
    })
}

/// Whether an address is in the domain: the gateway's /64 for IPv6.
fn is_ours(config: &NamesConfig, address: IpAddr) -> bool {
    let half = |address: Ipv6Addr| u128::from(address) >> 64;
    match address {
        IpAddr::V4(address) => config.subnet.contains(&address),
        IpAddr::V6(address) => config.listen6.is_some_and(|gateway| half(gateway) == half(address)),
    }
}

fn by_address(config: &NamesConfig, query: &Query, address: IpAddr) -> Decision {
    let machine = match address {
        IpAddr::V4(address) => config.hosts.iter().find(|(_, ip)| **ip == address).map(|(machine, _)| machine),
        IpAddr::V6(address) => config.hosts6.iter().find(|(_, ip)| **ip == address).map(|(machine, _)| machine),
    };
    let Some(machine) = machine else {
        return Decision::Answer(Code::NxDomain, Vec::new());
    };
    if query.kind != kind::PTR && query.kind != kind::ANY {
        return Decision::Answer(Code::NoError, Vec::new());
    }
    let name = config.search.first().map_or(machine.clone(), |suffix| format!("{machine}.{suffix}"));
    Decision::Answer(Code::NoError, vec![Record::Ptr(name)])
}

/// The address whose reverse name this is (RFC 1035, 3.5; RFC 3596, 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(nibbles) = name.strip_suffix(".ip6.arpa") {
        let mut address = 0_u128;
        let mut parts = nibbles.rsplit('.');
        for _ in 0..32 {
            let digit = parts.next().filter(|part| part.len() == 1)?;
            address = address << 4 | u128::from(u8::from_str_radix(digit, 16).ok()?);
        }
        return parts.next().is_none().then(|| Ipv6Addr::from(address).into());
    }
    let mut octets = [0u8; 4];
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NamesConfig {
        let mut config = NamesConfig::new("pro", "10.120.3.254/24".parse().unwrap());
        config.hosts.insert("pro-dev".into(), [10, 120, 3, 10].into());
        config.hosts.insert("web".into(), [10, 120, 3, 11].into());
        config.upstreams.push("192.0.2.53:53".parse().unwrap());
        config
    }

    fn ask(config: &NamesConfig, name: &str, kind: u16) -> Decision {
        let labels = name.split('.').count();
        let query = Query { id: 1, name: name.into(), labels, kind, class: class::IN, end: 0, edns: false };
        decide(config, "digest", &query, [10, 120, 3, 10].into())
    }

    #[test]
    fn own_names_in_three_forms() {
        let web = Decision::Answer(Code::NoError, vec![Record::A([10, 120, 3, 11].into())]);
        for name in ["web", "web.pro", "web.pro.ilot"] {
            assert_eq!(ask(&config(), name, kind::A), web, "{name}");
            assert_eq!(ask(&config(), name, 28), Decision::Answer(Code::NoError, Vec::new()), "{name} AAAA");
        }
    }

    #[test]
    fn ipv6_addresses_where_there_are_some() {
        let mut config = config();
        config.listen6 = Some("fd00::fe".parse().unwrap());
        config.hosts6.insert("web".into(), "fd00::b".parse().unwrap());
        let web = Record::Aaaa("fd00::b".parse().unwrap());
        assert_eq!(ask(&config, "web.pro.ilot", kind::AAAA), Decision::Answer(Code::NoError, vec![web]));
        assert_eq!(ask(&config, "pro-dev", kind::AAAA), Decision::Answer(Code::NoError, Vec::new()));
        let nibbles = |last: char| format!("{last}.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        let name = Record::Ptr("web.pro.ilot".into());
        assert_eq!(ask(&config, &nibbles('b'), kind::PTR), Decision::Answer(Code::NoError, vec![name]));
        assert_eq!(ask(&config, &nibbles('c'), kind::PTR), Decision::Answer(Code::NxDomain, Vec::new()));
        // Another network, too few digits, too many, no digits.
        let other = format!("b.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23));
        for name in [other, nibbles('b')[2..].to_owned(), format!("0.{}", nibbles('b')), nibbles('g')] {
            assert_eq!(ask(&config, &name, kind::PTR), Decision::Forward, "{name}");
        }
        assert_eq!(config.client("fd00::b".parse().unwrap()), Some([10, 120, 3, 11].into()));
        assert_eq!(config.client("fd00::c".parse().unwrap()), None);
        assert_eq!(config.client("fd00::fe".parse().unwrap()), Some([10, 120, 3, 254].into()));
    }

    #[test]
    fn names_of_nobody_and_of_others() {
        let nobody = Decision::Answer(Code::NxDomain, Vec::new());
        for name in ["desk", "desk.perso.ilot", "web.perso.ilot", "nope.pro.ilot", "ilot", "localhost"] {
            assert_eq!(ask(&config(), name, kind::A), nobody, "{name}");
        }
        // `pro` might be a real top-level name: only our machines' names in it are ours.
        for name in ["example.org", "nope.pro", "xilot.org"] {
            assert_eq!(ask(&config(), name, kind::A), Decision::Forward, "{name}");
        }
        assert_eq!(ask(&config(), "com", kind::DS), Decision::Forward);
    }

    #[test]
    fn without_upstreams_outside_names_are_refused() {
        let mut config = config();
        config.upstreams.clear();
        assert_eq!(ask(&config, "example.org", kind::A), Decision::Forbidden);
        assert!(matches!(ask(&config, "web", kind::A), Decision::Answer(Code::NoError, _)));
    }

    #[test]
    fn a_list_of_names_is_all_that_is_answered() {
        use crate::firewall::{Egress, EgressEntry, EgressTo, Ports};
        let entry = |name: &str| EgressEntry { to: EgressTo::Name(name.into()), ports: Ports::All, protocol: None };
        let mut config = config();
        config.others = Others::of(&Egress::List(vec![entry("deb.example.org"), entry("*.example.net")]));
        for name in ["deb.example.org", "a.example.net", "a.b.example.net"] {
            assert_eq!(ask(&config, name, kind::A), Decision::Forward, "{name}");
            for other in [kind::AAAA, kind::HTTPS, kind::ANY] {
                assert_eq!(ask(&config, name, other), Decision::Answer(Code::NoError, Vec::new()), "{name}");
            }
        }
        for name in ["example.org", "x.deb.example.org", "example.net", "xexample.net", "notdeb.example.org"] {
            assert_eq!(ask(&config, name, kind::A), Decision::Forbidden, "{name}");
        }
        assert!(matches!(ask(&config, "web", kind::A), Decision::Answer(Code::NoError, _)));
        // One machine has a list of its own.
        config.own.insert([10, 120, 3, 10].into(), Others::All);
        assert_eq!(ask(&config, "example.org", kind::A), Decision::Forward);
    }

    #[test]
    fn addresses_have_names() {
        let name = Record::Ptr("pro-dev.pro.ilot".into());
        let found = ask(&config(), "10.3.120.10.in-addr.arpa", kind::PTR);
        assert_eq!(found, Decision::Answer(Code::NoError, vec![name]));
        let nobody = Decision::Answer(Code::NxDomain, Vec::new());
        assert_eq!(ask(&config(), "99.3.120.10.in-addr.arpa", kind::PTR), nobody);
        assert_eq!(ask(&config(), "8.8.8.8.in-addr.arpa", kind::PTR), Decision::Forward);
    }

    #[test]
    fn the_configuration_is_told_to_the_host_alone() {
        let query = Query {
            id: 1,
            name: CONFIG_NAME.into(),
            labels: 2,
            kind: kind::TXT,
            class: class::CHAOS,
            end: 0,
            edns: false,
        };
        let told = Decision::Answer(Code::NoError, vec![Record::Txt("d".into())]);
        assert_eq!(decide(&config(), "d", &query, [10, 120, 3, 254].into()), told);
        let refused = Decision::Answer(Code::Refused, Vec::new());
        assert_eq!(decide(&config(), "d", &query, [10, 120, 3, 10].into()), refused);
    }
}
