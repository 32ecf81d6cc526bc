//! Repositories copied from place to place: registries, folders of OCI layouts, folders as skopeo's `dir:`.

mod folders;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::lock::{TempDir, sweep};
use crate::oci;
use crate::progress::Progress;
use crate::remote::RemoteManifest;
use crate::store::Store;
use crate::types::Digest;

use place::{Place, Spot};

/// An index of indexes of indexes is nobody's.
const DEPTH: usize = 4;

/// Which images are copied.
#[derive(Debug, Clone, Default)]
pub struct SyncRules {
    /// Repositories whose name fits one of these (`*` is anything); all of them without.
    pub names: Vec<String>,
    /// Tags that fit one of these; all of them without.
    pub tags: Vec<String>,
    /// Only images that say that they were made then or later.
    pub since: Option<Timestamp>,
    /// Only say what would be copied.
    pub dry_run: bool,
}

/// What became of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncResult {
    /// It was copied.
    Copied,
    /// It was there already.
    Present,
    /// It would be copied.
    WouldCopy,
    /// It was made before the time that was given.
    TooOld,
    /// It could not be copied.
    Failed,
}

/// One image of a copy.
#[derive(Debug, Clone, Serialize)]
pub struct Synced {
    /// Its repository, seen from the source.
    pub repository: String,
    /// Its tag; a digest for what refers to an image.
    pub tag: String,
    /// Its manifest or index.
    pub digest: Option<Digest>,
    /// What became of it.
    pub result: SyncResult,
    /// Blobs that were copied; the others were there.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Why not.
    pub error: Option<String>,
}

impl Store {
    /// Copies images from one place to another: `HOST[/PATH[:TAG]]`, `oci:DIR` (a layout for each repository), `dir:DIR` (a
    /// folder for each image, as skopeo has them). Indexes with all their images, signatures and what else refers to an
    /// image come along. What is there is not copied again, so that a copy that broke off goes on. An image that fails does
    /// not hold up the others.
    ///
    /// # Errors
    /// When a place cannot be read at all, or the caller gave up.
    pub fn sync(
        &self,
        from: &str,
        to: &str,
        rules: &SyncRules,
        progress: &dyn Progress,
        each: &mut dyn FnMut(&Synced),
    ) -> Result<Vec<Synced>> {
        let (from, to) = (Spot::parse(from)?, Spot::parse(to)?);
        let (tag, named) = (from.tag.clone(), from.to_string());
        let source = from.open(self.shared_client())?;
        let target = to.open(self.shared_client())?;
        sweep(&self.temporary());
        let aside = TempDir::new(&self.temporary())?;
        progress.stage(&format!("ask {named}"));
        let copy = Copy { source: &*source, target: &*target, aside: aside.path(), rules, progress };
        let mut all = Vec::new();
        for (repository, shown) in source.repositories(&rules.names)? {
            let tags = match &tag {
                Some(tag) => vec![tag.clone()],
                None => source.tags(&repository)?,
            };
            let wanted = |t: &String| rules.tags.is_empty() || rules.tags.iter().any(|glob| fits(glob, t));
            // Signatures go with what they are of.
            for tag in tags.iter().filter(|t| wanted(t) && !is_companion(t)) {
                if progress.cancelled() {
                    return Err(Error::Cancelled { reference: shown });
                }
                progress.stage(&format!("{shown}:{tag}"));
                for one in copy.image(&repository, &shown, tag) {
                    each(&one);
                    all.push(one);
                }
            }
        }
        progress.finished();
        Ok(all)
    }
}

/// `sha256-….sig`, `sha256-…`: tags that stand for signatures and referrers.
fn is_companion(tag: &str) -> bool {
    let digits = tag.strip_prefix("sha256-").or_else(|| tag.strip_prefix("sha512-"));
    digits.is_some_and(|rest| rest.get(..64).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())))
}

/// `*` is anything.
fn fits(glob: &str, text: &str) -> bool {
    let Some((start, rest)) = glob.split_once('*') else { return glob == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    text.char_indices().map(|(i, _)| i).chain([text.len()]).any(|at| fits(rest, &text[at..]))
}

struct Copy<'a> {
    source: &'a dyn Place,
    target: &'a dyn Place,
    aside: &'a Path,
    rules: &'a SyncRules,
    progress: &'a dyn Progress,
}

