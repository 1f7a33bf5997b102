//! Methods of mappings, lists and stateful objects; and conversions of arguments.

use super::args::Args;
use super::meter::{Failure, Outcome};
use super::run::Run;
use super::value::{Entries, Key, Object, Value, View};

impl Run<'_> {
    /// Calls a method.
    pub fn method(&self, of: &Value, name: &str, args: Args) -> Outcome<Value> {
        match of {
            Value::Text(text) => self.text_method(text, name, args),
            Value::Dict(dict) => match name {
                "get" => {
                    let [key, default] = args.take(name, ["", ""], 1)?;
                    let key = Key::new(&self.meter, &key.unwrap_or(Value::None))?;
                    Ok(dict.items.get(&key).cloned().or(default).unwrap_or(Value::None))
                }
                "fromkeys" => {
                    let [keys, value] = args.take(name, ["", ""], 1)?;
                    let value = value.unwrap_or(Value::None);
                    let mut entries = Entries::new();
                    for key in self.items(&keys.unwrap_or(Value::None))? {
                        entries.insert(Key::new(&self.meter, &key)?, value.clone());
                    }
                    self.meter.dict(entries)
                }
                name => {
                    let [] = args.take(name, [], 0)?;
                    let view = match name {
                        "keys" => View::Keys,
                        "values" => View::Values,
                        "items" => View::Items,
                        _ => return self.meter.dict(dict.items.clone()),
                    };
                    Ok(Value::View(view, std::rc::Rc::clone(dict)))
                }
            },
            Value::Object(object) => match &**object {
                Object::Loop(state) => self.loop_method(state, name, args),
                Object::Cycler { items, at } => {
                    let [] = args.take(name, [], 0)?;
                    if name == "reset" {
                        at.set(0);
                        return Ok(Value::None);
                    }
                    let place = at.get();
                    at.set((place + 1) % items.items.len().max(1));
                    Ok(items.items.get(place).cloned().unwrap_or(Value::None))
                }
                _ => Err(Failure::new(format!("no method `{name}`"))),
            },
            sequence => self.sequence_method(sequence, name, args),
        }
    }

    /// Calls a method of a list, a tuple or a range.
    fn sequence_method(&self, of: &Value, name: &str, args: Args) -> Outcome<Value> {
        if name == "copy" {
            let [] = args.take(name, [], 0)?;
            return self.meter.list(self.items(of)?);
        }
        let counts = name == "count";
        let [item, start, stop] = args.take(name, ["", "", ""], 1)?;
        if (counts || matches!(of, Value::Range(_))) && (start.is_some() || stop.is_some()) {
            return Err(Failure::new(format!("{name}() takes exactly one argument")));
        }
        let item = item.unwrap_or(Value::None);
        let length = self.length(of)?.unwrap_or(0);
        let bound = |bound: Option<Value>, default: usize| -> Outcome<usize> {
            let Some(bound) = bound else { return Ok(default) };
            let bound = integer(&bound)?;
            let bound = if bound < 0 { bound.saturating_add(length as i64).max(0) } else { bound };
            Ok(usize::try_from(bound).unwrap_or(usize::MAX))
        };
        let (start, stop) = (bound(start, 0)?, bound(stop, length)?);
        let (mut source, mut at, mut count) = (self.iterate(of)?, 0, 0);
        while let Some(other) = self.next(&mut source)? {
            if (start..stop).contains(&at) && self.equal(&other, &item)? {
                if !counts {
                    return Ok(Value::Int(at as i64));
                }
                count += 1;
            }
            at += 1;
        }
        if counts { Ok(Value::Int(count)) } else { Err(Failure::new("value is not in list")) }
    }
}

/// Reads a whole number from an argument.
///
/// # Errors
/// When it is none.
pub(super) fn integer(value: &Value) -> Outcome<i64> {
    match value.index() {
        Some(_) if matches!(value, Value::Big(_)) => Err(Failure::new("a number is too large for an index")),
        Some(index) => Ok(index),
        None => Err(Failure::new(format!("'{}' object cannot be interpreted as an integer", value.kind()))),
    }
}

/// Reads a text from an argument.
///
/// # Errors
/// When it is none.
pub(super) fn string(value: &Value) -> Outcome<&str> {
    value.text().ok_or_else(|| Failure::new(format!("expected a str, found {}", value.kind())))
}
