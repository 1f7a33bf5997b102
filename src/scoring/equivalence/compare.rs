//! Whether two answers that were read are the same.

use std::collections::{BTreeMap, BTreeSet};

use num_bigint::BigInt;
use num_complex::Complex64;
use num_traits::Zero;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::expression::{Expression as E, Rational, Sign};

/// The most parts of a set that are matched.
const MOST_PARTS: usize = 32;
const POINTS: usize = 8;
const SEED: u64 = 20_240_611;
/// Relative to the larger of two values.
const TOLERANCE: f64 = 1e-9;

/// Whether `predicted` answers what `gold` does. Not symmetric: only a predicted set may stand for a gold inequality.
pub fn same(gold: &E, predicted: &E) -> bool {
    let (gold, predicted) = (expanded(gold), expanded(predicted));
    let (gold, predicted) = unwrapped(&gold, &predicted);
    if gold == predicted {
        return true;
    }
    if let (E::Relation(sides, signs), false) = (gold, matches!(predicted, E::Relation(..))) {
        return solutions(sides, signs).is_some_and(|set| !predicted.is_scalar() && same(&set, predicted));
    }
    match (gold, predicted) {
        (E::Relation(a, signs_a), E::Relation(b, signs_b)) => same_relation((a, signs_a), (b, signs_b)),
        (E::Matrix(a), E::Matrix(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_in_order(a, b))
        }
        (E::Union(a), E::Union(b)) | (E::Set(a), E::Set(b)) => same_in_any_order(a, b),
        (E::Group(open_a, a, close_a), E::Group(open_b, b, close_b)) => {
            let end = |part: Option<&E>| part.is_some_and(|part| infinite(part).is_some());
            // No bracket changes a tuple, or an infinite end of an interval.
            let tuple = a.len() != 2;
            (tuple || open_a == open_b || end(a.first()))
                && (tuple || close_a == close_b || end(a.last()))
                && same_in_order(a, b)
        }
        (E::Group('(', a, ')'), E::Set(b)) => same_in_order(a, b),
        (E::Set(a), E::Group('(', b, ')')) => same_in_any_order(a, b),
        (E::Set(a), b) => distinct(a).is_some_and(|a| a.len() == 1 && same(a[0], b)),
        (a, E::Set(b)) => distinct(b).is_some_and(|b| b.len() == 1 && same(a, b[0])),
        (a, b) if a.is_scalar() && b.is_scalar() => same_number(a, b),
        _ => false,
    }
}

/// `1 ± 2` as the set of both.
fn expanded(answer: &E) -> E {
    if matches!(answer, E::Set(_)) {
        let E::Set(parts) = answer else { return answer.clone() };
        let all = parts.iter().flat_map(|part| match expanded(part) {
            E::Set(parts) => parts,
            other => vec![other],
        });
        return E::Set(all.collect());
    }
    let scalar = match answer {
        E::Relation(sides, _) => sides.iter().all(E::is_scalar),
        other => other.is_scalar(),
    };
    if scalar && answer.has_two_signs() {
        E::Set(vec![answer.with_sign(false), answer.with_sign(true)])
    } else {
        answer.clone()
    }
}

/// `x = 5` as 5 where the other side is no equation.
fn unwrapped<'a>(gold: &'a E, predicted: &'a E) -> (&'a E, &'a E) {
    let equation =
        |answer: &E| matches!(answer, E::Relation(_, signs) if signs.iter().all(|sign| *sign == Sign::Equal));
    match (gold, predicted) {
        (gold, E::Relation(sides, _)) if equation(predicted) && !equation(gold) => {
            (gold, sides.last().unwrap_or(predicted))
        }
        (E::Relation(sides, _), predicted)
            if equation(gold) && !equation(predicted) && is_name(&sides[0]) =>
        {
            (sides.last().unwrap_or(gold), predicted)
        }
        both => both,
    }
}

/// Whether only names stand there: `x`, `f(x)`, `|AB|`, `a/b`.
fn is_name(side: &E) -> bool {
    match side {
        E::Symbol(_) => true,
        E::Product(parts) | E::Group('(', parts, ')') | E::Call(_, parts) => parts.iter().all(is_name),
        E::Power(base, exponent) => is_name(base) && **exponent == E::whole(-1),
        _ => false,
    }
}

