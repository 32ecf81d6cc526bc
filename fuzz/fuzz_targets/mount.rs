//! Options of a mount, one per line.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| ilot_runtime::fuzzing::mount_options(text));
