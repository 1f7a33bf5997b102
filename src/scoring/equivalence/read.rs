//! The reader of LaTeX answers: recursive descent over characters, bounded in length and depth.

use super::expression::{Expression as E, Function};
use super::functions::is_function;

/// Maximum nesting of brackets.
pub const DEEPEST: usize = 48;
/// Maximum number of exponents, factorial and percent signs after one value.
const MOST_POSTFIXES: usize = 8;

/// Separator between two rows of a matrix after cleaning.
pub const ROW: &str = "\u{1}";
/// The words `and` and `or` after cleaning.
pub const AND: &str = "\u{2}";
pub const OR: &str = "\u{3}";
/// A comma in braces after cleaning: before three digits it groups them, else it is a decimal comma.
pub const COMMA: char = '\u{4}';

/// Reads a cleaned answer; `None` if it is not one, or if anything is left over.
pub fn read(text: &str) -> Option<E> {
    let mut reader = ExpressionReader {
        text: text.chars().collect(),
        place: 0,
        depth: 0,
        bars: 0,
        decimal_comma: false,
        radians: false,
    };
    reader.decimal_comma = reader.has_semicolon();
    let answer = reader.list()?;
    reader.skip_spaces();
    (reader.place == reader.text.len()).then_some(answer)
}

/// ExpressionReader at a place in a text.
pub struct ExpressionReader {
    pub(super) text: Vec<char>,
    pub(super) place: usize,
    pub(super) depth: usize,
    /// Number of `|` open in the innermost brackets.
    pub(super) bars: usize,
    /// True if a comma between two digits is a decimal one here.
    pub(super) decimal_comma: bool,
    /// True if degrees are turned into radians here: in the argument of a sine or the like.
    pub(super) radians: bool,
}

impl ExpressionReader {
    pub(super) fn peek(&self) -> Option<char> {
        self.text.get(self.place).copied()
    }

