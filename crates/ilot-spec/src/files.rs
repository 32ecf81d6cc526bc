//! Finding and reading a project's files: the only part of this crate that touches the file system.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::model::Layout;
use crate::problem::{Problem, Role, SourceFile, Sources};
use crate::yaml::MAX_BYTES;

/// A project of more files than this is refused.
const MAX_FILES: usize = 4096;

/// The project of a directory: `infra.yml`, else `infra/` (with a `base.yml`), else `anklume.yml`.
///
/// With an empty path or `.` the result is relative, as a user would write it.
#[must_use]
pub fn find(cwd: &Path) -> Option<PathBuf> {
    let here = cwd.as_os_str().is_empty() || cwd == Path::new(".");
    let place = |name: &str| if here { PathBuf::from(name) } else { cwd.join(name) };
    [("infra.yml", "infra.yml"), ("infra", "infra/base.yml"), ("anklume.yml", "anklume.yml")]
        .into_iter()
        .find(|(_, probe)| place(probe).is_file())
        .map(|(name, _)| place(name))
}

/// Reads the files of the project that `path` names: a single file, `infra/`, its `base.yml`, a project directory, its
/// `anklume.yml`, or a directory that holds one of them.
///
/// What cannot be read is in [`Sources::unreadable`].
#[must_use]
pub fn read(path: &Path) -> Sources {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    if path.is_dir() {
        if path.join("base.yml").is_file() {
            return split(path, path);
        }
        if path.join("anklume.yml").is_file() {
            return project(path, path);
        }
        return match find(path) {
            Some(found) => Sources { root: path.into(), ..read(&found) },
            None => {
                let mut sources = empty(Layout::SingleFile, path);
                sources.unreadable.push(Problem::without_place(
                    format!(
                        "no project in `{}`: no `infra.yml`, no `infra/base.yml`, no `anklume.yml`",
                        path.display()
                    ),
                    "name the file with `-f PATH`, or start one with `ilot init`",
                ));
                sources
            }
        };
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    match name {
        "anklume.yml" => project(path, parent),
        "base.yml" => split(path, parent),
        _ => {
            let mut sources = empty(Layout::SingleFile, path);
            sources.add(path.into(), Role::Main);
            sources.add_optional(parent.join("ilot.yml"), Role::Ilot);
            sources
        }
    }
}

fn split(root: &Path, dir: &Path) -> Sources {
    let mut sources = empty(Layout::SplitDirectory, root);
    sources.add(dir.join("base.yml"), Role::Main);
    sources.add_domains(&dir.join("domains"));
    sources.add_optional(dir.join("policies.yml"), Role::Policies);
    sources.add_optional(dir.join("ilot.yml"), Role::Ilot);
    sources
}

fn project(root: &Path, dir: &Path) -> Sources {
    let mut sources = empty(Layout::ProjectDirectory, root);
    let absolute = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    sources.directory =
        fs::canonicalize(absolute).ok().and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    sources.add(dir.join("anklume.yml"), Role::Main);
    sources.add_domains(&dir.join("domains"));
    sources.add_optional(dir.join("policies.yml"), Role::Policies);
    sources.add_optional(dir.join("ilot.yml"), Role::Ilot);
    sources
}

fn empty(layout: Layout, root: &Path) -> Sources {
    Sources { layout, root: root.into(), directory: None, files: Vec::new(), unreadable: Vec::new() }
}

impl Sources {
    fn add_optional(&mut self, path: PathBuf, role: Role) {
        // A dangling link or a directory of that name is a mistake to tell, not an absence.
        if path.symlink_metadata().is_ok() {
            self.add(path, role);
        }
    }

    fn add_domains(&mut self, dir: &Path) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.refuse(dir, &error.to_string(), "make the directory readable"),
        };
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => paths.push(entry.path()),
                Err(error) => self.refuse(dir, &error.to_string(), "make the directory readable"),
            }
        }
        paths.retain(|p| {
            let hidden = p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            !hidden && p.extension() == Some(OsStr::new("yml"))
        });
        if paths.len() > MAX_FILES {
            self.refuse(dir, &format!("more than {MAX_FILES} files"), "merge domains into fewer files");
            return;
        }
        paths.sort();
        for path in paths {
            self.add(path, Role::Domains);
        }
    }

    fn add(&mut self, path: PathBuf, role: Role) {
        match read_text(&path) {
            Ok(text) => self.files.push(SourceFile { path, role, text }),
            Err((reason, help)) => self.refuse(&path, &reason, &help),
        }
    }

    fn refuse(&mut self, path: &Path, reason: &str, help: &str) {
        let message = format!("`{}` cannot be read: {reason}", path.display());
        self.unreadable.push(Problem::without_place(message, help));
    }
}

fn read_text(path: &Path) -> Result<String, (String, String)> {
    let fail = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path, or start a project with `ilot init`",
            std::io::ErrorKind::PermissionDenied => "make the file readable for this user",
            _ => "check the path and the file system",
        };
        (lower_first(&error.to_string()), help.to_string())
    };
    if path.metadata().map_err(fail)?.is_dir() {
        return Err(("it is a directory".into(), "name a file, or `infra/` with a `base.yml`".into()));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(fail)?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() > MAX_BYTES {
        let reason = format!("it is larger than {} MiB", MAX_BYTES >> 20);
        return Err((reason, "split it: one file per domain under `infra/domains/`".into()));
    }
    decode(bytes)
}

/// UTF-8 text without its byte order mark.
fn decode(bytes: Vec<u8>) -> Result<String, (String, String)> {
    let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    match String::from_utf8(bytes) {
        Ok(text) => Ok(match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.into(),
            None => text,
        }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let before = &error.as_bytes()[..at];
            let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
            let from = if utf16 { "UTF-16" } else { "ISO-8859-1" };
            Err((
                format!("it is not UTF-8 (byte {} on line {line})", at + 1),
                format!("convert it, for example with `iconv -f {from} -t UTF-8`"),
            ))
        }
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().chain(chars).collect()).unwrap_or_default()
}
