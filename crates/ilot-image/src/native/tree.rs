//! The tree that an archive makes, in memory: paths are resolved as the kernel would with the tree's root as `/`.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};

use rustix::io::Errno;

use super::{BLOCK, Sink};
use crate::archive::reader::{Entry, Kind, Reader};
use crate::archive::unpack::{Unpacked, owner_of, through, wanted_xattr};
use crate::archive::{Fault, Limits, Names, components};

/// Links on one path, as in Linux (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Bytes of a name.
const NAME_MAX: usize = 255;
/// Pieces that a file with holes is described by; a larger one gets larger pieces.
const CHUNKS: u64 = 1 << 18;
/// Zeroes that may be written for the sake of pieces of one size.
const FILL: u64 = 1 << 30;
/// Bytes of all attributes of one entry, EROFS' own limit less its header.
const XATTRS: usize = 200 << 10;

pub(super) type Id = u32;

/// What a node is.
#[derive(Debug)]
pub(super) enum Body {
    Dir { entries: BTreeMap<Vec<u8>, Id>, opaque: bool },
    File { size: u64, data: Data },
    Symlink(Vec<u8>),
    Fifo,
    Whiteout,
}

/// Where a file's data is.
#[derive(Debug)]
pub(super) enum Data {
    /// One block after the other from here.
    Flat(u32),
    /// Pieces of `4096 << bits` bytes; none is a hole.
    Chunks { bits: u8, blocks: Vec<Option<u32>> },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) body: Body,
    /// Of a folder: the one that it is in.
    pub(super) parent: Id,
}

impl Node {
    fn new(body: Body, parent: Id) -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new(), body, parent }
    }

    fn folder(parent: Id, opaque: bool) -> Self {
        Self::new(Body::Dir { entries: BTreeMap::new(), opaque }, parent)
    }
}

pub(super) struct Tree {
    pub(super) nodes: Vec<Node>,
    /// Devices that were not made, by path: hard links to them are not either.
    skipped: HashSet<Vec<u8>>,
    names: Names,
    limits: Limits,
    pub(super) done: Unpacked,
    buffer: Vec<u8>,
}

pub(super) const ROOT: Id = 0;

