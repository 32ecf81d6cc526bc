//! The network of domains: one bridge per domain, one veth per machine, one packet filter for all of them, one small
//! name service per domain.
//!
//! Everything acts on the network namespace of the *calling thread*, knows only what it finds in the kernel (there is no
//! database), and marks what it makes ([`Owner`], in the interface alias), so that what others made stays untouched.
//! Each `ensure`/`attach`/`install` may be repeated: it repairs what drifted and says whether it changed anything.
//!
//! * [`link`] – bridges and ports, through rtnetlink;
//! * [`firewall`] – the tables `inet ilot` and `bridge ilot`, their model and its verdicts;
//! * [`shortcut`] – the table `netdev ilot`, which hands frames within a domain from port to port;
//! * [`names`] – the name service `ilot-names`, one process per domain;
//! * [`proxy`] – relays of `proxy` devices, one process `ilot-proxy` each;
//! * [`host`] – the host's own subnets and uplink, and forwarding.

pub mod error;
pub mod firewall;
pub mod host;
pub mod link;
pub mod names;
pub mod naming;
mod netlink;
pub mod probe;
pub mod proxy;
mod rtnl;
mod shape;
pub mod shortcut;
pub mod trace;

pub use error::{Error, Result};
pub use host::{
    IPV6_MTU, Uplink, disable_forwarding, enable_forwarding, enable_forwarding6, has_ipv6, host_addresses,
    host_subnets, uplink,
};
pub use link::{
    BridgeSpec, BridgeState, PortSpec, PortState, attach, attach_leg, attach_macvlan, bridges, detach, ensure_bridge,
    ports, remove_bridge,
};
pub use naming::{Mac, Owner, bridge_name, mac_for, port_name, store_id};
pub use shape::shape;
