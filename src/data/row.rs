//! One row of a file: as read, and as parsed.

use serde_json::{Map, Value};

use super::odd;
use crate::fault::{Fault, fault};

/// The columns of one row. Numbers, texts and nothing in flat files; JSON and Parquet may nest. See `odd` for values
/// that JSON cannot hold.
pub type Columns = Map<String, Value>;

/// One row of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its number in the file from 1, in the [`super::rows::Rows::unit`].
    pub number: usize,
    /// Its columns, or why it cannot be read.
    pub columns: std::result::Result<Columns, String>,
}

/// Reduces the columns of a row to plain JSON: long digits become a text, what cannot be used becomes null.
pub fn plain(mut columns: Columns) -> Columns {
    columns.values_mut().for_each(odd::plain);
    columns
}

/// Reason why a row cannot be used.
#[derive(Debug)]
pub enum Refusal {
    /// Something in the row itself.
    Row(String),
    /// Something in template or catalog that holds for every row.
    All(Fault),
}

impl From<Refusal> for anyhow::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Row(reason) => fault(reason).into(),
            Refusal::All(fault) => fault.into(),
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Row(reason)
    }
}

/// Criteria for finding the rows of a data set in a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Columns that rows of the data set have.
    pub columns: &'a [&'a str],
    /// The name of the split.
    pub split: &'a str,
    /// The key of a JSON object that holds its rows.
    pub field: Option<&'a str>,
    /// Columns whose values are used; `None` for all.
    pub kept: Option<&'a [&'a str]>,
    /// Column of classes, and their names. Where the file numbers these classes itself, rows hold their names.
    pub classes: Option<(&'a str, &'a [String])>,
}

/// A row as read from the file; rows are parsed later, many at once.
pub(super) struct Raw {
    pub number: usize,
    /// Approximate bytes of memory that it takes.
    pub size: usize,
    pub body: Body,
}

/// Content of a row.
pub(super) enum Body {
    /// Its JSON, and whether an error in it makes the whole file useless.
    Json(String, bool),
    /// Its columns, or why it cannot be read.
    Read(std::result::Result<Columns, String>),
}

impl Raw {
    /// Creates a row of about `size` bytes.
    pub fn new(number: usize, size: usize, body: Body) -> Self {
        Self { number, size, body }
    }
}

/// Names the kind of a value in words.
pub fn kind(value: &Value) -> &'static str {
    match (odd::of(value), value) {
        (Some(odd::Odd::Number(_)), _) | (None, Value::Number(_)) => "a number",
        (Some(_), _) => "nothing usable",
        (None, Value::Null) => "nothing",
        (None, Value::Bool(_)) => "`true` or `false`",
        (None, Value::String(_)) => "a text",
        (None, Value::Array(_)) => "a list",
        (None, Value::Object(_)) => "an object",
    }
}
