//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").

use super::Fault;

/// The records of one extended header, in order; a later record of the same key wins, except those of a sparse map.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Parses `length key=value\n` records.
    pub(crate) fn parse(mut bytes: &[u8]) -> Result<Self, Fault> {
        let mut records = Vec::new();
        // Some writers pad with NULs.
        while bytes.first().is_some_and(|&b| b != 0) {
            let space = bytes.iter().take(20).position(|&b| b == b' ').ok_or_else(broken)?;
            let length: usize =
                std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(broken)?;
            let record = bytes.get(space + 1..length).ok_or_else(broken)?;
            let (&last, record) = record.split_last().ok_or_else(broken)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(broken)?;
            if last != b'\n' || equals == 0 {
                return Err(broken());
            }
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = &bytes[length..];
        }
        Ok(Self(records))
    }

    /// Adds a second header of the same entry.
    pub(crate) fn append(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// Adds to what the archive says of all its entries: one value for each key, and no more than `records` and `bytes`
    /// of them, because each entry is looked up in them.
    pub(crate) fn merge(&mut self, more: Self, records: usize, bytes: usize) -> Result<(), Fault> {
        for (key, value) in more.0 {
            match self.0.iter_mut().find(|(k, _)| *k == key) {
                Some(known) => known.1 = value,
                None => self.0.push((key, value)),
            }
            if self.0.len() > records {
                return Err(Fault::bad(format!("global extended headers of more than {records} records")));
            }
        }
        if self.0.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > bytes {
            return Err(Fault::bad(format!("global extended headers of more than {bytes} bytes")));
        }
        Ok(())
    }

    /// The last value of a key, which may be empty.
    fn last(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_slice())
    }

    /// All records in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a record (for writing).
    pub(crate) fn push(&mut self, key: &str, value: &[u8]) {
        self.0.push((key.as_bytes().to_vec(), value.to_vec()));
    }

    /// The bytes of a header with these records.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (key, value) in self.iter() {
            // The length counts itself: one more digit can need one more digit.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            out.extend_from_slice(format!("{length} ").as_bytes());
            out.extend_from_slice(key);
            out.push(b'=');
            out.extend_from_slice(value);
            out.push(b'\n');
        }
        out
    }
}

/// What an entry's own header says, and where it says nothing the archive's global one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extended<'a> {
    pub(crate) own: &'a Records,
    pub(crate) global: &'a Records,
}

impl<'a> Extended<'a> {
    /// The last value of a key; an empty value takes an earlier one back.
    pub(crate) fn get(self, key: &str) -> Option<&'a [u8]> {
        self.own.last(key.as_bytes()).or_else(|| self.global.last(key.as_bytes())).filter(|v| !v.is_empty())
    }

    /// A decimal value.
    pub(crate) fn number(self, key: &str) -> Result<Option<u64>, Fault> {
        self.get(key)
            .map(|v| {
                std::str::from_utf8(v)
                    .ok()
                    .and_then(|t| t.parse().ok())
                    .ok_or_else(|| Fault::bad(format!("extended header: `{key}` is no number")))
            })
            .transpose()
    }

    /// A time: seconds with an optional fraction, perhaps negative.
    pub(crate) fn time(self, key: &str) -> Option<(i64, u32)> {
        let text = std::str::from_utf8(self.get(key)?).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        let mut nanos = 0;
        for i in 0..9 {
            nanos = nanos * 10 + u32::from(fraction.as_bytes().get(i).map_or(0, |b| b.wrapping_sub(b'0').min(9)));
        }
        if text.starts_with('-') && nanos > 0 {
            return Some((seconds - 1, 1_000_000_000 - nanos));
        }
        Some((seconds, nanos))
    }

    /// All records, the own ones last.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.global.iter().chain(self.own.iter())
    }
}

fn broken() -> Fault {
    Fault::bad("extended header: broken record")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_writing_and_reading() {
        let mut records = Records::default();
        for size in [1usize, 5, 87, 88, 89, 90, 91, 92, 980, 990, 1000] {
            records.push("path", &vec![b'x'; size]);
        }
        records.push("SCHILY.xattr.user.a", b"\0\n=\xff");
        let again = Records::parse(&records.encode()).unwrap();
        assert_eq!(again.0, records.0);
    }

    #[test]
    fn broken_records_are_refused() {
        for bytes in [
            &b"5 a=b"[..],
            b"99 a=b\n",
            b"x a=b\n",
            b"6 ab\n\n",
            b"0 a=b\n",
            b"3 =\n",
            b"12345678901234567890123 a=b\n",
        ] {
            assert!(Records::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(Records::parse(b"").unwrap().is_empty());
        assert!(Records::parse(b"\0\0\0").unwrap().is_empty());
    }

    #[test]
    fn an_entry_s_own_records_go_before_global_ones_and_those_are_bounded() {
        let (mut own, mut global) = (Records::default(), Records::default());
        for (key, value) in [("a", "1"), ("b", "1"), ("a", "2")] {
            let mut more = Records::default();
            more.push(key, value.as_bytes());
            global.merge(more, 2, 100).unwrap();
        }
        own.push("b", b"");
        let both = Extended { own: &own, global: &global };
        assert_eq!((both.get("a"), both.get("b"), both.get("c")), (Some(&b"2"[..]), None, None));
        let mut more = Records::default();
        more.push("c", b"1");
        assert!(global.clone().merge(more.clone(), 2, 100).is_err(), "one too many");
        assert!(global.merge(more, 3, 3).is_err(), "too long");
    }

    #[test]
    fn times_have_fractions_and_signs() {
        let of = |t: &str| {
            let mut r = Records::default();
            r.push("mtime", t.as_bytes());
            Extended { own: &r, global: &Records::default() }.time("mtime")
        };
        assert_eq!(of("12"), Some((12, 0)));
        assert_eq!(of("12.5"), Some((12, 500_000_000)));
        assert_eq!(of("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(of("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(of("x"), None);
    }
}
