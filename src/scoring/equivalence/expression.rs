//! What an answer can be, and its values: exact where rational, else a complex number at given points.

use std::collections::{BTreeMap, BTreeSet};

use num_bigint::BigInt;
use num_complex::Complex64;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// An exact number.
pub type Rational = Ratio<BigInt>;

/// The longest exact number, in bits; what would be longer is compared by its value.
const MOST_BITS: u64 = 20_000;
const LARGEST_FACTORIAL: u32 = 500;

/// A relation sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Sign {
    /// The sign read from right to left.
    pub fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            same => same,
        }
    }
}

/// A function of one number, or of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    Ln,
    /// Argument, base.
    Log,
    Abs,
    Floor,
    Ceil,
    Factorial,
    /// n over k.
    Binomial,
}

/// An answer as it was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// A number, and whether it was written with a decimal point.
    Number(Rational, bool),
    Symbol(String),
    Pi,
    Euler,
    Imaginary,
    Infinity,
    Sum(Vec<Self>),
    Product(Vec<Self>),
    /// Base, exponent.
    Power(Box<Self>, Box<Self>),
    Call(Function, Vec<Self>),
    Percent(Box<Self>),
    /// The term with either sign.
    PlusMinus(Box<Self>),
    /// Parts between brackets: a tuple, an interval.
    Group(char, Vec<Self>, char),
    /// Parts in any order.
    Set(Vec<Self>),
    Union(Vec<Self>),
    Matrix(Vec<Vec<Self>>),
    /// Sides and the signs between them.
    Relation(Vec<Self>, Vec<Sign>),
}

use Expression as E;

impl Expression {
    /// A whole number.
    pub fn whole(value: i64) -> Self {
        E::Number(Rational::from_integer(value.into()), false)
    }

    /// The same with the other sign.
    pub fn negated(self) -> Self {
        match self {
            E::Number(value, decimal) => E::Number(-value, decimal),
            other => E::Product(vec![Self::whole(-1), other]),
        }
    }

    /// `self / below`.
    pub fn over(self, below: Self) -> Self {
        E::Product(vec![self, E::Power(Box::new(below), Box::new(Self::whole(-1)))])
    }

    /// The parts directly inside.
    pub fn parts(&self) -> Vec<&Self> {
        match self {
            E::Sum(parts)
            | E::Product(parts)
            | E::Call(_, parts)
            | E::Group(_, parts, _)
            | E::Set(parts)
            | E::Union(parts)
            | E::Relation(parts, _) => parts.iter().collect(),
            E::Power(base, exponent) => vec![base, exponent],
            E::Percent(part) | E::PlusMinus(part) => vec![part],
            E::Matrix(rows) => rows.iter().flatten().collect(),
            _ => Vec::new(),
        }
    }

    /// How many parts there are in all, itself with them.
    pub fn size(&self) -> usize {
        1 + self.parts().into_iter().map(Self::size).sum::<usize>()
    }

    /// The names inside.
    pub fn symbols(&self, into: &mut BTreeSet<String>) {
        if let E::Symbol(name) = self {
            into.insert(name.clone());
        }
        self.parts().into_iter().for_each(|part| part.symbols(into));
    }

    /// Whether it is a number, so that parts and brackets do not matter.
    pub fn is_scalar(&self) -> bool {
        !matches!(self, E::Group(..) | E::Set(_) | E::Union(_) | E::Matrix(_) | E::Relation(..))
            && self.parts().into_iter().all(Self::is_scalar)
    }

    /// Whether there is a `±` inside.
    pub fn has_two_signs(&self) -> bool {
        matches!(self, E::PlusMinus(_)) || self.parts().into_iter().any(Self::has_two_signs)
    }

    /// With `±` as plus or as minus.
    pub fn with_sign(&self, minus: bool) -> Self {
        let of = |parts: &[Self]| parts.iter().map(|part| part.with_sign(minus)).collect::<Vec<_>>();
        match self {
            E::PlusMinus(part) if minus => part.with_sign(minus).negated(),
            E::PlusMinus(part) => part.with_sign(minus),
            E::Sum(parts) => E::Sum(of(parts)),
            E::Product(parts) => E::Product(of(parts)),
            E::Call(function, parts) => E::Call(*function, of(parts)),
            E::Relation(parts, signs) => E::Relation(of(parts), signs.clone()),
            E::Power(a, b) => E::Power(Box::new(a.with_sign(minus)), Box::new(b.with_sign(minus))),
            other => other.clone(),
        }
    }

    /// The value where it is a rational number of bounded size.
    pub fn exact(&self) -> Option<Rational> {
        let value = match self {
            E::Number(value, _) => value.clone(),
            E::Sum(parts) => bounded(parts, Rational::zero(), |a, b| a + b)?,
            E::Product(parts) => bounded(parts, Rational::one(), |a, b| a * b)?,
            E::Percent(part) => part.exact()? / BigInt::from(100),
            E::Power(base, exponent) => exact_power(&base.exact()?, &exponent.exact()?)?,
            E::Call(Function::Abs, parts) => parts.first()?.exact()?.abs(),
            E::Call(Function::Floor, parts) => parts.first()?.exact()?.floor(),
            E::Call(Function::Ceil, parts) => parts.first()?.exact()?.ceil(),
            E::Call(Function::Factorial, parts) => {
                let n = whole(&parts.first()?.exact()?).filter(|n| *n <= LARGEST_FACTORIAL)?;
                Rational::from_integer((1..=n).map(BigInt::from).product())
            }
            E::Call(Function::Binomial, parts) => {
                let [n, k] = &parts[..] else { return None };
                let (n, k) = (whole(&n.exact()?)?, whole(&k.exact()?)?);
                if n > LARGEST_FACTORIAL {
                    return None;
                }
                (0..k).fold(Rational::one(), |value, i| {
                    value * BigInt::from(i64::from(n) - i64::from(i)) / BigInt::from(i + 1)
                })
            }
            _ => return None,
        };
        short(&value).then_some(value)
    }

