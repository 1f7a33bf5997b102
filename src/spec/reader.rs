//! Typed reading of a TOML document that collects every fault, with its place, instead of stopping at the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use clap::ValueEnum;
use serde::Deserialize as _;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::Every;
use crate::fault::{Fault, nearest, usage};
use crate::limits::{Most, STEPS};

/// Place that a key was given in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An override, as typed after `--set`.
    Set(String),
    /// Nowhere: the key is missing.
    Nowhere,
}

/// A value and the place that it came from.
struct Entry {
    value: Value,
    place: Place,
}

/// A condition on a number, and the words for it.
pub struct Bound {
    holds: fn(f64) -> bool,
    words: &'static str,
}

/// A number that may be zero.
pub const NOT_NEGATIVE: Bound = Bound { holds: |x| x >= 0.0, words: "a number of at least 0" };
/// A number that may not be zero.
pub const POSITIVE: Bound = Bound { holds: |x| x > 0.0, words: "a number above 0" };
/// A probability or share.
pub const FRACTION: Bound =
    Bound { holds: |x| (0.0..1.0).contains(&x), words: "a number from 0 up to, not including, 1" };

/// The keys of a document, read one by one; keys left over at the end are unknown.
pub struct Reader {
    entries: BTreeMap<String, Entry>,
    known: BTreeSet<&'static str>,
    faulty: BTreeSet<String>,
    faults: Vec<(Place, String)>,
}

