//! `str.format`, and its small language of format specifiers.

use super::args::Args;
use super::eval::escaped;
use super::meter::{Failure, Outcome};
use super::number::{self, exponential, float_text};
use super::run::Run;
use super::value::{Text, Value};

/// Decimals that a 64-bit number can have; those beyond are zeros.
const DECIMALS: usize = 1100;

/// Format specifier of a value.
#[derive(Debug, Clone, Default)]
pub(super) struct Spec {
    pub fill: Option<char>,
    pub align: Option<char>,
    /// `+` or a space before positive numbers.
    pub sign: Option<char>,
    /// `#`: the base before whole numbers, the point after others.
    pub alternate: bool,
    pub width: usize,
    /// Separator between groups of digits.
    pub group: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Outcome<Self> {
        let wrong = || Failure::new(format!("invalid format specifier '{text}'"));
        let mut spec = Self::default();
        let mut rest = text.chars().peekable();
        let is_align = |c: Option<char>| c.is_some_and(|c| "<>=^".contains(c));
        if is_align(text.chars().nth(1)) {
            spec.fill = rest.next();
        }
        if is_align(rest.peek().copied()) {
            spec.align = rest.next();
        }
        spec.sign = rest.next_if(|c| "+- ".contains(*c)).filter(|sign| *sign != '-');
        if rest.peek() == Some(&'z') {
            return Err(Failure::refused("`z` in a format specifier"));
        }
        spec.alternate = rest.next_if_eq(&'#').is_some();
        if spec.fill.is_none() && rest.next_if_eq(&'0').is_some() {
            spec.fill = Some('0');
            spec.align = spec.align.or(Some('0'));
        }
        let number = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if digits.is_empty() { Ok(None) } else { digits.parse().map(Some).map_err(|_| wrong()) }
        };
        spec.width = number(&mut rest)?.unwrap_or(0);
        spec.group = rest.next_if(|c| ",_".contains(*c));
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut rest)?.ok_or_else(wrong)?);
        }
        spec.kind = rest.next();
        if rest.next().is_some() { Err(wrong()) } else { Ok(spec) }
    }
}

