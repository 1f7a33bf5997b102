//! Attributes, items and slices, in the order in which Jinja2's sandbox looks for them.

use std::rc::Rc;

use num_bigint::BigInt;

use super::meter::{Failure, Outcome};
use super::number::whole;
use super::run::Run;
use super::value::{Entries, Key, Object, Range, Text, Value};

/// Methods of Python's `str`.
const TEXT: [&str; 47] = [
    "capitalize", "casefold", "center", "count", "encode", "endswith", "expandtabs", "find", "format",
    "format_map", "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier",
    "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower",
    "lstrip", "maketrans", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "translate", "upper", "zfill",
];
/// Further methods of markup.
const MARKUP: [&str; 3] = ["escape", "striptags", "unescape"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const TUPLE: [&str; 2] = ["count", "index"];
/// Methods that the sandbox keeps from templates because they change a mapping or list.
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const LIST_CHANGES: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
/// Attributes of numbers, mappings' views and generators that are not written here.
const MISSING: [&str; 18] = [
    "as_integer_ratio", "bit_count", "bit_length", "close", "conjugate", "denominator", "from_bytes",
    "fromhex", "hex", "imag", "is_integer", "isdisjoint", "mapping", "numerator", "real", "send", "throw",
    "to_bytes",
];

impl Run<'_> {
    /// `value.name`: the attribute, else the item.
    pub fn attribute(&self, value: &Value, name: &str) -> Outcome<Value> {
        if let Some(found) = self.own_attribute(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(found) = dict.items.get(name)
        {
            return Ok(found.clone());
        }
        Ok(no_attribute(value, name))
    }

    /// `value[key]`: the item, else the attribute.
    pub fn item(&self, value: &Value, key: &Value) -> Outcome<Value> {
        let found = match (value, key) {
            (Value::Undefined(message), _) => return Err(Failure::new(message.as_str())),
            (Value::Dict(dict), key) => match Key::new(&self.meter, key) {
                Ok(key) => dict.items.get(&key).cloned(),
                Err(failure) if failure.is_of_template => return Err(failure),
                Err(_) => None,
            },
            (Value::List(list) | Value::Tuple(list), key) => {
                place(key, list.items.len()).and_then(|at| list.items.get(at).cloned())
            }
            (Value::Range(range), key) => place(key, range.len()).map(|at| range.get(at)),
            (Value::Text(text), key) if key.index().is_some() => {
                self.meter.read(if text.is_ascii() { 0 } else { text.text.len() })?;
                let c = place(key, text.chars()).and_then(|at| match text.is_ascii() {
                    true => text.text.as_bytes().get(at).map(|byte| char::from(*byte)),
                    false => text.text.chars().nth(at),
                });
                c.map(|c| self.meter.string(c.to_string(), text.is_safe)).transpose()?
            }
            _ => None,
        };
        match (found, key.text()) {
            (Some(found), _) => Ok(found),
            (None, Some(name)) => {
                Ok(self.own_attribute(value, name)?.unwrap_or_else(|| no_attribute(value, name)))
            }
            (None, None) => {
                let mut shown = String::new();
                if !matches!(key, Value::List(_) | Value::Tuple(_) | Value::Dict(_)) {
                    shown = self.str(key).unwrap_or_default();
                }
                shown.truncate(40);
                Ok(Value::undefined(format!("{} has no element {shown}", described(value))))
            }
        }
    }

    /// Returns what `getattr` finds.
    fn own_attribute(&self, value: &Value, name: &str) -> Outcome<Option<Value>> {
        let method = |names: &[&'static str]| match names.iter().find(|known| **known == name) {
            Some(known) => self.meter.object(Object::Method(value.clone(), known)).map(Some),
            None => Ok(None),
        };
        let is_change = match value {
            Value::Dict(_) => DICT_CHANGES.contains(&name),
            Value::List(_) => LIST_CHANGES.contains(&name),
            _ => false,
        };
        if is_change {
            let kind = value.kind();
            let message = format!("access to attribute '{name}' of '{kind}' object is unsafe.");
            return Ok(Some(Value::undefined(message)));
        }
        match value {
            Value::Undefined(message) => Err(Failure::new(message.as_str())),
            Value::Text(text) if text.is_safe && MARKUP.contains(&name) => method(&MARKUP),
            Value::Text(_) => method(&TEXT),
            Value::Dict(_) => method(&DICT),
            Value::List(_) => method(&LIST),
            Value::Tuple(list) if list.is_group && name == "grouper" => Ok(list.items.first().cloned()),
            Value::Tuple(list) if list.is_group && name == "list" => Ok(list.items.get(1).cloned()),
            Value::Tuple(_) => method(&TUPLE),
            Value::Range(range) => match name {
                "start" => Ok(Some(Value::Int(range.start))),
                "stop" => Ok(Some(Value::Int(range.stop))),
                "step" => Ok(Some(Value::Int(range.step))),
                _ => method(&TUPLE),
            },
            Value::Namespace(place) => Ok(self.namespace_attribute(*place, name)),
            Value::Object(object) => self.object_attribute(value, object, name),
            Value::None => Ok(None),
            _ if MISSING.contains(&name) => Err(Failure::refused(&format!("`{name}` of a {}", value.kind()))),
            _ => Ok(None),
        }
    }

    fn object_attribute(&self, value: &Value, object: &Object, name: &str) -> Outcome<Option<Value>> {
        Ok(match (object, name) {
            (Object::Loop(of), name) => self.loop_attribute(value, of, name)?,
            (Object::Cycler { items, at }, "current") => items.items.get(at.get()).cloned(),
            (Object::Cycler { items, .. }, "items") => Some(Value::Tuple(Rc::clone(items))),
            (Object::Cycler { at, .. }, "pos") => Some(Value::Int(at.get() as i64)),
            (Object::Cycler { .. }, "next") => {
                Some(self.meter.object(Object::Method(value.clone(), "next"))?)
            }
            (Object::Cycler { .. }, "reset") => {
                Some(self.meter.object(Object::Method(value.clone(), "reset"))?)
            }
            (Object::Joiner { separator, .. }, "sep") => Some(separator.clone()),
            (Object::Joiner { is_used, .. }, "used") => Some(Value::Bool(is_used.get())),
            (Object::Function("dict"), "fromkeys") => {
                let empty = self.meter.dict(Entries::new())?;
                Some(self.meter.object(Object::Method(empty, "fromkeys"))?)
            }
            (Object::Macro { of, .. }, "name") => Some(match of.name {
                Some(name) => self.meter.text(self.name(name))?,
                None => Value::None,
            }),
            (Object::Macro { of, .. }, "arguments") => {
                let names = of.parameters.iter().map(|name| self.meter.text(self.name(*name)));
                Some(self.meter.tuple(names.collect::<Outcome<_>>()?)?)
            }
            (Object::Macro { of, .. }, "catch_kwargs") => Some(Value::Bool(of.uses.kwargs)),
            (Object::Macro { of, .. }, "catch_varargs") => Some(Value::Bool(of.uses.varargs)),
            (Object::Macro { of, .. }, "caller") => Some(Value::Bool(of.uses.caller)),
            _ => None,
        })
    }

    /// `value[start:stop:step]`.
    ///
    /// # Errors
    /// When the value has no slices, or a bound is no whole number.
    pub fn slice(&self, value: &Value, bounds: [Option<Value>; 3]) -> Outcome<Value> {
        if let Value::Undefined(message) = value {
            return Err(Failure::new(message.as_str()));
        }
        let Some(length) = (match value {
            Value::Text(_) | Value::List(_) | Value::Tuple(_) | Value::Range(_) => self.length(value)?,
            _ => None,
        }) else {
            return Err(Failure::new(format!("'{}' object is not subscriptable", value.kind())));
        };
        let bound = |bound: Option<Value>| match bound {
            None | Some(Value::None) => Ok(None),
            Some(value) => match value.index() {
                Some(index) => Ok(Some(index)),
                None => Err(Failure::new("slice indices must be integers or None")),
            },
        };
        let [start, stop, step] = bounds;
        let (step, start, stop) = (bound(step)?.unwrap_or(1), bound(start)?, bound(stop)?);
        if step == 0 {
            return Err(Failure::new("slice step cannot be zero"));
        }
        let places = places(length as i64, start, stop, step);
        let at = |place: usize| match places.get(place) {
            Value::Int(at) => usize::try_from(at).unwrap_or(0),
            _ => 0,
        };
        let count = places.len();
        self.meter.room(count.saturating_mul(size_of::<Value>()))?;
        match value {
            Value::List(list) | Value::Tuple(list) => {
                let items = (0..count).filter_map(|place| list.items.get(at(place)).cloned()).collect();
                if matches!(value, Value::List(_)) { self.meter.list(items) } else { self.meter.tuple(items) }
            }
            Value::Range(range) => Ok(Value::Range(Rc::new(Range {
                start: range.start.saturating_add(places.start.saturating_mul(range.step)),
                stop: range.start.saturating_add(places.stop.saturating_mul(range.step)),
                step: range.step.saturating_mul(step),
            }))),
            Value::Text(text) => self.meter.string(text_slice(text, step, (0..count).map(at)), text.is_safe),
            _ => Ok(Value::None),
        }
    }
}

/// Returns the characters of a text at these places, which are a step apart.
fn text_slice(text: &Text, step: i64, mut places: impl ExactSizeIterator<Item = usize>) -> String {
    let whole = text.text.as_str();
    if step == 1 {
        let byte = |char: usize| match text.is_ascii() {
            true => char,
            false => whole.char_indices().nth(char).map_or(whole.len(), |(byte, _)| byte),
        };
        let count = places.len();
        let part = places.next().and_then(|start| whole.get(byte(start)..byte(start + count)));
        return part.unwrap_or_default().to_owned();
    }
    if text.is_ascii() {
        return places.filter_map(|at| whole.as_bytes().get(at).map(|byte| char::from(*byte))).collect();
    }
    let chars: Vec<char> = whole.chars().collect();
    places.filter_map(|at| chars.get(at)).collect()
}

/// Returns the places that a slice takes, like Python's `slice.indices`.
fn places(length: i64, start: Option<i64>, stop: Option<i64>, step: i64) -> Range {
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let bound = |bound: i64| {
        if bound < 0 { bound.saturating_add(length).max(low) } else { bound.min(high) }
    };
    let start = start.map_or(if step > 0 { low } else { high }, bound);
    let stop = stop.map_or(if step > 0 { high } else { low }, bound);
    Range { start, stop, step }
}

/// Returns the place that an index means.
fn place(index: &Value, length: usize) -> Option<usize> {
    let index = whole(index)?;
    let index = if index < BigInt::ZERO { index + length } else { index };
    usize::try_from(index).ok().filter(|at| *at < length)
}

/// Describes a value as Jinja2 does in messages.
fn described(value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        value => format!("{} object", value.kind()),
    }
}

fn no_attribute(value: &Value, name: &str) -> Value {
    let shown: String = name.chars().take(40).collect();
    Value::undefined(format!("'{}' has no attribute '{shown}'", described(value)))
}
