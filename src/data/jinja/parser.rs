//! The tokens of a template one after the other, and the names among them.

use std::collections::HashMap;
use std::sync::Arc;

use super::ast::{Name, Program, Uses};
use super::lexer::{Token, tokens};
use super::meter::{Failure, NESTING, Outcome, TEMPLATE_BYTES};
use super::symbols;

/// Names that are constants, which no one can assign to.
pub(super) const CONSTANTS: [&str; 6] = ["true", "false", "none", "True", "False", "None"];

pub(super) struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    pub names: Vec<String>,
    known: HashMap<String, Name>,
    pub texts: Vec<String>,
    nesting: usize,
    /// Special names mentioned by each open macro.
    pub macros: Vec<Uses>,
    /// Number of open loops in the innermost macro.
    pub loops: usize,
    /// Number of open loops in all.
    pub all_loops: usize,
    pub has_marks: bool,
}

impl Program {
    /// Parses a template.
    ///
    /// # Errors
    /// Says which line is wrong, or what Jinja2 has and this has not.
    pub fn parse(source: &str) -> Outcome<Self> {
        if source.len() > TEMPLATE_BYTES {
            let length = source.len();
            return Err(Failure::template(format!(
                "the template has {length} bytes, the most are {TEMPLATE_BYTES}"
            )));
        }
        let mut parser = Parser {
            tokens: tokens(source)?,
            at: 0,
            names: Vec::new(),
            known: HashMap::new(),
            texts: Vec::new(),
            nesting: 0,
            macros: Vec::new(),
            loops: 0,
            all_loops: 0,
            has_marks: false,
        };
        let [loop_name, caller_name, kwargs_name, varargs_name] =
            ["loop", "caller", "kwargs", "varargs"].map(|name| parser.name(name));
        let body = parser.body(&[]).map_err(|failure| failure.at(parser.line()))?;
        let mut program = Self {
            body,
            hidden: Arc::default(),
            nothing: Arc::default(),
            names: parser.names,
            texts: parser.texts,
            loop_name,
            caller_name,
            kwargs_name,
            varargs_name,
            has_marks: parser.has_marks,
        };
        symbols::resolve(&mut program);
        Ok(program)
    }
}

impl Parser {
    pub fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |(line, _)| *line)
    }

    pub fn token(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::Eof, |(_, token)| token)
    }

    /// Returns the token after the next one.
    pub fn after(&self) -> &Token {
        self.tokens.get(self.at + 1).map_or(&Token::Eof, |(_, token)| token)
    }

    pub fn pass(&mut self) -> Token {
        let token = self.token().clone();
        self.at += 1;
        token
    }

    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.token(), Token::Op(found) if *found == op)
    }

    pub fn is_word(&self, word: &str) -> bool {
        matches!(self.token(), Token::Name(found) if found == word)
    }

    pub fn skip_op(&mut self, op: &str) -> bool {
        let is_here = self.is_op(op);
        self.at += usize::from(is_here);
        is_here
    }

    pub fn skip_word(&mut self, word: &str) -> bool {
        let is_here = self.is_word(word);
        self.at += usize::from(is_here);
        is_here
    }

    pub fn expect_op(&mut self, op: &str) -> Outcome<()> {
        if self.skip_op(op) { Ok(()) } else { Err(self.unexpected(&format!("`{op}`"))) }
    }

    pub fn expect_end(&mut self) -> Outcome<()> {
        if *self.token() != Token::End {
            return Err(self.unexpected("the end of the tag"));
        }
        self.at += 1;
        Ok(())
    }

    pub fn expect_name(&mut self) -> Outcome<String> {
        match self.token() {
            Token::Name(name) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub fn unexpected(&self, expected: &str) -> Box<Failure> {
        let found = match self.token() {
            Token::Data(_) | Token::Block | Token::Variable => "text".to_owned(),
            Token::End => "the end of the tag".to_owned(),
            Token::Name(name) => format!("`{}`", name.chars().take(40).collect::<String>()),
            Token::Text(_) => "a text in quotes".to_owned(),
            Token::Int(_) | Token::Float(_) => "a number".to_owned(),
            Token::Op(op) => format!("`{op}`"),
            Token::Eof => "the end of the template".to_owned(),
        };
        Failure::template(format!("expected {expected}, found {found}"))
    }

    /// Returns the place of a name, adding it if it is new.
    pub fn name(&mut self, name: &str) -> Name {
        if let Some(place) = self.known.get(name) {
            return *place;
        }
        let place = self.names.len();
        self.names.push(name.to_owned());
        self.known.insert(name.to_owned(), place);
        place
    }

    /// Returns the place of a name whose value is wanted, noting it for open macros.
    pub fn mention(&mut self, name: &str) -> Name {
        for uses in &mut self.macros {
            match name {
                "caller" => uses.caller = true,
                "kwargs" => uses.kwargs = true,
                "varargs" => uses.varargs = true,
                _ => {}
            }
        }
        self.name(name)
    }

    /// Parses something one level deeper.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Outcome<T>) -> Outcome<T> {
        if self.nesting >= NESTING {
            return Err(Failure::template(format!(
                "the template nests more than {NESTING} tags and brackets"
            )));
        }
        self.nesting += 1;
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }
}
