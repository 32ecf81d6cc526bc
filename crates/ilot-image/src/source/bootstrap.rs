//! Images installed from a distribution's package mirror with `mmdebstrap`.
//!
//! The program runs in its own mount and process namespaces: whatever becomes of ilot, no mount of it is left on the
//! host and no process of it outlives the call. It writes a tar archive to a pipe; nothing is unpacked on the host but
//! in the store's temporary folder.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::apt::{Mirror, Proxies};
use super::archive::import_stream;
use super::{Found, Order};
use crate::error::{Error, Result};
use crate::lock::TempDir;
use crate::reference::Distribution;

/// What makes a machine that one can work in, of what a minimal system does not have: its init, the network's tools, an
/// editor, a pager, the public authorities.
const PACKAGES: &str =
    "ca-certificates,dbus,iproute2,iputils-ping,less,libpam-systemd,nano,netbase,procps,systemd-sysv";

/// An InRelease file is about 150 kB.
const RELEASE_LIMIT: u64 = 16 << 20;

const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UBUNTU_KEYRING: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";
/// For hosts without a keyring of Ubuntu's: see `keys/README.md`.
const UBUNTU_KEY: &[u8] = include_bytes!("../../keys/ubuntu-archive-2018.gpg");

/// Where the namespace has its temporary folder: apt drops its rights for downloads and could not reach a path below
/// the store.
const INSIDE: &str = "/var/tmp";

/// Runs as process 1 of the namespaces; `$0` is the folder with what [`prepare`] wrote, `$1` the bytes of memory that
/// may be used. dpkg flushes each file to the disk, which a busy disk makes ten times slower: memory where there is
/// enough.
const PROLOGUE: &str = r#"set -e
cd "$0"
size=$1
shift
if [ "$size" != 0 ]; then
    mount -t tmpfs -o "mode=755,size=$size" ilot /var/tmp
    cp * /var/tmp/
else
    mount --bind . /var/tmp
fi
cd /
exec mmdebstrap "$@"
"#;

/// Free memory below which the disk is used instead.
const ENOUGH_MEMORY: u64 = 3 << 30;

/// Runs after the installation; `$1` is the tree. What mmdebstrap copied from the host goes, and the sources become
/// those that the machine will use.
const HOOK: &str = r#"set -e
rm -f "$1/etc/resolv.conf" "$1/etc/hostname" "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*
: > "$1/etc/resolv.conf"
: > "$1/etc/hostname"
cp /var/tmp/final.sources "$1/etc/apt/sources.list.d/$2.sources"
rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
"#;

pub(super) fn install(order: &Order<'_>, distribution: Distribution, suite: &str, cloud: bool) -> Result<Found> {
    find_program("mmdebstrap", "`apt install mmdebstrap`")?;
    find_program("unshare", "`apt install util-linux`")?;
    let variable = format!("ILOT_MIRROR_{}", distribution.to_string().to_ascii_uppercase());
    let mirror = Mirror::find(distribution, suite, Path::new("/etc/apt"), std::env::var(variable).ok());
    let proxies = Proxies::of_host();
    order.stage(&format!("ask {}", mirror.main));
    let released = release_date(order, &mirror, &proxies)?;
    let place = TempDir::new(order.aside.path())?;
    prepare(place.path(), distribution, &mirror)?;
    order.stage(&format!("install {distribution} {suite} from {}", mirror.main));
    let mut child = spawn(place.path(), distribution, suite, cloud, &proxies, released)?;
    let layer = run(order, &mut child, distribution, suite);
    // Whatever went wrong: nothing may write into the folder any more when it is removed.
    let status = stop(&mut child.process);
    let tail = child.reader.join().unwrap_or_default();
    let layer = match (layer, status) {
        (Ok(layer), Some(0)) => layer,
        (Err(error @ (Error::Cancelled { .. } | Error::NoSpace { .. })), _) => return Err(error),
        (_, _) if tail.iter().any(|line| line.contains("No space left on device")) => {
            return Err(Error::NoSpace {
                what: format!("install {distribution} {suite}"),
                path: place.path().to_owned(),
            });
        }
        (layer, status) => return Err(explain(layer.err(), status, &tail)),
    };
    let mut found = Found::new(layer, format!("mmdebstrap {}", mirror.main), "mmdebstrap");
    found.created = released.and_then(super::at);
    Ok(found)
}

