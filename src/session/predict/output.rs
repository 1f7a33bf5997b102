//! Answered rows as JSON lines, CSV or TSV, to a file or standard output.

use std::io::{self, Write};

use serde_json::Value;

use super::answer::{ERROR, Kind, flattened};
use crate::data::row::{Columns, Row, plain};
use crate::fault::{Result, fault};
use crate::spec::request::AnswerFormat;

/// Answered rows on their way out.
pub struct Output<'a> {
    out: &'a mut dyn Write,
    format: AnswerFormat,
    /// The columns of an answer.
    names: Vec<String>,
    /// The first columns in a flat format: those of the first readable row.
    header: Option<Vec<String>>,
    /// True once a column of the input got another name.
    is_renamed: bool,
    /// True once a row had other columns than those.
    is_ragged: bool,
    /// Rows written.
    pub rows: usize,
    /// Number of those without an answer, and the first one's place and reason.
    pub bad: (usize, String),
    /// Why the last line could not be written.
    pub failure: Option<io::Error>,
}

impl<'a> Output<'a> {
    pub fn new(out: &'a mut dyn Write, format: AnswerFormat, kind: &Kind) -> Self {
        let (bad, failure) = ((0, String::new()), None);
        let names = match format {
            AnswerFormat::Jsonl => kind.columns().iter().map(|name| (*name).to_owned()).collect(),
            AnswerFormat::Csv | AnswerFormat::Tsv => kind.flat_columns(),
        };
        Self { out, format, names, header: None, is_renamed: false, is_ragged: false, rows: 0, bad, failure }
    }

    /// Writes rows with their answers, or the reasons why they have none, as whole lines; `unit` is that of their numbers.
    /// Fails when they cannot be written; [`Output::failure`] then says why.
    pub fn write(
        &mut self,
        rows: impl Iterator<Item = (Row, std::result::Result<Columns, String>)>,
        unit: &str,
    ) -> Result<()> {
        let kept =
            |(row, answer): (Row, _)| (row.number, row.columns.map(|columns| self.kept(columns)), answer);
        let rows: Vec<_> = rows.map(kept).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        if self.format != AnswerFormat::Jsonl && self.header.is_none() {
            let readable = rows.iter().find_map(|(_, columns, _)| columns.as_ref().ok());
            let header: Vec<String> = readable.map(|row| row.keys().cloned().collect()).unwrap_or_default();
            let names: Vec<Value> =
                header.iter().cloned().chain(self.names.clone()).map(Value::String).collect();
            self.write_cells(&mut lines, names.iter().map(Some))?;
            self.header = Some(header);
        }
        for (number, columns, answer) in rows {
            self.rows += 1;
            let place = format!("{unit} {number}");
            let mut columns = columns.unwrap_or_default();
            let answer = answer.unwrap_or_else(|reason| {
                if self.bad.0 == 0 {
                    self.bad.1 = format!("{place}: {reason}");
                }
                self.bad.0 += 1;
                columns.entry(unit).or_insert(number.into());
                // A flat format has no column for the place of a row that cannot be read.
                let told = if self.header.is_some() { format!("{place}: {reason}") } else { reason };
                Columns::from_iter([(ERROR.to_owned(), told.into())])
            });
            match &self.header {
                Some(header) => {
                    let answer = flattened(answer);
                    let other = columns.keys().find(|name| !header.contains(name) && *name != unit);
                    if let Some(other) = other.filter(|_| !self.is_ragged) {
                        tracing::warn!(
                            "{place} has a column `{other}` that the first row lacks: it is left out"
                        );
                        self.is_ragged = true;
                    }
                    let cells = header.iter().map(|name| columns.get(name));
                    self.write_cells(
                        &mut lines,
                        cells.chain(self.names.iter().map(|name| answer.get(name))),
                    )?;
                }
                None => {
                    columns.extend(answer);
                    serde_json::to_writer(&mut lines, &columns)?;
                    lines.push(b'\n');
                }
            }
        }
        self.out.write_all(&lines).and_then(|()| self.out.flush()).map_err(|error| {
            self.failure = Some(error);
            fault("the answers cannot be written").into()
        })
    }

    /// Returns the columns of a row that stand beside its answer; those of the names of an answer's get others.
    fn kept(&mut self, columns: Columns) -> Columns {
        let mut columns = plain(columns);
        for name in &self.names {
            if let Some(value) = columns.shift_remove(name) {
                if !self.is_renamed {
                    tracing::warn!("the input has a column `{name}`: it is written as `input_{name}`");
                    self.is_renamed = true;
                }
                columns.insert(format!("input_{name}"), value);
            }
        }
        columns
    }

    /// Appends a line of a flat format.
    fn write_cells<'v>(
        &self,
        lines: &mut Vec<u8>,
        cells: impl Iterator<Item = Option<&'v Value>>,
    ) -> Result<()> {
        let is_tsv = self.format == AnswerFormat::Tsv;
        let (delimiter, quotes) = match is_tsv {
            true => (b'\t', csv::QuoteStyle::Never),
            false => (b',', csv::QuoteStyle::Necessary),
        };
        let text = |value: Option<&Value>| match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) if is_tsv => text.replace(['\t', '\n', '\r'], " "),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let mut writer = csv::WriterBuilder::new();
        let mut writer = writer.delimiter(delimiter).quote_style(quotes).from_writer(lines);
        writer.write_record(cells.map(text))?;
        Ok(writer.flush()?)
    }
}
