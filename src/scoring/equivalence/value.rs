//! Values of expressions at given points: complex numbers with a wide exponent and a bound of their error.
//!
//! The bound tells `e^{-40}` from `e^{-50}` and a sum that cancels from one that does not: two values are the same where
//! they are within their errors.

use std::collections::BTreeMap;

use num_complex::Complex64;
use num_traits::{One, ToPrimitive, Zero};

use super::expression::{Expression as E, Function, Rational};

/// Some units in the last place of a double, for each operation.
const STEP: f64 = 1.0 / (1u64 << 49) as f64;
/// Two numbers with a larger error than this, relative to the larger of them and one, are not known to be the same.
const LARGEST_ERROR: f64 = 1e-6;
/// Largest size of the exponent of a value.
const WIDEST: f64 = 1e15;
/// Largest number whose factorial is multiplied out.
const LARGEST_FACTORIAL: f64 = 5_000.0;

/// `number · 2^exponent`, where `number` is zero or of a size near one, within `error · 2^exponent`.
#[derive(Debug, Clone, Copy)]
pub struct Value {
    number: Complex64,
    exponent: i64,
    error: f64,
}

/// Values of names.
pub type Points = BTreeMap<String, Value>;

impl Value {
    fn new(number: Complex64, exponent: i64, error: f64) -> Option<Self> {
        let size = number.norm();
        if !size.is_finite() || !error.is_finite() || exponent.unsigned_abs() as f64 > WIDEST {
            return None;
        }
        if size == 0.0 {
            return Some(Self { number, exponent, error });
        }
        let shift = size.log2().floor() as i64;
        let scale = 2f64.powi(-i32::try_from(shift).ok()?);
        // Sizes near the ends of a double's range are out of reach of one scaling.
        if !scale.is_normal() {
            return None;
        }
        Some(Self { number: number * scale, exponent: exponent + shift, error: error * scale })
    }

    /// Creates a real number that is known as well as a double can be.
    pub fn real(value: f64) -> Option<Self> {
        Self::new(Complex64::new(value, 0.0), 0, value.abs() * STEP)
    }

    /// Creates a number that a double holds exactly.
    pub fn exactly(value: f64) -> Option<Self> {
        Self::new(Complex64::new(value, 0.0), 0, 0.0)
    }

    /// Creates a real number that may be off from the true one by `error`.
    pub fn within(value: f64, error: f64) -> Option<Self> {
        Self::new(Complex64::new(value, 0.0), 0, error)
    }

    fn rational(value: &Rational) -> Option<Self> {
        let bits = |part: &num_bigint::BigInt| i64::try_from(part.bits()).ok();
        let (above, below) = (bits(value.numer())?, bits(value.denom())?);
        let short = |part: &num_bigint::BigInt, bits: i64| {
            let shift = (bits - 900).max(0);
            Some(
                (part >> usize::try_from(shift).ok()?).to_f64()?
                    * 2f64.powi(i32::try_from(shift - bits).ok()?),
            )
        };
        let number = short(value.numer(), above)? / short(value.denom(), below)?;
        Self::new(Complex64::new(number, 0.0), above - below, number.abs() * STEP)
    }

    /// Returns the nearest double, if the exponent is one of a double.
    pub fn to_f64(self) -> Option<f64> {
        if self.number.is_zero() {
            return Some(0.0);
        }
        let exponent = i32::try_from(self.exponent).ok().filter(|exponent| exponent.abs() < 1000)?;
        Some(self.number.re * 2f64.powi(exponent))
    }

    fn to_complex(self) -> Option<Complex64> {
        let exponent = i32::try_from(self.exponent).ok().filter(|exponent| *exponent < 1000);
        match exponent {
            _ if self.number.is_zero() => Some(Complex64::zero()),
            Some(exponent) => Some(self.number * 2f64.powi(exponent.max(-1000))),
            None if self.exponent < 0 => Some(Complex64::zero()),
            None => None,
        }
    }

    /// Returns the error beside [`Self::to_complex`].
    fn error_as_double(self) -> f64 {
        self.error * 2f64.powi(self.exponent.clamp(-1000, 1000) as i32)
    }

    /// Scales the number and the error to another exponent that is not smaller.
    fn at(self, exponent: i64) -> (Complex64, f64) {
        if self.number.is_zero() && self.error == 0.0 {
            return (self.number, 0.0);
        }
        let scale = 2f64.powi(i32::try_from(self.exponent - exponent).unwrap_or(i32::MIN / 2).max(-2000));
        (self.number * scale, self.error * scale)
    }

    /// Returns the exponent, as small as can be for a zero without an error.
    fn reach(self) -> i64 {
        if self.number.is_zero() && self.error == 0.0 { i64::MIN / 4 } else { self.exponent }
    }

