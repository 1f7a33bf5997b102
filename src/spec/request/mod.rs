//! What the work of a command is asked for: the command line fills these in by clap, other callers by hand. A doc comment is the
//! option's help.

mod chat;
mod generation;
mod predict;
mod score;
mod subject;
mod train;

use std::path::PathBuf;

pub use chat::ChatRequest;
use clap::ValueEnum;
use clap::builder::{OsStringValueParser, TypedValueParser};
pub use generation::GenerationOptions;
pub use predict::{AnswerFormat, PredictRequest};
pub use score::ScoreRequest;
pub use subject::SubjectSource;
pub use train::TrainRequest;

/// Output format of `merge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MergeFormat {
    /// A Hugging Face checkpoint with the adapter merged into its weights
    Hf,
    /// A plain LoRA adapter in PEFT's layout
    Peft,
}

/// Returns a parser of UTF-8 paths: recipes, results and adapters are text and name them.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| match text.into_string() {
        Ok(text) if text.is_empty() => Err("expected a path"),
        Ok(text) => Ok(PathBuf::from(text)),
        Err(_) => Err("expected a path in UTF-8: recipes and results must be able to name it"),
    })
}
