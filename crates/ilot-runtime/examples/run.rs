//! Runs one command in a container made from a folder: `run LAYER COMMAND…`.
//!
//! The smallest program that embeds the runtime; also what the start-up benchmark measures.
//! Build it static, with `ILOT_LIBEXEC` naming the folder of `ilot-keeper`.

use ilot_runtime::spec::{IdMapping, machine_default};
use ilot_runtime::{CreateRequest, Init, Rootfs, Stdio, attach, create, delete, start};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let layer = PathBuf::from(args.next().ok_or("usage: run LAYER COMMAND…")?);
    let ids = IdMapping { container_id: 0, host_id: 0x3000_0000, size: 65536 };
    let mut spec = machine_default(ids, false);
    if let Some(process) = &mut spec.process {
        process.args = args.collect();
    }
    let id = format!("run-{}", std::process::id());
    if let Some(linux) = &mut spec.linux {
        linux.cgroups_path = Some(format!("/ilot-example/{id}"));
    }
    let place = Path::new("/run/ilot-example").join(&id);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&place)?;
    let run_dir = place.join("run");
    let request = CreateRequest {
        id: &id,
        run_dir: &run_dir,
        spec: &spec,
        rootfs: Rootfs::Overlay {
            lowers: vec![layer],
            upper: place.join("upper"),
            work: place.join("work"),
            volatile: true,
        },
        init: if std::env::var_os("IMAGE_INIT").is_some() { Init::Image } else { Init::Builtin },
        stdio: Stdio::Inherit,
        files: Vec::new(),
        exit_command: None,
    };
    let created = create(&request)?;
    start(&run_dir)?;
    let exit = attach(&run_dir, &created)?;
    delete(&run_dir, false)?;
    std::fs::remove_dir_all(&place)?;
    std::process::exit(exit.code)
}
