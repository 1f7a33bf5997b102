//! Rows of a local file: JSON lines, JSON, CSV, TSV or Parquet, each also gzipped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::parquet;
use crate::fault::{Result, fault};

/// The columns of one row. Numbers, texts and nothing in flat files; JSON and Parquet may nest.
pub type Columns = Map<String, Value>;

/// One row of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Its number in the file from 1, in the [`Rows::unit`].
    pub number: usize,
    /// Its columns, or why it cannot be read.
    pub columns: std::result::Result<Columns, String>,
}

/// All rows of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// What [`Row::number`] counts: `line` where the file has lines, otherwise `row`.
    pub unit: &'static str,
    /// Every column that occurs.
    pub columns: BTreeSet<String>,
    /// The rows in the order of the file, those that cannot be read included.
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    JsonLines,
    Json,
    Csv,
    Tsv,
    Parquet,
}

/// Reads a whole file; the format is told by the ending of its name.
///
/// # Errors
/// When the file is missing, its ending unknown, its gzip stream or Parquet structure broken, its text not UTF-8,
/// or when it holds no row. A row that is broken by itself is an `Err` in its [`Row::columns`].
pub fn read_rows(path: &Path) -> Result<Rows> {
    let (format, gzipped) = format_of(path)?;
    let rows = if format == Format::Parquet {
        read_parquet(path, gzipped)?
    } else {
        let bytes = read_bytes(path, gzipped)?;
        let text = utf8(path, &bytes)?;
        match format {
            Format::JsonLines => json_lines(text),
            Format::Json => json(path, text)?,
            Format::Tsv => separated(path, text, b'\t')?,
            _ => separated(path, text, b',')?,
        }
    };
    if rows.rows.is_empty() {
        return Err(fault(format!("`{}` holds no row", path.display())).into());
    }
    Ok(rows)
}

fn format_of(path: &Path) -> Result<(Format, bool)> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    let (stem, gzipped) = name.strip_suffix(".gz").map_or((name.as_str(), false), |stem| (stem, true));
    let format = match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "ndjson") => Format::JsonLines,
        Some("json") => Format::Json,
        Some("csv") => Format::Csv,
        Some("tsv") => Format::Tsv,
        Some("parquet") => Format::Parquet,
        _ => {
            let message = format!("cannot tell the format of `{}` from its name", path.display());
            let hint =
                "known endings: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, each also `.gz`";
            return Err(fault(message).hint(hint).into());
        }
    };
    Ok((format, gzipped))
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open `{}`", path.display()))
}

fn read_bytes(path: &Path, gzipped: bool) -> Result<Vec<u8>> {
    if !gzipped {
        return fs::read(path).with_context(|| format!("cannot read `{}`", path.display()));
    }
    let mut bytes = Vec::new();
    let unpacked = flate2::read::MultiGzDecoder::new(open(path)?).read_to_end(&mut bytes);
    unpacked.map_err(|e| broken_gzip(path, &e))?;
    Ok(bytes)
}

fn broken_gzip(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let message = format!("`{}` is not a whole gzip file: {error}", path.display());
    fault(message).hint("fetch the file again").into()
}

fn read_parquet(path: &Path, gzipped: bool) -> Result<Rows> {
    if !gzipped {
        return parquet::read(path, open(path)?);
    }
    let mut unpacked = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut packed = flate2::read::MultiGzDecoder::new(open(path)?);
    std::io::copy(&mut packed, &mut unpacked).map_err(|e| broken_gzip(path, &e))?;
    parquet::read(path, unpacked)
}

/// The text without a byte order mark.
fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        let message = format!("`{}` is not UTF-8 text: line {line}", path.display());
        fault(message).hint("convert it, for example with `iconv -f latin1 -t utf-8`")
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn json_lines(text: &str) -> Rows {
    let lines: Vec<(usize, &str)> = text
        .split('\n')
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let rows = lines
        .into_par_iter()
        .map(|(number, line)| {
            let columns = serde_json::from_str::<Value>(line)
                .map_err(|e| format!("not valid JSON: {}", reason(&e)))
                .and_then(object);
            Row { number, columns }
        })
        .collect();
    collect("line", rows)
}

/// The message of a JSON error without its place: every row is a text of its own, so line 1 says nothing.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(bare) => format!("{bare} at column {}", error.column()),
        None => message,
    }
}

fn object(value: Value) -> std::result::Result<Columns, String> {
    match value {
        Value::Object(columns) => Ok(columns),
        other => Err(format!("expected an object of columns, found {}", kind(&other))),
    }
}

