//! In which form machines get layers: as EROFS images where the kernel can, as folders otherwise.
//!
//! ```text
//! layers.json        what somebody said, by trust level: {"*": "auto", "untrusted": "unpacked"}
//! images/native      whether this kernel mounts native layers from this store, asked once in a life of the host
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};
use tar::EntryType;

use super::Store;
use crate::archive::Limits;
use crate::archive::writer::{Meta, finish, header};
use crate::blob;
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::native::{self, NativeLayer};
use crate::oci::{self, Descriptor};
use crate::progress::Progress;
use crate::types::{Digest, Image};

/// The variable that decides for one call.
const VARIABLE: &str = "ILOT_LAYERS";

/// What machines shall get an image's layers as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// EROFS images where the kernel can, folders where it cannot or where they are already there.
    #[default]
    Auto,
    /// EROFS images.
    Native,
    /// Folders.
    Unpacked,
}

impl Form {
    /// From its name: `auto`, `native`, `unpacked`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "native" => Some(Self::Native),
            "unpacked" => Some(Self::Unpacked),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Unpacked => "unpacked",
        }
    }
}

/// A layer of one trust level, as it can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A folder that can be a lower layer as it is.
    Folder(PathBuf),
    /// To be mounted first.
    Native(NativeLayer),
}

/// What `ILOT_LAYERS` says.
pub(super) fn of_call() -> Result<Option<Form>> {
    match std::env::var(VARIABLE).ok().as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match Form::named(text) {
            Some(form) => Ok(Some(form)),
            None => Err(Error::Host {
                what: format!("read the variable {VARIABLE}"),
                reason: format!("`{text}` is no form of layers"),
                help: Some("one of `auto`, `native`, `unpacked`".to_owned()),
            }),
        },
    }
}

