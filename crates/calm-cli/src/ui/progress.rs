//! Progress of a long job: a bar on a terminal, plain lines elsewhere.

use super::format::{count, duration, rate, shorten};
use super::streams::{Streams, Verbosity, lock};
use super::{WIDTH, format};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a job counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Training steps.
    Steps,
    /// Tokens.
    Tokens,
    /// Bytes.
    Bytes,
    /// Anything else, by its plural: `documents`.
    Other(&'static str),
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Tokens => "tokens",
            Self::Bytes => "bytes",
            Self::Other(name) => name,
        }
    }

    fn amount(self, done: u64, total: Option<u64>) -> String {
        match (self, total) {
            (Self::Bytes, Some(total)) => {
                format!("{} of {}", format::bytes(done as f64), format::bytes(total as f64))
            }
            (Self::Bytes, None) => format::bytes(done as f64),
            (Self::Tokens, Some(total)) => {
                format!("{} of {} tokens", count(done as f64), count(total as f64))
            }
            (Self::Tokens, None) => format!("{} tokens", count(done as f64)),
            (_, Some(total)) => format!("{done}/{total} {}", self.name()),
            (_, None) => format!("{done} {}", self.name()),
        }
    }

    fn speed(self, per_second: f64) -> String {
        match self {
            Self::Bytes => format!("{}/s", format::bytes(per_second)),
            _ => rate(per_second, self.name()),
        }
    }
}

/// A plain line comes at least this long after the one before, when a quarter is done ...
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// ... and after this long in any case.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Speeds are averages over about this long.
const MEMORY: f64 = 15.0;

/// A job under way; made by [`Printer::progress`](super::Printer::progress). Dropped unfinished, it leaves the screen without a word.
pub struct Progress {
    streams: Arc<Streams>,
    label: String,
    unit: Unit,
    begun: Instant,
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

struct State {
    total: Option<u64>,
    done: u64,
    text: String,
    steps: Speed,
    tokens: Option<Tokens>,
    last_line: Duration,
    last_quarter: Option<u64>,
}

/// Tokens counted beside the job's own unit.
#[derive(Clone, Copy)]
struct Tokens {
    /// When counting began, and where: a resumed job does not begin at 0.
    begin: (Duration, u64),
    last: (Duration, u64),
    speed: Speed,
}

impl Tokens {
    /// Tokens per second since the beginning.
    fn average(&self) -> Option<f64> {
        let seconds = self.last.0.saturating_sub(self.begin.0).as_secs_f64();
        (seconds > 0.2).then(|| (self.last.1 - self.begin.1) as f64 / seconds)
    }
}

/// A running average of a speed.
#[derive(Clone, Copy)]
struct Speed {
    at: Duration,
    value: u64,
    per_second: Option<f64>,
}

impl Speed {
    fn update(&mut self, now: Duration, value: u64) {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        // Too short a time says nothing.
        if elapsed < 0.2 || value < self.value {
            return;
        }
        let current = (value - self.value) as f64 / elapsed;
        let average = self.per_second.unwrap_or(current);
        self.per_second = Some(average + (1.0 - (-elapsed / MEMORY).exp()) * (current - average));
        (self.at, self.value) = (now, value);
    }
}

impl Progress {
    pub(super) fn new(streams: Arc<Streams>, label: &str, total: Option<u64>, unit: Unit) -> Self {
        let wanted = streams.verbosity() >= Verbosity::Normal;
        let bar = streams.bars().filter(|_| wanted).map(|bars| {
            let bar = bars.add(ProgressBar::new(total.unwrap_or(0)));
            bar.set_style(style(label, total.is_some(), false));
            bar
        });
        let begin = Speed { at: Duration::ZERO, value: 0, per_second: None };
        let state = State {
            total,
            done: 0,
            text: String::new(),
            steps: begin,
            tokens: None,
            last_line: Duration::ZERO,
            last_quarter: None,
        };
        Self { streams, label: printable(label), unit, begun: Instant::now(), bar, state: Mutex::new(state) }
    }

