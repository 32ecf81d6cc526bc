//! Databases and lock files of packages, as `ilot image sbom` reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ilot_image::fuzzing::packages(bytes));
