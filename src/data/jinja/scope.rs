//! Setting and looking up the variables of a frame.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::ast::Name;
use super::value::{Scope, Value};

impl Scope {
    pub fn new(hidden: &Arc<[Name]>, parent: Option<&Rc<Self>>) -> Rc<Self> {
        let hidden = Arc::clone(hidden);
        Rc::new(Self {
            variables: RefCell::default(),
            hidden,
            is_over: Cell::new(false),
            parent: parent.cloned(),
        })
    }

    pub fn set(&self, name: Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        }
    }

    /// Returns the number of its variables.
    pub fn len(&self) -> usize {
        self.variables.borrow().len()
    }

    /// Looks up a name here and outside, and counts the variables that were looked at. The name may have no
    /// value yet, or be one that only the conversation can know.
    pub fn get(&self, name: Name) -> (Found, usize) {
        let (mut scope, mut seen) = (self, 0);
        loop {
            let variables = scope.variables.borrow();
            seen += variables.len();
            if let Some((_, value)) = variables.iter().find(|(known, _)| *known == name) {
                return (Found::Value(value.clone()), seen);
            }
            if scope.hidden.binary_search(&name).is_ok() {
                return (Found::Hidden, seen);
            }
            match &scope.parent {
                Some(parent) => scope = parent,
                None => return (Found::Outside, seen),
            }
        }
    }

    /// Marks what it belongs to as over.
    pub fn end(&self) {
        self.is_over.set(true);
    }

    /// Returns true if this or a scope outside is over.
    pub fn has_ended(&self) -> bool {
        self.is_over.get() || self.parent.as_ref().is_some_and(|parent| parent.has_ended())
    }

    /// Forgets its variables, some of which may hold it.
    pub fn clear(&self) {
        self.variables.take();
    }
}

/// Result of looking up a name.
pub(super) enum Found {
    Value(Value),
    /// It has no value yet.
    Hidden,
    /// No scope knows it.
    Outside,
}
