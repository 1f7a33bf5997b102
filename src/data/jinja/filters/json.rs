//! The filter `tojson`.

use super::super::args::Args;
use super::super::json::Layout;
use super::super::meter::{Failure, Outcome};
use super::super::methods::{integer, string};
use super::super::run::Run;
use super::super::value::Value;

impl Run<'_> {
    pub fn to_json(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [is_ascii, indent, separators, sorts] =
            args.take("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
        let is_true = |value: Option<Value>| value.is_some_and(|value| self.truth(&value));
        let pair = match separators.filter(|pair| !pair.is_none()) {
            None => None,
            Some(pair) => match <[Value; 2]>::try_from(self.items(&pair)?) {
                Ok(pair) => Some(pair),
                Err(_) => return Err(Failure::new("`separators` of tojson are two texts")),
            },
        };
        let (mut layout, sorts) =
            (Layout { is_ascii: is_true(is_ascii), ..Layout::default() }, is_true(sorts));
        // Python does not lay out a text on its own
        if value.text().is_none() {
            layout.sorts = sorts;
            layout.indent = match indent {
                None | Some(Value::None) => None,
                Some(Value::Text(text)) => Some(text.text.clone()),
                Some(Value::Undefined(message)) => return Err(Failure::new(message.as_str())),
                Some(width) => {
                    let width = usize::try_from(integer(&width)?).unwrap_or(0);
                    self.meter.room(width)?;
                    Some(" ".repeat(width))
                }
            };
            (layout.comma, layout.colon) = match &pair {
                Some([comma, colon]) => (string(comma)?.to_owned(), string(colon)?.to_owned()),
                None => (if layout.indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
            };
        }
        self.meter.text(self.json(value, &layout)?)
    }
}
