//! Sets of real numbers: intervals, finite sets, their combinations, and inequalities of one name.
//!
//! Two sets are the same if the same points are in both: at each end and root, between them and beyond them.

use std::collections::BTreeSet;

use super::closeness::{Closeness, closeness};
use super::expression::{Expression as E, Function, Sign};
use super::value::{Points, Value};

/// Maximum number of ends and roots that are looked at.
const MOST_POINTS: usize = 200;
/// Number of grid points on either side of zero between which roots are looked for.
const GRID: i32 = 150;
const HALVINGS: usize = 60;

/// Returns whether two sets are the same, or `None` if one of them is not a set of real numbers.
pub fn same(gold: &E, predicted: &E) -> Option<bool> {
    let (gold, predicted) = (opaque(gold), opaque(predicted));
    let (mut names, mut others) = (BTreeSet::new(), BTreeSet::new());
    gold.symbols(&mut names);
    predicted.symbols(&mut others);
    if !(names.is_empty() || others.is_empty() || names == others) {
        return None;
    }
    names.append(&mut others);
    if names.len() > 1 {
        return None;
    }
    let line = Line { name: names.pop_first().unwrap_or_default(), closeness: closeness(&gold, &predicted) };
    let points = line.points(&[&gold, &predicted])?;
    let (gold, predicted) = (line.decided(gold, &points)?, line.decided(predicted, &points)?);
    for point in points {
        if line.contains(&gold, point)? != line.contains(&predicted, point)? {
            return Some(false);
        }
    }
    Some(true)
}

/// Returns true if it can only be a set of numbers.
pub fn is_certain(answer: &E) -> bool {
    match answer {
        E::Set(parts) => parts.iter().any(E::is_inequality),
        answer => answer.is_operation() || answer.is_inequality(),
    }
}

/// Replaces `f(x)` by one name.
fn opaque(answer: &E) -> E {
    match answer {
        E::Relation(sides, signs) => {
            let side = |side: &E| match side {
                E::Product(_) | E::Call(Function::Named, _) if side.is_name() => {
                    E::Symbol(format!("{side:?}"))
                }
                side => side.clone(),
            };
            E::Relation(sides.iter().map(side).collect(), signs.clone())
        }
        other => other.clone().map(&mut |part| opaque(&part)),
    }
}

/// Real line along which one name moves.
struct Line {
    name: String,
    closeness: Closeness,
}

impl Line {
    /// Returns ends and roots in order, a point between each two, and points beyond.
    fn points(&self, sets: &[&E]) -> Option<Vec<Value>> {
        let mut found = Vec::new();
        for set in sets {
            self.ends(set, &mut found)?;
        }
        for set in sets {
            self.roots(set, &mut found);
        }
        let mut kept: Vec<(f64, Value)> = Vec::new();
        for value in found {
            if !kept.iter().any(|(_, other)| self.closeness.close(value, *other)) {
                kept.push((value.to_f64()?, value));
            }
        }
        kept.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let first = kept.first().map_or(0.0, |(x, _)| x - 1.0);
        let last = kept.last().map_or(1.0, |(x, _)| x + 1.0);
        let mut between = vec![first, last];
        between.extend(kept.windows(2).map(|pair| f64::midpoint(pair[0].0, pair[1].0)));
        let between = between.into_iter().map(Value::exactly).collect::<Option<Vec<_>>>()?;
        Some(kept.into_iter().map(|(_, value)| value).chain(between).collect())
    }

    /// Collects the constants of a set, and what may be a root because of them.
    fn ends(&self, set: &E, found: &mut Vec<Value>) -> Option<()> {
        if found.len() > MOST_POINTS {
            return None;
        }
        if set.is_scalar() && set.is_constant() && infinite(set).is_none() {
            let value = set.value(&Points::new()).filter(|value| value.is_real())?;
            found.push(value);
            return Some(());
        }
        if let E::Relation(sides, _) = set {
            let mut constants = Vec::new();
            sides.iter().for_each(|side| self.constants(side, &mut constants));
            for value in constants.into_iter().take(MOST_POINTS) {
                let root = value.magnitude().square_root();
                found.extend(
                    [Some(value), value.negated(), root, root.and_then(Value::negated)].into_iter().flatten(),
                );
            }
            return Some(());
        }
        set.parts()
            .into_iter()
            .try_for_each(|part| if infinite(part).is_some() { Some(()) } else { self.ends(part, found) })
    }

    fn constants(&self, side: &E, found: &mut Vec<Value>) {
        if side.is_constant() {
            found.extend(side.value(&Points::new()).filter(|value| value.is_real()));
        }
        side.parts().into_iter().for_each(|part| self.constants(part, found));
    }

