//! A filter's profile, and after it the calls that its program and its meaning must agree about.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_runtime::fuzzing::seccomp(bytes));
