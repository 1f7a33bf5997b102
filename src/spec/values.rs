//! The types of values that a [`Reader`] reads, with what a message says of a value that does not fit.

use std::collections::BTreeMap;

use clap::ValueEnum;
use toml::{Table, Value};

use super::reader::{Reader, describe};
use super::{ClassWeights, Every, Validation};
use crate::limits::{Most, STEPS};

/// A condition on a number, and the words for it.
pub struct Bound {
    holds: fn(f64) -> bool,
    words: &'static str,
}

impl Bound {
    /// Reads a number that is typed.
    ///
    /// # Errors
    /// When the text is no such number.
    pub fn parse(&self, text: &str) -> Result<f64, String> {
        let number: Option<f64> = text.parse().ok();
        number.filter(|&x| x.is_finite() && (self.holds)(x)).ok_or_else(|| format!("expected {}", self.words))
    }
}

/// A number that may be zero.
pub const NOT_NEGATIVE: Bound = Bound { holds: |x| x >= 0.0, words: "a number of at least 0" };
/// A number that may not be zero.
pub const POSITIVE: Bound = Bound { holds: |x| x > 0.0, words: "a number above 0" };
/// A share of which there must be some.
pub const SHARE: Bound = Bound { holds: |x| x > 0.0 && x <= 1.0, words: "a number above 0 and up to 1" };
/// A probability or share.
pub const FRACTION: Bound =
    Bound { holds: |x| (0.0..1.0).contains(&x), words: "a number from 0 up to, not including, 1" };

/// Problem of a text that is not optional.
const EMPTY: &str = "expected a text, found an empty one";

impl Reader {
    /// Reads a string; any value typed after `--set` is one.
    pub fn text(&mut self, key: &'static str, default: &str) -> String {
        self.read(key, default.to_owned(), Value::from(default), string)
    }

    /// Reads a string that must be given.
    pub fn given_text(&mut self, key: &'static str) -> String {
        let value = self.read(key, String::new(), None, string);
        if !self.gives(key) && self.sound(&[key]) {
            self.missing(key);
        }
        value
    }

    /// Reads a string that must be given and not empty.
    pub fn required(&mut self, key: &'static str) -> String {
        let value = self.given_text(key);
        if value.is_empty() && self.sound(&[key]) {
            self.fail(key, EMPTY);
        }
        value
    }

    /// Reads a string that has no default and is not empty.
    pub fn optional(&mut self, key: &'static str) -> Option<String> {
        let found = self.read(key, None, None, |value, raw| string(value, raw).map(Some))?;
        if found.is_empty() {
            self.fail(key, EMPTY);
        }
        Some(found).filter(|text| !text.is_empty())
    }

