//! Chat templates, in the Jinja that Transformers gives them (`utils/chat_template_utils.py`, 5.23).

use std::borrow::Cow;
use std::ops::Range;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use serde::Serialize as _;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::fault::{Result, fault};

const NAME: &str = "chat_template";
/// Stand for the ends of `{% generation %}` blocks in rendered texts; Unicode reserves them for such use inside a
/// program.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// A compiled chat template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens by name.
    tokens: Value,
    /// Whether it marks what an assistant writes.
    pub has_marks: bool,
}

impl ChatTemplate {
    /// Compiles a template that may name these special tokens.
    ///
    /// # Errors
    /// Says which line is wrong.
    pub fn new(source: &str, tokens: &[(&'static str, String)]) -> Result<Self> {
        let (source, has_marks) = with_filters(source);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(print);
        environment.add_filter("tojson", to_json);
        environment.add_filter("generation", |text: &str| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.add_function("raise_exception", |message: String| -> std::result::Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source).map_err(|e| {
            fault(told(&e)).hint("correct it in `chat_template.jinja` or `tokenizer_config.json`")
        })?;
        let tokens = tokens.iter().map(|(name, text)| (*name, text.as_str())).collect();
        Ok(Self { environment, tokens, has_marks })
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// What the template says against it, and in which line.
    pub fn render(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&serde_json::Value>,
        add_generation_prompt: bool,
    ) -> std::result::Result<String, String> {
        let (messages, tools) = (Value::from_serialize(messages), Value::from_serialize(tools));
        let rest = context! { messages, tools, documents => (), add_generation_prompt };
        let template = self.environment.get_template(NAME).map_err(|e| told(&e))?;
        template.render(context! { ..rest, ..self.tokens.clone() }).map_err(|e| told(&e))
    }
}

/// The text without the marks of `{% generation %}`, and the bytes that stood between them.
pub(super) fn unmarked(text: &str) -> (String, Vec<Range<usize>>) {
    let mut plain = String::with_capacity(text.len());
    let (mut spans, mut start) = (Vec::new(), 0);
    for c in text.chars() {
        match MARKS.iter().position(|mark| *mark == c) {
            Some(0) => start = plain.len(),
            Some(_) => spans.push(start..plain.len()),
            None => plain.push(c),
        }
    }
    (plain, spans)
}

/// Writes `{% generation %}` blocks as blocks of a filter, which leaves all white space as it is.
fn with_filters(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut has_marks) = (source, false);
    while let Some((before, tag)) = rest.split_once("{%") {
        let (inside, after) = tag.split_once("%}").unwrap_or((tag, ""));
        let word = inside.trim_matches(['-', '+']).trim();
        let block = match word {
            "generation" => Some(inside.replacen(word, "filter generation", 1)),
            "endgeneration" => Some(inside.replacen(word, "endfilter", 1)),
            _ => None,
        };
        has_marks |= block.is_some();
        text.extend([before, "{%", block.as_deref().unwrap_or(inside)]);
        if tag.len() > inside.len() {
            text.push_str("%}");
        }
        rest = after;
    }
    text.push_str(rest);
    (text, has_marks)
}

fn told(error: &Error) -> String {
    let place = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    format!("chat template{place}: {detail}")
}

/// Truth values, nothing, lists and mappings are printed as Python prints them.
fn print(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> std::result::Result<(), Error> {
    let word = match value.kind() {
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::None => "None",
        ValueKind::Seq | ValueKind::Map => &repr(value)?,
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// Python's `repr`.
fn repr(value: &Value) -> std::result::Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Bool if value.is_true() => "True".into(),
        ValueKind::Bool => "False".into(),
        ValueKind::None => "None".into(),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            let items: Vec<String> =
                value.try_iter()?.map(|item| repr(&item)).collect::<std::result::Result<_, _>>()?;
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let entry =
                |key: Value| Ok::<_, Error>(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key)?)?));
            let entries: Vec<String> = value.try_iter()?.map(entry).collect::<std::result::Result<_, _>>()?;
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    })
}

/// A text as Python's `repr` quotes it: in single quotes, unless it holds these alone.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

fn strftime_now(format: &str) -> std::result::Result<String, Error> {
    use std::fmt::Write as _;
    let mut text = String::new();
    write!(text, "{}", crate::report::local_time().format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("unknown time format `{format}`")))?;
    Ok(text)
}

/// As Python's `json.dumps(…, ensure_ascii=False)`.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let wrong = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut json = serde_json::to_value(value).map_err(wrong)?;
    if sorted == Some(true) {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            json.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))
        }
        None => {
            let [comma, colon] = separators
                .and_then(|pair| <[String; 2]>::try_from(pair).ok())
                .unwrap_or_else(|| [", ".to_owned(), ": ".to_owned()]);
            let spaced = Spaced { comma: comma.into(), colon: colon.into() };
            json.serialize(&mut Serializer::with_formatter(&mut bytes, spaced))
        }
    }
    .map_err(wrong)?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// JSON in one line with separators of choice.
struct Spaced {
    comma: Cow<'static, str>,
    colon: Cow<'static, str>,
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.comma.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.comma.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = Value::from_serialize(serde_json::json!({
            "a": [1, 2.5, true, null, "it's", "a \"b\" 'c'", "\\ \n\u{7}é"], "b": {}, "c": "x"
        }));
        let expected =
            r#"{'a': [1, 2.5, True, None, "it's", 'a "b" \'c\'', '\\ \n\x07é'], 'b': {}, 'c': 'x'}"#;
        assert_eq!(repr(&value).unwrap(), expected);
    }
}
