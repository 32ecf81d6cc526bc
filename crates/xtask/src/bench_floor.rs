//! The physical floor of a container's life: `crates/ilot-runtime/benches/floor.c`, built here and now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Stand, checked};
use crate::build::root;

/// The program, and the filter that it loads.
pub struct Floor {
    program: PathBuf,
    filter: PathBuf,
}

impl Floor {
    pub const NAME: &str = "the floor: the same by a C program";

    /// Builds it for a root file system. `kept` makes a container of a name with the filter, and gives the filter as compiled.
    pub fn new(
        stand: &Stand,
        rootfs: &Path,
        kept: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Self, String> {
        if !["memory", "pids", "cpu"].iter().all(|c| Path::new("/sys/fs/cgroup").join(c).join("tasks").exists()) {
            return Err("it is written for cgroup v1".to_owned());
        }
        let floor = Self { program: stand.dir.join("floor"), filter: stand.dir.join("floor.bpf") };
        let bytes = kept(&format!("ilot-bench-floor-{}", std::process::id()))?;
        fs::write(&floor.filter, bytes).map_err(|e| format!("cannot write {}: {e}", floor.filter.display()))?;
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-static", "-w", "-o"]).arg(&floor.program);
        compiler
            .arg(format!("-DROOT=\"{}\"", rootfs.display()))
            .arg(root().join("crates/ilot-runtime/benches/floor.c"));
        checked(&mut compiler)?;
        checked(&mut floor.command())?;
        Ok(floor)
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.filter);
        command
    }
}
