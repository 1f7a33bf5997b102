//! `RUN/results.json`: what a run came to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Session;
use crate::adapters::Group;
use crate::fault::Result;
use crate::files;
use crate::recipe::Recipe;
use crate::torch::{LIBTORCH_VERSION, peak_memory_mib};
use crate::train::checkpoint::{Record, State};

/// The file.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The data set.
    task: String,
    /// The metric that picked the best step.
    metric: String,
    /// The best evaluation.
    best: Option<Record>,
    /// The last evaluation.
    last: Option<Record>,
    /// Optimiser steps done.
    steps: u64,
    /// Of these, skipped because a number was not finite.
    skipped_steps: u64,
    /// The run's seed.
    seed: u64,
    /// Trained numbers of adapter, base and head.
    parameters: BTreeMap<&'static str, usize>,
    /// Rows of the training data that could not be used.
    skipped_rows: usize,
    /// Seconds of training, evaluations not counted.
    train_seconds: f64,
    /// Seconds from the command's start to its end; of calls that a later one resumed, their training alone.
    seconds: f64,
    /// Tokens a second of training.
    tokens_per_second: f64,
    /// Examples a second of training.
    examples_per_second: f64,
    /// Largest memory: resident on a CPU, allocated on a GPU.
    peak_memory_mib: f64,
    /// The device.
    device: String,
    /// The base.
    base: BaseResult,
    /// Versions of program and library.
    versions: BTreeMap<&'static str, &'static str>,
    /// The resolved recipe.
    recipe: Recipe,
}

#[derive(Debug, Serialize)]
struct BaseResult {
    name: String,
    revision: Option<String>,
    hash: String,
}

impl Results {
    /// The results of a finished session.
    pub fn new(session: &Session, state: &State, seconds: f64) -> Self {
        let run = state.runs.first();
        let count = |group| session.trained.count(group);
        let parameters = [("adapter", Group::Adapter), ("base", Group::Base), ("head", Group::Head)];
        Self {
            task: session.opened.dataset.name.clone(),
            metric: session.opened.metrics[0].name().to_owned(),
            best: run.and_then(|run| run.best.clone()),
            last: run.and_then(|run| run.last.clone()),
            steps: state.step,
            skipped_steps: state.skipped,
            seed: session.opened.recipe.train.seed,
            parameters: parameters.into_iter().map(|(name, group)| (name, count(group))).collect(),
            skipped_rows: session.opened.train.skipped.count,
            train_seconds: state.seconds,
            seconds,
            tokens_per_second: state.tokens as f64 / state.seconds.max(f64::MIN_POSITIVE),
            examples_per_second: state.examples_per_second(),
            peak_memory_mib: peak_memory_mib(session.model.device()),
            device: format!("{:?}", session.model.device()).to_lowercase(),
            base: BaseResult {
                name: session.opened.base.name.clone(),
                revision: session.opened.base.commit.clone(),
                hash: session.opened.base.hash.clone(),
            },
            versions: [("loraxs", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH_VERSION)].into(),
            recipe: session.opened.recipe.clone(),
        }
    }

    /// The last words of a run.
    pub fn summary(&self) -> String {
        let value = |record: &Option<Record>| {
            let metric = record.as_ref().and_then(|record| record.metrics.get(&self.metric));
            metric.map_or("none".to_owned(), |value| format!("{value:.4}"))
        };
        let step = self.best.as_ref().map_or(0, |best| best.step);
        format!(
            "{} {}: best {} (step {step}), last {} (step {}); {:.1} examples/s, {:.0} tokens/s, {:.0} MiB",
            self.task,
            self.metric,
            value(&self.best),
            value(&self.last),
            self.steps,
            self.examples_per_second,
            self.tokens_per_second,
            self.peak_memory_mib
        )
    }

    /// Writes `results.json`, which also marks the run as finished.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, out: &Path) -> Result<()> {
        files::write_json(&out.join("results.json"), self)
    }
}
