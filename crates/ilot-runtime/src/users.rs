//! Users and groups by the container's own `/etc/passwd` and `/etc/group`.

use crate::spec::User;
use crate::{Error, Result, paths};
use std::os::fd::BorrowedFd;

/// Largest user database that is read.
const MAX: u64 = 4 << 20;

/// Looks `user[:group]` up; numbers need no entry.
pub fn look_up(root: BorrowedFd<'_>, name: &str) -> Result<User> {
    let (user, group) = match name.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (name, None),
    };
    let passwd = read(root, "/etc/passwd")?;
    let groups = read(root, "/etc/group")?;
    let entry = passwd.lines().map(Fields::new).find(|f| match user.parse::<u32>() {
        Ok(uid) => f.number(2) == Some(uid),
        Err(_) => f.get(0) == user,
    });
    let uid = match (&entry, user.parse()) {
        (_, Ok(uid)) => uid,
        (Some(entry), _) => entry.number(2).ok_or_else(|| unknown("user", user))?,
        (None, Err(_)) => return Err(unknown("user", user)),
    };
    let gid = match group {
        None => entry.as_ref().and_then(|e| e.number(3)).unwrap_or(0),
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => groups
                .lines()
                .map(Fields::new)
                .find(|f| f.get(0) == group)
                .and_then(|f| f.number(2))
                .ok_or_else(|| unknown("group", group))?,
        },
    };
    let mut additional = Vec::new();
    if let (None, Some(entry)) = (group, &entry) {
        let member = entry.get(0);
        for line in groups.lines().map(Fields::new) {
            if let Some(other) = line.number(2)
                && other != gid
                && line.get(3).split(',').any(|m| m == member)
            {
                additional.push(other);
            }
        }
    }
    Ok(User { uid, gid, additional_gids: additional, ..Default::default() })
}

/// The home directory of a user id, `/` without an entry.
pub fn home(root: BorrowedFd<'_>, uid: u32) -> Result<String> {
    let passwd = read(root, "/etc/passwd")?;
    Ok(passwd
        .lines()
        .map(Fields::new)
        .find(|f| f.number(2) == Some(uid))
        .map(|f| f.get(5).to_owned())
        .filter(|home| home.starts_with('/'))
        .unwrap_or_else(|| if uid == 0 { "/root" } else { "/" }.to_owned()))
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let content = paths::read_in_root(root, path, MAX)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn unknown(what: &str, name: &str) -> Error {
    Error::invalid(
        format!("{what} `{name}`"),
        format!("there is none in the container's /etc/{}", if what == "user" { "passwd" } else { "group" }),
    )
}

/// One line of such a file.
struct Fields<'a>(Vec<&'a str>);

impl<'a> Fields<'a> {
    fn new(line: &'a str) -> Self {
        Self(line.split(':').collect())
    }

    fn get(&self, index: usize) -> &'a str {
        self.0.get(index).copied().unwrap_or("")
    }

    fn number(&self, index: usize) -> Option<u32> {
        self.get(index).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn tree() -> (tempfile::TempDir, std::os::fd::OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n");
        write("etc/group", "root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\naudio:x:29:annie\n");
        let fd = paths::open_host_dir(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn by_name_with_groups() {
        let (_dir, fd) = tree();
        let user = look_up(fd.as_fd(), "ann").unwrap();
        assert_eq!((user.uid, user.gid, user.additional_gids), (1000, 100, vec![10]));
        assert_eq!(home(fd.as_fd(), 1000).unwrap(), "/home/ann");
    }

    #[test]
    fn by_number_and_group() {
        let (_dir, fd) = tree();
        let user = look_up(fd.as_fd(), "7:wheel").unwrap();
        assert_eq!((user.uid, user.gid), (7, 10));
        let user = look_up(fd.as_fd(), "1000").unwrap();
        assert_eq!((user.gid, user.additional_gids), (100, vec![10]));
        assert_eq!(home(fd.as_fd(), 7).unwrap(), "/");
    }

    #[test]
    fn unknown_ones_are_named() {
        let (_dir, fd) = tree();
        assert!(look_up(fd.as_fd(), "eve").unwrap_err().to_string().contains("`eve`"));
        assert!(look_up(fd.as_fd(), "ann:nope").unwrap_err().to_string().contains("`nope`"));
    }
}
