//! Precedence of the settings of an evaluation: the command line, then the run's recipe or the adapter, then the catalog, then
//! a default. [`decoding()`] adds the checkpoint's `generation_config.json`.
//!
//! For a training, `recipe::parse` puts `--set` over the recipe's file, and [`super::inputs`] fills in what the recipe leaves
//! to base and catalog.

mod decoding;

use std::path::PathBuf;

use super::environment::settled;
use super::run_folder::EVAL;
use super::subject::Subject;
use crate::data::Task;
use crate::data::dataset::Dataset;
use crate::fault::Result;
use crate::spec::Precision;
use crate::spec::request::ScoreRequest;
use crate::torch::Devices;
pub(super) use decoding::{arguments, decoding};

/// Default number of examples in one pass.
const BATCH_SIZE: usize = 64;
/// Default number of tokens in a sequence.
const MAX_LENGTH: usize = 128;

/// Data sets and settings of an evaluation.
pub struct ScoreSettings {
    /// The data sets to score.
    pub tasks: Vec<String>,
    /// Their split, if the command line names one.
    asked_split: Option<String>,
    /// Their split otherwise.
    split: String,
    /// Arithmetic of the base.
    pub precision: Precision,
    /// Examples in one pass.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub max_length: usize,
    /// Folder of the results.
    pub out: PathBuf,
    /// True if that is the run's own folder.
    pub of_run: bool,
}

impl ScoreSettings {
    /// Decides the settings of a request for a subject, computed on `devices`.
    ///
    /// # Errors
    /// As [`settled`].
    pub fn new(request: &ScoreRequest, subject: &Subject, devices: &Devices) -> Result<Self> {
        let recipe = subject.run.as_ref().map(|(_, recipe)| recipe);
        let trained_length =
            subject.adapter.as_ref().map(|a| a.config.max_length).filter(|&length| length > 0);
        let longest = usize::try_from(subject.base.base.config.longest_sequence()).unwrap_or(MAX_LENGTH);
        // Each split has its own folder, so that one does not overwrite another.
        let other = |split: &&String| recipe.is_none_or(|recipe| recipe.data.validation.split() != **split);
        let own_out = subject.run.as_ref().map(|(run, _)| {
            let checkpoint = subject.checkpoint.as_ref();
            let parts = checkpoint.into_iter().chain(request.split.as_ref().filter(other));
            parts.fold(run.join(EVAL), |folder, part| folder.join(part))
        });
        Ok(Self {
            of_run: request.out.is_none() && own_out.is_some(),
            tasks: match (&recipe, request.task.as_slice()) {
                (Some(recipe), []) => recipe.data.names().into_iter().map(str::to_owned).collect(),
                (_, tasks) => tasks.to_vec(),
            },
            asked_split: request.split.clone(),
            split: recipe.map_or("validation", |recipe| recipe.data.validation.split()).to_owned(),
            precision: settled(
                request.precision.or(recipe.map(|recipe| recipe.train.precision)).unwrap_or(Precision::Fp32),
                devices,
                &subject.base.base.config,
            )?,
            batch_size: request.batch_size.unwrap_or(BATCH_SIZE),
            max_length: request
                .max_length
                .or(recipe.map(|recipe| recipe.data.max_length))
                .or(trained_length)
                .unwrap_or(MAX_LENGTH.min(longest)),
            out: request.out.clone().or(own_out).unwrap_or_else(|| PathBuf::from(EVAL)),
        })
    }

    /// Returns the split of a data set.
    pub fn split<'a>(&'a self, dataset: &Dataset) -> &'a str {
        self.asked_split.as_deref().or(prompt_split(dataset)).unwrap_or(&self.split)
    }
}

/// Returns the split that prompts are taken from by default: `test` where there is one.
pub fn prompt_split(dataset: &Dataset) -> Option<&'static str> {
    let is_of_prompts = matches!(dataset.task, Task::Generation(_)) && dataset.files.contains_key("test");
    is_of_prompts.then_some("test")
}
