//! Rows of a local file: JSON lines, JSON, CSV, TSV, Parquet, Arrow or plain lines, each also gzipped. They come in pieces: no file
//! is in memory as a whole, and nothing is read beyond the requested rows.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::features::ClassNames;
use super::json::{self, Source};
use super::row::{Body, Raw, Row, Wanted};
use super::text_file::TextFile;
use super::{arrow, packed, parquet, separated};
use crate::fault::{Result, fault, which};

/// Approximate bytes of rows read at once, one row at least.
const PIECE: usize = 1 << 21;
/// Number of rows that tell the form of a file.
const ENOUGH: usize = 100;
/// The column of plain lines.
pub const TEXT: &str = "text";

/// The rows of a file in its order, those that cannot be read included.
pub struct Rows {
    /// Unit of [`Row::number`]: `line` if the file has lines, otherwise `row`.
    pub unit: &'static str,
    path: PathBuf,
    format: Format,
    is_packed: bool,
    source: Source,
    kept: Option<Vec<String>>,
    /// The columns that occurred so far.
    columns: BTreeSet<String>,
    /// Keys of a JSON object that hold lists which are not read as rows.
    lists: Vec<String>,
    read: usize,
    /// True if the first row cannot be read.
    is_broken: bool,
    /// True if there may be no row at all.
    may_be_empty: bool,
    /// What the file says of the types of its columns.
    features: Option<String>,
    classes: Option<ClassNames>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    JsonLines,
    Json,
    Csv,
    Tsv,
    Parquet,
    Arrow,
    /// Lines of nothing but a text.
    Text,
}

impl Rows {
    /// Opens a file; the ending of its name gives its format.
    ///
    /// # Errors
    /// When the file is missing, its ending unknown, or its start broken: a gzip stream, Parquet structure, header.
    pub fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self> {
        let (format, is_packed) = format_of(path)?;
        let text = || TextFile::open(path, is_packed);
        let ([mut lists, mut columns], mut features) = ([Vec::new(), Vec::new()], None);
        let (unit, source) = match format {
            Format::JsonLines => ("line", json::lines(text()?)),
            Format::Json => {
                let document = json::document(path, is_packed, wanted)?;
                lists = document.lists;
                (document.unit, document.rows)
            }
            Format::Csv | Format::Tsv => {
                let (source, names) = separated::open(text()?, format.delimiter())?;
                columns = names;
                ("line", source)
            }
            Format::Parquet => {
                let (source, names, said) = parquet::open(path, seekable(path, is_packed)?)?;
                (columns, features) = (names, said);
                ("row", source)
            }
            Format::Arrow => {
                let (source, names, said) = arrow::open(path, seekable(path, is_packed)?)?;
                (columns, features) = (names, said);
                ("row", source)
            }
            Format::Text => {
                columns = vec![TEXT.to_owned()];
                ("line", texts(text()?))
            }
        };
        let columns = columns.into_iter().collect();
        let kept = wanted.kept.map(|kept| kept.iter().map(|name| (*name).to_owned()).collect());
        let path = path.to_owned();
        // Other names than the entry's mean that its own are those of the numbers.
        let classes = wanted.classes.and_then(|(column, labels)| {
            let own = ClassNames::read(features.as_deref(), column)?;
            own.names().iter().all(|name| labels.contains(name)).then_some(own)
        });
        let plain = Self::over(path, (format, is_packed), unit, source);
        Ok(Self { features, classes, kept, columns, lists, ..plain })
    }

    /// Returns the rows of a source of which nothing else is known.
    fn over(path: PathBuf, (format, is_packed): (Format, bool), unit: &'static str, source: Source) -> Self {
        Self {
            features: None,
            classes: None,
            unit,
            path,
            format,
            is_packed,
            source,
            kept: None,
            columns: BTreeSet::new(),
            lists: Vec::new(),
            read: 0,
            is_broken: false,
            may_be_empty: false,
        }
    }

