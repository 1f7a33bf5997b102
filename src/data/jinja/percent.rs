//! `%`: formatting of texts in the manner of C's `printf`.

use super::eval::escaped;
use super::format::{Spec, closing};
use super::meter::{Failure, Outcome};
use super::methods::integer;
use super::number;
use super::run::Run;
use super::value::{Key, Text, Value};

/// The values that a form takes, one after the other.
struct Values<'a> {
    of: &'a Value,
    taken: usize,
}

impl Values<'_> {
    fn next(&mut self) -> Outcome<Value> {
        let found = match self.of {
            Value::Tuple(tuple) => tuple.items.get(self.taken).cloned(),
            other => Some(other.clone()).filter(|_| self.taken == 0),
        };
        self.taken += 1;
        found.ok_or_else(|| Failure::new("not enough arguments for format string"))
    }

    /// Returns true if every value was taken; mappings and lists need not be.
    fn are_done(&self) -> bool {
        match self.of {
            Value::Tuple(tuple) => self.taken >= tuple.items.len(),
            Value::List(_) | Value::Dict(_) | Value::Range(_) | Value::Undefined(_) => true,
            _ => self.taken > 0,
        }
    }
}

impl Run<'_> {
    /// `form % values`.
    pub fn percent(&self, form: &Text, values: &Value) -> Outcome<Value> {
        let mut values = Values { of: values, taken: 0 };
        let (mut out, mut rest) = (String::new(), form.text.as_str());
        while let Some((before, after)) = rest.split_once('%') {
            out.push_str(before);
            let mut chars = after.chars();
            let part = self.conversion(form, &mut chars, &mut values)?;
            self.meter.scan(part.len())?;
            self.meter.room(out.len() + part.len())?;
            out.push_str(&part);
            rest = chars.as_str();
        }
        out.push_str(rest);
        if !values.are_done() {
            return Err(Failure::new("not all arguments converted during string formatting"));
        }
        self.meter.string(out, form.is_safe)
    }

    /// Formats the conversion that follows a `%`.
    fn conversion(
        &self,
        form: &Text,
        chars: &mut std::str::Chars<'_>,
        values: &mut Values<'_>,
    ) -> Outcome<String> {
        let incomplete = || Failure::new("incomplete format");
        if let Some(after) = chars.as_str().strip_prefix('%') {
            *chars = after.chars();
            return Ok("%".to_owned());
        }
        let mut named = None;
        if let Some(after) = chars.as_str().strip_prefix('(') {
            let end = closing(after, ['(', ')']).ok_or_else(|| Failure::new("incomplete format key"))?;
            let Value::Dict(dict) = values.of else {
                return Err(Failure::new("format requires a mapping"));
            };
            let key = Key::new(&self.meter, &self.meter.text(&after[..end])?)?;
            named = Some(dict.items.get(&key).cloned().ok_or_else(|| {
                Failure::new(format!("no key '{}'", after[..end].chars().take(40).collect::<String>()))
            })?);
            *chars = after[end + 1..].chars();
        }
        let mut spec = Spec::default();
        let mut c = chars.next().ok_or_else(incomplete)?;
        let mut has_zero = false;
        while "-+ #0".contains(c) {
            match c {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => has_zero = true,
            }
            c = chars.next().ok_or_else(incomplete)?;
        }
        if let Some(width) = self.count(&mut c, chars, values)? {
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        }
        if c == '.' {
            c = chars.next().ok_or_else(incomplete)?;
            let precision = self.count(&mut c, chars, values)?.unwrap_or(0);
            spec.precision = Some(usize::try_from(precision).unwrap_or(0));
        }
        if "hlL".contains(c) {
            c = chars.next().ok_or_else(incomplete)?;
        }
        self.meter.room(spec.width.saturating_add(spec.precision.unwrap_or(0)))?;
        let value = match named {
            Some(value) => value,
            None => values.next()?,
        };
        spec.kind = Some(c);
        if has_zero && "diuoxXeEfFgG".contains(c) && spec.align.is_none() {
            (spec.fill, spec.align) = (Some('0'), Some('='));
        }
        self.converted(form, &value, spec)
    }

    /// Reads a width or precision, which may be taken from the values.
    fn count(
        &self,
        c: &mut char,
        chars: &mut std::str::Chars<'_>,
        values: &mut Values<'_>,
    ) -> Outcome<Option<i64>> {
        let incomplete = || Failure::new("incomplete format");
        if *c == '*' {
            let count = integer(&values.next()?)?;
            *c = chars.next().ok_or_else(incomplete)?;
            return Ok(Some(count));
        }
        let mut count = None;
        while let Some(digit) = c.to_digit(10) {
            count = Some(count.unwrap_or(0_i64).saturating_mul(10).saturating_add(i64::from(digit)));
            *c = chars.next().ok_or_else(incomplete)?;
        }
        Ok(count)
    }

    fn converted(&self, form: &Text, value: &Value, mut spec: Spec) -> Outcome<String> {
        let kind = spec.kind.unwrap_or('s');
        let text = match kind {
            's' | 'r' | 'a' => {
                let text = match kind {
                    's' => self.str(value)?,
                    kind => self.repr_text(value, kind == 'a')?,
                };
                let is_safe = kind == 's' && matches!(value, Value::Text(text) if text.is_safe);
                if form.is_safe && !is_safe { escaped(&text) } else { text }
            }
            'c' => match value {
                Value::Text(text) if text.chars() == 1 => text.text.clone(),
                value if value.index().is_some() => {
                    self.whole(value, &Spec { kind: Some('c'), ..Spec::default() })?
                }
                _ => return Err(Failure::new("%c requires int or char")),
            },
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
                let value = match value {
                    Value::Float(_) if !matches!(kind, 'o' | 'x' | 'X') => self.truncated(value)?,
                    value => value.clone(),
                };
                if value.index().is_none() {
                    let found = value.kind();
                    return Err(Failure::new(format!("%{kind} format: a number is required, not {found}")));
                }
                if matches!(kind, 'i' | 'u') {
                    spec.kind = Some('d');
                }
                return self.whole(&value, &spec);
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let Some(number) = number::floating(value)? else {
                    return Err(Failure::new(format!("must be real number, not {}", value.kind())));
                };
                return self.float(number, &spec);
            }
            other => return Err(Failure::new(format!("unsupported format character '{other}'"))),
        };
        let text: String = match (kind, spec.precision) {
            ('s' | 'r' | 'a', Some(most)) => text.chars().take(most).collect(),
            _ => text,
        };
        let fill = " ".repeat(spec.width.saturating_sub(text.chars().count()));
        Ok(if spec.align == Some('<') { text + &fill } else { fill + &text })
    }
}
