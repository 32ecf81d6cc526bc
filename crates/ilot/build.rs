//! Puts the repository's `examples/` into the program, so that `ilot init --example` needs no file of the source tree.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("../../examples");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut code =
        String::from("/// Every example: its name, and its files with their paths below the example's folder.\n");
    code.push_str("static EXAMPLES: &[Example] = &[\n");
    for dir in sorted(&root)?.into_iter().filter(|path| path.is_dir()) {
        let mut files = Vec::new();
        walk(&dir, &mut files)?;
        if !files.iter().any(|file| is_project(file, &dir)) {
            continue;
        }
        let _ = writeln!(code, "    Example {{ name: {:?}, files: &[", name(&dir));
        for file in files {
            println!("cargo::rerun-if-changed={}", file.display());
            let inside = file.strip_prefix(&dir).map_err(io::Error::other)?;
            let _ = writeln!(code, "        ({:?}, include_str!({:?})),", inside, file.canonicalize()?);
        }
        code.push_str("    ] },\n");
    }
    code.push_str("];\n");
    fs::write(Path::new(&env("OUT_DIR")).join("examples.rs"), code)
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What `ilot` finds when it is started in the example's folder.
fn is_project(file: &Path, dir: &Path) -> bool {
    let inside = file.strip_prefix(dir).unwrap_or(file);
    ["infra.yml", "infra/base.yml", "anklume.yml"].iter().any(|known| inside == Path::new(known))
}

/// Text files below a folder, hidden ones left out.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for path in sorted(dir)? {
        if name(&path).starts_with('.') {
            continue;
        }
        if path.is_dir() {
            walk(&path, files)?;
        } else if fs::read_to_string(&path).is_ok() {
            files.push(path);
        }
    }
    Ok(())
}

fn sorted(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
