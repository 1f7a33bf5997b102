//! Templates of texts, prompts, responses and answers: `{column}` inserts a column, `{{` and `}}` are braces, and
//! `{[column: … ]}` is a part, with columns of its own or none, that stands only where that column holds something.

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::odd::{self, Odd};
use super::row::{Columns, kind};

/// A text with places for columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
    /// A column, and what stands where it holds something.
    Optional(String, Vec<Part>),
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// Names the unmatched brace, or the one without a name.
    ///
    /// ```
    /// use loraxs::data::template::Template;
    ///
    /// assert!(Template::parse("Question: {question}\n{[hint:Hint: {hint}\n]}Answer:").is_ok());
    /// assert!(Template::parse("a lone {").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let (parts, _) = parts(text, text, None)?;
        Ok(Self { source: text.to_owned(), parts })
    }

    /// Reads the name of a column, or a template if it has a brace.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn of_column(text: &str) -> Result<Self, String> {
        if text.contains('{') {
            return Self::parse(text);
        }
        Ok(Self::column(text))
    }

    /// Returns the template of a column alone.
    pub fn column(name: &str) -> Self {
        Self { source: name.to_owned(), parts: vec![Part::Column(name.to_owned())] }
    }

    /// Returns the columns that it names, in order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().flat_map(|part| match part {
            Part::Column(name) => vec![name.as_str()],
            Part::Text(_) => Vec::new(),
            Part::Optional(name, inside) => {
                let inside = inside.iter().filter_map(Part::column);
                std::iter::once(name.as_str()).chain(inside).collect()
            }
        })
    }

    /// Returns the columns that it always needs.
    pub fn needed(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::column)
    }

    /// Returns the text with the columns of a row filled in.
    ///
    /// # Errors
    /// When a column is absent, holds nothing, or holds something that is not a text, number or truth value.
    pub fn render(&self, columns: &Columns) -> Result<String, String> {
        let mut text = String::new();
        fill(&self.parts, &mut text, &|name| cell(name, columns.get(name)), columns)?;
        Ok(text)
    }

    /// As [`Template::render`], where a column that holds nothing is an empty text; `None` if none of them holds anything.
    ///
    /// # Errors
    /// When a column holds something that is not a text, number or truth value.
    pub fn render_what_is_there(&self, columns: &Columns) -> Result<Option<String>, String> {
        if !self.columns().any(|name| holds(columns.get(name))) {
            return Ok(None);
        }
        let mut text = String::new();
        let or_empty = |name: &str| match columns.get(name) {
            value if holds(value) => cell(name, value),
            _ => Ok(String::new()),
        };
        fill(&self.parts, &mut text, &or_empty, columns)?;
        Ok(Some(text))
    }
}

impl Part {
    fn column(&self) -> Option<&str> {
        if let Self::Column(name) = self { Some(name) } else { None }
    }
}

/// Adds the parts to a text, each column by `cell`.
fn fill(
    parts: &[Part],
    text: &mut String,
    cell: &dyn Fn(&str) -> Result<String, String>,
    columns: &Columns,
) -> Result<(), String> {
    for part in parts {
        match part {
            Part::Text(plain) => text.push_str(plain),
            Part::Column(name) => text.push_str(&cell(name)?),
            Part::Optional(name, inside) if holds(columns.get(name)) => fill(inside, text, cell, columns)?,
            Part::Optional(..) => {}
        }
    }
    Ok(())
}

/// Returns true unless a cell is absent or empty.
fn holds(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    }
}

/// Reads the parts of `rest`, the end of `whole`; those of the optional part that begins at a character up to its `]}`.
/// Returns what follows it, too.
fn parts<'a>(whole: &str, mut rest: &'a str, inside: Option<usize>) -> Result<(Vec<Part>, &'a str), String> {
    let mut found = Vec::new();
    let mut plain = String::new();
    let text = |plain: &mut String, found: &mut Vec<Part>| {
        if !plain.is_empty() {
            found.push(Part::Text(std::mem::take(plain)));
        }
    };
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        let doubled = ["{{", "}}"].into_iter().find(|pair| from.starts_with(pair));
        if let Some(pair) = doubled {
            plain.push_str(&pair[..1]);
            rest = &from[2..];
            continue;
        }
        if inside.is_some() && from.starts_with('}') && before.ends_with(']') {
            plain.pop();
            text(&mut plain, &mut found);
            return Ok((found, &from[1..]));
        }
        let character = 1 + whole[..whole.len() - from.len()].chars().count();
        text(&mut plain, &mut found);
        if let Some(optional) = from.strip_prefix("{[") {
            if inside.is_some() {
                return Err(format!("`{{[` at character {character} stands inside another optional part"));
            }
            let Some((name, after)) = optional.split_once(':').filter(|(name, _)| is_name(name)) else {
                let form = "write an optional part as `{[column: … ]}`";
                return Err(format!("`{{[` at character {character} names no column: {form}"));
            };
            let (within, after) = parts(whole, after, Some(character))?;
            found.push(Part::Optional(name.to_owned(), within));
            rest = after;
            continue;
        }
        let Some((name, after)) = from.strip_prefix('{').and_then(|inside| inside.split_once('}')) else {
            let brace = &from[..1];
            return Err(format!(
                "`{brace}` at character {character} is unmatched; write `{brace}{brace}` for a literal brace"
            ));
        };
        if !is_name(name) {
            return Err(format!("`{{{name}}}` at character {character} names no column"));
        }
        found.push(Part::Column(name.to_owned()));
        rest = after;
    }
    if let Some(character) = inside {
        return Err(format!("the optional part at character {character} has no end: write `]}}` after it"));
    }
    plain.push_str(rest);
    text(&mut plain, &mut found);
    Ok((found, ""))
}

