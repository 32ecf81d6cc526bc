//! Subnets of domains and addresses of machines.
//!
//! Zones: `10.<zone_base + offset of the trust level>.<seq>.<host>/24`. The old form:
//! `<base_subnet>.<subnet_id>.<host>/24`. The IPv6 addresses follow from the IPv4 ones: [`ipv6_of`].

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::cx::{Cx, Path};
use crate::model::{HostFacts, TrustLevel};
use crate::read::{AddressingForm, RawDomain, RawGlobal, RawMachine};
use crate::yaml::Span;

/// The last host that is given without being asked for.
pub const LAST_STATIC_HOST: u8 = 99;
/// The firewall machine's host.
pub const FIREWALL_HOST: u8 = 253;
/// The gateway's host.
pub const GATEWAY_HOST: u8 = 254;

/// What a trust level adds to `zone_base`.
#[must_use]
pub fn zone_offset(level: TrustLevel) -> u8 {
    match level {
        TrustLevel::Admin => 0,
        TrustLevel::Trusted => 10,
        TrustLevel::SemiTrusted => 20,
        TrustLevel::Untrusted => 40,
        TrustLevel::Disposable => 50,
    }
}

/// The first 40 bits of every IPv6 address of a domain: a unique local address (RFC 4193), and `ilot` in ASCII.
const IPV6_PREFIX: [u8; 5] = [0xfd, b'i', b'l', b'o', b't'];
/// The length of a domain's IPv6 subnet.
const IPV6_SUBNET: u8 = 64;

/// The IPv6 address that goes with an IPv4 address: `fd69:6c6f:74<a>:<b><c>::<d>` for `a.b.c.d`, in hexadecimal.
///
/// Nothing but the IPv4 address decides it: one is unique when the other is, and neither the store nor the host has a say.
#[must_use]
pub fn ipv6_of(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let mut octets = [0; 16];
    octets[..5].copy_from_slice(&IPV6_PREFIX);
    octets[5..8].copy_from_slice(&[a, b, c]);
    octets[15] = d;
    octets.into()
}

/// The IPv6 subnet that goes with a domain's IPv4 subnet: a /64 of the /48 of its first octet.
#[must_use]
pub fn ipv6_subnet(subnet: Ipv4Net) -> Ipv6Net {
    // 64 is a valid prefix length, so there is nothing to fail.
    Ipv6Net::new(ipv6_of(subnet.network()), IPV6_SUBNET).unwrap_or_default().trunc()
}

/// The subnet of each domain; `None` where an error (told) leaves it open.
pub(crate) fn subnets(cx: &mut Cx<'_>, global: &RawGlobal, domains: &[RawDomain]) -> Vec<Option<Ipv4Net>> {
    match global.addressing {
        AddressingForm::Unknown => vec![None; domains.len()],
        AddressingForm::BaseSubnet { base } => by_subnet_id(cx, base, domains),
        AddressingForm::Zones { base_octet, zone_base, .. } => {
            let mut zones: BTreeMap<TrustLevel, Vec<usize>> = BTreeMap::new();
            for (i, domain) in domains.iter().enumerate() {
                if !domain.place_broken {
                    zones.entry(domain.trust_level.unwrap_or(global.default_trust_level)).or_default().push(i);
                }
            }
            let mut subnets = vec![None; domains.len()];
            for (level, members) in zones {
                let Some(second) = zone_base.value.checked_add(zone_offset(level)) else {
                    let path = Path::Root;
                    let first = &domains[members[0]];
                    let message = format!(
                        "no zone for the {level} domain `{}`: {} + {} is past 255",
                        first.declared,
                        zone_base.value,
                        zone_offset(level)
                    );
                    cx.error(zone_base.span, &path.key("global").key("addressing").key("zone_base"), message)
                        .help("lower `zone_base`: with 205 and less every trust level has its zone");
                    continue;
                };
                zone(cx, [base_octet, second], level, &members, domains, &mut subnets);
            }
            subnets
        }
    }
}