    /// Says that the job goes on from a place reached before, so that speeds count from there.
    pub fn start_at(&self, done: u64) {
        let mut state = lock(&self.state);
        state.done = done;
        state.steps = Speed { at: self.begun.elapsed(), value: done, per_second: None };
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Changes the total once it is known better.
    pub fn set_total(&self, total: u64) {
        lock(&self.state).total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// How many tokens have been processed so far, from any beginning; shown as tokens per second in place of
    /// the speed of the job's own unit.
    pub fn tokens(&self, processed: u64) {
        self.tokens_at(processed, self.begun.elapsed());
    }

    fn tokens_at(&self, processed: u64, now: Duration) {
        let mut state = lock(&self.state);
        let tokens = state.tokens.get_or_insert(Tokens {
            begin: (now, processed),
            last: (now, processed),
            speed: Speed { at: now, value: processed, per_second: None },
        });
        tokens.last = (now, processed.max(tokens.begin.1));
        tokens.speed.update(now, processed);
    }

    /// How far it is, and what is worth telling: `loss 1.234  kl 0.5`.
    pub fn set(&self, done: u64, text: &str) {
        self.set_at(done, text, self.begun.elapsed());
    }

    fn set_at(&self, done: u64, text: &str, now: Duration) {
        let mut state = lock(&self.state);
        state.done = done;
        state.text = printable(text);
        state.steps.update(now, done);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if bar.message().is_empty() && !state.text.is_empty() {
                bar.set_style(style(&self.label, state.total.is_some(), true));
            }
            bar.set_prefix(self.status(&state).join("  "));
            bar.set_message(state.text.clone());
        } else if self.streams.verbosity() >= Verbosity::Normal && state.wants_line(now) {
            let line = self.line(&state);
            drop(state);
            self.streams.write_err(&line);
        }
    }

    /// Ends the job: one line with its time and a last word (perhaps empty).
    pub fn finish(self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.streams.verbosity() < Verbosity::Normal {
            return;
        }
        let elapsed = self.begun.elapsed();
        let state = lock(&self.state);
        let mut parts = vec![self.unit.amount(state.done, None), format!("in {}", duration(elapsed))];
        let average = state.tokens.as_ref().and_then(Tokens::average);
        parts.extend(average.map(|speed| rate(speed, "tokens")));
        parts.extend(pieces(&printable(text)));
        drop(state);
        self.streams.write_err(&fill(&self.label, &parts));
    }

    fn line(&self, state: &State) -> String {
        let mut parts = self.status(state);
        if state.total.is_some() {
            parts.insert(1, self.unit.amount(state.done, state.total));
        }
        parts.extend(pieces(&state.text));
        fill(&self.label, &parts)
    }

    /// How far it is, time left, speed.
    fn status(&self, state: &State) -> Vec<String> {
        let mut parts = Vec::new();
        match state.total {
            Some(total) => parts.push(format!("{:>3} %", percent(state.done, total))),
            None => parts.push(self.unit.amount(state.done, None)),
        }
        if let (Some(total), Some(speed)) = (state.total, state.steps.per_second)
            && speed > 0.0
            && total > state.done
        {
            let left = ((total - state.done) as f64 / speed).min(1e9);
            parts.push(format!("{} left", duration(Duration::from_secs_f64(left.max(1.0).round()))));
        }
        let speed = match &state.tokens {
            Some(tokens) => tokens.speed.per_second.map(|speed| rate(speed, "tokens")),
            None => state.steps.per_second.map(|speed| self.unit.speed(speed)),
        };
        parts.extend(speed);
        parts
    }
}

/// A line with the bar and the status (indicatif's prefix), and below it the text (its message), if there is
/// one: so that all of it is seen at 80 columns.
fn style(label: &str, bounded: bool, with_text: bool) -> ProgressStyle {
    let label = shorten(&printable(label), 20).replace('{', "{{").replace('}', "}}");
    let bar = if bounded { " {bar:20}" } else { "" };
    let text = if with_text { "\n    {wide_msg}" } else { "" };
    ProgressStyle::with_template(&format!("{label}{bar} {{prefix}}{text}"))
        .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("=> "))
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl State {
    fn wants_line(&mut self, now: Duration) -> bool {
        let quarter = self.total.map(|total| percent(self.done, total) / 25);
        let pause = now.saturating_sub(self.last_line);
        let reached = quarter != self.last_quarter && pause >= SHORTEST_PAUSE;
        // All that is left to say at the end is said by `finish`.
        let ended = self.total.is_some_and(|total| self.done >= total);
        if ended || !(reached || pause >= LONGEST_PAUSE) {
            return false;
        }
        (self.last_line, self.last_quarter) = (now, quarter);
        true
    }
}

fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)).min(100) as u64 }
}

/// A line of parts; those that find no room go to a further line.
fn fill(label: &str, parts: &[String]) -> String {
    let mut out = shorten(label, WIDTH);
    let mut used = out.chars().count();
    for part in parts {
        let length = part.chars().count();
        if used + 2 + length > WIDTH {
            out.push_str("\n    ");
            used = 4;
        } else {
            out.push_str("  ");
            used += 2;
        }
        out.push_str(part);
        used += length;
    }
    out
}

