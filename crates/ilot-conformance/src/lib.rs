//! The OCI runtime-spec tried on real containers, with any runtime.
//!
//! `RUNTIME` names the runtime (a path or a name on `PATH`); without it, ilot's own. Every test is one call of [`conform`]:
//! it gives the test mount and network namespaces of its own, so that nothing it makes can reach the host, and writes one
//! line of result to the file `ILOT_CONFORMANCE_RESULTS`. Where a runtime is known to differ from the specification,
//! [`differences`] has the section that decides.

pub mod attacker;
pub mod bundle;
pub mod differences;
pub mod host;
pub mod runtime;
pub mod terminal;

pub use bundle::Bundle;
pub use runtime::{Kind, Output, Runtime};
pub use serde_json::{Value, json};

use std::any::Any;
use std::io::Write;
use std::time::{Duration, Instant};

/// How long anything may take before the test calls it hanging.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a test is left with when the host cannot run it.
struct Skipped(String);

/// Ends the test without a verdict, saying why.
pub fn skip(why: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(Skipped(why.into())))
}

/// Skips unless the condition holds.
pub fn need(condition: bool, why: &str) {
    if !condition {
        skip(why);
    }
}

/// Runs one test in namespaces of its own. Its name is that of the test function, its area that of the file.
pub fn conform<F: FnOnce() + Send>(test: F) {
    let name = std::any::type_name::<F>();
    let mut parts = name.split("::");
    let (area, test_name) = (parts.next().unwrap_or("?"), parts.next().unwrap_or("?"));
    let name = format!("{area}::{test_name}");
    let runtime = Runtime::selected();
    let Ok(runtime) = runtime else {
        let why = format!("no runtime: {}", runtime.err().unwrap_or_default());
        note_skip(&name, &why);
        return;
    };
    if !rustix::process::geteuid().is_root() {
        note_skip(&name, "needs root (namespaces, mounts, cgroups)");
        return;
    }
    let result = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(name.clone())
            .spawn_scoped(scope, || {
                host::leave(runtime.kind);
                test();
            })
            .map(std::thread::ScopedJoinHandle::join)
    });
    match result {
        Ok(outcome) => judge(&name, runtime.kind, outcome),
        Err(error) => panic!("{name}: start a thread: {error}"),
    }
}

fn judge(name: &str, kind: Kind, outcome: Result<(), Box<dyn Any + Send>>) {
    let known = differences::find(kind, name);
    match (outcome, known) {
        (Ok(()), None) => record(name, "pass", ""),
        (Ok(()), Some(difference)) => {
            eprintln!("{name}: passes, though listed as a difference ({})", difference.section);
            record(name, "pass", "listed as a difference");
        }
        (Err(panic), known) => match (panic.downcast::<Skipped>(), known) {
            (Ok(skipped), _) => note_skip(name, &skipped.0),
            (Err(_), Some(difference)) => {
                eprintln!("KNOWN DIFFERENCE of {}: {} ({})", kind.name(), difference.why, difference.section);
                record(name, "differs", difference.section);
            }
            (Err(panic), None) => {
                record(name, "FAIL", "");
                std::panic::resume_unwind(panic)
            }
        },
    }
}

fn note_skip(name: &str, why: &str) {
    eprintln!("SKIPPED: {name}: {why}");
    record(name, "skip", why);
    append("ILOT_TEST_SKIPS", &format!("{name}: {why}"));
}

fn record(name: &str, verdict: &str, note: &str) {
    append("ILOT_CONFORMANCE_RESULTS", &format!("{name}\t{verdict}\t{note}"));
}

/// Adds a line to the file that a variable names, if it does.
fn append(variable: &str, line: &str) {
    let Some(path) = std::env::var_os(variable) else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// Waits until `probe` gives something; panics after [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: waited for {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(3));
    }
}
