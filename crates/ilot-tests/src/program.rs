//! A command and what it said.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A command that was not run yet.
#[derive(Debug)]
pub struct Program {
    command: Command,
}

/// How a command ended.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Program {
    pub(crate) fn new(command: Command) -> Self {
        Self { command }
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// With something to read.
    #[must_use]
    pub fn run_with_input(mut self, input: &[u8]) -> Output {
        use std::io::Write;
        let line = format!("{:?}", self.command);
        let start = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program");
        let mut stdin = child.stdin.take().expect("a pipe");
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // A program that does not read its input to the end is no failure of the test's.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().expect("wait for the program");
        let _ = writer.join();
        finish(line, start, output)
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(mut self) -> Output {
        let line = format!("{:?}", self.command);
        let start = Instant::now();
        let output = self.command.stdin(Stdio::null()).output().expect("run the program");
        finish(line, start, output)
    }

    /// Runs it to its end, which must be a good one.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(self) -> Output {
        let output = self.run();
        assert!(output.status.success(), "{output}");
        output
    }

    /// Runs it to its end, which must be a bad one.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn fails(self) -> Output {
        let output = self.run();
        assert!(!output.status.success(), "should have failed: {output}");
        output
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(mut self) -> Child {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the program")
    }
}

fn finish(line: String, start: Instant, output: std::process::Output) -> Output {
    Output {
        line,
        took: start.elapsed(),
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Output {
    /// Its exit status; 128 and the signal's number when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    /// When that is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} after {:?}\n--- stdout\n{}--- stderr\n{}",
            self.line, self.status, self.took, self.stdout, self.stderr
        )
    }
}
