//! The model as text for `nft`.
//!
//! Everything is matched by look-ups in hash sets; no chain grows with the number of domains, machines or policies. The
//! first rule of each base chain lets go of packets that are not ours.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use sha2::{Digest, Sha256};

use super::egress;
use super::lease::Lease;
use super::model::{FwDomain, FwPort, Ruleset};
use super::openings::{Openings, Where, openings};
use crate::naming::PORT_PREFIX;

/// The name of both tables.
pub const TABLE: &str = "ilot";

/// What a port with a rate may send at once, in bytes, besides one second's worth (that is the kernel's own doing): some of
/// the largest frames that it hands around, so that a low rate lets anything through at all.
const BURST: u64 = 256 * 1024;

/// The text that [`super::install`] gives to `nft`: both tables, replaced in one transaction.
#[must_use]
pub fn render(rules: &Ruleset) -> String {
    render_with(rules, &[])
}

/// The same, with what the name services have opened.
pub fn render_with(rules: &Ruleset, leases: &[Lease]) -> String {
    let inet = inet(rules, leases);
    let bridge = bridge(rules);
    let comment = comment(rules);
    let mut text = String::with_capacity(inet.len() + bridge.len() + 512);
    for family in ["inet", "bridge"] {
        let _ = writeln!(text, "table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    for (family, body) in [("inet", inet), ("bridge", bridge)] {
        let _ = writeln!(text, "table {family} {TABLE} {{\n\tcomment \"{comment}\"\n{body}}}");
    }
    text
}

/// The SHA-256 of what the rules say, in hexadecimal.
pub fn digest(rules: &Ruleset) -> String {
    sha256([inet(rules, &[]), bridge(rules)])
}

/// The SHA-256 of texts, one behind the other, in hexadecimal.
pub fn sha256<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> String {
    let mut hash = Sha256::new();
    texts.into_iter().for_each(|text| hash.update(text));
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The tables' comment.
pub fn comment(rules: &Ruleset) -> String {
    format!("ilot:sha256:{}", digest(rules))
}

/// An interface name or comment between quotes, without what could end them.
pub fn quote(text: &str) -> String {
    let harmless: String = text.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
    let mut end = harmless.len().min(100);
    while !harmless.is_char_boundary(end) {
        end -= 1;
    }
    format!("\"{}\"", &harmless[..end])
}

fn set(text: &mut String, name: &str, key: &str, interval: bool, elements: &[String]) {
    set_with(text, name, key, if interval { "flags interval" } else { "" }, elements);
}

/// A set with more to say of it than its key: flags, a size.
pub fn set_with(text: &mut String, name: &str, key: &str, options: &str, elements: &[String]) {
    // Bytes of a packet without a name have no type but their length.
    let keyword = if key.contains('@') { "typeof" } else { "type" };
    let _ = writeln!(text, "\tset {name} {{\n\t\t{keyword} {key}");
    if !options.is_empty() {
        let _ = writeln!(text, "\t\t{options}");
    }
    if !elements.is_empty() {
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t"));
    }
    text.push_str("\t}\n");
}

fn chain(text: &mut String, name: &str, rules: &[String]) {
    let _ = writeln!(text, "\tchain {name} {{");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

fn inet(rules: &Ruleset, leases: &[Lease]) -> String {
    let mut text = String::new();
    inet_sets(&mut text, rules);
    egress::sets(&mut text, rules, leases);
    let openings = openings(rules);
    for (kind, keys) in &openings {
        let elements: Vec<String> = keys
            .iter()
            .map(|(key, comment)| match comment.as_str() {
                "" => key.clone(),
                comment => format!("{key} comment {}", quote(comment)),
            })
            .collect();
        set(&mut text, &kind.set(), &kind.key_type(), false, &elements);
    }
    for counter in ["between_domains", "to_host", "to_outside", "from_outside", "ipv6", "invalid", "unknown_sender"] {
        let _ = writeln!(text, "\tcounter {counter} {{\n\t}}");
    }
    // A chain is declared before it is jumped to.
    let ipv6 = rules.has_ipv6();
    shared_chains(&mut text, ipv6);
    let mut between = asked(&openings, Where::Between, "counter name between_domains drop");
    if ipv6 {
        // A subnet has more addresses than the host has neighbours: nobody makes it ask for all of them.
        between.insert(0, "oifname . ip6 daddr != @hosts6 counter name between_domains drop".to_owned());
    }
    chain(&mut text, "between", &between);
    let policies = asked(&openings, Where::Internet, "counter name to_outside drop");
    for (name, rules) in egress::chains(rules, &policies) {
        chain(&mut text, name, &rules);
    }
    let mut to_host = Vec::new();
    if ipv6 {
        // Conntrack knows nothing of them; their port let only true ones in.
        to_host.push("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned());
    }
    to_host.push("jump known".to_owned());
    for (ip, six) in if ipv6 { &[("ip", ""), ("ip6", "6")][..] } else { &[("ip", "")] } {
        to_host.extend(lines(&format!(
            "iifname . {ip} daddr @gateways{six} meta l4proto {{ tcp, udp }} th dport 53 accept
             iifname . {ip} daddr != @gateways{six} {ip} daddr @gateway_addresses{six} counter name to_host drop"
        )));
    }
    to_host.extend(asked(&openings, Where::Host, "counter name to_host drop"));
    chain(&mut text, "to_host", &to_host);
    base_chains(&mut text, ipv6);
    text
}

/// The rules that ask the sets of one place, then refuse.
fn asked(openings: &Openings, place: Where, refusal: &str) -> Vec<String> {
    let kinds = openings.keys().filter(|kind| kind.place == place);
    let mut rules: Vec<String> = kinds.map(|kind| format!("{} @{} accept", kind.expression(), kind.set())).collect();
    rules.push(refusal.to_owned());
    rules
}

fn inet_sets(text: &mut String, rules: &Ruleset) {
    let each = |element: &dyn Fn(&FwDomain) -> String| rules.domains.iter().map(element).collect::<Vec<_>>();
    set(text, "bridges", "ifname", false, &each(&|d| quote(&d.bridge)));
    set(text, "same", "ifname . ifname", false, &each(&|d| format!("{0} . {0}", quote(&d.bridge))));
    let ports = || rules.domains.iter().flat_map(|d| d.ports.iter().map(move |p| (d, p)));
    let mut addresses: Vec<String> = ports().map(|(d, p)| host_element(d, p)).collect();
    addresses.sort();
    set(text, "hosts", "ifname . ipv4_addr", false, &addresses);
    let mut machines: Vec<String> = ports().map(|(_, p)| p.ip.to_string()).collect();
    machines.sort();
    set(text, "machines", "ipv4_addr", false, &machines);
    set(text, "gateways", "ifname . ipv4_addr", false, &each(&|d| format!("{} . {}", quote(&d.bridge), d.gateway)));
    set(text, "gateway_addresses", "ipv4_addr", false, &each(&|d| d.gateway.to_string()));
    if !rules.has_ipv6() {
        return;
    }
    let mut addresses: Vec<String> = ports().filter_map(|(d, p)| host_element6(d, p)).collect();
    addresses.sort();
    set(text, "hosts6", "ifname . ipv6_addr", false, &addresses);
    let mut machines: Vec<String> = ports().filter_map(|(_, p)| Some(p.ip6?.to_string())).collect();
    machines.sort();
    set(text, "machines6", "ipv6_addr", false, &machines);
    let gateways = || rules.domains.iter().filter_map(|d| Some((d, d.gateway6?)));
    let mine: Vec<String> = gateways().map(|(d, gateway)| format!("{} . {gateway}", quote(&d.bridge))).collect();
    set(text, "gateways6", "ifname . ipv6_addr", false, &mine);
    set(text, "gateway_addresses6", "ipv6_addr", false, &gateways().map(|(_, g)| g.to_string()).collect::<Vec<_>>());
}

fn shared_chains(text: &mut String, ipv6: bool) {
    // What is known to conntrack is decided. What is link-local is for neighbours, and the host is none.
    if ipv6 {
        chain(
            text,
            "known6",
            &lines(
                "ct state established,related accept
                 ct state invalid counter name invalid drop
                 iifname @bridges ip6 saddr fe80::/10 counter name to_host drop
                 iifname @bridges iifname . ip6 saddr != @hosts6 counter name unknown_sender drop",
            ),
        );
    }
    let version6 = if ipv6 { "goto known6" } else { "counter name ipv6 drop" };
    chain(
        text,
        "known",
        &lines(&format!(
            "meta nfproto ipv6 {version6}
             ct state established,related accept
             ct state invalid counter name invalid drop
             iifname @bridges iifname . ip saddr != @hosts counter name unknown_sender drop"
        )),
    );
}

fn base_chains(text: &mut String, ipv6: bool) {
    let only6 = |rule: &'static str| if ipv6 { rule } else { "" };
    chain(
        text,
        "from_domain",
        &lines(
            "iifname . oifname @same accept
             jump known
             oifname @bridges goto between
             goto outside",
        ),
    );
    chain(text, "to_domain", &lines("jump known\ncounter name from_outside drop"));
    // Where bridged frames pass these hooks (br_netfilter), those within a domain need no conntrack.
    chain(
        text,
        "prerouting",
        &lines(
            "type filter hook prerouting priority raw; policy accept;
             iifname . ip daddr @hosts notrack",
        )
        .into_iter()
        .chain(lines(only6("iifname . ip6 daddr @hosts6 notrack")))
        .collect::<Vec<_>>(),
    );
    chain(
        text,
        "forward",
        &lines(
            "type filter hook forward priority filter; policy accept;
             iifname @bridges goto from_domain
             oifname @bridges goto to_domain",
        ),
    );
    chain(
        text,
        "input",
        &lines(
            "type filter hook input priority filter; policy accept;
             iifname @bridges goto to_host",
        ),
    );
    chain(
        text,
        "postrouting",
        &lines(
            "type nat hook postrouting priority srcnat; policy accept;
             ip saddr @machines oifname != @bridges masquerade",
        )
        .into_iter()
        .chain(lines(only6("ip6 saddr @machines6 oifname != @bridges masquerade")))
        .collect::<Vec<_>>(),
    );
}

fn bridge(rules: &Ruleset) -> String {
    let mut text = String::new();
    let ports = || rules.domains.iter().flat_map(|d| &d.ports);
    let mut addresses: Vec<String> = ports().map(address_element).collect();
    addresses.sort();
    set(&mut text, "addresses", "ifname . ether_addr . ipv4_addr", false, &addresses);
    let mut senders: Vec<String> = ports().flat_map(sender_elements).collect();
    senders.sort();
    set(&mut text, "senders", "ifname . ether_addr . ether_addr . ipv4_addr", false, &senders);
    text.push_str("\tcounter forged {\n\t}\n");
    let ipv6 = rules.has_ipv6();
    if ipv6 {
        bridge6(&mut text, rules);
    }
    let version6 = if ipv6 { "ether type ip6 goto version6" } else { "" };
    let limited = limits(&mut text, rules);
    chain(
        &mut text,
        "prerouting",
        &lines(&format!(
            "type filter hook prerouting priority -300; policy accept;
             iifname != \"{PORT_PREFIX}*\" accept
             {limited}
             ether type ip iifname . ether saddr . ip saddr @addresses accept
             ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \
             iifname . ether saddr . arp saddr ether . arp saddr ip @senders accept
             {version6}
             counter name forged drop"
        )),
    );
    text
}

/// What of IPv6 a port lets in: packets from its own addresses, and of neighbour discovery (RFC 4861) what speaks of nobody
/// else. Its messages have at most one option here, the sender's hardware address.
fn bridge6(text: &mut String, rules: &Ruleset) {
    let ports = || rules.domains.iter().flat_map(|d| &d.ports);
    let mut sets: [Vec<String>; 3] = Default::default();
    for port in ports() {
        let elements = elements6(port);
        sets.iter_mut().zip(elements).for_each(|(set, elements)| set.extend(elements));
    }
    for ((name, key), mut elements) in SETS6.into_iter().zip(sets) {
        elements.sort();
        set(text, name, key, false, &elements);
    }
    // A solicitation, an advertisement: who is meant begins at the eighth byte; the option has its kind, its length in units
    // of eight bytes, and the address.
    let solicit = "icmpv6 type nd-neighbor-solicit";
    let advert = "icmpv6 type nd-neighbor-advert";
    chain(
        text,
        "neighbours",
        &lines(&format!(
            "{solicit} ip6 saddr :: iifname . @th,64,128 @claims accept
             ip6 saddr :: counter name forged drop
             {solicit} ip6 length 24 accept
             {solicit} ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @macs accept
             {advert} iifname . @th,64,128 != @claims counter name forged drop
             {advert} ip6 length 24 accept
             {advert} ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @macs accept
             counter name forged drop"
        )),
    );
    // Nobody here is a router or needs one to announce itself, and multicast goes everywhere without being asked for: what
    // every system sends of that by itself is no attack and is not counted.
    chain(
        text,
        "messages",
        &lines(
            "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report, \
             nd-router-solicit } drop
             icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } goto neighbours
             icmpv6 type { nd-router-advert, nd-redirect } counter name forged drop
             ip6 saddr :: counter name forged drop
             accept",
        ),
    );
    chain(
        text,
        "version6",
        &lines(
            "iifname . ether saddr . ip6 saddr != @addresses6 counter name forged drop
             meta l4proto ipv6-icmp goto messages
             ip6 saddr :: counter name forged drop
             meta l4proto != ipv6-icmp accept
             counter name forged drop",
        ),
    );
}

/// Sets of `bridge ilot` for IPv6, with their keys: who may send from where, whose address may be claimed, whose hardware
/// address named.
const SETS6: [(&str, &str); 3] = [
    ("addresses6", "ifname . ether_addr . ipv6_addr"),
    ("claims", "iifname . @th,64,128"),
    ("macs", "iifname . @th,208,48"),
];

/// The elements of a port in [`SETS6`]; none without an IPv6 address.
fn elements6(port: &FwPort) -> [Vec<String>; 3] {
    let Some(ip) = port.ip6 else { return Default::default() };
    let name = quote(&port.ifname);
    let own = [ip, port.mac.link_local()];
    // None yet: it asks whether somebody has the address that it means to take.
    let addresses = own.into_iter().chain([Ipv6Addr::UNSPECIFIED]);
    let mac = port.mac.0.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    [
        addresses.map(|address| format!("{name} . {} . {address}", port.mac)).collect(),
        own.map(|address| format!("{name} . 0x{:032x}", u128::from(address))).to_vec(),
        vec![format!("{name} . 0x{mac:012x}")],
    ]
}

/// The chains of ports that have a rate; what the first chain has to say to get there.
fn limits(text: &mut String, rules: &Ruleset) -> &'static str {
    let ports = || rules.domains.iter().flat_map(|d| &d.ports);
    let chains = [
        ("from_limited", "iifname", ports().filter_map(|p| Some((p, p.rates.egress?))).collect::<Vec<_>>()),
        ("to_limited", "oifname", ports().filter_map(|p| Some((p, p.rates.ingress?))).collect::<Vec<_>>()),
    ];
    if chains.iter().any(|(_, _, ports)| !ports.is_empty()) {
        text.push_str("\tcounter above_limit {\n\t}\n");
    }
    for (name, side, ports) in &chains {
        if ports.is_empty() {
            continue;
        }
        let names: Vec<String> = ports.iter().map(|(port, _)| quote(&port.ifname)).collect();
        set(text, name, "ifname", false, &names);
        let rule = |(port, rate): &(&FwPort, u64)| {
            format!(
                "{side} {} limit rate over {rate} bytes/second burst {BURST} bytes counter name above_limit drop",
                quote(&port.ifname)
            )
        };
        chain(text, name, &ports.iter().map(rule).collect::<Vec<_>>());
    }
    if !chains[1].2.is_empty() {
        let rules = "type filter hook postrouting priority 300; policy accept;\noifname @to_limited jump to_limited";
        chain(text, "postrouting", &lines(rules));
    }
    if chains[0].2.is_empty() { "" } else { "iifname @from_limited jump from_limited" }
}

fn host_element(domain: &FwDomain, port: &FwPort) -> String {
    format!("{} . {}", quote(&domain.bridge), port.ip)
}

fn host_element6(domain: &FwDomain, port: &FwPort) -> Option<String> {
    Some(format!("{} . {}", quote(&domain.bridge), port.ip6?))
}

fn address_element(port: &FwPort) -> String {
    format!("{} . {} . {}", quote(&port.ifname), port.mac, port.ip)
}

/// Its own address, and none yet (an ARP probe, RFC 5227).
fn sender_elements(port: &FwPort) -> [String; 2] {
    [port.ip.to_string(), "0.0.0.0".to_owned()]
        .map(|ip| format!("{} . {1} . {1} . {ip}", quote(&port.ifname), port.mac))
}
