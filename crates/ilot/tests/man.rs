//! `ilot man`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod common;

use std::fs;

use common::Place;

#[test]
fn the_page_is_printed() {
    let page = Place::new().run(&["man"]).ok().out;
    assert!(page.contains(".TH ilot 1") && page.contains(".SH OPTIONS"), "{page}");
}

#[test]
fn a_page_for_each_command_is_written() {
    let place = Place::new();
    place.run(&["man", "man1"]).ok();
    for name in ["ilot.1", "ilot-apply.1", "ilot-exec.1", "ilot-doctor.1"] {
        let page = fs::read_to_string(place.path().join("man1").join(name)).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
}
