//! Checkpoints by CRIU: its program is started as a worker (`criu swrk FD`) and spoken to by its RPC, no library needed.
//!
//! The worker runs in a mount namespace of its own, so that nothing that is mounted for it ever shows on the host, with
//! a file in memory as its error output. What CRIU has to say beyond its answers is in its log; see [`log`].

pub mod log;
pub mod mounts;
pub mod proto;
pub mod stdio;

use crate::process;
use crate::sys;
use crate::wire::{self, Tag};
use crate::{Error, Result};
use proto::{Message, Value};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    send, socketpair,
};
use std::ffi::CString;
use std::io::{IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Oldest version that is worked with: 3.11 knows namespaces that are not its own, and configuration files.
const OLDEST: (i32, i32) = (3, 11);
/// Restores `no_new_privs` by itself from this version on.
pub const KNOWS_NO_NEW_PRIVS: (i32, i32) = (3, 19);
/// Lets the network go again after it was held by nftables, whatever numbers processes get, from this version on.
pub const KNOWS_NFTABLES: (i32, i32) = (4, 1);
/// Where programs are looked for without a `PATH`.
const PLACES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The worker's socket, by CRIU's own command line.
const SOCKET: usize = 3;
/// The worker's folder of images.
pub const IMAGES: i64 = 4;
/// The worker's folder for logs and temporary files.
pub const WORK: i64 = 5;
/// Further descriptors begin here.
pub const FIRST: usize = 6;

/// Requests, `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Write a container down and end it.
    Dump = 1,
    /// Bring it back.
    Restore = 2,
    /// Write only its memory down, in advance.
    PreDump = 4,
    /// A question from the worker: go on?
    Notify = 6,
    /// What can CRIU and the kernel do?
    FeatureCheck = 9,
    /// Which version is this?
    Version = 10,
}

/// What a feature check says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Written pages can be told from others (pre-dump).
    pub mem_track: bool,
    /// Pages can be brought later.
    pub lazy_pages: bool,
}

/// An answer, `criu_resp`.
#[derive(Debug, Default)]
struct Answer {
    kind: i32,
    success: bool,
    script: Option<String>,
    pid: Option<i32>,
    errno: i32,
    message: String,
    features: Features,
    version: (i32, i32),
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        for (field, value) in proto::fields(bytes)? {
            let inner = || match value {
                Value::Bytes(bytes) => proto::fields(bytes),
                Value::Number(_) => None,
            };
            match field {
                1 => answer.kind = value.int()?,
                2 => answer.success = value.is_true(),
                4 => answer.pid = inner()?.iter().find(|(f, _)| *f == 1).and_then(|(_, v)| v.int()),
                5 => {
                    for (field, value) in inner()? {
                        match field {
                            1 => answer.script = Some(value.text()),
                            2 => answer.pid = value.int(),
                            _ => {}
                        }
                    }
                }
                7 => answer.errno = value.int()?,
                8 => {
                    let list = inner()?;
                    let has = |n: u32| list.iter().any(|(f, v)| *f == n && v.is_true());
                    answer.features = Features { mem_track: has(1), lazy_pages: has(2) };
                }
                9 => answer.message = value.text(),
                10 => {
                    let list = inner()?;
                    let part = |n: u32| list.iter().find(|(f, _)| *f == n).and_then(|(_, v)| v.int());
                    answer.version = (part(1)?, part(2)?);
                }
                _ => {}
            }
        }
        Some(answer)
    }
}

/// What the worker asks on its way.
pub struct Notice<'a> {
    /// Which moment, by CRIU's name (`post-restore`, …).
    pub script: &'a str,
    /// Process 1 of the container, where that is known.
    pub pid: Option<i32>,
    /// The master of an orphaned terminal.
    pub fd: Option<OwnedFd>,
}

/// What a worker gets.
pub struct Setup<'a> {
    /// The folders of images and of work.
    pub folders: [&'a Path; 2],
    /// Descriptors from [`FIRST`] on.
    pub fds: Vec<BorrowedFd<'a>>,
    /// Its standard input.
    pub input: Option<BorrowedFd<'a>>,
    /// A directory with the mode that the folder of images is to seem to have: in a user namespace the restored processes
    /// read images themselves, and the folder is for nobody but the host's root.
    pub cover: Option<&'a Path>,
}

impl<'a> Setup<'a> {
    /// Nothing but the folders.
    pub fn new(folders: [&'a Path; 2]) -> Self {
        Self { folders, fds: Vec::new(), input: None, cover: None }
    }
}

/// The program.
pub struct Criu {
    path: PathBuf,
    /// Its major and minor version.
    pub version: (i32, i32),
}

/// Finds a program, `criu` without a name: where it is named with a path, or in `PATH`.
pub fn find(named: Option<&str>) -> Option<PathBuf> {
    use rustix::fs::{Access, access};
    let name = named.unwrap_or("criu");
    let usable = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(usable);
    }
    let places = std::env::var_os("PATH").unwrap_or_else(|| PLACES.into());
    std::env::split_paths(&places).map(|dir| dir.join(name)).find(usable)
}

