//! Errors for people: what was expected, what was found, where, and a hint.
//!
//! Everything returns [`Result`]. An error that a user can cause is a [`Fault`]; context is added on the way
//! up with `anyhow::Context`, and `main` prints the chain once, then the hint.

use std::fmt;

/// The result of everything that can fail.
pub type Result<T> = anyhow::Result<T>;

/// An error that a user can act on. Messages are lower case, without a full stop, literals in back-ticks.
#[derive(Debug, Clone)]
pub struct Fault {
    message: String,
    hint: Option<String>,
    usage: bool,
}

/// A fault of the work itself (exit code 1).
pub fn fault(message: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: None, usage: false }
}

/// A fault of the command line or the recipe (exit code 2).
pub fn usage(message: impl Into<String>) -> Fault {
    Fault { message: message.into(), hint: None, usage: true }
}

impl Fault {
    /// Adds what to do about it.
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

/// The hint of the innermost fault of the chain that has one.
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    error.chain().filter_map(|e| e.downcast_ref::<Fault>()).filter_map(|f| f.hint.as_deref()).last()
}

/// The exit code for this error: 2 for wrong usage or a wrong recipe, 1 for failed work.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let wrong_usage = error.chain().filter_map(|e| e.downcast_ref::<Fault>()).any(|f| f.usage);
    if wrong_usage { 2 } else { 1 }
}

/// The same error with `to` for `from`: a temporary name is of no use to anybody.
pub fn renamed(error: anyhow::Error, from: &str, to: &str) -> anyhow::Error {
    let message = format!("{error:#}");
    if !message.contains(from) {
        return error;
    }
    let hint = hint_of(&error).map(|hint| hint.replace(from, to));
    Fault { message: message.replace(from, to), hint, usage: exit_code(&error) == 2 }.into()
}

/// `; did you mean \`x\`?` for the nearest of `known`, or nothing where none is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
