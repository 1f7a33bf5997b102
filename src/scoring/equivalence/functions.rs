//! Functions by their names, and what they are taken of.

use super::expression::{Expression as E, Function};
use super::read::{Reader, product_of};

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

impl Reader {
    /// After the name of a function: its base, its exponent and its argument.
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