impl Criu {
    /// Finds CRIU and asks for its version.
    pub fn open(named: Option<&str>) -> Result<Self> {
        let path = find(named).ok_or_else(|| Error::Unsupported {
            what: format!("program `{}`", named.unwrap_or("criu")),
            why: "it is not installed, or not in PATH".to_owned(),
            cure: "install CRIU (package `criu`; for Linux 6.16 and newer its version 4.2), or name it: `--criu FILE`",
        })?;
        let mut criu = Self { path, version: OLDEST };
        criu.version = criu.ask(Kind::Version)?.version;
        let version = criu.version;
        if version < OLDEST {
            return Err(Error::Unsupported {
                what: format!("`{}`", criu.path.display()),
                why: format!("it is CRIU {}.{}", version.0, version.1),
                cure: "install CRIU 3.11 or newer (for Linux 6.16 and newer its version 4.2)",
            });
        }
        Ok(criu)
    }

    /// What CRIU and this kernel can do.
    pub fn features(&self) -> Result<Features> {
        Ok(self.ask(Kind::FeatureCheck)?.features)
    }

    /// A question that needs nothing but the program.
    fn ask(&self, kind: Kind) -> Result<Answer> {
        let worker = self.start(&Setup::new([Path::new("/"); 2]), || Ok(()))?;
        let mut request = Message::default();
        request.number(1, kind as i64);
        if kind == Kind::FeatureCheck {
            let mut wanted = Message::default();
            wanted.flag(1, true).flag(2, true);
            request.message(5, &wanted);
        }
        worker.send(&request)?;
        let answer = worker.receive()?.0;
        if answer.success { Ok(answer) } else { Err(worker.refused(&answer)) }
    }

    /// Starts a worker. `prepare` is done by the worker's process, in its own mount namespace, before it becomes CRIU.
    pub fn start(&self, setup: &Setup<'_>, prepare: impl FnOnce() -> Result<()>) -> Result<Worker> {
        let fail = |e: std::io::Error| Error::path("start program", &self.path, e);
        let said = rustix::fs::memfd_create("criu", MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(fail)?;
        let (told, tell) = UnixStream::pair().map_err(fail)?;
        // SAFETY: this program has one thread.
        let cloned = unsafe { sys::clone_process(libc::CLONE_NEWNS as u64, None) }.map_err(fail)?;
        let Some(child) = cloned else {
            drop(told);
            let become_criu = || -> Result<Error> {
                prepare()?;
                // CRIU opens the folders through the process that made the socket, and mounts in them: so both have to
                // be of this mount namespace.
                let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                    .map_err(|e| fail(e.into()))?;
                wire::send(&tell, Tag::Done, &[], &[ours.as_fd()]).map_err(fail)?;
                drop(ours);
                let work = open_folder(setup.folders[1], false)?;
                let images = open_images(setup.folders[0], setup.cover)?;
                let mut list = vec![setup.input.unwrap_or(null.as_fd()), said.as_fd(), said.as_fd(), theirs.as_fd()];
                list.extend([images.as_fd(), work.as_fd()]);
                list.extend(&setup.fds);
                Ok(self.execute(&list, &tell))
            };
            let error = become_criu().unwrap_or_else(|error| error);
            wire::send_error(&tell, &error);
            // SAFETY: ends this copy of the program.
            unsafe { libc::_exit(127) };
        };
        drop(tell);
        let ended = "the process for CRIU ended early";
        let socket = wire::expect(&told, Tag::Done, "criu", ended).map(|mut m| m.fds.pop());
        let socket = match socket {
            Ok(Some(socket)) => socket,
            other => {
                let _ = sys::waitpid(child.pid, 0);
                return Err(other.err().unwrap_or_else(|| fail(std::io::Error::from_raw_os_error(libc::EPROTO))));
            }
        };
        let worker = Worker { socket, pid: child.pid, said: said.into(), path: self.path.clone() };
        // Closes by itself when the program is executed.
        match wire::receive(&told).map_err(fail)? {
            None => Ok(worker),
            Some(message) => Err(wire::decode_error("criu", &message.body)),
        }
    }

    /// Becomes CRIU, with `fds` as descriptors 0, 1, 2, …; returns only on failure.
    fn execute(&self, fds: &[BorrowedFd<'_>], tell: &UnixStream) -> Error {
        let fail = |e: std::io::Error| Error::path("start program", &self.path, e);
        let base =
            1 + fds.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0).max(tell.as_raw_fd()).max(fds.len() as i32);
        let check = |n: i32| if n < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
        let arrange = || -> std::io::Result<()> {
            // All above the highest first: one could stand on a number that another is to take. Also that for errors.
            // SAFETY: numbers only; nothing that owns a descriptor below `base` is used after this but `tell`'s copy.
            unsafe {
                for (i, fd) in fds.iter().enumerate() {
                    check(libc::dup2(fd.as_raw_fd(), base + 1 + i as i32))?;
                }
                check(libc::dup3(tell.as_raw_fd(), base, libc::O_CLOEXEC))?;
                for i in 0..fds.len() as i32 {
                    check(libc::dup2(base + 1 + i, i))?;
                }
            }
            sys::close_from(fds.len() as i32, true)
        };
        if let Err(error) = arrange() {
            return fail(error);
        }
        process::default_signals();
        let text = |bytes: &[u8]| CString::new(bytes).unwrap_or_default();
        let args = [text(b"criu"), text(b"swrk"), text(SOCKET.to_string().as_bytes())];
        let env: Vec<CString> = std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                text(name.as_bytes())
            })
            .collect();
        let path = text(self.path.as_os_str().as_bytes());
        let error = fail(sys::execve(&path, &sys::pointers(&args), &sys::pointers(&env)));
        // `tell` itself may be gone by now.
        // SAFETY: the copy made above, owned by nobody else.
        let copy = unsafe { <UnixStream as std::os::fd::FromRawFd>::from_raw_fd(base) };
        wire::send_error(&copy, &error);
        error
    }
}

