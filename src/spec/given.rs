//! A value of a document or of the command line, and the place that it came from.

use std::fmt;

use toml::Value;

/// Place that a key was given in.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// The line of an entry that takes the key over from another.
    Taken(usize),
    /// An override, as typed after `--set`.
    Set(String),
    /// The values of a sweep, as typed after `--sweep`.
    Sweep(String),
    /// Nowhere: the key is missing.
    #[default]
    Nowhere,
}

/// A value and the place that it came from.
#[derive(Debug, Clone)]
pub struct Given {
    /// The value.
    pub value: Value,
    /// As typed on the command line.
    pub raw: Option<String>,
    /// Orders the keys of a document as they stand in it, and those of the command line after them.
    pub at: usize,
    pub(super) place: Place,
    /// True if it takes precedence over the file's, also where the two are of keys that exclude each other.
    pub(super) overrides: bool,
}

impl Given {
    pub(super) fn new(value: Value, place: Place) -> Self {
        Self { value, raw: None, at: 0, place, overrides: false }
    }

    /// Returns one of the values that are given here together: it takes precedence over the file's.
    pub fn one(&self, value: Value, raw: Option<String>) -> Self {
        Self { value, raw, overrides: true, ..self.clone() }
    }

    /// Returns the `--set` that gives it.
    pub fn set(&self) -> Option<&str> {
        if let Place::Set(assignment) = &self.place { Some(assignment) } else { None }
    }

    /// Returns true if a `--sweep` gives it.
    pub fn is_swept(&self) -> bool {
        matches!(self.place, Place::Sweep(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) | Self::Taken(line) => write!(f, "line {line}: "),
            Self::Set(assignment) => write!(f, "`--set {assignment}`: "),
            Self::Sweep(assignment) => write!(f, "`--sweep {assignment}`: "),
            Self::Nowhere => Ok(()),
        }
    }
}
