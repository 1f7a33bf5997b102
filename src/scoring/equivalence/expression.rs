//! Forms that an answer can take, and its value if that is a rational number.

use std::collections::BTreeSet;

use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// An exact number.
pub type Rational = Ratio<BigInt>;

/// Maximum bits of an exact number; anything longer is compared by its value.
const MOST_BITS: u64 = 20_000;
/// The factorial of this has about [`MOST_BITS`].
const LARGEST_FACTORIAL: u32 = 2_100;

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
    /// Returns the sign read from right to left.
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
    /// Of a matrix.
    Determinant,
    /// A function of which only the name is known, before its arguments: `f(x)`.
    Named,
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
    /// A value, and the one after it and `\approx`.
    Rounded(Box<Self>, Box<Self>),
    /// `3:4:5`.
    Ratio(Vec<Self>),
    /// `4:30`: hour, minute, and whether it is after noon, if that is said.
    Clock(u32, u32, Option<bool>),
    /// Parts between brackets: a tuple, an interval.
    Group(char, Vec<Self>, char),
    /// Parts in any order.
    Set(Vec<Self>),
    /// Of sets, and of inequalities joined by `or`.
    Union(Vec<Self>),
    /// Of sets, and of inequalities joined by `and`.
    Intersection(Vec<Self>),
    /// The first without the others.
    Difference(Vec<Self>),
    Matrix(Vec<Vec<Self>>),
    /// Sides and the signs between them.
    Relation(Vec<Self>, Vec<Sign>),
}

use Expression as E;

impl Expression {
    /// Creates a whole number.
    pub fn whole(value: i64) -> Self {
        E::Number(Rational::from_integer(value.into()), false)
    }

    /// Returns the same with the other sign.
    pub fn negated(self) -> Self {
        match self {
            E::Number(value, decimal) => E::Number(-value, decimal),
            other => E::Product(vec![Self::whole(-1), other]),
        }
    }

    /// `self / below`.
    pub fn over(self, below: Self) -> Self {
        E::Product(vec![self, below.power(Self::whole(-1))])
    }

    /// `self ^ exponent`.
    pub fn power(self, exponent: Self) -> Self {
        E::Power(Box::new(self), Box::new(exponent))
    }

    /// Returns all real numbers.
    pub fn reals() -> Self {
        E::Group('(', vec![E::Infinity.negated(), E::Infinity], ')')
    }

    /// Returns the parts directly inside.
    pub fn parts(&self) -> Vec<&Self> {
        match self {
            E::Sum(parts)
            | E::Product(parts)
            | E::Call(_, parts)
            | E::Ratio(parts)
            | E::Group(_, parts, _)
            | E::Set(parts)
            | E::Union(parts)
            | E::Intersection(parts)
            | E::Difference(parts)
            | E::Relation(parts, _) => parts.iter().collect(),
            E::Power(first, second) | E::Rounded(first, second) => vec![first, second],
            E::Percent(part) | E::PlusMinus(part) => vec![part],
            E::Matrix(rows) => rows.iter().flatten().collect(),
            _ => Vec::new(),
        }
    }

    /// Replaces the parts directly inside.
    pub fn map(self, f: &mut impl FnMut(Self) -> Self) -> Self {
        let mut all = |parts: Vec<Self>| parts.into_iter().map(&mut *f).collect::<Vec<_>>();
        match self {
            E::Sum(parts) => E::Sum(all(parts)),
            E::Product(parts) => E::Product(all(parts)),
            E::Call(function, parts) => E::Call(function, all(parts)),
            E::Ratio(parts) => E::Ratio(all(parts)),
            E::Group(open, parts, close) => E::Group(open, all(parts), close),
            E::Set(parts) => E::Set(all(parts)),
            E::Union(parts) => E::Union(all(parts)),
            E::Intersection(parts) => E::Intersection(all(parts)),
            E::Difference(parts) => E::Difference(all(parts)),
            E::Relation(parts, signs) => E::Relation(all(parts), signs),
            E::Power(base, exponent) => E::Power(Box::new(f(*base)), Box::new(f(*exponent))),
            E::Rounded(exact, rounded) => E::Rounded(Box::new(f(*exact)), Box::new(f(*rounded))),
            E::Percent(part) => E::Percent(Box::new(f(*part))),
            E::PlusMinus(part) => E::PlusMinus(Box::new(f(*part))),
            E::Matrix(rows) => E::Matrix(rows.into_iter().map(all).collect()),
            leaf => leaf,
        }
    }

    /// Returns whether it is above zero if it is infinite, else `None`.
    pub fn infinite(&self) -> Option<bool> {
        match self {
            Self::Infinity => Some(true),
            Self::Product(parts) if parts.len() == 2 && parts[0] == Self::whole(-1) => {
                parts[1].infinite().map(|above| !above)
            }
            _ => None,
        }
    }

    /// Returns true if it holds only names: `x`, `f(x)`, `|AB|`, `a:b`, or a function of numbers: `f(2)`.
    pub fn is_name(&self) -> bool {
        match self {
            E::Symbol(_) => true,
            E::Product(parts) => {
                let argument = |part: &E| match part {
                    E::Group('(', inner, ')') => inner.len() == 1,
                    part => part.is_name() || matches!(part, E::Number(..)),
                };
                parts.first().is_some_and(Self::is_name) && parts.iter().all(argument)
            }
            E::Call(Function::Named, parts) => {
                parts.iter().all(|part| part.is_name() || !part.is_scalar() || matches!(part, E::Number(..)))
            }
            E::Group('(', parts, ')') | E::Call(_, parts) | E::Ratio(parts) => {
                parts.iter().all(Self::is_name)
            }
            E::Power(base, exponent) => base.is_name() && **exponent == Self::whole(-1),
            _ => false,
        }
    }

