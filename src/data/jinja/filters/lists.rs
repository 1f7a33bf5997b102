//! Filters of lists and mappings that take them item by item.

use super::super::args::Args;
use super::super::meter::{Failure, Outcome};
use super::super::methods::integer;
use super::super::run::Run;
use super::super::value::{Entries, Value, View};

/// Access to a part of each item: a path of attributes, in lower case if case does not count.
pub(super) struct Getter {
    pub path: Vec<Value>,
    pub ignores_case: bool,
    pub default: Option<Value>,
}

impl Run<'_> {
    pub fn list_filter(&self, name: &str, value: Value, args: Args) -> Outcome<Value> {
        match name {
            "d" | "default" => {
                let [default, boolean] = args.take(name, ["default_value", "boolean"], 0)?;
                let is_loose = boolean.is_some_and(|boolean| self.truth(&boolean));
                if value.is_undefined() || is_loose && !self.truth(&value) {
                    return default.map_or_else(|| self.meter.text(""), Ok);
                }
                Ok(value)
            }
            "length" | "count" => {
                let [] = args.take(name, [], 0)?;
                match self.length(&value)? {
                    Some(length) => Ok(Value::Int(length as i64)),
                    None => Err(Failure::new(format!("object of type '{}' has no len()", value.kind()))),
                }
            }
            "list" => {
                let [] = args.take(name, [], 0)?;
                self.meter.list(self.items(&value)?)
            }
            "first" => {
                let [] = args.take(name, [], 0)?;
                let first = self.next(&mut self.iterate(&value)?)?;
                Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")))
            }
            "last" => {
                let [] = args.take(name, [], 0)?;
                if let Value::Iterator(_) = value {
                    return Err(Failure::new("'generator' object is not reversible"));
                }
                let last = self.items(&value)?.pop();
                Ok(last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty.")))
            }
            "reverse" => {
                let [] = args.take(name, [], 0)?;
                if let Value::Text(_) = value {
                    return self.slice(&value, [None, None, Some(Value::Int(-1))]);
                }
                let mut items = self.items(&value)?;
                items.reverse();
                match value {
                    Value::Iterator(_) => self.meter.list(items),
                    _ => self.meter.iterator(items, None),
                }
            }
            "items" => {
                let [] = args.take(name, [], 0)?;
                let (items, failure) = match value {
                    Value::Dict(dict) => (self.items(&Value::View(View::Items, dict))?, None),
                    Value::Undefined(_) => (Vec::new(), None),
                    _ => (Vec::new(), Some(Failure::new("Can only get item pairs from a mapping."))),
                };
                self.meter.iterator(items, failure)
            }
            "join" => self.join_items(&value, args),
            _ => self.attribute_alone(&value, args),
        }
    }

    /// Applies the filter `attr`, which does not look at a mapping's items.
    fn attribute_alone(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [attribute] = args.take("attr", ["name"], 1)?;
        let attribute = attribute.unwrap_or(Value::None);
        let Some(attribute) = attribute.text() else {
            return Err(Failure::new("attribute name must be string"));
        };
        if let Value::Dict(_) = value {
            let found = self.attribute(&self.meter.dict(Entries::new())?, attribute)?;
            return if found.is_undefined() { Ok(found) } else { self.attribute(value, attribute) };
        }
        self.attribute(value, attribute)
    }

    fn join_items(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [separator, attribute] = args.take("join", ["d", "attribute"], 0)?;
        let separator = separator.map_or(Ok(String::new()), |separator| self.str(&separator))?;
        let getter =
            attribute.filter(|attribute| !attribute.is_none()).map(|attribute| self.getter(&attribute));
        let getter = getter.transpose()?;
        let mut source = self.iterate(value)?;
        let (mut text, mut is_first) = (String::new(), true);
        while let Some(item) = self.next(&mut source)? {
            let item = match &getter {
                Some(getter) => self.get(getter, item)?,
                None => item,
            };
            let part = self.str(&item)?;
            self.meter.room(text.len() + part.len() + separator.len())?;
            text.push_str(if is_first { "" } else { &separator });
            text.push_str(&part);
            is_first = false;
        }
        self.meter.text(text)
    }

    /// Creates a getter of an attribute, which may be a path with dots.
    pub(super) fn getter(&self, attribute: &Value) -> Outcome<Getter> {
        let path = match attribute {
            Value::None => Vec::new(),
            Value::Text(text) => text
                .text
                .split('.')
                .map(|part| match part.parse::<i64>() {
                    Ok(place) if part.bytes().all(|b| b.is_ascii_digit()) => Ok(Value::Int(place)),
                    _ => self.meter.text(part),
                })
                .collect::<Outcome<_>>()?,
            other => vec![other.clone()],
        };
        Ok(Getter { path, ignores_case: false, default: None })
    }

    pub(super) fn get(&self, getter: &Getter, mut item: Value) -> Outcome<Value> {
        for part in &getter.path {
            item = self.item(&item, part)?;
            if let (true, Some(default)) = (item.is_undefined(), &getter.default) {
                item = default.clone();
            }
        }
        match &item {
            Value::Text(text) if getter.ignores_case => self.meter.text(text.text.to_lowercase()),
            _ => Ok(item),
        }
    }

    pub fn batch(&self, name: &str, value: &Value, args: Args) -> Outcome<Value> {
        let names = if name == "batch" { ["linecount", "fill_with"] } else { ["slices", "fill_with"] };
        let given = args.take(name, names, 1)?;
        self.lazily(self.parts(name, value, given))
    }

    fn parts(&self, name: &str, value: &Value, [count, fill]: [Option<Value>; 2]) -> Outcome<Value> {
        let count = integer(&count.unwrap_or(Value::None))?;
        let fill = fill.filter(|fill| !fill.is_none());
        let items = self.items(value)?;
        let mut parts: Vec<Vec<Value>> = Vec::new();
        if name == "batch" {
            let mut part = Vec::new();
            for item in items {
                if part.len() as i64 == count {
                    parts.push(std::mem::take(&mut part));
                }
                part.push(item);
            }
            if let (false, Some(fill)) = (part.is_empty(), fill) {
                let missing = usize::try_from(count.saturating_sub(part.len() as i64)).unwrap_or(0);
                self.meter.room(missing.saturating_mul(size_of::<Value>()))?;
                part.extend(std::iter::repeat_n(fill, missing));
            }
            if !part.is_empty() {
                parts.push(part);
            }
        } else {
            if count == 0 {
                return Err(Failure::new("integer division or modulo by zero"));
            }
            let count = usize::try_from(count).unwrap_or(0);
            self.meter.spend(count)?;
            let (size, more) = (items.len() / count.max(1), items.len() % count.max(1));
            let mut rest = items.as_slice();
            for place in 0..count {
                let (part, after) = rest.split_at(size + usize::from(place < more));
                let mut part = part.to_vec();
                if place >= more {
                    part.extend(fill.clone());
                }
                parts.push(part);
                rest = after;
            }
        }
        let parts = parts.into_iter().map(|part| self.meter.list(part)).collect::<Outcome<_>>()?;
        self.meter.iterator(parts, None)
    }

    /// Applies filters that look at one item after the other.
    pub fn each(&self, name: &str, value: &Value, mut args: Args) -> Outcome<Value> {
        if name == "map" {
            return self.map(value, args);
        }
        let wants = name.starts_with("select");
        if !self.truth(value) {
            return self.meter.iterator(Vec::new(), None);
        }
        let mut positional = args.positional.into_iter();
        let getter = if name.ends_with("attr") {
            match positional.next() {
                Some(attribute) => self.getter(&attribute)?,
                None => return Err(Failure::new("Missing parameter for attribute name")),
            }
        } else {
            self.getter(&Value::None)?
        };
        let test = positional.next();
        args.positional = positional.collect();
        self.filtered(value, |item| {
            let part = self.get(&getter, item.clone())?;
            let passes = match &test {
                None => self.truth(&part),
                Some(Value::Text(test)) => self.test(&test.text, &part, args.clone())?,
                Some(_) => return Err(Failure::new("No test of this name.")),
            };
            Ok((passes == wants).then_some(item))
        })
    }

    fn map(&self, value: &Value, args: Args) -> Outcome<Value> {
        if !self.truth(value) {
            return self.meter.iterator(Vec::new(), None);
        }
        let is_attribute = args.named.iter().any(|(name, _)| name == "attribute");
        if args.positional.is_empty() && is_attribute {
            let [attribute, default] = args.take("map", ["attribute", "default"], 0)?;
            let getter = self.getter(&attribute.unwrap_or(Value::None))?;
            let getter = Getter { default: default.filter(|default| !default.is_none()), ..getter };
            return self.filtered(value, |item| self.get(&getter, item).map(Some));
        }
        let Args { mut positional, named } = args;
        if positional.is_empty() {
            return Err(Failure::new("map requires a filter argument"));
        }
        let filter = positional.remove(0);
        let args = Args { positional, named };
        self.filtered(value, |item| match filter.text() {
            Some(name) => self.filter(name, item, args.clone()).map(Some),
            None => Err(Failure::new("No filter of this name.")),
        })
    }

    /// Returns a generator of the items that `keep` yields; a failure surfaces once its item is reached.
    pub(super) fn filtered(
        &self,
        value: &Value,
        mut keep: impl FnMut(Value) -> Outcome<Option<Value>>,
    ) -> Outcome<Value> {
        let mut source = self.iterate(value)?;
        let mut kept = Vec::new();
        loop {
            let item = match self.next(&mut source) {
                Ok(Some(item)) => keep(item),
                Ok(None) => return self.meter.iterator(kept, None),
                Err(failure) => Err(failure),
            };
            match item {
                Ok(item) => kept.extend(item),
                Err(failure) if failure.is_of_template => return Err(failure),
                Err(failure) => return self.meter.iterator(kept, Some(failure)),
            }
            self.meter.room(kept.len() * size_of::<Value>())?;
        }
    }
}
