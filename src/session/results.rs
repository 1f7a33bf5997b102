//! `RUN/results.json`: the results of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::environment::OpenBase;
use super::run_folder::{ADAPTER, RESULTS};
use super::training::Training;
use crate::adapters::Group;
use crate::fault::{Result, fault};
use crate::files;
use crate::recipe::Recipe;
use crate::torch::{self, LIBTORCH_VERSION, peak_memory_mib};
use crate::train::checkpoint::{EvalRecord, TrainState};

/// Name of the file by which tokenizers are compared.
const TOKENIZER: &str = "tokenizer.json";

/// Contents of the file.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The data set.
    task: String,
    /// The metric that picked the best step.
    metric: String,
    /// The best evaluation.
    best: Option<EvalRecord>,
    /// The last evaluation.
    last: Option<EvalRecord>,
    /// Optimiser steps done.
    steps: u64,
    /// Steps among these that were skipped because a number was not finite.
    skipped_steps: u64,
    /// The run's seed.
    seed: u64,
    /// Trainable parameters of adapter, base and head.
    parameters: BTreeMap<&'static str, usize>,
    /// Rows of the training data that could not be used.
    skipped_rows: usize,
    /// Seconds of training, evaluations not counted.
    train_seconds: f64,
    /// Seconds from the command's start to its end; of calls that a later one resumed, their training alone.
    seconds: f64,
    /// Tokens per second of training.
    tokens_per_second: f64,
    /// Examples per second of training.
    examples_per_second: f64,
    /// Largest memory: resident on a CPU, allocated on a GPU.
    peak_memory_mib: f64,
    /// The device.
    device: String,
    /// The base.
    base: BaseResult,
    /// BLAKE3 of the files in `adapter/`, by their names.
    adapter: BTreeMap<String, String>,
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
    config_hash: String,
}

impl Results {
    /// Collects the results of a finished training in `out`.
    ///
    /// # Errors
    /// When the adapter cannot be read.
    pub fn new(training: &Training, state: &TrainState, seconds: f64, out: &Path) -> Result<Self> {
        let run = state.runs.first();
        let count = |group| training.trained.count(group);
        let parameters = [("adapter", Group::Adapter), ("base", Group::Base), ("head", Group::Head)];
        Ok(Self {
            task: training.inputs.dataset.name.clone(),
            metric: training.inputs.metrics[0].name().to_owned(),
            best: run.and_then(|run| run.best.clone()),
            last: run.and_then(|run| run.last.clone()),
            steps: state.step,
            skipped_steps: run.map_or(0, |run| run.skipped),
            seed: training.inputs.recipe.train.seed,
            parameters: parameters.into_iter().map(|(name, group)| (name, count(group))).collect(),
            skipped_rows: training.inputs.train.skipped.count,
            train_seconds: state.seconds,
            seconds,
            tokens_per_second: state.tokens as f64 / state.seconds.max(f64::MIN_POSITIVE),
            examples_per_second: state.examples_per_second(),
            peak_memory_mib: peak_memory_mib(training.model.device()),
            device: torch::name_of(training.model.device()),
            base: BaseResult {
                name: training.inputs.base.name.clone(),
                revision: training.inputs.base.commit.clone(),
                hash: training.inputs.base.hash.clone(),
                config_hash: training.inputs.base.config_hash.clone(),
            },
            adapter: checksums(&out.join(ADAPTER))?,
            versions: [("loraxs", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH_VERSION)].into(),
            recipe: training.inputs.recipe.clone(),
        })
    }

    /// Returns the closing summary of a run.
    pub fn summary(&self) -> String {
        let value = |record: &Option<EvalRecord>| {
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
        files::write_json(&out.join(RESULTS), self)
    }
}

/// The part of the file that is read again; older versions wrote less.
#[derive(Debug, Deserialize)]
struct Known {
    base: KnownBase,
    #[serde(default)]
    adapter: BTreeMap<String, String>,
    #[expect(dead_code, reason = "what is asked for is that it is there")]
    steps: u64,
}

#[derive(Debug, Deserialize)]
struct KnownBase {
    #[serde(default)]
    config_hash: Option<String>,
}

fn known(run: &Path) -> Result<Known> {
    let path = run.join(RESULTS);
    let fields: Result<Map<String, Value>> = files::read_json(&path);
    let known = fields.and_then(|fields| {
        Known::deserialize(Value::Object(fields)).with_context(|| format!("`{}` is damaged", path.display()))
    });
    known.map_err(|error| {
        let hint =
            format!("delete `{}`: then `train --resume` goes on from the newest checkpoint", path.display());
        fault(format!("{error:#}")).hint(hint).into()
    })
}

/// Checks that the results of a finished run can be read, and that its adapter is the one that it wrote.
///
/// # Errors
/// Names the file that is damaged, missing or another.
pub fn check_finished(run: &Path) -> Result<()> {
    check_adapter(run, &known(run)?)
}

fn check_adapter(run: &Path, known: &Known) -> Result<()> {
    let folder = run.join(ADAPTER);
    for (name, checksum) in &known.adapter {
        let path = folder.join(name);
        if path.exists() && files::checksum(&path)? != *checksum {
            return Err(fault(format!("`{}` is not as the run wrote it", path.display()))
                .hint(format!(
                    "put it back; `--model BASE --adapter {}` takes what is there",
                    folder.display()
                ))
                .into());
        }
    }
    Ok(())
}

/// Checks as [`check_finished`] does if the run is finished, and that the base still has the `config.json`
/// and the tokenizer that it was trained with.
///
/// # Errors
/// As [`check_finished`], or names what has changed.
pub fn check_subject(run: &Path, base: &OpenBase) -> Result<()> {
    let changed = |path: PathBuf, like: &str| {
        fault(format!("`{}` is not the one that `{}` was trained with", path.display(), run.display())).hint(
            format!(
                "put it back{like}; `--model BASE --adapter {}` takes what is there",
                run.join(ADAPTER).display()
            ),
        )
    };
    if run.join(RESULTS).exists() {
        let known = known(run)?;
        check_adapter(run, &known)?;
        if known.base.config_hash.is_some_and(|hash| hash != base.config_hash) {
            return Err(changed(base.base.folder.join("config.json"), "").into());
        }
    }
    let [kept, own] = [&run.join(ADAPTER), &base.base.folder].map(|folder| folder.join(TOKENIZER));
    if kept.exists() && own.exists() && files::checksum(&kept)? != files::checksum(&own)? {
        return Err(changed(own, &format!(" (the run kept `{}`)", kept.display())).into());
    }
    Ok(())
}

fn checksums(folder: &Path) -> Result<BTreeMap<String, String>> {
    let found = fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let paths: Vec<PathBuf> = found.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let of = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, files::checksum(&path)?))
    };
    paths.into_iter().filter(|path| path.is_file()).map(of).collect()
}
