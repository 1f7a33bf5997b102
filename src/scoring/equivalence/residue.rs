//! Values of rational expressions modulo a prime: they tell apart what a double cannot, such as `10^{20000}+1` and
//! `10^{20000}`, and decide whether two rational functions are the same (Schwartz and Zippel's test).
//!
//! Square roots of numbers with small prime factors are rational here too. Names, π and e are numbers drawn by chance; two expressions with equal residues are equal but for a chance of 2⁻⁵⁰.

use std::hash::{DefaultHasher, Hash, Hasher};

use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::expression::{Expression as E, Function, Rational};

/// Two primes of 62 bits, drawn by chance among those for which -1 and the primes up to 43 are squares.
const PRIMES: [u64; 2] = [2_825_876_447_640_726_481, 4_500_469_898_094_490_321];
/// Numbers and their square roots modulo the two primes.
const ROOTS: [(i32, [u64; 2]); 15] = [
    (-1, [583_518_795_224_046_743, 553_560_320_400_754_502]),
    (2, [806_563_046_223_287_804, 391_809_403_009_146_600]),
    (3, [1_206_361_582_146_619_977, 338_659_366_798_922_404]),
    (5, [846_266_159_498_664_161, 1_376_450_970_140_498_238]),
    (7, [1_343_019_976_392_717_741, 1_810_793_165_953_700_877]),
    (11, [284_934_583_061_183_053, 1_645_851_977_759_313_727]),
    (13, [997_940_240_611_039_025, 1_859_355_686_828_295_662]),
    (17, [171_490_463_377_720_369, 457_304_193_086_538_021]),
    (19, [977_544_677_487_117_258, 646_640_649_893_883_150]),
    (23, [1_039_005_622_394_895_482, 1_407_156_480_159_834_770]),
    (29, [1_403_562_063_999_282_047, 532_235_398_966_786_437]),
    (31, [1_344_084_212_691_055_507, 1_166_769_747_489_181_844]),
    (37, [687_552_263_815_092_757, 1_332_453_633_748_393_549]),
    (41, [320_813_599_163_529_625, 2_157_732_046_127_997_637]),
    (43, [1_083_019_518_958_839_623, 1_908_346_015_193_293_135]),
];

/// Returns whether two rational functions are the same, or `None` if either is not one.
pub fn same(a: &E, b: &E) -> Option<bool> {
    let residues = |which| Some(residue(a, which)? == residue(b, which)?);
    Some(residues(0)? && residues(1)?)
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

/// Returns the inverse modulo the prime; `None` for zero, which has none.
fn inverse(value: u64, prime: u64) -> Option<u64> {
    (value != 0).then(|| power(value, prime - 2, prime))
}

fn reduced(value: &BigInt, modulus: u64) -> Option<u64> {
    let modulus = BigInt::from(modulus);
    (((value % &modulus) + &modulus) % modulus).to_u64()
}

/// Returns a number for a name, the same each time.
fn drawn(name: &str, prime: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, prime).hash(&mut hasher);
    hasher.finish() % prime
}

/// Returns the square root of a number whose prime factors are small.
fn square_root(value: &Rational, which: usize) -> Option<u64> {
    let prime = PRIMES[which];
    let part = |part: &BigInt| {
        let (mut left, mut root) = (part.abs(), 1);
        for (factor, roots) in &ROOTS[1..] {
            while (&left % factor).is_zero() {
                left /= *factor;
                root = times(root, roots[which], prime);
            }
        }
        left.is_one().then_some(root)
    };
    let sign = if value.is_negative() { ROOTS[0].1[which] } else { 1 };
    Some(times(times(sign, part(value.numer())?, prime), inverse(part(value.denom())?, prime)?, prime))
}

fn residue(expression: &E, which: usize) -> Option<u64> {
    let of = |part: &E| residue(part, which);
    let prime = PRIMES[which];
    Some(match expression {
        E::Number(value, _) => {
            times(reduced(value.numer(), prime)?, inverse(reduced(value.denom(), prime)?, prime)?, prime)
        }
        E::Symbol(name) => drawn(name, prime),
        E::Pi => drawn("the number π", prime),
        E::Euler => drawn("the number e", prime),
        E::Imaginary => ROOTS[0].1[which],
        E::Sum(parts) => parts.iter().try_fold(0, |sum, part| Some((sum + of(part)?) % prime))?,
        E::Product(parts) => {
            parts.iter().try_fold(1, |product, part| Some(times(product, of(part)?, prime)))?
        }
        E::Percent(part) => times(of(part)?, inverse(100, prime)?, prime),
        E::Power(base, exponent) => {
            let exponent = exponent.exact()?;
            let base = match exponent.denom().to_u32()? {
                1 => of(base)?,
                2 => square_root(&base.exact().filter(|base| !base.is_zero())?, which)?,
                _ => return None,
            };
            if base.is_zero() && !exponent.is_positive() {
                return None;
            }
            power(base, reduced(exponent.numer(), prime - 1)?, prime)
        }
        E::Call(Function::Exp, parts) => return residue(&E::Euler.power(parts.first()?.clone()), which),
        _ => return None,
    })
}
