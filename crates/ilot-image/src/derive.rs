//! Images made of another one without running anything: other settings, and files on top.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::EntryType;

use crate::archive::writer::{Meta, finish, header, pad};
use crate::blob::{Codec, Import};
use crate::error::{Error, Result};
use crate::golden::Step;
use crate::lock::{TempDir, sweep};
use crate::progress::Progress;
use crate::source::as_layer;
use crate::store::{Paths, Store, name_for};
use crate::types::Image;

/// What is otherwise than in the base; what is not named stays.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// `NAME=value`; the value that the base has is replaced.
    pub env: Vec<String>,
    /// The default arguments.
    pub cmd: Option<Vec<String>>,
    /// What is run before them; without new arguments, the base's go.
    pub entrypoint: Option<Vec<String>>,
    /// `name=value`.
    pub labels: Vec<String>,
    /// The user.
    pub user: Option<String>,
    /// The folder that it starts in.
    pub working_dir: Option<String>,
    /// The signal that stops it.
    pub stop_signal: Option<String>,
    /// Files and folders of the host, and where they go.
    pub copies: Vec<(PathBuf, String)>,
    /// What is said about it in the image's history.
    pub comment: Option<String>,
}

impl Store {
    /// Makes an image of another one with other settings, and with files of the host on top, which belong to root. Links of
    /// the base are followed inside it; a folder of the host is copied with what is in it.
    ///
    /// # Errors
    /// For a name or a setting that is none, files that cannot be read or have no place, a damaged base.
    pub fn derive(&self, base: &Image, changes: &Changes, name: &str, progress: &dyn Progress) -> Result<Image> {
        let name = name_for(name)?.to_string();
        for pair in changes.env.iter().chain(&changes.labels) {
            if pair.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                return Err(bad(pair, "not of the form `NAME=value`"));
            }
        }
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        let wanted = |bytes| {
            progress.bytes(bytes, None);
            if progress.cancelled() { Err(Error::Cancelled { reference: name.clone() }) } else { Ok(()) }
        };
        let import =
            Import { what: &base.reference, aside: &aside, codec: Codec::Zstd, limits: self.limits(), each: &wanted };
        let (config, mut layers) = self.base_layers(base, &import, &aside, progress, &name)?;
        let mut did = said(changes);
        if !changes.copies.is_empty() {
            progress.stage(&format!("{name}: copy files"));
            let entries = self.entries(base, &changes.copies)?;
            let (top, ()) = as_layer(&changes.copies[0].0, &import, |out| write(&entries, out))?;
            layers.push(top);
        }
        did.insert(0, "ilot image derive".to_owned());
        let step = Step {
            by: did.join(" "),
            comment: changes.comment.as_deref(),
            layer: !changes.copies.is_empty(),
            source: format!("derived of {}", base.reference),
        };
        let found = self.derived(base, &config, layers, &step, |settings| apply(settings, changes))?;
        let image = self.commit(&name, found, &aside);
        progress.finished();
        image
    }

    /// Every path that is to be written, with where it comes from: each once, the last copy is right.
    fn entries(&self, base: &Image, copies: &[(PathBuf, String)]) -> Result<Vec<Entry>> {
        let paths = self.paths(base)?;
        let mut all: Vec<Entry> = Vec::new();
        for (source, target) in copies {
            let meta = fs::metadata(source).map_err(|e| Error::io("read", source, e))?;
            let wanted = target.trim_start_matches('/').as_bytes();
            let (mut at, is_folder) = paths.lead(wanted).ok_or_else(|| bad(target, "leads in a circle"))?;
            if meta.is_dir() {
                gather(source, &at, &paths, &mut all)?;
                continue;
            }
            if is_folder || target.ends_with('/') {
                let name = source.file_name().ok_or_else(|| bad(&source.display().to_string(), "no file's name"))?;
                at = joined(&at, name.as_bytes());
            }
            // What is named may be a link to what is meant.
            let real = fs::canonicalize(source).map_err(|e| Error::io("read", source, e))?;
            add(&real, &at, &paths, &mut all)?;
        }
        let mut last: std::collections::BTreeMap<Vec<u8>, Entry> = std::collections::BTreeMap::new();
        for entry in all {
            last.insert(entry.at.clone(), entry);
        }
        Ok(last.into_values().collect())
    }
}

/// One path of the new layer.
struct Entry {
    at: Vec<u8>,
    source: PathBuf,
}

fn bad(text: &str, reason: &str) -> Error {
    Error::BadReference { text: text.to_owned(), reason: reason.to_owned(), help: None }
}

