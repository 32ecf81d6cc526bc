//! What can be seen while a plan is carried out or an image is fetched: bars on a terminal, plain lines elsewhere, one
//! JSON object per event for programs.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ilot_image::Progress;
use ilot_plan::{Action, Change, Events, Kind, Outcome};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::{signals, ui};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// How the user watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// Bars on standard error.
    Bars,
    /// Lines on standard error.
    Lines,
    /// JSON lines on standard output.
    Json,
    /// Nothing.
    Quiet,
}

/// Shows a plan being carried out.
#[derive(Debug)]
pub(crate) struct Watch {
    view: View,
    bars: MultiProgress,
    total: ProgressBar,
    open: Mutex<HashMap<String, Open>>,
}

/// A change that has begun.
#[derive(Debug)]
struct Open {
    since: Instant,
    bar: Option<ProgressBar>,
    /// The last text that a line was written for.
    told: String,
}

impl Watch {
    /// Watches as many changes.
    pub fn new(context: &Context, changes: usize) -> Self {
        let view = match (context.json, context.quiet) {
            (true, _) => View::Json,
            (false, true) => View::Quiet,
            (false, false) if stderr().is_terminal() => View::Bars,
            (false, false) => View::Lines,
        };
        let bars = MultiProgress::with_draw_target(match view {
            View::Bars => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        });
        let total =
            bars.add(ProgressBar::new(changes as u64).with_style(style("{pos}/{len} {wide_bar:.green} {elapsed}")));
        Self { view, bars, total, open: Mutex::new(HashMap::new()) }
    }

