//! Where a build's files and its Containerfile come from.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ilot_image::{Progress, Workshop};

use crate::error::{Error, Result};
use crate::fetch;
use crate::ignore::Ignore;
use crate::options::{Context, FileAt, Options};
use crate::tree::Tree;
use crate::work::make;

/// The largest Containerfile that is read, in bytes.
const LARGEST: u64 = 16 << 20;
/// The usual names, in order.
const NAMES: [&str; 2] = ["Containerfile", "Dockerfile"];

/// A context and its file.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tree: Tree,
    /// The Containerfile's name and text.
    pub(crate) name: String,
    pub(crate) text: String,
}

pub(crate) fn open(
    options: &Options,
    workshop: &Workshop,
    progress: &dyn Progress,
    cancelled: &dyn Fn() -> bool,
) -> Result<Found> {
    let mut given: Option<String> = None;
    let folder = match &options.context {
        Context::Folder(folder) => {
            if !folder.is_dir() {
                let message = format!("`{}` is no folder", folder.display());
                return Err(Error::invalid(
                    message,
                    "name the folder that has the files of the build: `.` is this one",
                ));
            }
            folder.clone()
        }
        Context::Address(address) => elsewhere(address, workshop, progress, cancelled)?,
        Context::Input => {
            if options.file == FileAt::Input {
                let help = "name a folder as the context, or a file with `-f`";
                return Err(Error::invalid("standard input cannot be both the context and the Containerfile", help));
            }
            let folder = make(workshop.path().join("context"))?;
            given = input(workshop, &folder, progress)?;
            folder
        }
    };
    // One that came from elsewhere is not the user's own: its files are named in it alone.
    let is_own = matches!(options.context, Context::Folder(_));
    let mut tree = Tree::open(&folder, "the context")?;
    tree.is_context = true;
    let (name, text) = match (given, &options.file) {
        (Some(text), _) => ("standard input".to_owned(), text),
        (None, FileAt::Input) => {
            ("standard input".to_owned(), limited(io::stdin().lock(), Path::new("standard input"))?)
        }
        (None, FileAt::Path(path)) if is_own => own_file(path, &folder)?,
        (None, FileAt::Path(path)) => (path.display().to_string(), inside(&tree, &path.to_string_lossy())?),
        (None, FileAt::Usual) => usual(&tree, &folder, is_own)?,
    };
    tree.ignore = ignored(&tree, options, &name)?;
    Ok(Found { tree, name, text })
}

fn limited(from: impl Read, path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|e| Error::file("read", path, e))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::invalid(format!("`{}` is too large", path.display()), "is it a Containerfile?"));
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::invalid(format!("`{}` is no text", path.display()), "is it a Containerfile?"))
}

/// A file that the user named: in this folder, else in the context.
fn own_file(path: &Path, folder: &Path) -> Result<(String, String)> {
    let candidates = [path.to_owned(), folder.join(path)];
    for candidate in &candidates {
        match File::open(candidate) {
            Ok(file) => return Ok((candidate.display().to_string(), limited(file, candidate)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::file("open", candidate, e)),
        }
    }
    Err(Error::invalid(format!("there is no `{}`", path.display()), "`-f` names the Containerfile"))
}

fn inside(tree: &Tree, path: &str) -> Result<String> {
    tree.small_file(path)
        .ok_or_else(|| Error::invalid(format!("the context has no `{path}`"), "`-f` names the Containerfile in it"))
}

fn usual(tree: &Tree, folder: &Path, is_own: bool) -> Result<(String, String)> {
    for name in NAMES {
        if let Some(text) = tree.small_file(name) {
            let shown = if is_own && folder != Path::new(".") { folder.join(name) } else { PathBuf::from(name) };
            return Ok((shown.display().to_string(), text));
        }
    }
    let message = format!("`{}` has no Containerfile and no Dockerfile", folder.display());
    Err(Error::invalid(message, "write one, or name one with `-f FILE`"))
}

/// `<Containerfile>.containerignore` beside the file, else the one of the context.
fn ignored(tree: &Tree, options: &Options, name: &str) -> Result<Ignore> {
    if matches!(options.file, FileAt::Path(_)) && matches!(options.context, Context::Folder(_)) {
        for ending in ["containerignore", "dockerignore"] {
            let path = PathBuf::from(format!("{name}.{ending}"));
            match File::open(&path) {
                Ok(file) => return Ok(Ignore::parse(&limited(file, &path)?)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::file("open", &path, e)),
            }
        }
    }
    let text = [".containerignore", ".dockerignore"].into_iter().find_map(|name| tree.small_file(name));
    Ok(text.map(|text| Ignore::parse(&text)).unwrap_or_default())
}

/// Brings a repository or an archive here.
fn elsewhere(
    address: &str,
    workshop: &Workshop,
    progress: &dyn Progress,
    cancelled: &dyn Fn() -> bool,
) -> Result<PathBuf> {
    let folder = make(workshop.path().join("context"))?;
    if let Some(repository) = fetch::repository(address) {
        fetch::check_out(&repository, &folder, false, cancelled)?;
        if repository.folder.is_empty() {
            return Ok(folder);
        }
        // Found in the repository, whatever its links are.
        let tree = Tree::open(&folder, "the repository")?;
        let source = tree.find(&repository.folder)?.remove(0);
        return Ok(folder.join(crate::tree::shown(&source.path)));
    }
    let aside = make(workshop.path().join("download"))?;
    let got = fetch::download(workshop, address, &aside, progress)?;
    if !workshop.unpack_archive(&got.path, &folder, progress)? {
        let target = folder.join(NAMES[0]);
        fs::rename(&got.path, &target).map_err(|e| Error::file("rename", &target, e))?;
    }
    Ok(folder)
}

/// Standard input: an archive is unpacked into the folder; a text is the Containerfile.
fn input(workshop: &Workshop, folder: &Path, progress: &dyn Progress) -> Result<Option<String>> {
    let path = workshop.path().join("input");
    let mut file = File::create_new(&path).map_err(|e| Error::file("create", &path, e))?;
    io::copy(&mut io::stdin().lock(), &mut file).map_err(|e| Error::file("write", &path, e))?;
    file.flush().map_err(|e| Error::file("write", &path, e))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(|e| Error::file("chmod", folder, e))?;
    if workshop.unpack_archive(&path, folder, progress)? {
        return Ok(None);
    }
    let file = File::open(&path).map_err(|e| Error::file("open", &path, e))?;
    limited(file, Path::new("standard input")).map(Some)
}
