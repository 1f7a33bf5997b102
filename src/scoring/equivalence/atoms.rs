//! Brackets, letters, commands and functions: what the reader takes as one value.

use super::clean::is_roman;
use super::expression::{Expression as E, Function};
use super::functions::FUNCTIONS;
use super::read::{ExpressionReader, ROW};

/// Tables of more than one line: their rows may be equations.
const SYSTEMS: [&str; 8] = ["cases", "array", "aligned", "align", "align*", "gathered", "split", "alignedat"];

/// Opening commands, their closing ones, and the function applied to the inside.
const BRACKETS: [(&str, (&str, Option<Function>)); 4] = [
    ("\\lfloor", ("\\rfloor", Some(Function::Floor))),
    ("\\lceil", ("\\rceil", Some(Function::Ceil))),
    ("\\lvert", ("\\rvert", Some(Function::Abs))),
    ("\\langle", ("\\rangle", None)),
];

impl ExpressionReader {
    pub(super) fn atom(&mut self) -> Option<E> {
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
            c if c.is_alphabetic() => self.letters(),
            _ => None,
        }
    }

    /// Reads a letter; a capital with digits right after it as its index; capitals in a row as one name, of a
    /// segment in either order.
    fn letters(&mut self) -> Option<E> {
        let start = self.place;
        let run = |reader: &mut Self, of: fn(char) -> bool| {
            while reader.peek().is_some_and(of) {
                reader.place += 1;
            }
        };
        run(self, |c| c.is_ascii_uppercase());
        if self.place - start > 1 {
            let mut name = self.text[start..self.place].to_vec();
            if name.len() == 2 && !is_roman(&name.iter().collect::<String>()) {
                name.sort_unstable();
            }
            return Some(E::Symbol(name.into_iter().collect::<String>().to_lowercase()));
        }
        self.place = start + 1;
        let letter = self.text[start];
        let index = self.place;
        match letter {
            'e' => return Some(E::Euler),
            'i' => return Some(E::Imaginary),
            'A'..='Z' => run(self, |c| c.is_ascii_digit()),
            _ => {}
        }
        let index: String = self.text[index..self.place].iter().collect();
        Some(E::Symbol(if index.is_empty() { letter.to_string() } else { format!("{letter}_{index}") }))
    }

    pub(super) fn group(&mut self, open: char) -> Option<E> {
        self.place += 1;
        let bars = std::mem::take(&mut self.bars);
        let semicolon = self.has_semicolon();
        let decimal_comma = std::mem::replace(&mut self.decimal_comma, semicolon);
        let mut parts = self.parts()?;
        (self.bars, self.decimal_comma) = (bars, decimal_comma);
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

    /// Returns true if a semicolon stands in these brackets, so that a comma between digits is a decimal one.
    pub(super) fn has_semicolon(&self) -> bool {
        let mut depth = 0;
        for c in &self.text[self.place..] {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => return false,
                ')' | ']' | '}' => depth -= 1,
                ';' if depth == 0 => return true,
                _ => {}
            }
        }
        false
    }

    pub(super) fn command(&mut self) -> Option<E> {
        const SIMPLE: [(&str, E); 5] = [
            ("\\pi", E::Pi),
            ("\\infty", E::Infinity),
            ("\\imath", E::Imaginary),
            ("\\emptyset", E::Set(Vec::new())),
            ("\\varnothing", E::Set(Vec::new())),
        ];
        for (name, value) in SIMPLE {
            if self.take(name) {
                return Some(value);
            }
        }
        if self.take("\\frac") {
            if let Some(derivative) = self.attempt(Self::derivative) {
                return Some(derivative);
            }
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
            return Some(self.argument()?.power(E::whole(1).over(root)));
        }
        if self.take("\\binom") {
            return Some(E::Call(Function::Binomial, vec![self.argument()?, self.argument()?]));
        }
        if self.take("\\{") {
            return self.set();
        }
        if self.take("\\begin") {
            return self.matrix();
        }
        if self.take("\\det") {
            return Some(E::Call(Function::Determinant, vec![self.power()?]));
        }
        if self.take("\\text") {
            return self.words();
        }
        if let Some((close, function)) = self.take_any(&BRACKETS) {
            return self.enclosed(close, function);
        }
        match self.take_any(&FUNCTIONS) {
            Some(function) => self.function(function),
            None => self.name(),
        }
    }

    /// Reads the inside of two commands: `\lfloor x \rfloor`, `\lvert x \rvert`, `\langle 1, 2 \rangle`.
    fn enclosed(&mut self, close: &str, function: Option<Function>) -> Option<E> {
        let bars = std::mem::take(&mut self.bars);
        let inner = match function {
            Some(function) => E::Call(function, vec![self.sum()?]),
            None => E::Group('(', self.parts()?, ')'),
        };
        self.bars = bars;
        self.take(close).then_some(inner)
    }

    /// Reads on after `\{`: the parts of a set, or `x \in S \mid` and what holds for them.
    fn set(&mut self) -> Option<E> {
        if self.take("\\}") {
            return Some(E::Set(Vec::new()));
        }
        let bars = std::mem::take(&mut self.bars);
        let found = if self.is_described() { self.described() } else { self.parts().map(E::Set) };
        self.bars = bars;
        if self.take("\\}") { found } else { None }
    }

    /// Returns true if a set opens with a name, and a bar or a colon before what holds for it.
    fn is_described(&mut self) -> bool {
        let place = self.place;
        self.skip_spaces();
        let named = self.peek().is_some_and(char::is_alphabetic);
        self.place += 1;
        let within = self.next_is("\\in");
        let (mut depth, mut bars, mut colon) = (0, 0, false);
        for c in self.text.get(self.place..).unwrap_or_default() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                '|' if depth == 0 => bars += 1,
                ':' if depth == 0 => colon = true,
                _ => {}
            }
        }
        let bar = self.next_is("|") && bars % 2 == 1;
        let described = named && (bar || self.next_is(":") || (within && (bars == 1 || colon)));
        self.place = place;
        described
    }

    /// Reads `x \in S \mid x > 2` as all of S where that holds.
    fn described(&mut self) -> Option<E> {
        self.letters()?;
        // The bar is not that of an absolute value.
        self.bars = 1;
        let within = if self.take("\\in") { Some(self.sum()?) } else { None };
        (self.take("|") || self.take(":")).then_some(())?;
        self.bars = 0;
        let holds = self.list()?;
        Some(match within {
            Some(within) => E::Intersection(vec![within, holds]),
            None => holds,
        })
    }

    fn matrix(&mut self) -> Option<E> {
        let name = self.braced()?;
        let system = SYSTEMS.contains(&name.as_str());
        if !(name.ends_with("matrix") || system) {
            return None;
        }
        if name == "array" {
            self.braced()?;
        }
        let mut rows = vec![vec![self.relation()?]];
        loop {
            // A comma at the end of a line.
            let _ = self.take(",");
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
                break;
            }
        }
        if system && rows.iter().all(|row| matches!(&row[..], [E::Relation(..)])) {
            return Some(E::Set(rows.into_iter().flatten().collect()));
        }
        let matrix = E::Matrix(rows);
        Some(if name == "vmatrix" { E::Call(Function::Determinant, vec![matrix]) } else { matrix })
    }

    /// Reads the raw text of `{…}` without braces inside.
    pub(super) fn braced(&mut self) -> Option<String> {
        self.take("{").then_some(())?;
        let start = self.place;
        while self.peek()? != '}' {
            self.place += 1;
        }
        self.place += 1;
        Some(self.text[start..self.place - 1].iter().collect())
    }

    /// Reads `\text{…}`: a name, in lower case if it is longer than a letter.
    fn words(&mut self) -> Option<E> {
        let words: String =
            self.braced()?.chars().filter(|c| c.is_alphanumeric() || "+-.:".contains(*c)).collect();
        Some(match words.as_str() {
            "i" => E::Imaginary,
            "e" => E::Euler,
            "allrealnumbers" | "allreals" | "Allrealnumbers" => E::reals(),
            _ if words.chars().count() == 1 => E::Symbol(words),
            _ => E::Symbol(words.to_lowercase()),
        })
    }

    /// Any other command of letters is a name: `\theta`; `\overline{AB}` and `\angle ABC` are one with their argument.
    fn name(&mut self) -> Option<E> {
        const TAKE_ARGUMENT: [&str; 11] = [
            "overline",
            "bar",
            "vec",
            "hat",
            "widehat",
            "mathbb",
            "angle",
            "triangle",
            "boxed",
            "overrightarrow",
            "odot",
        ];
        const NO_NAMES: [&str; 10] =
            ["end", "cup", "cap", "in", "right", "left", "rvert", "rangle", "rfloor", "rceil"];
        self.take("\\").then_some(())?;
        let start = self.place;
        while self.peek().is_some_and(|c| c.is_ascii_alphabetic()) {
            self.place += 1;
        }
        let name: String = self.text[start..self.place].iter().collect();
        if name.is_empty() || NO_NAMES.contains(&name.as_str()) {
            return None;
        }
        if TAKE_ARGUMENT.contains(&name.as_str()) {
            let argument = if self.next_is("{") { self.braced()? } else { self.capitals() };
            if name == "mathbb" && argument.trim() == "R" {
                return Some(E::reals());
            }
            if !argument.is_empty() {
                return Some(E::Symbol(format!("{name} {argument}")));
            }
        }
        Some(if name == "R" { E::reals() } else { E::Symbol(format!("\\{name}")) })
    }

    /// Reads capitals in a row, of which there may be none.
    fn capitals(&mut self) -> String {
        self.skip_spaces();
        let start = self.place;
        while self.peek().is_some_and(|c| c.is_ascii_uppercase()) {
            self.place += 1;
        }
        self.text[start..self.place].iter().collect()
    }
}
