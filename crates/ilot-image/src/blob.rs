//! Content by digest: written aside while it is hashed, and checked while it is read.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256, Sha512};

use crate::archive::reader::{Entry, Reader};
use crate::archive::{Fault, Limits, codec};
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::scan::Scan;
use crate::types::Digest;

/// How hard layers are compressed: the level where writing is still as fast as a disk.
const ZSTD_LEVEL: i32 = 3;
/// How many bytes pass between two reports.
const REPORT: u64 = 1 << 20;
/// Archives are parsed in blocks of 512 bytes, and decompressed, hashed and compressed in pieces of this.
pub(crate) const BUFFER: usize = 128 << 10;

/// A hash of the kind that a digest is of.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// What ilot's own digests are.
    pub(crate) fn new() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// For what is to be compared with this.
    pub(crate) fn like(digest: &Digest) -> Self {
        if digest.algorithm() == "sha512" { Self::Sha512(Sha512::new()) } else { Self::new() }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::from_bytes(&hash.finalize()),
            Self::Sha512(hash) => Digest::from_bytes(&hash.finalize()),
        }
    }
}

/// Hashes what goes through it.
pub(crate) struct Hashing<T> {
    pub(crate) inner: T,
    hash: Hasher,
    pub(crate) bytes: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, hash: Hasher::new(), bytes: 0 }
    }

    /// To be compared with a digest that is known.
    pub(crate) fn like(inner: T, digest: &Digest) -> Self {
        Self { inner, hash: Hasher::like(digest), bytes: 0 }
    }

    pub(crate) fn digest(self) -> (Digest, u64, T) {
        (self.hash.finish(), self.bytes, self.inner)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// The digest of bytes in memory, of the kind that is expected.
pub(crate) fn digest_like(bytes: &[u8], expected: &Digest) -> Digest {
    let mut hash = Hasher::like(expected);
    hash.update(bytes);
    hash.finish()
}

/// The digest of bytes in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes))
}

/// How a layer is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is: quickest for a small one.
    Plain,
    /// Compressed with zstd.
    Zstd,
    /// Compressed with gzip: what every other program reads.
    Gzip,
}

impl Codec {
    /// The media type of such a layer (image-spec, "Image Layer Filesystem Changeset").
    fn media_type(self) -> String {
        let suffix = match self {
            Self::Plain => "",
            Self::Zstd => "+zstd",
            Self::Gzip => "+gzip",
        };
        format!("application/vnd.oci.image.layer.v1.tar{suffix}")
    }
}

/// A layer that lies finished in a temporary folder.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) media_type: String,
    pub(crate) file: PathBuf,
    pub(crate) scan: Scan,
}

/// Copies what is read into a sink.
struct Tee<R, W> {
    source: R,
    sink: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buf)?;
        self.sink.write_all(&buf[..n])?;
        Ok(n)
    }
}

/// Where the plain bytes of a layer go.
enum Encoder<W: Write> {
    Plain(W),
    Zstd(Box<zstd::Encoder<'static, W>>),
    Gzip(Box<flate2::write::GzEncoder<W>>),
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(w) => w.write(buf),
            Self::Zstd(w) => w.write(buf),
            Self::Gzip(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(w) => w.flush(),
            Self::Zstd(w) => w.flush(),
            Self::Gzip(w) => w.flush(),
        }
    }
}

/// What an import is told and asked.
#[derive(Clone, Copy)]
pub(crate) struct Import<'a> {
    /// Name of the archive, for errors.
    pub(crate) what: &'a str,
    pub(crate) aside: &'a TempDir,
    pub(crate) codec: Codec,
    pub(crate) limits: Limits,
    /// Told how many plain bytes passed; an error ends the import.
    pub(crate) each: &'a dyn Fn(u64) -> Result<()>,
}

/// Reads an archive of whichever compression once: checks its structure, notes what matters in it, and writes it as
/// a layer blob.
pub(crate) fn import(source: impl Read, order: &Import<'_>) -> Result<Layer> {
    let file = order.aside.path().join(format!("layer-{}", next()));
    let created =
        File::options().write(true).create_new(true).open(&file).map_err(|e| Error::io("create", &file, e))?;
    let place = order.aside.path();
    let fault = |f: Fault| f.of(order.what, place);
    let blob = Hashing::new(BufWriter::with_capacity(BUFFER, created));
    let mut sink = match order.codec {
        Codec::Plain => Encoder::Plain(blob),
        Codec::Zstd => Encoder::Zstd(Box::new(encoder(blob).map_err(|e| fault(e.into()))?)),
        // No name and no time in its header: the same layer gives the same bytes.
        Codec::Gzip => Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(blob, flate2::Compression::default()))),
    };
    let plain = codec::open(source, order.limits.bytes).map_err(fault)?;
    let mut hashed = Hashing::new(Tee { source: plain, sink: &mut sink });
    let scan = scan(&mut hashed, order)?;
    let (diff_id, ..) = hashed.digest();
    let blob = match sink {
        Encoder::Plain(blob) => blob,
        Encoder::Zstd(zstd) => zstd.finish().map_err(|e| fault(e.into()))?,
        Encoder::Gzip(gzip) => gzip.finish().map_err(|e| fault(e.into()))?,
    };
    let (digest, size, buffer) = blob.digest();
    let written = buffer.into_inner().map_err(|e| fault(e.into_error().into()))?;
    written.sync_all().map_err(|e| Error::io("write", &file, e))?;
    Ok(Layer { digest, size, diff_id, media_type: order.codec.media_type(), file, scan })
}

