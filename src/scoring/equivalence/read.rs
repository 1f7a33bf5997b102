//! The reader of LaTeX answers: recursive descent over characters, bounded in length and depth.

use super::expression::{Expression as E, Function, Sign};

/// How deep brackets may nest.
const DEEPEST: usize = 48;

/// What stands between two rows of a matrix after cleaning.
pub const ROW: &str = "\u{1}";

/// Reads a cleaned answer; nothing where it is none, or where something is left over.
pub fn read(text: &str) -> Option<E> {
    let mut reader = Reader { text: text.chars().collect(), place: 0, depth: 0, bars: 0 };
    let answer = reader.list()?;
    reader.skip_spaces();
    (reader.place == reader.text.len()).then_some(answer)
}

/// A place in a text.
pub struct Reader {
    pub(super) text: Vec<char>,
    pub(super) place: usize,
    depth: usize,
    /// How many `|` are open in the innermost brackets.
    pub(super) bars: usize,
}

impl Reader {
    pub(super) fn peek(&self) -> Option<char> {
        self.text.get(self.place).copied()
    }

    fn skip_spaces(&mut self) {
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

    /// Parts between commas: one alone, more as a set.
    pub(super) fn list(&mut self) -> Option<E> {
        let mut parts = self.parts()?;
        if parts.len() == 1 { parts.pop() } else { Some(E::Set(parts)) }
    }

    pub(super) fn parts(&mut self) -> Option<Vec<E>> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let mut parts = vec![self.relation()?];
        while self.take(",") || self.take(";") {
            parts.push(self.relation()?);
        }
        self.depth -= 1;
        Some(parts)
    }

    pub(super) fn relation(&mut self) -> Option<E> {
        const SIGNS: [(&str, Sign); 15] = [
            ("=", Sign::Equal),
            ("\\neq", Sign::NotEqual),
            ("\\ne", Sign::NotEqual),
            ("\\leqslant", Sign::LessOrEqual),
            ("\\leq", Sign::LessOrEqual),
            ("\\le", Sign::LessOrEqual),
            ("<=", Sign::LessOrEqual),
            ("\\lt", Sign::Less),
            ("<", Sign::Less),
            ("\\geqslant", Sign::GreaterOrEqual),
            ("\\geq", Sign::GreaterOrEqual),
            ("\\ge", Sign::GreaterOrEqual),
            (">=", Sign::GreaterOrEqual),
            ("\\gt", Sign::Greater),
            (">", Sign::Greater),
        ];
        let mut sides = vec![self.union()?];
        let mut signs = Vec::new();
        if self.take("\\in") {
            return self.union();
        }
        while let Some(sign) = self.take_any(&SIGNS) {
            signs.push(sign);
            sides.push(self.union()?);
        }
        // A rounded value after the exact one says nothing new.
        if self.take("\\approx") {
            self.union()?;
        }
        if signs.is_empty() { sides.pop() } else { Some(E::Relation(sides, signs)) }
    }

    fn union(&mut self) -> Option<E> {
        let mut parts = vec![self.sum()?];
        while self.take("\\cup") || self.take("∪") {
            parts.push(self.sum()?);
        }
        if parts.len() == 1 { parts.pop() } else { Some(E::Union(parts)) }
    }

    pub(super) fn sum(&mut self) -> Option<E> {
        let mut terms = Vec::new();
        loop {
            let pair = self.take("\\pm") || self.take("±");
            let minus = !pair && (self.take("-") || self.take("\\mp"));
            if !(pair || minus || self.take("+") || terms.is_empty()) {
                break;
            }
            let term = self.product()?;
            terms.push(match (pair, minus) {
                (true, _) => E::PlusMinus(Box::new(term)),
                (_, true) => term.negated(),
                _ => term,
            });
        }
        if terms.len() == 1 { terms.pop() } else { Some(E::Sum(terms)) }
    }

