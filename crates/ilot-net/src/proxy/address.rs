//! Addresses of proxy devices, by Incus's rules: `tcp:ADDRESS:PORTS`, `udp:ADDRESS:PORTS`, `unix:/path`, `unix:@name`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What goes over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Bytes in order.
    Stream,
    /// Packets.
    Packets,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// A socket file.
    Path(PathBuf),
    /// A name in the network namespace's abstract sockets (unix(7)).
    Abstract(String),
}

impl Address {
    /// What goes over it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        if matches!(self, Self::Udp(_)) { Transport::Packets } else { Transport::Stream }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Udp(address) => write!(f, "udp:{address}"),
            Self::Path(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// The most ports that one device may have.
const MOST: usize = 512;

/// The addresses that a text means: several where it has several ports.
fn parse(text: &str) -> Result<Vec<Address>, String> {
    let wrong = |why: &str| format!("`{text}`: {why}");
    let (kind, rest) = text.split_once(':').ok_or_else(|| wrong("it begins with `tcp:`, `udp:` or `unix:`"))?;
    match kind {
        "unix" => match rest.strip_prefix('@') {
            Some(name) => Ok(vec![Address::Abstract(name.to_owned())]),
            None if rest.starts_with('/') => Ok(vec![Address::Path(rest.into())]),
            None => Err(wrong("a path must be absolute")),
        },
        "tcp" | "udp" => {
            let (host, ports) = rest.rsplit_once(':').ok_or_else(|| wrong("it has no port"))?;
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            let ip: IpAddr = host.parse().map_err(|_| wrong("write an address, not a name"))?;
            let ports = numbers(ports).ok_or_else(|| wrong("ports are `80`, `80,443` or `8000-8010`"))?;
            let address = |port| {
                let address = SocketAddr::new(ip, port);
                if kind == "tcp" { Address::Tcp(address) } else { Address::Udp(address) }
            };
            Ok(ports.into_iter().map(address).collect())
        }
        _ => Err(wrong("it begins with `tcp:`, `udp:` or `unix:`")),
    }
}

fn numbers(text: &str) -> Option<Vec<u16>> {
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if first == 0 || last < first || ports.len() + usize::from(last - first) >= MOST {
            return None;
        }
        ports.extend(first..=last);
    }
    Some(ports)
}

/// What each address that is listened on is connected to: one for one, or all to one.
///
/// # Errors
/// What is wrong with the two texts.
pub fn pairs(listen: &str, connect: &str) -> Result<Vec<(Address, Address)>, String> {
    let (from, to) = (parse(listen)?, parse(connect)?);
    if from.iter().chain(&to).any(|a| a.transport() != from[0].transport()) {
        return Err(format!("`{listen}` to `{connect}`: packets go to `udp:` only, streams to `tcp:` and `unix:`"));
    }
    match to.as_slice() {
        [one] => Ok(from.into_iter().map(|address| (address, one.clone())).collect()),
        many if many.len() == from.len() => Ok(from.into_iter().zip(to).collect()),
        many => Err(format!("`{listen}` to `{connect}`: {} to {} addresses", from.len(), many.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_pair_up() {
        let shown = |listen, connect| {
            pairs(listen, connect)
                .map(|list| list.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>().join("; "))
        };
        let good = [
            ("tcp:0.0.0.0:80", "tcp:127.0.0.1:8080", "tcp:0.0.0.0:80 tcp:127.0.0.1:8080"),
            ("tcp:[::1]:80", "unix:/run/a", "tcp:[::1]:80 unix:/run/a"),
            ("unix:@x", "tcp:127.0.0.1:1", "unix:@x tcp:127.0.0.1:1"),
            (
                "udp:127.0.0.1:5-6",
                "udp:127.0.0.1:7",
                "udp:127.0.0.1:5 udp:127.0.0.1:7; udp:127.0.0.1:6 udp:127.0.0.1:7",
            ),
            ("tcp:1.2.3.4:5,9", "tcp:1.2.3.4:7-8", "tcp:1.2.3.4:5 tcp:1.2.3.4:7; tcp:1.2.3.4:9 tcp:1.2.3.4:8"),
        ];
        for (listen, connect, wanted) in good {
            assert_eq!(shown(listen, connect).as_deref(), Ok(wanted));
        }
        for (listen, connect) in [
            ("tcp:localhost:80", "tcp:127.0.0.1:80"),
            ("tcp:0.0.0.0:0", "tcp:127.0.0.1:80"),
            ("tcp:0.0.0.0:9-8", "tcp:127.0.0.1:80"),
            ("tcp:0.0.0.0:1-9", "tcp:127.0.0.1:1-3"),
            ("tcp:0.0.0.0:1-60000", "tcp:127.0.0.1:1"),
            ("udp:0.0.0.0:1", "tcp:127.0.0.1:1"),
            ("tcp:0.0.0.0:1", "udp:127.0.0.1:1"),
            ("unix:relative", "tcp:127.0.0.1:1"),
            ("sctp:0.0.0.0:1", "tcp:127.0.0.1:1"),
            ("", ""),
        ] {
            assert!(shown(listen, connect).is_err(), "{listen} {connect}");
        }
    }
}
