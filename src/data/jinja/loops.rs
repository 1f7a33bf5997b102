//! `for`: the values iterated over, and the `loop` object.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::args::Args;
use super::ast::{self, Target};
use super::meter::{Failure, Outcome};
use super::run::{Flow, Run};
use super::value::{Loop, Object, Scope, Source, Value, View};

impl Run<'_> {
    /// Starts iterating over a value.
    ///
    /// # Errors
    /// When Python cannot iterate over it.
    pub fn iterate(&self, value: &Value) -> Outcome<Source> {
        Ok(match value {
            Value::List(list) | Value::Tuple(list) => Source::List(Rc::clone(list), 0),
            Value::Dict(dict) => Source::Dict(View::Keys, Rc::clone(dict), 0),
            Value::View(view, dict) => Source::Dict(*view, Rc::clone(dict), 0),
            Value::Text(text) => Source::Text(Rc::clone(text), 0),
            Value::Range(range) => Source::Range(Rc::clone(range), 0),
            Value::Iterator(iterator) => Source::Iterator(Rc::clone(iterator)),
            Value::Undefined(_) => Source::Empty,
            Value::Object(object) if matches!(**object, Object::Loop(_)) => {
                return Err(Failure::refused("to iterate over `loop`"));
            }
            value => return Err(Failure::new(format!("'{}' object is not iterable", value.kind()))),
        })
    }

    /// Returns the next item.
    pub fn next(&self, source: &mut Source) -> Outcome<Option<Value>> {
        self.meter.spend(1)?;
        Ok(match source {
            Source::List(list, at) => {
                *at += 1;
                list.items.get(*at - 1).cloned()
            }
            Source::Dict(view, dict, at) => {
                *at += 1;
                match dict.items.get_index(*at - 1) {
                    None => None,
                    Some((key, value)) => Some(match view {
                        View::Keys => key.value().clone(),
                        View::Values => value.clone(),
                        View::Items => self.meter.tuple(vec![key.value().clone(), value.clone()])?,
                    }),
                }
            }
            Source::Text(text, at) => match text.text[*at..].chars().next() {
                Some(c) => {
                    *at += c.len_utf8();
                    Some(self.meter.string(c.to_string(), false)?)
                }
                None => None,
            },
            Source::Range(range, at) => {
                *at += 1;
                (*at <= range.len()).then(|| range.get(*at - 1))
            }
            Source::Iterator(iterator) => {
                let mut iterator = iterator.borrow_mut();
                match iterator.items.pop_front() {
                    None => match iterator.failure.take() {
                        Some(failure) => return Err(failure),
                        None => None,
                    },
                    item => item,
                }
            }
            Source::Empty => None,
        })
    }

    /// Collects all items of a value.
    ///
    /// # Errors
    /// As [`Run::iterate`], or when they exceed the memory limit.
    pub fn items(&self, value: &Value) -> Outcome<Vec<Value>> {
        let mut source = self.iterate(value)?;
        let mut items = Vec::new();
        while let Some(item) = self.next(&mut source)? {
            items.push(item);
            self.meter.room(items.len() * size_of::<Value>())?;
        }
        Ok(items)
    }

    /// Returns `len(value)`, or `None` if it has none.
    pub fn length(&self, value: &Value) -> Outcome<Option<usize>> {
        Ok(Some(match value {
            Value::List(list) | Value::Tuple(list) => list.items.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.items.len(),
            Value::Text(text) => {
                self.meter.scan(text.text.len())?;
                text.chars()
            }
            Value::Range(range) => range.len(),
            Value::Undefined(_) => 0,
            Value::Object(object) => match &**object {
                Object::Loop(of) => usize::try_from(self.loop_length(of)?).unwrap_or(0),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        }))
    }

    /// Runs a loop over these items.
    pub fn exec_for(
        &self,
        of: &Arc<ast::For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth0: i64,
    ) -> Outcome<Flow> {
        let length = if of.test.is_some() { None } else { self.length(items)? };
        let state = Loop {
            source: RefCell::new(self.iterate(items)?),
            of: RefCell::new(Some((Arc::clone(of), Rc::clone(scope)))),
            index0: Cell::new(-1),
            length: Cell::new(length.map(|length| length as i64)),
            has_passed: Cell::new(of.test.is_none()),
            after: RefCell::default(),
            current: RefCell::default(),
            before: RefCell::default(),
            last: RefCell::default(),
            depth0,
            depth: 1 + items.depth(),
        };
        let value = self.meter.object(Object::Loop(state))?;
        let Value::Object(object) = &value else { return Ok(Flow::Next) };
        let Object::Loop(state) = &**object else { return Ok(Flow::Next) };
        let ran = self.turns(of, state, &value, scope);
        state.of.take();
        if ran? { Ok(Flow::Next) } else { self.exec_block(&of.otherwise, scope) }
    }

    /// Runs the turns of a loop, and returns whether one reached the end of its body: if none does, because
    /// each ends in `continue` or the first one breaks, Jinja2 runs `else`.
    fn turns(&self, of: &ast::For, state: &Loop, value: &Value, scope: &Rc<Scope>) -> Outcome<bool> {
        let mut ran = false;
        while let Some(item) = self.advance(state)? {
            self.meter.spend(3)?;
            let inner = Scope::new(&of.body.hidden, Some(scope));
            self.assign(&of.target, &item, &inner)?;
            inner.set(self.program.loop_name, value.clone());
            let flow = self.exec(&of.body.body, &inner);
            inner.end();
            match flow? {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => ran = true,
            }
        }
        Ok(ran)
    }

    /// Advances to the next turn.
    fn advance(&self, state: &Loop) -> Outcome<Option<Value>> {
        let ahead = state.after.take();
        let Some(item) = ahead.map_or_else(|| self.pull(state), |item| Ok(Some(item)))? else {
            return Ok(None);
        };
        state.index0.set(state.index0.get() + 1);
        state.before.replace(state.current.replace(Some(item.clone())));
        Ok(Some(item))
    }

    /// Returns the next item that passes the loop's own `if`.
    fn pull(&self, state: &Loop) -> Outcome<Option<Value>> {
        let of = if state.has_passed.get() { None } else { state.of.borrow().clone() };
        loop {
            let item = self.next(&mut state.source.borrow_mut())?;
            let (Some(item), Some((of, scope))) = (&item, &of) else { return Ok(item) };
            let Some(test) = &of.test else { return Ok(Some(item.clone())) };
            let inner = Scope::new(&self.program.nothing, Some(scope));
            self.assign(&of.target, item, &inner)?;
            let passes = self.eval(test, &inner)?;
            if self.truth(&passes) {
                return self.repacked(&of.target, item, &inner).map(Some);
            }
        }
    }

    /// Rebuilds an item from the variables it was unpacked into: a loop with an `if` iterates over these.
    fn repacked(&self, target: &Target, item: &Value, scope: &Rc<Scope>) -> Outcome<Value> {
        match target {
            Target::Tuple(targets) => {
                let parts = targets.iter().map(|target| self.repacked(target, item, scope));
                self.meter.tuple(parts.collect::<Outcome<_>>()?)
            }
            Target::Name(name) => self.lookup(*name, scope),
            Target::Attribute(..) => Ok(item.clone()),
        }
    }

    /// Returns the number of turns.
    pub fn loop_length(&self, state: &Loop) -> Outcome<i64> {
        if let Some(length) = state.length.get() {
            return Ok(length);
        }
        let mut rest = Vec::new();
        while let Some(item) = self.pull(state)? {
            rest.push(item);
        }
        let ahead = i64::from(state.after.borrow().is_some());
        let length = rest.len() as i64 + state.index0.get() + 1 + ahead;
        let Value::List(rest) = self.meter.list(rest)? else { return Ok(length) };
        state.source.replace(Source::List(rest, 0));
        state.has_passed.set(true);
        state.length.set(Some(length));
        Ok(length)
    }

    fn peek(&self, state: &Loop) -> Outcome<Option<Value>> {
        if state.after.borrow().is_none() {
            let item = self.pull(state)?;
            state.after.replace(item);
        }
        Ok(state.after.borrow().clone())
    }

    /// Returns an attribute of `loop`, or `None` if it has none of this name.
    pub fn loop_attribute(&self, of: &Value, state: &Loop, name: &str) -> Outcome<Option<Value>> {
        let index0 = state.index0.get();
        Ok(Some(match name {
            "index" => Value::Int(index0 + 1),
            "index0" => Value::Int(index0),
            "revindex" => Value::Int(self.loop_length(state)? - index0),
            "revindex0" => Value::Int(self.loop_length(state)? - index0 - 1),
            "length" => Value::Int(self.loop_length(state)?),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(state)?.is_none()),
            "depth" => Value::Int(state.depth0 + 1),
            "depth0" => Value::Int(state.depth0),
            "previtem" if index0 == 0 => Value::undefined("there is no previous item"),
            "previtem" => state.before.borrow().clone().unwrap_or(Value::None),
            "nextitem" => match self.peek(state)? {
                Some(item) => item,
                None => Value::undefined("there is no next item"),
            },
            "cycle" => self.meter.object(Object::Method(of.clone(), "cycle"))?,
            "changed" => self.meter.object(Object::Method(of.clone(), "changed"))?,
            _ => return Ok(None),
        }))
    }

    /// Calls a method of `loop`.
    pub fn loop_method(&self, state: &Loop, name: &str, args: Args) -> Outcome<Value> {
        let values = args.only_positional(name)?;
        if name == "cycle" {
            let count = i64::try_from(values.len()).unwrap_or(i64::MAX);
            if count == 0 {
                return Err(Failure::new("no items for cycling given"));
            }
            let at = usize::try_from(state.index0.get().rem_euclid(count)).unwrap_or(0);
            return Ok(values.into_iter().nth(at).unwrap_or(Value::None));
        }
        // A loop that held itself would never be freed
        if !values.iter().all(Value::is_plain) {
            return Err(Failure::refused("`loop.changed` of what is no plain value"));
        }
        let values = self.meter.tuple(values)?;
        let last = state.last.borrow().clone();
        let is_changed = match last {
            Some(last) => !self.equal(&last, &values)?,
            None => true,
        };
        state.last.replace(Some(values));
        Ok(Value::Bool(is_changed))
    }

    /// `loop(items)`: the text of the loop over other items.
    pub fn recurse(&self, state: &Loop, args: Args) -> Outcome<Value> {
        let [items] = args.take("loop", ["iterable"], 1)?;
        let Some((of, scope)) = state.of.borrow().clone() else {
            return Err(Failure::refused("to call a loop that has ended"));
        };
        if !of.recursive {
            return Err(Failure::new("The loop must have the 'recursive' marker to be called recursively."));
        }
        let items = items.unwrap_or(Value::None);
        let (_, text) = self.capture(|| self.exec_for(&of, &items, &scope, state.depth0 + 1))?;
        Ok(text)
    }
}
