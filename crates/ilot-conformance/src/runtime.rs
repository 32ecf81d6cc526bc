//! The runtime under test: a program with runc's command line.

use crate::PATIENCE;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Whose runtime it is: decides which known differences hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `ilot-oci`
    Ilot,
    /// `crun`
    Crun,
    /// `runc`
    Runc,
    /// Any other.
    Other,
}

impl Kind {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ilot => "ilot",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Other => "other",
        }
    }
}

/// A program to test.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The program.
    pub path: PathBuf,
    /// Whose it is.
    pub kind: Kind,
}

impl Runtime {
    /// The one that `RUNTIME` names, or ilot's own from `ILOT_LIBEXEC` or `target/dist`.
    pub fn selected() -> Result<Self, String> {
        let path = match std::env::var_os("RUNTIME").filter(|value| !value.is_empty()) {
            Some(name) => find(&name).ok_or_else(|| format!("`{}` is not a program", name.display()))?,
            None => own().ok_or("`ilot-oci` is not built (`cargo xtask static`)")?,
        };
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or("");
        let kind = match name {
            _ if name.starts_with("ilot") => Kind::Ilot,
            _ if name.starts_with("crun") => Kind::Crun,
            _ if name.starts_with("runc") => Kind::Runc,
            _ => Kind::Other,
        };
        Ok(Self { path, kind })
    }

    /// A command of it. Programs that it needs are looked for beside it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        if self.kind == Kind::Ilot {
            command.env("ILOT_LIBEXEC", self.path.parent().unwrap_or(Path::new("/")));
        }
        command
    }

    /// Runs it with arguments and waits.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = self.command();
        command.args(arguments);
        run(command)
    }
}

fn find(name: &OsStr) -> Option<PathBuf> {
    let path = Path::new(name);
    if path.components().count() > 1 {
        return path.canonicalize().ok();
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn own() -> Option<PathBuf> {
    let libexec = std::env::var_os("ILOT_LIBEXEC").map(PathBuf::from);
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist/libexec/ilot");
    libexec.into_iter().chain([target]).map(|dir| dir.join("ilot-oci")).find(|path| path.is_file())
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 and the signal's number if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// The output of a command that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "exit code {}\nstdout: {}\nstderr: {}", self.code, self.out, self.err);
        self.out
    }

    /// The error text of a command that failed.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(self.code != 0, "this should have failed\nstdout: {}\nstderr: {}", self.out, self.err);
        self.err
    }

    /// Output as JSON.
    #[track_caller]
    pub fn json(self) -> crate::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("no JSON: {error}: {text}"))
    }
}

/// Runs a command to its end. Output goes through files, because a container left behind may keep them open.
#[track_caller]
pub fn run(command: Command) -> Output {
    run_within(command, PATIENCE)
}

/// The same with an own limit of time.
#[track_caller]
pub fn run_within(mut command: Command, limit: Duration) -> Output {
    let dir = tempfile::Builder::new().prefix("ilot-conform-out-").tempdir().expect("a directory for output");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&out).expect("output file"))
        .stderr(File::create(&err).expect("error file"));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let start = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait for the runtime") {
            Some(status) => break status,
            None if start.elapsed() > limit => {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{command:?} hangs\nstdout: {}\nstderr: {}", crate::host::read(&out), crate::host::read(&err));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    Output { code, out: text(&out), err: text(&err) }
}