/// One zone: those with a `subnet_id` keep it, the others take the lowest free number in the order of their names.
fn zone(
    cx: &mut Cx<'_>,
    [first, second]: [u8; 2],
    level: TrustLevel,
    members: &[usize],
    domains: &[RawDomain],
    subnets: &mut [Option<Ipv4Net>],
) {
    let mut taken: [Option<usize>; 255] = [None; 255];
    let mut waiting = Vec::new();
    for &i in members {
        match domains[i].subnet_id {
            None => waiting.push(i),
            Some(id) => match taken[usize::from(id.value)] {
                None => {
                    taken[usize::from(id.value)] = Some(i);
                    subnets[i] = Some(net(first, second, id.value));
                }
                Some(other) => {
                    let scope = format!("the {level} zone");
                    twice(cx, &domains[i], &domains[other], id.value, id.span, &scope);
                }
            },
        }
    }
    waiting.sort_by(|&a, &b| domains[a].declared.cmp(&domains[b].declared));
    let mut free = (0..=254_u8).filter(|&id| taken[usize::from(id)].is_none());
    for i in waiting {
        match free.next() {
            Some(id) => subnets[i] = Some(net(first, second, id)),
            None => {
                let (root, domain) = (Path::Root, &domains[i]);
                let message = format!("no subnet is left for the domain `{}`: a zone holds 255", domain.declared);
                cx.error(domain.span, &root.key("domains").key(&domain.declared), message)
                    .help("give it another trust level, or remove a domain of this one");
            }
        }
    }
}

fn by_subnet_id(cx: &mut Cx<'_>, [a, b]: [u8; 2], domains: &[RawDomain]) -> Vec<Option<Ipv4Net>> {
    let mut taken: [Option<usize>; 255] = [None; 255];
    let mut subnets = vec![None; domains.len()];
    for (i, domain) in domains.iter().enumerate() {
        match domain.subnet_id {
            Some(id) => match taken[usize::from(id.value)] {
                None => {
                    taken[usize::from(id.value)] = Some(i);
                    subnets[i] = Some(net(a, b, id.value));
                }
                Some(other) => twice(cx, domain, &domains[other], id.value, id.span, "the project"),
            },
            None if domain.place_broken => {}
            None => {
                let root = Path::Root;
                let message = format!("the domain `{}` has no `subnet_id`, which `base_subnet` needs", domain.declared);
                cx.error(domain.span, &root.key("domains").key(&domain.declared), message)
                    .help("add `subnet_id:`, a number from 0 to 254 that no other domain has");
            }
        }
    }
    subnets
}

fn twice(cx: &mut Cx<'_>, domain: &RawDomain, other: &RawDomain, id: u8, span: Span, scope: &str) {
    let root = Path::Root;
    let message =
        format!("`subnet_id` {id} is used twice in {scope}: by `{}` and `{}`", other.declared, domain.declared);
    let first = other.subnet_id.map_or(other.span, |id| id.span);
    cx.clash(span, &root.key("domains").key(&domain.declared).key("subnet_id"), message, first, "first here")
        .help("give one of them another number, or remove the key to have one chosen");
}

fn net(a: u8, b: u8, c: u8) -> Ipv4Net {
    // 24 is a valid prefix length, so there is nothing to fail.
    Ipv4Net::new(Ipv4Addr::new(a, b, c, 0), 24).unwrap_or_default()
}

/// The address of a host of a /24.
pub(crate) fn host_of(subnet: Ipv4Net, host: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.network().octets();
    Ipv4Addr::new(a, b, c, host)
}

/// A subnet that a host interface already has would cut the host off.
pub(crate) fn check_host(cx: &mut Cx<'_>, domains: &[RawDomain], subnets: &[Option<Ipv4Net>], host: &HostFacts) {
    let root = Path::Root;
    for (domain, subnet) in domains.iter().zip(subnets) {
        let Some(subnet) = subnet.filter(|_| domain.enabled) else { continue };
        let overlap =
            host.subnets.iter().find(|(_, net)| net.contains(&subnet.network()) || subnet.contains(&net.network()));
        if let Some((interface, net)) = overlap {
            let (span, key) = match domain.subnet_id {
                Some(id) => (id.span, Some("subnet_id")),
                None => (domain.span, None),
            };
            let base = root.key("domains");
            let own = base.key(&domain.declared);
            let path = key.map_or(own, |k| own.key(k));
            let message =
                format!("the subnet {subnet} of the domain `{}` overlaps {net} on `{interface}`", domain.declared);
            cx.error(span, &path, message)
                .help("change `zone_base` (or `base_subnet`), or give the domain another `subnet_id`");
        }
    }
}