impl Run<'_> {
    /// `str.format`.
    pub fn format(&self, form: &Text, args: Args) -> Outcome<Value> {
        let text = self.formatted(form, &form.text, &args, &mut None, 3)?;
        self.meter.string(text, form.is_safe)
    }

    /// `str.format_map`.
    pub fn format_map(&self, form: &Text, mapping: &Value) -> Outcome<Value> {
        let Value::Dict(dict) = mapping else {
            return Err(Failure::refused("`format_map` of what is no mapping"));
        };
        let named = dict.items.iter().filter_map(|(k, v)| Some((k.value().text()?.to_owned(), v.clone())));
        self.format(form, Args { positional: Vec::new(), named: named.collect() })
    }

    /// Formats a text. `next` is the place of the next automatic field after the first; below zero if manual.
    fn formatted(
        &self,
        form: &Text,
        text: &str,
        args: &Args,
        next: &mut Option<i64>,
        levels: usize,
    ) -> Outcome<String> {
        let Some(inner) = levels.checked_sub(1) else {
            return Err(Failure::new("Max string recursion exceeded"));
        };
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            self.meter.room(out.len())?;
            let (brace, after) = rest[at..].split_at(1);
            if let Some(after) = after.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            let end = if brace == "{" { closing(after, ['{', '}']) } else { None };
            let Some(end) = end else {
                return Err(Failure::new(format!("Single '{brace}' encountered in format string")));
            };
            let (name, conversion, spec) = parts(&after[..end])?;
            rest = &after[end + 1..];
            let value = self.field(name, args, next)?;
            let value = match conversion {
                None => value,
                Some('s') => self.str_value(&value)?,
                Some('r' | 'a') => self.meter.text(self.repr_text(&value, conversion == Some('a'))?)?,
                Some(other) => return Err(Failure::new(format!("Unknown conversion specifier {other}"))),
            };
            let spec = self.formatted(form, spec, args, next, inner)?;
            let is_markup = matches!(&value, Value::Text(text) if text.is_safe);
            if form.is_safe && is_markup && !spec.is_empty() {
                return Err(Failure::new("Unsupported format specification for Markup."));
            }
            let part = self.format_value(&value, &spec)?;
            out.push_str(&if form.is_safe && !is_markup { escaped(&part) } else { part });
        }
        out.push_str(rest);
        self.meter.room(out.len())?;
        Ok(out)
    }

    /// `repr(value)`, or `ascii(value)`.
    pub fn repr_text(&self, value: &Value, is_ascii: bool) -> Outcome<String> {
        let mut text = String::new();
        self.repr(value, &mut text)?;
        if !is_ascii || text.is_ascii() {
            return Ok(text);
        }
        let escape = |c: char| match u32::from(c) {
            ..0x80 => c.to_string(),
            code @ ..0x100 => format!("\\x{code:02x}"),
            code @ ..0x10000 => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        };
        self.meter.room(text.len() * 5)?;
        Ok(text.chars().map(escape).collect())
    }

    /// Returns the value that a field names: an argument, its attributes and items.
    fn field(&self, name: &str, args: &Args, next: &mut Option<i64>) -> Outcome<Value> {
        let first = &name[..name.find(['.', '[']).unwrap_or(name.len())];
        let place = match first.parse::<usize>() {
            Ok(place) => {
                if next.replace(-1).is_some_and(|next| next >= 0) {
                    return Err(Failure::new("cannot switch from automatic field numbering to manual"));
                }
                Some(place)
            }
            Err(_) if name.is_empty() => {
                let place = next.unwrap_or(0);
                if place < 0 {
                    return Err(Failure::new("cannot switch from manual field numbering to automatic"));
                }
                *next = Some(place + 1);
                usize::try_from(place).ok()
            }
            Err(_) => None,
        };
        let found = match place {
            Some(place) => args.positional.get(place).cloned(),
            None => args.named.iter().find(|(known, _)| known == first).map(|(_, value)| value.clone()),
        };
        let Some(mut value) = found else {
            let first: String = first.chars().take(40).collect();
            return Err(Failure::new(format!("no value for the field '{first}'")));
        };
        let mut rest = &name[first.len()..];
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else {
                let Some((key, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
                    return Err(Failure::new("expected '}' before end of string"));
                };
                let key = match key.parse::<i64>() {
                    Ok(place) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(place),
                    _ => self.meter.text(key)?,
                };
                value = self.item(&value, &key)?;
                rest = after;
            }
        }
        Ok(value)
    }

    /// `format(value, spec)`.
    pub fn format_value(&self, value: &Value, spec: &str) -> Outcome<String> {
        if spec.is_empty() {
            return self.str(value);
        }
        let spec = Spec::parse(spec)?;
        self.meter.room(spec.width.saturating_add(spec.precision.unwrap_or(0)))?;
        let is_of = |kinds: &str| spec.kind.is_none_or(|kind| kinds.contains(kind));
        match value {
            Value::Text(text) if is_of("s") => {
                if spec.sign.is_some() || spec.alternate || spec.group.is_some() || spec.align == Some('=') {
                    return Err(Failure::new("format specifier not allowed with a string"));
                }
                let most = spec.precision.unwrap_or(usize::MAX);
                let text: String = text.text.chars().take(most).collect();
                let align = spec.align.filter(|align| *align != '0').unwrap_or('<');
                Ok(padded("", &text, &Spec { align: Some(align), ..spec }))
            }
            Value::Float(number) if is_of("eEfFgGn%") => self.float(*number, &spec),
            Value::Bool(_) | Value::Int(_) | Value::Big(_) if is_of("bcdoxXn") => match spec.precision {
                Some(_) => Err(Failure::new("Precision not allowed in integer format specifier")),
                None => self.whole(value, &spec),
            },
            Value::Bool(_) | Value::Int(_) | Value::Big(_) if is_of("eEfFgG%") => {
                self.float(number::floating(value)?.unwrap_or(0.0), &spec)
            }
            Value::Text(_) | Value::Float(_) | Value::Bool(_) | Value::Int(_) | Value::Big(_) => {
                let kind = spec.kind.unwrap_or(' ');
                let of = value.kind();
                Err(Failure::new(format!("Unknown format code '{kind}' for object of type '{of}'")))
            }
            other => {
                Err(Failure::new(format!("unsupported format string passed to {}.__format__", other.kind())))
            }
        }
    }

    /// Formats a whole number; the precision, which only `%` has, is the least number of digits.
    pub fn whole(&self, value: &Value, spec: &Spec) -> Outcome<String> {
        let number = number::whole(value).unwrap_or_default();
        if spec.kind == Some('c') {
            let code = u32::try_from(&number).ok().and_then(char::from_u32);
            let c = code.ok_or_else(|| Failure::new("%c arg not in range(0x110000)"))?;
            let align = spec.align.filter(|align| *align != '0').or(Some('<'));
            return Ok(padded("", &c.to_string(), &Spec { align, ..spec.clone() }));
        }
        let (radix, base, size) = match spec.kind {
            Some('b') => (2, "0b", 4),
            Some('o') => (8, "0o", 4),
            Some('x') => (16, "0x", 4),
            Some('X') => (16, "0X", 4),
            _ => (10, "", 3),
        };
        let mut digits = match radix {
            10 => number::big_text(&num_bigint::BigInt::from(number.magnitude().clone()))?,
            radix => number.magnitude().to_str_radix(radix),
        };
        if spec.kind == Some('X') {
            digits.make_ascii_uppercase();
        }
        let missing = spec.precision.unwrap_or(0).saturating_sub(digits.len());
        digits.insert_str(0, &"0".repeat(missing));
        let sign = if number.sign() == num_bigint::Sign::Minus { "-".to_owned() } else { plus(spec) };
        let prefix = sign + if spec.alternate { base } else { "" };
        Ok(grouped(&prefix, &digits, "", spec, size))
    }

    /// Formats a floating number.
    pub fn float(&self, number: f64, spec: &Spec) -> Outcome<String> {
        let precision = spec.precision.unwrap_or(6);
        self.meter.room(precision)?;
        let size = number.abs();
        let mut text = match spec.kind.map(|kind| kind.to_ascii_lowercase()) {
            _ if !size.is_finite() => if size.is_nan() { "nan" } else { "inf" }.to_owned(),
            Some('f') => fixed(size, precision),
            Some('%') => fixed(size * 100.0, precision),
            Some('e') => scientific(size, precision),
            Some(_) => general(size, precision.max(1), spec.alternate, false),
            None => match spec.precision {
                None => float_text(size),
                Some(precision) => general(size, precision.max(1), spec.alternate, true),
            },
        };
        if spec.alternate && size.is_finite() && !text.contains('.') {
            text.insert(text.find('e').unwrap_or(text.len()), '.');
        }
        if spec.kind.is_some_and(|kind| kind.is_ascii_uppercase()) {
            text.make_ascii_uppercase();
        }
        if spec.kind == Some('%') {
            text.push('%');
        }
        let is_negative = number.is_sign_negative() && !number.is_nan();
        let sign = if is_negative { "-".to_owned() } else { plus(spec) };
        let whole = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, rest) = text.split_at(whole);
        Ok(grouped(&sign, whole, rest, spec, 3))
    }
}