fn find_program(name: &str, cure: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(name).is_file()) {
        return Ok(());
    }
    Err(Error::Host {
        what: format!("program {name}"),
        reason: "not installed on this host".to_owned(),
        help: Some(cure.to_owned()),
    })
}

/// When the newest of the suites was published: tells at once whether the mirror answers, and gives every file of the
/// image its latest time, so that the same packages make the same image.
fn release_date(order: &Order<'_>, mirror: &Mirror, proxies: &Proxies) -> Result<Option<i64>> {
    let all =
        mirror.suites.0.iter().map(|s| (&mirror.main, s)).chain(mirror.suites.1.iter().map(|s| (&mirror.security, s)));
    let mut newest = None;
    for (i, (uri, suite)) in all.enumerate() {
        order.wanted()?;
        // Others (file:, copy:, mirror+…) are apt's own business.
        if !uri.starts_with("http://") && !uri.starts_with("https://") {
            continue;
        }
        let url = format!("{uri}/dists/{suite}/InRelease");
        match order.http.get(&url, RELEASE_LIMIT, proxies.http.as_deref()) {
            Ok(text) => newest = newest.max(date(&String::from_utf8_lossy(&text))),
            Err(error) if i == 0 => return Err(error),
            Err(error) => tracing::debug!(url, %error, "no release date"),
        }
    }
    Ok(newest)
}

/// `Date:` of an InRelease file, in seconds since 1970.
fn date(release: &str) -> Option<i64> {
    let text = release.lines().find_map(|l| l.strip_prefix("Date:"))?.trim().replace("UTC", "+0000");
    jiff::fmt::rfc2822::parse(&text).ok().map(|z| z.timestamp().as_second())
}

/// What the namespace finds in its temporary folder.
fn prepare(place: &Path, distribution: Distribution, mirror: &Mirror) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let write = |name: &str, content: &[u8]| {
        let path = place.join(name);
        fs::write(&path, content).map_err(|e| Error::io("write", path, e))
    };
    let (keyring, inside) = match distribution {
        Distribution::Debian if Path::new(DEBIAN_KEYRING).exists() => (DEBIAN_KEYRING.to_owned(), DEBIAN_KEYRING),
        Distribution::Debian => {
            return Err(Error::Host {
                what: format!("keyring {DEBIAN_KEYRING}"),
                reason: "not installed, and packages are not installed unchecked".to_owned(),
                help: Some("`apt install debian-archive-keyring`".to_owned()),
            });
        }
        Distribution::Ubuntu if Path::new(UBUNTU_KEYRING).exists() => (UBUNTU_KEYRING.to_owned(), UBUNTU_KEYRING),
        Distribution::Ubuntu => {
            write("ubuntu-archive.gpg", UBUNTU_KEY)?;
            (format!("{INSIDE}/ubuntu-archive.gpg"), UBUNTU_KEYRING)
        }
    };
    write("ilot.sources", mirror.sources(&keyring).as_bytes())?;
    write("final.sources", mirror.sources(inside).as_bytes())?;
    write("hook", HOOK.as_bytes())?;
    // apt's download user reads here.
    fs::set_permissions(place, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("chmod", place, e))
}

/// Bytes of memory that an installation may use; none on a small or limited host.
fn memory() -> u64 {
    let available = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.split_ascii_whitespace().next()?.parse().ok())
        })
        .map_or(0, |kib: u64| kib << 10);
    // As a container sees its own limit, on v2 and v1; "max" is none.
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    let usable = available.min(limit);
    if usable >= ENOUGH_MEMORY { usable / 2 } else { 0 }
}