/// The address of each machine of each domain.
pub(crate) fn machines(
    cx: &mut Cx<'_>,
    global: &RawGlobal,
    domains: &[RawDomain],
    subnets: &[Option<Ipv4Net>],
) -> Vec<Vec<Option<Ipv4Addr>>> {
    let total = domains.iter().map(|d| d.machines.len()).sum();
    let mut owners: HashMap<Ipv4Addr, (&str, Span)> = HashMap::with_capacity(total);
    let dynamic = matches!(global.addressing, AddressingForm::BaseSubnet { .. });
    let mut all = Vec::with_capacity(domains.len());
    for (domain, &subnet) in domains.iter().zip(subnets) {
        let mut taken = [false; 256];
        for machine in &domain.machines {
            let Some(ip) = machine.ip else { continue };
            taken[usize::from(ip.value.octets()[3])] |= subnet.is_some_and(|s| s.contains(&ip.value));
            check_explicit(cx, domain, machine, subnet);
            match owners.get(&ip.value) {
                Some(&(other, first)) => {
                    let message =
                        format!("the address {} is used twice: by `{other}` and `{}`", ip.value, machine.label());
                    with_machine_path(domain, machine, "ip", |path| {
                        cx.clash(ip.span, path, message, first, "first here")
                            .help("give one of them another address, or remove the key to have one chosen");
                    });
                }
                None => drop(owners.insert(ip.value, (machine.label(), ip.span))),
            }
        }
        let mut free = (1..=LAST_STATIC_HOST).filter(|&host| !taken[usize::from(host)]);
        let mut addresses = Vec::with_capacity(domain.machines.len());
        for machine in &domain.machines {
            let address = match (machine.ip, subnet) {
                (Some(ip), _) => Some(ip.value),
                (None, Some(subnet)) if !dynamic && !machine.ip_broken => match free.next() {
                    Some(host) => Some(host_of(subnet, host)),
                    None => {
                        no_host_left(cx, domain, machine, subnet);
                        None
                    }
                },
                _ => None,
            };
            addresses.push(address);
        }
        all.push(addresses);
    }
    all
}

fn check_explicit(cx: &mut Cx<'_>, domain: &RawDomain, machine: &RawMachine, subnet: Option<Ipv4Net>) {
    let (Some(ip), Some(subnet)) = (machine.ip, subnet) else { return };
    let host = ip.value.octets()[3];
    with_machine_path(domain, machine, "ip", |path| {
        if !subnet.contains(&ip.value) {
            let message = format!(
                "the address {} of `{}` is outside {subnet}, the subnet of the domain `{}`",
                ip.value,
                machine.label(),
                domain.declared
            );
            let like = host_of(subnet, if (1..GATEWAY_HOST).contains(&host) { host } else { 1 });
            cx.error(ip.span, path, message)
                .help(format!("write an address of it such as {like}, or remove the key to have one chosen"));
        } else if host == GATEWAY_HOST {
            cx.error(ip.span, path, format!("the address {} is the gateway's", ip.value)).help(format!(
                "write another from {} to {}",
                host_of(subnet, 1),
                host_of(subnet, LAST_STATIC_HOST)
            ));
        } else if host == 0 || host == 255 {
            cx.error(ip.span, path, format!("the address {} is the subnet's own, not a machine's", ip.value))
                .help(format!("write another from {} to {}", host_of(subnet, 1), host_of(subnet, LAST_STATIC_HOST)));
        } else if (100..200).contains(&host) {
            cx.warning(
                ip.span,
                path,
                format!("the address {} lies in .100 to .199, the range of dynamic leases", ip.value),
            )
            .help("choose one from .1 to .99");
        }
    });
}

fn no_host_left(cx: &mut Cx<'_>, domain: &RawDomain, machine: &RawMachine, subnet: Ipv4Net) {
    with_machine_path(domain, machine, "", |path| {
        let message =
            format!("no address is left for the machine `{}`: .1 to .99 of {subnet} are taken", machine.label());
        cx.error(machine.span, path, message)
            .help("give it an `ip` from .200 to .249, or move machines to another domain");
    });
}

/// The path of a machine's key, or of the machine when `key` is empty.
pub(crate) fn with_machine_path<R>(
    domain: &RawDomain,
    machine: &RawMachine,
    key: &str,
    f: impl FnOnce(&Path<'_>) -> R,
) -> R {
    let root = Path::Root;
    let domains = root.key("domains");
    let domain = domains.key(&domain.declared);
    let machines = domain.key("machines");
    let machine = machines.key(&machine.declared);
    if key.is_empty() { f(&machine) } else { f(&machine.key(key)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_mirrors_ipv4() {
        let shown = |a: [u8; 4]| ipv6_of(a.into()).to_string();
        assert_eq!(shown([10, 120, 3, 10]), "fd69:6c6f:740a:7803::a");
        assert_eq!(shown([10, 120, 3, 254]), "fd69:6c6f:740a:7803::fe");
        assert_eq!(ipv6_subnet("10.120.3.0/24".parse().unwrap()).to_string(), "fd69:6c6f:740a:7803::/64");
        assert_eq!(ipv6_subnet("10.100.0.0/24".parse().unwrap()).to_string(), "fd69:6c6f:740a:6400::/64");
    }
}
