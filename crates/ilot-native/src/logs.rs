//! What a machine's processes printed, with times.
//!
//! The keeper writes the CRI log format (`<RFC 3339> stdout F <line>`), `console.log` and before it `console.log.1`.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::Native;
use crate::error::{Error, Result};

/// How often a followed log is looked at: an eye does not see less, and it costs one `stat`.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(50);

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogOptions {
    /// Not before.
    pub since: Option<Timestamp>,
    /// The last so many.
    pub last: Option<usize>,
    /// Go on as more comes, until the machine ends.
    pub follow: bool,
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// When it was printed.
    pub time: Timestamp,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// The line goes on in the next one (it was too long).
    pub partial: bool,
}

/// Parses a line of the CRI log format; `None` for one that is not of it.
fn parse(line: &[u8]) -> Option<LogLine> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?.to_owned();
    let partial = parts.next()? == b"P";
    let text = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    Some(LogLine { time, stream, text, partial })
}

impl Native {
    /// Hands the lines of a machine's log to `sink`, in order, until it returns `false`.
    ///
    /// # Errors
    /// When there is no such machine, or its log cannot be read.
    pub fn logs(&self, name: &str, options: &LogOptions, sink: &mut dyn FnMut(LogLine) -> bool) -> Result<()> {
        let record = self.machine(name)?;
        let Some(path) = self.log_file(&record) else {
            return Err(Error::Invalid {
                message: format!(
                    "machine `{name}` is amnesic, and the run directory is on a disk: its output is not kept"
                ),
                help: Some("choose a run directory in memory with `--run-dir`".to_owned()),
            });
        };
        let old = path.with_extension("log.1");
        let mut lines = Vec::new();
        for file in [&old, &path] {
            read_lines(file, |line| {
                if options.since.is_none_or(|since| line.time >= since) {
                    lines.push(line);
                }
                true
            })?;
        }
        let skip = options.last.map_or(0, |n| lines.len().saturating_sub(n));
        for line in lines.into_iter().skip(skip) {
            if !sink(line) {
                return Ok(());
            }
        }
        if options.follow { self.follow(name, &path, sink) } else { Ok(()) }
    }

    fn follow(&self, name: &str, path: &Path, sink: &mut dyn FnMut(LogLine) -> bool) -> Result<()> {
        let mut reader = open_at_end(path)?;
        let mut rest = Vec::new();
        loop {
            // Asked before reading: what is printed until the end is then still read.
            let running = self.is_running(name)?;
            if let Some(reader) = &mut reader {
                loop {
                    if reader.read_until(b'\n', &mut rest).map_err(Error::file("read", path))? == 0 {
                        break;
                    }
                    if rest.ends_with(b"\n") {
                        let line = parse(&rest);
                        rest.clear();
                        if let Some(line) = line
                            && !sink(line)
                        {
                            return Ok(());
                        }
                    }
                }
            }
            if !running {
                return Ok(());
            }
            std::thread::sleep(FOLLOW_INTERVAL);
            // The keeper turned it over: go on with the new file.
            let turned = match (&reader, std::fs::metadata(path)) {
                (Some(open), Ok(now)) => open.get_ref().metadata().map_or(true, |then| then.ino() != now.ino()),
                (None, Ok(_)) => true,
                (_, Err(_)) => false,
            };
            if turned {
                reader = File::open(path).ok().map(BufReader::new);
            }
        }
    }
}

fn open_at_end(path: &Path) -> Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(mut file) => {
            file.seek(SeekFrom::End(0)).map_err(Error::file("read", path))?;
            Ok(Some(BufReader::new(file)))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("read", path)(e)),
    }
}

fn read_lines(path: &Path, mut sink: impl FnMut(LogLine) -> bool) -> Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::file("read", path)(e)),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line is bounded by the keeper; this bounds what a damaged file can cost.
        let read = (&mut reader).take(1 << 20).read_until(b'\n', &mut line).map_err(Error::file("read", path))?;
        if read == 0 {
            return Ok(());
        }
        if let Some(parsed) = parse(&line)
            && !sink(parsed)
        {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_cri_format() {
        let line = parse(b"2026-01-02T03:04:05.678901234Z stderr P half a \xff line\n").unwrap();
        assert_eq!(line.stream, "stderr");
        assert!(line.partial);
        assert_eq!(line.text, "half a \u{fffd} line");
        assert_eq!(line.time.to_string(), "2026-01-02T03:04:05.678901234Z");
    }

    #[test]
    fn an_empty_line_is_a_line_and_rubbish_is_none() {
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F \n").unwrap().text, "");
        assert_eq!(parse(b"rubbish\n"), None);
        assert_eq!(parse(b""), None);
    }
}