impl Store {
    /// What machines of a trust level get the image's layers as: what this call was told (`ILOT_LAYERS`), else what was said
    /// of the image ([`Store::set_form`]), else of the level (`layers.json`), else [`Form::Auto`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn form(&self, image: &Image, trust: &str) -> Result<Form> {
        if let Some(form) = self.form {
            return Ok(form);
        }
        let index = self.read_index()?;
        let mut of_image = index.manifests.iter().filter(|d| d.digest == image.digest);
        if let Some(said) = of_image.find_map(|d| Form::named(d.annotations.get(oci::LAYERS)?)) {
            return Ok(said);
        }
        self.form_of_level(trust)
    }

    /// The same store for somebody who wants folders: what comes is not made native on the way, unless `ILOT_LAYERS` says so.
    #[must_use]
    pub fn for_folders(mut self) -> Self {
        self.form = self.form.or(Some(Form::Unpacked));
        self
    }

    fn form_of_level(&self, trust: &str) -> Result<Form> {
        let path = self.root.join("layers.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Form::Auto),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let damaged = |reason: String| Error::Damaged {
            path: path.clone(),
            reason: format!("not of the form {{\"*\": \"auto\", \"untrusted\": \"unpacked\"}}: {reason}"),
        };
        let said: BTreeMap<String, String> = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let Some(text) = said.get(trust).or_else(|| said.get("*")) else { return Ok(Form::Auto) };
        Form::named(text).ok_or_else(|| damaged(format!("`{text}` is none of `auto`, `native`, `unpacked`")))
    }

    /// Says what machines shall get the image's layers as, under all its names.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the index cannot be written.
    pub fn set_form(&self, image: &Image, form: Form) -> Result<()> {
        let aside = TempDir::new(&self.temporary())?;
        let _lock = self.lock_index()?;
        let mut index = self.read_index()?;
        let mut found = false;
        for entry in index.manifests.iter_mut().filter(|d| d.digest == image.digest) {
            found = true;
            match form {
                Form::Auto => entry.annotations.remove(oci::LAYERS),
                said => entry.annotations.insert(oci::LAYERS.to_owned(), said.name().to_owned()),
            };
        }
        if !found {
            return Err(Error::NotFound { reference: image.reference.clone(), store: self.root().to_owned() });
        }
        self.write_index(&index, &aside)
    }

    /// Whether what comes shall be made native while it comes, before a machine asks: where, then.
    pub(super) fn prepare(&self) -> Result<Option<PathBuf>> {
        let wanted = match self.form {
            Some(form) => form,
            None => self.form_of_level("*")?,
        };
        let native = match wanted {
            Form::Native => true,
            Form::Unpacked => false,
            Form::Auto => self.mounts_native(),
        };
        Ok(native.then(|| self.root.join("layers").join(super::layers::PREPARED)))
    }

    /// Whether this kernel mounts native layers of this store as they are meant to be: from the file itself, and past the
    /// file's page cache (Linux 6.15; docs/images.md, "Native layers"). Tried once in a life of the host.
    #[must_use]
    pub fn mounts_native(&self) -> bool {
        if !rustix::process::geteuid().is_root() {
            return false;
        }
        let known = self.root.join("images/native");
        let boot = native::boot().unwrap_or_default();
        if let Ok(text) = fs::read_to_string(&known)
            && let Some((of, answer)) = text.split_once(' ')
            && of == boot
            && !boot.is_empty()
        {
            return answer == "yes";
        }
        let tried = self.try_native();
        if let Err(error) = &tried {
            tracing::info!(%error, "native layers cannot be mounted here: layers are unpacked");
        }
        let answer = if tried.is_ok() { "yes" } else { "no" };
        // Where it cannot be written down it is tried again.
        let _ = fs::write(&known, format!("{boot} {answer}"));
        tried.is_ok()
    }

    fn try_native(&self) -> Result<()> {
        let aside = TempDir::new(&self.temporary())?;
        let path = aside.path().join("native");
        let file = fs::File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut archive = Vec::new();
        header(&mut archive, &Meta::new(b"empty/", EntryType::Directory, 0o755))
            .and_then(|()| finish(&mut archive))
            .map_err(|e| Error::io("pack", &path, e))?;
        let digest = blob::digest_of(&archive);
        native::build(archive.as_slice(), file, &digest, Limits::default(), |_, _| Ok(()))
            .map_err(|f| f.of("a native layer on trial", aside.path()))?;
        is_mountable(&path).map_err(|e| Error::io("mount", path, e))
    }

    /// The image's layers for one trust level, top first, each in the form in which it is there, else native, else (where the
    /// native format does not take it) as a folder.
    ///
    /// # Errors
    /// As [`Store::materialize`].
    pub fn lowers(&self, image: &Image, trust: &str, progress: &dyn Progress) -> Result<Vec<Lower>> {
        self.each_layer(image, trust, |layer, id, progress| self.lower(image, layer, id, trust, progress), progress)
    }

    fn lower(
        &self,
        image: &Image,
        layer: &Descriptor,
        id: &Digest,
        trust: &str,
        progress: &dyn Progress,
    ) -> Result<Lower> {
        let level = self.root.join("layers").join(trust);
        if !level.join(format!("{}.erofs", id.hex())).exists() && self.is_whole(&level.join(id.hex()), trust, id)? {
            return Ok(Lower::Folder(level.join(id.hex())));
        }
        match self.native_layer(image, layer, id, trust, progress) {
            Ok(native) => return Ok(Lower::Native(native)),
            Err(error @ (Error::Cancelled { .. } | Error::NoSpace { .. })) => return Err(error),
            // What is wrong with the layer itself is told by unpacking it.
            Err(error) => tracing::debug!(%error, layer = id.short(), "not native: unpacked"),
        }
        self.layer(image, layer, id, trust, progress).map(Lower::Folder)
    }
}

/// Makes a superblock of the file and lets go of it.
fn is_mountable(file: &Path) -> rustix::io::Result<()> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", file)?;
    fsconfig_set_flag(context.as_fd(), "ro")?;
    fsconfig_set_flag(context.as_fd(), native::DIRECT)?;
    fsconfig_create(context.as_fd())
}
