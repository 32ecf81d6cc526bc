//! Names, tags and digests as the specification spells them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A repository's name is a folder's name in the store.
const LONGEST_NAME: usize = 200;
const LONGEST_TAG: usize = 128;

/// The digest of a blob: `sha256:` and 64 digits, or `sha512:` and 128.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from_hash(&Sha256::digest(bytes))
    }

    /// Of the same kind as another one.
    pub(crate) fn like(bytes: &[u8], other: &Self) -> Self {
        if other.is_sha512() { Self::from_hash(&Sha512::digest(bytes)) } else { Self::of(bytes) }
    }

    pub(crate) fn is_sha512(&self) -> bool {
        self.0.len() == 128
    }

    /// `sha256` or `sha512`: the folder of its blobs.
    pub(crate) fn algorithm(&self) -> &'static str {
        if self.is_sha512() { "sha512" } else { "sha256" }
    }

    pub(crate) fn from_hash(hash: &[u8]) -> Self {
        use fmt::Write as _;
        Self(hash.iter().fold(String::with_capacity(64), |mut text, b| {
            let _ = write!(text, "{b:02x}");
            text
        }))
    }

    pub(crate) fn hex(&self) -> &str {
        &self.0
    }

    /// From a file's name.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        (matches!(hex.len(), 64 | 128) && hex.bytes().all(is_digit)).then(|| Self(hex.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.0)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(kind, hex)| Some((kind, Self::from_hex(hex)?)));
        parsed.filter(|(kind, digest)| digest.algorithm() == *kind).map(|(_, digest)| digest).ok_or_else(|| {
            format!("digest `{text}`: not `sha256:` and 64, or `sha512:` and 128 lower-case hexadecimal digits")
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` between slashes (distribution-spec, "Pulling manifests").
pub(crate) fn is_repository(name: &str) -> bool {
    name.len() <= LONGEST_NAME && name.split('/').all(is_component)
}

fn is_component(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    part.split(|c: char| c.is_ascii() && is_word(c as u8))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(tag: &str) -> bool {
    (1..=LONGEST_TAG).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "library/debian", "a.b_c__d---e/f0", "0/1/2"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in ["", "A", "a//b", "/a", "a/", "a..b", "a___b", "a._b", "-a", "a-", "a+b", "..", "a/../b", "é"] {
            assert!(!is_repository(bad), "{bad}");
        }
        assert!(!is_repository(&"a".repeat(201)));
        for (tag, good) in
            [("1", true), ("v1.2-rc_3", true), ("_x", true), (".x", false), ("-x", false), ("a/b", false)]
        {
            assert_eq!(is_tag(tag), good, "{tag}");
        }
        assert!(!is_tag(&"a".repeat(129)) && !is_tag(""));
        assert!("sha256:abc".parse::<Digest>().is_err());
        assert_eq!(Digest::of(b"").to_string().parse(), Ok(Digest::of(b"")));
    }
}
