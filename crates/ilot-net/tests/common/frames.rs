//! Frames as no honest system sends them.

use super::Ns;

/// Sends a frame from a machine's `eth0`, whatever it says.
pub fn send_frame(ns: &Ns, frame: &[u8]) {
    ns.run(|| {
        // SAFETY: plain system calls on values of this frame; the address is a zeroed sockaddr_ll, filled in.
        unsafe {
            let index = libc::if_nametoindex(c"eth0".as_ptr());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(fd >= 0 && index > 0);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = index as i32;
            address.sll_halen = 6;
            let sent = libc::sendto(
                fd,
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            );
            assert_eq!(sent, frame.len() as isize);
            libc::close(fd);
        }
    });
}

/// A raw socket that sees what arrives at `eth0`.
pub struct Tap(i32);

impl Tap {
    pub fn new(ns: &Ns, interface: &str) -> Self {
        let name = std::ffi::CString::new(interface).expect("a name");
        ns.run(|| {
            // SAFETY: plain system calls on values of this frame; the address is a zeroed sockaddr_ll, filled in.
            unsafe {
                let protocol = (libc::ETH_P_ALL as u16).to_be();
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(protocol));
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = protocol;
                address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
                let bound = libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32);
                assert!(fd >= 0 && bound == 0);
                let timeout = libc::timeval { tv_sec: 0, tv_usec: 200_000 };
                libc::setsockopt(
                    fd,
                    libc::SOL_SOCKET,
                    libc::SO_RCVTIMEO,
                    (&raw const timeout).cast(),
                    size_of::<libc::timeval>() as u32,
                );
                Self(fd)
            }
        })
    }

    /// Whether a frame that ends in `mark` arrives before the line falls silent.
    pub fn sees(&self, mark: &[u8]) -> bool {
        self.sees_one(|frame| frame.ends_with(mark))
    }

    /// Whether such a frame arrives before the line falls silent.
    pub fn sees_one(&self, is_it: impl Fn(&[u8]) -> bool) -> bool {
        let mut buffer = [0u8; 2048];
        loop {
            // SAFETY: the buffer is as long as said.
            let length = unsafe { libc::recv(self.0, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            if length < 0 {
                return false;
            }
            if is_it(&buffer[..length as usize]) {
                return true;
            }
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and not used again.
        unsafe { libc::close(self.0) };
    }
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: &[u8], payload: &[u8], mark: &[u8]) -> Vec<u8> {
    [&to[..], &from, kind, payload, mark].concat()
}

/// An IPv4 packet with a datagram, from port 12345 to 12345, that ends with a mark ([`ethernet`] appends it).
pub fn ipv4_udp(from: [u8; 4], to: [u8; 4], mark: &[u8]) -> Vec<u8> {
    let length = (28 + mark.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(from);
    packet.extend(to);
    let sum: u32 = packet.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0x30, 0x39, 0x30, 0x39]);
    packet.extend((8 + mark.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet
}
