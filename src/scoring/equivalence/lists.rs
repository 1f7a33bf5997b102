//! Lists, relations, ratios and joined sets: everything above a sum.

use super::expression::{Expression as E, Sign};
use super::read::{AND, DEEPEST, ExpressionReader, OR};

/// Separator between two parts of a list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joint {
    Comma,
    And,
    Or,
}

impl ExpressionReader {
    /// Parts between commas: one alone, more as a set; inequalities joined by `and` or `or` as what both allow.
    pub(super) fn list(&mut self) -> Option<E> {
        let (mut parts, joints) = self.joined_parts()?;
        if parts.len() == 1 {
            return parts.pop();
        }
        if let [E::Relation(sides, signs), rest @ ..] = &parts[..]
            && let ([name, _], [Sign::NotEqual]) = (&sides[..], &signs[..])
            && rest.iter().all(E::is_scalar)
        {
            // `x ≠ 1, 2` says it of each.
            let other = |value: &E| E::Relation(vec![name.clone(), value.clone()], signs.clone());
            let rest: Vec<E> = rest.iter().map(other).collect();
            return Some(E::Intersection(parts.into_iter().take(1).chain(rest).collect()));
        }
        let condition = |part: &E| part.is_inequality() || part.is_operation() || *part == E::reals();
        let equation = |part: &E| matches!(part, E::Relation(..));
        let conditions =
            parts.iter().any(condition) && parts.iter().all(|part| condition(part) || equation(part));
        if !conditions || joints.iter().all(|joint| *joint == Joint::Comma) {
            return Some(E::Set(parts));
        }
        // `or` binds less than `and`.
        let mut groups = vec![Vec::new()];
        for (part, joint) in parts.into_iter().zip([Joint::And].into_iter().chain(joints)) {
            if joint == Joint::Or {
                groups.push(Vec::new());
            }
            groups.last_mut()?.push(part);
        }
        let one_or = |mut parts: Vec<E>, more: fn(Vec<E>) -> E| {
            if parts.len() > 1 { Some(more(parts)) } else { parts.pop() }
        };
        let groups = groups.into_iter().map(|group| one_or(group, E::Intersection)).collect::<Option<_>>()?;
        one_or(groups, E::Union)
    }

    pub(super) fn parts(&mut self) -> Option<Vec<E>> {
        self.joined_parts().map(|(parts, _)| parts)
    }

    fn joined_parts(&mut self) -> Option<(Vec<E>, Vec<Joint>)> {
        const JOINTS: [(&str, Joint); 4] =
            [(",", Joint::Comma), (";", Joint::Comma), (AND, Joint::And), (OR, Joint::Or)];
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let mut parts = vec![self.relation()?];
        let mut joints = Vec::new();
        while let Some(joint) = self.take_any(&JOINTS) {
            // A comma before the last `and`.
            joints.push(self.take_any(&JOINTS).unwrap_or(joint));
            parts.push(self.relation()?);
        }
        self.depth -= 1;
        Some((parts, joints))
    }

    pub(super) fn relation(&mut self) -> Option<E> {
        const SIGNS: [(&str, Option<Sign>); 20] = [
            ("=", Some(Sign::Equal)),
            ("\\neq", Some(Sign::NotEqual)),
            ("\\ne", Some(Sign::NotEqual)),
            ("\\leqslant", Some(Sign::LessOrEqual)),
            ("\\leq", Some(Sign::LessOrEqual)),
            ("\\le", Some(Sign::LessOrEqual)),
            ("<=", Some(Sign::LessOrEqual)),
            ("\\lt", Some(Sign::Less)),
            ("<", Some(Sign::Less)),
            ("\\geqslant", Some(Sign::GreaterOrEqual)),
            ("\\geq", Some(Sign::GreaterOrEqual)),
            ("\\ge", Some(Sign::GreaterOrEqual)),
            (">=", Some(Sign::GreaterOrEqual)),
            ("\\gt", Some(Sign::Greater)),
            (">", Some(Sign::Greater)),
            ("\\approx", None),
            ("\\simeq", None),
            ("\\cong", None),
            ("\\doteq", None),
            ("\\sim", None),
        ];
        // `≈ 5` and `= 5` alone are 5.
        let _ = self.take("\\approx") || self.take("=");
        let mut sides = vec![self.ratio()?];
        let mut signs = Vec::new();
        if self.take("\\in") {
            return self.union();
        }
        if self.take("\\notin") {
            return Some(E::Difference(vec![E::reals(), self.union()?]));
        }
        while let Some(sign) = self.take_any(&SIGNS) {
            let side = self.ratio()?;
            match (sign, sides.pop()?) {
                (Some(sign), last) => {
                    signs.push(sign);
                    sides.extend([last, side]);
                }
                (None, name) if sides.is_empty() && name.is_name() => {
                    signs.push(Sign::Equal);
                    sides.extend([name, side]);
                }
                // The first rounding counts.
                (None, rounded @ E::Rounded(..)) => sides.push(rounded),
                (None, exact) => sides.push(E::Rounded(Box::new(exact), Box::new(side))),
            }
        }
        if signs.is_empty() { sides.pop() } else { Some(E::Relation(sides, signs)) }
    }

    /// Reads `3:4`, `4:30`.
    fn ratio(&mut self) -> Option<E> {
        self.skip_spaces();
        if let Some(clock) = self.attempt(Self::clock) {
            return Some(clock);
        }
        let mut parts = vec![self.union()?];
        while self.take(":") {
            parts.push(self.union()?);
        }
        if parts.len() == 1 { parts.pop() } else { Some(E::Ratio(parts)) }
    }

    fn union(&mut self) -> Option<E> {
        type Operation = fn(Vec<E>) -> E;
        const SIGNS: [(&str, Operation); 7] = [
            ("\\cup", E::Union),
            ("\\cap", E::Intersection),
            ("\\setminus", E::Difference),
            ("\\smallsetminus", E::Difference),
            ("\\backslash", E::Difference),
            ("∪", E::Union),
            ("∩", E::Intersection),
        ];
        let mut value = self.sum()?;
        while let Some(operation) = self.take_any(&SIGNS) {
            let next = self.sum()?;
            // A chain of unions stays flat.
            value = match (value, operation(Vec::new())) {
                (E::Union(mut parts), E::Union(_)) => {
                    parts.push(next);
                    E::Union(parts)
                }
                (value, _) => operation(vec![value, next]),
            };
        }
        Some(value)
    }
}
