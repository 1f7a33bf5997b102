//! `RUN/results.json`: the results of a run.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::counts::Counts;
use super::finished::TOKENIZER;
use super::inputs::TrainInputs;
use super::run_folder::ADAPTER;
use super::training::Training;
use crate::fault::Result;
use crate::files;
use crate::torch::LIBTORCH_VERSION;
use crate::train::checkpoint::{EvalRecord, TrainState};

/// Results of a finished training.
pub struct Results<'a> {
    /// The training, and the run's number in it.
    pub training: (&'a Training, usize),
    /// The run's counters.
    pub state: &'a TrainState,
    /// Why it ended: `finished`, `patience` or `halving`.
    pub ended: &'static str,
    /// From the command's start to its end; of calls that a later one resumed, their training alone; of runs trained together, its part.
    pub seconds: f64,
    /// ‖ΔW‖ of the best adapter, by layer.
    pub delta_norm: BTreeMap<String, f64>,
}

impl Results<'_> {
    fn tokens_per_second(&self) -> f64 {
        self.state.tokens as f64 / self.state.seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns the best and the last evaluation.
    fn evaluations(&self) -> [Option<&EvalRecord>; 2] {
        [self.state.run.best.as_ref(), self.state.run.last.as_ref()]
    }

    /// Returns the best and the last score of a run.
    pub fn scores(&self) -> String {
        let TrainInputs { dataset, metrics, .. } = &self.training.0.inputs;
        let metric = metrics[0].name();
        let value = |record: &EvalRecord| match record.metrics.get(metric) {
            Some(value) if value.is_finite() => format!("{value:.4}"),
            _ => "undefined".to_owned(),
        };
        match self.evaluations() {
            [Some(best), Some(last)] if best.metrics.get(metric).is_some_and(|value| value.is_finite()) => {
                let [best_value, last_value] = [best, last].map(value);
                format!(
                    "{} {metric}: best {best_value} (step {}), last {last_value} (step {})",
                    dataset.name, best.step, last.step
                )
            }
            [_, Some(last)] => format!(
                "{} {metric}: undefined in every evaluation, the last at step {}",
                dataset.name, last.step
            ),
            _ => format!("{}: not evaluated, {} steps", dataset.name, self.state.step),
        }
    }

    /// Returns the closing summary of a run.
    pub fn summary(&self) -> String {
        format!(
            "{}; {:.1} examples/s, {:.0} tokens/s, {:.0} MiB",
            self.scores(),
            self.state.examples_per_second(),
            self.tokens_per_second(),
            self.training.0.model.placement().devices().peak_memory_mib(),
        )
    }

    /// Writes `results.json`, which also marks the run as finished, or the results so far under another name.
    /// Fails when the adapter cannot be read, or the file cannot be written.
    pub fn write(&self, out: &Path, name: &str) -> Result<()> {
        let Self { training: (training, run), state, ended, seconds, delta_norm } = self;
        let recipe = &training.recipes[*run];
        let TrainInputs { base, dataset, train, validation, metrics, .. } = &training.inputs;
        let Counts { adapter, full, head, .. } = training.counts();
        let [best, last] = self.evaluations();
        let devices = training.model.placement().devices();
        let tokenizer = base.base.folder.join(TOKENIZER);
        let results = json!({
            "task": dataset.name,
            "metric": metrics[0].name(),
            "best": best,
            "last": last,
            "steps": state.step,
            "ended": ended,
            // Runs trained at once.
            "together": training.recipes.len(),
            // Processes that shared its steps.
            "processes": state.processes,
            "skipped_steps": state.run.skipped,
            "seed": recipe.train.seed,
            "parameters": {"adapter": adapter, "base": full, "head": head},
            "skipped_rows": train.skipped.count,
            "truncation": {
                "train": train.truncation,
                "validation": validation.as_ref().map(|found| found.truncation),
            },
            // Without evaluations; of runs trained together, its part by tokens.
            "train_seconds": state.seconds,
            "seconds": seconds,
            "tokens_per_second": self.tokens_per_second(),
            "examples_per_second": state.examples_per_second(),
            // Resident on a CPU, allocated on a GPU.
            "peak_memory_mib": devices.peak_memory_mib(),
            "device": devices.to_string(),
            "delta_norm": delta_norm,
            "base": {
                "name": base.name,
                "revision": base.commit,
                "hash": base.hash,
                "config_hash": base.config_hash,
                "tokenizer_hash": tokenizer.exists().then(|| files::checksum(&tokenizer)).transpose()?,
            },
            // BLAKE3 of the files, by their names.
            "adapter": files::checksums(&out.join(ADAPTER))?,
            "versions": {"libtorch": LIBTORCH_VERSION, "loraxs": env!("CARGO_PKG_VERSION")},
            "recipe": recipe,
        });
        files::write_json(&out.join(name), &results)
    }
}
