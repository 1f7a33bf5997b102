//! What is asked of predictions.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{GenerationOptions, SubjectSource, path};
use crate::limits::{BATCH_SIZE, LENGTH, SHOTS};
use crate::spec::Precision;

/// Rows or texts to answer, and how.
#[derive(Debug, Clone, Default, Args)]
pub struct PredictRequest {
    /// The model that answers.
    #[command(flatten)]
    pub subject: SubjectSource,
    /// Rows to answer: JSON lines, JSON, CSV, TSV, Parquet or plain lines (`.txt`), each also as `.gz` [default: JSON
    /// lines or plain lines on standard input]
    #[arg(long, value_name = "FILE", value_parser = path(), conflicts_with = "text")]
    pub input: Option<PathBuf>,
    /// Text to answer; can be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Vec<String>,
    /// Second text of a pair; can be repeated, once for each `--text`
    #[arg(long, value_name = "TEXT", requires = "text", allow_hyphen_values = true)]
    pub text_pair: Vec<String>,
    /// Columns of the text, or of the pair [default: those of the data set, else by their usual names]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Data set of the catalog whose columns, label names or template are used [default: the run's]
    #[arg(long, value_name = "T")]
    pub task: Option<String>,
    /// For language models: continue each text as it is, without the template of a data set and the chat template
    #[arg(long, conflicts_with = "task")]
    pub raw: bool,
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Format of the answers [default: by the ending of `--out`, else `jsonl`]
    #[arg(long)]
    pub format: Option<AnswerFormat>,
    /// Precision to compute in [default: the recipe's, else `fp32`]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Rows in one forward pass, or prompts continued at a time [default: 64; prompts as memory allows]
    #[arg(long, value_name = "N", value_parser = |text: &str| BATCH_SIZE.read(text, 1))]
    pub batch_size: Option<usize>,
    /// Tokens that longer texts are truncated to, for classifiers [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = |text: &str| LENGTH.read(text, 1))]
    pub max_length: Option<usize>,
    /// Number of solved examples before each prompt of a `--task` for `generation`
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = |text: &str| SHOTS.read(text, 0))]
    pub shots: usize,
    /// Settings of language models.
    #[command(flatten)]
    pub generation: GenerationOptions,
}

/// Format of the answers of `predict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values
    Csv,
    /// Tab-separated values without quotes; tabs and line ends inside become spaces
    Tsv,
}