/// A running worker; it ends when its socket closes.
pub struct Worker {
    socket: OwnedFd,
    pid: i32,
    said: std::fs::File,
    path: PathBuf,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = sys::waitpid(self.pid, 0);
    }
}

impl Worker {
    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The control groups that the worker is in: controllers by commas (none: v2), and the path.
    pub fn cgroups(&self) -> Result<Vec<(String, String)>> {
        let path = format!("/proc/{}/cgroup", self.pid);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::path("read", Path::new(&path), e))?;
        let line = |line: &str| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            Some((controllers.to_owned(), path.to_owned()))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// Lets the worker do its work, answering what it asks on its way. Its own words are the error when it cannot.
    pub fn run(
        &self,
        kind: Kind,
        options: &Message,
        notice: &mut dyn FnMut(&mut Notice<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut request = Message::default();
        request.number(1, kind as i64).message(2, options);
        self.send(&request)?;
        let mut failed = None;
        loop {
            let (answer, fd) = match (self.receive(), failed.take()) {
                (Err(_), Some(own)) => return Err(own),
                (received, own) => {
                    failed = own;
                    received?
                }
            };
            if answer.success && answer.kind == Kind::Notify as i32 {
                let script = answer.script.as_deref().unwrap_or_default();
                let answered = notice(&mut Notice { script, pid: answer.pid, fd });
                let mut reply = Message::default();
                reply.number(1, Kind::Notify as i64).flag(3, answered.is_ok());
                failed = answered.err().or(failed);
                self.send(&reply)?;
                continue;
            }
            return match failed {
                Some(own) => Err(own),
                None if answer.success => Ok(()),
                None => Err(self.refused(&answer)),
            };
        }
    }

    fn send(&self, message: &Message) -> Result<()> {
        match send(&self.socket, message.as_bytes(), SendFlags::NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.lost()),
        }
    }

    fn receive(&self) -> Result<(Answer, Option<OwnedFd>)> {
        let mut buffer = vec![0u8; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(self.lost()),
                Ok(got) => break got.bytes,
            }
        };
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut list) => list.next(),
            _ => None,
        });
        // Nothing at all is how the other side's end looks here.
        match Answer::parse(&buffer[..got]).filter(|_| got > 0) {
            Some(answer) => Ok((answer, fd)),
            None => Err(self.lost()),
        }
    }

    /// The error of a worker that says no.
    fn refused(&self, answer: &Answer) -> Error {
        let why = match answer.message.trim() {
            "" if answer.errno != 0 => std::io::Error::from_raw_os_error(answer.errno).to_string(),
            "" => "it failed".to_owned(),
            said if log::is_harmless(said) => "it failed".to_owned(),
            said => log::plain(said),
        };
        self.error(&why)
    }

    /// The error of a worker that is gone, with its last words.
    fn lost(&self) -> Error {
        let mut text = String::new();
        let mut said = &self.said;
        if said.rewind().is_ok() {
            let _ = said.take(64 << 10).read_to_string(&mut text);
        }
        let why = log::first_error(&text).unwrap_or_else(|| "it ended without an answer".to_owned());
        self.error(&why)
    }

    fn error(&self, why: &str) -> Error {
        Error::invalid(format!("CRIU (`{}`)", self.path.display()), why)
    }
}

/// Opens the folder of images; with a cover as a mount that nobody else sees, whose top directory is the cover.
fn open_images(path: &Path, cover: Option<&Path>) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    let images = open_folder(path, false)?;
    let Some(cover) = cover else { return Ok(images) };
    let cover = open_folder(cover, false)?;
    let layers = format!("lowerdir=/proc/self/fd/{}:/proc/self/fd/{}", cover.as_raw_fd(), images.as_raw_fd());
    let options = crate::mounts::options::Options { data: vec![layers], ..Default::default() };
    let mount = crate::mounts::new_filesystem("overlay", Some("criu"), &options)?;
    openat(&mount, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::path("open directory", path, e))
}

/// Opens a folder that CRIU is to write to, made if it is missing.
pub fn open_folder(path: &Path, make: bool) -> Result<OwnedFd> {
    use std::os::unix::fs::DirBuilderExt;
    if make {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::path("make directory", path, e));
            }
            _ => {}
        }
    }
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(|e| Error::path("open directory", path, e))
}
