//! Methods of texts.

use super::args::Args;
use super::case::{changed_case, is_all};
use super::eval::escaped;
use super::meter::{Failure, Outcome};
use super::methods::{integer, string};
use super::run::Run;
use super::unicode::{is_line_end, is_space};
use super::value::{Text, Value};

impl Run<'_> {
    /// Calls a method of a text. Markup gives markup, and escapes what it is given.
    pub fn text_method(&self, of: &Text, name: &str, args: Args) -> Outcome<Value> {
        self.meter.scan(of.text.len())?;
        match name {
            "format" => return self.format(of, args),
            "format_map" => {
                let [mapping] = args.take(name, [""], 1)?;
                return self.format_map(of, &mapping.unwrap_or(Value::None));
            }
            "find" | "rfind" | "index" | "rindex" | "count" => return self.search(&of.text, name, args),
            "startswith" | "endswith" => return starts_or_ends(&of.text, name, args).map(Value::Bool),
            "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
                return self.cut(of, name, args);
            }
            "ljust" | "rjust" | "center" | "zfill" | "expandtabs" => return self.pad(of, name, args),
            "replace" => {
                let [old, new, count] = args.take(name, ["", "", ""], 2)?;
                let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
                let new = if of.is_safe { self.escape(&new)? } else { new };
                let count = count.map_or(Ok(-1), |count| integer(&count))?;
                let text = self.replaced(&of.text, string(&old)?, string(&new)?, count)?;
                return self.meter.string(text, of.is_safe);
            }
            "join" => {
                let [items] = args.take(name, [""], 1)?;
                return self.join(of, &items.unwrap_or(Value::None));
            }
            "strip" | "lstrip" | "rstrip" => {
                let [chars] = args.take(name, [""], 0)?;
                let chars = match chars {
                    None | Some(Value::None) => None,
                    Some(chars) => Some(string(&chars)?.to_owned()),
                };
                let (start, end) = (name != "rstrip", name != "lstrip");
                let text = stripped(&of.text, chars.as_deref(), start, end).to_owned();
                return self.meter.string(text, of.is_safe);
            }
            "removeprefix" | "removesuffix" => {
                let [part] = args.take(name, [""], 1)?;
                let part = part.unwrap_or(Value::None);
                let part = string(&part)?;
                let text = match name {
                    "removeprefix" => of.text.strip_prefix(part),
                    _ => of.text.strip_suffix(part),
                };
                return self.meter.string(text.unwrap_or(&of.text).to_owned(), of.is_safe);
            }
            "encode" | "maketrans" | "translate" | "escape" | "striptags" | "unescape" => {
                return Err(Failure::refused(&format!("`{name}` of a text")));
            }
            _ => {}
        }
        let [] = args.take(name, [], 0)?;
        self.meter.read(of.text.len())?;
        if let Some(text) = changed_case(&of.text, name)? {
            return self.meter.string(text, of.is_safe);
        }
        is_all(&of.text, name).map(Value::Bool)
    }

    /// Converts a value to markup.
    pub fn escape(&self, value: &Value) -> Outcome<Value> {
        match value {
            Value::Text(text) if text.is_safe => Ok(value.clone()),
            value => {
                let text = self.str(value)?;
                self.meter.read(text.len())?;
                self.meter.room(text.len().saturating_mul(5))?;
                self.meter.string(escaped(&text), true)
            }
        }
    }

    /// Replaces a part of a text by another, at most `count` times unless that is below zero.
    pub fn replaced(&self, text: &str, old: &str, new: &str, count: i64) -> Outcome<String> {
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        self.meter.scan(text.len())?;
        if old.len() < 2 {
            self.meter.read(text.len().min(most))?;
        }
        let found = text.matches(old).take(most).count();
        self.meter.room(text.len().saturating_add(found.saturating_mul(new.len())))?;
        Ok(text.replacen(old, new, most))
    }

    fn join(&self, of: &Text, items: &Value) -> Outcome<Value> {
        let mut text = String::new();
        for (i, item) in self.items(items)?.iter().enumerate() {
            if i > 0 {
                text.push_str(&of.text);
            }
            let item = if of.is_safe { self.escape(item)? } else { item.clone() };
            let Some(part) = item.text() else {
                let kind = item.kind();
                return Err(Failure::new(format!("sequence item {i}: expected str instance, {kind} found")));
            };
            self.meter.room(text.len() + part.len() + of.text.len())?;
            text.push_str(part);
        }
        self.meter.string(text, of.is_safe)
    }

    fn search(&self, text: &str, name: &str, args: Args) -> Outcome<Value> {
        let [part, start, stop] = args.take(name, ["", "", ""], 1)?;
        let part = part.unwrap_or(Value::None);
        let part = string(&part)?;
        let window = window(text, start, stop)?;
        if name == "count" {
            return Ok(Value::Int(window.map_or(0, |(_, text)| text.matches(part).count() as i64)));
        }
        let found = window.and_then(|(before, text)| {
            let byte = if name.starts_with('r') { text.rfind(part) } else { text.find(part) }?;
            Some(before + text.get(..byte)?.chars().count())
        });
        match found {
            Some(at) => Ok(Value::Int(at as i64)),
            None if name.ends_with("find") => Ok(Value::Int(-1)),
            None => Err(Failure::new("substring not found")),
        }
    }

    fn cut(&self, of: &Text, name: &str, args: Args) -> Outcome<Value> {
        let text = of.text.as_str();
        if name.ends_with("partition") {
            let [part] = args.take(name, [""], 1)?;
            let part = part.unwrap_or(Value::None);
            let part = separator(&part)?;
            let found = if name == "partition" { text.split_once(part) } else { text.rsplit_once(part) };
            let parts = match found {
                Some((before, after)) => [before, part, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            let parts = parts.map(|part| self.meter.string(part.to_owned(), of.is_safe));
            return self.meter.tuple(parts.into_iter().collect::<Outcome<_>>()?);
        }
        let parts = if name == "splitlines" {
            let [keeps] = args.take(name, ["keepends"], 0)?;
            let keeps = keeps.is_some_and(|keeps| self.truth(&keeps));
            lines(text, keeps)
        } else {
            let [part, most] = args.take(name, ["sep", "maxsplit"], 0)?;
            let most = most.map_or(Ok(-1), |most| integer(&most))?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            match part {
                None | Some(Value::None) => words(text, most, name == "rsplit"),
                Some(part) if name == "split" => {
                    text.splitn(most.saturating_add(1), separator(&part)?).collect()
                }
                Some(part) => {
                    let mut parts: Vec<&str> =
                        text.rsplitn(most.saturating_add(1), separator(&part)?).collect();
                    parts.reverse();
                    parts
                }
            }
        };
        self.meter.room(parts.len().saturating_mul(128))?;
        let parts = parts.into_iter().map(|part| self.meter.string(part.to_owned(), of.is_safe));
        self.meter.list(parts.collect::<Outcome<_>>()?)
    }

    fn pad(&self, of: &Text, name: &str, args: Args) -> Outcome<Value> {
        if name == "expandtabs" {
            let [width] = args.take(name, ["tabsize"], 0)?;
            let width = usize::try_from(width.map_or(Ok(8), |width| integer(&width))?).unwrap_or(0);
            self.meter.room(of.text.matches('\t').count().saturating_mul(width))?;
            return self.meter.string(without_tabs(&of.text, width), of.is_safe);
        }
        let [width, fill] = args.take(name, ["", ""], 1)?;
        let width = usize::try_from(integer(&width.unwrap_or(Value::None))?).unwrap_or(0);
        if name == "zfill" && fill.is_some() {
            return Err(Failure::new("zfill() takes exactly one argument"));
        }
        let fill = match fill {
            Some(fill) if of.is_safe => self.escape(&fill)?,
            Some(fill) => fill,
            None => self.meter.text(if name == "zfill" { "0" } else { " " })?,
        };
        let fill = string(&fill)?;
        if fill.chars().count() != 1 {
            return Err(Failure::new("The fill character must be exactly one character long"));
        }
        let missing = width.saturating_sub(of.chars());
        self.meter.room(missing.saturating_mul(fill.len()))?;
        let (before, after) = match name {
            "ljust" => (0, missing),
            "center" => {
                let before = missing / 2 + (missing & width & 1);
                (before, missing - before)
            }
            _ => (missing, 0),
        };
        let sign = if name == "zfill" && of.text.starts_with(['+', '-']) { 1 } else { 0 };
        let (sign, rest) = of.text.split_at(sign);
        self.meter.string([sign, &fill.repeat(before), rest, &fill.repeat(after)].concat(), of.is_safe)
    }
}

/// Returns a separator, which must not be empty.
fn separator(value: &Value) -> Outcome<&str> {
    match string(value)? {
        "" => Err(Failure::new("empty separator")),
        part => Ok(part),
    }
}

/// Returns the part of a text between two places, and how many characters stand before it; `None` if it ends
/// before it begins.
fn window(text: &str, start: Option<Value>, stop: Option<Value>) -> Outcome<Option<(usize, &str)>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some((0, text)));
    }
    let length = text.chars().count() as i64;
    let bound = |bound: Option<Value>, default: i64| -> Outcome<i64> {
        let Some(bound) = bound.filter(|bound| !bound.is_none()) else { return Ok(default) };
        // Larger numbers than an index are as good as the largest
        let bound = bound.index().map_or_else(|| integer(&bound), Ok)?;
        Ok(if bound < 0 { bound.saturating_add(length).max(0) } else { bound })
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, length)?.min(length));
    if start > stop {
        return Ok(None);
    }
    let byte = |char: i64| {
        let char = usize::try_from(char).unwrap_or(0);
        text.char_indices().nth(char).map_or(text.len(), |(byte, _)| byte)
    };
    Ok(text.get(byte(start)..byte(stop)).map(|part| (usize::try_from(start).unwrap_or(0), part)))
}

