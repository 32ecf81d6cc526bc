//! Compiled filters kept on disk, by the hash of everything that made them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::spec::Seccomp;

use super::program::Program;
use super::{Arch, Result, SeccompError};

/// To be raised whenever the compiler's output or the tables change.
const VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"ilotbpf\n";
/// Magic and key.
const HEADER: usize = 8 + 32;
/// The longest file that can be right.
const LONGEST: u64 = (HEADER + 8 + super::compile::MAX * 8) as u64;

/// The compiled profile, from `dir` if it is kept there, else compiled and kept there.
///
/// A kept file counts only if it belongs to root (or to the caller), nobody else may write to it, and it names the key
/// it was made for; anything else is made anew. A directory that cannot be written costs the keeping, not the filter.
///
/// # Errors
/// A profile that cannot be compiled.
pub fn cached(dir: &Path, profile: &Seccomp) -> Result<Program> {
    let key = key(profile, Arch::native())?;
    let path = dir.join(name(&key));
    if let Ok(Some(program)) = read(&path, &key) {
        return Ok(program);
    }
    let program = Program::compile(profile)?;
    // Made again next time.
    let _ = write(dir, &path, &key, &program);
    Ok(program)
}

/// What a program depends on.
fn key(profile: &Seccomp, arch: Arch) -> Result<[u8; 32]> {
    let json = serde_json::to_vec(profile)
        .map_err(|e| SeccompError::Profile { what: "the profile".into(), why: e.to_string() })?;
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(arch.name());
    hash.update(json);
    Ok(hash.finalize().into())
}

fn name(key: &[u8; 32]) -> String {
    let mut out = String::with_capacity(70);
    for byte in key {
        out.push_str(&format!("{byte:02x}"));
    }
    out.push_str(".bpf");
    out
}

/// `None`: there is none. An error: there is one that does not count.
fn read(path: &Path, key: &[u8; 32]) -> Result<Option<Program>> {
    let bad = |why| SeccompError::Kept { path: path.into(), why };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SeccompError::Io { op: "open", path: path.into(), source }),
    };
    let err = |source| SeccompError::Io { op: "read", path: path.into(), source };
    let meta = file.metadata().map_err(err)?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_file() || (meta.uid() != 0 && meta.uid() != me) {
        return Err(bad("it does not belong to root"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(bad("others may write to it"));
    }
    if meta.len() > LONGEST {
        return Err(bad("it is too long"));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(LONGEST).read_to_end(&mut bytes).map_err(err)?;
    if bytes.get(..8) != Some(MAGIC) || bytes.get(8..HEADER) != Some(key) {
        return Err(bad("it was made from another profile"));
    }
    Program::from_bytes(&bytes[HEADER..]).map(Some).ok_or_else(|| bad("it is damaged"))
}

/// Writes aside and renames, so that no reader sees a part.
fn write(dir: &Path, path: &Path, key: &[u8; 32], program: &Program) -> Result<()> {
    let err = |op: &'static str, path: &Path| {
        let path: PathBuf = path.into();
        move |source| SeccompError::Io { op, path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(err("create", dir))?;
    let aside = dir.join(format!(".{}.{}", std::process::id(), name(key)));
    let result = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file: File| {
            let mut bytes = Vec::with_capacity(HEADER + 8 + program.filter.len() * 8);
            bytes.extend(MAGIC);
            bytes.extend(key);
            bytes.extend(program.to_bytes());
            file.write_all(&bytes)
        })
        .and_then(|()| std::fs::rename(&aside, path));
    if result.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    result.map_err(err("write", path))
}

#[cfg(test)]
mod tests {
    use super::super::{DefaultKind, default_profile};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn kept_and_distrusted() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("seccomp");
        let profile = default_profile(DefaultKind::Machine);
        let program = cached(&dir, &profile).unwrap();
        let key = key(&profile, Arch::native()).unwrap();
        let path = dir.join(name(&key));
        assert_eq!(read(&path, &key).unwrap().as_ref(), Some(&program));
        assert_eq!(cached(&dir, &profile).unwrap(), program);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
        assert!(read(&path, &key).is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let good = std::fs::read(&path).unwrap();
        for damage in [&good[..good.len() - 1], &good[..HEADER], &[]] {
            std::fs::write(&path, damage).unwrap();
            assert!(read(&path, &key).is_err());
        }
        std::fs::write(&path, &good).unwrap();
        assert!(read(&path, &[0; 32]).is_err());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(read(&path, &key).is_err());
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read(&path, &key).is_err());
        // A file that does not count is replaced.
        assert_eq!(cached(&dir, &profile).unwrap(), program);
        assert_eq!(read(&path, &key).unwrap(), Some(program));
    }

    #[test]
    fn keys_differ() {
        let (a, b) = (default_profile(DefaultKind::Machine), default_profile(DefaultKind::Init));
        assert_ne!(key(&a, Arch::X86_64).unwrap(), key(&b, Arch::X86_64).unwrap());
        assert_ne!(key(&a, Arch::X86_64).unwrap(), key(&a, Arch::Aarch64).unwrap());
    }
}