    /// Finds where two sides of a relation cross.
    fn roots(&self, set: &E, found: &mut Vec<Value>) {
        let E::Relation(sides, _) = set else {
            return set.parts().into_iter().for_each(|part| self.roots(part, found));
        };
        let mut grid: Vec<f64> = (-GRID..=GRID).map(|x| (f64::from(x) / 100.0).tan() * 3.0 + 1e-3).collect();
        grid.extend(found.iter().take(MOST_POINTS).filter_map(|value| Some(value.to_f64()? + 1e-4)));
        grid.sort_by(f64::total_cmp);
        for pair in sides.windows(2) {
            let apart = |x: f64| {
                let at = self.at(Value::exactly(x)?);
                let apart = pair[0].value(&at)?.minus(pair[1].value(&at)?)?;
                apart.is_real().then(|| apart.is_above_zero())
            };
            let above: Vec<Option<bool>> = grid.iter().map(|x| apart(*x)).collect();
            for (ends, above) in grid.windows(2).zip(above.windows(2)) {
                let ([low, high], [Some(a), Some(b)]) = (ends, above) else { continue };
                if a != b && found.len() < MOST_POINTS {
                    let (mut low, mut high) = (*low, *high);
                    for _ in 0..HALVINGS {
                        let middle = f64::midpoint(low, high);
                        match apart(middle) {
                            Some(above) if above == *a => low = middle,
                            _ => high = middle,
                        }
                    }
                    found.extend(Value::within(high, 1e-12 * high.abs().max(1.0)));
                }
            }
        }
    }

    fn at(&self, point: Value) -> Points {
        Points::from([(self.name.clone(), point)])
    }

    /// Decides how inequalities between commas combine: all of them if they can hold together, else any.
    fn decided(&self, set: E, points: &[Value]) -> Option<E> {
        match set {
            E::Set(parts) if parts.iter().any(E::is_inequality) => {
                let all = E::Intersection(parts.clone());
                for point in points {
                    if self.contains(&all, *point)? {
                        return Some(all);
                    }
                }
                Some(E::Union(parts))
            }
            other => Some(other),
        }
    }

    fn contains(&self, set: &E, point: Value) -> Option<bool> {
        let contains = |part: &E| self.contains(part, point);
        let any = |parts: &[E]| parts.iter().try_fold(false, |any, part| Some(any | contains(part)?));
        match set {
            E::Set(parts) | E::Union(parts) => any(parts),
            E::Intersection(parts) => parts.iter().try_fold(true, |all, part| Some(all & contains(part)?)),
            E::Difference(parts) => {
                let (first, rest) = parts.split_first()?;
                Some(contains(first)? && !any(rest)?)
            }
            E::Group(open, ends, close) => {
                let [low, high] = &ends[..] else { return None };
                let above =
                    self.holds(low, if *open == '[' { Sign::LessOrEqual } else { Sign::Less }, point)?;
                let below = self.holds(
                    high,
                    if *close == ']' { Sign::GreaterOrEqual } else { Sign::Greater },
                    point,
                )?;
                Some(above && below)
            }
            E::Relation(sides, signs) => {
                let at = self.at(point);
                let values: Option<Vec<Value>> = sides.iter().map(|side| side.value(&at)).collect();
                if !sides.iter().all(E::is_scalar) {
                    return None;
                }
                // If a side has no value, nothing holds.
                let Some(values) = values else { return Some(false) };
                Some(values.windows(2).zip(signs).all(|(pair, sign)| self.ordered(pair[0], *sign, pair[1])))
            }
            scalar if scalar.is_scalar() && scalar.is_constant() => self.holds(scalar, Sign::Equal, point),
            _ => None,
        }
    }

    /// Returns true if an end has this relation to a point.
    fn holds(&self, end: &E, sign: Sign, point: Value) -> Option<bool> {
        if !(end.is_scalar() && end.is_constant()) {
            return None;
        }
        match (infinite(end), sign) {
            (Some(above), Sign::Less | Sign::LessOrEqual) => Some(!above),
            (Some(above), Sign::Greater | Sign::GreaterOrEqual) => Some(above),
            (Some(_), _) => Some(false),
            (None, _) => Some(self.ordered(end.value(&Points::new())?, sign, point)),
        }
    }

    fn ordered(&self, a: Value, sign: Sign, b: Value) -> bool {
        let equal = self.closeness.close(a, b);
        let real = a.is_real() && b.is_real();
        let less = || real && !equal && b.minus(a).is_some_and(Value::is_above_zero);
        let greater = || real && !equal && a.minus(b).is_some_and(Value::is_above_zero);
        match sign {
            Sign::Equal => equal,
            Sign::NotEqual => !equal,
            Sign::Less => less(),
            Sign::LessOrEqual => real && (equal || less()),
            Sign::Greater => greater(),
            Sign::GreaterOrEqual => real && (equal || greater()),
        }
    }
}

/// Returns whether it is above zero if it is infinite, else `None`.
pub fn infinite(answer: &E) -> Option<bool> {
    match answer {
        E::Infinity => Some(true),
        E::Product(parts) if parts.len() == 2 && parts[0] == E::whole(-1) => {
            infinite(&parts[1]).map(|above| !above)
        }
        _ => None,
    }
}
