//! One run as a report sees it, whichever tool made it.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::spec::Metric;

/// One run with one task. Numbers that a file does not tell are `None`; undefined ones are NaN.
///
/// Read from `results.json`, where all may be missing, as in runs of earlier releases.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Its path below the folder that was named, or that folder's own name.
    pub name: String,
    /// Its folder; of a foreign result, its file.
    pub folder: PathBuf,
    /// The tool that made it.
    pub source: String,
    /// How far it is.
    #[serde(skip_deserializing)]
    pub status: Status,
    /// The recipe by dotted key.
    pub settings: Map<String, Value>,
    /// The data set, as its catalog names it.
    pub task: String,
    /// The metric that picked the best evaluation.
    pub metric: String,
    /// True if more of it is better.
    pub higher_is_better: bool,
    /// The best evaluation.
    pub best: Option<Evaluated>,
    /// The standard error of its metric over the examples, where an evaluation tells it.
    pub stderr: Option<f64>,
    /// The last one.
    pub last: Option<Evaluated>,
    /// All of them.
    pub evaluations: Vec<Evaluated>,
    /// The log points of the training.
    #[serde(skip_deserializing)]
    pub points: Vec<LossPoint>,
    /// Trainable parameters of the adapter.
    pub adapter_parameters: Option<u64>,
    /// Those of the head.
    pub head_parameters: Option<u64>,
    /// Those of the base, which only `full` trains.
    pub base_parameters: Option<u64>,
    /// Size of the adapter's file.
    pub adapter_bytes: Option<u64>,
    /// Optimiser steps done.
    pub steps: Option<u64>,
    /// Seconds of training, without evaluations.
    pub train_seconds: Option<f64>,
    /// Seconds from start to end.
    pub seconds: Option<f64>,
    /// Training examples per second.
    pub examples_per_second: Option<f64>,
    /// Training tokens per second.
    pub tokens_per_second: Option<f64>,
    /// Peak memory in MiB.
    pub peak_memory_mib: Option<f64>,
    /// The device.
    pub device: String,
    /// Runs trained together with it, itself included.
    pub together: Option<u64>,
    /// ‖ΔW‖ (Frobenius) of each adapted layer.
    #[serde(deserialize_with = "null_as_nan")]
    pub delta_norm: IndexMap<String, f64>,
    /// `results.json` as it is, for what has no field here.
    pub results: Value,
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    /// Trained to its end, or until it no longer got better.
    Finished,
    /// Stopped by successive halving.
    Stopped,
    /// Diverged, or could not be trained.
    Failed {
        /// What went wrong.
        error: String,
        /// The step where it did.
        step: Option<u64>,
    },
    /// Still running, or interrupted.
    #[default]
    Unfinished,
}

/// One evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// Optimiser steps done.
    pub step: u64,
    /// The same in epochs.
    pub epoch: Option<f64>,
    /// Metrics by name; NaN where undefined.
    #[serde(deserialize_with = "null_as_nan")]
    pub metrics: IndexMap<String, f64>,
}

/// Reads `null` as NaN, as the files have no other word for it.
pub fn null_as_nan<'de, D: Deserializer<'de>>(from: D) -> Result<IndexMap<String, f64>, D::Error> {
    let numbers: Option<IndexMap<String, Option<f64>>> = Deserialize::deserialize(from)?;
    let numbers = numbers.unwrap_or_default().into_iter();
    Ok(numbers.map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// One log point of a training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossPoint {
    /// Optimiser steps done.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// The mean loss since the last point; NaN where it was not finite.
    pub loss: f64,
}

impl Status {
    /// Returns the word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed { .. } => "failed",
            Self::Unfinished => "unfinished",
        }
    }

    /// Returns true if nothing more is to come.
    pub fn is_end(&self) -> bool {
        *self != Self::Unfinished
    }
}

impl Record {
    /// Returns the metric's value in the best evaluation.
    pub fn best_value(&self) -> Option<f64> {
        self.value(self.best.as_ref())
    }

    /// Returns the metric's value in the last evaluation.
    pub fn last_value(&self) -> Option<f64> {
        self.value(self.last.as_ref())
    }

    /// Returns all that is trained but the head: an adapter, or the base.
    pub fn trained(&self) -> Option<u64> {
        self.base_parameters.filter(|count| *count > 0).or(self.adapter_parameters)
    }

    fn value(&self, evaluation: Option<&Evaluated>) -> Option<f64> {
        evaluation?.metrics.get(&self.metric).copied().filter(|value| value.is_finite())
    }
}

/// The key by which runs of one setting differ.
pub const SEED: &str = "train.seed";

/// Returns true if more of a metric is better; of a foreign metric, unless it is named after a loss or an error.
pub fn higher_is_better(metric: &str) -> bool {
    match metric.parse::<Metric>() {
        Ok(metric) => metric.merit(1.0) > 0.0,
        Err(_) => !["loss", "error", "perplexity"].iter().any(|word| metric.contains(word)),
    }
}
