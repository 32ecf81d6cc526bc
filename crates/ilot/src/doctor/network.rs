//! Bridges, the packet filter, and what others have done to forwarding.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use ilot_net::{BridgeSpec, Owner, PortSpec};
use ipnet::Ipv4Net;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::Value;

use super::child::{complaint, run};
use super::programs::find_program;
use super::{Findings, Level};

const BOUND: Duration = Duration::from_secs(10);

/// Every kind of rule that the tables of a project use.
const RULES: &str = "\
table inet ilot_doctor {
    map verdicts { type ifname . ifname : verdict; elements = { \"il-a\" . \"il-b\" : drop } }
    set ports { type inet_proto . inet_service; elements = { tcp . 80, udp . 53 } }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname . oifname vmap @verdicts
        iifname \"il-*\" meta l4proto . th dport @ports counter accept
    }
    chain nat {
        type nat hook postrouting priority srcnat;
        ip saddr 10.120.0.0/24 oifname != \"il-*\" masquerade
    }
}
table bridge ilot_doctor {
    set sources { type ifname . ether_addr . ipv4_addr; elements = { \"iv-a\" . 02:00:00:00:00:01 . 10.120.0.1 } }
    chain in {
        type filter hook prerouting priority filter;
        iifname . ether saddr . ip saddr @sources accept
    }
}
";

pub(super) fn examine(findings: &mut Findings) {
    let links = in_own_network(make_links);
    findings.tried(
        "bridges",
        links.map(|()| "bridges and veth pairs can be made".to_owned()),
        Level::Missing,
        "run as root on a kernel with CONFIG_BRIDGE and CONFIG_VETH (`modprobe bridge veth`)",
    );
    nft(findings);
    forwarding(findings);
    other_filters(findings);
    match ilot_net::uplink() {
        Ok(Some(uplink)) => findings.ok("uplink", format!("{} (MTU {})", uplink.name, uplink.mtu)),
        Ok(None) => findings.warn(
            "uplink",
            "no IPv4 default route",
            "connect the host; machines reach each other but nothing outside, and only images at hand can be used",
        ),
        Err(error) => findings.warn("uplink", error.to_string(), "connect the host"),
    }
}

/// Runs something in a thread with a network namespace of its own, which ends with the thread.
fn in_own_network<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: only the network namespace of this thread changes; nothing else in this process relies on it.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            work()
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the probe was cut short")))
    })
}

/// A bridge with a port, by the code that makes those of domains.
fn make_links() -> io::Result<()> {
    let machine = fs::File::open("/proc/thread-self/ns/net")?;
    // SAFETY: as above; the namespace before this one stays open as the machine's.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    let owner = Owner { store: "doctor00".into(), project: "doctor".into() };
    let gateway = Ipv4Net::new([10, 255, 255, 254].into(), 24).map_err(io::Error::other)?;
    let address = Ipv4Net::new([10, 255, 255, 1].into(), 24).map_err(io::Error::other)?;
    let bridge = ilot_net::bridge_name("doctor");
    ilot_net::ensure_bridge(&BridgeSpec {
        name: bridge.clone(),
        owner: owner.clone(),
        domain: "doctor".into(),
        gateway,
        gateway6: None,
        mtu: 1500,
    })
    .map_err(io::Error::other)?;
    let port = PortSpec {
        bridge,
        owner,
        domain: "doctor".into(),
        machine: "probe".into(),
        host_if: ilot_net::port_name("probe"),
        guest_if: "eth0".into(),
        mac: ilot_net::mac_for("probe"),
        address,
        gateway: gateway.addr(),
        ipv6: None,
        mtu: 1500,
    };
    ilot_net::attach(&port, machine.as_fd()).map_err(io::Error::other)?;
    Ok(())
}

fn nft(findings: &mut Findings) {
    let Some(nft) = find_program("nft") else {
        return findings.missing("nft", "not installed", "`apt install nftables`");
    };
    let mut command = Command::new(&nft);
    command.args(["-f", "-"]);
    // SAFETY: the closure makes one system call between fork and exec and allocates nothing.
    unsafe {
        command.pre_exec(|| unshare_unsafe(UnshareFlags::NEWNET).map_err(Into::into));
    }
    let loaded = run(&mut command, RULES.as_bytes(), BOUND);
    let version = run(Command::new(&nft).arg("--version"), b"", BOUND).ok();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let loaded = loaded.map_err(|error| format!("cannot be run: {error}")).and_then(|output| {
        let works = output.status.success();
        if works { Ok(()) } else { Err(format!("{version}: a table like ours does not load: {}", complaint(&output))) }
    });
    findings.tried(
        "nft",
        loaded.map(|()| format!("{version}: a table like ours loads")),
        Level::Missing,
        "use nftables 1.0.2 or later, on a kernel with CONFIG_NF_TABLES_INET, _BRIDGE, NFT_CT and NFT_MASQ",
    );
}

fn forwarding(findings: &mut Findings) {
    let state = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    match state.trim() {
        "1" => findings.ok("ip_forward", "on"),
        "0" => findings.ok("ip_forward", "off: ilot turns it on with the first domain, and off again with the last"),
        _ => findings.warn("ip_forward", "cannot be read", "mount /proc"),
    }
}

/// Filters of others that drop what passes through this host: their verdict counts as much as ours.
fn other_filters(findings: &mut Findings) {
    const NAME: &str = "other firewalls";
    const CURE: &str = "let ilot's bridges pass there: `iptables -I DOCKER-USER -i 'il-+' -j ACCEPT` and the same with `-o`, \
                        or the like in that firewall";
    let mut dropping = nft_chains();
    if let Some(chain) = legacy_chain() {
        dropping.push(chain);
    }
    if dropping.is_empty() {
        findings.ok(NAME, "none that drops forwarded packets by default");
    } else {
        findings.warn(NAME, format!("{} drops forwarded packets by default", dropping.join(", ")), CURE);
    }
}

fn nft_chains() -> Vec<String> {
    let Some(nft) = find_program("nft") else { return Vec::new() };
    let output = run(Command::new(nft).args(["-j", "list", "chains"]), b"", BOUND);
    let json: Value = output.ok().and_then(|o| serde_json::from_slice(&o.stdout).ok()).unwrap_or_default();
    let chains = json["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != "ilot")
        .map(|chain| {
            let text = |key: &str| chain[key].as_str().unwrap_or("?").to_owned();
            format!("chain `{} {} {}`", text("family"), text("table"), text("name"))
        })
        .collect()
}

/// The old tables are not seen by `nft`; they are only asked when the kernel has any.
fn legacy_chain() -> Option<String> {
    let tables = fs::read_to_string("/proc/net/ip_tables_names").ok()?;
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let iptables = find_program("iptables-legacy")?;
    let output = run(Command::new(iptables).args(["-S", "FORWARD"]), b"", BOUND).ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.contains("-P FORWARD DROP").then(|| "chain `FORWARD` of iptables-legacy".to_owned())
}
