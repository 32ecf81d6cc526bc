//! Golden images: what a machine wrote, on top of the image that it was made from.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::archive::writer::{Overlay, pack_overlay};
use crate::blob::{self, Codec, Import, Layer};
use crate::build::oci_type;
use crate::error::{Error, Result};
use crate::lock::{TempDir, sweep};
use crate::oci::{self, Descriptor};
use crate::progress::Progress;
use crate::source::{Brought, Found, as_layer};
use crate::store::{Store, name_for};
use crate::types::{Digest, Image};

/// What ilot writes at each start of a machine, and what is one machine's alone.
const LEFT_OUT: [&str; 4] = ["etc/hostname", "etc/hosts", "etc/resolv.conf", "var/lib/systemd/random-seed"];
/// Made anew at the first start where it is empty (machine-id(5)).
const EMPTIED: [&str; 2] = ["etc/machine-id", "var/lib/dbus/machine-id"];

/// A machine's writable layer, which nobody writes to meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// The upper folder of its overlay.
    pub folder: &'a Path,
    /// The host's number of the machine's user 0.
    pub first_id: u32,
    /// How many numbers the machine has.
    pub ids: u32,
    /// Who wrote it, for the image's history: `machine web`.
    pub who: &'a str,
    /// What is said about it there.
    pub comment: Option<&'a str>,
}

/// The step by which an image came of another one.
pub(crate) struct Step<'a> {
    /// For its history.
    pub(crate) by: String,
    pub(crate) comment: Option<&'a str>,
    /// Whether it made a layer.
    pub(crate) layer: bool,
    /// Where the image came from, for people.
    pub(crate) source: String,
}

impl Store {
    /// Makes an image of another one and what a machine wrote on top of it, under a name as [`Store::tag`] takes it.
    /// Machines made from it share it, as they share any image. The machine's own name, addresses and identity stay out
    /// (`/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`, `/etc/machine-id`).
    ///
    /// # Errors
    /// When the layer cannot be read or written, or the base is damaged.
    pub fn commit_upper(&self, base: &Image, upper: &Upper<'_>, name: &str, progress: &dyn Progress) -> Result<Image> {
        let name = name_for(name)?.to_string();
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        progress.stage(&format!("{name}: pack {}", upper.who));
        let wanted = |bytes| {
            progress.bytes(bytes, None);
            if progress.cancelled() { Err(Error::Cancelled { reference: name.clone() }) } else { Ok(()) }
        };
        let import =
            Import { what: upper.who, aside: &aside, codec: Codec::Zstd, limits: self.limits(), each: &wanted };
        let overlay =
            Overlay { ids: (upper.first_id, upper.ids), left_out: &LEFT_OUT, emptied: &EMPTIED, newest: None };
        let (top, skipped) = as_layer(upper.folder, &import, |out| pack_overlay(upper.folder, overlay, out))?;
        if skipped.mounts > 0 {
            progress.note(&format!("{name}: {} mounts were left out", skipped.mounts));
        }
        let below = Import { what: &base.reference, ..import };
        let (config, mut layers) = self.base_layers(base, &below, &aside, progress, &name)?;
        layers.push(top);
        let step = Step {
            by: format!("ilot image commit ({})", upper.who),
            comment: upper.comment,
            layer: true,
            source: upper.who.to_owned(),
        };
        let found = self.derived(base, &config, layers, &step, |_| {})?;
        let image = self.commit(&name, found, &aside);
        progress.finished();
        image
    }

    /// The digest of the base's configuration, and its layers as if they had come anew.
    pub(crate) fn base_layers(
        &self,
        base: &Image,
        import: &Import<'_>,
        aside: &TempDir,
        progress: &dyn Progress,
        name: &str,
    ) -> Result<(Digest, Vec<Layer>)> {
        let manifest = self.manifest(&base.digest)?;
        let diff_ids = self.configuration(&manifest)?.rootfs.diff_ids;
        let mut layers = Vec::new();
        for (i, (layer, diff_id)) in manifest.layers.iter().zip(&diff_ids).enumerate() {
            progress.stage(&format!("{name}: check layer {} of {}", i + 1, diff_ids.len()));
            layers.push(self.linked(layer, diff_id, i, import, aside)?);
        }
        Ok((manifest.config.digest, layers))
    }

    /// A layer of the base as if it had come anew: a link keeps it from a collection.
    fn linked(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        i: usize,
        import: &Import<'_>,
        aside: &TempDir,
    ) -> Result<Layer> {
        let (blob, file) = (self.blob_file(&layer.digest), aside.path().join(format!("base-{i}")));
        fs::hard_link(&blob, &file).map_err(|e| Error::io("link", &blob, e))?;
        blob::inspect(file, &layer.digest, diff_id, &oci_type(&layer.media_type), import)
    }

    /// The files of the new image: the base's configuration with one layer and one step more.
    pub(crate) fn derived(
        &self,
        base: &Image,
        config: &Digest,
        layers: Vec<Layer>,
        done: &Step<'_>,
        change: impl FnOnce(&mut Value),
    ) -> Result<Found> {
        let path = self.blob_file(config);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let mut configuration: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        let now = Timestamp::now();
        configuration["created"] = json!(now);
        configuration["rootfs"]["diff_ids"] = json!(layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>());
        change(&mut configuration["config"]);
        let mut step = json!({ "created": now, "created_by": done.by });
        if !done.layer {
            step["empty_layer"] = json!(true);
        }
        if let Some(comment) = done.comment {
            step["comment"] = json!(comment);
        }
        match configuration.get_mut("history").and_then(Value::as_array_mut) {
            Some(history) => history.push(step),
            None => {
                // A step for each layer, or this one would be taken for the first layer's.
                let mut history = vec![json!({}); layers.len() - usize::from(done.layer)];
                history.push(step);
                configuration["history"] = json!(history);
            }
        }
        let configuration = configuration.to_string().into_bytes();
        let described = |layer: &Layer| Descriptor::new(&layer.media_type, layer.digest.clone(), layer.size);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci::MANIFEST,
            "config": Descriptor::new(oci::CONFIG, blob::digest_of(&configuration), configuration.len() as u64),
            "layers": layers.iter().map(described).collect::<Vec<_>>(),
            "annotations": {
                "org.opencontainers.image.base.digest": base.digest,
                "org.opencontainers.image.base.name": base.reference,
            },
        });
        let bytes = manifest.to_string().into_bytes();
        let entry = Descriptor::new(oci::MANIFEST, blob::digest_of(&bytes), bytes.len() as u64);
        let manifest = Some((entry, bytes));
        Ok(Found::brought(layers, done.source.clone(), Brought { configuration, manifest }))
    }
}
