//! `linux/amd64`: what an image is for.

use crate::error::{Error, Result};

/// System, processor and its variant, in Go's words as OCI has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// This host's.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut parts = text.split('/').map(|part| part.trim().to_ascii_lowercase());
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        let os = os.unwrap_or_default();
        let architecture = architecture.unwrap_or_default();
        let fits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if os != "linux" || !fits(&architecture) || parts.next().is_some() {
            return Err(Error::invalid(
                format!("`{text}` is no platform"),
                "write it like `linux/amd64` or `linux/arm64`",
            ));
        }
        let (architecture, variant) = match architecture.as_str() {
            "x86_64" => ("amd64".to_owned(), variant),
            "aarch64" => ("arm64".to_owned(), variant),
            // The variant that every one of them is.
            "arm64" if variant.as_deref() == Some("v8") => (architecture, None),
            _ => (architecture, variant),
        };
        Ok(Self { os, architecture, variant })
    }

    /// The arguments that tell of it, with their prefix.
    pub(crate) fn arguments(&self, prefix: &str) -> Vec<(String, String)> {
        vec![
            (format!("{prefix}PLATFORM"), self.to_string()),
            (format!("{prefix}OS"), self.os.clone()),
            (format!("{prefix}ARCH"), self.architecture.clone()),
            (format!("{prefix}VARIANT"), self.variant.clone().unwrap_or_default()),
        ]
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        for (text, normal) in
            [("linux/x86_64", "linux/amd64"), ("linux/arm64/v8", "linux/arm64"), ("linux/arm/v7", "linux/arm/v7")]
        {
            assert_eq!(Platform::parse(text).unwrap().to_string(), normal);
        }
        for wrong in ["", "amd64", "windows/amd64", "linux/", "linux/a/b/c"] {
            assert!(Platform::parse(wrong).is_err(), "{wrong}");
        }
    }
}
