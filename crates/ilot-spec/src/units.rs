//! Sizes, shares, sets and schedules as Incus writes them in `config`.

use crate::model::{CpuAllowance, CpuLimit};

/// Bytes of `2GiB`, `512MB`, `1048576`: the units of Incus, `kB` being 1000 and `KiB` 1024.
///
/// `None` when it is not such a size, or does not fit 63 bits.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let factor: u64 = match text[digits..].trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1000 * 1000,
        "GB" => 1000 * 1000 * 1000,
        "TB" => 1000_u64.pow(4),
        "PB" => 1000_u64.pow(5),
        "EB" => 1000_u64.pow(6),
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "PiB" => 1 << 50,
        "EiB" => 1 << 60,
        _ => return None,
    };
    number.checked_mul(factor).filter(|&bytes| i64::try_from(bytes).is_ok())
}

/// Bytes in the largest unit that divides them: `2GiB`, `1500MiB`, `7B`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// `50%` with a value from 1 to 100.
#[must_use]
pub fn parse_percent(text: &str) -> Option<u32> {
    let number: u32 = whole(text.trim().strip_suffix('%')?)?;
    (1..=100).contains(&number).then_some(number)
}

/// `limits.cpu`: a count (`4`) or a set (`0-1,3`), the set returned sorted and joined.
#[must_use]
pub fn parse_cpu(text: &str) -> Option<CpuLimit> {
    let text = text.trim();
    if let Some(count) = whole(text) {
        return (1..=4096).contains(&count).then_some(CpuLimit::Count(count));
    }
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (whole(from.trim())?, whole(to.trim())?);
        if from > to || to > 4095 {
            return None;
        }
        ranges.push((from, to));
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1 + 1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    let parts: Vec<String> =
        joined.iter().map(|&(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    Some(CpuLimit::Set(parts.join(",")))
}

/// The CPUs of a set as [`parse_cpu`] writes it.
pub(crate) fn set_cpus(set: &str) -> (u32, u32) {
    let (mut count, mut highest) = (0, 0);
    for part in set.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Some(from), Some(to)) = (whole(from), whole(to)) {
            count += to.saturating_sub(from) + 1;
            highest = highest.max(to);
        }
    }
    (count, highest)
}

/// `limits.cpu.allowance`: `50%`, or `25ms/100ms` with a period from 1 to 1000 ms (the kernel's bounds).
#[must_use]
pub fn parse_allowance(text: &str) -> Option<CpuAllowance> {
    let text = text.trim();
    if text.ends_with('%') {
        return parse_percent(text).map(CpuAllowance::Percent);
    }
    let (quota, period) = text.split_once('/')?;
    let millis = |part: &str| whole(part.trim().strip_suffix("ms")?).map(u64::from);
    let (quota, period) = (millis(quota)?, millis(period)?);
    let ok = quota >= 1 && (1..=1000).contains(&period);
    ok.then_some(CpuAllowance::Quota { quota: quota * 1000, period: period * 1000 })
}

/// Decimal digits only: no sign, no space.
fn whole(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A boolean as Incus reads it in `config`.
#[must_use]
pub fn parse_config_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}

/// Why a text is not five cron fields (minute, hour, day of month, month, day of week).
pub(crate) fn check_cron(text: &str) -> Result<(), String> {
    const FIELDS: [(&str, u32, u32); 5] =
        [("minute", 0, 59), ("hour", 0, 23), ("day of month", 1, 31), ("month", 1, 12), ("day of week", 0, 7)];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("has {} fields, not five", fields.len()));
    }
    for (field, (name, low, high)) in fields.iter().zip(FIELDS) {
        for part in field.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            let step_ok = step.is_none_or(|s| whole(s).is_some_and(|s| s >= 1));
            let range_ok = range == "*"
                || match range.split_once('-') {
                    Some((a, b)) => match (cron_value(a, name), cron_value(b, name)) {
                        (Some(a), Some(b)) => low <= a && a <= b && b <= high,
                        _ => false,
                    },
                    None => cron_value(range, name).is_some_and(|v| low <= v && v <= high),
                };
            if !(step_ok && range_ok) {
                return Err(format!("has `{part}` as its {name}, which goes from {low} to {high}"));
            }
        }
    }
    Ok(())
}

fn cron_value(text: &str, field: &str) -> Option<u32> {
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let named = |names: &[&str], base: u32| {
        let place = names.iter().position(|n| n.eq_ignore_ascii_case(text))?;
        u32::try_from(place).ok().map(|p| p + base)
    };
    whole(text).or_else(|| match field {
        "month" => named(&MONTHS, 1),
        "day of week" => named(&DAYS, 0),
        _ => None,
    })
}

/// `N` and one of `d`, `h`, `m`.
pub(crate) fn is_expiry(text: &str) -> bool {
    text.strip_suffix(['d', 'h', 'm']).and_then(whole).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("2GiB", Some(2 << 30)),
            ("2048MiB", Some(2 << 30)),
            ("8GB", Some(8_000_000_000)),
            ("512 MiB", Some(512 << 20)),
            ("1kB", Some(1000)),
            ("2G", None),
            ("GiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("99999999999EiB", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        assert_eq!(format_bytes(2 << 30), "2GiB");
        assert_eq!(format_bytes(1500 << 20), "1500MiB");
        assert_eq!(format_bytes(0), "0B");
    }

    #[test]
    fn cpu() {
        assert_eq!(parse_cpu("4"), Some(CpuLimit::Count(4)));
        assert_eq!(parse_cpu("0-1"), Some(CpuLimit::Set("0-1".into())));
        assert_eq!(parse_cpu("3,0-1,2"), Some(CpuLimit::Set("0-3".into())));
        assert_eq!(parse_cpu("5,1"), Some(CpuLimit::Set("1,5".into())));
        for bad in ["0", "", "a", "3-1", "1,", "-1", "+1", "0-9999", "1.5"] {
            assert_eq!(parse_cpu(bad), None, "{bad}");
        }
        assert_eq!(set_cpus("0-3,7"), (5, 7));
    }

    #[test]
    fn allowance() {
        assert_eq!(parse_allowance("50%"), Some(CpuAllowance::Percent(50)));
        assert_eq!(parse_allowance("25ms/100ms"), Some(CpuAllowance::Quota { quota: 25_000, period: 100_000 }));
        assert_eq!(parse_allowance("200ms/100ms"), Some(CpuAllowance::Quota { quota: 200_000, period: 100_000 }));
        for bad in ["0%", "101%", "50", "0ms/100ms", "25ms", "25/100", "25ms/2000ms", "%"] {
            assert_eq!(parse_allowance(bad), None, "{bad}");
        }
    }

    #[test]
    fn cron() {
        for good in ["0 2 * * *", "*/5 0-6,12 1 jan-mar mon", "59 23 31 12 7", "0  2\t* * *"] {
            assert_eq!(check_cron(good), Ok(()), "{good}");
        }
        for bad in [
            "0 2 * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a b c d e",
            "*/0 * * * *",
            "5-1 * * * *",
            "@daily",
            "",
        ] {
            assert!(check_cron(bad).is_err(), "{bad}");
        }
        assert!(is_expiry("30d") && is_expiry("24h") && is_expiry("60m"));
        assert!(!is_expiry("d") && !is_expiry("30") && !is_expiry("30s") && !is_expiry("-1d"));
    }
}
