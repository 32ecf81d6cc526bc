//! The same image in another form.

use std::fs;

use super::{Store, name_for};
use crate::blob::{self, Codec, Import};
use crate::error::{Error, Result};
use crate::lock::{TempDir, sweep};
use crate::progress::Progress;
use crate::source::{Brought, Found};
use crate::types::{Digest, Image};

impl Store {
    /// The digests of an image's layers, uncompressed: what names them below `layers/`.
    ///
    /// # Errors
    /// When the image is not there or damaged.
    pub fn layer_ids(&self, image: &Digest) -> Result<Vec<Digest>> {
        Ok(self.configuration(&self.manifest(image)?)?.rootfs.diff_ids)
    }

    /// The trust levels that have layers of the image in either form.
    ///
    /// # Errors
    /// When the image is damaged.
    pub fn trust_levels(&self, image: &Image) -> Result<Vec<String>> {
        let manifest = self.manifest(&image.digest)?;
        let diff_ids = self.configuration(&manifest)?.rootfs.diff_ids;
        let mut levels = Vec::new();
        for level in super::gc::entries(&self.root.join("layers"))? {
            let has = |id: &Digest| level.join(id.hex()).exists() || level.join(format!("{}.erofs", id.hex())).exists();
            // What waits for its level has none.
            if let (true, Some(name)) =
                (diff_ids.iter().any(has), level.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')))
            {
                levels.push(name.to_owned());
            }
        }
        levels.sort();
        Ok(levels)
    }

    /// What is wrong with the native layers of an image, in every trust level.
    pub(super) fn verify_native(&self, diff_ids: &[Digest]) -> Result<Vec<(std::path::PathBuf, String)>> {
        let mut found = Vec::new();
        for level in super::gc::entries(&self.root.join("layers"))? {
            for id in diff_ids {
                let path = level.join(format!("{}.erofs", id.hex()));
                if path.exists()
                    && let Err(error) = crate::native::verify(&path, id)
                {
                    found.push((path, super::look::why(error)));
                }
            }
        }
        Ok(found)
    }

    /// The image with its layers compressed in another way, under a name as [`Store::tag`] takes it: for programs that do
    /// not read what the store has. Its configuration stays to the byte, its files and their order too.
    ///
    /// # Errors
    /// When a layer is damaged or cannot be written, and for a name that belongs to a source.
    pub fn recompress(&self, image: &Image, codec: Codec, name: &str, progress: &dyn Progress) -> Result<Image> {
        let name = name_for(name)?.to_string();
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        let manifest = self.manifest(&image.digest)?;
        let diff_ids = self.configuration(&manifest)?.rootfs.diff_ids;
        let total = manifest.layers.len();
        let mut layers = Vec::with_capacity(total);
        for (i, (layer, diff_id)) in manifest.layers.iter().zip(&diff_ids).enumerate() {
            progress.stage(&format!("{name}: compress layer {} of {total}", i + 1));
            let wanted = |bytes| {
                progress.bytes(bytes, None);
                if progress.cancelled() { Err(Error::Cancelled { reference: name.clone() }) } else { Ok(()) }
            };
            let what = format!("{}: layer {}", image.reference, layer.digest.short());
            let import = Import { what: &what, aside: &aside, codec, limits: self.limits, each: &wanted };
            let source = blob::open(&self.blob_path(&layer.digest), &layer.digest)?;
            let new = blob::import(source, &import)?;
            if new.diff_id != *diff_id {
                let reason = format!("uncompressed it is {}, not {diff_id}", new.diff_id);
                return Err(Error::Damaged { path: self.blob_path(&layer.digest), reason });
            }
            layers.push(new);
        }
        let path = self.blob_path(&manifest.config.digest);
        let configuration = fs::read(&path).map_err(|e| Error::io("read", path, e))?;
        let brought = Brought { configuration, manifest: None };
        let converted = self.commit(&name, Found::brought(layers, image.reference.clone(), brought), &aside);
        progress.finished();
        converted
    }
}
