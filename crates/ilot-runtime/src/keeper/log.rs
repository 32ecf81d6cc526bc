//! The log file: lines with their time in the CRI format, a new file when it is full.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Bytes gathered before a write.
const BUFFER: usize = 8192;

/// One open log.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max: u64,
}

impl Log {
    /// Opens a log for appending.
    pub fn open(path: PathBuf, max: u64) -> Self {
        let file = open_file(&path);
        let size = file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        Self { path, file, size, max }
    }

    /// Writes what a stream has given: whole lines as `F`, the piece after the last newline as `P`.
    pub fn write(&mut self, stream: &str, data: &[u8], now: u64) {
        let mut out = Chunk::new();
        let mut stamp = [0u8; 30];
        format_time(now, &mut stamp);
        for line in data.split_inclusive(|b| *b == b'\n') {
            let (kind, text) = match line.strip_suffix(b"\n") {
                Some(text) => (&b" F "[..], text),
                None => (&b" P "[..], line),
            };
            for part in [&stamp[..], b" ", stream.as_bytes(), kind, text, b"\n"] {
                out.push(part, |bytes| self.put(bytes));
            }
            self.rotate_if_full(&mut out);
        }
        out.flush(|bytes| self.put(bytes));
    }

    /// A full disk loses lines; it must not stop the container or the keeper.
    fn put(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(bytes);
            self.size += bytes.len() as u64;
        }
    }

    fn rotate_if_full(&mut self, out: &mut Chunk) {
        if self.max == 0 || self.size + (out.used as u64) < self.max {
            return;
        }
        out.flush(|bytes| self.put(bytes));
        let mut old = OsString::from(self.path.as_os_str());
        old.push(".1");
        let _ = std::fs::rename(&self.path, &old);
        self.file = open_file(&self.path);
        self.size = 0;
    }
}

fn open_file(path: &PathBuf) -> Option<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).ok()
}

/// Bytes on their way to the file.
struct Chunk {
    bytes: [u8; BUFFER],
    used: usize,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: [0; BUFFER], used: 0 }
    }

    fn push(&mut self, mut part: &[u8], mut put: impl FnMut(&[u8])) {
        while !part.is_empty() {
            if self.used == BUFFER {
                self.flush(&mut put);
            }
            let n = part.len().min(BUFFER - self.used);
            self.bytes[self.used..self.used + n].copy_from_slice(&part[..n]);
            self.used += n;
            part = &part[n..];
        }
    }

    fn flush(&mut self, mut put: impl FnMut(&[u8])) {
        if self.used > 0 {
            put(&self.bytes[..self.used]);
            self.used = 0;
        }
    }
}

/// `2026-11-20T04:48:06.123456789Z`, without allocation or a time library: this is all that the
/// keeper needs of one.
pub(crate) fn format_time(nanoseconds: u64, out: &mut [u8; 30]) {
    let (seconds, nano) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Days to a civil date by eras of 400 years that begin on 1 March (H. Hinnant's algorithm).
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    out.copy_from_slice(b"0000-00-00T00:00:00.000000000Z");
    let mut put = |at: usize, width: usize, mut value: u64| {
        for i in (0..width).rev() {
            out[at + i] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, rest / 3600);
    put(14, 2, rest / 60 % 60);
    put(17, 2, rest % 60);
    put(20, 9, nano);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(n: u64) -> String {
        let mut out = [0; 30];
        format_time(n, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(time(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(time(1_735_689_599_999_999_999), "2024-12-31T23:59:59.999999999Z");
        assert_eq!(time(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn lines_pieces_and_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(path.clone(), 200);
        log.write("stdout", b"one\ntwo", 0);
        log.write("stderr", b"\n", 1_000_000_000);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000000000Z stdout F one\n\
             1970-01-01T00:00:00.000000000Z stdout P two\n\
             1970-01-01T00:00:01.000000000Z stderr F \n"
        );
        for _ in 0..10 {
            log.write("stdout", b"a line that is long enough to fill it\n", 0);
        }
        let sizes =
            [std::fs::metadata(&path).unwrap().len(), std::fs::metadata(dir.path().join("log.1")).unwrap().len()];
        assert!(sizes.iter().all(|s| *s < 300), "{sizes:?}");
        assert!(sizes[1] >= 200, "{sizes:?}");
    }

    #[test]
    fn long_lines_pass_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::open(path.clone(), 0);
        let mut line = vec![b'x'; 3 * BUFFER];
        line.push(b'\n');
        log.write("stdout", &line, 0);
        assert_eq!(std::fs::read(&path).unwrap().len(), 30 + 10 + line.len());
    }
}
