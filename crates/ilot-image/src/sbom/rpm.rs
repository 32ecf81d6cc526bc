//! rpm's databases: the headers of installed packages, in SQLite's file format (rpm from 4.16 on) or in rpm's own (`ndb`).
//!
//! Both are read as bytes, no more of them than is needed, and nothing that they say is believed: an offset that leads out ends
//! the reading, a page is looked at once.

use std::collections::HashSet;

use super::Package;

/// The most packages that are taken of one database.
const MOST: usize = 100_000;
/// SQLite's trees are not deeper.
const DEPTH: usize = 40;

/// The packages of `rpmdb.sqlite` or `Packages.db`; none where it is neither.
pub(super) fn read(content: &[u8], path: &str) -> Vec<Package> {
    let headers = if content.starts_with(b"SQLite format 3\0") { sqlite(content) } else { ndb(content) };
    let all = headers.unwrap_or_default();
    all.iter().filter_map(|header| package(header, path)).collect()
}

/// Whether a file is a database that this module reads.
pub(super) fn is_database(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    in_rpm(path) && (name == b"rpmdb.sqlite" || name == b"Packages.db")
}

/// Whether a file is a database of rpm before 4.16, in Berkeley DB's format, which is not read.
pub(super) fn is_old(path: &[u8]) -> bool {
    in_rpm(path) && path.ends_with(b"/Packages")
}

fn in_rpm(path: &[u8]) -> bool {
    path.starts_with(b"var/lib/rpm/") || path.starts_with(b"usr/lib/sysimage/rpm/")
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(four)).ok()
}

fn le32(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    let two: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(usize::from(u16::from_be_bytes(two)))
}

/// A package's header: its index of tags, and their data (rpm, "Header format", without the magic that packages have).
fn package(header: &[u8], path: &str) -> Option<Package> {
    let (count, length) = (be32(header, 0)?, be32(header, 4)?);
    let data = header.get(8 + count.checked_mul(16)?..)?;
    let data = data.get(..length)?;
    let entry = |wanted: usize| {
        let at = (0..count).map(|i| 8 + 16 * i).find(|&at| be32(header, at) == Some(wanted))?;
        Some((be32(header, at + 4)?, data.get(be32(header, at + 8)?..)?))
    };
    // Strings, and strings of which there is one for each language.
    let text = |tag: usize| match entry(tag)? {
        (6 | 9, value) => {
            let end = value.iter().position(|&b| b == 0)?;
            Some(String::from_utf8_lossy(&value[..end]).into_owned()).filter(|text| !text.is_empty())
        }
        _ => None,
    };
    let epoch = entry(1003).and_then(|(kind, value)| (kind == 4).then(|| be32(value, 0)).flatten());
    let name = text(1000)?;
    // Keys that packages are checked with are kept as packages.
    if name == "gpg-pubkey" {
        return None;
    }
    let (version, release) = (text(1001)?, text(1002)?);
    let epoch = epoch.filter(|&epoch| epoch > 0).map_or(String::new(), |epoch| format!("{epoch}:"));
    Some(Package {
        kind: "rpm",
        name,
        version: format!("{epoch}{version}-{release}"),
        architecture: text(1022),
        license: text(1014),
        found_in: path.to_owned(),
    })
}

/// A database file of SQLite (sqlite.org/fileformat2.html), as far as its tables.
struct Sqlite<'a> {
    bytes: &'a [u8],
    page: usize,
    /// Bytes of a page that content may take.
    usable: usize,
    seen: HashSet<usize>,
    /// Bytes that all records may have together: those of an honest file lie side by side in it.
    left: usize,
}

/// The column `blob` of every row of the table `Packages`.
fn sqlite(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let page = match be16(bytes, 16)? {
        1 => 65_536,
        size => size,
    };
    let usable = page.checked_sub(usize::from(*bytes.get(20)?))?;
    if !page.is_power_of_two() || usable < 480 {
        return None;
    }
    let mut file = Sqlite { bytes, page, usable, seen: HashSet::new(), left: 2 * bytes.len() };
    let schema = file.rows(1)?;
    // type, name, table, first page, text
    let is_packages = |row: &Vec<u8>| {
        let is = column(row, 0)? == b"table" && column(row, 1)? == b"Packages";
        column(row, 3).filter(|_| is).map(number)
    };
    let root = schema.iter().find_map(is_packages)?;
    let rows = file.rows(root)?;
    Some(rows.iter().filter_map(|row| column(row, 1).map(<[u8]>::to_vec)).collect())
}

