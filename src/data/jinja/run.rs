//! Execution of statements.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::Rendered;
use super::ast::{Block, Expr, Link, Macro, Name, Node, Program, Stmt, Target};
use super::meter::{Failure, Held, Meter, Outcome};
use super::scope::Found;
use super::value::{Object, Scope, Value};

/// Rendering in progress.
pub(super) struct Run<'a> {
    pub program: &'a Program,
    pub meter: Rc<Meter>,
    /// The values of [`Program::texts`].
    pub texts: &'a [Value],
    /// Values from the conversation and the tokenizer, by name.
    context: &'a [Option<Value>],
    /// Text being written, followed by the captures inside of it.
    out: RefCell<Vec<Out>>,
    /// Byte ranges of the text inside `{% generation %}`.
    marks: RefCell<Vec<Range<usize>>>,
    namespaces: RefCell<Vec<Attributes>>,
    /// Scopes that macros hold, which may hold the macro in turn.
    captured: RefCell<Vec<Rc<Scope>>>,
    /// Memory that these take until the end.
    kept: RefCell<Held>,
}

/// Attributes of a namespace.
pub(super) type Attributes = IndexMap<String, Value>;

/// A text that is being written.
struct Out {
    text: String,
    held: Held,
}

/// Outcome of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl<'a> Run<'a> {
    /// Renders a template.
    ///
    /// # Errors
    /// When the template raises, or uses up more than it may.
    pub fn render(
        program: &'a Program,
        meter: &Rc<Meter>,
        texts: &'a [Value],
        context: &'a [Option<Value>],
    ) -> Outcome<Rendered> {
        let run = Self {
            program,
            meter: Rc::clone(meter),
            texts,
            context,
            out: RefCell::default(),
            marks: RefCell::default(),
            namespaces: RefCell::default(),
            captured: RefCell::default(),
            kept: RefCell::new(meter.hold(0)?),
        };
        let scope = Scope::new(&program.hidden, None);
        let text = run.written(|| run.exec(&program.body, &scope));
        run.captured.take().iter().for_each(|scope| scope.clear());
        Ok((text?.1.text, run.marks.take()))
    }

    /// Looks up the value of a name.
    pub fn lookup(&self, name: Name, scope: &Scope) -> Outcome<Value> {
        let (found, seen) = scope.get(name);
        self.meter.spend(seen / 16)?;
        let found = match found {
            Found::Value(value) => Some(value),
            Found::Hidden => None,
            Found::Outside => self.context.get(name).cloned().flatten(),
        };
        Ok(found.unwrap_or_else(|| Value::undefined(format!("'{}' is undefined", self.name(name)))))
    }

    pub fn name(&self, name: Name) -> &str {
        self.program.names.get(name).map_or("", String::as_str)
    }

    /// Runs statements.
    pub fn exec(&self, body: &[Stmt], scope: &Rc<Scope>) -> Outcome<Flow> {
        let _level = self.meter.enter()?;
        for stmt in body {
            let flow = self.exec_one(&stmt.node, scope).map_err(|failure| failure.at(stmt.line))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    /// Runs statements with names of their own.
    pub fn exec_block(&self, block: &Block, scope: &Rc<Scope>) -> Outcome<Flow> {
        if block.body.is_empty() {
            return Ok(Flow::Next);
        }
        let inner = Scope::new(&block.hidden, Some(scope));
        let flow = self.exec(&block.body, &inner);
        inner.end();
        flow
    }

    fn exec_one(&self, node: &Node, scope: &Rc<Scope>) -> Outcome<Flow> {
        self.meter.spend(1)?;
        match node {
            Node::Data(text) => self.write(text)?,
            Node::Print(values) => {
                for value in values {
                    self.print(&self.eval(value, scope)?)?;
                }
            }
            Node::If(branches, otherwise) => {
                for (test, body) in branches {
                    let test = self.eval(test, scope)?;
                    if self.truth(&test) {
                        return self.exec(body, scope);
                    }
                }
                return self.exec(otherwise, scope);
            }
            Node::For(of) => {
                let items = self.eval(&of.items, scope)?;
                return self.exec_for(of, &items, scope, 0);
            }
            Node::Set(target, value) => {
                self.check_namespaces(target, scope)?;
                let value = self.eval(value, scope)?;
                self.assign(target, &value, scope)?;
            }
            Node::SetBlock(target, filters, block) => {
                let (flow, value) = self.filtered_block(filters, block, scope)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                self.check_namespaces(target, scope)?;
                self.assign(target, &value, scope)?;
            }
            Node::With(values, block) => return self.with(values, block, scope),
            Node::Filter(filters, block) => {
                let (flow, value) = self.filtered_block(filters, block, scope)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                self.print_text(&value)?;
            }
            Node::Macro(of) => {
                if let Some(name) = of.name {
                    self.meter.spend(scope.len() / 16)?;
                    scope.set(name, self.closure(of, scope)?);
                }
            }
            Node::Call(of, call) => {
                let caller = self.closure(of, scope)?;
                self.print_text(&self.call_with(call, caller, scope)?)?;
            }
            Node::Generation(block) => self.generation(block, scope)?,
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn with(&self, values: &[(Target, Expr)], block: &Block, scope: &Rc<Scope>) -> Outcome<Flow> {
        let inner = Scope::new(&block.hidden, Some(scope));
        for (target, value) in values {
            let value = self.eval(value, scope)?;
            self.assign(target, &value, &inner)?;
        }
        let flow = self.exec(&block.body, &inner);
        inner.end();
        flow
    }

    /// Returns the text of a block, passed through filters.
    fn filtered_block(&self, filters: &[Link], block: &Block, scope: &Rc<Scope>) -> Outcome<(Flow, Value)> {
        let inner = Scope::new(&block.hidden, Some(scope));
        let (flow, text) = self.capture(|| self.exec(&block.body, &inner))?;
        if flow != Flow::Next {
            return Ok((flow, text));
        }
        let value = self.links(text, filters, &inner)?;
        inner.end();
        Ok((flow, value))
    }

    /// Writes the value of a block, which Jinja2 takes to be a text.
    fn print_text(&self, value: &Value) -> Outcome<()> {
        match value {
            Value::Text(text) => self.write(&text.text),
            other => Err(Failure::new(format!("expected a text of the block, found {}", other.kind()))),
        }
    }

    /// Writes a value.
    fn print(&self, value: &Value) -> Outcome<()> {
        match value {
            Value::Text(text) => self.write(&text.text),
            value => self.write(&self.str(value)?),
        }
    }

    fn generation(&self, block: &Block, scope: &Rc<Scope>) -> Outcome<()> {
        let length = |out: &[Out]| out.last().map_or(0, |out| out.text.len());
        let start = length(&self.out.borrow());
        let is_inside = self.marks.borrow().last().is_some_and(|mark| mark.end == usize::MAX);
        if self.out.borrow().len() > 1 || is_inside {
            // Transformers marks other characters than these then
            return Err(Failure::refused("`{% generation %}` in a macro, a block that is set, or itself"));
        }
        self.marks.borrow_mut().push(start..usize::MAX);
        self.exec_block(block, scope)?;
        let end = length(&self.out.borrow());
        if let Some(mark) = self.marks.borrow_mut().last_mut() {
            mark.end = end;
        }
        Ok(())
    }

    /// Appends to the text being written.
    fn write(&self, text: &str) -> Outcome<()> {
        if let Some(out) = self.out.borrow_mut().last_mut() {
            out.held.grow(text.len())?;
            out.text.push_str(text);
        }
        Ok(())
    }

    fn written(&self, run: impl FnOnce() -> Outcome<Flow>) -> Outcome<(Flow, Out)> {
        let held = self.meter.hold(0)?;
        self.out.borrow_mut().push(Out { text: String::new(), held });
        let flow = run();
        match (flow, self.out.borrow_mut().pop()) {
            (Ok(flow), Some(out)) => Ok((flow, out)),
            (Err(failure), _) => Err(failure),
            (Ok(_), None) => Err(Failure::template("nothing was written")),
        }
    }

    /// Captures what `run` writes as a text.
    pub fn capture(&self, run: impl FnOnce() -> Outcome<Flow>) -> Outcome<(Flow, Value)> {
        let (flow, out) = self.written(run)?;
        let Out { text, held } = out;
        drop(held);
        Ok((flow, self.meter.text(text)?))
    }

    /// Assigns a value to variables, unpacking it if there are several.
    ///
    /// # Errors
    /// When it has not as many parts.
    pub fn assign(&self, target: &Target, value: &Value, scope: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(name) => {
                self.meter.spend(scope.len() / 16)?;
                scope.set(*name, value.clone());
            }
            Target::Attribute(name, attribute) => {
                let Value::Namespace(place) = self.lookup(*name, scope)? else {
                    return Err(Failure::new("cannot assign attribute on non-namespace object"));
                };
                self.set_attribute(place, attribute, value)?;
            }
            Target::Tuple(targets) => {
                let parts = self.items(value)?;
                if parts.len() != targets.len() {
                    let (found, expected) = (parts.len(), targets.len());
                    let message = format!("{found} values to unpack (expected {expected})");
                    return Err(Failure::new(message));
                }
                for (target, part) in targets.iter().zip(&parts) {
                    self.assign(target, part, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the namespaces of a target, which happens before the value is computed.
    fn check_namespaces(&self, target: &Target, scope: &Rc<Scope>) -> Outcome<()> {
        match target {
            Target::Name(_) => Ok(()),
            Target::Attribute(name, _) => match self.lookup(*name, scope)? {
                Value::Namespace(_) => Ok(()),
                _ => Err(Failure::new("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(targets) => targets.iter().try_for_each(|t| self.check_namespaces(t, scope)),
        }
    }

    /// Creates a namespace.
    pub fn new_namespace(&self, attributes: Vec<(String, Value)>) -> Outcome<Value> {
        let place = self.namespaces.borrow().len();
        self.kept.borrow_mut().grow(128)?;
        self.namespaces.borrow_mut().push(Attributes::new());
        for (name, value) in attributes {
            self.set_attribute(place, &name, &value)?;
        }
        Ok(Value::Namespace(place))
    }

    fn set_attribute(&self, place: usize, name: &str, value: &Value) -> Outcome<()> {
        if name.starts_with('_') {
            let message = "Chat templates cannot store underscore-prefixed attributes on a namespace";
            return Err(Failure::new(format!("{message}, but got '{name}'")));
        }
        let mut namespaces = self.namespaces.borrow_mut();
        let Some(attributes) = namespaces.get_mut(place) else { return Ok(()) };
        match attributes.get_mut(name) {
            Some(old) => *old = value.clone(),
            None => {
                self.kept.borrow_mut().grow(128 + name.len())?;
                attributes.insert(name.to_owned(), value.clone());
            }
        }
        Ok(())
    }

    /// Returns the attributes of a namespace.
    pub fn namespace(&self, place: usize) -> Attributes {
        self.namespaces.borrow().get(place).cloned().unwrap_or_default()
    }

    /// Returns one attribute of a namespace.
    pub fn namespace_attribute(&self, place: usize, name: &str) -> Option<Value> {
        self.namespaces.borrow().get(place)?.get(name).cloned()
    }

    /// Creates a macro with the variables around it.
    fn closure(&self, of: &Arc<Macro>, scope: &Rc<Scope>) -> Outcome<Value> {
        let is_new = self.captured.borrow().last().is_none_or(|last| !Rc::ptr_eq(last, scope));
        if is_new {
            self.kept.borrow_mut().grow(256)?;
            self.captured.borrow_mut().push(Rc::clone(scope));
        }
        self.meter.object(Object::Macro { of: Arc::clone(of), scope: Rc::clone(scope) })
    }
}
