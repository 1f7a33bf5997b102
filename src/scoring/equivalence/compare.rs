//! Comparison of two answers that were read.

use std::collections::BTreeSet;

use num_bigint::BigInt;
use num_traits::Signed;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::closeness::closeness;
use super::expression::{Expression as E, Function, Rational, Sign};
use super::value::{Points, Value};
use super::{assignments, residue, sets};

/// Maximum number of parts of a set that are matched.
const MOST_PARTS: usize = 32;
const POINTS: usize = 8;
const SEED: u64 = 20_240_611;

/// Returns true if `predicted` answers `gold`. Not symmetric: `x + y = 3` answers 3, but not vice versa.
pub fn same(gold: &E, predicted: &E) -> bool {
    if gold == predicted {
        return true;
    }
    if let Some((exact, rounded)) = roundings(gold) {
        return same(&exact, predicted) || rounded.is_some_and(|rounded| same(&rounded, predicted));
    }
    if let Some((exact, rounded)) = roundings(predicted) {
        return same(gold, &exact) || rounded.is_some_and(|rounded| same(gold, &rounded));
    }
    let (gold, predicted) = (expanded(gold), expanded(predicted));
    if let Some(verdict) = assignments::same(&gold, &predicted, same_in_order, same_in_any_order) {
        return verdict;
    }
    let (gold, predicted) = unwrapped(&gold, &predicted);
    if gold == predicted {
        return true;
    }
    if let (E::Relation(a, signs_a), E::Relation(b, signs_b)) = (gold, predicted)
        && same_relation((a, signs_a), (b, signs_b))
    {
        return true;
    }
    if (sets::is_certain(gold) || sets::is_certain(predicted))
        && let Some(verdict) = sets::same(gold, predicted)
    {
        return verdict;
    }
    match (gold, predicted) {
        (E::Matrix(a), E::Matrix(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_in_order(a, b))
        }
        (E::Matrix(column), E::Group('(', parts, ')')) => same_column(column, parts, false),
        (E::Group('(', parts, ')'), E::Matrix(column)) => same_column(column, parts, true),
        (E::Union(a), E::Union(b)) | (E::Intersection(a), E::Intersection(b)) | (E::Set(a), E::Set(b)) => {
            same_in_any_order(a, b)
        }
        (E::Difference(a), E::Difference(b)) => same_in_order(a, b),
        (E::Group(open_a, a, close_a), E::Group(open_b, b, close_b)) => {
            let end = |part: Option<&E>| part.is_some_and(|part| part.infinite().is_some());
            // No bracket changes a tuple, or an infinite end of an interval.
            let tuple = a.len() != 2;
            (tuple || open_a == open_b || end(a.first()))
                && (tuple || close_a == close_b || end(a.last()))
                && same_in_order(a, b)
        }
        (E::Group('(', a, ')'), E::Set(b)) => same_in_order(a, b),
        (E::Set(a), E::Group('(', b, ')')) if a.len() > 1 => same_in_any_order(a, b),
        (E::Ratio(_) | E::Clock(..), _) | (_, E::Ratio(_) | E::Clock(..)) => same_ratio(gold, predicted),
        (E::Matrix(rows), scalar) | (scalar, E::Matrix(rows)) if scalar.is_scalar() => {
            matches!(&rows[..], [row] if matches!(&row[..], [entry] if same(entry, scalar)))
        }
        (E::Set(a), b) => only(a).is_some_and(|a| same(a, b)),
        (a, E::Set(b)) => only(b).is_some_and(|b| same(a, b)),
        (E::Call(Function::Named, a), E::Call(Function::Named, b)) => same_in_order(a, b),
        (a, b) if a.is_scalar() && b.is_scalar() => same_number(a, b),
        _ => false,
    }
}

/// Compares a matrix of one column with a tuple.
fn same_column(column: &[Vec<E>], parts: &[E], column_is_predicted: bool) -> bool {
    let one = |(row, part): (&Vec<E>, &E)| match &row[..] {
        [entry] if column_is_predicted => same(part, entry),
        [entry] => same(entry, part),
        _ => false,
    };
    column.len() == parts.len() && column.iter().zip(parts).all(one)
}

