//! Shaping: what is more than a port's rate waits, instead of being lost.
//!
//! A token bucket (`sch_tbf`) at each end of the port: the host's end sends to the machine, the machine's end to the host. A
//! machine that may change its own interfaces can take its end's away; the rule of the firewall that drops what is above the
//! rate stands behind both.

use std::io;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::firewall::Rates;
use crate::link::socket_in;
use crate::netlink::{Message, Socket};
use crate::rtnl;

/// `TC_H_ROOT` and the handle `1:` of `linux/pkt_sched.h`.
const ROOT: u32 = 0xffff_ffff;
const HANDLE: u32 = 0x0001_0000;
/// `TCA_*` of `linux/rtnetlink.h`, `TCA_TBF_*` and `TC_LINKLAYER_ETHERNET` of `linux/pkt_sched.h`.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const ETHERNET: u8 = 1;
/// The longest that a packet waits, as a part of a second.
const LATENCY: u64 = 20;
/// The kernel hands around frames of up to 64 KiB, and a bucket must hold one; slower machines refill it less often.
const SMALLEST_BURST: u64 = 128 * 1024;

/// Shapes both directions of a machine's port, or only polices it where the kernel has no `sch_tbf`. True if it shapes.
///
/// # Errors
/// When an interface is not there, or the kernel refuses for another reason.
pub fn shape(host_if: &str, guest_if: &str, netns: BorrowedFd<'_>, rates: Rates) -> Result<bool> {
    let err = |source| Error::Kernel { operation: "shape port", name: host_if.to_owned(), source };
    let mut shaped = true;
    if let Some(rate) = rates.ingress {
        shaped &= bucket(&mut Socket::route().map_err(err)?, host_if, rate).map_err(err)?;
    }
    if let Some(rate) = rates.egress {
        shaped &= bucket(&mut socket_in(netns).map_err(err)?, guest_if, rate).map_err(err)?;
    }
    Ok(shaped)
}

/// A bucket of so many bytes per second in front of what an interface sends. False when the kernel has none.
fn bucket(socket: &mut Socket, interface: &str, rate: u64) -> io::Result<bool> {
    let link = rtnl::link(socket, interface)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
    match socket.change(message(link.index, rate)) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn message(index: u32, rate: u64) -> Message {
    let burst = (rate / 50).max(SMALLEST_BURST);
    let limit = u32::try_from(rate / LATENCY + burst).unwrap_or(u32::MAX);
    // struct tcmsg
    let mut header = [0_u8; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&HANDLE.to_ne_bytes());
    header[12..16].copy_from_slice(&ROOT.to_ne_bytes());
    // struct tc_tbf_qopt: rate and peakrate (struct tc_ratespec), limit, buffer, mtu.
    let mut options = [0_u8; 36];
    options[1] = ETHERNET;
    options[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    options[24..28].copy_from_slice(&limit.to_ne_bytes());
    let mut message = Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &header);
    message.text(TCA_KIND, "tbf");
    message.nest(TCA_OPTIONS, |m| {
        m.attr(TBF_PARMS, &options);
        m.attr(TBF_RATE64, &rate.to_ne_bytes());
        m.number(TBF_BURST, u32::try_from(burst).unwrap_or(u32::MAX));
    });
    message
}
