//! From predictions and labels to the metrics of each kind of head.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::averages::{Average, ClassScores, Ratio, Tally, averaged, summed};
use super::entities::entities;
use super::label_loss::label_loss;
use super::metrics::{Score, pooled_mean, score};
use super::predictions::Prediction;
use crate::data::Label;
use crate::spec::{Metric, Problem};

/// Scores class by class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassReport {
    /// Every class, in the order of the catalog; of words, every type of entity.
    pub classes: Vec<ClassScores>,
    /// Row: label, column: prediction; of single labels only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion_matrix: Option<Vec<Vec<u64>>>,
}

/// Labelled predictions, counted.
pub struct Outcomes<'a> {
    problem: Problem,
    labels: &'a [String],
    /// Predictions and labels as numbers; of several, those that agree and how many there are.
    numbers: [Vec<f64>; 2],
    /// Counts by class; by type of entity for words.
    tallies: Vec<Vec<Tally>>,
    /// Types of entities, whose places are their keys.
    kinds: Vec<&'a str>,
    /// Summed losses and their terms.
    losses: [Vec<f64>; 2],
}

impl<'a> Outcomes<'a> {
    /// Counts predictions that have a label; `labels` are the names of the classes.
    pub fn new(problem: Problem, labels: &'a [String], predictions: &[Prediction]) -> Self {
        let kinds: Vec<&str> = labels
            .iter()
            .filter_map(|label| entities(&[label]).first().map(|(kind, ..)| *kind))
            .collect::<BTreeSet<&str>>()
            .into_iter()
            .collect();
        let mut found = Self {
            problem,
            labels,
            numbers: Default::default(),
            tallies: Vec::new(),
            kinds,
            losses: Default::default(),
        };
        for prediction in predictions {
            let Some(gold) = &prediction.label else { continue };
            let (numbers, tallies) = found.counted(&prediction.prediction, gold);
            found.numbers.iter_mut().zip(numbers).for_each(|(column, number)| column.push(number));
            found.tallies.push(tallies);
            let (sum, terms) = label_loss(&prediction.logits, gold).unwrap_or((f64::NAN, 1.0));
            found.losses.iter_mut().zip([sum, terms]).for_each(|(column, number)| column.push(number));
        }
        found
    }

    /// Returns true if no prediction has a label.
    pub fn is_empty(&self) -> bool {
        self.tallies.is_empty()
    }

    fn counted(&self, given: &Label, gold: &Label) -> ([f64; 2], Vec<Tally>) {
        let tally = |class: u64, [right, predicted, gold]: [bool; 3]| Tally {
            class,
            right: f64::from(u8::from(right)),
            predicted: f64::from(u8::from(predicted)),
            gold: f64::from(u8::from(gold)),
        };
        match (given, gold) {
            (Label::Value(given), Label::Value(gold)) => ([f64::from(*given), f64::from(*gold)], Vec::new()),
            (Label::Class(p), Label::Class(g)) => {
                let tallies = match p == g {
                    true => vec![tally(u64::from(*g), [true; 3])],
                    false => {
                        vec![
                            tally(u64::from(*p), [false, true, false]),
                            tally(u64::from(*g), [false, false, true]),
                        ]
                    }
                };
                ([f64::from(*p), f64::from(*g)], tallies)
            }
            (Label::Set(p), Label::Set(g)) => {
                let all: BTreeSet<&u32> = p.iter().chain(g).collect();
                let each = |class: &u32| {
                    let (p, g) = (p.contains(class), g.contains(class));
                    tally(u64::from(*class), [p && g, p, g])
                };
                ([f64::from(u8::from(p == g)), 1.0], all.into_iter().map(each).collect())
            }
            (Label::Tags(p), Label::Tags(g)) => {
                let right = p.iter().zip(g).filter(|(p, g)| p == g).count();
                ([right as f64, g.len() as f64], self.of_entities(p, g))
            }
            _ => ([f64::NAN; 2], Vec::new()),
        }
    }

