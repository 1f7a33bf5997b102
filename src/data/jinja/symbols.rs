//! Names that a frame hides, as Jinja2 decides it before a template runs (`idtracking.py`).
//!
//! A name whose first use in a frame, in the order of the text, sets it, and that no frame outside knows, means nothing
//! until then, though the conversation may know it. Set under an `if` alone, it means what the conversation says.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ast::{Arguments, Block, Expr, Link, Name, Node, Program, Stmt, Target};

/// Finds the names that all frames of a template hide.
pub(super) fn resolve(program: &mut Program) {
    let mut symbols = Symbols {
        outer: Vec::new(),
        layers: Vec::new(),
        special: [program.caller_name, program.kwargs_name, program.varargs_name],
        loop_name: program.loop_name,
    };
    program.hidden = symbols.frame(&mut program.body, |_| {}, |_| {});
}

/// Names as known to a frame, or to a branch of it.
#[derive(Default)]
struct Layer {
    /// Names that are known, and whether they are hidden.
    known: HashMap<Name, bool>,
    stored: HashSet<Name>,
}

struct Symbols {
    /// Names known in the frames outside.
    outer: Vec<HashMap<Name, bool>>,
    /// Current frame, and the branches in it.
    layers: Vec<Layer>,
    special: [Name; 3],
    loop_name: Name,
}

impl Symbols {
    fn is_known(&self, name: Name) -> bool {
        self.layers.iter().any(|layer| layer.known.contains_key(&name))
    }

    fn is_known_outside(&self, name: Name) -> bool {
        self.outer.iter().any(|known| known.contains_key(&name))
    }

    fn know(&mut self, name: Name, is_hidden: bool) {
        if let Some(layer) = self.layers.last_mut() {
            layer.known.insert(name, is_hidden);
        }
    }

    fn load(&mut self, name: Name) {
        if !self.is_known(name) && !self.is_known_outside(name) {
            self.know(name, false);
        }
    }

    fn store(&mut self, name: Name) {
        if let Some(layer) = self.layers.last_mut() {
            layer.stored.insert(name);
        }
        if !self.is_known(name) {
            self.know(name, !self.is_known_outside(name));
        }
    }

    fn parameter(&mut self, name: Name) {
        self.store(name);
        self.know(name, true);
    }

    /// Visits a frame, with what comes before and after its statements, then the frames inside of it.
    fn frame(
        &mut self,
        body: &mut [Stmt],
        before: impl FnOnce(&mut Self),
        after: impl FnOnce(&mut Self),
    ) -> Arc<[Name]> {
        let layers = std::mem::replace(&mut self.layers, vec![Layer::default()]);
        before(self);
        self.visit_all(body);
        after(self);
        let known = self.layers.pop().unwrap_or_default().known;
        let mut hidden: Vec<Name> =
            known.iter().filter(|(_, hides)| **hides).map(|(name, _)| *name).collect();
        hidden.sort_unstable();
        self.outer.push(known);
        self.frames_in(body);
        self.outer.pop();
        self.layers = layers;
        hidden.into()
    }

    /// Visits the frames inside of this one.
    fn frames_in(&mut self, body: &mut [Stmt]) {
        for stmt in body {
            match &mut stmt.node {
                Node::If(branches, otherwise) => {
                    branches.iter_mut().for_each(|(_, body)| self.frames_in(body));
                    self.frames_in(otherwise);
                }
                Node::For(of) => {
                    if let Some(of) = Arc::get_mut(of) {
                        let (target, loop_name) = (&of.target, self.loop_name);
                        of.body.hidden = self.frame(
                            &mut of.body.body,
                            |symbols| {
                                symbols.parameter(loop_name);
                                symbols.visit_target(target, Self::parameter);
                            },
                            |_| {},
                        );
                        self.block(&mut of.otherwise, |_| {});
                    }
                }
                Node::SetBlock(_, _, block) | Node::Generation(block) => self.block(block, |_| {}),
                Node::With(values, block) => self.block(block, |symbols| {
                    values.iter().for_each(|(target, _)| symbols.visit_target(target, Self::parameter));
                }),
                Node::Filter(filters, block) => {
                    block.hidden =
                        self.frame(&mut block.body, |_| {}, |symbols| symbols.visit_links(filters));
                }
                Node::Macro(of) | Node::Call(of, _) => {
                    if let Some(of) = Arc::get_mut(of) {
                        let (parameters, defaults, uses) = (&of.parameters, &of.defaults, of.uses);
                        self.block(&mut of.body, |symbols| {
                            let special =
                                symbols.special.into_iter().zip([uses.caller, uses.kwargs, uses.varargs]);
                            let used = special.filter(|(_, is_used)| *is_used).map(|(name, _)| name);
                            used.chain(parameters.iter().copied()).for_each(|name| symbols.parameter(name));
                            defaults.iter().for_each(|default| symbols.visit_expr(default));
                        });
                    }
                }
                Node::Data(_) | Node::Print(_) | Node::Set(..) | Node::Break | Node::Continue => {}
            }
        }
    }

