//! Filters of numbers.

use num_bigint::BigInt;
use num_traits::{FromPrimitive as _, Signed as _};

use super::super::args::Args;
use super::super::ast::Binary;
use super::super::meter::{Failure, Outcome};
use super::super::methods::integer;
use super::super::number::{self, whole};
use super::super::run::Run;
use super::super::value::Value;

impl Run<'_> {
    pub fn number_filter(&self, name: &str, value: &Value, args: Args) -> Outcome<Value> {
        if let (Value::Undefined(message), true) = (value, name != "round") {
            return Err(Failure::new(message.as_str()));
        }
        let lacks = |what: &str| Failure::new(format!("{what} of a {}", value.kind()));
        match name {
            "int" => {
                let [default, base] = args.take(name, ["default", "base"], 0)?;
                // An invalid base fails like a text that is not a number
                let base = base.map_or(10, |base| base.index().unwrap_or(1));
                Ok(self.to_int(value, base)?.or(default).unwrap_or(Value::Int(0)))
            }
            "float" => {
                let [default] = args.take(name, ["default"], 0)?;
                let found = match value {
                    Value::Text(text) => number::read_float(&text.text)?,
                    value => number::floating(value)?,
                };
                Ok(found.map(Value::Float).or(default).unwrap_or(Value::Float(0.0)))
            }
            "round" => {
                let [precision, method] = args.take(name, ["precision", "method"], 0)?;
                self.round(value, precision.unwrap_or(Value::Int(0)), method)
            }
            "abs" => {
                let [] = args.take(name, [], 0)?;
                match (value, whole(value)) {
                    (Value::Float(number), _) => Ok(Value::Float(number.abs())),
                    (_, Some(number)) => Value::int(number.abs()),
                    _ => Err(lacks("no absolute value")),
                }
            }
            _ => {
                let [binary] = args.take(name, ["binary"], 0)?;
                let found = match value {
                    Value::Text(text) => number::read_float(&text.text)?,
                    value => number::floating(value)?,
                };
                let Some(bytes) = found else { return Err(lacks("no size")) };
                self.meter.text(file_size(bytes, binary.is_some_and(|binary| self.truth(&binary))))
            }
        }
    }

    /// Converts a value as `int` does; `None` if it is not a number.
    fn to_int(&self, value: &Value, base: i64) -> Outcome<Option<Value>> {
        match value {
            Value::Text(text) => {
                self.meter.scan(text.text.len())?;
                if let Some(number) = number::read_int(&text.text, base)? {
                    return Value::int(number).map(Some);
                }
                let number =
                    number::read_float(&text.text)?.and_then(|number| BigInt::from_f64(number.trunc()));
                number.map(Value::int).transpose()
            }
            Value::Float(number) if number.is_nan() => Ok(None),
            Value::Float(_) => self.truncated(value).map(Some),
            value => whole(value).map(Value::int).transpose(),
        }
    }

    /// Truncates a floating number as `int` does.
    ///
    /// # Errors
    /// When it has no end.
    pub fn truncated(&self, value: &Value) -> Outcome<Value> {
        let Value::Float(number) = value else { return Ok(value.clone()) };
        match BigInt::from_f64(number.trunc()) {
            Some(number) => Value::int(number),
            None => Err(Failure::new("cannot convert float infinity or NaN to integer")),
        }
    }

    fn round(&self, value: &Value, precision: Value, method: Option<Value>) -> Outcome<Value> {
        let method = method.map_or_else(|| self.meter.text("common"), Ok)?;
        let method = method.text().unwrap_or_default();
        if !["common", "ceil", "floor"].contains(&method) {
            return Err(Failure::new("method must be common, ceil or floor"));
        }
        if method != "common" {
            let unit = self.binary(Binary::Pow, &Value::Int(10), &precision)?;
            let scaled = self.binary(Binary::Mul, value, &unit)?;
            let rounded = match scaled {
                Value::Float(number) if method == "ceil" => self.truncated(&Value::Float(number.ceil()))?,
                Value::Float(number) => self.truncated(&Value::Float(number.floor()))?,
                other if other.index().is_some() => other,
                other => return Err(Failure::new(format!("must be real number, not {}", other.kind()))),
            };
            return self.binary(Binary::Div, &rounded, &unit);
        }
        match (value, whole(value)) {
            (Value::Float(number), _) if precision.is_none() => {
                self.truncated(&Value::Float(number::round(*number, 0)))
            }
            (Value::Float(number), _) => Ok(Value::Float(number::round(*number, integer(&precision)?))),
            (_, Some(number)) => {
                let digits = if precision.is_none() { 0 } else { integer(&precision)? };
                Value::int(if digits < 0 { number::round_whole(&number, digits, false) } else { number })
            }
            (Value::Undefined(_), None) => {
                Err(Failure::new("type Undefined doesn't define __round__ method"))
            }
            (other, None) => {
                Err(Failure::new(format!("type {} doesn't define __round__ method", other.kind())))
            }
        }
    }
}

fn file_size(bytes: f64, is_binary: bool) -> String {
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc() as i64);
    }
    let names = if is_binary {
        ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"]
    } else {
        ["k", "M", "G", "T", "P", "E", "Z", "Y"]
    };
    let mut unit = base;
    for (i, name) in names.iter().enumerate() {
        unit *= base;
        if bytes < unit || i + 1 == names.len() {
            return format!("{:.1} {name}B", base * bytes / unit);
        }
    }
    String::new()
}
