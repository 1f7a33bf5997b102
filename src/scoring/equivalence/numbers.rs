//! Numbers and clock times as they are written.

use num_bigint::BigInt;
use num_rational::Ratio;

use super::expression::{Expression as E, Rational};
use super::read::{COMMA, ExpressionReader};

/// The largest exponent of `1.5e10`.
const LARGEST_EXPONENT: i32 = 5_000;

impl ExpressionReader {
    fn digits(&mut self) -> String {
        let start = self.place;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.place += 1;
        }
        self.text[start..self.place].iter().collect()
    }

    /// Reads digits alone.
    pub(super) fn whole_number(&mut self) -> Option<E> {
        self.skip_spaces();
        let digits = self.digits();
        let goes_on = match self.peek() {
            Some('.' | ',' | COMMA) => self.digits_after_next() > 0,
            next => next == Some('^'),
        };
        if goes_on { None } else { Some(E::Number(Rational::from_integer(digits.parse().ok()?), false)) }
    }

    /// Returns how many digits follow the next character.
    fn digits_after_next(&self) -> usize {
        let after = self.text.get(self.place + 1..).unwrap_or_default();
        after.iter().take_while(|c| c.is_ascii_digit()).count()
    }

    /// Reads `1234.5`, `1,234`, `1 234`, `.5`, `0,5`, `3.\overline{6}`, `1.5e-3`.
    pub(super) fn number(&mut self) -> Option<E> {
        let mut whole = self.digits();
        // Groups of exactly three digits after a comma or a space belong to the number.
        while self.peek().is_some_and(|c| matches!(c, ',' | ' ' | COMMA))
            && self.digits_after_next() == 3
            && !whole.trim_start_matches('0').is_empty()
            && self.grouped(&whole)
            && !self.decimal_comma
        {
            self.place += 1;
            whole.push_str(&self.digits());
        }
        let separator = match self.peek() {
            Some('.') => true,
            Some(COMMA) => !whole.is_empty(),
            Some(',') => self.decimal_comma && !whole.is_empty(),
            _ => false,
        };
        let repeats = ["\\overline", "\\bar", "\\dot"];
        let repeating = |text: &[char]| {
            let rest: String = text.iter().take(9).collect();
            repeats.iter().any(|command| rest.starts_with(command))
        };
        let after = self.text.get(self.place + 1..).unwrap_or_default();
        if !(separator && (self.digits_after_next() > 0 || repeating(after))) {
            return Some(E::Number(Rational::from_integer(whole.parse().ok()?), false));
        }
        self.place += 1;
        let mut fraction = self.digits();
        // `3.141 592`
        while fraction.len().is_multiple_of(3) && self.peek() == Some(' ') && self.digits_after_next() == 3 {
            self.place += 1;
            fraction.push_str(&self.digits());
        }
        if repeating(&self.text[self.place..]) {
            let command = repeats.iter().any(|command| self.take(command));
            return self.repeating(&format!("{whole}{fraction}"), fraction.len()).filter(|_| command);
        }
        let digits: BigInt = format!("{whole}{fraction}").parse().ok()?;
        let value = Ratio::new(digits, BigInt::from(10).pow(u32::try_from(fraction.len()).ok()?));
        Some(E::Number(self.attempt(Self::exponent).map_or(value.clone(), |power| value * power), true))
    }

    /// Returns true if a group may follow the digits so far: one to three of them, or groups already.
    fn grouped(&self, whole: &str) -> bool {
        whole.len() <= 3
            || self.text[..self.place].iter().rev().nth(3).is_some_and(|c| matches!(*c, ',' | ' ' | COMMA))
    }

    /// Reads the digits under a bar, after digits of which some are decimals.
    fn repeating(&mut self, before: &str, decimals: usize) -> Option<E> {
        let period = self.braced()?;
        let ten = |places: usize| Some(BigInt::from(10).pow(u32::try_from(places).ok()?));
        let all: BigInt = format!("{before}{}", period.trim()).parse().ok()?;
        let before: BigInt = if before.is_empty() { BigInt::ZERO } else { before.parse().ok()? };
        let nines = ten(period.trim().len())? - BigInt::from(1);
        (nines > BigInt::ZERO).then_some(E::Number(Ratio::new(all - before, nines * ten(decimals)?), false))
    }

    /// Reads the power of ten of `e-3`.
    fn exponent(&mut self) -> Option<Rational> {
        self.peek().filter(|c| matches!(c, 'e' | 'E'))?;
        self.place += 1;
        let below = self.peek() == Some('-');
        if below || self.peek() == Some('+') {
            self.place += 1;
        }
        let exponent: i32 = self.digits().parse().ok().filter(|exponent| *exponent <= LARGEST_EXPONENT)?;
        Some(Rational::from_integer(10.into()).pow(if below { -exponent } else { exponent }))
    }

    /// Reads `4:30`, `16:05`, and with the half of the day after cleaning.
    pub(super) fn clock(&mut self) -> Option<E> {
        let before = self.place.checked_sub(1).and_then(|place| self.text.get(place));
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, ':' | '.')) {
            return None;
        }
        let hour = self.digits();
        (self.peek()? == ':' && (1..=2).contains(&hour.len()) && self.digits_after_next() == 2)
            .then_some(())?;
        self.place += 1;
        let (hour, minute): (u32, u32) = (hour.parse().ok()?, self.digits().parse().ok()?);
        if hour > 24 || minute > 59 || self.peek().is_some_and(|c| matches!(c, ':' | '.' | '^' | '!' | '_')) {
            return None;
        }
        let half = self.take_any(&[("\\forenoon", false), ("\\afternoon", true)]);
        Some(E::Clock(hour, minute, half))
    }
}
