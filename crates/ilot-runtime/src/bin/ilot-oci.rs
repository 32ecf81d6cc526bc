//! `ilot-oci`: an OCI runtime; see `ilot_runtime::oci`.
//!
//! Started by C's own start-up code and not by Rust's, which looks at standard streams, the stack's place and signals:
//! a dozen system calls, twice per container, that this program does not need.
#![no_main]

#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    // SAFETY: a constant; what writes to a closed pipe is to fail, not to end this program half-way.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    std::process::exit(ilot_runtime::oci::main())
}
