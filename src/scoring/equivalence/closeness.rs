//! How close two numbers must be to be the same answer.

use super::expression::Expression as E;
use super::value::Value;

/// Tolerance against a rounded number: half of the sixth decimal, and this share of the larger of both.
const ROUNDING: f64 = 5e-7;
const LARGEST_SHARE: f64 = 1e-4;

/// Required closeness of two values.
#[derive(Debug, Clone, Copy)]
pub struct Closeness {
    /// Largest difference, if one of them is written as a decimal.
    pub tolerance: Option<f64>,
}

/// Returns how close the values of two answers must be.
pub fn closeness(a: &E, b: &E) -> Closeness {
    let decimals = a.has_decimals() || b.has_decimals();
    // Rounded factors of names move a value by more than a rounded value.
    let tolerance = if a.is_constant() && b.is_constant() { ROUNDING } else { 3.0 * ROUNDING };
    Closeness { tolerance: decimals.then_some(tolerance) }
}

impl Closeness {
    pub fn close(self, a: Value, b: Value) -> bool {
        let rounded = |tolerance: f64| {
            a.apart(b).is_some_and(|(apart, size)| apart <= tolerance && apart <= LARGEST_SHARE * size)
        };
        a.is(b) || self.tolerance.is_some_and(rounded)
    }
}
