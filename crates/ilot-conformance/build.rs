//! Compiles `probe/probe.c` to a static program that runs in any container. Without a C compiler it is empty and the
//! tests that need it are skipped.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=probe/probe.c");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("probe");
    let built = Command::new("cc").args(["-static", "-O1", "-Wall", "-o"]).arg(&out).arg("probe/probe.c").status();
    if !built.is_ok_and(|status| status.success()) {
        println!("cargo::warning=no C compiler with a static libc: tests that need the probe will be skipped");
        let _ = std::fs::write(&out, []);
    }
}
