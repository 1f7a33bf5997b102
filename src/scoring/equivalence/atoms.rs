//! Numbers, brackets, commands and functions: what the reader takes as one value.

use num_bigint::BigInt;
use num_rational::Ratio;

use super::expression::{Expression as E, Function, Rational};
use super::read::{ROW, Reader, product_of};

impl Reader {
    pub(super) fn group(&mut self, open: char) -> Option<E> {
        self.place += 1;
        let bars = std::mem::take(&mut self.bars);
        let mut parts = self.parts()?;
        self.bars = bars;
        let close = if self.take(")") {
            ')'
        } else if self.take("]") {
            ']'
        } else {
            return None;
        };
        let brackets = (open == '(' && close == ')') || (open == '[' && close == ']');
        if parts.len() == 1 && brackets && (parts[0].is_scalar() || matches!(parts[0], E::Matrix(_))) {
            return parts.pop();
        }
        Some(E::Group(open, parts, close))
    }

    fn digits(&mut self) -> String {
        let start = self.place;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.place += 1;
        }
        self.text[start..self.place].iter().collect()
    }

    /// `1234.5`, `1,234`, `1 234`, `.5`, `3.\overline{6}`.
    pub(super) fn number(&mut self) -> Option<E> {
        let mut whole = self.digits();
        // Groups of exactly three digits after a comma or a space belong to the number.
        while !whole.is_empty() && self.peek().is_some_and(|c| c == ',' || c == ' ') {
            let group = &self.text[self.place + 1..];
            let three = group.iter().take_while(|c| c.is_ascii_digit()).count() == 3;
            if !three
                || whole.trim_start_matches('0').is_empty()
                || whole.len().is_multiple_of(3) && !self.grouped(&whole)
            {
                break;
            }
            self.place += 1;
            whole.push_str(&self.digits());
        }
        let decimal =
            self.peek() == Some('.') && self.text.get(self.place + 1).is_some_and(char::is_ascii_digit);
        if !decimal {
            if self.peek() == Some('.') && whole.is_empty() {
                return None;
            }
            return Some(E::Number(Rational::from_integer(whole.parse().ok()?), false));
        }
        self.place += 1;
        let fraction = self.digits();
        let digits: BigInt = format!("{whole}{fraction}").parse().ok()?;
        Some(E::Number(Ratio::new(digits, BigInt::from(10).pow(u32::try_from(fraction.len()).ok()?)), true))
    }

    /// Whether the digits so far may be followed by another group: one to three, or groups already.
    fn grouped(&self, whole: &str) -> bool {
        whole.len() <= 3
            || self.text[..self.place].iter().rev().nth(3).is_some_and(|c| *c == ',' || *c == ' ')
    }

    pub(super) fn command(&mut self) -> Option<E> {
        const SIMPLE: [(&str, E); 3] = [("\\pi", E::Pi), ("\\infty", E::Infinity), ("\\imath", E::Imaginary)];
        for (name, value) in SIMPLE {
            if self.take(name) {
                return Some(value);
            }
        }
        if self.take("\\frac") {
            let above = self.argument()?;
            return Some(above.over(self.argument()?));
        }
        if self.take("\\sqrt") {
            let root = if self.take("[") {
                let root = self.sum()?;
                self.take("]").then_some(root)?
            } else {
                E::whole(2)
            };
            return Some(E::Power(Box::new(self.argument()?), Box::new(E::whole(1).over(root))));
        }
        if self.take("\\binom") {
            return Some(E::Call(Function::Binomial, vec![self.argument()?, self.argument()?]));
        }
        if self.take("\\{") {
            if self.take("\\}") {
                return Some(E::Set(Vec::new()));
            }
            let parts = self.parts()?;
            return self.take("\\}").then_some(E::Set(parts));
        }
        if self.take("\\emptyset") || self.take("\\varnothing") {
            return Some(E::Set(Vec::new()));
        }
        for (open, close, function) in
            [("\\lfloor", "\\rfloor", Function::Floor), ("\\lceil", "\\rceil", Function::Ceil)]
        {
            if self.take(open) {
                let inner = self.sum()?;
                return self.take(close).then(|| E::Call(function, vec![inner]));
            }
        }
        if self.take("\\begin") {
            return self.matrix();
        }
        if self.take("\\text") {
            return self.words();
        }
        self.function().or_else(|| self.name())
    }

    fn matrix(&mut self) -> Option<E> {
        let name = self.braced()?;
        if !(name.ends_with("matrix") || name == "array" || name == "cases") {
            return None;
        }
        if name == "array" {
            self.braced()?;
        }
        let mut rows = vec![vec![self.relation()?]];
        loop {
            if self.take("&") {
                let cell = self.relation()?;
                rows.last_mut()?.push(cell);
            } else if self.take(ROW) {
                if self.next_is("\\end") {
                    continue;
                }
                let cell = self.relation()?;
                rows.push(vec![cell]);
            } else {
                self.take("\\end").then_some(())?;
                self.braced()?;
                return Some(E::Matrix(rows));
            }
        }
    }

    /// The raw text of `{…}` without braces inside.
    fn braced(&mut self) -> Option<String> {
        self.take("{").then_some(())?;
        let start = self.place;
        while self.peek()? != '}' {
            self.place += 1;
        }
        self.place += 1;
        Some(self.text[start..self.place - 1].iter().collect())
    }

    /// `\text{…}`: a name, in lower case where it is longer than a letter.
    fn words(&mut self) -> Option<E> {
        let words: String =
            self.braced()?.chars().filter(|c| c.is_alphanumeric() || "+-.:".contains(*c)).collect();
        Some(match words.as_str() {
            "i" => E::Imaginary,
            "e" => E::Euler,
            _ if words.chars().count() == 1 => E::Symbol(words),
            _ => E::Symbol(words.to_lowercase()),
        })
    }

    fn function(&mut self) -> Option<E> {
        const FUNCTIONS: [(&str, Function); 18] = [
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
        let function = self.take_any(&FUNCTIONS)?;
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
        let mut factors = vec![self.power()?];
        // `\sin 2x` takes all of `2x`; brackets close the argument.
        let closed = self.text.get(self.place.wrapping_sub(1)).is_some_and(|c| matches!(c, ')' | ']' | '}'));
        while !closed && self.starts_factor() && !self.next_is("(") && !self.starts_function() {
            factors.push(self.power()?);
        }
        let mut arguments = vec![product_of(factors)];
        if function == Function::Log {
            match base {
                Some(base) => arguments.push(base),
                // As in school books, and as Math-Verify reads it; `\ln` is the natural one.
                None => arguments.push(E::whole(10)),
            }
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
            (Some(power), _) => E::Power(Box::new(E::Call(function, arguments)), Box::new(power)),
        })
    }

    pub(super) fn starts_function(&mut self) -> bool {
        ["\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc", "\\ln", "\\log"]
            .iter()
            .any(|name| self.next_is(name))
    }

    /// Any other command of letters is a name: `\theta`; `\overline{AB}` is one with its argument.
    fn name(&mut self) -> Option<E> {
        self.take("\\").then_some(())?;
        let start = self.place;
        while self.peek().is_some_and(|c| c.is_ascii_alphabetic()) {
            self.place += 1;
        }
        let name: String = self.text[start..self.place].iter().collect();
        if name.is_empty() || ["end", "cup", "cap", "in", "right", "left"].contains(&name.as_str()) {
            return None;
        }
        let takes_argument =
            ["overline", "bar", "vec", "hat", "widehat", "mathbb", "angle", "triangle", "boxed"];
        if takes_argument.contains(&name.as_str()) && self.next_is("{") {
            let argument = self.braced()?;
            return Some(E::Symbol(format!("{name} {argument}")));
        }
        Some(E::Symbol(format!("\\{name}")))
    }
}