/// What a JSON value is, in words.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "`true` or `false`",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// An array of rows, an object with one array of rows, or JSON lines under the name of JSON.
fn json(path: &Path, text: &str) -> Result<Rows> {
    let list = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(list)) => list,
        Ok(Value::Object(object)) => one_array(path, object)?,
        Ok(other) => {
            let message =
                format!("`{}` holds {} where a list of rows was expected", path.display(), kind(&other));
            return Err(fault(message).into());
        }
        Err(_) if text.trim().is_empty() => Vec::new(),
        Err(_) if first_line_is_an_object(text) => return Ok(json_lines(text)),
        Err(e) => return Err(fault(format!("`{}` is not valid JSON: {e}", path.display())).into()),
    };
    let rows = list
        .into_iter()
        .enumerate()
        .map(|(i, value)| Row { number: i + 1, columns: object(value) })
        .collect();
    Ok(collect("row", rows))
}

fn first_line_is_an_object(text: &str) -> bool {
    let first = text.trim_start().lines().next().unwrap_or_default();
    serde_json::from_str::<Columns>(first).is_ok()
}

fn one_array(path: &Path, object: Columns) -> Result<Vec<Value>> {
    let keys: Vec<String> = object.keys().map(|k| format!("`{k}`")).collect();
    let mut arrays = object.into_iter().filter_map(|(_, value)| match value {
        Value::Array(list) => Some(list),
        _ => None,
    });
    match (arrays.next(), arrays.next()) {
        (Some(list), None) => Ok(list),
        _ => {
            let message = format!("`{}` is an object without exactly one list of rows", path.display());
            Err(fault(message).hint(format!("its keys: {}", keys.join(", "))).into())
        }
    }
}

/// CSV with quotes, or TSV without: GLUE's own TSV files hold single quotes as plain text.
fn separated(path: &Path, text: &str, delimiter: u8) -> Result<Rows> {
    if delimiter != b'\t' {
        check_quotes(path, text, delimiter)?;
    }
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(delimiter != b'\t')
        .flexible(true)
        .from_reader(text.as_bytes());
    let cannot = || format!("cannot read `{}`", path.display());
    let names: Vec<String> = reader.headers().with_context(cannot)?.iter().map(str::to_owned).collect();
    if let Some(name) = names.iter().enumerate().find(|(i, n)| names.iter().take(*i).any(|m| m == *n)) {
        let message = format!("`{}` names the column `{}` twice", path.display(), name.1);
        return Err(fault(message).into());
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.with_context(cannot)?;
        let number = record.position().map_or(0, |p| usize::try_from(p.line()).unwrap_or(usize::MAX));
        rows.push(Row { number, columns: cells(&names, &record) });
    }
    let mut rows = collect("line", rows);
    rows.columns.extend(names);
    Ok(rows)
}

/// Refuses a quoted cell that goes on after its closing quote or never ends: read on, it would swallow the lines between
/// two such quotes without a word.
fn check_quotes(path: &Path, text: &str, delimiter: u8) -> Result<()> {
    let bytes = text.as_bytes();
    let [mut at, mut line] = [0, 1];
    let mut starts = true; // of a cell
    while let Some(&byte) = bytes.get(at) {
        if starts && byte == b'"' {
            let opened = line;
            let wrong = |what: &str| {
                let message =
                    format!("`{}` line {opened}: a cell that opens with a quote {what}", path.display());
                fault(message).hint("write a quote inside a quoted cell twice")
            };
            at += 1;
            loop {
                match (bytes.get(at), bytes.get(at + 1)) {
                    (Some(b'"'), Some(b'"')) => at += 1,
                    (Some(b'"'), _) => break,
                    (Some(byte), _) => line += usize::from(*byte == b'\n'),
                    (None, _) => return Err(wrong("is never closed").into()),
                }
                at += 1;
            }
            if bytes.get(at + 1).is_some_and(|&next| next != delimiter && next != b'\n' && next != b'\r') {
                return Err(wrong("goes on after its closing quote").into());
            }
            starts = false;
        } else {
            starts = [delimiter, b'\n', b'\r'].contains(&byte);
            line += usize::from(byte == b'\n');
        }
        at += 1;
    }
    Ok(())
}

/// An empty cell is nothing, as in pandas and `datasets`.
fn cells(names: &[String], record: &csv::StringRecord) -> std::result::Result<Columns, String> {
    if record.len() != names.len() {
        return Err(format!("expected {} columns, found {}", names.len(), record.len()));
    }
    let cell = |text: &str| if text.is_empty() { Value::Null } else { Value::String(text.to_owned()) };
    Ok(names.iter().cloned().zip(record.iter().map(cell)).collect())
}

