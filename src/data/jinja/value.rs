//! Values of a template: those of Python that templates see, with the loops and scopes that hold them and are held.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::{Equivalent, IndexMap};
use num_bigint::BigInt;
use num_traits::ToPrimitive as _;

use super::ast;
use super::meter::{BITS, Failure, Held, Meter, Outcome};

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Holds the message that Jinja2 gives once it is used.
    Undefined(Rc<String>),
    None,
    Bool(bool),
    Int(i64),
    /// Beyond 64 bits.
    Big(Rc<BigInt>),
    Float(f64),
    Text(Rc<Text>),
    List(Rc<List>),
    Tuple(Rc<List>),
    Dict(Rc<Dict>),
    /// `dict.keys()`, `.values()` and `.items()`.
    View(View, Rc<Dict>),
    Range(Rc<Range>),
    /// Generator, which can be iterated over only once.
    Iterator(Rc<RefCell<Iterator>>),
    /// By its place in the rendering, since namespaces may hold each other.
    Namespace(usize),
    Object(Rc<Object>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

impl View {
    /// Returns the name of its type.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Keys => "dict_keys",
            Self::Values => "dict_values",
            Self::Items => "dict_items",
        }
    }
}

#[derive(Debug)]
pub(super) struct Text {
    pub text: String,
    /// True if it is markup, which escapes what is added to it.
    pub is_safe: bool,
    pub chars: OnceCell<usize>,
    pub _held: Held,
}

impl Text {
    /// Returns its length in characters.
    pub fn chars(&self) -> usize {
        *self.chars.get_or_init(|| self.text.chars().count())
    }

    pub fn is_ascii(&self) -> bool {
        self.chars() == self.text.len()
    }
}

#[derive(Debug)]
pub(super) struct List {
    pub items: Vec<Value>,
    /// True for a tuple that is a pair made by `groupby`, with names.
    pub is_group: bool,
    pub depth: usize,
    pub is_plain: bool,
    /// Number of its values, those of its items included.
    pub size: usize,
    pub _held: Held,
}

#[derive(Debug)]
pub(super) struct Dict {
    pub items: Entries,
    pub depth: usize,
    pub is_plain: bool,
    pub _held: Held,
}

pub(super) type Entries = IndexMap<Key, Value>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: i64,
    pub stop: i64,
    pub step: i64,
}

impl Range {
    pub fn len(&self) -> usize {
        let (from, to) = if self.step > 0 { (self.start, self.stop) } else { (self.stop, self.start) };
        let span = (i128::from(to) - i128::from(from)).max(0);
        usize::try_from((span + i128::from(self.step.abs()) - 1) / i128::from(self.step.abs()))
            .unwrap_or(usize::MAX)
    }

