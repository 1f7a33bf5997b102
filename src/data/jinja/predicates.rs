//! Tests, which follow `is`.

use std::rc::Rc;

use super::args::Args;
use super::ast::{Binary, Compare};
use super::filters::FILTERS;
use super::meter::{Failure, Outcome};
use super::run::Run;
use super::value::{Key, Object, Value};

const TESTS: [&str; 39] = [
    "!=", "<", "<=", "==", ">", ">=", "boolean", "callable", "defined", "divisibleby", "eq", "equalto",
    "escaped", "even", "false", "filter", "float", "ge", "greaterthan", "gt", "in", "integer", "iterable",
    "le", "lessthan", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sameas", "sequence",
    "string", "test", "true", "undefined", "upper",
];

impl Run<'_> {
    /// Returns true if a value passes a test.
    pub fn test(&self, name: &str, value: &Value, args: Args) -> Outcome<bool> {
        let compare = match name {
            "==" | "eq" | "equalto" => Some(Compare::Eq),
            "!=" | "ne" => Some(Compare::Ne),
            ">" | "gt" | "greaterthan" => Some(Compare::Gt),
            ">=" | "ge" => Some(Compare::Ge),
            "<" | "lt" | "lessthan" => Some(Compare::Lt),
            "<=" | "le" => Some(Compare::Le),
            "in" => Some(Compare::In),
            _ => None,
        };
        if let Some(compare) = compare {
            let [other] = args.take(name, [if name == "in" { "seq" } else { "" }], 1)?;
            return self.compare(compare, value, &other.unwrap_or(Value::None));
        }
        match name {
            "divisibleby" => {
                let [number] = args.take(name, ["num"], 1)?;
                let rest = self.binary(Binary::Mod, value, &number.unwrap_or(Value::None))?;
                return self.equal(&rest, &Value::Int(0));
            }
            "sameas" => {
                let [other] = args.take(name, ["other"], 1)?;
                return is_same(value, &other.unwrap_or(Value::None));
            }
            _ => {}
        }
        let [] = args.take(name, [], 0)?;
        self.kind_test(name, value)
    }

    /// Applies the tests for the kind of a value.
    fn kind_test(&self, name: &str, value: &Value) -> Outcome<bool> {
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => value.is_none(),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_) | Value::Big(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Float(_)) || value.index().is_some(),
            "string" => value.text().is_some(),
            "mapping" => matches!(value, Value::Dict(_)),
            "escaped" => matches!(value, Value::Text(text) if text.is_safe),
            "sequence" => !matches!(value, Value::View(..) | Value::Iterator(_)) && is_iterable(value),
            "iterable" => is_iterable(value) || is_loop(value),
            "callable" => match value {
                Value::Object(object) => !matches!(**object, Object::Cycler { .. }),
                value => value.is_undefined(),
            },
            "odd" | "even" => {
                let rest = self.binary(Binary::Mod, value, &Value::Int(2))?;
                self.equal(&rest, &Value::Int(i64::from(name == "odd")))?
            }
            "lower" | "upper" => {
                let text = self.soft(value)?;
                let is = self.text_method(
                    &text,
                    if name == "lower" { "islower" } else { "isupper" },
                    Args::default(),
                )?;
                self.truth(&is)
            }
            "filter" | "test" => {
                let names: &[&str] = if name == "filter" { &FILTERS } else { &TESTS };
                // What cannot be a key cannot be looked for
                Key::new(&self.meter, value)?;
                value.text().is_some_and(|name| names.contains(&name))
            }
            name => return Err(Failure::template(format!("No test named '{name}'."))),
        })
    }
}

/// Returns true if a value can be iterated over, `loop` apart.
fn is_iterable(value: &Value) -> bool {
    match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_) => false,
        value => !matches!(value, Value::Namespace(_) | Value::Object(_)),
    }
}

fn is_loop(value: &Value) -> bool {
    matches!(value, Value::Object(object) if matches!(**object, Object::Loop(_)))
}

/// Returns true if two values are one object in memory.
///
/// # Errors
/// Of equal numbers and texts, which Python keeps once or several times as it pleases.
fn is_same(a: &Value, b: &Value) -> Outcome<bool> {
    Ok(match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) if a != b || (-5..=256).contains(a) => a == b,
        (Value::Text(a), Value::Text(b)) if a.text != b.text || Rc::ptr_eq(a, b) => Rc::ptr_eq(a, b),
        (Value::Float(a), Value::Float(b)) if a != b => false,
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) if !a.items.is_empty() => {
            Rc::ptr_eq(a, b)
        }
        (Value::List(a), Value::List(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => a == b,
        (a, b) if a.kind() == b.kind() => {
            return Err(Failure::refused(&format!("`sameas` of two {}", a.kind())));
        }
        _ => false,
    })
}