fn joined(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// What is in a folder of the host, below a folder of the image.
fn gather(folder: &Path, at: &[u8], paths: &Paths, all: &mut Vec<Entry>) -> Result<()> {
    let read = fs::read_dir(folder).map_err(|e| Error::io("read folder", folder, e))?;
    let mut entries: Vec<_> = read.collect::<io::Result<_>>().map_err(|e| Error::io("read folder", folder, e))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    if !at.is_empty() && !paths.is_folder(at) {
        add(folder, at, paths, all)?;
    }
    for entry in entries {
        let path = entry.path();
        let inside = joined(at, entry.file_name().as_bytes());
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            // A folder of the base, perhaps behind a link: what is copied goes in there.
            let (led, _) = paths.lead(&inside).ok_or_else(|| bad(&path.display().to_string(), "leads in a circle"))?;
            gather(&path, &led, paths, all)?;
        } else {
            add(&path, &inside, paths, all)?;
        }
    }
    Ok(())
}

fn add(source: &Path, at: &[u8], paths: &Paths, all: &mut Vec<Entry>) -> Result<()> {
    let is_folder = fs::symlink_metadata(source).is_ok_and(|m| m.is_dir());
    let shown = || format!("/{}", String::from_utf8_lossy(at));
    if at.is_empty() || paths.is_folder(at) && !is_folder {
        return Err(bad(&shown(), "the image has a folder there, and a file cannot take its place"));
    }
    let parents = at.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| &at[..i]);
    if let Some(file) = parents.into_iter().find(|parent| paths.is_file(parent)) {
        return Err(bad(&shown(), &format!("the image has a file at /{}", String::from_utf8_lossy(file))));
    }
    all.push(Entry { at: at.to_vec(), source: source.to_owned() });
    Ok(())
}

/// A layer of the entries: everything is root's, modes and times are the host's.
fn write(entries: &[Entry], out: &mut impl Write) -> Result<()> {
    for entry in entries {
        let failed = |e: io::Error| Error::io("pack", &entry.source, e);
        let meta = fs::symlink_metadata(&entry.source).map_err(failed)?;
        let mode = meta.mode() & 0o7777;
        let kind = meta.file_type();
        let times = (meta.mtime(), 0);
        if kind.is_symlink() {
            let link = fs::read_link(&entry.source).map_err(failed)?;
            let mut packed = Meta::new(&entry.at, EntryType::Symlink, 0o777);
            (packed.link, packed.mtime) = (link.as_os_str().as_bytes(), times);
            header(out, &packed).map_err(failed)?;
        } else if kind.is_dir() {
            let mut packed = Meta::new(&entry.at, EntryType::Directory, mode);
            packed.mtime = times;
            header(out, &packed).map_err(failed)?;
        } else if kind.is_file() {
            let mut packed = Meta::new(&entry.at, EntryType::Regular, mode);
            (packed.size, packed.mtime) = (meta.size(), times);
            header(out, &packed).map_err(failed)?;
            let file = File::open(&entry.source).map_err(failed)?;
            let copied = io::copy(&mut file.take(meta.size()), out).map_err(failed)?;
            if copied != meta.size() {
                return Err(failed(io::Error::other("it became shorter while it was read")));
            }
            pad(out, meta.size()).map_err(failed)?;
        } else {
            return Err(failed(io::Error::other("neither a file nor a folder nor a link")));
        }
    }
    finish(out).map_err(|e| Error::io("pack", Path::new("."), e))
}

/// The changes in words, for the history.
fn said(changes: &Changes) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(changes.copies.iter().map(|(from, to)| format!("--copy {}:{to}", from.display())));
    // Values may be secrets: names are enough.
    all.extend(changes.env.iter().map(|e| format!("--env {}", e.split('=').next().unwrap_or(e))));
    all.extend(changes.labels.iter().map(|l| format!("--label {l}")));
    for (flag, given) in [("entrypoint", &changes.entrypoint), ("cmd", &changes.cmd)] {
        all.extend(given.iter().map(|words| format!("--{flag} {}", json!(words))));
    }
    for (flag, given) in
        [("user", &changes.user), ("workdir", &changes.working_dir), ("stop-signal", &changes.stop_signal)]
    {
        all.extend(given.iter().map(|text| format!("--{flag} {text}")));
    }
    all
}

/// Changes `config` of a configuration.
fn apply(settings: &mut Value, changes: &Changes) {
    if !settings.is_object() {
        *settings = json!({});
    }
    if !changes.env.is_empty() {
        let mut env: Vec<String> = serde_json::from_value(settings["Env"].clone()).unwrap_or_default();
        for pair in &changes.env {
            let key = format!("{}=", pair.split('=').next().unwrap_or_default());
            env.retain(|old| !old.starts_with(&key));
            env.push(pair.clone());
        }
        settings["Env"] = json!(env);
    }
    if let Some(entrypoint) = &changes.entrypoint {
        settings["Entrypoint"] = json!(entrypoint);
        settings["Cmd"] = Value::Null;
    }
    if let Some(cmd) = &changes.cmd {
        settings["Cmd"] = json!(cmd);
    }
    for label in &changes.labels {
        if !settings["Labels"].is_object() {
            settings["Labels"] = json!({});
        }
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        settings["Labels"][key] = json!(value);
    }
    for (key, given) in
        [("User", &changes.user), ("WorkingDir", &changes.working_dir), ("StopSignal", &changes.stop_signal)]
    {
        if let Some(text) = given {
            settings[key] = json!(text);
        }
    }
}
