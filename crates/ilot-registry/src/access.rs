//! Who may do what: users and their passwords, rules, and tokens that stand for a login for a while.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::auth::{Passwords, base64, to_base64};
use crate::error::{Error, Result};

/// How long a token is good for (the token specification's suggestion is at least a minute).
pub(crate) const LIFETIME: Duration = Duration::from_secs(300);

/// What is done to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    fn named(text: &str) -> Option<Self> {
        match text {
            "pull" => Some(Self::Pull),
            "push" => Some(Self::Push),
            "delete" => Some(Self::Delete),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// One line of an access file.
#[derive(Debug)]
struct Rule {
    /// `*`: everybody, also without a login.
    user: String,
    pattern: String,
    actions: Vec<Action>,
}

/// What a token lets its holder do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) actions: Vec<Action>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    /// Empty: nobody in particular.
    sub: String,
    exp: u64,
    access: Vec<Grant>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// None: nobody in particular.
    pub(crate) user: Option<String>,
    /// Of a token: no more than this.
    grants: Option<Vec<Grant>>,
}

/// Decides who comes in, and what for.
pub(crate) struct Gate {
    passwords: Option<Passwords>,
    rules: Option<Vec<Rule>>,
    /// Signs tokens; made anew by each server, so that no token outlives it.
    key: Option<hmac::Key>,
}

/// What an `Authorization` is worth.
pub(crate) enum Identity {
    Is(Caller),
    /// A wrong password, a token that is none or too old.
    Wrong,
}