    /// Takes the bars away.
    pub fn end(&self) {
        self.total.finish_and_clear();
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match self.view {
            // Nothing can be done when the terminal is gone.
            View::Bars => drop(self.bars.println(line)),
            _ => ui::complain(line),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─")
}

/// A change as an event names it.
fn change_json(event: &str, change: &Change) -> Value {
    json!({
        "event": event,
        "action": change.action,
        "kind": change.kind,
        "name": change.name,
        "domain": change.domain,
    })
}

/// `created machine web`.
fn done(change: &Change) -> String {
    let word = match change.action {
        Action::Create => "created",
        Action::Update => "changed",
        Action::Restart => "restarted",
        Action::Replace => "replaced",
        Action::Start => "started",
        Action::Delete => "deleted",
    };
    match change.kind {
        Kind::Firewall => format!("{word} firewall"),
        kind => format!("{word} {kind} {}", change.name),
    }
}

impl Events for Watch {
    fn cancelled(&self) -> bool {
        signals::was_interrupted()
    }

    fn started(&self, change: &Change) {
        if self.view == View::Json {
            ui::print_json_line(&change_json("started", change));
        }
        let bar = (self.view == View::Bars).then(|| {
            let bar = self.bars.insert_before(&self.total, ProgressBar::new_spinner());
            bar.set_style(style("{spinner} {prefix} {msg}"));
            bar.set_prefix(change.to_string());
            bar.enable_steady_tick(TICK);
            bar
        });
        let open = Open { since: Instant::now(), bar, told: String::new() };
        self.open().insert(change.to_string(), open);
    }

    fn progress(&self, change: &Change, text: &str, amount: Option<(u64, u64)>) {
        let mut all = self.open();
        let Some(open) = all.get_mut(&change.to_string()) else { return };
        match self.view {
            View::Quiet => {}
            View::Json => {
                let mut event = change_json("progress", change);
                event["text"] = text.into();
                event["done"] = amount.map(|(done, _)| done).into();
                event["total"] = amount.map(|(_, total)| total).into();
                ui::print_json_line(&event);
            }
            View::Bars => {
                let Some(bar) = &open.bar else { return };
                match amount {
                    None => {
                        bar.set_style(style("{spinner} {prefix} {msg}"));
                        bar.set_message(text.to_owned());
                    }
                    Some((done, total)) => {
                        bar.set_style(style(amount_template(text)));
                        bar.set_length(total);
                        bar.set_position(done);
                    }
                }
            }
            // A new stage is worth a line, its bytes are not.
            View::Lines => {
                if amount.is_none() && open.told != text {
                    text.clone_into(&mut open.told);
                    ui::complain(&format!("{change}: {text}"));
                }
            }
        }
    }

    fn finished(&self, change: &Change, outcome: &Outcome) {
        let open = self.open().remove(&change.to_string());
        let took = open.as_ref().map_or(Duration::ZERO, |open| open.since.elapsed());
        if let Some(bar) = open.and_then(|open| open.bar) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        self.total.inc(1);
        if self.view == View::Json {
            let mut event = change_json("finished", change);
            event["milliseconds"] = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into();
            let (result, error, help) = match outcome {
                Outcome::Done => ("done", None, None),
                Outcome::Failed(error) => ("failed", Some(error.full_message()), error.help().map(str::to_owned)),
                Outcome::Skipped(because) => ("skipped", Some(because.clone()), None),
            };
            event["result"] = result.into();
            event["error"] = error.into();
            event["help"] = help.into();
            ui::print_json_line(&event);
            return;
        }
        match outcome {
            // What went wrong is told at the end.
            _ if self.view == View::Quiet => {}
            Outcome::Done => {
                self.say(&format!("{} {} {}", "✓".green(), done(change), ui::duration(took).dimmed()));
            }
            Outcome::Failed(error) => self.say(&format!("{} {change}: {}", "✗".red(), error.full_message())),
            Outcome::Skipped(because) => self.say(&format!("{} {change}: skipped, {because}", "-".yellow())),
        }
    }

    fn note(&self, text: &str) {
        match self.view {
            View::Json => ui::print_json_line(&json!({ "event": "note", "text": text })),
            View::Quiet => {}
            View::Bars | View::Lines => self.say(&format!("{} {text}", "note:".cyan())),
        }
    }
}

fn amount_template(unit: &str) -> &'static str {
    if unit == "bytes" {
        "{spinner} {prefix} {msg} {bar:24.cyan} {bytes}/{total_bytes} {bytes_per_sec}"
    } else {
        "{spinner} {prefix} {msg} {bar:24.cyan} {pos}/{len}"
    }
}

/// Shows one image being obtained.
#[derive(Debug)]
pub(crate) struct Fetch {
    bar: ProgressBar,
    lines: bool,
}

impl Fetch {
    /// Nothing is shown until something happens: an image at hand is no event.
    pub fn new(context: &Context) -> Self {
        let silent = context.quiet || context.json;
        let terminal = stderr().is_terminal();
        let target = if silent || !terminal { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target).with_style(style("{spinner} {msg}"));
        Self { bar, lines: !silent && !terminal }
    }
}

impl Progress for Fetch {
    fn stage(&self, text: &str) {
        self.bar.set_style(style("{spinner} {msg}"));
        self.bar.set_message(text.to_owned());
        self.bar.enable_steady_tick(TICK);
        if self.lines {
            ui::complain(text);
        }
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_style(style("{spinner} {msg} {bar:24.cyan} {bytes}/{total_bytes} {bytes_per_sec}"));
            self.bar.set_length(total);
        } else {
            self.bar.set_style(style("{spinner} {msg} {bytes} {bytes_per_sec}"));
        }
        self.bar.set_position(done);
    }

    fn steps(&self, done: u64, total: u64) {
        self.bar.set_style(style("{spinner} {msg} {bar:24.cyan} {pos}/{len}"));
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn note(&self, text: &str) {
        if self.lines {
            ui::complain(text);
        } else {
            self.bar.println(text);
        }
    }

    fn finished(&self) {
        self.bar.finish_and_clear();
    }

    fn cancelled(&self) -> bool {
        signals::was_interrupted()
    }
}