impl Reader {
    /// Opens a document of `[section]`s of keys.
    ///
    /// # Errors
    /// When `text` is not TOML.
    pub fn open(text: &str, name: &str) -> Result<Self, Fault> {
        let table = DeTable::parse(text)
            .map_err(|e| usage(format!("`{name}` is not valid TOML: {}", e.to_string().trim_end())))?;
        let mut reader = Self {
            entries: BTreeMap::new(),
            known: BTreeSet::new(),
            faulty: BTreeSet::new(),
            faults: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) if !section.is_empty() => {
                    for (leaf, value) in section {
                        reader.insert(
                            text,
                            format!("{}.{}", key.get_ref(), leaf.get_ref()),
                            leaf.span().start,
                            value,
                        );
                    }
                }
                DeValue::Table(_) => {} // an empty section says nothing
                _ => reader.insert(text, key.get_ref().to_string(), key.span().start, value),
            }
        }
        Ok(reader)
    }

    fn insert(&mut self, text: &str, key: String, offset: usize, value: &toml::Spanned<DeValue<'_>>) {
        let place = Place::Line(1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count());
        match Value::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(value) => _ = self.entries.insert(key, Entry { value, place }),
            Err(e) => {
                self.faults.push((place, format!("`{key}`: {}", e.message())));
                self.faulty.insert(key);
            }
        }
    }

    /// Applies one `key.path=value`: a TOML value, else a plain string.
    pub fn set(&mut self, assignment: &str) {
        let place = Place::Set(assignment.to_owned());
        match assignment.split_once('=') {
            Some((key, raw)) if !key.trim().is_empty() => {
                let raw = raw.trim();
                let value = raw.parse().unwrap_or_else(|_| Value::String(raw.to_owned()));
                self.entries.insert(key.trim().to_owned(), Entry { value, place });
            }
            _ => self.faults.push((place, "expected `key.path=value`".to_owned())),
        }
    }

    /// Of two keys that exclude each other, one given by `--set` with a value other than 0 displaces the file's.
    pub fn displace(&mut self, one: &str, other: &str) {
        let overrides = |key: &str| {
            self.entries
                .get(key)
                .is_some_and(|entry| matches!(entry.place, Place::Set(_)) && !is_zero(&entry.value))
        };
        let in_file =
            |key: &str| self.entries.get(key).is_some_and(|entry| matches!(entry.place, Place::Line(_)));
        if overrides(one) && in_file(other) {
            self.entries.remove(other);
        } else if overrides(other) && in_file(one) {
            self.entries.remove(one);
        }
    }

    /// Adds `key` to the known ones.
    pub fn know(&mut self, key: &'static str) {
        self.known.insert(key);
    }

    /// Returns the keys read so far.
    #[cfg(test)]
    pub fn known(&self) -> impl Iterator<Item = &'static str> {
        self.known.iter().copied()
    }

    /// Returns true if the document or an override gives `key`.
    pub fn gives(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns true if `key` is given with another value than this.
    pub fn differs(&self, key: &str, default: &Value) -> bool {
        let number = |value: &Value| value.as_float().or(value.as_integer().map(|whole| whole as f64));
        let same =
            |value: &Value| value == default || number(value).is_some() && number(value) == number(default);
        self.entries.get(key).is_some_and(|entry| !same(&entry.value))
    }

    /// Returns true if none of `keys` has a fault so far, so that they may be compared with each other.
    pub fn sound(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| !self.faulty.contains(*key))
    }

    /// Records a fault of `key`.
    pub fn fail(&mut self, key: &str, problem: impl fmt::Display) {
        let place = self.entries.get(key).map_or(Place::Nowhere, |entry| entry.place.clone());
        let text = match place {
            Place::Line(_) => format!("`{key}`: {problem}"),
            Place::Set(_) | Place::Nowhere => problem.to_string(),
        };
        self.faults.push((place, text));
        self.faulty.insert(key.to_owned());
    }

    /// Reads `key` through `convert`, whose error says what was expected of a value that does not fit.
    fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        convert: impl Fn(&Value, Option<&str>) -> Result<T, String>,
    ) -> T {
        self.know(key);
        let Some(Entry { value, place }) = self.entries.get(key) else { return default };
        match convert(value, raw(place)) {
            Ok(value) => value,
            Err(expected) => {
                let problem = format!("expected {expected}, found {}", describe(value));
                self.fail(key, problem);
                default
            }
        }
    }

    /// Reads a string; any value typed after `--set` is one.
    pub fn text(&mut self, key: &'static str, default: &str) -> String {
        self.read(key, default.to_owned(), |value, raw| match (value, raw) {
            (Value::String(text), _) => Ok(text.clone()),
            (_, Some(raw)) => Ok(raw.to_owned()),
            _ => Err("a string".to_owned()),
        })
    }

    /// Reads a string that must be given and not empty.
    pub fn required(&mut self, key: &'static str) -> String {
        let value = self.text(key, "");
        if !self.gives(key) && self.sound(&[key]) {
            self.fail(key, format!("missing key `{key}`"));
        } else if value.is_empty() && self.sound(&[key]) {
            self.fail(key, "expected a name, found an empty string");
        }
        value
    }

    /// Reads `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.read(key, default, |value, _| value.as_bool().ok_or("`true` or `false`".to_owned()))
    }

    /// Reads a whole number from `least` to `most`.
    pub fn whole<T: TryFrom<i64>>(&mut self, key: &'static str, default: T, least: i64, most: Most) -> T {
        self.read(key, default, |value, raw| {
            let number = value.as_integer().filter(|number| *number >= least);
            let fits = |number: &i64| usize::try_from(*number).is_ok_and(|number| number <= most.number);
            // Digits that are no integer of TOML are one that is too large.
            let is_long = value.as_str().is_some_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            number.filter(fits).and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
                let is_large = number.is_some() || is_long && raw.is_some();
                if is_large { most.words(least) } else { format!("a whole number of at least {least}") }
            })
        })
    }

    /// Reads a finite number, written as an integer or a float.
    pub fn number(&mut self, key: &'static str, default: f64, bound: Bound) -> f64 {
        self.read(key, default, |value, _| number(value, &bound))
    }

    /// Reads a number that has no default.
    pub fn optional_number(&mut self, key: &'static str, bound: Bound) -> Option<f64> {
        self.read(key, None, |value, _| number(value, &bound).map(Some))
    }

    /// Reads a list of strings that are not empty; after `--set` also `a,b`.
    pub fn list(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        let default = default.iter().map(|item| (*item).to_owned()).collect();
        self.read(key, default, |value, raw| {
            let items: Option<Vec<String>> = match (value, raw) {
                (Value::Array(items), _) => {
                    items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
                }
                (Value::String(text), Some(_)) if text.is_empty() => Some(Vec::new()),
                (Value::String(text), Some(_)) => {
                    Some(text.split(',').map(|item| item.trim().to_owned()).collect())
                }
                _ => None,
            };
            items
                .filter(|items| items.iter().all(|item| !item.is_empty()))
                .ok_or("a list of names such as `[\"query\", \"value\"]`".to_owned())
        })
    }

    /// Reads one of the names of `T`.
    pub fn choice<T: ValueEnum>(&mut self, key: &'static str, default: T) -> T {
        self.read(key, default, |value, _| {
            let name = value.as_str().unwrap_or_default();
            T::from_str(name, false).map_err(|_| one_of(T::value_variants()))
        })
    }

    /// Reads one of `names`, the first by default.
    pub fn name(&mut self, key: &'static str, names: &[&'static str]) -> &'static str {
        self.read(key, names.first().copied().unwrap_or_default(), |value, _| {
            let name = value.as_str().unwrap_or_default();
            names.iter().copied().find(|known| *known == name).ok_or_else(|| listed(names))
        })
    }

    /// Reads `"epoch"`, `"never"`, or a number of steps.
    pub fn every(&mut self, key: &'static str, default: Every) -> Every {
        self.read(key, default, |value, _| match (value.as_str(), value.as_integer()) {
            (Some("epoch"), _) => Ok(Every::Epoch),
            (Some("never"), _) => Ok(Every::Never),
            (_, Some(steps)) if (1..=STEPS.number as i64).contains(&steps) => {
                Ok(Every::Steps(steps.unsigned_abs()))
            }
            (_, Some(steps)) if steps > 1 => Err(STEPS.words(1)),
            _ => Err("`epoch`, `never` or a number of steps of at least 1".to_owned()),
        })
    }

    /// Ends the reading: keys that were never read are unknown.
    ///
    /// # Errors
    /// One usage fault that lists all faults, those of the file first, in the order of its lines.
    pub fn finish(mut self, name: &str) -> Result<(), Fault> {
        for (key, entry) in &self.entries {
            if !self.known.contains(key.as_str()) {
                self.faults.push((entry.place.clone(), unknown(key, &entry.value, &self.known)));
            }
        }
        self.faults.sort();
        let lines: Vec<String> = self.faults.iter().map(|(place, text)| format!("{place}{text}")).collect();
        match lines.as_slice() {
            [] => Ok(()),
            [line] => Err(usage(format!("recipe `{name}`: {line}"))),
            _ => Err(usage(format!("recipe `{name}` has {} faults:\n  {}", lines.len(), lines.join("\n  ")))),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}: "),
            Self::Set(assignment) => write!(f, "`--set {assignment}`: "),
            Self::Nowhere => Ok(()),
        }
    }
}

