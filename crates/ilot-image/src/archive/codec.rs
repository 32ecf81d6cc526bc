//! Compression, found by content and never by a file's name.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use super::Fault;

/// Memory that an xz stream may ask for (`xz -9` needs 65 MiB).
const XZ_MEMORY: u64 = 512 << 20;
/// Largest zstd window, as a power of two: what the zstd program accepts without `--long`.
const ZSTD_WINDOW: u32 = 27;

/// The decompressed bytes of an archive, of whichever known compression; at most `limit` of them.
pub(crate) fn open<'a>(mut source: impl Read + 'a, limit: u64) -> Result<Box<dyn Read + 'a>, Fault> {
    let mut head = Vec::with_capacity(512);
    source.by_ref().take(512).read_to_end(&mut head)?;
    let kind = sniff(&head);
    let all = BufReader::with_capacity(128 << 10, Cursor::new(head).chain(source));
    let plain: Box<dyn Read + 'a> = match kind {
        Kind::Gzip => Box::new(MultiGzDecoder::new(all)),
        Kind::Zstd => Box::new(zstd(all)?),
        Kind::Xz => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|e| Fault::Read(e.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(all, stream))
        }
        Kind::Tar => Box::new(all),
        Kind::Other(what) => return Err(Fault::bad(what)),
    };
    Ok(Box::new(Limited { inner: plain, left: limit }))
}

fn zstd<'a>(source: impl BufRead + 'a) -> io::Result<impl Read + 'a> {
    let mut decoder = zstd::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW)?;
    Ok(decoder)
}

enum Kind {
    Gzip,
    Zstd,
    Xz,
    Tar,
    Other(&'static str),
}

fn sniff(head: &[u8]) -> Kind {
    match head {
        [0x1f, 0x8b, ..] => Kind::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Kind::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Kind::Xz,
        [b'B', b'Z', b'h', ..] => Kind::Other("compressed with bzip2, which is not supported; recompress it with zstd"),
        [b'h', b's', b'q', b's', ..] => Kind::Other("a squashfs image, not a tar archive; unpack it with `unsquashfs`"),
        [b'P', b'K', 3, 4, ..] => Kind::Other("a zip file, not a tar archive"),
        [b'Q', b'F', b'I', 0xfb, ..] => Kind::Other("a virtual machine's disk (qcow2), not a tar archive"),
        [] => Kind::Other("empty"),
        head if looks_like_tar(head) => Kind::Tar,
        _ => Kind::Other("neither a tar archive nor one compressed with gzip, zstd or xz"),
    }
}

fn looks_like_tar(head: &[u8]) -> bool {
    head.len() == 512 && (head.iter().all(|&b| b == 0) || super::reader::checksum_fits(head))
}

/// Ends with an error where a decompression bomb would go on.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "larger than the limit once decompressed"))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn plain() -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 * 200, 0);
        bytes
    }

    fn read(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::new();
        open(bytes, limit)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn each_compression_is_found_by_its_content() {
        let plain = plain();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&plain[..1000]).unwrap();
        let mut gz = gz.finish().unwrap();
        let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        second.write_all(&plain[1000..]).unwrap();
        gz.extend(second.finish().unwrap());
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&plain).unwrap();
        let xz = xz.finish().unwrap();
        let zst = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for (name, bytes) in [("plain", plain.clone()), ("gzip", gz), ("xz", xz), ("zstd", zst)] {
            assert_eq!(read(&bytes, 1 << 20).unwrap(), plain, "{name}");
            assert!(read(&bytes, 4096).is_err(), "{name}: no limit");
            if name != "plain" {
                assert!(read(&bytes[..bytes.len() / 2], 1 << 20).is_err(), "{name}: half of it passed");
            }
        }
    }

    #[test]
    fn what_is_no_archive_is_named() {
        for (bytes, word) in [
            (&b"hsqs...."[..], "squashfs"),
            (b"BZh9", "bzip2"),
            (b"PK\x03\x04", "zip"),
            (b"", "empty"),
            (b"hello", "neither"),
        ] {
            match read(bytes, 100) {
                Err(Fault::Bad(reason)) => assert!(reason.contains(word), "{reason}"),
                other => panic!("{word}: {other:?}"),
            }
        }
    }
}
