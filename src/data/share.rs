//! A share of the training rows, held out to score on.

use std::collections::BTreeMap;

use super::label::Label;
use super::{Example, Examples};

/// The share, and the seed of its choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Holdout {
    /// The share, above 0 and below 1.
    pub share: f64,
    /// The seed.
    pub seed: u64,
}

impl Holdout {
    /// Returns the examples that stay and those that are held out: of each class this share, rounded, at least one row in
    /// all. A row's place in the choice depends on its number and the seed alone. Counts of skipped and cut rows are those
    /// of the whole.
    pub fn apart(self, whole: Examples) -> [Examples; 2] {
        let mut classes: BTreeMap<Option<u32>, Vec<(u64, usize)>> = BTreeMap::new();
        for (at, example) in whole.examples.iter().enumerate() {
            let class = if let Some(Label::Class(class)) = example.label { Some(class) } else { None };
            classes.entry(class).or_default().push((self.lot(example), at));
        }
        let mut is_held = vec![false; whole.examples.len()];
        for lots in classes.values_mut() {
            lots.sort_unstable();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
            let count = (self.share * lots.len() as f64).round() as usize;
            lots.iter().take(count).for_each(|(_, at)| is_held[*at] = true);
        }
        // Of few rows, each class rounds to none, or to all.
        let first = classes.values().flatten().min().map(|(_, at)| *at);
        if let Some(first) = first.filter(|_| is_held.iter().all(|held| *held == is_held[0])) {
            is_held[first] = !is_held[first];
        }
        let part = |held: bool| {
            let own = whole.examples.iter().zip(&is_held).filter(|(_, is_held)| **is_held == held);
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(whole.hash.as_bytes())
                .update(format!("|{}|{}|{held}", self.share, self.seed).as_bytes());
            Examples {
                examples: own.map(|(example, _)| example.clone()).collect(),
                skipped: whole.skipped.clone(),
                truncation: whole.truncation,
                hash: hasher.finalize().to_hex().to_string(),
            }
        };
        [part(false), part(true)]
    }

    /// Returns a row's lot: the rows with the smallest are held out.
    fn lot(self, example: &Example) -> u64 {
        let digest = blake3::hash(format!("{}|{}", self.seed, example.index).as_bytes());
        digest.as_bytes().iter().take(8).fold(0, |lot, byte| lot << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Skipped, Truncation};
    use super::*;

    fn whole(labels: &[u32]) -> Examples {
        let example = |(index, class): (usize, &u32)| Example {
            index,
            ids: vec![1],
            types: Vec::new(),
            trained: Vec::new(),
            label: Some(Label::Class(*class)),
        };
        let examples = labels.iter().enumerate().map(example).collect();
        Examples {
            examples,
            skipped: Skipped::default(),
            truncation: Truncation::default(),
            hash: "h".to_owned(),
        }
    }

    #[test]
    fn every_class_gives_its_share_and_the_seed_decides_which_rows() {
        let labels: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 == 0)).collect();
        let held = |seed| {
            let [stay, held] = Holdout { share: 0.1, seed }.apart(whole(&labels));
            assert_eq!((stay.examples.len(), held.examples.len()), (900, 100));
            assert_ne!(stay.hash, held.hash);
            let of_class = held.examples.iter().filter(|e| e.label == Some(Label::Class(1))).count();
            assert_eq!(of_class, 10);
            held.examples.iter().map(|e| e.index).collect::<Vec<_>>()
        };
        assert_eq!(held(0), held(0));
        assert_ne!(held(0), held(1));
        assert!(held(0).is_sorted());
        // One row fewer changes little.
        let mut fewer = whole(&labels);
        fewer.examples.remove(3);
        let [_, other] = Holdout { share: 0.1, seed: 0 }.apart(fewer);
        let same = other.examples.iter().filter(|e| held(0).contains(&e.index)).count();
        assert!(same >= 99, "{same}");
    }

    #[test]
    fn neither_part_is_empty() {
        for share in [0.01, 0.99] {
            let [stay, held] = Holdout { share, seed: 0 }.apart(whole(&[0, 1, 2]));
            assert!(!stay.examples.is_empty() && !held.examples.is_empty());
        }
    }
}
