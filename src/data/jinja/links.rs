//! Parses what follows an expression: attributes, items, calls, filters and tests.

use num_traits::ToPrimitive as _;

use super::ast::{Arguments, Expr, Link};
use super::lexer::Token;
use super::meter::{Failure, Outcome};
use super::parser::Parser;

impl Parser {
    /// Parses a filter, test or call, if one follows.
    pub fn filter_or_test(&mut self) -> Outcome<Option<Link>> {
        Ok(if self.skip_op("|") {
            Some(self.filter_link()?)
        } else if self.skip_word("is") {
            Some(self.test_link()?)
        } else if self.is_op("(") {
            Some(Link::Call(self.arguments()?))
        } else {
            None
        })
    }

    /// Parses an attribute, item or call, if one follows.
    pub fn postfix(&mut self) -> Outcome<Option<Link>> {
        if self.skip_op(".") {
            let line = self.line();
            return Ok(Some(match self.pass() {
                Token::Name(name) => Link::Attribute(name),
                Token::Int(number) => Link::Item(number.to_i64().map_or(Expr::Big(number), Expr::Int)),
                _ => return Err(Failure::template("expected name or number").at(line)),
            }));
        }
        if self.skip_op("[") {
            let link = self.deeper(Self::subscript)?;
            return Ok(Some(link));
        }
        if self.is_op("(") {
            return Ok(Some(Link::Call(self.arguments()?)));
        }
        Ok(None)
    }

    /// Parses the inside of `[…]` after an expression.
    fn subscript(&mut self) -> Outcome<Link> {
        let mut bounds = [None, None, None];
        let mut place = 0;
        let mut colons = 0;
        loop {
            if self.skip_op(":") {
                colons += 1;
                place += 1;
                if colons > 2 {
                    return Err(self.unexpected("`]`"));
                }
            } else if self.skip_op("]") {
                break;
            } else if self.is_op(",") && colons > 0 {
                return Err(Failure::refused("slices in a tuple"));
            } else if bounds[place].is_some() && self.skip_op(",") {
                let mut items = vec![bounds[0].take().unwrap_or(Expr::None)];
                items.extend(self.items("]", Self::conditional_expression)?);
                return Ok(Link::Item(Expr::Tuple(items)));
            } else if bounds[place].is_none() {
                bounds[place] = Some(self.conditional_expression()?);
            } else {
                return Err(self.unexpected("`]`"));
            }
        }
        match (colons, bounds) {
            (0, [Some(key), ..]) => Ok(Link::Item(key)),
            (0, _) => Ok(Link::Item(Expr::Tuple(Vec::new()))),
            (_, bounds) => Ok(Link::Slice(bounds)),
        }
    }

    pub fn filter_link(&mut self) -> Outcome<Link> {
        let name = self.dotted_name()?;
        let arguments = if self.is_op("(") { self.arguments()? } else { Arguments::default() };
        Ok(Link::Filter(name, arguments))
    }

    /// Parses filters, each after `|`.
    pub fn filter_links(&mut self, mut links: Vec<Link>) -> Outcome<Vec<Link>> {
        while self.skip_op("|") {
            links.push(self.filter_link()?);
        }
        Ok(links)
    }

    fn dotted_name(&mut self) -> Outcome<String> {
        let mut name = self.expect_name()?;
        while self.skip_op(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name)
    }

    fn test_link(&mut self) -> Outcome<Link> {
        let is_not = self.skip_word("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        let begins_value = match self.token() {
            Token::Name(word) => {
                if word == "is" {
                    return Err(Failure::template("You cannot chain multiple tests with is"));
                }
                !["else", "or", "and"].contains(&word.as_str())
            }
            Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => true,
            _ => false,
        };
        if self.is_op("(") {
            arguments = self.arguments()?;
        } else if begins_value {
            let first = self.deeper(Self::primary)?;
            let mut links = Vec::new();
            while let Some(link) = self.postfix()? {
                links.push(link);
            }
            let value = if links.is_empty() { first } else { Expr::Chain(Box::new(first), links) };
            arguments.positional.push(value);
        }
        Ok(Link::Test(name, arguments, is_not))
    }

    fn arguments(&mut self) -> Outcome<Arguments> {
        self.expect_op("(")?;
        self.deeper(Self::arguments_inside)
    }

    fn arguments_inside(&mut self) -> Outcome<Arguments> {
        let wrong = || Failure::template("invalid syntax for function call expression");
        let mut found = Arguments::default();
        let mut is_first = true;
        while !self.skip_op(")") {
            if !std::mem::take(&mut is_first) {
                self.expect_op(",")?;
                if self.skip_op(")") {
                    break;
                }
            }
            if self.skip_op("*") {
                if found.list.is_some() || found.dict.is_some() {
                    return Err(wrong());
                }
                found.list = Some(self.conditional_expression()?);
            } else if self.skip_op("**") {
                if found.dict.is_some() {
                    return Err(wrong());
                }
                found.dict = Some(self.conditional_expression()?);
            } else if let (Token::Name(name), Token::Op("=")) = (self.token().clone(), self.after()) {
                if found.dict.is_some() || found.named.iter().any(|(known, _)| *known == name) {
                    return Err(wrong());
                }
                self.pass();
                self.pass();
                found.named.push((name, self.conditional_expression()?));
            } else {
                if found.list.is_some() || found.dict.is_some() || !found.named.is_empty() {
                    return Err(wrong());
                }
                found.positional.push(self.conditional_expression()?);
            }
        }
        Ok(found)
    }
}
