//! Manifests, indexes, configurations, and what else a registry says.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_image::fuzzing::image(bytes));
