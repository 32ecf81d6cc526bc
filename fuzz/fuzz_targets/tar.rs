//! A layer of any compression: reading it ends within its limits.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_image::fuzzing::tar(bytes));