impl Gate {
    pub(crate) fn new(htpasswd: Option<&Path>, access: Option<&Path>, tokens: bool) -> Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new());
        let key = key.map_err(|_| Error::Serve { source: std::io::Error::other("no random numbers") })?;
        Ok(Self {
            passwords: htpasswd.map(Passwords::read).transpose()?,
            rules: access.map(read).transpose()?,
            key: tokens.then_some(key),
        })
    }

    /// Whether everybody may do everything.
    pub(crate) fn is_open(&self) -> bool {
        self.passwords.is_none() && self.rules.is_none()
    }

    pub(crate) fn gives_tokens(&self) -> bool {
        self.key.is_some() && !self.is_open()
    }

    /// Whether there is anything for those without a name.
    pub(crate) fn knows_anybody(&self) -> bool {
        self.is_open() || self.rules.as_ref().is_some_and(|rules| rules.iter().any(|rule| rule.user == "*"))
    }

    /// Slow for a password that comes the first time: not for the thread that serves others.
    pub(crate) fn identify(&self, headers: &HeaderMap) -> Identity {
        let Some(said) = headers.get(header::AUTHORIZATION) else {
            return Identity::Is(Caller { user: None, grants: None });
        };
        let said = said.to_str().unwrap_or_default();
        let (scheme, rest) = said.split_once(' ').unwrap_or((said, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.read_token(rest.trim()).map_or(Identity::Wrong, Identity::Is);
        }
        match self.passwords.as_ref().and_then(|passwords| passwords.user(said)) {
            Some(user) => Identity::Is(Caller { user: Some(user), grants: None }),
            // Nobody has a password here: what was sent means nothing.
            None if self.is_open() => Identity::Is(Caller { user: None, grants: None }),
            None => Identity::Wrong,
        }
    }

    pub(crate) fn may(&self, caller: &Caller, repository: &str, action: Action) -> bool {
        let granted = caller.grants.as_ref().is_none_or(|grants| {
            grants.iter().any(|g| g.kind == "repository" && g.name == repository && g.actions.contains(&action))
        });
        granted && self.allows(caller.user.as_deref(), repository, action)
    }

    fn allows(&self, user: Option<&str>, repository: &str, action: Action) -> bool {
        match &self.rules {
            None => self.is_open() || user.is_some(),
            Some(rules) => rules.iter().any(|rule| {
                (rule.user == "*" || Some(rule.user.as_str()) == user)
                    && rule.actions.contains(&action)
                    && fits(&rule.pattern, repository)
            }),
        }
    }

    /// Whether a caller may see that a repository is there.
    pub(crate) fn may_list(&self, caller: &Caller, repository: &str) -> bool {
        self.allows(caller.user.as_deref(), repository, Action::Pull)
    }

    /// A token for what of the scopes a caller may do; none for somebody who could do nothing with it.
    pub(crate) fn token(&self, caller: &Caller, scopes: &[String]) -> Option<String> {
        let key = self.key.as_ref()?;
        let mut access = Vec::new();
        for scope in scopes {
            let mut parts = scope.splitn(2, ':');
            let (Some("repository"), Some(rest)) = (parts.next(), parts.next()) else { continue };
            let Some((name, actions)) = rest.rsplit_once(':') else { continue };
            let wanted = actions.split(',').flat_map(|a| match a {
                "*" => vec![Action::Pull, Action::Push, Action::Delete],
                // Whoever may delete says so by `push` in some clients; deleting is asked for by its own name.
                a => Action::named(a).into_iter().collect(),
            });
            let actions: Vec<_> = wanted.filter(|a| self.allows(caller.user.as_deref(), name, *a)).collect();
            access.push(Grant { kind: "repository".to_owned(), name: name.to_owned(), actions });
        }
        if caller.user.is_none() && !access.iter().any(|grant| !grant.actions.is_empty()) {
            return None;
        }
        let exp = now() + LIFETIME.as_secs();
        let claims = Claims { sub: caller.user.clone().unwrap_or_default(), exp, access };
        let body = to_base64(&serde_json::to_vec(&claims).ok()?);
        let mark = to_base64(hmac::sign(key, body.as_bytes()).as_ref());
        Some(format!("{body}.{mark}"))
    }

    fn read_token(&self, token: &str) -> Option<Caller> {
        let (body, mark) = token.split_once('.')?;
        hmac::verify(self.key.as_ref()?, body.as_bytes(), &base64(mark)?).ok()?;
        let claims: Claims = serde_json::from_slice(&base64(body)?).ok()?;
        (claims.exp > now())
            .then(|| Caller { user: Some(claims.sub).filter(|user| !user.is_empty()), grants: Some(claims.access) })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Lines of `USER PATTERN ACTION[,ACTION]`.
fn read(path: &Path) -> Result<Vec<Rule>> {
    let unusable = |reason: String| Error::Unusable { what: "access file", path: path.to_owned(), reason };
    let text = fs::read_to_string(path).map_err(|e| unusable(e.to_string()))?;
    let mut rules = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [user, pattern, actions] = words[..] else {
            return Err(unusable(format!("line {}: not `USER REPOSITORY ACTIONS`", i + 1)));
        };
        let parsed: Option<Vec<Action>> = actions.split(',').map(Action::named).collect();
        let Some(actions) = parsed else {
            return Err(unusable(format!("line {}: `{actions}`: actions are `pull`, `push` and `delete`", i + 1)));
        };
        rules.push(Rule { user: user.to_owned(), pattern: pattern.to_owned(), actions });
    }
    Ok(rules)
}

/// `*` is any part of a name between slashes, `**` any part with slashes.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    let (rest, slashes) = rest.strip_prefix('*').map_or((rest, false), |rest| (rest, true));
    let ends = name.char_indices().map(|(i, _)| i).chain([name.len()]);
    ends.take_while(|end| slashes || !name[..*end].contains('/')).any(|end| fits(rest, &name[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, wanted) in [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", false),
            ("a/**", "a/b/c", true),
            ("**", "a/b/c", true),
            ("*", "a/b", false),
            ("*/tool", "x/tool", true),
            ("**/tool", "x/y/tool", true),
            ("**/tool", "tool", false),
            ("a*c", "abc", true),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn tokens_say_no_more_than_they_may_and_cannot_be_made_up() {
        let dir = tempfile::tempdir().unwrap();
        let (users, access) = (dir.path().join("users"), dir.path().join("access"));
        fs::write(&users, format!("u:{}\n", bcrypt::hash("p", 4).unwrap())).unwrap();
        fs::write(&access, "* public/** pull # everybody\nu team/* pull,push\n").unwrap();
        let gate = Gate::new(Some(&users), Some(&access), true).unwrap();
        let user = Caller { user: Some("u".to_owned()), grants: None };
        let nobody = Caller { user: None, grants: None };
        let scope = |s: &str| vec![format!("repository:{s}")];
        let token = gate.token(&user, &scope("team/a:pull,push,delete")).unwrap();
        let caller = gate.read_token(&token).unwrap();
        assert!(gate.may(&caller, "team/a", Action::Push) && !gate.may(&caller, "team/a", Action::Delete));
        assert!(!gate.may(&caller, "team/b", Action::Pull), "another repository than the token is for");
        assert!(gate.token(&nobody, &scope("team/a:pull")).is_none());
        let anybody = gate.read_token(&gate.token(&nobody, &scope("public/x/y:pull,push")).unwrap()).unwrap();
        assert!(gate.may(&anybody, "public/x/y", Action::Pull) && !gate.may(&anybody, "public/x/y", Action::Push));
        let (body, mark) = token.split_once('.').unwrap();
        for forged in [body.to_owned(), format!("{body}."), format!("{body}x.{mark}"), format!("{mark}.{body}")] {
            assert!(gate.read_token(&forged).is_none(), "{forged}");
        }
        let other = Gate::new(Some(&users), None, true).unwrap();
        assert!(other.read_token(&token).is_none(), "another server's");
        let old = Claims { sub: "u".to_owned(), exp: now() - 1, access: Vec::new() };
        let body = to_base64(&serde_json::to_vec(&old).unwrap());
        let mark = to_base64(hmac::sign(gate.key.as_ref().unwrap(), body.as_bytes()).as_ref());
        assert!(gate.read_token(&format!("{body}.{mark}")).is_none(), "too old");
        for bad in ["u x", "u x y", "u x pull,fly"] {
            fs::write(&access, bad).unwrap();
            assert!(Gate::new(None, Some(&access), false).is_err(), "{bad}");
        }
    }
}