impl Tree {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            nodes: vec![Node::folder(ROOT, false)],
            skipped: HashSet::new(),
            names: Names::default(),
            limits,
            done: Unpacked::default(),
            buffer: vec![0; 128 << 10],
        }
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub(super) fn entry(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<impl Read>,
        sink: &mut Sink,
    ) -> Result<(), Fault> {
        let parts = components(&entry.path)?;
        self.done.entries += 1;
        let Some((&name, folders)) = parts.split_last() else {
            return match entry.kind {
                Kind::Dir => self.dress(ROOT, entry),
                _ => Err(Fault::bad("the root itself is not a folder")),
            };
        };
        let parent = match self.folder(ROOT, folders) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(folders)?,
            other => other.map_err(|e| through(&folders.join(&b'/'), e))?,
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(entry, parent, name, hidden);
        }
        let path = || parts.join(&b'/');
        match entry.kind {
            Kind::Dir => {
                let id = match self.child(parent, name) {
                    Some(id) if matches!(self.node(id).body, Body::Dir { .. }) => id,
                    Some(id) => {
                        let opaque = matches!(self.node(id).body, Body::Whiteout);
                        self.put(entry, parent, name, Node::folder(parent, opaque))?
                    }
                    None => self.put(entry, parent, name, Node::folder(parent, false))?,
                };
                self.dress(id, entry)
            }
            Kind::File => {
                check_name(entry, name)?;
                let body = self.file(entry, reader, sink)?;
                let id = self.put(entry, parent, name, Node::new(body, parent))?;
                self.dress(id, entry)
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(fault(
                        entry,
                        "symlink",
                        if entry.link.is_empty() { Errno::NOENT } else { Errno::INVAL },
                    ));
                }
                self.names.add(&entry.link, self.limits)?;
                let id = self.put(entry, parent, name, Node::new(Body::Symlink(entry.link.clone()), parent))?;
                self.dress(id, entry)?;
                self.node_mut(id).mode = 0o777;
                Ok(())
            }
            Kind::Fifo => {
                let id = self.put(entry, parent, name, Node::new(Body::Fifo, parent))?;
                self.dress(id, entry)
            }
            Kind::Hardlink => self.hard_link(entry, parent, name, path()),
            Kind::Char if entry.device == (0, 0) => self.hide(entry, parent, name),
            Kind::Char | Kind::Block => {
                self.done.devices += 1;
                self.names.add(&entry.path, self.limits)?;
                self.skipped.insert(path());
                Ok(())
            }
        }
    }

    fn child(&self, folder: Id, name: &[u8]) -> Option<Id> {
        match &self.node(folder).body {
            Body::Dir { entries, .. } => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Puts a node under a name; what was there is forgotten.
    fn put(&mut self, entry: &Entry, folder: Id, name: &[u8], node: Node) -> Result<Id, Fault> {
        let id = Id::try_from(self.nodes.len()).map_err(|_| Fault::bad("too many entries"))?;
        self.nodes.push(node);
        self.link(entry, folder, name, id)?;
        Ok(id)
    }

    fn link(&mut self, entry: &Entry, folder: Id, name: &[u8], id: Id) -> Result<(), Fault> {
        check_name(entry, name)?;
        self.names.add(name, self.limits)?;
        if let Body::Dir { entries, .. } = &mut self.node_mut(folder).body {
            entries.insert(name.to_vec(), id);
        }
        Ok(())
    }

    /// The folder that a path leads to, all links followed.
    fn folder(&self, from: Id, parts: &[&[u8]]) -> Result<Id, Errno> {
        let mut left: Vec<&[u8]> = parts.iter().rev().copied().collect();
        let (mut at, mut links) = (from, 0);
        while let Some(part) = left.pop() {
            match part {
                b"" | b"." => continue,
                b".." => {
                    at = self.node(at).parent;
                    continue;
                }
                part if part.len() > NAME_MAX => return Err(Errno::NAMETOOLONG),
                _ => {}
            }
            let id = self.child(at, part).ok_or(Errno::NOENT)?;
            match &self.node(id).body {
                Body::Dir { .. } => at = id,
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    left.extend(target.split(|&b| b == b'/').rev());
                }
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(at)
    }

    fn make_parents(&mut self, parts: &[&[u8]]) -> Result<Id, Fault> {
        let mut at = ROOT;
        for (i, part) in parts.iter().enumerate() {
            let failed = |e: Errno| through(&parts[..=i].join(&b'/'), e);
            if part.len() > NAME_MAX {
                return Err(failed(Errno::NAMETOOLONG));
            }
            let there = self.child(at, part);
            let is_whiteout = there.is_some_and(|id| matches!(self.node(id).body, Body::Whiteout));
            at = match there {
                Some(id) if !is_whiteout && matches!(self.node(id).body, Body::Dir { .. }) => id,
                // From the root: a link on the way is followed as the machine would follow it.
                Some(_) if !is_whiteout => self.folder(ROOT, &parts[..=i]).map_err(failed)?,
                _ => {
                    let id = Id::try_from(self.nodes.len()).map_err(|_| Fault::bad("too many entries"))?;
                    self.nodes.push(Node::folder(at, is_whiteout));
                    self.names.add(part, self.limits)?;
                    if let Body::Dir { entries, .. } = &mut self.node_mut(at).body {
                        entries.insert(part.to_vec(), id);
                    }
                    id
                }
            };
        }
        Ok(at)
    }

    /// Owner, mode, time and attributes of an entry.
    fn dress(&mut self, id: Id, entry: &Entry) -> Result<(), Fault> {
        let (uid, gid) = owner_of(entry, &mut self.done);
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        if matches!(self.node(id).body, Body::Dir { .. } | Body::File { .. }) {
            let is_dir = matches!(self.node(id).body, Body::Dir { .. });
            let mut total = 0;
            for (name, value) in &entry.xattrs {
                if wanted_xattr(name) && is_valid(name, value, is_dir) {
                    total += name.len() + value.len() + 8;
                    self.names.add(value, self.limits)?;
                    xattrs.push((name.clone(), value.clone()));
                } else {
                    self.done.xattrs += 1;
                }
            }
            if total > XATTRS {
                let path = entry.path.escape_ascii();
                return Err(Fault::bad(format!(
                    "`{path}`: {total} bytes of attributes, more than the native format keeps"
                )));
            }
        }
        let node = self.node_mut(id);
        (node.uid, node.gid, node.mtime) = (uid, gid, entry.mtime);
        node.mode = u16::try_from(entry.mode & 0o7777).unwrap_or(0);
        // A second entry of a folder adds to the first one's attributes, as setting them would.
        node.xattrs.retain(|(name, _)| !xattrs.iter().any(|(n, _)| n == name));
        node.xattrs.append(&mut xattrs);
        Ok(())
    }

    fn file(&mut self, entry: &Entry, reader: &mut Reader<impl Read>, sink: &mut Sink) -> Result<Body, Fault> {
        let failed =
            |e: io::Error| Fault::Write { operation: "write", entry: entry.path.escape_ascii().to_string(), source: e };
        let Some(pieces) = &entry.sparse else {
            let block = sink.next_block()?;
            loop {
                let n = reader.data().read(&mut self.buffer)?;
                if n == 0 {
                    break;
                }
                sink.write(&self.buffer[..n]).map_err(failed)?;
                self.done.bytes += n as u64;
            }
            sink.pad().map_err(failed)?;
            return Ok(Body::File { size: entry.size, data: Data::Flat(block) });
        };
        let mut bits = 0u8;
        while entry.size >> (12 + bits) >= CHUNKS {
            bits += 1;
        }
        // More bits than the format has.
        if bits > 31 {
            return Err(fault(entry, "set its size", Errno::FBIG));
        }
        let chunk = BLOCK << bits;
        self.names.add_bytes(8 * entry.size.div_ceil(chunk), self.limits)?;
        let mut blocks = vec![None; usize::try_from(entry.size.div_ceil(chunk)).unwrap_or(0)];
        // Where the data goes on in the file, and up to where its pieces are written.
        let (mut end, mut filled) = (0u64, 0u64);
        let pieces: Vec<(u64, u64)> = pieces.iter().copied().filter(|(_, length)| *length > 0).collect();
        for (i, &(offset, length)) in pieces.iter().enumerate() {
            if offset / chunk * chunk >= end {
                sink.pad().map_err(failed)?;
                end = offset / chunk * chunk;
            }
            // Zeroes between what is written and this piece belong to the same pieces of the file.
            let gap = offset - end;
            filled += gap;
            if filled > FILL {
                return Err(fault(entry, "lay out its holes", Errno::FBIG));
            }
            for (at, size, is_data) in [(end, gap, false), (offset, length, true)] {
                self.span(at, size, is_data, chunk, reader, sink, &mut blocks).map_err(|e| match e {
                    Fault::Write { source, .. } => failed(source),
                    other => other,
                })?;
            }
            end = offset + length;
            // To the end of the piece, or of the file.
            let tail = (end.next_multiple_of(chunk).min(entry.size)) - end;
            let next = pieces.get(i + 1).map_or(u64::MAX, |(next, _)| next / chunk * chunk);
            if next >= end.next_multiple_of(chunk) {
                filled += tail;
                if filled > FILL {
                    return Err(fault(entry, "lay out its holes", Errno::FBIG));
                }
                sink.zeroes(tail).map_err(failed)?;
                sink.pad().map_err(failed)?;
                end = end.next_multiple_of(chunk);
            }
        }
        sink.pad().map_err(failed)?;
        Ok(Body::File { size: entry.size, data: Data::Chunks { bits, blocks } })
    }

    /// Writes a stretch of a file with holes, and notes where each of its pieces begins.
    #[expect(clippy::too_many_arguments, reason = "one step of a loop over both archive and image")]
    fn span(
        &mut self,
        mut at: u64,
        mut size: u64,
        is_data: bool,
        chunk: u64,
        reader: &mut Reader<impl Read>,
        sink: &mut Sink,
        blocks: &mut [Option<u32>],
    ) -> Result<(), Fault> {
        let failed = |e: io::Error| Fault::Write { operation: "write", entry: String::new(), source: e };
        while size > 0 {
            if at.is_multiple_of(chunk) {
                let block = sink.next_block()?;
                let index = usize::try_from(at / chunk).unwrap_or(usize::MAX);
                if let Some(slot) = blocks.get_mut(index) {
                    *slot = Some(block);
                }
            }
            let now = size.min(chunk - at % chunk);
            if is_data {
                let mut left = now;
                while left > 0 {
                    let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let n = reader.data().read(&mut self.buffer[..most])?;
                    if n == 0 {
                        return Err(Fault::Read(io::ErrorKind::UnexpectedEof.into()));
                    }
                    sink.write(&self.buffer[..n]).map_err(failed)?;
                    self.done.bytes += n as u64;
                    left -= n as u64;
                }
            } else {
                sink.zeroes(now).map_err(failed)?;
            }
            at += now;
            size -= now;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, folder: Id, name: &[u8], own: Vec<u8>) -> Result<(), Fault> {
        let parts = components(&entry.link)?;
        let target = parts.join(&b'/');
        let Some((&last, folders)) = parts.split_last() else {
            return Err(fault(entry, "hard link to the root", Errno::PERM));
        };
        if target == own {
            return Ok(());
        }
        if self.skipped.contains(&target) {
            self.skipped.insert(own);
            return Ok(());
        }
        let missing = || {
            Fault::bad(format!(
                "`{}`: hard link to `{}`, which the archive did not bring before it",
                entry.path.escape_ascii(),
                entry.link.escape_ascii()
            ))
        };
        let from = match self.folder(ROOT, folders) {
            Ok(id) => id,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(e) => return Err(through(&target, e)),
        };
        let id = self.child(from, last).ok_or_else(missing)?;
        if matches!(self.node(id).body, Body::Dir { .. }) {
            return Err(fault(entry, "hard link", Errno::PERM));
        }
        self.link(entry, folder, name, id)
    }

    fn whiteout(&mut self, entry: &Entry, folder: Id, name: &[u8], hidden: &[u8]) -> Result<(), Fault> {
        if name == b".wh..wh..opq" {
            self.make_opaque(folder);
            return Ok(());
        }
        // What else begins so is aufs' own bookkeeping.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::bad(format!("`{}`: a whiteout of no name", entry.path.escape_ascii())));
        }
        self.hide(entry, folder, hidden)
    }

    fn make_opaque(&mut self, folder: Id) {
        if let Body::Dir { opaque, .. } = &mut self.node_mut(folder).body {
            *opaque = true;
        }
    }

    /// A whiteout hides what is below, never what this layer brings.
    fn hide(&mut self, entry: &Entry, folder: Id, name: &[u8]) -> Result<(), Fault> {
        match self.child(folder, name) {
            Some(id) => self.make_opaque(id),
            None => {
                let mut node = Node::new(Body::Whiteout, folder);
                node.mode = 0;
                self.put(entry, folder, name, node)?;
            }
        }
        Ok(())
    }
}

fn fault(entry: &Entry, operation: &'static str, error: Errno) -> Fault {
    Fault::Write { operation, entry: entry.path.escape_ascii().to_string(), source: error.into() }
}

fn check_name(entry: &Entry, name: &[u8]) -> Result<(), Fault> {
    if name.len() > NAME_MAX { Err(fault(entry, "create", Errno::NAMETOOLONG)) } else { Ok(()) }
}

/// Whether the kernel would let an attribute be set: here it is not asked.
fn is_valid(name: &[u8], value: &[u8], is_dir: bool) -> bool {
    if name.len() > NAME_MAX || value.len() > 65535 || name.contains(&0) || name == b"user." {
        return false;
    }
    match name {
        b"system.posix_acl_access" | b"system.posix_acl_default" => {
            let entries = value.get(4..).unwrap_or_default();
            (is_dir || name.ends_with(b"access"))
                && value.starts_with(&[2, 0, 0, 0])
                && !entries.is_empty()
                && entries.len().is_multiple_of(8)
                && entries.chunks_exact(8).all(|e| matches!((e[0], e[1]), (1 | 2 | 4 | 8 | 16 | 32, 0)) && e[2] <= 7)
        }
        b"security.capability" => !is_dir && matches!((value.len(), value.get(3)), (20, Some(2)) | (24, Some(3))),
        _ => true,
    }
}