    pub fn plus(self, other: Self) -> Option<Self> {
        let exponent = self.reach().max(other.reach()).max(-(WIDEST as i64));
        let ((a, error_a), (b, error_b)) = (self.at(exponent), other.at(exponent));
        Self::new(a + b, exponent, error_a + error_b + (a + b).norm() * STEP)
    }

    pub fn minus(self, other: Self) -> Option<Self> {
        self.plus(Self { number: -other.number, ..other })
    }

    pub fn negated(self) -> Option<Self> {
        Self::new(-self.number, self.exponent, self.error)
    }

    pub fn magnitude(self) -> Self {
        let size = self.number.norm();
        Self { number: Complex64::new(size, 0.0), error: self.error + size * STEP, ..self }
    }

    pub fn times(self, other: Self) -> Option<Self> {
        let (a, b) = (self.number, other.number);
        let error = a.norm() * other.error + b.norm() * self.error + self.error * other.error;
        Self::new(a * b, self.exponent + other.exponent, error + (a * b).norm() * STEP)
    }

    pub fn inverse(self) -> Option<Self> {
        // What may be zero has no inverse.
        let least = self.number.norm() - self.error;
        let inverse = Complex64::one() / self.number;
        (least > 0.0)
            .then(|| Self::new(inverse, -self.exponent, inverse.norm() * (self.error / least + STEP)))
            .flatten()
    }

    fn to_whole_power(self, times: i64) -> Option<Self> {
        let (mut base, mut left) = (if times < 0 { self.inverse()? } else { self }, times.unsigned_abs());
        let mut power = Self::exactly(1.0)?;
        while left > 0 {
            if left & 1 == 1 {
                power = power.times(base)?;
            }
            left >>= 1;
            if left > 0 {
                base = base.times(base)?;
            }
        }
        Some(power)
    }

    pub fn square_root(self) -> Option<Self> {
        let odd = self.exponent.rem_euclid(2);
        let root = (self.number * if odd == 1 { 2.0 } else { 1.0 }).sqrt();
        let error = if root.is_zero() { self.error.sqrt() } else { 2.0 * self.error / root.norm() };
        Self::new(root, (self.exponent - odd) / 2, error + root.norm() * STEP)
    }

    fn logarithm(self) -> Option<Self> {
        let size = self.number.norm();
        let shift = self.exponent as f64 * std::f64::consts::LN_2;
        let number = self.number.ln() + shift;
        (size > self.error).then(|| {
            let error = self.error / (size - self.error) + (shift.abs() + 1.0) * STEP;
            Self::new(number, 0, error)
        })?
    }

    fn exponential(self) -> Option<Self> {
        let number = self.to_complex()?;
        let halvings = (number.re / std::f64::consts::LN_2).round();
        if halvings.abs() > WIDEST {
            return None;
        }
        let rest = number - halvings * std::f64::consts::LN_2;
        // What the subtraction loses is a share of what is subtracted.
        let error = self.error_as_double() + (number.norm() + 1.0) * STEP;
        let result = rest.exp();
        Self::new(result, halvings as i64, result.norm() * error.exp_m1())
    }

    fn power(self, exponent: Self) -> Option<Self> {
        if self.number.is_zero() {
            return (exponent.number.re > 0.0).then(|| Self::exactly(0.0))?;
        }
        self.logarithm()?.times(exponent)?.exponential()
    }

    /// Applies a function of doubles, with its slope from values around.
    fn through(self, f: impl Fn(Complex64) -> Complex64) -> Option<Self> {
        let x = self.to_complex()?;
        let step = self.error_as_double().max(x.norm() * STEP);
        let value = f(x);
        let slope = [step, -step].into_iter().map(|step| (f(x + step) - value).norm()).fold(0.0, f64::max);
        Self::new(value, 0, 2.0 * slope + value.norm() * STEP)
    }

    /// Returns true if both are one number: within their errors, which are small beside them or beside one.
    pub fn is(self, other: Self) -> bool {
        let Some(apart) = self.minus(other) else { return false };
        let exponent = [0, self.reach(), other.reach()].into_iter().fold(apart.exponent, i64::max);
        apart.number.norm() <= apart.error * 4.0 && apart.at(exponent).1 <= LARGEST_ERROR
    }

    /// Returns true if it may be zero.
    pub fn is_zero(self) -> bool {
        self.number.norm() <= self.error * 4.0
    }

    /// Returns true if its imaginary part may be zero.
    pub fn is_real(self) -> bool {
        self.number.im.abs() <= self.error * 4.0
    }

    /// Returns true if the real part is above zero.
    pub fn is_above_zero(self) -> bool {
        self.number.re > 0.0
    }

    /// Returns how far two numbers are apart, and the size of the larger, as doubles.
    pub fn apart(self, other: Self) -> Option<(f64, f64)> {
        let (a, b) = (self.to_complex()?, other.to_complex()?);
        Some(((a - b).norm(), a.norm().max(b.norm())))
    }
}

