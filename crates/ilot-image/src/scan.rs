//! What an image's layers say about its init and its shell, found while they are imported, without unpacking them.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::archive::reader::{Entry, Kind};
use crate::archive::{Fault, Limits, Names, components};
use crate::types::{ImageInit, InitKind};

/// Links on one path, as in Linux (path_resolution(7)).
const MAX_LINKS: usize = 40;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Node {
    Dir,
    File,
    Link(Vec<u8>),
    /// Whited out: whatever the layers below have.
    Gone,
}

/// A scan in a file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    nodes: Vec<(Vec<u8>, Node)>,
    opaque: Vec<Vec<u8>>,
    bytes: u64,
    newest: i64,
}

/// The entries of one layer that can matter for an init.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    nodes: HashMap<Vec<u8>, Node>,
    opaque: HashSet<Vec<u8>>,
    names: Names,
    /// Bytes of all files.
    pub(crate) bytes: u64,
    /// The latest time of an entry, in seconds since 1970.
    pub(crate) newest: i64,
}

impl Scan {
    /// Takes note of an entry, and refuses one that means to leave its folder.
    pub(crate) fn entry(&mut self, entry: &Entry, limits: Limits) -> Result<(), Fault> {
        let parts = components(&entry.path)?;
        if entry.kind == Kind::Hardlink {
            components(&entry.link)?;
        }
        self.newest = self.newest.max(entry.mtime.0);
        if entry.kind == Kind::File {
            let held = entry.sparse.as_ref().map_or(entry.size, |p| p.iter().map(|(_, length)| length).sum());
            self.bytes = self.bytes.saturating_add(held);
        }
        let Some((name, folder)) = parts.split_last() else { return Ok(()) };
        if !matters(&parts) {
            return Ok(());
        }
        let path = parts.join(&b'/');
        self.names.add(&path, limits)?;
        if *name == b".wh..wh..opq" {
            self.opaque.insert(folder.join(&b'/'));
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            self.hide([folder, &[hidden]].concat().join(&b'/'));
            return Ok(());
        }
        let node = match entry.kind {
            Kind::Dir => Node::Dir,
            Kind::Symlink => Node::Link(entry.link.clone()),
            Kind::File | Kind::Hardlink => Node::File,
            Kind::Char if entry.device == (0, 0) => {
                self.hide(path);
                return Ok(());
            }
            Kind::Char | Kind::Block | Kind::Fifo => return Ok(()),
        };
        let is_dir = node == Node::Dir;
        if self.nodes.insert(path.clone(), node) == Some(Node::Gone) && is_dir {
            self.opaque.insert(path);
        }
        Ok(())
    }

    /// What was found, to be kept: the same as [`Scan::from_saved`] takes.
    pub(crate) fn saved(&self) -> Saved {
        let mut nodes: Vec<_> = self.nodes.iter().map(|(path, node)| (path.clone(), node.clone())).collect();
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        let mut opaque: Vec<_> = self.opaque.iter().cloned().collect();
        opaque.sort();
        Saved { nodes, opaque, bytes: self.bytes, newest: self.newest }
    }

    pub(crate) fn from_saved(saved: Saved) -> Self {
        Self {
            nodes: saved.nodes.into_iter().collect(),
            opaque: saved.opaque.into_iter().collect(),
            names: Names::default(),
            bytes: saved.bytes,
            newest: saved.newest,
        }
    }

    /// A whiteout: of what is below, never of what this layer brings.
    fn hide(&mut self, path: Vec<u8>) {
        match self.nodes.get(&path) {
            None => drop(self.nodes.insert(path, Node::Gone)),
            Some(Node::Dir) => drop(self.opaque.insert(path)),
            Some(_) => {}
        }
    }

    /// This layer on top of another.
    pub(crate) fn over(mut self, below: Self) -> Self {
        // By its own folders, not by all that is hidden: a layer has many of both.
        let hidden = |path: &[u8]| {
            let ends = (0..path.len()).filter(|&i| path[i] == b'/');
            self.opaque.contains(&b""[..])
                || ends.map(|end| &path[..end]).any(|folder| {
                    self.opaque.contains(folder) || self.nodes.get(folder).is_some_and(|node| *node != Node::Dir)
                })
        };
        let kept: Vec<_> = below.nodes.into_iter().filter(|(path, _)| !hidden(path)).collect();
        for (path, node) in kept {
            self.nodes.entry(path).or_insert(node);
        }
        self.bytes += below.bytes;
        self
    }

