//! The files of a container's run directory: damaged ones are errors, never a container that is not there.

#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    FOLDER.with(|folder| {
        let make = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        ilot_runtime::fuzzing::state(bytes, folder.get_or_init(make).path());
    });
});
