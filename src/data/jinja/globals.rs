//! Functions that every template knows.

use std::cell::Cell;
use std::rc::Rc;

use super::args::Args;
use super::meter::{Failure, Outcome};
use super::methods::{integer, string};
use super::run::Run;
use super::value::{Entries, Key, Object, Range, Value};

/// Names of these functions.
pub(super) const FUNCTIONS: [&str; 8] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];
/// Maximum length of a range, in Jinja2's sandbox.
const LONGEST_RANGE: usize = 100_000;
/// Conversions of `strftime` that mean the same to `chrono` and to C.
const TIME: &str = "aAbBdeFHIjmMnpRSTtuUVwWyYGgCDhrklP%";

impl Run<'_> {
    /// Calls a function.
    pub fn function(&self, name: &str, args: Args) -> Outcome<Value> {
        match name {
            "range" => {
                let [first, second, step] = args.take(name, ["", "", ""], 1)?;
                let first = integer(&first.unwrap_or(Value::None))?;
                let (start, stop) = match second {
                    Some(stop) => (first, integer(&stop)?),
                    None => (0, first),
                };
                let step = step.map_or(Ok(1), |step| integer(&step))?;
                if step == 0 {
                    return Err(Failure::new("range() arg 3 must not be zero"));
                }
                let range = Range { start, stop, step };
                if range.len() > LONGEST_RANGE {
                    return Err(Failure::template(format!(
                        "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({LONGEST_RANGE})."
                    )));
                }
                Ok(Value::Range(Rc::new(range)))
            }
            "dict" => self.new_dict(name, args),
            "namespace" => {
                let Value::Dict(dict) = self.new_dict(name, args)? else { return Ok(Value::None) };
                let attributes = dict.items.iter().map(|(key, value)| match key.value() {
                    Value::Text(text) => Ok((text.text.clone(), value.clone())),
                    _ => Err(Failure::refused("a namespace with names that are no texts")),
                });
                self.new_namespace(attributes.collect::<Outcome<_>>()?)
            }
            "cycler" => {
                let items = args.only_positional(name)?;
                if items.is_empty() {
                    return Err(Failure::new("at least one item has to be provided"));
                }
                let items = self.meter.sequence(items, false)?;
                self.meter.object(Object::Cycler { items, at: Cell::new(0) })
            }
            "joiner" => {
                let [separator] = args.take(name, ["sep"], 0)?;
                let separator = separator.map_or_else(|| self.meter.text(", "), Ok)?;
                self.meter.object(Object::Joiner { separator, is_used: Cell::new(false) })
            }
            "raise_exception" => {
                let [message] = args.take(name, ["message"], 1)?;
                Err(Failure::new(self.str(&message.unwrap_or(Value::None))?))
            }
            "strftime_now" => {
                let [format] = args.take(name, ["format"], 1)?;
                self.meter.text(now(string(&format.unwrap_or(Value::None))?)?)
            }
            name => Err(Failure::refused(&format!("`{name}`"))),
        }
    }

    /// `dict(pairs, name=value)`.
    fn new_dict(&self, name: &str, args: Args) -> Outcome<Value> {
        let Args { positional, named } = args;
        let [pairs] = Args::of(positional).take(name, [""], 0)?;
        let mut entries = Entries::new();
        match pairs {
            None => {}
            Some(Value::Dict(dict)) => {
                self.meter.spend(dict.items.len())?;
                entries.clone_from(&dict.items);
            }
            Some(pairs) => {
                for pair in self.items(&pairs)? {
                    let pair = self.items(&pair)?;
                    let [key, value] = pair.as_slice() else {
                        return Err(Failure::new("dictionary update sequence needs pairs"));
                    };
                    entries.insert(Key::new(&self.meter, key)?, value.clone());
                }
            }
        }
        for (name, value) in named {
            entries.insert(Key::new(&self.meter, &self.meter.text(name)?)?, value);
        }
        self.meter.dict(entries)
    }
}

/// Formats the current time as Python's `strftime` does.
fn now(format: &str) -> Outcome<String> {
    use std::fmt::Write as _;
    let mut kept = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        kept.push(c);
        if c != '%' {
            continue;
        }
        let mut next = chars.next();
        if next == Some('-') {
            kept.push('-');
            next = chars.next();
        }
        match next {
            Some(kind) if TIME.contains(kind) => kept.push(kind),
            // Microseconds; nothing is said of the zone
            Some('f') => kept.push_str("6f"),
            Some('z' | 'Z') => kept.truncate(kept.len() - 1),
            other => {
                let conversion: String = other.into_iter().collect();
                return Err(Failure::refused(&format!("`%{conversion}` of a time")));
            }
        }
    }
    let mut text = String::new();
    match write!(text, "{}", crate::report::local_time().format(&kept)) {
        Ok(()) => Ok(text),
        Err(_) => Err(Failure::refused(&format!("the time format `{format}`"))),
    }
}
