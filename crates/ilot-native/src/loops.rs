//! A loop device for a file, read-only, that the kernel takes away with its last user (loop(4)).

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

/// `LOOP_CONFIGURE`, `LOOP_CTL_GET_FREE` (`<linux/loop.h>`).
const CONFIGURE: Opcode = 0x4c0a;
const GET_FREE: Opcode = 0x4c82;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
/// Others take free devices too.
const TRIES: u32 = 32;

/// A loop device in use; closed, it stays for as long as it is mounted.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    _open: OwnedFd,
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    numbers: [u64; 5],
    /// Number, encryption type, length of its key, flags.
    small: [u32; 4],
    names: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

struct GetFree;

// SAFETY: the request takes no argument and answers with its return value alone.
unsafe impl Ioctl for GetFree {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

/// Gives a file a free loop device.
pub(crate) fn attach(file: &Path) -> rustix::io::Result<Device> {
    let backing = File::open(file).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let control = open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..TRIES {
        // SAFETY: `GetFree` describes the request.
        let number = unsafe { ioctl(&control, GetFree) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::BADF)?;
        let small = [0, 0, 0, READ_ONLY | AUTOCLEAR];
        let info = Info { numbers: [0; 5], small, names: [0; 160], init: [0; 2] };
        let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
        // SAFETY: the request reads one `struct loop_config`, which this is.
        match unsafe { ioctl(&device, Setter::<CONFIGURE, Config>::new(config)) } {
            Ok(()) => return Ok(Device { path, _open: device }),
            // Somebody else was quicker.
            Err(Errno::BUSY) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::BUSY)
}
