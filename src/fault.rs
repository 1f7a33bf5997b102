//! User-facing errors: what was expected, what was found, where, and a hint.
//!
//! Everything returns [`Result`]. An error that a user can cause is a [`Fault`]; context is added on the way
//! up with `anyhow::Context`, and `main` prints the chain once, then the hint.

mod names;
mod panics;

use std::fmt;

pub use names::{beginning, nearest, short, unknown, which};
pub use panics::{Reading, contained, in_hand, locked, reading, words};

/// The result of everything that can fail.
pub type Result<T> = anyhow::Result<T>;

/// An error that a user can act on. Messages are lower case, without a full stop, literals in back-ticks.
#[derive(Debug, Clone)]
pub struct Fault {
    message: String,
    hint: Option<String>,
    code: u8,
}

/// Exit code of wrong usage.
const USAGE: u8 = 2;
/// Exit code of a process whose work could not go on since another was lost: EX_TEMPFAIL of `sysexits.h`, an invitation to try again.
pub const LOST: u8 = 75;

/// Creates a fault of the work itself (exit code 1).
pub fn fault(message: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: None, code: 1 }
}

/// Creates a fault of the command line or the recipe (exit code 2).
pub fn usage(message: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: None, code: USAGE }
}

impl Fault {
    /// Creates a fault that ends the command with this exit code.
    pub fn with_code(message: String, hint: Option<String>, code: u8) -> Self {
        Self { message, hint, code }
    }

    /// Adds advice on what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// Returns the hint of the innermost fault of the chain that has one.
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    error.chain().filter_map(|e| e.downcast_ref::<Fault>()).filter_map(|f| f.hint.as_deref()).last()
}

/// Returns the exit code for this error: 2 for wrong usage or a wrong recipe, [`LOST`], 1 for other failed work.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().filter_map(|e| e.downcast_ref::<Fault>()).map(|f| f.code).max().unwrap_or(1)
}

/// Returns the same error with `to` for `from`: a temporary name helps nobody.
pub fn renamed(error: anyhow::Error, from: &str, to: &str) -> anyhow::Error {
    let message = format!("{error:#}");
    if !message.contains(from) {
        return error;
    }
    let hint = hint_of(&error).map(|hint| hint.replace(from, to));
    Fault::with_code(message.replace(from, to), hint, exit_code(&error)).into()
}

/// Limits of a message: characters per line, lines, total characters. Quoted input may have any length.
const LONGEST: (usize, usize, usize) = (2_000, 60, 16_000);

/// Cuts the middle out of long lines, and the last of too many lines.
pub fn shortened(text: &str) -> String {
    let (width, height, most) = LONGEST;
    let (mut shown, mut size) = (Vec::new(), 0);
    for line in text.lines().take(height) {
        let line = without_middle(line, width);
        size += line.chars().count();
        if size > most {
            break;
        }
        shown.push(line);
    }
    let left = text.lines().count() - shown.len();
    if left > 0 {
        shown.push(format!("… {left} more lines"));
    }
    shown.join("\n")
}

fn without_middle(line: &str, width: usize) -> String {
    let (head, tail) = (width * 3 / 4, width / 4);
    let left = line.chars().count().saturating_sub(head + tail);
    if left == 0 {
        return line.to_owned();
    }
    let [start, end]: [String; 2] =
        [line.chars().take(head).collect(), line.chars().skip(head + left).collect()];
    format!("{start} … {left} characters … {end}")
}

/// Makes a message fit for a terminal: shortened, control characters escaped.
pub fn readable(message: &str) -> String {
    let shown = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    shortened(message).chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_quotes_is_shown_in_part() {
        assert_eq!(readable("`a` is wrong\n\tin line 1"), "`a` is wrong\n\tin line 1");
        assert_eq!(readable("found `\u{1b}[31m\0`"), "found `\\u{1b}[31m\\u{0}`");
        let whole = "é".repeat(2_000);
        assert_eq!(readable(&whole), whole);
        let long = format!("found `{}`, expected a number", "日".repeat(300_000));
        let shown = readable(&long);
        assert!(shown.starts_with("found `日") && shown.ends_with("日`, expected a number"), "{shown}");
        assert!(shown.contains(" … 298027 characters … "));
        assert!((2_000..2_100).contains(&shown.chars().count()));
        let lines = readable(&"fault\n".repeat(100_000));
        assert_eq!(lines.lines().count(), 61);
        assert!(lines.ends_with("… 99940 more lines"), "{lines}");
        let both = readable(&format!("{}\n", "a".repeat(5_000)).repeat(50));
        assert!(both.len() < 17_000 && both.ends_with("… 43 more lines"), "{both}");
    }
}