    fn block(&mut self, block: &mut Block, before: impl FnOnce(&mut Self)) {
        block.hidden = self.frame(&mut block.body, before, |_| {});
    }

    fn visit_all(&mut self, body: &[Stmt]) {
        for stmt in body {
            self.visit(&stmt.node);
        }
    }

    fn visit(&mut self, node: &Node) {
        match node {
            Node::Print(values) => values.iter().for_each(|value| self.visit_expr(value)),
            Node::If(branches, otherwise) => self.visit_if(branches, otherwise),
            Node::For(of) => self.visit_expr(&of.items),
            Node::Set(target, value) => {
                self.visit_expr(value);
                self.visit_target(target, Self::store);
            }
            Node::SetBlock(target, ..) => self.visit_target(target, Self::store),
            Node::With(values, _) => values.iter().for_each(|(_, value)| self.visit_expr(value)),
            Node::Filter(filters, _) => self.visit_links(filters),
            Node::Macro(of) => of.name.into_iter().for_each(|name| self.store(name)),
            Node::Call(_, call) => self.visit_expr(call),
            Node::Data(_) | Node::Generation(_) | Node::Break | Node::Continue => {}
        }
    }

    /// Visits branches: each begins with what was known before, and what one sets is not hidden afterwards.
    fn visit_if(&mut self, branches: &[(Expr, Vec<Stmt>)], otherwise: &[Stmt]) {
        let Some(((test, body), elifs)) = branches.split_first() else { return };
        self.visit_expr(test);
        let layers = [
            self.branch(|symbols| symbols.visit_all(body)),
            self.branch(|symbols| {
                elifs.iter().for_each(|branch| symbols.visit_if(std::slice::from_ref(branch), &[]))
            }),
            self.branch(|symbols| symbols.visit_all(otherwise)),
        ];
        for layer in layers {
            let stored: Vec<Name> =
                layer.stored.iter().copied().filter(|name| !self.has_stored(*name)).collect();
            if let Some(own) = self.layers.last_mut() {
                own.known.extend(layer.known);
                own.stored.extend(layer.stored);
                own.known.extend(stored.into_iter().map(|name| (name, false)));
            }
        }
    }

    fn has_stored(&self, name: Name) -> bool {
        self.layers.iter().any(|layer| layer.stored.contains(&name))
    }

    fn branch(&mut self, visit: impl FnOnce(&mut Self)) -> Layer {
        self.layers.push(Layer::default());
        visit(self);
        self.layers.pop().unwrap_or_default()
    }

    /// Visits a target, whose names are those of parameters or are stored.
    fn visit_target(&mut self, target: &Target, note: fn(&mut Self, Name)) {
        match target {
            Target::Name(name) => note(self, *name),
            Target::Attribute(name, _) => self.load(*name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.visit_target(target, note)),
        }
    }

    fn visit_expr(&mut self, expr: &Expr) {
        let mut all = |list: &[Expr]| list.iter().for_each(|expr| self.visit_expr(expr));
        match expr {
            Expr::Name(name) => self.load(*name),
            Expr::List(list) | Expr::Tuple(list) | Expr::Concat(list) | Expr::And(list) | Expr::Or(list) => {
                all(list)
            }
            Expr::Dict(items) => items.iter().for_each(|(key, value)| {
                self.visit_expr(key);
                self.visit_expr(value);
            }),
            Expr::Not(of) | Expr::Sign(_, of) => self.visit_expr(of),
            Expr::Binary(first, rest) => {
                self.visit_expr(first);
                rest.iter().for_each(|(_, expr)| self.visit_expr(expr));
            }
            Expr::Compare(first, rest) => {
                self.visit_expr(first);
                rest.iter().for_each(|(_, expr)| self.visit_expr(expr));
            }
            Expr::If(of) => {
                self.visit_expr(&of.test);
                self.visit_expr(&of.then);
                of.otherwise.iter().for_each(|expr| self.visit_expr(expr));
            }
            Expr::Chain(first, links) => {
                self.visit_expr(first);
                self.visit_links(links);
            }
            Expr::None | Expr::Bool(_) | Expr::Int(_) | Expr::Big(_) | Expr::Float(_) | Expr::Text(_) => {}
        }
    }

    fn visit_links(&mut self, links: &[Link]) {
        for link in links {
            match link {
                Link::Attribute(_) => {}
                Link::Item(key) => self.visit_expr(key),
                Link::Slice(bounds) => bounds.iter().flatten().for_each(|bound| self.visit_expr(bound)),
                Link::Call(of) | Link::Filter(_, of) | Link::Test(_, of, _) => self.visit_arguments(of),
            }
        }
    }

    fn visit_arguments(&mut self, of: &Arguments) {
        of.positional.iter().for_each(|expr| self.visit_expr(expr));
        of.named.iter().for_each(|(_, expr)| self.visit_expr(expr));
        of.list.iter().chain(&of.dict).for_each(|expr| self.visit_expr(expr));
    }
}
