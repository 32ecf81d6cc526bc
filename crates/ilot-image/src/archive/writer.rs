//! Packs a folder, the same tree always into the same bytes: entries sorted, PAX where ustar is too narrow.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use tar::{EntryType, Header};

use super::pax::Records;
use crate::error::{Error, Result};

/// Files below this are never worth a map of their holes.
const SPARSE_FROM: u64 = 64 << 10;

/// Whom files belong to that belong to nobody of a machine.
const NOBODY: u32 = 65534;

/// What is written about one entry.
#[derive(Debug, Clone)]
pub(crate) struct Meta<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
    pub(crate) extra: Records,
}

impl<'a> Meta<'a> {
    /// Root's, of 1970.
    pub(crate) fn new(path: &'a [u8], kind: EntryType, mode: u32) -> Self {
        Self {
            path,
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            link: b"",
            device: (0, 0),
            extra: Records::default(),
        }
    }
}

/// Writes a header, with a PAX header before it where that is needed.
pub(crate) fn header(out: &mut impl Write, meta: &Meta<'_>) -> io::Result<()> {
    let mut pax = meta.extra.clone();
    let mut head = Header::new_ustar();
    head.set_entry_type(meta.kind);
    head.set_mode(meta.mode);
    narrow(meta.uid, &mut pax, "uid", |v| head.set_uid(v));
    narrow(meta.gid, &mut pax, "gid", |v| head.set_gid(v));
    if meta.size >= 1 << 33 {
        pax.push("size", meta.size.to_string().as_bytes());
        head.set_size(0);
    } else {
        head.set_size(meta.size);
    }
    head.set_mtime(u64::try_from(meta.mtime.0.clamp(0, (1 << 33) - 1)).unwrap_or(0));
    match meta.mtime {
        (0..=0x1_ffff_ffff, 0) => {}
        (s, n) if s >= 0 => pax.push("mtime", format!("{s}.{n:09}").as_bytes()),
        (s, 0) => pax.push("mtime", s.to_string().as_bytes()),
        (s, n) => pax.push("mtime", format!("-{}.{:09}", -s - 1, 1_000_000_000 - n).as_bytes()),
    }
    field(&mut head.as_mut_bytes()[..100], meta.path, "path", &mut pax);
    field(&mut head.as_mut_bytes()[157..257], meta.link, "linkpath", &mut pax);
    head.set_device_major(meta.device.0)?;
    head.set_device_minor(meta.device.1)?;
    if !pax.is_empty() {
        let body = pax.encode();
        let mut before = Header::new_ustar();
        before.set_entry_type(EntryType::XHeader);
        before.set_mode(0o644);
        before.set_uid(0);
        before.set_gid(0);
        before.set_mtime(0);
        before.set_size(body.len() as u64);
        before.as_mut_bytes()[..9].copy_from_slice(b"PaxHeader");
        before.set_cksum();
        out.write_all(before.as_bytes())?;
        out.write_all(&body)?;
        pad(out, body.len() as u64)?;
    }
    head.set_cksum();
    out.write_all(head.as_bytes())
}

/// Fills the last block of an entry's data.
pub(crate) fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let fill = usize::try_from(size.wrapping_neg() % 512).unwrap_or(0);
    out.write_all(&[0; 512][..fill])
}

/// The two blocks that end an archive.
pub(crate) fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 1024])
}

fn narrow(value: u64, pax: &mut Records, key: &str, mut set: impl FnMut(u64)) {
    if value < 1 << 21 {
        set(value);
    } else {
        pax.push(key, value.to_string().as_bytes());
        set(0);
    }
}

fn field(slot: &mut [u8], value: &[u8], key: &str, pax: &mut Records) {
    let length = value.len().min(slot.len());
    slot[..length].copy_from_slice(&value[..length]);
    if value.len() > slot.len() {
        pax.push(key, value);
    }
}

/// What was left out of a packed folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    /// Sockets: they mean nothing without their process.
    pub(crate) sockets: u64,
    /// What lies on another file system (`/proc` of a running tree).
    pub(crate) mounts: u64,
}

/// Packs a folder with all that is in it, on its own file system.
pub(crate) fn pack(root: &Path, out: &mut impl Write) -> Result<Skipped> {
    let meta = fs::metadata(root).map_err(|e| Error::io("read", root, e))?;
    let mut packer =
        Packer { out, device: meta.dev(), links: HashMap::new(), skipped: Skipped::default(), overlay: None };
    packer.entry(root, b"./", &meta)?;
    packer.folder(root, b"")?;
    finish(packer.out).map_err(|e| Error::io("pack", root, e))?;
    Ok(packer.skipped)
}

/// How the writable folder of an overlay becomes a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The host's number of the owner 0, and how many there are.
    pub(crate) ids: (u32, u32),
    /// Paths that stay out.
    pub(crate) left_out: &'a [&'a str],
    /// Files that are written without their content.
    pub(crate) emptied: &'a [&'a str],
    /// The latest time that an entry may have, in seconds since 1970: what is newer is written as this.
    pub(crate) newest: Option<i64>,
}

