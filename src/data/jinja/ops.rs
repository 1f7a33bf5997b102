//! Truth, equality, order and containment of values.

use std::cmp::Ordering;

use super::ast::Compare;
use super::meter::{Failure, Outcome};
use super::number;
use super::run::Run;
use super::value::{Key, Object, Value, View};

impl Run<'_> {
    /// `bool(value)`.
    pub fn truth(&self, value: &Value) -> bool {
        match value {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.text.is_empty(),
            Value::List(list) | Value::Tuple(list) => !list.items.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => !dict.items.is_empty(),
            Value::Range(range) => range.len() > 0,
            Value::Big(_) | Value::Iterator(_) | Value::Namespace(_) | Value::Object(_) => true,
        }
    }

    /// Evaluates one comparison.
    pub fn compare(&self, op: Compare, left: &Value, right: &Value) -> Outcome<bool> {
        Ok(match op {
            Compare::Eq => self.equal(left, right)?,
            Compare::Ne => !self.equal(left, right)?,
            Compare::In => self.contains(right, left)?,
            Compare::NotIn => !self.contains(right, left)?,
            order => {
                let is_nan = |value: &Value| matches!(value, Value::Float(number) if number.is_nan());
                if is_nan(left) || is_nan(right) {
                    return Ok(false);
                }
                let found = self.order(left, right)?;
                match order {
                    Compare::Lt => found.is_lt(),
                    Compare::Le => found.is_le(),
                    Compare::Gt => found.is_gt(),
                    _ => found.is_ge(),
                }
            }
        })
    }

    /// `==`.
    pub fn equal(&self, a: &Value, b: &Value) -> Outcome<bool> {
        self.meter.spend(1)?;
        Ok(match (a, b) {
            (Value::Text(a), Value::Text(b)) => {
                let is_long = a.text.len() == b.text.len();
                self.meter.scan(if is_long { a.text.len() } else { 0 })?;
                a.text == b.text
            }
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !self.equal(a, b)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Dict(a), Value::Dict(b)) => {
                if a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (key, value) in &a.items {
                    match b.items.get(key) {
                        Some(other) if self.equal(value, other)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
            (Value::Namespace(a), Value::Namespace(b)) => a == b,
            (Value::Range(a), Value::Range(b)) if a.len() == b.len() => {
                a.len() == 0 || a.start == b.start && (a.len() == 1 || a.step == b.step)
            }
            (Value::View(View::Keys | View::Items, _), Value::View(View::Keys | View::Items, _)) => {
                return Err(Failure::refused("to compare the keys or items of mappings"));
            }
            (Value::Object(a), Value::Object(b)) => match (&**a, &**b) {
                (Object::Function(a), Object::Function(b)) => a == b,
                (Object::Method(..), Object::Method(..)) => {
                    return Err(Failure::refused("to compare methods"));
                }
                _ => std::rc::Rc::ptr_eq(a, b),
            },
            (Value::Iterator(a), Value::Iterator(b)) => std::rc::Rc::ptr_eq(a, b),
            (a, b) => number::compare(a, b).is_some_and(Ordering::is_eq),
        })
    }

    /// Returns the order of two values.
    ///
    /// # Errors
    /// When Python knows none.
    pub fn order(&self, a: &Value, b: &Value) -> Outcome<Ordering> {
        self.meter.spend(1)?;
        match (a, b) {
            (Value::Text(a), Value::Text(b)) => {
                self.meter.scan(a.text.len().min(b.text.len()))?;
                return Ok(a.text.cmp(&b.text));
            }
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !self.equal(a, b)? {
                        return self.order(a, b);
                    }
                }
                return Ok(a.items.len().cmp(&b.items.len()));
            }
            (Value::Undefined(message), _) | (_, Value::Undefined(message)) => {
                return Err(Failure::new(message.as_str()));
            }
            _ => {}
        }
        let is_number = |value: &Value| matches!(value, Value::Float(_)) || value.index().is_some();
        match number::compare(a, b) {
            Some(order) => Ok(order),
            None if is_number(a) && is_number(b) => Err(Failure::refused("the order of `nan`")),
            None => Err(Failure::new(format!(
                "no order is known between instances of '{}' and '{}'",
                a.kind(),
                b.kind()
            ))),
        }
    }

    /// `item in container`.
    pub fn contains(&self, container: &Value, item: &Value) -> Outcome<bool> {
        match container {
            Value::Text(text) => match item {
                Value::Text(part) => {
                    self.meter.scan(text.text.len())?;
                    Ok(text.text.contains(&part.text))
                }
                other => {
                    let kind = other.kind();
                    Err(Failure::new(format!("'in <string>' requires string as left operand, not {kind}")))
                }
            },
            Value::Dict(dict) | Value::View(View::Keys, dict) => {
                Ok(dict.items.contains_key(&Key::new(&self.meter, item)?))
            }
            container => {
                let mut source = match self.iterate(container) {
                    Ok(source) => source,
                    Err(failure) if failure.is_of_template => return Err(failure),
                    Err(_) => {
                        let kind = container.kind();
                        return Err(Failure::new(format!("argument of type '{kind}' is not iterable")));
                    }
                };
                while let Some(other) = self.next(&mut source)? {
                    if self.equal(&other, item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Sorts items, keeping equal ones in order.
    ///
    /// # Errors
    /// When two cannot be compared.
    pub fn sorted<T>(
        &self,
        mut items: Vec<T>,
        is_less: impl Fn(&T, &T) -> Outcome<bool> + Copy,
    ) -> Outcome<Vec<T>> {
        if items.len() < 2 {
            return Ok(items);
        }
        let right = items.split_off(items.len() / 2);
        let (left, right) = (self.sorted(items, is_less)?, self.sorted(right, is_less)?);
        let mut merged = Vec::with_capacity(left.len() + right.len());
        let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            if is_less(b, a)? {
                merged.extend(right.next());
            } else {
                merged.extend(left.next());
            }
        }
        merged.extend(left);
        merged.extend(right);
        Ok(merged)
    }
}
