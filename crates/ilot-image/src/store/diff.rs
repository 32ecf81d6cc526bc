//! What one image has that another has not.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Store;
use crate::archive::reader::{Entry, Kind, Reader};
use crate::archive::{Fault, codec, components};
use crate::blob::{self, Hashing};
use crate::error::{Error, Result};
use crate::oci::Descriptor;
use crate::types::{Digest, Image};

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only the second has it.
    Added,
    /// Both have it, content or attributes differ.
    Changed,
    /// Only the first has it.
    Deleted,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Below the root, with a slash in front; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// How.
    pub kind: ChangeKind,
    /// What differs: `content`, `mode`, `owner`, `type`, `link`, `attributes`. Times alone are no difference.
    pub what: Vec<&'static str>,
}

/// What a path is, times aside.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    link: Vec<u8>,
    content: Option<Digest>,
    device: (u32, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Every path of an image or of some of its layers.
type Tree = BTreeMap<Vec<u8>, Node>;

impl Store {
    /// What `to` has otherwise than `from`, by path.
    ///
    /// # Errors
    /// When a layer is damaged.
    pub fn diff(&self, from: &Image, to: &Image) -> Result<Vec<Change>> {
        let from = self.tree(&self.manifest(&from.digest)?.layers)?;
        let to = self.tree(&self.manifest(&to.digest)?.layers)?;
        Ok(compare(&from, &to))
    }

    /// What the uppermost layer of an image changes in those below it.
    ///
    /// # Errors
    /// When a layer is damaged.
    pub fn diff_of_top(&self, image: &Image) -> Result<Vec<Change>> {
        let layers = self.manifest(&image.digest)?.layers;
        let below = self.tree(&layers[..layers.len().saturating_sub(1)])?;
        let all = self.tree(&layers)?;
        Ok(compare(&below, &all))
    }

    /// Every path of an image, to find out where others lead.
    pub(crate) fn paths(&self, image: &Image) -> Result<Paths> {
        Ok(Paths(self.tree(&self.manifest(&image.digest)?.layers)?))
    }

    fn tree(&self, layers: &[Descriptor]) -> Result<Tree> {
        let mut tree = Tree::new();
        for layer in layers {
            self.apply(&mut tree, &layer.digest)?;
        }
        Ok(tree)
    }

    fn apply(&self, tree: &mut Tree, layer: &Digest) -> Result<()> {
        let path = self.blob_path(layer);
        let fault = |f: Fault| f.of(&format!("layer {}", layer.short()), self.root());
        let mut raw = blob::open(&path, layer)?;
        let plain = codec::open(&mut raw, self.limits.bytes).map_err(fault)?;
        let mut reader = Reader::new(std::io::BufReader::with_capacity(blob::BUFFER, plain), self.limits);
        let mut new = Tree::new();
        while let Some(entry) = reader.next().map_err(fault)? {
            let parts = components(&entry.path).map_err(fault)?;
            let Some((name, folder)) = parts.split_last() else { continue };
            let at = parts.join(&b'/');
            if *name == b".wh..wh..opq" {
                hide(tree, &folder.join(&b'/'), false);
            } else if let Some(gone) = name.strip_prefix(b".wh.") {
                hide(tree, &[folder, &[gone]].concat().join(&b'/'), true);
            } else if entry.kind == Kind::Char && entry.device == (0, 0) {
                hide(tree, &at, true);
            } else {
                let node = node(&entry, &mut reader, &new, tree).map_err(fault)?;
                new.insert(at, node);
            }
        }
        reader.drain().map_err(fault)?;
        std::io::copy(&mut raw, &mut std::io::sink()).map_err(|e| Error::io("read", &path, e))?;
        let (actual, ..) = raw.digest();
        if actual != *layer {
            return Err(Error::Damaged { path, reason: format!("its content is {actual}") });
        }
        for (at, node) in new {
            // What replaces a folder with something else takes what was in it away.
            if node.kind != Kind::Dir && tree.get(&at).is_some_and(|n| n.kind == Kind::Dir) {
                hide(tree, &at, true);
            }
            tree.insert(at, node);
        }
        Ok(())
    }
}

/// The paths of an image.
pub(crate) struct Paths(Tree);

/// As many links in one path are a circle (`ELOOP`).
const LINKS: usize = 40;

impl Paths {
    /// Where a path leads, all links followed inside the image, and whether a folder is there; none for a circle. What is
    /// not there leads to itself. A link at the end that leads to no folder is what is meant.
    pub(crate) fn lead(&self, path: &[u8]) -> Option<(Vec<u8>, bool)> {
        let (folder, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(i) if i + 1 < path.len() => (&path[..i], &path[i + 1..]),
            Some(i) => return self.lead(&path[..i]),
            None => (&b""[..], path),
        };
        let whole = self.follow(path)?;
        if self.is_folder(&whole) {
            return Some((whole, true));
        }
        let folder = self.follow(folder)?;
        let at = if folder.is_empty() { name.to_vec() } else { [&folder, &b"/"[..], name].concat() };
        Some((at, false))
    }

    fn follow(&self, path: &[u8]) -> Option<Vec<u8>> {
        let split = |path: &[u8]| -> Vec<Vec<u8>> { path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect() };
        let (mut left, mut done, mut links) = (split(path), Vec::<Vec<u8>>::new(), 0);
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => {}
                b".." => drop(done.pop()),
                _ => {
                    done.push(part);
                    let Some(node) = self.0.get(&done.join(&b'/')).filter(|n| n.kind == Kind::Symlink) else {
                        continue;
                    };
                    links += 1;
                    if links > LINKS {
                        return None;
                    }
                    if node.link.starts_with(b"/") {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    left.extend(split(&node.link));
                }
            }
        }
        Some(done.join(&b'/'))
    }

    /// Whether the image has a folder there; some archives do not name those that files of theirs are in.
    pub(crate) fn is_folder(&self, path: &[u8]) -> bool {
        let inside = [path, b"/"].concat();
        path.is_empty()
            || self.0.get(path).is_some_and(|node| node.kind == Kind::Dir)
            || self.0.range(inside.clone()..).next().is_some_and(|(at, _)| at.starts_with(&inside))
    }

    /// Whether something else than a folder is there.
    pub(crate) fn is_file(&self, path: &[u8]) -> bool {
        self.0.contains_key(path) && !self.is_folder(path)
    }
}

