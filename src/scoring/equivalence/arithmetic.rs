//! Arithmetic that is worked out before two answers are compared: exact numbers, and sums, products, powers
//! and determinants of matrices and tuples.

use num_traits::{ToPrimitive, Zero};

use super::expression::{Expression as E, Function, Rational};

type Rows = Vec<Vec<E>>;

/// The largest power of a matrix that is multiplied out, and the most products of entries on the way.
const LARGEST_POWER: i32 = 10;
const MOST_PRODUCTS: usize = 8_000;
/// The largest matrix that is inverted.
const LARGEST_INVERSE: usize = 6;
/// The largest matrix with names whose determinant is written out.
const LARGEST_WRITTEN: usize = 3;
/// The most parts of a result; what would have more stays as it is.
const MOST_PARTS: usize = 1000;

/// Works out everything in an answer that can be.
pub fn evaluated(answer: E) -> E {
    let answer = answer.map(&mut evaluated);
    let found = match &answer {
        E::Sum(parts) => sum(parts),
        E::Product(parts) => product(parts),
        E::Power(base, exponent) => power(base, exponent),
        E::Call(Function::Determinant | Function::Abs, parts) => match &parts[..] {
            [E::Matrix(rows)] => determinant(rows),
            _ => None,
        },
        _ => None,
    };
    folded(found.filter(|found| found.size() <= MOST_PARTS).unwrap_or(answer))
}

/// Folds a scalar of numbers alone into one number.
fn folded(answer: E) -> E {
    let parts = answer.parts();
    if parts.is_empty() || !parts.iter().all(|part| matches!(part, E::Number(..))) {
        return answer;
    }
    match answer.exact() {
        Some(value) => E::Number(value, answer.has_decimals()),
        None => answer,
    }
}

/// Returns the parts of a tuple, or of a vector between angle brackets.
fn tuple(part: &E) -> Option<&Vec<E>> {
    match part {
        E::Group('(', parts, ')') => Some(parts),
        _ => None,
    }
}

fn sum(parts: &[E]) -> Option<E> {
    let (first, rest) = parts.split_first()?;
    let taken = |part: &E| match part {
        E::Product(factors) => match &factors[..] {
            [minus, set @ E::Set(_)] if *minus == E::whole(-1) => Some(set.clone()),
            _ => None,
        },
        _ => None,
    };
    if let Some(sets) = rest.iter().map(taken).collect::<Option<Vec<_>>>().filter(|_| !first.is_scalar()) {
        return Some(E::Difference([first.clone()].into_iter().chain(sets).collect()));
    }
    if let Some(first) = tuple(first) {
        let all = rest.iter().try_fold(first.clone(), |all, part| added(&all, tuple(part)?))?;
        return Some(E::Group('(', all, ')'));
    }
    let E::Matrix(first) = first else { return None };
    let rows = rest.iter().try_fold(first.clone(), |all, part| {
        let E::Matrix(part) = part else { return None };
        (all.len() == part.len()).then_some(())?;
        all.iter().zip(part).map(|(a, b)| added(a, b)).collect::<Option<Rows>>()
    })?;
    Some(E::Matrix(rows))
}

fn added(a: &[E], b: &[E]) -> Option<Vec<E>> {
    let sum = |(a, b): (&E, &E)| folded(E::Sum(vec![a.clone(), b.clone()]));
    (a.len() == b.len()).then(|| a.iter().zip(b).map(sum).collect())
}

fn scaled(parts: &[E], scale: &E) -> Vec<E> {
    let times = |part: &E| folded(E::Product(vec![scale.clone(), part.clone()]));
    parts.iter().map(times).collect()
}

/// Multiplies numbers with at most one tuple, or with matrices in their order.
fn product(parts: &[E]) -> Option<E> {
    let (scalars, others): (Vec<_>, Vec<_>) = parts.iter().cloned().partition(E::is_scalar);
    let (first, rest) = others.split_first()?;
    let scale = (!scalars.is_empty()).then(|| folded(E::Product(scalars)));
    let scaled = |parts: &Vec<E>| scale.as_ref().map_or_else(|| parts.clone(), |scale| scaled(parts, scale));
    if let Some(first) = tuple(first) {
        return rest.is_empty().then(|| E::Group('(', scaled(first), ')'));
    }
    let E::Matrix(first) = first else { return None };
    let rows = rest.iter().try_fold(first.clone(), |all, part| match part {
        E::Matrix(part) => multiplied(&all, part),
        _ => None,
    })?;
    Some(E::Matrix(rows.iter().map(scaled).collect()))
}

