//! Filters of markup and addresses.

use std::rc::Rc;

use super::super::args::Args;
use super::super::meter::{Failure, Outcome};
use super::super::methods::string;
use super::super::run::Run;
use super::super::unicode::is_space;
use super::super::value::{Value, View};
use crate::files::url_part;

impl Run<'_> {
    pub fn markup_filter(&self, name: &str, value: &Value, args: Args) -> Outcome<Value> {
        if name == "xmlattr" {
            return self.xmlattr(value, args);
        }
        let [] = args.take(name, [], 0)?;
        match name {
            "striptags" => self.meter.text(without_tags(&self.str(value)?)?),
            "forceescape" => self.escape(&self.meter.text(self.str(value)?)?),
            "safe" => self.meter.string(self.str(value)?, true),
            "urlencode" => self.urlencode(value),
            _ => self.escape(value),
        }
    }

    fn urlencode(&self, value: &Value) -> Outcome<Value> {
        let quoted = |value: &Value, is_query: bool| {
            let text = self.str(value)?;
            self.meter.room(text.len().saturating_mul(3))?;
            let quoted = url_part(&text, if is_query { "" } else { "/" });
            Ok::<_, Box<Failure>>(if is_query { quoted.replace("%20", "+") } else { quoted })
        };
        let is_whole =
            value.text().is_some() || self.test("iterable", value, Args::default()).is_ok_and(|is| !is);
        if is_whole {
            return self.meter.text(quoted(value, false)?);
        }
        let pairs = match value {
            Value::Dict(dict) => Value::View(View::Items, Rc::clone(dict)),
            other => other.clone(),
        };
        let mut out = String::new();
        for pair in self.items(&pairs)? {
            let pair = self.items(&pair)?;
            let [key, value] = pair.as_slice() else {
                return Err(Failure::new("urlencode needs pairs of key and value"));
            };
            out.push_str(if out.is_empty() { "" } else { "&" });
            out.push_str(&format!("{}={}", quoted(key, true)?, quoted(value, true)?));
            self.meter.room(out.len())?;
        }
        self.meter.text(out)
    }

    fn xmlattr(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [spaced] = args.take("xmlattr", ["autospace"], 0)?;
        let dict = value.as_dict()?;
        let mut out = String::new();
        for (key, value) in &dict.items {
            if value.is_none() || value.is_undefined() {
                continue;
            }
            let key = key.value();
            let is_wrong = |c: char| matches!(c, ' ' | '\t'..='\r' | '/' | '>' | '=');
            if string(key)?.contains(is_wrong) {
                return Err(Failure::new("Invalid character in attribute name"));
            }
            let (key, value) = (self.soft(&self.escape(key)?)?, self.soft(&self.escape(value)?)?);
            self.meter.room(out.len() + key.text.len() + value.text.len())?;
            out.push_str(&format!(" {}=\"{}\"", key.text, value.text));
        }
        let spaced = spaced.is_none_or(|spaced| self.truth(&spaced));
        self.meter.text(if spaced { out.as_str() } else { out.trim_start_matches(' ') })
    }
}

/// A text without tags, its white space as single spaces.
fn without_tags(text: &str) -> Outcome<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(start) = rest.find('<') {
        let tag = &rest[start..];
        let end = match tag.strip_prefix("<!--") {
            Some(comment) => comment.find("-->").map(|end| end + 7),
            None => tag.find('>').map(|end| end + 1),
        };
        let Some(end) = end else { break };
        out.push_str(&rest[..start]);
        rest = &tag[end..];
    }
    out.push_str(rest);
    if out.contains('&') {
        return Err(Failure::refused("`striptags` of a text with `&`"));
    }
    Ok(out.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}