fn same_in_order(a: &[E], b: &[E]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

fn same_in_any_order(a: &[E], b: &[E]) -> bool {
    let (Some(a), Some(b)) = (distinct(a), distinct(b)) else { return false };
    let mut left = b.clone();
    a.len() == b.len()
        && a.iter().all(|part| match left.iter().position(|other| same(part, other)) {
            Some(place) => {
                left.swap_remove(place);
                true
            }
            None => false,
        })
}

/// The parts, none twice; nothing where there are too many.
fn distinct(parts: &[E]) -> Option<Vec<&E>> {
    if parts.len() > MOST_PARTS {
        return None;
    }
    let mut kept: Vec<&E> = Vec::new();
    for part in parts {
        if !kept.iter().any(|other| same(part, other)) {
            kept.push(part);
        }
    }
    Some(kept)
}

/// Relations are the same where their differences are multiples of each other, sign by sign.
fn same_relation(a: (&[E], &[Sign]), b: (&[E], &[Sign])) -> bool {
    let (a_sides, a_signs) = short_form(a.0, a.1);
    let (b_sides, b_signs) = short_form(b.0, b.1);
    if a_sides.len() == 2 && b_sides.len() == 2 {
        return same_pair(&a_sides, a_signs[0], &b_sides, b_signs[0]);
    }
    let flipped: Vec<Sign> = b_signs.iter().rev().map(|sign| sign.flipped()).collect();
    let reversed: Vec<E> = b_sides.iter().rev().cloned().collect();
    (a_signs == b_signs && same_in_order(&a_sides, &b_sides))
        || (a_signs == flipped && same_in_order(&a_sides, &reversed))
}

/// `x = a = b` as `x = b`.
fn short_form(sides: &[E], signs: &[Sign]) -> (Vec<E>, Vec<Sign>) {
    match (sides.first(), sides.last()) {
        (Some(first), Some(last)) if signs.iter().all(|sign| *sign == Sign::Equal) => {
            (vec![first.clone(), last.clone()], vec![Sign::Equal])
        }
        _ => (sides.to_vec(), signs.to_vec()),
    }
}

fn same_pair(a: &[E], a_sign: Sign, b: &[E], b_sign: Sign) -> bool {
    if !a.iter().chain(b).all(E::is_scalar) {
        return a_sign == b_sign && same_in_order(a, b);
    }
    let difference = |sides: &[E]| E::Sum(vec![sides[0].clone(), sides[1].clone().negated()]);
    let (a, b) = (difference(a), difference(b));
    let ratios: Option<Vec<Complex64>> = values(&a, &b).map(|pairs| {
        pairs.into_iter().filter(|(x, y)| !x.is_zero() && !y.is_zero()).map(|(x, y)| x / y).collect()
    });
    let Some(ratios) = ratios else { return false };
    let Some(first) = ratios.first().copied() else { return false };
    let constant = ratios.iter().all(|ratio| close(*ratio, first)) && first.im.abs() < TOLERANCE;
    let sign = if first.re > 0.0 { b_sign } else { b_sign.flipped() };
    constant && a_sign == sign
}

/// The interval of one name between numbers: `1 < x ≤ 2` is `(1, 2]`.
fn solutions(sides: &[E], signs: &[Sign]) -> Option<E> {
    let minus = || E::Infinity.negated();
    let interval = |low: E, low_sign: Sign, high: E, high_sign: Sign| {
        let closed = |sign| sign == Sign::LessOrEqual;
        let open = if closed(low_sign) { '[' } else { '(' };
        E::Group(open, vec![low, high], if closed(high_sign) { ']' } else { ')' })
    };
    let rising = |sign: &Sign| matches!(sign, Sign::Less | Sign::LessOrEqual);
    let (mut sides, mut signs) = (sides.to_vec(), signs.to_vec());
    if signs.iter().all(|sign| rising(&sign.flipped())) {
        sides.reverse();
        signs = signs.iter().rev().map(|sign| sign.flipped()).collect();
    }
    if !signs.iter().all(rising) {
        return None;
    }
    match (&sides[..], &signs[..]) {
        ([low, x, high], [a, b]) if is_name(x) => Some(interval(low.clone(), *a, high.clone(), *b)),
        ([x, high], [sign]) if is_name(x) => Some(interval(minus(), Sign::Less, high.clone(), *sign)),
        ([low, x], [sign]) if is_name(x) => Some(interval(low.clone(), *sign, E::Infinity, Sign::Less)),
        _ => None,
    }
}

fn same_number(a: &E, b: &E) -> bool {
    let rounded = is_decimal(a) || is_decimal(b);
    match (infinite(a), infinite(b)) {
        (None, None) => {}
        (a, b) => return a == b,
    }
    if let (Some(a), Some(b)) = (a.exact(), b.exact()) {
        return a == b || (rounded && sixth_place(&a) == sixth_place(&b));
    }
    let Some(pairs) = values(a, b) else { return false };
    pairs.into_iter().all(|(a, b)| close(a, b) || (rounded && (a - b).norm() < 5e-7))
}

fn is_decimal(answer: &E) -> bool {
    match answer {
        E::Number(_, decimal) => *decimal,
        E::Percent(part) => is_decimal(part),
        E::Product(parts) => parts.len() == 2 && parts[0] == E::whole(-1) && is_decimal(&parts[1]),
        _ => false,
    }
}

/// Whether it is infinite, and then whether it is above zero.
fn infinite(answer: &E) -> Option<bool> {
    match answer {
        E::Infinity => Some(true),
        E::Product(parts) if parts.len() == 2 && parts[0] == E::whole(-1) => {
            infinite(&parts[1]).map(|above| !above)
        }
        _ => None,
    }
}

fn sixth_place(value: &Rational) -> BigInt {
    (value * BigInt::from(1_000_000)).round().to_integer()
}

/// The values of both at seeded points where both have one; nothing where there are too few.
fn values(a: &E, b: &E) -> Option<Vec<(Complex64, Complex64)>> {
    let mut names = BTreeSet::new();
    a.symbols(&mut names);
    b.symbols(&mut names);
    let mut draw = ChaCha8Rng::seed_from_u64(SEED);
    let mut pairs = Vec::new();
    for round in 0..if names.is_empty() { 1 } else { POINTS } {
        let points: BTreeMap<String, f64> = names
            .iter()
            .map(|name| {
                let size = draw.random_range(0.3..2.7);
                // Roots and logarithms may have values above zero only.
                (name.clone(), if round % 2 == 1 && draw.random() { -size } else { size })
            })
            .collect();
        if let (Some(a), Some(b)) = (a.value(&points), b.value(&points)) {
            pairs.push((a, b));
        }
    }
    (pairs.len() >= if names.is_empty() { 1 } else { 2 }).then_some(pairs)
}

fn close(a: Complex64, b: Complex64) -> bool {
    let size = a.norm().max(b.norm());
    (a - b).norm() <= TOLERANCE * size || size < 1e-13
}