    /// Reads a stream, which messages call `name`: JSON lines if it begins as an object does, else plain lines. Rows come as
    /// they are written.
    ///
    /// # Errors
    /// When it cannot be read, or does not begin as UTF-8 text.
    pub fn of_stream(name: &str, stream: Box<dyn Read>) -> Result<Self> {
        let path = PathBuf::from(name);
        let mut text = TextFile::over(&path, false, stream)?;
        while text.bytes()?.first().is_some_and(u8::is_ascii_whitespace) {
            text.pass(1);
        }
        let start = text.bytes()?;
        let begins = |with: u8, next: &[u8]| {
            let rest = start.strip_prefix(&[with]).unwrap_or_default().trim_ascii_start();
            rest.first().is_some_and(|byte| next.contains(byte))
        };
        if begins(b'[', b"{") {
            let message =
                format!("`{name}` holds a list of JSON, where JSON lines or plain lines were expected");
            return Err(fault(message).hint("save it to a file named `.json`, and pass its name").into());
        }
        let (format, source) = match begins(b'{', b"\"}") {
            true => (Format::JsonLines, json::lines(text)),
            false => (Format::Text, texts(text)),
        };
        Ok(Self { may_be_empty: true, ..Self::over(path, (format, false), "line", source) })
    }

    /// Returns true if the rows are plain lines, in the column [`TEXT`].
    pub fn is_plain(&self) -> bool {
        self.format == Format::Text
    }

    /// Returns the next rows, at most `at_most`; none at the end.
    ///
    /// # Errors
    /// When the file cannot be read on, its text is not UTF-8, it holds no row at all, or JSON that does not stand on lines
    /// as its name says. A row that is broken by itself is an `Err` in its [`Row::columns`].
    pub fn next(&mut self, at_most: usize) -> Result<Vec<Row>> {
        let (mut piece, mut size) = (Vec::new(), 0);
        while piece.len() < at_most && size < PIECE {
            let Some(raw) = self.source.next().transpose()? else { break };
            size += raw.size;
            piece.push(raw);
        }
        let (path, kept) = (&self.path, self.kept.as_deref());
        let mut rows: Vec<Row> =
            piece.into_par_iter().map(|raw| parsed(path, raw, kept)).collect::<Result<_>>()?;
        if let Some(classes) = &self.classes {
            rows.iter_mut().filter_map(|row| row.columns.as_mut().ok()).for_each(|row| classes.apply(row));
        }
        if self.read == 0 {
            self.is_broken = rows.first().is_some_and(|row| row.columns.is_err());
            self.check_lines()?;
        }
        self.read += rows.len();
        if self.read == 0 && !self.may_be_empty {
            return Err(fault(format!("`{}` holds no row", path.display())).into());
        }
        for name in rows.iter().filter_map(|row| row.columns.as_ref().ok()).flat_map(Map::keys) {
            if !self.columns.contains(name.as_str()) {
                self.columns.insert(name.clone());
            }
        }
        Ok(rows)
    }

    /// Refuses the file if one of these columns has not occurred in it so far while others have.
    ///
    /// # Errors
    /// Names the column and the nearest of those that occurred.
    pub fn check<'a>(&self, columns: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut columns = columns.filter(|column| !self.columns.contains(*column));
        let Some(column) = columns.next().filter(|_| !self.columns.is_empty()) else { return Ok(()) };
        let message = format!("`{}` has no column `{column}`", self.path.display());
        let list = self.lists.first().map(|list| {
            format!("`field = \"{list}\"` in the catalog entry takes the list under `{list}` as the rows; ")
        });
        let only = self.columns.first().filter(|_| self.columns.len() == 1);
        let advice = only.and_then(|only| match self.format {
            Format::Csv | Format::Tsv => separated::advice(only.as_bytes(), self.format.delimiter()),
            _ => None,
        });
        let first = list.or(advice.map(|advice| format!("{advice}; "))).unwrap_or_default();
        let near = which("columns", column, self.columns.iter().map(String::as_str));
        Err(fault(message).hint(first + &near).into())
    }

    /// Returns the names that the file gives the classes of a column.
    pub fn class_names(&self, column: &str) -> Option<Vec<String>> {
        Some(ClassNames::read(self.features.as_deref(), column)?.names().to_vec())
    }

    /// Returns advice on rows that cannot be read, if the first one is among them.
    pub fn advice(&self) -> Option<&'static str> {
        let is_of_lines = self.is_broken && self.format == Format::JsonLines;
        is_of_lines.then_some("each line must be one JSON object")
    }

    /// Refuses other JSON named as JSON lines: the last element of a multi-line list would pass for all rows.
    fn check_lines(&self) -> Result<()> {
        if self.format != Format::JsonLines || !self.is_broken || !self.is_document() {
            return Ok(());
        }
        let message = format!("`{}` has JSON, but not one object per line", self.path.display());
        let name = packed::renamed(&self.path, "json", self.is_packed);
        Err(fault(message).hint(format!("name it `{name}`")).into())
    }

    /// Returns true if the file could be read were it named as JSON.
    fn is_document(&self) -> bool {
        let is_row = |raw: Result<Raw>| {
            raw.and_then(|raw| parsed(&self.path, raw, None)).is_ok_and(|row| row.columns.is_ok())
        };
        let document = json::document(&self.path, self.is_packed, &Wanted::default());
        document.is_ok_and(|document| document.rows.take(ENOUGH).all(is_row))
    }
}