fn node<R: std::io::Read>(
    entry: &Entry,
    reader: &mut Reader<R>,
    new: &Tree,
    below: &Tree,
) -> std::result::Result<Node, Fault> {
    if entry.kind == Kind::Hardlink {
        let target = components(&entry.link)?.join(&b'/');
        return new
            .get(&target)
            .or_else(|| below.get(&target))
            .cloned()
            .ok_or_else(|| Fault::bad(format!("hard link to `{}`, which is not there", entry.link.escape_ascii())));
    }
    let content = if entry.kind == Kind::File {
        let mut hash = Hashing::new(std::io::sink());
        // Holes are part of what is compared: the same bytes with other holes are another layout, not other content.
        copy_with_holes(entry, reader, &mut hash)?;
        Some(hash.digest().0)
    } else {
        None
    };
    let mut xattrs = entry.xattrs.clone();
    xattrs.sort();
    Ok(Node {
        kind: entry.kind,
        mode: entry.mode,
        owner: (entry.uid, entry.gid),
        link: if entry.kind == Kind::Symlink { entry.link.clone() } else { Vec::new() },
        content,
        device: entry.device,
        xattrs,
    })
}

/// The file as a program would read it, zeroes for its holes. A huge hole is hashed by its length.
fn copy_with_holes<R: std::io::Read, W: std::io::Write>(
    entry: &Entry,
    reader: &mut Reader<R>,
    out: &mut Hashing<W>,
) -> std::result::Result<(), Fault> {
    use std::io::{Read, Write as _};
    let mut data = reader.data();
    let Some(pieces) = &entry.sparse else {
        std::io::copy(&mut data, out)?;
        return Ok(());
    };
    const LARGEST_HOLE: u64 = 1 << 30;
    let mut at = 0;
    let hole = |out: &mut Hashing<W>, length: u64| -> std::io::Result<()> {
        if length > LARGEST_HOLE {
            return out.write_all(&length.to_le_bytes());
        }
        std::io::copy(&mut std::io::repeat(0).take(length), out).map(|_| ())
    };
    for (offset, length) in pieces {
        hole(out, offset.saturating_sub(at))?;
        std::io::copy(&mut Read::by_ref(&mut data).take(*length), out)?;
        at = offset.saturating_add(*length);
    }
    hole(out, entry.size.saturating_sub(at))?;
    Ok(())
}

/// Takes what is in a folder away, and perhaps the folder too.
fn hide(tree: &mut Tree, path: &[u8], itself: bool) {
    let inside = [path, b"/"].concat();
    let prefix: &[u8] = if path.is_empty() { b"" } else { &inside };
    let gone: Vec<Vec<u8>> =
        tree.range(prefix.to_vec()..).take_while(|(p, _)| p.starts_with(prefix)).map(|(p, _)| p.clone()).collect();
    for path in gone {
        tree.remove(&path);
    }
    if itself {
        tree.remove(path);
    }
}

fn compare(from: &Tree, to: &Tree) -> Vec<Change> {
    let mut changes = Vec::new();
    let text = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    for (path, old) in from {
        match to.get(path) {
            None => changes.push(Change { path: text(path), kind: ChangeKind::Deleted, what: Vec::new() }),
            Some(new) if new != old => {
                let differs = [
                    (new.kind != old.kind, "type"),
                    (new.content != old.content, "content"),
                    (new.link != old.link, "link"),
                    (new.mode != old.mode, "mode"),
                    (new.owner != old.owner, "owner"),
                    (new.device != old.device, "device"),
                    (new.xattrs != old.xattrs, "attributes"),
                ];
                let what = differs.iter().filter(|(differs, _)| *differs).map(|(_, what)| *what).collect();
                changes.push(Change { path: text(path), kind: ChangeKind::Changed, what });
            }
            Some(_) => {}
        }
    }
    for path in to.keys().filter(|path| !from.contains_key(*path)) {
        changes.push(Change { path: text(path), kind: ChangeKind::Added, what: Vec::new() });
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}
