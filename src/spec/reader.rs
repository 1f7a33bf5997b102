//! Typed reading of a TOML document that collects every fault, with its place, instead of stopping at the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize as _;
use toml::de::{DeString, DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::foreign;
pub use super::given::Given;
use super::given::Place;
use crate::fault::{Fault, nearest, usage};

/// The keys of a document or of one entry in it, read one by one; keys left over at the end are unknown.
#[derive(Clone, Default)]
pub struct Reader {
    /// Precedes keys in messages: the name of the entry and a dot.
    prefix: String,
    /// Place of keys that are not given: the head of the entry.
    head: Place,
    entries: BTreeMap<String, Given>,
    /// Each key asked for, with its default.
    known: BTreeMap<&'static str, Option<Value>>,
    faulty: BTreeSet<String>,
    faults: Vec<(Place, String)>,
}

impl Reader {
    /// Opens a document of `[section]`s of keys; a key is asked for as `section.key`.
    ///
    /// # Errors
    /// When `text` is not TOML.
    pub fn open(text: &str, name: &str) -> Result<Self, Fault> {
        let mut reader = Self::default();
        reader.read_sections(&parsed(text, name)?, &Lines::of(text), "");
        Ok(reader)
    }

    /// Opens a document as [`Reader::open`] does, and of it the section `apart` as a document of its own, in which the value of
    /// `table` may be one.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_apart(
        text: &str,
        name: &str,
        (apart, table): (&str, &str),
    ) -> Result<(Self, Option<Self>), Fault> {
        let (mut document, lines) = (parsed(text, name)?, Lines::of(text));
        let section = document.remove_entry(apart);
        let mut reader = Self::default();
        reader.read_sections(&document, &lines, "");
        let section = section.map(|(key, value)| {
            let mut section = Self { head: lines.place(&key), ..Self::of_entry(apart, Table::new()) };
            match value.get_ref() {
                DeValue::Table(keys) => section.read_sections(keys, &lines, table),
                _ => {
                    let problem = format!("`{apart}`: expected the section `[{apart}]`");
                    section.faults.push((section.head.clone(), problem));
                }
            }
            section
        });
        Ok((reader, section))
    }

    /// Inserts keys and those of sections, but leaves the value of `table` whole.
    fn read_sections(&mut self, document: &DeTable<'_>, lines: &Lines, table: &str) {
        for (key, value) in document {
            match value.get_ref() {
                DeValue::Table(section) if key.get_ref() != table => {
                    // An empty section says nothing.
                    for (leaf, value) in section {
                        let whole = format!("{}.{}", key.get_ref(), leaf.get_ref());
                        self.insert(whole, lines.place(leaf), value);
                    }
                }
                _ => self.insert(key.get_ref().to_string(), lines.place(key), value),
            }
        }
    }

    /// Opens a document of named entries: a reader for each, in their order.
    ///
    /// # Errors
    /// When `text` is not TOML.
    pub fn open_entries(text: &str, name: &str) -> Result<Vec<(String, Self)>, Fault> {
        let (table, lines) = (parsed(text, name)?, Lines::of(text));
        let entry = |(name, value): (&Spanned<DeString>, &Spanned<DeValue>)| {
            let name = (name.get_ref().to_string(), lines.place(name));
            let prefix = format!("{}.", name.0);
            let mut reader = Self { prefix, head: name.1.clone(), ..Self::default() };
            match value.get_ref() {
                DeValue::Table(keys) => {
                    for (key, value) in keys {
                        reader.insert(key.get_ref().to_string(), lines.place(key), value);
                    }
                }
                _ => {
                    let found = Value::deserialize(ValueDeserializer::from(value.clone()));
                    let found = found.map_or_else(|e| e.message().to_owned(), |value| describe(&value));
                    reader.faults.push((name.1, format!("`{}`: expected a table, found {found}", name.0)));
                    reader.faulty.insert(String::new());
                }
            }
            (name.0, reader)
        };
        Ok(table.iter().map(entry).collect())
    }

    /// Opens the entry `name`, with keys of no file.
    pub fn of_entry(name: &str, keys: Table) -> Self {
        let entry = |(key, value)| (key, Given::new(value, Place::Nowhere));
        let entries = keys.into_iter().map(entry).collect();
        Self { prefix: format!("{name}."), entries, ..Self::default() }
    }

    fn insert(&mut self, key: String, place: Place, value: &Spanned<DeValue<'_>>) {
        match Value::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(found) => {
                let at = value.span().start;
                self.entries.insert(key, Given { at, ..Given::new(found, place) });
            }
            Err(e) => {
                self.faults.push((place, format!("`{}{key}`: {}", self.prefix, e.message())));
                self.faulty.insert(key);
            }
        }
    }

    /// Applies one `key.path=value`: a TOML value, else a plain string.
    pub fn set(&mut self, assignment: &str) {
        self.assign(assignment, Place::Set(assignment.to_owned()), "expected `key.path=value`");
    }

    /// Applies one `key.path=values`, or `setting=value`, of a sweep.
    pub fn sweep(&mut self, assignment: &str) {
        let key = assignment.split('=').next().unwrap_or_default().trim();
        let before = self.entries.get(key).map(|given| given.place.clone());
        if let Some(Place::Sweep(before)) = before {
            let told =
                format!("the key is given twice, also by `--sweep {before}`: list all its values once");
            self.faults.push((Place::Sweep(assignment.to_owned()), told));
            return;
        }
        self.assign(assignment, Place::Sweep(assignment.to_owned()), "expected `key.path=value,value,…`");
    }

    fn assign(&mut self, assignment: &str, place: Place, expected: &str) {
        match assignment.split_once('=') {
            Some((key, raw)) if !key.trim().is_empty() => {
                let (key, raw) = (key.trim(), raw.trim().to_owned());
                let value = raw.parse().unwrap_or_else(|_| Value::String(raw.clone()));
                let last = || self.entries.values().map(|given| given.at + 1).max().unwrap_or(0);
                let at = self.entries.get(key).map_or_else(last, |given| given.at);
                self.entries
                    .insert(key.to_owned(), Given { value, raw: Some(raw), at, place, overrides: true });
            }
            _ => self.faults.push((place, expected.to_owned())),
        }
    }

    /// Of two keys that exclude each other, one given by `--set` or a sweep with a value other than 0 displaces the file's.
    pub fn displace(&mut self, one: &str, other: &str) {
        let overrides =
            |key: &str| self.entries.get(key).is_some_and(|entry| entry.overrides && !is_zero(&entry.value));
        let in_file = |key: &str| self.entries.get(key).is_some_and(|entry| !entry.overrides);
        if overrides(one) && in_file(other) {
            self.entries.remove(other);
        } else if overrides(other) && in_file(one) {
            self.entries.remove(one);
        }
    }

    /// Gives `key`, which the entry lacks, a value of another entry. It is passed over if it is not asked for.
    pub fn take_over(&mut self, key: &str, value: Value) {
        let place = if let Place::Line(line) = self.head { Place::Taken(line) } else { Place::Nowhere };
        self.entries.insert(key.to_owned(), Given::new(value, place));
    }

    /// Gives `key` this value, in place of its own.
    pub fn put(&mut self, key: &str, given: Given) {
        self.entries.insert(key.to_owned(), given);
    }

    /// Returns what `key` is given.
    pub fn get(&self, key: &str) -> Option<&Given> {
        self.entries.get(key)
    }

    /// Returns the keys and values that are given.
    pub fn given(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// Adds `key` to the known ones.
    pub fn know(&mut self, key: &'static str) {
        self.known.entry(key).or_default();
    }

    /// Returns the keys asked for so far, with their defaults.
    pub fn known(&self) -> &BTreeMap<&'static str, Option<Value>> {
        &self.known
    }

    /// Returns true if the document or an override gives `key`.
    pub fn gives(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns true if `key` is given, and not taken over from another entry.
    pub fn sets(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| !matches!(entry.place, Place::Taken(_)))
    }

    /// Returns true if `key` is given with another value than this.
    pub fn differs(&self, key: &str, default: &Value) -> bool {
        let number = |value: &Value| value.as_float().or(value.as_integer().map(|whole| whole as f64));
        let same =
            |value: &Value| value == default || number(value).is_some() && number(value) == number(default);
        self.entries.get(key).is_some_and(|entry| !same(&entry.value))
    }

    /// Returns true if none of `keys` has a fault so far, so that they may be compared with each other. The empty key
    /// stands for the entry itself, which has one if it is no table.
    pub fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.faulty.contains(*key))
    }

    /// Records a fault of `key`, or of `key.part` of a table; of the entry itself, if `key` is empty.
    pub fn fail(&mut self, key: &str, problem: impl fmt::Display) {
        let whole = self.entries.iter().find(|(whole, _)| is_inside(key, whole));
        let given = self.entries.get(key).or(whole.map(|(_, entry)| entry));
        let place = given.map_or(&self.head, |entry| &entry.place).clone();
        let text = match place {
            Place::Nowhere if self.prefix.is_empty() => problem.to_string(),
            _ if key.is_empty() => problem.to_string(),
            Place::Set(_) | Place::Sweep(_) => problem.to_string(),
            Place::Line(_) | Place::Taken(_) | Place::Nowhere => format!("`{}{key}`: {problem}", self.prefix),
        };
        self.faults.push((place, text));
        self.faulty.extend([key, whole.map_or(key, |(whole, _)| whole)].map(str::to_owned));
    }

    /// Records that `key` must be given.
    pub fn missing(&mut self, key: &str) {
        self.faults.push((self.head.clone(), format!("missing key `{}{key}`", self.prefix)));
        self.faulty.insert(key.to_owned());
    }

    /// Reads `key` through `convert`, whose error says what was expected of a value that does not fit.
    pub fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        shown: impl Into<Option<Value>>,
        convert: impl Fn(&Value, Option<&str>) -> Result<T, String>,
    ) -> T {
        self.known.insert(key, shown.into());
        let Some(Given { value, raw, .. }) = self.entries.get(key) else { return default };
        match convert(value, raw.as_deref()) {
            Ok(value) => value,
            Err(expected) => {
                let problem = format!("expected {expected}, found {}", describe(value));
                self.fail(key, problem);
                default
            }
        }
    }

    /// Records the keys that were never asked for as unknown.
    pub fn refuse_unknown(&mut self) {
        for (key, entry) in self.entries.iter().filter(|(key, _)| !self.known.contains_key(key.as_str())) {
            if !matches!(entry.place, Place::Taken(_)) {
                let prefix = if entry.is_swept() { "" } else { &self.prefix };
                let problem = unknown(key, &entry.value, self.known.keys().copied(), prefix);
                self.faults.push((entry.place.clone(), problem));
            }
        }
    }

    /// Takes over the faults of another reader, each once.
    pub fn absorb(&mut self, other: Self) {
        for fault in other.faults {
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    /// Returns the number of faults so far.
    pub fn failed(&self) -> usize {
        self.faults.len()
    }

    /// Ends the reading: returns all faults with their places, those of the file first, in the order of its lines.
    pub fn faults(mut self) -> Vec<String> {
        self.faults.sort();
        self.faults.iter().map(|(place, text)| format!("{place}{text}")).collect()
    }
}

/// Makes one usage fault of all `faults` of a file; none if there are none.
///
/// # Errors
/// That fault.
pub fn refuse(file: &str, faults: &[String]) -> Result<(), Fault> {
    match faults {
        [] => Ok(()),
        [one] => Err(usage(format!("{file}: {one}"))),
        many => Err(usage(format!("{file} has {} faults:\n  {}", many.len(), many.join("\n  ")))),
    }
}

fn parsed<'a>(text: &'a str, name: &str) -> Result<DeTable<'a>, Fault> {
    let table = DeTable::parse(text)
        .map_err(|e| usage(format!("`{name}` is not valid TOML: {}", e.to_string().trim_end())))?;
    Ok(table.into_inner())
}

