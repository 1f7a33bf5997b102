//! Parses tokens into statements, by the grammar of Jinja2's parser.

use std::sync::Arc;

use super::ast::{Block, Expr, For, Link, Macro, Name, Node, Stmt, Target, Uses};
use super::lexer::Token;
use super::meter::{Failure, Outcome};
use super::parser::{CONSTANTS, Parser};

impl Parser {
    /// Parses statements up to a tag of these names, whose name comes next.
    pub fn body(&mut self, ends: &[&str]) -> Outcome<Vec<Stmt>> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.pass() {
                Token::Data(text) => body.push(Stmt { line, node: Node::Data(text) }),
                Token::Variable => {
                    let value = self.tuple(true, &[]).map_err(|failure| failure.at(line))?;
                    self.expect_end()?;
                    body.push(Stmt { line, node: Node::Print(vec![value]) });
                }
                Token::Block => {
                    let Token::Name(tag) = self.token().clone() else {
                        return Err(self.unexpected("the name of a tag"));
                    };
                    if ends.contains(&tag.as_str()) {
                        return Ok(body);
                    }
                    self.pass();
                    let node = self.deeper(|parser| parser.statement(&tag, ends));
                    body.push(Stmt { line, node: node.map_err(|failure| failure.at(line))? });
                    self.expect_end()?;
                }
                _ if ends.is_empty() => return Ok(body),
                _ => {
                    return Err(Failure::template(format!(
                        "expected `{{% {} %}}`",
                        ends.join(" %}` or `{% ")
                    )));
                }
            }
        }
    }

    /// Parses the body of a tag up to its end, and the name of that end.
    fn inside(&mut self, ends: &[&str]) -> Outcome<(Vec<Stmt>, String)> {
        self.skip_op(":");
        self.expect_end()?;
        let body = self.body(ends)?;
        Ok((body, self.expect_name()?))
    }

    fn block(&mut self, end: &str) -> Outcome<Block> {
        let (body, _) = self.inside(&[end])?;
        Ok(Block { body, hidden: Arc::default() })
    }

    fn statement(&mut self, tag: &str, ends: &[&str]) -> Outcome<Node> {
        match tag {
            "if" => self.conditional(),
            "for" => self.for_loop(),
            "set" => self.set(),
            "print" => Ok(Node::Print(self.listed(Self::expression)?)),
            "with" => {
                let values = self.listed(|parser| {
                    let target = parser.target(false, &[])?;
                    parser.expect_op("=")?;
                    Ok((target, parser.expression()?))
                })?;
                Ok(Node::With(values, self.block("endwith")?))
            }
            "filter" => {
                let first = self.filter_link()?;
                let filters = self.filter_links(vec![first])?;
                Ok(Node::Filter(filters, self.block("endfilter")?))
            }
            "macro" => {
                let name = self.expect_name()?;
                let name = self.store(&name)?;
                self.macro_body(Some(name), "endmacro").map(|of| Node::Macro(Arc::new(of)))
            }
            "call" => self.call_block(),
            "generation" => self.generation(),
            "break" | "continue" if self.loops == 0 => {
                Err(Failure::template(format!("`{tag}` is outside of a loop")))
            }
            "break" => Ok(Node::Break),
            "continue" => Ok(Node::Continue),
            "block" | "extends" | "include" | "import" | "from" | "autoescape" => {
                Err(Failure::refused(&format!("`{{% {tag} %}}`")))
            }
            tag => {
                let tag: String = tag.chars().take(40).collect();
                let looks = if ends.is_empty() {
                    String::new()
                } else {
                    format!("; `{}` is open", ends.join("`, `"))
                };
                Err(Failure::template(format!("unknown tag `{tag}`{looks}")))
            }
        }
    }

    fn generation(&mut self) -> Outcome<Node> {
        self.has_marks = true;
        let (loops, before) = (std::mem::take(&mut self.loops), self.macros.clone());
        self.macros.push(Uses::default());
        let block = self.block("endgeneration")?;
        let uses = self.macros.pop().unwrap_or_default();
        if uses.caller || uses.kwargs || uses.varargs {
            return Err(Failure::refused("`caller`, `kwargs` or `varargs` in `{% generation %}`"));
        }
        (self.loops, self.macros) = (loops, before);
        Ok(Node::Generation(block))
    }

    /// Parses items between commas up to the end of a tag.
    fn listed<T>(&mut self, parse: impl Fn(&mut Self) -> Outcome<T>) -> Outcome<Vec<T>> {
        let mut found = Vec::new();
        while *self.token() != Token::End && !self.is_op(":") {
            if !found.is_empty() {
                self.expect_op(",")?;
            }
            found.push(parse(self)?);
        }
        Ok(found)
    }

    fn conditional(&mut self) -> Outcome<Node> {
        let (mut branches, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            let test = self.tuple(false, &[])?;
            let (body, end) = self.inside(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end.as_str() {
                "elif" => {}
                "else" => {
                    otherwise = self.inside(&["endif"])?.0;
                    break;
                }
                _ => break,
            }
        }
        Ok(Node::If(branches, otherwise))
    }

    fn for_loop(&mut self) -> Outcome<Node> {
        self.loops += 1;
        self.all_loops += 1;
        let target = self.target(false, &["in"])?;
        if !self.skip_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let items = self.tuple(false, &["recursive"])?;
        let test = if self.skip_word("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_word("recursive");
        let (body, end) = self.inside(&["endfor", "else"])?;
        self.loops -= 1;
        let otherwise = if end == "else" { self.inside(&["endfor"])?.0 } else { Vec::new() };
        self.all_loops -= 1;
        let [body, otherwise] = [body, otherwise].map(|body| Block { body, hidden: Arc::default() });
        Ok(Node::For(Arc::new(For { target, items, test, body, otherwise, recursive })))
    }

    fn set(&mut self) -> Outcome<Node> {
        let target = self.target(true, &[])?;
        if self.skip_op("=") {
            return Ok(Node::Set(target, self.tuple(true, &[])?));
        }
        let filters = self.filter_links(Vec::new())?;
        Ok(Node::SetBlock(target, filters, self.block("endset")?))
    }

    fn call_block(&mut self) -> Outcome<Node> {
        // The parameters stand before the call, the body after it
        let (parameters, defaults) = if self.is_op("(") { self.signature()? } else { Default::default() };
        let call = self.expression()?;
        let is_call = matches!(&call, Expr::Chain(_, links) if matches!(links.last(), Some(Link::Call(_))));
        if !is_call {
            return Err(Failure::template("expected a call"));
        }
        let of = self.macro_rest(None, (parameters, defaults), "endcall")?;
        Ok(Node::Call(Arc::new(of), call))
    }

    fn macro_body(&mut self, name: Option<Name>, end: &str) -> Outcome<Macro> {
        let signature = self.signature()?;
        self.macro_rest(name, signature, end)
    }

    fn macro_rest(
        &mut self,
        name: Option<Name>,
        (parameters, defaults): (Vec<Name>, Vec<Expr>),
        end: &str,
    ) -> Outcome<Macro> {
        let loops = std::mem::take(&mut self.loops);
        self.macros.push(Uses::default());
        let body = self.block(end)?;
        let mut uses = self.macros.pop().unwrap_or_default();
        self.loops = loops;
        let [caller, kwargs, varargs] = ["caller", "kwargs", "varargs"].map(|name| self.name(name));
        let place = parameters.iter().position(|name| *name == caller);
        if uses.caller && place.is_some_and(|place| place + defaults.len() < parameters.len()) {
            let message = "the parameter `caller` of a macro must have a default, or be left out";
            return Err(Failure::template(message));
        }
        uses.kwargs &= !parameters.contains(&kwargs);
        uses.varargs &= !parameters.contains(&varargs);
        Ok(Macro { name, parameters, defaults, body, uses })
    }

    fn signature(&mut self) -> Outcome<(Vec<Name>, Vec<Expr>)> {
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.expect_name()?;
            let name = self.store(&name)?;
            if parameters.contains(&name) {
                return Err(Failure::template(format!("two parameters `{}`", self.names[name])));
            }
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Err(Failure::template("non-default argument follows default argument"));
            }
            parameters.push(name);
        }
        self.expect_op(")")?;
        Ok((parameters, defaults))
    }

    /// Checks a name that is assigned to, and returns its place.
    fn store(&mut self, name: &str) -> Outcome<Name> {
        if CONSTANTS.contains(&name) {
            return Err(Failure::template(format!("can't assign to `{name}`")));
        }
        if name == "loop" && self.all_loops > 0 {
            return Err(Failure::template("can't assign to special loop variable in for-loop"));
        }
        Ok(self.name(name))
    }

    /// Parses the target of an assignment, up to one of these words.
    fn target(&mut self, has_attributes: bool, ends: &[&str]) -> Outcome<Target> {
        let (mut targets, is_tuple) =
            self.between_commas(ends, |parser| parser.one_target(has_attributes))?;
        match targets.pop() {
            Some(only) if !is_tuple => Ok(only),
            None => Err(self.unexpected("what is assigned to")),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, has_attributes: bool) -> Outcome<Target> {
        if self.skip_op("(") {
            let target = self.deeper(|parser| parser.target(false, &[]))?;
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.expect_name()?;
        if has_attributes && !CONSTANTS.contains(&name.as_str()) && self.skip_op(".") {
            return Ok(Target::Attribute(self.mention(&name), self.expect_name()?));
        }
        self.store(&name).map(Target::Name)
    }
}
