//! Conversions between what a container asks for and what the two generations of control groups take.

use std::fmt::Display;

use super::error::{CgroupError, Result};

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller whose group gets it.
    pub(super) controller: String,
    /// The control file.
    pub(super) file: String,
    /// Another name of the file (other I/O schedulers, older kernels), tried when the first is not there.
    pub(super) or_file: Option<(String, String)>,
    /// What is written.
    pub(super) value: String,
    /// What was asked for, in the words of the runtime-spec.
    pub(super) what: &'static str,
    /// What happens when this kernel has no such file.
    pub(super) missing: Missing,
}

/// What to do with a setting whose file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The limit cannot be kept: an error.
    Fail,
    /// The value is what the kernel does anyway.
    Skip,
}

impl Setting {
    pub(super) fn new(controller: &str, file: impl Into<String>, value: impl Display, what: &'static str) -> Self {
        Self {
            controller: controller.into(),
            file: file.into(),
            or_file: None,
            value: value.to_string(),
            what,
            missing: Missing::Fail,
        }
    }

    pub(super) fn or(mut self, file: impl Into<String>, value: impl Display) -> Self {
        self.or_file = Some((file.into(), value.to_string()));
        self
    }

    pub(super) fn optional(mut self) -> Self {
        self.missing = Missing::Skip;
        self
    }
}

/// `cpu.weight` (1 to 10000) for v1 `cpu.shares` (2 to 262144).
///
/// The quadratic curve through (2, 1), (1024, 100) and (262144, 10000) that runc, crun and Kubernetes agreed on in
/// 2025, so that the default of one is the default of the other. 0 stays 0: not set.
#[must_use]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

/// `io.weight` (1 to 10000) for v1 `blkio.weight` (10 to 1000), linear as runc and crun have it.
#[must_use]
pub fn io_weight_from_blkio(weight: u16) -> u64 {
    match weight {
        0 => 0,
        _ => 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990,
    }
}

/// v2 `memory.swap.max` for the spec's `swap`, which counts memory and swap together. `None`: leave as it is.
pub(super) fn v2_swap(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
    let limit = limit.unwrap_or(0);
    let bad = |why: &str| CgroupError::BadValue {
        what: "memory.swap".into(),
        value: swap.unwrap_or(0).to_string(),
        why: why.into(),
    };
    match swap.unwrap_or(0) {
        // v1 has no limit on both together when memory has none: the same here.
        0 if limit < 0 => Ok(Some("max".into())),
        0 => Ok(None),
        s if s < 0 => Ok(Some("max".into())),
        _ if limit <= 0 => Err(bad("a swap limit needs a memory limit beside it")),
        s if s < limit => Err(bad("it counts memory and swap together, so it must be at least memory.limit")),
        s => Ok(Some((s - limit).to_string())),
    }
}

/// A number of bytes where v2 says `max` for no limit.
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// The page size part of a hugetlb file's name is as the kernel writes it: `64KB`, `2MB`, `1GB`.
pub(super) fn page_size(text: &str) -> Result<&str> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'B']);
    let unit = &text[digits.len()..];
    let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if number && matches!(unit, "KB" | "MB" | "GB") {
        return Ok(text);
    }
    Err(CgroupError::BadValue {
        what: "hugepageLimits.pageSize".into(),
        value: text.into(),
        why: "it must be a number and KB, MB or GB, as 2MB".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        for (shares, weight) in [(0, 0), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (300_000, 10_000), (512, 60)] {
            let got = weight_from_shares(shares);
            assert!(got.abs_diff(weight) <= u64::from(shares == 512), "{shares}: {got}");
        }
        let mut last = 0;
        for shares in 2..=262_144 {
            let w = weight_from_shares(shares);
            assert!(w >= last && (1..=10_000).contains(&w), "{shares}: {w}");
            last = w;
        }
        assert_eq!(io_weight_from_blkio(10), 1);
        assert_eq!(io_weight_from_blkio(1000), 10_000);
        assert_eq!(io_weight_from_blkio(0), 0);
    }

    #[test]
    fn swap() {
        let ok = |l, s| v2_swap(l, s).unwrap();
        assert_eq!(ok(Some(100), Some(300)).as_deref(), Some("200"));
        assert_eq!(ok(Some(100), Some(100)).as_deref(), Some("0"));
        assert_eq!(ok(Some(100), Some(-1)).as_deref(), Some("max"));
        assert_eq!(ok(Some(-1), None).as_deref(), Some("max"));
        assert_eq!(ok(Some(100), None), None);
        assert!(v2_swap(Some(100), Some(50)).is_err());
        assert!(v2_swap(None, Some(50)).is_err());
        assert!(v2_swap(Some(-1), Some(50)).is_err());
    }

    #[test]
    fn page_sizes() {
        assert!(page_size("2MB").is_ok() && page_size("1GB").is_ok() && page_size("64KB").is_ok());
        for bad in ["", "MB", "2", "2XB", "../2MB", "2MB/..", "2BB"] {
            assert!(page_size(bad).is_err(), "{bad}");
        }
    }
}