/// Returns where what has been opened is closed, past the pairs of these brackets in it.
pub fn closing(text: &str, [open, close]: [char; 2]) -> Option<usize> {
    let mut inner = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            c if c == open => inner += 1,
            c if c == close && inner == 0 => return Some(at),
            c if c == close => inner -= 1,
            _ => {}
        }
    }
    None
}

/// Splits a field into name, conversion and specifier.
fn parts(field: &str) -> Outcome<(&str, Option<char>, &str)> {
    let end = field.find(['!', ':']).unwrap_or(field.len());
    let (name, rest) = field.split_at(end);
    if name.contains(['{', '}']) {
        return Err(Failure::new("unexpected '{' in field name"));
    }
    let Some(conversion) = rest.strip_prefix('!') else {
        return Ok((name, None, rest.strip_prefix(':').unwrap_or("")));
    };
    let mut chars = conversion.chars();
    match (chars.next(), chars.as_str()) {
        (Some(conversion), "") => Ok((name, Some(conversion), "")),
        (Some(conversion), rest) if rest.starts_with(':') => Ok((name, Some(conversion), &rest[1..])),
        _ => Err(Failure::new("expected ':' after conversion specifier")),
    }
}

fn plus(spec: &Spec) -> String {
    spec.sign.map(String::from).unwrap_or_default()
}

