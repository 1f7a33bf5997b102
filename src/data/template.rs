//! Templates of prompts, responses and answers: `{column}` inserts a column, `{{` and `}}` are braces.

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
    /// assert!(Template::parse("Question: {question}\nAnswer:").is_ok());
    /// assert!(Template::parse("a lone {").is_err());
    /// ```
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let doubled = ["{{", "}}"].into_iter().find(|pair| from.starts_with(pair));
            if let Some(pair) = doubled {
                plain.push_str(&pair[..1]);
                rest = &from[2..];
                continue;
            }
            let character = 1 + text[..text.len() - from.len()].chars().count();
            let Some((name, after)) = from.strip_prefix('{').and_then(|inside| inside.split_once('}')) else {
                let brace = &from[..1];
                return Err(format!(
                    "`{brace}` at character {character} is unmatched; write `{brace}{brace}` for a literal brace"
                ));
            };
            if name.trim().is_empty() || name.contains(['{', '\n']) {
                return Err(format!("`{{{name}}}` at character {character} names no column"));
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Column(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { source: text.to_owned(), parts })
    }

    /// Returns the columns that it names, in order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// Returns the text with the columns of a row filled in.
    ///
    /// # Errors
    /// When a column is absent, holds nothing, or holds something that is not a text, number or truth value.
    pub fn render(&self, columns: &Columns) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Column(name) => text.push_str(&cell(name, columns.get(name))?),
            }
        }
        Ok(text)
    }
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
        let row = json!({"a": "x{b}", "b": 3, "c d": true, "n": null, "l": [1, 2], "o": ["y"]});
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
        ] {
            assert_eq!(render(template).unwrap_err(), expected, "{template}");
        }
    }
}
