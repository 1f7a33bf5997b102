//! Filters, and what several of them need.

mod json;
mod lists;
mod markup;
mod numbers;
mod ordered;
mod texts;
mod wrap;

use std::rc::Rc;

use super::args::Args;
use super::meter::{Failure, Outcome};
use super::run::Run;
use super::value::{Entries, Key, Text, Value};

/// The names of all filters.
pub(in crate::data::jinja) const FILTERS: [&str; 54] = [
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
    "filesizeformat", "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join",
    "last", "length", "list", "lower", "map", "max", "min", "pprint", "random", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags",
    "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "urlize", "wordcount",
    "wordwrap", "xmlattr",
];

impl Run<'_> {
    /// Applies a filter.
    pub fn filter(&self, name: &str, value: Value, args: Args) -> Outcome<Value> {
        match name {
            "lower" | "upper" | "capitalize" | "center" | "trim" | "title" | "string" | "replace"
            | "indent" | "truncate" | "wordwrap" | "wordcount" | "format" => {
                self.text_filter(name, value, args)
            }
            "striptags" | "e" | "escape" | "forceescape" | "safe" | "urlencode" | "xmlattr" => {
                self.markup_filter(name, &value, args)
            }
            "tojson" => self.to_json(&value, args),
            "int" | "float" | "round" | "abs" | "filesizeformat" => self.number_filter(name, &value, args),
            "sort" | "unique" | "min" | "max" | "sum" | "groupby" | "dictsort" => {
                self.ordered(name, &value, args)
            }
            "batch" | "slice" => self.batch(name, &value, args),
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                self.lazily(self.each(name, &value, args))
            }
            "pprint" | "random" | "urlize" => Err(Failure::refused(&format!("the filter `{name}`"))),
            name if FILTERS.contains(&name) => self.list_filter(name, value, args),
            name => Err(Failure::template(format!("No filter named '{name}'."))),
        }
    }

    /// Defers a failure until the generator is iterated that it would make fail.
    fn lazily(&self, made: Outcome<Value>) -> Outcome<Value> {
        match made {
            Err(failure) if !failure.is_of_template => self.meter.iterator(Vec::new(), Some(failure)),
            made => made,
        }
    }

    /// Converts a value to a text; markup stays markup.
    pub fn soft(&self, value: &Value) -> Outcome<Rc<Text>> {
        match value {
            Value::Text(text) => Ok(Rc::clone(text)),
            value => match self.meter.text(self.str(value)?)? {
                Value::Text(text) => Ok(text),
                _ => Err(Failure::new("no text")),
            },
        }
    }

    /// Returns keywords as a mapping.
    pub fn named_dict(&self, named: Vec<(String, Value)>) -> Outcome<Value> {
        let mut entries = Entries::new();
        for (name, value) in named {
            entries.insert(Key::new(&self.meter, &self.meter.text(name)?)?, value);
        }
        self.meter.dict(entries)
    }
}