    pub(super) fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.place += 1;
        }
    }

    pub(super) fn next_is(&mut self, wanted: &str) -> bool {
        self.skip_spaces();
        let mut place = self.place;
        for c in wanted.chars() {
            if self.text.get(place) != Some(&c) {
                return false;
            }
            place += 1;
        }
        // `\in` is not the start of `\infty`.
        let command = wanted.starts_with('\\') && wanted.ends_with(|c: char| c.is_ascii_alphabetic());
        !(command && self.text.get(place).is_some_and(char::is_ascii_alphabetic))
    }

    pub(super) fn take(&mut self, wanted: &str) -> bool {
        let there = self.next_is(wanted);
        if there {
            self.place += wanted.chars().count();
        }
        there
    }

    pub(super) fn take_any<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table.iter().find(|(wanted, _)| self.take(wanted)).map(|(_, value)| *value)
    }

    /// Returns what `read` takes, and restores the place if it takes nothing. For a few characters only:
    /// nested attempts at long texts would take time that doubles with each.
    pub(super) fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let place = self.place;
        let found = read(self);
        if found.is_none() {
            self.place = place;
        }
        found
    }

    pub(super) fn sum(&mut self) -> Option<E> {
        let mut terms = Vec::new();
        loop {
            let both = self.take("\\pm") || self.take("±");
            let opposite = !both && self.take("\\mp");
            let minus = !both && !opposite && self.take("-");
            if !(both || opposite || minus || self.take("+") || terms.is_empty()) {
                break;
            }
            let term = self.product()?;
            let term = if both || opposite { E::PlusMinus(Box::new(term)) } else { term };
            terms.push(if minus || opposite { term.negated() } else { term });
        }
        if terms.len() == 1 { terms.pop() } else { Some(E::Sum(terms)) }
    }

    fn product(&mut self) -> Option<E> {
        let mut factors = vec![self.signed_power()?];
        loop {
            if ["\\cdot", "\\times", "*", "×", "·", "\\ast"].iter().any(|sign| self.take(sign)) {
                factors.push(self.signed_power()?);
            } else if ["/", "\\div", "÷"].iter().any(|sign| self.take(sign)) {
                // `4/3\pi` is 4/(3π), as Math-Verify has it.
                let mut below = vec![self.signed_power()?];
                while self.starts_factor() {
                    if self.is_row(&below) {
                        return None;
                    }
                    below.push(self.power()?);
                }
                let above = product_of(std::mem::take(&mut factors));
                factors.push(above.over(product_of(below)));
            } else if self.take("%") {
                factors = vec![E::Percent(Box::new(product_of(factors)))];
            } else if self.starts_factor() {
                let whole = matches!(&factors[..], [E::Number(n, false)] if n.is_integer());
                let latex = whole && self.next_is("\\frac");
                let plain = if whole { self.attempt(Self::fraction_after_space) } else { None };
                let mixed = latex || plain.is_some();
                let factor = match plain {
                    Some(fraction) => fraction,
                    None if self.is_row(&factors) => return None,
                    None => self.power()?,
                };
                if mixed && is_plain_fraction(&factor) {
                    factors = vec![E::Sum(vec![product_of(factors), factor])];
                } else {
                    factors.push(factor);
                }
            } else {
                return Some(product_of(factors));
            }
        }
    }

    /// Returns true if a number follows another one after nothing but a space: `3 4` is not a product.
    fn is_row(&self, factors: &[E]) -> bool {
        let spaced = self.place.checked_sub(1).is_some_and(|before| self.text[before].is_whitespace());
        let digit = self.peek().is_some_and(|c| c.is_ascii_digit());
        spaced && digit && matches!(factors.last(), Some(E::Number(..)))
    }

    /// Reads the fraction of `1 1/2`.
    fn fraction_after_space(&mut self) -> Option<E> {
        self.place.checked_sub(1).filter(|before| self.text[*before] == ' ')?;
        let above = self.whole_number()?;
        self.take("/").then_some(())?;
        Some(above.over(self.whole_number()?))
    }

    fn signed_power(&mut self) -> Option<E> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let value = if self.take("-") { self.signed_power()?.negated() } else { self.power()? };
        self.depth -= 1;
        Some(value)
    }

    /// Returns true if a factor follows without a sign.
    pub(super) fn starts_factor(&mut self) -> bool {
        const OTHERS: [&str; 32] = [
            "\\cup",
            "\\cap",
            "\\setminus",
            "\\smallsetminus",
            "\\backslash",
            "\\in",
            "\\notin",
            "\\pm",
            "\\mp",
            "\\}",
            "\\end",
            "\\le",
            "\\leq",
            "\\ge",
            "\\geq",
            "\\lt",
            "\\gt",
            "\\ne",
            "\\neq",
            "\\leqslant",
            "\\geqslant",
            "\\approx",
            "\\simeq",
            "\\cong",
            "\\doteq",
            "\\sim",
            "\\rfloor",
            "\\rceil",
            "\\rvert",
            "\\rangle",
            "\\colon",
            "\\ast",
        ];
        self.skip_spaces();
        match self.peek() {
            Some('|') => self.bars == 0,
            Some('\\') => !OTHERS.iter().any(|sign| self.next_is(sign)),
            Some(c) => c.is_alphanumeric() || matches!(c, '(' | '[' | '{' | '.'),
            None => false,
        }
    }

    pub(super) fn power(&mut self) -> Option<E> {
        let mut value = self.atom()?;
        for _ in 0..MOST_POSTFIXES {
            if is_function(&value) && self.next_is("(") {
                value = self.applied(value)?;
            } else if let Some(primes) = self.attempt(Self::primes) {
                value = match value {
                    E::Symbol(name) => E::Symbol(name + &primes),
                    // Feet, minutes of an angle.
                    number if number.is_scalar() && number.is_constant() => number,
                    other => E::Call(Function::Named, vec![E::Symbol(primes), other]),
                };
            } else if self.take("^") {
                value = value.power(self.argument()?);
            } else if self.take("_") {
                let start = self.place;
                self.argument()?;
                let below: String =
                    self.text[start..self.place].iter().filter(|c| !"{} ".contains(**c)).collect();
                value = E::Symbol(format!("{}_{below}", name_of(&value)?));
            } else if self.take("!") {
                value = E::Call(Function::Factorial, vec![value]);
            } else if self.take("°") {
                if self.radians {
                    value = E::Product(vec![value, E::Pi]).over(E::whole(180));
                }
            } else {
                return Some(value);
            }
        }
        None
    }

    /// Reads the argument of a command: `{…}`, or one character, or one command.
    pub(super) fn argument(&mut self) -> Option<E> {
        self.skip_spaces();
        match self.peek()? {
            '{' => self.atom(),
            digit if digit.is_ascii_digit() => {
                self.place += 1;
                Some(E::whole(i64::from(digit.to_digit(10)?)))
            }
            '-' => {
                self.place += 1;
                Some(self.argument()?.negated())
            }
            _ => self.atom(),
        }
    }
}

/// Returns one factor as it is, more as a product.
pub fn product_of(mut factors: Vec<E>) -> E {
    match factors.pop() {
        Some(only) if factors.is_empty() => only,
        Some(last) => {
            factors.push(last);
            E::Product(factors)
        }
        None => E::whole(1),
    }
}

/// Returns true for a fraction of two whole numbers.
fn is_plain_fraction(factor: &E) -> bool {
    let whole = |part: &E| matches!(part, E::Number(_, false));
    match factor {
        E::Product(parts) => match &parts[..] {
            [above, E::Power(below, exponent)] => whole(above) && whole(below) && **exponent == E::whole(-1),
            _ => false,
        },
        _ => false,
    }
}

/// Returns the name of a value before a subscript.
fn name_of(value: &E) -> Option<String> {
    match value {
        E::Symbol(name) => Some(name.clone()),
        E::Number(value, _) => Some(value.to_string()),
        E::Euler => Some("e".to_owned()),
        E::Imaginary => Some("i".to_owned()),
        _ => None,
    }
}
