//! JSON: that of conversations, and `tojson` as Transformers defines it: Python's `json.dumps`, with non-ASCII
//! characters as they are.

use std::cmp::Ordering;
use std::rc::Rc;

use num_bigint::BigInt;

use super::meter::{Failure, Meter, Outcome};
use super::number::{big_text, float_text};
use super::run::Run;
use super::unicode::replace_chars;
use super::value::{Key, Value};
use crate::data::odd::{self, Odd};

impl Meter {
    /// Converts a value of a conversation.
    ///
    /// # Errors
    /// When it exceeds the memory limit, or cannot be used.
    pub fn json(self: &Rc<Self>, json: &serde_json::Value) -> Outcome<Value> {
        match odd::of(json) {
            None => {}
            Some(Odd::Number(digits)) => return Value::int(digits.parse().unwrap_or_default()),
            Some(odd) => return Err(Failure::new(format!("it holds {}", odd.words()))),
        }
        Ok(match json {
            serde_json::Value::Null => Value::None,
            serde_json::Value::Bool(b) => Value::Bool(*b),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(small) => Value::Int(small),
                None => {
                    let digits = number.to_string();
                    match digits.parse::<BigInt>() {
                        Ok(number) => Value::int(number)?,
                        Err(_) => Value::Float(digits.parse().unwrap_or(f64::NAN)),
                    }
                }
            },
            serde_json::Value::String(text) => self.text(text.as_str())?,
            serde_json::Value::Array(items) => {
                self.list(items.iter().map(|item| self.json(item)).collect::<Outcome<_>>()?)?
            }
            serde_json::Value::Object(items) => {
                let entry = |(key, item): (&String, _)| {
                    Ok((Key::new(self, &self.text(key.as_str())?)?, self.json(item)?))
                };
                self.dict(items.iter().map(entry).collect::<Outcome<_>>()?)?
            }
        })
    }
}

/// Layout of JSON.
#[derive(Default)]
pub(super) struct Layout {
    pub is_ascii: bool,
    /// One level of indentation; lines are broken only if there is one.
    pub indent: Option<String>,
    pub comma: String,
    pub colon: String,
    pub sorts: bool,
}

impl Run<'_> {
    /// Writes a value as JSON.
    ///
    /// # Errors
    /// When JSON has no such value, or the text exceeds the memory limit.
    pub fn json(&self, value: &Value, layout: &Layout) -> Outcome<String> {
        let mut out = String::new();
        self.write_json(value, layout, 0, &mut out)?;
        Ok(out)
    }

    fn write_json(&self, value: &Value, layout: &Layout, level: usize, out: &mut String) -> Outcome<()> {
        self.meter.spend(1)?;
        self.meter.room(out.len())?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Int(number) => out.push_str(&number.to_string()),
            Value::Big(number) => out.push_str(&big_text(number)?),
            Value::Float(number) => out.push_str(&json_float(*number)),
            Value::Text(text) => {
                self.meter.read(text.text.len())?;
                self.meter.room(out.len() + text.text.len())?;
                quote(&text.text, layout.is_ascii, out);
            }
            Value::List(list) | Value::Tuple(list) => {
                out.push('[');
                for (i, item) in list.items.iter().enumerate() {
                    self.break_line(layout, level + 1, i > 0, out)?;
                    self.write_json(item, layout, level + 1, out)?;
                }
                self.close_line(layout, level, list.items.is_empty(), out)?;
                out.push(']');
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> =
                    dict.items.iter().map(|(key, value)| (key.value().clone(), value)).collect();
                if layout.sorts {
                    entries = self.sorted(entries, |a, b| self.order(&a.0, &b.0).map(Ordering::is_lt))?;
                }
                out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.break_line(layout, level + 1, i > 0, out)?;
                    quote(&self.json_key(&key)?, layout.is_ascii, out);
                    out.push_str(&layout.colon);
                    self.write_json(value, layout, level + 1, out)?;
                }
                self.close_line(layout, level, dict.items.is_empty(), out)?;
                out.push('}');
            }
            value => {
                return Err(Failure::new(format!(
                    "Object of type {} is not JSON serializable",
                    value.kind()
                )));
            }
        }
        Ok(())
    }

    fn json_key(&self, key: &Value) -> Outcome<String> {
        Ok(match key {
            Value::Text(text) => text.text.clone(),
            Value::Bool(true) => "true".to_owned(),
            Value::Bool(false) => "false".to_owned(),
            Value::None => "null".to_owned(),
            Value::Float(number) => json_float(*number),
            Value::Int(_) | Value::Big(_) => self.str(key)?,
            key => {
                let kind = key.kind();
                return Err(Failure::new(format!("keys must be str, int, float, bool or None, not {kind}")));
            }
        })
    }

    /// Writes the comma, line break and indent before an item.
    fn break_line(&self, layout: &Layout, level: usize, follows: bool, out: &mut String) -> Outcome<()> {
        if follows {
            out.push_str(&layout.comma);
        }
        if let Some(indent) = &layout.indent {
            self.meter.room(out.len().saturating_add(indent.len().saturating_mul(level)))?;
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
        Ok(())
    }

    /// Writes the line break and indent after the last item.
    fn close_line(&self, layout: &Layout, level: usize, is_empty: bool, out: &mut String) -> Outcome<()> {
        if is_empty { Ok(()) } else { self.break_line(layout, level, false, out) }
    }
}

fn json_float(number: f64) -> String {
    match number {
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        number if number.is_nan() => "NaN".to_owned(),
        number => float_text(number),
    }
}

fn quote(text: &str, is_ascii: bool, out: &mut String) {
    let is_plain = |c: char| (' '..='~').contains(&c) && c != '"' && c != '\\' || c > '~' && !is_ascii;
    out.push('"');
    replace_chars(text, is_plain, out, |c, out| match c {
        '"' | '\\' => out.extend(['\\', c]),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        c => {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    });
    out.push('"');
}