    /// Where a path leads, all links followed inside the image.
    fn resolve(&self, path: &[u8]) -> Option<(Vec<u8>, &Node)> {
        let mut left: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(part),
            }
            match self.nodes.get(&at.join(&b'/')) {
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return None;
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    left.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                }
                // A folder that no entry names is made for what lies in it.
                None if !left.is_empty() => {}
                Some(Node::Gone) | None => return None,
                Some(_) => {}
            }
        }
        let path = at.join(&b'/');
        let node = self.nodes.get(&path)?;
        Some((path, node))
    }

    fn is_file(&self, path: &str) -> bool {
        matches!(self.resolve(path.as_bytes()), Some((_, Node::File)))
    }

    /// The init of the image, if it brings one that means to be one.
    pub(crate) fn init(&self) -> Option<ImageInit> {
        for path in ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"] {
            let Some((real, Node::File)) = self.resolve(path.as_bytes()) else { continue };
            let name = real.rsplit(|&b| b == b'/').next().unwrap_or_default();
            let has_table = self.is_file("etc/inittab");
            let kind = match name {
                b"systemd" => InitKind::Systemd { version: self.systemd_version() },
                b"openrc-init" | b"runit" | b"runit-init" | b"s6-svscan" | b"s6-linux-init" | b"dinit" => {
                    InitKind::Other
                }
                // A base image has busybox and a table that calls what is not installed.
                b"busybox" if has_table && (self.is_file("sbin/openrc") || self.is_file("etc/init.d/rcS")) => {
                    InitKind::Other
                }
                b"init" | b"sysvinit" if has_table => InitKind::Other,
                _ => continue,
            };
            return Some(ImageInit { path: PathBuf::from(path), kind });
        }
        None
    }

    /// The shell that a person would want.
    pub(crate) fn shell(&self) -> Option<&'static str> {
        ["/bin/bash", "/bin/sh", "/usr/bin/bash", "/usr/bin/sh"].into_iter().find(|path| self.is_file(path))
    }

    /// From the name of its library: `libsystemd-shared-257.so`, `libsystemd-shared-256.7-1.fc41.so`.
    fn systemd_version(&self) -> Option<u32> {
        self.nodes.iter().filter(|(_, node)| **node == Node::File).find_map(|(path, _)| {
            let name = path.rsplit(|&b| b == b'/').next()?;
            let rest = name.strip_prefix(b"libsystemd-shared-")?;
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
        })
    }
}

/// Whether a path can be on the way to an init: a layer has a hundred thousand that cannot.
fn matters(parts: &[&[u8]]) -> bool {
    match parts {
        [b"usr"] => true,
        [b"usr", b"bin" | b"sbin" | b"lib" | b"lib64" | b"libexec", ..] => parts.len() <= 5,
        [b"usr", b".wh.bin" | b".wh.sbin" | b".wh.lib" | b".wh..wh..opq"] => true,
        [b"bin" | b"sbin" | b"lib" | b"lib64", ..] => parts.len() <= 4,
        [b"etc", ..] => parts.len() <= 3,
        [name] => name.starts_with(b".wh."),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(entries: &[(&str, &str)]) -> Scan {
        let mut scan = Scan::default();
        for (path, link) in entries {
            let kind = match *link {
                "" if path.ends_with('/') => Kind::Dir,
                "" => Kind::File,
                _ => Kind::Symlink,
            };
            let entry = Entry {
                path: path.as_bytes().to_vec(),
                kind,
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: (0, 0),
                link: link.as_bytes().to_vec(),
                size: 0,
                device: (0, 0),
                xattrs: Vec::new(),
                sparse: None,
            };
            scan.entry(&entry, Limits::default()).unwrap();
        }
        scan
    }

    #[test]
    fn systemd_of_a_merged_tree() {
        let scan = scan(&[
            ("./sbin", "usr/sbin"),
            ("./lib", "usr/lib"),
            ("./bin", "usr/bin"),
            ("./usr/bin/bash", ""),
            ("./usr/sbin/init", "../lib/systemd/systemd"),
            ("./usr/lib/systemd/systemd", ""),
            ("./usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so", ""),
        ]);
        let init = scan.init().unwrap();
        assert_eq!(init.path, PathBuf::from("/sbin/init"));
        assert_eq!(init.kind, InitKind::Systemd { version: Some(257) });
        assert_eq!(scan.shell(), Some("/bin/bash"));
    }

    #[test]
    fn systemd_of_an_absolute_link_and_none_in_a_circle() {
        let absolute = scan(&[("sbin/init", "/lib/systemd/systemd"), ("lib/systemd/systemd", "")]);
        assert_eq!(absolute.init().unwrap().kind, InitKind::Systemd { version: None });
        let circle = scan(&[("sbin/init", "/sbin/init2"), ("sbin/init2", "init")]);
        assert_eq!(circle.init(), None);
    }

    #[test]
    fn busybox_alone_is_no_init() {
        let base = [("bin/busybox", ""), ("sbin/init", "/bin/busybox"), ("bin/sh", "/bin/busybox")];
        assert_eq!(scan(&base).init(), None);
        assert_eq!(scan(&base).shell(), Some("/bin/sh"));
        let mut alpine = base.to_vec();
        alpine.push(("etc/inittab", ""));
        assert_eq!(scan(&alpine).init(), None, "an inittab that calls an OpenRC which is not there");
        alpine.push(("sbin/openrc", ""));
        assert_eq!(scan(&alpine).init().unwrap().kind, InitKind::Other);
    }

    #[test]
    fn whiteouts_hide_what_is_below() {
        let base = || scan(&[("sbin/init", "/lib/systemd/systemd"), ("lib/systemd/systemd", "")]);
        assert!(scan(&[("etc/x", "")]).over(base()).init().is_some());
        assert!(scan(&[("sbin/.wh.init", "")]).over(base()).resolve(b"sbin/init").is_none());
        assert!(scan(&[("lib/.wh.systemd", "")]).over(base()).init().is_none());
        assert!(scan(&[("lib/.wh..wh..opq", "")]).over(base()).init().is_none());
        // What a layer brings itself is not hidden by its own whiteout, whichever comes first.
        let both = [("sbin/init", "/lib/systemd/systemd"), ("sbin/.wh.init", "")];
        assert!(scan(&both).over(base()).init().is_some());
        let again = [("lib/.wh.systemd", ""), ("lib/systemd/", ""), ("lib/systemd/other", "")];
        assert!(scan(&again).over(base()).init().is_none());
    }
}
