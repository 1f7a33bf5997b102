//! Evaluation of expressions.

use std::rc::Rc;

use super::args::Args;
use super::ast::{Arguments, Binary, Compare, Expr, Link, Sign};
use super::meter::{Failure, Outcome};
use super::methods::integer;
use super::number::{self, whole};
use super::run::Run;

use super::unicode::replace_chars;
use super::value::{Entries, Key, Object, Scope, Value};

/// Maximum bytes of a keyword taken from a mapping.
const KEYWORD: usize = 256;

impl Run<'_> {
    /// Evaluates an expression.
    pub fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(b) => Value::Bool(*b),
            Expr::Int(number) => Value::Int(*number),
            Expr::Big(number) => Value::int(number.clone())?,
            Expr::Float(number) => Value::Float(*number),
            Expr::Text(place) => self.texts.get(*place).cloned().unwrap_or(Value::None),
            Expr::Name(name) => self.lookup(*name, scope)?,
            inner => {
                let _level = self.meter.enter()?;
                self.meter.spend(1)?;
                self.eval_inner(inner, scope)?
            }
        })
    }

    fn eval_all(&self, list: &[Expr], scope: &Rc<Scope>) -> Outcome<Vec<Value>> {
        list.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    fn eval_inner(&self, expr: &Expr, scope: &Rc<Scope>) -> Outcome<Value> {
        match expr {
            Expr::List(items) => self.meter.list(self.eval_all(items, scope)?),
            Expr::Tuple(items) => self.meter.tuple(self.eval_all(items, scope)?),
            Expr::Dict(items) => {
                let mut entries = Entries::new();
                for (key, value) in items {
                    let key = Key::new(&self.meter, &self.eval(key, scope)?)?;
                    entries.insert(key, self.eval(value, scope)?);
                }
                self.meter.dict(entries)
            }
            Expr::Not(of) => Ok(Value::Bool(!self.truth(&self.eval(of, scope)?))),
            Expr::Sign(sign, of) => self.sign(*sign, &self.eval(of, scope)?),
            Expr::Binary(first, rest) => {
                let mut value = self.eval(first, scope)?;
                for (op, right) in rest {
                    value = self.binary(*op, &value, &self.eval(right, scope)?)?;
                }
                Ok(value)
            }
            Expr::Concat(parts) => self.concat(&self.eval_all(parts, scope)?),
            Expr::Compare(first, rest) => self.comparison(first, rest, scope),
            Expr::And(parts) => self.first_that(parts, false, scope),
            Expr::Or(parts) => self.first_that(parts, true, scope),
            Expr::If(of) => {
                let test = self.eval(&of.test, scope)?;
                match &of.otherwise {
                    _ if self.truth(&test) => self.eval(&of.then, scope),
                    Some(otherwise) => self.eval(otherwise, scope),
                    None => Ok(Value::undefined(format!(
                        "the inline if-expression on line {} evaluated to false and no else section was defined.",
                        of.line
                    ))),
                }
            }
            Expr::Chain(first, links) => self.links(self.eval(first, scope)?, links, scope),
            leaf => self.eval(leaf, scope),
        }
    }

    /// Returns the first value with this truth, else the last one.
    fn first_that(&self, parts: &[Expr], truth: bool, scope: &Rc<Scope>) -> Outcome<Value> {
        let mut value = Value::None;
        for part in parts {
            value = self.eval(part, scope)?;
            if self.truth(&value) == truth {
                break;
            }
        }
        Ok(value)
    }

    fn comparison(&self, first: &Expr, rest: &[(Compare, Expr)], scope: &Rc<Scope>) -> Outcome<Value> {
        let mut left = self.eval(first, scope)?;
        for (op, right) in rest {
            let right = self.eval(right, scope)?;
            if !self.compare(*op, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn concat(&self, parts: &[Value]) -> Outcome<Value> {
        let mut text = String::new();
        for part in parts {
            match part {
                Value::Text(part) => {
                    self.meter.room(text.len() + part.text.len())?;
                    text.push_str(&part.text);
                }
                part => text.push_str(&self.str(part)?),
            }
        }
        self.meter.text(text)
    }

    fn sign(&self, sign: Sign, value: &Value) -> Outcome<Value> {
        match (value, whole(value)) {
            (Value::Float(number), _) => {
                Ok(Value::Float(if sign == Sign::Minus { -number } else { *number }))
            }
            (_, Some(number)) => Value::int(if sign == Sign::Minus { -number } else { number }),
            (Value::Undefined(message), _) => Err(Failure::new(message.as_str())),
            (value, None) => {
                let sign = if sign == Sign::Minus { '-' } else { '+' };
                Err(Failure::new(format!("bad operand type for unary {sign}: '{}'", value.kind())))
            }
        }
    }

    /// Evaluates a binary operation.
    pub fn binary(&self, op: Binary, left: &Value, right: &Value) -> Outcome<Value> {
        if let Some(value) = number::binary(op, left, right)? {
            return Ok(value);
        }
        match (op, left, right) {
            (Binary::Mod, Value::Text(form), values) => self.percent(form, values),
            (_, Value::Undefined(message), _) | (_, _, Value::Undefined(message)) => {
                Err(Failure::new(message.as_str()))
            }
            (Binary::Add, Value::Text(a), Value::Text(b)) => {
                let is_safe = a.is_safe || b.is_safe;
                self.meter.room(a.text.len() + b.text.len())?;
                let part = |text: &str, is_part_safe: bool| {
                    if is_safe && !is_part_safe { escaped(text) } else { text.to_owned() }
                };
                self.meter.string(part(&a.text, a.is_safe) + &part(&b.text, b.is_safe), is_safe)
            }
            (Binary::Add, Value::List(a), Value::List(b)) => {
                self.meter.room((a.items.len() + b.items.len()) * size_of::<Value>())?;
                self.meter.list([a.items.as_slice(), &b.items].concat())
            }
            (Binary::Add, Value::Tuple(a), Value::Tuple(b)) => {
                self.meter.room((a.items.len() + b.items.len()) * size_of::<Value>())?;
                self.meter.tuple([a.items.as_slice(), &b.items].concat())
            }
            (Binary::Mul, sequence, count) if count.index().is_some() => self.repeat(sequence, count),
            (Binary::Mul, count, sequence) if count.index().is_some() => self.repeat(sequence, count),
            _ => Err(Failure::new(format!(
                "unsupported operand type(s) for {}: '{}' and '{}'",
                symbol(op),
                left.kind(),
                right.kind()
            ))),
        }
    }

    fn repeat(&self, sequence: &Value, count: &Value) -> Outcome<Value> {
        let count = match sequence {
            Value::Text(_) | Value::List(_) | Value::Tuple(_) => {
                usize::try_from(integer(count)?).unwrap_or(0)
            }
            _ => 0,
        };
        match sequence {
            Value::Text(text) => {
                self.meter.room(text.text.len().saturating_mul(count))?;
                self.meter.string(text.text.repeat(count), text.is_safe)
            }
            Value::List(list) | Value::Tuple(list) => {
                self.meter.room((list.items.len() * size_of::<Value>()).saturating_mul(count))?;
                let times = if list.items.is_empty() { 0 } else { count };
                let items = std::iter::repeat_n(&list.items, times).flatten().cloned().collect();
                if matches!(sequence, Value::List(_)) {
                    self.meter.list(items)
                } else {
                    self.meter.tuple(items)
                }
            }
            other => Err(Failure::new(format!("can't multiply sequence by '{}'", other.kind()))),
        }
    }

    /// Follows attributes, calls, filters and tests.
    pub fn links(&self, mut value: Value, links: &[Link], scope: &Rc<Scope>) -> Outcome<Value> {
        for link in links {
            self.meter.spend(1)?;
            value = match link {
                Link::Attribute(name) => self.attribute(&value, name)?,
                Link::Item(key) => {
                    let key = self.eval(key, scope)?;
                    self.item(&value, &key)?
                }
                Link::Slice(bounds) => {
                    let bound =
                        |bound: &Option<Expr>| bound.as_ref().map(|expr| self.eval(expr, scope)).transpose();
                    let [start, stop, step] = bounds;
                    self.slice(&value, [bound(start)?, bound(stop)?, bound(step)?])?
                }
                Link::Call(given) => {
                    let args = self.arguments(given, scope)?;
                    self.call(&value, args)?
                }
                Link::Filter(name, given) => {
                    let args = self.arguments(given, scope)?;
                    self.filter(name, value, args)?
                }
                Link::Test(name, given, is_not) => {
                    let args = self.arguments(given, scope)?;
                    Value::Bool(self.test(name, &value, args)? != *is_not)
                }
            };
        }
        Ok(value)
    }

    fn arguments(&self, given: &Arguments, scope: &Rc<Scope>) -> Outcome<Args> {
        let mut args = Args::of(self.eval_all(&given.positional, scope)?);
        if let Some(list) = &given.list {
            args.positional.extend(self.items(&self.eval(list, scope)?)?);
        }
        for (name, value) in &given.named {
            args.named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(dict) = &given.dict {
            let Value::Dict(dict) = self.eval(dict, scope)? else {
                return Err(Failure::new("argument after ** must be a mapping"));
            };
            self.meter.spend(dict.items.len())?;
            for (key, value) in &dict.items {
                let Some(name) = key.value().text() else {
                    return Err(Failure::new("keywords must be strings"));
                };
                if name.len() > KEYWORD {
                    return Err(Failure::template(format!("a keyword has over {KEYWORD} bytes")));
                }
                if given.named.iter().any(|(known, _)| known == name) {
                    return Err(Failure::new(format!("multiple values for keyword argument '{name}'")));
                }
                args.named.push((name.to_owned(), value.clone()));
            }
        }
        Ok(args)
    }

    /// Evaluates a call that gets the body of its block as `caller`.
    pub fn call_with(&self, call: &Expr, caller: Value, scope: &Rc<Scope>) -> Outcome<Value> {
        if let Expr::Chain(first, links) = call
            && let Some((Link::Call(given), before)) = links.split_last()
        {
            let callee = self.links(self.eval(first, scope)?, before, scope)?;
            let mut args = self.arguments(given, scope)?;
            args.named.push(("caller".to_owned(), caller));
            return self.call(&callee, args);
        }
        Err(Failure::template("expected call"))
    }

    /// Calls a value.
    pub fn call(&self, callee: &Value, args: Args) -> Outcome<Value> {
        let _level = self.meter.enter()?;
        match callee {
            Value::Undefined(message) => Err(Failure::new(message.as_str())),
            Value::Object(object) => match &**object {
                Object::Method(of, name) => self.method(of, name, args),
                Object::Function(name) => self.function(name, args),
                Object::Macro { of, scope } => self.call_macro(of, scope, args),
                Object::Loop(of) => self.recurse(of, args),
                Object::Joiner { separator, is_used } => {
                    let [] = args.take("joiner", [], 0)?;
                    if is_used.replace(true) { Ok(separator.clone()) } else { self.meter.text("") }
                }
                Object::Cycler { .. } => Err(Failure::new("'Cycler' object is not callable")),
            },
            other => Err(Failure::new(format!("'{}' object is not callable", other.kind()))),
        }
    }
}

fn symbol(op: Binary) -> &'static str {
    match op {
        Binary::Add => "+",
        Binary::Sub => "-",
        Binary::Mul => "*",
        Binary::Div => "/",
        Binary::FloorDiv => "//",
        Binary::Mod => "%",
        Binary::Pow => "** or pow()",
    }
}

/// Escapes a text for markup.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let is_plain = |c: char| !matches!(c, '&' | '<' | '>' | '\'' | '"');
    replace_chars(text, is_plain, &mut out, |c, out| {
        out.push_str(match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&#34;",
            _ => "&#39;",
        });
    });
    out
}