    fn of_entities(&self, given: &[u32], gold: &[u32]) -> Vec<Tally> {
        let named = |tags: &[u32]| -> Vec<&'a str> {
            tags.iter().filter_map(|tag| self.labels.get(*tag as usize)).map(String::as_str).collect()
        };
        let (given, gold) = (named(given), named(gold));
        let (given, gold) = (entities(&given), entities(&gold));
        let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
        let mut count = |kind: &'a str, add: fn(&mut Tally)| {
            let class = self.kinds.iter().position(|known| *known == kind).unwrap_or_default() as u64;
            add(tallies.entry(kind).or_insert(Tally { class, right: 0.0, predicted: 0.0, gold: 0.0 }));
        };
        for entity in &given {
            count(entity.0, |tally| tally.predicted += 1.0);
            if gold.contains(entity) {
                count(entity.0, |tally| tally.right += 1.0);
            }
        }
        gold.iter().for_each(|entity| count(entity.0, |tally| tally.gold += 1.0));
        tallies.into_values().collect()
    }

    /// Computes one metric.
    pub fn score(&self, metric: Metric) -> Score {
        use Ratio::{F1, Precision, Recall};
        let sums = summed(self.tallies.iter().flatten());
        let classes = if self.problem == Problem::MultiLabel { self.labels.len() } else { sums.len() };
        let average = |ratio, average| averaged(&self.tallies, ratio, average);
        let plain = |ratio| match self.problem {
            Problem::Tokens => average(ratio, Average::Micro),
            _ => {
                let of_one =
                    |tallies: &Vec<Tally>| tallies.iter().filter(|t| t.class == 1).copied().collect();
                averaged(&self.tallies.iter().map(of_one).collect::<Vec<_>>(), ratio, Average::Micro)
            }
        };
        let [first, second] = &self.numbers;
        match metric {
            Metric::Loss => pooled_mean(&self.losses[0], &self.losses[1]),
            Metric::Accuracy if self.problem != Problem::SingleLabel => pooled_mean(first, second),
            Metric::F1 => plain(F1),
            Metric::Precision => plain(Precision),
            Metric::Recall => plain(Recall),
            Metric::F1Micro => average(F1, Average::Micro),
            Metric::F1Macro => average(F1, Average::Macro(classes)),
            Metric::F1Weighted => average(F1, Average::Weighted),
            Metric::PrecisionMacro => average(Precision, Average::Macro(classes)),
            Metric::RecallMacro => average(Recall, Average::Macro(classes)),
            Metric::BalancedAccuracy => {
                let labelled = sums.values().filter(|sum| sum.gold > 0.0).count();
                average(Recall, Average::Macro(labelled))
            }
            metric => score(metric, first, second),
        }
    }

    /// Returns the scores of each class; none for numbers.
    pub fn report(&self) -> Option<ClassReport> {
        if self.is_empty() || self.problem == Problem::Regression {
            return None;
        }
        let names: Vec<&str> = match self.problem {
            Problem::Tokens => self.kinds.clone(),
            _ => self.labels.iter().map(String::as_str).collect(),
        };
        let sums = summed(self.tallies.iter().flatten());
        let none = |class| Tally { class, right: 0.0, predicted: 0.0, gold: 0.0 };
        let of =
            |(class, name): (u64, &&str)| ClassScores::new(name, sums.get(&class).unwrap_or(&none(class)));
        let classes = (0..).zip(&names).map(of).collect();
        let confusion_matrix = (self.problem == Problem::SingleLabel).then(|| {
            let mut counts = vec![vec![0; names.len()]; names.len()];
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "classes")]
            for (given, gold) in self.numbers[0].iter().zip(&self.numbers[1]) {
                if let Some(count) =
                    counts.get_mut(*gold as usize).and_then(|row| row.get_mut(*given as usize))
                {
                    *count += 1;
                }
            }
            counts
        });
        Some(ClassReport { classes, confusion_matrix })
    }
}