fn multiplied(a: &Rows, b: &Rows) -> Option<Rows> {
    let columns = transposed(b)?;
    let entry = |row: &[E], column: &[E]| {
        let terms = row.iter().zip(column).map(|(x, y)| folded(E::Product(vec![x.clone(), y.clone()])));
        folded(E::Sum(terms.collect()))
    };
    if a.iter().any(|row| row.len() != b.len()) {
        return None;
    }
    let rows: Rows = a.iter().map(|row| columns.iter().map(|column| entry(row, column)).collect()).collect();
    (rows.iter().flatten().map(E::size).sum::<usize>() <= MOST_PARTS).then_some(rows)
}

fn transposed(rows: &Rows) -> Option<Rows> {
    let width = rows.first()?.len();
    rows.iter().all(|row| row.len() == width).then_some(())?;
    Some((0..width).map(|column| rows.iter().map(|row| row[column].clone()).collect()).collect())
}

fn power(base: &E, exponent: &E) -> Option<E> {
    let E::Matrix(rows) = base else { return None };
    if matches!(exponent, E::Symbol(name) if ["T", "t", "\\top", "\\intercal"].contains(&name.as_str())) {
        return transposed(rows).map(E::Matrix);
    }
    let exponent = exponent.exact().filter(Rational::is_integer)?.to_integer().to_i32()?;
    let products = rows.len().pow(3) * usize::try_from(exponent.abs() - 1).ok()?;
    if exponent.abs() > LARGEST_POWER || products > MOST_PRODUCTS {
        return None;
    }
    let rows = if exponent < 0 { inverse(rows)? } else { rows.clone() };
    (1..exponent.abs()).try_fold(rows.clone(), |all, _| multiplied(&all, &rows)).map(E::Matrix)
}

fn is_square(rows: &Rows) -> bool {
    rows.iter().all(|row| row.len() == rows.len())
}

/// Computes by elimination if all entries are exact, else writes the determinant out.
fn determinant(rows: &Rows) -> Option<E> {
    if !is_square(rows) {
        return None;
    }
    let Some(mut left) = exact(rows) else {
        return (rows.len() <= LARGEST_WRITTEN).then(|| written(rows));
    };
    let mut value = Rational::from_integer(1.into());
    for column in 0..left.len() {
        let Some(pivot) = (column..left.len()).find(|row| !left[*row][column].is_zero()) else {
            return Some(E::whole(0));
        };
        if pivot != column {
            left.swap(pivot, column);
            value = -value;
        }
        value *= left[column][column].clone();
        for row in column + 1..left.len() {
            let factor = &left[row][column] / &left[column][column];
            subtract(&mut left, row, column, &factor);
        }
    }
    Some(E::Number(value, has_decimals(rows)))
}

fn has_decimals(rows: &Rows) -> bool {
    rows.iter().flatten().any(E::has_decimals)
}

/// Subtracts a multiple of one row from another.
fn subtract(rows: &mut [Vec<Rational>], row: usize, taken: usize, factor: &Rational) {
    for column in 0..rows[row].len() {
        let change = factor * &rows[taken][column];
        rows[row][column] -= change;
    }
}

fn exact(rows: &Rows) -> Option<Vec<Vec<Rational>>> {
    rows.iter().map(|row| row.iter().map(E::exact).collect()).collect()
}

/// Writes the determinant out by its first row.
fn written(rows: &Rows) -> E {
    if let [row] = &rows[..] {
        return row[0].clone();
    }
    let terms = rows[0].iter().enumerate().map(|(column, entry)| {
        let term = E::Product(vec![entry.clone(), written(&without(rows, 0, column))]);
        if column % 2 == 1 { term.negated() } else { term }
    });
    E::Sum(terms.collect())
}

/// Drops a row and a column.
fn without(rows: &Rows, row: usize, column: usize) -> Rows {
    let left = |entries: &Vec<E>| {
        let kept = entries.iter().enumerate().filter(|(place, _)| *place != column);
        kept.map(|(_, entry)| entry.clone()).collect()
    };
    rows.iter().enumerate().filter(|(place, _)| *place != row).map(|(_, entries)| left(entries)).collect()
}

/// Inverts a matrix by its cofactors.
fn inverse(rows: &Rows) -> Option<Rows> {
    if rows.len() > LARGEST_INVERSE {
        return None;
    }
    let all = determinant(rows).filter(|all| *all != E::whole(0))?;
    if let [row] = &rows[..] {
        return Some(vec![vec![folded(row[0].clone().power(E::whole(-1)))]]);
    }
    let cofactor = |row: usize, column: usize| {
        let minor = determinant(&without(rows, row, column))?;
        let signed = if (row + column) % 2 == 1 { minor.negated() } else { minor };
        Some(folded(E::Product(vec![signed, folded(all.clone().power(E::whole(-1)))])))
    };
    let places = 0..rows.len();
    // Entry (i, j) of the inverse belongs to the cofactor of (j, i).
    places.clone().map(|i| places.clone().map(|j| cofactor(j, i)).collect()).collect()
}
