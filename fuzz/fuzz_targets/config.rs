//! A bundle's configuration: it is read or refused, and means the same when written again.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_runtime::fuzzing::config(bytes));
