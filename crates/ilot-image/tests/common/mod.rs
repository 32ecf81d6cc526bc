//! What the tests of this crate share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ilot_image::{Image, Progress, Result, Store};

/// Remembers what it was told.
#[derive(Default)]
pub struct Recorder {
    pub stages: Mutex<Vec<String>>,
    pub notes: Mutex<Vec<String>>,
    pub bytes: Mutex<u64>,
    pub cancel_after: Mutex<Option<u64>>,
}

impl Recorder {
    pub fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }

    pub fn stages(&self) -> String {
        self.stages.lock().unwrap().join("\n")
    }
}

impl Progress for Recorder {
    fn stage(&self, text: &str) {
        self.stages.lock().unwrap().push(text.to_owned());
    }

    fn bytes(&self, done: u64, _total: Option<u64>) {
        *self.bytes.lock().unwrap() = done;
    }

    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }

    fn finished(&self) {}

    fn cancelled(&self) -> bool {
        let done = *self.bytes.lock().unwrap();
        self.cancel_after.lock().unwrap().is_some_and(|limit| done >= limit)
    }
}

/// A store in a folder of its own, and room beside it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Obtains and unpacks a tar archive; the tree.
    pub fn unpack(&self, name: &str, archive: &[u8]) -> Result<(Image, PathBuf)> {
        let path = self.write(name, archive);
        self.unpack_reference(&format!("tar:{}", path.display()))
    }

    pub fn unpack_reference(&self, reference: &str) -> Result<(Image, PathBuf)> {
        let image = self.store.obtain(reference, &ilot_image::Silent)?;
        let mut lowers = self.store.materialize(&image, "test")?;
        assert_eq!(lowers.len(), 1);
        Ok((image, lowers.remove(0)))
    }

    /// Nothing of a call that ended is left in progress.
    pub fn assert_clean(&self) {
        assert_eq!(names(&self.store.root().join("images/.tmp")), Vec::<String>::new(), "left behind");
    }
}

/// The sorted names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test does nothing on this host.
pub fn skip(why: &str) {
    println!("SKIPPED: {why}");
}

/// Builds tar archives byte by byte, also such as no program writes.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry; `edit` may spoil its header before the checksum is made.
    pub fn raw(
        mut self,
        path: &[u8],
        kind: u8,
        link: &[u8],
        content: &[u8],
        edit: impl FnOnce(&mut [u8; 512]),
    ) -> Self {
        let mut header = [0u8; 512];
        let length = path.len().min(100);
        header[..length].copy_from_slice(&path[..length]);
        let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
        header[100..108].copy_from_slice(mode);
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[156] = kind;
        let length = link.len().min(100);
        header[157..157 + length].copy_from_slice(&link[..length]);
        header[257..265].copy_from_slice(b"ustar\x0000");
        edit(&mut header);
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        let fill = content.len().wrapping_neg() % 512;
        self.0.extend(std::iter::repeat_n(0, fill));
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.raw(path.as_bytes(), b'0', b"", content.as_bytes(), |_| {})
    }

    pub fn folder(self, path: &str) -> Self {
        self.raw(path.as_bytes(), b'5', b"", b"", |_| {})
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'2', target.as_bytes(), b"", |_| {})
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'1', target.as_bytes(), b"", |_| {})
    }

    pub fn device(self, path: &str, kind: u8, major: u32, minor: u32) -> Self {
        self.raw(path.as_bytes(), kind, b"", b"", |h| {
            h[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
            h[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        })
    }

    pub fn mode(self, path: &str, kind: u8, mode: u32, uid: u32, gid: u32, content: &str) -> Self {
        self.raw(path.as_bytes(), kind, b"", content.as_bytes(), |h| {
            h[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
            h[108..116].copy_from_slice(format!("{uid:07o}\0").as_bytes());
            h[116..124].copy_from_slice(format!("{gid:07o}\0").as_bytes());
        })
    }

    /// A PAX header for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body = pax_body(records);
        self.raw(b"PaxHeader", b'x', b"", &body, |_| {})
    }

    /// GNU's long name (`L`) or long link (`K`) for the entry that follows.
    pub fn long(self, kind: u8, text: &[u8]) -> Self {
        let body = [text, b"\0"].concat();
        self.raw(b"././@LongLink", kind, b"", &body, |_| {})
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn pax_body(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    body
}
