//! Rows to answer, read by a thread of their own a little ahead.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::data::row::{Columns, Row, Wanted};
use crate::data::rows::{Rows, TEXT};
use crate::fault::{Result, fault, hint_of, usage, which};

/// Rows of a file that are read at once.
const PIECE: usize = 512;
/// Pieces read ahead: of a file, and of a stream, where each is one row.
const AHEAD: [usize; 2] = [1, 512];
/// Name of standard input in messages.
pub const STANDARD: &str = "standard input";

/// Where rows come from.
pub enum Source {
    File(PathBuf),
    /// Standard input: rows come when somebody writes them.
    Stream,
    /// Texts of the command line, each a row: one, or two for a pair.
    Texts(Vec<Vec<String>>),
}

/// What the rows must have.
#[derive(Debug, Clone)]
pub struct Form {
    /// The columns that are read; if none are known, `find` tells them from a row.
    pub columns: Vec<String>,
    pub find: fn(&Columns) -> Option<Vec<String>>,
    /// True if the command line names them.
    pub is_given: bool,
    /// Columns of rows that are texts alone.
    pub plain: Vec<String>,
    /// Key of a JSON object that holds the rows.
    pub field: Option<String>,
}

/// Message of the thread that reads.
enum News {
    /// The columns that are read, and the unit of the rows' numbers.
    Known(Vec<String>, &'static str),
    Rows(Vec<Row>),
    End,
}

/// Rows that are being read.
pub struct Input {
    news: Receiver<Result<News>>,
    first: Option<Result<News>>,
    waiting: VecDeque<Row>,
    is_stream: bool,
    is_over: bool,
    /// The columns that are read; none before the first readable row.
    pub columns: Vec<String>,
    /// Unit of the rows' numbers.
    pub unit: &'static str,
}

/// Rows that are there.
pub enum Next {
    Rows(Vec<Row>),
    /// None came yet.
    Later,
    End,
}

impl Input {
    /// Begins to read.
    /// Fails when a file cannot be read or lacks a column; for a stream, that is told later.
    pub fn open(source: Source, form: Form) -> Result<Self> {
        let is_stream = matches!(source, Source::Stream);
        let (tell, news) = sync_channel(AHEAD[usize::from(is_stream)]);
        let read = move || {
            let end = read(source, &form, &tell).map(|()| News::End);
            // Without a listener, nobody is left to tell.
            let _ = tell.send(end);
        };
        thread::Builder::new().name("input".into()).spawn(read)?;
        let first = if is_stream { None } else { news.recv().ok() };
        let first = first.transpose()?.map(Ok);
        let (waiting, columns) = (VecDeque::new(), Vec::new());
        Ok(Self { news, first, waiting, is_stream, is_over: false, columns, unit: "line" })
    }