struct Running {
    process: Child,
    reader: std::thread::JoinHandle<VecDeque<String>>,
    lines: std::sync::mpsc::Receiver<Line>,
}

fn spawn(
    place: &Path,
    distribution: Distribution,
    suite: &str,
    cloud: bool,
    proxies: &Proxies,
    released: Option<i64>,
) -> Result<Running> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", PROLOGUE]);
    command.arg(place).arg(memory().to_string());
    command.args(["--dpkgopt=force-unsafe-io"]);
    command.args(["--verbose", "--mode=root", "--format=tar", "--variant=minbase"]);
    command.arg(format!("--include={PACKAGES}{}", if cloud { ",cloud-init" } else { "" }));
    command.arg(format!("--customize-hook=sh {INSIDE}/hook \"$1\" {distribution}"));
    for option in &proxies.options {
        command.arg(format!("--aptopt={option}"));
    }
    command.args([suite, "-", &format!("{INSIDE}/ilot.sources")]);
    command.env("TMPDIR", INSIDE).env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    match released {
        Some(seconds) => command.env("SOURCE_DATE_EPOCH", seconds.to_string()),
        None => command.env_remove("SOURCE_DATE_EPOCH"),
    };
    // Its own group: an interrupt typed at the terminal reaches ilot alone, and ends this through ilot's death.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only prctl(2) and getppid(2) are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // The signal comes when the thread ends that started the process: the caller waits for it in this one.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // It does not come for a parent that died before that line.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let mut process = command.spawn().map_err(|e| Error::io("start", "unshare", e))?;
    let (send, lines) = std::sync::mpsc::channel();
    let errors = process.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut tail = VecDeque::new();
        for line in errors.into_iter().flat_map(|e| BufReader::new(e).split(b'\n')).map_while(std::io::Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(event) = Line::parse(&line) {
                let _ = send.send(event);
            }
            tail.push_back(line);
            if tail.len() > 40 {
                tail.pop_front();
            }
        }
        tail
    });
    Ok(Running { process, reader, lines })
}

/// What a line of mmdebstrap's says about how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// A part of the work begins.
    Stage(&'static str),
    /// So many more packages will be installed.
    Packages(u64),
    /// One package downloaded, unpacked or configured.
    Step,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let stages = [
            ("I: running apt-get update", "read the package lists"),
            ("I: downloading packages", "download packages"),
            ("I: extracting archives", "extract the base"),
            ("I: installing essential", "install the base"),
            ("I: installing remaining", "install packages"),
            ("I: cleaning", "clean up"),
            ("I: creating tarball", "pack"),
        ];
        if let Some((_, text)) = stages.iter().find(|(start, _)| line.starts_with(start)) {
            return Some(Self::Stage(text));
        }
        if let Some((_, rest)) = line.split_once(" upgraded, ") {
            return rest.split(' ').next()?.parse().ok().map(Self::Packages);
        }
        let is_step = ["Get:", "Unpacking ", "Setting up "].iter().any(|start| line.starts_with(start));
        (is_step && !line.contains("InRelease")).then_some(Self::Step)
    }
}