/// Offsets of a text's line ends.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn place<T>(&self, key: &Spanned<T>) -> Place {
        Place::Line(1 + self.0.partition_point(|end| *end < key.span().start))
    }
}

/// Returns true if a key is one of the table `whole`.
fn is_inside(key: &str, whole: &str) -> bool {
    key.strip_prefix(whole).is_some_and(|rest| rest.starts_with('.'))
}

fn is_zero(value: &Value) -> bool {
    value.as_integer() == Some(0) || value.as_float() == Some(0.0)
}

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the string `{text}`"),
        Value::Integer(number) => format!("`{number}`"),
        Value::Float(number) => format!("`{number:?}`"),
        Value::Boolean(flag) => format!("`{flag}`"),
        Value::Datetime(_) => "a date or time".to_owned(),
        Value::Array(_) => format!("the list `{value}`"),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// Names the nearest key: the same last part elsewhere, then what another program's name stands for, then a similar one in the
/// same section, then in any.
fn unknown<'a>(
    key: &str,
    value: &Value,
    known: impl Iterator<Item = &'a str> + Clone,
    prefix: &str,
) -> String {
    let (section, leaf) = key.split_once('.').unwrap_or(("", key));
    let parts = || known.clone().map(|known| known.split_once('.').unwrap_or(("", known)));
    if !value.is_table() && section.is_empty() && parts().any(|(known, _)| known == key) {
        return format!("expected the section `[{key}]`, found {}", describe(value));
    }
    let same = parts().find(|(_, known)| *known == leaf);
    if let (None, Some(here)) = (same, foreign::named(key, known.clone())) {
        return format!("unknown key `{prefix}{key}`; did you mean {here}?");
    }
    let near_leaf = |within: &str| {
        nearest(
            leaf,
            parts().filter(|(known, _)| within.is_empty() || *known == within).map(|(_, leaf)| leaf),
        )
    };
    let leaf_named = |near: &str| {
        let same_section = parts().find(|(known, leaf)| *known == section && *leaf == near);
        same_section.or_else(|| parts().find(|(_, leaf)| *leaf == near))
    };
    let guess = same.or_else(|| leaf_named(near_leaf(section).or_else(|| near_leaf(""))?));
    let dotted = |section: &str| if section.is_empty() { String::new() } else { format!("{section}.") };
    let guess = guess
        .map(|(section, leaf)| format!("; did you mean `{prefix}{}{leaf}`?", dotted(section)))
        .unwrap_or_default();
    format!("unknown key `{prefix}{key}`{guess}")
}