    pub fn get(&self, index: usize) -> Value {
        Value::Int(self.start.saturating_add(self.step.saturating_mul(index as i64)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Iterator {
    pub items: VecDeque<Value>,
    /// Failure to raise once the items are used up.
    pub failure: Option<Box<Failure>>,
    pub depth: usize,
    pub _held: Option<Held>,
}

/// Value that has a state or can be called.
#[derive(Debug)]
pub(super) enum Object {
    Cycler { items: Rc<List>, at: Cell<usize> },
    Joiner { separator: Value, is_used: Cell<bool> },
    Loop(Loop),
    Macro { of: Arc<ast::Macro>, scope: Rc<Scope> },
    Method(Value, &'static str),
    Function(&'static str),
}

/// Position in a value that is iterated over.
#[derive(Debug)]
pub(super) enum Source {
    List(Rc<List>, usize),
    Dict(View, Rc<Dict>, usize),
    /// By byte.
    Text(Rc<Text>, usize),
    Range(Rc<Range>, usize),
    Iterator(Rc<RefCell<Iterator>>),
    Empty,
}

/// State of a `for` statement while it runs.
#[derive(Debug)]
pub(super) struct Loop {
    pub source: RefCell<Source>,
    /// Statement and its scope; removed once it has ended.
    pub of: RefCell<Option<(Arc<ast::For>, Rc<Scope>)>>,
    /// Number of turns begun, less one.
    pub index0: Cell<i64>,
    pub length: Cell<Option<i64>>,
    /// True if the remaining items have already passed the loop's `if`.
    pub has_passed: Cell<bool>,
    /// Item of the next turn, if it was fetched ahead.
    pub after: RefCell<Option<Value>>,
    pub current: RefCell<Option<Value>>,
    pub before: RefCell<Option<Value>>,
    /// Arguments of the last call of `changed`.
    pub last: RefCell<Option<Value>>,
    /// Number of recursive calls that led to this loop.
    pub depth0: i64,
    /// Levels of the items, and this.
    pub depth: usize,
}

/// Variables of one frame: the template, a turn of a loop, a macro, a block.
#[derive(Debug)]
pub(super) struct Scope {
    pub variables: RefCell<Vec<(ast::Name, Value)>>,
    /// Names that are not looked up outside, sorted.
    pub hidden: Arc<[ast::Name]>,
    /// True if the turn of a loop or the block that it belongs to is over.
    pub is_over: Cell<bool>,
    pub parent: Option<Rc<Scope>>,
}

/// A value that may be a key.
#[derive(Debug, Clone)]
pub(super) struct Key(Value);

impl Key {
    /// # Errors
    /// When the value may change, so that Python takes it for no key.
    pub fn new(meter: &Meter, value: &Value) -> Outcome<Self> {
        meter.spend(3)?;
        match value {
            Value::Tuple(tuple) => {
                if tuple.size > 1000 {
                    return Err(Failure::template("a key has more than 1000 values"));
                }
                tuple.items.iter().try_for_each(|item| Self::new(meter, item).map(drop))?;
            }
            Value::Text(text) => meter.scan(text.text.len())?,
            Value::Undefined(_)
            | Value::None
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Big(_)
            | Value::Float(_) => {}
            Value::List(_) | Value::Dict(_) | Value::View(..) => {
                return Err(Failure::new(format!("unhashable type: '{}'", value.kind())));
            }
            _ => return Err(Failure::refused(&format!("a {} as a key", value.kind()))),
        }
        Ok(Self(value.clone()))
    }

    pub fn value(&self) -> &Value {
        &self.0
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Value::Text(a), Value::Text(b)) => a.text == b.text,
            (Value::Tuple(a), Value::Tuple(b)) => {
                let pairs = || a.items.iter().zip(&b.items);
                a.items.len() == b.items.len() && pairs().all(|(a, b)| Self(a.clone()) == Self(b.clone()))
            }
            (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
            (a, b) => super::number::compare(a, b).is_some_and(std::cmp::Ordering::is_eq),
        }
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match &self.0 {
            Value::Text(text) => text.text.hash(state),
            Value::Tuple(tuple) => tuple.items.iter().for_each(|item| Self(item.clone()).hash(state)),
            Value::Bool(b) => i64::from(*b).hash(state),
            Value::Int(i) => i.hash(state),
            // Equal numbers have one hash
            Value::Float(x) => match x.to_i64().filter(|i| *i as f64 == *x) {
                Some(i) => i.hash(state),
                None => x.to_bits().hash(state),
            },
            Value::Big(i) => i.to_f64().unwrap_or(f64::INFINITY).to_bits().hash(state),
            _ => state.write_u8(0),
        }
    }
}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(&key.0, Value::Text(text) if text.text == self)
    }
}

impl Value {
    pub fn undefined(message: impl Into<String>) -> Self {
        Self::Undefined(Rc::new(message.into()))
    }

    /// Creates a whole number of any size.
    pub fn int(number: BigInt) -> Outcome<Self> {
        match number.to_i64() {
            Some(small) => Ok(Self::Int(small)),
            None if number.bits() > BITS => Err(Failure::template(format!("a number has over {BITS} bits"))),
            None => Ok(Self::Big(Rc::new(number))),
        }
    }

    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(&text.text) } else { None }
    }

    /// Returns the mapping whose `items` are wanted.
    ///
    /// # Errors
    /// When it is none.
    pub fn as_dict(&self) -> Outcome<&Rc<Dict>> {
        match self {
            Self::Dict(dict) => Ok(dict),
            Self::Undefined(message) => Err(Failure::new(message.as_str())),
            other => Err(Failure::new(format!("'{}' object has no attribute 'items'", other.kind()))),
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Returns the whole number that it is, clamped to 64 bits; truth values are 0 and 1.
    pub fn index(&self) -> Option<i64> {
        match self {
            Self::Bool(b) => Some(i64::from(*b)),
            Self::Int(i) => Some(*i),
            Self::Big(i) => Some(if i.sign() == num_bigint::Sign::Minus { i64::MIN } else { i64::MAX }),
            _ => None,
        }
    }

    /// Returns the name of its type in Python.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Big(_) => "int",
            Self::Float(_) => "float",
            Self::Text(text) if text.is_safe => "Markup",
            Self::Text(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(view, _) => view.kind(),
            Self::Range(_) => "range",
            Self::Iterator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Object(object) => match &**object {
                Object::Cycler { .. } => "Cycler",
                Object::Joiner { .. } => "Joiner",
                Object::Loop(_) => "LoopContext",
                Object::Macro { .. } => "Macro",
                Object::Method(..) => "method",
                Object::Function(_) => "function",
            },
        }
    }

    /// Returns true if neither it nor what it holds has a state.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::List(list) | Self::Tuple(list) => list.is_plain,
            Self::Dict(dict) | Self::View(_, dict) => dict.is_plain,
            Self::Iterator(_) | Self::Object(_) => false,
            _ => true,
        }
    }

    /// Returns how many levels it nests, so that nothing that descends into it goes too deep.
    pub fn depth(&self) -> usize {
        match self {
            Self::List(list) | Self::Tuple(list) => list.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Iterator(iterator) => iterator.borrow().depth,
            Self::Object(object) => match &**object {
                Object::Cycler { items, .. } => 1 + items.depth,
                Object::Loop(of) => of.depth,
                Object::Method(value, _) => 1 + value.depth(),
                Object::Joiner { separator, .. } => 1 + separator.depth(),
                Object::Macro { .. } | Object::Function(_) => 1,
            },
            _ => 0,
        }
    }
}