impl Format {
    /// Returns the separator of columns.
    fn delimiter(self) -> u8 {
        if self == Self::Tsv { b'\t' } else { b',' }
    }
}

/// Returns plain lines as rows, skipping empty ones.
fn texts(mut text: TextFile) -> Source {
    let row = |(number, line): (usize, String)| {
        let size = line.len();
        Raw::new(number, size, Body::Read(Ok(Map::from_iter([(TEXT.to_owned(), Value::String(line))]))))
    };
    Box::new(std::iter::from_fn(move || text.next_filled().transpose().map(|line| line.map(row))))
}

fn parsed(path: &Path, raw: Raw, kept: Option<&[String]>) -> Result<Row> {
    let columns = match raw.body {
        Body::Read(columns) => columns,
        Body::Json(json, is_all) => match json::columns(&json, kept) {
            Ok(columns) => columns,
            Err(reason) if is_all => {
                let message = format!("`{}` is not valid JSON: row {}: {reason}", path.display(), raw.number);
                return Err(fault(message).into());
            }
            Err(reason) => Err(format!("not valid JSON: {reason}")),
        },
    };
    Ok(Row { number: raw.number, columns })
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
        Some("arrow") => Format::Arrow,
        Some("txt") => Format::Text,
        _ => {
            let message = format!("cannot tell the format of `{}` from its name", path.display());
            let hint = "known extensions: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt`, each also `.gz`";
            return Err(fault(message).hint(hint).into());
        }
    };
    Ok((format, gzipped))
}