impl Sqlite<'_> {
    fn page(&self, number: usize) -> Option<&[u8]> {
        let start = number.checked_sub(1)?.checked_mul(self.page)?;
        self.bytes.get(start..start.checked_add(self.page)?)
    }

    /// The records of a table whose tree begins at a page.
    fn rows(&mut self, root: usize) -> Option<Vec<Vec<u8>>> {
        let (mut rows, mut left) = (Vec::new(), vec![(root, 0)]);
        while let Some((number, depth)) = left.pop() {
            if depth > DEPTH || !self.seen.insert(number) || rows.len() > MOST {
                return None;
            }
            let page = self.page(number)?.to_vec();
            let page = page.as_slice();
            // The first page has the file's header before its own.
            let head = if number == 1 { 100 } else { 0 };
            let (kind, cells) = (*page.get(head)?, be16(page, head + 3)?);
            let pointers = head + if kind == 5 { 12 } else { 8 };
            for i in 0..cells {
                let at = be16(page, pointers + 2 * i)?;
                match kind {
                    5 => left.push((be32(page, at)?, depth + 1)),
                    13 => {
                        let record = self.record(page, at)?;
                        self.left = self.left.checked_sub(record.len())?;
                        rows.push(record);
                    }
                    _ => return None,
                }
            }
            if kind == 5 {
                left.push((be32(page, head + 8)?, depth + 1));
            }
        }
        Some(rows)
    }

    /// A record of a leaf, with what lies on pages of its own.
    fn record(&self, page: &[u8], at: usize) -> Option<Vec<u8>> {
        let (length, at) = varint(page, at)?;
        let (_row, at) = varint(page, at)?;
        let length = usize::try_from(length).ok().filter(|&length| length <= self.left)?;
        let most = self.usable - 35;
        let here = if length <= most {
            length
        } else {
            let least = (self.usable - 12) * 32 / 255 - 23;
            let fits = least + (length - least) % (self.usable - 4);
            if fits <= most { fits } else { least }
        };
        let mut record = page.get(at..at.checked_add(here)?)?.to_vec();
        let mut next = if here < length { be32(page, at + here)? } else { 0 };
        while record.len() < length {
            let page = self.page(next)?;
            let some = (length - record.len()).min(self.usable - 4);
            record.extend_from_slice(page.get(4..4 + some)?);
            next = be32(page, 0)?;
        }
        Some(record)
    }
}

