//! Rows of CSV, with quotes, and of TSV, without: GLUE's own TSV files hold single quotes as plain text.

use std::collections::BTreeSet;
use std::io::{self, Read};

use serde_json::Value;

use super::json::Source;
use super::row::{Body, Columns, Raw};
use super::text_file::{LONGEST, TextFile};
use crate::fault::{Fault, Result, fault};

/// Returns the rows of a file and the names of its columns.
///
/// # Errors
/// When the first line cannot be read, is JSON, or names a column twice.
pub(super) fn open(mut text: TextFile, delimiter: u8) -> Result<(Source, Vec<String>)> {
    let path = text.name().to_string();
    let start = text.bytes()?;
    if is_json(start) {
        let message = format!("`{path}` line 1: expected the column names, found JSON");
        return Err(fault(message).hint("JSON lines are named `.jsonl`, other JSON `.json`").into());
    }
    let first = start.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let advice = advice(first, delimiter);
    let are_read = delimiter != b'\t';
    let quotes =
        Quotes { delimiter, are_read, at: At::Start, line: 1, opened: 1, row: (1, 0), is_return: false };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(are_read)
        .flexible(true)
        .from_reader(Checked { text, quotes, advice });
    let failed = move |error: csv::Error| failure(&path, error);
    let names = reader.byte_headers().map_err(&failed)?.clone();
    let text = |bytes: &[u8], line| reader.get_ref().text.utf8(line, bytes.to_vec());
    let names: Vec<String> = names.iter().map(|name| text(name, 1)).collect::<Result<_>>()?;
    let mut seen = BTreeSet::new();
    if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
        let message = format!("`{}` names the column `{name}` twice", reader.get_ref().text.name());
        return Err(fault(message).into());
    }
    let columns = names.clone();
    let mut record = csv::ByteRecord::new();
    let rows = std::iter::from_fn(move || match reader.read_byte_record(&mut record) {
        Ok(true) => {
            let line = record.position().map_or(0, |p| usize::try_from(p.line()).unwrap_or(usize::MAX));
            let size = record.as_slice().len() + CELL * record.len();
            let cells: Result<Vec<String>> =
                record.iter().map(|cell| reader.get_ref().text.utf8(line, cell.to_vec())).collect();
            Some(cells.map(|cells| Raw::new(line, size, Body::Read(row(&names, cells)))))
        }
        Ok(false) => None,
        Err(error) => Some(Err(failed(error))),
    });
    Ok((Box::new(rows), columns))
}

/// Returns true if a file begins as JSON does and no column name would.
fn is_json(start: &[u8]) -> bool {
    let mut bytes = start.iter().filter(|byte| !byte.is_ascii_whitespace());
    matches!((bytes.next(), bytes.next()), (Some(b'{'), Some(b'"')) | (Some(b'['), Some(b'{')))
}

/// Returns advice on a first line of one column that contains another separator.
pub(super) fn advice(line: &[u8], delimiter: u8) -> Option<&'static str> {
    let is_other = |byte: &u8| matches!(byte, b',' | b';' | b'\t');
    let is_one = !line.contains(&delimiter) && line.iter().any(is_other);
    is_one.then_some("columns are separated by commas in a `.csv` file, by tabs in a `.tsv` file")
}

/// Bytes that a cell takes besides its text.
const CELL: usize = 128;

/// Returns the columns of a row. An empty cell is nothing, as in pandas and `datasets`.
fn row(names: &[String], cells: Vec<String>) -> std::result::Result<Columns, String> {
    if cells.len() != names.len() {
        return Err(format!("expected {} columns, found {}", names.len(), cells.len()));
    }
    let value = |text: String| if text.is_empty() { Value::Null } else { Value::String(text) };
    Ok(names.iter().cloned().zip(cells.into_iter().map(value)).collect())
}

fn failure(path: &str, error: csv::Error) -> anyhow::Error {
    let message = format!("cannot read `{path}`: {error}");
    match error.into_kind() {
        csv::ErrorKind::Io(error) => match error.downcast::<Fault>() {
            Ok(fault) => fault.into(),
            Err(_) => fault(message).into(),
        },
        _ => fault(message).into(),
    }
}

/// Position of a byte within a row.
#[derive(Clone, Copy, PartialEq)]
enum At {
    /// The start of a cell.
    Start,
    Plain,
    Quoted,
    /// A quote in a quoted cell: its end, or the first of two.
    Quote,
}

/// A text whose lines end with line feeds alone, outside of quotes.
struct Checked {
    text: TextFile,
    quotes: Quotes,
    /// Advice on a wrong quote whose cause is elsewhere.
    advice: Option<&'static str>,
}

/// Refuses a quoted cell that continues after its closing quote or never ends: it would swallow the lines between
/// two such quotes without a word.
struct Quotes {
    delimiter: u8,
    /// True if quotes have a meaning.
    are_read: bool,
    at: At,
    line: usize,
    /// The line of the last quote that opened a cell.
    opened: usize,
    /// The line that the row began on, and its bytes so far.
    row: (usize, usize),
    is_return: bool,
}

impl Quotes {
    /// Returns the byte to read in place of this one, if any.
    fn check(&mut self, byte: u8) -> std::result::Result<Option<u8>, String> {
        let ends_line = byte == b'\n' || byte == b'\r';
        let ends = ends_line || byte == self.delimiter;
        self.at = match (self.at, byte) {
            (At::Start, b'"') if self.are_read => {
                self.opened = self.line;
                At::Quoted
            }
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) | (At::Quote, b'"') => At::Quoted,
            (At::Quote, _) if !ends => return Err(self.wrong("goes on after its closing quote")),
            (_, _) if ends => At::Start,
            _ => At::Plain,
        };
        let (is_quoted, is_second) = (self.at == At::Quoted, byte == b'\n' && self.is_return);
        self.is_return = byte == b'\r' && !is_quoted;
        if is_second {
            return Ok(None);
        }
        self.line += usize::from(byte == b'\n' || self.is_return);
        self.row = if ends_line && !is_quoted { (self.line, 0) } else { (self.row.0, self.row.1 + 1) };
        if self.row.1 > LONGEST {
            return Err(format!("line {}: a row of more than {} MiB", self.row.0, LONGEST >> 20));
        }
        Ok(Some(if self.is_return { b'\n' } else { byte }))
    }

    fn wrong(&self, what: &str) -> String {
        format!("line {}: a cell that opens with a quote {what}", self.opened)
    }
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let name = self.text.name().to_string();
        let hint = self.advice.unwrap_or(
            "a quoted cell ends with a quote before the next delimiter; a quote inside it is doubled",
        );
        let wrong = |what: String| io::Error::other(fault(format!("`{name}` {what}")).hint(hint));
        loop {
            let bytes = self.text.bytes().map_err(io::Error::other)?;
            if bytes.is_empty() {
                let is_open = self.quotes.at == At::Quoted;
                return if is_open { Err(wrong(self.quotes.wrong("is never closed"))) } else { Ok(0) };
            }
            let count = bytes.len().min(buffer.len());
            let mut filled = 0;
            for &byte in bytes.iter().take(count) {
                if let (Some(byte), Some(place)) =
                    (self.quotes.check(byte).map_err(wrong)?, buffer.get_mut(filled))
                {
                    *place = byte;
                    filled += 1;
                }
            }
            self.text.pass(count);
            if filled > 0 {
                return Ok(filled);
            }
        }
    }
}
