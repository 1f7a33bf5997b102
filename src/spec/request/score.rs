//! What is asked of an evaluation.

use std::path::PathBuf;

use clap::Args;

use super::{GenerationOptions, SubjectSource, path};
use crate::limits::{BATCH_SIZE, LENGTH, SHOTS};
use crate::spec::Precision;

/// A subject to score on data sets.
#[derive(Debug, Clone, Default, Args)]
pub struct ScoreRequest {
    /// The model to score.
    #[command(flatten)]
    pub subject: SubjectSource,
    /// Data set to score on, by its catalog name; can be repeated [default: the run's]
    #[arg(long, value_name = "T", required_unless_present = "run")]
    pub task: Vec<String>,
    /// Split to score [default: `test` for generation tasks, else the recipe's, else `validation`]
    #[arg(long, value_name = "SPLIT")]
    pub split: Option<String>,
    /// Score only the first N examples; 0 scores all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub limit: usize,
    /// Override a recipe key; can be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Score the answers in FILE instead of a model's: rows with `index` or `prompt`, and `completion`, in any format
    /// of data; samples of lm-evaluation-harness; or predictions of an earlier `eval`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "model", "set", "predict", "shots"], value_parser = path())]
    pub completions: Option<PathBuf>,
    /// Write the predictions of a test split as a GLUE submission file
    #[arg(long)]
    pub predict: bool,
    /// Precision to compute in [default: the recipe's, else `fp32`]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Examples in one forward pass [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = |text: &str| BATCH_SIZE.read(text, 1))]
    pub batch_size: Option<usize>,
    /// Tokens that longer sequences are truncated to [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = |text: &str| LENGTH.read(text, 1))]
    pub max_length: Option<usize>,
    /// Folder to write results and predictions to [default: `eval`; with `--run`, `RUN/eval`, or
    /// `RUN/eval/SPLIT` for splits other than the recipe's validation split]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Settings of generation tasks.
    #[command(flatten)]
    pub generation: GenerationOptions,
    /// Number of solved examples before each prompt
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Generation", value_parser = |text: &str| SHOTS.read(text, 0))]
    pub shots: usize,
}
