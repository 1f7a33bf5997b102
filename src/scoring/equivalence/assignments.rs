//! Lists of equations that give values to names: `x=1, y=2` is `(1, 2)`, and `x=1, y=2; x=3, y=4` is two of them.

use super::compare::{same_in_any_order, same_in_order};
use super::expression::{Expression as E, Sign};

/// Names in the order of their values in a tuple, and one tuple or more.
struct Assignments {
    names: Vec<String>,
    tuples: Vec<Vec<E>>,
    /// The values as they were written.
    written: Vec<E>,
}

/// Returns whether two answers are the same if one of them gives values to two names or more, else `None`.
pub fn same(gold: &E, predicted: &E) -> Option<bool> {
    let tuples = |all: &Assignments| {
        all.tuples.iter().map(|tuple| E::Group('(', tuple.clone(), ')')).collect::<Vec<_>>()
    };
    match (read(gold), read(predicted)) {
        (Some(a), Some(b)) => {
            let b = b.in_order_of(&a.names)?;
            Some(same_in_any_order(&tuples(&a), &tuples(&b)))
        }
        (Some(a), None) => match (predicted, &a.tuples[..]) {
            (E::Group('(', values, ')'), [only]) => Some(same_in_order(only, values)),
            (E::Set(values), [only]) => {
                Some(same_in_order(only, values) || same_in_order(&a.written, values))
            }
            (E::Set(values), _) => Some(same_in_any_order(&tuples(&a), values)),
            _ => None,
        },
        (None, Some(b)) => match (gold, &b.tuples[..]) {
            (E::Group('(', values, ')'), [only]) => Some(same_in_order(values, only)),
            (E::Set(values), [_]) => Some(same_in_any_order(values, &b.written)),
            (E::Set(values), _) => Some(same_in_any_order(values, &tuples(&b))),
            _ => None,
        },
        (None, None) => None,
    }
}

impl Assignments {
    /// Reorders the values by other names; `None` if the names are not the same.
    fn in_order_of(mut self, names: &[String]) -> Option<Self> {
        let place = |name: &String| self.names.iter().position(|other| other == name);
        let places = names.iter().map(place).collect::<Option<Vec<_>>>()?;
        (names.len() == self.names.len()).then_some(())?;
        for tuple in &mut self.tuples {
            *tuple = places.iter().map(|place| tuple[*place].clone()).collect();
        }
        Some(self)
    }
}

/// Reads `x = 1`, `x = y = 1` or `(x, y) = (1, 2)`, as names with their values.
fn pairs(part: &E) -> Option<Vec<(String, E)>> {
    let E::Relation(sides, signs) = part else { return None };
    let (value, names) = sides.split_last()?;
    let name = names.first()?;
    if signs.iter().any(|sign| *sign != Sign::Equal) || !name.is_name() {
        return None;
    }
    if names.len() > 1 && names.iter().all(|name| matches!(name, E::Symbol(_))) {
        return Some(names.iter().map(|name| (format!("{name:?}"), value.clone())).collect());
    }
    match (name, value) {
        (E::Group('(', names, ')'), E::Group('(', values, ')')) if names.len() == values.len() => {
            let pair = |(name, value): (&E, &E)| (format!("{name:?}"), value.clone());
            Some(names.iter().zip(values).map(pair).collect())
        }
        (E::Group(..), _) => None,
        (name, value) => Some(vec![(format!("{name:?}"), value.clone())]),
    }
}

/// Reads the assignments of a list; a name that comes again opens another tuple.
fn read(answer: &E) -> Option<Assignments> {
    let parts = match answer {
        E::Set(parts) => &parts[..],
        E::Relation(sides, _) if matches!(sides.first(), Some(E::Group(..))) => std::slice::from_ref(answer),
        _ => return None,
    };
    let all: Vec<(String, E)> =
        parts.iter().map(pairs).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect();
    let mut names: Vec<String> = Vec::new();
    for (name, _) in &all {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    if names.len() < 2 || !all.len().is_multiple_of(names.len()) {
        return None;
    }
    let written = all.iter().map(|(_, value)| value.clone()).collect();
    let as_written = names.clone();
    names.sort_unstable();
    if !follow(&names) {
        names = as_written;
    }
    let tuple = |chunk: &[(String, E)]| {
        let value =
            |name: &String| chunk.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
        names.iter().map(value).collect::<Option<Vec<_>>>()
    };
    let tuples = all.chunks(names.len()).map(tuple).collect::<Option<Vec<_>>>()?;
    Some(Assignments { names, tuples, written })
}

/// Returns true if names are consecutive letters, as coordinates are: their order is that of the alphabet.
fn follow(names: &[String]) -> bool {
    let letter = |name: &String| {
        name.strip_prefix("Symbol(\"")?.strip_suffix("\")").filter(|n| n.len() == 1)?.bytes().next()
    };
    let letters: Option<Vec<u8>> = names.iter().map(letter).collect();
    letters.is_some_and(|letters| letters.windows(2).all(|pair| pair[0] + 1 == pair[1]))
}
