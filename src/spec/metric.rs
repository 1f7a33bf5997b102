//! Names of metrics; `eval::metrics` computes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, unknown};

/// A metric of a task, named as in the catalog and in the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of predictions that equal the label.
    Accuracy,
    /// 2·TP / (2·TP + FP + FN) for class 1 against the rest.
    F1,
    /// Correlation of predicted and true classes, any number of classes (Gorodkin 2004).
    MatthewsCorrelation,
    /// Linear correlation of predicted and true numbers.
    Pearson,
    /// Linear correlation of their ranks; ties share the mean rank.
    Spearmanr,
    /// Mean negative log-likelihood of a target token, in nats. The only metric for which less is better.
    Loss,
}

impl Metric {
    /// Every metric, in the order in which messages name them.
    pub const ALL: [Self; 6] =
        [Self::Accuracy, Self::F1, Self::MatthewsCorrelation, Self::Pearson, Self::Spearmanr, Self::Loss];

    /// The metrics of classes.
    pub const OF_CLASSES: [Self; 3] = [Self::Accuracy, Self::F1, Self::MatthewsCorrelation];
    /// The metrics of numbers.
    pub const OF_NUMBERS: [Self; 2] = [Self::Pearson, Self::Spearmanr];

    /// Returns the name in recipes, catalog and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::MatthewsCorrelation => "matthews_correlation",
            Self::Pearson => "pearson",
            Self::Spearmanr => "spearmanr",
            Self::Loss => "loss",
        }
    }

    /// Returns a value as a number for which more is better.
    pub fn merit(self, value: f64) -> f64 {
        if self == Self::Loss { -value } else { value }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = Fault;

    fn from_str(name: &str) -> Result<Self, Fault> {
        if let Some(metric) = Self::ALL.into_iter().find(|metric| metric.name() == name) {
            return Ok(metric);
        }
        Err(unknown("metric", name, &Self::ALL.map(Self::name)))
    }
}
