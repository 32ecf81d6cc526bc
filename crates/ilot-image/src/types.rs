//! What an image is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::platform::Platform;

/// The digest of a blob (OCI image-spec, descriptor): `sha256:` and 64 hexadecimal digits, or `sha512:` and 128.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Hexadecimal digits of a SHA-512; those of a SHA-256 are half as many, so that the digits alone tell which it is.
const SHA512_DIGITS: usize = 128;

impl Digest {
    /// The digest of finished hash output.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(2 * bytes.len());
        for b in bytes {
            use fmt::Write as _;
            let _ = write!(text, "{b:02x}");
        }
        Self(text)
    }

    /// `sha256` or `sha512`: the folder of a layout that its blobs are in.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        if self.0.len() == SHA512_DIGITS { "sha512" } else { "sha256" }
    }

    /// Where a layout has the blob: `blobs/sha256/66abd3…`.
    pub(crate) fn path_in_layout(&self) -> String {
        format!("blobs/{}/{}", self.algorithm(), self.0)
    }

    /// The hexadecimal digits without `sha256:`.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first 12 hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.0)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (hex, digits) = match text.split_once(':') {
            Some(("sha256", hex)) => (hex, 64),
            Some(("sha512", hex)) => (hex, SHA512_DIGITS),
            _ => (text, if text.len() == SHA512_DIGITS { SHA512_DIGITS } else { 64 }),
        };
        if hex.len() == digits && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(hex.to_owned()))
        } else {
            Err(Error::BadDigest { text: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name it was asked for by, in its normal form (`images:debian/13`, `busybox`, `tar:/srv/x.tar.gz`).
    pub reference: String,
    /// Digest of its manifest: what identifies it.
    pub digest: Digest,
    /// For which machines it is.
    pub platform: Platform,
    /// What a process of it starts with.
    pub config: ImageConfig,
    /// The init that it brings, if any.
    pub init: Option<ImageInit>,
    /// Bytes of its blobs in the store (compressed).
    pub size: u64,
    /// Bytes of its files once unpacked.
    pub unpacked_size: u64,
    /// When it was made, as its configuration says.
    pub created: Option<Timestamp>,
    /// Where it came from, for people: `https://images.linuxcontainers.org`, `mmdebstrap http://deb.debian.org/debian`.
    pub source: String,
}

/// The part of an OCI image configuration that a container starts with (image-spec, `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// What is run, before `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    /// Folder that the process starts in; empty is `/`.
    pub working_dir: String,
    /// Signal that asks it to stop (`SIGTERM`, `SIGRTMIN+3`); empty is `SIGTERM`.
    pub stop_signal: String,
}

/// The init of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInit {
    /// What to execute, as a path inside the image (`/sbin/init`).
    pub path: PathBuf,
    /// Which one it is.
    pub kind: InitKind,
}

/// Which init an image brings; whether it can run depends on the host (systemd 256 and later refuses cgroup v1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitKind {
    /// systemd, with its major version where the image tells it.
    Systemd {
        /// 252 for Debian 12, 257 for Debian 13.
        version: Option<u32>,
    },
    /// OpenRC, sysvinit, runit, or busybox init with an inittab.
    Other,
}