/// Opens a Parquet or Arrow file; a packed one is unpacked first.
fn seekable(path: &Path, is_packed: bool) -> Result<std::fs::File> {
    let file = packed::open(path, is_packed)?;
    if !is_packed {
        return Ok(file);
    }
    let mut unpacked = tempfile::tempfile().context("cannot create a temporary file")?;
    let mut members = packed::Members::new(file);
    std::io::copy(&mut members, &mut unpacked).map_err(|e| packed::broken(path, &e))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use serde_json::{Value, json};

    use super::super::text_file;
    use super::*;
    use crate::fault::hint_of;

    /// Contents of a file.
    #[derive(Debug)]
    struct All {
        unit: &'static str,
        columns: Vec<String>,
        rows: Vec<Row>,
    }

    fn read_all(path: &Path, wanted: &Wanted<'_>) -> Result<All> {
        let mut rows = Rows::open(path, wanted)?;
        let mut found = Vec::new();
        loop {
            let piece = rows.next(2)?;
            if piece.is_empty() {
                rows.check(wanted.columns.iter().copied())?;
                return Ok(All { unit: rows.unit, columns: rows.columns.into_iter().collect(), rows: found });
            }
            found.extend(piece);
        }
    }

    fn read_with(name: &str, bytes: &[u8], wanted: &Wanted<'_>) -> Result<All> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        read_all(&path, wanted)
    }

    fn read(name: &str, bytes: &[u8]) -> Result<All> {
        read_with(name, bytes, &Wanted::default())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn good(rows: &All) -> Vec<(usize, Value)> {
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
                    assert_eq!(rows.columns, ["a", "b"], "{name}");
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
        let cases: [(&str, &[u8], &str); 26] = [
            ("f.text", b"x", "cannot tell the format of"),
            ("f", b"x", "cannot tell the format of"),
            ("f.jsonl.gz", &packed[..packed.len() / 2], "is not a complete gzip file"),
            ("f.csv.gz", b"\x1f", "is not a complete gzip file"),
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
            ("f.json", b"[{\"a\":1},", "is not valid JSON: it ends where a value was expected at line 1"),
            ("f.json", b"[{\"a\":1,", "is not valid JSON: it ends inside a value at line 1"),
            ("f.json", b"[{\"a\":1},]", "is not valid JSON: expected a value at line 1"),
            ("f.json", b"[{\"a\":1}\n", "is not valid JSON: it ends where `,` or `]` was expected at line 2"),
            ("f.json", b"[{\"a\":1}] 2", "is not valid JSON: it goes on after its list of rows at line 1"),
            ("f.json", b"[{\"a\":1}, {\"a\":tru}]", "is not valid JSON: row 2: expected ident at column 9"),
            ("f.json", b"{\n\"a\":tru}", "is not valid JSON: row 1: expected ident at column 8"),
            ("f.json", b"{\"a\":1,", "is not valid JSON: expected a key at line 1"),
            ("f.json", b"\"x\"", "holds a text where rows were expected"),
            ("f.json", b"1.5", "holds a number where rows were expected"),
            ("f.json", b"nul", "is not valid JSON"),
            ("f.json", b"{\"data\":[]}", "holds no row"),
            ("f.jsonl", b"\xff\xfe{\0\"\0", "is not UTF-8 text: it begins as UTF-16"),
            ("f.csv", b"a\0,\0b\0", "is not UTF-8 text: it begins as UTF-16"),
            ("f.csv", b"a,b\n1,\xe9\n", "is not UTF-8 text: line 2"),
        ];
        for (name, bytes, expected) in cases {
            let error = format!("{:#}", read(name, bytes).unwrap_err());
            assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        }
        let error = read_all(Path::new("/no/such.csv"), &Wanted::default()).unwrap_err();
        assert!(format!("{error:#}").starts_with("cannot read `/no/such.csv`: No such file"), "{error:#}");
        assert!(hint_of(&read("f.text", b"x").unwrap_err()).unwrap().contains("`.parquet`"));
    }

    #[test]
    fn what_is_not_what_its_name_says_is_told_with_its_name() {
        let packed = gzip(b"{\"a\":1}\n");
        let parquet: &[u8] = b"PAR1\x15\x04\x15\x10";
        let packed_parquet = gzip(parquet);
        let safetensors = [&72_u64.to_le_bytes()[..], b"{\"__metadata__\""].concat();
        let long = [&0x3_0041_u64.to_le_bytes()[..], b"{\"__metadata__\""].concat();
        let cases: [(&str, &[u8], &str, &str); 16] = [
            ("f.jsonl", &packed, "f.jsonl` is compressed with gzip", "name it `f.jsonl.gz`"),
            ("f.parquet", &packed, "f.parquet` is compressed with gzip", "name it `f.parquet.gz`"),
            ("f.jsonl.gz", b"{\"a\":1}\n", "f.jsonl.gz` is not compressed with gzip", "name it `f.jsonl`"),
            ("f.csv.GZ", b"a,b\n1,2\n", "f.csv.GZ` is not compressed with gzip", "name it `f.csv`"),
            ("f.jsonl", b"\x28\xb5\x2f\xfd\0\0", "is compressed with zstd", "decompress it first"),
            ("f.jsonl.gz", b"\x28\xb5\x2f\xfd\0\0", "is compressed with zstd", "decompress it first"),
            ("f.csv", b"PK\x03\x04\x14\0", "is compressed with zip", "decompress it first"),
            ("f.parquet", b"PK\x03\x04\x14\0", "is compressed with zip", "decompress it first"),
            ("f.json", b"\xfd7zXZ\0", "is compressed with xz", "decompress it first"),
            ("f.jsonl", parquet, "f.jsonl` is Parquet", "name it `f.parquet`"),
            ("f.csv.gz", &packed_parquet, "f.csv.gz` is Parquet", "name it `f.parquet.gz`"),
            (
                "f.jsonl",
                &safetensors,
                "is not text: it begins as a binary file does",
                "JSON, CSV, TSV and Parquet",
            ),
            ("f.jsonl", &long, "is not text: it begins as a binary file does", "JSON, CSV, TSV and Parquet"),
            ("f.jsonl", b"{\0\0\0\"\0\0\0", "it begins as UTF-16 or UTF-32 does", "iconv -f utf-16"),
            ("f.csv", b"\0a\0,\0b", "it begins as UTF-16 or UTF-32 does", "iconv -f utf-16"),
            ("f.csv.gz", b"<!DOCTYPE html>\n", "f.csv.gz` is an HTML page", "download the file itself"),
        ];
        for (name, bytes, words, hint) in cases {
            let error = read(name, bytes).unwrap_err();
            assert!(error.to_string().contains(words), "{name}: {error}");
            let found = hint_of(&error).unwrap();
            assert!(found.contains(hint), "{name}: {found}");
        }
        assert_eq!(good(&read("f.csv", b"PAR1,b\n1,2\n").unwrap()), [(2, json!({"PAR1": "1", "b": "2"}))]);
    }

    #[test]
    fn zeros_after_the_members_of_a_gzip_file_are_passed_over() {
        let [one, two] = [b"{\"a\":1}\n", b"{\"a\":2}\n"].map(|line| gzip(line));
        let zeros = vec![0_u8; 100_000];
        for bytes in [
            [&one[..], &two].concat(),
            [&one[..], &two, &zeros].concat(),
            [&one[..], &zeros, &two].concat(),
            [&one[..], &gzip(b""), &two, &[0]].concat(),
        ] {
            let rows = read("f.jsonl.gz", &bytes).unwrap();
            assert_eq!(good(&rows), [(1, json!({"a": 1})), (2, json!({"a": 2}))]);
        }
        for end in [&[0, 1][..], &two[..two.len() - 1], b"\x1f", b"x"] {
            let error = read("f.jsonl.gz", &[&one[..], end].concat()).unwrap_err().to_string();
            assert!(error.contains("is not a complete gzip file"), "{error}");
        }
    }

    #[test]
    fn json_and_separators_under_other_names_are_told() {
        let rows = json!([{"a": 1, "b": [{"c": 2}]}, {"a": 3, "b": []}]);
        let objects = format!("{:#}\n{:#}\n", rows[0], rows[1]);
        let by_row = format!("[\n{},\n{}\n]\n", rows[0], rows[1]);
        let beside = format!("{} {}\n", rows[0], rows[1]);
        for text in [format!("{rows:#}"), rows.to_string(), objects, by_row, beside] {
            let packed = gzip(text.as_bytes());
            for (name, bytes, hint) in [
                ("f.jsonl", text.as_bytes(), "name it `f.json`"),
                ("f.ndjson.gz", &packed, "name it `f.json.gz`"),
            ] {
                let error = read(name, bytes).unwrap_err();
                assert!(error.to_string().ends_with("has JSON, but not one object per line"), "{error}");
                assert_eq!(hint_of(&error), Some(hint), "{text}");
            }
            for name in ["f.csv", "f.tsv"] {
                let error = read(name, text.as_bytes()).unwrap_err();
                assert!(error.to_string().ends_with(" line 1: expected the column names, found JSON"));
                assert_eq!(hint_of(&error), Some("JSON lines are named `.jsonl`, other JSON `.json`"));
            }
        }
        // Lines that are not rows, nor JSON of another form.
        for text in
            ["[{\"a\":1}]\n[{\"a\":2}]\n", "{\"a\":1},\n{\"a\":2}\n", "{\"a\":\n{\"a\":2}\n", "x\n{}\n"]
        {
            let rows = read("f.jsonl", text.as_bytes()).unwrap();
            assert!(rows.rows[0].columns.is_err() && rows.rows.len() == 2, "{text}");
        }
        let wanted = Wanted { columns: &["a"], ..Wanted::default() };
        for (name, text, words) in [
            ("f.csv", "a;b\n1;2\n", "has no column `a`"),
            ("f.csv", "a\tb\n1\t2\n", "has no column `a`"),
            ("f.tsv", "a,b\n1,2\n", "has no column `a`"),
            ("f.csv", "\"a\";\"b\"\n1;2\n", "goes on after its closing quote"),
        ] {
            let error = read_with(name, text.as_bytes(), &wanted).unwrap_err();
            assert!(error.to_string().contains(words), "{name}: {error}");
            let hint = hint_of(&error).unwrap();
            let expected = "columns are separated by commas in a `.csv` file, by tabs in a `.tsv` file";
            assert!(hint.starts_with(expected), "{name}: {hint}");
        }
        let error = read_with("f.csv", b"b;c,d\n1,2\n", &wanted).unwrap_err();
        assert!(hint_of(&error).unwrap().starts_with("columns: "), "{error}");
    }

    /// The rows of a JSON file, for a data set of the columns `q` and `a`.
    fn rows_of(text: &str, split: &str, field: Option<&str>) -> Result<Vec<(usize, Value)>> {
        let wanted = Wanted { columns: &["q", "a"], split, field, kept: None, classes: None };
        read_with("f.json", text.as_bytes(), &wanted).map(|rows| good(&rows))
    }

    #[test]
    fn an_object_is_a_row_and_never_what_stands_in_it() {
        let inner = json!([{"q": "inner", "a": "inner"}]);
        for outer in [
            json!({"q": "x", "a": "y", "sources": inner}),
            json!({"q": "x", "a": "y", "data": inner}),
            json!({"data": inner, "train": inner, "q": "x", "a": "y"}),
            json!({"train": [], "a": "y", "q": "x"}),
        ] {
            for text in [outer.to_string(), serde_json::to_string_pretty(&outer).unwrap()] {
                assert_eq!(rows_of(&text, "train", None).unwrap(), [(1, outer.clone())]);
            }
            let two = format!("{outer:#}\n{outer:#}");
            assert_eq!(rows_of(&two, "train", None).unwrap(), [(1, outer.clone()), (2, outer.clone())]);
            assert_eq!(rows_of(&format!("{outer} {outer}"), "train", None).unwrap().len(), 2);
            assert_eq!(rows_of(&format!("{outer}\n\n{outer}\n"), "train", None).unwrap()[1].0, 3);
        }
        // A list beside other keys is reported, but not taken for the rows.
        for text in [
            "{\"id\": 7, \"sources\": [{\"q\": \"x\", \"a\": \"y\"}]}",
            "{\"q\": \"x\", \"sources\": [{\"a\": \"y\"}]}",
        ] {
            let error = rows_of(text, "train", None).unwrap_err();
            assert!(error.to_string().contains("f.json` has no column `"), "{error}");
            assert!(
                hint_of(&error).unwrap().starts_with("`field = \"sources\"` in the catalog entry"),
                "{error}"
            );
        }
    }

    #[test]
    fn rows_under_a_key_are_found_where_there_is_no_doubt() {
        let expected = [(1, json!({"q": "1", "a": "[{"})), (2, json!({"q": "2", "a": "é\""}))];
        let list = "[{\"q\": \"1\", \"a\": \"[{\"}, {\"q\": \"2\", \"a\": \"é\\\"\"}]";
        for (text, split, field) in [
            (format!("{{\"data\": {list}}}"), "train", None),
            (format!("{{\"version\": {{\"a]\": [1]}}, \"data\": {list} , \"more\": 3}}"), "train", None),
            (format!("{{\"questions\":{list}}}\n"), "train", None),
            (format!("{{\"test\": [{{}}], \"train\": {list}}}"), "train", None),
            (format!("{{\"data\": [{{}}], \"x\": {list}}}"), "train", Some("x")),
            (format!("{{\"q\": 1, \"a\": {list}}}"), "train", Some("a")),
        ] {
            assert_eq!(rows_of(&text, split, field).unwrap(), expected, "{text}");
        }
        for (text, field, words) in [
            ("{\"data\": [{}], \"x\": 1}", "x", "f.json` holds no list of rows under `x`, the `field`"),
            ("{\"data\": [{}]}", "date", "f.json` holds no list of rows under `date`"),
            ("[{\"x\": [{}]}]", "x", "f.json` holds a list where an object with `x` was expected"),
            ("{\"data\": [{\"q\":1}, ", "data", "is not valid JSON: it ends inside a value"),
            ("{\"data\": [{\"q\":1}], \"b\":", "data", "is not valid JSON"),
        ] {
            let error = rows_of(text, "train", Some(field)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let refused = read("f.json", b"[1, [{\"q\": 2}], \"x\", null, NaN]").unwrap();
        let reasons: Vec<String> = refused.rows.into_iter().map(|row| row.columns.unwrap_err()).collect();
        let found = ["a number", "a list", "a text", "nothing", "nothing usable"];
        assert_eq!(reasons, found.map(|what| format!("expected an object of columns, found {what}")));
    }

    #[test]
    fn lines_may_end_as_on_any_system() {
        for end in ["\n", "\r\n", "\r"] {
            let lines = ["{\"a\": \"1\"}", "", "{\"a\": \"2\"}"].join(end);
            let csv = ["a,b", "1,\"x\ny\"", "2,z"].join(end);
            assert_eq!(good(&read("f.jsonl", lines.as_bytes()).unwrap()).last().unwrap().0, 3, "{end:?}");
            let rows = good(&read("f.csv", csv.as_bytes()).unwrap());
            let expected = [(2, json!({"a": "1", "b": "x\ny"})), (4, json!({"a": "2", "b": "z"}))];
            assert_eq!(rows, expected, "{end:?}");
        }
    }

    #[test]
    fn a_row_without_end_is_refused_before_it_fills_the_memory() {
        let long = vec![b'x'; text_file::LONGEST + 10];
        for (name, start, words) in [
            ("f.jsonl.gz", "\n{\"a\": \"", "f.jsonl.gz` line 2: a row of more than 1 MiB"),
            ("f.json.gz", "[\n{\"a\": \"", "f.json.gz` line 2: a row of more than 1 MiB"),
            ("f.csv.gz", "a,b\n1,2\n3,\"", "f.csv.gz` line 3: a row of more than 1 MiB"),
            ("f.tsv.gz", "a\tb\n1\t2\n", "f.tsv.gz` line 3: a row of more than 1 MiB"),
        ] {
            let error = read(name, &gzip(&[start.as_bytes(), &long].concat())).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn nothing_is_read_beyond_the_rows_that_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let row = "{\"a\": \"some text of some length that fills a line of the file\"}\n";
        let lines = row.repeat(20_000);
        let list = format!("[{}{{}}]", row.replace('\n', ",\n").repeat(20_000));
        let csv = format!("a\n{}", "some text of some length that fills a line of the file\n".repeat(20_000));
        for (name, text) in
            [("f.jsonl", &lines), ("f.json", &lines), ("g.json", &list), ("f.csv", &csv), ("f.tsv", &csv)]
        {
            let whole = gzip(text.as_bytes());
            // If anything after the first rows were read, the missing end would be noticed.
            let path = folder.path().join(format!("{name}.gz"));
            fs::write(&path, &whole[..whole.len() - 20]).unwrap();
            let mut rows = Rows::open(&path, &Wanted::default()).unwrap();
            assert_eq!(rows.next(64).unwrap().len(), 64, "{name}");
            let rest: Result<usize> = (0..)
                .map(|_| rows.next(5000).map(|piece| piece.len()))
                .find(|n| !matches!(n, Ok(n) if *n > 0))
                .unwrap();
            assert!(rest.unwrap_err().to_string().contains("is not a complete gzip file"), "{name}");
        }
    }
}
