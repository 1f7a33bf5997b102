//! Rows of JSON: lines of objects, a list of them, one after another, or the list under a key of one object.
//!
//! Documents are cut into rows without being parsed, so that a file is never in memory as a whole.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::odd;
use super::row::{Body, Columns, Raw, Wanted, kind};
use super::scan::{Place, Scan};
use super::text_file::TextFile;
use crate::fault::{Result, fault, which};

/// Key that may hold the rows of an object with other keys besides.
const CUSTOMARY: &str = "data";
/// Maximum number of keys, and of list keys, to record.
const NAMED: usize = 20;
/// Maximum number of columns of a row to record by name when only some are kept.
const MOST_NAMES: usize = 256;

/// Rows as they are in the file.
pub(super) type Source = Box<dyn Iterator<Item = Result<Raw>>>;

/// Returns the rows that `read` finds one after another, up to the first error.
pub(super) fn source(mut read: impl FnMut() -> Result<Option<Raw>> + 'static) -> Source {
    let mut is_done = false;
    Box::new(std::iter::from_fn(move || {
        let row = if is_done { None } else { read().transpose() };
        is_done = !matches!(row, Some(Ok(_)));
        row
    }))
}

/// Contents of a `.json` file.
pub(super) struct Document {
    /// Unit that the numbers of rows count.
    pub unit: &'static str,
    pub rows: Source,
    /// Keys of its one object that hold lists of objects but are not read.
    pub lists: Vec<String>,
}

/// Returns the rows of a file of JSON lines, skipping empty lines.
pub(super) fn lines(mut text: TextFile) -> Source {
    let row = |(number, line): (usize, String)| Raw::new(number, line.len(), Body::Json(line, false));
    Box::new(std::iter::from_fn(move || text.next_filled().transpose().map(|line| line.map(row))))
}

/// Reads the rows of a `.json` file: a list of objects, or objects one after another, as on lines. A single
/// object is one row, as in Hugging Face's `datasets`, unless `field` names the key that holds the rows. If
/// that is not given and the object has none of the wanted columns, the rows are those of its only key, of
/// `data`, or of the key named like the split.
pub(super) fn document(path: &Path, is_packed: bool, wanted: &Wanted<'_>) -> Result<Document> {
    let mut scan = Scan { text: TextFile::open(path, is_packed)? };
    match (scan.peek()?, wanted.field) {
        (None, _) => Ok(values(scan, List::None)),
        (Some(b'{'), field) => {
            let outline = scan.outline(wanted)?;
            let mut again = Scan { text: TextFile::open(path, is_packed)? };
            if let Some(key) = field.or(outline.wrapper(wanted.split)) {
                return match again.enter(key)? {
                    true => Ok(values(again, List::Inside)),
                    false => Err(outline.without(path, key)),
                };
            }
            if outline.is_line {
                return Ok(Document { unit: "line", rows: lines(again.text), lists: Vec::new() });
            }
            let lists = if outline.goes_on { Vec::new() } else { outline.lists };
            Ok(Document { lists, ..values(again, List::None) })
        }
        (Some(b'['), None) => {
            scan.text.pass(1);
            Ok(values(scan, List::Whole))
        }
        (Some(first), field) => {
            let found = match first {
                b'[' => "a list",
                _ => kind(&serde_json::from_slice(&scan.value()?).map_err(|e| scan.invalid(&reason(&e)))?),
            };
            let expected =
                field.map_or("rows were".to_owned(), |field| format!("an object with `{field}` was"));
            Err(fault(format!("`{}` holds {found} where {expected} expected", path.display())).into())
        }
    }
}

fn values(scan: Scan, list: List) -> Document {
    let mut values = Values { scan, list, number: 0 };
    Document { unit: "row", rows: source(move || values.read()), lists: Vec::new() }
}

/// Outline of the first object of a file.
#[derive(Default)]
struct Outline {
    /// The first keys.
    keys: Vec<String>,
    count: usize,
    /// True if one of them is a wanted column.
    is_row: bool,
    /// Keys that hold a list that is empty or begins with an object.
    lists: Vec<String>,
    /// True if anything follows the object.
    goes_on: bool,
    /// True if it is a line of its own, followed by others.
    is_line: bool,
}

impl Outline {
    /// Returns the key that holds the rows, if there is no doubt.
    fn wrapper(&self, split: &str) -> Option<&str> {
        if self.is_row || self.goes_on {
            return None;
        }
        let named = self.lists.iter().find(|key| *key == split);
        let is_all = |key: &&String| self.lists.len() == 1 && (self.count == 1 || *key == CUSTOMARY);
        named.or(self.lists.first().filter(is_all)).map(String::as_str)
    }