#[cfg(test)]
mod tests {
    use super::super::values::NOT_NEGATIVE;
    use super::*;
    use crate::limits::RANK;

    fn read(text: &str, sets: &[&str], keys: impl Fn(&mut Reader)) -> String {
        let mut reader = Reader::open(text, "r.toml").unwrap();
        sets.iter().for_each(|set| reader.set(set));
        keys(&mut reader);
        reader.refuse_unknown();
        let refused = refuse("recipe `r.toml`", &reader.faults());
        refused.err().map(|fault| fault.to_string()).unwrap_or_default()
    }

    #[test]
    fn each_wrong_type_says_what_was_expected_and_found() {
        let text = "[s]\na = \"ten\"\nb = 1.5\nc = [1]\nd = 3\ne = 1979-05-27\nf = nan\n";
        let found = read(text, &[], |reader| {
            reader.whole::<usize>("s.a", 1, 1, RANK);
            reader.whole::<usize>("s.b", 1, 1, RANK);
            reader.list("s.c", &[]);
            reader.flag("s.d", true);
            reader.text("s.e", "");
            reader.number("s.f", 1.0, NOT_NEGATIVE);
        });
        let expected = "recipe `r.toml` has 6 faults:\n  \
            line 2: `s.a`: expected a whole number from 1 to 1048576, since no layer is wider, found the string `ten`\n  \
            line 3: `s.b`: expected a whole number from 1 to 1048576, since no layer is wider, found `1.5`\n  \
            line 4: `s.c`: expected a list of names such as `[\"query\", \"value\"]`, found the list `[1]`\n  \
            line 5: `s.d`: expected `true` or `false`, found `3`\n  \
            line 6: `s.e`: expected a string, found a date or time\n  \
            line 7: `s.f`: expected a number of at least 0, found `NaN`";
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_typed_after_set_need_not_be_quoted() {
        let mut reader = Reader::open("[s]\na = 1\n", "r.toml").unwrap();
        for set in
            ["s.a=foo/bar", "s.b=2024", "s.c=x, y", "s.d=", "s.e=a=b", "s.f=\"q\"", "s.g=[\"x\"]", "s.a=last"]
        {
            reader.set(set);
        }
        assert_eq!(reader.text("s.a", ""), "last");
        assert_eq!(reader.text("s.b", ""), "2024");
        assert_eq!(reader.list("s.c", &[]), ["x", "y"]);
        assert_eq!(reader.list("s.d", &["default"]), Vec::<String>::new());
        assert_eq!(reader.text("s.e", ""), "a=b");
        assert_eq!(reader.text("s.f", ""), "q");
        assert_eq!(reader.list("s.g", &[]), ["x"]);
        reader.refuse_unknown();
        assert!(reader.faults().is_empty());
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let keys = |reader: &mut Reader| {
            reader.text("train.epochs", "");
            reader.text("train.log_every", "");
            reader.text("adapter.rank", "");
        };
        for (text, near) in [
            ("train.epoch = 1", Some("train.epochs")),
            ("trian.epochs = 1", Some("train.epochs")),
            ("train.rank = 1", Some("adapter.rank")),
            ("rank = 1", Some("adapter.rank")),
            ("train.zzz = 1", None),
            ("train.num_train_epochs = 1", Some("train.epochs")),
            ("num_epochs = 1", Some("train.epochs")),
            ("peft.R = 1", Some("adapter.rank")),
        ] {
            let found = read(text, &[], keys);
            let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
            let key = text.split(' ').next().unwrap();
            assert_eq!(found, format!("recipe `r.toml`: line 1: unknown key `{key}`{hint}"));
        }
        assert!(read("train.epochs.x = 1", &[], keys).contains("expected a string, found a table"));
        let found = read("train = 3", &[], keys);
        assert_eq!(found, "recipe `r.toml`: line 1: expected the section `[train]`, found `3`");
    }

    #[test]
    fn what_is_not_toml_or_not_an_assignment_is_a_fault() {
        let fault = Reader::open("[train\n", "r.toml").err().unwrap().to_string();
        assert!(fault.starts_with("`r.toml` is not valid TOML: "), "{fault}");
        let found = read("", &["train.epochs", "=3"], |_| {});
        assert!(found.contains("`--set =3`: expected `key.path=value`"), "{found}");
        assert!(Reader::open("a = 1\na = 2\n", "r.toml").is_err());
    }

    #[test]
    fn empty_sections_and_windows_line_ends_are_read() {
        let found = read("[train]\r\n\r\n[adapter]\r\nrank = 0\r\n", &[], |reader| {
            reader.whole::<usize>("adapter.rank", 1, 1, RANK);
        });
        assert!(found.contains("line 4: `adapter.rank`"), "{found}");
    }
}
