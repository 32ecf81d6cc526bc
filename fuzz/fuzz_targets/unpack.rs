//! A layer, really unpacked into a folder: nothing appears beside its tree, and the tree can be removed.

#![no_main]

use std::cell::OnceCell;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    FOLDER.with(|folder| {
        // In memory where there is some: a tree for each input.
        let make = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        ilot_image::fuzzing::unpack(bytes, folder.get_or_init(make).path());
    });
});
