//! The bytes of an EROFS image (Linux, `fs/erofs/erofs_fs.h`): uncompressed, extended inodes, attributes beside them.
//!
//! ```text
//! block 0      superblock, at byte 1024
//! then         data of files; contents of folders that are too large to stand beside their inode
//! then         inodes, each with its attributes, its small content or its map of pieces
//! ```

use super::tree::{Body, Data, Id, ROOT, Tree};
use super::{BLOCK, Sink};
use crate::archive::Fault;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Times of files are those of their content, as in a layer.
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// An extended inode; the data layout is above this bit.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
const INODE: u64 = 64;
/// Bytes of a slot that inodes are numbered by.
const SLOT: u64 = 32;
const DIRENT: usize = 12;
/// The end of a name within a block.
const BLOCK_SIZE: usize = 4096;

/// Where an inode is, and what stands beside it.
#[derive(Clone, Default)]
struct Place {
    /// From the start of the inodes; 0 is a node that nobody names.
    at: u64,
    links: u32,
    xattrs: Vec<u8>,
    /// Bytes of its content that stand behind it.
    inline: u64,
    /// Where its content is otherwise.
    block: u32,
}

/// Writes what describes the tree behind its data, and gives the first block.
pub(super) fn write(tree: &Tree, sink: &mut Sink) -> Result<[u8; BLOCK_SIZE], Fault> {
    let failed = |e: std::io::Error| Fault::Write { operation: "write", entry: "native layer".to_owned(), source: e };
    sink.pad().map_err(failed)?;
    let mut places = vec![Place::default(); tree.nodes.len()];
    let order = order(tree, &mut places);
    let mut next = SLOT;
    for &id in &order {
        next = place(tree, id, &mut places[id as usize], next);
    }
    for &id in &order {
        let content = match &tree.node(id).body {
            Body::Dir { .. } if places[id as usize].inline == 0 => dirents(tree, id, &places),
            Body::Symlink(target) if places[id as usize].inline == 0 => target.clone(),
            _ => continue,
        };
        places[id as usize].block = sink.next_block()?;
        sink.write(&content).map_err(failed)?;
        sink.pad().map_err(failed)?;
    }
    let start = sink.next_block()?;
    let mut at = 0;
    for (number, &id) in order.iter().enumerate() {
        let bytes = inode(tree, id, &places, number as u32 + 1);
        let place = &places[id as usize];
        sink.zeroes(place.at - at).map_err(failed)?;
        sink.write(&bytes).map_err(failed)?;
        at = place.at + bytes.len() as u64;
    }
    sink.pad().map_err(failed)?;
    let root = u16::try_from(places[ROOT as usize].at / SLOT).map_err(|_| Fault::bad("the root is too far"))?;
    Ok(superblock(root, order.len() as u64, sink.next_block()?, start))
}

fn superblock(root: u16, inodes: u64, blocks: u32, meta: u32) -> [u8; BLOCK_SIZE] {
    let mut block = [0; BLOCK_SIZE];
    let mut put = |at: usize, bytes: &[u8]| block[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[12]);
    put(14, &root.to_le_bytes());
    put(16, &inodes.to_le_bytes());
    put(36, &blocks.to_le_bytes());
    put(40, &meta.to_le_bytes());
    put(44, &meta.to_le_bytes());
    put(64, b"ilot");
    put(80, &INCOMPAT_CHUNKED_FILE.to_le_bytes());
    block
}

/// The nodes that have a name, the root first, and how many names each has.
fn order(tree: &Tree, places: &mut [Place]) -> Vec<Id> {
    let (mut order, mut left) = (Vec::new(), vec![ROOT]);
    places[ROOT as usize].links = 2;
    while let Some(id) = left.pop() {
        order.push(id);
        let Body::Dir { entries, .. } = &tree.node(id).body else { continue };
        for &child in entries.values() {
            let is_dir = matches!(tree.node(child).body, Body::Dir { .. });
            let place = &mut places[child as usize];
            place.links += 1 + u32::from(is_dir);
            // A file's first name brings it in.
            if place.links == 1 + u32::from(is_dir) {
                left.push(child);
            }
            if is_dir {
                places[id as usize].links += 1;
            }
        }
    }
    order
}