    fn product(&mut self) -> Option<E> {
        let mut factors = vec![self.signed_power()?];
        loop {
            if ["\\cdot", "\\times", "*", "×", "·", "\\ast"].iter().any(|sign| self.take(sign)) {
                factors.push(self.signed_power()?);
            } else if ["/", "\\div", "÷", ":"].iter().any(|sign| self.take(sign)) {
                // `4/3\pi` is 4/(3π), as Math-Verify has it.
                let mut below = vec![self.signed_power()?];
                while self.starts_factor() {
                    below.push(self.power()?);
                }
                let above = product_of(std::mem::take(&mut factors));
                factors.push(above.over(product_of(below)));
            } else if self.starts_factor() {
                let mixed =
                    self.next_is("\\frac") && matches!(&factors[..], [E::Number(n, false)] if n.is_integer());
                let factor = self.power()?;
                if mixed && is_plain_fraction(&factor) {
                    let whole = product_of(std::mem::take(&mut factors));
                    factors.push(E::Sum(vec![whole, factor]));
                } else {
                    factors.push(factor);
                }
            } else {
                return Some(product_of(factors));
            }
        }
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

    /// Whether a factor follows without a sign.
    pub(super) fn starts_factor(&mut self) -> bool {
        self.skip_spaces();
        match self.peek() {
            Some('|') => self.bars == 0,
            Some('\\') => ![
                "\\cup",
                "\\in",
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
                "\\rfloor",
                "\\rceil",
            ]
            .iter()
            .any(|sign| self.next_is(sign)),
            Some(c) => c.is_alphanumeric() || matches!(c, '(' | '[' | '{' | '.'),
            None => false,
        }
    }

    pub(super) fn power(&mut self) -> Option<E> {
        let mut value = self.atom()?;
        loop {
            if self.take("^") {
                if self.take("\\prime") || self.take("{\\prime}") {
                    continue;
                }
                let exponent = self.argument()?;
                value = E::Power(Box::new(value), Box::new(exponent));
            } else if self.take("_") {
                let start = self.place;
                self.argument()?;
                let below: String =
                    self.text[start..self.place].iter().filter(|c| !"{} ".contains(**c)).collect();
                value = E::Symbol(format!("{}_{below}", name_of(&value)?));
            } else if self.take("!") {
                value = E::Call(Function::Factorial, vec![value]);
            } else if self.take("%") {
                value = E::Percent(Box::new(value));
            } else if !self.take("'") {
                return Some(value);
            }
        }
    }

    /// What a command takes: `{…}`, or one character, or one command.
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

    fn atom(&mut self) -> Option<E> {
        self.skip_spaces();
        match self.peek()? {
            c if c.is_ascii_digit() || c == '.' => self.number(),
            '\\' => self.command(),
            open @ ('(' | '[') => self.group(open),
            '{' => {
                self.place += 1;
                let bars = std::mem::take(&mut self.bars);
                let inner = self.list()?;
                self.bars = bars;
                self.take("}").then_some(inner)
            }
            '|' => {
                self.place += 1;
                self.bars += 1;
                let inner = self.sum()?;
                self.bars -= 1;
                self.take("|").then(|| E::Call(Function::Abs, vec![inner]))
            }
            'π' => self.single(E::Pi),
            '∞' => self.single(E::Infinity),
            'e' => self.single(E::Euler),
            'i' => self.single(E::Imaginary),
            c if c.is_alphabetic() => self.single(E::Symbol(c.to_string())),
            _ => None,
        }
    }

    fn single(&mut self, value: E) -> Option<E> {
        self.place += 1;
        Some(value)
    }
}

/// One factor as it is, more as a product.
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

/// A fraction of two whole numbers.
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

/// How a value is called before a subscript.
fn name_of(value: &E) -> Option<String> {
    match value {
        E::Symbol(name) => Some(name.clone()),
        E::Number(value, _) => Some(value.to_string()),
        E::Euler => Some("e".to_owned()),
        E::Imaginary => Some("i".to_owned()),
        _ => None,
    }
}