/// Splits an answer with a rounded value into the exact one, and the rounded one if that rounds it.
fn roundings(answer: &E) -> Option<(E, Option<E>)> {
    match answer {
        E::Rounded(exact, rounded) => {
            Some(((**exact).clone(), rounds(exact, rounded).then(|| (**rounded).clone())))
        }
        E::Relation(sides, signs) => {
            let (exact, rounded) = roundings(sides.last()?)?;
            let with = |last: E| {
                let mut sides = sides.clone();
                sides.pop();
                sides.push(last);
                E::Relation(sides, signs.clone())
            };
            Some((with(exact), rounded.map(with)))
        }
        _ => None,
    }
}

/// Returns true if a decimal number is a value to half a unit of its last place.
fn rounds(exact: &E, rounded: &E) -> bool {
    let (Some(rounded), Some(value)) = (rounded.exact(), exact.value(&Points::new())) else { return false };
    let places = (0..20).find(|places| (&rounded * BigInt::from(10).pow(*places)).is_integer());
    let (Some(places), Some(rounded)) = (places, E::Number(rounded, true).value(&Points::new())) else {
        return false;
    };
    value.apart(rounded).is_some_and(|(apart, _)| apart <= 0.500_001 * 10f64.powi(-(places as i32)))
}

/// Expands `1 ± 2` into the set of both.
fn expanded(answer: &E) -> E {
    if let E::Set(parts) = answer {
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

/// Reduces `x = 5` to 5 if the other side is not an equation.
fn unwrapped<'a>(gold: &'a E, predicted: &'a E) -> (&'a E, &'a E) {
    let equation = |answer: &E| matches!(answer, E::Relation(..)) && !answer.is_inequality();
    match (gold, predicted) {
        (gold, E::Relation(sides, _)) if equation(predicted) && !equation(gold) => {
            (gold, sides.last().unwrap_or(predicted))
        }
        (E::Relation(sides, _), predicted)
            if equation(gold) && !equation(predicted) && sides[0].is_name() =>
        {
            (sides.last().unwrap_or(gold), predicted)
        }
        both => both,
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

/// Returns the distinct parts, or `None` if there are too many.
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

/// Returns the only part of a set, unless it is a set itself.
fn only(parts: &[E]) -> Option<&E> {
    match distinct(parts)?[..] {
        [E::Group('(', ends, ')')] if ends.iter().any(|end| end.infinite().is_some()) => None,
        [part @ (E::Group('(', _, ')') | E::Relation(..) | E::Matrix(_))] => Some(part),
        [part] if part.is_scalar() => Some(part),
        _ => None,
    }
}

/// Compares ratios, which are the same if they are proportional, and clock times. A ratio of two is also the
/// fraction of them, but neither a ratio nor a time is a decimal number.
fn same_ratio(gold: &E, predicted: &E) -> bool {
    let parts = |answer: &E| match answer {
        E::Ratio(parts) => Some(parts.clone()),
        E::Clock(hour, minute, None) => Some(vec![E::whole((*hour).into()), E::whole((*minute).into())]),
        _ => None,
    };
    match (gold, predicted) {
        (E::Clock(a, a_minute, a_half), E::Clock(b, b_minute, b_half)) => {
            let hour = |hour: u32, half: Option<bool>| match half {
                Some(after_noon) => hour % 12 + if after_noon { 12 } else { 0 },
                None => hour % 24,
            };
            let one_says = a_half.is_some() != b_half.is_some();
            let same_hour = hour(*a, *a_half) == hour(*b, *b_half) || (one_says && a == b);
            same_hour && a_minute == b_minute
        }
        // A ratio would be in lowest terms.
        (E::Clock(hour, minute, _), E::Ratio(_))
            if (2..=*minute).any(|n| hour % n == 0 && minute % n == 0) =>
        {
            false
        }
        (E::Ratio(_) | E::Clock(..), E::Ratio(_) | E::Clock(..)) => {
            let (Some(a), Some(b)) = (parts(gold), parts(predicted)) else { return false };
            let cross = |x: &E, y: &E| E::Product(vec![x.clone(), y.clone()]);
            let proportional = |(x, y): (&E, &E)| same_number(&cross(x, &b[0]), &cross(y, &a[0]));
            a.len() == b.len() && a.iter().chain(&b).all(E::is_scalar) && a.iter().zip(&b).all(proportional)
        }
        (E::Ratio(parts), other) | (other, E::Ratio(parts)) => {
            let fraction = matches!(other, E::Number(value, false) if !value.is_integer());
            let [above, below] = &parts[..] else { return false };
            fraction
                && parts.iter().all(E::is_scalar)
                && same_number(&above.clone().over(below.clone()), other)
        }
        _ => false,
    }
}

/// Compares relations, which are the same if their differences are multiples of each other, sign by sign.
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

/// Shortens `x = a = b` to `x = b`.
fn short_form(sides: &[E], signs: &[Sign]) -> (Vec<E>, Vec<Sign>) {
    match (sides.first(), sides.last()) {
        (Some(first), Some(last)) if signs.iter().all(|sign| *sign == Sign::Equal) => {
            (vec![first.clone(), last.clone()], vec![Sign::Equal])
        }
        _ => (sides.to_vec(), signs.to_vec()),
    }
}

fn same_pair(a: &[E], a_sign: Sign, b: &[E], b_sign: Sign) -> bool {
    if a_sign == b_sign && same_in_order(a, b) {
        return true;
    }
    if !a.iter().chain(b).all(E::is_scalar) {
        return false;
    }
    let difference = |sides: &[E]| E::Sum(vec![sides[0].clone(), sides[1].clone().negated()]);
    let (a, b) = (difference(a), difference(b));
    let closeness = closeness(&a, &b);
    let Some(pairs) = values(&a, &b) else { return false };
    let mut pairs = pairs.into_iter().filter(|(x, y)| !x.is_zero() && !y.is_zero());
    let Some((first_x, first_y)) = pairs.next() else { return false };
    // x / y is the same number at all points, and a real one.
    let Some(ratio) = first_y.inverse().and_then(|inverse| first_x.times(inverse)) else { return false };
    let constant = pairs.all(|(x, y)| y.times(ratio).is_some_and(|scaled| closeness.close(x, scaled)));
    constant && ratio.is_real() && a_sign == if ratio.is_above_zero() { b_sign } else { b_sign.flipped() }
}

fn same_number(a: &E, b: &E) -> bool {
    match (a.infinite(), b.infinite()) {
        (None, None) => {}
        (a, b) => return a == b,
    }
    let closeness = closeness(a, b);
    if let (Some(a), Some(b)) = (a.exact(), b.exact()) {
        return a == b || (closeness.tolerance.is_some() && rounds_to_same(&a, &b));
    }
    match (residue::same(a, b), closeness.tolerance) {
        (Some(true), _) => return true,
        (Some(false), None) => return false,
        _ => {}
    }
    values(a, b).is_some_and(|pairs| pairs.into_iter().all(|(a, b)| closeness.close(a, b)))
}

/// Returns true if two numbers have the same six decimals, and differ by a small share of them.
fn rounds_to_same(a: &Rational, b: &Rational) -> bool {
    let sixth_place = |value: &Rational| (value * BigInt::from(1_000_000)).round().to_integer();
    let share = (a - b).abs() * BigInt::from(10_000);
    sixth_place(a) == sixth_place(b) && (share <= a.abs() || share <= b.abs())
}

/// Evaluates both at seeded points where both have a value; `None` if there are too few.
fn values(a: &E, b: &E) -> Option<Vec<(Value, Value)>> {
    let mut names = BTreeSet::new();
    a.symbols(&mut names);
    b.symbols(&mut names);
    let mut draw = ChaCha8Rng::seed_from_u64(SEED);
    let mut pairs = Vec::new();
    for round in 0..if names.is_empty() { 1 } else { POINTS } {
        let mut points = Points::new();
        for name in &names {
            let size = draw.random_range(0.3..2.7);
            // Roots and logarithms may have values above zero only.
            let value = if round % 2 == 1 && draw.random() { -size } else { size };
            points.insert(name.clone(), Value::exactly(value)?);
        }
        if let (Some(a), Some(b)) = (a.value(&points), b.value(&points)) {
            pairs.push((a, b));
        }
    }
    (pairs.len() >= if names.is_empty() { 1 } else { 2 }).then_some(pairs)
}
