//! Values of rational expressions modulo a prime: they tell apart what a double cannot, such as `10^{20000}+1` and
//! `10^{20000}`, and decide whether two rational functions are the same (Schwartz and Zippel's test).
//!
//! Names, π and e are numbers drawn by chance; two expressions with equal residues are equal but for a chance of 2⁻⁵⁰.

use std::hash::{DefaultHasher, Hash, Hasher};

use num_bigint::BigInt;
use num_traits::{ToPrimitive, Zero};

use super::expression::{Expression as E, Function};

/// Two primes of 62 bits, drawn by chance among those where -1 is a square, each with a root of it.
const PRIMES: [(u64, u64); 2] = [
    (3_599_279_600_246_640_553, 812_762_338_649_300_797),
    (3_676_116_879_151_684_613, 1_511_462_969_462_658_332),
];

/// Whether two rational functions are the same; nothing where one of them is none.
pub fn same(a: &E, b: &E) -> Option<bool> {
    let residues = |prime| Some(residue(a, prime)? == residue(b, prime)?);
    Some(residues(PRIMES[0])? && residues(PRIMES[1])?)
}

fn times(a: u64, b: u64, prime: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(prime)) as u64
}

fn power(mut base: u64, mut exponent: u64, prime: u64) -> u64 {
    let mut value = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            value = times(value, base, prime);
        }
        base = times(base, base, prime);
        exponent >>= 1;
    }
    value
}

/// Nothing for zero, which has none.
fn inverse(value: u64, prime: u64) -> Option<u64> {
    (value != 0).then(|| power(value, prime - 2, prime))
}

fn reduced(value: &BigInt, modulus: u64) -> Option<u64> {
    let modulus = BigInt::from(modulus);
    (((value % &modulus) + &modulus) % modulus).to_u64()
}

/// A number for a name, the same each time.
fn drawn(name: &str, prime: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, prime).hash(&mut hasher);
    hasher.finish() % prime
}

fn residue(expression: &E, (prime, root): (u64, u64)) -> Option<u64> {
    let of = |part: &E| residue(part, (prime, root));
    Some(match expression {
        E::Number(value, _) => {
            times(reduced(value.numer(), prime)?, inverse(reduced(value.denom(), prime)?, prime)?, prime)
        }
        E::Symbol(name) => drawn(name, prime),
        E::Pi => drawn("the number π", prime),
        E::Euler => drawn("the number e", prime),
        E::Imaginary => root,
        E::Sum(parts) => parts.iter().try_fold(0, |sum, part| Some((sum + of(part)?) % prime))?,
        E::Product(parts) => {
            parts.iter().try_fold(1, |product, part| Some(times(product, of(part)?, prime)))?
        }
        E::Percent(part) => times(of(part)?, inverse(100, prime)?, prime),
        E::Power(base, exponent) => {
            let exponent = exponent.exact().filter(|exponent| exponent.is_integer())?.to_integer();
            let base = of(base)?;
            if base.is_zero() && exponent <= BigInt::zero() {
                return None;
            }
            power(base, reduced(&exponent, prime - 1)?, prime)
        }
        E::Call(Function::Exp, parts) => {
            return residue(&E::Euler.power(parts.first()?.clone()), (prime, root));
        }
        _ => return None,
    })
}