    /// Reads `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.read(key, default, Value::from(default), |value, _| {
            value.as_bool().ok_or("`true` or `false`".to_owned())
        })
    }

    /// Reads a whole number from `least` to `most`.
    pub fn whole<T>(&mut self, key: &'static str, default: T, least: i64, most: Most) -> T
    where
        T: Copy + TryFrom<i64> + TryInto<i64>,
    {
        let shown = default.try_into().ok().map(Value::Integer);
        self.read(key, default, shown, |value, _| whole(value, least, most))
    }

    /// Reads a whole number from `least` to `most` that has no default.
    pub fn optional_whole(&mut self, key: &'static str, least: i64, most: Most) -> Option<usize> {
        self.read(key, None, None, |value, _| whole(value, least, most).map(Some))
    }

    /// Reads a finite number, written as an integer or a float.
    pub fn number(&mut self, key: &'static str, default: f64, bound: Bound) -> f64 {
        self.read(key, default, Value::from(default), |value, _| number(value, &bound))
    }

    /// Reads a number that has no default.
    pub fn optional_number(&mut self, key: &'static str, bound: Bound) -> Option<f64> {
        self.read(key, None, None, |value, _| number(value, &bound).map(Some))
    }

    /// Reads one string or a list of them.
    pub fn texts(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        let default: Vec<String> = default.iter().map(|item| (*item).to_owned()).collect();
        self.read(key, default.clone(), Value::from(default), |value, _| texts_of(value))
    }

    /// Reads one string or a list of them, which must be given.
    pub fn given_texts(&mut self, key: &'static str) -> Vec<String> {
        let found = self.read(key, Vec::new(), None, |value, _| texts_of(value));
        if !self.gives(key) {
            self.missing(key);
        }
        found
    }

    /// Reads a table, each value through `convert`.
    pub fn table<T>(
        &mut self,
        key: &'static str,
        words: &str,
        convert: impl Fn(&Value) -> Result<T, &'static str>,
    ) -> BTreeMap<String, T> {
        let table =
            self.read(key, Table::new(), None, |value, _| value.as_table().cloned().ok_or(words.to_owned()));
        let mut found = BTreeMap::new();
        for (part, value) in table {
            match convert(&value) {
                Ok(item) => _ = found.insert(part, item),
                Err(expected) => {
                    let problem = format!("expected {expected}, found {}", describe(&value));
                    self.fail(&format!("{key}.{part}"), problem);
                }
            }
        }
        found
    }

    /// Reads a list of strings that are not empty; after `--set` also `a,b`.
    pub fn list(&mut self, key: &'static str, default: &[&str]) -> Vec<String> {
        let default: Vec<String> = default.iter().map(|item| (*item).to_owned()).collect();
        self.read(key, default.clone(), Value::from(default), |value, raw| {
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
        let shown = default.to_possible_value().map(|value| Value::from(value.get_name()));
        self.read(key, default, shown, |value, _| {
            let name = value.as_str().unwrap_or_default();
            T::from_str(name, false).map_err(|_| one_of(T::value_variants()))
        })
    }

    /// Reads one of `names`, the first by default.
    pub fn name(&mut self, key: &'static str, names: &[&'static str]) -> &'static str {
        let default = names.first().copied().unwrap_or_default();
        self.read(key, default, Value::from(default), |value, _| name_of(value, names))
    }

    /// Reads one of `names`; it has no default.
    pub fn optional_name(&mut self, key: &'static str, names: &[&'static str]) -> Option<&'static str> {
        self.read(key, None, None, |value, _| name_of(value, names).map(Some))
    }

    /// Reads `"balanced"` or a list of numbers of at least 0, of which there are none by default.
    pub fn class_weights(&mut self, key: &'static str) -> ClassWeights {
        let none = ClassWeights::Listed(Vec::new());
        self.read(key, none, Value::Array(Vec::new()), |value, _| {
            let weight = |item: &Value| number(item, &NOT_NEGATIVE).ok();
            let listed = value.as_array().and_then(|list| list.iter().map(weight).collect());
            match (value.as_str(), listed) {
                (Some("balanced"), _) => Ok(ClassWeights::Balanced),
                (_, Some(weights)) => Ok(ClassWeights::Listed(weights)),
                _ => Err("`balanced` or a list of numbers of at least 0".to_owned()),
            }
        })
    }

    /// Reads the name of a split or a share of rows.
    pub fn validation(&mut self, key: &'static str, default: &str) -> Validation {
        self.read(key, Validation::Split(default.to_owned()), Value::from(default), |value, _| {
            match (value.as_str(), value.as_float()) {
                (Some(name), _) if !name.is_empty() => Ok(Validation::Split(name.to_owned())),
                (_, Some(share)) if share > 0.0 && share < 1.0 => Ok(Validation::Share(share)),
                _ => {
                    Err("the name of a split, or a share of the training rows above 0 and below 1".to_owned())
                }
            }
        })
    }

    /// Reads weights above 0 by name, none by default.
    pub fn weights(&mut self, key: &'static str) -> BTreeMap<String, f64> {
        self.table(key, "a table of weights by data set", |value| {
            let weight = value.as_float().or(value.as_integer().map(|whole| whole as f64));
            weight.filter(|weight| *weight > 0.0 && weight.is_finite()).ok_or(POSITIVE.words)
        })
    }

    /// Reads `"epoch"`, `"never"`, or a number of steps.
    pub fn every(&mut self, key: &'static str, default: Every) -> Every {
        self.read(key, default, Value::try_from(default).ok(), |value, _| {
            match (value.as_str(), value.as_integer()) {
                (Some("epoch"), _) => Ok(Every::Epoch),
                (Some("never"), _) => Ok(Every::Never),
                (_, Some(steps)) if (1..=STEPS.number as i64).contains(&steps) => {
                    Ok(Every::Steps(steps.unsigned_abs()))
                }
                (_, Some(steps)) if steps > 1 => Err(STEPS.words(1)),
                _ => Err("`epoch`, `never` or a number of steps of at least 1".to_owned()),
            }
        })
    }
}

fn string(value: &Value, raw: Option<&str>) -> Result<String, String> {
    match (value, raw) {
        (Value::String(text), _) => Ok(text.clone()),
        (_, Some(raw)) => Ok(raw.to_owned()),
        _ => Err("a string".to_owned()),
    }
}

fn name_of(value: &Value, names: &[&'static str]) -> Result<&'static str, String> {
    let name = value.as_str().unwrap_or_default();
    names.iter().copied().find(|known| *known == name).ok_or_else(|| listed(names))
}

/// Returns one text as a list of itself, or the texts of a list.
pub fn texts_of(value: &Value) -> Result<Vec<String>, String> {
    let texts = match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    texts.ok_or("a text or a list of texts".to_owned())
}

fn whole<T: TryFrom<i64>>(value: &Value, least: i64, most: Most) -> Result<T, String> {
    let number = value.as_integer().filter(|number| *number >= least);
    let fits = |number: &i64| usize::try_from(*number).is_ok_and(|number| number <= most.number);
    number.filter(fits).and_then(|number| T::try_from(number).ok()).ok_or_else(|| most.words(least))
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

#[cfg(test)]
mod tests {
    use super::super::reader::refuse;
    use super::*;
    use crate::limits::RANK;

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
        let mut reader = Reader::open("", "r.toml").unwrap();
        ["s.a=-1", "s.b=300"].iter().for_each(|set| reader.set(set));
        reader.whole::<u64>("s.a", 1, 0, RANK);
        reader.whole::<u8>("s.b", 1, 0, RANK);
        let found = refuse("r.toml", &reader.faults()).unwrap_err().to_string();
        assert!(
            found.contains("`--set s.a=-1`: expected a whole number from 0 to 1048576, since no layer is wider, found `-1`"),
            "{found}"
        );
        assert!(found.contains("found `300`"), "{found}");
    }
}
