//! Progress of long work: one line on a terminal, as wide as that, and a log line every ten seconds elsewhere.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle, WeakProgressBar};

use super::BARS;
use crate::fault::locked;

/// Time between two log lines if no bar is shown.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shorter work ends without a line (with one at `-v`).
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Widest bar in columns, and the narrowest that is worth showing.
const BAR: (usize, usize) = (24, 8);

/// Width of a terminal that does not tell its own.
const WIDTH: usize = 80;

/// Unit whose counts are shown as sizes.
pub const BYTES: &str = "bytes";

/// Long work in progress. Quiet mode hides it; if dropped early (an error), it clears its bar and prints
/// nothing more.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: String,
    total: u64,
    first: u64,
    began: Instant,
    last_line: Mutex<Instant>,
    done: Mutex<u64>,
    bar: Option<ProgressBar>,
}

/// The bar that is shown. Work inside other work shows on the same line, which the outer takes back with its next piece.
static SHOWN: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Returns the bar that is shown, or a new one.
fn shared_bar(label: &str) -> ProgressBar {
    let mut shown = locked(&SHOWN);
    if let Some(bar) = shown.as_ref().and_then(WeakProgressBar::upgrade) {
        return bar;
    }
    let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = BARS.add(ProgressBar::no_length().with_style(style).with_message(label.to_owned()));
    *shown = Some(bar.downgrade());
    bar
}

impl Progress {
    /// Starts the work `label` of `total` pieces, `unit` in the plural (`steps`, `examples`, or [`BYTES`]);
    /// 0 means that the total is unknown.
    pub fn new(total: u64, label: &str, unit: &str) -> Self {
        let bar = (!BARS.is_hidden()).then(|| shared_bar(label));
        let now = Instant::now();
        Self {
            label: label.to_owned(),
            unit: unit.to_owned(),
            total,
            first: 0,
            began: now,
            last_line: Mutex::new(now),
            done: Mutex::new(0),
            bar,
        }
    }

    /// Starts at `done` pieces finished before (in a resumed run), which do not count for the rate.
    pub fn starting_at(mut self, done: u64) -> Self {
        self.first = done;
        self.done = Mutex::new(done);
        self
    }

    /// Reports `done` finished pieces, and a `message` (the loss, the memory); cheap enough for every step.
    pub fn tick(&self, done: u64, message: &str) {
        *locked(&self.done) = done;
        let elapsed = self.began.elapsed();
        if let Some(bar) = &self.bar {
            bar.set_message(self.line(done, elapsed, message, width()));
            bar.tick();
            return;
        }
        let mut last_line = locked(&self.last_line);
        if last_line.elapsed() >= BETWEEN_LINES {
            *last_line = Instant::now();
            let Self { label, unit, total, .. } = self;
            let (per_second, state) =
                (self.rate(done, elapsed), self.state(done, elapsed, message).join(", "));
            tracing::info!(work = label, done, total, unit, per_second, "{label}: {state}");
        }
    }

    /// Clears the bar and logs the duration, unless too short to be worth a line.
    pub fn finish(self) {
        let elapsed = self.began.elapsed();
        let done = *locked(&self.done);
        let (work, seconds, summary) = (&self.label, elapsed.as_secs_f64(), self.summary(done, elapsed));
        if elapsed >= WORTH_A_LINE {
            tracing::info!(work, done, unit = self.unit, seconds, "{summary}");
        } else {
            tracing::debug!(work, done, unit = self.unit, seconds, "{summary}");
        }
    }

    /// Returns the parts of `120 of 1000 steps, 1m 13s left, loss 0.31, 12.0 steps/s`, the most important first.
    fn state(&self, done: u64, elapsed: Duration, message: &str) -> Vec<String> {
        let mut parts = vec![if self.total > 0 {
            format!("{} of {}", self.count(done), self.counted(self.total))
        } else {
            self.counted(done)
        }];
        let rate = self.rate(done, elapsed);
        let left = self.total.saturating_sub(done) as f64 / rate;
        if self.total > 0 && left < 1e9 {
            parts.push(format!("{} left", duration(Duration::from_secs_f64(left))));
        }
        let mut words = message.split(", ").filter(|words| !words.is_empty()).map(str::to_owned);
        parts.extend(words.next());
        if rate > 0.0 {
            parts.push(self.speed(rate));
        }
        parts.extend(words);
        parts
    }

    /// Returns `train ###--- 120 of 1000 steps, 1m 13s left`, with as many parts as fit into `width` columns, and the bar
    /// if it fits beside them.
    fn line(&self, done: u64, elapsed: Duration, message: &str, width: usize) -> String {
        let Self { label, total, .. } = self;
        // A terminal wraps what ends in its last column.
        let width = width.saturating_sub(1);
        let mut parts = self.state(done, elapsed, message);
        let columns = |parts: &[String]| label.chars().count() + 1 + parts.join(", ").chars().count();
        while parts.len() > 1 && columns(&parts) > width {
            parts.pop();
        }
        let (widest, narrowest) = BAR;
        let room = width.saturating_sub(columns(&parts) + 1).min(widest);
        let bar = match room {
            room if *total > 0 && room >= narrowest => {
                let full = (room as u64).saturating_mul(done.min(*total)) / total;
                let full = usize::try_from(full).unwrap_or(room);
                format!("{}{} ", "█".repeat(full), "░".repeat(room - full))
            }
            _ => String::new(),
        };
        format!("{label} {bar}{}", parts.join(", ")).chars().take(width).collect()
    }

