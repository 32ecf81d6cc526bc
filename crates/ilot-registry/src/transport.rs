//! Other ways by which a mirror's blobs may come: from whoever has the same bytes, nearer than the source.
//!
//! A [`Source`](crate::Source) says what there is: tags, manifests, which blobs and how large. A [`Transport`] brings bytes by their
//! digest, and is not believed: what it brings is checked before anybody sees a byte of it, and what it does not have comes from
//! the source. This is the place of peers that exchange images with one another.

use std::fmt;
use std::path::Path;

use crate::names::Digest;
use crate::uploads;

/// Brings blobs by their digest. Calls may block.
pub trait Transport: Send + Sync + fmt::Debug {
    /// For people: `peers`.
    fn name(&self) -> String;

    /// A blob of so many bytes into a file that is not there yet. `false`: nobody it knows has it.
    ///
    /// # Errors
    /// Why it cannot be had. The next transport is tried, and then the source.
    fn blob(&self, repository: &str, digest: &str, to: &Path, size: u64) -> Result<bool, String>;
}

/// Any registry that may have the same blobs.
impl Transport for ilot_image::Remote {
    fn name(&self) -> String {
        self.host().to_owned()
    }

    fn blob(&self, repository: &str, digest: &str, to: &Path, size: u64) -> Result<bool, String> {
        let parsed = digest.parse().map_err(|e: ilot_image::Error| e.to_string())?;
        match Self::blob_size(self, repository, &parsed).map_err(|e| e.to_string())? {
            Some(has) if has == size => {}
            _ => return Ok(false),
        }
        let done = Self::blob(self, repository, &parsed, to, Some(size), &|_, _| {}, &|| false);
        done.map(|()| true).map_err(|e| e.to_string())
    }
}

/// Asks the transports in order. The file is there, and what its digest says, where one of them had it.
pub(crate) fn bring(
    transports: &[std::sync::Arc<dyn Transport>],
    repository: &str,
    digest: &Digest,
    to: &Path,
    size: u64,
) -> bool {
    let aside = to.with_extension("brought");
    for transport in transports {
        let _ = std::fs::remove_file(&aside);
        let brought = match transport.blob(repository, &digest.to_string(), &aside, size) {
            Ok(false) => continue,
            Ok(true) => uploads::is_content_of(&aside, digest, size).and_then(|is| match is {
                true => std::fs::rename(&aside, to).map_err(|e| e.to_string()),
                false => Err("what it sent is something else".to_owned()),
            }),
            Err(reason) => Err(reason),
        };
        match brought {
            Ok(()) => return true,
            Err(reason) => tracing::warn!(transport = transport.name(), repository, %digest, reason, "not from there"),
        }
    }
    let _ = std::fs::remove_file(&aside);
    false
}