/// Joins sign, digits and what follows them, with separators between the digits, and pads to the width.
fn grouped(sign: &str, digits: &str, rest: &str, spec: &Spec, size: usize) -> String {
    let Some(separator) = spec.group else { return padded(sign, &format!("{digits}{rest}"), spec) };
    let is_filled = spec.align == Some('0') || spec.align == Some('=') && spec.fill == Some('0');
    let wanted = if is_filled { spec.width.saturating_sub(sign.len() + rest.len()) } else { 0 };
    let mut text: Vec<char> = Vec::new();
    let mut left = digits.chars().rev();
    let mut count = 0;
    loop {
        let digit = left.next();
        if digit.is_none() && text.len() >= wanted {
            break;
        }
        if count > 0 && count % size == 0 {
            text.push(separator);
        }
        text.push(digit.unwrap_or('0'));
        count += 1;
    }
    let digits: String = text.into_iter().rev().collect();
    padded(sign, &format!("{digits}{rest}"), spec)
}

/// Pads a text to its width; numbers are aligned right.
fn padded(sign: &str, text: &str, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(sign.chars().count() + text.chars().count());
    let fill = |count: usize| spec.fill.unwrap_or(' ').to_string().repeat(count);
    match spec.align.unwrap_or('>') {
        '<' => format!("{sign}{text}{}", fill(missing)),
        '^' => format!("{}{sign}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
        '=' | '0' => format!("{sign}{}{text}", fill(missing)),
        _ => format!("{}{sign}{text}", fill(missing)),
    }
}

fn fixed(number: f64, precision: usize) -> String {
    let zeros = "0".repeat(precision.saturating_sub(DECIMALS));
    format!("{number:.*}{zeros}", precision.min(DECIMALS))
}

fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.*e}", precision.min(DECIMALS));
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let zeros = "0".repeat(precision.saturating_sub(DECIMALS));
    exponential(&format!("{digits}{zeros}"), exponent.parse().unwrap_or(0))
}

/// Formats with `precision` digits in all, and an exponent if it is below -4 or not below that many.
fn general(number: f64, precision: usize, keeps_zeros: bool, has_decimal: bool) -> String {
    let text = format!("{number:.*e}", (precision - 1).min(DECIMALS));
    let exponent: i64 = text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let most = precision as i64 - i64::from(has_decimal);
    if exponent < -4 || exponent >= most {
        let text = scientific(number, precision - 1);
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{exponent}", if keeps_zeros { digits } else { trimmed(digits) });
    }
    let text = fixed(number, usize::try_from(precision as i64 - 1 - exponent).unwrap_or(0));
    let text = if keeps_zeros { text.as_str() } else { trimmed(&text) };
    if has_decimal && !text.contains('.') { format!("{text}.0") } else { text.to_owned() }
}

/// Removes zeros at the end of a fraction.
fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}
