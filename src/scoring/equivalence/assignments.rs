//! Lists of equations that give values to names: `x=1, y=2` is `(1, 2)`, and `x=1, y=2; x=3, y=4` is two of them.

use super::expression::{Expression as E, Sign};

/// Names in the order of their values in a tuple, and one tuple or more.
struct Assignments {
    names: Vec<String>,
    tuples: Vec<Vec<E>>,
    /// The values as they were written.
    written: Vec<E>,
}

/// Two lists of values, gold and predicted.
pub enum Lists {
    InOrder(Vec<E>, Vec<E>),
    InAnyOrder(Vec<E>, Vec<E>),
}

/// Returns lists of which two must be the same, if one of two answers gives values to two names or more, else `None`.
pub fn lists(gold: &E, predicted: &E) -> Option<Vec<Lists>> {
    use Lists::{InAnyOrder, InOrder};
    let tuples = |all: &Assignments| {
        all.tuples.iter().map(|tuple| E::Group('(', tuple.clone(), ')')).collect::<Vec<_>>()
    };
    let (a, b) = (read(gold), read(predicted));
    Some(match (a, b) {
        (Some(a), Some(b)) => vec![InAnyOrder(tuples(&a), tuples(&b.in_order_of(&a.names)?))],
        (Some(a), None) => match (predicted.clone(), &a.tuples[..]) {
            (E::Group('(', values, ')'), [only]) => vec![InOrder(only.clone(), values)],
            (E::Set(values), [only]) => {
                vec![InOrder(only.clone(), values.clone()), InOrder(a.written, values)]
            }
            (E::Set(values), _) => vec![InAnyOrder(tuples(&a), values)],
            _ => return None,
        },
        (None, Some(b)) => match (gold.clone(), &b.tuples[..]) {
            (E::Group('(', values, ')'), [only]) => vec![InOrder(values, only.clone())],
            (E::Set(values), [_]) => vec![InAnyOrder(values, b.written)],
            (E::Set(values), _) => vec![InAnyOrder(values, tuples(&b))],
            _ => return None,
        },
        (None, None) => return None,
    })
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
