//! Syntax tree of a template.

use std::sync::Arc;

use num_bigint::BigInt;

/// A name, by its place in [`Program::names`].
pub(super) type Name = usize;

/// A parsed template.
#[derive(Debug)]
pub(super) struct Program {
    pub body: Vec<Stmt>,
    /// Names that the outermost frame hides; see [`Block::hidden`].
    pub hidden: Arc<[Name]>,
    /// Empty list, for scopes that hide nothing.
    pub nothing: Arc<[Name]>,
    pub names: Vec<String>,
    /// The places of `loop`, `caller`, `kwargs` and `varargs`.
    pub loop_name: Name,
    pub caller_name: Name,
    pub kwargs_name: Name,
    pub varargs_name: Name,
    /// Texts written in expressions.
    pub texts: Vec<String>,
    /// True if it marks what an assistant writes.
    pub has_marks: bool,
}

/// A statement, and the line where it begins.
#[derive(Debug)]
pub(super) struct Stmt {
    pub line: usize,
    pub node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    /// Text outside of all tags.
    Data(String),
    Print(Vec<Expr>),
    /// Tests with their bodies, and the body of `else`.
    If(Vec<(Expr, Vec<Stmt>)>, Vec<Stmt>),
    For(Arc<For>),
    Set(Target, Expr),
    /// Text that is set, through filters.
    SetBlock(Target, Vec<Link>, Block),
    With(Vec<(Target, Expr)>, Block),
    Filter(Vec<Link>, Block),
    Macro(Arc<Macro>),
    /// The body of `caller`, and the call that gets it.
    Call(Arc<Macro>, Expr),
    /// Text of an assistant.
    Generation(Block),
    Break,
    Continue,
}

/// Statements with names of their own.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub body: Vec<Stmt>,
    /// Names that mean nothing here until they are set, whatever they mean outside: those whose first use, in the order
    /// of the text, sets them. Jinja2 decides so for each frame before it runs (`idtracking.py`).
    pub hidden: Arc<[Name]>,
}

#[derive(Debug)]
pub(super) struct For {
    pub target: Target,
    pub items: Expr,
    /// `if` after the items.
    pub test: Option<Expr>,
    pub body: Block,
    /// Body that runs if there are no items.
    pub otherwise: Block,
    pub recursive: bool,
}

#[derive(Debug)]
pub(super) struct Macro {
    /// `None` if it is made by `{% call %}`.
    pub name: Option<Name>,
    pub parameters: Vec<Name>,
    /// Defaults of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Block,
    pub uses: Uses,
}

/// The special names that a macro's body mentions.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Uses {
    pub caller: bool,
    pub kwargs: bool,
    pub varargs: bool,
}

/// Target of an assignment.
#[derive(Debug)]
pub(super) enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attribute(Name, String),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) enum Expr {
    None,
    Bool(bool),
    Int(i64),
    Big(BigInt),
    Float(f64),
    /// By its place in [`Program::texts`].
    Text(usize),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    /// `-` or `+` before a number.
    Sign(Sign, Box<Expr>),
    /// Binary operations of one rank, from the left.
    Binary(Box<Expr>, Vec<(Binary, Expr)>),
    /// `~`.
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Compare, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If(Box<Conditional>),
    /// Expression followed by attributes, calls, filters or tests.
    Chain(Box<Expr>, Vec<Link>),
}

#[derive(Debug)]
pub(super) struct Conditional {
    pub line: usize,
    pub test: Expr,
    pub then: Expr,
    pub otherwise: Option<Expr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Minus,
    Plus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Link {
    Attribute(String),
    Item(Expr),
    Slice([Option<Expr>; 3]),
    Call(Arguments),
    Filter(String, Arguments),
    /// `is`, and whether `not` follows it.
    Test(String, Arguments, bool),
}

#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(String, Expr)>,
    /// `*`.
    pub list: Option<Expr>,
    /// `**`.
    pub dict: Option<Expr>,
}