    /// `train: 1000 steps in 5m 3s, 3.3 steps/s`
    fn summary(&self, done: u64, elapsed: Duration) -> String {
        let pieces = self.counted(done.saturating_sub(self.first));
        let rate = self.rate(done, elapsed);
        let speed = if rate > 0.0 { format!(", {}", self.speed(rate)) } else { String::new() };
        format!("{}: {pieces} in {}{speed}", self.label, duration(elapsed))
    }

    /// Returns pieces per second since the start; 0 before anything is known.
    fn rate(&self, done: u64, elapsed: Duration) -> f64 {
        let seconds = elapsed.as_secs_f64();
        if seconds > 0.0 { done.saturating_sub(self.first) as f64 / seconds } else { 0.0 }
    }

    fn count(&self, pieces: u64) -> String {
        if self.unit == BYTES { HumanBytes(pieces).to_string() } else { pieces.to_string() }
    }

    fn counted(&self, pieces: u64) -> String {
        if self.unit == BYTES { self.count(pieces) } else { format!("{pieces} {}", self.unit) }
    }

    fn speed(&self, rate: f64) -> String {
        if self.unit == BYTES {
            format!("{}/s", HumanBytes(rate as u64))
        } else {
            format!("{rate:.1} {}/s", self.unit)
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

/// Returns the columns of the terminal behind standard error.
fn width() -> usize {
    let found = rustix::termios::tcgetwinsize(io::stderr()).map(|size| usize::from(size.ws_col));
    found.ok().filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

/// `1h 2m`, `3m 4s`, `5.6s`
fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{:.1}s", elapsed.as_secs_f64()),
        (0, minutes, rest) => format!("{minutes}m {rest}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_time_left_and_message() {
        let progress = Progress::new(1000, "train", "steps");
        let state = progress.state(120, Duration::from_secs(10), "loss 0.31, 9 MiB").join(", ");
        assert_eq!(state, "120 of 1000 steps, 1m 13s left, loss 0.31, 12.0 steps/s, 9 MiB");
        assert_eq!(progress.state(0, Duration::ZERO, ""), ["0 of 1000 steps"]);
        assert_eq!(
            progress.summary(1000, Duration::from_secs(303)),
            "train: 1000 steps in 5m 3s, 3.3 steps/s"
        );
    }

    #[test]
    fn what_was_done_before_counts_for_no_rate() {
        let progress = Progress::new(1000, "train", "steps").starting_at(900);
        let state = progress.state(950, Duration::from_secs(10), "").join(", ");
        assert_eq!(state, "950 of 1000 steps, 10.0s left, 5.0 steps/s");
        assert_eq!(progress.summary(1000, Duration::from_secs(20)), "train: 100 steps in 20.0s, 5.0 steps/s");
    }

    #[test]
    fn bytes_are_shown_as_sizes_and_an_unknown_total_is_left_out() {
        let known = Progress::new(4 << 20, "download", BYTES);
        let state = known.state(1 << 20, Duration::from_secs(1), "").join(", ");
        assert_eq!(state, "1.00 MiB of 4.00 MiB, 3.0s left, 1.00 MiB/s");
        let unknown = Progress::new(0, "read", "rows");
        assert_eq!(unknown.state(7, Duration::from_secs(1), ""), ["7 rows", "7.0 rows/s"]);
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let shown = [5.64, 184.0, 3720.0].map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["5.6s", "3m 4s", "1h 2m"]);
    }

    #[test]
    fn the_line_fits_any_width_and_loses_its_least_part_first() {
        let progress = Progress::new(1000, "train", "steps");
        let line = |width| {
            progress.line(250, Duration::from_secs(25), "loss 0.3125, 300 examples/s, 540 MiB", width)
        };
        let whole = "train ██████░░░░░░░░░░░░░░░░░░ 250 of 1000 steps, 1m 15s left, loss 0.3125, 10.0 steps/s, \
                     300 examples/s, 540 MiB";
        assert_eq!(line(200), whole);
        assert_eq!(
            line(100),
            "train ██░░░░░░░░ 250 of 1000 steps, 1m 15s left, loss 0.3125, 10.0 steps/s, 300 examples/s, 540 MiB"
        );
        assert_eq!(
            line(80),
            "train 250 of 1000 steps, 1m 15s left, loss 0.3125, 10.0 steps/s, 300 examples/s"
        );
        assert_eq!(line(40), "train 250 of 1000 steps, 1m 15s left");
        for width in 1..=200 {
            assert!(line(width).chars().count() < width.max(1) + usize::from(width == 0), "{width}");
        }
    }
}
