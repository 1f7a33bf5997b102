//! Values of rows that JSON's own types cannot hold: whole numbers of any length, and what cannot be used at all, such as
//! NaN. They travel as objects of one key that no file writes, and are told apart here and nowhere else.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The key of a whole number with its digits.
const NUMBER: &str = "\0number";
/// The key of something that cannot be used, with the words for it.
const UNUSABLE: &str = "\0unusable";
/// Words for the marker of a missing number.
const NAN: &str = "`NaN`, which is no value";
/// Maximum number of digits of a whole number that Python reads.
const MOST_DIGITS: usize = 4300;

/// Value that JSON cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd<'a> {
    /// A whole number, by its digits.
    Number(&'a str),
    /// Marker of a missing number, in pandas among others.
    Nan,
    /// Anything else that cannot be used, in words that follow "holds".
    Unusable(&'a str),
}

/// Wraps a whole number, given by its digits.
fn number(digits: &str) -> Value {
    Value::Object(Map::from_iter([(NUMBER.to_owned(), digits.into())]))
}

/// Returns the mark of something that cannot be used; `words` follow "holds".
pub fn unusable(words: impl Into<String>) -> Value {
    Value::Object(Map::from_iter([(UNUSABLE.to_owned(), words.into().into())]))
}

/// Wraps a floating-point number, finite or not.
pub fn float(number: f64) -> Value {
    match serde_json::Number::from_f64(number) {
        Some(finite) => Value::Number(finite),
        None if number.is_nan() => unusable(NAN),
        None => unusable(infinite(&number.to_string())),
    }
}

fn infinite(text: &str) -> String {
    format!("`{text}`, which is no finite number")
}

/// Returns the odd value held here, or `None` if JSON holds the value as it is.
pub fn of(value: &Value) -> Option<Odd<'_>> {
    let (key, held) = value.as_object().filter(|object| object.len() == 1)?.iter().next()?;
    match (key.as_str(), held.as_str()?) {
        (NUMBER, digits) => Some(Odd::Number(digits)),
        (UNUSABLE, NAN) => Some(Odd::Nan),
        (UNUSABLE, words) => Some(Odd::Unusable(words)),
        _ => None,
    }
}

impl Odd<'_> {
    /// Returns the words for it, which follow "holds".
    pub fn words(&self) -> Cow<'_, str> {
        match self {
            Self::Number(digits) => format!("the number {digits}, too long inside a list or object").into(),
            Self::Nan => NAN.into(),
            Self::Unusable(words) => (*words).into(),
        }
    }
}

/// Returns the first unusable value in or below this one.
pub fn unusable_inside(value: &Value) -> Option<Odd<'_>> {
    match (of(value), value) {
        (Some(Odd::Number(_)), _) => None,
        (Some(odd), _) => Some(odd),
        (None, Value::Array(list)) => list.iter().find_map(unusable_inside),
        (None, Value::Object(object)) => object.values().find_map(unusable_inside),
        (None, _) => None,
    }
}

/// Reduces a value to plain JSON: digits become a text, what cannot be used becomes null.
pub fn plain(value: &mut Value) {
    match of(value) {
        Some(Odd::Number(digits)) => *value = Value::String(digits.to_owned()),
        Some(_) => *value = Value::Null,
        None => match value {
            Value::Array(list) => list.iter_mut().for_each(plain),
            Value::Object(object) => object.values_mut().for_each(plain),
            _ => {}
        },
    }
}

/// Estimates the bytes of memory that a value takes.
pub fn size(value: &Value) -> usize {
    let held = match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(columns) => columns.iter().map(|(name, value)| name.len() + size(value)).sum(),
        _ => 0,
    };
    held + 64
}

/// Formats a number as Python prints it.
pub fn printed(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => printed_float(float),
        _ => number.to_string(),
    }
}

/// `repr` of a Python float: Rust's debug form, whose exponents have a sign and two digits at least.
fn printed_float(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

/// Wraps the numbers of a JSON text that its parser, unlike Python's, would change or refuse.
pub fn kept(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut new, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(&byte) = bytes.get(at) {
        let end = match byte {
            b'"' => string_end(bytes, at),
            b'-' | b'0'..=b'9' | b'N' | b'I' => token_end(bytes, at),
            _ => at + 1,
        };
        if byte != b'"'
            && end > at + 1
            && let Some(value) = replaced(&text[at..end])
        {
            new.push_str(&text[copied..at]);
            new.push_str(&value.to_string());
            copied = end;
        }
        at = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    new.push_str(&text[copied..]);
    Cow::Owned(new)
}

/// Returns the place after a text that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    loop {
        match bytes.get(end) {
            Some(b'"') => return end + 1,
            Some(b'\\') => end += 2,
            Some(_) => end += 1,
            None => return bytes.len(),
        }
    }
}