    /// The value with the names at `points`; nothing where there is none.
    pub fn value(&self, points: &BTreeMap<String, f64>) -> Option<Complex64> {
        let real = |value: f64| Some(Complex64::new(value, 0.0));
        let value = match self {
            E::Number(value, _) => return real(float(value)),
            E::Symbol(name) => return real(*points.get(name)?),
            E::Pi => return real(std::f64::consts::PI),
            E::Euler => return real(std::f64::consts::E),
            E::Imaginary => return Some(Complex64::i()),
            E::Sum(parts) => {
                parts.iter().try_fold(Complex64::zero(), |sum, part| Some(sum + part.value(points)?))?
            }
            E::Product(parts) => parts
                .iter()
                .try_fold(Complex64::one(), |product, part| Some(product * part.value(points)?))?,
            E::Percent(part) => part.value(points)? / 100.0,
            E::Power(base, exponent) => power(base.value(points)?, exponent, points)?,
            E::Call(function, parts) => {
                let values = parts.iter().map(|part| part.value(points)).collect::<Option<Vec<_>>>()?;
                call(*function, &values)?
            }
            _ => return None,
        };
        value.is_finite().then_some(value)
    }
}

fn bounded(parts: &[E], start: Rational, join: impl Fn(Rational, Rational) -> Rational) -> Option<Rational> {
    parts.iter().try_fold(start, |value, part| {
        let value = join(value, part.exact()?);
        short(&value).then_some(value)
    })
}

fn short(value: &Rational) -> bool {
    value.numer().bits().max(value.denom().bits()) <= MOST_BITS
}

fn whole(value: &Rational) -> Option<u32> {
    if value.is_integer() { value.to_integer().to_u32() } else { None }
}

fn exact_power(base: &Rational, exponent: &Rational) -> Option<Rational> {
    if !exponent.is_integer() || (base.is_zero() && !exponent.is_positive()) {
        return None;
    }
    let times = exponent.to_integer().to_i32()?;
    let bits = base.numer().bits().max(base.denom().bits());
    (bits * u64::from(times.unsigned_abs()) <= MOST_BITS).then(|| base.pow(times))
}

/// The nearest double, also where numerator and denominator are longer than one.
fn float(value: &Rational) -> f64 {
    let shift = value.numer().bits().max(value.denom().bits()).saturating_sub(900);
    let of = |part: &BigInt| (part >> shift).to_f64().unwrap_or(f64::NAN);
    of(value.numer()) / of(value.denom())
}

fn power(base: Complex64, exponent: &E, points: &BTreeMap<String, f64>) -> Option<Complex64> {
    let whole = exponent.exact().filter(Rational::is_integer).and_then(|value| value.to_integer().to_i32());
    if let Some(times) = whole {
        return Some(base.powi(times));
    }
    if exponent.exact() == Some(Rational::new(1.into(), 2.into())) {
        return Some(base.sqrt());
    }
    let exponent_value = exponent.value(points)?;
    // An odd root of a negative number is the real one.
    if let Some(root) = exponent.exact().filter(|_| base.im == 0.0 && base.re < 0.0)
        && root.denom().bit(0)
    {
        let size = (-base.re).powf(exponent_value.re);
        return Some(Complex64::new(if root.numer().bit(0) { -size } else { size }, 0.0));
    }
    if base.is_zero() { Some(Complex64::zero()) } else { Some(base.powc(exponent_value)) }
}

fn call(function: Function, values: &[Complex64]) -> Option<Complex64> {
    let x = *values.first()?;
    let one = Complex64::one();
    Some(match function {
        Function::Sin => x.sin(),
        Function::Cos => x.cos(),
        Function::Tan => x.tan(),
        Function::Cot => one / x.tan(),
        Function::Sec => one / x.cos(),
        Function::Csc => one / x.sin(),
        Function::Arcsin => x.asin(),
        Function::Arccos => x.acos(),
        Function::Arctan => x.atan(),
        Function::Sinh => x.sinh(),
        Function::Cosh => x.cosh(),
        Function::Tanh => x.tanh(),
        Function::Exp => x.exp(),
        Function::Ln => x.ln(),
        Function::Log => x.ln() / values.get(1)?.ln(),
        Function::Abs => Complex64::new(x.norm(), 0.0),
        Function::Floor => Complex64::new(x.re.floor(), 0.0),
        Function::Ceil => Complex64::new(x.re.ceil(), 0.0),
        Function::Factorial => {
            let n = x.re;
            if x.im != 0.0 || n < 0.0 || n.fract() != 0.0 || n > 170.0 {
                // Any smooth stand-in: equal arguments give equal values.
                return Some((x + 2.5).sin() * 3.0 + x);
            }
            Complex64::new((1..=n as u32).map(f64::from).product(), 0.0)
        }
        Function::Binomial => (x + 0.7).sin() * (values.get(1)? + 1.3).cos() + x,
    })
}
