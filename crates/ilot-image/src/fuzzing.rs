//! What the fuzz targets call (`fuzz/`); in no ordinary build.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a panic is what the fuzzer looks for")]

use std::io::Read as _;
use std::path::Path;

use crate::archive::reader::Reader;
use crate::archive::{Limits, codec, unpack};
use crate::oci::{Configuration, Index, Manifest};
use crate::scan::Scan;

fn limits() -> Limits {
    Limits { entries: 500, bytes: 4 << 20, header: 64 << 10, names: 1 << 20, ..Limits::default() }
}

/// Reads an archive of any compression as an import does.
pub fn tar(bytes: &[u8]) {
    let limits = limits();
    let Ok(plain) = codec::open(bytes, limits.bytes) else { return };
    let mut reader = Reader::new(plain, limits);
    let (mut entries, mut held, mut scan) = (0, 0u64, Scan::default());
    while let Ok(Some(entry)) = reader.next() {
        entries += 1;
        assert!(entries <= limits.entries && entry.path.len() <= limits.path && entry.mode <= 0o7777);
        if let Some(pieces) = &entry.sparse {
            let mut end = 0;
            for (offset, length) in pieces {
                assert!(*offset >= end && offset + length <= entry.size);
                end = offset + length;
            }
        }
        if scan.entry(&entry, limits).is_err() {
            break;
        }
        held += reader.data().read_to_end(&mut Vec::new()).unwrap_or(0) as u64;
        assert!(held <= limits.bytes);
    }
    let _ = (scan.init(), scan.shell());
    let _ = Scan::default().over(scan).init();
}

/// Unpacks an archive below `folder`, which has nothing but the tree while it does.
pub fn unpack(bytes: &[u8], folder: &Path) {
    let limits = limits();
    let tree = folder.join("tree");
    std::fs::create_dir(&tree).expect("a folder of its own");
    if let Ok(plain) = codec::open(bytes, limits.bytes) {
        let _ = unpack::unpack(plain, &tree, None, limits, |_| Ok(()));
    }
    let meta = std::fs::symlink_metadata(&tree).expect("the tree is still there");
    assert!(meta.is_dir());
    crate::archive::remove::remove(&tree).expect("it can be removed");
    assert_eq!(std::fs::read_dir(folder).expect("a folder").count(), 0, "something beside the tree");
}

/// The same bytes as an index, a manifest, a configuration, and what else a registry says.
pub fn image(bytes: &[u8]) {
    if let Ok(index) = serde_json::from_slice::<Index>(bytes) {
        let again: Index = serde_json::from_slice(&serde_json::to_vec(&index).unwrap()).unwrap();
        assert_eq!(again.manifests.len(), index.manifests.len());
        let _ = crate::source::best(index.manifests, &crate::platform::Platform::host());
    }
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let again: Manifest = serde_json::from_slice(&serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert_eq!(again.size(u64::MAX), manifest.size(u64::MAX));
    }
    if let Ok(configuration) = serde_json::from_slice::<Configuration>(bytes) {
        let _ = crate::source::check(&configuration, 1, &crate::platform::Platform::host());
        let _ = serde_json::to_vec(&configuration).unwrap();
        let _ = configuration.config.map(crate::types::ImageConfig::from);
    }
    crate::source::fuzz_texts(bytes);
}

/// A simplestreams server's index and list of products.
pub fn streams(bytes: &[u8]) {
    crate::source::fuzz_streams(bytes);
}

/// Databases and lock files of packages.
pub fn packages(bytes: &[u8]) {
    crate::sbom::fuzz_packages(bytes);
}

/// A layer as an EROFS image: written within the archive's limits, and whole by its own record.
pub fn native(bytes: &[u8], folder: &Path) {
    let limits = limits();
    let Ok(plain) = codec::open(bytes, limits.bytes) else { return };
    let path = folder.join("layer");
    let file = std::fs::File::create(&path).expect("a file of its own");
    let layer = crate::blob::digest_of(b"");
    if crate::native::build(plain, file, &layer, limits, |_, _| Ok(())).is_ok() {
        crate::native::verify(&path, &layer).expect("what was written is whole");
    }
}