/// Reads a whole plain archive for what it says about its image.
fn scan<R: Read>(source: &mut Hashing<R>, order: &Import<'_>) -> Result<Scan> {
    let fault = |f: Fault| f.of(order.what, order.aside.path());
    let mut scan = Scan::default();
    let mut entries = 0u64;
    let mut next_report = 0;
    let passed = std::cell::Cell::new(0);
    let source = BufReader::with_capacity(BUFFER, Counting { inner: source, passed: &passed });
    let mut reader = Reader::new(source, order.limits);
    while let Some(entry) = reader.next().map_err(fault)? {
        scan.entry(&entry, order.limits).map_err(fault)?;
        entries += 1;
        if passed.get() >= next_report {
            (order.each)(passed.get())?;
            next_report = passed.get() + REPORT;
        }
    }
    reader.drain().map_err(fault)?;
    if entries == 0 {
        return Err(fault(Fault::bad("no entries")));
    }
    (order.each)(passed.get())?;
    Ok(scan)
}

/// Reads a layer blob again for what it says (for images that another program put into the store).
pub(crate) fn rescan(source: impl Read, order: &Import<'_>) -> Result<Scan> {
    let plain = codec::open(source, order.limits.bytes).map_err(|f| f.of(order.what, order.aside.path()))?;
    scan(&mut Hashing::new(plain), order)
}

/// Takes a layer blob as it is: copies it aside while its digest is checked, and reads what it says.
pub(crate) fn adopt(
    source: impl Read,
    expected: &Digest,
    diff_id: &Digest,
    media_type: &str,
    order: &Import<'_>,
) -> Result<Layer> {
    let file = order.aside.path().join(format!("layer-{}", next()));
    let mut out =
        File::options().write(true).create_new(true).open(&file).map_err(|e| Error::io("create", &file, e))?;
    let mut hashed = Hashing::like(source, expected);
    io::copy(&mut hashed, &mut out).map_err(|e| Error::io("copy", &file, e))?;
    out.sync_all().map_err(|e| Error::io("write", &file, e))?;
    let (actual, ..) = hashed.digest();
    if actual != *expected {
        return Err(Error::Mismatch { what: order.what.to_owned(), expected: expected.clone(), actual });
    }
    inspect(file, expected, diff_id, media_type, order)
}

/// A layer blob that lies aside, its digest already checked.
pub(crate) fn inspect(
    file: PathBuf,
    digest: &Digest,
    diff_id: &Digest,
    media_type: &str,
    order: &Import<'_>,
) -> Result<Layer> {
    let source = File::open(&file).map_err(|e| Error::io("open", &file, e))?;
    let size = source.metadata().map_err(|e| Error::io("read", &file, e))?.len();
    let plain = codec::open(source, order.limits.bytes).map_err(|f| f.of(order.what, order.aside.path()))?;
    let mut hashed = Hashing::like(plain, diff_id);
    let scan = scan(&mut hashed, order)?;
    let (actual, ..) = hashed.digest();
    if actual != *diff_id {
        let what = format!("{} (uncompressed)", order.what);
        return Err(Error::Mismatch { what, expected: diff_id.clone(), actual });
    }
    Ok(Layer { digest: digest.clone(), size, diff_id: actual, media_type: media_type.to_owned(), file, scan })
}

/// As [`inspect`], and makes the native layer of it in the same pass, in `folder`.
pub(crate) fn inspect_and_prepare(
    file: &Path,
    digest: &Digest,
    diff_id: &Digest,
    media_type: &str,
    order: &Import<'_>,
    folder: &Path,
) -> Result<Layer> {
    let fault = |f: Fault| f.of(order.what, order.aside.path());
    let source = File::open(file).map_err(|e| Error::io("open", file, e))?;
    let size = source.metadata().map_err(|e| Error::io("read", file, e))?.len();
    let native = order.aside.path().join(format!("native-{}", next()));
    let out = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&native)
        .map_err(|e| Error::io("create", &native, e))?;
    let mut hashed = Hashing::new(codec::open(source, order.limits.bytes).map_err(fault)?);
    let (mut scan, mut told, mut stopped) = (Scan::default(), 0, None);
    let each = |entry: &Entry, bytes: u64| {
        if bytes >= told {
            told = bytes + REPORT;
            if let Err(error) = (order.each)(bytes) {
                stopped = Some(error);
                return Err(Fault::bad("cancelled"));
            }
        }
        scan.entry(entry, order.limits)
    };
    let built = crate::native::build(&mut hashed, out, diff_id, order.limits, each);
    if let Some(error) = stopped {
        return Err(error);
    }
    built.map_err(fault)?;
    let (actual, ..) = hashed.digest();
    if actual != *diff_id {
        let what = format!("{} (uncompressed)", order.what);
        return Err(Error::Mismatch { what, expected: diff_id.clone(), actual });
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Error::io("make folder", folder, e))?;
    let place = folder.join(format!("{}.erofs", diff_id.hex()));
    std::fs::rename(&native, &place).map_err(|e| Error::io("rename", place, e))?;
    let (digest, media_type) = (digest.clone(), media_type.to_owned());
    Ok(Layer { digest, size, diff_id: actual, media_type, file: file.to_owned(), scan })
}

struct Counting<'a, R> {
    inner: R,
    passed: &'a std::cell::Cell<u64>,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.passed.set(self.passed.get() + n as u64);
        Ok(n)
    }
}

fn encoder<W: Write>(out: W) -> io::Result<zstd::Encoder<'static, W>> {
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// Opens a blob for reading; what comes is hashed on the way, to be compared with `expected`.
pub(crate) fn open(path: &Path, expected: &Digest) -> Result<Hashing<File>> {
    File::open(path).map(|file| Hashing::like(file, expected)).map_err(|e| Error::io("open", path, e))
}

fn next() -> u64 {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}
