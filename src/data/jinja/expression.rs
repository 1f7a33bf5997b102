//! Parses tokens into expressions, by the grammar of Jinja2's parser.

use num_traits::ToPrimitive as _;

use super::ast::{Binary, Compare, Conditional, Expr, Sign};
use super::lexer::Token;
use super::meter::{Failure, NESTING, Outcome};
use super::parser::Parser;

impl Parser {
    pub fn expression(&mut self) -> Outcome<Expr> {
        self.deeper(Self::conditional_expression)
    }

    /// Parses expressions between commas as a tuple; with `has_conditions` they may use `if`.
    pub fn tuple(&mut self, has_conditions: bool, ends: &[&str]) -> Outcome<Expr> {
        self.deeper(|parser| parser.tuple_of(has_conditions, ends, false))
    }

    fn tuple_of(&mut self, has_conditions: bool, ends: &[&str], may_be_empty: bool) -> Outcome<Expr> {
        let item = if has_conditions { Self::conditional_expression } else { Self::or };
        let (mut items, is_tuple) = self.between_commas(ends, item)?;
        match items.pop() {
            Some(only) if !is_tuple => Ok(only),
            None if !may_be_empty => Err(self.unexpected("an expression")),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    /// Parses what stands between commas, up to a bracket or one of these words; returns true if there is a comma.
    pub fn between_commas<T>(
        &mut self,
        ends: &[&str],
        item: impl Fn(&mut Self) -> Outcome<T>,
    ) -> Outcome<(Vec<T>, bool)> {
        let (mut items, mut has_comma) = (Vec::new(), false);
        while *self.token() != Token::End && !self.is_op(")") && !ends.iter().any(|end| self.is_word(end)) {
            items.push(item(self)?);
            if !self.skip_op(",") {
                break;
            }
            has_comma = true;
        }
        Ok((items, has_comma))
    }

    pub fn conditional_expression(&mut self) -> Outcome<Expr> {
        let mut line = self.line();
        let mut then = self.or()?;
        for _ in 0..NESTING {
            if !self.skip_word("if") {
                return Ok(then);
            }
            let test = self.or()?;
            let otherwise =
                if self.skip_word("else") { Some(self.deeper(Self::conditional_expression)?) } else { None };
            then = Expr::If(Box::new(Conditional { line, test, then, otherwise }));
            line = self.line();
        }
        Err(Failure::template(format!("the template nests more than {NESTING} conditions")))
    }

    fn or(&mut self) -> Outcome<Expr> {
        self.several("or", Self::and, Expr::Or)
    }

    fn and(&mut self) -> Outcome<Expr> {
        self.several("and", Self::not, Expr::And)
    }

    fn several(
        &mut self,
        word: &str,
        parse: fn(&mut Self) -> Outcome<Expr>,
        make: fn(Vec<Expr>) -> Expr,
    ) -> Outcome<Expr> {
        let first = parse(self)?;
        if !self.is_word(word) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_word(word) {
            parts.push(parse(self)?);
        }
        Ok(make(parts))
    }

    fn not(&mut self) -> Outcome<Expr> {
        if self.skip_word("not") {
            return Ok(Expr::Not(Box::new(self.deeper(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Outcome<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let op = match self.token() {
                Token::Op("==") => Compare::Eq,
                Token::Op("!=") => Compare::Ne,
                Token::Op("<") => Compare::Lt,
                Token::Op("<=") => Compare::Le,
                Token::Op(">") => Compare::Gt,
                Token::Op(">=") => Compare::Ge,
                Token::Name(name) if name == "in" => Compare::In,
                Token::Name(name) if name == "not" => match self.after() {
                    Token::Name(name) if name == "in" => Compare::NotIn,
                    _ => break,
                },
                _ => break,
            };
            self.pass();
            if op == Compare::NotIn {
                self.pass();
            }
            rest.push((op, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Outcome<Expr> {
        self.operations(&[("+", Binary::Add), ("-", Binary::Sub)], Self::concatenation)
    }

    fn concatenation(&mut self) -> Outcome<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Outcome<Expr> {
        let ops = [("*", Binary::Mul), ("/", Binary::Div), ("//", Binary::FloorDiv), ("%", Binary::Mod)];
        self.operations(&ops, Self::power)
    }

    fn power(&mut self) -> Outcome<Expr> {
        self.operations(&[("**", Binary::Pow)], |parser| parser.unary(true))
    }

    /// Parses operations of one rank, which associate to the left.
    fn operations(&mut self, ops: &[(&str, Binary)], parse: fn(&mut Self) -> Outcome<Expr>) -> Outcome<Expr> {
        let first = parse(self)?;
        let mut rest = Vec::new();
        while let Some((_, op)) = ops.iter().find(|(op, _)| self.is_op(op)) {
            self.pass();
            rest.push((*op, parse(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Binary(Box::new(first), rest) })
    }

    fn unary(&mut self, has_filters: bool) -> Outcome<Expr> {
        let first = if self.skip_op("-") {
            Expr::Sign(Sign::Minus, Box::new(self.deeper(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Sign(Sign::Plus, Box::new(self.deeper(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let mut links = Vec::new();
        while let Some(link) = self.postfix()? {
            links.push(link);
        }
        if has_filters {
            while let Some(link) = self.filter_or_test()? {
                links.push(link);
            }
        }
        Ok(if links.is_empty() { first } else { Expr::Chain(Box::new(first), links) })
    }

    pub fn primary(&mut self) -> Outcome<Expr> {
        Ok(match self.token().clone() {
            Token::Name(name) => {
                self.pass();
                match name.as_str() {
                    "true" | "True" => Expr::Bool(true),
                    "false" | "False" => Expr::Bool(false),
                    "none" | "None" => Expr::None,
                    "self" | "super" => return Err(Failure::refused(&format!("`{name}`"))),
                    name => Expr::Name(self.mention(name)),
                }
            }
            Token::Text(mut text) => {
                self.pass();
                while let Token::Text(more) = self.token() {
                    text.push_str(more);
                    self.pass();
                }
                self.texts.push(text);
                Expr::Text(self.texts.len() - 1)
            }
            Token::Int(number) => {
                self.pass();
                number.to_i64().map_or(Expr::Big(number), Expr::Int)
            }
            Token::Float(number) => {
                self.pass();
                Expr::Float(number)
            }
            Token::Op("(") => {
                self.pass();
                let inner = self.deeper(|parser| parser.tuple_of(true, &[], true))?;
                self.expect_op(")")?;
                inner
            }
            Token::Op("[") => {
                self.pass();
                Expr::List(self.deeper(|parser| parser.items("]", Self::conditional_expression))?)
            }
            Token::Op("{") => {
                self.pass();
                Expr::Dict(self.deeper(|parser| parser.items("}", Self::entry))?)
            }
            _ => return Err(self.unexpected("an expression")),
        })
    }

    fn entry(&mut self) -> Outcome<(Expr, Expr)> {
        let key = self.conditional_expression()?;
        self.expect_op(":")?;
        Ok((key, self.conditional_expression()?))
    }

    /// Parses items between commas, up to a bracket.
    pub fn items<T>(&mut self, end: &str, parse: fn(&mut Self) -> Outcome<T>) -> Outcome<Vec<T>> {
        let mut items = Vec::new();
        while !self.skip_op(end) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.skip_op(end) {
                    break;
                }
            }
            items.push(parse(self)?);
        }
        Ok(items)
    }
}