    fn without(&self, path: &Path, field: &str) -> anyhow::Error {
        let keys = which("keys", field, self.keys.iter().map(String::as_str));
        let path = path.display();
        fault(format!("`{path}` holds no list of rows under `{field}`, the `field` of the catalog entry"))
            .hint(keys)
            .into()
    }
}

impl Scan {
    /// Reads an object to its end and checks whether anything follows.
    fn outline(&mut self, wanted: &Wanted<'_>) -> Result<Outline> {
        let first = self.text.line;
        self.expect(b"{", "an object")?;
        let mut outline = Outline::default();
        while let Some(key) = self.key(outline.count == 0)? {
            outline.count += 1;
            outline.is_row |= wanted.columns.contains(&key.as_str());
            let mut place = Place::default();
            let is_list = self.peek()? == Some(b'[');
            if is_list {
                self.text.pass(1);
                (place.depth, place.is_begun) = (1, true);
            }
            if is_list && matches!(self.peek()?, Some(b'{' | b']')) && outline.lists.len() < NAMED {
                outline.lists.push(key.clone());
            }
            self.run(place, None)?;
            if outline.keys.len() < NAMED {
                outline.keys.push(key);
            }
        }
        let last = self.text.line;
        outline.goes_on = self.peek()?.is_some();
        outline.is_line = first == last && self.text.line > last;
        Ok(outline)
    }

    /// Skips to the elements of the list under this key; returns false if there is none.
    fn enter(&mut self, wanted: &str) -> Result<bool> {
        self.expect(b"{", "an object")?;
        let mut is_first = true;
        while let Some(key) = self.key(is_first)? {
            is_first = false;
            if key == wanted && self.peek()? == Some(b'[') {
                self.text.pass(1);
                return Ok(true);
            }
            self.peek()?;
            self.run(Place::default(), None)?;
        }
        Ok(false)
    }

    /// Skips what follows the list of rows.
    fn leave(&mut self, list: List) -> Result<()> {
        if list == List::Inside {
            while self.key(false)?.is_some() {
                self.peek()?;
                self.run(Place::default(), None)?;
            }
        }
        match self.peek()? {
            None => Ok(()),
            Some(_) => Err(self.invalid("it goes on after its list of rows")),
        }
    }
}

/// Container of the rows.
#[derive(Clone, Copy, PartialEq)]
enum List {
    /// Nothing: they follow one another.
    None,
    /// A list that is the whole file.
    Whole,
    /// A list under a key of an object.
    Inside,
}

/// The values of a document, one row each.
struct Values {
    scan: Scan,
    list: List,
    number: usize,
}

impl Values {
    fn read(&mut self) -> Result<Option<Raw>> {
        let is_over = match (self.list, self.number) {
            (List::None, _) => self.scan.peek()?.is_none(),
            (_, 0) => self.scan.peek()? == Some(b']') && self.scan.expect(b"]", "`]`").is_ok(),
            _ => self.scan.expect(b",]", "`,` or `]`")? == b']',
        };
        if is_over {
            return self.scan.leave(self.list).map(|()| None);
        }
        self.scan.peek()?;
        let line = self.scan.text.line;
        let bytes = self.scan.value()?;
        let json = self.scan.text.utf8(line, bytes)?;
        self.number += 1;
        Ok(Some(Raw::new(self.number, json.len(), Body::Json(json, true))))
    }
}

/// Returns the columns of a row; if only some are `kept`, the others are skipped and hold nothing.
///
/// # Errors
/// The reason why it is not JSON; inside, what it is instead of an object.
pub(super) fn columns(
    json: &str,
    kept: Option<&[String]>,
) -> std::result::Result<std::result::Result<Columns, String>, String> {
    let exact = odd::kept(json);
    if json.trim_start().starts_with('{') {
        let mut parser = serde_json::Deserializer::from_str(&exact);
        let read = Object { kept }.deserialize(&mut parser);
        let whole = read.and_then(|columns| parser.end().map(|()| columns));
        return whole.map(Ok).map_err(|e| reason(&e));
    }
    let value: Value = serde_json::from_str(&exact).map_err(|e| reason(&e))?;
    Ok(Err(format!("expected an object of columns, found {}", kind(&value))))
}

/// Reads the columns of an object.
struct Object<'a> {
    kept: Option<&'a [String]>,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Columns;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Columns, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Columns, A::Error> {
        let mut columns = Columns::new();
        while let Some(name) = map.next_key::<String>()? {
            if self.kept.is_none_or(|kept| kept.contains(&name)) {
                columns.insert(name, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
                // Their names are for messages.
                if columns.len() < MOST_NAMES {
                    columns.insert(name, Value::Null);
                }
            }
        }
        Ok(columns)
    }
}

/// Returns the message of a JSON error without its line, since every row is parsed on its own.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(bare) => format!("{bare} at column {}", error.column()),
        None => message,
    }
}
