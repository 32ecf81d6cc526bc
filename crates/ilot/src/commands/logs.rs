//! `ilot logs`.

use ilot_native::{LogLine, LogOptions};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use owo_colors::OwoColorize;

use super::Outcome;
use crate::context::Context;
use crate::ui;

/// Show what a machine's processes printed, with times
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ilot logs web
  ilot logs -f -n 20 web              the last 20 lines, and what comes
  ilot logs --since 10m web           of the last ten minutes
  ilot logs --since 2026-05-01 web    since that day
  ilot logs --no-times web > web.log")]
pub(crate) struct Args {
    /// The machine
    #[arg(value_name = "MACHINE")]
    machine: String,

    /// Go on as more comes, until the machine ends
    #[arg(short, long)]
    follow: bool,

    /// Not before: `10m`, `2h 30m`, `3d`, a day, or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,

    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,

    /// Only what was printed
    #[arg(long)]
    no_times: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Outcome {
    let engine = context.engine()?;
    let options = LogOptions { since: args.since, last: args.lines, follow: args.follow };
    let zone = TimeZone::system();
    engine.logs(&args.machine, &options, &mut |line| {
        if context.json {
            ui::print_json_line(&line);
        } else {
            ui::write_out(&show(&line, &zone, args.no_times));
        }
        true
    })?;
    Ok(0)
}

fn show(line: &LogLine, zone: &TimeZone, no_times: bool) -> String {
    let end = if line.partial { "" } else { "\n" };
    if no_times {
        return format!("{}{end}", line.text);
    }
    let time = line.time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string();
    if line.stream == "stderr" {
        format!("{} {}{end}", time.dimmed(), line.text.yellow())
    } else {
        format!("{} {}{end}", time.dimmed(), line.text)
    }
}

/// Reads `--since`.
fn since(text: &str) -> Result<Timestamp, String> {
    let now = Zoned::now();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(span) = text.parse::<jiff::Span>() {
        return now.checked_sub(span).map(|then| then.timestamp()).map_err(|error| error.to_string());
    }
    text.parse::<jiff::civil::DateTime>()
        .and_then(|time| time.to_zoned(now.time_zone().clone()))
        .map(|time| time.timestamp())
        .map_err(|_| "neither a span (`10m`, `2h`, `3d`) nor a day or time (`2026-05-01`, RFC 3339)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_spans_days_and_times() {
        let exact: Timestamp = "2026-05-01T10:00:00Z".parse().unwrap();
        assert_eq!(since("2026-05-01T10:00:00Z"), Ok(exact));
        let ago = Timestamp::now().duration_since(since("10m").unwrap()).as_secs();
        assert!((595..610).contains(&ago), "{ago}");
        assert!(since("3d").is_ok() && since("2026-05-01").is_ok() && since("2h 30m").is_ok());
        assert!(since("yesterday").is_err());
    }
}