    /// Returns true if it is a relation with another sign than `=`.
    pub fn is_inequality(&self) -> bool {
        matches!(self, E::Relation(_, signs) if signs.iter().any(|sign| *sign != Sign::Equal))
    }

    /// Returns true if it joins sets or inequalities.
    pub fn is_operation(&self) -> bool {
        matches!(self, E::Union(_) | E::Intersection(_) | E::Difference(_))
    }

    /// Returns the number of parts in all, itself included.
    pub fn size(&self) -> usize {
        1 + self.parts().into_iter().map(Self::size).sum::<usize>()
    }

    /// Returns true if `wanted` holds for it or for anything inside.
    pub fn any(&self, wanted: &impl Fn(&Self) -> bool) -> bool {
        wanted(self) || self.parts().into_iter().any(|part| part.any(wanted))
    }

    /// Collects the names inside.
    pub fn symbols(&self, into: &mut BTreeSet<String>) {
        if let E::Symbol(name) = self {
            into.insert(name.clone());
        }
        self.parts().into_iter().for_each(|part| part.symbols(into));
    }

    /// Returns true if there is no name inside.
    pub fn is_constant(&self) -> bool {
        !self.any(&|part| matches!(part, E::Symbol(_)))
    }

    /// Returns true if it is a number, so that parts and brackets do not matter.
    pub fn is_scalar(&self) -> bool {
        !self.any(&|part| {
            matches!(
                part,
                E::Group(..)
                    | E::Set(_)
                    | E::Union(_)
                    | E::Intersection(_)
                    | E::Difference(_)
                    | E::Matrix(_)
                    | E::Relation(..)
                    | E::Rounded(..)
                    | E::Ratio(_)
                    | E::Clock(..)
            )
        })
    }

    /// Returns true if a number inside was written with a decimal point.
    pub fn has_decimals(&self) -> bool {
        self.any(&|part| matches!(part, E::Number(_, true)))
    }

    /// Returns true if there is a `±` inside.
    pub fn has_two_signs(&self) -> bool {
        self.any(&|part| matches!(part, E::PlusMinus(_)))
    }

    /// Replaces `±` by plus or minus.
    pub fn with_sign(&self, minus: bool) -> Self {
        match self {
            E::PlusMinus(part) if minus => part.with_sign(minus).negated(),
            E::PlusMinus(part) => part.with_sign(minus),
            other => other.clone().map(&mut |part| part.with_sign(minus)),
        }
    }

    /// Returns the value if it is a rational number of bounded size.
    pub fn exact(&self) -> Option<Rational> {
        let value = match self {
            E::Number(value, _) => return Some(value.clone()),
            E::Sum(parts) => bounded(parts, Rational::zero(), |a, b| a + b)?,
            E::Product(parts) => bounded(parts, Rational::one(), |a, b| a * b)?,
            E::Percent(part) => part.exact()? / BigInt::from(100),
            E::Power(base, exponent) => exact_power(&base.exact()?, &exponent.exact()?)?,
            E::Call(Function::Abs, parts) => parts.first()?.exact()?.abs(),
            E::Call(Function::Floor, parts) => parts.first()?.exact()?.floor(),
            E::Call(Function::Ceil, parts) => parts.first()?.exact()?.ceil(),
            E::Call(Function::Factorial, parts) => {
                let n = whole(&parts.first()?.exact()?).filter(|n| *n <= LARGEST_FACTORIAL)?;
                Rational::from_integer((1..=n).fold(BigInt::one(), |value, i| value * i))
            }
            E::Call(Function::Binomial, parts) => {
                let [n, k] = &parts[..] else { return None };
                let (n, k) = (whole(&n.exact()?)?, whole(&k.exact()?)?);
                if n > LARGEST_FACTORIAL {
                    return None;
                }
                let chosen = |k: u32| (0..k).fold(BigInt::one(), |value, i| value * (n - i) / (i + 1));
                Rational::from_integer(if k > n { BigInt::ZERO } else { chosen(k.min(n - k)) })
            }
            _ => return None,
        };
        short(&value).then_some(value)
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
    if base.is_zero() && !exponent.is_positive() {
        return None;
    }
    // A square root of a square, a cube root of a cube.
    let degree = exponent.denom().to_u32().filter(|degree| *degree <= 64)?;
    let root = |part: &BigInt| {
        let root = part.nth_root(degree);
        (root.pow(degree) == *part).then_some(root)
    };
    let base = match degree {
        1 => base.clone(),
        _ if base.is_negative() => return None,
        _ => Ratio::new(root(base.numer())?, root(base.denom())?),
    };
    let times = exponent.numer().to_i32()?;
    let bits = base.numer().bits().max(base.denom().bits());
    (bits * u64::from(times.unsigned_abs()) <= MOST_BITS + times.unsigned_abs() as u64)
        .then(|| base.pow(times))
}
