//! CRIU's log: what in it tells a person why something failed, and what helps.

use crate::Error;
use std::fs;
use std::path::Path;

/// How many lines of a log are shown.
const SHOWN: usize = 6;
/// Complaints that stop nothing.
const HARMLESS: [&str; 2] = ["Can't setup RLIMIT_NOFILE", "Can't keep kdat cache"];

/// A line without time and place in CRIU's source: `(00.006) Error (criu/tty.c:1): tty: Found …` → `tty: Found …`.
pub fn plain(line: &str) -> String {
    let line = line.trim();
    let line = match line.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
        Some((time, rest)) if time.starts_with(|c: char| c.is_ascii_digit()) => rest.trim_start(),
        _ => line,
    };
    // With process 1's number before it when a restored process writes.
    let line = match line.split_once(": ") {
        Some((number, rest)) if !number.is_empty() && number.trim().chars().all(|c| c.is_ascii_digit()) => rest,
        _ => line,
    };
    let after = ["Error (", "Warn  ("].iter().find_map(|p| line.strip_prefix(p)?.split_once("): ").map(|(_, r)| r));
    after.unwrap_or(line).trim().to_owned()
}

/// The first complaint in a text.
pub fn first_error(text: &str) -> Option<String> {
    errors(text).next()
}

/// Whether a complaint is none that stops anything.
pub fn is_harmless(line: &str) -> bool {
    HARMLESS.iter().any(|h| line.contains(h))
}

fn errors(text: &str) -> impl Iterator<Item = String> + '_ {
    let counts = |l: &&str| l.contains("Error (") && !is_harmless(l);
    text.lines().filter(counts).map(plain)
}

/// What helps, for complaints that many people see.
fn cure(complaints: &str) -> Option<&'static str> {
    const CURES: [(&str, &str); 13] = [
        ("Can't get 1:16 opt", "Linux 6.16 and newer need CRIU 4.2 or newer for sockets"),
        ("Unexpected rt vDSO area bounds", "this kernel is too new for this CRIU: install version 4.2 or newer"),
        ("consider using --tcp-established", "use `--tcp-established`"),
        ("Some file locks are hold", "use `--file-locks`"),
        ("External socket is used", "use `--ext-unix-sk`"),
        ("--ext-unix-sk", "use `--ext-unix-sk`"),
        ("consider using --shell-job", "use `--shell-job`"),
        ("Can't lookup mount=", "a process has a file of the host open: close it"),
        ("execvp(\"iptables-restore\"", "install `iptables`, or use `--network-lock nftables`"),
        ("kerndat_tcp_repair failed", "CRIU needs the loopback interface: `ip link set lo up`"),
        ("Can't open file fd/", "let the container's root write to the file that its output goes to"),
        ("Can't dump nested pid namespaces", "containers in the container cannot be written down"),
        ("No such file or directory (criu/libnetlink", "install `iproute2`"),
    ];
    CURES.iter().find(|(said, _)| complaints.contains(said)).map(|(_, cure)| *cure)
}

/// The error of a failed command: what CRIU answered, and the complaints at the end of its log with its place.
pub fn explain(id: &str, error: &Error, log: &Path) -> Error {
    let text = fs::read(log).map(|t| String::from_utf8_lossy(&t).into_owned()).unwrap_or_default();
    let mut lines: Vec<String> = errors(&text).collect();
    lines.dedup();
    let mut message = error.to_string();
    // Its first complaint is mostly the cause, its last ones say what came of it.
    let hidden = lines.len().saturating_sub(SHOWN);
    if hidden > 0 {
        lines.drain(1..=hidden);
    }
    for line in lines.iter().filter(|l| !message.contains(l.as_str())).cloned().collect::<Vec<_>>() {
        message.push_str("; ");
        message.push_str(&line);
    }
    if log.exists() {
        message.push_str(&format!("; the log is `{}`", log.display()));
    }
    if let Some(cure) = cure(&format!("{text}{error}")) {
        message.push_str("; ");
        message.push_str(cure);
    }
    Error::Container { id: id.to_owned(), message, errno: error.errno().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_their_place() {
        for (line, wanted) in [
            ("(00.006230) Error (criu/tty.c:1861): tty: Found dangling tty", "tty: Found dangling tty"),
            ("(00.1)      1: Error (criu/mount.c:2): mnt: no", "mnt: no"),
            ("Error (criu/vdso.c:381): vdso: Unexpected", "vdso: Unexpected"),
            ("plain words: 1", "plain words: 1"),
        ] {
            assert_eq!(plain(line), wanted);
        }
        assert_eq!(first_error("Warn (x): a\nError (y): b\nError (z): c"), Some("b".to_owned()));
        assert_eq!(first_error("all is well"), None);
    }

    #[test]
    fn an_error_names_the_log_and_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        let text = "(00.1) all well\n(00.2) Error (a.c:1): inet: Connected TCP socket, consider using --tcp-established option.\n\
                    (00.3) Error (b.c:2): Dumping FAILED.\n";
        std::fs::write(&log, text).unwrap();
        let said = explain("c", &Error::invalid("CRIU", "it failed"), &log).to_string();
        assert!(said.contains("Connected TCP socket") && said.contains("Dumping FAILED"), "{said}");
        assert!(said.contains(log.to_str().unwrap()) && said.ends_with("use `--tcp-established`"), "{said}");
        let said = explain("c", &Error::invalid("CRIU", "it failed"), Path::new("/none")).to_string();
        assert_eq!(said, "container `c`: CRIU: it failed");
    }
}
