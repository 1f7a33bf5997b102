//! Precision, recall and F1 over classes, labels or entities, from counts, as scikit-learn averages them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metrics::{Score, error_of_mean};

/// What an example adds to the counts of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Key of the class.
    pub class: u64,
    /// How often it is the prediction, rightly.
    pub right: f64,
    /// How often it is the prediction.
    pub predicted: f64,
    /// How often it is the label.
    pub gold: f64,
}

/// A ratio of counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ratio {
    /// Right of the predicted.
    Precision,
    /// Right of the labels.
    Recall,
    /// Their harmonic mean.
    F1,
}

/// How the ratios of classes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// The ratio of the counts of all classes together.
    Micro,
    /// The mean over so many classes; those without counts add 0.
    Macro(usize),
    /// The mean, each class as often as it is the label.
    Weighted,
}

impl Ratio {
    /// Returns numerator and denominator.
    fn parts(self, tally: &Tally) -> [f64; 2] {
        match self {
            Self::Precision => [tally.right, tally.predicted],
            Self::Recall => [tally.right, tally.gold],
            Self::F1 => [2.0 * tally.right, tally.predicted + tally.gold],
        }
    }

    /// Returns the ratio, 0 where it is undefined.
    fn of(self, tally: &Tally) -> f64 {
        let [over, under] = self.parts(tally);
        if under == 0.0 { 0.0 } else { over / under }
    }
}

/// Sums tallies by class.
pub fn summed<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> BTreeMap<u64, Tally> {
    let mut sums = BTreeMap::new();
    for tally in tallies {
        let sum =
            sums.entry(tally.class).or_insert(Tally { right: 0.0, predicted: 0.0, gold: 0.0, ..*tally });
        sum.right += tally.right;
        sum.predicted += tally.predicted;
        sum.gold += tally.gold;
    }
    sums
}

/// Averages a ratio over the classes of examples, each with its tallies; the error is that of the influences of
/// examples on it, as in [`super::metrics`].
pub fn averaged(examples: &[Vec<Tally>], ratio: Ratio, average: Average) -> Score {
    let class = |tally: &Tally| if average == Average::Micro { 0 } else { tally.class };
    let merged: Vec<Vec<Tally>> = examples
        .iter()
        .map(|tallies| tallies.iter().map(|tally| Tally { class: class(tally), ..*tally }).collect())
        .collect();
    let sums = summed(merged.iter().flatten());
    let (n, gold) = (examples.len() as f64, sums.values().map(|sum| sum.gold).sum::<f64>());
    let weight = |sum: &Tally| match average {
        Average::Micro => 1.0,
        Average::Macro(count) => 1.0 / count as f64,
        Average::Weighted => sum.gold / gold,
    };
    let value: f64 = sums.values().map(|sum| weight(sum) * ratio.of(sum)).sum();
    let is_defined = sums.values().any(|sum| ratio.parts(sum)[1] > 0.0);
    if !is_defined || average == Average::Weighted && gold == 0.0 {
        return Score { value: 0.0, stderr: f64::NAN };
    }
    let influence = |tally: &Tally| {
        let Some(sum) = sums.get(&tally.class) else { return 0.0 };
        let ([over, under], [_, all], found) = (ratio.parts(tally), ratio.parts(sum), ratio.of(sum));
        let of_ratio = if all == 0.0 { 0.0 } else { weight(sum) * n / all * (over - found * under) };
        let of_weight =
            if average == Average::Weighted { n / gold * tally.gold * (found - value) } else { 0.0 };
        of_ratio + of_weight
    };
    let influences: Vec<f64> = merged.iter().map(|tallies| tallies.iter().map(influence).sum()).collect();
    Score { value, stderr: error_of_mean(&influences) }
}

/// Scores of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassScores {
    /// Its name.
    pub label: String,
    /// Share of its predictions that are right, 0 without any.
    pub precision: f64,
    /// Share of its labels that are predicted, 0 without any.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// How often it is the label.
    pub support: u64,
}

impl ClassScores {
    /// Returns the scores of the class of this name.
    pub fn new(label: &str, sum: &Tally) -> Self {
        let [precision, recall, f1] = [Ratio::Precision, Ratio::Recall, Ratio::F1].map(|ratio| ratio.of(sum));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Self { label: label.to_owned(), precision, recall, f1, support: sum.gold as u64 }
    }
}