/// A number of one to nine bytes, and where it ends.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for i in 0..9 {
        let byte = *bytes.get(at + i)?;
        if i == 8 {
            return Some((value << 8 | u64::from(byte), at + 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

/// The bytes of a record's column.
fn column(record: &[u8], wanted: usize) -> Option<&[u8]> {
    let (header, mut at) = varint(record, 0)?;
    let header = usize::try_from(header).ok()?;
    let mut start = header;
    for i in 0.. {
        if at >= header {
            return None;
        }
        let (kind, next) = varint(record, at)?;
        at = next;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => usize::try_from(kind).ok()?,
            5 => 6,
            6 | 7 => 8,
            kind if kind >= 12 => usize::try_from((kind - 12) / 2).ok()?,
            _ => return None,
        };
        let end = start.checked_add(length)?;
        if i == wanted {
            return record.get(start..end);
        }
        start = end;
    }
    None
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0usize, |n, b| n << 8 | usize::from(*b))
}

/// rpm's own format (`lib/backend/ndb/rpmpkg.c`): slots that say where each package's header is.
fn ndb(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    const UNIT: usize = 16;
    if !bytes.starts_with(b"RpmP") {
        return None;
    }
    let slots = le32(bytes, 12)?.checked_mul(4096)? / UNIT;
    let (mut all, mut left) = (Vec::new(), bytes.len());
    // The first two are the file's header.
    for slot in (2..slots).map(|i| i * UNIT) {
        let entry = bytes.get(slot..slot + UNIT)?;
        let block = le32(entry, 8)?;
        if !entry.starts_with(b"Slot") || block == 0 {
            continue;
        }
        let at = block.checked_mul(UNIT)?;
        let Some(head) = bytes.get(at..at + UNIT).filter(|head| head.starts_with(b"BlbS")) else { continue };
        let Some(header) = bytes.get(at + UNIT..at + UNIT + le32(head, 12)?) else { continue };
        // Headers that lie in one another are no packages.
        left = left.checked_sub(header.len())?;
        all.push(header.to_vec());
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with strings, and an epoch.
    fn header(texts: &[(u32, &str)], epoch: Option<u32>) -> Vec<u8> {
        let (mut index, mut data) = (Vec::new(), Vec::new());
        let mut add = |tag: u32, kind: u32, value: &[u8]| {
            let offset = u32::try_from(data.len()).unwrap();
            for field in [tag, kind, offset, 1] {
                index.extend(field.to_be_bytes());
            }
            data.extend_from_slice(value);
        };
        if let Some(epoch) = epoch {
            add(1003, 4, &epoch.to_be_bytes());
        }
        texts.iter().for_each(|(tag, text)| add(*tag, 6, format!("{text}\0").as_bytes()));
        let mut all = Vec::new();
        for length in [index.len() / 16, data.len()] {
            all.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        [all, index, data].concat()
    }

    fn bash() -> Vec<u8> {
        header(&[(1000, "bash"), (1001, "5.2"), (1002, "1.fc41"), (1022, "x86_64"), (1014, "GPL-3.0")], Some(2))
    }

    #[test]
    fn headers() {
        let bash = package(&bash(), "db").unwrap();
        assert_eq!((bash.name.as_str(), bash.version.as_str()), ("bash", "2:5.2-1.fc41"));
        assert_eq!((bash.architecture.as_deref(), bash.license.as_deref()), (Some("x86_64"), Some("GPL-3.0")));
        let key = header(&[(1000, "gpg-pubkey"), (1001, "1"), (1002, "2")], None);
        assert!(package(&key, "db").is_none());
        let whole = header(&[(1000, "a"), (1001, "1"), (1002, "2")], None);
        assert_eq!(package(&whole, "db").unwrap().version, "1-2");
        for end in 0..whole.len() {
            assert!(package(&whole[..end], "db").is_none(), "cut at {end}");
        }
        assert!(package(&[0xff; 64], "db").is_none());
    }

    #[test]
    fn rpms_own_format() {
        let header = bash();
        let mut file = vec![0; 4096];
        file[..4].copy_from_slice(b"RpmP");
        file[12..16].copy_from_slice(&1u32.to_le_bytes());
        file[32..36].copy_from_slice(b"Slot");
        file[40..44].copy_from_slice(&256u32.to_le_bytes());
        file.extend(b"BlbS\0\0\0\0\0\0\0\0");
        file.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        file.extend(&header);
        assert_eq!(read(&file, "db").len(), 1);
        for end in 0..file.len() {
            let _ = read(&file[..end], "db");
        }
        // A thousand slots for the same bytes.
        let mut greedy = vec![0; 65_536];
        greedy[..4].copy_from_slice(b"RpmP");
        greedy[12..16].copy_from_slice(&4u32.to_le_bytes());
        for slot in greedy[32..16_384].chunks_exact_mut(16) {
            slot[..4].copy_from_slice(b"Slot");
            slot[8..12].copy_from_slice(&1024u32.to_le_bytes());
        }
        greedy[16_384..16_388].copy_from_slice(b"BlbS");
        greedy[16_396..16_400].copy_from_slice(&40_000u32.to_le_bytes());
        assert!(ndb(&greedy).is_none(), "more than the file has");
    }

    /// Written by SQLite itself, where Python has it; cut and spoilt in every byte it is no danger.
    #[test]
    fn sqlites_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpmdb.sqlite");
        let hex: String = bash().iter().map(|b| format!("{b:02x}")).collect();
        // Many rows make a tree, a long one takes pages of its own; a small page makes both deep.
        let script = format!(
            "import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute('pragma page_size = 512')
db.execute('create table Name (hnum integer, key text)')
db.execute('create table Packages (hnum integer primary key autoincrement, blob blob not null)')
one = bytes.fromhex('{hex}')
for i in range(300):
    db.execute('insert into Packages (blob) values (?)', (one + b'x' * (i * 37 % 5000),))
db.commit()"
        );
        let made = std::process::Command::new("python3").args(["-c", &script]).arg(&path).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("SKIPPED: needs python3 with sqlite3");
            return;
        }
        let bytes = std::fs::read(&path).unwrap();
        let found = read(&bytes, "db");
        assert_eq!(found.len(), 300);
        assert!(found.iter().all(|p| p.name == "bash" && p.version == "2:5.2-1.fc41"));
        for end in (0..bytes.len()).step_by(97) {
            let _ = read(&bytes[..end], "db");
        }
        let mut state = 1u64;
        for _ in 0..300 {
            let mut spoilt = bytes.clone();
            for _ in 0..20 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % spoilt.len();
                spoilt[at] = state as u8;
            }
            let _ = read(&spoilt, "db");
        }
    }
}