/// Takes the archive while it comes; before its first byte, tells how far the installation is.
fn run(order: &Order<'_>, child: &mut Running, distribution: Distribution, suite: &str) -> Result<crate::blob::Layer> {
    let what = format!("{distribution} {suite}");
    let (mut done, mut total) = (0, 0);
    let wait = std::time::Duration::from_millis(100);
    loop {
        order.wanted()?;
        match child.lines.recv_timeout(wait) {
            Ok(Line::Stage(text)) => {
                order.stage(&format!("{what}: {text}"));
                order.progress.steps(done, total.max(done));
                if text == "pack" {
                    break;
                }
            }
            Ok(Line::Packages(more)) => total += 3 * more,
            Ok(Line::Step) => {
                done += 1;
                order.progress.steps(done, total.max(done));
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            // It ended without an archive.
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let output = child.process.stdout.take();
    import_stream(order, &format!("mmdebstrap {what}"), Optional(output), None)
}

/// The output of a process that may have none.
struct Optional<R>(Option<R>);

impl<R: Read> Read for Optional<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.as_mut().map_or(Ok(0), |r| r.read(buf))
    }
}

/// Waits for a process that closed its output, and kills one that did not end by itself soon.
fn stop(process: &mut Child) -> Option<i32> {
    // After its archive it only removes its own folder.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let closed = process.stdout.is_none();
    while closed && std::time::Instant::now() < deadline {
        match process.try_wait() {
            Ok(Some(status)) => return status.code(),
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(_) => break,
        }
    }
    // Process 1 of the namespace dies with `unshare`, and with it all of the namespace.
    let _ = process.kill();
    process.wait().ok().and_then(|status| status.code())
}

/// Why an installation failed, from the last lines it wrote.
fn explain(error: Option<Error>, status: Option<i32>, tail: &VecDeque<String>) -> Error {
    let fatal =
        |line: &&String| line.starts_with("E: ") || line.starts_with("W: Failed") || line.starts_with("dpkg: error");
    let said: Vec<&str> = tail.iter().filter(fatal).map(|l| l.trim_start_matches("E: ").trim()).collect();
    let last: Vec<&str> = tail.iter().rev().take(3).rev().map(String::as_str).collect();
    let ended = status.map_or("was killed".to_owned(), |code| format!("exit {code}"));
    let reason = match (said.is_empty(), last.is_empty(), error) {
        (false, ..) => said.join("; "),
        (_, false, _) => format!("{ended}: {}", last.join("; ")),
        (_, _, Some(error)) => error.to_string(),
        _ => ended,
    };
    let help = match reason.as_str() {
        r if r.contains("NO_PUBKEY") || r.contains("not signed") => Some(
            "install the distribution's keyring: `apt install debian-archive-keyring` or `ubuntu-keyring`".to_owned(),
        ),
        r if r.contains("unshare") || r.contains("Operation not permitted") => {
            Some("needs root with CAP_SYS_ADMIN on this host".to_owned())
        }
        _ => None,
    };
    Error::Host { what: "mmdebstrap".to_owned(), reason, help }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_how_far_it_is() {
        assert_eq!(Line::parse("I: running apt-get update..."), Some(Line::Stage("read the package lists")));
        assert_eq!(Line::parse("I: creating tarball..."), Some(Line::Stage("pack")));
        let summary = "0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.";
        assert_eq!(Line::parse(summary), Some(Line::Packages(69)));
        assert_eq!(Line::parse("Get:3 http://m/debian trixie/main amd64 bash amd64 5.2 [1 kB]"), Some(Line::Step));
        assert_eq!(Line::parse("Get:1 http://m/debian trixie InRelease [140 kB]"), None);
        assert_eq!(Line::parse("Setting up bash (5.2) ..."), Some(Line::Step));
        assert_eq!(Line::parse("I: done"), None);
    }

    #[test]
    fn release_dates_are_read() {
        let text = "-----BEGIN PGP SIGNED MESSAGE-----\nOrigin: Debian\nDate: Sat, 09 Aug 2025 11:26:41 UTC\nArchitectures: amd64\n";
        assert_eq!(date(text), Some(1_754_738_801));
        assert_eq!(date("Origin: Debian\n"), None);
    }

    #[test]
    fn the_reason_of_a_failure_is_its_own_words() {
        let tail = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<VecDeque<_>>();
        let error = explain(None, Some(25), &tail(&["Err:1 x", "E: Unable to locate package nosuch", "I: removing"]));
        assert_eq!(error.to_string(), "mmdebstrap: Unable to locate package nosuch");
        let error = explain(None, None, &tail(&["one", "two"]));
        assert_eq!(error.to_string(), "mmdebstrap: was killed: one; two");
    }
}