/// Returns the place after a number or word that begins at `at`.
fn token_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count()
}

/// Returns the replacement of a number or word that the parser would change or refuse.
fn replaced(token: &str) -> Option<Value> {
    if token == "NaN" {
        return Some(float(f64::NAN));
    }
    if ["Infinity", "-Infinity"].contains(&token) {
        return Some(unusable(infinite(token)));
    }
    let digits = token.strip_prefix('-').unwrap_or(token);
    let whole = digits.bytes().all(|b| b.is_ascii_digit());
    match whole {
        true if token == "-0" => Some(Value::from(0)),
        true if digits.len() <= 18 || digits.starts_with('0') => None,
        true if token.parse::<i64>().is_ok() || token.parse::<u64>().is_ok() => None,
        true if digits.len() > MOST_DIGITS => {
            Some(unusable(format!("a number of {} digits, more than {MOST_DIGITS}", digits.len())))
        }
        true => Some(number(token)),
        false => {
            let refused = |token| {
                serde_json::from_str::<f64>(token).is_err_and(|e| e.to_string().contains("out of range"))
            };
            let is_too_large = token.parse::<f64>().is_ok_and(f64::is_infinite) && refused(token);
            is_too_large.then(|| unusable(infinite(token)))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        serde_json::from_str(&kept(text)).unwrap()
    }

    #[test]
    fn numbers_are_printed_as_python_prints_them() {
        for (text, expected) in [
            ("1E5", "100000.0"),
            ("-0.0", "-0.0"),
            ("-0", "0"),
            ("0.1000000000000000055", "0.1"),
            ("1e16", "1e+16"),
            ("1234567890123456.7", "1234567890123456.8"),
            ("12345678901234567.0", "1.2345678901234568e+16"),
            ("1e-5", "1e-05"),
            ("0.0001", "0.0001"),
            ("1.5e300", "1.5e+300"),
            ("5e-324", "5e-324"),
            ("1e-400", "0.0"),
            ("9223372036854775807", "9223372036854775807"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
        ] {
            let Value::Number(number) = read(text) else { panic!("{text}") };
            assert_eq!(printed(&number), expected, "{text}");
        }
    }

    #[test]
    fn what_json_cannot_hold_is_kept() {
        for (text, expected) in [
            ("-80241446968629135069", Odd::Number("-80241446968629135069")),
            ("18446744073709551616", Odd::Number("18446744073709551616")),
            ("NaN", Odd::Nan),
            ("1e400", Odd::Unusable("`1e400`, which is no finite number")),
            ("-1E+309", Odd::Unusable("`-1E+309`, which is no finite number")),
            ("-Infinity", Odd::Unusable("`-Infinity`, which is no finite number")),
        ] {
            assert_eq!(of(&read(text)), Some(expected), "{text}");
            let row = read(&format!("{{\"a\":[{text}, 1],\"NaN\":\"{text} \\\" NaN\"}}"));
            assert_eq!(of(&row["a"][0]), Some(expected), "{text}");
            let unusable = Some(expected).filter(|odd| !matches!(odd, Odd::Number(_)));
            assert_eq!(
                (unusable_inside(&row), row["NaN"].as_str()),
                (unusable, Some(&*format!("{text} \" NaN")))
            );
        }
        assert!(matches!(of(&read(&"9".repeat(5000))), Some(Odd::Unusable(_))));
        let mut row = read("{\"a\":[123456789012345678901, NaN],\"b\":2.5}");
        plain(&mut row);
        assert_eq!(row, json!({"a": ["123456789012345678901", null], "b": 2.5}));
    }

    #[test]
    fn what_is_no_json_stays_none() {
        for text in [
            "NaNa",
            "-NaN",
            "00000000000000000000",
            "1.e400",
            "Infinite",
            "--1",
            "1e400e",
            "01234567890123456789",
        ] {
            assert!(serde_json::from_str::<Value>(&kept(text)).is_err(), "{text}");
        }
        assert!(matches!(kept("{\"a\": [1, -2.5, \"NaN 1e400\"], \"é\\\"\": 3"), Cow::Borrowed(_)));
    }
}
