//! Types of plain scalars: YAML 1.2.2, section 10.3.2, the core schema.

use super::Kind;

/// The type of a plain scalar.
pub(super) fn resolve_plain(text: &str) -> Kind {
    // Nearly everything in an infrastructure file is text; its first byte tells.
    match text.as_bytes().first() {
        None => Kind::Null,
        Some(b'~') if text.len() == 1 => Kind::Null,
        Some(b'n' | b'N') if matches!(text, "null" | "Null" | "NULL") => Kind::Null,
        Some(b't' | b'T') if matches!(text, "true" | "True" | "TRUE") => Kind::Bool(true),
        Some(b'f' | b'F') if matches!(text, "false" | "False" | "FALSE") => Kind::Bool(false),
        Some(b'0'..=b'9' | b'-' | b'+' | b'.') => number(text).unwrap_or(Kind::Text { plain: true }),
        Some(_) => Kind::Text { plain: true },
    }
}

/// The boolean that YAML 1.1 (and so AnKLuMe's reader) sees in a plain scalar that YAML 1.2 calls text.
pub(crate) fn yaml_1_1_bool(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn number(text: &str) -> Option<Kind> {
    if let Some(octal) = text.strip_prefix("0o") {
        return radix(octal, 8);
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return radix(hex, 16);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|c| c.is_ascii_digit()) {
        return Some(text.parse().map_or_else(|_| float(text), Kind::Int));
    }
    match unsigned {
        ".inf" | ".Inf" | ".INF" => {
            return Some(Kind::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }));
        }
        ".nan" | ".NaN" | ".NAN" if unsigned.len() == text.len() => return Some(Kind::Float(f64::NAN)),
        _ => {}
    }
    is_float(unsigned).then(|| float(text))
}

fn radix(digits: &str, radix: u32) -> Option<Kind> {
    if digits.is_empty() || !digits.bytes().all(|c| char::from(c).is_digit(radix)) {
        return None;
    }
    Some(i64::from_str_radix(digits, radix).map_or(Kind::Float(f64::INFINITY), Kind::Int))
}

fn float(text: &str) -> Kind {
    text.parse().map_or(Kind::Text { plain: true }, Kind::Float)
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |s: &str| s.bytes().all(|c| c.is_ascii_digit());
    let exponent_ok = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    let mantissa_ok = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    exponent_ok && mantissa_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_schema() {
        let text = Kind::Text { plain: true };
        for (input, kind) in [
            ("", Kind::Null),
            ("~", Kind::Null),
            ("null", Kind::Null),
            ("nullable", text),
            ("true", Kind::Bool(true)),
            ("False", Kind::Bool(false)),
            ("tRue", text),
            ("yes", text),
            ("no", text),
            ("0", Kind::Int(0)),
            ("-12", Kind::Int(-12)),
            ("+7", Kind::Int(7)),
            ("0o17", Kind::Int(15)),
            ("0x1F", Kind::Int(31)),
            ("0x", text),
            ("0b1", text),
            ("1_000", text),
            ("10.100", Kind::Float(10.100)),
            ("10.", Kind::Float(10.0)),
            (".5", Kind::Float(0.5)),
            (".", text),
            ("1e3", Kind::Float(1000.0)),
            ("1e", text),
            ("-.inf", Kind::Float(f64::NEG_INFINITY)),
            ("10.120.3.10", text),
            ("0 2 * * *", text),
            ("30d", text),
            ("-", text),
            ("--", text),
            ("12:30", text),
            ("99999999999999999999", Kind::Float(1e20)),
        ] {
            assert_eq!(resolve_plain(input), kind, "{input:?}");
        }
        assert!(matches!(resolve_plain(".nan"), Kind::Float(f) if f.is_nan()));
    }
}