/// What a text is made of; two spaces stand between its pieces.
fn pieces(text: &str) -> impl Iterator<Item = String> {
    text.split("  ").map(str::trim).filter(|piece| !piece.is_empty()).map(str::to_string)
}

/// A text without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{ColorChoice, Printer, UiOptions};
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn plain_lines_come_at_quarters_and_every_ten_seconds() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        let bar = printer.progress("autoencoder", 1000, Unit::Steps);
        // One step in 0.1 s: 100 s in all, a line every 10 s and at the quarters.
        for step in 1..=1000 {
            bar.set_at(step, "loss 1.234", seconds(step as f64 * 0.1));
        }
        bar.finish("validation loss 1.1");
        let err = captured.err();
        let lines: Vec<&str> = err.lines().collect();
        assert!((12..=15).contains(&lines.len()), "{err}");
        assert!(!err.contains(|c: char| c.is_control() && c != '\n'), "{err:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{err}");
        assert_eq!(lines[0], "autoencoder    1 %  10/1000 steps  1 min 39 s left  10 steps/s  loss 1.234");
        for quarter in [" 25 %", " 50 %", " 75 %"] {
            assert!(err.contains(quarter), "{err}");
        }
        let last = lines.last().unwrap();
        assert!(
            last.starts_with("autoencoder  1000 steps  in ") && last.ends_with("  validation loss 1.1"),
            "{last}"
        );
    }

    #[test]
    fn a_short_job_leaves_one_line_and_a_dropped_one_none() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        let bar = printer.progress("tokens", 100, Unit::Other("documents"));
        for i in 0..=100 {
            bar.set_at(i, "", seconds(i as f64 * 0.001));
        }
        bar.finish("");
        drop(printer.progress("other", None, Unit::Bytes));
        assert_eq!(captured.err().lines().count(), 1, "{}", captured.err());
        assert!(captured.err().starts_with("tokens  100 documents  in "));
    }

    #[test]
    fn tokens_per_second_replace_the_units_own_speed() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        let bar = printer.progress("lm", 100, Unit::Steps);
        bar.start_at(50);
        bar.tokens_at(1_000_000, seconds(0.0));
        bar.tokens_at(1_025_000, seconds(2.0));
        assert_eq!(lock(&bar.state).tokens.as_ref().and_then(Tokens::average), Some(12_500.0));
        bar.set_at(60, "loss 2.0\r\x1b[31m", seconds(2.0));
        let err = captured.err();
        assert!(err.starts_with("lm   60 %  60/100 steps  "), "{err}");
        assert!(err.contains("12.5 k tokens/s") && !err.contains("steps/s"), "{err}");
        assert!(!err.contains(['\r', '\x1b']), "{err:?}");
        // 10 steps since the resume took 2 s: 40 more take 8 s.
        assert!(err.contains("8.0 s left"), "{err}");
    }

    #[test]
    fn a_job_of_unknown_length_shows_what_is_done() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        let bar = printer.progress("reading", None, Unit::Bytes);
        bar.set_at(25_000_000, "", seconds(10.0));
        bar.set_total(50_000_000);
        bar.set_at(40_000_000, "", seconds(20.0));
        let err = captured.err();
        assert!(err.contains("25.0 MB") && err.contains("2.5 MB/s"), "{err}");
        assert!(err.contains("80 %") && err.contains("40.0 MB of 50.0 MB"), "{err}");
    }

    #[test]
    fn long_texts_go_to_a_second_line_and_quiet_says_nothing() {
        let (printer, captured) = Printer::captured(UiOptions::default());
        let bar = printer.progress("autoencoder", 10, Unit::Steps);
        let text = "reconstruction 1.2345  kl 0.1234  accuracy 99.12 %  gradient norm 0.4321";
        bar.set_at(1, text, seconds(12.0));
        let err = captured.err();
        assert!(err.lines().count() == 2 && err.lines().all(|line| line.chars().count() <= WIDTH), "{err}");
        assert!(err.contains("\n    ") && err.contains("gradient norm 0.4321"), "{err}");

        let options = UiOptions { verbosity: Verbosity::Quiet, color: ColorChoice::Auto };
        let (printer, captured) = Printer::captured(options);
        let bar = printer.progress("x", 10, Unit::Steps);
        bar.set_at(5, "", seconds(60.0));
        bar.finish("");
        assert_eq!(captured.err(), "");
    }
}
