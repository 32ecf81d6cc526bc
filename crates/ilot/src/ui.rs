//! Writing to the terminal: colour, broken pipes, units.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

/// When to colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Applies `--color` to everything that is written from now on.
pub(crate) fn set_color(color: Color) {
    let choice = match color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    };
    choice.write_global();
}

/// Whether standard error gets colours.
pub(crate) fn stderr_has_color() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// Whether a question can be asked and answered.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Writes to standard output as it is, colours removed where they do not belong.
///
/// A reader that went away (`ilot logs | head`) ends the program quietly, as it would end any filter.
pub(crate) fn write_out(text: &str) {
    let mut out = anstream::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        complain(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// Writes a line to standard output.
pub(crate) fn print(line: &str) {
    write_out(&format!("{line}\n"));
}

/// Writes a value to standard output, indented.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&text),
        Err(error) => complain(&format!("error: cannot write JSON: {error}")),
    }
}

/// Writes a value to standard output in one line.
pub(crate) fn print_json_line<T: Serialize + ?Sized>(value: &T) {
    match serde_json::to_string(value) {
        Ok(text) => print(&text),
        Err(error) => complain(&format!("error: cannot write JSON: {error}")),
    }
}

/// Writes a line to standard error. There is nowhere left to complain when that fails.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// Asks on the terminal; only `y` and `yes` agree.
pub(crate) fn confirm(question: &str) -> io::Result<bool> {
    {
        let mut err = anstream::stderr().lock();
        write!(err, "{question} [y/N] ")?;
        err.flush()?;
    }
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Asks on the terminal for what nobody shall see.
pub(crate) fn ask_secret(question: &str) -> io::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let (input, before) = (io::stdin(), tcgetattr(io::stdin())?);
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    {
        let mut err = anstream::stderr().lock();
        write!(err, "{question}")?;
        err.flush()?;
    }
    tcsetattr(&input, OptionalActions::Flush, &silent)?;
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    tcsetattr(&input, OptionalActions::Flush, &before)?;
    complain("");
    read.map(|_| answer.trim_end_matches(['\r', '\n']).to_owned())
}

/// Bytes for people: `512 MiB`, `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A time span for people, its two largest units: `3d 4h`, `12m 5s`, `1.4s`, `85ms`.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{}ms", span.as_millis()),
        1..=59 if seconds < 10 => format!("{:.1}s", span.as_secs_f64()),
        1..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// `1 machine`, `2 machines`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 << 20, "1.5 GiB"), (300 << 20, "300 MiB")];
        for (size, text) in sizes {
            assert_eq!(bytes(size), text);
        }
        let spans = [(85, "85ms"), (1400, "1.4s"), (59_000, "59s"), (725_000, "12m 5s"), (273_600_000, "3d 4h")];
        for (millis, text) in spans {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!((count(1, "machine"), count(61, "machine")), ("1 machine".into(), "61 machines".into()));
    }
}