fn starts_or_ends(text: &str, name: &str, args: Args) -> Outcome<bool> {
    let [part, start, stop] = args.take(name, ["", "", ""], 1)?;
    let part = part.unwrap_or(Value::None);
    let parts = match &part {
        Value::Tuple(parts) => parts.items.iter().map(string).collect::<Outcome<Vec<&str>>>()?,
        part => vec![string(part)?],
    };
    let window = window(text, start, stop)?;
    let has = |text: &str, part: &str| match name {
        "startswith" => text.starts_with(part),
        _ => text.ends_with(part),
    };
    Ok(window.is_some_and(|(_, text)| parts.iter().any(|part| has(text, part))))
}

/// Strips white space, or `chars`, off the ends of a text.
pub(super) fn stripped<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let goes = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(goes) } else { text };
    if end { text.trim_end_matches(goes) } else { text }
}

/// Splits a text into lines, with their ends if `keeps`.
pub(super) fn lines(text: &str, keeps: bool) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some((end, c)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) {
        let after = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + c.len_utf8()..]);
        let whole = &rest[..rest.len() - after.len()];
        lines.push(if keeps { whole } else { &rest[..end] });
        rest = after;
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Splits a text into words at white space. What is left after `most` cuts is the last word or, from the
/// right, the first one, with the space at its outer end.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let inner = |text: &str| -> usize {
        let kept =
            if from_right { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
        kept.len()
    };
    let pass = |text: &'_ str| if from_right { 0..inner(text) } else { text.len() - inner(text)..text.len() };
    let mut rest = &text[pass(text)];
    let mut words = Vec::new();
    while !rest.is_empty() && words.len() < most {
        let found = if from_right { rest.rsplit_once(is_space) } else { rest.split_once(is_space) };
        let (word, after) = match found {
            Some((before, word)) if from_right => (word, before),
            Some((word, after)) => (word, after),
            None => (rest, ""),
        };
        words.push(word);
        rest = &after[pass(after)];
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    if from_right {
        words.reverse();
    }
    words
}

fn without_tabs(text: &str, width: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        if c == '\t' {
            let spaces = if width > 0 { width - column % width } else { 0 };
            out.extend(std::iter::repeat_n(' ', spaces));
            column += spaces;
        } else {
            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            out.push(c);
        }
    }
    out
}
