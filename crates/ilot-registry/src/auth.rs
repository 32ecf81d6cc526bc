//! Who may come in: a file of `htpasswd -B`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::names::Digest;

/// Names and hashed passwords.
pub(crate) struct Passwords {
    users: HashMap<String, String>,
    /// Checked once, for bcrypt is slow on purpose: the digest of what was sent.
    known: Mutex<Vec<Digest>>,
}

/// Remembered logins; a guesser's never are.
const KNOWN: usize = 1024;
/// Compared with when the user is not known, so that the answer takes as long.
const NOBODY: &str = "$2y$10$CwTycUXWue0Thq9StjUM0uJ8b0RZ0lW9RZ0lW9RZ0lW9RZ0lW9RZ0";

impl Passwords {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let unusable = |reason: String| Error::Unusable { what: "password file", path: path.to_owned(), reason };
        let text = fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
        let mut users = HashMap::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((user, hash)) = line.split_once(':') else {
                return Err(unusable(format!("line {}: not `user:hash`", i + 1)));
            };
            if !["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind)) {
                return Err(unusable(format!("line {}: the password of `{user}` is not hashed with bcrypt", i + 1)));
            }
            users.insert(user.to_owned(), hash.to_owned());
        }
        if users.is_empty() {
            return Err(unusable("has no user".to_owned()));
        }
        Ok(Self { users, known: Mutex::default() })
    }

    /// The user whose `Authorization` this is. Slow the first time: not for the thread that serves others.
    pub(crate) fn user(&self, header: &str) -> Option<String> {
        let (user, password) = basic(header)?;
        self.allows(header, &user, &password).then_some(user)
    }

    fn allows(&self, header: &str, user: &str, password: &str) -> bool {
        let key = Digest::of(header.as_bytes());
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return true;
        }
        let hash = self.users.get(user);
        let fits = bcrypt::verify(password, hash.map_or(NOBODY, String::as_str)).unwrap_or(false);
        if !fits || hash.is_none() {
            return false;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN {
            known.clear();
        }
        known.push(key);
        true
    }
}

/// `Basic BASE64(user:password)` (RFC 7617).
fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64(encoded.trim())?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// RFC 4648, for addresses, without padding.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::with_capacity(bytes.len() * 4 / 3 + 3);
    for group in bytes.chunks(3) {
        let held = (0..3).fold(0u32, |held, i| held << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        (0..=group.len()).for_each(|i| out.push(char::from(LETTERS[(held >> (18 - 6 * i) & 63) as usize])));
    }
    out
}

/// RFC 4648, with padding or without.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut held, mut bits) = (0u32, 0);
    for b in text.trim_end_matches('=').bytes() {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(held >> bits & 0xff).ok()?);
            held &= (1 << bits) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_read_and_checked() {
        assert_eq!(basic("Basic dTpwOnE="), Some(("u".to_owned(), "p:q".to_owned())));
        assert_eq!(basic("basic dTpwOnE"), Some(("u".to_owned(), "p:q".to_owned())));
        for bad in ["", "Basic", "Bearer dTpw", "Basic !", "Basic dQ=="] {
            assert_eq!(basic(bad), None, "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        fs::write(&file, format!("# people\nu:{}\n", bcrypt::hash("p:q", 4).unwrap())).unwrap();
        let passwords = Passwords::read(&file).unwrap();
        for _ in 0..2 {
            assert_eq!(passwords.user("Basic dTpwOnE=").as_deref(), Some("u"));
        }
        assert_eq!(base64(&to_base64(b"any bytes")).unwrap(), b"any bytes");
        assert!(passwords.user("Basic dTpw").is_none() && passwords.user("Basic djpwOnE=").is_none());
        fs::write(&file, "u:{SHA}x\n").unwrap();
        assert!(Passwords::read(&file).is_err());
        fs::write(&file, "\n").unwrap();
        assert!(Passwords::read(&file).is_err());
    }
}
