//! `--chmod`: `755`, `u+x`, `go-w,a+r` (chmod(1)).

/// A change of permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModeChange {
    Set(u32),
    Change(Vec<Clause>),
}

/// `go-w`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clause {
    /// The bits of user, group and others that it is about.
    who: u32,
    operation: char,
    /// `rwxXst`.
    what: String,
}

impl ModeChange {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.chars().all(|c| c.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).map(Self::Set);
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let at = part.find(['+', '-', '='])?;
            let mut who = 0;
            for c in part[..at].chars() {
                who |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o1007,
                    'a' => 0o7777,
                    _ => return None,
                };
            }
            let what = &part[at + 1..];
            if !what.chars().all(|c| "rwxXst".contains(c)) {
                return None;
            }
            let who = if at == 0 { 0o7777 } else { who };
            clauses.push(Clause { who, operation: part[at..].chars().next()?, what: what.to_owned() });
        }
        Some(Self::Change(clauses))
    }

    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let clauses = match self {
            Self::Set(mode) => return *mode,
            Self::Change(clauses) => clauses,
        };
        clauses.iter().fold(mode, |mode, clause| {
            let bits = clause.what.chars().fold(0, |bits, c| {
                bits | match c {
                    'r' => 0o444,
                    'w' => 0o222,
                    'x' => 0o111,
                    'X' if is_dir || mode & 0o111 != 0 => 0o111,
                    's' => 0o6000,
                    't' => 0o1000,
                    _ => 0,
                }
            }) & clause.who;
            match clause.operation {
                '+' => mode | bits,
                '-' => mode & !bits,
                _ => (mode & !clause.who) | bits,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let changed = |text: &str, mode| ModeChange::parse(text).unwrap().apply(mode, false);
        assert_eq!(changed("0755", 0o644), 0o755);
        assert_eq!(changed("u+x", 0o644), 0o744);
        assert_eq!(changed("+x", 0o644), 0o755);
        assert_eq!(changed("go-rwx", 0o755), 0o700);
        assert_eq!(changed("a=r,u+w", 0o777), 0o644);
        assert_eq!(changed("a+X", 0o644), 0o644);
        assert_eq!(changed("u+s", 0o755), 0o4755);
        assert_eq!(ModeChange::parse("a+X").unwrap().apply(0o644, true), 0o755);
        for wrong in ["", "99999", "8", "x", "z+x", "u+q", "u"] {
            assert!(ModeChange::parse(wrong).is_none(), "{wrong}");
        }
    }
}
