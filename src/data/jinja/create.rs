//! Creation of values, metered.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use super::meter::{Failure, LEVELS, Meter, Outcome};
use super::value::{Dict, Entries, Iterator, List, Object, Text, Value};

/// Returns the levels of a list or mapping of these values, itself included, and whether it is plain.
fn levels<'a>(values: impl std::iter::Iterator<Item = &'a Value>) -> Outcome<(usize, bool)> {
    let (mut depth, mut is_plain) = (1, true);
    for value in values {
        depth = depth.max(1 + value.depth());
        is_plain &= value.is_plain();
    }
    if depth > LEVELS {
        return Err(Failure::template(format!("the template nests more than {LEVELS} lists")));
    }
    Ok((depth, is_plain))
}

impl Meter {
    pub fn text(self: &Rc<Self>, text: impl Into<String>) -> Outcome<Value> {
        self.string(text.into(), false)
    }

    /// Creates a text, or markup.
    pub fn string(self: &Rc<Self>, text: String, is_safe: bool) -> Outcome<Value> {
        let held = self.hold(64 + text.len())?;
        Ok(Value::Text(Rc::new(Text { text, is_safe, chars: OnceCell::new(), _held: held })))
    }

    pub fn list(self: &Rc<Self>, items: Vec<Value>) -> Outcome<Value> {
        self.sequence(items, false).map(Value::List)
    }

    pub fn tuple(self: &Rc<Self>, items: Vec<Value>) -> Outcome<Value> {
        self.sequence(items, false).map(Value::Tuple)
    }

    /// Creates the items of a list or tuple.
    pub fn sequence(self: &Rc<Self>, items: Vec<Value>, is_group: bool) -> Outcome<Rc<List>> {
        let held = self.hold(64 + items.len() * size_of::<Value>())?;
        let (depth, is_plain) = levels(items.iter())?;
        let inner = |item: &Value| if let Value::Tuple(tuple) = item { tuple.size } else { 1 };
        let size = items.iter().map(inner).fold(1, usize::saturating_add);
        Ok(Rc::new(List { items, is_group, depth, is_plain, size, _held: held }))
    }

    pub fn dict(self: &Rc<Self>, items: Entries) -> Outcome<Value> {
        let held = self.hold(64 + items.len() * 64)?;
        let (depth, is_plain) = levels(items.values())?;
        Ok(Value::Dict(Rc::new(Dict { items, depth, is_plain, _held: held })))
    }

    /// Creates a generator over these, at whose end there may be a failure.
    pub fn iterator(self: &Rc<Self>, items: Vec<Value>, failure: Option<Box<Failure>>) -> Outcome<Value> {
        let held = self.hold(64 + items.len() * size_of::<Value>())?;
        let (depth, _) = levels(items.iter())?;
        let iterator = Iterator { items: items.into(), failure, depth, _held: Some(held) };
        Ok(Value::Iterator(Rc::new(RefCell::new(iterator))))
    }

    pub fn object(self: &Rc<Self>, object: Object) -> Outcome<Value> {
        let value = Value::Object(Rc::new(object));
        self.spend(1)?;
        if value.depth() > LEVELS {
            return Err(Failure::template(format!("the template nests more than {LEVELS} values")));
        }
        Ok(value)
    }
}
