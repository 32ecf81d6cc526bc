//! The list of what was refused, so that a user sees what a list of names lacks.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::wire::kind;

/// The file, in the service's directory.
pub const FILE: &str = "refused.log";
/// Bytes kept at most; the older half goes when they are reached.
const MOST: u64 = 128 * 1024;
/// Lines a second; a machine that floods learns nothing and fills nothing.
const LINES: u32 = 20;

/// A refusal as the file has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Refusal {
    /// Seconds since 1970.
    pub time: u64,
    /// The machine's address.
    pub client: Ipv4Addr,
    /// The name.
    pub name: String,
    /// The type of record, by its name or number.
    pub kind: String,
}

/// The open file.
#[derive(Debug, Default)]
pub struct Refused {
    file: Option<File>,
    second: Option<Instant>,
    lines: u32,
}

impl Refused {
    /// Opens the file while the process still may.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).read(true).append(true).open(directory.join(FILE))?;
        Ok(Self { file: Some(file), ..Self::default() })
    }

    /// Writes a line. What cannot be written is lost: the answer matters more.
    pub fn write(&mut self, client: Ipv4Addr, name: &str, kind: u16) {
        let now = Instant::now();
        if self.second.is_none_or(|second| now - second >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.lines = 0;
        }
        self.lines += 1;
        let Some(file) = self.file.as_mut().filter(|_| self.lines <= LINES) else {
            return;
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let _ = file.write_all(format!("{time} {client} {name} {}\n", kind_name(kind)).as_bytes());
        let _ = halve(file);
    }
}

/// Keeps the newer half of a file that is full.
fn halve(file: &mut File) -> io::Result<()> {
    if file.metadata()?.len() < MOST {
        return Ok(());
    }
    file.seek(SeekFrom::Start(MOST / 2))?;
    let mut kept = Vec::new();
    file.read_to_end(&mut kept)?;
    file.set_len(0)?;
    let start = kept.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    file.write_all(&kept[start..])
}

fn kind_name(number: u16) -> String {
    let known = match number {
        kind::A => "A",
        kind::NS => "NS",
        kind::CNAME => "CNAME",
        kind::SOA => "SOA",
        kind::PTR => "PTR",
        15 => "MX",
        kind::TXT => "TXT",
        kind::AAAA => "AAAA",
        33 => "SRV",
        kind::SVCB => "SVCB",
        kind::HTTPS => "HTTPS",
        kind::ANY => "ANY",
        _ => return number.to_string(),
    };
    known.to_owned()
}

/// The refusals of a service's directory, the oldest first.
pub fn read(directory: &Path) -> io::Result<Vec<Refusal>> {
    let text = match std::fs::read_to_string(directory.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some(Refusal {
            time: words.next()?.parse().ok()?,
            client: words.next()?.parse().ok()?,
            name: words.next()?.to_owned(),
            kind: words.next()?.to_owned(),
        })
    };
    Ok(text.lines().filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_half_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut refused = Refused::open(dir.path()).unwrap();
        for number in 0..6000 {
            refused.lines = 0;
            refused.write([10, 0, 0, 1].into(), &format!("name-{number}.example.org"), kind::A);
        }
        let found = read(dir.path()).unwrap();
        assert_eq!(found.last().unwrap().name, "name-5999.example.org");
        assert!(found.len() > 1000 && found.len() < 6000, "{}", found.len());
        assert!(std::fs::metadata(dir.path().join(FILE)).unwrap().len() < MOST);
    }

    #[test]
    fn a_flood_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut refused = Refused::open(dir.path()).unwrap();
        (0..1000).for_each(|_| refused.write([10, 0, 0, 1].into(), "example.org", 15));
        let found = read(dir.path()).unwrap();
        assert!(found.len() >= LINES as usize && found.len() <= 3 * LINES as usize);
        assert_eq!(found[0].kind, "MX");
    }
}
