//! The process `ilot-names`: binds, goes to the background, drops everything that it does not need, answers.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit};

use super::config::NamesConfig;
use super::opener::Opener;
use super::process::start_time;
use super::refused::Refused;
use super::server::Server;

/// The user and group of nobody.
const NOBODY: u32 = 65_534;

/// `ilot-names DIRECTORY`: serves what `DIRECTORY/config.json` says. Returns, in the background's parent, once it answers.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let directory = arguments.nth(1).map(PathBuf::from);
    let (Some(directory), None) = (directory, arguments.next()) else {
        eprintln!("usage: ilot-names DIRECTORY (with a config.json; started by ilot, one per domain)");
        return ExitCode::from(2);
    };
    match start(&directory) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn start(directory: &Path) -> io::Result<ExitCode> {
    // SAFETY: nothing was opened yet; what the caller left open beyond the standard three is not ours to keep.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    let config = read_config(&directory.join("config.json"))?;
    let mut server = Server::bind(config)?;
    // Blocked before the fork: a signal that comes early waits.
    let signals = block_signals()?;
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(ready);
            let code = match retreat(directory, &mut server, tell) {
                Ok(()) => serve(&mut server, signals.as_fd()),
                Err(error) => {
                    eprintln!("{error}");
                    1
                }
            };
            std::process::exit(code)
        }
        _ => {
            drop(tell);
            // One byte: it answers. The end: it died and said why on our error output.
            let answers = rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut [0u8]))? == 1;
            Ok(if answers { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

fn read_config(path: &Path) -> io::Result<NamesConfig> {
    let bytes = fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// The configuration, once its directory is the root directory.
pub(super) fn read_config_inside() -> io::Result<NamesConfig> {
    read_config(Path::new("/config.json"))
}

fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before it is read; signalfd returns a new descriptor or -1.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGHUP);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Leaves the caller's session, terminal, file system and rights behind, then says that it is ready.
fn retreat(directory: &Path, server: &mut Server, tell: OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let start = start_time(pid).ok_or_else(|| io::Error::other("/proc does not show this process"))?;
    let aside = directory.join("pid.new");
    fs::write(&aside, format!("{pid} {start}\n"))?;
    fs::rename(&aside, directory.join("pid"))?;

    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    server.refused = Refused::open(directory)?;
    rustix::process::chdir(directory)?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    if server.config.opens() {
        server.opener = Some(Opener::start(&server.config)?);
    }
    for (resource, most) in [(Resource::Core, 0), (Resource::Nproc, 0), (Resource::Nofile, 1024)] {
        // Lowering only; a host where that is refused already has less.
        let _ = rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    }
    become_nobody()?;
    rustix::stdio::dup2_stderr(rustix::stdio::stdin())?;
    super::sandbox::server();
    // Last: whoever is told that it answers may count on its being shut in.
    rustix::io::write(&tell, b"!")?;
    drop(tell);
    Ok(())
}

pub(super) fn become_nobody() -> io::Result<()> {
    // SAFETY: setgroups with an empty list reads nothing; the other calls take numbers. One thread, so the raw calls are the
    // whole process's.
    unsafe {
        if libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(NOBODY, NOBODY, NOBODY) != 0
            || libc::setresuid(NOBODY, NOBODY, NOBODY) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    rustix::thread::set_no_new_privs(true)?;
    // Changing the user took the effective and permitted capabilities; of the rest nothing can be used again.
    if rustix::process::geteuid().is_root() {
        return Err(io::Error::other("still root"));
    }
    Ok(())
}

fn serve(server: &mut Server, signals: BorrowedFd<'_>) -> i32 {
    loop {
        if server.run(signals).is_err() {
            return 1;
        }
        if next_signal(signals) == Some(libc::SIGTERM as u32) {
            return 0;
        }
        // A configuration that cannot be read leaves the old one in force.
        if let Ok(config) = read_config_inside() {
            server.reload(config);
        }
    }
}

fn next_signal(signals: BorrowedFd<'_>) -> Option<u32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(signals, &mut info).ok()?;
    // `ssi_signo` comes first.
    Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// Names the process for `ps`, like its file, whatever it was started as.
pub fn set_title() {
    if let Ok(name) = CString::new("ilot-names") {
        let _ = rustix::thread::set_name(&name);
    }
}
