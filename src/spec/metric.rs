//! Names of metrics; `eval::metrics` computes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, unknown};

/// A metric of a task, named as in the catalog and in the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of predictions that equal the label: of classes, of whole sets of labels, or of the tags of words.
    Accuracy,
    /// 2·TP / (2·TP + FP + FN), of class 1 against the rest, or of entities.
    F1,
    /// Its mean over the classes.
    F1Macro,
    /// F1 of the counts of all classes together.
    F1Micro,
    /// Mean of F1 over the classes, by how often each is the label.
    F1Weighted,
    /// TP / (TP + FP), of class 1, or of entities.
    Precision,
    /// Its mean over the classes.
    PrecisionMacro,
    /// TP / (TP + FN), of class 1, or of entities.
    Recall,
    /// Its mean over the classes.
    RecallMacro,
    /// Mean of recall over the classes that are labels.
    BalancedAccuracy,
    /// Correlation of predicted and true classes, any number of classes (Gorodkin 2004).
    MatthewsCorrelation,
    /// Linear correlation of predicted and true numbers.
    Pearson,
    /// Linear correlation of their ranks; ties share the mean rank.
    Spearmanr,
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
    /// Share of the variance that is explained, R².
    R2,
    /// Mean loss, as in training but without class weights: of an example, of a word, or of a target token, in nats.
    Loss,
}

/// Every metric with its name, in the order in which messages name them.
const NAMES: [(Metric, &str); 17] = [
    (Metric::Accuracy, "accuracy"),
    (Metric::F1, "f1"),
    (Metric::F1Macro, "f1_macro"),
    (Metric::F1Micro, "f1_micro"),
    (Metric::F1Weighted, "f1_weighted"),
    (Metric::Precision, "precision"),
    (Metric::PrecisionMacro, "precision_macro"),
    (Metric::Recall, "recall"),
    (Metric::RecallMacro, "recall_macro"),
    (Metric::BalancedAccuracy, "balanced_accuracy"),
    (Metric::MatthewsCorrelation, "matthews_correlation"),
    (Metric::Pearson, "pearson"),
    (Metric::Spearmanr, "spearmanr"),
    (Metric::Mse, "mse"),
    (Metric::Mae, "mae"),
    (Metric::R2, "r2"),
    (Metric::Loss, "loss"),
];

impl Metric {
    /// Every metric, in the order in which messages name them.
    pub const ALL: [Self; NAMES.len()] = {
        let mut all = [Self::Loss; NAMES.len()];
        let mut i = 0;
        while i < NAMES.len() {
            all[i] = NAMES[i].0;
            i += 1;
        }
        all
    };

    /// The metrics of two classes; of more, those without [`Metric::OF_TWO`].
    pub const OF_CLASSES: [Self; 12] = [
        Self::Accuracy,
        Self::F1,
        Self::MatthewsCorrelation,
        Self::F1Macro,
        Self::F1Micro,
        Self::F1Weighted,
        Self::Precision,
        Self::Recall,
        Self::PrecisionMacro,
        Self::RecallMacro,
        Self::BalancedAccuracy,
        Self::Loss,
    ];
    /// Metrics of class 1 against class 0.
    pub const OF_TWO: [Self; 3] = [Self::F1, Self::Precision, Self::Recall];
    /// The metrics of numbers.
    pub const OF_NUMBERS: [Self; 6] =
        [Self::Pearson, Self::Spearmanr, Self::Mse, Self::Mae, Self::R2, Self::Loss];
    /// The metrics of sets of labels.
    pub const OF_SETS: [Self; 7] = [
        Self::F1Micro,
        Self::F1Macro,
        Self::Accuracy,
        Self::F1Weighted,
        Self::PrecisionMacro,
        Self::RecallMacro,
        Self::Loss,
    ];
    /// The metrics of the tags of words.
    pub const OF_TAGS: [Self; 7] = [
        Self::F1,
        Self::Precision,
        Self::Recall,
        Self::Accuracy,
        Self::F1Macro,
        Self::F1Weighted,
        Self::Loss,
    ];
    /// The metrics whose mean GLUE calls `combined_score`.
    pub const OF_GLUE: [Self; 5] =
        [Self::Accuracy, Self::F1, Self::MatthewsCorrelation, Self::Pearson, Self::Spearmanr];

    /// Returns the name in recipes, catalog and results.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(metric, _)| *metric == self).map_or("loss", |(_, name)| name)
    }

    /// Returns a value as a number for which more is better.
    pub fn merit(self, value: f64) -> f64 {
        if matches!(self, Self::Loss | Self::Mse | Self::Mae) { -value } else { value }
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