/// Gives an inode its place, the next that is free or begins a block; what stands beside it stays within one.
fn place(tree: &Tree, id: Id, place: &mut Place, next: u64) -> u64 {
    let node = tree.node(id);
    place.xattrs = xattrs(&node.xattrs, matches!(node.body, Body::Dir { opaque: true, .. }));
    let head = INODE + place.xattrs.len() as u64;
    let content = match &node.body {
        Body::Dir { .. } => dir_size(tree, id),
        Body::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    let mut at = next.next_multiple_of(SLOT);
    let fits = head % BLOCK + content <= BLOCK;
    if content > 0 && fits {
        place.inline = content;
        let first = at + head;
        if first / BLOCK != (first + content - 1) / BLOCK {
            // From the start of a block it does: its head is shorter than one, or ends where the content still fits.
            at = at.next_multiple_of(BLOCK);
        }
    }
    place.at = at;
    let map = match &node.body {
        Body::File { data: Data::Chunks { blocks, .. }, .. } => 4 * blocks.len() as u64,
        _ => 0,
    };
    at + head + place.inline + map
}

/// An inode with what stands beside it.
fn inode(tree: &Tree, id: Id, places: &[Place], number: u32) -> Vec<u8> {
    let (node, place) = (tree.node(id), &places[id as usize]);
    let mut out = vec![0; 64];
    let layout_of_content = if place.inline > 0 { FLAT_INLINE } else { FLAT_PLAIN };
    let (kind, layout, size, union) = match &node.body {
        Body::Dir { .. } => (libc::S_IFDIR, layout_of_content, dir_size(tree, id), place.block),
        Body::File { size, data: Data::Flat(block) } => (libc::S_IFREG, FLAT_PLAIN, *size, *block),
        Body::File { size, data: Data::Chunks { bits, .. } } => (libc::S_IFREG, CHUNK_BASED, *size, u32::from(*bits)),
        Body::Symlink(target) => (libc::S_IFLNK, layout_of_content, target.len() as u64, place.block),
        Body::Fifo => (libc::S_IFIFO, FLAT_PLAIN, 0, 0),
        Body::Whiteout => (libc::S_IFCHR, FLAT_PLAIN, 0, 0),
    };
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &(EXTENDED | layout << 1).to_le_bytes());
    // The header counts as one unit of four bytes, whatever its length (`erofs_xattr_ibody_size`).
    let units = match place.xattrs.len() {
        0 => 0,
        length => (length - 12) / 4 + 1,
    };
    put(2, &u16::try_from(units).unwrap_or(u16::MAX).to_le_bytes());
    put(4, &(u16::try_from(kind).unwrap_or(0) | node.mode).to_le_bytes());
    put(8, &size.to_le_bytes());
    put(16, &union.to_le_bytes());
    put(20, &number.to_le_bytes());
    put(24, &node.uid.to_le_bytes());
    put(28, &node.gid.to_le_bytes());
    put(32, &node.mtime.0.to_le_bytes());
    put(40, &node.mtime.1.to_le_bytes());
    put(44, &place.links.to_le_bytes());
    out.extend_from_slice(&place.xattrs);
    match &node.body {
        Body::Dir { .. } if place.inline > 0 => out.extend_from_slice(&dirents(tree, id, places)),
        Body::Symlink(target) if place.inline > 0 => out.extend_from_slice(target),
        Body::File { data: Data::Chunks { blocks, .. }, .. } => {
            out.extend(blocks.iter().flat_map(|block| block.unwrap_or(u32::MAX).to_le_bytes()));
        }
        _ => {}
    }
    out
}

/// Attributes as they stand behind an inode: `struct erofs_xattr_ibody_header` and its entries.
fn xattrs(all: &[(Vec<u8>, Vec<u8>)], opaque: bool) -> Vec<u8> {
    let marks: &[(&[u8], &[u8])] =
        if opaque { &[(b"trusted.overlay.opaque", b"y"), (b"user.overlay.opaque", b"y")] } else { &[] };
    let all: Vec<(&[u8], &[u8])> =
        all.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).chain(marks.iter().copied()).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; 12];
    for (name, value) in all {
        let (index, rest): (u8, &[u8]) = match name {
            b"system.posix_acl_access" => (2, b""),
            b"system.posix_acl_default" => (3, b""),
            name => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .into_iter()
                .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
                .unwrap_or((1, name)),
        };
        // Both lengths were checked when the entry was read.
        out.extend_from_slice(&[u8::try_from(rest.len()).unwrap_or(0), index]);
        out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Names of a folder in the order that the kernel searches them in, `.` and `..` among them.
fn names(tree: &Tree, id: Id) -> Vec<(&[u8], Id)> {
    let node = tree.node(id);
    let Body::Dir { entries, .. } = &node.body else { return Vec::new() };
    let mut all: Vec<(&[u8], Id)> = entries.iter().map(|(name, id)| (name.as_slice(), *id)).collect();
    all.extend([(&b"."[..], id), (b"..", node.parent)]);
    all.sort_unstable();
    all
}

/// How many names go into each block.
fn split<'a>(names: &'a [(&'a [u8], Id)]) -> impl Iterator<Item = &'a [(&'a [u8], Id)]> {
    let mut rest = names;
    std::iter::from_fn(move || {
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|(name, _)| {
                used += DIRENT + name.len();
                used <= BLOCK_SIZE
            })
            .count();
        let (block, after) = rest.split_at(count);
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}

fn used(block: &[(&[u8], Id)]) -> usize {
    block.iter().map(|(name, _)| DIRENT + name.len()).sum()
}

fn dir_size(tree: &Tree, id: Id) -> u64 {
    let names = names(tree, id);
    let (count, last) = split(&names).fold((0, 0), |(count, _), block| (count + 1, used(block)));
    (count - 1) * BLOCK + last as u64
}

/// A folder's content: in each block the entries (`struct erofs_dirent`), then their names.
fn dirents(tree: &Tree, id: Id, places: &[Place]) -> Vec<u8> {
    let names = names(tree, id);
    let mut out = Vec::new();
    for block in split(&names) {
        out.resize(out.len().next_multiple_of(BLOCK_SIZE), 0);
        let mut offset = DIRENT * block.len();
        for (name, child) in block {
            let kind: u8 = match tree.node(*child).body {
                Body::File { .. } => 1,
                Body::Dir { .. } => 2,
                Body::Whiteout => 3,
                Body::Fifo => 5,
                Body::Symlink(_) => 7,
            };
            out.extend_from_slice(&(places[*child as usize].at / SLOT).to_le_bytes());
            out.extend_from_slice(&u16::try_from(offset).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&[kind, 0]);
            offset += name.len();
        }
        block.iter().for_each(|(name, _)| out.extend_from_slice(name));
    }
    out
}
