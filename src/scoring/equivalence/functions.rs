//! Functions by name, and their arguments.

use std::sync::LazyLock;

use regex::Regex;

use super::expression::{Expression as E, Function};
use super::read::{ExpressionReader, product_of};
use crate::scoring::python::pattern;

pub const FUNCTIONS: [(&str, Function); 19] = [
    ("\\abs", Function::Abs),
    ("\\sinh", Function::Sinh),
    ("\\cosh", Function::Cosh),
    ("\\tanh", Function::Tanh),
    ("\\sin", Function::Sin),
    ("\\cos", Function::Cos),
    ("\\tan", Function::Tan),
    ("\\cot", Function::Cot),
    ("\\sec", Function::Sec),
    ("\\csc", Function::Csc),
    ("\\arcsin", Function::Arcsin),
    ("\\arccos", Function::Arccos),
    ("\\arctan", Function::Arctan),
    ("\\exp", Function::Exp),
    ("\\ln", Function::Ln),
    ("\\log", Function::Log),
    ("\\lg", Function::Log),
    ("\\floor", Function::Floor),
    ("\\ceil", Function::Ceil),
];

/// Letters that are functions before a bracket; other letters are factors there.
const NAMED: [&str; 7] = ["f", "g", "h", "F", "G", "H", "P"];

/// Above and below the line of a derivative, without spaces and braces.
static DERIVED: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(?:d|\\partial)(?:\^\w)?(?:$|[A-Za-z(\\])"));
static DERIVED_BY: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(?:(?:d|\\partial)(?:[A-Za-z]|\\[A-Za-z]+)(?:\^\w)?)+$"));

/// Returns true if a value before a bracket is a function: `f`, `f'`, `f^{-1}`.
pub fn is_function(value: &E) -> bool {
    match value {
        E::Symbol(name) => NAMED.contains(&name.trim_end_matches('\'')),
        E::Power(base, exponent) => {
            matches!(**base, E::Symbol(_)) && is_function(base) && **exponent == E::whole(-1)
        }
        _ => false,
    }
}

impl ExpressionReader {
    /// Reads the arguments in brackets after a function of which only the name is known.
    pub(super) fn applied(&mut self, function: E) -> Option<E> {
        let arguments = match self.group('(')? {
            E::Group('(', parts, ')') => parts,
            only => vec![only],
        };
        Some(E::Call(Function::Named, [function].into_iter().chain(arguments).collect()))
    }

    /// Reads `''`, `^\prime`, `^{\prime\prime}`, as one character for each.
    pub(super) fn primes(&mut self) -> Option<String> {
        let raised = self.take("^");
        let braces = raised && self.take("{");
        let mut primes = String::new();
        while (braces || !raised || primes.is_empty()) && (self.take("'") || (raised && self.take("\\prime")))
        {
            primes.push('\'');
        }
        (!primes.is_empty() && (!braces || self.take("}"))).then_some(primes)
    }

    /// Reads on after `\frac`: a derivative is a name, not a quotient of products with d.
    pub(super) fn derivative(&mut self) -> Option<E> {
        let above = self.inside()?;
        DERIVED.is_match(&above).then_some(())?;
        let mut depth = 0;
        let sum = above.chars().any(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0 && matches!(c, '+' | '-')
        });
        let below = self.inside()?;
        (!sum && DERIVED_BY.is_match(&below)).then(|| E::Symbol(format!("{above}/{below}")))
    }

    /// Reads the text of `{…}` that opens with a d, without spaces, braces and `\text`.
    fn inside(&mut self) -> Option<String> {
        self.take("{").then_some(())?;
        let start = self.place;
        (self.take("d") || self.take("\\partial") || self.take("\\text")).then_some(())?;
        self.place = start;
        let mut depth = 1;
        while depth > 0 {
            depth += match self.peek()? {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            self.place += 1;
        }
        let text: String = self.text[start..self.place - 1].iter().collect();
        Some(
            text.replace("\\text", "").chars().filter(|c| !c.is_whitespace() && !"{}".contains(*c)).collect(),
        )
    }

    /// Reads on after the name of a function: its base, its exponent and its argument.
    pub(super) fn function(&mut self, function: Function) -> Option<E> {
        let mut base = None;
        let mut exponent = None;
        loop {
            if self.take("_") {
                base = Some(self.argument()?);
            } else if self.take("^") {
                exponent = Some(self.argument()?);
            } else {
                break;
            }
        }
        let of_angle = matches!(
            function,
            Function::Sin | Function::Cos | Function::Tan | Function::Cot | Function::Sec | Function::Csc
        );
        let radians = std::mem::replace(&mut self.radians, of_angle);
        let mut factors = vec![self.power()?];
        // `\sin 2x` takes all of `2x`; brackets close the argument.
        let closed = self.text.get(self.place.wrapping_sub(1)).is_some_and(|c| matches!(c, ')' | ']' | '}'));
        while !closed && self.starts_factor() && !self.next_is("(") && !self.starts_function() {
            factors.push(self.power()?);
        }
        self.radians = radians;
        let mut arguments = vec![product_of(factors)];
        if function == Function::Log {
            // As in school books, and as Math-Verify reads it; `\ln` is the natural one.
            arguments.push(base.unwrap_or(E::whole(10)));
        }
        let inverse = match function {
            Function::Sin => Some(Function::Arcsin),
            Function::Cos => Some(Function::Arccos),
            Function::Tan => Some(Function::Arctan),
            _ => None,
        };
        Some(match (exponent, inverse) {
            (None, _) => E::Call(function, arguments),
            (Some(power), Some(inverse)) if power == E::whole(-1) => E::Call(inverse, arguments),
            (Some(power), _) => E::Call(function, arguments).power(power),
        })
    }

    pub(super) fn starts_function(&mut self) -> bool {
        ["\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc", "\\ln", "\\log"]
            .iter()
            .any(|name| self.next_is(name))
    }
}