/// Which image is being copied.
struct At<'a> {
    /// Its repository at the source.
    repository: &'a str,
    /// And at the target.
    shown: &'a str,
    /// The tag that was asked for; parts of an index are copied for its sake.
    top: &'a str,
}

/// What was copied of one image.
#[derive(Default)]
struct Moved {
    blobs: usize,
    bytes: u64,
}

impl Copy<'_> {
    /// An image, and what belongs to it.
    fn image(&self, repository: &str, shown: &str, tag: &str) -> Vec<Synced> {
        let mut all = Vec::new();
        let mut one = |reference: &str, result: Result<(Option<Digest>, SyncResult, Moved)>| {
            let (digest, result, moved, error) = match result {
                Ok((digest, result, moved)) => (digest, result, moved, None),
                Err(error) => (None, SyncResult::Failed, Moved::default(), Some(error.to_string())),
            };
            let (repository, tag) = (shown.to_owned(), reference.to_owned());
            let (blobs, bytes) = (moved.blobs, moved.bytes);
            all.push(Synced { repository, tag, digest: digest.clone(), result, blobs, bytes, error });
            (digest, result)
        };
        let (digest, result) = one(tag, self.tagged(repository, shown, tag));
        let (Some(digest), true) = (digest, !matches!(result, SyncResult::TooOld | SyncResult::Failed)) else {
            return all;
        };
        for digest in self.family(repository, &digest).unwrap_or_else(|_| vec![digest]) {
            let signatures = format!("{}-{}.sig", digest.algorithm(), digest.hex());
            match self.source.manifest(repository, &signatures) {
                Ok(None) => {}
                Ok(Some(_)) => drop(one(&signatures, self.tagged(repository, shown, &signatures))),
                Err(error) => drop(one(&signatures, Err(error))),
            }
            let referrers =
                if self.target.keeps_referrers() { self.source.referrers(repository, &digest) } else { Ok(Vec::new()) };
            for referrer in referrers.unwrap_or_default() {
                let by = referrer["digest"].as_str().unwrap_or_default().to_owned();
                let copied = self.tagged(repository, shown, &by);
                let noted = copied.and_then(|copied| {
                    if !self.rules.dry_run {
                        self.target.note_referrer(shown, &digest, &referrer)?;
                    }
                    Ok(copied)
                });
                one(&by, noted);
            }
        }
        all
    }

    /// The digests of an index and of what it names.
    fn family(&self, repository: &str, digest: &Digest) -> Result<Vec<Digest>> {
        let mut all = vec![digest.clone()];
        if let Some(manifest) = self.source.manifest(repository, &digest.to_string())? {
            all.extend(children(&manifest)?);
        }
        Ok(all)
    }

    fn tagged(&self, repository: &str, shown: &str, reference: &str) -> Result<(Option<Digest>, SyncResult, Moved)> {
        let manifest = self.source.manifest(repository, reference)?;
        let manifest = manifest.ok_or_else(|| self.source.bad(&format!("`{repository}:{reference}` is not there")))?;
        let digest = Some(manifest.digest.clone());
        if self.target.digest(shown, reference)? == digest {
            return Ok((digest, SyncResult::Present, Moved::default()));
        }
        if let Some(since) = self.rules.since.filter(|_| !is_companion(reference))
            && self.created(repository, &manifest, DEPTH)?.is_none_or(|created| created < since)
        {
            return Ok((digest, SyncResult::TooOld, Moved::default()));
        }
        if self.rules.dry_run {
            return Ok((digest, SyncResult::WouldCopy, Moved::default()));
        }
        let mut moved = Moved::default();
        let at = At { repository, shown, top: reference };
        self.whole(&at, &manifest, reference, &mut moved, DEPTH)?;
        Ok((digest, SyncResult::Copied, moved))
    }

    /// When an image says that it was made; of an index, its newest one.
    fn created(&self, repository: &str, manifest: &RemoteManifest, depth: usize) -> Result<Option<Timestamp>> {
        if depth == 0 {
            return Ok(None);
        }
        let json = parse(manifest)?;
        if oci::is_index(&manifest.media_type) {
            let mut newest = None;
            for child in children(manifest)? {
                if let Some(child) = self.source.manifest(repository, &child.to_string())? {
                    newest = newest.max(self.created(repository, &child, depth - 1)?);
                }
            }
            return Ok(newest);
        }
        let Some(digest) = json["config"]["digest"].as_str().and_then(|d| d.parse::<Digest>().ok()) else {
            return Ok(None);
        };
        let file = self.aside.join("configuration");
        self.source.fetch(repository, &digest, &file, &|_, _| {}, &|| false)?;
        let bytes = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
        let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(config["created"].as_str().and_then(|text| text.parse().ok()))
    }

    /// Blobs first, then what names them: whatever is seen at the target is whole.
    fn whole(
        &self,
        at: &At<'_>,
        manifest: &RemoteManifest,
        reference: &str,
        moved: &mut Moved,
        depth: usize,
    ) -> Result<()> {
        if depth == 0 {
            return Err(self.source.bad("indexes within indexes without end"));
        }
        for digest in children(manifest)? {
            let by = digest.to_string();
            if !self.target.wants_everything() && self.target.digest(at.shown, &by)?.is_some() {
                continue;
            }
            let child = self.source.manifest(at.repository, &by)?;
            let child = child.ok_or_else(|| self.source.bad(&format!("`{}@{by}` is not there", at.repository)))?;
            self.whole(at, &child, &by, moved, depth - 1)?;
        }
        for (digest, size) in blobs(manifest)? {
            self.blob(at, &digest, size, moved)?;
        }
        self.target.put_manifest(at.shown, at.top, reference, manifest)
    }

    fn blob(&self, at: &At<'_>, digest: &Digest, size: u64, moved: &mut Moved) -> Result<()> {
        if self.target.has(at.shown, at.top, digest)? {
            return Ok(());
        }
        let file = self.aside.join(digest.hex());
        let told = |done, _| self.progress.bytes(done, Some(size));
        let cancelled = || self.progress.cancelled();
        self.source.fetch(at.repository, digest, &file, &told, &cancelled)?;
        self.target.put_blob(at.shown, at.top, digest, &file)?;
        let _ = std::fs::remove_file(&file);
        moved.blobs += 1;
        moved.bytes += size;
        Ok(())
    }
}

