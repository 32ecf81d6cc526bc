//! The two builds, and where their results go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages whose programs are static.
const STATIC_PACKAGES: &[&str] = &["ilot-runtime", "ilot-net"];

/// Static, and at a fixed address: nothing is relocated at each start of a program that lives for milliseconds.
pub const STATIC_FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Everything, into `target/dist`.
pub fn all(release: bool) -> Result<(), String> {
    static_programs(release)?;
    let mut command = cargo("build");
    command.args(["--package", "ilot", "--bin", "ilot"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    let built = target_dir().join(if release { "release" } else { "debug" }).join("ilot");
    place(&built, &dist().join("bin"))
}

/// The static programs, into `target/dist/libexec/ilot`.
pub fn static_programs(release: bool) -> Result<(), String> {
    // Small and quick costs minutes of linking; a debug build is for the next try.
    let profile = if release { "static" } else { "dev" };
    let triple = host_triple()?;
    let mut command = cargo("build");
    // A target of its own, even though it is the host's: only so do the flags spare build scripts and macros.
    command.args(["--bins", "--profile", profile, "--target", &triple]);
    for package in STATIC_PACKAGES {
        command.args(["--package", package]);
    }
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    command.env("RUSTFLAGS", format!("{flags} {STATIC_FLAGS}").trim());
    run(&mut command)?;
    let built = target_dir().join(&triple).join(if release { "static" } else { "debug" });
    for entry in fs::read_dir(&built).map_err(|e| format!("cannot read {}: {e}", built.display()))? {
        let path = entry.map_err(|e| format!("cannot read {}: {e}", built.display()))?.path();
        if path.is_file() && is_program(&path) {
            place(&path, &dist().join("libexec/ilot"))?;
        }
    }
    Ok(())
}

/// What was built, into `prefix`.
pub fn install(prefix: &str) -> Result<(), String> {
    let prefix = Path::new(prefix);
    for part in ["bin", "libexec/ilot"] {
        let from = dist().join(part);
        for entry in fs::read_dir(&from)
            .map_err(|e| format!("cannot read {} (`cargo xtask build` first): {e}", from.display()))?
        {
            let path = entry.map_err(|e| format!("cannot read {}: {e}", from.display()))?.path();
            place(&path, &prefix.join(part))?;
            println!("{}", prefix.join(part).join(path.file_name().unwrap_or_default()).display());
        }
    }
    Ok(())
}

/// Copies a program beside its place and renames it there: one that runs is not written into.
fn place(program: &Path, dir: &Path) -> Result<(), String> {
    let name = program.file_name().ok_or("a program without a name")?;
    let fail = |e: std::io::Error| format!("cannot place {} in {}: {e}", program.display(), dir.display());
    fs::create_dir_all(dir).map_err(fail)?;
    let target = dir.join(name);
    if same(program, &target) {
        return Ok(());
    }
    let aside = dir.join(format!(".{}.new", name.to_string_lossy()));
    fs::copy(program, &aside).map_err(fail)?;
    fs::rename(&aside, &target).map_err(fail)
}

/// Whether both have the same bytes; an unchanged program keeps its inode, and the page cache what it has of it.
fn same(a: &Path, b: &Path) -> bool {
    match (fs::read(a), fs::read(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// A command of cargo in the project.
pub fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg(command).current_dir(root());
    cargo
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

/// The target that rustc builds for by itself.
pub fn host_triple() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().map_err(|e| format!("cannot run rustc: {e}"))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// The project's directory.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where finished programs are put.
pub fn dist() -> PathBuf {
    target_dir().join("dist")
}

/// Cargo keeps lock and dependency files beside the programs.
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.extension().is_none() && fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o111 != 0)
}