/// Puts rows together with the columns that occur in them.
pub(super) fn collect(unit: &'static str, rows: Vec<Row>) -> Rows {
    let mut columns: BTreeSet<String> = BTreeSet::new();
    for name in rows.iter().filter_map(|row| row.columns.as_ref().ok()).flat_map(Map::keys) {
        if !columns.contains(name.as_str()) {
            columns.insert(name.clone());
        }
    }
    Rows { unit, columns, rows }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::json;

    use super::*;
    use crate::fault::hint_of;

    fn read(name: &str, bytes: &[u8]) -> Result<Rows> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        read_rows(&path)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn good(rows: &Rows) -> Vec<(usize, Value)> {
        let readable = rows.rows.iter().filter(|r| r.columns.is_ok());
        readable.map(|r| (r.number, Value::Object(r.columns.clone().unwrap()))).collect()
    }

    #[test]
    fn every_text_format_gives_the_same_rows() {
        let expected = [json!({"a": "x, \"y\"", "b": "1"}), json!({"a": "é", "b": null})];
        let csv = "a,b\n\"x, \"\"y\"\"\",1\né,\n";
        let tsv = "a\tb\nx, \"y\"\t1\né\t\n";
        let lines = format!("{}\n\n {}\r\n", expected[0], expected[1]);
        let array = json!(expected).to_string();
        let nested = json!({"version": 1, "data": expected}).to_string();
        for (name, text) in [
            ("f.csv", csv),
            ("f.TSV", tsv),
            ("f.jsonl", &lines),
            ("f.ndjson", &lines),
            ("f.json", &array),
            ("g.json", &nested),
            ("h.json", &lines),
        ] {
            for bytes in [text.as_bytes().to_vec(), [b"\xef\xbb\xbf", text.as_bytes()].concat()] {
                for (name, bytes) in [(name.to_owned(), bytes.clone()), (format!("{name}.gz"), gzip(&bytes))]
                {
                    let rows = read(&name, &bytes).unwrap();
                    let values: Vec<Value> = good(&rows).into_iter().map(|(_, v)| v).collect();
                    assert_eq!(values, expected, "{name}");
                    assert_eq!(rows.columns.iter().collect::<Vec<_>>(), ["a", "b"], "{name}");
                }
            }
        }
    }

    #[test]
    fn a_bad_line_is_told_by_number_and_the_others_stay() {
        let rows = read("f.jsonl", b"{\"a\":1}\n\n{\"a\":\n[1]\n{\"a\":2}\n").unwrap();
        assert_eq!(good(&rows), [(1, json!({"a": 1})), (5, json!({"a": 2}))]);
        let bad: Vec<(usize, String)> = rows
            .rows
            .iter()
            .filter(|r| r.columns.is_err())
            .map(|r| (r.number, r.columns.clone().unwrap_err()))
            .collect();
        assert_eq!(bad.len(), 2);
        assert_eq!(bad[0], (3, "not valid JSON: EOF while parsing a value at column 5".to_owned()));
        assert_eq!(bad[1], (4, "expected an object of columns, found a list".to_owned()));
        assert_eq!(rows.unit, "line");
    }

    #[test]
    fn ragged_rows_are_told_by_line() {
        let rows = read("f.tsv", b"a\tb\n1\t2\n1\n1\t\"2\t3\n4\t\"5\n").unwrap();
        assert_eq!(good(&rows), [(2, json!({"a": "1", "b": "2"})), (5, json!({"a": "4", "b": "\"5"}))]);
        assert_eq!(rows.rows[1].columns, Err("expected 2 columns, found 1".to_owned()));
        assert_eq!(rows.rows[2].columns, Err("expected 2 columns, found 3".to_owned()));
    }

    #[test]
    fn wrong_files_are_refused_with_a_reason() {
        let packed = gzip("{\"a\": \"some text that does not end\"}\n".repeat(50).as_bytes());
        let cases: [(&str, &[u8], &str); 13] = [
            ("f.txt", b"x", "cannot tell the format of"),
            ("f", b"x", "cannot tell the format of"),
            ("f.jsonl.gz", &packed[..packed.len() / 2], "is not a whole gzip file"),
            ("f.csv.gz", b"a,b\n1,2\n", "is not a whole gzip file"),
            ("f.jsonl", b"{\"a\":1}\n{\"a\":\"\xe9\"}\n", "is not UTF-8 text: line 2"),
            ("f.jsonl", b"", "holds no row"),
            ("f.json", b" \n", "holds no row"),
            ("f.csv", b"a,b\n", "holds no row"),
            ("f.csv", b"a,a\n1,2\n", "names the column `a` twice"),
            (
                "f.csv",
                b"a,b\n1,\"x\n\"\n2,\"y\n3,z\n",
                "` line 4: a cell that opens with a quote is never closed",
            ),
            ("f.csv", b"a,b\n1,\"x\n2,\"y\"\n", "` line 2: a cell that opens with a quote goes on after its"),
            ("f.json", b"{\"a\":[], \"b\":[]}", "is an object without exactly one list of rows"),
            ("f.json", b"[{\"a\":1},", "is not valid JSON: EOF while parsing a value at line 1 column 9"),
        ];
        for (name, bytes, expected) in cases {
            let error = format!("{:#}", read(name, bytes).unwrap_err());
            assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        }
        let error = read_rows(Path::new("/no/such.csv")).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot read `/no/such.csv`: No such file"), "{error:#}");
        assert!(hint_of(&read("f.txt", b"x").unwrap_err()).unwrap().contains("`.parquet`"));
    }
}
