//! A simplestreams server's answers.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_image::fuzzing::streams(bytes));