/// Returns the text after the `=` of a `--set`.
fn raw(place: &Place) -> Option<&str> {
    match place {
        Place::Set(assignment) => assignment.split_once('=').map(|(_, raw)| raw.trim()),
        Place::Line(_) | Place::Nowhere => None,
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_integer() == Some(0) || value.as_float() == Some(0.0)
}

fn number(value: &Value, bound: &Bound) -> Result<f64, String> {
    let number = value.as_float().or(value.as_integer().map(|whole| whole as f64));
    let number = number.filter(|number| number.is_finite() && (bound.holds)(*number)).ok_or(bound.words)?;
    // Everything computed with it has 32 bits.
    let fits = (number as f32).is_finite();
    if fits { Ok(number) } else { Err(format!("{} and at most {:e}", bound.words, f32::MAX)) }
}

fn one_of<T: ValueEnum>(variants: &[T]) -> String {
    let values: Vec<_> = variants.iter().filter_map(ValueEnum::to_possible_value).collect();
    listed(&values.iter().map(|value| value.get_name()).collect::<Vec<_>>())
}

fn listed(names: &[&str]) -> String {
    format!("one of `{}`", names.join("`, `"))
}

fn describe(value: &Value) -> String {
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

/// Names the nearest key: the same last part elsewhere, then a similar one in the same section, then in any.
fn unknown(key: &str, value: &Value, known: &BTreeSet<&'static str>) -> String {
    let (section, leaf) = key.split_once('.').unwrap_or(("", key));
    let parts = || known.iter().filter_map(|known| known.split_once('.'));
    if !value.is_table() && section.is_empty() && parts().any(|(known, _)| known == key) {
        return format!("expected the section `[{key}]`, found {}", describe(value));
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
    let guess = leaf_named(leaf).or_else(|| leaf_named(near_leaf(section).or_else(|| near_leaf(""))?));
    let guess =
        guess.map(|(section, leaf)| format!("; did you mean `{section}.{leaf}`?")).unwrap_or_default();
    format!("unknown key `{key}`{guess}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::RANK;

    fn read(text: &str, sets: &[&str], keys: impl Fn(&mut Reader)) -> String {
        let mut reader = Reader::open(text, "r.toml").unwrap();
        sets.iter().for_each(|set| reader.set(set));
        keys(&mut reader);
        reader.finish("r.toml").err().map(|fault| fault.to_string()).unwrap_or_default()
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
            line 2: `s.a`: expected a whole number of at least 1, found the string `ten`\n  \
            line 3: `s.b`: expected a whole number of at least 1, found `1.5`\n  \
            line 4: `s.c`: expected a list of names such as `[\"query\", \"value\"]`, found the list `[1]`\n  \
            line 5: `s.d`: expected `true` or `false`, found `3`\n  \
            line 6: `s.e`: expected a string, found a date or time\n  \
            line 7: `s.f`: expected a number of at least 0, found `NaN`";
        assert_eq!(found, expected);
    }

    #[test]
    fn ranges_hold_at_their_ends() {
        let numbers = |value: f64, bound: &Bound| number(&Value::Float(value), bound).is_ok();
        assert!(
            numbers(0.0, &NOT_NEGATIVE)
                && !numbers(-1e-9, &NOT_NEGATIVE)
                && !numbers(f64::INFINITY, &POSITIVE)
        );
        assert!(!numbers(0.0, &POSITIVE) && numbers(0.0, &FRACTION) && !numbers(1.0, &FRACTION));
        assert_eq!(number(&Value::Integer(2), &POSITIVE), Ok(2.0));
        let found = read("", &["s.a=-1", "s.b=300"], |reader| {
            reader.whole::<u64>("s.a", 1, 0, RANK);
            reader.whole::<u8>("s.b", 1, 0, RANK);
        });
        assert!(
            found.contains("`--set s.a=-1`: expected a whole number of at least 0, found `-1`"),
            "{found}"
        );
        assert!(found.contains("found `300`"), "{found}");
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
        reader.finish("r.toml").unwrap();
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