    /// Returns up to `most` rows. Of a file, these are as many as there are; of a stream, those that came, and if none did
    /// after `patience`, none.
    /// Fails when the input cannot be read on, or lacks a column.
    pub fn next(&mut self, most: usize, patience: Duration) -> Result<Next> {
        while self.waiting.len() < most && !self.is_over {
            let is_enough = !self.waiting.is_empty() && self.is_stream;
            let news = match self.first.take() {
                Some(first) => first,
                None if is_enough => match self.news.try_recv() {
                    Ok(news) => news,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Err(stopped()),
                },
                None => match self.news.recv_timeout(patience) {
                    Ok(news) => news,
                    Err(RecvTimeoutError::Timeout) => return Ok(Next::Later),
                    Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
                },
            };
            match news? {
                News::Known(columns, unit) => (self.columns, self.unit) = (columns, unit),
                News::Rows(rows) => self.waiting.extend(rows),
                News::End => self.is_over = true,
            }
        }
        let rows: Vec<Row> = self.waiting.drain(..self.waiting.len().min(most)).collect();
        Ok(if rows.is_empty() { Next::End } else { Next::Rows(rows) })
    }
}

fn stopped() -> anyhow::Error {
    fault("the input could not be read on").into()
}

/// Reads all rows and sends them.
fn read(source: Source, form: &Form, tell: &SyncSender<Result<News>>) -> Result<()> {
    let columns: Vec<&str> = form.columns.iter().map(String::as_str).collect();
    let wanted = Wanted { columns: &columns, field: form.field.as_deref(), ..Wanted::default() };
    let (mut rows, name, most) = match source {
        Source::File(path) => (Rows::open(&path, &wanted)?, path.display().to_string(), PIECE),
        Source::Stream => (Rows::of_stream(STANDARD, Box::new(std::io::stdin()))?, STANDARD.to_owned(), 1),
        Source::Texts(texts) => {
            let row = |(i, texts)| Row { number: i + 1, columns: Ok(plain(form, texts)) };
            // A listener that has gone wants no more.
            let _ = tell.send(Ok(News::Known(form.plain.clone(), "text")));
            let _ = tell.send(Ok(News::Rows(texts.into_iter().enumerate().map(row).collect())));
            return Ok(());
        }
    };
    let mut is_known = false;
    loop {
        let mut piece = rows.next(most)?;
        if piece.is_empty() {
            return Ok(());
        }
        if rows.is_plain() {
            for columns in piece.iter_mut().filter_map(|row| row.columns.as_mut().ok()) {
                let text = columns.remove(TEXT).map(|text| text.as_str().unwrap_or_default().to_owned());
                *columns = plain(form, text.into_iter().collect());
            }
        }
        if let Some(first) = piece.iter().find_map(|row| row.columns.as_ref().ok()).filter(|_| !is_known) {
            is_known = true;
            let columns = match rows.is_plain() {
                true => of_plain(form, &name)?,
                false if form.columns.is_empty() => found(form, first, &name)?,
                false => form.columns.clone(),
            };
            if !rows.is_plain() {
                rows.check(columns.iter().map(String::as_str)).map_err(|error| advised(&error, form))?;
            }
            if tell.send(Ok(News::Known(columns, rows.unit))).is_err() {
                return Ok(());
            }
        }
        if tell.send(Ok(News::Rows(piece))).is_err() {
            return Ok(());
        }
    }
}

/// Returns a row of texts alone.
fn plain(form: &Form, texts: Vec<String>) -> Columns {
    form.plain.iter().cloned().zip(texts.into_iter().map(Value::String)).collect()
}

/// Returns the column of plain lines, each of which is one text.
fn of_plain(form: &Form, name: &str) -> Result<Vec<String>> {
    if form.columns.len() < 2 {
        return Ok(form.plain.iter().take(1).cloned().collect());
    }
    let row: Map<String, Value> = form.columns.iter().map(|column| (column.clone(), "…".into())).collect();
    Err(usage(format!(
        "`{name}` has plain lines, but the columns `{}` are expected",
        form.columns.join("`, `")
    ))
    .hint(format!("write each row as a line of JSON: `{}`", Value::Object(row)))
    .into())
}

/// Returns the columns of the texts, recognised by the first row.
fn found(form: &Form, row: &Columns, name: &str) -> Result<Vec<String>> {
    (form.find)(row).ok_or_else(|| {
        usage(format!("cannot tell which column of `{name}` is to be read"))
            .hint(format!(
                "name it with `--columns`, or the two of a pair; {}",
                which("columns", "text", row.keys().map(String::as_str))
            ))
            .into()
    })
}

/// Returns the error for a missing column, with the option that names others.
fn advised(error: &anyhow::Error, form: &Form) -> anyhow::Error {
    let hint = hint_of(error).unwrap_or_default();
    let more = if form.is_given { "" } else { "; `--columns` names others" };
    usage(format!("{error:#}")).hint(format!("{hint}{more}")).into()
}
