//! Values as Python writes them: `str` and `repr`.

use super::meter::{Failure, Outcome};
use super::number::{big_text, float_text};
use super::run::Run;
use super::unicode::{is_printable, replace_chars};
use super::value::{Dict, List, Object, Value, View};

impl Run<'_> {
    /// `str(value)`.
    ///
    /// # Errors
    /// When Python would write an address in memory, or the text exceeds the memory limit.
    pub fn str(&self, value: &Value) -> Outcome<String> {
        let mut out = String::new();
        match value {
            Value::Text(text) => {
                self.meter.scan(text.text.len())?;
                self.meter.room(text.text.len())?;
                out.push_str(&text.text);
            }
            Value::Undefined(_) => {}
            value => self.repr(value, &mut out)?,
        }
        Ok(out)
    }

    /// Like [`Run::str`], for use as a text.
    pub fn str_value(&self, value: &Value) -> Outcome<Value> {
        match value {
            Value::Text(text) if !text.is_safe => Ok(value.clone()),
            value => self.meter.text(self.str(value)?),
        }
    }

    /// Adds `repr(value)`.
    pub fn repr(&self, value: &Value, out: &mut String) -> Outcome<()> {
        self.meter.spend(1)?;
        self.meter.room(out.len())?;
        match value {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(true) => out.push_str("True"),
            Value::Bool(false) => out.push_str("False"),
            Value::Int(number) => out.push_str(&number.to_string()),
            Value::Big(number) => out.push_str(&big_text(number)?),
            Value::Float(number) => out.push_str(&float_text(*number)),
            Value::Text(text) => {
                self.meter.read(text.text.len())?;
                self.meter.room(out.len() + text.text.len())?;
                if text.is_safe {
                    out.push_str("Markup(");
                }
                quote(&text.text, out);
                if text.is_safe {
                    out.push(')');
                }
            }
            Value::List(list) => self.repr_list(list, ["[", "]"], out)?,
            Value::Tuple(list) if list.items.len() == 1 => self.repr_list(list, ["(", ",)"], out)?,
            Value::Tuple(list) => self.repr_list(list, ["(", ")"], out)?,
            Value::Dict(dict) => {
                let entries = dict.items.iter().map(|(key, value)| (key.value(), value));
                self.repr_dict(entries, out)?;
            }
            Value::View(view, dict) => self.repr_view(*view, dict, out)?,
            Value::Range(range) => {
                out.push_str(&format!("range({}, {}", range.start, range.stop));
                if range.step != 1 {
                    out.push_str(&format!(", {}", range.step));
                }
                out.push(')');
            }
            Value::Namespace(place) => self.repr_namespace(*place, out)?,
            Value::Iterator(_) | Value::Object(_) => self.repr_object(value, out)?,
        }
        Ok(())
    }

    fn repr_list(&self, list: &List, [open, close]: [&str; 2], out: &mut String) -> Outcome<()> {
        out.push_str(open);
        for (i, item) in list.items.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            self.repr(item, out)?;
        }
        out.push_str(close);
        Ok(())
    }

    fn repr_dict<'a>(
        &self,
        entries: impl Iterator<Item = (&'a Value, &'a Value)>,
        out: &mut String,
    ) -> Outcome<()> {
        out.push('{');
        for (i, (key, value)) in entries.enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            self.repr(key, out)?;
            out.push_str(": ");
            self.repr(value, out)?;
        }
        out.push('}');
        Ok(())
    }

    fn repr_view(&self, view: View, dict: &Dict, out: &mut String) -> Outcome<()> {
        out.push_str(view.kind());
        out.push_str("([");
        for (i, (key, value)) in dict.items.iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" });
            match view {
                View::Keys => self.repr(key.value(), out)?,
                View::Values => self.repr(value, out)?,
                View::Items => {
                    out.push('(');
                    self.repr(key.value(), out)?;
                    out.push_str(", ");
                    self.repr(value, out)?;
                    out.push(')');
                }
            }
        }
        out.push_str("])");
        Ok(())
    }

    fn repr_namespace(&self, place: usize, out: &mut String) -> Outcome<()> {
        // Namespaces may hold themselves
        let _level = self.meter.enter()?;
        let attributes = self.namespace(place);
        let entry = |(name, value): (&String, &Value)| Ok((self.meter.text(name.as_str())?, value.clone()));
        let entries = attributes.iter().map(entry).collect::<Outcome<Vec<_>>>()?;
        out.push_str("<Namespace ");
        self.repr_dict(entries.iter().map(|(name, value)| (name, value)), out)?;
        out.push('>');
        Ok(())
    }

    fn repr_object(&self, value: &Value, out: &mut String) -> Outcome<()> {
        if let Value::Object(object) = value {
            match &**object {
                Object::Loop(of) => {
                    let (index, length) = (of.index0.get() + 1, self.loop_length(of)?);
                    out.push_str(&format!("<LoopContext {index}/{length}>"));
                    return Ok(());
                }
                Object::Macro { of, .. } => {
                    out.push_str("<Macro ");
                    match of.name {
                        Some(name) => quote(self.name(name), out),
                        None => out.push_str("anonymous"),
                    }
                    out.push('>');
                    return Ok(());
                }
                _ => {}
            }
        }
        Err(Failure::refused(&format!("to print a {}, which Python writes with its address,", value.kind())))
    }
}

/// Quotes a text as `repr` does: in single quotes, unless these are the only ones in it.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let is_plain = |c: char| c != quote && c != '\\' && is_printable(c);
    out.push(quote);
    replace_chars(text, is_plain, out, |c, out| match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c == quote || c == '\\' => out.extend(['\\', c]),
        c => match u32::from(c) {
            code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
            code @ ..0x10000 => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        },
    });
    out.push(quote);
}