fn is_name(name: &str) -> bool {
    !name.trim().is_empty() && !name.contains(['{', '}', '\n'])
}

/// Formats a cell as text: numbers and truth values as Python prints them, a list of one as what it holds.
///
/// # Errors
/// When there is nothing in it, something that is no value, or a list or object.
pub fn cell(column: &str, value: Option<&Value>) -> Result<String, String> {
    match value.and_then(odd::of) {
        Some(Odd::Number(digits)) => return Ok(digits.to_owned()),
        Some(odd) => return Err(format!("column `{column}` holds {}", odd.words())),
        None => {}
    }
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(odd::printed(number)),
        Some(Value::Bool(true)) => Ok("True".to_owned()),
        Some(Value::Bool(false)) => Ok("False".to_owned()),
        Some(Value::Array(list)) if list.len() == 1 => cell(column, list.first()),
        None | Some(Value::Null) => Err(format!("column `{column}` is empty")),
        Some(other) => Err(format!("column `{column}`: expected a text, found {}", kind(other))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, String> {
        let row = json!({"a": "x{b}", "b": 3, "c d": true, "n": null, "l": [1, 2], "o": ["y"], "e": ""});
        Template::parse(template)?.render(row.as_object().unwrap())
    }

    #[test]
    fn columns_are_replaced_once_and_braces_doubled() {
        assert_eq!(render("{a}-{b}{c d}{o}").unwrap(), "x{b}-3Truey");
        assert_eq!(render("é{{a}} \\frac{{{b}}}{{2}}").unwrap(), "é{a} \\frac{3}{2}");
        assert_eq!(render("").unwrap(), "");
        let template = Template::parse("{a} {{x}} {b}").unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn wrong_templates_and_cells_are_told() {
        for (template, expected) in [
            ("é {a", "`{` at character 3 is unmatched; write `{{` for a literal brace"),
            ("a} b", "`}` at character 2 is unmatched; write `}}` for a literal brace"),
            ("{} b", "`{}` at character 1 names no column"),
            ("{n}", "column `n` is empty"),
            ("{z}", "column `z` is empty"),
            ("{l}", "column `l`: expected a text, found a list"),
            ("x{[a: b", "the optional part at character 2 has no end: write `]}` after it"),
            ("{[a]} b", "`{[` at character 1 names no column: write an optional part as `{[column: … ]}`"),
            ("{[a:{[b:c]}]}", "`{[` at character 5 stands inside another optional part"),
            ("{[a: {z}]}", "column `z` is empty"),
        ] {
            assert_eq!(render(template).unwrap_err(), expected, "{template}");
        }
    }

    #[test]
    fn optional_parts_stand_where_their_column_holds_something() {
        let template =
            "{a}{[b:, paired with an input]}.{[e:\nInput: {e}]}{[n: none]}{[b: [{b}]]}{[z:{z}]} {[a:]}}]}";
        assert_eq!(render(template).unwrap(), "x{b}, paired with an input. [3] ]}");
        let parsed = Template::parse(template).unwrap();
        assert_eq!(parsed.needed().collect::<Vec<_>>(), ["a"]);
        assert_eq!(parsed.columns().collect::<Vec<_>>(), ["a", "b", "e", "e", "n", "b", "b", "z", "z", "a"]);
    }

    #[test]
    fn a_text_of_several_columns_is_made_of_those_that_hold_something() {
        let row = json!({"a": "x", "n": null, "e": ""});
        let made = |text: &str| {
            Template::of_column(text).unwrap().render_what_is_there(row.as_object().unwrap()).unwrap()
        };
        assert_eq!(made("{a} {n}").as_deref(), Some("x "));
        assert_eq!((made("a").as_deref(), made("n"), made("{n}{e}")), (Some("x"), None, None));
    }
}