fn parse(manifest: &RemoteManifest) -> Result<Value> {
    let bad = |e: serde_json::Error| Error::Archive { what: manifest.digest.to_string(), reason: e.to_string() };
    serde_json::from_slice(&manifest.bytes).map_err(bad)
}

/// What an index names.
fn children(manifest: &RemoteManifest) -> Result<Vec<Digest>> {
    let json = parse(manifest)?;
    let list = if oci::is_index(&manifest.media_type) { json["manifests"].as_array() } else { None };
    list.into_iter().flatten().filter_map(|m| m["digest"].as_str()).map(str::parse).collect()
}

/// What a manifest needs, each once; layers that are fetched elsewhere are nobody's to copy.
fn blobs(manifest: &RemoteManifest) -> Result<BTreeMap<Digest, u64>> {
    let json = parse(manifest)?;
    if oci::is_index(&manifest.media_type) {
        return Ok(BTreeMap::new());
    }
    let mut all = BTreeMap::new();
    let layers = json["layers"].as_array().into_iter().flatten();
    for blob in layers.chain([&json["config"]]).filter(|b| b["urls"].as_array().is_none_or(Vec::is_empty)) {
        let digest: Digest = blob["digest"].as_str().unwrap_or_default().parse()?;
        all.insert(digest, blob["size"].as_u64().unwrap_or(0));
    }
    Ok(all)
}

/// Names that are asked for, or all.
fn selected(all: impl IntoIterator<Item = String>, names: &[String]) -> BTreeSet<String> {
    all.into_iter().filter(|name| names.is_empty() || names.iter().any(|glob| fits(glob, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_and_companions() {
        for (glob, text, wanted) in
            [("*", "", true), ("1.*", "1.2", true), ("1.*", "2.1", false), ("*-rc*", "1-rc2", true), ("a", "ab", false)]
        {
            assert_eq!(fits(glob, text), wanted, "{glob} {text}");
        }
        let hex = "0".repeat(64);
        assert!(is_companion(&format!("sha256-{hex}.sig")) && is_companion(&format!("sha256-{hex}")));
        assert!(!is_companion("sha256-short") && !is_companion("latest"));
    }
}