/// Packs what an overlay's writable folder has over the layers below: whiteouts as layers have them, owners as the
/// machine sees them.
pub(crate) fn pack_overlay(upper: &Path, overlay: Overlay<'_>, out: &mut impl Write) -> Result<Skipped> {
    let meta = fs::metadata(upper).map_err(|e| Error::io("read", upper, e))?;
    let overlay = Some(overlay);
    let mut packer = Packer { out, device: meta.dev(), links: HashMap::new(), skipped: Skipped::default(), overlay };
    packer.entry(upper, b"./", &meta)?;
    packer.folder(upper, b"")?;
    finish(packer.out).map_err(|e| Error::io("pack", upper, e))?;
    Ok(packer.skipped)
}

struct Packer<'a, W> {
    out: &'a mut W,
    device: u64,
    /// The first name of each file that has several.
    links: HashMap<u64, Vec<u8>>,
    skipped: Skipped,
    overlay: Option<Overlay<'a>>,
}

impl<W: Write> Packer<'_, W> {
    fn folder(&mut self, real: &Path, inside: &[u8]) -> Result<()> {
        let mut names: Vec<OsString> = fs::read_dir(real)
            .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect())
            .map_err(|e| Error::io("read folder", real, e))?;
        names.sort_unstable();
        for name in names {
            let real = real.join(&name);
            let mut path = [inside, name.as_bytes()].concat();
            let meta = fs::symlink_metadata(&real).map_err(|e| Error::io("read", &real, e))?;
            let is_mount = meta.dev() != self.device;
            if is_mount && !meta.is_dir() {
                self.skipped.mounts += 1;
                continue;
            }
            if self.is_left_out(&path) {
                continue;
            }
            if self.overlay.is_some() && meta.file_type().is_char_device() && meta.rdev() == 0 {
                let hidden = [inside, b".wh.", name.as_bytes()].concat();
                self.mark(&real, &hidden)?;
                continue;
            }
            if self.overlay.is_some() && name.as_bytes().starts_with(b".wh.") {
                let why = "a layer cannot have a file whose name begins with `.wh.`: it would hide another one";
                return Err(Error::io("pack", &real, io::Error::other(why)));
            }
            if meta.is_dir() {
                path.push(b'/');
            }
            self.entry(&real, &path, &meta)?;
            if self.overlay.is_some() && meta.is_dir() && is_opaque(&real)? {
                self.mark(&real, &[&path[..], b".wh..wh..opq"].concat())?;
            }
            if is_mount {
                self.skipped.mounts += 1;
            } else if meta.is_dir() {
                self.folder(&real, &path)?;
            }
        }
        Ok(())
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        self.overlay.is_some_and(|overlay| overlay.left_out.iter().any(|out| out.as_bytes() == path))
    }

    /// An empty file whose name says what the layers below no longer show.
    fn mark(&mut self, real: &Path, path: &[u8]) -> Result<()> {
        header(self.out, &Meta::new(path, EntryType::Regular, 0o600)).map_err(|e| Error::io("pack", real, e))
    }

    fn entry(&mut self, real: &Path, path: &[u8], meta: &fs::Metadata) -> Result<()> {
        let kind = meta.file_type();
        let mut entry = Meta::new(path, EntryType::Regular, meta.mode() & 0o7777);
        let ids = self.overlay.map(|overlay| overlay.ids);
        (entry.uid, entry.gid) = (inside_id(meta.uid(), ids).into(), inside_id(meta.gid(), ids).into());
        entry.mtime = (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0));
        if let Some(newest) = self.overlay.and_then(|overlay| overlay.newest) {
            entry.mtime = entry.mtime.min((newest, 0));
        }
        let failed = |e: io::Error| Error::io("pack", real, e);
        let target;
        if kind.is_dir() {
            entry.kind = EntryType::Directory;
        } else if kind.is_symlink() {
            target = fs::read_link(real).map_err(|e| Error::io("read link", real, e))?.into_os_string().into_vec();
            entry.kind = EntryType::Symlink;
            entry.link = &target;
        } else if meta.nlink() > 1 && self.links.contains_key(&meta.ino()) {
            target = self.links[&meta.ino()].clone();
            entry.kind = EntryType::Link;
            entry.link = &target;
            return header(self.out, &entry).map_err(failed);
        } else if kind.is_file() {
            entry.size = meta.len();
        } else if kind.is_fifo() {
            entry.kind = EntryType::Fifo;
        } else if kind.is_socket() {
            self.skipped.sockets += 1;
            return Ok(());
        } else {
            entry.kind = if kind.is_char_device() { EntryType::Char } else { EntryType::Block };
            entry.device = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        }
        if meta.nlink() > 1 && !kind.is_dir() {
            self.links.insert(meta.ino(), path.to_vec());
        }
        if !kind.is_symlink() {
            entry.extra = xattrs(real, ids).map_err(|e| Error::io("read attributes of", real, e))?;
        }
        if self.overlay.is_some_and(|o| kind.is_file() && o.emptied.iter().any(|e| e.as_bytes() == path)) {
            entry.size = 0;
            return header(self.out, &entry).map_err(failed);
        }
        if self.overlay.is_some() && kind.is_file() {
            refuse(real, "trusted.overlay.metacopy", "the kernel copied its attributes alone (overlay `metacopy`)")?;
        }
        if kind.is_file() { self.file(real, entry, meta) } else { header(self.out, &entry).map_err(failed) }
    }

    fn file(&mut self, real: &Path, mut entry: Meta<'_>, meta: &fs::Metadata) -> Result<()> {
        let failed = |e: io::Error| Error::io("pack", real, e);
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NOATIME)
            .open(real)
            .map_err(|e| Error::io("open", real, e))?;
        let size = meta.len();
        if size < SPARSE_FROM || meta.blocks() * 512 >= size {
            header(self.out, &entry).map_err(failed)?;
            copy_exactly(&mut file, self.out, size).map_err(failed)?;
            return pad(self.out, size).map_err(failed);
        }
        let pieces = pieces(&mut file, size).map_err(failed)?;
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &pieces {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        entry.extra.push("GNU.sparse.major", b"1");
        entry.extra.push("GNU.sparse.minor", b"0");
        entry.extra.push("GNU.sparse.name", entry.path);
        entry.extra.push("GNU.sparse.realsize", size.to_string().as_bytes());
        entry.size = map.len() as u64 + pieces.iter().map(|p| p.1).sum::<u64>();
        header(self.out, &entry).map_err(failed)?;
        self.out.write_all(&map).map_err(failed)?;
        for (offset, length) in pieces {
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            copy_exactly(&mut file, self.out, length).map_err(failed)?;
        }
        pad(self.out, entry.size).map_err(failed)
    }
}

