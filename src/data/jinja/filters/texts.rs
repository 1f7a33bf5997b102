//! Filters of texts.

use super::super::args::Args;
use super::super::ast::Binary;
use super::super::meter::{Failure, Outcome};
use super::super::methods::integer;
use super::super::run::Run;
use super::super::text::lines;
use super::super::unicode::{is_space, is_word};
use super::super::value::Value;

impl Run<'_> {
    pub fn text_filter(&self, name: &str, value: Value, args: Args) -> Outcome<Value> {
        match name {
            "lower" | "upper" | "capitalize" => {
                let [] = args.take(name, [], 0)?;
                self.text_method(&*self.soft(&value)?, name, Args::default())
            }
            "center" => {
                let [width] = args.take(name, ["width"], 0)?;
                let width = width.unwrap_or(Value::Int(80));
                self.text_method(&*self.soft(&value)?, name, Args::of(vec![width]))
            }
            "trim" => {
                let [chars] = args.take(name, ["chars"], 0)?;
                let args = Args::of(chars.into_iter().collect());
                self.text_method(&*self.soft(&value)?, "strip", args)
            }
            "title" => {
                let [] = args.take(name, [], 0)?;
                self.meter.text(titled(&self.soft(&value)?.text))
            }
            "replace" => {
                let [old, new, count] = args.take(name, ["old", "new", "count"], 2)?;
                let count = count.filter(|count| !count.is_none()).map_or(Ok(-1), |count| integer(&count))?;
                let [old, new] = [old, new].map(|part| part.unwrap_or(Value::None));
                let (text, old, new) = (self.str(&value)?, self.str(&old)?, self.str(&new)?);
                self.meter.text(self.replaced(&text, &old, &new, count)?)
            }
            "indent" => self.indent(&value, args),
            "truncate" => self.truncate(value, args),
            "wordwrap" => self.wordwrap(&value, args),
            "wordcount" => {
                let [] = args.take(name, [], 0)?;
                let text = self.soft(&value)?;
                self.meter.scan(text.text.len())?;
                let words = text.text.split(|c| !is_word(c)).filter(|word| !word.is_empty());
                Ok(Value::Int(words.count() as i64))
            }
            "format" => {
                let form = self.soft(&value)?;
                let values = match (args.positional.is_empty(), args.named.is_empty()) {
                    (false, false) => {
                        let message = "can't handle positional and keyword arguments at the same time";
                        return Err(Failure::new(message));
                    }
                    (true, false) => self.named_dict(args.named)?,
                    _ => self.meter.tuple(args.positional)?,
                };
                self.percent(&form, &values)
            }
            _ => {
                let [] = args.take(name, [], 0)?;
                Ok(Value::Text(self.soft(&value)?))
            }
        }
    }

    fn indent(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [width, first, blank] = args.take("indent", ["width", "first", "blank"], 0)?;
        let text = match value {
            Value::Text(text) => text,
            Value::Undefined(message) => return Err(Failure::new(message.as_str())),
            other => return Err(Failure::new(format!("'indent' needs a text, found {}", other.kind()))),
        };
        let indention = match &width {
            Some(Value::Text(width)) if width.is_safe && !text.is_safe => {
                return Err(Failure::refused("to indent a text by markup"));
            }
            Some(Value::Text(width)) => width.text.clone(),
            width => {
                let width = width.as_ref().map_or(Ok(4), integer)?;
                let width = usize::try_from(width).unwrap_or(0);
                self.meter.room(width)?;
                " ".repeat(width)
            }
        };
        let is_true = |value: Option<Value>| value.is_some_and(|value| self.truth(&value));
        let (first, blank) = (is_true(first), is_true(blank));
        self.meter.scan(text.text.len())?;
        let whole = format!("{}\n", text.text);
        let lines = lines(&whole, false);
        self.meter.room(text.text.len().saturating_add(lines.len().saturating_mul(indention.len() + 1)))?;
        let mut out = String::new();
        for (i, line) in lines.into_iter().enumerate() {
            if i > 0 {
                out.push('\n');
            }
            if if i == 0 { first } else { blank || !line.is_empty() } {
                out.push_str(&indention);
            }
            out.push_str(line);
        }
        self.meter.string(out, text.is_safe)
    }

    fn truncate(&self, value: Value, args: Args) -> Outcome<Value> {
        let [length, kills, end, leeway] =
            args.take("truncate", ["length", "killwords", "end", "leeway"], 0)?;
        let length = length.map_or(Ok(255), |length| integer(&length))?;
        let end = end.map_or_else(|| self.meter.text("..."), Ok)?;
        let leeway = leeway.filter(|leeway| !leeway.is_none()).map_or(Ok(5), |leeway| integer(&leeway))?;
        let Some(end_length) = self.length(&end)?.map(|length| length as i64) else {
            return Err(Failure::new(format!("object of type '{}' has no len()", end.kind())));
        };
        if length < end_length || leeway < 0 {
            return Err(Failure::new(format!(
                "expected length >= {end_length} and leeway >= 0, got {length}"
            )));
        }
        let Some(found) = self.length(&value)? else {
            return Err(Failure::new(format!("object of type '{}' has no len()", value.kind())));
        };
        if found as i64 <= length.saturating_add(leeway) {
            return Ok(value);
        }
        let cut = self.slice(&value, [None, Some(Value::Int(length - end_length)), None])?;
        let Value::Text(cut) = cut else {
            return Err(Failure::new(format!("'truncate' needs a text, found {}", cut.kind())));
        };
        let kills = kills.is_some_and(|kills| self.truth(&kills));
        let kept = match cut.text.rsplit_once(' ') {
            Some((kept, _)) if !kills => kept,
            _ => &cut.text,
        };
        self.binary(Binary::Add, &self.meter.string(kept.to_owned(), cut.is_safe)?, &end)
    }
}

/// The filter `title`, which begins words after other characters than `str.title` does.
fn titled(text: &str) -> String {
    let is_between = |c: char| is_space(c) || "-({[<".contains(c);
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(first) = rest.chars().next() {
        if is_between(first) {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(rest.find(is_between).unwrap_or(rest.len()));
        out.extend(first.to_uppercase());
        out.push_str(&word[first.len_utf8()..].to_lowercase());
        rest = after;
    }
    out
}
