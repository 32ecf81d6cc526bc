//! For which machine an image is: operating system, processor, variant (image-spec, "Image Index").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;

/// `linux/amd64`, `linux/arm/v7`: in Go's words, as images are published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `386`, `riscv64`…
    pub architecture: String,
    /// `v8`, `v7`, `v3`; none where the processor has only one, or any will do.
    pub variant: Option<String>,
}

impl Platform {
    /// This host's, with the variant that its processor has.
    #[must_use]
    pub fn host() -> Self {
        let architecture = crate::oci::architecture();
        let variant = match architecture {
            "arm" => Some("v7".to_owned()),
            "amd64" => Some(level()).filter(|l| *l > 1).map(|l| format!("v{l}")),
            _ => None,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// Whether programs for it can be executed here without help.
    #[must_use]
    pub fn runs_here(&self) -> bool {
        Self::host().rank(self).is_some()
    }

    /// From `os`, `architecture` and `variant` of an index entry or a configuration.
    pub(crate) fn of_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().filter(|t| !t.is_empty());
        let architecture = text("architecture")?.to_owned();
        Some(Self { os: text("os")?.to_owned(), variant: said(&architecture, text("variant")), architecture })
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = json!({ "os": self.os, "architecture": self.architecture });
        if let Some(variant) = &self.variant {
            value["variant"] = json!(variant);
        }
        value
    }

    /// How well an image fits who asks for this platform: the higher the better, none where it does not run there. A
    /// processor runs what was made for those before it.
    pub(crate) fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |p: &Self| number(p.variant.as_deref().unwrap_or(usual(&p.architecture)));
        match (level(self), level(offered)) {
            (Some(most), Some(level)) => (level <= most).then_some(level),
            _ => (self.variant == offered.variant).then_some(0),
        }
    }
}

/// `v8` as 8.
fn number(variant: &str) -> Option<u32> {
    variant.strip_prefix('v')?.parse().ok()
}

/// The variant that is meant where none is said.
fn usual(architecture: &str) -> &'static str {
    match architecture {
        "arm64" => "v8",
        "arm" => "v7",
        _ => "v1",
    }
}

/// A variant in its normal form: the usual one goes without saying, but for 32-bit ARM, where people look for it.
fn said(architecture: &str, variant: Option<&str>) -> Option<String> {
    let usual = usual(architecture);
    match variant {
        None => (architecture == "arm").then(|| usual.to_owned()),
        Some(variant) => (architecture == "arm" || variant != usual).then(|| variant.to_owned()),
    }
}

/// The level of an x86-64 processor (x86-64 psABI).
#[cfg(target_arch = "x86_64")]
fn level() -> u32 {
    macro_rules! has { ($($feature:tt),*) => { $(std::is_x86_feature_detected!($feature))&&* } }
    if !has!("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cmpxchg16b") {
        1
    } else if !has!("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe") {
        2
    } else if !has!("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl") {
        3
    } else {
        4
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn level() -> u32 {
    1
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `OS/ARCH[/VARIANT]`, or the processor alone; other spellings of a processor (`x86_64`, `aarch64`, `armhf`) too.
    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        let is_word =
            |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        if !is_word(os) || !is_word(architecture) || !variant.is_none_or(is_word) {
            return Err(Error::BadReference {
                text: text.to_owned(),
                reason: "not a platform".to_owned(),
                help: Some("a platform is `OS/ARCH` or `OS/ARCH/VARIANT`, for example `linux/arm64`".to_owned()),
            });
        }
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" | "armv7l" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "i386" | "i686" => ("386".to_owned(), None),
            other => (other.to_owned(), None),
        };
        let variant = said(&architecture, variant.or(implied));
        Ok(Self { os: os.to_ascii_lowercase(), architecture, variant })
    }
}

impl TryFrom<String> for Platform {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn spellings() {
        for (text, normal) in [
            ("linux/amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("armhf", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(platform(text).to_string(), normal, "{text}");
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/amd64/"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_processor_runs_what_was_made_for_those_before_it() {
        let fits = |asked: &str, offered: &str| platform(asked).rank(&platform(offered));
        assert!(fits("linux/arm/v7", "linux/arm/v6") < fits("linux/arm/v7", "linux/arm/v7"));
        assert_eq!(fits("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(fits("linux/amd64", "linux/amd64/v3"), None);
        assert!(fits("linux/amd64/v3", "linux/amd64").is_some());
        assert!(fits("linux/arm64", "linux/arm64").is_some());
        assert_eq!(fits("linux/arm64", "linux/amd64"), None);
        assert_eq!(fits("linux/arm64", "windows/arm64"), None);
        assert!(fits("linux/mips64le/hardfloat", "linux/mips64le/hardfloat").is_some());
        assert_eq!(fits("linux/mips64le", "linux/mips64le/hardfloat"), None);
        assert!(Platform::host().runs_here() && !platform("plan9/amd64").runs_here());
    }
}