/// Copies what the header promised, even when the file shrinks meanwhile.
fn copy_exactly(file: &mut File, out: &mut impl Write, size: u64) -> io::Result<()> {
    let copied = io::copy(&mut file.take(size), out)?;
    io::copy(&mut io::repeat(0).take(size - copied), out)?;
    Ok(())
}

/// Where a file has data.
fn pieces(file: &mut File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data behind this point.
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(start))?.min(size);
        pieces.push((start, at - start));
    }
    // An empty piece at the end, as GNU tar has it: without it, it forgets the hole that a file ends with.
    if pieces.last().is_none_or(|(offset, length)| offset + length < size) {
        pieces.push((size, 0));
    }
    Ok(pieces)
}

/// The owner as the machine sees him; one who is not of its range is nobody.
fn inside_id(id: u32, ids: Option<(u32, u32)>) -> u32 {
    match ids {
        None => id,
        Some((first, count)) => match id.checked_sub(first) {
            Some(inside) if inside < count => inside,
            _ => NOBODY,
        },
    }
}

/// Whether a folder hides what the layers below have in it.
fn is_opaque(folder: &Path) -> Result<bool> {
    refuse(folder, "trusted.overlay.redirect", "the kernel renamed it without copying it (overlay `redirect_dir`)")?;
    let mut value = [0u8; 8];
    match rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(false),
        Err(e) => Err(Error::io("read attributes of", folder, e)),
    }
}

/// What overlayfs keeps elsewhere than in the entry itself cannot be told in a layer.
fn refuse(path: &Path, attribute: &str, why: &str) -> Result<()> {
    let mut value = [0u8; 4096];
    match rustix::fs::lgetxattr(path, attribute, &mut value) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
        Err(e) => Err(Error::io("read attributes of", path, e)),
        Ok(_) => Err(Error::io("pack", path, io::Error::other(why))),
    }
}

/// Numbers of users in attributes as the machine sees them: access lists (`<linux/posix_acl_xattr.h>`) and
/// capabilities of a namespace's root (`<linux/capability.h>`, version 3), which become those of a plain file.
fn translate(name: &[u8], value: &mut Vec<u8>, ids: (u32, u32)) {
    if name.starts_with(b"system.posix_acl_") {
        for entry in value.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
            // ACL_USER and ACL_GROUP have an id.
            if let ([2 | 8, 0], Ok(id)) = ([entry[0], entry[1]], <[u8; 4]>::try_from(&entry[4..])) {
                entry[4..].copy_from_slice(&inside_id(u32::from_le_bytes(id), Some(ids)).to_le_bytes());
            }
        }
    }
    if name == b"security.capability" && value.len() == 24 && value[3] == 3 {
        value.truncate(20);
        value[3] = 2;
    }
}

fn xattrs(path: &Path, ids: Option<(u32, u32)>) -> io::Result<Records> {
    let mut records = Records::default();
    let mut names = vec![0u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(records),
        Err(e) => return Err(e.into()),
    };
    let mut names: Vec<&[u8]> = names[..length].split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    let mut value = vec![0u8; 64 << 10];
    for name in names {
        // As on the way in: labels of the host's security module mean nothing elsewhere.
        let keep =
            name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability";
        if !keep {
            continue;
        }
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        let mut own = value[..length].to_vec();
        if let Some(ids) = ids {
            translate(name, &mut own, ids);
        }
        records.push(&format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), &own);
    }
    Ok(records)
}
