//! Filters that compare the items of lists and mappings.

use std::rc::Rc;

use super::super::args::Args;
use super::super::ast::Binary;
use super::super::meter::{Failure, Outcome};
use super::super::run::Run;
use super::super::value::{Entries, Key, Value, View};
use super::lists::Getter;

impl Run<'_> {
    /// Applies filters that compare items.
    pub fn ordered(&self, name: &str, value: &Value, args: Args) -> Outcome<Value> {
        let is_true = |value: Option<Value>| value.is_some_and(|value| self.truth(&value));
        let getter = |attribute: Option<Value>, case_sensitive: Option<Value>, default: Option<Value>| {
            let getter = self.getter(&attribute.unwrap_or(Value::None))?;
            let default = default.filter(|default| !default.is_none());
            Ok::<_, Box<Failure>>(Getter { ignores_case: !is_true(case_sensitive), default, ..getter })
        };
        match name {
            "sort" => {
                let [reverse, case, attribute] =
                    args.take(name, ["reverse", "case_sensitive", "attribute"], 0)?;
                let attributes = match &attribute {
                    Some(Value::Text(text)) => {
                        text.text.split(',').map(|part| self.meter.text(part)).collect::<Outcome<_>>()?
                    }
                    other => vec![other.clone().unwrap_or(Value::None)],
                };
                let getters = attributes.into_iter().map(|part| getter(Some(part), case.clone(), None));
                let getters: Vec<Getter> = getters.collect::<Outcome<_>>()?;
                let key = |item: &Value| {
                    let parts = getters.iter().map(|getter| self.get(getter, item.clone()));
                    self.meter.list(parts.collect::<Outcome<_>>()?)
                };
                self.meter.list(self.sorted_by(self.items(value)?, key, is_true(reverse))?)
            }
            "unique" => {
                let [case, attribute] = args.take(name, ["case_sensitive", "attribute"], 0)?;
                let getter = getter(attribute, case, None)?;
                let mut seen = Entries::new();
                self.lazily(self.filtered(value, |item| {
                    let key = Key::new(&self.meter, &self.get(&getter, item.clone())?)?;
                    Ok(seen.insert(key, Value::None).is_none().then_some(item))
                }))
            }
            "min" | "max" => {
                let [case, attribute] = args.take(name, ["case_sensitive", "attribute"], 0)?;
                self.extreme(value, &getter(attribute, case, None)?, name == "min")
            }
            "sum" => self.sum(value, args),
            "groupby" => {
                let [attribute, default, case] =
                    args.take(name, ["attribute", "default", "case_sensitive"], 1)?;
                self.groups(value, &getter(attribute, case, default)?)
            }
            _ => {
                let [case, by, reverse] = args.take(name, ["case_sensitive", "by", "reverse"], 0)?;
                let place = match by.as_ref().map(Value::text) {
                    None | Some(Some("key")) => 0,
                    Some(Some("value")) => 1,
                    _ => return Err(Failure::new("You can only sort by either \"key\" or \"value\"")),
                };
                let getter = getter(Some(Value::Int(place)), case, None)?;
                let pairs = self.items(&Value::View(View::Items, Rc::clone(value.as_dict()?)))?;
                let key = |item: &Value| self.get(&getter, item.clone());
                self.meter.list(self.sorted_by(pairs, key, is_true(reverse))?)
            }
        }
    }

    fn sum(&self, value: &Value, args: Args) -> Outcome<Value> {
        let [attribute, start] = args.take("sum", ["attribute", "start"], 0)?;
        let getter = self.getter(&attribute.unwrap_or(Value::None))?;
        let mut sum = start.unwrap_or(Value::Int(0));
        if sum.text().is_some() {
            return Err(Failure::new("sum() can't sum strings [use ''.join(seq) instead]"));
        }
        for item in self.items(value)? {
            sum = self.binary(Binary::Add, &sum, &self.get(&getter, item)?)?;
        }
        Ok(sum)
    }

    /// Returns the least item, or the largest one; the first of several.
    fn extreme(&self, value: &Value, getter: &Getter, is_least: bool) -> Outcome<Value> {
        let mut best: Option<(Value, Value)> = None;
        for item in self.items(value)? {
            let key = self.get(getter, item.clone())?;
            let is_better = match &best {
                Some((old, _)) if is_least => self.order(&key, old)?.is_lt(),
                Some((old, _)) => self.order(&key, old)?.is_gt(),
                None => true,
            };
            if is_better {
                best = Some((key, item));
            }
        }
        let none = || Value::undefined("No aggregated item, sequence was empty.");
        Ok(best.map_or_else(none, |(_, item)| item))
    }

    /// Sorts by a key; equal items keep their order, in reverse too.
    fn sorted_by(
        &self,
        mut items: Vec<Value>,
        key: impl Fn(&Value) -> Outcome<Value>,
        reverses: bool,
    ) -> Outcome<Vec<Value>> {
        if reverses {
            items.reverse();
        }
        let keyed = items.into_iter().map(|item| Ok((key(&item)?, item))).collect::<Outcome<Vec<_>>>()?;
        let sorted = self.sorted(keyed, |a, b| Ok(self.order(&a.0, &b.0)?.is_lt()))?;
        let mut items: Vec<Value> = sorted.into_iter().map(|(_, item)| item).collect();
        if reverses {
            items.reverse();
        }
        Ok(items)
    }

    fn groups(&self, value: &Value, getter: &Getter) -> Outcome<Value> {
        let items = self.sorted_by(self.items(value)?, |item| self.get(getter, item.clone()), false)?;
        let plain =
            Getter { path: getter.path.clone(), ignores_case: false, default: getter.default.clone() };
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for item in items {
            let key = self.get(getter, item.clone())?;
            match groups.last_mut() {
                Some((last, group)) if self.equal(last, &key)? => group.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let group = |(_, group): (Value, Vec<Value>)| {
            let first = group.first().cloned().unwrap_or(Value::None);
            let parts = vec![self.get(&plain, first)?, self.meter.list(group)?];
            self.meter.sequence(parts, true).map(Value::Tuple)
        };
        self.meter.list(groups.into_iter().map(group).collect::<Outcome<_>>()?)
    }
}