impl E {
    /// Returns the value with the names at `points`, or `None` if there is none.
    pub fn value(&self, points: &Points) -> Option<Value> {
        match self {
            E::Number(value, _) => Value::rational(value),
            E::Symbol(name) => points.get(name).copied(),
            E::Pi => Value::real(std::f64::consts::PI),
            E::Euler => Value::real(std::f64::consts::E),
            E::Imaginary => Value::new(Complex64::i(), 0, 0.0),
            E::Sum(parts) => {
                parts.iter().try_fold(Value::exactly(0.0)?, |sum, part| sum.plus(part.value(points)?))
            }
            E::Product(parts) => parts
                .iter()
                .try_fold(Value::exactly(1.0)?, |product, part| product.times(part.value(points)?)),
            E::Percent(part) => part.value(points)?.times(Value::real(0.01)?),
            E::Power(base, exponent) => power(base, exponent, points),
            E::Call(function, parts) => {
                let values = parts.iter().map(|part| part.value(points)).collect::<Option<Vec<_>>>()?;
                call(*function, &values)
            }
            _ => None,
        }
    }
}

fn power(base: &E, exponent: &E, points: &Points) -> Option<Value> {
    if *base == E::Euler {
        return exponent.value(points)?.exponential();
    }
    let base = base.value(points)?;
    let exact = exponent.exact();
    if let Some(times) =
        exact.as_ref().filter(|value| value.is_integer()).and_then(|v| v.to_integer().to_i64())
    {
        return base.to_whole_power(times);
    }
    if exact == Some(Rational::new(1.into(), 2.into())) {
        return base.square_root();
    }
    let exponent = exponent.value(points)?;
    // An odd root of a negative number is the real one.
    if let Some(root) = exact.filter(|_| base.is_real() && base.number.re < 0.0)
        && root.denom().bit(0)
    {
        let size = Value { number: Complex64::new(-base.number.re, 0.0), ..base }.power(exponent)?;
        return Some(if root.numer().bit(0) { Value { number: -size.number, ..size } } else { size });
    }
    base.power(exponent)
}

fn call(function: Function, values: &[Value]) -> Option<Value> {
    let x = *values.first()?;
    let one = Complex64::one();
    match function {
        Function::Sin => x.through(Complex64::sin),
        Function::Cos => x.through(Complex64::cos),
        Function::Tan => x.through(Complex64::tan),
        Function::Cot => x.through(|x| one / x.tan()),
        Function::Sec => x.through(|x| one / x.cos()),
        Function::Csc => x.through(|x| one / x.sin()),
        Function::Arcsin => x.through(Complex64::asin),
        Function::Arccos => x.through(Complex64::acos),
        Function::Arctan => x.through(Complex64::atan),
        Function::Sinh => x.through(Complex64::sinh),
        Function::Cosh => x.through(Complex64::cosh),
        Function::Tanh => x.through(Complex64::tanh),
        Function::Exp => x.exponential(),
        Function::Ln => x.logarithm(),
        Function::Log => x.logarithm()?.times(values.get(1)?.logarithm()?.inverse()?),
        Function::Abs => Some(x.magnitude()),
        Function::Floor => x.through(|x| Complex64::new((x.re + x.re.abs() * 8.0 * STEP).floor(), 0.0)),
        Function::Ceil => x.through(|x| Complex64::new((x.re - x.re.abs() * 8.0 * STEP).ceil(), 0.0)),
        Function::Factorial => factorial(x),
        // Any smooth stand-in: equal arguments give equal values.
        Function::Binomial => {
            let k = values.get(1)?.to_complex()?;
            x.through(|x| (x + 0.7).sin() * (k + 1.3).cos() + x)
        }
        Function::Named => named(values),
        Function::Determinant => None,
    }
}

/// A smooth stand-in that depends on the function, which has a value as other names do, on its arguments and on their
/// order and number.
fn named(values: &[Value]) -> Option<Value> {
    let arguments = values.len() as f64;
    let joined =
        values.iter().enumerate().try_fold(Value::real(arguments.sqrt())?, |sum, (place, value)| {
            sum.plus(value.times(Value::real((place as f64 + 1.234).ln_1p())?)?)
        })?;
    joined.through(|x| x.sin() * 3.0 + x)
}

fn factorial(x: Value) -> Option<Value> {
    let n = x.to_complex()?;
    if n.im != 0.0 || n.re < 0.0 || n.re.fract() != 0.0 || n.re > LARGEST_FACTORIAL {
        // Any smooth stand-in: equal arguments give equal values.
        return x.through(|x| (x + 2.5).sin() * 3.0 + x);
    }
    (1..=n.re as u32)
        .try_fold(Value::exactly(1.0)?, |product, i| product.times(Value::exactly(f64::from(i))?))
}
