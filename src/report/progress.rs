//! Progress of long work: a bar on a terminal, a log line every ten seconds elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::BARS;

/// Time between two log lines if no bar is shown.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shorter work ends without a line (with one at `-v`).
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// Templates of the bar with a known and an unknown total.
const WITH_TOTAL: &str = "{prefix} {bar:24} {msg}";
const WITHOUT_TOTAL: &str = "{prefix} {spinner} {msg}";

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

impl Progress {
    /// Starts the work `label` of `total` pieces, `unit` in the plural (`steps`, `examples`, or [`BYTES`]);
    /// 0 means that the total is unknown.
    pub fn new(total: u64, label: &str, unit: &str) -> Self {
        let bar = (!BARS.is_hidden()).then(|| {
            let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::no_length() };
            BARS.add(bar.with_style(style(total)).with_prefix(label.to_owned()))
        });
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
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        self
    }

    /// Reports `done` finished pieces, and a `message` (the loss, the memory); cheap enough for every step.
    pub fn tick(&self, done: u64, message: &str) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(self.state(done, self.began.elapsed(), message));
            return;
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= BETWEEN_LINES {
            *last_line = Instant::now();
            tracing::info!("{}: {}", self.label, self.state(done, self.began.elapsed(), message));
        }
    }

    /// Clears the bar and logs the duration, unless too short to be worth a line.
    pub fn finish(self) {
        let elapsed = self.began.elapsed();
        let done = *self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if elapsed >= WORTH_A_LINE {
            tracing::info!("{}", self.summary(done, elapsed));
        } else {
            tracing::debug!("{}", self.summary(done, elapsed));
        }
    }

    /// `120 of 1000 steps, 12.0 steps/s, 1m 13s left, loss 0.31`
    fn state(&self, done: u64, elapsed: Duration, message: &str) -> String {
        let mut parts = vec![if self.total > 0 {
            format!("{} of {}", self.count(done), self.counted(self.total))
        } else {
            self.counted(done)
        }];
        let rate = self.rate(done, elapsed);
        if rate > 0.0 {
            parts.push(self.speed(rate));
            let left = self.total.saturating_sub(done) as f64 / rate;
            if self.total > 0 && left < 1e9 {
                parts.push(format!("{} left", duration(Duration::from_secs_f64(left))));
            }
        }
        if !message.is_empty() {
            parts.push(message.to_owned());
        }
        parts.join(", ")
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

/// Shows the label and the bar; the rest is the message, so that both kinds of output agree.
fn style(total: u64) -> ProgressStyle {
    let template = if total > 0 { WITH_TOTAL } else { WITHOUT_TOTAL };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
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
        let state = progress.state(120, Duration::from_secs(10), "loss 0.31");
        assert_eq!(state, "120 of 1000 steps, 12.0 steps/s, 1m 13s left, loss 0.31");
        assert_eq!(progress.state(0, Duration::ZERO, ""), "0 of 1000 steps");
        assert_eq!(
            progress.summary(1000, Duration::from_secs(303)),
            "train: 1000 steps in 5m 3s, 3.3 steps/s"
        );
    }

    #[test]
    fn what_was_done_before_counts_for_no_rate() {
        let progress = Progress::new(1000, "train", "steps").starting_at(900);
        let state = progress.state(950, Duration::from_secs(10), "");
        assert_eq!(state, "950 of 1000 steps, 5.0 steps/s, 10.0s left");
        assert_eq!(progress.summary(1000, Duration::from_secs(20)), "train: 100 steps in 20.0s, 5.0 steps/s");
    }

    #[test]
    fn bytes_are_shown_as_sizes_and_an_unknown_total_is_left_out() {
        let known = Progress::new(4 << 20, "download", BYTES);
        let state = known.state(1 << 20, Duration::from_secs(1), "");
        assert_eq!(state, "1.00 MiB of 4.00 MiB, 1.00 MiB/s, 3.0s left");
        let unknown = Progress::new(0, "read", "rows");
        assert_eq!(unknown.state(7, Duration::from_secs(1), ""), "7 rows, 7.0 rows/s");
    }

    #[test]
    fn durations_read_as_people_say_them() {
        let shown = [5.64, 184.0, 3720.0].map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["5.6s", "3m 4s", "1h 2m"]);
    }

    #[test]
    fn both_templates_are_well_formed() {
        for template in [WITH_TOTAL, WITHOUT_TOTAL] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
